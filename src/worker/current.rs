//! The configuration in force, shared by the lanes of a worker.
//!
//! The supervisor alone reads `config.yml` and decides whether it is accepted; the scoreboard
//! tells the number of the one in force, and where its text is kept.

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::scoreboard::Slot;

struct State {
    config: Arc<Config>,
    generation: u64,
}

/// The configuration in force.
pub(super) struct Current {
    slot: Slot,
    state: Mutex<State>,
}

impl Current {
    /// Starts with a configuration that the supervisor accepted, and its number.
    pub fn new(config: Arc<Config>, generation: u64, slot: Slot) -> Self {
        let state = State { config, generation };
        Self {
            slot,
            state: Mutex::new(state),
        }
    }

    /// The configuration in force now.
    pub fn get(&self) -> Arc<Config> {
        // The state is only ever replaced as a whole, so a lane that panicked left it valid.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.slot.config_generation();
        if generation != state.generation {
            state.generation = generation;
            match Config::load_kept(self.slot.config_path()) {
                Ok(config) => state.config = Arc::new(config),
                Err(errors) => {
                    log::error!("the accepted configuration cannot be used, the former one stays:");
                    errors.lines().for_each(|line| log::error!("{line}"));
                }
            }
        }
        Arc::clone(&state.config)
    }
}
