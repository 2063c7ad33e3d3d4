//! `storage.file`: one file for each vCon, under a directory.
//!
//! Layout: `<path>/YYYY/MM/DD/<uuid>.json` by the vCon's `created_at`, or `<path>/<uuid>.json`;
//! `.json.gz` when compressed. A document is written under a hidden name (`.<uuid>.tmp`) beside
//! its place, synced and renamed, so that a reader sees a whole file or none. Other users may be able
//! to write to `path`: the module `directory` tells how directories and files are opened then.
//!
//! A read finds a vCon anywhere below `path`: under any day, and in `path` itself. Of several copies it
//! reads the one written last, as a save may leave one under a day far away. A UUID of version 7 or 8 tells
//! when it was made: a copy under that day, or the day before or after, is read without looking for others,
//! as a save leaves no former copy there. The module `search` does that.
//!
//! When the day of a vCon changes, a save removes the copy under the former day, after the new one
//! is on the disk. No pointer names the former day, and a search of every day would cost more than
//! the save. So a save looks in `path` itself, under the day that the document had before a link
//! changed it, and under the days before and after (another time zone) its own and that of its UUID. A
//! vCon of today or yesterday is most likely a first version; for any other one, and for one without a
//! readable date, a save also looks under the 16 nearest days that have a directory. Which days have one,
//! and that `path` itself holds no files, is known for a second from the look before, while the directories
//! show no change.
//!
//! Lanes of a worker share directory syncs: see the module `sync`.
//!
//! The next save of a vCon removes the hidden files that a killed process has left of it, and so does a
//! deletion (see the module `draft`). A save is not done before its own hidden files are gone.
//!
//! | option | default | |
//! |---|---|---|
//! | `path` | `/data/vcons` | created if it is missing |
//! | `organize_by_date` | `true` | a directory for each day |
//! | `compression` | `false` | gzip |
//! | `max_file_size` | `10485760` | bytes of the JSON before compression, for saves and reads; `0`: what Redis takes |
//! | `file_permissions` | `0o644` | exactly these, whatever the umask |
//! | `dir_permissions` | `0o755` | of directories created here |
//!
//! The module `errors` has the table of what an error means for the vCon: an error of the disk, the
//! directory or its rights is waited out; a vCon over the limit is refused.

mod directory;
mod draft;
mod errors;
mod search;
mod sync;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chrono::{NaiveDate, Utc};
use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::stat::{FileStat, SFlag, fstat};

use self::directory::{Dir, is_missing};
use self::draft::Draft;
use self::errors::{FileStep, failure};
use self::search::Listings;
use self::sync::SharedSyncs;

use super::Storage;
use super::timed_call::TimedCalls;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;
use crate::vcon::{Outgoing, VconId};

const PLAIN: &str = "json";
const GZIPPED: &str = "json.gz";

/// How long a probe may take: a network file system that is gone does not answer at all.
const PROBE: Duration = Duration::from_secs(5);

/// The time a save has on a disk that hangs and comes back, before its process is killed for it. Also
/// the time limit of a search for a vCon.
const SLOW_DISK: Duration = Duration::from_secs(30);

/// A lane remembers at most this many drafts that it could not remove.
const MOST_LEFT: usize = 100;

/// The bytes that a probe writes, about as many as a vCon has: a disk may have room for a name and for
/// nothing else.
const PROBE_SIZE: usize = 16 * 1024;

/// Reads the options.
pub(super) fn open(options: &mut Options) -> Box<dyn Storage> {
    let path = options.string_or("path", "/data/vcons");
    if path.is_empty() {
        options.fault("path", "is empty");
    }
    if path.contains('\0') {
        options.fault("path", "holds a NUL character");
    }
    Box::new(FileStorage {
        root: StorageRoot {
            path: PathBuf::from(path),
            dir_mode: options.mode_or("dir_permissions", 0o755),
        },
        by_date: options.bool_or("organize_by_date", true),
        compress: options.bool_or("compression", false),
        max_size: options
            .integer_or("max_file_size", 10_485_760, 0..=i64::MAX)
            .unsigned_abs(),
        file_mode: options.mode_or("file_permissions", 0o644),
        timed_calls: TimedCalls::new(),
        left: Vec::new(),
        passed_over: AtomicBool::new(false),
        listings: Listings::default(),
        syncs: options.common(),
        shares_syncs: false,
    })
}

struct FileStorage {
    root: StorageRoot,
    by_date: bool,
    compress: bool,
    /// Bytes of JSON; 0 for no limit.
    max_size: u64,
    file_mode: u32,
    /// Runs the probes.
    timed_calls: TimedCalls,
    /// Hidden files that this lane could not remove yet.
    left: Vec<HiddenFile>,
    /// Whether the log already names a directory that was not searched.
    passed_over: AtomicBool,
    /// Directories that this lane has listed a moment ago.
    listings: Listings,
    /// What the lanes of the worker share.
    syncs: Arc<SharedSyncs>,
    shares_syncs: bool,
}

/// A hidden file that could not be removed or renamed back.
#[derive(Debug, PartialEq, Eq)]
struct HiddenFile {
    /// Its directory.
    below: PathBuf,
    name: String,
    what: HiddenKind,
}

#[derive(Debug, PartialEq, Eq)]
enum HiddenKind {
    Draft,
    /// A copy that was set aside, and is superseded.
    Superseded,
    /// A copy that was set aside, and is still needed, with its name.
    Copy(String),
}

/// A written document.
struct WrittenDocument {
    file: FileStat,
    /// The name of its draft.
    draft: String,
}

/// Why a document was not written.
struct WriteError {
    step: FileStep,
    error: io::Error,
    /// The name of its draft.
    draft: String,
}

/// The option `path`, and the mode of new directories in it.
#[derive(Clone)]
struct StorageRoot {
    path: PathBuf,
    dir_mode: u32,
}

impl Storage for FileStorage {
    fn save(&mut self, vcon: &Outgoing, _: Deadline) -> Result<(), Failure> {
        let size = vcon.json.len() as u64;
        if self.max_size > 0 && size > self.max_size {
            return Err(Failure::permanent(format!(
                "vCon {} has {size} bytes, more than max_file_size ({} bytes)",
                vcon.id, self.max_size
            )));
        }
        self.remove_left();
        let day = self.by_date.then(|| vcon.created_or_now());
        let below = day.map_or_else(PathBuf::new, |day| day.day_path().into());
        let directory = self.root.below(&below);
        let opened = self.root.made().and_then(|top| {
            let dir = top.make(&below, self.root.dir_mode)?;
            Ok((top, dir))
        });
        let (top, dir) =
            opened.map_err(|e| failure(FileStep::Directory, "make directory", &directory, &e))?;

        let [name, other] = self.names(&vcon.id);
        let place = directory.join(&name);
        let own = match self.write(&dir, &name, vcon) {
            Ok(own) => own,
            Err(unwritten) => {
                self.note_left(&dir, &below, unwritten.draft, HiddenKind::Draft);
                return Err(failure(unwritten.step, "write", &place, &unwritten.error));
            }
        };
        // Most often it is not there, and a look costs less than an attempt to remove it.
        if !dir.look(Path::new(&other)).is_err_and(|e| is_missing(&e)) {
            dir.remove(&other)
                .map_err(|e| failure(FileStep::Name, "remove", &directory.join(&other), &e))?;
        }
        self.remove_dead(&dir, &vcon.id, &own).map_err(|e| {
            failure(
                FileStep::Directory,
                "remove a hidden file in",
                &directory,
                &e,
            )
        })?;
        if let Some(day) = day {
            self.remove_former(
                &top,
                vcon,
                day.local.date(),
                &directory,
                (&place, &own.file),
            );
        }
        self.remove_left_of(&vcon.id)
    }

    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure> {
        let limit = deadline.begin(SLOW_DISK);
        let mut found = Vec::new();
        for directory in self.likely(id.made_on()) {
            // What is wrong there is met again below.
            let _ = self.find_in(&directory, id, &mut found);
        }
        if let Ok(Some(text)) = self.newest(id, found) {
            return Ok(Some(text));
        }
        let mut found = Vec::new();
        let looked = self.each_directory(limit, &mut |directory| {
            self.find_in(directory, id, &mut found)?;
            Ok(if !self.by_date && !found.is_empty() {
                // It is the newest: a later save with days would have removed it.
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        });
        if found.is_empty() {
            return looked.map(|()| None);
        }
        if let Err(failure) = looked {
            log::warn!("vCon {id}: not every day was searched for a newer copy: {failure}");
        }
        self.newest(id, found)
    }

    /// Stops at the first copy. A damaged one counts: the vCon is not lost unnoticed.
    fn has(
        &mut self,
        id: &VconId,
        day: Option<NaiveDate>,
        deadline: Deadline,
    ) -> Result<bool, Failure> {
        let limit = deadline.begin(SLOW_DISK);
        for day in [day, id.made_on()] {
            for directory in self.likely(day) {
                // What is wrong there is met again below.
                if self.is_in(&directory, id) == Ok(true) {
                    return Ok(true);
                }
            }
        }
        let mut is_there = false;
        let looked = self.each_directory(limit, &mut |directory| {
            is_there = self.is_in(directory, id)?;
            Ok(if is_there {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        });
        if is_there {
            return Ok(true);
        }
        looked.map(|()| false)
    }

    fn is_kept_by_day(&self) -> bool {
        self.by_date
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        let limit = Deadline::NONE.begin(SLOW_DISK);
        let hidden = draft::first_names(id);
        self.each_directory(limit, &mut |directory| {
            let names = self.names(id);
            let mut all = names.iter().chain(&hidden);
            let is_absent = |name: &String| {
                let found = fs::symlink_metadata(directory.join(name));
                found.is_err_and(|e| is_missing(&e) || self.is_passed_over(directory, &e))
            };
            // Most often nothing is there, and the directory need not be opened.
            let Some(first) = all.find(|name| !is_absent(name)) else {
                return Ok(ControlFlow::Continue(()));
            };
            let removed = self.root.existing(directory).and_then(|dir| {
                for name in &names {
                    dir.remove(name)?;
                }
                let user = nix::unistd::geteuid().as_raw();
                draft::remove_dead(&dir, id, user, draft::now(), true)?;
                draft::remove_asides(&dir, id, None, true)
            });
            removed.map_err(|e| failure(FileStep::Name, "remove", &directory.join(first), &e))?;
            Ok(ControlFlow::Continue(()))
        })
    }

    fn batch_saves(&mut self) {
        self.shares_syncs = true;
    }

    /// The system calls of a save have no time limit, and none of them can be cut short.
    fn longest_call(&self) -> Duration {
        SLOW_DISK
    }

    /// Writes and syncs a small file, and checks that today's directories can be used.
    fn probe(&mut self) -> Result<(), Failure> {
        self.remove_left();
        self.try_to_write(StorageRoot::probe)
    }

    fn check(&mut self) -> Result<String, Failure> {
        self.try_to_write(StorageRoot::check)
    }
}

impl FileStorage {
    /// Tries within a limit whether the directory can be written to.
    fn try_to_write<T: Send + 'static>(
        &mut self,
        way: fn(&StorageRoot, bool) -> io::Result<T>,
    ) -> Result<T, Failure> {
        let (root, by_date) = (self.root.clone(), self.by_date);
        let what = format!("could not write to directory {}", root.path.display());
        self.timed_calls
            .run(&what, Deadline::NONE.begin(PROBE), move || {
                way(&root, by_date)
            })?
            .map_err(|e| {
                failure(
                    FileStep::Directory,
                    "write to directory",
                    &self.root.path,
                    &e,
                )
            })
    }

    /// The two names a vCon may have in a directory, the one that is written now first.
    fn names(&self, id: &VconId) -> [String; 2] {
        let (first, second) = if self.compress {
            (GZIPPED, PLAIN)
        } else {
            (PLAIN, GZIPPED)
        };
        [first, second].map(|form| format!("{id}.{form}"))
    }

    /// Puts the document in its place in one step: after a crash there is the old file, the new one, or
    /// none.
    fn write(&self, dir: &Dir, name: &str, vcon: &Outgoing) -> Result<WrittenDocument, WriteError> {
        let unwritten = |step, error, draft: &str| WriteError {
            step,
            error,
            draft: draft.to_owned(),
        };
        let mut draft = Draft::open(dir, &vcon.id, self.file_mode)
            .map_err(|e| unwritten(FileStep::Document, e, &draft::usual_name(&vcon.id)))?;
        let file = self
            .fill(draft.file(), vcon)
            .map_err(|e| unwritten(FileStep::Document, e, draft.name()))?;
        draft
            .publish(name)
            .map_err(|e| unwritten(FileStep::Name, e, draft.name()))?;
        self.sync(dir)
            .map_err(|e| unwritten(FileStep::Directory, e, draft.name()))?;
        Ok(WrittenDocument {
            file,
            draft: draft.name().to_owned(),
        })
    }

    /// Waits until the names in a directory are on the disk.
    fn sync(&self, dir: &Dir) -> io::Result<()> {
        if self.shares_syncs {
            return self.syncs.sync(dir.identity()?, || dir.sync());
        }
        dir.sync()
    }

    /// Removes what killed processes have left of the vCon beside what was written now.
    fn remove_dead(&self, dir: &Dir, id: &VconId, own: &WrittenDocument) -> io::Result<()> {
        // The usual name was taken, so there may be several.
        let thorough = own.draft != draft::usual_name(id);
        draft::remove_dead(dir, id, own.file.st_uid, changed(&own.file), thorough)
    }

    /// Writes the whole document to the disk.
    fn fill(&self, file: &mut File, vcon: &Outgoing) -> io::Result<FileStat> {
        if self.compress {
            let mut gzip = GzEncoder::new(&mut *file, Compression::default());
            gzip.write_all(vcon.json.as_bytes())?;
            gzip.finish()?;
        } else {
            file.write_all(vcon.json.as_bytes())?;
        }
        file.sync_all()?;
        Ok(fstat(file)?)
    }

    /// Removes copies of the vCon from before its day changed. A copy that cannot be removed stays,
    /// with a warning: the vCon itself is stored.
    fn remove_former(
        &mut self,
        top: &Dir,
        vcon: &Outgoing,
        day: NaiveDate,
        directory: &Path,
        own: (&Path, &FileStat),
    ) {
        let (root, now) = (&self.root.path.clone(), changed(own.1));
        let mut former = Vec::new();
        if self.listings.may_hold_files(root, now) {
            former.push(root.clone());
        }
        former.extend(vcon.formerly.map(|date| root.join(date.day_path())));
        let is_of_these_days = (Utc::now().date_naive() - day).num_days().abs() <= 1;
        if is_of_these_days && vcon.created_at.is_some() {
            former.extend(search::neighbours(root, day));
        } else {
            former.extend(search::near(root, day, &mut self.listings, now));
        }
        for likely in self.likely(vcon.id.made_on()) {
            if !former.contains(&likely) {
                former.push(likely);
            }
        }
        let names = self.names(&vcon.id);
        for former in former.iter().filter(|former| *former != directory) {
            // Most often tomorrow is not there.
            let found = self.root.name_below(former).and_then(|it| top.look(it));
            if former != root && found.is_err() {
                continue;
            }
            for name in &names {
                let copy = former.join(name);
                if let Err(e) = self.remove_older(top, &copy, name, own, &vcon.id) {
                    let failure = failure(FileStep::Name, "remove", &copy, &e);
                    log::warn!(
                        "vCon {}: its copy of a former day stays: {failure}",
                        vcon.id
                    );
                }
            }
            if let Err(e) = self.remove_dead_asides(top, former, &vcon.id, own.1) {
                let failure = failure(FileStep::Directory, "remove a hidden file in", former, &e);
                log::warn!("vCon {}: {failure}", vcon.id);
            }
        }
    }

    /// Removes a copy of the vCon if it is older than the file that was written now. If lanes save the
    /// vCon under several days at the same time, one copy stays: each lane moves the other's copy aside
    /// before it checks that its own still exists, and moves it back if not, or if that copy is younger.
    ///
    /// Two days may be one directory, by a link or a mount: then the copy is the document itself, and
    /// stays.
    fn remove_older(
        &mut self,
        top: &Dir,
        copy: &Path,
        name: &str,
        (place, own): (&Path, &FileStat),
        id: &VconId,
    ) -> io::Result<()> {
        let is_older = |found: &FileStat, own: &FileStat| {
            let age = |it: &FileStat| (it.st_mtime, it.st_mtime_nsec);
            // Two mounts of one share may differ in the number of the device. If two devices have a
            // file of the same number by chance, a copy too many stays.
            directory::kind(found) != SFlag::S_IFDIR
                && found.st_ino != own.st_ino
                && (age(found), copy) < (age(own), place)
        };
        let below = self.root.name_below(copy)?;
        // Most often there is none, and its directory need not be opened. One that this process may
        // not see is not its own.
        if !top.look(below).is_ok_and(|found| is_older(&found, own)) {
            return Ok(());
        }
        let parent = below.parent().unwrap_or(Path::new(""));
        let dir = top.at(parent)?;
        let aside = match draft::set_aside(&dir, name, id) {
            Err(e) if is_missing(&e) => return Ok(()),
            aside => aside?,
        };
        // Our own copy may be gone by now, or replaced. If another lane moves it aside after this check,
        // that lane's copy exists.
        let own = top.look(self.root.name_below(place)?);
        let found = dir.look(Path::new(&aside));
        let is_older = matches!((&found, &own), (Ok(found), Ok(own)) if is_older(found, own));
        let (done, what) = if is_older {
            (dir.remove(&aside), HiddenKind::Superseded)
        } else {
            let copy = HiddenKind::Copy(name.to_owned());
            (draft::put_back(&dir, &aside, name), copy)
        };
        if done.is_err() {
            self.note_left(&dir, parent, aside, what);
        }
        done
    }

    /// Removes copies that a killed process has set aside: our own copy exists.
    fn remove_dead_asides(
        &self,
        top: &Dir,
        former: &Path,
        id: &VconId,
        own: &FileStat,
    ) -> io::Result<()> {
        let below = self.root.name_below(former)?;
        let [.., first] = draft::first_names(id);
        if top.look(&below.join(first)).is_err() {
            return Ok(());
        }
        draft::remove_asides(&top.at(below)?, id, Some(changed(own)), true)
    }

    /// Remembers a hidden file if it still exists.
    fn note_left(&mut self, dir: &Dir, below: &Path, name: String, what: HiddenKind) {
        let is_gone = dir.look(Path::new(&name)).is_err_and(|e| is_missing(&e));
        let left = HiddenFile {
            below: below.to_owned(),
            name,
            what,
        };
        if !is_gone && self.left.len() < MOST_LEFT && !self.left.contains(&left) {
            self.left.push(left);
        }
    }

    /// Tries again to remove hidden files, or to rename them back. After a right is restored, that may
    /// take one more attempt.
    fn remove_left(&mut self) {
        let root = &self.root;
        self.left.retain(|left| left.remove(root).is_err());
    }

    /// The same, and fails unless nothing is left of the vCon: its lane may not get another vCon for
    /// long, and other lanes do not know about the file.
    fn remove_left_of(&mut self, id: &VconId) -> Result<(), Failure> {
        let root = &self.root;
        let start = format!(".{id}.");
        let mut result = Ok(());
        self.left.retain(|left| {
            let removed = left.remove(root);
            if let Err(e) = &removed
                && left.name.starts_with(&start)
            {
                let path = root.below(&left.below).join(&left.name);
                result = Err(failure(FileStep::Directory, "remove", &path, e));
            }
            removed.is_err()
        });
        result
    }
}

impl HiddenFile {
    fn remove(&self, root: &StorageRoot) -> io::Result<()> {
        let dir = match root.existing(&root.below(&self.below)) {
            Err(e) if is_missing(&e) => return Ok(()),
            dir => dir?,
        };
        match &self.what {
            HiddenKind::Draft => draft::remove_left(&dir, &self.name).map(|_| ()),
            HiddenKind::Superseded => dir.remove(&self.name),
            HiddenKind::Copy(name) => draft::put_back(&dir, &self.name, name),
        }
    }
}

impl StorageRoot {
    /// Opens it, after creating the missing part of its path.
    fn made(&self) -> io::Result<Dir> {
        match Dir::open(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.make(&self.path)?;
                Dir::open(&self.path)
            }
            opened => opened,
        }
    }

    /// Opens a directory at or below it.
    fn existing(&self, directory: &Path) -> io::Result<Dir> {
        let below = self.name_below(directory)?;
        Dir::open(&self.path)?.at(below)
    }

    fn below(&self, below: &Path) -> PathBuf {
        if below.as_os_str().is_empty() {
            // Joined, it would end with a slash.
            return self.path.clone();
        }
        self.path.join(below)
    }

    fn name_below<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        path.strip_prefix(&self.path)
            .map_err(|_| ErrorKind::InvalidInput.into())
    }

    /// Creates the missing part of a path. Syncs a new directory into its parent: otherwise the file in
    /// it could be lost with it.
    fn make(&self, directory: &Path) -> io::Result<()> {
        // `.` for the parent of a relative name.
        if directory.as_os_str().is_empty() || directory.is_dir() {
            return Ok(());
        }
        let parent = directory.parent().unwrap_or(Path::new(""));
        self.make(parent)?;
        match DirBuilder::new().mode(self.dir_mode).create(directory) {
            Ok(()) => fs::set_permissions(directory, Permissions::from_mode(self.dir_mode))?,
            // Another lane made it in the meantime.
            Err(e) if e.kind() == ErrorKind::AlreadyExists && directory.is_dir() => return Ok(()),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                // Reports a link that leads nowhere, or in circles.
                fs::metadata(directory)?;
                return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
            }
            Err(e) => return Err(e),
        }
        if parent.as_os_str().is_empty() {
            sync_directory(Path::new("."))
        } else {
            sync_directory(parent)
        }
    }

    /// Writes to the directory if it exists; otherwise tries whether it could be created, and does not
    /// create it: the caller may be another user than the service, and the service could not write to
    /// that user's directory.
    fn check(&self, by_date: bool) -> io::Result<String> {
        if self.path.is_dir() {
            self.write_probe(by_date)?;
            return Ok("answers".to_owned());
        }
        let mut above = self.path.ancestors().skip(1);
        let is_there =
            |path: &&Path| path.as_os_str().is_empty() || path.symlink_metadata().is_ok();
        let above = match (self.path.symlink_metadata(), above.find(is_there)) {
            // This reports that it is no directory, or a link that leads to none.
            (Ok(_), _) => return self.make(&self.path).map(|()| String::new()),
            (Err(_), Some(above)) if !above.as_os_str().is_empty() => above,
            (Err(_), _) => Path::new("."),
        };
        tempfile::Builder::new()
            .prefix(".probe.")
            .tempdir_in(above)?
            .close()?;
        Ok(format!(
            "is not there yet: the service makes it in {}",
            above.display()
        ))
    }

    fn probe(&self, by_date: bool) -> io::Result<()> {
        self.make(&self.path)?;
        self.write_probe(by_date)
    }

    /// Opens those of today's directories that exist, as a save would.
    fn try_today(&self) -> io::Result<()> {
        let day = search::day_directory(Path::new(""), Utc::now().date_naive());
        let mut dir = Dir::open(&self.path)?;
        for name in &day {
            dir = match dir.at(Path::new(name)) {
                Err(e) if e.kind() == ErrorKind::NotFound => break,
                below => below?,
            };
        }
        dir.check_right_to_write()
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", dir.path().display())))
    }

    /// The file has no name: a named one that could not be removed would stay.
    fn write_probe(&self, by_date: bool) -> io::Result<()> {
        let mut file = tempfile::tempfile_in(&self.path)?;
        file.write_all(&[b'p'; PROBE_SIZE])?;
        file.sync_all()?;
        if by_date { self.try_today() } else { Ok(()) }
    }
}

/// When a file was changed last, in seconds.
#[allow(clippy::unnecessary_cast)]
fn changed(file: &FileStat) -> i64 {
    file.st_ctime as i64
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        // Some network file systems cannot sync a directory.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
