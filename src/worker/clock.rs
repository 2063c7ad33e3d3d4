//! A lane's time for one vCon, as the scoreboard shows it, with its waits.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::retry::Draining;
use crate::deadline::Deadline;
use crate::scoreboard::LaneCell;
use crate::vcon::VconId;

/// The longest pause of a lane of a worker that drains already.
const SHORT: Duration = Duration::from_millis(100);

/// A limit of nothing would be shown as none.
const MOMENT: Duration = Duration::from_millis(1);

/// The time that a lane has for what it has in hand. It stands still while the lane waits for a
/// server that is unavailable, also when it waits inside a call.
pub(super) struct Clock<'a> {
    drain: &'a Receiver<()>,
    cell: Option<&'a LaneCell>,
    id: Option<VconId>,
    /// How much of the chain's time is left, and since when it runs; not at all if there is no limit.
    left: Cell<Option<Duration>>,
    since: Cell<Instant>,
    /// The longest that a call may take which does not know of the limit.
    longest_call: Duration,
    has_work: bool,
    ended: Cell<bool>,
    drain_end: Cell<Option<Instant>>,
}

impl<'a> Clock<'a> {
    /// Nothing in hand.
    pub fn idle(drain: &'a Receiver<()>, cell: Option<&'a LaneCell>) -> Self {
        Self {
            drain,
            cell,
            id: None,
            left: Cell::new(None),
            since: Cell::new(Instant::now()),
            longest_call: Duration::ZERO,
            has_work: false,
            ended: Cell::new(false),
            drain_end: Cell::new(None),
        }
    }

    /// Works on a vCon from now on, for at most `limit`; no call takes longer than `longest_call`.
    pub fn start(
        drain: &'a Receiver<()>,
        cell: &'a LaneCell,
        id: Option<VconId>,
        limit: Option<Duration>,
        longest_call: Duration,
    ) -> Self {
        let mut this = Self::idle(drain, Some(cell));
        (this.id, this.longest_call, this.has_work) = (id, longest_call, true);
        this.run(limit);
        this
    }

    /// The channel that is disconnected when the worker drains.
    pub fn drain(&self) -> &'a Receiver<()> {
        self.drain
    }

    /// When work that is still going on must have ended, once it has noticed the drain.
    pub fn drain_end(&self) -> &Cell<Option<Instant>> {
        &self.drain_end
    }

    /// Runs a call; the time of one that failed for no fault of the vCon was a wait.
    pub fn timed<T>(
        &self,
        call: impl FnOnce(Deadline) -> T,
        was_a_wait: impl FnOnce(&T) -> bool,
    ) -> T {
        let left = self.left();
        // The deadline ends calls and not the work: after it, each call shows that the lane moves.
        if left == Some(Duration::ZERO) {
            self.go_on(left);
        }
        let result = call(Deadline::after(left));
        if was_a_wait(&result) {
            self.left.set(left);
            self.since.set(Instant::now());
            self.go_on(left);
        }
        result
    }

    /// Waits; ends early when the worker drains.
    pub fn wait(&self, time: Duration) -> Result<(), Draining> {
        self.pause();
        let waited = self.drain.recv_timeout(time);
        self.resume();
        match waited {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Draining),
        }
    }

    /// Waits, whatever happens: until the worker begins to drain, or, if it does, for a short time.
    pub fn insist(&self, time: Duration) {
        self.pause();
        if self.is_draining() {
            thread::sleep(time.min(SHORT));
        } else {
            let _ = self.drain.recv_timeout(time);
        }
        self.resume();
    }

    /// Whether the worker drains.
    pub fn is_draining(&self) -> bool {
        self.drain.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// No limit runs from now on, and what is in hand is not to blame for anything.
    pub fn pause(&self) {
        self.left.set(self.left());
        self.since.set(Instant::now());
        if let Some(cell) = self.cell.filter(|_| self.has_work) {
            cell.waiting(self.id.as_ref());
        }
    }

    /// The work is done: what is in hand is only to be let go of, and no limit runs any more.
    pub fn end(&self) {
        self.pause();
        self.ended.set(true);
    }

    /// The work goes on after all.
    pub fn begin_again(&self) {
        self.ended.set(false);
        self.resume();
    }

    /// The limit runs on.
    pub fn resume(&self) {
        self.run(self.left.get());
    }

    fn left(&self) -> Option<Duration> {
        let left = self.left.get()?;
        if self.ended.get() {
            return Some(left);
        }
        Some(left.saturating_sub(self.since.get().elapsed()))
    }

    /// The limit runs from now on, with so much left.
    fn run(&self, left: Option<Duration>) {
        self.left.set(left);
        self.since.set(Instant::now());
        if let Some(cell) = self.shown() {
            cell.busy(self.id.as_ref(), left.map(|left| self.limit(left)));
        }
    }

    /// Shows that the lane moves, with so much left.
    fn go_on(&self, left: Option<Duration>) {
        if let (Some(left), Some(cell)) = (left, self.shown()) {
            cell.goes_on(self.id.as_ref(), Some(self.limit(left)));
        }
    }

    /// How long the lane may show nothing new, with so much left.
    fn limit(&self, left: Duration) -> Duration {
        left.max(MOMENT).saturating_add(self.longest_call)
    }

    /// Where the lane shows its work.
    fn shown(&self) -> Option<&LaneCell> {
        self.cell.filter(|_| self.has_work && !self.ended.get())
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.filter(|_| self.has_work) {
            cell.idle();
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::never;

    use super::*;

    fn with_limit(drain: &Receiver<()>, limit: Duration) -> Clock<'_> {
        let clock = Clock::idle(drain, None);
        clock.run(Some(limit));
        clock
    }

    #[test]
    fn the_time_of_a_failed_call_and_of_a_pause_does_not_count() {
        let (drain, limit) = (never(), Duration::from_secs(60));
        let clock = with_limit(&drain, limit);
        let slow = |_| thread::sleep(Duration::from_millis(5));
        clock.timed(slow, |()| true);
        let left = clock.left.get().unwrap_or_default();
        assert!(limit - left < Duration::from_millis(5), "{left:?}");
        clock.pause();
        let paused = clock.left.get();
        thread::sleep(Duration::from_millis(5));
        clock.resume();
        assert_eq!(clock.left.get(), paused);
        clock.timed(slow, |()| false);
        assert!(clock.left().unwrap_or(limit) <= left - Duration::from_millis(5));
    }

    #[test]
    fn the_time_between_the_end_and_a_new_begin_does_not_count() {
        let drain = never();
        let clock = with_limit(&drain, Duration::from_secs(60));
        clock.end();
        let left = clock.left.get();
        // As a finish does that Redis does not answer.
        thread::sleep(Duration::from_millis(5));
        clock.pause();
        clock.resume();
        thread::sleep(Duration::from_millis(5));
        clock.begin_again();
        assert_eq!(clock.left.get(), left);
    }

    #[test]
    fn a_pause_that_nothing_may_end_is_ended_by_the_drain() {
        let (hold, drain) = crossbeam_channel::bounded(0);
        let clock = Clock::idle(&drain, None);
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| drop(hold));
            clock.insist(Duration::from_secs(600));
        });
        clock.insist(Duration::from_secs(600));
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(clock.wait(Duration::from_secs(600)).is_err());
    }
}
