//! Which outages the log has, so that it has each once for all processes of the daemon.
//!
//! ```text
//!            a process finds it, and nobody has logged it
//! unlogged ───────────────────────────────────────────────► logged, by this one
//!    ▲                                                        │ others find it: no line
//!    └────────────────────────────────────────────────────────┘
//!       the last that had it has it no more, and logs the end
//! ```
//!
//! Each outage has a bit for every process that has it, and the time of the line in the log. Whoever has the
//! outage sets its bit before it looks at that time, and whoever has it no more clears its bit before it looks
//! for others: so of two that meet, at least one sees the other. The bit of a process that is dead or replaced
//! does not count. What was logged and nobody has any more (its process has died) is settled by the first that
//! finds all well, or logged again by the first that does not.
//!
//! If there are more outages than room, each process logs the further ones for itself.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use super::layout::{self, BITS, HOLDERS, OUTAGES, child, outage, worker};
use super::{ChildState, Slot};
use crate::sys;

/// The words of one outage.
struct OutageCell<'a> {
    words: &'a [AtomicU64],
}

/// What the search for an outage has found.
enum OutageSearch<'a> {
    Found(OutageCell<'a>),
    /// Nobody has ever had it, and there is room for it in this cell.
    Unknown(OutageCell<'a>),
    /// There is no room.
    Full,
}

impl OutageCell<'_> {
    fn key(&self) -> &AtomicU64 {
        &self.words[outage::KEY]
    }

    /// When it was logged, in monotonic milliseconds; 0 if it was not.
    fn since(&self) -> &AtomicU64 {
        &self.words[outage::SINCE]
    }

    /// The word with the bit of a process.
    fn holders(&self, number: usize) -> (&AtomicU64, u64) {
        let word = &self.words[outage::HOLDERS + number / BITS];
        (word, 1 << (number % BITS))
    }

    /// Whether the log has had it for this time; it is not there any more then.
    fn take(&self) -> Option<Duration> {
        let since = self.since().load(SeqCst);
        let is_ours = since > 0
            && self
                .since()
                .compare_exchange(since, 0, SeqCst, SeqCst)
                .is_ok();
        is_ours.then(|| Duration::from_millis(sys::monotonic_ms().saturating_sub(since)))
    }

    /// Notes that the log has it. Returns false if it has had it before.
    fn note(&self) -> bool {
        let now = sys::monotonic_ms().max(1);
        self.since()
            .compare_exchange(0, now, SeqCst, SeqCst)
            .is_ok()
    }
}

impl Slot {
    /// This process has this outage. Returns whether that is to be logged.
    pub fn begin_outage(&self, what: fmt::Arguments<'_>) -> bool {
        let Some(cell) = self.outage(what) else {
            return true;
        };
        let (word, bit) = cell.holders(self.number);
        let had_it = word.fetch_or(bit, SeqCst) & bit != 0;
        if cell.note() {
            return true;
        }
        if had_it || self.is_held_by_others(&cell) {
            return false;
        }
        // Those who had it have died.
        cell.since().store(sys::monotonic_ms().max(1), SeqCst);
        true
    }

    /// This process has this outage still. Returns whether that is to be logged after all: others have logged
    /// its end just when it began here.
    pub fn renew_outage(&self, what: fmt::Arguments<'_>) -> bool {
        match self.find_outage(what) {
            OutageSearch::Found(cell) => {
                let (word, bit) = cell.holders(self.number);
                word.fetch_or(bit, SeqCst);
                cell.note()
            }
            OutageSearch::Unknown(_) | OutageSearch::Full => false,
        }
    }

    /// This process does not know whether it has this outage still.
    pub fn leave_outage(&self, what: fmt::Arguments<'_>) {
        if let OutageSearch::Found(cell) = self.find_outage(what) {
            self.leave(&cell);
        }
    }

    /// This process has this outage no more. If no other has it either, returns for how long the log has had
    /// it, so that its end is logged.
    pub fn end_outage(&self, what: fmt::Arguments<'_>) -> Option<Duration> {
        match self.find_outage(what) {
            OutageSearch::Found(cell) => {
                self.leave(&cell);
                self.settle(&cell)
            }
            OutageSearch::Unknown(_) => None,
            OutageSearch::Full => Some(Duration::ZERO),
        }
    }

    /// All is well here. If the log has this outage and no process does, returns for how long it has had it, so
    /// that its end is logged.
    pub fn settle_outage(&self, what: fmt::Arguments<'_>) -> Option<Duration> {
        // Nearly always there never was any.
        if self.outage_cell(0).key().load(SeqCst) == 0 {
            return None;
        }
        match self.find_outage(what) {
            OutageSearch::Found(cell) => self.settle(&cell),
            OutageSearch::Unknown(_) | OutageSearch::Full => None,
        }
    }

    /// Whether no process has logged this for `pause`; the caller does so now.
    pub fn is_log_due(&self, what: fmt::Arguments<'_>, pause: Duration) -> bool {
        let Some(cell) = self.outage(what) else {
            return true;
        };
        let (last, now) = (cell.since().load(SeqCst), sys::monotonic_ms().max(1));
        let is_due = last == 0 || u128::from(now.saturating_sub(last)) >= pause.as_millis();
        is_due
            && cell
                .since()
                .compare_exchange(last, now, SeqCst, SeqCst)
                .is_ok()
    }

    /// What a predecessor had is not known to be so still.
    pub(super) fn leave_all_outages(&self) {
        for index in 0..OUTAGES {
            let cell = self.outage_cell(index);
            if cell.key().load(SeqCst) == 0 {
                return;
            }
            self.leave(&cell);
        }
    }

    fn leave(&self, cell: &OutageCell<'_>) {
        let (word, bit) = cell.holders(self.number);
        if word.load(SeqCst) & bit != 0 {
            word.fetch_and(!bit, SeqCst);
        }
    }

    fn settle(&self, cell: &OutageCell<'_>) -> Option<Duration> {
        if cell.since().load(SeqCst) == 0 {
            return None;
        }
        let (word, bit) = cell.holders(self.number);
        let is_held = word.load(SeqCst) & bit != 0 || self.is_held_by_others(cell);
        (!is_held).then(|| cell.take()).flatten()
    }

    /// Whether another process that lives has this outage.
    fn is_held_by_others(&self, cell: &OutageCell<'_>) -> bool {
        (0..HOLDERS).any(|index| {
            let mut bits = cell.words[outage::HOLDERS + index].load(SeqCst);
            while bits != 0 {
                let number = index * BITS + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if number != self.number && self.is_alive(number) {
                    return true;
                }
            }
            false
        })
    }

    /// Whether the process that writes to this slot lives, as far as the supervisor knows.
    pub(super) fn is_alive(&self, number: usize) -> bool {
        if number >= layout::SLOTS {
            return false;
        }
        let word =
            |index: usize| self.words.words()[self.shape.slot_start(number) + index].load(SeqCst);
        let lives = matches!(
            layout::state(ChildState::ALL, word(child::STATE)),
            Some(ChildState::Starting | ChildState::Ready | ChildState::Draining)
        );
        lives && word(child::GENERATION) == word(worker::GENERATION)
    }

    /// The cell of an outage; `None` if there is no room for it.
    fn outage(&self, what: fmt::Arguments<'_>) -> Option<OutageCell<'_>> {
        loop {
            match self.find_outage(what) {
                OutageSearch::Found(cell) => return Some(cell),
                OutageSearch::Unknown(cell) => {
                    // If another process is faster, this may be the cell of another outage by now.
                    let key = key(what);
                    if cell.key().compare_exchange(0, key, SeqCst, SeqCst).is_ok() {
                        return Some(cell);
                    }
                }
                OutageSearch::Full => return None,
            }
        }
    }

    fn find_outage(&self, what: fmt::Arguments<'_>) -> OutageSearch<'_> {
        let key = key(what);
        // Cells fill up in their order, and keep their outage.
        for index in 0..OUTAGES {
            let cell = self.outage_cell(index);
            match cell.key().load(SeqCst) {
                0 => return OutageSearch::Unknown(cell),
                found if found == key => return OutageSearch::Found(cell),
                _ => {}
            }
        }
        OutageSearch::Full
    }

    fn outage_cell(&self, index: usize) -> OutageCell<'_> {
        let start = self.shape.outage_start(index);
        OutageCell {
            words: &self.words.words()[start..start + layout::OUTAGE],
        }
    }
}

/// The hash of a text (FNV-1a), which is never 0.
pub(super) fn key(what: fmt::Arguments<'_>) -> u64 {
    struct Hash(u64);
    impl fmt::Write for Hash {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for byte in text.bytes() {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
            Ok(())
        }
    }
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    // It takes any text.
    let _ = hash.write_fmt(what);
    hash.0.max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;

    use tempfile::TempDir;

    use super::*;
    use crate::scoreboard::{Board, ChildView, Shape};

    /// A scoreboard with the slots of four workers.
    struct TestBoard {
        board: Board,
        _folder: TempDir,
    }

    impl TestBoard {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
            Self {
                board,
                _folder: folder,
            }
        }

        fn show(&mut self, number: usize, generation: u64, state: ChildState) {
            let child = ChildView {
                generation,
                pid: None,
                state,
                since: 0,
                deaths: 0,
                retry: None,
            };
            self.board.prepare(number).unwrap();
            self.board.show_child(number, Some(child));
        }

        /// A worker that has just been started.
        fn start(&mut self, number: usize, generation: u64) -> Slot {
            self.show(number, generation, ChildState::Starting);
            Slot::attach(self.board.id(), number, generation).unwrap()
        }

        fn workers(&mut self) -> [Slot; 4] {
            [1, 2, 3, 70].map(|number| self.start(number, 1))
        }
    }

    fn begin(slot: &Slot) -> bool {
        slot.begin_outage(format_args!("storage {} is away", "s3"))
    }

    fn renew(slot: &Slot) -> bool {
        slot.renew_outage(format_args!("storage s3 is away"))
    }

    fn end(slot: &Slot) -> bool {
        slot.end_outage(format_args!("storage s3 is away"))
            .is_some()
    }

    fn settle(slot: &Slot) -> bool {
        slot.settle_outage(format_args!("storage s3 is away"))
            .is_some()
    }

    #[test]
    fn the_first_that_has_an_outage_logs_it_and_the_last_logs_its_end() {
        let mut board = TestBoard::new();
        let workers = board.workers();
        assert!(!settle(&workers[0]) && !end(&workers[0]) && !renew(&workers[0]));
        for _ in 0..3 {
            let begun = workers.each_ref().map(begin);
            assert_eq!(begun, [true, false, false, false]);
            assert!(!begin(&workers[1]) && !renew(&workers[1]) && !settle(&workers[1]));
            let other = workers[0].begin_outage(format_args!("storage pg is away"));
            assert!(other);
            assert_eq!(workers.each_ref().map(end), [false, false, false, true]);
            assert!(!end(&workers[3]) && !settle(&workers[3]));
            let over = workers[0].end_outage(format_args!("storage pg is away"));
            assert!(over.is_some());
        }
        // It comes and goes with one, while another has it all the time.
        assert!(begin(&workers[0]) && !begin(&workers[1]));
        assert!(!end(&workers[1]) && !begin(&workers[1]) && !end(&workers[0]));
        assert!(end(&workers[1]));
    }

    #[test]
    fn the_end_is_logged_by_the_next_that_finds_all_well_if_the_last_has_died() {
        let mut board = TestBoard::new();
        let [one, two, ..] = board.workers();
        assert!(begin(&one));
        assert!(!settle(&two), "the other has it still");
        board.show(1, 1, ChildState::Vacant);
        assert!(settle(&two));
        assert!(!settle(&two));
        // Or its successor has come.
        let _one = board.start(1, 2);
        assert!(begin(&two));
        let two = board.start(2, 2);
        assert!(settle(&two));
        // Nobody knows.
        assert!(begin(&two));
        two.leave_outage(format_args!("storage s3 is away"));
        assert!(settle(&two));
    }

    #[test]
    fn an_outage_whose_holders_have_died_is_logged_again() {
        let mut board = TestBoard::new();
        let [one, two, three, _] = board.workers();
        assert!(begin(&one) && !begin(&two));
        board.show(1, 1, ChildState::Vacant);
        assert!(!begin(&three), "the second has it");
        board.show(2, 2, ChildState::Starting);
        assert!(!begin(&three), "it is known to this one");
        let two = board.start(2, 2);
        assert!(!begin(&two) && !end(&two) && end(&three));
        assert!(begin(&two));
        board.show(2, 2, ChildState::Vacant);
        assert!(begin(&three));
    }

    #[test]
    fn of_many_at_once_one_logs_the_begin_and_one_the_end() {
        let mut board = TestBoard::new();
        let workers = board.workers();
        let count = |step: fn(&Slot) -> bool| {
            thread::scope(|scope| {
                let all: Vec<_> = (workers.iter())
                    .map(|slot| scope.spawn(move || step(slot)))
                    .collect();
                let logged = all.into_iter().map(|it| it.join().unwrap());
                logged.filter(|is_logged| *is_logged).count()
            })
        };
        for _ in 0..200 {
            assert_eq!((count(begin), count(renew), count(end)), (1, 0, 1));
        }
    }

    #[test]
    fn whatever_comes_and_goes_at_once_no_line_is_lost_for_good() {
        let mut board = TestBoard::new();
        let workers = board.workers();
        thread::scope(|scope| {
            for slot in &workers {
                scope.spawn(move || {
                    for _ in 0..500 {
                        begin(slot);
                        renew(slot);
                        end(slot);
                    }
                });
            }
        });
        // All is well, and the log has nothing.
        assert!(!settle(&workers[0]));
        assert!(begin(&workers[0]) && end(&workers[0]));
    }

    #[test]
    fn beyond_what_there_is_room_for_everybody_logs_for_himself() {
        let mut board = TestBoard::new();
        let [one, two, ..] = board.workers();
        for number in 0..OUTAGES {
            assert!(one.begin_outage(format_args!("{number}")));
            assert!(!two.begin_outage(format_args!("{number}")));
        }
        assert!(begin(&one) && begin(&two) && !renew(&one));
        assert!(end(&one) && end(&two) && !settle(&one));
    }

    #[test]
    fn what_is_logged_now_and_then_is_logged_by_one_of_all() {
        let mut board = TestBoard::new();
        let [one, two, ..] = board.workers();
        let is_due = |slot: &Slot, pause| slot.is_log_due(format_args!("attempt"), pause);
        let long = Duration::from_secs(600);
        assert!(is_due(&one, long) && !is_due(&two, long) && !is_due(&one, long));
        assert!(is_due(&two, Duration::ZERO));
    }
}
