//! The configuration's file: what it holds, and whether it has changed.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Config, ConfigErrors, Fault};

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

/// The largest file, in bytes: what is larger is no configuration.
const LARGEST: u64 = 4 << 20;

fn read(path: &Path) -> Result<String, Fault> {
    let bytes = read_bytes(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Fault::of_file(
            "there is no such file; CONSERVER_CONFIG_FILE names the configuration file",
        ),
        _ => Fault::of_file(format!("could not be read: {error}")),
    })?;
    if bytes.len() as u64 > LARGEST {
        let most = LARGEST >> 20;
        return Err(Fault::of_file(format!(
            "is larger than {most} MB, which no configuration is"
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = error.as_bytes().iter().take(valid);
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        Fault::at(line, "", "is not UTF-8 text")
    })
}

/// The file's bytes, or one more than are allowed.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
