//! `conserver scale`, `reload` and `drain`: what an operator tells the daemon on this machine.
//!
//! The supervisor is told by signals, and by a word of its scoreboard for a number; it shows there what it makes of
//! them. So only root and the daemon's own user can tell it anything.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::load_config;
use super::output::{Refusal, counted, eprint_line, eprint_lines, print_line};
use super::service::systemctl_alone;
use super::status::find;
use crate::child::WAKE_UP;
use crate::exit::Exit;
use crate::runtime_dir;
use crate::scoreboard::{DaemonPhase, ReloadState, Snapshot, lock_holder, request_workers};
use crate::settings::Settings;
use crate::supervisor::MOST_WORKERS;

/// How long the supervisor may take to notice something.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);

/// The pause between two looks at the scoreboard.
const LOOK: Duration = Duration::from_millis(20);

/// How many workers there are to be.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// The number of workers
    #[arg(value_name = "WORKERS", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_WORKERS)))]
    workers: u32,
}

/// Whether to wait for a reload.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Wait until every worker has been replaced
    #[arg(long)]
    wait: bool,
}

/// Whether to wait for a drain.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Wait until the daemon has ended
    #[arg(long)]
    wait: bool,
}

impl ScaleArgs {
    /// Changes the number of workers of the running daemon.
    pub fn run(&self, settings: &Settings) -> Exit {
        finish(self.scale(settings))
    }

    fn scale(&self, settings: &Settings) -> Result<Exit, Refusal> {
        let daemon = Daemon::find(settings)?;
        daemon.must_not_stop()?;
        let (before, wanted) = (daemon.found.header.wanted, u64::from(self.workers));
        let workers = counted(self.workers, "worker");
        if before == wanted {
            print_line(format_args!("the daemon has {workers} already"));
            return Ok(Exit::Ok);
        }
        request_workers(&daemon.found.board, self.workers).map_err(|error| {
            let why = format!("{error}; only root and the daemon's user can do this");
            Refusal::new(Exit::Unavailable, why)
        })?;
        daemon.signal(WAKE_UP)?;
        daemon.wait(
            "has not changed the number of workers",
            Some(NOTICE_LIMIT),
            |now| (now.header.wanted == wanted).then_some(()),
        )?;
        print_line(format_args!(
            "{workers} instead of {before}, until the daemon is restarted: CONSERVER_WORKERS says how many start then"
        ));
        Ok(Exit::Ok)
    }
}

impl ReloadArgs {
    /// Makes the running daemon read its configuration again and replace its workers.
    pub fn run(&self, settings: &Settings) -> Exit {
        finish(self.reload(settings))
    }

    fn reload(&self, settings: &Settings) -> Result<Exit, Refusal> {
        let daemon = Daemon::find(settings)?;
        daemon.must_not_stop()?;
        let config = match load_config(settings) {
            Ok(config) => config,
            Err(exit) => {
                return Err(Refusal::new(
                    exit,
                    "not reloaded: the former configuration stays",
                ));
            }
        };
        match config.check_python(&settings.config_file) {
            Ok(warnings) => warnings
                .lines()
                .for_each(|it| eprint_line(format_args!("warning: {it}"))),
            Err(errors) => {
                eprint_lines(errors);
                let why = "not reloaded: the former configuration stays";
                return Err(Refusal::new(Exit::Config, why));
            }
        }
        // The checks may have taken minutes, in which somebody else has reloaded.
        let before = daemon.look().map_err(ended)?.header.reloads;
        daemon.signal(Signal::SIGHUP)?;
        let state = daemon.wait("has not begun to reload", Some(NOTICE_LIMIT), |now| {
            (now.header.reloads > before).then_some(now.header.reload_state)
        })?;
        let state = match state {
            Some(ReloadState::Begun) | None if self.wait => {
                daemon.wait("reloads", None, |now| {
                    now.header
                        .reload_state
                        .filter(|state| *state != ReloadState::Begun)
                })?
            }
            state => state.unwrap_or(ReloadState::Begun),
        };
        let why = match state {
            ReloadState::Begun => {
                print_line("reloading: `conserver status` shows when every worker is replaced");
                return Ok(Exit::Ok);
            }
            ReloadState::Done => {
                print_line("reloaded: every worker has the new configuration");
                return Ok(Exit::Ok);
            }
            ReloadState::Refused => {
                "the daemon refuses the configuration, the former one stays: its log says why"
            }
            ReloadState::GivenUp => {
                "a worker cannot work with the configuration, the other workers were not replaced: the log says why"
            }
        };
        Err(Refusal::new(Exit::Config, why))
    }
}

impl DrainArgs {
    /// Makes the running daemon finish what it has in work, and end.
    pub fn run(&self, settings: &Settings) -> Exit {
        finish(self.drain(settings))
    }

    fn drain(&self, settings: &Settings) -> Result<Exit, Refusal> {
        let daemon = Daemon::find(settings)?;
        if daemon.found.header.phase != Some(DaemonPhase::Stopping)
            && let Some(unit) = Unit::restarting(daemon.pid())
        {
            return Err(Refusal::new(Exit::Usage, unit.advice()));
        }
        // Looked at only now: a second SIGTERM would not let the workers finish.
        let phase = daemon.look().map_err(ended)?.header.phase;
        if phase != Some(DaemonPhase::Stopping) {
            daemon.signal(Signal::SIGTERM)?;
        }
        if !self.wait {
            let lanes = daemon
                .found
                .slots
                .iter()
                .filter_map(|slot| slot.worker.as_ref());
            let in_work: usize = lanes.map(|worker| worker.lanes.len()).sum();
            print_line(format_args!(
                "draining, {} in work",
                counted(in_work as u64, "vCon")
            ));
            return Ok(Exit::Ok);
        }
        while daemon.look().is_ok() {
            thread::sleep(LOOK);
        }
        print_line("drained: the daemon has ended");
        Ok(Exit::Ok)
    }
}

fn finish(result: Result<Exit, Refusal>) -> Exit {
    result.unwrap_or_else(Refusal::report)
}

/// Refuses the scoreboard of a stranger, which root may look at: it could name any process.
fn may_be_told(board: &Path) -> Result<(), Refusal> {
    let folder = board.parent().unwrap_or(board);
    let owner = runtime_dir::owner(folder)
        .map_err(|error| Refusal::new(Exit::Unavailable, error.to_string()))?;
    let own = geteuid().as_raw();
    if owner == own || owner == 0 || runtime_dir::is_services(folder) {
        return Ok(());
    }
    let why = format!(
        "the daemon of {} belongs to user {owner}: run the command as that user",
        board.display()
    );
    Err(Refusal::new(Exit::NoPermission, why))
}

fn ended(why: String) -> Refusal {
    let why = format!("the daemon has ended meanwhile: {why}");
    Refusal::new(Exit::Unavailable, why)
}

/// The daemon on this machine.
struct Daemon {
    found: Snapshot,
}

impl Daemon {
    /// Finds it, and makes sure that its PID is one that means it here too.
    fn find(settings: &Settings) -> Result<Self, Refusal> {
        let found = find(settings).map_err(|why| Refusal::new(Exit::Unavailable, why))?;
        may_be_told(&found.board)?;
        let holder = lock_holder(&found.board);
        let holder = holder.map_err(|error| Refusal::new(Exit::Unavailable, error.to_string()))?;
        if holder != Some(found.header.pid) {
            let why = format!(
                "the daemon, with PID {} where it runs, cannot be told anything from here: run the command in its \
                 container",
                found.header.pid
            );
            return Err(Refusal::new(Exit::Unavailable, why));
        }
        Ok(Self { found })
    }

    fn pid(&self) -> i32 {
        self.found.header.pid
    }

    fn must_not_stop(&self) -> Result<(), Refusal> {
        if self.found.header.phase == Some(DaemonPhase::Stopping) {
            return Err(Refusal::new(Exit::Unavailable, "the daemon is stopping"));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<(), Refusal> {
        let pid = self.pid();
        kill(Pid::from_raw(pid), signal).map_err(|error| {
            let why = match error {
                Errno::EPERM => format!(
                    "could not signal the daemon (PID {pid}): only root and the daemon's user can do this"
                ),
                Errno::ESRCH => "the daemon has just ended".to_owned(),
                error => format!("could not signal the daemon (PID {pid}): {error}"),
            };
            Refusal::new(Exit::Unavailable, why)
        })
    }

    /// What this very daemon shows now.
    fn look(&self) -> Result<Snapshot, String> {
        let now =
            Snapshot::without_figures(&self.found.board).map_err(|error| error.to_string())?;
        if now.header.nonce == self.found.header.nonce {
            Ok(now)
        } else {
            Err("another daemon runs in its place".to_owned())
        }
    }

    /// Waits until the scoreboard shows something.
    fn wait<T>(
        &self,
        what: &str,
        limit: Option<Duration>,
        shown: impl Fn(&Snapshot) -> Option<T>,
    ) -> Result<T, Refusal> {
        let begun = Instant::now();
        loop {
            let now = self.look().map_err(ended)?;
            if let Some(shown) = shown(&now) {
                return Ok(shown);
            }
            if now.header.phase == Some(DaemonPhase::Stopping) {
                return Err(Refusal::new(Exit::Unavailable, "the daemon is stopping"));
            }
            if let Some(limit) = limit.filter(|limit| begun.elapsed() >= *limit) {
                let why = format!("the daemon {what} within {} s", limit.as_secs());
                return Err(Refusal::new(Exit::Unavailable, why));
            }
            thread::sleep(LOOK);
        }
    }
}

/// A unit of systemd that starts its daemon again.
#[derive(Debug, PartialEq, Eq)]
struct Unit {
    name: String,
    is_users: bool,
}

impl Unit {
    /// The unit whose main process this is, if it starts that again after it has ended well.
    fn restarting(pid: i32) -> Option<Self> {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let unit = Self::of_cgroups(&cgroups)?;
        // Without systemctl, nobody can say.
        let shown = unit.asking().output().ok()?;
        starts_again(&String::from_utf8_lossy(&shown.stdout), pid).then_some(unit)
    }

    /// Asks systemd for the properties that [`starts_again`] reads.
    fn asking(&self) -> Command {
        let mut show = systemctl_alone();
        if self.is_users {
            show.arg("--user");
            // Where the user's own systemd listens.
            for name in ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"] {
                if let Some(value) = env::var_os(name) {
                    show.env(name, value);
                }
            }
        }
        show.args(["show", "--property=MainPID", "--property=Restart", "--"]);
        show.arg(&self.name);
        show
    }

    /// The unit that the control groups of a process name.
    fn of_cgroups(cgroups: &str) -> Option<Self> {
        // Where both versions are in use, either may name it.
        cgroups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            if !matches!(controllers, "" | "name=systemd") {
                return None;
            }
            // A daemon may have made groups of its own below.
            let name = path.rsplit('/').find(|part| part.ends_with(".service"))?;
            Some(Self {
                name: name.to_owned(),
                is_users: path.contains("/user@") && !name.starts_with("user@"),
            })
        })
    }

    fn advice(&self) -> String {
        let user = if self.is_users { "--user " } else { "" };
        let name = self.name.trim_end_matches(".service");
        format!(
            "not drained: systemd would start the daemon again. `systemctl {user}stop {name}` drains it and waits \
             until it has ended"
        )
    }
}

/// Whether a unit with these properties is that of the process, and starts it again after an exit code of 0.
fn starts_again(properties: &str, pid: i32) -> bool {
    let property = |name: &str| {
        let mut values = properties.lines().filter_map(|line| line.split_once('='));
        values.find(|(it, _)| *it == name).map(|(_, value)| value)
    };
    property("MainPID") == Some(&pid.to_string())
        && matches!(property("Restart"), Some("always" | "on-success"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn a_strangers_daemon_is_told_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let board = folder.path().join("x.scoreboard");
        may_be_told(&board).unwrap();
        if geteuid().is_root() {
            chown(folder.path(), Some(12_345), None).unwrap();
            let Refusal { exit, why } = may_be_told(&board).unwrap_err();
            assert_eq!(exit, Exit::NoPermission);
            assert!(why.contains("belongs to user 12345"), "{why}");
        }
    }

    #[test]
    fn the_unit_of_a_daemon_is_found_by_its_control_group() {
        for (cgroups, expected) in [
            (
                "0::/system.slice/conserver.service\n",
                Some(("conserver.service", false)),
            ),
            (
                "12:cpu:/x.service\n1:name=systemd:/system.slice/conserver@two.service/sub\n",
                Some(("conserver@two.service", false)),
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/conserver.service\n",
                Some(("conserver.service", true)),
            ),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
            ("0::/\n", None),
            (
                "9:name=systemd:/\n0::/system.slice/conserver.service\n",
                Some(("conserver.service", false)),
            ),
            ("", None),
        ] {
            let unit = Unit::of_cgroups(cgroups);
            let found = unit.as_ref().map(|unit| (&*unit.name, unit.is_users));
            assert_eq!(found, expected, "{cgroups}");
        }
    }

    #[test]
    fn systemd_is_asked_without_what_a_services_user_could_have_put_there() {
        for is_users in [false, true] {
            let unit = Unit {
                name: "x.service".to_owned(),
                is_users,
            };
            let asking = unit.asking();
            assert_eq!(asking.get_program(), "/usr/bin/systemctl");
            for (name, _) in asking.get_envs() {
                let is_users_own = ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"];
                assert!(name == "LC_ALL" || is_users && is_users_own.iter().any(|it| name == *it));
            }
            // As it is printed, too: with `env -i` for one that inherits nothing.
            assert!(format!("{asking:?}").contains("env -i"), "{asking:?}");
        }
    }

    #[test]
    fn only_a_unit_that_starts_just_this_process_again_keeps_it_from_draining() {
        for (properties, expected) in [
            ("Restart=always\nMainPID=4711\n", true),
            ("MainPID=4711\nRestart=on-success\n", true),
            ("MainPID=4711\nRestart=on-failure\n", false),
            ("MainPID=4711\nRestart=no\n", false),
            // The test runner's own service, for example.
            ("MainPID=47\nRestart=always\n", false),
            ("", false),
        ] {
            assert_eq!(starts_again(properties, 4711), expected, "{properties}");
        }
    }
}
