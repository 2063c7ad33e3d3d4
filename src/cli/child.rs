//! `conserver child` and `conserver forkserver`: what the daemon executes for the start methods
//! `spawn` and `forkserver`; and `conserver warden`, beside workers that run programs. Not for
//! people.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use nix::unistd::{Pid, getpid};

use crate::child::{Assignment, Child, Task};
use crate::config::Config;
use crate::exit::Exit;
use crate::queue::NameLease;
use crate::settings::Settings;
use crate::sys::{self, Title};
use crate::worker::{self, Duty};
use crate::{link, logging, monitor, supervisor};

/// A child process executed anew. What it is to do is its standard input.
#[derive(Debug, Args)]
pub struct Executed {
    /// Who it will be, for `ps`
    #[arg(id = "NAME")]
    _name: String,
}

/// The process that makes copies of itself.
#[derive(Debug, Args)]
pub struct Forkserver {
    /// The supervisor, which is at the other end of standard input
    supervisor: i32,
}

impl Executed {
    /// Does what the assignment says.
    pub fn run(self, settings: Settings) -> Exit {
        logging::start(settings.log_format, settings.log_level);
        sys::set_name();
        let title = match take_title() {
            Ok(title) => title,
            Err(exit) => return exit,
        };
        let given = sys::take_stdin().map(File::from);
        let assignment = match given.and_then(Assignment::take_over) {
            Ok(assignment) => assignment,
            Err(error) => {
                log::error!("could not read from standard input what there is to do: {error}");
                return Exit::Internal;
            }
        };
        let parent = Pid::from_raw(assignment.supervisor);
        execute(assignment, parent, title, settings, None)
    }
}

impl Forkserver {
    /// Serves the supervisor; in a new child, does what that is to do.
    pub fn run(self, settings: Settings) -> Exit {
        logging::start(settings.log_format, settings.log_level);
        sys::set_name();
        let mut title = match take_title() {
            Ok(title) => title,
            Err(exit) => return exit,
        };
        title.set("conserver: forkserver");
        // The supervisor waits for its answers.
        logging::never_wait();
        // Asked before the fork: afterwards, a parent that has ended could not be told any more.
        let this = getpid();
        match supervisor::forkserver(Pid::from_raw(self.supervisor)) {
            Ok(None) => Exit::Ok,
            Ok(Some(assignment)) => execute(assignment, this, title, settings, None),
            Err(error) => {
                log::error!("the forkserver ends: {error}");
                Exit::Internal
            }
        }
    }
}

/// Kills the programs that a worker leaves behind.
pub(super) fn warden(settings: &Settings) -> Exit {
    logging::start(settings.log_format, settings.log_level);
    sys::set_name();
    match take_title() {
        Ok(mut title) => title.set("conserver: warden"),
        Err(exit) => return exit,
    }
    match link::serve_as_warden() {
        Ok(()) => Exit::Ok,
        Err(error) => {
            log::error!("the warden ends: {error}");
            Exit::Internal
        }
    }
}

/// Takes over the memory that shows this process's title, and hides all of it from others.
pub(super) fn take_title() -> Result<Title, Exit> {
    let title = Title::take().map_err(|error| {
        log::error!("could not take over the title of the process: {error}");
        Exit::Internal
    });
    // Not before: the title is in the environment, which only root reads in /proc afterwards.
    sys::hide_memory();
    title
}

/// Does what a child process is told, in a process of its own. One that is forked from the
/// supervisor has its configuration already, others read the accepted one.
pub(super) fn execute(
    assignment: Assignment,
    parent: Pid,
    title: Title,
    mut settings: Settings,
    config: Option<Arc<Config>>,
) -> Exit {
    settings.instance.clone_from(&assignment.instance);
    let child = match Child::begin(&assignment, parent, title) {
        Ok(child) => child,
        Err(error) => {
            log::error!("{} could not begin: {error}", assignment.task.name());
            return Exit::Internal;
        }
    };
    let lease = NameLease::new(&settings, assignment.holder);
    match assignment.task {
        Task::Monitor => monitor::run(&child, &settings, lease),
        Task::Recover { leftovers } => worker::recover(&child, &leftovers, &settings, lease),
        Task::Work {
            predecessor,
            sweep_above,
        } => {
            let (config, config_generation) = match (config, &child.slot) {
                (Some(config), _) => (config, assignment.config_generation),
                (None, Some(slot)) => {
                    // The number first: what is read after it is no older.
                    let generation = slot.config_generation();
                    match accepted(slot.config_path()) {
                        Ok(config) => (config, generation),
                        Err(exit) => return exit,
                    }
                }
                (None, None) => return Exit::Internal,
            };
            let duty = Duty {
                predecessor,
                sweep_above,
                config_generation,
            };
            worker::run(child, duty, settings, config, lease)
        }
    }
}

/// The configuration that the supervisor has accepted.
fn accepted(path: &Path) -> Result<Arc<Config>, Exit> {
    match Config::load_kept(path) {
        Ok(config) => Ok(Arc::new(config)),
        Err(errors) => {
            log::error!("the accepted configuration cannot be used:");
            errors.lines().for_each(|line| log::error!("{line}"));
            Err(Exit::Config)
        }
    }
}
