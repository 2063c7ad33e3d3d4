//! The floor: the same commands, statements, files and requests, in a tight loop on each connection.

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

/// Stores a document in the shortest way there is.
trait Keeper: Send {
    fn keep(&mut self, id: &str, text: &str);
}

/// vCons in a second on so many connections; the storages as the case has them, at once or one after the
/// other. Ends after `window` seconds, or with the last of `count` vCons.
pub fn rate(
    servers: &Servers,
    case: &Case,
    connections: usize,
    document: &Document,
    (count, window): (usize, f64),
) -> f64 {
    servers.empty();
    let ids = ids(count);
    servers.load(document, &ids);
    servers.push("default", &ids);
    let (barrier, over) = (Barrier::new(connections + 1), AtomicBool::new(false));
    let lane = |lane: usize| {
        let mut queue = queue::Queue::connect(servers, lane, !case.stores.is_empty());
        let keepers = case.stores.iter().map(|s| keeper(servers, *s));
        let mut keepers = keepers::Keepers::new(keepers.collect(), case.parallel);
        barrier.wait();
        let mut done = 0;
        let mut next = queue.claim();
        while let Some(id) = next.filter(|_| !over.load(Ordering::Relaxed)) {
            let text = Arc::new(document.left(&id, case.tag));
            keepers.keep(&id, &text);
            next = queue.finish_and_claim(&id, case.tag.then_some(&text));
            done += 1;
        }
        (done, Instant::now())
    };
    let lane = &lane;
    thread::scope(|scope| {
        let lanes: Vec<_> = (1..=connections)
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
        done as f64 / (end - start).as_secs_f64()
    })
}

fn keeper(servers: &Servers, store: Store) -> Box<dyn Keeper> {
    match store {
        Store::File => Box::new(file::File::open(servers)),
        Store::Postgres => Box::new(postgres::Postgres::open(servers)),
        Store::S3 => Box::new(s3::S3::open(servers)),
    }
}
