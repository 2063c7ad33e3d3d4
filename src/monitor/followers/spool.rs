//! A file for UUIDs that were taken while Redis is away: beside the scoreboard, so that the next monitor
//! finds them if this one dies.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use percent_encoding::utf8_percent_encode;

use super::remote::RESERVED;
use crate::vcon::VconId;

/// The file of one follower; it is there only while something is in it.
pub(super) struct Spool(PathBuf);

impl Spool {
    /// That of a follower, beside this scoreboard.
    pub(super) fn beside(board: &Path, follower: &str) -> Self {
        let name = utf8_percent_encode(follower, &RESERVED);
        Self(board.with_extension(format!("taken-{name}")))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Adds these.
    pub(super) fn add(&self, ids: &[VconId]) -> io::Result<()> {
        let mut lines = String::new();
        for id in ids {
            lines.push_str(id.as_str());
            lines.push('\n');
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.0)?;
        file.write_all(lines.as_bytes())?;
        file.sync_data()
    }

    /// All that are in it. A line that was not written to its end is none.
    pub(super) fn read(&self) -> io::Result<Vec<VconId>> {
        match fs::read_to_string(&self.0) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Removes it: Redis has them.
    pub(super) fn remove(&self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::debug!("could not remove {}: {error}", self.0.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::beside(&folder.path().join("a.b.scoreboard"), "far/../away");
        assert_eq!(
            spool.path(),
            folder.path().join("a.b.taken-far%2F..%2Faway")
        );
        spool.remove();
        assert_eq!(spool.read().unwrap(), []);
        let ids = [(); 3].map(|()| VconId::random());
        spool.add(&ids[..1]).unwrap();
        spool.add(&ids[1..]).unwrap();
        assert_eq!(spool.read().unwrap(), ids);
        fs::write(
            spool.path(),
            format!("{}\n{}", ids[0], &ids[1].as_str()[..20]),
        )
        .unwrap();
        assert_eq!(spool.read().unwrap(), ids[..1]);
        spool.remove();
        assert_eq!(spool.read().unwrap(), []);
    }
}
