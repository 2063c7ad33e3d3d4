//! Each step, taken by the crate's own queue on a real Redis.

use std::collections::HashMap;

use conserver::config::ListName;
use conserver::queue::{Claim, EndedWorker, Holder, Queue, QueueError, Suspects};
use conserver::vcon::VconId;
use redis::Connection;
use rustc_hash::{FxHashMap, FxHashSet};

use super::contents::Contents;
use super::faults::Fault;
use super::store::{Index, Run, Store};
use super::world::Names;
use crate::harness::{Redis, lease_of, list, queue_with};

/// This many deaths make a vCon poison.
const MAX_DEATHS: u32 = 2;

/// In this many lapses it is poison too.
const MAX_LAPSES: u32 = 2;

/// One in so many steps is taken with everything in Redis.
const CHECKED: usize = 1009;

pub const LIST: &str = "in";
pub const EGRESS: &str = "out";
pub const NAMES: [&str; 2] = ["west", "east"];

/// A way to let go of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum How {
    Finish,
    GiveBack,
    Postpone,
    Bury,
}

impl How {
    pub const ALL: [Self; 4] = [Self::Finish, Self::GiveBack, Self::Postpone, Self::Bury];
}

/// A request to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Claim(Index, Index),
    /// One whose answer nobody hears.
    ClaimUnheard(Index, Index),
    /// One of the run before, whose answer nobody hears.
    ClaimLate(Index, Index),
    /// By daemon, worker and vCon.
    Settle(Index, Index, Index, How),
    /// Likewise.
    FinishAndClaim(Index, Index, Index),
    Recover(Index, Index),
    Look(Index),
    RecoverOther(Index),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    Claimed(Index),
    /// Another daemon has the name.
    Refused,
}

/// By name and worker: the vCon that is claimed, and by which run of its daemon.
type Claims = [[Option<(Index, Run)>; 2]; 2];

/// The server with what the processes need to talk to it.
pub struct Server {
    _redis: Redis,
    pub(super) connection: Connection,
    pub(super) names: Names,
    pub(super) fault: Option<Fault>,
    pub(super) ids: [VconId; 2],
    pub(super) ingress: Vec<ListName>,
    pub(super) egress: Vec<ListName>,
    /// By daemon: the monitor's, then the workers'.
    pub(super) queues: [[Queue; 3]; 2],
    /// The same of the run before.
    former: [[Queue; 3]; 2],
    pub(super) contents: Contents,
    /// Two by name, worker, vCon and run: one that may be in Redis, and one that is gone.
    pub(super) claims: HashMap<(Index, Index, Index, Run), [Claim; 2]>,
    taken: usize,
    known: FxHashMap<(Store, Call), (Store, Answer)>,
    /// The claims beside which those that are gone were tried.
    tried: FxHashSet<Claims>,
}

impl Server {
    pub fn start(names: Names, fault: Option<Fault>) -> Self {
        let redis = Redis::plain();
        let holders = [0, 1].map(|daemon| [1, 2].map(|run| holder(names, daemon, run)));
        let queues = |run: Index| {
            [0, 1].map(|daemon: Index| {
                let name = NAMES[names.of(daemon)];
                let lease = lease_of(name, &holders[daemon][run]);
                [0, 1, 2].map(|worker| queue_with(&redis, name, worker, lease.clone()))
            })
        };
        let (queues, former) = (queues(0), queues(1));
        let record = |holder| serde_json::to_string(&holder).expect("JSON");
        let leases = holders.map(|runs| runs.map(record));
        let ids = [VconId::random(), VconId::random()];
        let texts = [0, 1].map(|vcon: Index| ids[vcon].to_string());
        let mut server = Self {
            connection: redis.connection(),
            _redis: redis,
            names,
            fault,
            ids,
            ingress: vec![list(LIST)],
            egress: vec![list(EGRESS)],
            queues,
            former,
            contents: Contents::new(texts, leases),
            claims: HashMap::new(),
            taken: 0,
            known: FxHashMap::default(),
            tried: FxHashSet::default(),
        };
        server.make_claims();
        server
    }

    pub fn names(&self) -> Names {
        self.names
    }

    /// How many different steps were taken.
    pub fn steps(&self) -> usize {
        self.known.len()
    }

    /// What is in Redis after the request, and its answer.
    ///
    /// What the request has nothing to do with is left out of Redis, so that there are fewer
    /// different steps. Whether it has nothing to do with it is seen from some that are taken both
    /// ways.
    pub fn take(&mut self, store: Store, call: Call) -> Result<(Store, Answer), String> {
        let small = self.without_the_rest(call, &store, &Store::EMPTY);
        let (after, answer) = match self.known.get(&(small, call)) {
            Some(known) => *known,
            None => {
                if self.tried.insert(small.claims) {
                    self.try_claims_that_are_gone(&small)?;
                }
                let taken = self.step(&small, call)?;
                self.known.insert((small, call), taken);
                taken
            }
        };
        if let Call::RecoverOther(_) = call
            && (0..2).any(|vcon| after.deaths[vcon] > small.deaths[vcon])
        {
            return Err(format!(
                "a lease ran out, and vCons are blamed for it: {small:?} became {after:?}"
            ));
        }
        if self.without_the_rest(call, &after, &Store::EMPTY) != after {
            return Err(format!(
                "{call:?} changes what is none of its business: {after:?}"
            ));
        }
        let whole = self.without_the_rest(call, &after, &store);
        self.taken += 1;
        if self.taken.is_multiple_of(CHECKED) && self.step(&store, call)? != (whole, answer) {
            return Err(format!(
                "{call:?} depends on what is none of its business: {store:?}"
            ));
        }
        Ok((whole, answer))
    }

    /// The same store, in which what `call` has nothing to do with is as in `other`.
    fn without_the_rest(&self, call: Call, store: &Store, other: &Store) -> Store {
        let mut store = *store;
        match call {
            Call::Claim(daemon, _)
            | Call::ClaimUnheard(daemon, _)
            | Call::ClaimLate(daemon, _)
            | Call::Settle(daemon, ..)
            | Call::FinishAndClaim(daemon, ..)
            | Call::Recover(daemon, _) => store.set_name(1 - self.names.of(daemon), other),
            Call::RecoverOther(daemon) => store.set_name(self.names.of(daemon), other),
            Call::Look(_) => store.set_work(other),
        }
        store
    }

    fn step(&mut self, store: &Store, call: Call) -> Result<(Store, Answer), String> {
        self.contents.write(&mut self.connection, store);
        let answer = self.send(store, call)?;
        let after = self.contents.read(&mut self.connection)?;
        Ok((after, answer))
    }

    /// Whoever believes in a claim that is gone: whatever it asks for, nothing comes of it.
    fn try_claims_that_are_gone(&mut self, store: &Store) -> Result<(), String> {
        self.contents.write(&mut self.connection, store);
        for (daemon, worker, vcon) in (0..8).map(|n| (n & 1, n >> 1 & 1, n >> 2)) {
            for how in How::ALL {
                self.settle((daemon, worker, vcon), how, false)?;
            }
        }
        let after = self.contents.read(&mut self.connection)?;
        if after == *store {
            return Ok(());
        }
        let places = [0, 1].map(|vcon| after.places(vcon));
        Err(format!(
            "claims that are gone were settled: {store:?} became {after:?}, with the vCons in {places:?} places"
        ))
    }

    /// Makes two claims of every vCon for every worker of every run, at different times.
    fn make_claims(&mut self) {
        for (daemon, worker, vcon) in (0..8).map(|n| (n & 1, n >> 1 & 1, n >> 2)) {
            let name = self.names.of(daemon);
            for run in [Run::Last(daemon), Run::Former(daemon)] {
                let claims = [(); 2].map(|()| {
                    let mut store = Store::EMPTY;
                    store.list[0] = Some(vcon);
                    self.contents.write(&mut self.connection, &store);
                    let queue = match run {
                        Run::Last(_) => &mut self.queues[daemon][worker + 1],
                        Run::Former(_) => &mut self.former[daemon][worker + 1],
                    };
                    let claimed = queue.claim(&self.ingress).expect("an answer");
                    let mut get = redis::cmd("HGET");
                    get.arg(claims_key(name, worker)).arg(1);
                    let record = get.query(&mut self.connection).expect("a record");
                    self.contents.note((name, worker, vcon, run), record);
                    claimed.work.expect("work").0
                });
                assert_ne!(claims[0], claims[1], "two claims at the same time");
                let [gone, last] = claims;
                self.claims.insert((name, worker, vcon, run), [last, gone]);
            }
        }
    }

    fn send(&mut self, store: &Store, call: Call) -> Result<Answer, String> {
        match call {
            Call::ClaimUnheard(..) if self.fault == Some(Fault::ClaimInTwoSteps) => {
                self.ask(&redis::Cmd::lpop(LIST, None))
            }
            Call::Claim(daemon, worker) if self.fault == Some(Fault::ClaimUnmarked) => {
                self.claim_unmarked(daemon, worker)
            }
            Call::Claim(daemon, worker) | Call::ClaimUnheard(daemon, worker) => {
                let claimed = self.queues[daemon][worker + 1].claim(&self.ingress);
                self.claimed(claimed)
            }
            Call::ClaimLate(daemon, worker) => {
                match self.former[daemon][worker + 1].claim(&self.ingress) {
                    Ok(_) => Ok(Answer::Done),
                    Err(error) => refused(&error),
                }
            }
            Call::Settle(daemon, worker, vcon, how) => {
                self.settle((daemon, worker, vcon), how, true)
            }
            Call::FinishAndClaim(daemon, worker, vcon)
                if self.fault == Some(Fault::FinishUnguarded) =>
            {
                self.finish_unguarded(daemon, worker, vcon);
                self.send(store, Call::Claim(daemon, worker))
            }
            Call::FinishAndClaim(daemon, worker, vcon) => {
                self.finish_and_claim(daemon, worker, vcon)
            }
            Call::Recover(..) | Call::RecoverOther(_) if self.fault == Some(Fault::NoRecovery) => {
                Ok(Answer::Done)
            }
            Call::Recover(daemon, worker) => {
                let queue = &mut self.queues[daemon][worker + 1];
                let dead = EndedWorker {
                    worker: number(worker),
                    blame: Suspects::ALL,
                    end: "killed",
                };
                let recovered = queue
                    .take_lease()
                    .and_then(|()| queue.recover(dead, MAX_DEATHS));
                recovered.map_or_else(|error| refused(&error), |_| Ok(Answer::Done))
            }
            Call::Look(daemon) => {
                let queue = &mut self.queues[daemon][0];
                let looked = queue.take_lease().and_then(|()| queue.dead_instances());
                let found = match looked {
                    Ok(dead) => dead,
                    Err(error) => return refused(&error),
                };
                let is_dead = |name: &Index| {
                    *name != self.names.of(daemon)
                        && store.instances[*name]
                        && store.leases[*name].is_none()
                };
                let dead: Vec<&str> = (0..2).filter(is_dead).map(|name| NAMES[name]).collect();
                if found == dead {
                    Ok(Answer::Done)
                } else {
                    Err(format!("{dead:?} are dead, the monitor finds {found:?}"))
                }
            }
            Call::RecoverOther(daemon) => {
                let name = 1 - self.names.of(daemon);
                if self.fault == Some(Fault::RecoveryUnguarded) {
                    self.recover_unguarded(store, name);
                    return Ok(Answer::Done);
                }
                if self.fault == Some(Fault::LapseBlamed) {
                    self.recover_with_blame(store, name);
                    return Ok(Answer::Done);
                }
                let recovered =
                    self.queues[daemon][0]
                        .recover_instance(NAMES[name], MAX_LAPSES, &mut |_| Ok(()));
                recovered.map_or_else(|error| Err(error.to_string()), |_| Ok(Answer::Done))
            }
        }
    }

    /// Sends a command whose answer makes no difference.
    fn ask(&mut self, command: &redis::Cmd) -> Result<Answer, String> {
        let sent = command.query::<redis::Value>(&mut self.connection);
        sent.map_or_else(|error| Err(error.to_string()), |_| Ok(Answer::Done))
    }
}

/// The supervisor of a run of a daemon.
fn holder(names: Names, daemon: Index, run: u64) -> Holder {
    let nonce = run * 10 + daemon as u64;
    let mut holder = serde_json::to_value(Holder::this_process(nonce)).expect("JSON");
    if names == Names::One {
        holder["host"] = format!("host-{daemon}").into();
    }
    serde_json::from_value(holder).expect("a holder")
}

/// A worker's number, from 1.
pub fn number(worker: Index) -> u32 {
    u32::try_from(worker).expect("0 or 1") + 1
}

pub fn claims_key(name: Index, worker: Index) -> String {
    format!("conserver:claims:{}:{}", NAMES[name], worker + 1)
}

pub(super) fn refused(error: &QueueError) -> Result<Answer, String> {
    if error.is_about_the_lease() {
        Ok(Answer::Refused)
    } else {
        Err(error.to_string())
    }
}
