//! Directory syncs that the lanes of a worker share.
//!
//! A sync that begins after several lanes have renamed their files into one directory is enough for all of
//! them. So a lane that comes while a sync of that directory is in flight joins the batch that waits for its
//! end. The first lane of the batch then syncs for all who have joined by that time. No lane waits for
//! others to come, and one that is alone syncs at once.
//!
//! ```text
//! first lane            in flight ───────────────┐
//! second lane                     waits for turn └► closes the batch, in flight ──┐
//! third lane                         joined, waits ───────────────────────────────┴► same outcome
//! ```
//!
//! A sync that fails answers for nobody who waits for the next one: each of them syncs by itself. Some file
//! systems report an error once to each descriptor that was open when it happened. A lane that opened the
//! directory afterwards would hear nothing of it, and must not speak for one that had renamed before.
//!
//! A lane that has waited for [`LONGEST_WAIT`] syncs by itself: then a disk that hangs holds it up about as
//! long as it would have alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::lock::locked;

/// How long a lane waits for a sync of another.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// The device and inode of a directory.
type Identity = (u64, u64);

/// The directories of which a sync is in flight, each with the batch that waits for its end.
#[derive(Default)]
pub(super) struct SharedSyncs {
    in_flight: Mutex<HashMap<Identity, Option<Arc<Batch>>>>,
}

/// Lanes that wait for the same sync, which has not begun.
#[derive(Default)]
struct Batch {
    state: Mutex<BatchState>,
    /// Wakes its first lane.
    turn: Condvar,
    /// Wakes the others.
    over: Condvar,
}

#[derive(Default, Clone, Copy)]
enum BatchState {
    #[default]
    Waiting,
    /// The sync before is over.
    Turn,
    Over(Outcome),
}

#[derive(Clone, Copy)]
enum Outcome {
    Synced,
    /// The code of the error.
    Failed(i32),
    /// There was no sync.
    Abandoned,
}

impl SharedSyncs {
    /// Returns after a sync of the directory that began after this call did; runs `sync` unless another lane
    /// has.
    ///
    /// # Errors
    /// As `sync`; the error of another lane's sync is returned to all for whom it was.
    pub fn sync(
        &self,
        directory: Identity,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let batch = match locked(&self.in_flight).entry(directory) {
            Entry::Vacant(free) => {
                free.insert(None);
                None
            }
            Entry::Occupied(mut taken) => match taken.get() {
                Some(batch) => Some((Arc::clone(batch), false)),
                None => {
                    let batch = Arc::<Batch>::default();
                    taken.insert(Some(Arc::clone(&batch)));
                    Some((batch, true))
                }
            },
        };
        match batch {
            None => self.sync_for(directory, None, sync),
            Some((batch, true)) => {
                if batch.waits_for_its_turn() || self.is_turn(directory, &batch) {
                    self.sync_for(directory, Some(batch), sync)
                } else {
                    sync()
                }
            }
            Some((batch, false)) => match batch.outcome() {
                Outcome::Synced => Ok(()),
                Outcome::Failed(code) => Err(io::Error::from_raw_os_error(code)),
                Outcome::Abandoned => sync(),
            },
        }
    }

    /// Syncs for all lanes of a batch, and has the next batch follow.
    fn sync_for(
        &self,
        directory: Identity,
        batch: Option<Arc<Batch>>,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if batch.is_some() {
            // Whoever comes from now on is too late for this sync.
            locked(&self.in_flight).insert(directory, None);
        }
        let mut flight = Flight {
            syncs: self,
            directory,
            batch,
            outcome: Outcome::Abandoned,
        };
        let result = sync();
        flight.outcome = match &result {
            Ok(()) => Outcome::Synced,
            Err(e) => Outcome::Failed(e.raw_os_error().unwrap_or(libc::EIO)),
        };
        result
    }

    /// Whether the turn came at the last moment; otherwise nobody syncs for the batch.
    fn is_turn(&self, directory: Identity, batch: &Batch) -> bool {
        let mut in_flight = locked(&self.in_flight);
        let state = *locked(&batch.state);
        match state {
            BatchState::Turn => true,
            // The sync before has failed, and the directory's entry, if there is one, is of others.
            BatchState::Over(_) => false,
            BatchState::Waiting => {
                in_flight.insert(directory, None);
                batch.is_over(Outcome::Abandoned);
                false
            }
        }
    }
}

impl Batch {
    /// Returns false if the turn does not come, or not in time.
    fn waits_for_its_turn(&self) -> bool {
        let waits = |state: &mut BatchState| matches!(state, BatchState::Waiting);
        let waited = self
            .turn
            .wait_timeout_while(locked(&self.state), LONGEST_WAIT, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        matches!(*state, BatchState::Turn)
    }

    fn outcome(&self) -> Outcome {
        let waits = |state: &mut BatchState| !matches!(state, BatchState::Over(_));
        let waited = self
            .over
            .wait_timeout_while(locked(&self.state), LONGEST_WAIT, waits);
        match *waited.unwrap_or_else(PoisonError::into_inner).0 {
            BatchState::Over(outcome) => outcome,
            BatchState::Waiting | BatchState::Turn => Outcome::Abandoned,
        }
    }

    fn is_over(&self, outcome: Outcome) {
        *locked(&self.state) = BatchState::Over(outcome);
        self.over.notify_all();
    }
}

/// A sync in flight. Its end is the turn of the next batch; unless it succeeds, that of no batch.
struct Flight<'a> {
    syncs: &'a SharedSyncs,
    directory: Identity,
    /// The other lanes for whom it is.
    batch: Option<Arc<Batch>>,
    outcome: Outcome,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut in_flight = locked(&self.syncs.in_flight);
        match in_flight.get(&self.directory) {
            Some(Some(next)) if matches!(self.outcome, Outcome::Synced) => {
                *locked(&next.state) = BatchState::Turn;
                next.turn.notify_one();
            }
            entry => {
                if let Some(Some(next)) = entry {
                    next.is_over(Outcome::Abandoned);
                    next.turn.notify_one();
                }
                in_flight.remove(&self.directory);
            }
        }
        drop(in_flight);
        if let Some(batch) = mem::take(&mut self.batch) {
            batch.is_over(self.outcome);
        }
    }
}

/// How many lanes wait for the next sync of a directory.
#[cfg(test)]
pub(super) fn waiting(shared: &SharedSyncs, directory: Identity) -> usize {
    match locked(&shared.in_flight).get(&directory) {
        // Each waiting lane holds a batch, as does the table.
        Some(Some(batch)) => Arc::strong_count(batch) - 1,
        _ => 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use super::*;

    const DIRECTORY: Identity = (1, 2);

    /// Runs a sync that lasts until `lanes` others wait for the next one, and returns what they got, and how
    /// many syncs they needed. The first sync ends by `ends`, each of the others by `syncs`.
    fn while_in_flight(
        lanes: usize,
        ends: impl Fn() -> io::Result<()> + Send + Sync,
        syncs: impl Fn() -> io::Result<()> + Send + Sync,
    ) -> (Vec<io::Result<()>>, usize) {
        let (shared, count) = (SharedSyncs::default(), AtomicUsize::new(0));
        let results = thread::scope(|scope| {
            let (begun, has_begun) = mpsc::channel();
            let (shared, count, syncs, ends) = (&shared, &count, &syncs, &ends);
            scope.spawn(move || {
                let first = || {
                    begun.send(()).unwrap();
                    let until = Instant::now() + LONGEST_WAIT;
                    while waiting(shared, DIRECTORY) < lanes && Instant::now() < until {
                        thread::yield_now();
                    }
                    ends()
                };
                catch_unwind(AssertUnwindSafe(|| shared.sync(DIRECTORY, first)))
            });
            has_begun.recv().unwrap();
            let lane = || {
                shared.sync(DIRECTORY, || {
                    count.fetch_add(1, Ordering::SeqCst);
                    syncs()
                })
            };
            let others: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
            others.into_iter().map(|it| it.join().unwrap()).collect()
        });
        assert!(locked(&shared.in_flight).is_empty());
        (results, count.into_inner())
    }

    #[test]
    fn lanes_that_come_during_a_sync_share_the_next_one_and_its_error() {
        let (results, syncs) = while_in_flight(7, || Ok(()), || Ok(()));
        assert_eq!(syncs, 1);
        assert!(results.iter().all(Result::is_ok), "{results:?}");

        let full = || Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let (results, syncs) = while_in_flight(7, || Ok(()), full);
        assert_eq!(syncs, 1);
        for result in results {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        }
    }

    #[test]
    fn after_a_sync_that_failed_each_syncs_by_its_own_descriptor() {
        let fails = || Err(io::Error::from_raw_os_error(libc::EIO));
        // One of them has opened the directory before the error, and hears of it as well.
        let is_first = AtomicBool::new(true);
        let syncs_of_each = || match is_first.swap(false, Ordering::SeqCst) {
            true => fails(),
            false => Ok(()),
        };
        let begun = Instant::now();
        let (results, syncs) = while_in_flight(7, fails, syncs_of_each);
        assert_eq!(syncs, 7);
        let failed = results.iter().filter(|result| result.is_err()).count();
        assert_eq!(failed, 1, "{results:?}");
        // Nobody waits for a turn that does not come.
        assert!(begun.elapsed() < LONGEST_WAIT);
    }

    #[test]
    fn one_that_is_alone_syncs_by_itself_each_time() {
        let (shared, mut count) = (SharedSyncs::default(), 0);
        for directory in [DIRECTORY, DIRECTORY, (1, 3)] {
            let syncs = || {
                count += 1;
                Ok(())
            };
            shared.sync(directory, syncs).unwrap();
        }
        assert_eq!(count, 3);
        // Those of another directory are not waited for.
        let inner = || shared.sync((1, 3), || Err(io::ErrorKind::Other.into()));
        assert!(shared.sync(DIRECTORY, inner).is_err());
    }

    #[test]
    fn a_panic_or_a_hang_keeps_no_lane_waiting() {
        let panics = || panic!("in a sync");
        let (results, syncs) = while_in_flight(3, panics, || Ok(()));
        assert_eq!(syncs, 3);
        assert!(results.iter().all(Result::is_ok), "{results:?}");

        // The first sync ends when the others have given up, and each has synced for itself.
        let own = AtomicUsize::new(0);
        let hangs = || {
            let until = Instant::now() + 10 * LONGEST_WAIT;
            while own.load(Ordering::SeqCst) < 3 && Instant::now() < until {
                thread::yield_now();
            }
            Ok(())
        };
        let syncs = || {
            own.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let (results, count) = while_in_flight(3, hangs, syncs);
        assert_eq!(count, 3);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
}
