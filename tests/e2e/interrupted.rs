//! Tests that are interrupted leave nothing behind that could meet those that run next.

use std::process::{Command, Stdio};
use std::{env, fs, thread};

use crate::harness::{Conserver, PATIENCE, Redis, chain, is_alive, wait_until, wait_until_gone};

/// Where the test process that is to be killed says what it has started.
const REPORT: &str = "CONSERVER_TEST_INTERRUPTED";

#[test]
fn a_test_process_that_is_killed_takes_its_daemon_and_its_servers_along() {
    if let Some(report) = env::var_os(REPORT) {
        let redis = Redis::plain();
        let daemon = Conserver::with(&redis)
            .config(&chain(&[], &[]))
            .workers(2)
            .start();
        daemon.wait_for_workers(2);
        let pids = [&daemon.family()[..], &[redis.pid()]].concat();
        let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
        fs::write(report, pids.join(" ") + "\n").expect("a file");
        // It is killed long before.
        return thread::sleep(PATIENCE);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report");
    let name = "interrupted::a_test_process_that_is_killed_takes_its_daemon_and_its_servers_along";
    let mut other = Command::new(env::current_exe().expect("a program"))
        .args(["--exact", name])
        .env(REPORT, &report)
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("this program");
    let mut pids = Vec::new();
    wait_until("the other has started its daemon", PATIENCE, || {
        let said = fs::read_to_string(&report).unwrap_or_default();
        let parse = |pid: &str| pid.parse::<i32>().expect("a PID");
        pids = said.split_whitespace().map(parse).collect();
        said.ends_with('\n')
    });
    // The supervisor, its monitor, two workers, and Redis.
    assert!(pids.len() >= 5, "{pids:?}");
    assert!(pids.iter().all(|pid| is_alive(*pid)), "{pids:?}");
    other.kill().expect("it runs");
    other.wait().expect("a child");
    wait_until_gone(&pids);
}
