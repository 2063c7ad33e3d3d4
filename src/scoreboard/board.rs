//! The supervisor's side: makes the file, locks it, and writes the header and its part of each slot.

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::layout::{self, HEADER, METER, NAME, OUTAGES, REASON, Shape, WORD, child, header};
use super::snapshot::{SlotView, Words};
use super::{ChildView, DaemonPhase, ReloadState, RestartCause, SeriesKind, figures};
use crate::{procfs, runtime_dir, sys};

/// Why a scoreboard cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// The system refused something.
    #[error("could not {what} the scoreboard {}: {cause}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// A daemon of this name runs here already.
    #[error(
        "a conserver with CONSERVER_INSTANCE={instance} is running already (PID {pid}); give one of the two another name"
    )]
    InUse {
        /// The name both have.
        instance: String,
        /// The one that runs.
        pid: i32,
    },
    /// Not a scoreboard, or one of another version, or cut short.
    #[error("{} is no scoreboard of this version: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The daemon it belongs to has ended.
    #[error("no conserver is running: the scoreboard {} was left behind by PID {pid}", path.display())]
    Stale {
        /// The file.
        path: PathBuf,
        /// The process that wrote it.
        pid: i32,
    },
}

impl BoardError {
    pub(super) fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::System { what, path, cause }
    }

    pub(super) fn invalid(path: &Path, what: &'static str) -> Self {
        let path = path.to_owned();
        Self::Invalid { path, what }
    }
}

/// The scoreboard of a running supervisor; its end removes the file.
pub struct Board {
    file: File,
    id: BoardId,
    shape: Shape,
    prepared: BTreeSet<usize>,
    /// The names of the series, as they are written.
    series: Vec<[u64; NAME]>,
    /// If the file was cut short: how many bytes were left, until it has been repaired.
    cut: Option<u64>,
    /// The header as it was written last.
    header: [u64; HEADER],
    owner: u32,
}

/// What a child needs to find its scoreboard, and to recognise it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardId {
    /// Where it is.
    pub path: PathBuf,
    /// A random number, drawn at each start of a supervisor.
    pub nonce: u64,
}

impl Board {
    /// Makes the scoreboard of the daemon `instance` in `folder`. Replaces one that was left behind.
    ///
    /// # Errors
    /// If a daemon of this name runs, or the file there belongs to somebody else.
    pub fn create(
        folder: &Path,
        instance: &str,
        shape: Shape,
        method: u64,
    ) -> Result<Self, BoardError> {
        let path = folder.join(format!("{instance}.scoreboard"));
        let file = open_and_lock(&path, instance)?;
        let system = |what| BoardError::system(what, &path);
        // The service's group may read it; systemd makes the folder for that group.
        file.set_permissions(Permissions::from_mode(0o640))
            .map_err(system("protect"))?;
        // Emptied first, so that nothing of a former daemon stays.
        let length = (shape.total_words() * WORD) as u64;
        file.set_len(0)
            .and_then(|()| file.set_len(length))
            .map_err(system("make room for"))?;
        let id = BoardId {
            path: path.clone(),
            nonce: fastrand::u64(1..),
        };
        let mut this = Self {
            file,
            id,
            shape,
            prepared: BTreeSet::new(),
            series: Vec::new(),
            cut: None,
            header: [0; HEADER],
            owner: std::process::id(),
        };
        this.write_outages()
            .and_then(|()| this.write_header(instance, method))
            .map_err(system("write"))?;
        Ok(this)
    }

    fn write_header(&mut self, instance: &str, method: u64) -> io::Result<()> {
        let mut words = [0; HEADER];
        words[header::VERSION] = layout::VERSION;
        words[header::NONCE] = self.id.nonce;
        words[header::LANES] = self.shape.lanes as u64;
        words[header::ROOM] = self.shape.series as u64;
        words[header::HELD] = self.shape.held as u64;
        words[header::REASONS] = self.shape.reasons as u64;
        words[header::PID] = u64::from(self.owner);
        words[header::STARTED] = sys::monotonic_ms();
        words[header::PHASE] = DaemonPhase::Starting as u64;
        words[header::START_METHOD] = method;
        words[header::HEARTBEAT] = sys::monotonic_ms();
        let name = header::INSTANCE..header::INSTANCE + layout::INSTANCE;
        write_text(&mut words[name], instance);
        self.write(0, &words)?;
        // Last: without this word, the file is no scoreboard.
        words[header::MAGIC] = layout::MAGIC;
        self.header = words;
        self.write(header::MAGIC, &[layout::MAGIC])
    }

    /// What children are given to find it.
    pub fn id(&self) -> &BoardId {
        &self.id
    }

    /// Where the configuration in force is kept for workers that are not forked from this process.
    pub fn config_path(&self) -> PathBuf {
        config_path(&self.id.path)
    }

    /// Shows what the daemon does.
    pub fn set_phase(&mut self, phase: DaemonPhase) {
        self.show(header::PHASE, phase as u64);
    }

    /// Shows how many workers are wanted.
    pub fn set_wanted(&mut self, workers: u32) {
        self.show(header::WANTED, u64::from(workers));
    }

    /// Makes the workers read the configuration in force, which has this number.
    pub fn set_config(&mut self, generation: u64) {
        self.show(header::CONFIG, generation);
    }

    /// Shows after how long on one vCon a lane is stuck.
    pub fn set_stuck_after(&mut self, time: Option<Duration>) {
        let time = time.map_or(0, |time| time.as_millis().try_into().unwrap_or(u64::MAX));
        self.show(header::STUCK_AFTER, time);
    }

    /// Shows which Redis this daemon works with. The text has no password.
    pub fn set_redis(&mut self, shown: &str) {
        write_text(&mut self.header[header::REDIS..][..layout::REDIS], shown);
        if let Err(error) = self.write(header::REDIS, &self.header[header::REDIS..]) {
            log::error!("could not write the scoreboard: {error}");
        }
    }

    /// Counts a process that takes the place of one that has ended.
    pub fn count_restart(&mut self, cause: RestartCause) {
        let word = header::RESTARTS + cause as usize - 1;
        self.show(word, self.header[word] + 1);
    }

    /// How many workers an operator asks for, if that has not been read before. Anything else in its words is ignored.
    pub fn take_requested_workers(&mut self) -> Option<u32> {
        let mut bytes = [0; 2 * WORD];
        let start = (header::SCALE_TO * WORD) as u64;
        if let Err(error) = self.file.read_exact_at(&mut bytes, start) {
            log::error!("could not read the scoreboard: {error}");
            return None;
        }
        let words = Words::new(&bytes);
        let (workers, check) = (words.get(0), words.get(1));
        if (workers, check) == (0, 0) {
            return None;
        }
        self.show(header::SCALE_TO, 0);
        self.show(header::SCALE_CHECK, 0);
        u32::try_from(workers).ok().filter(|_| check == !workers)
    }

    /// Shows that a reload was asked for.
    pub fn begin_reload(&mut self) {
        self.set_reload_state(ReloadState::Begun);
        self.show(header::RELOADS, self.header[header::RELOADS] + 1);
    }

    /// Shows what has become of the last reload that was asked for.
    pub fn set_reload_state(&mut self, state: ReloadState) {
        self.show(header::RELOAD_STATE, state as u64);
    }

    /// Makes room for the figures of these chains, links and storages, before workers learn of them;
    /// those known already keep theirs. Returns for how many there was no room.
    pub fn keep_figures_of<'a>(
        &mut self,
        names: impl Iterator<Item = (SeriesKind, &'a str)>,
    ) -> Result<usize, BoardError> {
        let known = self.series.len();
        // A set: there may be many thousands, and the supervisor has one thread.
        let mut there: HashSet<[u64; NAME]> = self.series.iter().copied().collect();
        let mut left_out = 0;
        for (kind, name) in names {
            let name = figures::name_words(kind, name);
            if there.contains(&name) {
                continue;
            }
            if self.series.len() < self.shape.series {
                self.series.push(name);
                there.insert(name);
            } else {
                left_out += 1;
            }
        }
        let written = self.write_series(known);
        if written.is_err() {
            self.series.truncate(known);
        }
        written.map_err(BoardError::system("make room in", &self.id.path))?;
        Ok(left_out)
    }

    /// Writes the names from `first` on and makes room for their meters, then shows them.
    fn write_series(&mut self, first: usize) -> io::Result<()> {
        self.write_names(first)?;
        self.write_meters(first)?;
        let count = self.series.len() as u64;
        self.write(header::SERIES, &[count])?;
        self.header[header::SERIES] = count;
        Ok(())
    }

    fn write_names(&self, first: usize) -> io::Result<()> {
        let names: Vec<u64> = self.series[first..].iter().flatten().copied().collect();
        self.write(self.shape.name_start(first), &names)
    }

    /// Makes the meters from this series on take up room on the disk.
    fn write_meters(&self, first: usize) -> io::Result<()> {
        let mut series = first..self.series.len();
        series.try_for_each(|series| self.write(self.shape.meter_start(series), &[0; METER]))
    }

    /// Makes the reasons of a slot take up room on the disk.
    fn write_reasons(&self, number: usize) -> io::Result<()> {
        let zeros = vec![0; self.shape.reasons * REASON];
        self.write(self.shape.reason_start(number, 0), &zeros)
    }

    /// Makes the outages take up room on the disk.
    fn write_outages(&self) -> io::Result<()> {
        let start = self.shape.outage_start(0);
        let zeros = vec![0; self.shape.outage_start(OUTAGES) - start];
        self.write(start, &zeros)
    }

    /// Shows that the supervisor is alive, and its memory.
    pub fn beat(&mut self) {
        self.show(header::HEARTBEAT, sys::monotonic_ms());
        self.show(
            header::MEMORY,
            procfs::own_proportional_set_size().unwrap_or(0),
        );
    }

    /// Repairs the file if somebody has cut it short: workers that wrote beyond its end would be killed,
    /// and new ones refuse it. What is still there stays as it is. After an error, try again.
    pub fn mend(&mut self) -> Result<(), BoardError> {
        let path = self.id.path.clone();
        let system = |what| BoardError::system(what, &path);
        let length = (self.shape.total_words() * WORD) as u64;
        let found = self.file.metadata().map_err(system("look at"))?.len();
        if found < length {
            log::error!("the scoreboard was cut short by someone, and is repaired");
            // An earlier repair may have failed halfway.
            self.cut = Some(self.cut.map_or(found, |cut| cut.min(found)));
        }
        let Some(cut) = self.cut else {
            return Ok(());
        };
        self.file
            .set_len(length)
            .and_then(|()| self.write(0, &self.header))
            .and_then(|()| self.write_names(0))
            .and_then(|()| self.fill_from(cut))
            .map_err(system("repair"))?;
        self.cut = None;
        Ok(())
    }

    /// Makes everything beyond this many bytes take up room again.
    fn fill_from(&self, cut: u64) -> io::Result<()> {
        let is_cut = |end: usize| (end * WORD) as u64 > cut;
        for number in self.prepared.iter().copied() {
            if is_cut(self.shape.slot_start(number + 1)) {
                self.write_slot(number)?;
            }
            if is_cut(self.shape.reason_start(number + 1, 0)) {
                self.write_reasons(number)?;
            }
        }
        let mut series = 0..self.series.len();
        if let Some(first) = series.find(|series| is_cut(self.shape.meter_start(series + 1))) {
            self.write_meters(first)?;
        }
        // They are the last.
        self.write_outages()
    }

    /// Makes a slot take up room on the disk: a worker that wrote to its map of a full disk would be
    /// killed.
    pub fn prepare(&mut self, number: usize) -> Result<(), BoardError> {
        if self.prepared.insert(number) {
            let used = self.prepared.last().map_or(0, |last| *last as u64 + 1);
            self.header[header::USED] = used;
            let written = self
                .write_slot(number)
                .and_then(|()| self.write_reasons(number))
                .and_then(|()| self.write(header::USED, &[used]));
            if let Err(cause) = written {
                self.prepared.remove(&number);
                return Err(BoardError::system("make room in", &self.id.path)(cause));
            }
        }
        Ok(())
    }

    fn write_slot(&self, number: usize) -> io::Result<()> {
        let zeros = vec![0; self.shape.slot_words()];
        self.write(self.shape.slot_start(number), &zeros)
    }

    /// Shows the state of a child; `None` if the slot is no longer in use.
    pub fn show_child(&self, number: usize, shown: Option<ChildView>) {
        let mut words = [0; child::COUNT];
        if let Some(shown) = shown {
            words[child::GENERATION] = shown.generation;
            words[child::PID] = u64::from(shown.pid.map_or(0, i32::unsigned_abs));
            words[child::STATE] = shown.state as u64;
            words[child::SINCE] = shown.since;
            words[child::DEATHS] = shown.deaths;
            words[child::RETRY] = shown.retry.unwrap_or(0);
        }
        let start = self.shape.slot_start(number);
        if let Err(error) = self.write(start, &words) {
            log::error!("could not write the scoreboard: {error}");
        }
    }

    /// Reads a slot.
    pub fn slot(&self, number: usize) -> SlotView {
        let mut bytes = vec![0; self.shape.slot_words() * WORD];
        let start = (self.shape.slot_start(number) * WORD) as u64;
        if let Err(error) = self.file.read_exact_at(&mut bytes, start) {
            log::error!("could not read the scoreboard: {error}");
            return SlotView::default();
        }
        SlotView::read(&Words::new(&bytes), self.shape)
    }

    fn show(&mut self, word: usize, value: u64) {
        self.header[word] = value;
        if let Err(error) = self.write(word, &[value]) {
            log::error!("could not write the scoreboard: {error}");
        }
    }

    fn write(&self, start: usize, words: &[u64]) -> io::Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.file.write_all_at(&bytes, (start * WORD) as u64)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // A forked child drops its copy too, and must not remove the file.
        if self.owner == std::process::id() {
            // If that fails, readers see that the file is stale.
            let _ = fs::remove_file(self.config_path());
            let _ = fs::remove_file(pauses_path(&self.id.path));
            let _ = fs::remove_file(&self.id.path);
        }
    }
}

/// Writes the length of a text, and then as much of it as there is room for.
fn write_text(words: &mut [u64], text: &str) {
    let Some((length, words)) = words.split_first_mut() else {
        return;
    };
    *length = text.len().min(words.len() * WORD) as u64;
    for (word, bytes) in words.iter_mut().zip(text.as_bytes().chunks(WORD)) {
        let mut padded = [0; WORD];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(padded);
    }
}

/// Where the configuration in force is kept, beside the scoreboard.
pub(super) fn config_path(board: &Path) -> PathBuf {
    board.with_extension("config")
}

/// Where the pauses in force are kept, beside the scoreboard.
pub(super) fn pauses_path(board: &Path) -> PathBuf {
    board.with_extension("pauses")
}

/// Writes onto the scoreboard how many workers an operator asks for. The supervisor reads that when it is woken.
///
/// # Errors
/// If this user may not write to the file.
pub fn request_workers(board: &Path, workers: u32) -> Result<(), BoardError> {
    let system = |what| BoardError::system(what, board);
    let file = runtime_dir::open(board, OpenOptions::new().write(true)).map_err(system("open"))?;
    let workers = u64::from(workers);
    let bytes: Vec<u8> = [workers, !workers]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    file.write_all_at(&bytes, (header::SCALE_TO * WORD) as u64)
        .map_err(system("write to"))
}

/// Opens the file and locks it. The lock belongs to the process; children do not inherit it.
fn open_and_lock(path: &Path, instance: &str) -> Result<File, BoardError> {
    let system = |what| BoardError::system(what, path);
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = runtime_dir::open_regular(path, options.mode(0o600)).map_err(system("open"))?;
        match fcntl(&file, FcntlArg::F_SETLK(&exclusive())) {
            Ok(_) => {}
            Err(Errno::EACCES | Errno::EAGAIN) => {
                let Some(pid) = holder(&file).map_err(system("look at"))? else {
                    // That daemon has just ended.
                    continue;
                };
                let instance = instance.to_owned();
                return Err(BoardError::InUse { instance, pid });
            }
            Err(error) => return Err(system("lock")(error.into())),
        }
        // A daemon that was ending may have removed the file between open and lock.
        let ours = file.metadata().map_err(system("look at"))?;
        if ours.mode() & 0o022 != 0 {
            // Others may have it open, and write to it later.
            fs::remove_file(path).map_err(system("replace"))?;
            continue;
        }
        let still = fs::symlink_metadata(path);
        if still.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
}

/// The PID of the supervisor of this scoreboard, as this process sees it: another one than the scoreboard shows if the
/// supervisor is in another PID namespace. `None` if it has ended.
///
/// # Errors
/// The scoreboard cannot be opened.
pub fn lock_holder(board: &Path) -> Result<Option<i32>, BoardError> {
    let system = |what| BoardError::system(what, board);
    let file = runtime_dir::open(board, OpenOptions::new().read(true)).map_err(system("open"))?;
    holder(&file).map_err(system("look at"))
}

/// The process that holds the lock.
pub(super) fn holder(file: &File) -> io::Result<Option<i32>> {
    let mut lock = exclusive();
    fcntl(file, FcntlArg::F_GETLK(&mut lock))?;
    Ok((lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_pid))
}

/// A lock on the whole file.
fn exclusive() -> libc::flock {
    libc::flock {
        // The type of these fields differs between systems.
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
