//! Documents whose vCons wait must not run out before their turn has come.

use std::collections::HashSet;

use super::dead_letters::is_wrong_type;
use super::keys::{
    dead_letter_list, dead_letter_reasons, storage_letters_list, storage_letters_reasons,
};
use super::script::Script;
use super::scripts::{forget_reasons, keep};
use super::{Expiry, Lease, QueueError, Server};
use crate::config::ListName;

/// Entries looked at in one step on the server; it does nothing else in that time.
const STEP: i64 = 200;

/// Reasons read at once; the memory this takes is theirs.
const REASONS: usize = 10_000;

/// Reasons dropped in one step: for each, the server looks through the whole list.
const FORGOTTEN: usize = 10;

/// Where a scan of a hash goes on, with the fields it found and their values.
pub(super) type Scanned = (u64, Vec<(Vec<u8>, Vec<u8>)>);

/// Keeps the documents of waiting vCons alive.
pub struct Keeper {
    server: Server,
    connected: Option<Lease>,
    scripts: Scripts,
    expiry: Expiry,
}

struct Scripts {
    keep: Script,
    forget_reasons: Script,
}

impl Keeper {
    /// One that connects when first used.
    pub fn new(server: Server, expiry: Expiry) -> Self {
        Self {
            server,
            connected: None,
            scripts: Scripts {
                keep: keep(),
                forget_reasons: forget_reasons(),
            },
            expiry,
        }
    }

    /// Looks at every entry of the list, and gives each document of which less than half of its
    /// time is left the whole of it again. Answers how many got it.
    pub fn keep(&mut self, list: &ListName) -> Result<u64, QueueError> {
        let time = self.expiry.document;
        self.with(|connection, scripts, expiry| {
            let keys = [list.as_str()];
            keep_all(connection, &scripts.keep, &keys, [time, expiry.context])
        })
    }

    /// The same for the backlog of a storage. Its documents live as long as dead letters, so that
    /// they outlive the daemon's own absence too; dead letters themselves run out.
    pub fn keep_backlog(&mut self, storage: &str) -> Result<u64, QueueError> {
        let list = storage_letters_list(storage);
        let reasons = storage_letters_reasons(storage);
        let time = self.expiry.document.max(self.expiry.dead_letter);
        self.with(|connection, scripts, expiry| {
            let keys = [list.as_str(), &reasons];
            keep_all(connection, &scripts.keep, &keys, [time, expiry.context])
        })
    }

    /// Drops the reasons whose entries have gone from the dead letter queue of a storage: the API
    /// server takes entries out and does not know of reasons. Returns how many were dropped.
    pub fn forget_reasons(&mut self, storage: &str) -> Result<u64, QueueError> {
        self.forget_reasons_of(
            &storage_letters_list(storage),
            &storage_letters_reasons(storage),
        )
    }

    /// The same for the dead letter queue of an ingress list.
    pub fn forget_reasons_of_list(&mut self, list: &ListName) -> Result<u64, QueueError> {
        self.forget_reasons_of(&dead_letter_list(list), &dead_letter_reasons(list))
    }

    /// Reads the reasons a page at a time, and the queue once for each page; the server looks through the
    /// queue only for what was not found there.
    fn forget_reasons_of(&mut self, list: &str, reasons: &str) -> Result<u64, QueueError> {
        self.with(|connection, scripts, _| {
            let mut dropped = 0;
            let mut cursor = Some(0);
            while cursor.is_some() {
                let mut known = HashSet::new();
                cursor = read_reasons(connection, reasons, cursor, &mut known)?;
                strike(connection, list, &mut known)?;
                let gone: Vec<Vec<u8>> = known.into_iter().collect();
                for some in gone.chunks(FORGOTTEN) {
                    let mut call = scripts.forget_reasons.key(list);
                    call.key(reasons).arg(some);
                    dropped += call.invoke::<u64>(&mut **connection)?;
                }
            }
            Ok(dropped)
        })
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Lease, &Scripts, Expiry) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let mut connection = match self.connected.take() {
            Some(connection) => connection,
            None => self.server.connect("conserver:keeper")?,
        };
        // After a failure it is not used again: an answer may still be on its way.
        let result = work(&mut connection, &self.scripts, self.expiry)?;
        self.connected = Some(connection);
        Ok(result)
    }
}

fn keep_all(
    connection: &mut Lease,
    script: &Script,
    keys: &[&str],
    times: [u64; 2],
) -> Result<u64, QueueError> {
    let mut kept = 0;
    // From the end: what is taken from the head meanwhile does not move what comes next, and what
    // is added at the end is looked at again or is new.
    let mut last = -1;
    loop {
        let mut call = script.call();
        for key in keys {
            call.key(*key);
        }
        call.arg(last + 1 - STEP).arg(last).arg(&times[..]);
        let (seen, more): (i64, u64) = call.invoke(&mut **connection)?;
        kept += more;
        if seen < STEP {
            return Ok(kept);
        }
        last -= STEP;
    }
}

/// Reads fields of the hash from `cursor` on, about as many as fit at once; returns where it goes
/// on, and nothing at the end.
fn read_reasons(
    connection: &mut Lease,
    reasons: &str,
    mut cursor: Option<u64>,
    known: &mut HashSet<Vec<u8>>,
) -> Result<Option<u64>, QueueError> {
    while let Some(from) = cursor
        && known.len() < REASONS
    {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(reasons).arg(from).arg("COUNT").arg(STEP);
        let (next, fields): Scanned = match scan.query(&mut **connection) {
            Err(error) if is_wrong_type(&error) => return Ok(None),
            found => found?,
        };
        known.extend(fields.into_iter().map(|(entry, _)| entry));
        cursor = (next != 0).then_some(next);
    }
    Ok(cursor)
}

/// Takes the entries of the list out of `known`.
fn strike(
    connection: &mut Lease,
    list: &str,
    known: &mut HashSet<Vec<u8>>,
) -> Result<(), QueueError> {
    let mut last = -1;
    while !known.is_empty() {
        let mut range = redis::cmd("LRANGE");
        range.arg(list).arg(last + 1 - STEP).arg(last);
        let entries: Vec<Vec<u8>> = match range.query(&mut **connection) {
            // Nothing is known of what stands there: no reason is dropped.
            Err(error) if is_wrong_type(&error) => {
                known.clear();
                break;
            }
            entries => entries?,
        };
        if entries.is_empty() {
            break;
        }
        for entry in &entries {
            known.remove(entry);
        }
        last -= STEP;
    }
    Ok(())
}
