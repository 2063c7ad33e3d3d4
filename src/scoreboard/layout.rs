//! Where everything stands in the file: 64-bit words in the byte order of the machine.
//!
//! ```text
//! header | slot of the monitor | slot of Worker-1 | slot of Worker-2 | …
//!        | names of the series | meters of the series
//!        | reasons of the monitor | reasons of Worker-1 | … | outages
//!        | statuses of answers | meters of the answers
//! slot:    the supervisor's words | the worker's own words | unavailable stages of each kind | lane 1 | lane 2 | …
//! reasons: reason 1 | reason 2 | …
//! ```
//!
//! A slot belongs to a number, not to a process: its counters go on through restarts. Each half of it
//! has one writer; outages and answers have many. A series is a chain, a link or a storage; it keeps its position
//! as long as the supervisor lives, through all reloads. All workers count in its one meter: an
//! addition that no other can come between needs no part of the file for each worker, so the file
//! stays small and quickly read, however many workers there are. How much room there is for series and for holds
//! follows from the configuration at the start: see [`Shape`].
//!
//! States stand there as numbers from 1 in the order of their enum; any other number is no state.

use std::fmt;

use super::histogram::BUCKETS;

/// The first word of every scoreboard.
pub const MAGIC: u64 = u64::from_be_bytes(*b"conserve");

/// Changes with everything in this file.
pub const VERSION: u64 = 17;

/// The monitor's slot; a worker's is its number.
pub const MONITOR: usize = 0;

/// Slots: the monitor, the most workers that can be wanted, and the spare of a rolling restart.
pub const SLOTS: usize = 1026;

/// Bytes of one word.
pub const WORD: usize = size_of::<u64>();

/// Words of the header.
pub const HEADER: usize = 128;

/// The words of the header.
pub mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const NONCE: usize = 2;
    pub const LANES: usize = 3;
    pub const PID: usize = 4;
    pub const STARTED: usize = 5;
    pub const PHASE: usize = 6;
    pub const START_METHOD: usize = 7;
    pub const WANTED: usize = 8;
    pub const CONFIG: usize = 9;
    pub const USED: usize = 10;
    pub const HEARTBEAT: usize = 11;
    pub const SERIES: usize = 12;
    /// After how many milliseconds of work on one vCon a lane counts as stuck; 0: never.
    pub const STUCK_AFTER: usize = 13;
    /// Whether any worker has met a vCon that is kept as RedisJSON.
    pub const JSON_SEEN: usize = 14;
    /// When any process was last refused a connection to a storage, because there are too many.
    pub const CROWDED: usize = 15;
    pub const INSTANCE: usize = 16;
    /// For how many series there is room.
    pub const ROOM: usize = 42;
    /// How many words show which links are unavailable; as many show each other kind of stage.
    pub const HELD: usize = 43;
    /// The memory of the supervisor, in bytes, as of its last heartbeat; 0 if unknown.
    pub const MEMORY: usize = 44;
    /// How many workers an operator asks for, and the same with all bits inverted: written by `conserver scale`,
    /// cleared by the supervisor once it has read them.
    pub const SCALE_TO: usize = 45;
    pub const SCALE_CHECK: usize = 46;
    /// For how many reasons each slot has room.
    pub const REASONS: usize = 47;
    /// Processes that took the place of another, by cause.
    pub const RESTARTS: usize = 48;
    /// How many reloads were asked for, and what has become of the last one.
    pub const RELOADS: usize = 54;
    pub const RELOAD_STATE: usize = 55;
    /// How often a worker was told by a server when to ask again.
    pub const WAITS: usize = 56;
    /// The Redis of this daemon, without its password.
    pub const REDIS: usize = 64;
}

/// Words in which the name of the instance stands: its length, then its bytes.
pub const INSTANCE: usize = 26;

/// Words in which the name of its Redis stands, in the same way; a longer one is cut.
pub const REDIS: usize = HEADER - header::REDIS;

/// Words of a slot before the holds and lanes.
pub const SLOT: usize = 32;

/// The supervisor's words of a slot.
pub mod child {
    pub const GENERATION: usize = 0;
    pub const PID: usize = 1;
    pub const STATE: usize = 2;
    pub const SINCE: usize = 3;
    pub const DEATHS: usize = 4;
    pub const RETRY: usize = 5;
    /// How many words these are.
    pub const COUNT: usize = 6;
}

/// The worker's own words of a slot.
pub mod worker {
    /// Since when a stage waits for its budget, or until its server wants to be asked again.
    pub const WAITING_SINCE: usize = 11;
    /// Spans (of the monitor: exports of metrics) that the collector has taken from this worker and its predecessors.
    pub const TELEMETRY_SENT: usize = 12;
    /// The same that nobody has got.
    pub const TELEMETRY_DROPPED: usize = 13;
    /// Of the monitor: the time up to which its last good look at the pauses counts, see `Slot::note_pauses_look`.
    pub const PAUSES_LOOKED: usize = 14;
    /// Of the monitor: the version of the pauses in force, which stand in a file beside the scoreboard. 0 before its
    /// first look at them.
    pub const PAUSES: usize = 15;
    pub const GENERATION: usize = 16;
    pub const STATE: usize = 17;
    pub const HEARTBEAT: usize = 18;
    pub const RELEASED: usize = 19;
    pub const FINISHED: usize = 20;
    pub const HALTED: usize = 21;
    pub const FAILED: usize = 22;
    pub const RETURNED: usize = 23;
    /// The memory of this process, in bytes, as of its last heartbeat; 0 if unknown.
    pub const MEMORY: usize = 24;
    /// Since when a storage that holds no chain is unavailable.
    pub const DEFERRING_SINCE: usize = 25;
    /// Since when any chain is on hold.
    pub const HELD_SINCE: usize = 26;
    /// Processor time of this worker and its predecessors, in microseconds.
    pub const CPU: usize = 27;
    /// Whether this worker has returned what its predecessors left behind.
    pub const RECOVERED: usize = 28;
    /// Of the monitor: since when Redis has been away.
    pub const REDIS_AWAY: usize = 29;
    /// Of the monitor: when it last watched the ingress lists for the lanes that wait.
    pub const LISTS_WATCHED: usize = 30;
    /// Of the monitor: when any process last renewed the lease. The word is in the same page as the
    /// header, so there is always room for it.
    pub const LEASE_RENEWED: usize = 31;
}

/// Kinds of stages that have a bit in each slot: all but Redis.
pub const STAGE_KINDS: usize = StageKind::ALL.len() - 1;

/// Words of a reason.
pub const REASON: usize = reason::TEXT + REASON_TEXT;

/// Words of the text of a reason.
pub const REASON_TEXT: usize = 30;

/// A reason's words.
pub mod reason {
    pub const CHECK: usize = 0;
    /// The kind of the stage, then its position.
    pub const STAGE: usize = 1;
    pub const SINCE: usize = 2;
    pub const SEEN: usize = 3;
    pub const NEXT_TRY: usize = 4;
    pub const LENGTH: usize = 5;
    /// What kind of reason it is.
    pub const WHY: usize = 6;
    /// The mark of the stage's name.
    pub const NAME: usize = 7;
    pub const TEXT: usize = 8;
}

/// The fewest and the most reasons in a slot.
pub const FEWEST_REASONS: usize = 16;
pub const MOST_REASONS: usize = 64;

/// How many outages there is room for.
pub const OUTAGES: usize = 256;

/// Words of an outage.
pub const OUTAGE: usize = outage::HOLDERS + HOLDERS;

/// Words that have a bit for each slot.
pub const HOLDERS: usize = SLOTS.div_ceil(BITS);

/// An outage's words, which any process writes.
pub mod outage {
    /// The hash of its name.
    pub const KEY: usize = 0;
    /// When the log has said that it has begun; 0 if it has not, or has said that it is over.
    pub const SINCE: usize = 1;
    /// The first of those with a bit for each process that has it.
    pub const HOLDERS: usize = 2;
}

/// For how many different statuses of answers there is room.
pub const ANSWERS: usize = 64;

/// Words of a lane.
pub const LANE: usize = 9;

/// A lane's words.
pub mod lane {
    pub const STATE: usize = 0;
    pub const HIGH: usize = 1;
    pub const LOW: usize = 2;
    pub const SINCE: usize = 3;
    pub const LIMIT: usize = 4;
    pub const CHECK: usize = 5;
    /// The step of the chain that the vCon is at; not part of the checksum.
    pub const STEP: usize = 6;
    /// While a request for work may be on its way to Redis: 1 more than the version of the pauses that it follows.
    pub const CLAIMING: usize = 7;
    /// 1 more than the position in the configuration of the chain that the vCon is in; not part of the checksum.
    pub const CHAIN: usize = 8;
}

/// The fewest series there is room for.
pub const FEWEST_SERIES: usize = 256;

/// The most series: the file is sparse, but each that there is takes 5 KB.
pub const MOST_SERIES: usize = 16_384;

/// Words of a series' name: its kind and its length, then its bytes.
pub const NAME: usize = 17;

/// Words of a line of a processor's cache. No two meters share one, as all workers write to them.
const LINE: usize = 8;

/// Words of a meter.
pub const METER: usize = (meter::BUCKETS + BUCKETS).next_multiple_of(LINE);

/// A meter's words.
pub mod meter {
    /// The first of the counters, in the order of [`Event`](super::super::Event).
    pub const COUNTS: usize = 0;
    /// All observed times together, in microseconds.
    pub const SUM: usize = 10;
    /// The first of the histogram's buckets, each for itself.
    pub const BUCKETS: usize = 11;
}

/// Bits of one word.
pub const BITS: usize = 64;

/// What the sizes of a scoreboard follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Lanes of each worker.
    pub lanes: usize,
    /// For how many series there is room.
    pub series: usize,
    /// Words of the holds on links, and as many of each other kind; each link, storage or list has one bit.
    pub held: usize,
    /// For how many reasons each slot has room.
    pub reasons: usize,
}

impl Shape {
    /// For workers with this many lanes, and a configuration with this many chains, links and storages.
    /// There is room for as many again, which reloads may bring.
    pub fn of(lanes: usize, chains: usize, links: usize, storages: usize) -> Self {
        let series = 2 * (chains + links + storages);
        let stages = 2 * links.max(storages);
        Self {
            lanes,
            series: series.clamp(FEWEST_SERIES, MOST_SERIES),
            held: stages.min(MOST_SERIES).div_ceil(BITS).max(2),
            reasons: (2 * (links + storages)).clamp(FEWEST_REASONS, MOST_REASONS),
        }
    }

    /// With room for this many more series, and as many again.
    pub fn with_more_series(self, more: usize) -> Self {
        let series = self.series.saturating_add(2 * more).min(MOST_SERIES);
        Self { series, ..self }
    }

    /// Whether a scoreboard can have these sizes.
    pub fn makes_sense(&self) -> bool {
        (1..=1024).contains(&self.lanes)
            && (1..=MOST_SERIES).contains(&self.series)
            && (1..=MOST_SERIES / BITS).contains(&self.held)
            && (1..=MOST_REASONS).contains(&self.reasons)
    }

    /// Words of one slot.
    pub fn slot_words(&self) -> usize {
        self.lane_start(self.lanes)
    }

    /// The first word of a lane in its slot.
    pub fn lane_start(&self, lane: usize) -> usize {
        SLOT + STAGE_KINDS * self.held + lane * LANE
    }

    /// The first word of a slot.
    pub fn slot_start(&self, number: usize) -> usize {
        HEADER + number * self.slot_words()
    }

    /// The first word of a series' name.
    pub fn name_start(&self, series: usize) -> usize {
        self.slot_start(SLOTS) + series * NAME
    }

    /// The first word of the meter of a series.
    pub fn meter_start(&self, series: usize) -> usize {
        self.name_start(self.series).next_multiple_of(LINE) + series * METER
    }

    /// The first word of a reason of a slot.
    pub fn reason_start(&self, number: usize, reason: usize) -> usize {
        self.meter_start(self.series) + (number * self.reasons + reason) * REASON
    }

    /// The first word of an outage.
    pub fn outage_start(&self, outage: usize) -> usize {
        self.reason_start(SLOTS, 0) + outage * OUTAGE
    }

    /// The word with the status of an answer; 0 while there is none.
    pub fn status_place(&self, answer: usize) -> usize {
        self.outage_start(OUTAGES) + answer
    }

    /// The first word of the meter of an answer.
    pub fn answer_start(&self, answer: usize) -> usize {
        self.status_place(ANSWERS).next_multiple_of(LINE) + answer * METER
    }

    /// Words of the whole file.
    pub fn total_words(&self) -> usize {
        self.answer_start(ANSWERS)
    }

    /// The last bit of the holds, which stands for every further link or storage too.
    pub fn last_held(&self) -> usize {
        self.held * BITS - 1
    }
}

/// A checksum over a lane's words: it is wrong for a reader that meets the writer halfway.
pub fn check(state: u64, high: u64, low: u64, since: u64, limit: u64) -> u64 {
    [state, high, low, since, limit]
        .iter()
        .fold(MAGIC, |sum, word| sum.rotate_left(11) ^ word)
}

/// What the daemon as a whole does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DaemonPhase {
    /// Not every worker has been ready yet.
    Starting = 1,
    /// At work.
    Running,
    /// Replacing its workers one by one, for a new configuration.
    Reloading,
    /// Ending.
    Stopping,
}

impl DaemonPhase {
    pub(super) const ALL: &'static [Self] = &[
        Self::Starting,
        Self::Running,
        Self::Reloading,
        Self::Stopping,
    ];

    /// The name that status, log and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Reloading => "reloading",
            Self::Stopping => "stopping",
        }
    }
}

impl fmt::Display for DaemonPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state of a child, as the supervisor knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildState {
    /// There is no process; one will be started, perhaps after a back-off.
    Vacant = 1,
    /// The last process refused its configuration; no other is started before that changes.
    Refused,
    /// Started, and not ready to take work yet.
    Starting,
    /// Takes work.
    Ready,
    /// Finishes what it has in hand, then ends.
    Draining,
}

impl ChildState {
    pub(super) const ALL: &'static [Self] = &[
        Self::Vacant,
        Self::Refused,
        Self::Starting,
        Self::Ready,
        Self::Draining,
    ];

    /// The name that status, log and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vacant => "restarting",
            Self::Refused => "refused",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for ChildState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What has become of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadState {
    /// It is in progress.
    Begun = 1,
    /// Every worker has the new configuration.
    Done,
    /// The configuration was refused: the former one stays.
    Refused,
    /// A worker could not work with the configuration: the remaining ones were not replaced.
    GivenUp,
}

impl ReloadState {
    pub(super) const ALL: &'static [Self] =
        &[Self::Begun, Self::Done, Self::Refused, Self::GivenUp];
}

/// Why a process was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartCause {
    /// It died.
    Died = 1,
    /// It was killed: a lane had not moved on for its chain's timeout and the longest limit of a call.
    Overdue,
    /// It was killed: it had stopped showing that it was alive.
    Silent,
    /// It was killed: its forkserver had died.
    Forkserver,
    /// It ended by itself to make way for a fresh one.
    Recycled,
    /// It was replaced in a reload.
    Reloaded,
}

impl RestartCause {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Died,
        Self::Overdue,
        Self::Silent,
        Self::Forkserver,
        Self::Recycled,
        Self::Reloaded,
    ];

    /// The name that figures and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Overdue => "overdue",
            Self::Silent => "silent",
            Self::Forkserver => "forkserver",
            Self::Recycled => "recycled",
            Self::Reloaded => "reloaded",
        }
    }
}

/// The state of a worker, as it shows it itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// Returning its predecessor's claims, connecting.
    Starting = 1,
    /// Takes work.
    Ready,
    /// Finishes what it has in hand, then ends.
    Draining,
}

impl WorkerState {
    pub(super) const ALL: &'static [Self] = &[Self::Starting, Self::Ready, Self::Draining];

    /// The name that status, log and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a lane does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneState {
    /// There is nothing to do.
    Idle = 1,
    /// It works on a vCon.
    Busy,
    /// It holds a vCon and waits for a server that is away.
    Waiting,
}

impl LaneState {
    pub(super) const ALL: &'static [Self] = &[Self::Idle, Self::Busy, Self::Waiting];

    /// The name that status, log and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Waiting => "waiting",
        }
    }
}

impl fmt::Display for LaneState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// At which step of its chain a vCon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneStep {
    /// Before the first link: its document is read.
    Load,
    /// At a link, by its position in the configuration.
    Link(usize),
    /// At the storages, which save it at the same time.
    Storages,
    /// At the finish.
    Finish,
}

impl LaneStep {
    /// The number of the first link.
    const LINKS: u64 = 3;

    pub(super) fn word(self) -> u64 {
        match self {
            Self::Load => 0,
            Self::Storages => 1,
            Self::Finish => 2,
            Self::Link(position) => Self::LINKS + position as u64,
        }
    }

    pub(super) fn of_word(word: u64) -> Self {
        match word {
            0 => Self::Load,
            1 => Self::Storages,
            2 => Self::Finish,
            link => Self::Link(usize::try_from(link - Self::LINKS).unwrap_or(usize::MAX)),
        }
    }
}

/// The kinds of what can be unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StageKind {
    /// A link.
    Link = 1,
    /// A storage that holds its chains up.
    Storage,
    /// An egress list.
    List,
    /// A tracer that can fail a vCon.
    Tracer,
    /// The hook `before_processing`.
    Hook,
    /// A storage with `on_outage: defer`, which holds no chain up.
    DeferringStorage,
    /// Redis, as the monitor finds it.
    Redis,
}

impl StageKind {
    pub(super) const ALL: &'static [Self] = &[
        Self::Link,
        Self::Storage,
        Self::List,
        Self::Tracer,
        Self::Hook,
        Self::DeferringStorage,
        Self::Redis,
    ];

    /// Those that hold chains up.
    pub(super) const HOLDING: [Self; 5] = [
        Self::Link,
        Self::Storage,
        Self::List,
        Self::Tracer,
        Self::Hook,
    ];

    /// The first of the words, among those of all kinds in a slot, in which stages of this kind have their bits.
    pub(super) fn first_bits(self, shape: Shape) -> usize {
        (self as usize - 1) * shape.held
    }
}

/// Why nothing is asked of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoldReason {
    /// It does not answer.
    Unavailable = 1,
    /// It answers, and fails for every vCon.
    Failing,
    /// It refuses this deployment: credentials, rights, quota.
    Denied,
    /// Its server has named a time to come again.
    ServerWait,
    /// Its budget is used up.
    Budget,
}

impl HoldReason {
    pub(super) const ALL: &'static [Self] = &[
        Self::Unavailable,
        Self::Failing,
        Self::Denied,
        Self::ServerWait,
        Self::Budget,
    ];

    /// Whether nothing is wrong: it goes on by itself at a known time.
    pub fn is_wait(self) -> bool {
        matches!(self, Self::ServerWait | Self::Budget)
    }
}

/// The state that a word stands for, if any.
pub(super) fn state<T: Copy>(all: &[T], word: u64) -> Option<T> {
    let index = usize::try_from(word.checked_sub(1)?).ok()?;
    all.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_a_word_of_its_own() {
        let steps = [LaneStep::Load, LaneStep::Storages, LaneStep::Finish];
        for step in steps.into_iter().chain([0, 1, 5000].map(LaneStep::Link)) {
            assert_eq!(LaneStep::of_word(step.word()), step);
        }
    }

    #[test]
    fn there_is_room_for_the_configuration_and_as_much_again() {
        for (counts, series, held) in [
            ((0, 0, 0), FEWEST_SERIES, 2),
            ((100, 20, 8), FEWEST_SERIES, 2),
            ((300, 40, 70), 820, 3),
            ((1_000_000, 0, 100_000), MOST_SERIES, MOST_SERIES / BITS),
        ] {
            let (chains, links, storages) = counts;
            let shape = Shape::of(8, chains, links, storages);
            assert_eq!((shape.series, shape.held), (series, held), "{counts:?}");
            assert!(shape.makes_sense());
            assert!(shape.last_held() >= links.max(storages).min(MOST_SERIES - 1));
        }
        for broken in [
            (0, 256, 2, 16),
            (1, 0, 2, 16),
            (1, 256, 0, 16),
            (1, usize::MAX, 1, 16),
            (1, 256, 2, 0),
            (1, 256, 2, usize::MAX),
        ] {
            let (lanes, series, held, reasons) = broken;
            let shape = Shape {
                lanes,
                series,
                held,
                reasons,
            };
            assert!(!shape.makes_sense(), "{broken:?}");
        }
    }
}
