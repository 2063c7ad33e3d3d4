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
//! store-a  waits ─┴───────► save ──────► waits                   │ outcomes, with the backends
//! store-b  waits ─┴───────► save ──► waits ──────────────────────┘
//! ```
//!
//! A save by another thread costs one wake-up. The outcome is left where the lane finds it; only the last
//! one wakes the lane, if it waits by then.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope, Thread};
use std::time::{Duration, Instant};
use std::{io, mem};

use super::Storage;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::lock::locked;
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
    /// When it began.
    pub started: Instant,
    /// How long it took.
    pub took: Duration,
    /// The backend that was lent. `None` after a panic: its state was unknown, and it must be
    /// opened anew.
    pub storage: Option<Box<dyn Storage>>,
}

/// The threads that save beside a lane's own, each for one backend.
pub struct WriterPool<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    writers: HashMap<Arc<str>, Writer>,
    /// The storage that took longest last time.
    slowest: Option<Arc<str>>,
}

/// A thread that saves to one backend, as its lane sees it.
struct Writer {
    thread: Thread,
    inbox: Arc<Mutex<Inbox>>,
}

/// What a [`Writer`] is to do.
enum Inbox {
    /// Nothing yet.
    Empty,
    Job(SaveJob, Report),
    /// Nothing any more: its thread has ended, or is to end.
    Closed,
}

struct SaveJob {
    backend: Backend,
    vcon: Arc<Outgoing>,
    deadline: Deadline,
    /// Its place among the outcomes.
    place: usize,
}

/// The outcomes of the other threads for one vCon, and the lane that waits for them.
struct Outcomes {
    done: Mutex<Vec<(usize, SaveOutcome)>>,
    /// How many reports are still to come.
    awaited: AtomicUsize,
    lane: Thread,
}

/// What the lane waits for. Counts as given once it is dropped, also by a panic.
struct Report(Arc<Outcomes>);

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
        let mut slots: Vec<Option<SaveOutcome>> = names.iter().map(|_| None).collect();
        let others = Arc::new(Outcomes::of_lane(names.len()));
        let mut ours = Vec::new();
        for (place, backend) in backends.into_iter().enumerate() {
            let job = SaveJob {
                vcon: Arc::clone(vcon.of(backend.is_downgraded)),
                backend,
                deadline,
                place,
            };
            if place == own || job.backend.storage.reads_redis() {
                ours.push(job);
            } else if let Err(job) = self.hand_over(job, &others) {
                // The system has no thread to give.
                ours.push(job);
            }
        }
        for (place, outcome) in ours.into_iter().map(SaveJob::run) {
            slots[place] = Some(outcome);
        }
        for (place, outcome) in others.wait() {
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
    fn hand_over(&mut self, job: SaveJob, outcomes: &Arc<Outcomes>) -> Result<(), SaveJob> {
        let job = match self.writers.get(&job.backend.name) {
            Some(writer) => match writer.give(job, outcomes) {
                Ok(()) => return Ok(()),
                Err(job) => job,
            },
            None => job,
        };
        let name = Arc::clone(&job.backend.name);
        let Ok(writer) = Writer::start(self.scope, &name) else {
            return Err(job);
        };
        let given = writer.give(job, outcomes);
        self.writers.insert(name, writer);
        given
    }
}

impl Drop for WriterPool<'_, '_> {
    fn drop(&mut self) {
        for writer in self.writers.values() {
            writer.close();
        }
    }
}

impl Writer {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, backend: &str) -> io::Result<Self> {
        let inbox = Arc::new(Mutex::new(Inbox::Empty));
        let jobs = Jobs(Arc::clone(&inbox));
        let work = move || {
            while let Some((job, report)) = jobs.next() {
                report.give(job.run());
            }
        };
        let thread = thread::Builder::new().name(thread_name(backend));
        let thread = thread.spawn_scoped(scope, work)?;
        Ok(Self {
            thread: thread.thread().clone(),
            inbox,
        })
    }

    /// Gives it a job, or returns that if the thread has ended.
    fn give(&self, job: SaveJob, outcomes: &Arc<Outcomes>) -> Result<(), SaveJob> {
        let mut inbox = locked(&self.inbox);
        if matches!(*inbox, Inbox::Closed) {
            return Err(job);
        }
        *inbox = Inbox::Job(job, outcomes.expect_report());
        drop(inbox);
        self.thread.unpark();
        Ok(())
    }

    /// Has the thread end.
    fn close(&self) {
        *locked(&self.inbox) = Inbox::Closed;
        self.thread.unpark();
    }
}

/// The jobs of one thread. Once they are dropped, also by a panic, nobody gives it another.
struct Jobs(Arc<Mutex<Inbox>>);

impl Jobs {
    /// Waits for the next job; returns `None` if there is to be none, or was none for [`IDLE`].
    fn next(&self) -> Option<(SaveJob, Report)> {
        let end = Instant::now() + IDLE;
        loop {
            let mut inbox = locked(&self.0);
            let left = end.saturating_duration_since(Instant::now());
            match mem::replace(&mut *inbox, Inbox::Empty) {
                Inbox::Job(job, report) => return Some((job, report)),
                Inbox::Empty if !left.is_zero() => {}
                Inbox::Empty | Inbox::Closed => {
                    *inbox = Inbox::Closed;
                    return None;
                }
            }
            drop(inbox);
            thread::park_timeout(left);
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        *locked(&self.0) = Inbox::Closed;
    }
}

impl SaveJob {
    /// Returns the outcome and its place among the others.
    fn run(self) -> (usize, SaveOutcome) {
        // Dropped before the lane has the outcome, so that it can free a large document at once.
        let vcon = self.vcon;
        (self.place, save(self.backend, &vcon, self.deadline))
    }
}

impl Outcomes {
    /// Those that the calling lane waits for.
    fn of_lane(most: usize) -> Self {
        Self {
            done: Mutex::new(Vec::with_capacity(most)),
            awaited: AtomicUsize::new(0),
            lane: thread::current(),
        }
    }

    fn expect_report(self: &Arc<Self>) -> Report {
        self.awaited.fetch_add(1, Ordering::Relaxed);
        Report(Arc::clone(self))
    }

    /// Waits for all reports, and returns the outcomes there are.
    fn wait(&self) -> Vec<(usize, SaveOutcome)> {
        while self.awaited.load(Ordering::Acquire) > 0 {
            thread::park();
        }
        mem::take(&mut *locked(&self.done))
    }
}

impl Report {
    fn give(self, outcome: (usize, SaveOutcome)) {
        locked(&self.0.done).push(outcome);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if self.0.awaited.fetch_sub(1, Ordering::Release) == 1 {
            self.0.lane.unpark();
        }
    }
}

impl SaveOutcome {
    /// The outcome of a backend whose thread has ended without one.
    fn lost(name: Arc<str>) -> Self {
        let failure = Failure::transient(format!("storage {name}: its thread has ended"));
        Self {
            name,
            result: Err(failure),
            started: Instant::now(),
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
            // A second panic, while what the first one left is dropped, must not cut anything short either.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(storage)));
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(payload)));
            (Err(failure), None)
        }
    };
    SaveOutcome {
        name,
        result,
        started: start,
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
            pool.writers.values().for_each(Writer::close);
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

    /// A panic whose message panics too, when it is dropped.
    struct Twice;

    impl Drop for Twice {
        fn drop(&mut self) {
            panic!("twice");
        }
    }

    #[test]
    fn a_panic_that_panics_again_ends_no_thread() {
        let (on, threads) = sync_channel(2);
        thread::scope(|scope| {
            let mut pool = WriterPool::new(scope);
            let fatal = move |_: &Outgoing| {
                on.send(thread::current().id()).unwrap();
                panic::panic_any(Twice)
            };
            for _ in 0..2 {
                pool.slowest = None;
                let backends = vec![backend("a", |_| Ok(())), backend("b", fatal.clone())];
                let outcomes = pool.save_all(backends, &vcon(), Deadline::NONE, true);
                let failure = outcomes[1].result.clone().unwrap_err();
                assert_eq!(failure.message, "storage b panicked: no message");
            }
        });
        let threads: Vec<ThreadId> = threads.try_iter().collect();
        assert!(threads[0] == threads[1] && threads[0] != thread::current().id());
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
