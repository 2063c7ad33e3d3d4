//! What a dead worker held goes back to its lists.

use redis::Value;
use serde::{Deserialize, Serialize};

use super::claim::texts;
use super::{Queue, QueueError, keys};

/// The counts of deaths are forgotten after this many seconds without another death.
const DEATHS_EXPIRY: u64 = 604_800;

/// Which of a dead worker's vCons have one more death to their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Blame {
    /// All: any of them may have killed it.
    All,
    /// The one this lane, from 1, had in hand.
    Lane(u32),
    /// None: it was killed for reasons of our own.
    Nobody,
}

/// One claim found in a dead worker's hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The entry, as text.
    pub entry: String,
    /// The list it was taken from.
    pub list: String,
    /// How many workers have died on it by now.
    pub deaths: u32,
    /// What was done with it: `returned`, `poison` (buried) or `unreadable` (set aside).
    pub outcome: String,
}

impl Queue {
    /// Returns every claim of the worker that sat on this seat before, counting one death for
    /// each vCon that has the blame, and notes that this worker may hold claims from now on.
    ///
    /// `max_deaths` is the number of deaths that make a vCon poison; 0 means none does.
    pub fn recover_own(
        &mut self,
        blame: Blame,
        max_deaths: u32,
    ) -> Result<Vec<Recovered>, QueueError> {
        let (instance, worker) = (self.seat.instance.clone(), self.seat.worker);
        self.with(|connection, _, _, _| {
            let workers = keys::workers_key(&instance);
            Ok(redis::cmd("SADD")
                .arg(workers)
                .arg(worker)
                .query::<()>(connection)?)
        })?;
        self.recover(worker, blame, max_deaths)
    }

    /// Returns every claim of a worker that will have no successor.
    pub fn recover_seat(
        &mut self,
        worker: u32,
        blame: Blame,
        max_deaths: u32,
    ) -> Result<Vec<Recovered>, QueueError> {
        let recovered = self.recover(worker, blame, max_deaths)?;
        let workers_key = keys::workers_key(&self.seat.instance);
        self.with(|connection, _, _, _| {
            Ok(redis::cmd("SREM")
                .arg(workers_key)
                .arg(worker)
                .query::<()>(connection)?)
        })?;
        Ok(recovered)
    }

    /// Returns the claims of every worker above `highest`: those of an earlier start with more
    /// workers than now.
    pub fn recover_above(
        &mut self,
        highest: u32,
        max_deaths: u32,
    ) -> Result<Vec<Recovered>, QueueError> {
        let workers_key = keys::workers_key(&self.seat.instance);
        let known: Vec<u32> = self.with(|connection, _, _, _| {
            Ok(redis::cmd("SMEMBERS").arg(&workers_key).query(connection)?)
        })?;
        let mut recovered = Vec::new();
        for worker in known.into_iter().filter(|worker| *worker > highest) {
            recovered.extend(self.recover_seat(worker, Blame::All, max_deaths)?);
        }
        Ok(recovered)
    }

    fn recover(
        &mut self,
        worker: u32,
        blame: Blame,
        max_deaths: u32,
    ) -> Result<Vec<Recovered>, QueueError> {
        let blamed = match blame {
            Blame::All => "all".to_owned(),
            Blame::Lane(lane) => lane.to_string(),
            Blame::Nobody => "none".to_owned(),
        };
        let reply = self.with(|connection, scripts, seat, expiry| {
            let mut call = scripts
                .recover
                .key(keys::claims_key(&seat.instance, worker));
            call.key(keys::DEATHS)
                .arg(max_deaths)
                .arg(DEATHS_EXPIRY)
                .arg(expiry.context);
            call.arg(expiry.dead_letter)
                .arg(format!("{} Worker-{worker}", seat.instance))
                .arg(blamed);
            Ok(call.invoke::<Value>(connection)?)
        })?;
        let fields = texts(reply).ok_or(QueueError::Answer("recovery"))?;
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        Ok(fields
            .chunks_exact(4)
            .map(|claim| Recovered {
                entry: text(&claim[0]),
                list: text(&claim[1]),
                deaths: text(&claim[2]).parse().unwrap_or(0),
                outcome: text(&claim[3]),
            })
            .collect())
    }
}
