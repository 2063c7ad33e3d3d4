//! The floors: the least that any reliable worker must do for a vCon, in a tight loop on each connection.
//!
//! A loop moves a vCon to a list of its own, gets its document, saves it, announces it and takes it off its list. It
//! knows nothing of the daemon: no script of its, no lease, no record of a claim, no time limit, no log. *Single* loops do
//! so for one vCon at a time, *batched* ones for eight in each request, statement and sync of a directory.

mod file;
mod keepers;
mod postgres;
mod queue;
mod s3;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use super::case::{Case, Store};
use super::document::{Document, ids};
use super::servers::Servers;

pub use queue::Queue;

/// How many vCons a batched loop has in hand at a time.
pub const BATCH: usize = 8;

/// How the work is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loops {
    pub connections: usize,
    /// How many vCons go together: 1 or [`BATCH`].
    pub together: usize,
}

impl Loops {
    /// One vCon at a time on each connection.
    pub fn single(connections: usize) -> Self {
        Self {
            connections,
            together: 1,
        }
    }

    /// [`BATCH`] vCons at a time on each connection.
    pub fn batched(connections: usize) -> Self {
        Self {
            connections,
            together: BATCH,
        }
    }

    /// What tables call it.
    pub fn name(self) -> String {
        let kind = if self.together == 1 {
            "single"
        } else {
            "batched"
        };
        format!("{kind} x {}", self.connections)
    }
}

/// A vCon that a loop has in hand.
pub struct Taken {
    pub id: String,
    pub text: String,
}

/// Saves documents in the shortest way there is, all of them at once if the storage can.
trait Keeper: Send {
    fn keep(&mut self, vcons: &[Taken]);
}

/// vCons in a second; the storages as the case has them, at once or one after the other. Ends after `window` seconds, or
/// with the last of `count` vCons. Fails unless all that was done was done well.
pub fn rate(
    servers: &Servers,
    case: &Case,
    loops: Loops,
    document: &Document,
    (count, window): (usize, f64),
) -> f64 {
    servers.empty();
    let ids = ids(count);
    servers.load(document, &ids);
    servers.push("default", &ids);
    let barrier = Barrier::new(loops.connections + 1);
    let over = AtomicBool::new(false);
    let lane = |number: usize| {
        let mut queue = Queue::connect(servers, number, loops.together, document);
        let keepers = case.stores.iter().map(|store| keeper(servers, *store));
        let mut keepers = keepers::Keepers::new(keepers.collect(), case.parallel);
        barrier.wait();
        let mut done = 0;
        let mut taken = queue.claim();
        while !taken.is_empty() {
            if case.tag {
                for vcon in &mut taken {
                    vcon.text = document.left(&vcon.id, true);
                }
            }
            let vcons = Arc::new(taken);
            keepers.keep(&vcons);
            done += vcons.len();
            if over.load(Ordering::Relaxed) {
                queue.finish(&vcons, case.tag);
                break;
            }
            taken = queue.finish_and_claim(&vcons, case.tag);
        }
        (done, Instant::now())
    };
    let lane = &lane;
    let (done, seconds) = thread::scope(|scope| {
        let lanes: Vec<_> = (1..=loops.connections)
            .map(|number| scope.spawn(move || lane(number)))
            .collect();
        barrier.wait();
        let start = Instant::now();
        while lanes.iter().any(|lane| !lane.is_finished()) && start.elapsed().as_secs_f64() < window
        {
            thread::sleep(Duration::from_millis(5));
        }
        over.store(true, Ordering::Relaxed);
        let ends: Vec<(usize, Instant)> = lanes
            .into_iter()
            .map(|lane| lane.join().expect("a lane of the floor"))
            .collect();
        let done: usize = ends.iter().map(|(done, _)| done).sum();
        let end = ends.iter().map(|(_, end)| *end).max().expect("a lane");
        (done, (end - start).as_secs_f64())
    });
    assert_eq!(servers.redis.length("default"), count - done, "waiting");
    for number in 1..=loops.connections {
        assert_eq!(servers.redis.length(&queue::processing(number)), 0);
    }
    servers.check(case, document, done);
    done as f64 / seconds
}

fn keeper(servers: &Servers, store: Store) -> Box<dyn Keeper> {
    match store {
        Store::File => Box::new(file::File::open(servers)),
        Store::Postgres => Box::new(postgres::Postgres::open(servers)),
        Store::S3 => Box::new(s3::S3::open(servers)),
    }
}
