//! Saving one vCon to every storage of its chain, at once or one after the other.
//!
//! All outcomes are collected, in the order of the configuration. A backend that fails or panics
//! never cuts another short.
//!
//! The threads beside a lane are kept from one vCon to the next, because to start one takes longer
//! than many a save:
//!
//! ```text
//! lane         save_all ──► save to the slowest ────────────► outcomes
//!                 │ job                                          ▲
//! store-a  waits ─┴───────► save ──────► waits                   │ outcome, with the backend
//! store-b  waits ─┴───────► save ──► waits ──────────────────────┘
//! ```

use std::any::Any;
use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::Storage;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::vcon::{Leaving, Outgoing};

/// An idle thread ends after this time.
const IDLE: Duration = Duration::from_secs(10);

/// One of the chain's storages, lent by its lane.
pub struct Backend {
    /// Its name in `config.yml`.
    pub name: Arc<str>,
    /// The lane's own backend.
    pub storage: Box<dyn Storage>,
    /// Whether it gets the older version.
    pub is_downgraded: bool,
}

/// What became of a vCon at one storage.
pub struct SaveOutcome {
    /// The storage's name in `config.yml`.
    pub name: Arc<str>,
    /// Whether the vCon is stored.
    pub result: Result<(), Failure>,
    /// How long it took.
    pub took: Duration,
    /// The backend that was lent. `None` after a panic: its state was unknown, and it must be
    /// opened anew.
    pub storage: Option<Box<dyn Storage>>,
}

/// The threads that save beside a lane's own, each for one backend.
pub struct WriterPool<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    writers: HashMap<Arc<str>, Sender<SaveJob>>,
    /// The storage that took longest last time.
    slowest: Option<Arc<str>>,
}

struct SaveJob {
    backend: Backend,
    vcon: Arc<Outgoing>,
    deadline: Deadline,
    /// Its place among the outcomes.
    place: usize,
    done: Sender<(usize, SaveOutcome)>,
}

impl<'scope, 'env> WriterPool<'scope, 'env> {
    /// A pool without threads yet. All of them end with the scope, for which the pool must be
    /// gone.
    pub fn new(scope: &'scope Scope<'scope, 'env>) -> Self {
        Self {
            scope,
            writers: HashMap::new(),
            slowest: None,
        }
    }

    /// Saves the vCon to every backend, by the deadline, and returns their outcomes in the same order.
    ///
    /// With `parallel`, each backend but one has a thread of its own; that one, which took longest
    /// last time, has the caller's, whom it need not wake, unless there are Python modules: then those have it.
    /// The call ends with the slowest.
    pub fn save_all(
        &mut self,
        backends: Vec<Backend>,
        vcon: &Leaving,
        deadline: Deadline,
        parallel: bool,
    ) -> Vec<SaveOutcome> {
        if !parallel || backends.len() < 2 {
            return backends
                .into_iter()
                .map(|b| {
                    let vcon = vcon.of(b.is_downgraded);
                    save(b, vcon, deadline)
                })
                .collect();
        }
        let names: Vec<Arc<str>> = backends.iter().map(|b| Arc::clone(&b.name)).collect();
        let slowest = self.slowest.as_ref();
        let slowest = names.iter().position(|name| Some(name) == slowest);
        // Storages that read the vCon in Redis are Python modules, which share one interpreter. The system
        // ends that with the thread that has started it, so these never leave the lane's thread.
        let of_lane = backends.iter().any(|it| it.storage.reads_redis());
        let own = slowest.filter(|_| !of_lane);
        let own = own.unwrap_or(if of_lane { usize::MAX } else { 0 });
        let (done, outcomes) = bounded(names.len());
        let mut ours = Vec::new();
        for (place, backend) in backends.into_iter().enumerate() {
            let job = SaveJob {
                vcon: Arc::clone(vcon.of(backend.is_downgraded)),
                backend,
                deadline,
                place,
                done: done.clone(),
            };
            if place == own || job.backend.storage.reads_redis() {
                ours.push(job);
            } else if let Err(job) = self.hand_over(job) {
                // The system has no thread to give.
                ours.push(job);
            }
        }
        drop(done);
        ours.into_iter().for_each(SaveJob::run);

        let mut slots: Vec<Option<SaveOutcome>> = names.iter().map(|_| None).collect();
        for (place, outcome) in outcomes {
            slots[place] = Some(outcome);
        }
        let outcomes = names.into_iter().zip(slots);
        let outcomes: Vec<SaveOutcome> = outcomes
            .map(|(name, outcome)| outcome.unwrap_or_else(|| SaveOutcome::lost(name)))
            .collect();
        let slowest = outcomes.iter().max_by_key(|outcome| outcome.took);
        self.slowest = slowest.map(|outcome| Arc::clone(&outcome.name));
        outcomes
    }

    /// Hands the job to the backend's thread, or to a new one if that has ended because it was idle.
    /// Returns the job if no thread can be started.
    fn hand_over(&mut self, job: SaveJob) -> Result<(), SaveJob> {
        let name = Arc::clone(&job.backend.name);
        let job = match self.writers.get(&name) {
            Some(writer) => match writer.send(job) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.into_inner(),
            },
            None => job,
        };
        // Zero capacity: a job is taken only by a thread that is waiting for it.
        let (jobs, todo) = bounded::<SaveJob>(0);
        let work = move || {
            while let Ok(job) = todo.recv_timeout(IDLE) {
                job.run();
            }
        };
        let thread = thread::Builder::new().name(thread_name(&name));
        if thread.spawn_scoped(self.scope, work).is_err() {
            return Err(job);
        }
        let sent = jobs.send(job).map_err(|unsent| unsent.into_inner());
        self.writers.insert(name, jobs);
        sent
    }
}

impl SaveJob {
    fn run(self) {
        let outcome = save(self.backend, &self.vcon, self.deadline);
        // Dropped first, so that the lane can free a large document as soon as it has the outcome.
        drop(self.vcon);
        // Fails only if the lane is gone, by a panic.
        let _ = self.done.send((self.place, outcome));
    }
}

impl SaveOutcome {
    /// The outcome of a backend whose thread has ended without one.
    fn lost(name: Arc<str>) -> Self {
        let failure = Failure::transient(format!("storage {name}: its thread has ended"));
        Self {
            name,
            result: Err(failure),
            took: Duration::ZERO,
            storage: None,
        }
    }
}

fn save(backend: Backend, vcon: &Outgoing, deadline: Deadline) -> SaveOutcome {
    let Backend {
        name, mut storage, ..
    } = backend;
    let start = Instant::now();
    // Nobody looks at the state that a panic leaves behind.
    let caught = panic::catch_unwind(AssertUnwindSafe(|| storage.save(vcon, deadline)));
    let took = start.elapsed();
    let (result, storage) = match caught {
        Ok(result) => (result, Some(storage)),
        Err(payload) => {
            let why = panic_message(payload.as_ref());
            let failure = Failure::refused(format!("storage {name} panicked: {why}"));
            // A second panic, while the broken backend is dropped, must not cut anything short either.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(storage)));
            (Err(failure), None)
        }
    };
    SaveOutcome {
        name,
        result,
        took,
        storage,
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// A name of at most 15 bytes, as Linux shows it, and without NUL, as `Builder::name` asks.
fn thread_name(backend: &str) -> String {
    let mut name = format!("store-{backend}").replace('\0', "");
    while name.len() > 15 {
        name.pop();
    }
    name
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread::ThreadId;

    use super::*;
    use crate::vcon::{VconId, Version};

    /// A backend whose save is the given function.
    struct Fake<F>(F);

    impl<F: FnMut(&Outgoing, Deadline) -> Result<(), Failure> + Send> Storage for Fake<F> {
        fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
            (self.0)(vcon, deadline)
        }
        fn get(&mut self, _: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
            Ok(None)
        }
        fn delete(&mut self, _: &VconId) -> Result<(), Failure> {
            Ok(())
        }
        fn longest_call(&self) -> Duration {
            Duration::ZERO
        }
        fn probe(&mut self) -> Result<(), Failure> {
            Ok(())
        }
    }

    fn vcon() -> Leaving {
        let in_version = |version| {
            Arc::new(Outgoing {
                id: VconId::random(),
                json: "{}".to_owned().into(),
                version,
                created_at: None,
                stand_in: std::sync::OnceLock::new(),
                formerly: None,
                subject: None,
            })
        };
        Leaving {
            current: in_version(Version::Current),
            older: in_version(Version::V0_0_1),
        }
    }

    fn backend(
        name: &str,
        mut save: impl FnMut(&Outgoing) -> Result<(), Failure> + Send + 'static,
    ) -> Backend {
        timed_backend(name, move |vcon, _| save(vcon))
    }

    /// One that is told the deadline.
    fn timed_backend(
        name: &str,
        save: impl FnMut(&Outgoing, Deadline) -> Result<(), Failure> + Send + 'static,
    ) -> Backend {
        Backend {
            name: name.into(),
            storage: Box::new(Fake(save)),
            is_downgraded: false,
        }
    }

    #[test]
    fn each_gets_the_version_that_is_its_own() {
        for parallel in [true, false] {
            let (seen, versions) = std::sync::mpsc::channel();
            let backends =
                [("old", true), ("new", false), ("old too", true)].map(|(name, is_old)| {
                    let seen = seen.clone();
                    let told = name.to_owned();
                    let tell = move |vcon: &Outgoing| {
                        seen.send((told.clone(), vcon.version)).unwrap();
                        Ok(())
                    };
                    Backend {
                        is_downgraded: is_old,
                        ..backend(name, tell)
                    }
                });
            thread::scope(|scope| {
                let mut pool = WriterPool::new(scope);
                pool.save_all(backends.into(), &vcon(), Deadline::NONE, parallel)
            });
            let mut versions: Vec<(String, Version)> = versions.try_iter().collect();
            versions.sort_by(|one, other| one.0.cmp(&other.0));
            let expected = [
                ("new", Version::Current),
                ("old", Version::V0_0_1),
                ("old too", Version::V0_0_1),
            ];
            let expected = expected.map(|(name, version)| (name.to_owned(), version));
            assert_eq!(versions, expected);
        }
    }

    /// A backend that tells on which thread it saves.
    fn told(name: &str, on: &SyncSender<ThreadId>, takes: Duration) -> Backend {
        let on = on.clone();
        backend(name, move |_| {
            thread::sleep(takes);
            let _ = on.send(thread::current().id());
            Ok(())
        })
    }

    fn lent_again(outcomes: Vec<SaveOutcome>) -> Vec<Backend> {
        let lent = |SaveOutcome { name, storage, .. }| Backend {
            name,
            storage: storage.unwrap(),
            is_downgraded: false,
        };
        outcomes.into_iter().map(lent).collect()
    }

    #[test]
    fn in_parallel_no_backend_waits_for_another() {
        // Each ends only after it has heard from the other, so that one after the other would
        // fail here.
        let meet = |own: SyncSender<()>, other: Receiver<()>| {
            move |_: &Outgoing| {
                let _ = own.send(());
                other
                    .recv_timeout(Duration::from_secs(10))
                    .map_err(|_| Failure::permanent("alone"))
            }
        };
        let (to_a, from_b) = sync_channel(1);
        let (to_b, from_a) = sync_channel(1);
        let backends = vec![
            backend("a", meet(to_b, from_b)),
            backend("b", meet(to_a, from_a)),
        ];
        thread::scope(|scope| {
            for outcome in WriterPool::new(scope).save_all(backends, &vcon(), Deadline::NONE, true)
            {
                assert_eq!(outcome.result, Ok(()), "{}", outcome.name);
            }
        });
    }

    #[test]
    fn one_runs_on_the_callers_thread_and_inline_all_do() {
        for (parallel, count) in [(true, 1), (true, 3), (false, 3)] {
            let (on, threads) = sync_channel(3);
            let backends: Vec<_> = ["a", "b", "c"][..count]
                .iter()
                .map(|name| told(name, &on, Duration::ZERO))
                .collect();
            thread::scope(|scope| {
                let outcomes =
                    WriterPool::new(scope).save_all(backends, &vcon(), Deadline::NONE, parallel);
                assert_eq!(outcomes.len(), count);
            });
            let here = thread::current().id();
            let here = threads.try_iter().filter(|id| *id == here).count();
            assert_eq!(here, if parallel { 1 } else { count });
        }
    }

    #[test]
    fn threads_are_kept_and_the_slowest_has_the_callers() {
        let (on_a, a) = sync_channel(3);
        let (on_b, b) = sync_channel(3);
        let backends = vec![
            told("a", &on_a, Duration::ZERO),
            told("b", &on_b, Duration::from_millis(200)),
        ];
        thread::scope(|scope| {
            let mut pool = WriterPool::new(scope);
            let mut backends = backends;
            for _ in 0..3 {
                backends = lent_again(pool.save_all(backends, &vcon(), Deadline::NONE, true));
            }
        });
        let here = thread::current().id();
        let a: Vec<ThreadId> = a.try_iter().collect();
        let b: Vec<ThreadId> = b.try_iter().collect();
        assert!(a[0] == here && a[1] != here && a[1] == a[2]);
        assert!(b[0] != here && b[1] == here && b[2] == here);
    }

    #[test]
    fn a_thread_that_has_ended_is_replaced() {
        let (on, threads) = sync_channel(4);
        let backends = ["a", "b"].map(|name| told(name, &on, Duration::ZERO));
        thread::scope(|scope| {
            let mut pool = WriterPool::new(scope);
            let outcomes = pool.save_all(backends.into(), &vcon(), Deadline::NONE, true);
            // As if they had been idle for too long.
            for writer in pool.writers.values_mut() {
                *writer = bounded(0).0;
            }
            pool.slowest = None;
            let outcomes = pool.save_all(lent_again(outcomes), &vcon(), Deadline::NONE, true);
            assert!(outcomes.iter().all(|outcome| outcome.result.is_ok()));
        });
        assert_eq!(threads.try_iter().count(), 4);
    }

    #[test]
    fn failures_and_panics_stay_with_their_backend_and_in_order() {
        for parallel in [true, false] {
            let backends = vec![
                backend("first", |_| panic!("at {}", 1)),
                backend("second", |_| {
                    thread::sleep(Duration::from_millis(30));
                    Ok(())
                }),
                backend("third", |_| Err(Failure::transient("away"))),
                backend("fourth", |_| panic!("bare")),
            ];
            let outcomes = thread::scope(|scope| {
                WriterPool::new(scope).save_all(backends, &vcon(), Deadline::NONE, parallel)
            });
            let seen: Vec<_> = outcomes
                .iter()
                .map(|o| (&*o.name, o.result.clone(), o.storage.is_none()))
                .collect();
            let panicked = |text| Err(Failure::refused(text));
            assert_eq!(
                seen,
                [
                    ("first", panicked("storage first panicked: at 1"), true),
                    ("second", Ok(()), false),
                    ("third", Err(Failure::transient("away")), false),
                    ("fourth", panicked("storage fourth panicked: bare"), true),
                ]
            );
            assert!(outcomes[1].took >= Duration::from_millis(30));
            assert!(outcomes[2].took < Duration::from_millis(30));
        }
    }

    #[test]
    fn no_backends_no_outcomes() {
        thread::scope(|scope| {
            assert!(
                WriterPool::new(scope)
                    .save_all(Vec::new(), &vcon(), Deadline::NONE, true)
                    .is_empty()
            );
        });
    }

    #[test]
    fn threads_are_named_after_their_backend() {
        assert_eq!(thread_name("pg"), "store-pg");
        assert_eq!(thread_name("elasticsearch"), "store-elasticse");
        assert_eq!(thread_name("ÄÖÜäöü"), "store-ÄÖÜä");
        assert_eq!(thread_name("a\0b"), "store-ab");
    }

    #[test]
    fn every_backend_is_told_the_deadline() {
        let deadline = Deadline::after(Some(Duration::from_secs(60)));
        for parallel in [false, true] {
            let (tell, told) = sync_channel(2);
            let backend = |name: &str| {
                let tell = tell.clone();
                timed_backend(name, move |_, deadline| {
                    let told = tell.send(deadline);
                    told.map_err(|e| Failure::permanent(e.to_string()))
                })
            };
            let backends = vec![backend("a"), backend("b")];
            thread::scope(|scope| {
                WriterPool::new(scope).save_all(backends, &vcon(), deadline, parallel)
            });
            drop(tell);
            assert_eq!(told.iter().collect::<Vec<_>>(), [deadline; 2]);
        }
    }
}
