//! Each step, taken by the crate's own queue on a real Redis.

use std::collections::HashMap;

use conserver::config::ListName;
use conserver::queue::{
    Claim, Document, DocumentFormat, EndedWorker, Expiry, Finish, Finished, Holder, LaneId,
    ProgressRecord, Queue, Released, Replaced, Replacement, Suspects,
};
use conserver::vcon::VconId;
use redis::Connection;
use rustc_hash::FxHashMap;

use super::super::substitute::{Broken, server_with};
use super::Scene;
use super::world::{Index, Store};
use crate::harness::{Redis, lease_of, list, server_of};

const NAMES: [&str; 2] = ["west", "east"];
const LISTS: [&str; 2] = ["first", "second"];
const EGRESS: [&str; 2] = ["from-first", "from-second"];

/// What a lane says of how far the vCon has come.
const WORDS: &str = "all links";

/// What is kept if nothing that was done counts.
const VOID: &str = "!";

/// A request to Redis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Call {
    /// By worker; and whether anything is kept about the vCon.
    Claim(Index, bool),
    Finish {
        worker: Index,
        is_noted: bool,
        base: Option<String>,
        text: String,
    },
    Write {
        worker: Index,
        base: String,
        text: String,
    },
    Release {
        worker: Index,
        is_noted: bool,
        /// The document that has what the links have done, if that is to be kept.
        progress: Option<Option<String>>,
    },
    Recover(Index),
    RecoverOther(Index),
}

/// What a claim has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    pub document: Option<String>,
    pub has_progress: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub word: &'static str,
    pub claimed: Option<Claimed>,
}

/// The server with what the workers need to talk to it.
pub struct Server {
    _redis: Redis,
    connection: Connection,
    scene: Scene,
    id: VconId,
    lists: [ListName; 2],
    egress: [ListName; 2],
    queues: [Queue; 2],
    leases: [String; 2],
    /// The claim of each worker, with its record, by whether anything was kept about the vCon.
    claims: HashMap<(Index, bool), (Claim, String)>,
    /// The text of each digest.
    digests: HashMap<String, String>,
    known: FxHashMap<(Store, Call), (Store, Answer)>,
}

impl Server {
    pub fn start(scene: Scene, broken: &[Broken]) -> Self {
        let redis = Redis::plain();
        let server = if broken.is_empty() {
            server_of(&redis)
        } else {
            server_with(&redis, broken, NAMES.len())
        };
        let holders = [1, 2].map(Holder::this_process);
        let lists = LISTS.map(list);
        let queues = [0, 1].map(|worker: Index| {
            let seat = LaneId {
                instance: NAMES[worker].to_owned(),
                worker: 1,
                lane: 1,
            };
            let expiry = Expiry {
                document: 3600,
                context: 3600,
                dead_letter: 3600,
            };
            let lease = lease_of(NAMES[worker], &holders[worker]);
            let mut queue = Queue::new(server.clone(), seat, expiry, lease);
            queue.set_ingress(lists.iter());
            queue
        });
        let mut this = Self {
            connection: redis.connection(),
            _redis: redis,
            scene,
            id: VconId::random(),
            lists,
            egress: EGRESS.map(list),
            queues,
            leases: holders.map(|holder| serde_json::to_string(&holder).expect("JSON")),
            claims: HashMap::new(),
            digests: HashMap::from([(digest(""), String::new())]),
            known: FxHashMap::default(),
        };
        this.make_claims();
        this
    }

    /// How many different steps were taken.
    pub fn steps(&self) -> usize {
        self.known.len()
    }

    /// What is in Redis after the request, and its answer.
    pub fn take(&mut self, store: &Store, call: Call) -> Result<(Store, Answer), String> {
        let key = (store.clone(), call);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        self.write(store);
        let answer = self.send(&key.1)?;
        let after = self.read(&key.1)?;
        let taken = (after, answer);
        self.known.insert(key, taken.clone());
        Ok(taken)
    }

    fn make_claims(&mut self) {
        for (worker, is_noted) in [(0, false), (0, true), (1, false), (1, true)] {
            let waits = [
                self.scene.list_of(worker) == 0,
                self.scene.list_of(worker) == 1,
            ];
            let progress = is_noted.then(|| "v".to_owned());
            let store = Store {
                document: Some("v".to_owned()),
                waits,
                is_done: [false; 2],
                claims: [None; 2],
                progress: [progress.clone(), progress],
                leases: [true; 2],
            };
            self.write(&store);
            let lists = [self.lists[self.scene.list_of(worker)].clone()];
            let claimed = self.queues[worker].claim(&lists).expect("an answer");
            let (claim, _) = claimed.work.expect("work");
            let mut get = redis::cmd("HGET");
            get.arg(claims_key(worker)).arg(1);
            let record = get.query(&mut self.connection).expect("a record");
            self.claims.insert((worker, is_noted), (claim, record));
        }
    }

    /// Makes Redis hold this and nothing else.
    fn write(&mut self, store: &Store) {
        let mut steps = redis::pipe();
        let key = self.id.key();
        steps.cmd("FLUSHALL").ignore();
        if let Some(text) = &store.document {
            self.digests.insert(digest(text), text.clone());
            steps.set(&key, text).ignore();
        }
        for list in 0..2 {
            if store.waits[list] {
                steps.rpush(LISTS[list], self.id.as_str()).ignore();
            }
            if store.is_done[list] {
                steps.rpush(EGRESS[list], self.id.as_str()).ignore();
            }
            if let Some(text) = &store.progress[list] {
                let kept = match text.strip_prefix(VOID) {
                    None => format!("{} {key} {WORDS}", digest(text)),
                    Some(text) => format!("{} {key} {VOID}", digest(text)),
                };
                let field = format!("{}\n{}", LISTS[list], self.id);
                steps.hset("conserver:progress", field, kept).ignore();
            }
        }
        for (worker, name) in NAMES.iter().enumerate() {
            steps.sadd("conserver:instances", name).ignore();
            let workers = format!("conserver:workers:{name}");
            steps.sadd(workers, 1).ignore();
            if store.leases[worker] {
                let lease = format!("conserver:instance:{name}");
                steps.set_ex(lease, &self.leases[worker], 900).ignore();
            }
            if let Some(is_noted) = store.claims[worker] {
                let (_, record) = &self.claims[&(worker, is_noted)];
                steps.hset(claims_key(worker), 1, record).ignore();
            }
        }
        steps.query::<()>(&mut self.connection).expect("Redis");
    }

    /// What Redis holds after the request.
    fn read(&mut self, call: &Call) -> Result<Store, String> {
        let mut steps = redis::pipe();
        steps.get(self.id.key());
        for list in 0..2 {
            steps.llen(LISTS[list]).llen(EGRESS[list]);
            let field = format!("{}\n{}", LISTS[list], self.id);
            steps.hget("conserver:progress", field);
        }
        for (worker, name) in NAMES.iter().enumerate() {
            steps.hget(claims_key(worker), 1);
            steps.get(format!("conserver:instance:{name}"));
        }
        type List = (u8, u8, Option<String>);
        type Worker = (Option<String>, Option<String>);
        type Dump = (
            Option<String>,
            u8,
            u8,
            Option<String>,
            u8,
            u8,
            Option<String>,
            Option<String>,
            Option<String>,
            Option<String>,
            Option<String>,
        );
        let dump: Dump = steps.query(&mut self.connection).expect("a dump");
        let (document, w0, d0, p0, w1, d1, p1, c0, l0, c1, l1) = dump;
        let lists: [List; 2] = [(w0, d0, p0), (w1, d1, p1)];
        let workers: [Worker; 2] = [(c0, l0), (c1, l1)];
        if let Some(text) = &document {
            self.digests.insert(digest(text), text.clone());
        }
        let mut store = Store {
            document,
            waits: [false; 2],
            is_done: [false; 2],
            claims: [None; 2],
            progress: [None, None],
            leases: [false; 2],
        };
        for (number, (waiting, done, progress)) in lists.into_iter().enumerate() {
            if waiting > 1 || done > 1 {
                return Err(format!(
                    "{call:?} leaves the vCon {waiting} times waiting, {done} done"
                ));
            }
            store.waits[number] = waiting == 1;
            store.is_done[number] = done == 1;
            store.progress[number] = match progress {
                None => None,
                Some(kept) => {
                    let digest = kept.split(' ').next().unwrap_or_default();
                    let text = self.digests.get(digest);
                    let text = text.ok_or_else(|| format!("{call:?} keeps {kept}"))?;
                    let void = if kept.ends_with(VOID) { VOID } else { "" };
                    Some(void.to_owned() + text)
                }
            };
        }
        for (number, (record, lease)) in workers.into_iter().enumerate() {
            store.leases[number] = lease.is_some();
            let Some(record) = record else {
                continue;
            };
            let is_of = |noted: &bool| self.claims[&(number, *noted)].1 == record;
            let known = [false, true].into_iter().find(is_of);
            store.claims[number] = Some(match (known, call) {
                (Some(is_noted), _) => is_noted,
                (None, Call::Claim(worker, is_noted)) if *worker == number => *is_noted,
                _ => return Err(format!("{call:?} leaves the claim {record}")),
            });
        }
        Ok(store)
    }

    fn send(&mut self, call: &Call) -> Result<Answer, String> {
        let id = &self.id;
        let word = match call {
            Call::Claim(worker, _) => {
                let lists = [self.lists[self.scene.list_of(*worker)].clone()];
                let claimed = self.queues[*worker].claim(&lists);
                let claimed = claimed.map_err(|error| error.to_string())?;
                let claimed = claimed.work.map(|(claim, document)| Claimed {
                    document: match document {
                        Document::Found(_, text) => String::from_utf8(text).ok(),
                        _ => None,
                    },
                    has_progress: claim
                        .progress
                        .is_some_and(|it| !it.ends_with(VOID.as_bytes())),
                });
                return Ok(Answer {
                    word: "claimed",
                    claimed,
                });
            }
            Call::Finish {
                worker,
                is_noted,
                base,
                text,
            } => {
                let (claim, _) = &self.claims[&(*worker, *is_noted)];
                let document = base.as_ref().map(|base| Replacement {
                    kind: DocumentFormat::Text,
                    base,
                    text: (base != text).then_some(text),
                });
                let egress = &self.egress[self.scene.list_of(*worker)];
                let finish = Finish {
                    id,
                    document,
                    expire: None,
                    egress: std::slice::from_ref(egress),
                    routes: &[],
                    context: None,
                    failed_storages: &[],
                };
                match self.queues[*worker].finish(claim, &finish) {
                    Ok(Finished::Done) => "done",
                    Ok(Finished::Deleted) => "deleted",
                    Ok(Finished::Changed) => "changed",
                    Ok(Finished::NotOurs) => "not ours",
                    other => return Err(format!("{call:?} answers {other:?}")),
                }
            }
            Call::Write { worker, base, text } => {
                match self.queues[*worker].replace(id, DocumentFormat::Text, base, text) {
                    Ok(Replaced::Done) => "done",
                    Ok(Replaced::Deleted) => "deleted",
                    Ok(Replaced::Changed) => "changed",
                    other => return Err(format!("{call:?} answers {other:?}")),
                }
            }
            Call::Release {
                worker,
                is_noted,
                progress,
            } => {
                let (claim, _) = &self.claims[&(*worker, *is_noted)];
                let progress = progress.as_ref().map(|document| ProgressRecord {
                    id: id.clone(),
                    text: WORDS.to_owned(),
                    document: document.clone(),
                });
                match self.queues[*worker].release(claim, progress.as_ref()) {
                    Ok(Released::Done) => "done",
                    Ok(Released::Changed) => "changed",
                    Ok(Released::NotOurs) => "not ours",
                    other => return Err(format!("{call:?} answers {other:?}")),
                }
            }
            Call::Recover(worker) => {
                let dead = EndedWorker {
                    worker: 1,
                    blame: Suspects::NOBODY,
                    end: "killed",
                };
                let queue = &mut self.queues[*worker];
                let recovered = queue.take_lease().and_then(|()| queue.recover(dead, 0));
                recovered.map_err(|error| error.to_string())?;
                "done"
            }
            Call::RecoverOther(worker) => {
                let recovered =
                    self.queues[*worker].recover_instance(NAMES[1 - worker], 0, &mut |_| Ok(()));
                recovered.map_err(|error| error.to_string())?;
                "done"
            }
        };
        Ok(Answer {
            word,
            claimed: None,
        })
    }
}

fn claims_key(worker: Index) -> String {
    format!("conserver:claims:{}:1", NAMES[worker])
}

/// The SHA-1 of a text, which is also what scripts are called by.
fn digest(text: &str) -> String {
    redis::Script::new(text).get_hash().to_owned()
}
