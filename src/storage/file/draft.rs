//! Hidden files: drafts, which are files being written beside their place, and copies that were set aside.
//!
//! | name | |
//! |---|---|
//! | `.<uuid>.tmp` | a draft |
//! | `.<uuid>.0.tmp` to `.<uuid>.49.tmp` | drafts, if that name is taken |
//! | `.<uuid>.50.tmp` to `.<uuid>.99.tmp` | former copies that were set aside, until it is known which one stays |
//!
//! By these names the next save of the vCon finds the hidden files that a killed process has left. A draft
//! in use is locked. A copy that was set aside is not, as it may be another user's: it stays until it is too
//! old to be renamed back.

use std::fs::{File, Metadata, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use chrono::Utc;
use nix::sys::stat::{FileStat, SFlag};
use nix::unistd::geteuid;

use super::directory::{self, Dir, is_missing};
use crate::vcon::VconId;

/// How the names of hidden files end.
pub(super) const ENDING: &str = ".tmp";

const DRAFTS: Range<u32> = 0..50;
const ASIDES: Range<u32> = 50..100;

/// The number of random names that a save tries if all the others are taken.
const MOST_NAMES: u32 = 100;

/// A hidden file of this age in seconds is not in use: a process that a disk holds up for so long is
/// killed before. Renaming makes a file young again.
const DEAD: i64 = 300;

/// The document of one vCon while it is being written.
///
/// Another user may have a file under its name, and another lane may be saving the same vCon: then the
/// draft takes one of the other names, so that no lane waits for another. The lock only distinguishes a
/// draft in use from one that was left; nobody waits for it either.
pub(super) struct Draft<'a> {
    dir: &'a Dir,
    file: File,
    name: String,
    published: bool,
}

impl<'a> Draft<'a> {
    /// An empty draft in the directory, with this mode.
    pub fn open(dir: &'a Dir, id: &VconId, mode: u32) -> io::Result<Self> {
        for name in [usual_name(id)].into_iter().chain(numbered(id, DRAFTS)) {
            if let Some(draft) = Self::named(dir, name, mode)? {
                return Ok(draft);
            }
        }
        for _ in 0..MOST_NAMES {
            let name = format!(".{id}.{:016x}.tmp", fastrand::u64(..));
            if let Some(draft) = Self::create(dir, name, mode)? {
                draft.set_mode(&draft.file.metadata()?, mode)?;
                return Ok(draft);
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    fn named(dir: &'a Dir, name: String, mode: u32) -> io::Result<Option<Self>> {
        let mut draft = Self::create(dir, name.clone(), mode)?;
        if draft.is_none() && remove_left(dir, &name).is_ok_and(|left| left != DraftRemoval::InUse)
        {
            draft = Self::create(dir, name, mode)?;
        }
        let Some(mut draft) = draft else {
            return Ok(None);
        };
        // Another lane may have seen it before it was locked, and taken it for an abandoned one. Without
        // locks, lanes take a draft for that only once it is old.
        let is_locked = !matches!(draft.file.try_lock(), Err(TryLockError::WouldBlock));
        let file = draft.file.metadata()?;
        if is_locked && dir.has(&draft.name, &file)? {
            draft.set_mode(&file, mode)?;
            return Ok(Some(draft));
        }
        draft.published = true;
        Ok(None)
    }

    /// Gives it the mode before the text, if the umask has taken from it: it never has more rights than these.
    fn set_mode(&self, file: &Metadata, mode: u32) -> io::Result<()> {
        if file.mode() & 0o7777 == mode {
            return Ok(());
        }
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    fn create(dir: &'a Dir, name: String, mode: u32) -> io::Result<Option<Self>> {
        // A draft that its owner cannot open again could not be locked if it were left.
        let mode = if mode & 0o600 == 0o600 { mode } else { 0o600 };
        match dir.create(&name, mode) {
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
            // The error that led here is the one to report.
            let _ = self.dir.remove(&self.name);
        }
    }
}

/// The name of a vCon's draft, unless that is taken.
pub(super) fn usual_name(id: &VconId) -> String {
    format!(".{id}.tmp")
}

fn numbered(id: &VconId, numbers: Range<u32>) -> impl Iterator<Item = String> {
    numbers.map(move |number| format!(".{id}.{number}.tmp"))
}

/// At least one of these names exists if any hidden file does, apart from those that several processes
/// have left.
pub(super) fn first_names(id: &VconId) -> [String; 3] {
    let first = |numbers: Range<u32>| format!(".{id}.{}.tmp", numbers.start);
    [usual_name(id), first(DRAFTS), first(ASIDES)]
}

/// Gives a file a hidden name that was free, and returns it.
///
/// # Errors
/// `NotFound` if it is not there any more.
pub(super) fn set_aside(dir: &Dir, name: &str, id: &VconId) -> io::Result<String> {
    for aside in numbered(id, ASIDES) {
        match dir.rename_to_free(name, &aside) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            moved => return moved.map(|()| aside),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Renames a copy that was set aside back, unless a younger copy has taken the name.
pub(super) fn put_back(dir: &Dir, aside: &str, name: &str) -> io::Result<()> {
    match dir.rename_to_free(aside, name) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => dir.remove(aside),
        Err(e) if is_missing(&e) => Ok(()),
        moved => moved,
    }
}

/// What happened to the draft of an earlier save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DraftRemoval {
    /// Nothing has the name.
    Absent,
    Removed,
    /// A save works on it, or it is not this user's.
    InUse,
}

/// Removes the draft of an earlier save, unless a save works on it.
///
/// # Errors
/// The draft could not be removed.
pub(super) fn remove_left(dir: &Dir, name: &str) -> io::Result<DraftRemoval> {
    remove_draft(dir, name, geteuid().as_raw(), now())
}

/// The same for a user whom the file system takes this process for, and at a time by its clock.
fn remove_draft(dir: &Dir, name: &str, user: u32, now: i64) -> io::Result<DraftRemoval> {
    let found = match dir.look(Path::new(name)) {
        Err(e) if is_missing(&e) => return Ok(DraftRemoval::Absent),
        found => found?,
    };
    if directory::kind(&found) != SFlag::S_IFREG || found.st_uid != user {
        return Ok(DraftRemoval::InUse);
    }
    let file = match dir.lockable(name) {
        Err(e) if is_missing(&e) => return Ok(DraftRemoval::Removed),
        // Its own mode, not that of the directory.
        Err(e) if e.kind() == ErrorKind::PermissionDenied && found.st_mode & 0o600 == 0 => {
            return Ok(DraftRemoval::InUse);
        }
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => {}
        // Without locks, it may be in use.
        Err(TryLockError::Error(_)) if is_dead(&found, now) => {}
        Err(_) => return Ok(DraftRemoval::InUse),
    }
    if dir.has(name, &file.metadata()?)? {
        return remove_unless_denied(dir, name);
    }
    Ok(DraftRemoval::Removed)
}

/// Removes the hidden files of a vCon that killed processes have left in a directory. If `thorough`,
/// looks for all names; otherwise stops at the first free name of each series, and passes over the usual
/// name, which the caller's own draft had.
///
/// `user` owns files that were created there, and `now` is the time by the clock of the file system. The
/// vCon has a copy of its own, so a dead one that was set aside is not renamed back.
///
/// # Errors
/// One of them could not be removed.
pub(super) fn remove_dead(
    dir: &Dir,
    id: &VconId,
    user: u32,
    now: i64,
    thorough: bool,
) -> io::Result<()> {
    if thorough {
        remove_draft(dir, &usual_name(id), user, now)?;
    }
    for name in numbered(id, DRAFTS) {
        if remove_draft(dir, &name, user, now)? == DraftRemoval::Absent && !thorough {
            break;
        }
    }
    remove_asides(dir, id, Some(now), thorough)
}

/// Removes copies that were set aside: at a time, the dead ones; else every one.
///
/// # Errors
/// One of them could not be removed.
pub(super) fn remove_asides(
    dir: &Dir,
    id: &VconId,
    now: Option<i64>,
    thorough: bool,
) -> io::Result<()> {
    for name in numbered(id, ASIDES) {
        match dir.look(Path::new(&name)) {
            Err(e) if is_missing(&e) && thorough => {}
            Err(e) if is_missing(&e) => break,
            Err(e) => return Err(e),
            Ok(found) => {
                let is_file = directory::kind(&found) == SFlag::S_IFREG;
                if is_file && now.is_none_or(|now| is_dead(&found, now)) {
                    remove_unless_denied(dir, &name)?;
                }
            }
        }
    }
    Ok(())
}

/// Removes a file, unless that is forbidden for the file itself and not by the rights of its directory:
/// it may be another user's.
fn remove_unless_denied(dir: &Dir, name: &str) -> io::Result<DraftRemoval> {
    match dir.remove(name) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(DraftRemoval::InUse),
        removed => removed.map(|()| DraftRemoval::Removed),
    }
}

#[allow(clippy::unnecessary_cast)]
fn is_dead(found: &FileStat, now: i64) -> bool {
    now - found.st_ctime as i64 > DEAD
}

pub(super) fn now() -> i64 {
    Utc::now().timestamp()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Write;
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
