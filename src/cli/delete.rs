//! `conserver delete`: deletes a vCon from every storage and from Redis.

use std::io::{self, Write};

use clap::Args;

use super::load_config;
use super::output::{can_ask, eprint_line, is_confirmed, output_failed};
use super::storage_access::{Deletion, DocumentStore, select_stores};
use crate::config::Config;
use crate::exit::Exit;
use crate::queue::{Audit, AuditLists, QueueError, Removed, Server, Whereabouts};
use crate::settings::Settings;
use crate::vcon::VconId;
use crate::visible::Printable;

/// Which vCon to delete, and from where.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The vCon's UUID
    uuid: VconId,

    /// Delete it only from this storage of config.yml, or from `redis`; may be given several times
    ///
    /// A storage that is itself called `redis` is named by its path: `storages.redis`.
    #[arg(long, value_name = "STORAGE")]
    from: Vec<String>,

    /// Do not ask for confirmation; required without a terminal
    #[arg(long)]
    yes: bool,

    /// Delete it even if a worker has it, it waits in a list, or Redis cannot tell
    ///
    /// A vCon in work is stored again when it is done; one that waits in a list becomes a dead letter
    /// once it has no document.
    #[arg(long)]
    force: bool,
}

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
enum DeleteError {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    InWork(String),
    #[error(
        "could not find out whether vCon {id} is in work: {cause}; nothing was deleted \
         (--force deletes it all the same)"
    )]
    Unknown { id: VconId, cause: QueueError },
    #[error("could not ask: {0}")]
    Ask(#[from] io::Error),
}

impl DeleteError {
    fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::InWork(_) => Exit::Data,
            Self::Unknown { .. } => Exit::Unavailable,
            Self::Ask(_) => Exit::Internal,
        }
    }
}

impl DeleteArgs {
    /// Deletes it, and prints a line for each store.
    pub fn run(&self, settings: &Settings) -> Exit {
        let config = match load_config(settings) {
            Ok(config) => config,
            Err(exit) => return exit,
        };
        match self.prepare(settings, &config) {
            Ok(Some(stores)) => self.delete(stores, settings),
            Ok(None) => {
                eprint_line("Nothing was deleted");
                Exit::Ok
            }
            Err(error) => {
                eprint_line(&error);
                error.exit()
            }
        }
    }

    /// The stores to delete it from; `None` if the answer was no.
    fn prepare<'a>(
        &self,
        settings: &'a Settings,
        config: &Config,
    ) -> Result<Option<Vec<DocumentStore<'a>>>, DeleteError> {
        let mut stores = select_stores(settings, config, &self.from).map_err(DeleteError::Usage)?;
        if !self.yes && !can_ask() {
            let why = "standard input is no terminal, so nobody can confirm: --yes deletes without asking";
            return Err(DeleteError::Usage(why.to_owned()));
        }
        self.check_standing(settings, config)?;
        // Redis last: a worker that misses the vCon there would fetch it from a storage that still has it.
        stores.sort_by_key(|store| matches!(store, DocumentStore::Redis(_)));
        let names: Vec<String> = stores
            .iter()
            .map(|store| Printable(store).to_string())
            .collect();
        let question = format!(
            "Delete vCon {} for good from {}?",
            self.uuid,
            names.join(", ")
        );
        if self.yes || is_confirmed(&question)? {
            Ok(Some(stores))
        } else {
            Ok(None)
        }
    }

    /// Fails while the vCon is in work or waits in a list: it would come back.
    fn check_standing(&self, settings: &Settings, config: &Config) -> Result<(), DeleteError> {
        let id = &self.uuid;
        let standing = match standing(settings, config, id) {
            Ok(standing) => standing,
            Err(cause) if self.force => {
                eprint_line(format_args!("warning: {cause}"));
                return Ok(());
            }
            Err(cause) => {
                return Err(DeleteError::Unknown {
                    id: id.clone(),
                    cause,
                });
            }
        };
        for list in &standing.dead {
            eprint_line(format_args!(
                "vCon {id} is in the dead letter queue DLQ:{list}, and stays there: \
                 `conserver dlq drop {id}` drops it"
            ));
        }
        let Some(reason) = in_work(id, &standing) else {
            return Ok(());
        };
        if self.force {
            eprint_line(format_args!("warning: {reason}"));
            return Ok(());
        }
        Err(DeleteError::InWork(format!(
            "{reason}; nothing was deleted (--force deletes it all the same)"
        )))
    }

    fn delete(&self, stores: Vec<DocumentStore<'_>>, settings: &Settings) -> Exit {
        let mut out = io::stdout().lock();
        let (mut printed, mut was_anywhere, mut is_complete) = (Ok(()), false, true);
        for mut store in stores {
            match store.delete(&self.uuid) {
                Ok(deleted) => {
                    was_anywhere |= may_have_been_there(&deleted);
                    let line = format!("{store}: {}", outcome(&deleted, &settings.sorted_set));
                    // A closed pipe does not keep the rest from being deleted.
                    printed = printed.and(writeln!(out, "{}", Printable(line)));
                }
                Err(error) => {
                    is_complete = false;
                    eprint_line(format_args!("{store}: NOT deleted: {error}"));
                }
            }
        }
        match printed.and(out.flush()) {
            _ if !is_complete => Exit::Unavailable,
            Err(error) => output_failed(&error),
            Ok(()) if was_anywhere => Exit::Ok,
            Ok(()) => Exit::Data,
        }
    }
}

fn standing(settings: &Settings, config: &Config, id: &VconId) -> Result<Whereabouts, QueueError> {
    let connection = Server::new(&settings.redis_url)?.connect("conserver:delete")?;
    let ingress = config.chains.iter().flat_map(|it| it.ingress_lists.clone());
    let lists = AuditLists {
        ingress: ingress.collect(),
        storages: config.storages.keys().cloned().collect(),
        ..AuditLists::default()
    };
    Audit::new(connection, &lists, settings.redis_expiry)?.whereabouts(id)
}

/// Why the vCon would come back.
fn in_work(id: &VconId, standing: &Whereabouts) -> Option<String> {
    if !standing.waiting.is_empty() {
        let lists: Vec<String> = standing.waiting.iter().map(ToString::to_string).collect();
        return Some(format!("vCon {id} waits in list {}", lists.join(", ")));
    }
    let claimed = || format!("a worker has vCon {id}, and stores it when it is done");
    standing.is_claimed.then(claimed)
}

fn may_have_been_there(deleted: &Deletion) -> bool {
    match deleted {
        Deletion::Storage | Deletion::Unknown => true,
        Deletion::Redis(Removed { document, entry }) => *document || *entry,
        Deletion::NotThere | Deletion::HandedOn => false,
    }
}

fn outcome(deleted: &Deletion, sorted_set: &str) -> String {
    match deleted {
        Deletion::Storage => "deleted".to_owned(),
        Deletion::Redis(Removed { document, entry }) => match (document, entry) {
            (true, true) => format!("deleted, and its entry in {sorted_set}"),
            (true, false) => "deleted".to_owned(),
            (false, true) => format!("was not there; its entry in {sorted_set} is deleted"),
            (false, false) => "was not there".to_owned(),
        },
        Deletion::NotThere => "was not there".to_owned(),
        Deletion::Unknown => "deleted, if it was there".to_owned(),
        Deletion::HandedOn => "keeps no vCons; it cannot take back what it handed on".to_owned(),
    }
}
