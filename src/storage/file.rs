//! `storage.file`: one file for each vCon, under a directory.
//!
//! Layout: `<path>/YYYY/MM/DD/<uuid>.json` by the vCon's `created_at`, or `<path>/<uuid>.json`;
//! `.json.gz` when compressed. A document is written under the hidden name `.<uuid>.tmp` beside
//! its place, synced and renamed, so that a reader sees a whole file or none.
//!
//! A read finds a vCon anywhere below `path`: under any day, and in `path` itself. Of several copies,
//! the one that was written last is read, as a save may leave one of a day far away.
//!
//! When the day of a vCon changes, a save removes the copy under the former day, after the new one
//! is on the disk. No pointer names the former day, and a search of every day would cost more than
//! the save. So a save looks in `path` itself, under the day that the document had before a link
//! changed it, and under the days before and after (another time zone). A vCon of today or
//! yesterday is most likely a first version; for any other one, and for one without a readable
//! date, a save also looks under the 16 nearest days that have a directory.
//!
//! | option | default | |
//! |---|---|---|
//! | `path` | `/data/vcons` | made when it is missing |
//! | `organize_by_date` | `true` | a directory for each day |
//! | `compression` | `false` | gzip |
//! | `max_file_size` | `10485760` | bytes of the JSON before compression, for saves and reads; `0`: what Redis takes |
//! | `file_permissions` | `0o644` | exactly these, whatever the umask |
//! | `dir_permissions` | `0o755` | of directories made here |
//!
//! What a fault means for the vCon stands in one table, in the module `fault`: what ails the place is
//! waited out (a full or read-only disk, a missing right); a vCon over the limit is the vCon's own fault.

mod days;
mod draft;
mod fault;

use std::cmp::Reverse;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::{NaiveDate, Utc};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use draft::Draft;
use fault::{Step, fault};

use super::Storage;
use super::bounded::Bounded;
use crate::config::Options;
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
use crate::redis_server::LONGEST;
use crate::vcon::{Outgoing, VconId};

const PLAIN: &str = "json";
const GZIPPED: &str = "json.gz";

/// How long a probe may take; a network file system that is away answers nothing at all.
const PROBE: Duration = Duration::from_secs(5);

/// What a save is given on a disk that hangs and comes back, before its process is killed for it.
/// Also the time limit of a search for a vCon.
const SLOW_DISK: Duration = Duration::from_secs(30);

/// A lane remembers at most this many drafts that it could not remove.
const MOST_LEFT: usize = 100;

/// The bytes that a probe writes: about a vCon's, as a disk may have room for nothing but a name.
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
    Box::new(Files {
        root: Root {
            path: PathBuf::from(path),
            dir_mode: options.mode_or("dir_permissions", 0o755),
        },
        by_date: options.bool_or("organize_by_date", true),
        compress: options.bool_or("compression", false),
        max_size: options
            .integer_or("max_file_size", 10_485_760, 0..=i64::MAX)
            .unsigned_abs(),
        file_mode: options.mode_or("file_permissions", 0o644),
        bounded: Bounded::new(),
        left: Vec::new(),
    })
}

struct Files {
    root: Root,
    by_date: bool,
    compress: bool,
    /// Bytes of JSON; 0 for no limit.
    max_size: u64,
    file_mode: u32,
    /// The probes.
    bounded: Bounded,
    /// Drafts of failed saves that this lane could not remove yet.
    left: Vec<PathBuf>,
}

/// The directory of it all, and how directories are made in it.
#[derive(Clone)]
struct Root {
    path: PathBuf,
    dir_mode: u32,
}

impl Storage for Files {
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
        let directory = match &day {
            Some(day) => self.root.path.join(day.day_path()),
            None => self.root.path.clone(),
        };
        self.root
            .make(&directory)
            .map_err(|e| fault(Step::Directory, "make directory", &directory, &e))?;

        let [place, other] = self.names(&directory, &vcon.id);
        if let Err((step, e)) = self.write(&directory, &place, vcon) {
            self.note_left(draft::path(&directory, &vcon.id));
            return Err(fault(step, "write", &place, &e));
        }
        remove(&other).map_err(|e| fault(Step::Name, "remove", &other, &e))?;
        if let Some(day) = day {
            self.remove_former(vcon, day.local.date(), &directory, &place);
        }
        Ok(())
    }

    fn get(&mut self, id: &VconId, deadline: Deadline) -> Result<Option<String>, Failure> {
        let limit = deadline.begin(SLOW_DISK);
        let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
        let looked = self.each_directory(limit, &mut |directory| {
            for place in self.names(directory, id) {
                match fs::metadata(&place).and_then(|file| file.modified()) {
                    Ok(age) => found.push((age, place)),
                    Err(e) if is_missing(&e) => {}
                    Err(e) => return Err(fault(Step::Document, "read", &place, &e)),
                }
            }
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
        // Of copies of one age, the first that was found.
        found.sort_by_key(|(age, _)| Reverse(*age));
        for (_, place) in found {
            match read(&place, self.max_size) {
                Ok(text) => return Ok(Some(text)),
                Err(e) if is_missing(&e) => {}
                Err(e) => return Err(fault(Step::Document, "read", &place, &e)),
            }
        }
        Err(Failure::transient(format!(
            "could not read vCon {id} in {}: it was moved or removed at the same time",
            self.root.path.display()
        )))
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        let limit = Deadline::NONE.begin(SLOW_DISK);
        self.each_directory(limit, &mut |directory| {
            for place in self.names(directory, id) {
                remove(&place).map_err(|e| fault(Step::Name, "remove", &place, &e))?;
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// The system has no limit for the calls of a save; none of them can be cut short.
    fn longest_call(&self) -> Duration {
        SLOW_DISK
    }

    /// Writes and syncs a small file.
    fn probe(&mut self) -> Result<(), Failure> {
        self.remove_left();
        let root = self.root.clone();
        let what = format!("could not write to directory {}", root.path.display());
        self.bounded
            .run(&what, Deadline::NONE.begin(PROBE), move || root.probe())?
            .map_err(|e| fault(Step::Directory, "write to directory", &self.root.path, &e))
    }

    fn check(&mut self) -> Result<String, Failure> {
        let root = self.root.clone();
        let what = format!("could not write to directory {}", root.path.display());
        self.bounded
            .run(&what, Deadline::NONE.begin(PROBE), move || root.check())?
            .map_err(|e| fault(Step::Directory, "write to directory", &self.root.path, &e))
    }
}

impl Files {
    /// The two names a vCon may have in a directory, the one that is written now first.
    fn names(&self, directory: &Path, id: &VconId) -> [PathBuf; 2] {
        let (first, second) = if self.compress {
            (GZIPPED, PLAIN)
        } else {
            (PLAIN, GZIPPED)
        };
        [first, second].map(|form| directory.join(format!("{id}.{form}")))
    }

    /// Puts the document in its place at once: after a crash there is the old file, the new
    /// one, or none.
    fn write(
        &self,
        directory: &Path,
        place: &Path,
        vcon: &Outgoing,
    ) -> Result<(), (Step, io::Error)> {
        let draft = self
            .draft(directory, vcon)
            .map_err(|e| (Step::Document, e))?;
        draft.publish(place).map_err(|e| (Step::Name, e))?;
        sync_directory(directory).map_err(|e| (Step::Directory, e))
    }

    /// The whole document under its hidden name, on the disk.
    fn draft(&self, directory: &Path, vcon: &Outgoing) -> io::Result<Draft> {
        let mut draft = Draft::open(directory, &vcon.id)?;
        if self.compress {
            let mut gzip = GzEncoder::new(draft.file(), Compression::default());
            gzip.write_all(vcon.json.as_bytes())?;
            gzip.finish()?;
        } else {
            draft.file().write_all(vcon.json.as_bytes())?;
        }
        draft
            .file()
            .set_permissions(Permissions::from_mode(self.file_mode))?;
        draft.file().sync_all()?;
        Ok(draft)
    }

    /// Visits the directories that may hold a vCon until `visit` stops: the days, newest first, as
    /// most requests are for young vCons, and the root, which holds vCons without days. The
    /// configured layout comes first. The caller has only the id and does not know the day; ten
    /// years have fewer directories than a busy hour has files.
    fn each_directory(
        &self,
        limit: Limit,
        visit: &mut dyn FnMut(&Path) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        let root = &self.root.path;
        if !self.by_date && visit(root)?.is_break() {
            return Ok(());
        }
        let list = |listed: io::Result<Vec<PathBuf>>, directory: &Path| {
            listed.map_err(|e| fault(Step::Directory, "list", directory, &e))
        };
        for year in list(days::years(root), root)? {
            for month in list(days::months(&year), &year)? {
                for day in list(days::days(&month), &month)? {
                    if limit.is_over() {
                        return Err(Failure::transient(format!(
                            "could not search the days in {}: no answer within {limit}",
                            root.display()
                        )));
                    }
                    if visit(&day)?.is_break() {
                        return Ok(());
                    }
                }
            }
        }
        if self.by_date {
            return visit(root).map(|_| ());
        }
        Ok(())
    }

    /// Removes copies of the vCon from before its day changed. A copy that cannot be removed stays,
    /// with a warning: the vCon itself is stored.
    fn remove_former(&self, vcon: &Outgoing, day: NaiveDate, directory: &Path, place: &Path) {
        let root = &self.root.path;
        let mut former = vec![root.clone()];
        former.extend(vcon.formerly.map(|date| root.join(date.day_path())));
        let is_of_these_days = (Utc::now().date_naive() - day).num_days().abs() <= 1;
        if is_of_these_days && vcon.created_at.is_some() {
            former.extend(days::neighbours(root, day));
        } else {
            former.extend(days::near(root, day));
        }
        for former in former.iter().filter(|former| *former != directory) {
            for copy in self.names(former, &vcon.id) {
                if let Err(e) = remove_older(&copy, former, place, &vcon.id) {
                    let failure = fault(Step::Name, "remove", &copy, &e);
                    log::warn!(
                        "vCon {}: its copy of a former day stays: {failure}",
                        vcon.id
                    );
                }
            }
        }
    }

    /// Remembers the draft of a failed save if it still exists.
    fn note_left(&mut self, draft: PathBuf) {
        let is_gone = fs::symlink_metadata(&draft).is_err_and(|e| is_missing(&e));
        if !is_gone && self.left.len() < MOST_LEFT && !self.left.contains(&draft) {
            self.left.push(draft);
        }
    }

    /// Tries again to remove drafts of failed saves. (The next save of the same vCon writes over its
    /// draft.)
    fn remove_left(&mut self) {
        self.left.retain(|draft| draft::remove_left(draft).is_err());
    }
}

impl Root {
    /// Makes what is missing of a path. A new directory is synced into its parent, or the file
    /// in it could be lost with it.
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
                // A link that leads nowhere, or round in circles, says so here.
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

    /// Writes to the directory if it is there; else tries whether it could be made. It is not: who asks may
    /// be another user than the service, which could not write to a directory of that user's.
    fn check(&self) -> io::Result<String> {
        if self.path.is_dir() {
            return self.write_probe().map(|()| "answers".to_owned());
        }
        let mut above = self.path.ancestors().skip(1);
        let is_there =
            |path: &&Path| path.as_os_str().is_empty() || path.symlink_metadata().is_ok();
        let above = match (self.path.symlink_metadata(), above.find(is_there)) {
            // It is no directory, or a link that leads to none: that says which.
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

    fn probe(&self) -> io::Result<()> {
        self.make(&self.path)?;
        self.write_probe()
    }

    /// The file has no name: one that could not be removed again would stay.
    fn write_probe(&self) -> io::Result<()> {
        let mut file = tempfile::tempfile_in(&self.path)?;
        file.write_all(&[b'p'; PROBE_SIZE])?;
        file.sync_all()
    }
}

/// Removes a copy of the vCon if it is older than the file in `place`. The lock keeps others from
/// writing the copy meanwhile. If two lanes save the vCon under two days at the same time, the
/// younger copy stays, whoever looks.
///
/// Two days may be one directory, by a link or a mount: then the copy is the document itself, and stays.
fn remove_older(copy: &Path, directory: &Path, place: &Path, id: &VconId) -> io::Result<()> {
    match fs::symlink_metadata(copy) {
        Ok(found) if !found.is_dir() => {}
        // Most often there is none. One that this process may not see is not its own.
        _ => return Ok(()),
    }
    let _lock = Draft::open(directory, id)?;
    let (found, own) = match (fs::symlink_metadata(copy), fs::symlink_metadata(place)) {
        (Ok(found), Ok(own)) => (found, own),
        (Err(e), _) | (_, Err(e)) if is_missing(&e) => return Ok(()),
        (Err(e), _) | (_, Err(e)) => return Err(e),
    };
    // Two mounts of one share may differ in the number of the device. If two devices have a file of the
    // same number by chance, a copy too many stays.
    if found.ino() == own.ino() {
        return Ok(());
    }
    if (found.modified()?, copy) < (own.modified()?, place) {
        remove(copy)?;
    }
    Ok(())
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// The text of a file, of at most `most` bytes, or for 0 of as many as Redis takes: a small file may hold very
/// much text. What is longer is not a document of this storage, and stays so.
fn read(place: &Path, most: u64) -> io::Result<String> {
    let file = File::open(place)?;
    let (most, limit) = match most {
        0 => (LONGEST, "Redis takes"),
        most => (most.min(LONGEST), "max_file_size allows"),
    };
    let mut text = String::new();
    if place.extension().is_some_and(|e| e == "gz") {
        // A file that ends early is spoilt, and stays so.
        GzDecoder::new(file)
            .take(most + 1)
            .read_to_string(&mut text)
            .map_err(|e| match e.kind() {
                ErrorKind::UnexpectedEof => io::Error::new(ErrorKind::InvalidData, e),
                _ => e,
            })?;
    } else {
        file.take(most + 1).read_to_string(&mut text)?;
    }
    if text.len() as u64 > most {
        let error = format!("it has more bytes than {limit} ({most})");
        return Err(io::Error::new(ErrorKind::InvalidData, error));
    }
    Ok(text)
}

fn remove(place: &Path) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(e) if !is_missing(&e) => Err(e),
        _ => Ok(()),
    }
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
