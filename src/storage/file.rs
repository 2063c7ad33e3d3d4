//! `storage.file`: one file for each vCon, under a directory.
//!
//! Layout: `<path>/YYYY/MM/DD/<uuid>.json` by the vCon's `created_at`, or `<path>/<uuid>.json`;
//! `.json.gz` when compressed. A document is written under the hidden name `.<uuid>.tmp` beside
//! its place, synced and renamed, so that a reader sees a whole file or none.
//!
//! | option | default | |
//! |---|---|---|
//! | `path` | `/data/vcons` | made when it is missing |
//! | `organize_by_date` | `true` | a directory for each day |
//! | `compression` | `false` | gzip |
//! | `max_file_size` | `10485760` | bytes of the JSON before compression; `0`: no limit |
//! | `file_permissions` | `0o644` | exactly these, whatever the umask |
//! | `dir_permissions` | `0o755` | of directories made here |
//!
//! Which faults are transient and which permanent stands in one table, in the module `fault`: what
//! ails the place is waited out (a full or read-only disk, a missing right); a vCon over the limit
//! is refused.

mod draft;
mod fault;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use draft::Draft;
use fault::{Step, fault};

use super::Storage;
use super::bounded::Bounded;
use crate::config::Options;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::vcon::{Outgoing, VconId};

const PLAIN: &str = "json";
const GZIPPED: &str = "json.gz";

/// How long a probe may take; a network file system that is away answers nothing at all.
const PROBE: Duration = Duration::from_secs(5);

/// What a save is given on a disk that hangs and comes back, before its process is killed for it.
const SLOW_DISK: Duration = Duration::from_secs(30);

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
        let directory = if self.by_date {
            self.root.path.join(vcon.created_or_now().day_path())
        } else {
            self.root.path.clone()
        };
        self.root
            .make(&directory)
            .map_err(|e| fault(Step::Directory, "make directory", &directory, &e))?;

        let [place, other] = self.names(&directory, &vcon.id);
        self.write(&directory, &place, vcon)
            .map_err(|(step, e)| fault(step, "write", &place, &e))?;
        remove(&other).map_err(|e| fault(Step::Name, "remove", &other, &e))?;
        Ok(())
    }

    fn get(&mut self, id: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
        let mut found = None;
        self.each_directory(&mut |directory| {
            for place in self.names(directory, id) {
                match read(&place) {
                    Ok(text) => {
                        found = Some(text);
                        return Ok(ControlFlow::Break(()));
                    }
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => return Err(fault(Step::Document, "read", &place, &e)),
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        self.each_directory(&mut |directory| {
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

    /// Writes, syncs and removes a small hidden file.
    fn probe(&mut self) -> Result<(), Failure> {
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

    /// Visits the directories that may hold a vCon until told to stop: the days, newest first,
    /// as what is asked for is mostly young. The day itself is unknown to whoever has only the
    /// id, and the directories of ten years are fewer than the files of a busy hour.
    fn each_directory(
        &self,
        visit: &mut dyn FnMut(&Path) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        if !self.by_date {
            return visit(&self.root.path).map(|_| ());
        }
        for year in numbered(&self.root.path, 4)? {
            for month in numbered(&year, 2)? {
                for day in numbered(&month, 2)? {
                    if visit(&day)?.is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
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

    fn write_probe(&self) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".probe.")
            .tempfile_in(&self.path)?;
        file.write_all(&[b'p'; PROBE_SIZE])?;
        file.as_file().sync_all()?;
        file.close()
    }
}

/// The entries of a directory whose names are so many digits, the highest first.
fn numbered(directory: &Path, digits: usize) -> Result<Vec<PathBuf>, Failure> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            if let Some(text) = name.to_str()
                && text.len() == digits
                && text.bytes().all(|b| b.is_ascii_digit())
            {
                names.push(directory.join(text));
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    };
    match list() {
        Ok(names) => Ok(names),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(e) => Err(fault(Step::Directory, "list", directory, &e)),
    }
}

fn read(place: &Path) -> io::Result<String> {
    let mut file = File::open(place)?;
    let mut text = String::new();
    if place.extension().is_some_and(|e| e == "gz") {
        // A file that ends early is spoilt, and stays so.
        GzDecoder::new(file)
            .read_to_string(&mut text)
            .map_err(|e| match e.kind() {
                ErrorKind::UnexpectedEof => io::Error::new(ErrorKind::InvalidData, e),
                _ => e,
            })?;
    } else {
        file.read_to_string(&mut text)?;
    }
    Ok(text)
}

fn remove(place: &Path) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(e),
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
