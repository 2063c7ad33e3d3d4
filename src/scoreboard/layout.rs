//! Where everything stands in the file: 64-bit words in the byte order of the machine.
//!
//! ```text
//! header | slot of the monitor | slot of Worker-1 | slot of Worker-2 | …
//!        | names of the series | meters of the monitor | meters of Worker-1 | …
//! slot:    the supervisor's words | the worker's own words | held links | held storages | lane 1 | lane 2 | …
//! meters:  series 1 | series 2 | …
//! ```
//!
//! A slot belongs to a number, not to a process: its counters and meters go on through restarts.
//! Each half of it has one writer. A series is a chain, a link or a storage; it keeps its place for
//! as long as the supervisor lives, whatever configurations come and go. How much room there is for
//! series and for holds is settled at the start, by the configuration that is in force then: see [`Shape`].

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
    /// For how many series there is room.
    pub const ROOM: usize = 42;
    /// In how many words it stands which links are held, and in as many which storages.
    pub const HELD: usize = 43;
    /// The memory of the supervisor, in bytes, as of its last beat; 0 where it does not know.
    pub const MEMORY: usize = 44;
    /// Processes that took the place of another, by cause.
    pub const RESTARTS: usize = 48;
}

/// Words in which the name of the instance stands: its length, then its bytes.
pub const INSTANCE: usize = 26;

/// Words of a slot before the holds and lanes.
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
    /// The memory of this worker, in bytes, as of its last beat; 0 where it does not know.
    pub const MEMORY: usize = 24;
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

/// The fewest series there is room for.
pub const FEWEST_SERIES: usize = 256;

/// The most: the file is sparse, but a worker takes a quarter of a kilobyte for each.
pub const MOST_SERIES: usize = 16_384;

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

/// Bits of one word.
pub const BITS: usize = 64;

/// What the sizes of a scoreboard follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Lanes of each worker.
    pub lanes: usize,
    /// For how many series there is room.
    pub series: usize,
    /// Words of the holds on links, and as many of those on storages; each link or storage has one bit.
    pub held: usize,
}

impl Shape {
    /// For workers of so many lanes, and a configuration of so many chains, links and storages; with room
    /// for as many again, which reloads may bring.
    pub fn of(lanes: usize, chains: usize, links: usize, storages: usize) -> Self {
        let series = 2 * (chains + links + storages);
        let stages = 2 * links.max(storages);
        Self {
            lanes,
            series: series.clamp(FEWEST_SERIES, MOST_SERIES),
            held: stages.min(MOST_SERIES).div_ceil(BITS).max(2),
        }
    }

    /// Whether a scoreboard can have these sizes.
    pub fn makes_sense(&self) -> bool {
        (1..=1024).contains(&self.lanes)
            && (1..=MOST_SERIES).contains(&self.series)
            && (1..=MOST_SERIES / BITS).contains(&self.held)
    }

    /// Words of one slot.
    pub fn slot_words(&self) -> usize {
        self.lane_start(self.lanes)
    }

    /// The first word of a lane in its slot.
    pub fn lane_start(&self, lane: usize) -> usize {
        SLOT + 2 * self.held + lane * LANE
    }

    /// The first word of a slot.
    pub fn slot_start(&self, number: usize) -> usize {
        HEADER + number * self.slot_words()
    }

    /// The first word of a series' name.
    pub fn name_start(&self, series: usize) -> usize {
        self.slot_start(SLOTS) + series * NAME
    }

    /// The first word of the meter of a series in a slot.
    pub fn meter_start(&self, number: usize, series: usize) -> usize {
        self.name_start(self.series) + (number * self.series + series) * METER
    }

    /// Words of the whole file.
    pub fn total_words(&self) -> usize {
        self.meter_start(SLOTS, 0)
    }

    /// The bit of the holds that stands for every place from there on.
    pub fn last_held(&self) -> usize {
        self.held * BITS - 1
    }
}

/// Ties a lane's words together: a reader that meets a writer halfway finds it wrong.
pub fn check(state: u64, high: u64, low: u64, since: u64, limit: u64) -> u64 {
    [state, high, low, since, limit]
        .iter()
        .fold(MAGIC, |sum, word| sum.rotate_left(11) ^ word)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for broken in [(0, 256, 2), (1, 0, 2), (1, 256, 0), (1, usize::MAX, 1)] {
            let (lanes, series, held) = broken;
            let shape = Shape {
                lanes,
                series,
                held,
            };
            assert!(!shape.makes_sense(), "{broken:?}");
        }
    }
}
