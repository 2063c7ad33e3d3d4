//! What a follower pulls from another server: UUIDs first, then their documents.
//!
//! The other server takes UUIDs off its list when it hands them out, so from then on they are kept
//! here until their vCons are handed in:
//!
//! ```text
//! the other's list ──note──► conserver:follower:<name> ──hand in──► document, sorted set, ingress list
//!                                │            ▲   │
//!                                └── later ───┘   └──refuse──► dead letter queue of the ingress list
//! ```
//!
//! Every step takes the UUID out of the list in the same script that puts it elsewhere, so several
//! instances can work on one list; so that they do not fetch everything twice, one has the turn.

use std::time::Duration;

use redis::{Cmd, Value};

use super::documents::{JSON, check_length, replacing, watched};
use super::release::Reason;
use super::requests::round_trip;
use super::{
    Document, Expiry, Kept, Kind, Lease, QueueError, Server, claim, is_wrong_type, keys,
};
use crate::config::ListName;
use crate::redis_server::why_too_long;
use crate::settings::RedisFormat;
use crate::vcon::{Outgoing, VconId};

/// So many of the newest vCons tell how they are kept in this deployment.
const LOOKED_AT: i64 = 10;

/// Where vCons are handed in, and how they are kept.
pub struct Submitter {
    lease: Lease,
    /// How a document is kept whose key is new.
    kind: Kind,
    list: ListName,
    sorted_set: String,
    expire: Option<u64>,
}

impl Submitter {
    /// Hands vCons in to `list`; `sorted_set` gets their keys by their time, and with `expire`
    /// their documents live so many seconds. A key that is there keeps its kind, a new one is of this
    /// format.
    pub fn new(
        mut lease: Lease,
        list: ListName,
        sorted_set: String,
        expire: Option<u64>,
        format: RedisFormat,
    ) -> Result<Self, QueueError> {
        let kind = kind_of_new(&mut lease, format, &sorted_set)?;
        Ok(Self {
            lease,
            kind,
            list,
            sorted_set,
            expire,
        })
    }

    /// Hands in several vCons: first the documents, then, in a second round trip, the entries of
    /// those that Redis took. Answers for each of them nothing, or why Redis refused it.
    pub fn submit(&mut self, vcons: &[Outgoing]) -> Result<Vec<Option<String>>, QueueError> {
        let keys: Vec<String> = vcons.iter().map(|vcon| vcon.id.key()).collect();
        let mut refusals = vec![None; vcons.len()];
        let (mut documents, mut places) = (redis::pipe(), Vec::new());
        for (place, found) in types(&mut self.lease, &keys)?.into_iter().enumerate() {
            let kind = match found.as_str() {
                "none" => self.kind,
                "string" => Kind::Text,
                JSON => Kind::Json,
                other => {
                    refusals[place] = Some(format!("its key holds a {other}, not a document"));
                    continue;
                }
            };
            let vcon = &vcons[place];
            if let Some(why) = why_too_long(&mut self.lease, vcon.json.len())? {
                refusals[place] = Some(why);
                continue;
            }
            documents.add_command(kind.put(&vcon.id.key()).arg(&vcon.json).clone());
            places.push(place);
        }
        if !places.is_empty() {
            let answers = round_trip(&mut self.lease, &documents)?;
            for (place, answer) in places.into_iter().zip(answers) {
                refusals[place] = refusal(answer)?;
            }
        }
        let mut entries = redis::pipe();
        for (vcon, refusal) in vcons.iter().zip(&refusals) {
            if refusal.is_none() {
                self.add_entry(&mut entries, vcon);
            }
        }
        if refusals.iter().any(Option::is_none) {
            for answer in round_trip(&mut self.lease, &entries)? {
                answer.extract_error()?;
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

/// How a document is kept whose key is new.
pub(super) fn kind_of_new(
    lease: &mut Lease,
    format: RedisFormat,
    sorted_set: &str,
) -> Result<Kind, QueueError> {
    let is_json = match format {
        RedisFormat::Plain => false,
        RedisFormat::Json => lease.has_json()?,
        RedisFormat::Auto => lease.has_json()? && keeps_json(lease, sorted_set)?,
    };
    Ok(if is_json { Kind::Json } else { Kind::Text })
}

/// Whether any of the newest vCons is kept as RedisJSON.
fn keeps_json(lease: &mut Lease, sorted_set: &str) -> Result<bool, QueueError> {
    let mut newest = redis::pipe();
    newest
        .cmd("ZREVRANGE")
        .arg(sorted_set)
        .arg(0)
        .arg(LOOKED_AT - 1);
    let mut answers = round_trip(lease, &newest)?;
    let answer = answers.pop().unwrap_or(Value::Nil);
    let keys = match answer.extract_error() {
        Ok(found) => redis::from_redis_value::<Vec<Vec<u8>>>(found)
            .map_err(|_| QueueError::Answer("asking for the newest vCons"))?,
        // What is no sorted set tells of no vCon.
        Err(error) if is_wrong_type(&error) => Vec::new(),
        // Nothing is guessed, or every vCon would be kept in the wrong way from here on.
        Err(error) => return Err(error.into()),
    };
    let types = types(lease, &keys)?;
    Ok(types.iter().any(|found| found == JSON))
}

/// What Redis calls that which stands under each of these keys.
fn types<K: redis::ToRedisArgs>(lease: &mut Lease, keys: &[K]) -> Result<Vec<String>, QueueError> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut steps = redis::pipe();
    for key in keys {
        steps.cmd("TYPE").arg(key);
    }
    let mut types = Vec::new();
    for answer in round_trip(lease, &steps)? {
        let answer = answer.extract_error()?;
        types.push(redis::from_redis_value(answer).map_err(redis::RedisError::from)?);
    }
    Ok(types)
}

/// Why Redis refused this document, where it did.
fn refusal(answer: Value) -> Result<Option<String>, QueueError> {
    match answer.extract_error().map_err(QueueError::of_write) {
        Ok(_) => Ok(None),
        Err(QueueError::Document(why)) => Ok(Some(why)),
        Err(error) => Err(error),
    }
}

const STORE: &str = concat!(
    include_str!("scripts/extend_ttl.lua"),
    include_str!("scripts/follower.lua"),
    include_str!("scripts/follower_submit.lua")
);
const AGAIN: &str = concat!(
    include_str!("scripts/extend_ttl.lua"),
    include_str!("scripts/follower.lua"),
    include_str!("scripts/follower_submit_existing.lua")
);
const REFUSE: &str = concat!(
    include_str!("scripts/reason_time.lua"),
    include_str!("scripts/follower.lua"),
    include_str!("scripts/follower_dead_letter.lua")
);
const LATER: &str = include_str!("scripts/follower_postpone.lua");
const TURN: &str = include_str!("scripts/follower_lease.lua");

/// How long it is known which document was pulled, and how often one could not be had.
const NOTES_EXPIRY: u64 = 604_800;

/// Access to what one follower has pulled.
pub struct Pulls {
    server: Server,
    connected: Option<Lease>,
    expiry: Expiry,
    instance: String,
    follower: String,
    ingress_list: ListName,
    sorted_set: String,
    format: RedisFormat,
}

/// A document to hand in.
#[derive(Debug, Clone, Copy)]
pub struct Pulled<'a> {
    /// The UUID it was fetched by.
    pub id: &'a VconId,
    /// The document.
    pub text: &'a str,
    /// Its digest.
    pub digest: &'a str,
    /// When the vCon was made, in seconds since 1970.
    pub created: i64,
}

/// The result of handing a vCon in, or of refusing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandedIn {
    /// It was done.
    Done,
    /// Another instance has done it.
    NotOurs,
    /// There is a document of that vCon; it stays as it is.
    There,
    /// The document that was there is gone.
    Gone,
    /// Nothing was changed: a key is not what it should be. Says which.
    Refused(String),
}

impl Pulls {
    /// What `follower` pulls onto `ingress_list`. Connects when first used.
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

    /// Takes the turn for `time`, or renews it; returns who has it, if another instance does.
    ///
    /// # Errors
    /// Redis takes no writes, among others: then nothing may be pulled.
    pub fn take_turn(&mut self, time: Duration) -> Result<Option<String>, QueueError> {
        let milliseconds = time.as_millis().max(1).to_string();
        let holder = self.turn(&milliseconds)?;
        Ok((holder != self.instance).then_some(holder))
    }

    /// Gives the turn up, for others to take it.
    pub fn give_up_turn(&mut self) -> Result<(), QueueError> {
        self.turn("0").map(drop)
    }

    fn turn(&mut self, time: &str) -> Result<String, QueueError> {
        let mut call = script(
            TURN,
            &[
                keys::follower_turn_key(&self.follower),
                keys::follower_key(&self.follower),
                keys::FOLLOWERS.to_owned(),
            ],
        );
        call.arg(&self.instance).arg(time).arg(&self.follower);
        let holder: Vec<u8> = self.with(|connection| Ok(call.query(connection)?))?;
        Ok(String::from_utf8_lossy(&holder).into_owned())
    }

    /// Keeps UUIDs whose documents are to be fetched. To keep one twice does no harm.
    pub fn note(&mut self, ids: &[VconId]) -> Result<(), QueueError> {
        let ids: Vec<&str> = ids.iter().map(VconId::as_str).collect();
        let mut push = redis::cmd("RPUSH");
        push.arg(keys::follower_key(&self.follower)).arg(ids);
        self.with(|connection| Ok(push.query::<()>(connection)?))
    }

    /// Up to `most` UUIDs whose documents are to be fetched, in their order, and how many there are
    /// in all. What is no UUID is dropped with a line in the log.
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

    /// Hands a vCon in, unless there is a document of it.
    ///
    /// # Errors
    /// [`QueueError::Document`] if Redis refuses the document.
    pub fn hand_in(&mut self, pulled: &Pulled<'_>) -> Result<HandedIn, QueueError> {
        let draft = keys::follower_draft_key(&self.instance, &self.follower);
        let mut call = script(
            STORE,
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
        call.arg(pulled.digest).arg(NOTES_EXPIRY);
        let (format, sorted_set) = (self.format, self.sorted_set.clone());
        self.with(|connection| {
            check_length(connection, pulled.text)?;
            let kind = kind_of_new(connection, format, &sorted_set)?;
            let request = replacing(&draft, kind, pulled.text, &call);
            let answer = watched(request.send(connection)?)?;
            handed_in(answer.unwrap_or(Value::Nil))
        })
    }

    /// Hands a vCon in with the document that is there.
    pub fn hand_in_again(&mut self, id: &VconId, digest: &str) -> Result<HandedIn, QueueError> {
        let mut call = script(
            AGAIN,
            &[
                keys::follower_key(&self.follower),
                keys::follower_tries_key(&self.follower),
                id.key(),
                self.ingress_list.as_str().to_owned(),
                keys::pulled_key(id),
            ],
        );
        call.arg(id.as_str()).arg(digest).arg(NOTES_EXPIRY);
        call.arg(self.expiry.document);
        self.with(|connection| handed_in(call.query(connection)?))
    }

    /// Moves a UUID to the dead letter queue of the ingress list.
    pub fn refuse(&mut self, id: &VconId, reason: &Reason<'_>) -> Result<HandedIn, QueueError> {
        let mut call = script(
            REFUSE,
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
        self.with(|connection| handed_in(call.query(connection)?))
    }

    /// Puts a UUID whose document could not be fetched behind the others. Returns how many of these
    /// tries have counted.
    pub fn put_off(&mut self, id: &VconId, counts: bool) -> Result<u32, QueueError> {
        let mut call = script(
            LATER,
            &[
                keys::follower_key(&self.follower),
                keys::follower_tries_key(&self.follower),
            ],
        );
        call.arg(id.as_str()).arg(u8::from(counts));
        call.arg(NOTES_EXPIRY);
        self.with(|connection| Ok(call.query(connection)?))
    }

    /// What stands under the vCon's key, and the digest of what was last pulled of it.
    pub fn document(&mut self, id: &VconId) -> Result<(Document, Option<String>), QueueError> {
        self.with(|connection| {
            let kept = Kept::read(connection, id)?;
            let mut get = redis::cmd("GET");
            get.arg(keys::pulled_key(id));
            let digest: Option<Vec<u8>> = get.query(connection)?;
            let digest = digest.and_then(|digest| String::from_utf8(digest).ok());
            Ok((kept.document, digest))
        })
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Lease) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let mut connection = match self.connected.take() {
            Some(connection) => connection,
            None => connect(&self.server, &self.instance)?,
        };
        let result = work(&mut connection);
        // An answer may still be on its way.
        if !matches!(&result, Err(error) if error.breaks_connection()) {
            self.connected = Some(connection);
        }
        result
    }
}

/// How many UUIDs wait for followers that are none of these, with the names of those followers.
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

fn connect(server: &Server, instance: &str) -> Result<Lease, QueueError> {
    Ok(server.connect(&keys::client_name(instance, "follower"))?)
}

/// The call of a script. Followers run few, so the text is sent each time: that needs no `SCRIPT`.
fn script(text: &str, keys: &[String]) -> Cmd {
    let mut call = redis::cmd("EVAL");
    call.arg(text).arg(keys.len()).arg(keys);
    call
}

fn handed_in(answer: Value) -> Result<HandedIn, QueueError> {
    let unknown = QueueError::Answer("handing in a pulled vCon");
    match answer {
        Value::Int(1) => Ok(HandedIn::Done),
        Value::Int(0) => Ok(HandedIn::NotOurs),
        answer => {
            let words: Vec<String> = redis::from_redis_value(answer).unwrap_or_default();
            match (words.first().map(String::as_str), words.get(1)) {
                (Some("there"), _) => Ok(HandedIn::There),
                (Some("gone"), _) => Ok(HandedIn::Gone),
                (Some("refused"), Some(why)) => Ok(HandedIn::Refused(why.clone())),
                _ => Err(unknown),
            }
        }
    }
}
