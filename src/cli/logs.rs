//! `conserver logs`: the log of the service, which the journal keeps and `journalctl` shows.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use clap::{Args, ValueEnum};

use super::output::eprint_line;
use super::service::unit_name;
use crate::exit::Exit;
use crate::vcon::VconId;

/// Where journald keeps the journal: on disk, or until the next boot.
const FOLDERS: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// How many lines are shown if nothing narrows them down.
const LINES: &str = "50";

/// Which lines to show.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Show only the lines about this vCon
    uuid: Option<VconId>,

    /// Go on with new lines until Ctrl-C
    #[arg(long, short)]
    follow: bool,

    /// Show the last N lines, or `all`; without UUID, --since and --until 50, else all
    ///
    /// With a UUID, journalctl shows the newest of them first.
    #[arg(long, short = 'n', value_name = "N", value_parser = lines)]
    lines: Option<String>,

    /// Show only lines of this priority and above: `error`, `warning`, `info` or `debug`
    #[arg(
        long,
        short,
        value_enum,
        value_name = "PRIORITY",
        hide_possible_values = true
    )]
    priority: Option<Priority>,

    /// Show lines from this time on: `today`, `-1h`, `2026-11-30 18:00`
    #[arg(long, short = 'S', value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,

    /// Show lines up to this time
    #[arg(long, short = 'U', value_name = "TIME", allow_hyphen_values = true)]
    until: Option<String>,
}

/// The levels of the log.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Priority {
    #[value(alias = "err")]
    Error,
    #[value(alias = "warn")]
    Warning,
    Info,
    Debug,
}

impl Priority {
    /// Its name for journalctl, which has those of syslog(3).
    fn name(self) -> &'static str {
        match self {
            Self::Error => "err",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

fn lines(text: &str) -> Result<String, String> {
    match text.parse::<u32>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) if text == "all" => Ok(text.to_owned()),
        Err(_) => Err("is not a number of lines, or all".to_owned()),
    }
}

impl LogsArgs {
    /// Becomes `journalctl` for the service, or this instance of it, and returns only if that cannot be.
    pub fn run(&self, instance: Option<&str>) -> Exit {
        if let Err(why) = journal_access(&FOLDERS.map(Path::new)) {
            eprint_line(why);
            return Exit::Unavailable;
        }
        let error = Command::new("journalctl")
            .args(self.arguments(&unit_name(instance)))
            .exec();
        if error.kind() == ErrorKind::NotFound {
            eprint_line("there is no journalctl in PATH, which shows the log of a service");
        } else {
            eprint_line(format_args!("could not run journalctl: {error}"));
        }
        Exit::Unavailable
    }

    /// The arguments of journalctl for the log of this unit.
    fn arguments(&self, unit: &str) -> Vec<OsString> {
        let mut arguments = vec!["--no-pager".into(), format!("--unit={unit}").into()];
        let mut add = |name: &str, value: &str| arguments.push(format!("--{name}={value}").into());
        if let Some(id) = &self.uuid {
            // Small letters find large ones too.
            add("grep", &id.as_str().to_ascii_lowercase());
        }
        if let Some(priority) = self.priority {
            add("priority", priority.name());
        }
        for (name, time) in [("since", &self.since), ("until", &self.until)] {
            if let Some(time) = time {
                add(name, time);
            }
        }
        let is_narrow = self.uuid.is_some() || self.since.is_some() || self.until.is_some();
        match self.lines.as_deref() {
            Some(lines) => add("lines", lines),
            None if !is_narrow => add("lines", LINES),
            // By itself, --follow shows the last ten.
            None if self.follow => arguments.push("--no-tail".into()),
            None => {}
        }
        if self.follow {
            arguments.push("--follow".into());
        }
        arguments
    }
}

/// Why the journal in these folders cannot be read, if so. journalctl would show nothing then, and succeed.
fn journal_access(folders: &[&Path]) -> Result<(), &'static str> {
    let mut is_there = false;
    for machine in folders
        .iter()
        .filter_map(|it| fs::read_dir(it).ok())
        .flatten()
    {
        let opened = machine.and_then(|it| File::open(it.path().join("system.journal")));
        match opened.map_err(|error| error.kind()) {
            Ok(_) => return Ok(()),
            Err(ErrorKind::PermissionDenied) => is_there = true,
            Err(_) => {}
        }
    }
    if is_there {
        Err(
            "permission denied: the log of the service is for root and the members of the groups systemd-journal and \
             adm. Run it with sudo, or add yourself with `sudo usermod -aG systemd-journal $USER` and log in again",
        )
    } else {
        Err(
            "this machine keeps no journal, neither in /var/log/journal nor in /run/log/journal. Without systemd, the \
             log is what the daemon writes to standard error",
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        logs: LogsArgs,
    }

    const ID: &str = "292D6185-bb23-4a5d-b2c9-df840d49dafa";

    #[test]
    fn journalctl_is_asked_for_what_was_meant() {
        for (line, arguments) in [
            ("", "--lines=50"),
            ("-f", "--lines=50 --follow"),
            ("-n 5 -p warn", "--priority=warning --lines=5"),
            ("-p error -S -1h", "--priority=err --since=-1h"),
            ("--until today --follow", "--until=today --no-tail --follow"),
            (ID, "--grep=292d6185-bb23-4a5d-b2c9-df840d49dafa"),
            ("-n all -f", "--lines=all --follow"),
        ] {
            let words = ["logs"].into_iter().chain(line.split_whitespace());
            let logs = Line::try_parse_from(words).unwrap().logs;
            let given = logs.arguments(&unit_name(None));
            let given: Vec<&str> = given.iter().map(|it| it.to_str().unwrap()).collect();
            let expected = format!("--no-pager --unit=conserver.service {arguments}");
            assert_eq!(given.join(" "), expected, "{line}");
        }
        assert_eq!(unit_name(Some("second")), "conserver@second.service");
        for wrong in ["-n -1", "-n many", "-p loud", "a-.*-b"] {
            let words = ["logs"].into_iter().chain(wrong.split_whitespace());
            assert!(Line::try_parse_from(words).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_journal_that_cannot_be_shown_is_told_from_one_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let (var, run) = (folder.path().join("var"), folder.path().join("run"));
        let access = || journal_access(&[&var, &run]);
        assert!(access().unwrap_err().contains("keeps no journal"));
        let machine = run.join("0123456789abcdef");
        fs::create_dir_all(&machine).unwrap();
        assert!(access().unwrap_err().contains("keeps no journal"));
        let journal = machine.join("system.journal");
        fs::write(&journal, "").unwrap();
        assert_eq!(access(), Ok(()));
        fs::set_permissions(&journal, fs::Permissions::from_mode(0o000)).unwrap();
        // Root may read it nevertheless.
        if File::open(&journal).is_err() {
            assert!(access().unwrap_err().contains("systemd-journal"));
        }
    }
}
