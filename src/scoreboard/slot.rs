//! A child's side: its own slot, written without locks and without system calls.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::board::{config_path, pauses_path};
use super::layout::{self, HEADER, NAME, Shape, WORD, child, header, lane, worker};
use super::snapshot::{BoardHeader, Words};
use super::{
    BoardError, BoardId, ChildState, Event, LaneState, LaneStep, Meter, SeriesKind, WorkerState,
    figures,
};
use crate::sys::{self, SharedWords};
use crate::vcon::VconId;
use crate::{procfs, runtime_dir};

/// The slot of one child; cheap to clone.
#[derive(Clone)]
pub struct Slot {
    pub(super) words: Arc<SharedWords>,
    pub(super) number: usize,
    start: usize,
    pub(super) shape: Shape,
    board: PathBuf,
    config: PathBuf,
    pauses: PathBuf,
    /// The processor time of this worker's predecessors, in microseconds.
    cpu_before: u64,
}

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Stored and announced.
    Finished,
    /// Ended early by a link.
    Halted,
    /// In the dead letter queue.
    Failed,
    /// Back in its list.
    Returned,
}

impl Slot {
    /// Its number: that of the worker, or 0 for the monitor.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Takes over a slot for the child of this `generation`. Its counters go on.
    ///
    /// # Errors
    /// If the file is not the scoreboard that `board` names.
    pub fn attach(board: &BoardId, number: usize, generation: u64) -> Result<Self, BoardError> {
        let path = &board.path;
        let system = |what| BoardError::system(what, path);
        let file = runtime_dir::open(path, OpenOptions::new().read(true).write(true))
            .map_err(system("open"))?;
        let mut bytes = [0; HEADER * WORD];
        file.read_exact_at(&mut bytes, 0).map_err(system("read"))?;
        let header = BoardHeader::read(&Words::new(&bytes))
            .map_err(|what| BoardError::invalid(path, what))?;
        if header.nonce != board.nonce {
            return Err(BoardError::invalid(
                path,
                "it belongs to another supervisor",
            ));
        }
        let words = SharedWords::map(&file, header.shape.total_words()).map_err(system("map"))?;
        let number = number.min(layout::SLOTS - 1);
        let mut this = Self {
            words: Arc::new(words),
            number,
            start: header.shape.slot_start(number),
            shape: header.shape,
            board: path.clone(),
            config: config_path(path),
            pauses: pauses_path(path),
            cpu_before: 0,
        };
        this.cpu_before = this.word(worker::CPU).load(Ordering::Relaxed);
        for number in 0..this.shape.lanes {
            let lane = this.lane(number);
            lane.idle();
            lane.end_claim();
        }
        this.word(worker::RELEASED).store(0, Ordering::Relaxed);
        this.word(worker::RECOVERED).store(0, Ordering::Relaxed);
        this.show_unavailable(&[]);
        this.show_redis_away(None);
        this.leave_all_outages();
        this.beat();
        this.set_state(WorkerState::Starting);
        this.word(worker::GENERATION)
            .store(generation, Ordering::Release);
        Ok(this)
    }

    /// Shows the state of this process.
    pub fn set_state(&self, state: WorkerState) {
        self.word(worker::STATE)
            .store(state as u64, Ordering::Release);
    }

    /// Shows that this worker has returned the claims of its predecessors. Called before it claims
    /// anything: what it leaves behind from then on is its own.
    pub fn note_recovered(&self) {
        self.word(worker::RECOVERED).store(1, Ordering::Release);
    }

    /// Whether this process has not been ready yet.
    pub fn is_starting(&self) -> bool {
        self.word(worker::STATE).load(Ordering::Acquire) == WorkerState::Starting as u64
    }

    /// Whether the supervisor asks this process to end.
    pub fn is_to_end(&self) -> bool {
        self.word(child::STATE).load(Ordering::Acquire) == ChildState::Draining as u64
    }

    /// Shows that this process is alive, how much processor time it has used, and its memory.
    pub fn beat(&self) {
        self.word(worker::HEARTBEAT)
            .store(sys::monotonic_ms(), Ordering::Relaxed);
        let cpu = self.cpu_before.saturating_add(sys::processor_time_us());
        self.word(worker::CPU).store(cpu, Ordering::Relaxed);
        // Other processes cannot read that: see `sys::hide_memory`.
        let memory = procfs::own_proportional_set_size().unwrap_or(0);
        self.word(worker::MEMORY).store(memory, Ordering::Relaxed);
    }

    /// Shows since when something has been so; a time that is there already stays.
    pub(super) fn show_since(&self, word: usize, is_so: bool) {
        let since = self.word(word);
        match (is_so, since.load(Ordering::Relaxed)) {
            (false, _) => since.store(0, Ordering::Relaxed),
            (true, 0) => since.store(sys::monotonic_ms(), Ordering::Relaxed),
            (true, _) => {}
        }
    }

    /// Shows that the ingress lists are watched for idle lanes. For the monitor alone.
    pub fn beat_watch(&self) {
        self.word(worker::LISTS_WATCHED)
            .store(sys::monotonic_ms(), Ordering::Relaxed);
    }

    /// How long ago the monitor last showed that it watches the ingress lists.
    pub fn since_watch(&self) -> Duration {
        let beat = self
            .monitor_word(worker::LISTS_WATCHED)
            .load(Ordering::Relaxed);
        Duration::from_millis(sys::monotonic_ms().saturating_sub(beat))
    }

    /// The version of the pauses in force, which grows with every change; 0 before the monitor has looked at them.
    pub fn pauses_version(&self) -> u64 {
        // Sequentially consistent, as in all three functions that lead to `all_claims_follow`: a lane shows that it
        // claims and then reads this version, the monitor writes the version and then reads what lanes show. So at
        // least one of the two sees the other.
        self.monitor_word(worker::PAUSES).load(Ordering::SeqCst)
    }

    /// Puts the pauses in [`Slot::pauses_path`] in force, under this version. For the monitor alone.
    pub fn set_pauses_version(&self, version: u64) {
        self.monitor_word(worker::PAUSES)
            .store(version, Ordering::SeqCst);
    }

    /// Shows that the pauses of the version shown were those in Redis at `when`, in monotonic milliseconds, and that the
    /// lease on the instance's name was renewed then or later: so whoever pauses something after that waits for this
    /// instance as long as the lease lives. For the monitor alone, once it has shown the version.
    pub fn note_pauses_look(&self, when: u64) {
        self.monitor_word(worker::PAUSES_LOOKED)
            .store(when, Ordering::SeqCst);
    }

    /// The time that [`Slot::note_pauses_look`] has shown last; 0 before. To be read before the version, which may be
    /// newer then, and not older.
    pub fn pauses_looked(&self) -> u64 {
        self.monitor_word(worker::PAUSES_LOOKED)
            .load(Ordering::SeqCst)
    }

    /// Whether no request for work is on its way that follows older pauses than those of this version.
    pub fn all_claims_follow(&self, version: u64) -> bool {
        let words = self.words.words();
        let word = |index: usize| words[index].load(Ordering::SeqCst);
        let used = usize::try_from(word(header::USED)).unwrap_or(layout::SLOTS);
        (layout::MONITOR + 1..used.min(layout::SLOTS)).all(|number| {
            let start = self.shape.slot_start(number);
            let follows = |lane: usize| {
                let claiming = word(start + self.shape.lane_start(lane) + lane::CLAIMING);
                claiming == 0 || claiming > version
            };
            // A worker may claim before the supervisor has learned its PID.
            !self.is_alive(number) || (0..self.shape.lanes).all(follows)
        })
    }

    /// Shows to every process of this daemon that a RedisJSON vCon was met.
    pub fn note_json(&self) {
        if !self.has_seen_json() {
            self.header_word(header::JSON_SEEN)
                .store(1, Ordering::Relaxed);
        }
    }

    /// Whether any process of this daemon has met a RedisJSON vCon.
    pub fn has_seen_json(&self) -> bool {
        self.header_word(header::JSON_SEEN).load(Ordering::Relaxed) != 0
    }

    /// A server has told this process when to ask again, as it shows by now: others are to look.
    pub fn note_wait(&self) {
        self.header_word(header::WAITS)
            .fetch_add(1, Ordering::AcqRel);
    }

    /// How often that was noted by any process of this daemon.
    pub fn waits_noted(&self) -> u64 {
        self.header_word(header::WAITS).load(Ordering::Acquire)
    }

    /// Shows when this process was last refused a connection to a storage, in monotonic milliseconds.
    /// Returns when any process of this daemon was.
    pub fn exchange_refusal(&self, ours: u64) -> u64 {
        let word = self.header_word(header::CROWDED);
        word.fetch_max(ours, Ordering::Relaxed).max(ours)
    }

    /// Shows to every process of this daemon that the lease on the instance's name was renewed at
    /// `when`, in monotonic milliseconds.
    pub fn note_lease(&self, when: u64) {
        self.monitor_word(worker::LEASE_RENEWED)
            .store(when, Ordering::Release);
    }

    /// When a process of this daemon last renewed the lease, in monotonic milliseconds; 0 before
    /// the first time.
    pub fn lease_renewed(&self) -> u64 {
        self.monitor_word(worker::LEASE_RENEWED)
            .load(Ordering::Acquire)
    }

    /// Counts a claim that was released. Returns how many this process has released.
    pub fn count(&self, outcome: Outcome) -> u64 {
        let counter = match outcome {
            Outcome::Finished => worker::FINISHED,
            Outcome::Halted => worker::HALTED,
            Outcome::Failed => worker::FAILED,
            Outcome::Returned => worker::RETURNED,
        };
        self.word(counter).fetch_add(1, Ordering::Relaxed);
        self.word(worker::RELEASED).fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts a vCon of a predecessor that went to the dead letter queue.
    pub fn count_poison(&self) {
        self.word(worker::FAILED).fetch_add(1, Ordering::Relaxed);
    }

    /// Counts spans, or an export of metrics, that the collector has taken.
    pub fn count_telemetry_sent(&self, count: u64) {
        self.word(worker::TELEMETRY_SENT)
            .fetch_add(count, Ordering::Relaxed);
    }

    /// Counts those that nobody has got.
    pub fn count_telemetry_dropped(&self, count: u64) {
        self.word(worker::TELEMETRY_DROPPED)
            .fetch_add(count, Ordering::Relaxed);
    }

    /// The cell of one lane, counted from 0.
    pub fn lane(&self, number: usize) -> LaneCell {
        let number = number.min(self.shape.lanes - 1);
        LaneCell {
            words: Arc::clone(&self.words),
            start: self.start + self.shape.lane_start(number),
        }
    }

    /// The meters of the chains, links and storages that are known now.
    pub fn meters(&self) -> SlotMeters<'_> {
        let known = 0..self.known_series();
        let positions = known.map(|series| (self.name_of(series), series)).collect();
        SlotMeters {
            slot: self,
            positions,
        }
    }

    /// How often a link or storage has worked so far, for any worker of this daemon.
    pub fn successes_of(&self, kind: SeriesKind, name: &str) -> u64 {
        let wanted = figures::name_words(kind, name);
        let is_it = |series: &usize| self.name_of(*series) == wanted;
        let series = (0..self.known_series()).find(is_it);
        let start = series.map(|series| self.shape.meter_start(series) + layout::meter::COUNTS);
        let count = |start: usize| {
            let counts = [Event::Done, Event::Halted].map(|event| start + event as usize);
            let words = self.words.words();
            counts
                .map(|word| words[word].load(Ordering::Relaxed))
                .iter()
                .sum()
        };
        start.map_or(0, count)
    }

    /// How many series there are now.
    fn known_series(&self) -> usize {
        let known = self.header_word(header::SERIES).load(Ordering::Acquire);
        usize::try_from(known).map_or(self.shape.series, |n| n.min(self.shape.series))
    }

    fn name_of(&self, series: usize) -> [u64; NAME] {
        let (words, start) = (self.words.words(), self.shape.name_start(series));
        std::array::from_fn(|word| words[start + word].load(Ordering::Relaxed))
    }

    /// The number of the configuration that is in force.
    pub fn config_generation(&self) -> u64 {
        self.words.words()[header::CONFIG].load(Ordering::Acquire)
    }

    /// Where the scoreboard is.
    pub fn board_path(&self) -> &std::path::Path {
        &self.board
    }

    /// Where the configuration in force is kept.
    pub fn config_path(&self) -> &std::path::Path {
        &self.config
    }

    /// Where the pauses in force are kept.
    pub fn pauses_path(&self) -> &std::path::Path {
        &self.pauses
    }

    fn header_word(&self, index: usize) -> &AtomicU64 {
        &self.words.words()[index]
    }

    /// A word of the monitor's slot.
    fn monitor_word(&self, index: usize) -> &AtomicU64 {
        let start = self.shape.slot_start(layout::MONITOR);
        &self.words.words()[start + index]
    }

    pub(super) fn word(&self, index: usize) -> &AtomicU64 {
        &self.words.words()[self.start + index]
    }
}

/// The meters, looked up by name. There may be many thousands, so the names are read once.
pub struct SlotMeters<'a> {
    slot: &'a Slot,
    positions: HashMap<[u64; NAME], usize>,
}

impl SlotMeters<'_> {
    /// The meter of a chain, link or storage.
    pub fn of(&self, kind: SeriesKind, name: &str) -> Meter {
        match self.positions.get(&figures::name_words(kind, name)) {
            Some(series) => {
                let slot = self.slot;
                Meter::at(&slot.words, slot.shape.meter_start(*series))
            }
            None => Meter::SILENT.clone(),
        }
    }
}

/// What one lane shows; written by that lane alone.
pub struct LaneCell {
    words: Arc<SharedWords>,
    start: usize,
}

impl LaneCell {
    /// There is nothing to do.
    pub fn idle(&self) {
        self.show(LaneState::Idle, None, None);
    }

    /// Works on `id` from now on, for at most `limit`.
    pub fn busy(&self, id: Option<&VconId>, limit: Option<Duration>) {
        self.show(LaneState::Busy, id, limit);
    }

    /// Goes on with `id`, for at most `limit` from now.
    pub fn goes_on(&self, id: Option<&VconId>, limit: Option<Duration>) {
        let since = self.words.words()[self.start + lane::SINCE].load(Ordering::Relaxed);
        let so_far = Duration::from_millis(sys::monotonic_ms().saturating_sub(since));
        let limit = limit.map(|limit| limit.saturating_add(so_far));
        self.show_since(LaneState::Busy, id, limit, since);
    }

    /// Holds `id` and waits for a server that is unavailable: no limit runs.
    pub fn waiting(&self, id: Option<&VconId>) {
        self.show(LaneState::Waiting, id, None);
    }

    /// Shows at which step of its chain the vCon is.
    pub fn step(&self, step: LaneStep) {
        self.words.words()[self.start + lane::STEP].store(step.word(), Ordering::Relaxed);
    }

    /// Shows in which chain the vCon is, by its position in the configuration, if it is in one of those.
    pub fn chain(&self, position: Option<usize>) {
        let word = position.map_or(0, |position| position as u64 + 1);
        self.words.words()[self.start + lane::CHAIN].store(word, Ordering::Relaxed);
    }

    /// From now on a request for work may be on its way that follows the pauses of this version. To be called
    /// before the lane makes sure that the version is in force.
    pub fn begin_claim(&self, version: u64) {
        self.claiming()
            .store(version.saturating_add(1), Ordering::SeqCst);
    }

    /// The version that a request follows that may be on its way.
    pub fn claiming_by(&self) -> Option<u64> {
        self.claiming().load(Ordering::SeqCst).checked_sub(1)
    }

    /// The request was answered, or is not sent.
    pub fn end_claim(&self) {
        self.claiming().store(0, Ordering::SeqCst);
    }

    fn claiming(&self) -> &AtomicU64 {
        &self.words.words()[self.start + lane::CLAIMING]
    }

    fn show(&self, state: LaneState, id: Option<&VconId>, limit: Option<Duration>) {
        self.show_since(state, id, limit, sys::monotonic_ms());
    }

    fn show_since(
        &self,
        state: LaneState,
        id: Option<&VconId>,
        limit: Option<Duration>,
        since: u64,
    ) {
        let (high, low) = id.map_or((0, 0), |id| id.uuid().as_u64_pair());
        let limit = limit.map_or(0, |limit| limit.as_millis().try_into().unwrap_or(u64::MAX));
        let state = state as u64;
        let check = layout::check(state, high, low, since, limit);
        let words = [
            (lane::STATE, state),
            (lane::HIGH, high),
            (lane::LOW, low),
            (lane::SINCE, since),
            (lane::LIMIT, limit),
            (lane::CHECK, check),
        ];
        for (index, word) in words {
            self.words.words()[self.start + index].store(word, Ordering::Relaxed);
        }
    }
}
