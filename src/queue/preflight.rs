//! Whether a server, and the rights that it gives its user, are enough for the daemon.
//!
//! Every command that is needed is tried on keys that nobody else uses. A server that lacks one, or a
//! user who may not call it, would be found out in the middle of the work otherwise, one command at a
//! time.

use std::fmt;

use redis::{Connection, RedisError, RedisResult, Value};

use super::round_trip::Request;
use super::scripts::preflight;
use super::{Lease, QueueError, keys};
use crate::config::ListName;
use crate::redis_server::in_its_words;
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

/// The keys that the work on these lists and storages needs, besides those of our own.
pub fn needed_keys<'a>(
    ingress: impl Iterator<Item = &'a ListName>,
    egress: impl Iterator<Item = &'a ListName>,
    storages: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    // Nobody has this vCon.
    let id = VconId::random();
    let mut needed = vec![id.key()];
    for list in ingress {
        needed.push(list.as_str().to_owned());
        needed.push(keys::dead_letter_list(list));
        needed.push(format!("context:{list}:{id}"));
    }
    needed.extend(egress.map(|list| list.as_str().to_owned()));
    needed.extend(storages.map(keys::storage_letters_list));
    needed.truncate(MOST_KEYS);
    needed
}

impl Lease {
    /// Tries all that the work needs, the rights to these keys among it.
    ///
    /// # Errors
    /// The connection failed, or the server serves nobody at present.
    pub fn preflight(mut self, needed: &[String]) -> Result<Fitness, QueueError> {
        let base = format!("{PREFIX}{}", VconId::random());
        let script = preflight();
        let kinds = ["first", "second", "list", "hash", "set"];
        let mut call = script.in_full(kinds.len());
        for kind in kinds {
            call.arg(format!("{base}:{kind}"));
        }
        call.arg(needed);
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

/// Whether a user may call a command, but not with these keys.
fn is_about_keys(error: &RedisError) -> bool {
    error.code() == Some("NOPERM") && error.detail().is_some_and(|detail| detail.contains("keys"))
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
    let answers = Request::of(&all).send(connection)?;
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

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
        let (_, rest) = readme.split_once("<!-- acl -->").unwrap();
        let (acl, _) = rest.split_once("<!-- /acl -->").unwrap();
        let script = include_str!("scripts/preflight.lua");
        let tried = script.split("try('").skip(1);
        let tried = tried.filter_map(|rest| Some(rest.split_once('\'')?.0));
        let own = COMMANDS.iter().map(|(command, _)| *command);
        for command in tried.chain(own) {
            let right = format!("+{}", command.to_lowercase());
            assert!(acl.split_whitespace().any(|word| word == right), "{right}");
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
    fn the_keys_of_lists_and_storages_are_needed() {
        let list = |name: &str| name.parse::<ListName>().unwrap();
        let (ingress, egress) = ([list("in")], [list("out")]);
        let needed = needed_keys(ingress.iter(), egress.iter(), ["pg"].into_iter());
        let id = needed[0].strip_prefix("vcon:").unwrap();
        let context = format!("context:in:{id}");
        let expected = ["in", "DLQ:in", &context, "out", "DLQ:storage:pg"];
        assert_eq!(needed[1..], expected);
        let many = vec![list("in"); MOST_KEYS];
        let needed = needed_keys(many.iter(), egress.iter(), std::iter::empty());
        assert_eq!(needed.len(), MOST_KEYS);
    }
}
