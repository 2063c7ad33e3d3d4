//! Housekeeping in Redis: keeps the documents of waiting vCons from expiring, and drops stale reasons.
//!
//! Daemons with the same lists and storages share this work. The one that holds the housekeeping lease does
//! it, and then lets the lease run out when the next round is due, so that nobody starts earlier. If the
//! holder dies at work, its lease runs out soon.
//!
//! ```text
//! lease ──held by another──► wait until it runs out
//!   └─ours─► step, pause, step, pause … ─► rest: the lease runs out when the next round is due
//! ```
//!
//! Works in small steps, because the server does nothing else during one. The caller sets the pace.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use redis::Value;
use sha2::{Digest as _, Sha256};

use super::dead_letters::{cursor_and_items, scan_some};
use super::keys::{
    self, dead_letter_list, dead_letter_reasons, storage_letters_list, storage_letters_reasons,
};
use super::requests::{HousekeepingScripts, read_members_script, round_trip};
use super::{Expiry, QueueError, RedisConnection, Server};
use crate::config::ListName;

/// How many entries one step on the server looks at.
const STEP: i64 = 200;

/// How many reasons are looked at at once. Their entries are held in memory.
const REASONS: usize = 10_000;

/// The most bytes of an entry for which a daemon has recorded a reason: daemons cut an entry to a byte more than
/// one may have.
const LONGEST_ENTRY: usize = 1025;

/// How many reasons one step drops: for each, the server searches the whole list.
const DROPPED: usize = 10;

/// How many lengths one round trip asks for.
const AT_ONCE: usize = 500;

/// A part of the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chore {
    /// Extends the time to live of the documents of an ingress list to its full length, once less than half
    /// of it is left.
    Waiting(ListName),
    /// The same for the backlog of a storage. These documents live as long as dead letters, so that they
    /// also outlive a stop of the daemon. EndedWorker letters themselves may expire.
    Backlog(String),
    /// Drops the reasons of entries that are no longer in the dead letter queue of a storage: the API server
    /// removes entries and knows no reasons.
    StorageReasons(String),
    /// The same for the dead letter queue of an ingress list.
    Reasons(ListName),
}

/// The result of an attempt to take the housekeeping lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HousekeepingLease {
    /// This daemon holds it.
    Ours,
    /// Another daemon holds it, for this time unless it renews it.
    Held(Duration),
}

/// Called after each step with the time that the step took. Waits as long as it wants; returns false to end
/// the work.
pub type Pace<'a> = &'a mut dyn FnMut(Duration) -> bool;

impl Chore {
    /// A name that no other chore has.
    fn name(&self) -> String {
        match self {
            Self::Waiting(list) => format!("waiting:{list}\n"),
            Self::Backlog(storage) => format!("backlog:{storage}\n"),
            Self::StorageReasons(storage) => format!("storage:{storage}\n"),
            Self::Reasons(list) => format!("reasons:{list}\n"),
        }
    }

    /// The command that says how much there is to look at.
    fn size(&self) -> (&'static str, String) {
        match self {
            Self::Waiting(list) => ("LLEN", list.to_string()),
            Self::Backlog(storage) => ("LLEN", storage_letters_list(storage)),
            Self::StorageReasons(storage) => ("HLEN", storage_letters_reasons(storage)),
            Self::Reasons(list) => ("HLEN", dead_letter_reasons(list)),
        }
    }
}

/// Does the housekeeping for the lists and storages of one configuration.
pub struct Housekeeper {
    server: Server,
    connected: Option<RedisConnection>,
    scripts: HousekeepingScripts,
    expiry: Expiry,
    instance: String,
    /// The key of the lease.
    lease: String,
    /// The time to live of the lease during the work.
    ttl: Duration,
    renewed: Instant,
    chores: Vec<Chore>,
    search: DeadLetterSearch,
}

/// How far the search for dead letter queues is that nobody has recorded.
enum DeadLetterSearch {
    /// Unknown: any daemon may have done it before.
    Unknown,
    /// It continues at this cursor.
    At(u64),
    /// It is done.
    Done,
}

impl Housekeeper {
    /// Connects when first used, and has no chores yet. Works for this instance; the lease outlives it for
    /// `ttl`.
    pub fn new(server: Server, expiry: Expiry, instance: &str, ttl: Duration) -> Self {
        let mut this = Self {
            server,
            connected: None,
            scripts: HousekeepingScripts::new(),
            expiry,
            instance: instance.to_owned(),
            lease: String::new(),
            ttl,
            renewed: Instant::now(),
            chores: Vec::new(),
            search: DeadLetterSearch::Unknown,
        };
        this.set_chores(Vec::new());
        this
    }

    /// Sets the chores. It must not hold the lease. All that have the same chores share one lease.
    pub fn set_chores(&mut self, chores: Vec<Chore>) {
        let Expiry {
            document,
            context,
            dead_letter,
        } = self.expiry;
        let mut names: Vec<String> = chores.iter().map(Chore::name).collect();
        names.sort_unstable();
        let mut hash = Sha256::new();
        hash.update(format!("{document} {context} {dead_letter}\n"));
        names.iter().for_each(|name| hash.update(name));
        let digest: [u8; 32] = hash.finalize().into();
        self.lease = keys::housekeeping_key(&digest);
        self.chores = chores;
    }

    /// Takes the lease, if no other instance holds it.
    pub fn take(&mut self) -> Result<HousekeepingLease, QueueError> {
        let left = self.call("take", self.ttl)?;
        Ok(match left {
            0 => HousekeepingLease::Ours,
            left => HousekeepingLease::Held(Duration::from_millis(left)),
        })
    }

    /// Lets the lease run out after this time, when the next round is due.
    pub fn rest(&mut self, time: Duration) -> Result<(), QueueError> {
        self.call("renew", time).map(|_| ())
    }

    /// Releases the lease, if this instance holds it.
    pub fn release(&mut self) -> Result<(), QueueError> {
        self.call("release", self.ttl).map(|_| ())
    }

    /// The chores for which there is something to do, and about how many steps they take.
    pub fn filled(&mut self) -> Result<(Vec<Chore>, u64), QueueError> {
        let (mut filled, mut steps) = (Vec::new(), 0);
        let chores = self.chores.clone();
        for some in chores.chunks(AT_ONCE) {
            let mut asked = redis::pipe();
            for chore in some {
                let (command, key) = chore.size();
                asked.cmd(command).arg(key);
            }
            let sizes = self.with(|connection, _| Ok(round_trip(connection, &asked)?))?;
            for (chore, size) in some.iter().zip(sizes) {
                // There is nothing to do for a key that holds another type.
                if let Value::Int(size) = size
                    && size > 0
                {
                    filled.push(chore.clone());
                    steps += u64::try_from(size / STEP).unwrap_or(0) + 1;
                }
            }
        }
        Ok((filled, steps))
    }

    /// Does this chore, as the holder of the lease. Returns how many documents were extended, or reasons
    /// dropped; `None` if the lease is lost, or `pace` has ended the work.
    pub fn run(&mut self, chore: &Chore, pace: Pace<'_>) -> Result<Option<u64>, QueueError> {
        let Expiry {
            document,
            context,
            dead_letter,
        } = self.expiry;
        match chore {
            Chore::Waiting(list) => self.extend_all(&[list.as_str()], [document, context], pace),
            Chore::Backlog(storage) => {
                let (list, reasons) = (
                    storage_letters_list(storage),
                    storage_letters_reasons(storage),
                );
                let times = [document.max(dead_letter), context];
                self.extend_all(&[&list, &reasons], times, pace)
            }
            Chore::StorageReasons(storage) => self.drop_stale_reasons(
                &storage_letters_list(storage),
                &storage_letters_reasons(storage),
                pace,
            ),
            Chore::Reasons(list) => {
                self.drop_stale_reasons(&dead_letter_list(list), &dead_letter_reasons(list), pace)
            }
        }
    }

    /// Records the dead letter queues of lists that left the configuration before daemons recorded any, as
    /// the holder of the lease. Looks at every key, once for each Redis. If the lease is lost, or `pace` has
    /// ended the work, the next call continues.
    pub fn record_dead_letter_lists(&mut self, pace: Pace<'_>) -> Result<(), QueueError> {
        let recorded = self.search_dead_letters(pace);
        if recorded.is_err() {
            // The next connection may be to another server, for which the cursor means nothing.
            self.search = DeadLetterSearch::Unknown;
        }
        recorded
    }

    fn search_dead_letters(&mut self, pace: Pace<'_>) -> Result<(), QueueError> {
        loop {
            let cursor = match self.search {
                DeadLetterSearch::Done => return Ok(()),
                DeadLetterSearch::At(cursor) => cursor,
                DeadLetterSearch::Unknown => {
                    if self.has_searched()? {
                        self.search = DeadLetterSearch::Done;
                        continue;
                    }
                    0
                }
            };
            let begun = Instant::now();
            let next = self.with(|connection, scripts| record_some(connection, scripts, cursor))?;
            self.search = match next {
                0 => DeadLetterSearch::Done,
                next => DeadLetterSearch::At(next),
            };
            if !self.goes_on(begun.elapsed(), pace)? {
                return Ok(());
            }
        }
    }

    /// Whether any daemon has searched all keys. A process asks once.
    fn has_searched(&mut self) -> Result<bool, QueueError> {
        // Not `SISMEMBER`, which nothing else needs: a Redis user would need one more right.
        let searched = keys::ALL_SEARCHED;
        let recorded: Vec<Vec<u8>> = self.with(|connection, _| {
            let mut call = read_members_script().key(keys::DEAD_LETTER_LISTS);
            Ok(call.arg(searched.len()).invoke(&mut **connection)?)
        })?;
        Ok(recorded.iter().any(|member| member == searched.as_bytes()))
    }

    /// Takes, renews or releases the lease. Returns its time to live if somebody else holds it, otherwise 0.
    fn call(&mut self, what: &str, ttl: Duration) -> Result<u64, QueueError> {
        let (lease, instance) = (self.lease.clone(), self.instance.clone());
        let left = self.with(|connection, scripts| {
            let mut call = scripts.lease.key(lease);
            call.arg(what).arg(instance).arg(millis(ttl));
            Ok(call.invoke(&mut **connection)?)
        })?;
        self.renewed = Instant::now();
        Ok(left)
    }

    /// Waits after a step that took this time, and renews the lease. Returns false if the lease is lost, or
    /// `pace` ends the work.
    fn goes_on(&mut self, took: Duration, pace: Pace<'_>) -> Result<bool, QueueError> {
        if !pace(took) {
            return Ok(false);
        }
        if self.renewed.elapsed() < self.ttl / 3 {
            return Ok(true);
        }
        Ok(self.call("renew", self.ttl)? == 0)
    }

    fn extend_all(
        &mut self,
        keys: &[&str],
        times: [u64; 2],
        pace: Pace<'_>,
    ) -> Result<Option<u64>, QueueError> {
        let mut extended = 0;
        // From the tail: entries taken from the head meanwhile do not move the next ones. Entries added at
        // the tail are new, or make the next step look at some again.
        let mut last = -1;
        // How many entries the next steps still have to look at.
        let mut left = i64::MAX;
        loop {
            let begun = Instant::now();
            let (lease, instance) = (self.lease.clone(), self.instance.clone());
            let ttl = millis(self.ttl);
            let found: Vec<i64> = self.with(|connection, scripts| {
                let mut call = scripts.extend_waiting.key(lease);
                for key in keys {
                    call.key(*key);
                }
                call.arg(last + 1 - STEP).arg(last).arg(&times[..]);
                call.arg(instance).arg(ttl);
                Ok(call.invoke(&mut **connection)?)
            })?;
            let [seen, more, length] = found[..] else {
                return Ok(None);
            };
            self.renewed = Instant::now();
            extended += u64::try_from(more).unwrap_or(0);
            if seen < STEP {
                return Ok(Some(extended));
            }
            last -= STEP;
            let before = std::mem::replace(&mut left, length + last);
            // No pause while entries are added as fast as the steps go: they would never reach the head.
            let took = if left > before - STEP / 2 {
                Duration::ZERO
            } else {
                begun.elapsed()
            };
            if !self.goes_on(took, pace)? {
                return Ok(None);
            }
        }
    }

    /// Drops the reasons without entries. Reads the reasons a page at a time, and the whole queue once for
    /// each page. The server searches the queue only for entries that were not found that way.
    fn drop_stale_reasons(
        &mut self,
        list: &str,
        reasons: &str,
        pace: Pace<'_>,
    ) -> Result<Option<u64>, QueueError> {
        let mut dropped = 0;
        let mut cursor = Some(0);
        while cursor.is_some() {
            let mut known = HashSet::new();
            while let Some(from) = cursor
                && known.len() < REASONS
            {
                let begun = Instant::now();
                cursor = self.with(|connection, scripts| {
                    read_reasons(connection, scripts, reasons, from, &mut known)
                })?;
                if !self.goes_on(begun.elapsed(), pace)? {
                    return Ok(None);
                }
            }
            let mut last = -1;
            while !known.is_empty() {
                let begun = Instant::now();
                if !self.with(|connection, scripts| {
                    remove_queued(connection, scripts, list, last, &mut known)
                })? {
                    break;
                }
                last -= STEP;
                if !self.goes_on(begun.elapsed(), pace)? {
                    return Ok(None);
                }
            }
            let gone: Vec<Vec<u8>> = known.into_iter().collect();
            for some in gone.chunks(DROPPED) {
                let begun = Instant::now();
                dropped += self.with(|connection, scripts| {
                    let mut call = scripts.drop_stale_reasons.key(list);
                    call.key(reasons).arg(some);
                    Ok(call.invoke::<u64>(&mut **connection)?)
                })?;
                if !self.goes_on(begun.elapsed(), pace)? {
                    return Ok(None);
                }
            }
        }
        Ok(Some(dropped))
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut RedisConnection, &HousekeepingScripts) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let mut connection = match self.connected.take() {
            Some(connection) => connection,
            None => self.server.connect("conserver:keeper")?,
        };
        // Not used again after a failure: a reply may still arrive.
        let result = work(&mut connection, &self.scripts)?;
        self.connected = Some(connection);
        Ok(result)
    }
}

/// A time to live in milliseconds, at least 1.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Records the dead letter queues among some keys from a cursor on. Returns the next cursor, 0 at the end.
fn record_some(
    connection: &mut RedisConnection,
    scripts: &HousekeepingScripts,
    from: u64,
) -> Result<u64, QueueError> {
    let (next, mut found) = scan_some(connection, &scripts.scan_keys, from, b"DLQ:*", "list")?;
    if next == 0 {
        found.push(keys::ALL_SEARCHED.into());
    }
    if !found.is_empty() {
        let mut add = redis::cmd("SADD");
        add.arg(keys::DEAD_LETTER_LISTS)
            .arg(found)
            .query::<()>(&mut **connection)?;
    }
    Ok(next)
}

/// Reads some fields of the hash from a cursor on. Returns the next cursor, `None` at the end.
fn read_reasons(
    connection: &mut RedisConnection,
    scripts: &HousekeepingScripts,
    reasons: &str,
    from: u64,
    known: &mut HashSet<Vec<u8>>,
) -> Result<Option<u64>, QueueError> {
    let mut call = scripts.scan_reasons.key(reasons);
    call.arg(from).arg(STEP).arg(LONGEST_ENTRY);
    let (next, found) = cursor_and_items(call.invoke(&mut **connection)?)?;
    known.extend(found);
    Ok((next != 0).then_some(next))
}

/// Removes the entries of one step, which ends at index `last`, from `known`. Returns false if there are no
/// more entries.
fn remove_queued(
    connection: &mut RedisConnection,
    scripts: &HousekeepingScripts,
    list: &str,
    last: i64,
    known: &mut HashSet<Vec<u8>>,
) -> Result<bool, QueueError> {
    let mut call = scripts.read_list.key(list);
    call.arg(last + 1 - STEP).arg(last).arg(LONGEST_ENTRY + 1);
    let entries: Vec<Vec<u8>> = call.invoke(&mut **connection)?;
    for entry in &entries {
        known.remove(entry);
    }
    Ok(!entries.is_empty())
}
