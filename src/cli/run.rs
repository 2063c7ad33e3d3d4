//! `conserver run`: the daemon.

use std::sync::Arc;

use crate::config::Config;
use crate::exit::Exit;
use crate::logging;
use crate::settings::Settings;
use crate::supervisor::{self, Role};
use crate::worker;

/// Runs the daemon until it is told to end. In a forked worker this does the worker's work.
pub fn run(settings: Settings) -> Exit {
    let config = match Config::load(&settings.config_file) {
        Ok(config) => Arc::new(config),
        Err(errors) => {
            eprintln!("{errors}");
            return Exit::Config;
        }
    };
    logging::start(settings.log_format, settings.log_level);
    if config.ingress_lists().is_empty() {
        log::warn!("No enabled chain has an ingress list: there is nothing to do");
    }
    match supervisor::run(&settings) {
        Ok(Role::Done(exit)) => exit,
        Ok(Role::Worker(assignment)) => worker::run(&assignment, settings, config),
        Err(error) => {
            log::error!("The supervisor ends: {error}");
            Exit::Internal
        }
    }
}
