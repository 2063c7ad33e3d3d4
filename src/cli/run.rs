//! `conserver run`: the daemon.

use nix::unistd::Pid;

use super::child::{execute, take_title};
use crate::cli::output::eprint_lines;
use crate::config::Source;
use crate::exit::Exit;
use crate::logging;
use crate::procfs;
use crate::settings::{self, Settings};
use crate::supervisor::{self, Role, SupervisorError};

/// Runs the daemon until it is told to end. In a forked child this does the child's work.
pub fn run(settings: Settings) -> Exit {
    let source = match Source::load(&settings.config_file) {
        Ok(source) => source,
        Err(errors) => {
            eprint_lines(errors);
            return Exit::Config;
        }
    };
    logging::start(settings.log_format, settings.log_level);
    logging::never_wait();
    if let Some(parameters) = settings.redis_url.parameters() {
        log::info!("REDIS_URL: {parameters}");
    }
    if cfg!(target_os = "linux") && !procfs::is_there() {
        log::info!(
            "/proc is not mounted: there are no titles of processes, no figures of memory and no limit on it, \
             and after a crash the next daemon waits until the lease has run out"
        );
    }
    for warning in settings::misspelt() {
        log::warn!("{warning}");
    }
    for warning in source.config.warnings.lines() {
        log::warn!("{warning}");
    }
    if source.config.ingress_lists().is_empty() {
        log::warn!("No enabled chain has an ingress list: there is nothing to do");
    }
    let mut title = match take_title() {
        Ok(title) => title,
        Err(exit) => return exit,
    };
    title.set("conserver: supervisor");
    match supervisor::run(&settings, source) {
        Ok(Role::Done(exit)) => exit,
        Ok(Role::Child(assignment, config)) => {
            let parent = Pid::from_raw(assignment.supervisor);
            execute(*assignment, parent, title, settings, Some(config))
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
