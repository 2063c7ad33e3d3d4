//! `conserver dlq`: what became dead letters, and what becomes of them.

mod discard;
mod ls;
mod retry;
mod show;
mod view;

use std::collections::BTreeSet;
use std::io;

use clap::Subcommand;

use super::shown::printable;
use crate::config::Plan;
use crate::exit::Exit;
use crate::queue::{DeadLetters, QueueError, Raw, Server};
use crate::settings::Settings;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum Dlq {
    /// List dead letters, the oldest of each list first, with the step that failed and why
    Ls(ls::Ls),
    /// Show one dead letter: where it is, the whole reason, its document
    Show(show::Show),
    /// Put dead letters back at the tail of the list they failed in, the oldest first
    ///
    /// Each is moved in one step, so that it is in one place whatever happens. Deaths and failed
    /// tries are forgotten: it gets as many chances as a new vCon. Where its document would expire
    /// soon, it gets VCON_REDIS_EXPIRY. Those that fail while this runs are not put back again.
    Retry(retry::Retry),
    /// Drop one dead letter for good
    ///
    /// Its document stays in Redis until it expires, and `conserver audit` will find it, unless
    /// --document deletes it too.
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
            _ => eprintln!("{}", printable(&self.to_string())),
        }
        match self {
            Self::Queue(_) => Exit::Unavailable,
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
        eprintln!("{errors}");
        eprintln!("warning: without the configuration, only the lists that Redis has are known");
    };
    Plan::load(&settings.config_file).map_err(warn).ok()
}

/// The lists that have dead letters, and those of the configuration, of disabled chains too.
fn known_lists(
    letters: &mut DeadLetters,
    config: Option<&Plan>,
) -> Result<BTreeSet<Raw>, QueueError> {
    let mut known = letters.lists()?;
    let chains = config.map_or(&[][..], |config| &config.chains);
    let lists = chains.iter().flat_map(|chain| &chain.ingress_lists);
    known.extend(lists.map(|list| Raw::new(list.as_str())));
    Ok(known)
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

fn not_found(text: &str) -> Fault {
    Fault::NotThere(format!("{text} is in no dead letter queue"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
