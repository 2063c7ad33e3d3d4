//! Recovery: returns the claims of a dead worker, or of a dead instance, to their lists.
//!
//! A *death* is the end of a process that held the vCon; a *lapse* is the end of the lease on an instance's
//! name, for which no vCon is to blame. A vCon with too many of either is poison: it goes to the dead letter
//! queue. The script (`recover.lua`) checks the lease in the same step.
//!
//! Who died, and which of its vCons are suspects, is up to the callers.

use std::sync::Arc;

use redis::Value;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::claim::{shown, texts};
use super::release::RECORDS_EXPIRY;
use super::requests::{read_members_script, round_trip};
use super::{Queue, QueueError, keys};
use crate::config::ListName;

/// The most bytes of the name of an instance or of the number of a worker; anybody may have added longer ones.
const MOST_OF_NAME: usize = 1000;

/// The counts of deaths, and those of lapses, expire this many seconds after the last one.
const DEATHS_EXPIRY: u64 = 604_800;

/// A vCon that was in work in this many lapses is poison: it may be what crashes hosts.
pub const MAX_LAPSES: u32 = 10;

/// Which of a dead worker's vCons are suspects: its death counts against them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Suspects {
    /// All but these: any of the others may have killed the worker.
    AllBut(Vec<Uuid>),
    /// These, if the worker still held them: a lane may have finished one before the worker ended.
    These(Vec<Uuid>),
}

impl Suspects {
    /// Any of them may have killed the worker.
    pub const ALL: Self = Self::AllBut(Vec::new());

    /// The daemon killed the worker for reasons of its own.
    pub const NOBODY: Self = Self::These(Vec::new());
}

/// A claim of a dead worker, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredClaim {
    /// The entry, for messages.
    pub entry: String,
    /// The list it was taken from, for messages.
    pub list: String,
    /// How many workers have died on it; 0 if a lease ran out.
    pub deaths: u32,
    /// How often the lease of a daemon has run out that worked on it; 0 if a worker died.
    pub lapses: u32,
    /// What was done with it: `returned`, `kept` (the key of its list holds another type), `poison` (a dead
    /// letter) or `unreadable` (moved to `conserver:unreadable`).
    pub outcome: String,
}

impl RecoveredClaim {
    /// Whether it went to the dead letter queue, because of its deaths or lapses.
    pub fn is_poison(&self) -> bool {
        self.outcome == "poison"
    }

    /// Whether it was taken from this list.
    pub fn is_of(&self, list: &ListName) -> bool {
        shown(list.as_str().as_bytes()) == self.list
    }
}

/// A worker that has ended, and whose claims are returned.
#[derive(Debug, Clone)]
pub struct EndedWorker<'a> {
    /// Its number, from 1.
    pub worker: u32,
    /// Against which of its vCons its death counts.
    pub blame: Suspects,
    /// How it ended, in words.
    pub end: &'a str,
}

/// Called before each step of a recovery that may take long; the caller renews its lease and waits.
pub type Pause<'a> = dyn FnMut(&mut Queue) -> Result<(), QueueError> + 'a;

/// How a worker ended that an earlier daemon has left behind, in words.
pub const ENDED_BEFORE_START: &str = "with its daemon, before this one was started";

/// What a return of claims counts against the vCons.
enum Counted<'a> {
    /// The death of this worker.
    Death(&'a EndedWorker<'a>),
    /// A lapse of its instance. Nobody saw its workers end: the host may have lost its power, or only its
    /// network, so no vCon is a suspect.
    Lapse,
}

impl Counted<'_> {
    /// The arguments of the script: what counts, how the worker ended, and the UUIDs that matter.
    fn arguments(&self) -> (&'static str, &str, String) {
        let Self::Death(dead) = self else {
            return ("lapse", "", String::new());
        };
        let (blamed, vcons) = match &dead.blame {
            Suspects::AllBut(vcons) => ("all but", vcons),
            Suspects::These(vcons) => ("these", vcons),
        };
        let vcons: Vec<String> = vcons.iter().map(Uuid::to_string).collect();
        (blamed, dead.end, vcons.join(" "))
    }
}

impl Queue {
    /// Returns every claim of the last worker with this number. Counts one death for each suspect.
    ///
    /// `max_deaths` is the number of deaths that make a vCon poison; 0 means that none does.
    ///
    /// # Errors
    /// This function and the others that recover claims of this instance also fail if this daemon does not
    /// hold the lease on its name.
    pub fn recover(
        &mut self,
        dead: EndedWorker<'_>,
        max_deaths: u32,
    ) -> Result<Vec<RecoveredClaim>, QueueError> {
        self.recover_pausing(dead, max_deaths, &mut |_| Ok(()))
    }

    fn recover_pausing(
        &mut self,
        dead: EndedWorker<'_>,
        max_deaths: u32,
        pause: &mut Pause<'_>,
    ) -> Result<Vec<RecoveredClaim>, QueueError> {
        let lease = Arc::clone(&self.lease);
        let (worker, counted) = (dead.worker, Counted::Death(&dead));
        let name = (&*lease.instance, &*lease.record);
        self.recover_of(name, worker, &counted, max_deaths, pause)?
            .map_err(|found| lease.lost_to(&found))
    }

    /// Returns every claim of a worker that will have no successor.
    pub fn retire_worker(
        &mut self,
        dead: EndedWorker<'_>,
        max_deaths: u32,
    ) -> Result<Vec<RecoveredClaim>, QueueError> {
        let worker = dead.worker;
        let recovered = self.recover(dead, max_deaths)?;
        let instance = &self.lane_id.instance;
        let mut steps = redis::pipe();
        steps
            .cmd("SREM")
            .arg(keys::workers_key(instance))
            .arg(worker);
        steps.cmd("DEL").arg(keys::taken_key(instance, worker));
        self.with(|connection, _, _, _| {
            for reply in round_trip(connection, &steps)? {
                reply.extract_error()?;
            }
            Ok(())
        })?;
        Ok(recovered)
    }

    /// Returns the claims that could not be returned because the key of their list held another type, if
    /// it does no longer. Restores the overwritten texts that could not be restored before, and calls
    /// `pause` before each vCon of those.
    pub fn recover_unreturned(
        &mut self,
        pause: &mut Pause<'_>,
    ) -> Result<Vec<RecoveredClaim>, QueueError> {
        let (worker, blame, end) = (keys::UNRETURNED, Suspects::NOBODY, ENDED_BEFORE_START);
        self.recover_pausing(EndedWorker { worker, blame, end }, 0, pause)
    }

    /// Returns the claims of every worker above `highest`: an earlier start had more workers.
    pub fn recover_above(
        &mut self,
        highest: u32,
        max_deaths: u32,
    ) -> Result<Vec<RecoveredClaim>, QueueError> {
        let known = self.workers_of(&self.lane_id.instance.clone())?;
        let mut recovered = Vec::new();
        for worker in known.into_iter().filter(|worker| *worker > highest) {
            let (blame, end) = (Suspects::ALL, ENDED_BEFORE_START);
            let dead = EndedWorker { worker, blame, end };
            recovered.extend(self.retire_worker(dead, max_deaths)?);
        }
        Ok(recovered)
    }

    /// The other instances on this server whose lease has run out.
    pub fn dead_instances(&mut self) -> Result<Vec<String>, QueueError> {
        let names = self.members(keys::INSTANCES)?;
        let others: Vec<String> = names
            .into_iter()
            .filter(|name| *name != self.lane_id.instance)
            .collect();
        if others.is_empty() {
            return Ok(others);
        }
        let alive: Vec<bool> = self.with(|connection, _, _, _| {
            let mut steps = redis::pipe();
            for name in &others {
                steps.cmd("EXISTS").arg(keys::instance_key(name));
            }
            Ok(steps.query(connection)?)
        })?;
        let dead = others.into_iter().zip(alive).filter(|(_, alive)| !alive);
        Ok(dead.map(|(name, _)| name).collect())
    }

    /// Returns every claim of an instance whose lease has run out. Counts one lapse for each vCon, and
    /// forgets the instance. Stops if the instance has come back meanwhile. Returns also whether the
    /// instance is forgotten.
    ///
    /// `max_lapses` is the number of lapses that make a vCon poison; 0 means that none does. Calls `pause`
    /// before each vCon that a link may have overwritten.
    pub fn recover_instance(
        &mut self,
        instance: &str,
        max_lapses: u32,
        pause: &mut Pause<'_>,
    ) -> Result<(Vec<RecoveredClaim>, bool), QueueError> {
        let mut recovered = Vec::new();
        for worker in self.workers_of(instance)? {
            match self.recover_of((instance, ""), worker, &Counted::Lapse, max_lapses, pause)? {
                Ok(more) => recovered.extend(more),
                Err(_) => return Ok((recovered, false)),
            }
        }
        let forgotten = self.forget(instance, "")?;
        Ok((recovered, forgotten))
    }

    fn workers_of(&mut self, instance: &str) -> Result<Vec<u32>, QueueError> {
        let members = self.members(&keys::workers_key(instance))?;
        Ok(members
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect())
    }

    fn members(&mut self, key: &str) -> Result<Vec<String>, QueueError> {
        let members: Vec<Vec<u8>> = self.with(|connection, _, _, _| {
            let mut call = read_members_script().key(key);
            // No daemon has so long a name; each look would cost Redis the time to read it.
            Ok(call.arg(MOST_OF_NAME).arg("drop").invoke(connection)?)
        })?;
        // Daemons write only UTF-8.
        let texts = members.into_iter().map(String::from_utf8);
        Ok(texts.filter_map(Result::ok).collect())
    }

    /// Returns the claims of a worker if the lease on its instance's name is `record`; otherwise returns,
    /// as an inner error, the record found in its place. `most` deaths or lapses make a vCon poison.
    ///
    /// Restores before what its links overwrote, so that nobody claims a vCon without it. That does no harm
    /// if somebody else turns out to hold the lease: the links of the worker still count as writers then.
    fn recover_of(
        &mut self,
        (instance, record): (&str, &str),
        worker: u32,
        counted: &Counted<'_>,
        most: u32,
        pause: &mut Pause<'_>,
    ) -> Result<Result<Vec<RecoveredClaim>, Vec<u8>>, QueueError> {
        let may_be_alive = matches!(counted, Counted::Lapse);
        let restored = self.restore_overwritten(instance, worker, may_be_alive, pause)?;
        let (what, end, vcons) = counted.arguments();
        let reply = self.with(|connection, scripts, _, expiry| {
            let mut call = scripts.recover.key(keys::claims_key(instance, worker));
            call.key(keys::DEATHS).key(keys::instance_key(instance));
            call.key(keys::LAPSES);
            call.key(keys::claims_key(instance, keys::UNRETURNED));
            call.key(keys::workers_key(instance));
            call.arg(most).arg(DEATHS_EXPIRY).arg(expiry.context);
            call.arg(expiry.dead_letter)
                .arg(format!("{instance} Worker-{worker}"))
                .arg(what);
            call.arg(record).arg(end).arg(vcons);
            call.arg(expiry.document).arg(RECORDS_EXPIRY);
            Ok(call.invoke::<Value>(connection)?)
        })?;
        if let Value::BulkString(found) = reply {
            return Ok(Err(found));
        }
        // After a lapse the worker may be alive, and overwrite the texts again.
        if let Counted::Death(_) = counted {
            self.forget_direct_writes(instance, worker, &restored)?;
        }
        let fields = texts(reply).ok_or(QueueError::UnexpectedReply("recovery"))?;
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ok(fields
            .chunks_exact(4)
            .map(|claim| {
                let count = text(&claim[2]).parse().unwrap_or(0);
                let (deaths, lapses) = match counted {
                    Counted::Death(_) => (count, 0),
                    Counted::Lapse => (0, count),
                };
                RecoveredClaim {
                    entry: shown(&claim[0]),
                    list: shown(&claim[1]),
                    deaths,
                    lapses,
                    outcome: text(&claim[3]),
                }
            })
            .collect()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_of_its_list_whatever_the_name_of_that() {
        let long = "x".repeat(200);
        for name in ["default", "it's \"new\"", "C:\\in", "Zoë", &long] {
            let claim = RecoveredClaim {
                entry: String::new(),
                list: shown(name.as_bytes()),
                deaths: 3,
                lapses: 0,
                outcome: "poison".to_owned(),
            };
            assert!(claim.is_of(&name.parse().unwrap()), "{name}");
            assert!(!claim.is_of(&"other".parse().unwrap()), "{name}");
        }
    }
}
