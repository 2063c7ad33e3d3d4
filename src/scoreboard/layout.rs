//! Where everything stands in the file: 64-bit words in the byte order of the machine.
//!
//! ```text
//! header | slot of the monitor | slot of Worker-1 | slot of Worker-2 | …
//!        | names of the series | meters of the monitor | meters of Worker-1 | …
//! slot:    the supervisor's words | the worker's own words | lane 1 | lane 2 | …
//! meters:  series 1 | series 2 | …
//! ```
//!
//! A slot belongs to a number, not to a process: its counters and meters go on through restarts.
//! Each half of it has one writer. A series is a chain, a link or a storage; it keeps its place for
//! as long as the supervisor lives, whatever configurations come and go.

/// The first word of every scoreboard.
pub const MAGIC: u64 = u64::from_be_bytes(*b"conserve");

/// Changes with everything in this file.
pub const VERSION: u64 = 7;

/// The monitor's slot; a worker's is its number.
pub const MONITOR: usize = 0;

/// Slots: the monitor, the most workers that can be wanted, and one more for a rolling restart.
pub const SLOTS: usize = 1026;

/// Bytes of one word.
pub const WORD: usize = size_of::<u64>();

/// Words of the header.
pub const HEADER: usize = 128;

/// Words of the header, by their place in it.
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
    pub const BEAT: usize = 11;
    pub const SERIES: usize = 12;
    /// After how many milliseconds of work on one vCon a lane counts as stuck; 0: never.
    pub const STUCK_AFTER: usize = 13;
    /// Whether any worker has met a vCon that is kept as RedisJSON.
    pub const JSON_SEEN: usize = 14;
    /// When any process was last refused a connection to a storage, because there are too many.
    pub const CROWDED: usize = 15;
    pub const INSTANCE: usize = 16;
    /// Processes that took the place of another, by cause.
    pub const RESTARTS: usize = 48;
}

/// Words in which the name of the instance stands: its length, then its bytes.
pub const INSTANCE: usize = 26;

/// Words of a slot before its lanes.
pub const SLOT: usize = 32;

/// The supervisor's words of a slot.
pub mod place {
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
    pub const GENERATION: usize = 16;
    pub const STATE: usize = 17;
    pub const BEAT: usize = 18;
    pub const SETTLED: usize = 19;
    pub const FINISHED: usize = 20;
    pub const HALTED: usize = 21;
    pub const FAILED: usize = 22;
    pub const RETURNED: usize = 23;
    /// Which links chains are on hold for: a bit for each, by its place in the configuration.
    pub const HELD_LINKS: usize = 24;
    /// Likewise for storages.
    pub const HELD_STORAGES: usize = 25;
    /// Since when any chain is on hold.
    pub const HELD_SINCE: usize = 26;
    /// Processor time of this worker and its predecessors, in microseconds.
    pub const CPU: usize = 27;
    /// Whether this worker has returned what its predecessors left behind.
    pub const RECOVERED: usize = 28;
    /// Of the monitor: since when Redis has been away.
    pub const REDIS_AWAY: usize = 29;
    /// Of the monitor: when it last watched the ingress lists for the lanes that wait.
    pub const WATCH_BEAT: usize = 30;
    /// Of the monitor: when the lease was last renewed, by whichever process did it. It stands in
    /// the same page as the header, so there is always room for it.
    pub const LEASE_BEAT: usize = 31;
}

/// Words of a lane.
pub const LANE: usize = 8;

/// A lane's words.
pub mod lane {
    pub const STATE: usize = 0;
    pub const HIGH: usize = 1;
    pub const LOW: usize = 2;
    pub const SINCE: usize = 3;
    pub const LIMIT: usize = 4;
    pub const CHECK: usize = 5;
}

/// The most series there is room for.
pub const SERIES: usize = 256;

/// Words of a series' name: its kind and its length, then its bytes.
pub const NAME: usize = 17;

/// Words of a meter.
pub const METER: usize = 32;

/// A meter's words.
pub mod meter {
    /// The first of the counters, in the order of [`Event`](super::super::Event).
    pub const COUNTS: usize = 0;
    /// All observed times together, in microseconds.
    pub const SUM: usize = 8;
    /// The first of the histogram's buckets, each for itself.
    pub const BUCKETS: usize = 9;
}

/// Words of one slot with so many lanes.
pub fn slot_words(lanes: usize) -> usize {
    SLOT + lanes * LANE
}

/// The first word of a slot.
pub fn slot_start(number: usize, lanes: usize) -> usize {
    HEADER + number * slot_words(lanes)
}

/// The first word of a series' name.
pub fn name_start(series: usize, lanes: usize) -> usize {
    slot_start(SLOTS, lanes) + series * NAME
}

/// The first word of the meter of a series in a slot.
pub fn meter_start(number: usize, series: usize, lanes: usize) -> usize {
    name_start(SERIES, lanes) + (number * SERIES + series) * METER
}

/// Words of the whole file.
pub fn total_words(lanes: usize) -> usize {
    meter_start(SLOTS, 0, lanes)
}

/// Ties a lane's words together: a reader that meets a writer halfway finds it wrong.
pub fn check(state: u64, high: u64, low: u64, since: u64, limit: u64) -> u64 {
    [state, high, low, since, limit]
        .iter()
        .fold(MAGIC, |sum, word| sum.rotate_left(11) ^ word)
}
