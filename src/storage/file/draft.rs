//! A file being written, under a hidden name beside its place.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::vcon::VconId;

/// The document of one vCon until it is whole.
///
/// The name is made of the id alone, so that what a killed process leaves behind is written over
/// when the vCon comes again. A lock on the file has a second writer of the same vCon wait.
pub(super) struct Draft {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Draft {
    /// An empty draft in `directory`.
    pub fn open(directory: &Path, id: &VconId) -> io::Result<Self> {
        let path = path(directory, id);
        loop {
            let opened = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path);
            let file = match opened {
                // A symbolic link has our name: nothing is lost with it.
                Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
                    if fs::symlink_metadata(&path)?.is_symlink() {
                        fs::remove_file(&path)?;
                    }
                    continue;
                }
                // Left by a process that was killed when it had taken the right to write away.
                Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                    remove_unless_in_work(&path).map_err(|_| e)?;
                    continue;
                }
                opened => opened?,
            };
            lock(&file)?;
            // While we waited for the lock, its holder has moved the file into place.
            let found = file.metadata()?;
            if is_at(&found, &path)? {
                // Of an empty one, it would be a write to the file system's journal for nothing.
                if found.len() > 0 {
                    file.set_len(0)?;
                }
                return Ok(Self {
                    file,
                    path,
                    published: false,
                });
            }
        }
    }

    /// The file to write to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts the draft in its place, over what may be there.
    pub fn publish(mut self, place: &Path) -> io::Result<()> {
        fs::rename(&self.path, place)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // The error that led here is the one to tell of.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where the draft of a vCon in this directory is.
pub(super) fn path(directory: &Path, id: &VconId) -> PathBuf {
    directory.join(format!(".{id}.tmp"))
}

/// Removes what a save has left behind, unless it is in work again.
///
/// # Errors
/// It is still there, and nobody's.
pub(super) fn remove_left(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NOFOLLOW);
    let file = match options.open(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(());
        }
        opened => opened?,
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(e)) if e.kind() != ErrorKind::Unsupported => return Err(e),
        _ => {}
    }
    if is_at(&file.metadata()?, path)? {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Waits for a lock on the file, which goes with it.
fn lock(file: &File) -> io::Result<()> {
    match file.lock() {
        // Some network file systems have no locks.
        Err(e) if e.kind() != ErrorKind::Unsupported => Err(e),
        _ => Ok(()),
    }
}

/// Removes a draft that may not be written; one that is about to be published is waited for.
fn remove_unless_in_work(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path)?;
    lock(&file)?;
    if is_at(&file.metadata()?, path)? {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn is_at(ours: &Metadata, path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
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
