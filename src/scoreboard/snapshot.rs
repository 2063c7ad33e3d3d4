//! A reader's side: copies, in which only words that make sense count.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::board::{config_path, holder, pauses_path};
use super::layout::{self, BITS, HEADER, Shape, WORD, child, header, lane, state, worker};
use super::{
    BoardError, ChildState, DaemonPhase, Histogram, LaneState, LaneStep, ReloadState, RestartCause,
    Series, StageKind, UnavailableStage, WorkerState, answers, figures, reasons,
};
use crate::visible::printable;
use crate::{procfs, runtime_dir, sys};

/// The bytes of a scoreboard, as words.
pub(super) struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// A word; 0 if the bytes end before it.
    pub fn get(&self, index: usize) -> u64 {
        let bytes = self.0.get(index * WORD..(index + 1) * WORD);
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_ne_bytes)
    }

    fn from(&self, start: usize) -> Words<'a> {
        Words(self.0.get(start * WORD..).unwrap_or_default())
    }
}

/// The header: the daemon as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardHeader {
    /// The random number of this supervisor.
    pub nonce: u64,
    /// Its sizes: among them, the lanes of each worker.
    pub shape: Shape,
    /// The supervisor.
    pub pid: i32,
    /// When it started, in monotonic milliseconds.
    pub started: u64,
    /// What the daemon does.
    pub phase: Option<DaemonPhase>,
    /// The number of its start method.
    pub method: u64,
    /// How many workers are wanted.
    pub wanted: u64,
    /// The number of the configuration in force.
    pub config: u64,
    /// How many slots may be in use.
    pub used: usize,
    /// The supervisor's last heartbeat, in monotonic milliseconds.
    pub beat: u64,
    /// Its memory in bytes (proportional set size), as of then, if it is known.
    pub memory: Option<u64>,
    /// How many series there are.
    pub series: usize,
    /// After how many milliseconds on one vCon a lane is stuck.
    pub stuck_after: Option<u64>,
    /// Processes that were replaced, by cause, in the order of [`RestartCause::ALL`].
    pub restarts: [u64; RestartCause::ALL.len()],
    /// How many reloads were asked for.
    pub reloads: u64,
    /// What has become of the last one.
    pub reload_state: Option<ReloadState>,
    /// `CONSERVER_INSTANCE`
    pub instance: String,
    /// The Redis of the daemon, without its password.
    pub redis: String,
}

impl BoardHeader {
    pub(super) fn read(words: &Words<'_>) -> Result<Self, &'static str> {
        if words.get(header::MAGIC) != layout::MAGIC {
            return Err("it does not begin as one");
        }
        if words.get(header::VERSION) != layout::VERSION {
            return Err("its layout is of another version");
        }
        let size = |word| usize::try_from(words.get(word)).unwrap_or(0);
        let shape = Shape {
            lanes: size(header::LANES),
            series: size(header::ROOM),
            held: size(header::HELD),
            reasons: size(header::REASONS),
        };
        if !shape.makes_sense() {
            return Err("its sizes make no sense");
        }
        Ok(Self {
            nonce: words.get(header::NONCE),
            shape,
            pid: pid(words.get(header::PID)).ok_or("its supervisor's PID makes no sense")?,
            started: words.get(header::STARTED),
            phase: state(DaemonPhase::ALL, words.get(header::PHASE)),
            method: words.get(header::START_METHOD),
            wanted: words.get(header::WANTED),
            config: words.get(header::CONFIG),
            used: usize::try_from(words.get(header::USED))
                .unwrap_or(layout::SLOTS)
                .min(layout::SLOTS),
            beat: words.get(header::HEARTBEAT),
            memory: Some(words.get(header::MEMORY)).filter(|bytes| *bytes > 0),
            series: usize::try_from(words.get(header::SERIES))
                .unwrap_or(shape.series)
                .min(shape.series),
            stuck_after: Some(words.get(header::STUCK_AFTER)).filter(|time| *time > 0),
            restarts: std::array::from_fn(|cause| words.get(header::RESTARTS + cause)),
            reloads: words.get(header::RELOADS),
            reload_state: state(ReloadState::ALL, words.get(header::RELOAD_STATE)),
            instance: text(words, header::INSTANCE, layout::INSTANCE),
            redis: text(words, header::REDIS, layout::REDIS),
        })
    }
}

/// A text in this many words, the first of which is its length.
fn text(words: &Words<'_>, start: usize, count: usize) -> String {
    let room = (count - 1) * WORD;
    let length = usize::try_from(words.get(start)).map_or(room, |n| n.min(room));
    let bytes = &words.from(start + 1).0;
    let bytes = bytes.get(..length).unwrap_or_default();
    printable(&String::from_utf8_lossy(bytes)).into_owned()
}

fn pid(word: u64) -> Option<i32> {
    i32::try_from(word).ok().filter(|pid| *pid > 0)
}

/// A slot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotView {
    /// What the supervisor shows of the child; `None` if the slot is not in use.
    pub place: Option<ChildView>,
    /// What that child shows of itself; `None` before it has shown anything.
    pub worker: Option<WorkerView>,
    /// vCons stored and announced, by this worker and its predecessors.
    pub finished: u64,
    /// vCons whose chain a link ended early, likewise.
    pub halted: u64,
    /// vCons that went to a dead letter queue, likewise.
    pub failed: u64,
    /// vCons put back into their lists, likewise.
    pub returned: u64,
    /// Processor time in microseconds, likewise, as of the last heartbeat.
    pub cpu_us: u64,
    /// Spans, or exports of metrics, that the collector has taken, likewise.
    pub telemetry_sent: u64,
    /// Those that nobody has got, likewise.
    pub telemetry_dropped: u64,
}

/// What the supervisor shows of a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildView {
    /// Which start this is; no two in a supervisor's life have the same.
    pub generation: u64,
    /// The process, if one runs.
    pub pid: Option<i32>,
    /// Its state.
    pub state: ChildState,
    /// Since when, in monotonic milliseconds.
    pub since: u64,
    /// How many processes have died in this slot.
    pub deaths: u64,
    /// When the next process is started, in monotonic milliseconds, if one waits for that.
    pub retry: Option<u64>,
}

/// What a child shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerView {
    /// What it does.
    pub state: WorkerState,
    /// Its last heartbeat, in monotonic milliseconds.
    pub beat: u64,
    /// Its memory in bytes (proportional set size), as of then, if it is known.
    pub memory: Option<u64>,
    /// Whether it has returned its predecessors' claims, and may have some of its own.
    pub recovered: bool,
    /// Claims that this process has released.
    pub released: u64,
    /// The lanes that hold a vCon.
    pub lanes: Vec<LaneView>,
    /// What is unavailable, so that chains are on hold.
    pub held: Option<StagesView>,
    /// The storages that are unavailable and put no chain on hold, as they defer.
    pub deferring: Option<StagesView>,
    /// Since when, in monotonic milliseconds, Redis has been unavailable, as the monitor has found.
    pub redis_away: Option<u64>,
    /// Whether any stage waits for its budget, or until its server wants to be asked again.
    pub waits: bool,
}

/// Stages that are unavailable to a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagesView {
    /// Each with its position among those of its kind in the configuration.
    pub stages: Vec<(StageKind, usize)>,
    /// The position that stands for every later one too.
    pub last: usize,
    /// Since when any of them has been unavailable, in monotonic milliseconds.
    pub since: u64,
}

/// A lane that holds a vCon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    /// Its number, from 1.
    pub number: u32,
    /// What it does with it.
    pub state: LaneState,
    /// The vCon; `None` if the entry is not a UUID.
    pub vcon: Option<Uuid>,
    /// Since when, in monotonic milliseconds.
    pub since: u64,
    /// The longest time it may take, in milliseconds.
    pub limit: Option<u64>,
    /// The step of its chain.
    pub step: LaneStep,
    /// The position of its chain in the configuration, if it is in one of those.
    pub chain: Option<usize>,
}

impl LaneView {
    /// Whether it has worked on one vCon for longer than `stuck_after`, of which `excused` does not count.
    pub fn is_stuck(&self, now: u64, stuck_after: Option<u64>, excused: Duration) -> bool {
        let busy = Duration::from_millis(now.saturating_sub(self.since)).saturating_sub(excused);
        let limit = stuck_after.map(Duration::from_millis);
        self.state == LaneState::Busy && limit.is_some_and(|limit| busy > limit)
    }
}

impl SlotView {
    /// The memory of its process in bytes, from the system, or else from the process itself.
    pub fn memory(&self) -> Option<u64> {
        let pid = self.place.as_ref()?.pid?;
        let told = || self.worker.as_ref()?.memory;
        procfs::proportional_set_size(pid).or_else(told)
    }

    /// vCons that were done here, halted ones among them.
    pub fn done(&self) -> u64 {
        self.finished.saturating_add(self.halted)
    }

    pub(super) fn read(words: &Words<'_>, shape: Shape) -> Self {
        let place = ChildView::read(words);
        let generation = place.as_ref().map(|place| place.generation);
        let speaks = generation == Some(words.get(worker::GENERATION));
        Self {
            worker: speaks.then(|| WorkerView::read(words, shape)).flatten(),
            place,
            finished: words.get(worker::FINISHED),
            halted: words.get(worker::HALTED),
            failed: words.get(worker::FAILED),
            returned: words.get(worker::RETURNED),
            cpu_us: words.get(worker::CPU),
            telemetry_sent: words.get(worker::TELEMETRY_SENT),
            telemetry_dropped: words.get(worker::TELEMETRY_DROPPED),
        }
    }
}

impl ChildView {
    fn read(words: &Words<'_>) -> Option<Self> {
        Some(Self {
            generation: words.get(child::GENERATION),
            pid: pid(words.get(child::PID)),
            state: state(ChildState::ALL, words.get(child::STATE))?,
            since: words.get(child::SINCE),
            deaths: words.get(child::DEATHS),
            retry: Some(words.get(child::RETRY)).filter(|retry| *retry > 0),
        })
    }
}

impl WorkerView {
    fn read(words: &Words<'_>, shape: Shape) -> Option<Self> {
        let lane = |number: usize| {
            let words = words.from(shape.lane_start(number));
            LaneView::read(&words, u32::try_from(number + 1).unwrap_or(u32::MAX))
        };
        Some(Self {
            state: state(WorkerState::ALL, words.get(worker::STATE))?,
            beat: words.get(worker::HEARTBEAT),
            memory: Some(words.get(worker::MEMORY)).filter(|bytes| *bytes > 0),
            recovered: words.get(worker::RECOVERED) == 1,
            released: words.get(worker::RELEASED),
            lanes: (0..shape.lanes).filter_map(lane).collect(),
            held: StagesView::read(words, shape, &StageKind::HOLDING, worker::HELD_SINCE),
            deferring: StagesView::read(
                words,
                shape,
                &[StageKind::DeferringStorage],
                worker::DEFERRING_SINCE,
            ),
            redis_away: Some(words.get(worker::REDIS_AWAY)).filter(|since| *since > 0),
            waits: words.get(worker::WAITING_SINCE) > 0,
        })
    }
}

impl StagesView {
    fn read(words: &Words<'_>, shape: Shape, kinds: &[StageKind], since: usize) -> Option<Self> {
        let since = words.get(since);
        if since == 0 {
            return None;
        }
        let mut stages = Vec::new();
        for kind in kinds {
            let start = layout::SLOT + kind.first_bits(shape);
            let is_set =
                |position: &usize| words.get(start + position / BITS) >> (position % BITS) & 1 == 1;
            let positions = (0..=shape.last_held()).filter(is_set);
            stages.extend(positions.map(|position| (*kind, position)));
        }
        (!stages.is_empty()).then(|| Self {
            stages,
            last: shape.last_held(),
            since,
        })
    }
}

impl LaneView {
    fn read(words: &Words<'_>, number: u32) -> Option<Self> {
        let (high, low) = (words.get(lane::HIGH), words.get(lane::LOW));
        let (since, limit) = (words.get(lane::SINCE), words.get(lane::LIMIT));
        let stated = words.get(lane::STATE);
        let check = layout::check(stated, high, low, since, limit);
        let state = state(LaneState::ALL, stated)?;
        if words.get(lane::CHECK) != check || state == LaneState::Idle {
            return None;
        }
        Some(Self {
            number,
            state,
            vcon: Some(Uuid::from_u64_pair(high, low)).filter(|uuid| !uuid.is_nil()),
            since,
            limit: Some(limit).filter(|limit| *limit > 0),
            step: LaneStep::of_word(words.get(lane::STEP)),
            chain: words
                .get(lane::CHAIN)
                .checked_sub(1)
                .and_then(|it| usize::try_from(it).ok()),
        })
    }
}

/// A whole scoreboard as it was at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Where the scoreboard is.
    pub board: PathBuf,
    /// Where the configuration in force is kept.
    pub config: PathBuf,
    /// Where the pauses in force are kept, once the monitor has looked at them.
    pub pauses: Option<PathBuf>,
    /// When it was taken, in monotonic milliseconds.
    pub taken: u64,
    /// The daemon as a whole.
    pub header: BoardHeader,
    /// The slots that may be in use: the monitor, then Worker-1, and so on.
    pub slots: Vec<SlotView>,
    /// The figures of chains, links and storages.
    pub series: Vec<Series>,
    /// How long answers of webhooks took, by their status.
    pub answers: Vec<(u16, Histogram)>,
    /// Why something is unavailable, each with the slot of the process that has found it so.
    pub reasons: Vec<(usize, UnavailableStage)>,
}

impl Snapshot {
    /// Reads the scoreboard of a running daemon.
    ///
    /// # Errors
    /// If there is none, it is not a scoreboard, or its daemon has ended.
    pub fn take(path: &Path) -> Result<Self, BoardError> {
        let (this, file) = Self::take_if(path, alive)?;
        this.with_the_rest(path, &file)
    }

    /// The same without the figures, which may be many.
    pub fn without_figures(path: &Path) -> Result<Self, BoardError> {
        let (mut snapshot, file) = Self::take_if(path, alive)?;
        snapshot.reasons = reasons::read_reasons(&file, snapshot.header.shape, &snapshot.slots)
            .map_err(BoardError::system("read the reasons in", path))?;
        Ok(snapshot)
    }

    fn with_the_rest(mut self, path: &Path, file: &File) -> Result<Self, BoardError> {
        let header = &self.header;
        self.series = figures::read_series(file, header.shape, header.series)
            .map_err(BoardError::system("read the figures in", path))?;
        self.answers = answers::read_answers(file, header.shape)
            .map_err(BoardError::system("read the times of answers in", path))?;
        self.reasons = reasons::read_reasons(file, header.shape, &self.slots)
            .map_err(BoardError::system("read the reasons in", path))?;
        Ok(self)
    }

    fn take_if(
        path: &Path,
        check: impl Fn(&File, &Path, i32) -> Result<(), BoardError>,
    ) -> Result<(Self, File), BoardError> {
        let system = |what| BoardError::system(what, path);
        let mut file =
            runtime_dir::open(path, OpenOptions::new().read(true)).map_err(system("open"))?;
        let mut bytes = vec![0; HEADER * WORD];
        file.read_exact(&mut bytes)
            .map_err(|_| BoardError::invalid(path, "it is too short"))?;
        let header = BoardHeader::read(&Words::new(&bytes))
            .map_err(|what| BoardError::invalid(path, what))?;
        check(&file, path, header.pid)?;
        let wanted = header.used * header.shape.slot_words() * WORD;
        let mut bytes = Vec::with_capacity(wanted);
        Read::by_ref(&mut file)
            .take(wanted as u64)
            .read_to_end(&mut bytes)
            .map_err(system("read"))?;
        if bytes.len() < wanted {
            return Err(BoardError::invalid(path, "it has been cut short"));
        }
        let words = Words::new(&bytes);
        let slot = |number: usize| {
            let start = number * header.shape.slot_words();
            SlotView::read(&words.from(start), header.shape)
        };
        let this = Self {
            series: Vec::new(),
            answers: Vec::new(),
            board: path.to_owned(),
            reasons: Vec::new(),
            config: config_path(path),
            pauses: (words.get(worker::PAUSES) > 0).then(|| pauses_path(path)),
            taken: sys::monotonic_ms(),
            slots: (0..header.used).map(slot).collect(),
            header,
        };
        Ok((this, file))
    }

    /// Reads a scoreboard of this very process, whose lock on it cannot be seen from here.
    #[cfg(test)]
    pub(crate) fn take_own(path: &Path) -> Result<Self, BoardError> {
        let (this, file) = Self::take_if(path, |_, _, _| Ok(()))?;
        this.with_the_rest(path, &file)
    }

    #[cfg(test)]
    pub(super) fn parse(bytes: &[u8]) -> Option<(BoardHeader, Vec<SlotView>)> {
        let words = Words::new(bytes);
        let header = BoardHeader::read(&words).ok()?;
        let slot = |number| {
            let words = words.from(header.shape.slot_start(number));
            SlotView::read(&words, header.shape)
        };
        let slots = (0..header.used).map(slot).collect();
        Some((header, slots))
    }
}

/// Fails unless the daemon runs: it holds the lock on its scoreboard then.
fn alive(file: &File, path: &Path, pid: i32) -> Result<(), BoardError> {
    match holder(file).map_err(BoardError::system("look at", path))? {
        Some(_) => Ok(()),
        None => Err(BoardError::Stale {
            path: path.to_owned(),
            pid,
        }),
    }
}

/// After this many missed heartbeats, a process counts as hung,
const MISSED_HEARTBEATS: u32 = 6;

/// but not before this time: with a short interval, a busy machine would be enough.
const SHORTEST_SILENCE: Duration = Duration::from_secs(30);

/// Whether a process that has not shown itself for this long counts as hung.
pub fn is_silent(silent: Duration, heartbeat: Duration) -> bool {
    silent > (heartbeat * MISSED_HEARTBEATS).max(SHORTEST_SILENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_heartbeat_does_not_make_the_limit_short() {
        for (beat, seconds) in [(100, 30), (5_000, 30), (10_000, 60)] {
            let beat = Duration::from_millis(beat);
            let limit = Duration::from_secs(seconds);
            assert!(!is_silent(limit, beat));
            assert!(is_silent(limit + Duration::from_millis(1), beat));
        }
    }
}
