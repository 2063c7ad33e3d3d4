//! Where a vCon may be: the directories of days, `YYYY/MM/DD` below a root, and the search through them.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::ops::{ControlFlow, RangeInclusive};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use chrono::{Datelike, NaiveDate, TimeDelta};
use flate2::read::GzDecoder;
use nix::sys::stat::SFlag;

use super::directory::{self, Dir, is_foreign, is_missing, is_unsafe};
use super::errors::{FileStep, failure};
use super::{FileStorage, GZIPPED, PLAIN, draft};
use crate::deadline::Limit;
use crate::failure::Failure;
use crate::vcon::{LARGEST_DOCUMENT, VconId};

const YEARS: RangeInclusive<u32> = 1..=9999;
const MONTHS: RangeInclusive<u32> = 1..=12;
const DAYS: RangeInclusive<u32> = 1..=31;

/// The most entries of a directory that are read, as the root may hold millions of files. In a longer
/// one, every possible name is tried instead.
const MOST_ENTRIES: usize = 50_000;

/// The most entries of a directory that are read for [`near`].
const FEW_ENTRIES: usize = 1_000;

/// How long a listing stands for a directory that shows no change: some file systems, as those over object
/// stores, do not keep the times of directories.
const LISTING_AGE: Duration = Duration::from_secs(1);

/// A directory that has not changed for more than so many seconds has another time after its next change.
const SETTLED: i64 = 2;

/// A lane keeps at most this many listings.
const MOST_LISTINGS: usize = 64;

/// At most this many directories are near a day.
const MOST_NEAR: usize = 16;

/// Returns the directories of years below the root, the latest first.
pub(super) fn years(root: &Path) -> io::Result<Vec<PathBuf>> {
    all(root, YEARS)
}

/// Returns the directories of months in that of a year, the latest first.
pub(super) fn months(year: &Path) -> io::Result<Vec<PathBuf>> {
    all(year, MONTHS)
}

/// Returns the directories of days in that of a month, the latest first.
pub(super) fn days(month: &Path) -> io::Result<Vec<PathBuf>> {
    all(month, DAYS)
}

fn all(directory: &Path, numbers: RangeInclusive<u32>) -> io::Result<Vec<PathBuf>> {
    let listed = listed(directory, &numbers, MOST_ENTRIES)?;
    let mut found = listed.unwrap_or_else(|| numbers.clone().collect());
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found
        .iter()
        .map(|it| named(directory, *it, &numbers))
        .collect())
}

/// Returns the directories of the days before and after, then existing ones of other days, the
/// nearest first. `now` is the time by the clock of the file system.
pub(super) fn near(root: &Path, day: NaiveDate, listings: &mut Listings, now: i64) -> Vec<PathBuf> {
    let mut found = neighbours(root, day);
    // A directory that is too long or cannot be read counts as one with the day's own number.
    let mut list = |directory: &Path, numbers: &RangeInclusive<u32>, own: u32| {
        let mut listed = listings
            .numbers(directory, numbers, now)
            .unwrap_or_else(|| vec![own]);
        listed.sort_by_key(|number| (number.abs_diff(own), *number));
        listed
            .into_iter()
            .map(|number| (number, named(directory, number, numbers)))
            .collect::<Vec<_>>()
    };
    let own_year = day.year().unsigned_abs();
    for (year, directory) in list(root, &YEARS, own_year) {
        // The nearest day of another year is its last or its first.
        let (month, day) = match year.cmp(&own_year) {
            std::cmp::Ordering::Less => (12, 31),
            std::cmp::Ordering::Equal => (day.month(), day.day()),
            std::cmp::Ordering::Greater => (1, 1),
        };
        for (number, directory) in list(&directory, &MONTHS, month) {
            let day = match number.cmp(&month) {
                std::cmp::Ordering::Less => 31,
                std::cmp::Ordering::Equal => day,
                std::cmp::Ordering::Greater => 1,
            };
            for (_, directory) in list(&directory, &DAYS, day) {
                if found.len() == MOST_NEAR {
                    return found;
                }
                if !found.contains(&directory) {
                    found.push(directory);
                }
            }
        }
    }
    found
}

/// Returns the directories of the days before and after, whether they exist or not.
pub(super) fn neighbours(root: &Path, day: NaiveDate) -> Vec<PathBuf> {
    [-1, 1]
        .into_iter()
        .filter_map(|days| day.checked_add_signed(TimeDelta::days(days)))
        .map(|day| day_directory(root, day))
        .collect()
}

/// Returns the directory of a day, whether it exists or not.
pub(super) fn day_directory(root: &Path, day: NaiveDate) -> PathBuf {
    root.join(day.format("%Y/%m/%d").to_string())
}

fn named(directory: &Path, number: u32, numbers: &RangeInclusive<u32>) -> PathBuf {
    let digits = numbers.end().to_string().len();
    directory.join(format!("{number:0digits$}"))
}

/// Returns the entries of a directory whose names are such numbers, in any order; `None` if it has
/// more than `most` entries.
fn listed(
    directory: &Path,
    numbers: &RangeInclusive<u32>,
    most: usize,
) -> io::Result<Option<Vec<u32>>> {
    listed_with(directory, numbers, most, |_| ())
}

/// The same, and calls `visit` with each name.
fn listed_with(
    directory: &Path,
    numbers: &RangeInclusive<u32>,
    most: usize,
    mut visit: impl FnMut(&OsStr),
) -> io::Result<Option<Vec<u32>>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Some(Vec::new()));
        }
        entries => entries?,
    };
    let mut found = Vec::new();
    for (count, entry) in entries.enumerate() {
        if count == most {
            return Ok(None);
        }
        let name = entry?.file_name();
        visit(&name);
        let number = name.to_str().and_then(|text| text.parse().ok());
        found.extend(number.filter(|number| {
            // Not `7`, nor `+7`.
            numbers.contains(number) && named(Path::new(""), *number, numbers).as_os_str() == name
        }));
    }
    Ok(Some(found))
}

/// The directories that a lane has listed a moment ago: a save looks for the same few as the one before.
#[derive(Default)]
pub(super) struct Listings {
    few: HashMap<PathBuf, Listing>,
}

/// What a directory held when it was listed.
struct Listing {
    at: Instant,
    directory: DirectoryState,
    /// `None` if it has too many entries, or cannot be read.
    numbers: Option<Vec<u32>>,
    may_hold_files: bool,
}

/// A directory in the state in which it was listed. It changes with each entry that is made or removed.
type DirectoryState = [i64; 6];

impl Listings {
    /// The numbers among the entries of a directory; `None` if it has too many entries, or cannot be read.
    fn numbers(
        &mut self,
        directory: &Path,
        numbers: &RangeInclusive<u32>,
        now: i64,
    ) -> Option<Vec<u32>> {
        let Some((state, is_settled)) = state(directory, now) else {
            return listed(directory, numbers, FEW_ENTRIES).unwrap_or_default();
        };
        if let Some(listing) = self.known(directory, state) {
            return listing.numbers.clone();
        }
        let listing = Listing::of(directory, numbers, state);
        let found = listing.numbers.clone();
        if is_settled {
            self.keep(directory, listing);
        }
        found
    }

    /// Whether the root may hold documents, or hidden files of theirs.
    pub fn may_hold_files(&mut self, root: &Path, now: i64) -> bool {
        let Some((state, is_settled)) = state(root, now) else {
            return true;
        };
        if let Some(listing) = self.known(root, state) {
            return listing.may_hold_files;
        }
        // A look for three names costs less than a list that cannot be kept.
        if !is_settled {
            return true;
        }
        let listing = Listing::of(root, &YEARS, state);
        let found = listing.may_hold_files;
        self.keep(root, listing);
        found
    }

    fn known(&self, directory: &Path, state: DirectoryState) -> Option<&Listing> {
        let listing = self.few.get(directory)?;
        let is_known = listing.directory == state && listing.at.elapsed() < LISTING_AGE;
        is_known.then_some(listing)
    }

    fn keep(&mut self, directory: &Path, listing: Listing) {
        if self.few.len() == MOST_LISTINGS {
            self.few.clear();
        }
        self.few.insert(directory.to_owned(), listing);
    }
}

impl Listing {
    fn of(directory: &Path, numbers: &RangeInclusive<u32>, state: DirectoryState) -> Self {
        let at = Instant::now();
        let mut may_hold_files = false;
        let found = listed_with(directory, numbers, FEW_ENTRIES, |name| {
            let name = name.as_encoded_bytes();
            let ends = [PLAIN, GZIPPED, draft::ENDING];
            may_hold_files |= ends.iter().any(|end| name.ends_with(end.as_bytes()));
        });
        let found = found.unwrap_or_default();
        Self {
            at,
            directory: state,
            may_hold_files: may_hold_files || found.is_none(),
            numbers: found,
        }
    }
}

/// The state of a directory, and whether a change from now on gives it another one: a file system may have a
/// clock of whole seconds. `None` if the directory cannot be seen.
fn state(directory: &Path, now: i64) -> Option<(DirectoryState, bool)> {
    let found = fs::metadata(directory).ok()?;
    let state = [
        found.dev().cast_signed(),
        found.ino().cast_signed(),
        found.mtime(),
        found.mtime_nsec(),
        found.ctime(),
        found.ctime_nsec(),
    ];
    Some((state, found.mtime().max(found.ctime()) + SETTLED < now))
}

/// A document that was found.
pub(super) struct FoundCopy {
    written: SystemTime,
    directory: PathBuf,
    name: String,
}

impl FileStorage {
    /// The directories that should hold a vCon of this day.
    pub(super) fn likely(&self, day: Option<NaiveDate>) -> Vec<PathBuf> {
        let days = day.filter(|_| self.by_date).map(|day| {
            let mut days = vec![day_directory(&self.root.path, day)];
            days.extend(neighbours(&self.root.path, day));
            days
        });
        days.unwrap_or_default()
    }

    /// Adds the files with one of the vCon's names in a directory.
    pub(super) fn find_in(
        &self,
        directory: &Path,
        id: &VconId,
        found: &mut Vec<FoundCopy>,
    ) -> Result<(), Failure> {
        for name in self.names(id) {
            let place = directory.join(&name);
            match fs::symlink_metadata(&place).and_then(|file| file.modified()) {
                Err(e) if self.is_passed_over(directory, &e) => {}
                Ok(written) => found.push(FoundCopy {
                    written,
                    directory: directory.to_owned(),
                    name,
                }),
                Err(e) if is_missing(&e) => {}
                Err(e) => return Err(failure(FileStep::Document, "read", &place, &e)),
            }
        }
        Ok(())
    }

    /// Whether a directory cannot be read because another user has created it in a directory that
    /// everybody may write to: this storage has nothing in it.
    pub(super) fn is_passed_over(&self, directory: &Path, error: &io::Error) -> bool {
        let is_foreign = error.kind() == ErrorKind::PermissionDenied
            && self.root.existing(directory).is_err_and(|e| is_foreign(&e));
        if is_foreign && !self.passed_over.swap(true, Ordering::Relaxed) {
            log::warn!(
                "{} cannot be read, and is another user's: nothing is looked for there",
                directory.display()
            );
        }
        is_foreign
    }

    /// Whether the vCon has a document in a directory.
    pub(super) fn is_in(&self, directory: &Path, id: &VconId) -> Result<bool, Failure> {
        let mut found = Vec::new();
        self.find_in(directory, id, &mut found)?;
        for FoundCopy { name, .. } in found {
            let look = |dir: Dir| dir.look(Path::new(&name));
            match self.root.existing(directory).and_then(look) {
                Ok(document) if directory::kind(&document) == SFlag::S_IFREG => return Ok(true),
                Ok(_) => {}
                Err(e) if is_missing(&e) => {}
                Err(e) => {
                    return Err(failure(
                        FileStep::Document,
                        "read",
                        &directory.join(name),
                        &e,
                    ));
                }
            }
        }
        Ok(false)
    }

    /// Reads the newest of the copies. A file that another user has put there does not count if there is
    /// a document as well.
    pub(super) fn newest(
        &self,
        id: &VconId,
        mut found: Vec<FoundCopy>,
    ) -> Result<Option<String>, Failure> {
        if found.is_empty() {
            return Ok(None);
        }
        // Among copies of the same age, the first comes first.
        found.sort_by_key(|copy| Reverse(copy.written));
        let mut refused = None;
        for FoundCopy {
            directory, name, ..
        } in found
        {
            let place = directory.join(&name);
            let opened = self.root.existing(&directory);
            match opened.and_then(|dir| read(&dir, &name, self.max_size)) {
                Ok(text) => {
                    if let Some(failure) = refused {
                        log::warn!("vCon {id}: an older copy was read: {failure}");
                    }
                    return Ok(Some(text));
                }
                Err(e) if is_missing(&e) => {}
                Err(e) => {
                    let failure = failure(FileStep::Document, "read", &place, &e);
                    if !is_unsafe(&e) {
                        return Err(failure);
                    }
                    refused.get_or_insert(failure);
                }
            }
        }
        Err(refused.unwrap_or_else(|| {
            Failure::transient(format!(
                "could not read vCon {id} in {}: it was moved or removed at the same time",
                self.root.path.display()
            ))
        }))
    }

    /// Visits the directories that may hold a vCon until `visit` stops: the days, newest first, as
    /// most requests are for young vCons, and the root, which holds vCons without days. The
    /// configured layout comes first. Ten years have fewer directories than a busy hour has files.
    ///
    /// # Errors
    /// The first failure. It does not keep the other directories from being visited: another user may
    /// have made one that cannot be read.
    pub(super) fn each_directory(
        &self,
        limit: Limit,
        visit: &mut dyn FnMut(&Path) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        let root = &self.root.path;
        let first = RefCell::new(None);
        let note = |failure| {
            first.borrow_mut().get_or_insert(failure);
        };
        let mut is_over = |directory: &Path| match visit(directory) {
            Ok(flow) => flow.is_break(),
            Err(failure) => {
                note(failure);
                false
            }
        };
        let list = |listed: io::Result<Vec<PathBuf>>, directory: &Path| {
            listed.unwrap_or_else(|e| {
                if self.is_passed_over(directory, &e) {
                    return Vec::new();
                }
                note(failure(FileStep::Directory, "list", directory, &e));
                Vec::new()
            })
        };
        let mut all = || {
            if !self.by_date && is_over(root) {
                return;
            }
            for year in list(years(root), root) {
                for month in list(months(&year), &year) {
                    for day in list(days(&month), &month) {
                        if limit.is_over() {
                            return note(Failure::transient(format!(
                                "could not search the days in {}: no answer within {limit}",
                                root.display()
                            )));
                        }
                        if is_over(&day) {
                            return;
                        }
                    }
                }
            }
            if self.by_date {
                is_over(root);
            }
        };
        all();
        first.into_inner().map_or(Ok(()), Err)
    }
}

/// The text of a file of at most `most` bytes; 0 stands for the most that Redis takes. The limit counts
/// after decompression, as a small file may hold very much text.
pub(super) fn read(dir: &Dir, name: &str, most: u64) -> io::Result<String> {
    let file = dir.document(name)?;
    let (most, limit) = match most {
        0 => (LARGEST_DOCUMENT, "Redis takes"),
        most => (most.min(LARGEST_DOCUMENT), "max_file_size allows"),
    };
    let mut text = String::new();
    if name.ends_with(GZIPPED) {
        // A file that ends early is damaged for good.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tree(days: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for day in days {
            fs::create_dir_all(root.path().join(day)).unwrap();
        }
        root
    }

    fn shown(root: &Path, found: &[PathBuf]) -> Vec<String> {
        let below = |path: &PathBuf| {
            path.strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        found.iter().map(below).collect()
    }

    fn date(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    /// With a lane's first look at them.
    fn listed_near(root: &Path, day: NaiveDate) -> Vec<PathBuf> {
        near(root, day, &mut Listings::default(), draft::now())
    }

    #[test]
    fn only_numbers_of_that_length_and_range_are_directories_of_days() {
        let root = tree(&["2025", "0987", "987", "02025", "+123", "0000", "x", "2024"]);
        fs::write(root.path().join("9999"), "a file").unwrap();
        let years = years(root.path()).unwrap();
        assert_eq!(shown(root.path(), &years), ["9999", "2025", "2024", "0987"]);
        assert_eq!(months(&years[0]).unwrap(), [""; 0].map(PathBuf::from));
        assert_eq!(months(&root.path().join("none")).unwrap().len(), 0);
        // What cannot be listed is no empty directory.
        assert!(months(&root.path().join("x".repeat(256))).is_err());
        for name in ["00", "01", "12", "13", "1", "011"] {
            fs::create_dir_all(root.path().join("2025").join(name)).unwrap();
        }
        let months = months(&years[1]).unwrap();
        assert_eq!(shown(&years[1], &months), ["12", "01"]);
        for name in ["00", "01", "31", "32"] {
            fs::create_dir_all(root.path().join("2025/01").join(name)).unwrap();
        }
        let days = days(&months[1]).unwrap();
        assert_eq!(shown(&months[1], &days), ["31", "01"]);
    }

    #[test]
    fn of_a_directory_with_too_many_entries_each_number_is_tried() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..=3 {
            fs::write(root.path().join(format!("entry{number}")), "").unwrap();
        }
        assert_eq!(listed(root.path(), &DAYS, 3).unwrap(), None);
        assert_eq!(listed(root.path(), &DAYS, 4).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn days_that_are_near_come_in_the_order_of_their_distance() {
        let root = tree(&[
            "2024/12/30",
            "2024/11/05",
            "2025/01/03",
            "2025/01/01",
            "2025/01/07",
            "2025/02/28",
            "2025/02/01",
            "2026/06/06",
            "2023/03/03",
        ]);
        let found = listed_near(root.path(), date("2025-01-02"));
        assert_eq!(
            shown(root.path(), &found),
            [
                "2025/01/01",
                "2025/01/03",
                "2025/01/07",
                "2025/02/01",
                "2025/02/28",
                "2024/12/30",
                "2024/11/05",
                "2026/06/06",
                "2023/03/03",
            ]
        );
        let found = neighbours(root.path(), date("2024-12-31"));
        assert_eq!(shown(root.path(), &found), ["2024/12/30", "2025/01/01"]);
    }

    #[test]
    fn a_listing_is_kept_until_its_directory_changes_and_not_if_it_changed_a_moment_ago() {
        let root = tree(&["2025/03/01"]);
        let state = |root: &Path| super::state(root, 0).unwrap().0;
        let mut listings = Listings::default();
        // Just made: a second change may have the same time.
        let now = fs::metadata(root.path()).unwrap().ctime();
        assert!(listings.may_hold_files(root.path(), now));
        near(root.path(), date("2025-03-03"), &mut listings, now);
        assert!(listings.few.is_empty());

        let later = now + 1000;
        assert!(!listings.may_hold_files(root.path(), later));
        let found = near(root.path(), date("2025-03-03"), &mut listings, later);
        assert_eq!(found.len(), 3);
        let (kept, march) = (listings.few.len(), root.path().join("2025/03"));
        assert_eq!(kept, 3);
        // Shows who has listed it again.
        listings.few.get_mut(&march).unwrap().numbers = Some(vec![7, 8]);
        let found = near(root.path(), date("2025-03-03"), &mut listings, later);
        assert_eq!(found.len(), 4);
        let known = state(&march);
        let mut day = 10..=31;
        while state(&march) == known {
            fs::create_dir(march.join(day.next().unwrap().to_string())).unwrap();
            std::thread::yield_now();
        }
        let found = near(root.path(), date("2025-03-03"), &mut listings, later);
        assert!(found.contains(&march.join("10")) && !found.contains(&march.join("08")));

        for name in ["x.json", "x.json.gz", ".x.50.tmp"] {
            let (path, known) = (root.path().join(name), state(root.path()));
            while state(root.path()) == known {
                fs::write(&path, "").unwrap();
                let _ = fs::remove_file(root.path().join("other"));
                fs::write(root.path().join("other"), "").unwrap();
            }
            assert!(listings.may_hold_files(root.path(), later), "{name}");
            fs::remove_file(path).unwrap();
        }
        // One that shows no change is listed again as well, after a while.
        let listing = listings.few.get_mut(&march).unwrap();
        listing.at = listing.at.checked_sub(LISTING_AGE).unwrap();
        listing.numbers = Some(Vec::new());
        let found = near(root.path(), date("2025-03-03"), &mut listings, later);
        assert!(found.contains(&march.join("10")));
    }

    #[test]
    fn not_all_days_are_near() {
        let days: Vec<String> = (1..=28).map(|day| format!("2025/02/{day:02}")).collect();
        let days: Vec<&str> = days.iter().map(String::as_str).collect();
        let root = tree(&days);
        let found = listed_near(root.path(), date("2025-02-14"));
        assert_eq!(found.len(), MOST_NEAR);
        let shown = shown(root.path(), &found);
        assert_eq!(shown[..2], ["2025/02/13", "2025/02/15"]);
        assert!(!shown.contains(&"2025/02/28".to_owned()));
        // The root may hold more files than are worth a look.
        for number in 0..=FEW_ENTRIES {
            fs::write(root.path().join(format!("file{number}")), "").unwrap();
        }
        fs::create_dir_all(root.path().join("2024/02/01")).unwrap();
        fs::remove_dir_all(root.path().join("2025/02/01")).unwrap();
        assert_eq!(listed_near(root.path(), date("2025-02-14")), found);
        assert_eq!(listed_near(root.path(), date("2024-03-14")).len(), 3);
    }
}
