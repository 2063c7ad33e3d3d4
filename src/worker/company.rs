//! Which vCons are in work at the same time as others of this worker.
//!
//! A vCon on which workers have died is a suspect. Were it in work beside others when the next
//! one dies, these would have that death to their name too, and could be taken for poison
//! together. So where the next death would be the last, a suspect is worked on alone.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the lanes of a worker have in hand.
#[derive(Default)]
pub(super) struct Company {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Lanes that take part.
    members: usize,
    /// Suspects that wait until there are none.
    waiting: usize,
    /// Whether a suspect is in work.
    alone: bool,
}

/// A lane takes part as long as it has this.
pub(super) struct Member<'a>(&'a Company);

/// A suspect is in work as long as its lane has this.
pub(super) struct Alone<'a>(&'a Company);

impl Company {
    /// Takes part, from before the claim to its end; `None` while a suspect is in work or waits.
    pub fn try_join(&self) -> Option<Member<'_>> {
        let mut state = self.lock();
        (!state.alone && state.waiting == 0).then(|| {
            state.members += 1;
            Member(self)
        })
    }

    /// Takes part; waits while a suspect is in work or waits.
    pub fn join(&self) -> Member<'_> {
        let closed = |state: &mut State| state.alone || state.waiting > 0;
        let state = self.changed.wait_while(self.lock(), closed);
        state.unwrap_or_else(PoisonError::into_inner).members += 1;
        Member(self)
    }

    /// Waits until nothing else is in work, and keeps it so. What is still in work after
    /// `patience` may hang, and is waited for no longer.
    pub fn alone(&self, patience: Duration) -> Alone<'_> {
        let mut state = self.lock();
        state.waiting += 1;
        let taken = |state: &mut State| state.alone;
        let state = self.changed.wait_while(state, taken);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let others = |state: &mut State| state.alone || state.members > 0;
        let state = self.changed.wait_timeout_while(state, patience, others);
        let (mut state, _) = state.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.alone = true;
        Alone(self)
    }

    /// Whether no suspect is in work or waits.
    pub fn is_open(&self) -> bool {
        let state = self.lock();
        !state.alone && state.waiting == 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.members -= 1;
        // Only suspects wait for members; waking nobody is a system call, too.
        if state.waiting > 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.lock().alone = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;

    use crossbeam_channel::bounded;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_suspect_waits_for_those_in_work_and_others_for_the_suspect() {
        let company = Company::default();
        let (alone, is_alone) = bounded(0);
        let (end, ended) = bounded::<()>(0);
        thread::scope(|scope| {
            let member = company.join();
            let suspect = scope.spawn(|| {
                let _alone = company.alone(LONG);
                alone.send(()).unwrap();
                ended.recv().unwrap();
            });
            while company.lock().waiting == 0 {
                thread::yield_now();
            }
            assert!(company.try_join().is_none());
            assert!(is_alone.try_recv().is_err());
            drop(member);
            is_alone.recv().unwrap();
            assert!(company.try_join().is_none());
            let other = scope.spawn(|| drop(company.join()));
            end.send(()).unwrap();
            suspect.join().unwrap();
            other.join().unwrap();
            assert!(company.try_join().is_some());
        });
    }

    #[test]
    fn a_lane_that_hangs_does_not_hold_up_a_suspect_for_ever() {
        let company = Company::default();
        let _hangs = company.join();
        drop(company.alone(Duration::from_millis(1)));
        assert!(company.try_join().is_some());
    }
}
