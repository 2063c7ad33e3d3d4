//! Which vCons are in work at the same time as others of this worker.
//!
//! A vCon on which workers have died is a suspect. If it were in work beside others when the next
//! one dies, that death would count for these too, and they could be taken for poison together. So
//! a suspect whose next death would be the last is worked on alone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::clock::Clock;

/// How often a lane that waits here looks for the drain.
const LOOK: Duration = Duration::from_millis(20);

/// What the lanes of a worker have in flight.
#[derive(Default)]
pub(super) struct Quarantine {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Lanes that have, or ask for, a vCon.
    in_flight: usize,
    /// Suspects that wait until there are none.
    waiting: usize,
    /// Whether a suspect is in work.
    has_suspect: bool,
}

impl State {
    fn is_open(&self) -> bool {
        !self.has_suspect && self.waiting == 0
    }
}

/// A lane is in flight as long as it has this.
pub(super) struct InFlight<'a>(&'a Quarantine);

/// A suspect is in work as long as its lane has this.
pub(super) struct Alone<'a>(&'a Quarantine);

impl Quarantine {
    /// Goes in flight, from before the claim to its end; `None` while a suspect is in work or waits.
    pub fn enter(&self) -> Option<InFlight<'_>> {
        let mut state = self.lock();
        state.is_open().then(|| {
            state.in_flight += 1;
            InFlight(self)
        })
    }

    /// Waits while a suspect is in work or waits; ends early when the worker drains.
    pub fn wait_until_open(&self, clock: &Clock<'_>) {
        let mut state = self.lock();
        while !state.is_open() && !clock.is_draining() {
            state = self.wait(state);
        }
    }

    /// Waits until nothing else is in flight, and keeps it so. What is still in flight after
    /// `timeout` may hang, and is waited for no longer. Returns `None` when the worker drains.
    pub fn alone(&self, timeout: Duration, clock: &Clock<'_>) -> Option<Alone<'_>> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        state.waiting += 1;
        let mut drains = clock.is_draining();
        while !drains && (state.has_suspect || (state.in_flight > 0 && Instant::now() < end)) {
            state = self.wait(state);
            drains = clock.is_draining();
        }
        state.waiting -= 1;
        if drains {
            self.changed.notify_all();
            return None;
        }
        state.has_suspect = true;
        Some(Alone(self))
    }

    /// Whether no suspect is in work or waits.
    pub fn is_open(&self) -> bool {
        self.lock().is_open()
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, LOOK);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight -= 1;
        // Only suspects wait for these; waking nobody is a system call, too.
        if state.waiting > 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.lock().has_suspect = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;

    use crossbeam_channel::{bounded, never};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_suspect_waits_for_those_in_flight_and_others_for_the_suspect() {
        let quarantine = Quarantine::default();
        let (alone, is_alone) = bounded(0);
        let (end, ended) = bounded::<()>(0);
        thread::scope(|scope| {
            let in_flight = quarantine.enter().unwrap();
            let suspect = scope.spawn(|| {
                let drain = never();
                let _alone = quarantine.alone(LONG, &Clock::idle(&drain, None)).unwrap();
                alone.send(()).unwrap();
                ended.recv().unwrap();
            });
            while quarantine.lock().waiting == 0 {
                thread::yield_now();
            }
            assert!(quarantine.enter().is_none());
            assert!(is_alone.try_recv().is_err());
            drop(in_flight);
            is_alone.recv().unwrap();
            assert!(quarantine.enter().is_none());
            let other = scope.spawn(|| {
                let drain = never();
                quarantine.wait_until_open(&Clock::idle(&drain, None));
            });
            end.send(()).unwrap();
            suspect.join().unwrap();
            other.join().unwrap();
            assert!(quarantine.enter().is_some());
        });
    }

    #[test]
    fn who_waits_for_a_suspect_waits_to_its_end() {
        let quarantine = Quarantine::default();
        let drain = never();
        let alone = quarantine.alone(LONG, &Clock::idle(&drain, None)).unwrap();
        let (over, is_over) = bounded(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let drain = never();
                quarantine.wait_until_open(&Clock::idle(&drain, None));
                over.send(()).unwrap();
            });
            assert!(is_over.recv_timeout(LOOK / 2).is_err());
            drop(alone);
            is_over.recv().unwrap();
        });
    }

    #[test]
    fn a_lane_that_hangs_does_not_hold_up_a_suspect_for_ever() {
        let quarantine = Quarantine::default();
        let drain = never();
        let _hangs = quarantine.enter();
        let alone = quarantine.alone(Duration::from_millis(1), &Clock::idle(&drain, None));
        assert!(alone.is_some());
        drop(alone);
        assert!(quarantine.enter().is_some());
    }

    #[test]
    fn nobody_waits_here_when_the_worker_drains() {
        let quarantine = Quarantine::default();
        let (hold, drain) = bounded(0);
        let in_flight = quarantine.enter();
        thread::scope(|scope| {
            let suspect =
                scope.spawn(|| quarantine.alone(LONG, &Clock::idle(&drain, None)).is_none());
            let other = scope.spawn(|| quarantine.wait_until_open(&Clock::idle(&drain, None)));
            drop(hold);
            assert!(suspect.join().unwrap());
            other.join().unwrap();
        });
        drop(in_flight);
        assert!(quarantine.is_open());
    }
}
