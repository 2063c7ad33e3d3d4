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

/// A thread that has had nothing to save for so long ends.
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
pub struct Outcome {
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
pub struct Crew<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    members: HashMap<Arc<str>, Sender<Job>>,
    /// The storage that took longest last time.
    slowest: Option<Arc<str>>,
}

struct Job {
    backend: Backend,
    vcon: Arc<Outgoing>,
    deadline: Deadline,
    /// Its place among the outcomes.
    place: usize,
    done: Sender<(usize, Outcome)>,
}

impl<'scope, 'env> Crew<'scope, 'env> {
    /// A crew without threads yet. All of them end with the scope, for which the crew must be
    /// gone.
    pub fn new(scope: &'scope Scope<'scope, 'env>) -> Self {
        Self {
            scope,
            members: HashMap::new(),
            slowest: None,
        }
    }

    /// Saves the vCon to every backend, by the deadline, and returns their outcomes in the same order.
    ///
    /// With `parallel`, each backend but one has a thread of its own; that one, which took longest
    /// last time, has the caller's, whom it need not wake. The call ends with the slowest.
    pub fn save_all(
        &mut self,
        backends: Vec<Backend>,
        vcon: &Leaving,
        deadline: Deadline,
        parallel: bool,
    ) -> Vec<Outcome> {
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
        let own = slowest.unwrap_or(0);
        let (done, outcomes) = bounded(names.len());
        let mut ours = Vec::new();
        for (place, backend) in backends.into_iter().enumerate() {
            let job = Job {
                vcon: Arc::clone(vcon.of(backend.is_downgraded)),
                backend,
                deadline,
                place,
                done: done.clone(),
            };
            if place == own {
                ours.push(job);
            } else if let Err(job) = self.hand_over(job) {
                // The system has no thread to give.
                ours.push(job);
            }
        }
        drop(done);
        ours.into_iter().for_each(Job::run);

        let mut slots: Vec<Option<Outcome>> = names.iter().map(|_| None).collect();
        for (place, outcome) in outcomes {
            slots[place] = Some(outcome);
        }
        let outcomes = names.into_iter().zip(slots);
        let outcomes: Vec<Outcome> = outcomes
            .map(|(name, outcome)| outcome.unwrap_or_else(|| Outcome::lost(name)))
            .collect();
        let slowest = outcomes.iter().max_by_key(|outcome| outcome.took);
        self.slowest = slowest.map(|outcome| Arc::clone(&outcome.name));
        outcomes
    }

    /// Has the backend's thread do the job; one that has ended, because it was idle, has a
    /// successor. Gives the job back where no thread can be started.
    fn hand_over(&mut self, job: Job) -> Result<(), Job> {
        let name = Arc::clone(&job.backend.name);
        let job = match self.members.get(&name) {
            Some(member) => match member.send(job) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent.into_inner(),
            },
            None => job,
        };
        // Without room for a job: one is taken only by a thread that is there for it.
        let (jobs, todo) = bounded::<Job>(0);
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
        self.members.insert(name, jobs);
        sent
    }
}

impl Job {
    fn run(self) {
        let outcome = save(self.backend, &self.vcon, self.deadline);
        // Its lane may let go of a large document as soon as it has the outcome.
        drop(self.vcon);
        // Fails only where the lane is gone, by a panic.
        let _ = self.done.send((self.place, outcome));
    }
}

impl Outcome {
    /// That of a backend whose thread has ended without one.
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

fn save(backend: Backend, vcon: &Outgoing, deadline: Deadline) -> Outcome {
    let Backend {
        name, mut storage, ..
    } = backend;
    let start = Instant::now();
    // What the panic leaves behind is not looked at again.
    let caught = panic::catch_unwind(AssertUnwindSafe(|| storage.save(vcon, deadline)));
    let took = start.elapsed();
    let (result, storage) = match caught {
        Ok(result) => (result, Some(storage)),
        Err(payload) => {
            let why = panic_message(payload.as_ref());
            let failure = Failure::refused(format!("storage {name} panicked: {why}"));
            // Neither may a second panic, of a broken backend that is dropped, cut anything short.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(storage)));
            (Err(failure), None)
        }
    };
    Outcome {
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
mod tests;
