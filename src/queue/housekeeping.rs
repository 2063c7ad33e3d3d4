//! Documents whose vCons wait must not run out before their turn has come.
//!
//! Daemons with the same lists and storages share this work: whoever holds the keeper's lease does it, and
//! then leaves the lease to run out when the work is due again. So nobody does it before its time. If a
//! keeper dies at work, its lease runs out soon.
//!
//! ```text
//! lease ──held by another──► wait, as long as it lives
//!   └─ours─► step, pause, step, pause … ─► rest: the lease runs out when the next round is due
//! ```

use std::collections::HashSet;
use std::time::{Duration, Instant};

use redis::Value;
use sha2::{Digest as _, Sha256};

use super::keys::{
    self, dead_letter_list, dead_letter_reasons, storage_letters_list, storage_letters_reasons,
};
use super::requests::{Script, forget_reasons, keep, keeper, round_trip};
use super::{Expiry, Lease, QueueError, Server, is_wrong_type};
use crate::config::ListName;

/// Entries looked at in one step on the server; it does nothing else in that time.
const STEP: i64 = 200;

/// Reasons read at once; the memory this takes is theirs.
const REASONS: usize = 10_000;

/// Reasons dropped in one step: for each, the server looks through the whole list.
const FORGOTTEN: usize = 10;

/// Keys looked at in one step of the search for dead letter queues.
const KEYS: usize = 1000;

/// Lengths asked for in one round trip.
const AT_ONCE: usize = 500;

/// Where a scan of a hash goes on, with the fields it found and their values.
pub(super) type Scanned = (u64, Vec<(Vec<u8>, Vec<u8>)>);

/// A part of the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chore {
    /// Gives each document of an ingress list of which less than half of its time is left the whole of
    /// it again.
    Waiting(ListName),
    /// The same for the backlog of a storage. Its documents live as long as dead letters, so that
    /// they outlive the daemon's own absence too; dead letters themselves run out.
    Backlog(String),
    /// Drops the reasons whose entries have gone from the dead letter queue of a storage: the API
    /// server takes entries out and does not know of reasons.
    StorageReasons(String),
    /// The same for the dead letter queue of an ingress list.
    Reasons(ListName),
}

/// The result of asking for the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// We hold it.
    Ours,
    /// Another daemon's lives that long, if nobody renews it.
    Held(Duration),
}

/// Called after each step with the time that the step took. Waits as it likes; false ends the work.
pub type Pace<'a> = &'a mut dyn FnMut(Duration) -> bool;

impl Chore {
    /// What tells it from others.
    fn name(&self) -> String {
        match self {
            Self::Waiting(list) => format!("waiting:{list}\n"),
            Self::Backlog(storage) => format!("backlog:{storage}\n"),
            Self::StorageReasons(storage) => format!("storage:{storage}\n"),
            Self::Reasons(list) => format!("reasons:{list}\n"),
        }
    }

    /// The command that tells how much there is to look at.
    fn size(&self) -> (&'static str, String) {
        match self {
            Self::Waiting(list) => ("LLEN", list.to_string()),
            Self::Backlog(storage) => ("LLEN", storage_letters_list(storage)),
            Self::StorageReasons(storage) => ("HLEN", storage_letters_reasons(storage)),
            Self::Reasons(list) => ("HLEN", dead_letter_reasons(list)),
        }
    }
}

/// Keeps the documents of waiting vCons alive.
pub struct Keeper {
    server: Server,
    connected: Option<Lease>,
    scripts: Scripts,
    expiry: Expiry,
    instance: String,
    /// The lease's key.
    lease: String,
    /// How long the lease outlives a keeper that does not renew it.
    ttl: Duration,
    renewed: Instant,
    chores: Vec<Chore>,
    search: Search,
}

/// The search for dead letter queues that nobody has recorded.
enum Search {
    /// It may have been done by another daemon, or before.
    Unknown,
    /// It goes on at this cursor.
    At(u64),
    /// It is done.
    Done,
}

struct Scripts {
    keep: Script,
    keeper: Script,
    forget_reasons: Script,
}

impl Keeper {
    /// One that connects when first used, and has nothing to do; it works for this instance, and its lease
    /// lives for `ttl` without it.
    pub fn new(server: Server, expiry: Expiry, instance: &str, ttl: Duration) -> Self {
        let mut this = Self {
            server,
            connected: None,
            scripts: Scripts {
                keep: keep(),
                keeper: keeper(),
                forget_reasons: forget_reasons(),
            },
            expiry,
            instance: instance.to_owned(),
            lease: String::new(),
            ttl,
            renewed: Instant::now(),
            chores: Vec::new(),
            search: Search::Unknown,
        };
        this.set_chores(Vec::new());
        this
    }

    /// Has this to do from now on; the lease must not be held. Who has the same to do shares it.
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
        self.lease = keys::keeper_key(&digest);
        self.chores = chores;
    }

    /// Takes the lease, if no other instance has it.
    pub fn take(&mut self) -> Result<Taken, QueueError> {
        let left = self.call("take", self.ttl)?;
        Ok(match left {
            0 => Taken::Ours,
            left => Taken::Held(Duration::from_millis(left)),
        })
    }

    /// Has the lease run out in this time, when the work is due again.
    pub fn rest(&mut self, time: Duration) -> Result<(), QueueError> {
        self.call("renew", time).map(|_| ())
    }

    /// Gives the lease up, if we have it.
    pub fn release(&mut self) -> Result<(), QueueError> {
        self.call("release", self.ttl).map(|_| ())
    }

    /// Those of the chores for which there is something to do, and how many steps they take, about.
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
                // What is of another kind holds nothing to be kept.
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

    /// As the holder of the lease: does this chore. Returns how many documents were kept, or reasons dropped;
    /// nothing where the lease is lost, or `pace` has ended the work.
    pub fn run(&mut self, chore: &Chore, pace: Pace<'_>) -> Result<Option<u64>, QueueError> {
        let Expiry {
            document,
            context,
            dead_letter,
        } = self.expiry;
        match chore {
            Chore::Waiting(list) => self.keep_all(&[list.as_str()], [document, context], pace),
            Chore::Backlog(storage) => {
                let (list, reasons) = (
                    storage_letters_list(storage),
                    storage_letters_reasons(storage),
                );
                let times = [document.max(dead_letter), context];
                self.keep_all(&[&list, &reasons], times, pace)
            }
            Chore::StorageReasons(storage) => self.forget_reasons_of(
                &storage_letters_list(storage),
                &storage_letters_reasons(storage),
                pace,
            ),
            Chore::Reasons(list) => {
                self.forget_reasons_of(&dead_letter_list(list), &dead_letter_reasons(list), pace)
            }
        }
    }

    /// As the holder of the lease: records the dead letter queues of lists that left the configuration before
    /// any were recorded. This looks at every key, once for each Redis. If the lease is lost, or `pace` has
    /// ended the work, the next call goes on where this one stopped.
    pub fn record_letters(&mut self, pace: Pace<'_>) -> Result<(), QueueError> {
        let recorded = self.search_letters(pace);
        if recorded.is_err() {
            // The next connection may be to another server, to which the cursor says nothing.
            self.search = Search::Unknown;
        }
        recorded
    }

    fn search_letters(&mut self, pace: Pace<'_>) -> Result<(), QueueError> {
        loop {
            let cursor = match self.search {
                Search::Done => return Ok(()),
                Search::At(cursor) => cursor,
                Search::Unknown => {
                    if self.has_searched()? {
                        self.search = Search::Done;
                        continue;
                    }
                    0
                }
            };
            let begun = Instant::now();
            let next = self.with(|connection, _| record_some(connection, cursor))?;
            self.search = match next {
                0 => Search::Done,
                next => Search::At(next),
            };
            if !self.goes_on(begun.elapsed(), pace)? {
                return Ok(());
            }
        }
    }

    /// Whether all keys were looked at once. This is asked once in the life of a process.
    fn has_searched(&mut self) -> Result<bool, QueueError> {
        // `SISMEMBER` is none of the rights that a Redis user needs for the rest.
        let recorded: Vec<Vec<u8>> = self.with(|connection, _| {
            let mut members = redis::cmd("SMEMBERS");
            Ok(members.arg(keys::LETTERS).query(&mut **connection)?)
        })?;
        let searched = keys::LETTERS_SEARCHED.as_bytes();
        Ok(recorded.iter().any(|member| member == searched))
    }

    /// Does something with the lease; returns how long it lives if it is another's, otherwise 0.
    fn call(&mut self, what: &str, ttl: Duration) -> Result<u64, QueueError> {
        let (lease, instance) = (self.lease.clone(), self.instance.clone());
        let left = self.with(|connection, scripts| {
            let mut call = scripts.keeper.key(lease);
            call.arg(what).arg(instance).arg(millis(ttl));
            Ok(call.invoke(&mut **connection)?)
        })?;
        self.renewed = Instant::now();
        Ok(left)
    }

    /// After a step that took so long: waits, and renews the lease. False where that is lost, or the work is to end.
    fn goes_on(&mut self, took: Duration, pace: Pace<'_>) -> Result<bool, QueueError> {
        if !pace(took) {
            return Ok(false);
        }
        if self.renewed.elapsed() < self.ttl / 3 {
            return Ok(true);
        }
        Ok(self.call("renew", self.ttl)? == 0)
    }

    fn keep_all(
        &mut self,
        keys: &[&str],
        times: [u64; 2],
        pace: Pace<'_>,
    ) -> Result<Option<u64>, QueueError> {
        let mut kept = 0;
        // From the end: what is taken from the head meanwhile does not move what comes next, and what
        // is added at the end is looked at again or is new.
        let mut last = -1;
        // How many entries stand before the next step.
        let mut left = i64::MAX;
        loop {
            let begun = Instant::now();
            let (lease, instance) = (self.lease.clone(), self.instance.clone());
            let ttl = millis(self.ttl);
            let found: Vec<i64> = self.with(|connection, scripts| {
                let mut call = scripts.keep.key(lease);
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
            kept += u64::try_from(more).unwrap_or(0);
            if seen < STEP {
                return Ok(Some(kept));
            }
            last -= STEP;
            let before = std::mem::replace(&mut left, length + last);
            // Where entries are added as fast as we go, there is no rest: we would not come to the head.
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

    /// Reads the reasons a page at a time, and the queue once for each page; the server looks through the
    /// queue only for what was not found there.
    fn forget_reasons_of(
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
                cursor =
                    self.with(|connection, _| read_reasons(connection, reasons, from, &mut known))?;
                if !self.goes_on(begun.elapsed(), pace)? {
                    return Ok(None);
                }
            }
            let mut last = -1;
            while !known.is_empty() {
                let begun = Instant::now();
                if !self.with(|connection, _| strike(connection, list, last, &mut known))? {
                    break;
                }
                last -= STEP;
                if !self.goes_on(begun.elapsed(), pace)? {
                    return Ok(None);
                }
            }
            let gone: Vec<Vec<u8>> = known.into_iter().collect();
            for some in gone.chunks(FORGOTTEN) {
                let begun = Instant::now();
                dropped += self.with(|connection, scripts| {
                    let mut call = scripts.forget_reasons.key(list);
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
        work: impl FnOnce(&mut Lease, &Scripts) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let mut connection = match self.connected.take() {
            Some(connection) => connection,
            None => self.server.connect("conserver:keeper")?,
        };
        // After a failure it is not used again: an answer may still be on its way.
        let result = work(&mut connection, &self.scripts)?;
        self.connected = Some(connection);
        Ok(result)
    }
}

/// A time to live, at least the shortest there is.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Records the dead letter queues among some keys from a cursor on; returns where it goes on, and 0 at the end.
fn record_some(connection: &mut Lease, from: u64) -> Result<u64, QueueError> {
    let mut scan = redis::cmd("SCAN");
    scan.arg(from).arg("MATCH").arg("DLQ:*");
    scan.arg("COUNT").arg(KEYS).arg("TYPE").arg("list");
    let (next, mut found): (u64, Vec<Vec<u8>>) = scan.query(&mut **connection)?;
    if next == 0 {
        found.push(keys::LETTERS_SEARCHED.into());
    }
    if !found.is_empty() {
        let mut add = redis::cmd("SADD");
        add.arg(keys::LETTERS)
            .arg(found)
            .query::<()>(&mut **connection)?;
    }
    Ok(next)
}

/// Reads some fields of the hash from a cursor on; returns where it goes on, and nothing at the end.
fn read_reasons(
    connection: &mut Lease,
    reasons: &str,
    from: u64,
    known: &mut HashSet<Vec<u8>>,
) -> Result<Option<u64>, QueueError> {
    let mut scan = redis::cmd("HSCAN");
    scan.arg(reasons).arg(from).arg("COUNT").arg(STEP);
    let (next, fields): Scanned = match scan.query(&mut **connection) {
        Err(error) if is_wrong_type(&error) => return Ok(None),
        found => found?,
    };
    known.extend(fields.into_iter().map(|(entry, _)| entry));
    Ok((next != 0).then_some(next))
}

/// Takes the entries of a step, up to the last one from the end of the list, out of `known`; false if there are no more.
fn strike(
    connection: &mut Lease,
    list: &str,
    last: i64,
    known: &mut HashSet<Vec<u8>>,
) -> Result<bool, QueueError> {
    let mut range = redis::cmd("LRANGE");
    range.arg(list).arg(last + 1 - STEP).arg(last);
    let entries: Vec<Vec<u8>> = match range.query(&mut **connection) {
        // Nothing is known of what stands there: no reason is dropped.
        Err(error) if is_wrong_type(&error) => {
            known.clear();
            return Ok(false);
        }
        entries => entries?,
    };
    for entry in &entries {
        known.remove(entry);
    }
    Ok(!entries.is_empty())
}
