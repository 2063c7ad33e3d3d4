//! The torture program: two daemons on one Redis are killed, frozen, cut off and restarted at
//! random, and so are their servers, while vCons are submitted all the time, each to two chains,
//! and some sent on to a third. At every instant each vCon is in exactly one place for each of its
//! pushes; in the end every change of every chain is in Redis and in every storage.
//!
//! It takes `CONSERVER_TORTURE_SECONDS` (40). It prints its seed; `CONSERVER_TORTURE_SEED` does the
//! same things again, though never at quite the same instants. When it fails it leaves all logs
//! behind, and the journal of Redis, in which each step of a vCon can be looked up by its UUID.

mod books;
mod calls;
mod chains;
mod folder;
mod logs;
mod producer;
mod run;
mod sampler;
mod servers;
mod victim;

use std::thread;
use std::time::{Duration, Instant};

use books::Books;
use calls::Calls;
use folder::Folder;
use producer::produce;
use run::Run;
use sampler::{Most, Sampler, Snapshot};
use victim::Victim;

use crate::harness::{Conserver, Files, Postgres, Redis, number_from_env};

const INSTANCES: [&str; 2] = ["west", "east"];

/// How long the daemons may make no progress when nothing more happens to them.
const STANDSTILL: Duration = Duration::from_secs(60);

#[test]
fn nothing_is_lost_whatever_is_killed() {
    let seconds = number_from_env("CONSERVER_TORTURE_SECONDS", 40);
    let drawn = usize::try_from(fastrand::u32(..)).expect("64 bits");
    let seed = number_from_env("CONSERVER_TORTURE_SEED", drawn);
    println!("torture: CONSERVER_TORTURE_SEED={seed} CONSERVER_TORTURE_SECONDS={seconds}");

    let run = Run::begin(seed as u64, Duration::from_secs(seconds as u64));
    let redis = if run.random("set-up").bool() {
        Redis::new().json()
    } else {
        Redis::new()
    };
    let redis = redis.durable().recorded().started();
    let postgres = Postgres::own();
    let database = postgres.new_database();
    let files = Files::new();
    let (later, calls) = (Folder::new(), Calls::listen());
    let (pg, folder) = (database.storage(), files.storage());
    let config = chains::config(&pg, &folder, &later.storage(), &calls);
    let sampler = Sampler::default();
    let submitted = thread::scope(|scope| {
        let _over = run.ends_with();
        scope.spawn(|| sampler.watch(&run, &redis, &INSTANCES));
        let producer = scope.spawn(|| produce(&run, &redis));
        let servers = [
            scope.spawn(|| servers::torture_redis(&run, &redis)),
            scope.spawn(|| servers::torture_postgres(&run, &postgres)),
            scope.spawn(|| servers::torture_folder(&run, &later)),
            scope.spawn(|| servers::torture_link(&run, &calls)),
        ];
        let victims = INSTANCES.map(|name| {
            let template = Conserver::with(&redis).config(&config);
            let victim = Victim::start(&run, name, template);
            scope.spawn(move || victim.torture())
        });
        let submitted = producer.join().expect("the producer");
        for server in servers {
            server.join().expect("a server");
        }
        let victims = victims.map(|victim| victim.join().expect("an instance"));
        work_off(&run, &sampler);
        victims.into_iter().for_each(Victim::stop);
        submitted
    });
    let (looks, _) = sampler.latest();
    let later = later.files();
    let copies = [database.rows(), files.documents(), later.documents()];
    let copies = copies.map(|rows| rows.into_iter().collect());
    let folders = [&files, &later];
    let books = Books::close(&run, &redis, &copies, folders, &calls, &submitted);
    let most = sampler.most();
    let report = report(&run, &redis, looks, most, &books);
    println!("{report}");
    run.write(&report);
    if run.faults().is_empty() {
        made_sense(&run, most, &books);
    } else {
        run.keep_folder(redis.folder(), "redis");
        fail(run, &report);
    }
}

/// Waits until all that was submitted is worked off, as long as there is progress.
fn work_off(run: &Run, sampler: &Sampler) {
    run.write("calm");
    let (mut last, mut since) = (Snapshot::default(), Instant::now());
    let (before, _) = sampler.latest();
    loop {
        let (looks, snapshot) = sampler.latest();
        if looks > before && snapshot.is_settled() {
            return run.write("all is worked off");
        }
        let left = |it: &Snapshot| (it.announced, it.backlog);
        if left(&snapshot) != left(&last) {
            (last, since) = (snapshot, Instant::now());
        }
        if since.elapsed() > STANDSTILL {
            return run.fault(format!("nothing goes on for {STANDSTILL:?}: {snapshot:?}"));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn report(run: &Run, redis: &Redis, looks: usize, most: Most, books: &Books) -> String {
    let kind = if redis.has_json() {
        "RedisJSON"
    } else {
        "plain strings"
    };
    let mut text = format!(
        "torture: seed {}, {} s, documents as {kind}\n{books}",
        run.seed,
        run.time.as_secs(),
    );
    let mut line = |name: &str, count: usize| text += &format!("  {name:<34}{count:>8}\n");
    line("most waiting for a storage", most.backlog);
    line("most with progress kept", most.progress);
    line("snapshots", looks);
    line("kills", run.kills());
    for (event, count) in run.tally() {
        line(&format!("  {}", event.name()), count);
    }
    text
}

/// A run in which nothing happened would prove nothing.
fn made_sense(run: &Run, most: Most, books: &Books) {
    assert!(run.kills() > 0, "nothing was killed");
    assert!(books.acknowledged > 0, "nothing was submitted");
    assert!(books.sent_on > 0, "nothing was sent on");
    assert!(books.logs.merged > 0, "no two chains met");
    assert!(books.logs.saved_later > 0, "nothing was deferred");
    assert!(most.progress > 0, "no progress was kept");
}

/// Fails with all that helps to find the cause.
fn fail(run: Run, report: &str) {
    const MOST: usize = 40;
    let faults = run.faults();
    let mut text = format!("{} faults:\n", faults.len());
    for fault in faults.iter().take(MOST) {
        text += &format!("  {}\n", fault.text);
    }
    let logs: Vec<String> = ["events", INSTANCES[0], INSTANCES[1]]
        .iter()
        .map(|name| run.kept(&format!("{name}.log")))
        .collect();
    let mut ids: Vec<&String> = faults
        .iter()
        .filter_map(|fault| fault.id.as_ref())
        .collect();
    ids.dedup();
    for id in ids.into_iter().take(3) {
        text += &format!("The logs on {id}:\n");
        let lines = logs.iter().flat_map(|log| log.lines());
        for line in lines.filter(|line| line.contains(id.as_str())).take(MOST) {
            text += &format!("  {line}\n");
        }
    }
    let seed = run.seed;
    let evidence = run.leave_evidence();
    panic!(
        "{text}{report}CONSERVER_TORTURE_SEED={seed}; all logs and Redis' journal are in {}",
        evidence.display()
    );
}
