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
        let mut draft = Self::locked(dir, id)?;
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
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use super::*;

    #[test]
    #[allow(clippy::unwrap_used)]
    fn what_a_killed_process_left_is_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let id = VconId::random();
        fs::write(
            directory.path().join(format!(".{id}.tmp")),
            "half of a much longer doc",
        )
        .unwrap();
        let mut draft = Draft::open(directory.path(), &id).unwrap();
        draft.file().write_all(b"whole").unwrap();
        draft.publish(&directory.path().join("place")).unwrap();
        assert_eq!(fs::read(directory.path().join("place")).unwrap(), b"whole");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn what_was_left_and_may_not_be_written_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let id = VconId::random();
        let path = directory.path().join(format!(".{id}.tmp"));
        fs::write(&path, "half").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        let mut draft = Draft::open(directory.path(), &id).unwrap();
        draft.file().write_all(b"whole").unwrap();
        draft.publish(&directory.path().join("place")).unwrap();
        assert_eq!(fs::read(directory.path().join("place")).unwrap(), b"whole");
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn a_link_under_the_name_of_a_draft_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (id, other) = (VconId::random(), directory.path().join("other"));
        fs::write(&other, "precious").unwrap();
        let link = directory.path().join(format!(".{id}.tmp"));
        std::os::unix::fs::symlink(&other, link).unwrap();
        let mut draft = Draft::open(directory.path(), &id).unwrap();
        draft.file().write_all(b"whole").unwrap();
        draft.publish(&directory.path().join("place")).unwrap();
        assert_eq!(fs::read(directory.path().join("place")).unwrap(), b"whole");
        assert_eq!(fs::read(&other).unwrap(), b"precious");
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn writers_of_one_vcon_take_turns() {
        let directory = tempfile::tempdir().unwrap();
        let (id, place) = (VconId::random(), directory.path().join("place"));
        thread::scope(|scope| {
            for writer in 0..8u8 {
                let (id, place, directory) = (&id, &place, directory.path());
                scope.spawn(move || {
                    for _ in 0..20 {
                        let mut draft = Draft::open(directory, id).unwrap();
                        draft.file().write_all(&[writer; 5000]).unwrap();
                        draft.publish(place).unwrap();
                        let read = fs::read(place).unwrap();
                        assert!(read.len() == 5000 && read.iter().all(|byte| *byte == read[0]));
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
