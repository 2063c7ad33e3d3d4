//! A changed configuration on its way into force: its Python modules are tried before.
//!
//! An import may take its time or hang, and the supervisor waits for nobody. So it starts a process that tries the
//! modules (`conserver candidate`) and goes on; the exit code of that process is the verdict, and its log lines
//! are the reasons.
//!
//! ```text
//! read ── has no Python modules ──────────────────────────► in force
//!  ▲ │ └─ has some ──► candidate ── exit code 0 ──────────────┘
//!  │ │                    │   │
//!  │ └─ not valid         │   └─ another end, too late ──► the former one stays
//!  └─ changed again ──────┘
//! ```

use std::ffi::{OsStr, OsString};
use std::io::{self, Seek, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::Supervisor;
use super::notify::Notification;
use super::start_method::execute;
use crate::config::Source;
use crate::exit::Exit;
use crate::scoreboard::{DaemonPhase, ReloadState};
use crate::sys::{self, End};

/// How much longer than the Python modules the process may take: its own start and end.
const GRACE: Duration = Duration::from_secs(10);

/// A configuration whose Python modules are being tried.
pub(super) struct Candidate {
    source: Source,
    /// Whether the workers are to be replaced when it is in force.
    reloads: bool,
    /// The process that tries them.
    pid: Pid,
    limit: Duration,
    /// When that process is killed.
    pub until: Instant,
}

impl Candidate {
    /// Starts the process, which gets the text as its standard input: the file may change meanwhile.
    fn begin(source: Source, file: &Path, reloads: bool) -> io::Result<Self> {
        let mut text = sys::nameless_file()?;
        text.write_all(source.text.as_bytes())?;
        text.rewind()?;
        let supervisor = std::process::id().to_string();
        let mut config = OsString::from("--config=");
        config.push(file);
        let arguments: [&OsStr; 2] = [supervisor.as_ref(), &config];
        let pid = execute("candidate", &arguments, Stdio::from(text))?;
        let limit = source.config.longest_python_check() + GRACE;
        Ok(Self {
            source,
            reloads,
            pid,
            limit,
            until: Instant::now() + limit,
        })
    }

    /// Ends the process. The interpreter dies with it, and its reaper kills what the interpreter has
    /// started.
    fn end(&self) {
        sys::kill(self.pid, Signal::SIGKILL);
    }
}

impl Supervisor {
    /// Reads the configuration again, and puts it in force as soon as it is known to work. With `reloads`, the
    /// workers are replaced then.
    pub(super) fn read_config(&mut self, reloads: bool) {
        // What was read before is outdated, also if the file is not valid now.
        let former = self.candidate.take();
        let reloads = reloads || former.as_ref().is_some_and(|it| it.reloads);
        if let Some(former) = former {
            log::info!("The configuration is read again before its Python modules were tried");
            former.end();
        }
        let Some(source) = self.active_config.read() else {
            return self.keep_former(reloads);
        };
        if !source.config.has_python() {
            return self.put_in_force(source, reloads);
        }
        let file = self.active_config.file();
        match Candidate::begin(source, file, reloads) {
            Ok(candidate) => {
                let file = file.display();
                log::info!("Configuration {file} was read, and its Python modules are tried");
                self.candidate = Some(candidate);
            }
            Err(error) => {
                log::error!(
                    "The Python modules cannot be tried, the former configuration stays: {error}"
                );
                self.keep_former(reloads);
            }
        }
    }

    /// A process has ended. Returns whether it was the one that tries the Python modules.
    pub(super) fn note_end_of_candidate(&mut self, pid: Pid, end: End) -> bool {
        let Some(candidate) = self.candidate.take_if(|it| it.pid == pid) else {
            return false;
        };
        match end {
            End::Exited(0) => self.put_in_force(candidate.source, candidate.reloads),
            end => {
                // With this code, it has logged why.
                if end != End::Exited(Exit::Config.code()) {
                    log::error!(
                        "The Python modules could not be tried ({end}), the former configuration stays"
                    );
                }
                self.keep_former(candidate.reloads);
            }
        }
        true
    }

    /// Ends the process if it takes too long.
    pub(super) fn enforce_deadline_of_candidate(&mut self) {
        let is_late = |it: &mut Candidate| it.until <= Instant::now();
        if let Some(candidate) = self.candidate.take_if(is_late) {
            let seconds = candidate.limit.as_secs();
            log::error!(
                "The Python modules could not be tried within {seconds} s, the former configuration stays"
            );
            candidate.end();
            self.keep_former(candidate.reloads);
        }
    }

    /// Ends the process, as the daemon stops.
    pub(super) fn drop_candidate(&mut self) {
        if let Some(candidate) = self.candidate.take() {
            candidate.end();
        }
    }

    /// Whether a reload has not begun to replace workers, because Python modules are being tried.
    pub(super) fn reload_is_waiting(&self) -> bool {
        self.candidate.as_ref().is_some_and(|it| it.reloads)
    }

    fn put_in_force(&mut self, source: Source, reloads: bool) {
        if !self.active_config.put_in_force(source, &mut self.board) {
            return self.keep_former(reloads);
        }
        if reloads {
            self.begin_rolling_restart();
        }
        self.forgive_refusals();
    }

    fn keep_former(&mut self, reloads: bool) {
        if reloads {
            self.board.set_reload_state(ReloadState::Refused);
        }
        if reloads && self.phase == DaemonPhase::Running {
            self.notify.send(Notification::Ready);
        }
    }
}
