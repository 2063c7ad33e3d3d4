//! What wakes an idle lane: tokens in its instance's wake list.
//!
//! `BLPOP` on an ingress list would take the entry out of Redis before anyone holds a claim on it: a worker
//! that is killed, or a connection that is cut, between the server's reply and the next command would lose
//! the vCon. So an idle lane blocks in `BLPOP` on the *wake list* of its instance, which holds tokens, and
//! then claims. A token that is lost, or one too many, costs time and never a vCon.
//!
//! ```text
//! ingress lists ──changed──► monitor ──one token for each entry──► wake list ──BLPOP──► idle lane ──► claim
//! ```
//!
//! The monitor learns of changes by server-assisted client-side caching (`CLIENT TRACKING`,
//! <https://redis.io/docs/latest/develop/reference/client-side-caching/>): reading the length of a list
//! arms it, and the server names the list at its next change. The monitor reads only lists that have
//! changed, so a push costs the same for any number of lists.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use redis::{Cmd, PushKind, Value};

use super::requests::{Script, is_missing, round_trip};
use super::{NameLease, Queue, QueueError, RedisConnection, Server, is_wrong_type, keys};
use crate::config::ListName;

/// How many tokens one look puts into the list at most. The lanes that take them change the ingress lists,
/// which leads to the next look.
const MOST_TOKENS: u64 = 512;

/// How many lists the script of a look reads at most. On a tracking connection, Redis 7.0 records all keys
/// of a script again at each command that reads: 250 ms for 1,000 lists.
const FEW: usize = 8;

/// How many of the other lists one round trip of plain commands reads: the server serves others in between.
const AT_ONCE: usize = 256;

/// How often all lists are read, whether or not they have changed: the server announces no changes of lists
/// that the user had no right to read.
const ALL_AGAIN: Duration = Duration::from_secs(30);

/// How the wait of an idle lane ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// A token came, or the time was over.
    Woken,
    /// The server refused to let the lane wait. Says why.
    Refused(String),
}

/// What a look at the ingress lists found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// How many entries wait in the lists.
    pub waiting: u64,
    /// Whether lanes had left tokens from the look before: all lanes are busy.
    pub has_tokens_left: bool,
}

/// Watches the ingress lists, and wakes idle lanes for the entries that wait there.
pub struct IngressWatcher {
    connected: RedisConnection,
    script: Script,
    lease: NameLease,
    /// Whether the server announces changes.
    is_tracking: bool,
    /// When all lists were read last.
    all_read: Instant,
    known: KnownLengths,
}

/// The lengths of the lists as they were read last.
#[derive(Default)]
struct KnownLengths {
    lists: Vec<ListName>,
    /// The index of each list in `lists`.
    indexes: HashMap<String, usize>,
    /// The length of each list, by index.
    lengths: Vec<u64>,
    /// The sum of the lengths.
    waiting: u64,
    /// The indexes of the lists that may have changed since.
    changed: BTreeSet<usize>,
}

impl KnownLengths {
    fn of(lists: &[ListName]) -> Self {
        let mut this = Self::default();
        for list in lists {
            // A list that is named twice counts once.
            if this.indexes.contains_key(list.as_str()) {
                continue;
            }
            this.indexes
                .insert(list.as_str().to_owned(), this.lists.len());
            this.lists.push(list.clone());
        }
        this.lengths = vec![0; this.lists.len()];
        this.mark_all();
        this
    }

    /// Marks all lists as changed.
    fn mark_all(&mut self) {
        self.changed = (0..self.lists.len()).collect();
    }

    /// Sets the length of a list. Changes that the server announced before are older.
    fn set_length(&mut self, index: usize, length: u64) {
        if let Some(known) = self.lengths.get_mut(index) {
            self.waiting = self.waiting - *known + length;
            *known = length;
        }
        self.changed.remove(&index);
    }

    /// Marks the lists as changed that the server names in a push message.
    fn on_push(&mut self, kind: &PushKind, data: &[Value]) {
        if *kind != PushKind::Invalidate {
            return;
        }
        for names in data {
            match names {
                Value::Array(names) => {
                    for name in names {
                        let Value::BulkString(name) = name else {
                            continue;
                        };
                        let name = std::str::from_utf8(name).ok();
                        let index = name.and_then(|name| self.indexes.get(name));
                        self.changed.extend(index);
                    }
                }
                // The database was emptied.
                _ => self.mark_all(),
            }
        }
    }
}

impl IngressWatcher {
    /// A watcher that can only look. `name` identifies its connection among those of the instance. Neither
    /// connecting nor a reply may take longer than `limit`.
    pub fn connect(
        server: &Server,
        name: &str,
        lease: NameLease,
        limit: Duration,
    ) -> Result<Self, QueueError> {
        let name = keys::client_name(&lease.instance, name);
        Ok(Self {
            connected: server.connect_for(&name, limit)?,
            script: Script::new(include_str!("scripts/wake_tokens.lua")),
            lease,
            is_tracking: false,
            all_read: Instant::now(),
            known: KnownLengths::default(),
        })
    }

    /// A watcher that can also wait for a change; `server` must come from [`Server::with_pushes`]. A wait
    /// may not take longer than `limit` either.
    pub fn tracking(
        server: &Server,
        name: &str,
        lease: NameLease,
        limit: Duration,
    ) -> Result<Self, QueueError> {
        let mut this = Self::connect(server, name, lease, limit)?;
        redis::cmd("CLIENT")
            .arg(&["TRACKING", "ON"])
            .query::<()>(&mut *this.connected)?;
        this.is_tracking = true;
        Ok(this)
    }

    /// Sets the lists to watch.
    pub fn watch(&mut self, lists: &[ListName]) {
        self.known = KnownLengths::of(lists);
    }

    /// Looks at the lists, and puts one token into the wake list for each entry in them, at most one for each
    /// of `lanes`. If the server announces changes, reads only lists that have changed since the last look,
    /// and now and then all. Must not be used again after an error.
    pub fn look(&mut self, lanes: u64) -> Result<Watched, QueueError> {
        if !self.is_tracking || self.all_read.elapsed() >= ALL_AGAIN {
            self.all_read = Instant::now();
            self.known.mark_all();
        }
        let changed: Vec<usize> = self.known.changed.iter().copied().collect();
        let (few, many) = if changed.len() > FEW {
            (&[][..], &changed[..])
        } else {
            (&changed[..], &[][..])
        };
        for indexes in many.chunks(AT_ONCE) {
            self.read(indexes)?;
        }
        self.set_tokens(few, lanes)
    }

    /// Waits for a change of the lists, or of the lease on the instance's name. The lease is renewed all the
    /// time, so a server that announces nothing is unavailable. Must not be used again after an error.
    pub fn wait(&mut self) -> Result<(), QueueError> {
        if !self.known.changed.is_empty() {
            return Ok(());
        }
        match self.connected.recv_response()? {
            Value::Push { kind, data } => {
                self.known.on_push(&kind, &data);
                Ok(())
            }
            _ => Err(QueueError::UnexpectedReply("nothing")),
        }
    }

    /// Reads the lengths of these lists.
    fn read(&mut self, indexes: &[usize]) -> Result<(), QueueError> {
        let mut asked = Vec::new();
        for list in indexes
            .iter()
            .filter_map(|index| self.known.lists.get(*index))
        {
            let mut length = redis::cmd("LLEN");
            asked.extend(length.arg(list.as_str()).get_packed_command());
        }
        self.connected.send_packed_command(&asked)?;
        for index in indexes {
            let length = length(self.reply()?)?;
            self.known.set_length(*index, length);
        }
        Ok(())
    }

    /// Sets the number of tokens. Reads the lengths of a few lists in the same step.
    fn set_tokens(&mut self, indexes: &[usize], lanes: u64) -> Result<Watched, QueueError> {
        let instance = &self.lease.instance;
        let mut call = self.script.key(keys::instance_key(instance));
        let mut others = self.known.waiting;
        for index in indexes {
            call.key(self.known.lists[*index].as_str());
            others -= self.known.lengths[*index];
        }
        call.arg(&self.lease.record).arg(lanes.min(MOST_TOKENS));
        call.arg(keys::wake_key(instance)).arg(others);
        let (by_hash, in_full) = (call.by_hash(), call.in_full());
        let reply = match self.ask(&by_hash)?.extract_error() {
            Err(error) if is_missing(&error) => self.ask(&in_full)?.extract_error()?,
            reply => reply?,
        };
        let Value::Array(replies) = reply else {
            return Err(QueueError::UnexpectedReply("a look"));
        };
        let mut replies = replies.into_iter();
        let left = replies
            .next()
            .ok_or(QueueError::UnexpectedReply("a look"))?;
        for (index, reply) in indexes.iter().zip(replies) {
            self.known.set_length(*index, length(reply)?);
        }
        Ok(Watched {
            waiting: self.known.waiting,
            has_tokens_left: length(left)? > 0,
        })
    }

    fn ask(&mut self, command: &Cmd) -> Result<Value, QueueError> {
        self.connected
            .send_packed_command(&command.get_packed_command())?;
        self.reply()
    }

    /// The next reply. Reads the push messages that come before it.
    fn reply(&mut self) -> Result<Value, QueueError> {
        loop {
            match self.connected.recv_response()? {
                Value::Push { kind, data } => self.known.on_push(&kind, &data),
                reply => return Ok(reply),
            }
        }
    }
}

/// The length in a reply. Nothing waits in a key that holds another type, or that the user may not read.
///
/// # Errors
/// Any other error: it says nothing about the list.
fn length(reply: Value) -> Result<u64, QueueError> {
    match reply.extract_error() {
        Ok(Value::Int(length)) => Ok(u64::try_from(length).unwrap_or(0)),
        Ok(_) => Err(QueueError::UnexpectedReply("a look")),
        Err(error) if is_wrong_type(&error) || error.code() == Some("NOPERM") => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Ends the waits of certain lanes: at a drain, or when a hold ends.
pub struct LaneWaker {
    server: Server,
    key: String,
    connected: Option<RedisConnection>,
}

impl LaneWaker {
    /// How long connecting, or one reply, may take.
    const LIMIT: Duration = Duration::from_secs(1);

    /// A waker for the lanes of an instance. Connects when first used.
    pub fn new(server: Server, instance: &str) -> Self {
        Self {
            server,
            key: keys::wake_key(instance),
            connected: None,
        }
    }

    /// Ends the waits of the lanes with these client ids. Puts a token into the wake list for each lane whose
    /// id is unknown (0), or that the user has no right to unblock; another lane may take it.
    pub fn wake(&mut self, clients: &[i64]) -> Result<(), QueueError> {
        let mut connected = match self.connected.take() {
            Some(connected) => connected,
            None => self.server.connect_for("conserver:waker", Self::LIMIT)?,
        };
        let mut unblock = redis::pipe();
        let known: Vec<&i64> = clients.iter().filter(|client| **client != 0).collect();
        for client in &known {
            unblock.cmd("CLIENT").arg("UNBLOCK").arg(**client);
        }
        let replies = round_trip(&mut connected, &unblock)?;
        let refused = replies
            .iter()
            .filter(|it| matches!(it, Value::ServerError(_)));
        let tokens = vec![""; clients.len() - known.len() + refused.count()];
        if !tokens.is_empty() {
            redis::cmd("RPUSH")
                .arg(&self.key)
                .arg(tokens)
                .query::<()>(&mut *connected)?;
        }
        self.connected = Some(connected);
        Ok(())
    }
}

impl Queue {
    /// The client id of this connection; 0 if the server does not tell.
    pub fn client_id(&mut self) -> Result<i64, QueueError> {
        self.connect()?;
        let Some(connected) = self.connected.as_mut() else {
            return Err(QueueError::Closed);
        };
        let id = connected.client_id();
        id.map_err(|error| self.on_error(error.into()))
    }

    /// Waits for a token, for at most `time`.
    ///
    /// # Errors
    /// The connection cannot be used any more.
    pub fn wait_for_token(&mut self, time: Duration) -> Result<Waited, QueueError> {
        let key = keys::wake_key(&self.lane_id.instance);
        let waited = self.with(|connection, _, _, _| {
            let popped = redis::cmd("BLPOP")
                .arg(key)
                .arg(seconds(time))
                .query::<Value>(connection);
            Ok(popped?)
        });
        match waited {
            Ok(_) => Ok(Waited::Woken),
            // `CLIENT UNBLOCK`, or the server is no longer the master.
            Err(QueueError::Command(error)) if error.code() == Some("UNBLOCKED") => {
                Ok(Waited::Woken)
            }
            Err(error) if error.breaks_connection() => Err(error),
            Err(error) => Ok(Waited::Refused(error.to_string())),
        }
    }
}

/// A time for `BLPOP`, which takes only whole seconds before Redis 6.
fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{:.3}", time.as_secs_f64().max(0.001)),
        whole => whole.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn known(lists: &[&str]) -> KnownLengths {
        let lists: Vec<ListName> = lists.iter().map(|it| it.parse().unwrap()).collect();
        KnownLengths::of(&lists)
    }

    fn announce(known: &mut KnownLengths, names: &[&str]) {
        let names = names.iter().map(|name| Value::BulkString((*name).into()));
        known.on_push(&PushKind::Invalidate, &[Value::Array(names.collect())]);
    }

    #[test]
    fn only_lists_that_have_changed_are_read_again() {
        let mut known = known(&["a", "b", "a", "c"]);
        let changed = |known: &KnownLengths| known.changed.iter().copied().collect::<Vec<_>>();
        assert_eq!(changed(&known), [0, 1, 2]);
        // Older than what is read next.
        announce(&mut known, &["a"]);
        for (index, length) in [(0, 3), (1, 0), (2, 4)] {
            known.set_length(index, length);
        }
        assert_eq!((known.waiting, changed(&known)), (7, vec![]));
        announce(&mut known, &["conserver:instance:here", "c", "no longer"]);
        assert_eq!(changed(&known), [2]);
        known.set_length(2, 1);
        assert_eq!((known.waiting, changed(&known)), (4, vec![]));
        known.on_push(&PushKind::Message, &[Value::Nil]);
        assert_eq!(changed(&known), Vec::<usize>::new());
        // As after `FLUSHALL`.
        known.on_push(&PushKind::Invalidate, &[Value::Nil]);
        assert_eq!(changed(&known), [0, 1, 2]);
    }

    #[test]
    fn only_a_key_of_another_type_or_without_rights_counts_as_empty() {
        let answered = |line: &str| {
            let value = redis::parse_redis_value(format!("{line}\r\n").as_bytes());
            length(value.unwrap()).map_err(|error| error.to_string())
        };
        for (line, expected) in [
            (":0", 0),
            (":12", 12),
            (
                "-WRONGTYPE Operation against a key holding the wrong kind of value",
                0,
            ),
            ("-NOPERM No permissions to access a key", 0),
        ] {
            assert_eq!(answered(line), Ok(expected), "{line}");
        }
        for line in [
            "-BUSY Redis is busy running a script. You can only call SCRIPT KILL",
            "-LOADING Redis is loading the dataset in memory",
            "-MASTERDOWN Link with MASTER is down",
            "-NOAUTH Authentication required.",
            "-ERR max number of clients reached",
        ] {
            assert_eq!(answered(line), Err(format!("Redis: {}", &line[1..])));
        }
        assert!(answered("+OK").is_err());
    }

    #[test]
    fn a_time_of_a_second_or_more_is_rounded_to_whole_seconds() {
        for (ms, expected) in [
            (0, "0.001"),
            (1, "0.001"),
            (100, "0.100"),
            (999, "0.999"),
            (1000, "1"),
            (2500, "2"),
            (20_000, "20"),
        ] {
            // 0 would mean no limit.
            assert_eq!(seconds(Duration::from_millis(ms)), expected);
        }
    }
}
