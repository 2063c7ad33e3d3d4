//! The processes of the daemon: `conserver run`, and four commands that are not for people.
//!
//! `conserver child` is a child process executed anew (start method `spawn`), `conserver forkserver`
//! the process that forks them, `conserver candidate` tries the Python modules of a changed
//! configuration, and `conserver reaper` stands beside a worker that runs programs. A child of any start
//! method ends up in [`run_child`].

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use nix::unistd::{Pid, getpid};

use crate::child::{Assignment, Child, Task};
use crate::cli::output::eprint_lines;
use crate::config::{Config, ConfigErrors, ConfigWarnings, Source};
use crate::exit::Exit;
use crate::queue::NameLease;
use crate::settings::{self, EnvFile, Settings};
use crate::supervisor::{self, RunResult, SupervisorError};
use crate::{logging, monitor, procfs, program, sys, worker};

/// Runs the daemon until it is told to end. A forked child returns from here too, at its own end.
pub fn run(settings: Settings, env_file: &EnvFile) -> Exit {
    let source = match Source::load(&settings.config_file) {
        Ok(source) => source,
        Err(errors) => {
            eprint_lines(errors);
            return Exit::Config;
        }
    };
    logging::start(settings.log_format, settings.log_level);
    logging::never_wait();
    sys::hide_memory();
    if let Some(summary) = env_file.summary() {
        log::info!("{summary}");
    }
    for warning in env_file.warnings() {
        log::warn!("{warning}");
    }
    if let Some(ignored) = settings::ignored(env_file) {
        log::info!("Ignored variables of the existing server: {ignored}");
    }
    let python = match try_python(&source.config, &settings) {
        Ok(warnings) => warnings,
        Err(_) if sys::end_is_pending() => return Exit::Ok,
        Err(errors) => {
            eprint_lines(errors);
            return Exit::Config;
        }
    };
    if let Some(parameters) = settings.redis_url.parameters() {
        log::info!("REDIS_URL: {parameters}");
    }
    if cfg!(target_os = "linux") && !procfs::is_there() {
        log::info!(
            "/proc is not mounted: there are no figures of memory and no limit on it, and after a crash the \
             next daemon waits until the lease has run out"
        );
    }
    if let Some(warning) = settings.telemetry.warning() {
        log::warn!("{warning}");
    }
    for warning in settings::misspelt() {
        log::warn!("{warning}");
    }
    for warning in source.config.warnings.lines().chain(python.lines()) {
        log::warn!("{warning}");
    }
    if source.config.ingress_lists().is_empty() {
        log::warn!("No enabled chain has an ingress list: there is nothing to do");
    }
    match supervisor::run(&settings, source) {
        Ok(RunResult::Ended(exit)) => exit,
        Ok(RunResult::InChild(assignment, config)) => {
            let parent = Pid::from_raw(assignment.supervisor);
            run_child(*assignment, parent, settings, Some(config))
        }
        Err(error) => {
            log::error!("The supervisor ends: {error}");
            match error {
                SupervisorError::Board(_) | SupervisorError::Folder(_) => Exit::Unavailable,
                _ => Exit::Internal,
            }
        }
    }
}

/// Tries the Python modules, for as long as nobody tells this process to end. First installs packages that are
/// missing, if the settings say so.
fn try_python(config: &Config, settings: &Settings) -> Result<ConfigWarnings, ConfigErrors> {
    if !config.has_python() {
        return Ok(ConfigWarnings::default());
    }
    supervisor::ask_for_time(config.longest_python_check());
    let number = config.python_modules().len();
    log::info!("Importing {number} Python modules on trial");
    program::appoint_reaper();
    let tried = config.prepare_python(&settings.config_file);
    program::dismiss_reaper();
    tried
}

/// Tries the Python modules of a changed configuration, whose text is its standard input.
#[derive(Debug, Args)]
pub struct CandidateCommand {
    /// The supervisor, which waits for the exit code
    supervisor: i32,
}

impl CandidateCommand {
    /// Logs what is wrong with the configuration. Ends with 0 if nothing is.
    pub fn run(self, settings: &Settings) -> Exit {
        begin("conserver-try", settings);
        match sys::die_with_parent(Pid::from_raw(self.supervisor)) {
            Ok(true) => {}
            // Nobody waits.
            Ok(false) => return Exit::Internal,
            Err(error) => {
                log::error!("could not be tied to the supervisor: {error}");
                return Exit::Internal;
            }
        }
        let text = match io::read_to_string(io::stdin().lock()) {
            Ok(text) => text,
            Err(error) => {
                log::error!("could not read the configuration from standard input: {error}");
                return Exit::Internal;
            }
        };
        let config = Config::parse(&text, &settings.config_file);
        match config.and_then(|config| try_python(&config, settings)) {
            Ok(warnings) => {
                warnings.lines().for_each(|line| log::warn!("{line}"));
                Exit::Ok
            }
            Err(_) if sys::end_is_pending() => Exit::Internal,
            Err(errors) => {
                supervisor::log_refusal(&errors);
                Exit::Config
            }
        }
    }
}

/// A child process executed anew. Its assignment is its standard input.
#[derive(Debug, Args)]
pub struct ChildCommand {
    /// Who it will be, for `ps`
    #[arg(id = "NAME")]
    _name: String,
}

impl ChildCommand {
    /// Does what the assignment says.
    pub fn run(self, settings: Settings) -> Exit {
        begin("conserver", &settings);
        let given = sys::take_stdin().map(File::from);
        let assignment = match given.and_then(Assignment::take_over) {
            Ok(assignment) => assignment,
            Err(error) => {
                log::error!("could not read the assignment from standard input: {error}");
                return Exit::Internal;
            }
        };
        let parent = Pid::from_raw(assignment.supervisor);
        run_child(assignment, parent, settings, None)
    }
}

/// The process that makes copies of itself.
#[derive(Debug, Args)]
pub struct ForkserverCommand {
    /// The supervisor, which is at the other end of standard input
    supervisor: i32,
}

impl ForkserverCommand {
    /// Serves the supervisor; a new child does what its assignment says.
    pub fn run(self, settings: Settings) -> Exit {
        begin("conserver-fork", &settings);
        // The supervisor waits for its answers.
        logging::never_wait();
        // Asked before the fork: afterwards, the child could not tell whether its parent has ended.
        let this = getpid();
        match supervisor::forkserver(Pid::from_raw(self.supervisor)) {
            Ok(None) => Exit::Ok,
            Ok(Some(assignment)) => run_child(assignment, this, settings, None),
            Err(error) => {
                log::error!("the forkserver ends: {error}");
                Exit::Internal
            }
        }
    }
}

/// Kills the programs that a worker leaves behind.
pub(super) fn reaper(settings: &Settings) -> Exit {
    begin("conserver-reap", settings);
    match program::serve_as_reaper() {
        Ok(()) => Exit::Ok,
        Err(error) => {
            log::error!("the reaper ends: {error}");
            Exit::Internal
        }
    }
}

/// What every process does that was executed and not forked. `name` is for `ps -o comm`: Linux would
/// show the name of the link in `/proc` that the program was executed by.
fn begin(name: &str, settings: &Settings) {
    logging::start(settings.log_format, settings.log_level);
    sys::set_name(name);
    sys::hide_memory();
}

/// Does the work of a child process in this process. If it was forked from the supervisor, it has its
/// configuration already; otherwise it reads the one in force.
fn run_child(
    assignment: Assignment,
    parent: Pid,
    mut settings: Settings,
    config: Option<Arc<Config>>,
) -> Exit {
    settings.instance.clone_from(&assignment.instance);
    // The supervisor may have been told it by an argument.
    settings.config_file.clone_from(&assignment.config_file);
    let child = match Child::begin(&assignment, parent) {
        Ok(child) => child,
        Err(error) => {
            log::error!("{} could not begin: {error}", assignment.task.name());
            return Exit::Internal;
        }
    };
    let lease = NameLease::new(&settings, assignment.holder);
    match assignment.task {
        Task::Monitor => monitor::run(&child, &settings, lease),
        Task::Recover { orphaned } => worker::recover(&child, &orphaned, &settings, lease),
        Task::Work(task) => {
            let (config, generation) = match (config, &child.slot) {
                (Some(config), _) => (config, assignment.config_generation),
                (None, Some(slot)) => {
                    // The number first: the configuration that is read after it is no older.
                    let generation = slot.config_generation();
                    match config_in_force(slot.config_path()) {
                        Ok(config) => (config, generation),
                        Err(exit) => return exit,
                    }
                }
                (None, None) => return Exit::Internal,
            };
            worker::run(child, task, settings, config, generation, lease)
        }
    }
}

/// The configuration that the supervisor has put in force.
fn config_in_force(path: &Path) -> Result<Arc<Config>, Exit> {
    match Config::load_kept(path) {
        Ok(config) => Ok(Arc::new(config)),
        Err(errors) => {
            log::error!("the accepted configuration cannot be used:");
            errors.lines().for_each(|line| log::error!("{line}"));
            Err(Exit::Config)
        }
    }
}
