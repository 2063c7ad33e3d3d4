//! Why a scoreboard cannot be used.

use std::io;
use std::path::{Path, PathBuf};

/// Why a scoreboard cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// The system refused something.
    #[error("could not {what} the scoreboard {}: {cause}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// A daemon of this name runs here already.
    #[error(
        "a conserver with CONSERVER_INSTANCE={instance} is running already (PID {pid}); give one of the two another name"
    )]
    InUse {
        /// The name both have.
        instance: String,
        /// The one that runs.
        pid: i32,
    },
    /// Not a scoreboard, or one of another version, or cut short.
    #[error("{} is no scoreboard of this version: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The daemon it belongs to has ended.
    #[error("no conserver is running: the scoreboard {} was left behind by PID {pid}", path.display())]
    Stale {
        /// The file.
        path: PathBuf,
        /// The process that wrote it.
        pid: i32,
    },
}

impl BoardError {
    pub(super) fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::System { what, path, cause }
    }

    pub(super) fn invalid(path: &Path, what: &'static str) -> Self {
        let path = path.to_owned();
        Self::Invalid { path, what }
    }
}
