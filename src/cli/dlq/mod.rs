//! `conserver dlq`: what became dead letters, and what becomes of them.

mod discard;
mod ls;
mod replay;
mod retry;
mod show;
mod view;

use std::collections::BTreeSet;
use std::io;

use clap::Subcommand;

use super::shown::{complain, complain_lines};
use crate::config::{ConfigErrors, Plan};
use crate::exit::Exit;
use crate::queue::{DeadLetters, Owner, QueueError, Raw, STORAGE_PREFIX, Server};
use crate::settings::Settings;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum Dlq {
    /// List dead letters, the oldest of each list first, with the step that failed and why
    Ls(ls::Ls),
    /// Show one dead letter: where it is, the whole reason, its document; or one queue
    Show(show::Show),
    /// Put dead letters back at the tail of the list they failed in, the oldest first; or save them
    /// to the storage that did not take them
    ///
    /// Those of a storage (storage:NAME) are saved to that storage alone, and no link runs again. The
    /// API server's replay and this keep each other out by the key DLQ:storage:NAME:replay-lock. It
    /// stops where the storage is unavailable; vCons that it refuses again stay, with the new reason.
    ///
    /// Those of an ingress list are put back.
    /// Each is moved in one step, so that it is in one place whatever happens. Deaths and failed
    /// tries are forgotten: it gets as many chances as a new vCon. Where its document would expire
    /// soon, it gets VCON_REDIS_EXPIRY. Those that fail while this runs are not put back again.
    Retry(retry::Retry),
    /// Drop dead letters for good
    ///
    /// Their documents stay in Redis until they expire, and `conserver audit` will find them, unless
    /// --document deletes them too.
    Drop(discard::Discard),
}

impl Dlq {
    /// Does it.
    pub fn run(&self, settings: &Settings) -> Exit {
        let done = match self {
            Self::Ls(ls) => ls.run(settings),
            Self::Show(show) => show.run(settings),
            Self::Retry(retry) => retry.run(settings),
            Self::Drop(discard) => discard.run(settings),
        };
        done.unwrap_or_else(|fault| fault.exit())
    }
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error("{0}")]
    NotThere(String),
    #[error("could not write the result: {0}")]
    Output(#[from] io::Error),
}

impl Fault {
    /// Says it, and gives the exit code.
    pub(super) fn exit(&self) -> Exit {
        match self {
            // A reader that has seen enough ends us.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Ok,
            Self::Config(errors) => complain_lines(errors),
            _ => complain(self),
        }
        match self {
            Self::Queue(_) => Exit::Unavailable,
            Self::Config(_) => Exit::Config,
            Self::NotThere(_) => Exit::Data,
            Self::Output(_) => Exit::Internal,
        }
    }
}

fn open(settings: &Settings) -> Result<DeadLetters, QueueError> {
    let lease = Server::new(&settings.redis_url)?.connect("conserver:dlq")?;
    Ok(DeadLetters::new(lease, settings.redis_expiry))
}

/// The configuration where it can be used; what can be done with Redis alone is done without.
fn configuration(settings: &Settings) -> Option<Plan> {
    let warn = |errors| {
        complain_lines(errors);
        complain("warning: without the configuration, only the lists that Redis has are known");
    };
    Plan::load(&settings.config_file).map_err(warn).ok()
}

/// The lists that daemons have had dead letters of, and those of the configuration, of disabled chains
/// and storages too. Without the configuration, all that have dead letters.
fn known_lists(
    letters: &mut DeadLetters,
    config: Option<&Plan>,
) -> Result<BTreeSet<Raw>, QueueError> {
    let Some(config) = config else {
        return all_lists(letters, None);
    };
    let mut known = letters.recorded()?;
    known.extend(configured(Some(config)));
    Ok(known)
}

/// The lists that have dead letters, whoever wrote them, and those of the configuration.
fn all_lists(
    letters: &mut DeadLetters,
    config: Option<&Plan>,
) -> Result<BTreeSet<Raw>, QueueError> {
    let mut all = letters.lists()?;
    all.extend(configured(config));
    Ok(all)
}

fn configured(config: Option<&Plan>) -> BTreeSet<Raw> {
    let chains = config.map_or(&[][..], |config| &config.chains);
    let lists = chains.iter().flat_map(|chain| &chain.ingress_lists);
    let lists = lists.map(|list| Raw::new(list.as_str()));
    let storages = config.map_or(&[][..], |config| &config.storages);
    lists
        .chain(storages.iter().map(|name| queue_of(name)))
        .collect()
}

/// The queue of a storage, named as that of an ingress list is.
fn queue_of(storage: &str) -> Raw {
    Raw::new(format!("{STORAGE_PREFIX}{storage}"))
}

/// The storage whose queue this is. An ingress list of the configuration may have such a name too:
/// then it is that list's.
fn storage_of(list: &Raw, config: Option<&Plan>) -> Option<String> {
    let name = list.as_bytes().strip_prefix(STORAGE_PREFIX.as_bytes())?;
    let chains = config.map_or(&[][..], |config| &config.chains);
    let mut ingress = chains.iter().flat_map(|chain| &chain.ingress_lists);
    if ingress.any(|it| it.as_str().as_bytes() == list.as_bytes()) {
        return None;
    }
    Some(String::from_utf8_lossy(name).into_owned())
}

fn owner(list: &Raw, config: Option<&Plan>) -> Owner {
    match storage_of(list, config) {
        Some(_) => Owner::Storage,
        None => Owner::List,
    }
}

/// Whether the queue is that of a storage that defers, so that it may hold a backlog.
fn defers(list: &Raw, config: Option<&Plan>) -> bool {
    let storage = storage_of(list, config);
    let deferring = config.map_or(&[][..], |config| &config.deferring);
    storage.is_some_and(|name| deferring.contains(&name))
}

/// The queue that is meant.
fn queue_named(letters: &mut DeadLetters, text: &str, known: &BTreeSet<Raw>) -> Result<Raw, Fault> {
    queue_if_named(letters, text, known)?.ok_or_else(|| {
        Fault::NotThere(format!(
            "{text} is no ingress list and no storage of the configuration, and has no dead letters"
        ))
    })
}

/// The queue that is meant, if any is: one that is known, or else one that Redis has.
fn queue_if_named(
    letters: &mut DeadLetters,
    text: &str,
    known: &BTreeSet<Raw>,
) -> Result<Option<Raw>, QueueError> {
    if let Some(list) = list_named(text, known) {
        return Ok(Some(list));
    }
    let mut there = BTreeSet::new();
    for name in Raw::named(text) {
        let of_key = name.as_bytes().strip_prefix(b"DLQ:").map(Raw::new);
        for list in of_key.into_iter().chain([name]) {
            if letters.length(&list)?.is_some_and(|length| length > 0) {
                there.insert(list);
            }
        }
    }
    Ok(list_named(text, &there))
}

/// The list that is meant by its name, or by the key of its dead letters.
fn list_named(text: &str, known: &BTreeSet<Raw>) -> Option<Raw> {
    let of_key = |name: &Raw| name.as_bytes().strip_prefix(b"DLQ:").map(Raw::new);
    Raw::named(text).into_iter().find_map(|name| {
        let meant = of_key(&name).filter(|list| known.contains(list));
        meant.or_else(|| known.contains(&name).then_some(name))
    })
}

/// The entry that is meant, with the lists in which it is a dead letter.
fn find(
    letters: &mut DeadLetters,
    lists: &BTreeSet<Raw>,
    text: &str,
) -> Result<Option<(Raw, Vec<Raw>)>, QueueError> {
    for entry in Raw::named(text) {
        let mut found = Vec::new();
        for list in lists {
            if letters.find(list, &entry)?.is_some() {
                found.push(list.clone());
            }
        }
        if !found.is_empty() {
            return Ok(Some((entry, found)));
        }
    }
    Ok(None)
}

/// The same; if it is in none of the lists that are known, with all lists that have dead letters.
fn find_anywhere(
    letters: &mut DeadLetters,
    known: &BTreeSet<Raw>,
    text: &str,
) -> Result<Option<(Raw, Vec<Raw>)>, QueueError> {
    if let Some(found) = find(letters, known, text)? {
        return Ok(Some(found));
    }
    let all = letters.lists()?;
    find(letters, &all, text)
}

fn not_found(text: &str) -> Fault {
    Fault::NotThere(format!("{text} is in no dead letter queue"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_decides_whose_queue_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yml");
        let text = "\
storages: {pg: {module: storage.postgres, on_outage: defer}, s3: {module: storage.s3}}
chains:
  main: {storages: [pg, s3], ingress_lists: [in]}
  odd: {ingress_lists: ['storage:list'], enabled: 0}
";
        std::fs::write(&path, text).unwrap();
        let plan = Plan::load(&path).unwrap();
        for (list, storage, waits) in [
            ("in", None, false),
            ("storage:list", None, false),
            ("storage:pg", Some("pg"), true),
            ("storage:s3", Some("s3"), false),
            ("storage:former", Some("former"), false),
            ("storage:", Some(""), false),
        ] {
            let list = Raw::new(list);
            let found = storage_of(&list, Some(&plan));
            assert_eq!(found.as_deref(), storage, "{list}");
            assert_eq!(defers(&list, Some(&plan)), waits, "{list}");
        }
        let list = Raw::new("storage:list");
        assert_eq!(owner(&list, Some(&plan)), Owner::List);
        assert_eq!(owner(&list, None), Owner::Storage);
    }

    #[test]
    fn a_list_is_named_by_itself_or_by_the_key_of_its_dead_letters() {
        let known = ["default", "DLQ:default", "DLQ:odd", "a\n"];
        let known = known.map(Raw::new).into_iter().collect();
        for (text, meant) in [
            ("default", Some("default")),
            ("DLQ:default", Some("default")),
            ("DLQ:DLQ:default", Some("DLQ:default")),
            ("DLQ:odd", Some("DLQ:odd")),
            ("a\\n", Some("a\n")),
            ("DLQ:a\\n", Some("a\n")),
            ("odd", None),
            ("DLQ:", None),
            ("", None),
        ] {
            assert_eq!(list_named(text, &known), meant.map(Raw::new), "{text}");
        }
    }
}
