//! A file of UUIDs that a follower took while Redis is unavailable, so that the next monitor finds them if this one
//! ends. It is in the state folder if systemd names one, else beside the scoreboard. Older versions left it beside the
//! scoreboard in any case: what is there is read too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use percent_encoding::{percent_decode, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::remote::RESERVED;
use crate::runtime_dir;
use crate::vcon::VconId;

/// The most bytes that a follower's name takes in a file name. A file name has at most 255 bytes, of which an
/// instance's name takes up to 200.
const LONGEST_NAME: usize = 48;

/// Between the start of a longer name and its digest. No encoded name contains it.
const BEFORE_DIGEST: char = '+';

/// The bytes of a digest that are used; each takes two in the name.
const DIGEST_BYTES: usize = 16;

/// The file of one follower; it is there only while something is in it.
pub(super) struct Spool {
    path: PathBuf,
    /// Where an older version has written it.
    former: Option<PathBuf>,
}

impl Spool {
    /// The spool of a follower of the daemon with this scoreboard, in the state folder if there is one.
    pub(super) fn new(board: &Path, state: Option<&Path>, follower: &str) -> Self {
        let beside = board.with_extension(format!("taken-{}", in_file_name(follower)));
        match (state, beside.file_name()) {
            (Some(state), Some(name)) => Self {
                path: state.join(name),
                former: Some(beside),
            },
            _ => Self::at(beside),
        }
    }

    fn at(path: PathBuf) -> Self {
        let former = None;
        Self { path, former }
    }

    /// The spools of the daemon with this scoreboard that belong to none of these followers, each with its
    /// follower's name for messages.
    pub(super) fn left(
        board: &Path,
        state: Option<&Path>,
        followers: &[&str],
    ) -> io::Result<Vec<(String, Self)>> {
        let (Some(beside), Some(start)) = (board.parent(), board.file_stem()) else {
            return Ok(Vec::new());
        };
        let start = [start.as_bytes(), b".taken-"].concat();
        let known: Vec<String> = followers.iter().map(|it| in_file_name(it)).collect();
        let mut left = Vec::new();
        for folder in [Some(beside), state].into_iter().flatten() {
            for file in fs::read_dir(folder)? {
                let file = file?.file_name();
                let Some(name) = file.as_bytes().strip_prefix(&start[..]) else {
                    continue;
                };
                if !known.iter().any(|known| known.as_bytes() == name) {
                    left.push((shown(name), Self::at(folder.join(&file))));
                }
            }
        }
        left.sort_by(|(_, one), (_, other)| one.path.cmp(&other.path));
        Ok(left)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends these UUIDs, and syncs the file and its folder.
    pub(super) fn add(&self, ids: &[VconId]) -> io::Result<()> {
        let mut lines = String::new();
        for id in ids {
            lines.push_str(id.as_str());
            lines.push('\n');
        }
        let mut options = OpenOptions::new();
        let mut file =
            runtime_dir::open(&self.path, options.append(true).create(true).mode(0o600))?;
        file.write_all(lines.as_bytes())?;
        file.sync_data()?;
        match self.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Reads all UUIDs, those that an older version left among them. Skips a line that was not written to its end.
    pub(super) fn read(&self) -> io::Result<Vec<VconId>> {
        let mut ids = read(&self.path)?;
        if let Some(former) = &self.former {
            ids.extend(read(former).map_err(|error| {
                let message = format!("{}: {error}", former.display());
                io::Error::new(error.kind(), message)
            })?);
        }
        Ok(ids)
    }

    /// Removes the file: Redis has the UUIDs.
    pub(super) fn remove(&self) {
        for path in [Some(&self.path), self.former.as_ref()]
            .into_iter()
            .flatten()
        {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::debug!("could not remove {}: {error}", path.display());
                }
                _ => {}
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<VconId>> {
    let opened = runtime_dir::open(path, OpenOptions::new().read(true));
    match opened.and_then(io::read_to_string) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// A follower's name within a file name: percent-encoded, or if that is too long its start and its digest.
fn in_file_name(follower: &str) -> String {
    let name = encoded(follower);
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let room = LONGEST_NAME - BEFORE_DIGEST.len_utf8() - 2 * DIGEST_BYTES;
    let mut short = String::new();
    for letter in follower.chars() {
        let letter = encoded(letter.encode_utf8(&mut [0; 4]));
        if short.len() + letter.len() > room {
            break;
        }
        short.push_str(&letter);
    }
    short.push(BEFORE_DIGEST);
    let digest = Sha256::digest(follower.as_bytes());
    for byte in digest.iter().take(DIGEST_BYTES) {
        short.push_str(&format!("{byte:02x}"));
    }
    short
}

/// The follower's name within a file name, or its start if the file name has a digest.
fn shown(name: &[u8]) -> String {
    let is_digest = |byte: &u8| char::from(*byte) == BEFORE_DIGEST;
    let (start, rest) = match name.iter().position(is_digest) {
        Some(at) => (&name[..at], "…"),
        None => (name, ""),
    };
    let start = percent_decode(start).decode_utf8_lossy();
    format!("{start}{rest}")
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, &RESERVED).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(&folder.path().join("a.b.scoreboard"), None, "far/../away");
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

    #[test]
    fn the_file_is_in_the_state_folder_and_one_that_was_left_beside_the_scoreboard_is_found() {
        let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let board = folder.path().join("a.b.scoreboard");
        let ids = [(); 2].map(|()| VconId::random());
        Spool::new(&board, None, "far").add(&ids[..1]).unwrap();
        let spool = Spool::new(&board, Some(state.path()), "far");
        assert_eq!(spool.path(), state.path().join("a.b.taken-far"));
        assert_eq!(spool.read().unwrap(), ids[..1]);
        spool.add(&ids[1..]).unwrap();
        assert_eq!(spool.read().unwrap(), [ids[1].clone(), ids[0].clone()]);
        let left = |followers: &[&str]| {
            let left = Spool::left(&board, Some(state.path()), followers).unwrap();
            let paths = left.into_iter().map(|(_, spool)| spool.path().to_owned());
            paths.collect::<Vec<_>>()
        };
        assert_eq!(left(&["far"]), [""; 0].map(PathBuf::from));
        let mut both = [&folder, &state].map(|it| it.path().join("a.b.taken-far"));
        both.sort();
        assert_eq!(left(&[]), both);
        spool.remove();
        assert_eq!(spool.read().unwrap(), []);
        assert_eq!(left(&[]), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn a_follower_with_a_long_name_has_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let board = folder
            .path()
            .join(format!("{}.scoreboard", "i".repeat(200)));
        let ids = [VconId::random()];
        let mut paths = Vec::new();
        for name in [
            "a".repeat(48),
            "a".repeat(49),
            "a".repeat(5000),
            "ж".repeat(9),
            "ж".repeat(200),
            format!("{}б", "ж".repeat(199)),
            "/".repeat(100),
        ] {
            let spool = Spool::new(&board, None, &name);
            assert_eq!(spool.read().unwrap(), [], "{name}");
            spool.add(&ids).unwrap();
            assert_eq!(spool.read().unwrap(), ids, "{name}");
            paths.push(spool.path().to_owned());
        }
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), 7);
        // It begins with whole letters of the name.
        let shown = in_file_name("жжж");
        assert_eq!(shown, encoded("жжж"));
        assert!(in_file_name(&"ж".repeat(200)).starts_with("%D0%B6%D0%B6+"));
    }

    #[test]
    fn files_of_former_followers_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let board = folder.path().join("a.b.scoreboard");
        let long = "ж".repeat(60);
        for name in ["here", "gone", "far/../a\x1b", &long, "жж"] {
            let spool = Spool::new(&board, None, name);
            spool.add(&[VconId::random()]).unwrap();
        }
        // Not of this instance.
        for other in ["a.b.scoreboard", "a.b.config", "a.taken-x", "a.b.c.taken-x"] {
            fs::write(folder.path().join(other), "").unwrap();
        }
        let names = |followers: &[&str]| {
            let left = Spool::left(&board, None, followers).unwrap();
            let names = left.into_iter().map(|(name, spool)| {
                assert_eq!(spool.read().unwrap().len(), 1, "{name}");
                name
            });
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        };
        assert_eq!(
            names(&["here", "new"]),
            ["far/../a\x1b", "gone", "жж", "жж…"]
        );
        assert_eq!(names(&["here", "far/../a\x1b", &long, "жж"]), ["gone"]);
    }
}
