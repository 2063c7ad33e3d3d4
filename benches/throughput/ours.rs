//! The daemon at work on a list.

use std::thread;
use std::time::{Duration, Instant};

use super::case::Case;
use super::document::{Document, ids};
use super::harness::{Conserver, Daemon, PATIENCE, Redis};
use super::servers::Servers;
use super::usage::{Usage, Watch};

/// How the daemon is run.
#[derive(Clone, Copy)]
pub struct Way<'a> {
    pub workers: usize,
    pub lanes: usize,
    pub method: &'a str,
}

impl Way<'_> {
    /// Forked workers.
    pub fn of(workers: usize, lanes: usize) -> Self {
        let method = "fork";
        Self {
            workers,
            lanes,
            method,
        }
    }

    /// Its workers and lanes.
    pub fn shape(self) -> (usize, usize) {
        (self.workers, self.lanes)
    }
}

/// The daemon of a case, started, with nothing to do.
pub fn start(servers: &Servers, case: &Case, way: Way<'_>) -> Daemon {
    Conserver::with(&servers.redis)
        .config(&case.config(servers))
        .workers(way.workers)
        .lanes(way.lanes)
        .method(way.method)
        .env(
            "CONSERVER_PARALLEL_STORAGE",
            if case.parallel { "true" } else { "false" },
        )
        .start()
}

/// vCons in a second while `count` are done, and what they took. Fails unless all were done well.
pub fn rate(
    servers: &Servers,
    case: &Case,
    way: Way<'_>,
    document: &Document,
    count: usize,
) -> (f64, Usage) {
    servers.empty();
    let ids = ids(count);
    servers.load(document, &ids);
    let daemon = start(servers, case, way);
    // Looking for them takes a while where there are many.
    let family = daemon.family();
    servers.push("default", &ids);
    // Neither the start nor the end counts, when some lanes have nothing to do any more.
    let measured = watch(servers, family, count / 5, count - count / 10);
    Done::of(&servers.redis).wait_for(count);
    stop(servers, daemon);
    servers.check(case, document, count);
    measured
}

/// Watches from `first` to `last` done.
pub fn watch(servers: &Servers, family: Vec<i32>, first: usize, last: usize) -> (f64, Usage) {
    let mut done = Done::of(&servers.redis);
    done.wait_for(first);
    let usage = Watch::begin(servers, family);
    let (begin, before) = (Instant::now(), done.count());
    let (end, after) = done.wait_for_count(last);
    let rate = (after - before) as f64 / (end - begin).as_secs_f64();
    (rate, usage.end())
}

/// Stops the daemon; fails where a vCon was not done well.
pub fn stop(servers: &Servers, daemon: Daemon) {
    daemon.stop();
    assert_eq!(servers.redis.length("DLQ:default"), 0, "dead letters");
}

/// How many are done.
pub struct Done(redis::Connection);

impl Done {
    pub fn of(redis: &Redis) -> Self {
        Self(redis.connection())
    }

    pub fn count(&mut self) -> usize {
        redis::cmd("LLEN")
            .arg("done")
            .query(&mut self.0)
            .expect("Redis")
    }

    /// vCons in a second, from `first` to `last` done.
    pub fn rate(&mut self, first: usize, last: usize) -> f64 {
        self.wait_for(first);
        let (begin, before) = (Instant::now(), self.count());
        let (end, after) = self.wait_for_count(last);
        (after - before) as f64 / (end - begin).as_secs_f64()
    }

    /// Waits until so many are done, and answers when that was.
    pub fn wait_for(&mut self, wanted: usize) -> Instant {
        self.wait_for_count(wanted).0
    }

    /// The same, with how many are done by then.
    fn wait_for_count(&mut self, wanted: usize) -> (Instant, usize) {
        let start = Instant::now();
        loop {
            let done = self.count();
            let now = Instant::now();
            if done >= wanted {
                return (now, done);
            }
            assert!(start.elapsed() < PATIENCE * 5, "{done} of {wanted} done");
            // Whoever asks takes some of the server's time, and of the processor's: as seldom as the
            // floor is looked at, until the end is near.
            let pause = if wanted - done > wanted / 10 { 5 } else { 1 };
            thread::sleep(Duration::from_millis(pause));
        }
    }
}
