//! Whether a server, and the rights that it gives its user, are enough for the daemon.
//!
//! Every command that is needed is tried on keys that nobody else uses. A server that lacks one, or a
//! user who may not call it, would be found out in the middle of the work otherwise, one command at a
//! time.

use std::fmt;
use std::time::Duration;

use indexmap::IndexSet;
use redis::{Connection, RedisError, RedisResult, Value};

use super::requests::{Commands, preflight, round_trip};
use super::{
    Claimed, Document, Expiry, Finish, Finished, Holder, Kind, Lease, NameLease, Queue, QueueError,
    Replacement, Seat, Server, keys,
};
use crate::config::{Chain, Config, Follower, ListName, Plan};
use crate::redis_server::in_its_words;
use crate::settings::{RedisFormat, Settings};
use crate::vcon::VconId;

/// The keys of one try begin with this.
const PREFIX: &str = "conserver:preflight:";

/// More keys than these are not tried, nor named.
const MOST_KEYS: usize = 200;

/// Stands for a key that is not there.
const KEY: &str = "KEY";

/// The commands that scripts cannot call. A transaction comes last, as one that cannot be ended makes the
/// connection useless.
const COMMANDS: [(&str, &[&str]); 8] = [
    // No script has this hash.
    (
        "EVALSHA",
        &["0000000000000000000000000000000000000000", "0"],
    ),
    ("EVAL", &["return 1", "0"]),
    ("BLPOP", &[KEY, "0.001"]),
    ("WATCH", &[KEY]),
    ("UNWATCH", &[]),
    ("PING", &[]),
    ("MULTI", &[]),
    ("EXEC", &[]),
];

/// What a server lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shortage {
    /// Commands that it does not have, or does not let this user call.
    pub commands: Vec<String>,
    /// Keys that this user may not use.
    pub keys: Vec<String>,
}

/// What a server is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitness {
    /// All that is needed is there.
    Fit,
    /// It is a part of a Redis Cluster. Its words.
    Cluster(String),
    /// The work cannot be done before somebody changes this.
    Lacks(Shortage),
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commands, keys } = self;
        if !commands.is_empty() {
            write!(
                f,
                "it does not have, or does not let this user call: {}",
                commands.join(", ")
            )?;
        }
        if !keys.is_empty() {
            let between = if commands.is_empty() { "" } else { "; " };
            write!(
                f,
                "{between}it does not let this user use: {}",
                keys.join(", ")
            )?;
        }
        Ok(())
    }
}

/// What is said of a server that is part of a cluster.
pub fn cluster_refusal(words: &str) -> String {
    format!(
        "Redis Cluster is not supported, as one step changes a vCon, its lists and its claim, which a cluster \
         keeps in different slots; use a server without cluster-enabled ({words})"
    )
}

/// What a configuration has the daemon work on.
#[derive(Debug)]
pub struct Work<'a> {
    /// The chains, those out of service among them.
    chains: &'a [Chain],
    /// The lists that links may announce vCons on, besides those of their chains.
    routes: Vec<&'a ListName>,
    /// The names of the storages.
    storages: Vec<&'a str>,
    /// The servers whose vCons are pulled.
    followers: &'a [Follower],
}

/// What the work needs of a server besides what all work needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Keys that are not of our own.
    keys: Vec<String>,
    /// Whether documents are put in the sorted set.
    sorts: bool,
    /// Whether the sorted set tells how documents are kept, if the server has RedisJSON.
    looks_up: bool,
}

impl<'a> Work<'a> {
    /// That of a whole configuration.
    pub fn of(config: &'a Config) -> Self {
        let links = config.links.values();
        Self {
            chains: &config.chains,
            routes: links.flat_map(|link| &link.routes).collect(),
            storages: config.storages.keys().map(String::as_str).collect(),
            followers: &config.followers,
        }
    }

    /// That of a configuration of which the followers are read apart.
    pub fn planned(plan: &'a Plan, followers: &'a [Follower]) -> Self {
        Self {
            chains: &plan.chains,
            routes: plan.routes.iter().collect(),
            storages: plan.storages.iter().map(String::as_str).collect(),
            followers,
        }
    }

    /// What it needs with these settings.
    pub fn needs(&self, settings: &Settings) -> Needs {
        let sorts = !self.followers.is_empty();
        Needs {
            keys: self.keys(&settings.sorted_set),
            sorts,
            looks_up: sorts && settings.redis_format == RedisFormat::Auto,
        }
    }

    /// The keys besides those of our own, each once.
    fn keys(&self, sorted_set: &str) -> Vec<String> {
        let in_service = || self.chains.iter().filter(|chain| chain.enabled);
        // Nobody has this vCon.
        let id = VconId::random();
        let mut needed = IndexSet::from([id.key()]);
        for list in in_service().flat_map(|chain| &chain.ingress_lists) {
            needed.insert(list.as_str().to_owned());
            needed.insert(keys::dead_letter_list(list));
            needed.insert(format!("context:{list}:{id}"));
        }
        for follower in self.followers {
            let list = &follower.ingress_list;
            needed.insert(list.as_str().to_owned());
            needed.insert(keys::dead_letter_list(list));
            needed.insert(sorted_set.to_owned());
        }
        let egress = in_service().flat_map(|chain| &chain.egress_lists);
        let announced = egress.chain(self.routes.iter().copied());
        needed.extend(announced.map(|list| list.as_str().to_owned()));
        let storages = self.storages.iter().copied();
        needed.extend(storages.map(keys::storage_letters_list));
        needed.truncate(MOST_KEYS);
        needed.into_iter().collect()
    }
}

impl Lease {
    /// Tries all that the work needs.
    ///
    /// # Errors
    /// The connection failed, or the server serves nobody at present.
    pub fn preflight(mut self, needs: &Needs) -> Result<Fitness, QueueError> {
        let base = format!("{PREFIX}{}", VconId::random());
        let script = preflight();
        let kinds = ["first", "second", "list", "hash", "set", "sorted"];
        let mut call = script.in_full(kinds.len());
        for kind in kinds {
            call.arg(format!("{base}:{kind}"));
        }
        call.arg(u8::from(needs.sorts))
            .arg(u8::from(needs.looks_up));
        call.arg(&needs.keys);
        let mut shortage = Shortage::default();
        match call.query::<(Vec<String>, Vec<String>)>(&mut *self) {
            Ok((commands, keys)) => shortage = Shortage { commands, keys },
            Err(error) if is_of_cluster(&error) => {
                return Ok(Fitness::Cluster(in_its_words(&error)));
            }
            Err(error) if is_about_keys(&error) => shortage.keys.push(format!("{PREFIX}*")),
            // Those that scripts cannot call tell whether it is `EVAL`.
            Err(error) if is_answered(&error) => {}
            Err(error) => return Err(error.into()),
        }
        shortage
            .commands
            .extend(refused_commands(&mut self, &base)?);
        Ok(if shortage == Shortage::default() {
            Fitness::Fit
        } else {
            Fitness::Lacks(shortage)
        })
    }
}

/// Whether the server has answered, and not only that it will serve later.
fn is_answered(error: &RedisError) -> bool {
    const LATER: [&str; 3] = ["BUSY", "LOADING", "MASTERDOWN"];
    error.code().is_some_and(|code| !LATER.contains(&code))
}

/// Whether a user may call a command, but not with these keys; "access one of the keys used as arguments"
/// before Redis 7.2, "access a key" since.
fn is_about_keys(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    error.code() == Some("NOPERM") && detail.contains("permissions to access")
}

fn is_unknown(error: &RedisError) -> bool {
    error
        .detail()
        .is_some_and(|detail| detail.starts_with("unknown command"))
}

/// Whether the error of a script with several keys is that of a part of a cluster.
fn is_of_cluster(error: &RedisError) -> bool {
    const CODES: [&str; 4] = ["CROSSSLOT", "MOVED", "ASK", "CLUSTERDOWN"];
    error.code().is_some_and(|code| CODES.contains(&code))
}

/// Those of the commands that scripts cannot call which the server refuses.
fn refused_commands(connection: &mut Connection, base: &str) -> RedisResult<Vec<String>> {
    let key = format!("{base}:absent");
    let mut all = redis::pipe();
    for (command, arguments) in COMMANDS {
        all.cmd(command);
        for argument in arguments {
            all.arg(if *argument == KEY { &key } else { *argument });
        }
    }
    let answers = Commands::of(&all).send(connection)?;
    let is_refused = |answer: &Value| match answer.clone().extract_error() {
        Err(error) => {
            // An `EXEC` that is refused aborts its transaction.
            let detail = error.detail().unwrap_or_default();
            let is_denied = error.code() == Some("NOPERM") && !is_about_keys(&error);
            is_denied || detail.contains("NOPERM") || is_unknown(&error)
        }
        Ok(_) => false,
    };
    let refused = COMMANDS.iter().zip(&answers);
    let refused = refused.filter(|(_, answer)| is_refused(answer));
    Ok(refused
        .map(|((command, _), _)| (*command).to_owned())
        .collect())
}

/// How long the keys live if nobody removes them. The lease outlives the claim, which so is gone before
/// another daemon would return it to its list.
const EXPIRY: u64 = 30;
const LEASE: Duration = Duration::from_secs(60);

const BEFORE: &str = r#"{"rehearsal":"before"}"#;
const AFTER: &str = r#"{"rehearsal":"after"}"#;

/// Why the steps could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// Redis refuses one.
    #[error("could not {step}: {cause}")]
    Refused {
        /// The step.
        step: &'static str,
        /// What it says.
        cause: QueueError,
    },
    /// A step had another result than it should.
    #[error("could not {0}: it had no effect")]
    NoEffect(&'static str),
}

/// What the steps work on.
struct Stage {
    queue: Queue,
    tools: Lease,
    seat: Seat,
    id: VconId,
    ingress: ListName,
    egress: ListName,
}

/// Takes all steps, each request within `limit`, and cleans up.
///
/// # Errors
/// The first step that failed.
pub fn rehearse(
    server: &Server,
    settings: &Settings,
    limit: Duration,
) -> Result<(), RehearsalError> {
    let mut stage =
        Stage::new(server, settings, limit).map_err(|cause| refused("connect", cause))?;
    let result = stage.steps();
    let cleaned = stage.clean_up();
    result?;
    cleaned.map_err(|cause| refused("remove the probe", cause))
}

fn refused(step: &'static str, cause: QueueError) -> RehearsalError {
    RehearsalError::Refused { step, cause }
}

impl Stage {
    fn new(server: &Server, settings: &Settings, limit: Duration) -> Result<Self, QueueError> {
        let id = VconId::random();
        let seat = Seat {
            instance: format!("check-{id}"),
            worker: 1,
            lane: 1,
        };
        let settings = Settings {
            instance: seat.instance.clone(),
            heartbeat_ttl: LEASE,
            ..settings.clone()
        };
        let list = |end: &str| {
            let name = format!("conserver:check:{id}:{end}");
            name.parse::<ListName>()
                .map_err(|_| QueueError::Answer("the name of a list"))
        };
        let lease = NameLease::new(&settings, Holder::this_process(fastrand::u64(1..)));
        let expiry = Expiry::of(&settings);
        Ok(Self {
            queue: Queue::new(server.clone(), seat.clone(), expiry, lease).within(limit),
            tools: server.connect_for("conserver:check", limit)?,
            ingress: list("in")?,
            egress: list("out")?,
            seat,
            id,
        })
    }

    fn steps(&mut self) -> Result<(), RehearsalError> {
        let leased = self.queue.take_lease();
        leased.map_err(|cause| refused("take the lease on a name", cause))?;

        let mut submit = redis::pipe();
        submit
            .cmd("SET")
            .arg(self.id.key())
            .arg(BEFORE)
            .arg("EX")
            .arg(EXPIRY);
        submit
            .cmd("RPUSH")
            .arg(self.ingress.as_str())
            .arg(self.id.as_str());
        submit.cmd("EXPIRE").arg(self.ingress.as_str()).arg(EXPIRY);
        submit
            .cmd("EXPIRE")
            .arg(keys::workers_key(&self.seat.instance))
            .arg(EXPIRY);
        self.run(&submit)
            .map_err(|cause| refused("submit a vCon", cause))?;

        let claimed = self.queue.claim(std::slice::from_ref(&self.ingress));
        let claimed = claimed.map_err(|cause| refused("claim a vCon", cause))?;
        let Claimed {
            work: Some((claim, Document::Found(Kind::Text, text))),
            ..
        } = claimed
        else {
            return Err(RehearsalError::NoEffect("claim a vCon"));
        };
        if text != BEFORE.as_bytes() {
            return Err(RehearsalError::NoEffect("load a vCon"));
        }
        let mut expire = redis::pipe();
        for key in [
            self.seat.claims_key(),
            keys::workers_key(&self.seat.instance),
        ] {
            expire.cmd("EXPIRE").arg(key).arg(EXPIRY);
        }
        self.run(&expire)
            .map_err(|cause| refused("have a claim expire", cause))?;

        let finish = Finish {
            id: &self.id,
            document: Some(Replacement {
                kind: Kind::Text,
                base: BEFORE,
                text: Some(AFTER),
            }),
            expire: Some(EXPIRY),
            egress: std::slice::from_ref(&self.egress),
            routes: &[],
            letters: &[],
        };
        let finished = self.queue.finish(&claim, &finish);
        match finished.map_err(|cause| refused("finish a vCon", cause))? {
            Finished::Done => {}
            _ => return Err(RehearsalError::NoEffect("finish a vCon")),
        }
        let mut look = redis::pipe();
        look.cmd("GET").arg(self.id.key());
        look.cmd("LRANGE").arg(self.egress.as_str()).arg(0).arg(-1);
        let found = self
            .run(&look)
            .map_err(|cause| refused("see the finish", cause))?;
        let bytes = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        if found == [bytes(AFTER), Value::Array(vec![bytes(self.id.as_str())])] {
            Ok(())
        } else {
            Err(RehearsalError::NoEffect("finish a vCon"))
        }
    }

    fn run(&mut self, commands: &redis::Pipeline) -> Result<Vec<Value>, QueueError> {
        let answers = round_trip(&mut self.tools, commands)?;
        let answers = answers.into_iter().map(Value::extract_error);
        Ok(answers.collect::<Result<_, _>>()?)
    }

    /// Removes what the steps have left, wherever they ended.
    fn clean_up(&mut self) -> Result<(), QueueError> {
        let instance = &self.seat.instance;
        let mut delete = redis::pipe();
        // One by one: the user may not have the right to each.
        for key in [
            self.seat.claims_key(),
            keys::workers_key(instance),
            keys::taken_key(instance, self.seat.worker),
            self.id.key(),
            self.ingress.as_str().to_owned(),
            self.egress.as_str().to_owned(),
            keys::instance_key(instance),
        ] {
            delete.cmd("DEL").arg(key);
        }
        // Last: others look after the claims of those who are in there.
        delete.cmd("SREM").arg(keys::INSTANCES).arg(instance);
        self.run(&delete).map(drop)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The commands that a script calls.
    fn called(script: &str) -> BTreeSet<String> {
        let calls = script.split("call('").skip(1);
        calls
            .filter_map(|rest| Some(rest.split_once('\'')?.0.to_owned()))
            .collect()
    }

    #[test]
    fn every_command_of_a_script_is_tried() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/queue/scripts");
        let tried = include_str!("scripts/preflight.lua");
        let mut count = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let script = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for command in called(&script) {
                // Those of a module are needed only if it is there; `locate` serves an operator.
                let is_optional = command.starts_with("JSON.") || command == "HVALS";
                count += 1;
                assert!(
                    is_optional || tried.contains(&format!("try('{command}'")),
                    "{command}"
                );
            }
        }
        assert!(count > 100, "{count}");
    }

    #[test]
    fn the_manual_lists_every_command_that_is_tried() {
        let readme = include_str!("../../README.md");
        let between = |begin, end| {
            let (_, rest) = readme.split_once(begin).unwrap();
            rest.split_once(end).unwrap().0
        };
        let acl = between("<!-- acl -->", "<!-- /acl -->");
        let json = between("<!-- acl-json -->", "<!-- /acl-json -->").replace('`', "");
        let script = include_str!("scripts/preflight.lua");
        let tried = script.split("try('").skip(1);
        let tried = tried.filter_map(|rest| Some(rest.split_once('\'')?.0));
        let own = COMMANDS.iter().map(|(command, _)| *command);
        for command in tried.chain(own) {
            let right = format!("+{}", command.to_lowercase());
            // How vCons are kept is asked only of a server with RedisJSON.
            let list = if command == "ZREVRANGE" { &json } else { acl };
            assert!(list.split_whitespace().any(|word| word == right), "{right}");
        }
    }

    #[test]
    fn what_is_lacking_is_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        for (commands, keys, text) in [
            (
                &["LPOS", "RENAME"][..],
                &[][..],
                "it does not have, or does not let this user call: LPOS, RENAME",
            ),
            (&[], &["a", "b"], "it does not let this user use: a, b"),
            (
                &["LPOS"],
                &["a"],
                "it does not have, or does not let this user call: LPOS; it does not let this user use: a",
            ),
        ] {
            let shortage = Shortage {
                commands: names(commands),
                keys: names(keys),
            };
            assert_eq!(shortage.to_string(), text);
        }
    }

    #[test]
    fn a_cluster_is_known_by_its_errors() {
        for (line, is_cluster) in [
            (
                "CROSSSLOT Keys in request don't hash to the same slot",
                true,
            ),
            ("MOVED 3999 127.0.0.1:6381", true),
            ("ASK 3999 127.0.0.1:6381", true),
            ("CLUSTERDOWN Hash slot not served", true),
            ("OOM command not allowed", false),
            ("LOADING Redis is loading", false),
        ] {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
            let error = value.and_then(Value::extract_error).unwrap_err();
            assert_eq!(is_of_cluster(&error), is_cluster, "{line}");
            assert_eq!(is_answered(&error), !line.starts_with("LOADING"), "{line}");
        }
    }

    #[test]
    fn the_keys_of_lists_followers_and_storages_are_needed_once() {
        let text = "\
links: {router: {module: links.tag_router, options: {tag_routes: {a: routed, b: out}}}}
storages: {files: {module: storage.file, options: {path: /tmp}}}
chains:
  main: {links: [router], storages: [files], ingress_lists: [in], egress_lists: [out]}
  spare: {ingress_lists: [unused], enabled: 0}
followers:
  near: {url: 'http://h', egress_list: a, follower_ingress_list: in}
  far: {url: 'http://h', egress_list: a, follower_ingress_list: elsewhere}
";
        let config = Config::parse(text, Path::new("config.yml")).unwrap();
        let mut work = Work::of(&config);
        let needed = work.keys("vcons");
        let id = needed[0].strip_prefix("vcon:").unwrap();
        let context = format!("context:in:{id}");
        let of_chains = ["in", "DLQ:in", &context];
        let of_followers = ["vcons", "elsewhere", "DLQ:elsewhere"];
        let announced = ["out", "routed", "DLQ:storage:files"];
        assert_eq!(needed[1..], [of_chains, of_followers, announced].concat());
        work.followers = &[];
        let needed = work.keys("vcons");
        assert_eq!(needed.len(), 1 + of_chains.len() + announced.len());
        assert_eq!(needed[4..], announced);

        let many: Vec<ListName> = (0..MOST_KEYS)
            .map(|number| format!("list-{number}").parse().unwrap())
            .collect();
        work.routes = many.iter().collect();
        assert_eq!(work.keys("vcons").len(), MOST_KEYS);
    }

    #[test]
    fn a_key_that_is_refused_is_told_from_a_command() {
        for (line, is_key) in [
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                true,
            ),
            ("NOPERM No permissions to access a key", true),
            (
                "NOPERM User keys has no permissions to access the 'a' key",
                true,
            ),
            (
                "NOPERM User keys has no permissions to run the 'blpop' command",
                false,
            ),
            (
                "NOPERM this user has no permissions to run the 'watch' command",
                false,
            ),
            ("ERR no permissions to access a key", false),
        ] {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes());
            let error = value.and_then(Value::extract_error).unwrap_err();
            assert_eq!(is_about_keys(&error), is_key, "{line}");
        }
    }
}
