//! Each step, taken by the crate's own queue and lookout on a real Redis.

use std::time::Duration;

use conserver::config::ListName;
use conserver::queue::{
    Claim, EndedWorker, Expiry, Finish, Finished, Holder, IngressWatcher, LaneId, Queue, Released,
    Suspects, Waited,
};
use conserver::vcon::VconId;
use redis::Connection;
use rustc_hash::FxHashMap;

use super::super::substitute::{Broken, server_with};
use super::world::{Index, LANES, Store};
use crate::harness::{PATIENCE, Redis, lease_of, list, server_of};

const NAME: &str = "west";
const LIST: &str = "in";
const EGRESS: &str = "out";
const WAKE: &str = "conserver:wake:west";
const LEASE: &str = "conserver:instance:west";

/// A request to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Submit,
    Claim(Index),
    Finish(Index),
    Release(Index),
    TakeToken(Index),
    Recover(Index),
    Look,
    Renew,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Done,
    Claimed,
}

/// The server with what the processes need to talk to it.
pub struct Server {
    _redis: Redis,
    connection: Connection,
    id: VconId,
    lists: [ListName; 1],
    egress: [ListName; 1],
    queues: [Queue; 2],
    lookout: IngressWatcher,
    lease: String,
    /// The claim of each lane, with its record.
    claims: Vec<(Claim, String)>,
    known: FxHashMap<(Store, Call), (Store, Answer)>,
}

impl Server {
    pub fn start(broken: &[Broken]) -> Self {
        let redis = Redis::plain();
        let server = if broken.is_empty() {
            server_of(&redis)
        } else {
            server_with(&redis, broken, 3)
        };
        let holder = Holder::this_process(1);
        let lease = lease_of(NAME, &holder);
        let queues = [1, 2].map(|worker| {
            let seat = LaneId {
                instance: NAME.to_owned(),
                worker,
                lane: 1,
            };
            let expiry = Expiry {
                document: 3600,
                context: 3600,
                dead_letter: 3600,
            };
            Queue::new(server.clone(), seat, expiry, lease.clone())
        });
        let mut lookout =
            IngressWatcher::connect(&server, "looker", lease, PATIENCE).expect("a lookout");
        lookout.watch(&[list(LIST)]);
        let mut this = Self {
            connection: redis.connection(),
            _redis: redis,
            id: VconId::random(),
            lists: [list(LIST)],
            egress: [list(EGRESS)],
            queues,
            lookout,
            lease: serde_json::to_string(&holder).expect("JSON"),
            claims: Vec::new(),
            known: FxHashMap::default(),
        };
        for lane in 0..2 {
            this.make_claim(lane);
        }
        this
    }

    /// How many different steps were taken.
    pub fn steps(&self) -> usize {
        self.known.len()
    }

    /// What is in Redis after the request, and its answer.
    pub fn take(&mut self, store: Store, call: Call) -> Result<(Store, Answer), String> {
        if let Some(known) = self.known.get(&(store, call)) {
            return Ok(*known);
        }
        self.write(&store);
        let answer = self.send(call)?;
        let taken = (self.read(call)?, answer);
        self.known.insert((store, call), taken);
        Ok(taken)
    }

    fn make_claim(&mut self, lane: Index) {
        self.write(&Store {
            waiting: 1,
            tokens: 0,
            claims: [false; 2],
            done: 0,
            lease: true,
        });
        let claimed = self.queues[lane].claim(&self.lists).expect("an answer");
        let (claim, _) = claimed.work.expect("work");
        let mut get = redis::cmd("HGET");
        get.arg(claims_key(lane)).arg(1);
        let record = get.query(&mut self.connection).expect("a record");
        self.claims.push((claim, record));
    }

    /// Makes Redis hold this and nothing else.
    fn write(&mut self, store: &Store) {
        let mut steps = redis::pipe();
        steps.cmd("FLUSHALL").ignore();
        steps.set(self.id.key(), "{}").ignore();
        for _ in 0..store.waiting {
            steps.rpush(LIST, self.id.as_str()).ignore();
        }
        for _ in 0..store.done {
            steps.rpush(EGRESS, self.id.as_str()).ignore();
        }
        for _ in 0..store.tokens {
            steps.rpush(WAKE, "").ignore();
        }
        steps.sadd("conserver:instances", NAME).ignore();
        steps.sadd("conserver:workers:west", &[1, 2]).ignore();
        if store.lease {
            steps.set_ex(LEASE, &self.lease, 900).ignore();
        }
        for (lane, (_, record)) in self.claims.iter().enumerate() {
            if store.claims[lane] {
                steps.hset(claims_key(lane), 1, record).ignore();
            }
        }
        steps.query::<()>(&mut self.connection).expect("Redis");
    }

    /// What Redis holds after the request.
    fn read(&mut self, call: Call) -> Result<Store, String> {
        let mut steps = redis::pipe();
        steps.llen(LIST).llen(WAKE).llen(EGRESS).get(LEASE);
        steps.hlen(claims_key(0)).hlen(claims_key(1));
        type Dump = (u8, u8, u8, Option<String>, u8, u8);
        let dump: Dump = steps.query(&mut self.connection).expect("a dump");
        let (waiting, tokens, done, lease, first, second) = dump;
        if lease.as_ref().is_some_and(|lease| *lease != self.lease) {
            return Err(format!("{call:?} leaves the lease {lease:?}"));
        }
        Ok(Store {
            waiting,
            tokens,
            claims: [first, second].map(|count| count > 0),
            done,
            lease: lease.is_some(),
        })
    }

    fn send(&mut self, call: Call) -> Result<Answer, String> {
        let wrong = |what: &dyn std::fmt::Debug| Err(format!("{call:?} answers {what:?}"));
        match call {
            Call::Submit => {
                let mut push = redis::cmd("RPUSH");
                push.arg(LIST).arg(self.id.as_str());
                push.query::<()>(&mut self.connection).expect("Redis");
            }
            Call::Claim(lane) => match self.queues[lane].claim(&self.lists) {
                Ok(claimed) if claimed.work.is_some() => return Ok(Answer::Claimed),
                Ok(_) => {}
                other => return wrong(&other),
            },
            Call::Finish(lane) => {
                let finish = Finish {
                    id: &self.id,
                    document: None,
                    expire: None,
                    egress: &self.egress,
                    routes: &[],
                    context: None,
                    failed_storages: &[],
                };
                match self.queues[lane].finish(&self.claims[lane].0, &finish) {
                    Ok(Finished::Done) => {}
                    other => return wrong(&other),
                }
            }
            Call::Release(lane) => match self.queues[lane].release(&self.claims[lane].0, None) {
                Ok(Released::Done) => {}
                other => return wrong(&other),
            },
            // Only asked for where one is there.
            Call::TakeToken(lane) => match self.queues[lane].wait_for_token(Duration::ZERO) {
                Ok(Waited::Woken) => {}
                other => return wrong(&other),
            },
            Call::Recover(lane) => {
                let dead = EndedWorker {
                    worker: u32::from(lane == 1) + 1,
                    blame: Suspects::NOBODY,
                    end: "killed",
                };
                let queue = &mut self.queues[lane];
                match queue.take_lease().and_then(|()| queue.recover(dead, 0)) {
                    Ok(_) => {}
                    other => return wrong(&other),
                }
            }
            Call::Look => match self.lookout.look(u64::from(LANES)) {
                Ok(_) => {}
                other => return wrong(&other),
            },
            Call::Renew => match self.queues[0].take_lease() {
                Ok(()) => {}
                other => return wrong(&other),
            },
        }
        Ok(Answer::Done)
    }
}

fn claims_key(lane: Index) -> String {
    format!("conserver:claims:{NAME}:{}", lane + 1)
}
