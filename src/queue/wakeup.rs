//! Waking idle lanes without taking work.
//!
//! `BLPOP` on an ingress list takes the entry out of Redis before anyone holds a claim on it: a
//! worker killed, or a connection cut, between the server's answer and the next command loses the
//! vCon. So an idle lane blocks in `BLPOP` on its instance's *wake list*, in which there are
//! tokens, and then claims. A token is worth nothing: one that is lost, or one too many, costs
//! time and never a vCon.
//!
//! ```text
//! ingress lists ──changed──► monitor ──one token for each entry──► wake list ──BLPOP──► idle lane ──► claim
//! ```
//!
//! The monitor learns of changes by server-assisted client-side caching (`CLIENT TRACKING`,
//! <https://redis.io/docs/latest/develop/reference/client-side-caching/>): reading the length of a
//! list arms it, and the server names the list when it changes next. Only lists that have changed are
//! read again, so a push costs the same however many lists there are.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use redis::{Cmd, PushKind, Value};

use super::requests::{Script, is_missing, round_trip};
use super::{Lease, NameLease, Queue, QueueError, Server, is_wrong_type, keys};
use crate::config::ListName;

/// So many tokens are put into the list at one look. Those that take them change the ingress
/// lists, which leads to the next look.
const MOST_TOKENS: u64 = 512;

/// The script of a look reads at most this many lists. Redis 7.0 remembers all keys of a script anew at
/// each command of it that reads, if the connection tracks: 250 ms for 1,000 lists.
const FEW: usize = 8;

/// All other lists are read by plain commands, this many in one round trip: the server serves others in
/// between.
const AT_ONCE: usize = 256;

/// How often all lists are read, also those of which no change was told: the server tells of none that we
/// had no right to read.
const ALL_AGAIN: Duration = Duration::from_secs(30);

/// How a lane's wait has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// By a token, or the time was over.
    Woken,
    /// The server did not let it wait; says why.
    Refused(String),
}

/// What a look at the ingress lists has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// How many entries wait in them.
    pub waiting: u64,
    /// Whether there were tokens left that no lane has taken: all are at work.
    pub has_tokens_left: bool,
}

/// Looks at the ingress lists, and has idle lanes woken for what waits there.
pub struct Lookout {
    connected: Lease,
    script: Script,
    lease: NameLease,
    /// Whether the server tells of changes.
    is_told: bool,
    /// When all lists were last to be read.
    all: Instant,
    seen: Seen,
}

/// What is known of the lists.
#[derive(Default)]
struct Seen {
    lists: Vec<ListName>,
    /// The place of each list among them.
    places: HashMap<String, usize>,
    /// The length of each list at the last look at it.
    lengths: Vec<u64>,
    /// Of all of them together.
    waiting: u64,
    /// The places of the lists that may have changed since.
    changed: BTreeSet<usize>,
}

impl Seen {
    fn of(lists: &[ListName]) -> Self {
        let mut this = Self::default();
        for list in lists {
            // A list counts once.
            if this.places.contains_key(list.as_str()) {
                continue;
            }
            this.places
                .insert(list.as_str().to_owned(), this.lists.len());
            this.lists.push(list.clone());
        }
        this.lengths = vec![0; this.lists.len()];
        this.note_all();
        this
    }

    /// Any of them may have changed.
    fn note_all(&mut self) {
        self.changed = (0..self.lists.len()).collect();
    }

    /// This one is so long now. What was told of it before is older.
    fn note_length(&mut self, place: usize, length: u64) {
        if let Some(known) = self.lengths.get_mut(place) {
            self.waiting = self.waiting - *known + length;
            *known = length;
        }
        self.changed.remove(&place);
    }

    /// What the server has told unasked.
    fn note_push(&mut self, kind: &PushKind, data: &[Value]) {
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
                        let place = name.and_then(|name| self.places.get(name));
                        self.changed.extend(place);
                    }
                }
                // The database was emptied.
                _ => self.note_all(),
            }
        }
    }
}

impl Lookout {
    /// One that can only look; `name` tells it from the other connections of the instance. Neither
    /// connecting nor an answer may take longer than `limit`.
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
            is_told: false,
            all: Instant::now(),
            seen: Seen::default(),
        })
    }

    /// One that can also wait for a change; `server` must be one [`Server::with_pushes`]. The wait
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
        this.is_told = true;
        Ok(this)
    }

    /// Looks at these lists from now on.
    pub fn watch(&mut self, lists: &[ListName]) {
        self.seen = Seen::of(lists);
    }

    /// Looks at the lists, and puts as many tokens into the wake list as there are entries in
    /// them, but not more than `lanes`. If the server tells of changes, this looks only at lists
    /// that have changed since the last look, and now and then at all. After an error this lookout is not to be used again.
    pub fn look(&mut self, lanes: u64) -> Result<Watched, QueueError> {
        if !self.is_told || self.all.elapsed() >= ALL_AGAIN {
            self.all = Instant::now();
            self.seen.note_all();
        }
        let changed: Vec<usize> = self.seen.changed.iter().copied().collect();
        let (few, many) = if changed.len() > FEW {
            (&[][..], &changed[..])
        } else {
            (&changed[..], &[][..])
        };
        for places in many.chunks(AT_ONCE) {
            self.read(places)?;
        }
        self.set_tokens(few, lanes)
    }

    /// Waits for a change of what was looked at last, or of the lease on the instance's name: as
    /// this is renewed all the time, a server that tells of nothing is not heard any more. After
    /// an error this lookout is not to be used again.
    pub fn wait(&mut self) -> Result<(), QueueError> {
        if !self.seen.changed.is_empty() {
            return Ok(());
        }
        match self.connected.recv_response()? {
            Value::Push { kind, data } => {
                self.seen.note_push(&kind, &data);
                Ok(())
            }
            _ => Err(QueueError::Answer("nothing")),
        }
    }

    /// Reads the lengths of these lists.
    fn read(&mut self, places: &[usize]) -> Result<(), QueueError> {
        let mut asked = Vec::new();
        for list in places
            .iter()
            .filter_map(|place| self.seen.lists.get(*place))
        {
            let mut length = redis::cmd("LLEN");
            asked.extend(length.arg(list.as_str()).get_packed_command());
        }
        self.connected.send_packed_command(&asked)?;
        for place in places {
            let length = length(self.answer()?)?;
            self.seen.note_length(*place, length);
        }
        Ok(())
    }

    /// Sets the tokens; reads the lengths of a few lists in the same step.
    fn set_tokens(&mut self, places: &[usize], lanes: u64) -> Result<Watched, QueueError> {
        let instance = &self.lease.instance;
        let mut call = self.script.key(keys::instance_key(instance));
        let mut others = self.seen.waiting;
        for place in places {
            call.key(self.seen.lists[*place].as_str());
            others -= self.seen.lengths[*place];
        }
        call.arg(&self.lease.record).arg(lanes.min(MOST_TOKENS));
        call.arg(keys::wake_key(instance)).arg(others);
        let (by_hash, in_full) = (call.by_hash(), call.in_full());
        let answer = match self.ask(&by_hash)?.extract_error() {
            Err(error) if is_missing(&error) => self.ask(&in_full)?.extract_error()?,
            answer => answer?,
        };
        let Value::Array(answers) = answer else {
            return Err(QueueError::Answer("a look"));
        };
        let mut answers = answers.into_iter();
        let left = answers.next().ok_or(QueueError::Answer("a look"))?;
        for (place, answer) in places.iter().zip(answers) {
            self.seen.note_length(*place, length(answer)?);
        }
        Ok(Watched {
            waiting: self.seen.waiting,
            has_tokens_left: length(left)? > 0,
        })
    }

    fn ask(&mut self, command: &Cmd) -> Result<Value, QueueError> {
        self.connected
            .send_packed_command(&command.get_packed_command())?;
        self.answer()
    }

    /// The next answer; notes what the server tells before it.
    fn answer(&mut self) -> Result<Value, QueueError> {
        loop {
            match self.connected.recv_response()? {
                Value::Push { kind, data } => self.seen.note_push(&kind, &data),
                answer => return Ok(answer),
            }
        }
    }
}

/// A length; nothing waits in what is no list, or may not be read. Any other error says nothing of the list.
fn length(answer: Value) -> Result<u64, QueueError> {
    match answer.extract_error() {
        Ok(Value::Int(length)) => Ok(u64::try_from(length).unwrap_or(0)),
        Ok(_) => Err(QueueError::Answer("a look")),
        Err(error) if is_wrong_type(&error) || error.code() == Some("NOPERM") => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Ends the waits of lanes.
pub struct Waker {
    server: Server,
    key: String,
    connected: Option<Lease>,
}

impl Waker {
    /// How long connecting, or one answer, may take.
    const LIMIT: Duration = Duration::from_secs(1);

    /// One for the lanes of an instance; connects when first used.
    pub fn new(server: Server, instance: &str) -> Self {
        Self {
            server,
            key: keys::wake_key(instance),
            connected: None,
        }
    }

    /// Ends the waits of these lanes, by what the server calls their connections. For each that is
    /// not known, or not for us to end, there is a token instead: another lane may take it.
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
        let answers = round_trip(&mut connected, &unblock)?;
        let refused = answers
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
    /// What the server calls this connection; 0 if it does not tell.
    pub fn client_id(&mut self) -> Result<i64, QueueError> {
        self.connect()?;
        let Some(connected) = self.connected.as_mut() else {
            return Err(QueueError::Closed);
        };
        let id = connected.client_id();
        id.map_err(|error| self.noting(error.into()))
    }

    /// Waits for a token, and for `time` at the longest.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub fn wait_for_token(&mut self, time: Duration) -> Result<Waited, QueueError> {
        let key = keys::wake_key(&self.seat.instance);
        let waited = self.with(|connection, _, _, _| {
            let popped = redis::cmd("BLPOP")
                .arg(key)
                .arg(seconds(time))
                .query::<Value>(connection);
            Ok(popped?)
        });
        match waited {
            Ok(_) => Ok(Waited::Woken),
            // By somebody else, or because the server is no master any more.
            Err(QueueError::Command(error)) if error.code() == Some("UNBLOCKED") => {
                Ok(Waited::Woken)
            }
            Err(error) if error.breaks_connection() => Err(error),
            Err(error) => Ok(Waited::Refused(error.to_string())),
        }
    }
}

/// A time as `BLPOP` takes it: before Redis 6 in whole seconds only.
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

    fn seen(lists: &[&str]) -> Seen {
        let lists: Vec<ListName> = lists.iter().map(|it| it.parse().unwrap()).collect();
        Seen::of(&lists)
    }

    fn told(seen: &mut Seen, names: &[&str]) {
        let names = names.iter().map(|name| Value::BulkString((*name).into()));
        seen.note_push(&PushKind::Invalidate, &[Value::Array(names.collect())]);
    }

    #[test]
    fn only_what_has_changed_is_looked_at_again() {
        let mut seen = seen(&["a", "b", "a", "c"]);
        let changed = |seen: &Seen| seen.changed.iter().copied().collect::<Vec<_>>();
        assert_eq!(changed(&seen), [0, 1, 2]);
        // It is older than what is read then.
        told(&mut seen, &["a"]);
        for (place, length) in [(0, 3), (1, 0), (2, 4)] {
            seen.note_length(place, length);
        }
        assert_eq!((seen.waiting, changed(&seen)), (7, vec![]));
        told(&mut seen, &["conserver:instance:here", "c", "no longer"]);
        assert_eq!(changed(&seen), [2]);
        seen.note_length(2, 1);
        assert_eq!((seen.waiting, changed(&seen)), (4, vec![]));
        seen.note_push(&PushKind::Message, &[Value::Nil]);
        assert_eq!(changed(&seen), Vec::<usize>::new());
        // As after `FLUSHALL`.
        seen.note_push(&PushKind::Invalidate, &[Value::Nil]);
        assert_eq!(changed(&seen), [0, 1, 2]);
    }

    #[test]
    fn only_what_is_no_list_or_may_not_be_read_counts_as_empty() {
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
    fn a_time_of_a_second_or_more_is_told_in_whole_seconds() {
        for (ms, expected) in [
            (0, "0.001"),
            (1, "0.001"),
            (100, "0.100"),
            (999, "0.999"),
            (1000, "1"),
            (2500, "2"),
            (20_000, "20"),
        ] {
            // 0 would be without end.
            assert_eq!(seconds(Duration::from_millis(ms)), expected);
        }
    }
}
