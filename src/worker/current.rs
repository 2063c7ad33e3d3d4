//! The configuration in force, shared by the lanes of a worker and replaced when the file changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Config;

/// What tells one state of the file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

struct State {
    config: Arc<Config>,
    stamp: Option<Stamp>,
    looked: Instant,
}

/// The configuration in force.
pub(super) struct Current {
    path: PathBuf,
    every: Duration,
    state: Mutex<State>,
}

impl Current {
    /// Starts with a configuration that was read from `path` and checked; the file is looked at
    /// again at most once in `every`.
    pub fn new(config: Arc<Config>, path: PathBuf, every: Duration) -> Self {
        let stamp = stamp(&path);
        Self {
            path,
            every,
            state: Mutex::new(State {
                config,
                stamp,
                looked: Instant::now(),
            }),
        }
    }

    /// The configuration in force now. A changed file replaces it; one that does not check, or
    /// cannot be read, leaves it as it is and is reported once.
    pub fn get(&self) -> Arc<Config> {
        // The state is only ever replaced as a whole, so a lane that panicked left it valid.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= self.every {
            state.looked = Instant::now();
            let stamp = stamp(&self.path);
            if stamp != state.stamp {
                state.stamp = stamp;
                self.reload(&mut state);
            }
        }
        Arc::clone(&state.config)
    }

    fn reload(&self, state: &mut State) {
        match Config::load(&self.path) {
            Ok(config) => {
                log::info!(
                    "Configuration {} has changed and is in force",
                    self.path.display()
                );
                state.config = Arc::new(config);
            }
            Err(errors) => {
                log::error!(
                    "The changed configuration is not valid, the former one stays:\n{errors}"
                );
            }
        }
    }
}

fn stamp(path: &std::path::Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some(Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
    })
}
