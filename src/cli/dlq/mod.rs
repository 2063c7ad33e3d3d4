//! `conserver dlq`: lists, shows, retries and drops dead letters.
//!
//! Here: how arguments name a queue or an entry. One file for each command.

mod drop;
mod groups;
mod list;
mod retry;
mod show;

pub(super) use self::list::ReasonView;

use std::collections::BTreeSet;
use std::io;

use clap::Subcommand;

use super::output::{eprint_line, eprint_lines, output_failed};
use crate::config::{ConfigErrors, Plan};
use crate::exit::Exit;
use crate::queue::{DeadLetters, Owner, QueueError, Raw, Server, storage_of_queue, storage_queue};
use crate::settings::Settings;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead letters in groups of those that failed alike, or with --all each of them, the oldest of each list first
    ///
    /// A group has the step that failed and the error without what differs from one vCon to the next (UUID, N for a
    /// number, TIME, ADDRESS, ID), how many they are, their age, an example, and the commands to go on with.
    Ls(list::LsArgs),
    /// Show one dead letter with its queues, the whole reason and its document; or one queue
    Show(show::ShowArgs),
    /// Put dead letters back at the tail of the list they failed in, the oldest first; or save them
    /// to the storage that refused them
    ///
    /// Those of a storage (storage:NAME) are saved to that storage alone, and no link runs again. The
    /// API server's replay and this keep each other out by the key DLQ:storage:NAME:replay-lock. It
    /// stops if the storage is unavailable; vCons that it refuses again stay, with the new reason.
    ///
    /// Those of an ingress list are put back, each moved in one step, so that none is lost or
    /// doubled. Crashes and failed attempts are forgotten: each gets as many as a new vCon. A
    /// document that would expire sooner lives for VCON_REDIS_EXPIRY. Those that fail while this
    /// runs are not put back again.
    Retry(retry::RetryArgs),
    /// Drop dead letters for good
    ///
    /// Their documents stay in Redis until they expire, and `conserver audit` will find them, unless
    /// --document deletes them too.
    Drop(drop::DropArgs),
}

impl DlqCommand {
    /// Whether the monitor has started it.
    pub fn is_for_monitor(&self) -> bool {
        matches!(self, Self::Retry(retry) if retry.for_monitor)
    }

    /// Runs the command.
    pub fn run(&self, settings: &Settings) -> Exit {
        let result = match self {
            Self::Ls(ls) => ls.run(settings),
            Self::Show(show) => show.run(settings),
            Self::Retry(retry) => retry.run(settings),
            Self::Drop(drop) => drop.run(settings),
        };
        result.unwrap_or_else(|error| error.report())
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum DlqError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error("{0}")]
    NotThere(String),
    #[error("could not write the result: {0}")]
    Output(#[from] io::Error),
}

impl DlqError {
    /// Prints the error, and returns the exit code.
    fn report(&self) -> Exit {
        match self {
            Self::Output(error) => output_failed(error),
            Self::Config(errors) => {
                eprint_lines(errors);
                Exit::Config
            }
            Self::Queue(error) => {
                eprint_line(error);
                Exit::Unavailable
            }
            Self::NotThere(_) => {
                eprint_line(self);
                Exit::Data
            }
        }
    }
}

fn connect(settings: &Settings) -> Result<DeadLetters, QueueError> {
    let connection = Server::new(&settings.redis_url)?.connect("conserver:dlq")?;
    Ok(DeadLetters::new(connection, settings.redis_expiry))
}

/// Loads the configuration. Without a valid one, warns and returns `None`: Redis alone is enough for most.
fn load_plan(settings: &Settings) -> Option<Plan> {
    let warn = |errors| {
        eprint_lines(errors);
        eprint_line("warning: without the configuration, only the lists that Redis has are known");
    };
    Plan::load(&settings.config_file).map_err(warn).ok()
}

/// The lists that daemons recorded dead letters of, and those of the configuration, disabled chains and
/// storages included. Without a configuration, all that have dead letters.
fn known_lists(
    letters: &mut DeadLetters,
    plan: Option<&Plan>,
) -> Result<BTreeSet<Raw>, QueueError> {
    let Some(plan) = plan else {
        return all_lists(letters, None);
    };
    let mut known = letters.recorded()?;
    known.extend(configured_lists(Some(plan)));
    Ok(known)
}

/// The lists that have dead letters, whoever wrote them, and those of the configuration.
fn all_lists(letters: &mut DeadLetters, plan: Option<&Plan>) -> Result<BTreeSet<Raw>, QueueError> {
    let mut all = letters.lists()?;
    all.extend(configured_lists(plan));
    Ok(all)
}

fn configured_lists(plan: Option<&Plan>) -> BTreeSet<Raw> {
    let chains = plan.map_or(&[][..], |plan| &plan.chains);
    let lists = chains.iter().flat_map(|chain| &chain.ingress_lists);
    let lists = lists.map(|list| Raw::new(list.as_str()));
    let storages = plan.map_or(&[][..], |plan| &plan.storages);
    lists
        .chain(storages.iter().map(|name| storage_queue(name)))
        .collect()
}

fn owner(list: &Raw, plan: Option<&Plan>) -> Owner {
    match storage_of_queue(list, plan) {
        Some(_) => Owner::Storage,
        None => Owner::List,
    }
}

/// The queue of this name.
///
/// # Errors
/// If there is none.
fn queue_named(
    letters: &mut DeadLetters,
    text: &str,
    known: &BTreeSet<Raw>,
) -> Result<Raw, DlqError> {
    queue_if_named(letters, text, known)?.ok_or_else(|| {
        DlqError::NotThere(format!(
            "{text} is no ingress list and no storage of the configuration, and has no dead letters"
        ))
    })
}

/// The queue of this name: one of the known, else one that Redis has.
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

/// The list of this name, or with its dead letters under this key.
fn list_named(text: &str, known: &BTreeSet<Raw>) -> Option<Raw> {
    let of_key = |name: &Raw| name.as_bytes().strip_prefix(b"DLQ:").map(Raw::new);
    Raw::named(text).into_iter().find_map(|name| {
        let meant = of_key(&name).filter(|list| known.contains(list));
        meant.or_else(|| known.contains(&name).then_some(name))
    })
}

/// The entry of this name, with the lists in which it is a dead letter.
fn find_entry(
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

/// The same, in all lists that have dead letters if it is in none of the known.
fn find_entry_anywhere(
    letters: &mut DeadLetters,
    known: &BTreeSet<Raw>,
    text: &str,
) -> Result<Option<(Raw, Vec<Raw>)>, QueueError> {
    if let Some(found) = find_entry(letters, known, text)? {
        return Ok(Some(found));
    }
    let all = letters.lists()?;
    find_entry(letters, &all, text)
}

fn no_such_entry(text: &str) -> DlqError {
    DlqError::NotThere(format!("{text} is in no dead letter queue"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::queue::may_hold_backlog;

    #[test]
    fn the_configuration_tells_queues_of_lists_and_storages_apart() {
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
            let found = storage_of_queue(&list, Some(&plan));
            assert_eq!(found.as_deref(), storage, "{list}");
            assert_eq!(may_hold_backlog(&list, Some(&plan)), waits, "{list}");
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
