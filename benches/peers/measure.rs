//! One round of a peer at a job, and what becomes of its jobs when a worker is killed.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use redis::Connection;

use super::case::Case;
use super::document::{Document, USUAL, ids};
use super::harness::PATIENCE;
use super::peer::{Peer, Shape};
use super::servers::Servers;
use super::service::{Service, Site};
use super::usage::cpu_clock;

/// The list on which jobs announce their vCons.
const DONE: &str = "done";

/// The most jobs at once: their documents have to be in memory.
const MOST: usize = 40_000;

/// What one round has measured.
pub struct Round {
    /// Seconds from the start of the program to the first job done.
    pub start: f64,
    /// vCons in a second.
    pub rate: f64,
    /// Seconds of its processes for each vCon.
    pub cpu: f64,
    /// Seconds of Redis for each vCon.
    pub redis: f64,
    /// Bytes for each slot, after the work.
    pub memory: f64,
}

/// What became of the jobs.
pub struct Killed {
    pub jobs: usize,
    /// Not announced in time.
    pub missing: usize,
    /// Announced once too often.
    pub again: usize,
    /// Seconds from the kill until the last was announced for the first time; none where some are missing.
    pub seconds: Option<f64>,
    /// Announced and not acknowledged at the end of the wait: they will be done again.
    pub to_come: usize,
    /// Whether some are missing and the peer has forgotten them.
    pub lost: bool,
}

/// Starts it, and measures its rate for about so many seconds, then so many vCons one by one.
pub fn round(
    servers: &Servers,
    job: &Case,
    peer: Peer,
    shape: Shape,
    (seconds, probes): (f64, usize),
) -> (Round, Vec<f64>) {
    let site = Site::new(servers, job);
    let mut list = Announced::of(&site);
    let document = Document::of_size(USUAL);

    servers.empty();
    let first = load(servers, &document, 1);
    peer.hand_in(&site, &first);
    let begin = Instant::now();
    let mut service = Service::start(&site, peer, shape);
    list.wait_for_first(&mut service);
    let start = begin.elapsed().as_secs_f64();

    let pace = warm_up(
        &site,
        &document,
        (peer, shape, seconds),
        (&mut list, &mut service),
    );
    let count = jobs(pace, shape, seconds);
    let ids = load(servers, &document, count);
    let family = release(&site, peer, &service, &ids);
    let redis = servers.redis.pid();
    let mut look = |wanted: usize| {
        let done = list.wait_for(wanted, &mut service);
        let cpu: f64 = family.iter().copied().map(cpu_clock).sum();
        (Instant::now(), done as f64, cpu, cpu_clock(redis))
    };
    let (begin, before, cpu, redis_cpu) = look(count / 10);
    let (end, after, cpu_after, redis_after) = look(count / 10 * 9);
    let done = after - before;
    assert!(done > 0.0, "too few vCons to measure");
    look(count);
    let round = Round {
        start,
        rate: done / (end - begin).as_secs_f64(),
        cpu: (cpu_after - cpu) / done,
        redis: (redis_after - redis_cpu) / done,
        memory: service.memory() / shape.slots() as f64,
    };
    list.clear();
    let ids = load(servers, &document, probes);
    let latencies = if ids.is_empty() {
        Vec::new()
    } else {
        peer.probe(&site, &ids)
    };
    (round, latencies)
}

/// Kills a worker in the middle of two seconds' jobs, and counts what is announced until nothing is left to do.
pub fn killed(
    servers: &Servers,
    job: &Case,
    peer: Peer,
    shape: Shape,
    (rate, patience): (f64, Duration),
) -> Killed {
    let site = Site::new(servers, job);
    let mut list = Announced::of(&site);
    let document = Document::of_size(USUAL);
    servers.empty();
    let mut service = Service::start(&site, peer, shape);
    warm_up(
        &site,
        &document,
        (peer, shape, 0.0),
        (&mut list, &mut service),
    );
    let jobs = jobs(rate, shape, 2.0);
    let ids = load(servers, &document, jobs);
    release(&site, peer, &service, &ids);
    list.wait_for(jobs / 4, &mut service);
    service.kill_a_worker();

    let begin = Instant::now();
    let mut times: HashMap<String, usize> = ids.into_iter().map(|id| (id, 0)).collect();
    let (mut all, mut again, mut seconds) = (0, 0, None);
    let (unfinished, lost) = loop {
        // First, so that what is finished afterwards is not taken for announced.
        let unfinished = peer.unfinished(&mut list.connection, shape);
        for id in list.take() {
            let times = times.get_mut(&id).expect("a job of these");
            *times += 1;
            if *times > 1 {
                again += 1;
            } else {
                all += 1;
            }
        }
        if all == jobs && seconds.is_none() {
            seconds = Some(begin.elapsed().as_secs_f64());
        }
        if unfinished == 0 && all == jobs || begin.elapsed() > patience {
            break (unfinished, false);
        }
        // What it had finished a second ago is announced by now.
        if unfinished == 0 && list.idle_for() > Duration::from_secs(1) {
            break (unfinished, true);
        }
        service.tend();
        thread::sleep(Duration::from_millis(5));
    };
    Killed {
        jobs,
        missing: jobs - all,
        again,
        seconds,
        to_come: unfinished.saturating_sub(jobs - all),
        lost,
    }
}

/// How many jobs take so many seconds at this rate, within reason.
fn jobs(rate: f64, shape: Shape, seconds: f64) -> usize {
    ((rate * seconds) as usize).clamp(shape.slots() * 10, MOST)
}

/// Documents in Redis, which nobody has been told of.
fn load(servers: &Servers, document: &Document, count: usize) -> Vec<String> {
    let ids = ids(count);
    servers.load(document, &ids);
    ids
}

/// Has it do jobs until some have taken half of these seconds; gives how many it does in a second, roughly.
fn warm_up(
    site: &Site<'_>,
    document: &Document,
    (peer, shape, seconds): (Peer, Shape, f64),
    (list, service): (&mut Announced, &mut Service<'_>),
) -> f64 {
    let mut count = (shape.slots() * 15).max(300);
    // All of it has started when it has done these: the processes that are to be stopped below.
    let ids = load(site.servers, document, count);
    peer.hand_in(site, &ids);
    list.wait_for(count, service);
    loop {
        list.clear();
        let ids = load(site.servers, document, count);
        release(site, peer, service, &ids);
        let before = list.wait_for(count / 10, service);
        let begin = Instant::now();
        list.wait_for(count, service);
        let took = begin.elapsed().as_secs_f64();
        if took > seconds / 2.0 || count * 4 > MOST {
            list.clear();
            return (count - before) as f64 / took;
        }
        // Programs that compile what runs often are not warm yet.
        count *= 4;
    }
}

/// Hands in jobs while nobody works, and lets it go.
fn release(site: &Site<'_>, peer: Peer, service: &Service<'_>, ids: &[String]) -> Vec<i32> {
    let frozen = service.freeze();
    peer.hand_in(site, ids);
    frozen.thaw()
}

/// The list of announcements.
struct Announced {
    connection: Connection,
    last: Instant,
}

impl Announced {
    fn of(site: &Site<'_>) -> Self {
        Self {
            connection: site.servers.redis.connection(),
            last: Instant::now(),
        }
    }

    /// Waits for the first, which it takes.
    fn wait_for_first(&mut self, service: &mut Service<'_>) {
        let start = Instant::now();
        loop {
            let mut pop = redis::cmd("BLPOP");
            let pop = pop.arg(DONE).arg(1);
            let popped: Option<(String, String)> = pop.query(&mut self.connection).expect("Redis");
            if popped.is_some() {
                return;
            }
            service.assert_alive();
            assert!(start.elapsed() < PATIENCE, "the first vCon is not done");
        }
    }

    /// Waits until there are so many; gives how many there are.
    fn wait_for(&mut self, wanted: usize, service: &mut Service<'_>) -> usize {
        let start = Instant::now();
        loop {
            let mut count = redis::cmd("LLEN");
            let count: usize = count.arg(DONE).query(&mut self.connection).expect("Redis");
            if count >= wanted {
                return count;
            }
            service.assert_alive();
            assert!(start.elapsed() < PATIENCE * 3, "{count} of {wanted} done");
            // Whoever asks takes some of the server's time, and of the processor's.
            let pause = if wanted - count > wanted / 10 { 5 } else { 1 };
            thread::sleep(Duration::from_millis(pause));
        }
    }

    /// Takes what is there.
    fn take(&mut self) -> Vec<String> {
        let mut pop = redis::cmd("LPOP");
        let pop = pop.arg(DONE).arg(10_000);
        let ids: Option<Vec<String>> = pop.query(&mut self.connection).expect("Redis");
        let ids = ids.unwrap_or_default();
        if !ids.is_empty() {
            self.last = Instant::now();
        }
        ids
    }

    /// For how long nothing came.
    fn idle_for(&self) -> Duration {
        self.last.elapsed()
    }

    fn clear(&mut self) {
        let mut delete = redis::cmd("DEL");
        let delete = delete.arg(DONE);
        delete.query::<()>(&mut self.connection).expect("Redis");
    }
}
