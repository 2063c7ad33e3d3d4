//! Whether a server, and the rights of its user, suffice for the daemon.
//!
//! *Preflight* tries every command that the daemon needs, on keys that nobody else uses: otherwise a missing
//! command or right would show in the middle of the work, one at a time.
//!
//! *Rehearsal* takes a vCon that nobody else sees through lease, claim and finish, as a lane does, under an
//! instance name and on lists of its own. It removes everything at the end; what a sudden end leaves behind
//! expires.

use std::fmt;
use std::time::Duration;

use indexmap::IndexSet;
use redis::{RedisError, RedisResult, Value};

use super::requests::{Commands, preflight_script, round_trip};
use super::{
    Claimed, Document, DocumentFormat, Expiry, Finish, Finished, Holder, LaneId, NameLease, Queue,
    QueueError, RedisConnection, Replacement, Server, keys,
};
use crate::config::{Chain, Config, Follower, ListName, Plan};
use crate::redis_server::{Connection, in_its_words};
use crate::settings::{RedisFormat, Settings};
use crate::vcon::VconId;

/// The keys of a preflight begin with this.
const PREFIX: &str = "conserver:preflight:";

/// A preflight tries at most this many keys of the configuration.
const MOST_KEYS: usize = 200;

/// Stands for a key that does not exist.
const KEY: &str = "KEY";

/// The commands that scripts cannot call. The transaction comes last: one that cannot be ended makes the
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

/// What a server, or its user's rights, lack.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shortage {
    /// Commands that the server does not have, or does not let this user call.
    pub commands: Vec<String>,
    /// Keys that this user may not use.
    pub keys: Vec<String>,
}

/// The result of a preflight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitness {
    /// The server has everything that the daemon needs.
    Fit,
    /// The server is a node of a Redis Cluster. Its error.
    Cluster(String),
    /// The server lacks something.
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

/// The message about a server that is a node of a cluster.
pub fn cluster_refusal(words: &str) -> String {
    format!(
        "Redis Cluster is not supported, as one step changes a vCon, its lists and its claim, which a cluster \
         keeps in different slots; use a server without cluster-enabled ({words})"
    )
}

/// The parts of a configuration that need something of the server.
#[derive(Debug)]
pub struct ConfiguredWork<'a> {
    /// The chains, disabled ones included.
    chains: &'a [Chain],
    /// The lists on which links may announce vCons, besides those of their chains.
    routes: Vec<&'a ListName>,
    /// The names of the storages.
    storages: Vec<&'a str>,
    /// The followers.
    followers: &'a [Follower],
    /// Whether a `limit` has a `concurrency`.
    leases_slots: bool,
}

/// What a configuration needs of a server besides what every configuration needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Keys outside `conserver:`.
    keys: Vec<String>,
    /// Whether the daemon adds documents to the sorted set.
    sorts: bool,
    /// Whether a `limit` has a `concurrency`.
    leases_slots: bool,
    /// Whether the daemon reads the sorted set to find out how documents are stored, if the server has
    /// RedisJSON.
    looks_up: bool,
}

impl<'a> ConfiguredWork<'a> {
    /// The parts of a whole configuration.
    pub fn of(config: &'a Config) -> Self {
        let links = config.links.values();
        Self {
            chains: &config.chains,
            routes: links.flat_map(|link| &link.routes).collect(),
            storages: config.storages.keys().map(String::as_str).collect(),
            followers: &config.followers,
            leases_slots: config.leases_slots(),
        }
    }

    /// The parts of a configuration of which the followers are read apart.
    pub fn planned(plan: &'a Plan, followers: &'a [Follower]) -> Self {
        Self {
            chains: &plan.chains,
            routes: plan.routes.iter().collect(),
            storages: plan.storages.iter().map(String::as_str).collect(),
            followers,
            leases_slots: false,
        }
    }

    /// What the configuration needs with these settings.
    pub fn needs(&self, settings: &Settings) -> Needs {
        let sorts = !self.followers.is_empty();
        Needs {
            keys: self.keys(&settings.sorted_set),
            sorts,
            leases_slots: self.leases_slots,
            looks_up: sorts && settings.redis_format == RedisFormat::Auto,
        }
    }

    /// The keys outside `conserver:`, each once.
    fn keys(&self, sorted_set: &str) -> Vec<String> {
        let in_service = || self.chains.iter().filter(|chain| chain.enabled);
        // A vCon that does not exist.
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

impl RedisConnection {
    /// Tries everything that the daemon needs.
    ///
    /// # Errors
    /// The connection failed, or the server serves nobody at present.
    pub fn preflight(mut self, needs: &Needs) -> Result<Fitness, QueueError> {
        let base = format!("{PREFIX}{}", VconId::random());
        let script = preflight_script();
        let kinds = ["first", "second", "list", "hash", "set", "sorted"];
        let mut call = script.in_full(kinds.len());
        for kind in kinds {
            call.arg(format!("{base}:{kind}"));
        }
        call.arg(u8::from(needs.sorts) + 2 * u8::from(needs.leases_slots))
            .arg(u8::from(needs.looks_up));
        call.arg(&needs.keys);
        let mut shortage = Shortage::default();
        match call.query::<(Vec<String>, Vec<String>)>(&mut *self) {
            Ok((commands, keys)) => shortage = Shortage { commands, keys },
            Err(error) if is_of_cluster(&error) => {
                return Ok(Fitness::Cluster(in_its_words(&error)));
            }
            Err(error) if is_about_keys(&error) => shortage.keys.push(format!("{PREFIX}*")),
            // The commands that scripts cannot call show whether `EVAL` is refused.
            Err(error) if is_refusal(&error) => {}
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

/// Whether the server has replied, and not only that it will serve later.
fn is_refusal(error: &RedisError) -> bool {
    const LATER: [&str; 3] = ["BUSY", "LOADING", "MASTERDOWN"];
    error.code().is_some_and(|code| !LATER.contains(&code))
}

/// Whether a user may call the command, but not with these keys: "access one of the keys used as arguments"
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

/// Whether an error to a script with several keys is that of a node of a cluster.
fn is_of_cluster(error: &RedisError) -> bool {
    const CODES: [&str; 4] = ["CROSSSLOT", "MOVED", "ASK", "CLUSTERDOWN"];
    error.code().is_some_and(|code| CODES.contains(&code))
}

/// The commands that scripts cannot call and that the server refuses.
fn refused_commands(connection: &mut Connection, base: &str) -> RedisResult<Vec<String>> {
    let key = format!("{base}:absent");
    let mut all = redis::pipe();
    for (command, arguments) in COMMANDS {
        all.cmd(command);
        for argument in arguments {
            all.arg(if *argument == KEY { &key } else { *argument });
        }
    }
    let replies = Commands::of(&all).send(connection)?;
    let is_refused = |reply: &Value| match reply.clone().extract_error() {
        Err(error) => {
            // A refused `EXEC` aborts its transaction, and the error quotes the refusal.
            let detail = error.detail().unwrap_or_default();
            let is_denied = error.code() == Some("NOPERM") && !is_about_keys(&error);
            is_denied || detail.contains("NOPERM") || is_unknown(&error)
        }
        Ok(_) => false,
    };
    let refused = COMMANDS.iter().zip(&replies);
    let refused = refused.filter(|(_, reply)| is_refused(reply));
    Ok(refused
        .map(|((command, _), _)| (*command).to_owned())
        .collect())
}

/// How long the keys of a rehearsal live if nobody removes them, in seconds. The lease lives longer than the
/// claim: otherwise another daemon would return the claim to its list.
const EXPIRY: u64 = 30;
const LEASE: Duration = Duration::from_secs(60);

const BEFORE: &str = r#"{"rehearsal":"before"}"#;
const AFTER: &str = r#"{"rehearsal":"after"}"#;

/// Why a rehearsal failed.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// Redis refused a step.
    #[error("could not {step}: {cause}")]
    Refused {
        /// The step.
        step: &'static str,
        /// Its error.
        cause: QueueError,
    },
    /// A step had another result than it should.
    #[error("could not {0}: it had no effect")]
    NoEffect(&'static str),
}

/// A vCon that nobody else sees, and the lists it goes through.
struct Rehearsal {
    queue: Queue,
    tools: RedisConnection,
    lane_id: LaneId,
    id: VconId,
    ingress: ListName,
    egress: ListName,
}

/// Takes a vCon through all steps, and cleans up. No request may take longer than `limit`.
///
/// # Errors
/// The first step that failed.
pub fn rehearse(
    server: &Server,
    settings: &Settings,
    limit: Duration,
) -> Result<(), RehearsalError> {
    let mut rehearsal =
        Rehearsal::new(server, settings, limit).map_err(|cause| refused("connect", cause))?;
    let result = rehearsal.steps();
    let cleaned = rehearsal.clean_up();
    result?;
    cleaned.map_err(|cause| refused("remove the probe", cause))
}

fn refused(step: &'static str, cause: QueueError) -> RehearsalError {
    RehearsalError::Refused { step, cause }
}

impl Rehearsal {
    fn new(server: &Server, settings: &Settings, limit: Duration) -> Result<Self, QueueError> {
        let id = VconId::random();
        let lane_id = LaneId {
            instance: format!("check-{id}"),
            worker: 1,
            lane: 1,
        };
        let settings = Settings {
            instance: lane_id.instance.clone(),
            heartbeat_ttl: LEASE,
            ..settings.clone()
        };
        let list = |end: &str| {
            let name = format!("conserver:check:{id}:{end}");
            name.parse::<ListName>()
                .map_err(|_| QueueError::UnexpectedReply("the name of a list"))
        };
        let lease = NameLease::new(&settings, Holder::this_process(fastrand::u64(1..)));
        let expiry = Expiry::of(&settings);
        Ok(Self {
            queue: Queue::new(server.clone(), lane_id.clone(), expiry, lease)
                .with_time_limit(limit),
            tools: server.connect_for("conserver:check", limit)?,
            ingress: list("in")?,
            egress: list("out")?,
            lane_id,
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
            .arg(keys::workers_key(&self.lane_id.instance))
            .arg(EXPIRY);
        self.run(&submit)
            .map_err(|cause| refused("submit a vCon", cause))?;

        let claimed = self.queue.claim(std::slice::from_ref(&self.ingress));
        let claimed = claimed.map_err(|cause| refused("claim a vCon", cause))?;
        let Claimed {
            work: Some((claim, Document::Found(DocumentFormat::Text, text))),
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
            self.lane_id.claims_key(),
            keys::workers_key(&self.lane_id.instance),
        ] {
            expire.cmd("EXPIRE").arg(key).arg(EXPIRY);
        }
        self.run(&expire)
            .map_err(|cause| refused("have a claim expire", cause))?;

        let finish = Finish {
            id: &self.id,
            document: Some(Replacement {
                kind: DocumentFormat::Text,
                base: BEFORE,
                text: Some(AFTER),
            }),
            expire: Some(EXPIRY),
            egress: std::slice::from_ref(&self.egress),
            routes: &[],
            context: None,
            failed_storages: &[],
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
        let replies = round_trip(&mut self.tools, commands)?;
        let replies = replies.into_iter().map(Value::extract_error);
        Ok(replies.collect::<Result<_, _>>()?)
    }

    /// Removes what the steps have left, wherever they stopped.
    fn clean_up(&mut self) -> Result<(), QueueError> {
        let instance = &self.lane_id.instance;
        let mut delete = redis::pipe();
        // One by one: the user may lack the right to some.
        for key in [
            self.lane_id.claims_key(),
            keys::workers_key(instance),
            keys::taken_key(instance, self.lane_id.worker),
            self.id.key(),
            self.ingress.as_str().to_owned(),
            self.egress.as_str().to_owned(),
            keys::instance_key(instance),
        ] {
            delete.cmd("DEL").arg(key);
        }
        // Last: other daemons return the claims of the instances in this set.
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
                // Commands of a module are needed only if it is loaded; `HVALS` only by an operator; and without
                // `BITOP` and `BITPOS`, scripts compare documents themselves.
                let is_optional = command.starts_with("JSON.")
                    || matches!(&*command, "HVALS" | "BITOP" | "BITPOS");
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
        let page = include_str!("../../packaging/manual/conserver-operations.7.md");
        let between = |begin, end| {
            let (_, rest) = page.split_once(begin).unwrap();
            rest.split_once(end).unwrap().0
        };
        let acl = between("<!-- acl -->", "<!-- /acl -->");
        let json = between("<!-- acl-json -->", "<!-- /acl-json -->");
        let script = include_str!("scripts/preflight.lua");
        let tried = script.split("try('").skip(1);
        let tried = tried.filter_map(|rest| Some(rest.split_once('\'')?.0));
        let own = COMMANDS.iter().map(|(command, _)| *command);
        for command in tried.chain(own) {
            let right = format!("+{}", command.to_lowercase());
            // How vCons are kept is asked only of a server with RedisJSON.
            let (mark, list) = match command {
                "ZREVRANGE" => ("acl-json", json),
                _ => ("acl", acl),
            };
            assert!(
                list.split_whitespace().any(|word| word == right),
                "add {right} to <!-- {mark} --> in packaging/manual/conserver-operations.7.md"
            );
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
            assert_eq!(is_refusal(&error), !line.starts_with("LOADING"), "{line}");
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
        let mut work = ConfiguredWork::of(&config);
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
