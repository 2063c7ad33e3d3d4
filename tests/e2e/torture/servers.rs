//! What is done to Redis, PostgreSQL, a folder and a server of links.

use std::time::Duration;

use redis::RedisResult;

use super::calls::Calls;
use super::folder::Folder;
use super::run::{Event, Run};
use crate::harness::{Postgres, Redis};

/// Kills and restarts Redis, cuts its connections, flushes its scripts.
pub fn torture_redis(run: &Run, redis: &Redis) {
    let mut random = run.random("redis");
    while run.pause(millis(&mut random, 300, 2_500)) {
        match random.u8(..12) {
            0..2 => {
                redis.kill9();
                run.note("redis", Event::RedisKilled, "");
                run.pause(millis(&mut random, 0, 2_000));
                redis.start();
                run.write("redis: started");
            }
            2..4 => {
                let cut: RedisResult<i64> = redis.try_ask(&["CLIENT", "KILL", "TYPE", "normal"]);
                let detail = format!("{cut:?}");
                run.note("redis", Event::AllConnectionsCut, &detail);
            }
            4..10 => cut_one(run, redis, &mut random),
            _ => {
                let flushed: RedisResult<String> = redis.try_ask(&["SCRIPT", "FLUSH"]);
                if flushed.is_ok() {
                    run.note("redis", Event::ScriptsFlushed, "");
                }
            }
        }
    }
}

/// Cuts one of the daemons' connections: of a lane, a tracker, a monitor.
fn cut_one(run: &Run, redis: &Redis, random: &mut fastrand::Rng) {
    let listed: String = redis.ask(&["CLIENT", "LIST"]);
    let field = |line: &str, name: &str| {
        let value = line
            .split(' ')
            .find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    };
    let clients: Vec<(String, String)> = listed
        .lines()
        .map(|line| (field(line, "id"), field(line, "name")))
        .filter(|(_, name)| name.starts_with("conserver:"))
        .collect();
    if let Some((id, name)) = random.choice(clients) {
        let cut: i64 = redis.ask(&["CLIENT", "KILL", "ID", &id]);
        if cut > 0 {
            run.note("redis", Event::ConnectionCut, &name);
        }
    }
}

/// Stops or crashes PostgreSQL and starts it again.
pub fn torture_postgres(run: &Run, postgres: &Postgres) {
    let mut random = run.random("postgres");
    while run.pause(millis(&mut random, 3_000, 12_000)) {
        if random.bool() {
            postgres.crash();
            run.note("postgres", Event::PostgresKilled, "");
        } else {
            postgres.stop();
            run.note("postgres", Event::PostgresStopped, "");
        }
        run.pause(millis(&mut random, 0, 3_000));
        postgres.start();
        run.write("postgres: started");
    }
}

/// Takes the folder of a storage away and puts it back.
pub fn torture_folder(run: &Run, folder: &Folder) {
    let mut random = run.random("folder");
    while run.pause(millis(&mut random, 1_000, 6_000)) {
        folder.take_away();
        run.note("folder", Event::FolderAway, "");
        run.pause(millis(&mut random, 0, 3_000));
        folder.put_back();
        run.write("folder: put back");
    }
}

/// Has a link's server refuse everything for a time.
pub fn torture_link(run: &Run, calls: &Calls) {
    let mut random = run.random("link");
    while run.pause(millis(&mut random, 3_000, 10_000)) {
        calls.refuse(true);
        run.note("link", Event::LinkRefused, "");
        run.pause(millis(&mut random, 0, 3_000));
        calls.refuse(false);
        run.write("link: accepts again");
    }
}

/// A random time.
pub fn millis(random: &mut fastrand::Rng, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.u64(least..=most))
}
