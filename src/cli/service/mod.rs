//! Whose settings a command works with: the caller's, or those of the service on this machine.
//!
//! The service's are taken unless the caller has named a Redis, a configuration or any other setting of
//! conserver. A service that runs is found by its scoreboard in `/run/conserver` (`/run/conserver-NAME` for the
//! instance `NAME`), where only root can make folders. Root reads the environment of its supervisor from `/proc`, so
//! that a command has exactly what the service has, with its credentials, and then becomes its user: commands leave
//! no files of root's behind, and have no rights that the service does not have. Everybody else may not read that
//! environment. For them, and while the service does not run, `unit` asks systemd and reads the files of settings.
//!
//! The user becomes another one in this process, and executes nothing on the way. So what the service's user could
//! have put into that environment (`LD_PRELOAD`, `PATH`) has no effect on anything that runs as root, and what the
//! caller has opened (redirected output, files to submit) stays open.

mod unit;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{Args, Parser};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{User, geteuid, getuid};

use self::unit::Unit;
pub(super) use self::unit::systemctl_alone;
use super::Cli;
use super::output::{Refusal, eprint_line};
use crate::exit::Exit;
use crate::procfs::Process;
use crate::runtime_dir;
use crate::scoreboard::{BoardHeader, Snapshot, lock_holder};
use crate::settings::{Settings, TABLE};
use crate::sys::{self, Credentials};

/// Variables of systemd's by which a process is known to run for a service.
const OF_SYSTEMD: [&str; 3] = [
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
];

/// Variables of the service's that are about its process, and mean nothing to another one.
const OF_ITS_PROCESS: [&str; 14] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "MAINPID",
    "MANAGERPID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "TERM",
];

/// Variables of the caller's that are about the terminal and the language.
const OF_THE_CALLER: [&str; 12] = [
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "COLUMNS",
    "LINES",
    "TZ",
    "LANG",
    "LANGUAGE",
    "RUST_BACKTRACE",
    "LLVM_PROFILE_FILE",
];

/// The variable that names the configuration.
const CONFIG_FILE: &str = "CONSERVER_CONFIG_FILE";

/// Whose settings to use.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// Use the settings of the service, whatever the environment says; fail if there is none
    #[arg(
        long,
        global = true,
        help_heading = "Settings",
        conflicts_with = "no_service"
    )]
    pub as_service: bool,

    /// Use the caller's own settings, also if there is a service
    #[arg(long, global = true, help_heading = "Settings")]
    no_service: bool,

    /// The service conserver@NAME, or else the daemon with CONSERVER_INSTANCE=NAME
    #[arg(long, global = true, help_heading = "Settings", value_name = "NAME", value_parser = instance)]
    instance: Option<String>,
}

/// The name of an instance: part of the names of a unit and of folders.
fn instance(text: &str) -> Result<String, String> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '\\');
    if !text.is_empty() && text.len() <= 200 && text.chars().all(is_good) && !text.starts_with('.')
    {
        Ok(text.to_owned())
    } else {
        Err("a name has at most 200 letters, digits, `-`, `_` and `.` of ASCII".to_owned())
    }
}

/// What of a service's settings a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it is the service, or has nothing to do with one.
    Nothing,
    /// Its settings, but only if the caller asks for that.
    IfAsked,
    /// Its scoreboard, which can be found without settings.
    Scoreboard,
    /// Its settings.
    Settings,
}

/// A service, with what a command needs to act as it does.
#[derive(Debug)]
pub struct Service {
    variables: Vec<(OsString, OsString)>,
    /// Its working directory.
    folder: PathBuf,
    mask: Option<u32>,
    /// Whom root becomes.
    credentials: Credentials,
}

impl ServiceArgs {
    /// The name that `--instance` gives.
    pub fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
    }

    /// Finds the service whose settings the command is to use; `None` if it uses the caller's.
    ///
    /// # Errors
    /// If the caller may not read these settings, or the service of `--as-service` is not there.
    pub fn find(&self, needs: Needs, names_config: bool) -> Result<Option<Service>, Refusal> {
        if needs == Needs::Nothing {
            let why = "this command does not act as the service: leave out --as-service";
            return match self.as_service {
                true => Err(Refusal::new(Exit::Usage, why)),
                false => Ok(None),
            };
        }
        let is_callers = self.no_service || names_config || needs == Needs::IfAsked;
        if !self.as_service && (is_callers || has_own_settings()) {
            return Ok(None);
        }
        match self.look() {
            Ok(None) if self.as_service => {
                let unit = unit_name(self.instance());
                let why = format!("{unit} neither runs nor is it installed on this machine");
                Err(Refusal::new(Exit::Unavailable, why))
            }
            // Without settings of its own, the command still finds the scoreboards that it may read.
            Err(_) if needs == Needs::Scoreboard && !self.as_service => Ok(None),
            found => found,
        }
    }

    fn look(&self) -> Result<Option<Service>, Refusal> {
        let is_root = geteuid().is_root();
        let mut runs = false;
        for (instance, folder, board) in self.places() {
            let Some(daemon) = Daemon::find(&folder, board.as_deref())? else {
                continue;
            };
            if is_root {
                return daemon.service().map(Some);
            }
            runs = true;
            // Only root may read the environment of a process that hides its memory.
            if let Some(unit) = Unit::ask(&unit_name(instance))? {
                return unit.service().map(Some);
            }
        }
        if runs {
            let why = "only root can read the settings of the daemon that runs here: use sudo, or --no-service for \
                       your own settings";
            return match self.as_service {
                true => Err(Refusal::new(Exit::NoPermission, why)),
                false => Ok(None),
            };
        }
        let instance = self.instance();
        let is_meant = self.as_service || instance.is_some();
        match Unit::ask(&unit_name(instance))? {
            Some(unit) if unit.is_in_use(is_meant, instance)? => {
                if unit.lacks_its_user() && !self.as_service {
                    eprint_line(format_args!(
                        "note: {} does not run, and has its user only then: this command uses your own settings",
                        unit_name(instance)
                    ));
                    return Ok(None);
                }
                unit.service().map(Some)
            }
            _ if instance.is_none() => one_at_most(&running_instances()).map(|()| None),
            _ => Ok(None),
        }
    }

    /// Where the service may be: the instance that its unit has, its runtime folder, and its scoreboard there if only
    /// that one is meant.
    fn places(&self) -> Vec<(Option<&str>, PathBuf, Option<String>)> {
        let mut places = vec![(
            self.instance(),
            runtime_dir::of_service(self.instance()),
            None,
        )];
        if let Some(name) = self.instance() {
            let board = format!("{name}.scoreboard");
            places.push((None, runtime_dir::of_service(None), Some(board)));
        }
        places
    }
}

/// The instances of the service that run, as far as this user may see them.
fn running_instances() -> Vec<String> {
    let mut instances = runtime_dir::of_instances();
    instances.retain(|(_, folder)| matches!(Daemon::find(folder, None), Ok(Some(_))));
    instances.into_iter().map(|(name, _)| name).collect()
}

/// Refuses to choose. With one, the command says that it works with another Redis.
fn one_at_most(instances: &[String]) -> Result<(), Refusal> {
    if instances.len() < 2 {
        return Ok(());
    }
    let why = format!(
        "several instances of the service run here: choose one with --instance ({}), or --no-service for your own \
         settings",
        instances.join(", ")
    );
    Err(Refusal::new(Exit::Usage, why))
}

/// The unit of the service, or of this instance of it.
pub(super) fn unit_name(instance: Option<&str>) -> String {
    match instance {
        Some(name) => format!("conserver@{name}.service"),
        None => "conserver.service".to_owned(),
    }
}

/// Whether the caller's environment says what to work with. Settings that the existing server and others have too,
/// such as `LOG_LEVEL`, say nothing of that.
fn has_own_settings() -> bool {
    let is_conservers = |name: &&str| *name == "REDIS_URL" || name.starts_with("CONSERVER_");
    let names = TABLE.iter().map(|setting| setting.name);
    let mut names = names.filter(is_conservers).chain(OF_SYSTEMD);
    names.any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// A daemon that runs, in the folder of a service.
struct Daemon {
    board: PathBuf,
    header: BoardHeader,
}

impl Daemon {
    /// The one in this folder; `board` is its scoreboard if only that one is meant.
    fn find(folder: &Path, board: Option<&str>) -> Result<Option<Self>, Refusal> {
        let paths = runtime_dir::scoreboards_in(folder).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => denied(&error),
            _ => Refusal::new(Exit::Unavailable, error.to_string()),
        })?;
        let is_meant = |path: &PathBuf| board.is_none_or(|name| path.ends_with(name));
        for path in paths.into_iter().filter(is_meant) {
            match Snapshot::without_figures(&path) {
                Ok(Snapshot { header, .. }) => {
                    return Ok(Some(Self {
                        board: path,
                        header,
                    }));
                }
                // Left behind, or of another version.
                Err(error) => log::debug!("{error}"),
            }
        }
        Ok(None)
    }

    /// What its supervisor has. Nothing of it is trusted to be the service's before it is sure that its process holds
    /// the lock of the scoreboard, and runs as the user whose folder it is, and as no other.
    fn service(self) -> Result<Service, Refusal> {
        let pid = self.header.pid;
        let shown = self.board.display();
        let refused = |why: &str| Refusal::new(Exit::NoPermission, why);
        let unread = |error: io::Error| {
            refused(&format!(
                "could not read the settings of the daemon that runs here (PID {pid}): {error}; --no-service uses \
                 your own settings"
            ))
        };
        let process = Process::open(pid);
        if !self.is_held_by(pid) {
            return Err(refused(&format!(
                "PID {pid}, which {shown} names, is not here the process that has locked it: run the command in the \
                 daemon's container, or with --no-service for your own settings"
            )));
        }
        let process = process.map_err(unread)?;
        let owner = self.board.parent().map(runtime_dir::owner);
        let owner = owner.and_then(Result::ok);
        let (credentials, mask) = process.identity().ok_or_else(|| {
            refused(&format!(
                "PID {pid}, which {shown} names, is no process of one user"
            ))
        })?;
        if owner != Some(credentials.user) {
            return Err(refused(&format!(
                "PID {pid}, which {shown} names, runs as user {}, whose folder that is not",
                credentials.user
            )));
        }
        let mut variables = process.environment().map_err(unread)?;
        name_config(process.arguments().map_err(unread)?, &mut variables);
        let folder = process.working_directory().map_err(unread)?;
        // All that was read is of one process; with its lock, it is the supervisor.
        match Snapshot::without_figures(&self.board) {
            Ok(now) if now.header.nonce == self.header.nonce && self.is_held_by(pid) => {
                Ok(Service {
                    variables,
                    folder,
                    mask,
                    credentials,
                })
            }
            _ => Err(Refusal::new(
                Exit::Unavailable,
                format!("the daemon with PID {pid} has just ended; try again"),
            )),
        }
    }

    /// Whether the process that has locked the scoreboard has this PID here.
    fn is_held_by(&self, pid: i32) -> bool {
        lock_holder(&self.board).is_ok_and(|holder| holder == Some(pid))
    }
}

/// Sets the variable that names the configuration if the arguments of a daemon do so, which come before it.
fn name_config(arguments: Vec<OsString>, variables: &mut Vec<(OsString, OsString)>) {
    let Ok(Cli {
        config: Some(config),
        ..
    }) = Cli::try_parse_from(arguments)
    else {
        return;
    };
    variables.retain(|(name, _)| name != CONFIG_FILE);
    variables.push((CONFIG_FILE.into(), config.into()));
}

fn denied(why: &dyn std::fmt::Display) -> Refusal {
    let why = format!("{why}; --no-service uses your own settings");
    Refusal::new(Exit::NoPermission, why)
}

impl Service {
    /// Whether this process becomes another user by [`take_on`](Self::take_on).
    pub fn switches(&self) -> bool {
        geteuid().is_root() && self.credentials.user != 0
    }

    /// Gives this process the service's variables, working directory and mask, and if it is root's, its user.
    ///
    /// # Errors
    /// If the system does not allow that.
    pub fn take_on(self) -> Result<(), Refusal> {
        let switches = self.switches();
        let failed = |what: &str, error: io::Error| {
            Refusal::new(Exit::Internal, format!("could not {what}: {error}"))
        };
        match env::set_current_dir(&self.folder) {
            // systemd makes it when the service starts for the first time.
            Err(error) if error.kind() != ErrorKind::NotFound => {
                let what = format!("go to the service's folder {}", self.folder.display());
                // Others than its user may not see it, and need no files of it.
                if switches {
                    return Err(failed(&what, error));
                }
            }
            _ => {}
        }
        if let Some(mask) = self.mask {
            umask(Mode::from_bits_truncate(mask));
        }
        let _ = CALLER.set(this_user());
        let variables = merged(self.variables, env::vars_os());
        sys::replace_variables(variables)
            .map_err(|error| failed("take the service's settings", error))?;
        if switches {
            self.credentials
                .take_on()
                .map_err(|error| failed("become the service's user", error))?;
        }
        Ok(())
    }
}

/// The user who called, where this process has become another one.
static CALLER: OnceLock<String> = OnceLock::new();

/// The user who runs this command, not the one as whom it acts. Behind sudo, the user who called that.
pub fn caller() -> String {
    CALLER.get().cloned().unwrap_or_else(this_user)
}

fn this_user() -> String {
    let sudo = env::var("SUDO_USER").ok();
    // Anybody else can set it to anything.
    let sudo = sudo.filter(|name| getuid().is_root() && !name.is_empty());
    sudo.unwrap_or_else(|| match User::from_uid(getuid()) {
        Ok(Some(user)) => user.name,
        _ => getuid().to_string(),
    })
}

/// The service's variables, with those of the caller that are about the terminal.
fn merged(
    services: Vec<(OsString, OsString)>,
    callers: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let is_among = |name: &OsStr, names: &[&str]| names.iter().any(|it| name == *it);
    let is_callers = |name: &OsStr| {
        let is_locale = name.as_encoded_bytes().starts_with(b"LC_");
        is_locale || is_among(name, &OF_THE_CALLER)
    };
    let callers: Vec<_> = callers.filter(|(name, _)| is_callers(name)).collect();
    let services = services.into_iter().filter(|(name, _)| {
        let is_replaced = callers.iter().any(|(callers, _)| callers == name);
        !is_among(name, &OF_ITS_PROCESS) && !is_replaced
    });
    let mut all: Vec<_> = services.collect();
    all.extend(callers);
    all
}

/// Says which Redis the command works with, if the daemons that it may be about work with another one.
pub fn tell_other_redis(settings: &Settings) {
    let (paths, _) = runtime_dir::scoreboards();
    let boards = paths
        .iter()
        .filter_map(|path| Snapshot::without_figures(path).ok());
    let mut daemons: Vec<BoardHeader> = boards.map(|board| board.header).collect();
    let is_meant = |daemon: &BoardHeader| daemon.instance == settings.instance;
    if settings.instance_is_set || daemons.iter().any(is_meant) {
        daemons.retain(is_meant);
    }
    let own = settings.redis_url.to_string();
    daemons.retain(|it| !it.redis.is_empty() && !is_same_redis(&own, &it.redis));
    for daemon in daemons {
        eprint_line(format_args!(
            "note: this command uses {own}; the daemon {} (PID {}) uses {}",
            daemon.instance, daemon.pid, daemon.redis
        ));
    }
}

/// Whether two URLs, as they are shown, mean the same server and database.
fn is_same_redis(one: &str, other: &str) -> bool {
    let plain = |url: &str| {
        let url = url.replace("://localhost", "://127.0.0.1");
        let url = url.strip_suffix("/0").unwrap_or(&url).trim_end_matches('/');
        url.strip_suffix(":6379").unwrap_or(url).to_owned()
    };
    plain(one) == plain(other)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_is_the_callers_and_all_else_the_services() {
        let variables = |pairs: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        };
        let services = variables(&[
            ("REDIS_URL", "redis://a/5"),
            ("PATH", "/opt/links/bin:/usr/bin"),
            (
                "CREDENTIALS_DIRECTORY",
                "/run/credentials/conserver.service",
            ),
            ("NOTIFY_SOCKET", "/run/systemd/notify"),
            ("LANG", "C.UTF-8"),
            ("LC_TIME", "C"),
        ]);
        let callers = variables(&[
            ("REDIS_URL", "redis://b"),
            ("PATH", "/root/bin"),
            ("LD_PRELOAD", "/tmp/x.so"),
            ("TERM", "xterm"),
            ("LC_TIME", "de_DE.UTF-8"),
        ]);
        let mut all = merged(services, callers.into_iter());
        all.sort();
        let expected = variables(&[
            (
                "CREDENTIALS_DIRECTORY",
                "/run/credentials/conserver.service",
            ),
            ("LANG", "C.UTF-8"),
            ("LC_TIME", "de_DE.UTF-8"),
            ("PATH", "/opt/links/bin:/usr/bin"),
            ("REDIS_URL", "redis://a/5"),
            ("TERM", "xterm"),
        ]);
        assert_eq!(all, expected);
    }

    #[test]
    fn a_daemons_argument_names_its_configuration() {
        let of = |line: &str| {
            let mut variables = vec![(CONFIG_FILE.into(), "b.yml".into())];
            name_config(
                line.split(' ').map(OsString::from).collect(),
                &mut variables,
            );
            assert_eq!(variables.len(), 1);
            let (name, value) = variables.remove(0);
            assert_eq!(name, CONFIG_FILE);
            value
        };
        for line in [
            "/usr/bin/conserver --config /srv/x.yml",
            "conserver run --config=/srv/x.yml",
            "conserver -c /srv/x.yml run",
            "conserver -c/srv/x.yml",
        ] {
            assert_eq!(of(line), "/srv/x.yml", "{line}");
        }
        for line in [
            "",
            "conserver",
            "conserver run",
            "sh -c x y",
            "conserver --help",
        ] {
            assert_eq!(of(line), "b.yml", "{line}");
        }
    }

    #[test]
    fn one_redis_is_known_in_each_spelling() {
        for (one, other, is_same) in [
            ("redis://localhost", "redis://127.0.0.1:6379/0", true),
            ("redis://a/", "redis://a", true),
            ("redis://a/1", "redis://a/10", false),
            ("redis://a/5", "redis://a", false),
            ("redis://a:6380", "redis://a:6379", false),
            ("unix:///run/r.sock", "redis://localhost", false),
        ] {
            assert_eq!(is_same_redis(one, other), is_same, "{one} {other}");
        }
    }

    #[test]
    fn nobody_guesses_which_of_several_instances_is_meant() {
        let of = |names: &[&str]| {
            one_at_most(&names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
        };
        assert!(of(&[]).is_ok() && of(&["a"]).is_ok());
        let refusal = of(&["a", "b"]).unwrap_err();
        assert_eq!(refusal.exit, Exit::Usage);
        assert!(refusal.why.contains("--instance (a, b)"), "{}", refusal.why);
    }

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        for good in ["second", "west-1", "a.b_c", "a\\x2db"] {
            assert_eq!(instance(good).as_deref(), Ok(good));
        }
        for bad in ["", ".", "../x", "a/b", "*", "a b", "-\n", "é"] {
            assert!(instance(bad).is_err(), "{bad}");
        }
    }
}
