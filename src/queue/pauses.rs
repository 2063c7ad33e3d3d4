//! What operators have paused: ingress lists and chains for which no lane of any instance claims.
//!
//! ```text
//! conserver pause ──► conserver:paused ◄──look── monitor of each instance ──► its lanes, by the scoreboard
//!     ▲                                              │ as soon as no request that follows older pauses is on its way
//!     └──waits── conserver:paused:confirmed ◄────────┘
//! ```
//!
//! A pause has the time at which it was set, so a confirmation of an earlier pause of the same list does not count
//! for a later one. Anybody may write to these keys: a field that names nothing is left out, and one whose value
//! cannot be read pauses all the same.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::{Queue, QueueError, RedisConnection, Server, keys};
use crate::config::{Chain, ListName};
use crate::redis_server::Connection;
use crate::runtime_dir;

/// The most characters that are kept of who paused something, and of the time.
const LONGEST_BY: usize = 200;
const LONGEST_SINCE: usize = 40;

/// What can be paused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PauseTarget {
    /// An ingress list, or the queue of a storage that defers.
    List(ListName),
    /// All ingress lists of a chain.
    Chain(String),
}

impl PauseTarget {
    /// `list` or `chain`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::List(_) => "list",
            Self::Chain(_) => "chain",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::List(list) => list.as_str(),
            Self::Chain(chain) => chain,
        }
    }

    /// Reads a field of the hash.
    fn parse(field: &str) -> Option<Self> {
        match field.split_once(' ')? {
            ("list", name) => name.parse().ok().map(Self::List),
            ("chain", name) if !name.is_empty() => Some(Self::Chain(name.to_owned())),
            _ => None,
        }
    }
}

/// The field of the hash: `list default`.
impl fmt::Display for PauseTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

/// Since when something has been paused, and by whom; each is empty if that is not known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PauseRecord {
    /// The time, as in RFC 3339, to the microsecond: no two pauses of one target have the same.
    #[serde(default)]
    pub since: String,
    /// `user@host`
    #[serde(default)]
    pub by: String,
}

impl PauseRecord {
    fn read(value: &[u8]) -> Self {
        let Self { since, by } = serde_json::from_slice(value).unwrap_or_default();
        let cut = |text: String, most: usize| text.chars().take(most).collect();
        Self {
            since: cut(since, LONGEST_SINCE),
            by: cut(by, LONGEST_BY),
        }
    }
}

/// Everything that is paused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(
    from = "BTreeMap<String, PauseRecord>",
    into = "BTreeMap<String, PauseRecord>"
)]
pub struct Pauses(BTreeMap<PauseTarget, PauseRecord>);

impl From<BTreeMap<String, PauseRecord>> for Pauses {
    fn from(fields: BTreeMap<String, PauseRecord>) -> Self {
        let fields = fields.into_iter();
        Self(
            fields
                .filter_map(|(field, record)| Some((PauseTarget::parse(&field)?, record)))
                .collect(),
        )
    }
}

impl From<Pauses> for BTreeMap<String, PauseRecord> {
    fn from(pauses: Pauses) -> Self {
        let pauses = pauses.0.into_iter();
        pauses
            .map(|(target, record)| (target.to_string(), record))
            .collect()
    }
}

impl Pauses {
    /// Reads those in force from the file beside a scoreboard, where the monitor keeps them.
    ///
    /// # Errors
    /// It cannot be read, or was not written by a monitor.
    pub fn load(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        runtime_dir::open(path, OpenOptions::new().read(true))?.read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Those in a hash of Redis.
    fn of_fields(fields: &HashMap<Vec<u8>, Vec<u8>>) -> Self {
        let read = |(field, value): (&Vec<u8>, &Vec<u8>)| {
            let target = PauseTarget::parse(std::str::from_utf8(field).ok()?)?;
            Some((target, PauseRecord::read(value)))
        };
        Self(fields.iter().filter_map(read).collect())
    }

    /// Each target with its record.
    pub fn iter(&self) -> impl Iterator<Item = (&PauseTarget, &PauseRecord)> {
        self.0.iter()
    }

    /// The record of a target, if it is paused.
    pub fn get(&self, target: &PauseTarget) -> Option<&PauseRecord> {
        self.0.get(target)
    }

    /// Whether nothing is paused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether nothing may be claimed from this list, one of a chain or the queue of a storage.
    pub fn hold(&self, list: &ListName, chains: &[Chain]) -> bool {
        let is_held = |target: &PauseTarget| match target {
            PauseTarget::List(paused) => paused == list,
            PauseTarget::Chain(name) => chains.iter().any(|chain| {
                chain.enabled && chain.name == *name && chain.ingress_lists.contains(list)
            }),
        };
        self.0.keys().any(is_held)
    }
}

#[cfg(test)]
impl<const N: usize> From<[PauseTarget; N]> for Pauses {
    fn from(targets: [PauseTarget; N]) -> Self {
        let targets = targets.into_iter();
        Self(
            targets
                .map(|target| (target, PauseRecord::default()))
                .collect(),
        )
    }
}

/// What an instance has in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmation {
    /// The instance, which is alive.
    pub instance: String,
    /// The pauses that all its lanes follow; `None` if it has not confirmed any.
    pub pauses: Option<Pauses>,
}

/// The pauses in Redis.
pub struct PauseTable {
    server: Server,
    limit: Duration,
    connected: Option<RedisConnection>,
}

impl PauseTable {
    /// Connects when first used. Neither connecting nor a reply may take longer than `limit`.
    pub fn new(server: Server, limit: Duration) -> Self {
        Self {
            server,
            limit,
            connected: None,
        }
    }

    /// Everything that is paused.
    ///
    /// # Errors
    /// Redis is unavailable, or the key is of another type or may not be read: see [`is_of_the_key`].
    pub fn all(&mut self) -> Result<Pauses, QueueError> {
        self.with(read)
    }

    /// Pauses, for `by`. Returns false if it was paused before: the earlier pause stays.
    pub fn pause(&mut self, target: &PauseTarget, by: &str) -> Result<bool, QueueError> {
        let record = PauseRecord {
            since: Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true),
            by: by.chars().take(LONGEST_BY).collect(),
        };
        // Text is always JSON.
        let value = serde_json::to_string(&record).unwrap_or_default();
        self.with(|connection| {
            let field = target.to_string();
            let known: bool = redis::cmd("HEXISTS")
                .arg(keys::PAUSED)
                .arg(&field)
                .query(connection)?;
            if !known {
                // Of two operators at the same instant, the later one is named.
                let mut set = redis::cmd("HSET");
                set.arg(keys::PAUSED).arg(field).arg(value);
                set.query::<()>(connection)?;
            }
            Ok(!known)
        })
    }

    /// Ends a pause. Returns false if there was none.
    pub fn resume(&mut self, target: &PauseTarget) -> Result<bool, QueueError> {
        self.with(|connection| {
            let mut delete = redis::cmd("HDEL");
            delete.arg(keys::PAUSED).arg(target.to_string());
            Ok(delete.query(connection)?)
        })
    }

    /// Shows that all lanes of this instance follow these pauses.
    pub fn confirm(&mut self, instance: &str, pauses: &Pauses) -> Result<(), QueueError> {
        self.with(|connection| {
            let mut command = if pauses.is_empty() {
                redis::cmd("HDEL")
            } else {
                redis::cmd("HSET")
            };
            command.arg(keys::CONFIRMED_PAUSES).arg(instance);
            if !pauses.is_empty() {
                command.arg(serde_json::to_string(pauses).unwrap_or_default());
            }
            Ok(command.query::<()>(connection)?)
        })
    }

    /// What each instance that is alive has in force.
    pub fn confirmations(&mut self) -> Result<Vec<Confirmation>, QueueError> {
        self.with(|connection| {
            let names: Vec<Vec<u8>> = redis::cmd("SMEMBERS")
                .arg(keys::INSTANCES)
                .query(connection)?;
            // Daemons write only UTF-8.
            let names = names.into_iter().map(String::from_utf8);
            let mut found = Vec::new();
            for instance in names.filter_map(Result::ok) {
                let mut asked = redis::pipe();
                asked.cmd("EXISTS").arg(keys::instance_key(&instance));
                asked.cmd("HGET").arg(keys::CONFIRMED_PAUSES).arg(&instance);
                let (is_alive, confirmed): (bool, Option<Vec<u8>>) = asked.query(connection)?;
                if is_alive {
                    let pauses = confirmed.and_then(|text| serde_json::from_slice(&text).ok());
                    found.push(Confirmation { instance, pauses });
                }
            }
            found.sort_by(|one, other| one.instance.cmp(&other.instance));
            Ok(found)
        })
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Connection) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let mut connection = match self.connected.take() {
            Some(connection) => connection,
            None => self.server.connect_for("conserver:pauses", self.limit)?,
        };
        let result = work(&mut connection);
        if !result.as_ref().is_err_and(QueueError::breaks_connection) {
            self.connected = Some(connection);
        }
        result
    }
}

impl Queue {
    /// Everything that is paused.
    ///
    /// # Errors
    /// As those of [`PauseTable::all`].
    pub fn pauses(&mut self) -> Result<Pauses, QueueError> {
        self.with(|connection, _, _, _| read(connection))
    }
}

/// Whether the error of a look at the pauses is about their key, and not about the server: it is of another type, or
/// this user may not read it.
pub fn is_of_the_key(error: &QueueError) -> bool {
    matches!(error, QueueError::Command(error) if matches!(error.code(), Some("WRONGTYPE" | "NOPERM")))
}

fn read(connection: &mut Connection) -> Result<Pauses, QueueError> {
    let count: u64 = redis::cmd("HLEN").arg(keys::PAUSED).query(connection)?;
    if count == 0 {
        return Ok(Pauses::default());
    }
    let fields = redis::cmd("HGETALL").arg(keys::PAUSED).query(connection)?;
    Ok(Pauses::of_fields(&fields))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn list(name: &str) -> PauseTarget {
        PauseTarget::List(name.parse().unwrap())
    }

    fn chain(name: &str) -> PauseTarget {
        PauseTarget::Chain(name.to_owned())
    }

    #[test]
    fn a_field_of_the_hash_names_a_list_or_a_chain() {
        for target in [
            list("default"),
            list("two words"),
            chain("main"),
            chain("list x"),
        ] {
            assert_eq!(PauseTarget::parse(&target.to_string()), Some(target));
        }
        for field in [
            "",
            "list",
            "list ",
            "chain ",
            "default",
            "storage pg",
            "list a\nb",
        ] {
            assert_eq!(PauseTarget::parse(field), None, "{field:?}");
        }
    }

    #[test]
    fn what_anybody_wrote_pauses_if_it_names_something() {
        let fields = [
            (
                "list a",
                r#"{"since":"2026-01-02T03:04:05.000006Z","by":"root@db3"}"#,
            ),
            ("list b", "no JSON"),
            ("list c", r#"{"since":7}"#),
            ("chain d", r#"{"by":"x","more":[]}"#),
            ("e", "{}"),
        ];
        let bytes = |text: &str| text.as_bytes().to_vec();
        let mut fields: HashMap<_, _> = fields
            .iter()
            .map(|(field, value)| (bytes(field), bytes(value)))
            .collect();
        fields.insert(vec![0xff], Vec::new());
        let long = format!("{{\"by\":\"{}\"}}", "x".repeat(1000));
        fields.insert(bytes("list f"), bytes(&long));
        let pauses = Pauses::of_fields(&fields);
        let by = |target| pauses.get(&target).map(|record| record.by.len());
        assert_eq!(by(list("a")), Some(8));
        assert_eq!(by(list("b")), Some(0));
        assert_eq!(by(list("c")), Some(0));
        assert_eq!(by(chain("d")), Some(1));
        assert_eq!(by(list("f")), Some(LONGEST_BY));
        assert_eq!(pauses.iter().count(), 5);
        let kept = serde_json::to_string(&pauses).unwrap();
        assert_eq!(serde_json::from_str::<Pauses>(&kept).unwrap(), pauses);
    }

    #[test]
    fn a_chain_that_is_paused_holds_its_own_lists_and_nothing_else() {
        let text = "chains: {main: {ingress_lists: [a, b]}, other: {ingress_lists: [c]}, \
                    off: {ingress_lists: [d], enabled: 0}}\n";
        let config = Config::parse(text, Path::new("config.yml")).unwrap();
        let held = |pauses: Pauses| {
            let lists = ["a", "b", "c", "d", "DLQ:storage:pg"].into_iter();
            let held = lists.filter(|name| pauses.hold(&name.parse().unwrap(), &config.chains));
            held.collect::<Vec<_>>()
        };
        assert_eq!(held(Pauses::default()), [""; 0]);
        assert_eq!(held([chain("main")].into()), ["a", "b"]);
        assert_eq!(held([list("c"), list("main")].into()), ["c"]);
        assert_eq!(held([chain("c"), chain("off")].into()), [""; 0]);
        let storage = list("DLQ:storage:pg");
        assert_eq!(held([storage, chain("pg")].into()), ["DLQ:storage:pg"]);
    }
}
