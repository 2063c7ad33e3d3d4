//! The configuration's file: what it holds, and whether it has changed.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Config, ConfigErrors, Fault, Plan};
use crate::options::substitution;
use crate::runtime_dir;

/// The most bytes of a configuration file: far more than anyone writes, and little enough that the
/// supervisor, which reads it between two looks after its workers, is not held up.
pub const MOST_BYTES: u64 = 4 << 20;

/// What tells one state of the file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// The state of the file at `path`; nothing where it cannot be seen.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

/// A configuration with the text it was read from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The configuration.
    pub config: Config,
    /// The text.
    pub text: String,
    /// The state of the file just before it was read.
    pub stamp: Option<Stamp>,
}

impl Source {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let stamp = Stamp::of(path);
        let text = read(path).map_err(|fault| ConfigErrors::new(path, vec![fault]))?;
        let config = Config::parse(&text, path)?;
        Ok(Self {
            config,
            text,
            stamp,
        })
    }
}

impl Plan {
    /// Reads the file at `path`, of which the options are not looked at.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = read(path).map_err(|fault| ConfigErrors::new(path, vec![fault]))?;
        Self::parse(&text, path)
    }

    /// [`Plan::load`] for the configuration in force, kept in the runtime folder.
    pub fn load_kept(path: &Path) -> Result<Self, ConfigErrors> {
        let text = read_kept(path).map_err(|fault| ConfigErrors::new(path, vec![fault]))?;
        Self::parse(&text, path)
    }
}

/// The text of the file at `path`.
pub(super) fn read(path: &Path) -> Result<String, Fault> {
    text_of(substitution::read_regular_file(path, MOST_BYTES))
}

/// The text of the file at `path` in the runtime folder, where it is kept for processes that are not
/// the supervisor.
pub(super) fn read_kept(path: &Path) -> Result<String, Fault> {
    let opened = runtime_dir::open(path, OpenOptions::new().read(true));
    text_of(opened.and_then(|file| substitution::read_open_file(file, MOST_BYTES)))
}

fn text_of(bytes: io::Result<Vec<u8>>) -> Result<String, Fault> {
    let unreadable = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => Fault::of_file(
            "there is no such file; CONSERVER_CONFIG_FILE names the configuration file",
        ),
        _ => Fault::of_file(format!("could not be read: {error}")),
    };
    let bytes = bytes.map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = error.as_bytes().iter().take(valid);
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        Fault::at(line, "", "is not UTF-8 text")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn refusal(path: &Path) -> String {
        Source::load(path).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("config.yml");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        assert!(refusal(&pipe).contains("is not a regular file"));
        assert!(refusal(folder.path()).contains("is not a regular file"));
        assert!(refusal(Path::new("/dev/zero")).contains("is not a regular file"));
    }

    #[test]
    fn a_file_that_is_too_large_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MOST_BYTES + 1).unwrap();
        assert!(refusal(file.path()).contains("is larger than 4 MiB"));
        file.as_file().set_len(MOST_BYTES).unwrap();
        assert!(!refusal(file.path()).contains("is larger"));
    }
}
