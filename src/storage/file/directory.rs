//! Directories at and below `path`, opened safely, and the files in them.
//!
//! Other users may be able to write to `path`, or to a directory below it. So each directory is
//! opened by its name in its parent, which is open already, and never by a path that another user could
//! redirect meanwhile:
//!
//! - `path` is the operator's. It may be, or lead through, any link.
//! - In a directory that everybody may write to, one below belongs to this process, to root, or to the
//!   owner of `path`: in a directory of somebody else, that user could replace what is stored. Who may
//!   write to a directory as a member of its group is one of the operator's circle.
//! - What belongs to this process is also what the file system gives to the user whom it takes this
//!   process for: a network file system may have another one for it.
//! - A user whom this user namespace does not know is not told from others, and is never the operator.
//! - A symbolic link below it is followed if it belongs to this process or to root, and stands in a
//!   directory of theirs that nobody else may write to. A mount is not told from a directory.
//! - A document is a regular file: a link is not followed, and neither a pipe nor a device is waited for.
//!
//! Where not everybody may write to any directory on the way, these rules refuse nothing but links. Then a
//! directory below is opened in one step. None stays open after a save: an open one would keep its file
//! system from being unmounted.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
#[cfg(target_os = "linux")]
use nix::fcntl::{OpenHow, ResolveFlag, openat2};
#[cfg(all(target_os = "linux", target_env = "gnu"))]
use nix::fcntl::{RenameFlags, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, mkdirat, mode_t};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, geteuid, linkat, unlinkat};

use crate::procfs;

/// Opens a directory without the right to list it, which is not needed to reach the files in it.
#[cfg(target_os = "linux")]
const REACH: OFlag = OFlag::O_PATH;
#[cfg(not(target_os = "linux"))]
const REACH: OFlag = OFlag::O_RDONLY;

const ROOT: u32 = 0;

/// An entry that is not used, whatever its rights are.
#[derive(Debug, thiserror::Error)]
enum UnsafeEntry {
    /// A directory of another user.
    #[error("{0}")]
    Foreign(String),
    #[error("{0}")]
    Other(String),
}

/// Whether an entry was refused for its kind or its owner.
pub(super) fn is_unsafe(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<UnsafeEntry>())
}

/// Whether an entry was refused because it is in a directory of another user.
pub(super) fn is_foreign(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(UnsafeEntry::Foreign(_)))
}

/// An open directory.
pub(super) struct Dir {
    file: File,
    path: PathBuf,
    /// The owner of `path`.
    operator: u32,
    /// Whether `file` is open for reading, so that it can be synced.
    is_readable: bool,
}

impl Dir {
    /// Opens `path` itself.
    pub fn open(path: &Path) -> io::Result<Self> {
        let name = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let file = open_directory(AT_FDCWD, name, OFlag::empty())?;
        Ok(Self {
            operator: file.metadata()?.uid(),
            file,
            path: path.to_owned(),
            is_readable: false,
        })
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory at a relative path of plain names.
    pub fn at(&self, below: &Path) -> io::Result<Self> {
        self.walk(below, Self::child)
    }

    /// The same, after creating what is missing, with this mode whatever the umask is.
    pub fn make(&self, below: &Path, mode: u32) -> io::Result<Self> {
        if let Some(dir) = self.at_once(below) {
            return Ok(dir);
        }
        self.walk(below, |dir, name| dir.child_or_new(name, mode))
    }

    /// Opens the directory at a relative path in one step, if it is there, and if not everybody may write to
    /// a directory on the way: then no stranger can have redirected that step, and every owner is accepted.
    #[cfg(target_os = "linux")]
    fn at_once(&self, below: &Path) -> Option<Self> {
        let is_plain = |part| matches!(part, Component::Normal(_));
        if below.as_os_str().is_empty() || !below.components().all(is_plain) {
            return None;
        }
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let file = File::from(openat2(&self.file, below, how).ok()?);
        if self.file.metadata().ok()?.mode() & 0o002 != 0 {
            return None;
        }
        let on_the_way = below.ancestors().skip(1);
        for above in on_the_way.take_while(|above| !above.as_os_str().is_empty()) {
            let found = self.look(above).ok()?;
            if kind(&found) != SFlag::S_IFDIR || found.st_mode & 0o002 != 0 {
                return None;
            }
        }
        Some(Self {
            file,
            path: self.path.join(below),
            operator: self.operator,
            is_readable: true,
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn at_once(&self, _: &Path) -> Option<Self> {
        None
    }

    fn walk(
        &self,
        below: &Path,
        step: impl Fn(&Self, &Path) -> io::Result<Self>,
    ) -> io::Result<Self> {
        let mut at: Option<Self> = None;
        for name in below.components() {
            let Component::Normal(name) = name else {
                return Err(Errno::EINVAL.into());
            };
            at = Some(step(at.as_ref().unwrap_or(self), Path::new(name))?);
        }
        at.map_or_else(|| self.another(), Ok)
    }

    fn another(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            path: self.path.clone(),
            operator: self.operator,
            is_readable: self.is_readable,
        })
    }

    fn child(&self, name: &Path) -> io::Result<Self> {
        let file = match open_directory(&self.file, name, OFlag::O_NOFOLLOW) {
            // Linux reports this for a link that should be a directory.
            Err(Errno::ENOTDIR | Errno::ELOOP) if self.is_link(name)? => {
                self.check_link(name)?;
                open_directory(&self.file, name, OFlag::empty())?
            }
            opened => opened?,
        };
        self.checked(name, file)
    }

    fn child_or_new(&self, name: &Path, mode: u32) -> io::Result<Self> {
        match self.child(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            child => return child,
        }
        match mkdirat(&self.file, name, to_mode(mode)) {
            Ok(()) => {}
            // Another lane made it in the meantime, or a link that leads nowhere is there.
            Err(Errno::EEXIST) => return self.child(name),
            Err(e) => return Err(e.into()),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.file, name, flags, Mode::empty())?);
        let child = self.checked(name, file)?;
        fchmod(&child.file, to_mode(mode))?;
        // Otherwise the file that is stored there could be lost with it.
        self.sync()?;
        Ok(child)
    }

    /// Accepts an open directory unless just anybody may have created it here.
    fn checked(&self, name: &Path, file: File) -> io::Result<Self> {
        let child = Self {
            file,
            path: self.path.join(name),
            operator: self.operator,
            is_readable: false,
        };
        let owner = child.file.metadata()?.uid();
        if is_ours(owner) || self.file.metadata()?.mode() & 0o002 == 0 {
            return Ok(child);
        }
        let is_unknown = procfs::unmapped_owner() == Some(owner);
        if owner == self.operator && !is_unknown {
            return Ok(child);
        }
        // A new file's owner cannot be forged, as that of a directory under a name could.
        if self.owner_of_new_files().is_ok_and(|own| own == owner) {
            return Ok(child);
        }
        let hint = if is_unknown {
            " (the owner is not known in this user namespace: set PrivateUsers=no in the unit, or give it to the \
             service's user)"
        } else {
            ""
        };
        Err(refusal(UnsafeEntry::Foreign(format!(
            "directory {} belongs to user {owner}, neither to this process (user {}) nor to root nor to the \
             owner of `path`, and everybody may write to the directory above; give it to one of them{hint}",
            child.path.display(),
            geteuid()
        ))))
    }

    /// The user that the file system takes this process for.
    fn owner_of_new_files(&self) -> io::Result<u32> {
        #[cfg(target_os = "linux")]
        {
            let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            if let Ok(file) = openat(&self.file, ".", flags, Mode::S_IRUSR) {
                return Ok(File::from(file).metadata()?.uid());
            }
        }
        let name = format!(".probe.{:016x}", fastrand::u64(..));
        let owner = self.create(&name, 0o600)?.metadata().map(|file| file.uid());
        self.remove(&name)?;
        owner
    }

    /// Fails unless this process may create files in it.
    pub fn check_right_to_write(&self) -> io::Result<()> {
        let right = AccessFlags::W_OK | AccessFlags::X_OK;
        Ok(faccessat(&self.file, ".", right, AtFlags::AT_EACCESS)?)
    }

    fn is_link(&self, name: &Path) -> io::Result<bool> {
        Ok(kind(&self.look(name)?) == SFlag::S_IFLNK)
    }

    /// As nobody else may write to this directory, the link is not exchanged after the check.
    fn check_link(&self, name: &Path) -> io::Result<()> {
        let here = self.file.metadata()?;
        if is_ours(self.look(name)?.st_uid) && is_ours(here.uid()) && here.mode() & 0o022 == 0 {
            return Ok(());
        }
        Err(refusal(UnsafeEntry::Other(format!(
            "symbolic link {} is not followed: it, or the directory it is in, belongs to another user, or others may \
             write to that directory; mount the other directory there instead",
            self.path.join(name).display()
        ))))
    }

    /// The status of the entry at this name or relative path; of a link itself.
    pub fn look(&self, name: &Path) -> io::Result<FileStat> {
        Ok(fstatat(&self.file, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Creates a file with this mode, from which the umask takes away; fails if the name exists.
    pub fn create(&self, name: &str, mode: u32) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        self.open_file(name, flags, mode)
    }

    /// Opens a document.
    ///
    /// # Errors
    /// It is no regular file: a permanent fault.
    pub fn document(&self, name: &str) -> io::Result<File> {
        let opened = self.open_file(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0);
        let file = match opened {
            // A link, or a socket.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => None,
            opened => Some(opened?),
        };
        match file {
            Some(file) if file.metadata()?.is_file() => Ok(file),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                UnsafeEntry::Other("it is not a regular file".to_owned()),
            )),
        }
    }

    /// Opens a file in order to lock it.
    pub fn lockable(&self, name: &str) -> io::Result<File> {
        // Some network file systems lock only what is open for writing; a mode may not allow that.
        match self.open_file(name, OFlag::O_WRONLY | OFlag::O_NONBLOCK, 0) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                self.open_file(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, 0)
            }
            opened => opened,
        }
    }

    fn open_file(&self, name: &str, flags: OFlag, mode: u32) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        Ok(openat(&self.file, name, flags, to_mode(mode))?.into())
    }

    /// Whether this open file still has the name.
    pub fn has(&self, name: &str, file: &Metadata) -> io::Result<bool> {
        match self.look(Path::new(name)) {
            #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
            Ok(there) => Ok((file.dev(), file.ino()) == (there.st_dev as u64, there.st_ino as u64)),
            Err(e) if is_missing(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Renames a file, over one that may have the other name.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.file, from, &self.file, to)?)
    }

    /// Renames a file to a free name; fails with `AlreadyExists` if it is taken.
    pub fn rename_to_free(&self, from: &str, to: &str) -> io::Result<()> {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        match renameat2(
            &self.file,
            from,
            &self.file,
            to,
            RenameFlags::RENAME_NOREPLACE,
        ) {
            // The system or the file system does not have it.
            Err(Errno::EINVAL | Errno::ENOSYS) => {}
            moved => return Ok(moved?),
        }
        match linkat(&self.file, from, &self.file, to, AtFlags::empty()) {
            Ok(()) => return self.remove(from),
            Err(e @ (Errno::EEXIST | Errno::ENOENT)) => return Err(e.into()),
            // The file system has one name for each file.
            Err(_) => {}
        }
        if self.look(Path::new(to)).is_ok() {
            return Err(Errno::EEXIST.into());
        }
        self.rename(from, to)
    }

    /// Removes an entry that is not a directory, if it exists.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.file, name, UnlinkatFlags::NoRemoveDir).map_err(io::Error::from) {
            Err(e) if !is_missing(&e) => Err(e),
            _ => Ok(()),
        }
    }

    /// Its device and inode.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let found = self.file.metadata()?;
        Ok((found.dev(), found.ino()))
    }

    /// Waits until the names in it are on the disk.
    pub fn sync(&self) -> io::Result<()> {
        let synced = if self.is_readable {
            self.file.sync_all()
        } else {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let listed = openat(&self.file, ".", flags, Mode::empty())?;
            File::from(listed).sync_all()
        };
        match synced {
            // Some network file systems cannot sync a directory.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                ) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}

pub(super) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The kind of a file.
pub(super) fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

fn open_directory(at: impl AsFd, name: &Path, flags: OFlag) -> Result<File, Errno> {
    let at: BorrowedFd<'_> = at.as_fd();
    let flags = flags | REACH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty()).map(File::from)
}

fn is_ours(owner: u32) -> bool {
    owner == ROOT || owner == geteuid().as_raw()
}

fn to_mode(mode: u32) -> Mode {
    // Only the twelve bits of a mode, which every type for it has room for.
    #[allow(clippy::unnecessary_cast, clippy::cast_possible_truncation)]
    Mode::from_bits_truncate(mode as mode_t)
}

fn refusal(why: UnsafeEntry) -> io::Error {
    io::Error::other(why)
}
