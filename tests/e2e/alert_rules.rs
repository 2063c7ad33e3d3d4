//! The alert rules, judged by Prometheus' own tool.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::cached_if_there;

/// Not every distribution has it.
fn promtool() -> Option<PathBuf> {
    let in_path = || {
        let folders = std::env::var_os("PATH")?;
        let mut programs = std::env::split_paths(&folders).map(|folder| folder.join("promtool"));
        programs.find(|program| program.exists())
    };
    cached_if_there("promtool").or_else(in_path)
}

#[test]
fn every_alert_is_raised_by_what_it_is_for_and_by_nothing_else() {
    let Some(promtool) = promtool() else {
        return eprintln!("there is no promtool: left out");
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus");
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml"],
        ["check", "config", "prometheus.yml"],
    ] {
        let output = Command::new(&promtool)
            .args(arguments)
            .current_dir(&folder)
            .output()
            .expect("promtool");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "promtool {arguments:?}: {said}");
    }
}
