//! Trying again and waiting, as one lane does it.
//!
//! - [`Attempts`]: the attempts of one vCon at one backend.
//! - [`Outage`]: waits for Redis until it is back, and logs that once for all lanes of all workers.
//! - [`LaneClock`]: the time that a chain's `timeout` leaves for a vCon. It stands still during every
//!   wait, and shows on the scoreboard what the lane does.
//!
//! The pauses themselves are in [`crate::backoff`]; what follows after the last attempt is decided in
//! `release`.

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::queue::QueueError;
use crate::scoreboard::{LaneCell, LaneStep, Slot};
use crate::settings::Settings;
use crate::vcon::VconId;

/// The longest wait of [`LaneClock::wait_anyway`] while the worker drains.
const DRAIN_PAUSE: Duration = Duration::from_millis(100);

/// The scoreboard takes a limit of zero for no limit.
const SHORTEST_LIMIT: Duration = Duration::from_millis(1);

/// The worker drains; there is no time to wait.
#[derive(Debug)]
pub(super) struct Draining;

/// The attempts of one vCon at one backend: at most `CONSERVER_RETRY_ATTEMPTS`, with growing pauses.
pub(super) struct Attempts {
    backoff: Backoff,
    most: u32,
}

impl Attempts {
    /// No attempt yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            backoff: Backoff::new(settings.retry_first, settings.retry_max),
            most: settings.retry_attempts,
        }
    }

    /// The number of the current attempt, from 1.
    pub fn number(&self) -> u32 {
        self.backoff.failures().saturating_add(1)
    }

    /// After a failed attempt: waits for the next one. Returns false if it was the last.
    pub fn wait_for_next(&mut self, clock: &LaneClock<'_>) -> Result<bool, Draining> {
        if self.number() >= self.most {
            return Ok(false);
        }
        clock.wait(self.backoff.next_wait())?;
        Ok(true)
    }
}

/// The name of the outage for the log.
const REDIS: &str = "Redis is away";

/// How many threads of this worker find Redis unavailable, so that only the first and the last of all workers
/// log it.
pub(super) struct SharedOutage {
    slot: Slot,
    state: Mutex<(usize, Option<Instant>)>,
}

impl SharedOutage {
    /// Nobody finds it unavailable.
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            state: Mutex::default(),
        }
    }

    /// One more thread finds it unavailable. Returns whether that is to be logged.
    fn begin(&self) -> bool {
        let mut state = self.state();
        let (threads, since) = &mut *state;
        *threads += 1;
        since.get_or_insert_with(Instant::now);
        *threads == 1 && self.slot.begin_outage(format_args!("{REDIS}"))
    }

    /// One of these threads finds it unavailable still. Returns whether that is to be logged after all.
    fn renew(&self) -> bool {
        self.slot.renew_outage(format_args!("{REDIS}"))
    }

    /// One of these threads has reached it again. Returns how long the outage was if its end is to be logged.
    fn end(&self) -> Option<Duration> {
        let mut state = self.state();
        let time = Self::remove_one(&mut state)?;
        let logged = self.slot.end_outage(format_args!("{REDIS}"))?;
        Some(logged.max(time))
    }

    /// A thread that was not among these has reached it. Returns how long the outage was if its end is to be
    /// logged.
    fn settle(&self) -> Option<Duration> {
        self.slot.settle_outage(format_args!("{REDIS}"))
    }

    /// One of these threads ends.
    fn leave(&self) {
        let mut state = self.state();
        if Self::remove_one(&mut state).is_some() {
            self.slot.leave_outage(format_args!("{REDIS}"));
        }
    }

    /// One thread less. Returns for how long there were any if it was the last.
    fn remove_one((threads, since): &mut (usize, Option<Instant>)) -> Option<Duration> {
        *threads = threads.saturating_sub(1);
        since
            .take_if(|_| *threads == 0)
            .map(|since| since.elapsed())
    }

    fn state(&self) -> MutexGuard<'_, (usize, Option<Instant>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An outage of Redis, as one thread sees it.
pub(super) struct Outage {
    backoff: Backoff,
    /// Tries since the worker began to drain, and how many are allowed.
    drain_tries: u32,
    most_drain_tries: u32,
    is_going_on: bool,
    shared: Arc<SharedOutage>,
}

impl Outage {
    /// No outage yet.
    pub fn new(settings: &Settings, shared: &Arc<SharedOutage>) -> Self {
        Self {
            backoff: Backoff::new(settings.retry_first, settings.retry_max),
            drain_tries: 0,
            most_drain_tries: settings.retry_attempts,
            is_going_on: false,
            shared: Arc::clone(shared),
        }
    }

    /// Notes a failure and waits before the next try.
    ///
    /// # Errors
    /// The worker drains.
    pub fn wait(&mut self, why: &QueueError, clock: &LaneClock<'_>) -> Result<(), Draining> {
        clock.wait(self.failed(why))
    }

    /// Notes a failure and waits before the next try, also while the worker drains.
    ///
    /// # Errors
    /// The worker drains, and its last tries have failed.
    pub fn wait_anyway(&mut self, why: &QueueError, clock: &LaneClock<'_>) -> Result<(), Draining> {
        let pause = self.failed(why);
        if clock.is_draining() {
            self.drain_tries += 1;
        }
        if self.drain_tries > self.most_drain_tries {
            return Err(Draining);
        }
        clock.wait_anyway(pause);
        Ok(())
    }

    /// Returns how long to wait: not at all if this process was stopped and continued, as then nothing
    /// is wrong with the server.
    fn failed(&mut self, why: &QueueError) -> Duration {
        if why.is_interruption() {
            return Duration::ZERO;
        }
        let is_news = match std::mem::replace(&mut self.is_going_on, true) {
            false => self.shared.begin(),
            true => self.shared.renew(),
        };
        let why = why.without_redis();
        if is_news {
            log::warn!("Redis is away, trying again until it is back: {why}");
        } else {
            log::debug!("Redis is still away: {why}");
        }
        self.backoff.next_wait()
    }

    /// Redis has answered.
    pub fn end(&mut self) {
        let over = if std::mem::take(&mut self.is_going_on) {
            self.backoff.reset();
            self.shared.end()
        } else {
            self.shared.settle()
        };
        if let Some(time) = over {
            log::info!("Redis is back after {:.1} s", time.as_secs_f64());
        }
    }
}

impl Drop for Outage {
    /// A thread that ends no longer waits.
    fn drop(&mut self) {
        if self.is_going_on {
            self.shared.leave();
        }
    }
}

/// The time that a lane has for the vCon that it works on. It stands still while the lane waits for a
/// server that is unavailable, also if it waits inside a call.
pub(super) struct LaneClock<'a> {
    drain: &'a Receiver<()>,
    cell: Option<&'a LaneCell>,
    id: Option<VconId>,
    /// What was left of the chain's timeout at `since`; `None` without a timeout.
    left: Cell<Option<Duration>>,
    since: Cell<Instant>,
    /// The longest that a call may take beyond the timeout.
    longest_call: Duration,
    has_work: bool,
    /// Whether the chain is done, so that the time stands still for good.
    ended: Cell<bool>,
    drain_end: Cell<Option<Instant>>,
}

impl<'a> LaneClock<'a> {
    /// A clock of a lane without a vCon: it only waits.
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

    /// A clock of a vCon that is in work from now on, for at most `limit`. No call takes longer than
    /// `longest_call`.
    pub fn start(
        drain: &'a Receiver<()>,
        cell: &'a LaneCell,
        id: Option<VconId>,
        limit: Option<Duration>,
        longest_call: Duration,
    ) -> Self {
        let mut this = Self::idle(drain, Some(cell));
        (this.id, this.longest_call, this.has_work) = (id, longest_call, true);
        this.show_step(LaneStep::Load);
        this.run(limit);
        this
    }

    /// Shows at which step of its chain the vCon is.
    pub fn show_step(&self, step: LaneStep) {
        if let Some(cell) = self.cell.filter(|_| self.has_work) {
            cell.step(step);
        }
    }

    /// The channel that is disconnected when the worker drains.
    pub fn drain(&self) -> &'a Receiver<()> {
        self.drain
    }

    /// When a program that is still running must have ended; set once it has noticed the drain.
    pub fn drain_end(&self) -> &Cell<Option<Instant>> {
        &self.drain_end
    }

    /// Runs a call with the time that is left. Its own time does not count if it `was_a_wait`: it failed
    /// in a way that passes.
    pub fn timed<T>(
        &self,
        call: impl FnOnce(Deadline) -> T,
        was_a_wait: impl FnOnce(&T) -> bool,
    ) -> T {
        let left = self.left();
        // The deadline ends calls, not the work: after it, each call shows that the lane still moves.
        if left == Some(Duration::ZERO) {
            self.show_progress(left);
        }
        let result = call(Deadline::after(left));
        if was_a_wait(&result) {
            self.left.set(left);
            self.since.set(Instant::now());
            self.show_progress(left);
        }
        result
    }

    /// Waits.
    ///
    /// # Errors
    /// The worker drains.
    pub fn wait(&self, time: Duration) -> Result<(), Draining> {
        self.pause();
        let waited = self.drain.recv_timeout(time);
        self.resume();
        match waited {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Draining),
        }
    }

    /// Waits until the worker begins to drain, or, if it drains already, for a short time.
    pub fn wait_anyway(&self, time: Duration) {
        self.pause();
        if self.is_draining() {
            thread::sleep(time.min(DRAIN_PAUSE));
        } else {
            let _ = self.drain.recv_timeout(time);
        }
        self.resume();
    }

    /// Whether the worker drains.
    pub fn is_draining(&self) -> bool {
        self.drain.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Stops the clock. The scoreboard shows that the lane waits, so its vCon is no suspect if the worker
    /// dies.
    pub fn pause(&self) {
        self.left.set(self.left());
        self.since.set(Instant::now());
        if let Some(cell) = self.cell.filter(|_| self.has_work) {
            cell.waiting(self.id.as_ref());
        }
    }

    /// Stops the clock for good: the chain is done, and only the release of the claim is left.
    pub fn end(&self) {
        self.pause();
        self.ended.set(true);
    }

    /// Starts the clock again after [`LaneClock::end`]: there is more to do after all.
    pub fn reopen(&self) {
        self.ended.set(false);
        self.resume();
    }

    /// Lets the clock run on.
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

    /// Lets the clock run from now on, with this much left.
    fn run(&self, left: Option<Duration>) {
        self.left.set(left);
        self.since.set(Instant::now());
        if let Some(cell) = self.shown() {
            cell.busy(self.id.as_ref(), left.map(|left| self.limit(left)));
        }
    }

    /// Shows that the lane still moves, with this much left.
    fn show_progress(&self, left: Option<Duration>) {
        if let (Some(left), Some(cell)) = (left, self.shown()) {
            cell.goes_on(self.id.as_ref(), Some(self.limit(left)));
        }
    }

    /// How long the lane may show nothing new, with this much left.
    fn limit(&self, left: Duration) -> Duration {
        left.max(SHORTEST_LIMIT).saturating_add(self.longest_call)
    }

    /// Where the lane shows its work, if it has any.
    fn shown(&self) -> Option<&LaneCell> {
        self.cell.filter(|_| self.has_work && !self.ended.get())
    }
}

impl Drop for LaneClock<'_> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.filter(|_| self.has_work) {
            cell.idle();
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::never;

    use super::super::shared::tests::{TestWorker, settings};
    use super::*;

    #[test]
    fn only_the_first_to_notice_an_outage_and_the_last_to_see_its_end_are_news() {
        let worker = TestWorker::with("chains: {}\n", &[]);
        let outage = SharedOutage::new(worker.shared.slot.clone());
        assert!(outage.begin());
        assert!(!outage.begin());
        assert_eq!(outage.end(), None);
        assert!(!outage.begin());
        assert_eq!(outage.end(), None);
        assert!(outage.end().is_some());
        assert!(outage.begin());
    }

    #[test]
    fn a_worker_that_drains_tries_as_often_as_it_may_and_then_gives_up() {
        let set = [
            ("CONSERVER_RETRY_FIRST_MS", "1"),
            ("CONSERVER_RETRY_ATTEMPTS", "3"),
        ];
        let settings = settings(&set);
        let worker = TestWorker::with("chains: {}\n", &[]);
        let mut outage = Outage::new(&settings, &worker.shared.redis_outage);
        let (hold, drain) = crossbeam_channel::bounded(0);
        let clock = LaneClock::idle(&drain, None);
        let mut tries = || outage.wait_anyway(&QueueError::Closed, &clock).is_ok();
        assert!([(); 5].map(|()| tries()).iter().all(|more| *more));
        drop(hold);
        assert_eq!([(); 5].map(|()| tries()), [true, true, true, false, false]);
    }

    #[test]
    fn attempts_are_counted_from_one_and_end_with_the_last() {
        let set = [
            ("CONSERVER_RETRY_FIRST_MS", "1"),
            ("CONSERVER_RETRY_ATTEMPTS", "3"),
        ];
        let mut attempts = Attempts::new(&settings(&set));
        let drain = never();
        let clock = LaneClock::idle(&drain, None);
        for (attempt, more) in [(1, true), (2, true), (3, false), (3, false)] {
            assert_eq!(attempts.number(), attempt);
            assert_eq!(attempts.wait_for_next(&clock).ok(), Some(more), "{attempt}");
        }
        let (hold, drain) = crossbeam_channel::bounded(0);
        drop(hold);
        let mut attempts = Attempts::new(&settings(&set));
        assert!(
            attempts
                .wait_for_next(&LaneClock::idle(&drain, None))
                .is_err()
        );
    }

    fn with_limit(drain: &Receiver<()>, limit: Duration) -> LaneClock<'_> {
        let clock = LaneClock::idle(drain, None);
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
        // As during a finish that Redis does not answer.
        thread::sleep(Duration::from_millis(5));
        clock.pause();
        clock.resume();
        thread::sleep(Duration::from_millis(5));
        clock.reopen();
        assert_eq!(clock.left.get(), left);
    }

    #[test]
    fn a_wait_that_nothing_else_ends_is_ended_by_the_drain() {
        let (hold, drain) = crossbeam_channel::bounded(0);
        let clock = LaneClock::idle(&drain, None);
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| drop(hold));
            clock.wait_anyway(Duration::from_secs(600));
        });
        clock.wait_anyway(Duration::from_secs(600));
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(clock.wait(Duration::from_secs(600)).is_err());
    }
}
