//! Suspects are worked on alone.
//!
//! A vCon on which workers have died is a suspect. If it were in work beside others when the next worker
//! dies, that death would count for them too, and all could be taken for poison together. So a suspect
//! whose next death would be the last waits until no other vCon of its worker is in flight, and no other is
//! claimed until it is done.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::retry::LaneClock;

/// How often a lane that waits here checks for the drain.
const LOOK: Duration = Duration::from_millis(20);

/// The vCons of a worker's lanes: in flight beside each other, or one suspect alone.
#[derive(Default)]
pub(super) struct Quarantine {
    state: Mutex<InWork>,
    changed: Condvar,
}

#[derive(Default)]
struct InWork {
    /// Lanes that have a vCon or request one.
    in_flight: usize,
    /// Suspects that wait until none is in flight.
    waiting: usize,
    /// Whether a suspect is in work.
    has_suspect: bool,
}

impl InWork {
    fn is_open(&self) -> bool {
        !self.has_suspect && self.waiting == 0
    }
}

/// Its lane is in flight as long as this lives.
pub(super) struct InFlightGuard<'a>(&'a Quarantine);

/// A suspect is in work as long as this lives.
pub(super) struct SuspectGuard<'a>(&'a Quarantine);

impl Quarantine {
    /// Lets a lane request a vCon and work on it. `None` while a suspect is in work or waits.
    pub fn enter(&self) -> Option<InFlightGuard<'_>> {
        let mut state = self.lock();
        state.is_open().then(|| {
            state.in_flight += 1;
            InFlightGuard(self)
        })
    }

    /// Waits until no suspect is in work or waits, or the worker drains.
    pub fn wait_until_open(&self, clock: &LaneClock<'_>) {
        let mut state = self.lock();
        while !state.is_open() && !clock.is_draining() {
            state = self.wait(state);
        }
    }

    /// Waits until nothing is in flight, or for `timeout` at most, as a lane may hang; then nothing enters until
    /// the guard is dropped. Returns `None` if the worker drains.
    pub fn isolate(&self, timeout: Duration, clock: &LaneClock<'_>) -> Option<SuspectGuard<'_>> {
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
        Some(SuspectGuard(self))
    }

    /// Whether no suspect is in work or waits.
    pub fn is_open(&self) -> bool {
        self.lock().is_open()
    }

    fn wait<'a>(&self, state: MutexGuard<'a, InWork>) -> MutexGuard<'a, InWork> {
        let waited = self.changed.wait_timeout(state, LOOK);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, InWork> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight -= 1;
        // Only suspects wait for this, and notifying nobody costs a system call.
        if state.waiting > 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for SuspectGuard<'_> {
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
                let _alone = quarantine
                    .isolate(LONG, &LaneClock::idle(&drain, None))
                    .unwrap();
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
                quarantine.wait_until_open(&LaneClock::idle(&drain, None));
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
        let alone = quarantine
            .isolate(LONG, &LaneClock::idle(&drain, None))
            .unwrap();
        let (over, is_over) = bounded(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let drain = never();
                quarantine.wait_until_open(&LaneClock::idle(&drain, None));
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
        let alone = quarantine.isolate(Duration::from_millis(1), &LaneClock::idle(&drain, None));
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
            let suspect = scope.spawn(|| {
                quarantine
                    .isolate(LONG, &LaneClock::idle(&drain, None))
                    .is_none()
            });
            let other = scope.spawn(|| quarantine.wait_until_open(&LaneClock::idle(&drain, None)));
            drop(hold);
            assert!(suspect.join().unwrap());
            other.join().unwrap();
        });
        drop(in_flight);
        assert!(quarantine.is_open());
    }
}
