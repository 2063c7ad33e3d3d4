//! How vCons come in: by `conserver submit`, or pulled by a follower from another server.
//!
//! Both do what the API server does: write the document, then its key to the sorted set, then the UUID to
//! the ingress list.
//!
//! A follower gets UUIDs first, then their documents. The other server removes UUIDs from its list when it
//! returns them, so from then on this Redis keeps them until their vCons are submitted:
//!
//! ```text
//! the other's list ──record──► conserver:follower:<name> ──submit──► document, sorted set, ingress list
//!                                  │            ▲   │
//!                                  └─ postpone ─┘   └─dead-letter──► dead letter queue of the ingress list
//! ```
//!
//! Each step removes the UUID from the list in the script that puts it elsewhere, so several instances can
//! work on one list. One of them holds a lease to pull, so that they do not fetch everything twice.

use std::time::Duration;

use redis::{Cmd, Value};

use super::documents::{JSON, check_length, describe, replacing, watched};
use super::release::Reason;
use super::requests::{code, round_trip};
use super::{
    Document, DocumentFormat, Expiry, QueueError, RedisConnection, Server, StoredDocument, claim,
    is_wrong_type, keys,
};
use crate::config::ListName;
use crate::redis_server::why_too_long;
use crate::settings::RedisFormat;
use crate::vcon::{Outgoing, VconId};

/// How many of the newest vCons show how this deployment stores documents.
const NEWEST: i64 = 10;

/// Submits vCons to one ingress list.
pub struct Submitter {
    connection: RedisConnection,
    /// How a document is stored whose key is new.
    kind: DocumentFormat,
    list: ListName,
    sorted_set: String,
    expire: Option<u64>,
}

impl Submitter {
    /// Submits to `list`. Adds the keys of the documents to `sorted_set`, scored by time. `expire` is the time
    /// to live of the documents in seconds. A key that exists keeps its type, a new one gets this format.
    pub fn new(
        mut connection: RedisConnection,
        list: ListName,
        sorted_set: String,
        expire: Option<u64>,
        format: RedisFormat,
    ) -> Result<Self, QueueError> {
        let kind = kind_of_new(&mut connection, format, &sorted_set)?;
        Ok(Self {
            connection,
            kind,
            list,
            sorted_set,
            expire,
        })
    }

    /// Submits several vCons: first the documents, then, in a second round trip, the entries of those that
    /// Redis took. Returns for each of them why Redis refused it, or `None`.
    pub fn submit(&mut self, vcons: &[Outgoing]) -> Result<Vec<Option<String>>, QueueError> {
        let keys: Vec<String> = vcons.iter().map(|vcon| vcon.id.key()).collect();
        let mut refusals = vec![None; vcons.len()];
        let (mut documents, mut indexes) = (redis::pipe(), Vec::new());
        for (index, found) in types(&mut self.connection, &keys)?.into_iter().enumerate() {
            let kind = match found.as_str() {
                "none" => self.kind,
                "string" => DocumentFormat::Text,
                JSON => DocumentFormat::Json,
                other => {
                    refusals[index] = Some(describe(other.as_bytes(), b""));
                    continue;
                }
            };
            let vcon = &vcons[index];
            if let Some(why) = why_too_long(&mut self.connection, vcon.json.len())? {
                refusals[index] = Some(why);
                continue;
            }
            documents.add_command(kind.put(&vcon.id.key()).arg(&vcon.json).clone());
            indexes.push(index);
        }
        if !indexes.is_empty() {
            let replies = round_trip(&mut self.connection, &documents)?;
            for (index, reply) in indexes.into_iter().zip(replies) {
                refusals[index] = refusal(reply)?;
            }
        }
        let mut entries = redis::pipe();
        for (vcon, refusal) in vcons.iter().zip(&refusals) {
            if refusal.is_none() {
                self.add_entry(&mut entries, vcon);
            }
        }
        if refusals.iter().any(Option::is_none) {
            for reply in round_trip(&mut self.connection, &entries)? {
                reply.extract_error()?;
            }
        }
        Ok(refusals)
    }

    fn add_entry(&self, steps: &mut redis::Pipeline, vcon: &Outgoing) {
        let key = vcon.id.key();
        if let Some(seconds) = self.expire {
            steps.cmd("EXPIRE").arg(&key).arg(seconds).ignore();
        }
        let time = vcon.created_or_now().unix;
        steps
            .cmd("ZADD")
            .arg(&self.sorted_set)
            .arg(time)
            .arg(&key)
            .ignore();
        steps
            .cmd("RPUSH")
            .arg(self.list.as_str())
            .arg(vcon.id.as_str())
            .ignore();
    }
}

/// How to store a document whose key is new.
fn kind_of_new(
    connection: &mut RedisConnection,
    format: RedisFormat,
    sorted_set: &str,
) -> Result<DocumentFormat, QueueError> {
    let is_json = match format {
        RedisFormat::Plain => false,
        RedisFormat::Json => connection.has_json()?,
        RedisFormat::Auto => connection.has_json()? && newest_are_json(connection, sorted_set)?,
    };
    Ok(if is_json {
        DocumentFormat::Json
    } else {
        DocumentFormat::Text
    })
}

/// Whether any of the newest vCons is stored as RedisJSON.
fn newest_are_json(connection: &mut RedisConnection, sorted_set: &str) -> Result<bool, QueueError> {
    let mut newest = redis::pipe();
    newest
        .cmd("ZREVRANGE")
        .arg(sorted_set)
        .arg(0)
        .arg(NEWEST - 1);
    let mut replies = round_trip(connection, &newest)?;
    let reply = replies.pop().unwrap_or(Value::Nil);
    let keys = match reply.extract_error() {
        Ok(found) => redis::from_redis_value::<Vec<Vec<u8>>>(found)
            .map_err(|_| QueueError::UnexpectedReply("asking for the newest vCons"))?,
        // A key of another type names no vCons.
        Err(error) if is_wrong_type(&error) => Vec::new(),
        // Do not guess: all vCons from here on would be stored in the wrong way.
        Err(error) => return Err(error.into()),
    };
    let types = types(connection, &keys)?;
    Ok(types.iter().any(|found| found == JSON))
}

/// The type of each of these keys.
fn types<K: redis::ToRedisArgs>(
    connection: &mut RedisConnection,
    keys: &[K],
) -> Result<Vec<String>, QueueError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut steps = redis::pipe();
    for key in keys {
        steps.cmd("TYPE").arg(key);
    }
    let mut types = Vec::new();
    for reply in round_trip(connection, &steps)? {
        let reply = reply.extract_error()?;
        types.push(redis::from_redis_value(reply).map_err(redis::RedisError::from)?);
    }
    Ok(types)
}

/// Why Redis refused a document, if it did.
fn refusal(reply: Value) -> Result<Option<String>, QueueError> {
    match reply.extract_error().map_err(QueueError::of_write) {
        Ok(_) => Ok(None),
        Err(QueueError::Document(why)) => Ok(Some(why)),
        Err(error) => Err(error),
    }
}

const SUBMIT: &str = code!("extend_ttl", "follower", "follower_submit");
const SUBMIT_EXISTING: &str = code!("extend_ttl", "follower", "follower_submit_existing");
const DEAD_LETTER: &str = code!("reason_time", "follower", "follower_dead_letter");
const POSTPONE: &str = code!("follower_postpone");
const PULL_LEASE: &str = code!("follower_lease");

/// How long, in seconds, Redis remembers which document was pulled, and how often one could not be fetched.
const PULL_RECORDS_EXPIRY: u64 = 604_800;

/// What one follower has pulled and not submitted yet.
pub struct FollowerQueue {
    server: Server,
    connected: Option<RedisConnection>,
    expiry: Expiry,
    instance: String,
    follower: String,
    ingress_list: ListName,
    sorted_set: String,
    format: RedisFormat,
}

/// A pulled document to submit.
#[derive(Debug, Clone, Copy)]
pub struct PulledVcon<'a> {
    /// The UUID it was fetched by.
    pub id: &'a VconId,
    /// The document.
    pub text: &'a str,
    /// Its digest.
    pub digest: &'a str,
    /// When the vCon was made, in seconds since 1970.
    pub created: i64,
}

/// The result of a submission of a pulled vCon, or of its refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubmitOutcome {
    /// It was done.
    Done,
    /// Another instance has done it.
    NotOurs,
    /// Nothing was done: a document of that vCon exists.
    There,
    /// Nothing was done: the document no longer exists.
    Gone,
    /// Nothing was done: a key holds another type. Names the key and the type.
    Refused(String),
}

impl FollowerQueue {
    /// What `follower` pulls for `ingress_list`. Connects when first used.
    pub fn new(
        server: Server,
        expiry: Expiry,
        instance: &str,
        follower: &str,
        ingress_list: &ListName,
        sorted_set: &str,
        format: RedisFormat,
    ) -> Self {
        Self {
            server,
            connected: None,
            expiry,
            instance: instance.to_owned(),
            follower: follower.to_owned(),
            ingress_list: ingress_list.clone(),
            sorted_set: sorted_set.to_owned(),
            format,
        }
    }

    /// Takes the lease to pull for `time`, or renews it. Returns who holds it, if another instance does.
    ///
    /// # Errors
    /// Nothing may be pulled after an error: among others, Redis may refuse writes.
    pub fn take_lease(&mut self, time: Duration) -> Result<Option<String>, QueueError> {
        let milliseconds = time.as_millis().max(1).to_string();
        let holder = self.change_lease(&milliseconds)?;
        Ok((holder != self.instance).then_some(holder))
    }

    /// Releases the lease to pull.
    pub fn release_lease(&mut self) -> Result<(), QueueError> {
        self.change_lease("0").map(drop)
    }

    fn change_lease(&mut self, time: &str) -> Result<String, QueueError> {
        let mut call = script(
            PULL_LEASE,
            &[
                keys::follower_lease_key(&self.follower),
                keys::follower_key(&self.follower),
                keys::FOLLOWERS.to_owned(),
            ],
        );
        call.arg(&self.instance).arg(time).arg(&self.follower);
        let holder: Vec<u8> = self.with(|connection| Ok(call.query(connection)?))?;
        Ok(String::from_utf8_lossy(&holder).into_owned())
    }

    /// Records UUIDs whose documents are to be fetched. To record one twice does no harm.
    pub fn record(&mut self, ids: &[VconId]) -> Result<(), QueueError> {
        let ids: Vec<&str> = ids.iter().map(VconId::as_str).collect();
        let mut push = redis::cmd("RPUSH");
        push.arg(keys::follower_key(&self.follower)).arg(ids);
        self.with(|connection| Ok(push.query::<()>(connection)?))
    }

    /// Up to `most` UUIDs whose documents are to be fetched, in their order, and the number of all. Drops an
    /// entry that is no UUID, with a line in the log.
    pub fn waiting(&mut self, most: usize) -> Result<(Vec<VconId>, u64), QueueError> {
        let key = keys::follower_key(&self.follower);
        let mut ask = redis::pipe();
        ask.cmd("LRANGE").arg(&key).arg(0).arg(most);
        ask.cmd("LLEN").arg(&key);
        let (entries, length): (Vec<Vec<u8>>, u64) =
            self.with(|connection| Ok(ask.query(connection)?))?;
        let mut ids = Vec::new();
        for entry in entries.into_iter().take(most) {
            match str::from_utf8(&entry).ok().and_then(|it| it.parse().ok()) {
                Some(id) if ids.contains(&id) => {}
                Some(id) => ids.push(id),
                None => self.drop_entry(&key, &entry)?,
            }
        }
        Ok((ids, length))
    }

    fn drop_entry(&mut self, key: &str, entry: &[u8]) -> Result<(), QueueError> {
        let mut drop = redis::cmd("LREM");
        drop.arg(key).arg(0).arg(entry);
        self.with(|connection| Ok(drop.query::<()>(connection)?))?;
        let shown = claim::shown(entry);
        log::error!("dropped \"{shown}\" from {key}: not a UUID");
        Ok(())
    }

    /// Submits a vCon, unless a document of it exists.
    ///
    /// # Errors
    /// [`QueueError::Document`] if Redis refuses the document.
    pub fn submit(&mut self, pulled: &PulledVcon<'_>) -> Result<SubmitOutcome, QueueError> {
        let draft = keys::follower_draft_key(&self.instance, &self.follower);
        let mut call = script(
            SUBMIT,
            &[
                keys::follower_key(&self.follower),
                keys::follower_tries_key(&self.follower),
                pulled.id.key(),
                draft.clone(),
                self.ingress_list.as_str().to_owned(),
                self.sorted_set.clone(),
                keys::pulled_key(pulled.id),
            ],
        );
        call.arg(pulled.id.as_str()).arg(pulled.created);
        call.arg(pulled.digest).arg(PULL_RECORDS_EXPIRY);
        let (format, sorted_set) = (self.format, self.sorted_set.clone());
        self.with(|connection| {
            check_length(connection, pulled.text)?;
            let kind = kind_of_new(connection, format, &sorted_set)?;
            let request = replacing(&draft, kind, pulled.text, &call);
            let reply = watched(request.send(connection)?)?;
            submit_outcome(reply.unwrap_or(Value::Nil))
        })
    }

    /// Submits a vCon with the document that exists.
    pub fn submit_existing(
        &mut self,
        id: &VconId,
        digest: &str,
    ) -> Result<SubmitOutcome, QueueError> {
        let mut call = script(
            SUBMIT_EXISTING,
            &[
                keys::follower_key(&self.follower),
                keys::follower_tries_key(&self.follower),
                id.key(),
                self.ingress_list.as_str().to_owned(),
                keys::pulled_key(id),
            ],
        );
        call.arg(id.as_str()).arg(digest).arg(PULL_RECORDS_EXPIRY);
        call.arg(self.expiry.document);
        self.with(|connection| submit_outcome(call.query(connection)?))
    }

    /// Keeps a pulled document that is not to take the place of the one that is here, as long as a dead letter and at
    /// least as long as the other records. Returns its key: the other server may not have it for long.
    pub fn keep_other(&mut self, pulled: &PulledVcon<'_>) -> Result<String, QueueError> {
        let key = keys::pulled_other_key(pulled.id);
        let expiry = self.expiry.dead_letter.max(PULL_RECORDS_EXPIRY);
        let mut set = redis::cmd("SET");
        set.arg(&key).arg(pulled.text).arg("EX").arg(expiry);
        self.with(|connection| {
            check_length(connection, pulled.text)?;
            Ok(set.query::<()>(connection)?)
        })?;
        Ok(key)
    }

    /// Moves a UUID to the dead letter queue of the ingress list.
    pub fn refuse(
        &mut self,
        id: &VconId,
        reason: &Reason<'_>,
    ) -> Result<SubmitOutcome, QueueError> {
        let mut call = script(
            DEAD_LETTER,
            &[
                keys::follower_key(&self.follower),
                keys::follower_tries_key(&self.follower),
                keys::dead_letter_list(&self.ingress_list),
                keys::dead_letter_reasons(&self.ingress_list),
                id.key(),
            ],
        );
        call.arg(id.as_str()).arg(reason.to_json()?);
        call.arg(self.expiry.dead_letter);
        self.with(|connection| submit_outcome(call.query(connection)?))
    }

    /// Puts a UUID whose document could not be fetched at the end of the list. Returns the number of tries
    /// that counted.
    pub fn postpone(&mut self, id: &VconId, counts: bool) -> Result<u32, QueueError> {
        let mut call = script(
            POSTPONE,
            &[
                keys::follower_key(&self.follower),
                keys::follower_tries_key(&self.follower),
            ],
        );
        call.arg(id.as_str()).arg(u8::from(counts));
        call.arg(PULL_RECORDS_EXPIRY);
        self.with(|connection| Ok(call.query(connection)?))
    }

    /// What the vCon's key holds, and the digest of the document that was pulled last.
    pub fn document(&mut self, id: &VconId) -> Result<(Document, Option<String>), QueueError> {
        self.with(|connection| {
            let kept = StoredDocument::read(connection, id)?;
            let mut get = redis::cmd("GET");
            get.arg(keys::pulled_key(id));
            let digest: Option<Vec<u8>> = get.query(connection)?;
            let digest = digest.and_then(|digest| String::from_utf8(digest).ok());
            Ok((kept.document, digest))
        })
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut RedisConnection) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let mut connection = match self.connected.take() {
            Some(connection) => connection,
            None => connect(&self.server, &self.instance)?,
        };
        let result = work(&mut connection);
        // After such an error a reply may still arrive.
        if !matches!(&result, Err(error) if error.breaks_connection()) {
            self.connected = Some(connection);
        }
        result
    }
}

/// The names of followers other than these that have left UUIDs, with the numbers of UUIDs.
pub fn left_by_followers(
    server: &Server,
    instance: &str,
    followers: &[&str],
) -> Result<Vec<(String, u64)>, QueueError> {
    let mut connection = connect(server, instance)?;
    let known: Vec<String> = redis::cmd("SMEMBERS")
        .arg(keys::FOLLOWERS)
        .query(&mut *connection)?;
    let mut left = Vec::new();
    for name in known {
        if followers.contains(&name.as_str()) {
            continue;
        }
        let key = keys::follower_key(&name);
        let count: u64 = redis::cmd("LLEN").arg(&key).query(&mut *connection)?;
        if count > 0 {
            left.push((claim::shown(name.as_bytes()), count));
        }
    }
    Ok(left)
}

fn connect(server: &Server, instance: &str) -> Result<RedisConnection, QueueError> {
    Ok(server.connect(&keys::client_name(instance, "follower"))?)
}

/// The call of a script, in full: followers make few calls.
fn script(text: &str, keys: &[String]) -> Cmd {
    let mut call = redis::cmd("EVAL");
    call.arg(text).arg(keys.len()).arg(keys);
    call
}

fn submit_outcome(reply: Value) -> Result<SubmitOutcome, QueueError> {
    let unknown = QueueError::UnexpectedReply("handing in a pulled vCon");
    match reply {
        Value::Int(1) => Ok(SubmitOutcome::Done),
        Value::Int(0) => Ok(SubmitOutcome::NotOurs),
        reply => {
            let words: Vec<String> = redis::from_redis_value(reply).unwrap_or_default();
            match (words.first().map(String::as_str), words.get(1)) {
                (Some("there"), _) => Ok(SubmitOutcome::There),
                (Some("gone"), _) => Ok(SubmitOutcome::Gone),
                (Some("refused"), Some(why)) => Ok(SubmitOutcome::Refused(why.clone())),
                _ => Err(unknown),
            }
        }
    }
}
