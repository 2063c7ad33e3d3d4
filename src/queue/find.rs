//! Where one vCon is: the lists, claims and queues that name it, how far it has come, and its document.
//!
//! Looks at every place, one after the other, in the order in which vCons move: a vCon that moves on meanwhile is
//! met later. If it is nowhere, it may have moved back, and all places are looked at once more. Only reads. No step
//! blocks the server for long: of very long lists, both ends are searched.

use std::collections::BTreeSet;

use redis::Value;
use serde::Deserialize;

use super::dead_letters::{MOST_OF_REASON, letters_key, reasons_key};
use super::documents::JSON;
use super::keys::{
    self, FOLLOWERS, INSTANCES, Raw, STORAGE_PREFIX, UNRETURNED, claims_key, follower_key,
    instance_key, storage_queue, workers_key,
};
use super::requests::{read_members_script, round_trip, search_scripts};
use super::{QueueError, RedisConnection, StoredReason, now};
use crate::vcon::VconId;

/// How many entries at either end of a list are searched, which blocks Redis for some 10 ms.
const MOST_SEARCHED: u64 = 1_000_000;

/// The most bytes of a claim's record that are read. Those of daemons are shorter.
const MOST_OF_RECORD: usize = 512 << 10;

/// The most bytes of a name in a set.
const MOST_OF_NAME: usize = 16 << 10;

/// The lists to look at, besides those that daemons have recorded.
#[derive(Debug, Clone, Default)]
pub struct FindLists {
    /// Where vCons wait for work.
    pub ingress: Vec<Raw>,
    /// Where they are announced.
    pub egress: Vec<Raw>,
    /// The names of the storages.
    pub storages: Vec<String>,
}

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPosition {
    /// The list; of dead letters the ingress list or `storage:<name>`.
    pub list: Raw,
    /// From 1 for the head.
    pub number: u64,
    /// How many entries the list has.
    pub of: u64,
    /// The number of the last such entry, if there are several.
    pub last: Option<u64>,
}

/// A claim on the vCon.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundClaim {
    /// The daemon's name.
    pub instance: String,
    /// The worker's number; 0 for a claim that could not be returned to its list.
    pub worker: u32,
    /// The lane, as Redis has it.
    pub lane: String,
    /// The list that it was taken from.
    pub list: Raw,
    /// When, in seconds since 1970 by Redis' clock; 0 if unknown.
    pub since: f64,
    /// Whether a daemon holds the lease on the name.
    pub is_held: bool,
}

/// A dead letter, or a part of a storage's backlog.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundLetter {
    /// Where in the queue it is.
    pub position: ListPosition,
    /// Why.
    pub reason: Option<StoredReason>,
}

/// How far it had come when a claim was released before its end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FoundProgress {
    /// The list that it waits in.
    #[serde(skip)]
    pub list: String,
    /// The links of the chain at that time.
    pub links: Vec<String>,
    /// How many of them have run.
    pub links_done: usize,
    /// The storages of the chain.
    pub storages: Vec<String>,
    /// Those that have saved it.
    pub stored: Vec<String>,
}

/// Rounds of attempts at a backend that failed for it while others got through.
#[derive(Debug, Clone, PartialEq)]
pub struct Rounds {
    /// How many.
    pub count: u64,
    /// When the last one failed, in seconds since 1970 by Redis' clock.
    pub at: f64,
    /// The step.
    pub stage: String,
}

/// The lists and claims that name a vCon.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VconQueues {
    /// The lists of followers that have not fetched its document yet.
    pub pulled: Vec<ListPosition>,
    /// The ingress lists where it waits.
    pub waiting: Vec<ListPosition>,
    /// Claims on it.
    pub claims: Vec<FoundClaim>,
    /// The dead letter queues of lists and storages.
    pub letters: Vec<FoundLetter>,
    /// The egress lists that still announce it.
    pub announced: Vec<ListPosition>,
    /// What could not be looked at, and why.
    pub errors: Vec<String>,
}

/// What the key of its document holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDocument {
    /// `text`, `json`, or the type of something that is no document.
    pub kind: String,
    /// Its bytes, if it is text.
    pub bytes: Option<u64>,
    /// Seconds until it expires; `None` if it does not.
    pub ttl: Option<u64>,
}

/// All that Redis has about a vCon.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VconPlaces {
    /// The lists and claims that name it.
    pub queues: VconQueues,
    /// How far it has come in chains that it waits for.
    pub progress: Vec<FoundProgress>,
    /// Failed rounds of attempts.
    pub rounds: Option<Rounds>,
    /// How many workers died while they had it.
    pub deaths: u64,
    /// Its document.
    pub document: Option<FoundDocument>,
    /// Whether the sorted set has it; `None` if the user may not ask.
    pub is_in_sorted_set: Option<bool>,
}

impl VconQueues {
    /// Whether nothing names it.
    pub fn is_empty(&self) -> bool {
        self.pulled.is_empty()
            && self.waiting.is_empty()
            && self.claims.is_empty()
            && self.letters.is_empty()
            && self.announced.is_empty()
    }
}

/// Finds vCons over one connection.
pub struct VconFinder {
    connection: RedisConnection,
    ingress: BTreeSet<Raw>,
    egress: BTreeSet<Raw>,
    /// The queues of dead letters: lists, and `storage:<name>`.
    letters: BTreeSet<Raw>,
}

impl VconFinder {
    /// Knows these lists, and those that daemons have had dead letters of.
    pub fn new(mut connection: RedisConnection, lists: &FindLists) -> Result<Self, QueueError> {
        let recorded = members(&mut connection, keys::DEAD_LETTER_LISTS)?;
        let recorded = recorded.into_iter();
        let recorded = recorded.filter_map(|key| Some(Raw::new(key.strip_prefix(b"DLQ:")?)));
        let recorded: BTreeSet<Raw> = recorded.collect();
        let is_of_list = |list: &&Raw| !list.as_bytes().starts_with(STORAGE_PREFIX.as_bytes());
        let mut ingress: BTreeSet<Raw> = lists.ingress.iter().cloned().collect();
        ingress.extend(recorded.iter().filter(is_of_list).cloned());
        let of_storages = lists.storages.iter();
        let of_storages = of_storages.map(|name| storage_queue(name));
        let letters = ingress.iter().cloned().chain(recorded).chain(of_storages);
        let letters = letters.collect();
        // What one chain announces, another may take.
        let egress = lists.egress.iter().filter(|list| !ingress.contains(list));
        Ok(Self {
            connection,
            egress: egress.cloned().collect(),
            letters,
            ingress,
        })
    }

    /// The time by Redis' clock, in seconds since 1970.
    pub fn now(&mut self) -> Result<f64, QueueError> {
        now(&mut self.connection)
    }

    /// Everything that Redis has about the vCon.
    pub fn find(&mut self, id: &VconId, sorted_set: &str) -> Result<VconPlaces, QueueError> {
        let queues = self.queues(id)?;
        let deaths = self.note(keys::DEATHS, id)?;
        let rounds = self.note(keys::ROUNDS, id)?;
        let mut places = VconPlaces {
            progress: self.progress(id)?,
            deaths: deaths.and_then(|it| it.parse().ok()).unwrap_or(0),
            rounds: rounds.and_then(|text| Rounds::read(&text)),
            queues,
            ..VconPlaces::default()
        };
        let key = id.key();
        let mut ask = redis::pipe();
        ask.cmd("TYPE").arg(&key).cmd("TTL").arg(&key);
        ask.cmd("STRLEN").arg(&key);
        ask.cmd("ZSCORE").arg(sorted_set).arg(&key);
        let replies = round_trip(&mut self.connection, &ask)?;
        if let [kind, ttl, bytes, score] = &replies[..] {
            let number = |value: &Value| match value {
                Value::Int(number) => u64::try_from(*number).ok(),
                _ => None,
            };
            places.document = match kind {
                Value::SimpleString(kind) if kind != "none" => Some(FoundDocument {
                    kind: match kind.as_str() {
                        "string" => "text".to_owned(),
                        JSON => "json".to_owned(),
                        other => other.to_owned(),
                    },
                    bytes: number(bytes),
                    ttl: number(ttl),
                }),
                _ => None,
            };
            places.is_in_sorted_set = match score {
                Value::ServerError(_) => None,
                score => Some(*score != Value::Nil),
            };
        }
        Ok(places)
    }

    /// The lists and claims that name the vCon.
    pub fn queues(&mut self, id: &VconId) -> Result<VconQueues, QueueError> {
        let found = self.look(id)?;
        // A claim may have been released between two looks.
        if found.is_empty() {
            self.look(id)
        } else {
            Ok(found)
        }
    }

    fn look(&mut self, id: &VconId) -> Result<VconQueues, QueueError> {
        let mut found = VconQueues::default();
        for follower in members(&mut self.connection, FOLLOWERS)? {
            let name = String::from_utf8_lossy(&follower).into_owned();
            let key = follower_key(&name);
            let position = self.position(&Raw::new(name), key.as_bytes(), id, &mut found.errors)?;
            found.pulled.extend(position);
        }
        for list in self.ingress.clone() {
            let position = self.position(&list, list.as_bytes(), id, &mut found.errors)?;
            found.waiting.extend(position);
        }
        self.find_claims(id, &mut found)?;
        for list in self.letters.clone() {
            let key = letters_key(&list);
            if let Some(position) = self.position(&list, &key, id, &mut found.errors)? {
                let reason = self.reason(&list, id)?;
                found.letters.push(FoundLetter { position, reason });
            }
        }
        for list in self.egress.clone() {
            let position = self.position(&list, list.as_bytes(), id, &mut found.errors)?;
            found.announced.extend(position);
        }
        Ok(found)
    }

    /// Where in a list the vCon is. `list` is the name of the list with this key.
    fn position(
        &mut self,
        list: &Raw,
        key: &[u8],
        id: &VconId,
        errors: &mut Vec<String>,
    ) -> Result<Option<ListPosition>, QueueError> {
        let mut ask = redis::pipe();
        ask.cmd("LLEN").arg(key);
        ask.add_command(search(key, id, 1));
        let replies = round_trip(&mut self.connection, &ask)?;
        let of = match replies.first() {
            Some(Value::Int(length)) => u64::try_from(*length).unwrap_or(0),
            Some(Value::ServerError(error)) if error.code() != "WRONGTYPE" => {
                errors.push(format!("list {list}: {error}"));
                return Ok(None);
            }
            _ => return Ok(None),
        };
        let index = match replies.get(1) {
            Some(Value::Int(index)) => u64::try_from(*index).ok(),
            Some(Value::ServerError(error)) => {
                errors.push(format!("list {list}: {error}"));
                return Ok(None);
            }
            _ => None,
        };
        if index.is_none() && of <= MOST_SEARCHED {
            return Ok(None);
        }
        let last: Option<u64> = search(key, id, -1).query(&mut *self.connection)?;
        let Some(first) = index.or(last) else {
            if of > 2 * MOST_SEARCHED {
                errors.push(format!(
                    "list {list} has {of} entries: only {MOST_SEARCHED} at either end were looked at"
                ));
            }
            return Ok(None);
        };
        Ok(Some(ListPosition {
            list: list.clone(),
            number: first + 1,
            of: of.max(first + 1),
            last: last.filter(|last| *last > first).map(|last| last + 1),
        }))
    }

    fn find_claims(&mut self, id: &VconId, found: &mut VconQueues) -> Result<(), QueueError> {
        for instance in text_members(&mut self.connection, INSTANCES)? {
            let workers = text_members(&mut self.connection, &workers_key(&instance))?;
            let workers = workers.iter().filter_map(|number| number.parse().ok());
            let workers: BTreeSet<u32> = workers.chain([UNRETURNED]).collect();
            let before = found.claims.len();
            for worker in workers {
                let mut call = search_scripts()
                    .find_claims
                    .key(claims_key(&instance, worker));
                call.arg(id.as_str()).arg(MOST_OF_RECORD);
                let reply: Vec<Vec<u8>> = call.invoke(&mut *self.connection)?;
                let claims = reply.chunks_exact(2).filter_map(|pair| match pair {
                    [lane, record] => FoundClaim::read(&instance, worker, lane, record, id),
                    _ => None,
                });
                found.claims.extend(claims);
            }
            if found.claims.len() > before {
                let mut exists = redis::cmd("EXISTS");
                exists.arg(instance_key(&instance));
                let is_held: bool = exists.query(&mut *self.connection)?;
                for claim in &mut found.claims[before..] {
                    claim.is_held = is_held;
                }
            }
        }
        Ok(())
    }

    fn reason(&mut self, list: &Raw, id: &VconId) -> Result<Option<StoredReason>, QueueError> {
        let fields = [id.as_str().as_bytes().to_vec()];
        let found = self.fields(&reasons_key(list), &fields)?;
        let found = found.into_iter().next().flatten();
        Ok(found.map(|bytes| StoredReason::read(&bytes)))
    }

    fn progress(&mut self, id: &VconId) -> Result<Vec<FoundProgress>, QueueError> {
        let lists: Vec<Raw> = self.ingress.iter().cloned().collect();
        let field = |list: &Raw| [list.as_bytes(), b"\n", id.as_str().as_bytes()].concat();
        let fields: Vec<Vec<u8>> = lists.iter().map(field).collect();
        let kept = self.fields(keys::PROGRESS.as_bytes(), &fields)?;
        let kept = lists.iter().zip(kept);
        Ok(kept
            .filter_map(|(list, text)| FoundProgress::read(list, &text?))
            .collect())
    }

    /// What a hash of notes about vCons says of this one.
    fn note(&mut self, hash: &str, id: &VconId) -> Result<Option<String>, QueueError> {
        let fields = [id.as_str().as_bytes().to_vec()];
        let found = self.fields(hash.as_bytes(), &fields)?;
        let found = found.into_iter().next().flatten();
        Ok(found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The values of these fields, in their order, each cut if it is too long.
    fn fields(
        &mut self,
        hash: &[u8],
        fields: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, QueueError> {
        if fields.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = search_scripts().read_reasons.key(hash);
        call.arg(MOST_OF_REASON + 1).arg(fields);
        Ok(call.invoke(&mut *self.connection)?)
    }
}

/// The search for the vCon from one end of a list: from the head with rank 1, from the tail with -1.
fn search(key: &[u8], id: &VconId, rank: i64) -> redis::Cmd {
    let mut search = redis::cmd("LPOS");
    search.arg(key).arg(id.as_str()).arg("RANK").arg(rank);
    search.arg("MAXLEN").arg(MOST_SEARCHED);
    search
}

/// The members of a set, without those that are too long.
fn members(connection: &mut RedisConnection, set: &str) -> Result<Vec<Vec<u8>>, QueueError> {
    let mut call = read_members_script().key(set);
    Ok(call.arg(MOST_OF_NAME).invoke(&mut **connection)?)
}

fn text_members(connection: &mut RedisConnection, set: &str) -> Result<Vec<String>, QueueError> {
    let members = members(connection, set)?.into_iter();
    let text = members.filter_map(|member| String::from_utf8(member).ok());
    Ok(text.collect())
}

impl FoundClaim {
    /// Reads the record of a claim; `None` if it is not on this vCon.
    fn read(instance: &str, worker: u32, lane: &[u8], record: &[u8], id: &VconId) -> Option<Self> {
        #[derive(Deserialize)]
        struct Record {
            #[serde(default)]
            since: f64,
            list: String,
            uuid: String,
        }
        let record: Record = serde_json::from_slice(record).ok()?;
        (record.uuid == id.as_str()).then(|| Self {
            instance: instance.to_owned(),
            worker,
            lane: String::from_utf8_lossy(lane).into_owned(),
            list: Raw::new(record.list),
            since: record.since,
            is_held: false,
        })
    }
}

impl FoundProgress {
    /// Reads a record of progress: the digest of the document, its key, marks, and what the lane wrote.
    fn read(list: &Raw, record: &[u8]) -> Option<Self> {
        let mut words = record.splitn(3, |byte| *byte == b' ');
        let text = words.nth(2)?;
        let start = text.iter().position(|byte| !b"~^".contains(byte))?;
        let progress: Self = serde_json::from_slice(&text[start..]).ok()?;
        Some(Self {
            list: list.to_string(),
            // Other versions of the document have gone to the storages since.
            stored: if start == 0 {
                progress.stored
            } else {
                Vec::new()
            },
            ..progress
        })
    }
}

impl Rounds {
    /// Reads what `postpone` has written: how many rounds others got through, the time, the time spent, all rounds,
    /// the stage.
    fn read(text: &str) -> Option<Self> {
        let mut words = text.splitn(5, ' ');
        let mut next = || words.next();
        let (_, at, _, count, stage) = (next()?, next()?, next()?, next()?, next()?);
        Some(Self {
            count: count.parse().ok()?,
            at: at.parse().ok()?,
            stage: stage.to_owned(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ID: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

    #[test]
    fn a_claim_is_on_the_vcon_that_it_names_and_not_on_one_that_it_mentions() {
        let id: VconId = ID.parse().unwrap();
        let read = |record: &str| FoundClaim::read("here", 3, b"2", record.as_bytes(), &id);
        let record = format!(r#"{{"since":7.5,"by":"x","list":"default","uuid":"{ID}"}}"#);
        let claim = read(&record).unwrap();
        assert_eq!(
            (claim.worker, claim.lane.as_str(), claim.since),
            (3, "2", 7.5)
        );
        assert_eq!(claim.list, Raw::new("default"));
        let mentioned = format!(r#"{{"since":7.5,"list":"default","uuid":"x","context":"{ID}"}}"#);
        for record in [mentioned.as_str(), &record[1..], ""] {
            assert_eq!(read(record), None, "{record}");
        }
    }

    #[test]
    fn kept_progress_is_read_with_its_marks() {
        let list = Raw::new("default");
        let text = r#"{"links":["a","b"],"storages":["s"],"id":"x","links_done":1,"is_halted":false,
            "expire":null,"routes":[],"stored":["s"],"refused":[],"deferred":[]}"#;
        for (marks, stored) in [("", &["s".to_owned()][..]), ("~", &[]), ("~^", &[])] {
            let record = format!("abc vcon:{ID} {marks}{text}");
            let read = FoundProgress::read(&list, record.as_bytes()).unwrap();
            assert_eq!((read.links_done, read.links.len()), (1, 2));
            assert_eq!((read.stored, &*read.list), (stored.to_vec(), "default"));
        }
        for broken in ["", "a b", "a b !", "a b ~", "a b {}"] {
            assert_eq!(
                FoundProgress::read(&list, broken.as_bytes()),
                None,
                "{broken}"
            );
        }
    }

    #[test]
    fn rounds_are_read_as_postpone_writes_them() {
        let read = Rounds::read("2 1710605360.250000 31.000000 5 storage pg").unwrap();
        let expected = Rounds {
            count: 5,
            at: 1_710_605_360.25,
            stage: "storage pg".to_owned(),
        };
        assert_eq!(read, expected);
        assert_eq!(Rounds::read("2 x 3 4 a"), None);
        assert_eq!(Rounds::read("2"), None);
    }
}
