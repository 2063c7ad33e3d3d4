//! A file being written, under a hidden name beside its place.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;

use super::dir::{Dir, is_missing};
use crate::vcon::VconId;

/// Random names that are tried before a save gives up: each is taken only if somebody works at it.
const MOST_NAMES: u32 = 100;

/// The document of one vCon until it is whole.
///
/// Its name is made of the id alone, so that what a killed process leaves behind is removed when the
/// vCon comes again. Another user may have something under that name, and another lane may be at work
/// on the same vCon: then a draft has a random name. So nobody waits for anybody. The lock only tells a
/// draft in work from one that was left, and is never waited for either.
pub(super) struct Draft<'a> {
    dir: &'a Dir,
    file: File,
    name: String,
    published: bool,
}

impl<'a> Draft<'a> {
    /// An empty draft in the directory, with this mode.
    pub fn open(dir: &'a Dir, id: &VconId, mode: u32) -> io::Result<Self> {
        let draft = Self::locked(dir, id)?;
        // Before the text: it is never under any other mode than this and 0600.
        draft.file.set_permissions(Permissions::from_mode(mode))?;
        Ok(draft)
    }

    fn locked(dir: &'a Dir, id: &VconId) -> io::Result<Self> {
        if let Some(draft) = Self::usual(dir, id)? {
            return Ok(draft);
        }
        for _ in 0..MOST_NAMES {
            if let Some(draft) = Self::create(dir, random_name(id))? {
                return Ok(draft);
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    fn usual(dir: &'a Dir, id: &VconId) -> io::Result<Option<Self>> {
        let name = usual_name(id);
        let mut draft = Self::create(dir, name.clone())?;
        if draft.is_none() && remove_left(dir, &name).is_ok_and(|left| left == Left::Removed) {
            draft = Self::create(dir, name)?;
        }
        let Some(mut draft) = draft else {
            return Ok(None);
        };
        // Another lane may have looked at it before it was locked, and taken it for one that was left.
        let is_locked = match draft.file.try_lock() {
            Ok(()) => true,
            Err(error) => io::Error::from(error).kind() == ErrorKind::Unsupported,
        };
        if is_locked && dir.has(&draft.name, &draft.file.metadata()?)? {
            return Ok(Some(draft));
        }
        draft.published = true;
        Ok(None)
    }

    fn create(dir: &'a Dir, name: String) -> io::Result<Option<Self>> {
        match dir.create(&name) {
            Ok(file) => Ok(Some(Self {
                dir,
                file,
                name,
                published: false,
            })),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The file to write to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Its name in the directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts the draft in its place, over what may be there.
    pub fn publish(&mut self, name: &str) -> io::Result<()> {
        self.dir.rename(&self.name, name)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.published {
            // The error that led here is the one to tell of.
            let _ = self.dir.remove(&self.name);
        }
    }
}

/// The name of a vCon's draft, unless that is taken.
pub(super) fn usual_name(id: &VconId) -> String {
    format!(".{id}.tmp")
}

/// A hidden name that nobody else has.
pub(super) fn random_name(id: &VconId) -> String {
    format!(".{id}.{:016x}.tmp", fastrand::u64(..))
}

/// What became of a draft of an earlier save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It is not there any more.
    Removed,
    /// A save works on it, or it is not this user's.
    InUse,
}

/// Removes the draft of an earlier save, unless a save works on it.
///
/// # Errors
/// The draft could not be removed.
pub(super) fn remove_left(dir: &Dir, name: &str) -> io::Result<Left> {
    let file = match dir.own_file(name) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(Left::InUse),
        Err(e) if is_missing(&e) => return Ok(Left::Removed),
        Err(e) => return Err(e),
    };
    // Where there are no locks, it may be in work.
    if file.try_lock().is_err() {
        return Ok(Left::InUse);
    }
    if dir.has(name, &file.metadata()?)? {
        dir.remove(name)?;
    }
    Ok(Left::Removed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::thread;

    use super::*;

    fn entries(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<String> = entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn save(dir: &Dir, id: &VconId) {
        let mut draft = Draft::open(dir, id, 0o640).unwrap();
        draft.file().write_all(b"whole").unwrap();
        draft.publish("place").unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_removed_whatever_its_mode() {
        for mode in [0o600, 0o440] {
            let directory = tempfile::tempdir().unwrap();
            let (dir, id) = (Dir::open(directory.path()).unwrap(), VconId::random());
            let left = directory.path().join(usual_name(&id));
            fs::write(&left, "half of a much longer doc").unwrap();
            fs::set_permissions(&left, Permissions::from_mode(mode)).unwrap();
            save(&dir, &id);
            assert_eq!(fs::read(directory.path().join("place")).unwrap(), b"whole");
            assert_eq!(entries(directory.path()), ["place"]);
        }
    }

    #[test]
    fn what_others_have_put_under_the_name_is_neither_followed_nor_opened_nor_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (dir, id) = (Dir::open(directory.path()).unwrap(), VconId::random());
        let (usual, place) = (usual_name(&id), directory.path().join("place"));
        let (taken, other) = (
            directory.path().join(&usual),
            directory.path().join("other"),
        );
        fs::write(&other, "precious").unwrap();
        let make: [(&str, &dyn Fn()); 4] = [
            ("a link", &|| {
                std::os::unix::fs::symlink(&other, &taken).unwrap();
            }),
            ("a pipe", &|| {
                nix::unistd::mkfifo(&taken, nix::sys::stat::Mode::S_IRWXU).unwrap();
            }),
            ("a directory", &|| fs::create_dir(&taken).unwrap()),
            ("a socket", &|| {
                std::os::unix::net::UnixListener::bind(&taken).unwrap();
            }),
        ];
        for (what, make) in make {
            make();
            save(&dir, &id);
            assert_eq!(fs::read(&place).unwrap(), b"whole", "{what}");
            assert_eq!(fs::read(&other).unwrap(), b"precious", "{what}");
            assert_eq!(
                entries(directory.path()),
                [usual.as_str(), "other", "place"]
            );
            fs::remove_file(&place).unwrap();
            fs::remove_file(&taken)
                .or_else(|_| fs::remove_dir(&taken))
                .unwrap();
        }
    }

    #[test]
    fn a_lock_that_others_hold_stops_no_save() {
        let directory = tempfile::tempdir().unwrap();
        let (dir, id) = (Dir::open(directory.path()).unwrap(), VconId::random());
        let taken = File::create(directory.path().join(usual_name(&id))).unwrap();
        taken.lock().unwrap();
        save(&dir, &id);
        assert_eq!(
            entries(directory.path()),
            [usual_name(&id).as_str(), "place"]
        );
    }

    #[test]
    fn a_draft_has_its_mode_before_its_text() {
        let directory = tempfile::tempdir().unwrap();
        let (dir, id) = (Dir::open(directory.path()).unwrap(), VconId::random());
        let mut draft = Draft::open(&dir, &id, 0o400).unwrap();
        let found = draft.file().metadata().unwrap();
        assert_eq!((found.mode() & 0o7777, found.len()), (0o400, 0));
        let dropped = draft.name().to_owned();
        drop(draft);
        assert_eq!(entries(directory.path()), [""; 0], "{dropped}");
    }

    #[test]
    fn writers_of_one_vcon_do_not_mix() {
        let directory = tempfile::tempdir().unwrap();
        let (id, place) = (VconId::random(), directory.path().join("place"));
        thread::scope(|scope| {
            for writer in 0..8u8 {
                let (id, place, directory) = (&id, &place, directory.path());
                scope.spawn(move || {
                    let dir = Dir::open(directory).unwrap();
                    for _ in 0..20 {
                        let mut draft = Draft::open(&dir, id, 0o600).unwrap();
                        draft.file().write_all(&[writer; 5000]).unwrap();
                        draft.publish("place").unwrap();
                        let read = fs::read(place).unwrap();
                        assert!(read.len() == 5000 && read.iter().all(|byte| *byte == read[0]));
                    }
                });
            }
        });
        assert_eq!(entries(directory.path()), ["place"]);
    }
}
