//! `conserver delete`: a vCon is removed from wherever it is kept.

use std::io::{self, Write};

use clap::Args;

use super::ask::{can_ask, is_confirmed};
use super::dlq;
use super::places::{self, Deleted, Place};
use super::shown::{complain, complain_lines};
use crate::config::Config;
use crate::exit::Exit;
use crate::queue::{Audit, AuditLists, QueueError, Removed, Server, Whereabouts};
use crate::settings::Settings;
use crate::vcon::VconId;
use crate::visible::Printable;

/// Which vCon to delete, and from where.
#[derive(Debug, Args)]
pub struct Delete {
    /// The vCon's UUID
    uuid: VconId,

    /// Delete it only from this storage of config.yml, or from `redis`; may be given several times
    ///
    /// A storage that is itself called `redis` is named by its path: `storages.redis`.
    #[arg(long, value_name = "STORAGE")]
    from: Vec<String>,

    /// Do not ask; needed where nobody can be asked
    #[arg(long)]
    yes: bool,

    /// Delete it although a worker has it or it waits in a list, or Redis cannot say so
    ///
    /// What is in work is stored again when it is done; what waits without a document anywhere
    /// becomes a dead letter.
    #[arg(long)]
    force: bool,
}

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    InWork(String),
    #[error(
        "whether vCon {id} is in work cannot be told: {cause}; nothing was deleted \
         (--force deletes it all the same)"
    )]
    Unknown { id: VconId, cause: QueueError },
    #[error("could not ask: {0}")]
    Ask(#[from] io::Error),
}

impl Refusal {
    fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::InWork(_) => Exit::Data,
            Self::Unknown { .. } => Exit::Unavailable,
            Self::Ask(_) => Exit::Internal,
        }
    }
}

impl Delete {
    /// Deletes it, and says for each place what happened.
    pub fn run(&self, settings: &Settings) -> Exit {
        let config = match Config::load(&settings.config_file) {
            Ok(config) => config,
            Err(errors) => {
                complain_lines(errors);
                return Exit::Config;
            }
        };
        match self.prepare(settings, &config) {
            Ok(Some(places)) => self.delete(places, settings),
            Ok(None) => {
                complain("Nothing was deleted");
                Exit::Ok
            }
            Err(refusal) => {
                complain(&refusal);
                refusal.exit()
            }
        }
    }

    /// The places it is to be deleted from; `None` where whoever was asked said no.
    fn prepare<'a>(
        &self,
        settings: &'a Settings,
        config: &Config,
    ) -> Result<Option<Vec<Place<'a>>>, Refusal> {
        let mut places = places::chosen(settings, config, &self.from).map_err(Refusal::Usage)?;
        if !self.yes && !can_ask() {
            let why = "nobody can be asked, as standard input is no terminal: --yes deletes it";
            return Err(Refusal::Usage(why.to_owned()));
        }
        self.check_standing(settings, config)?;
        // Redis is the last: who misses a vCon there may fetch it from a storage that still has it.
        places.sort_by_key(|place| matches!(place, Place::Redis(_)));
        let names: Vec<String> = places
            .iter()
            .map(|place| Printable(place).to_string())
            .collect();
        let question = format!(
            "Delete vCon {} for good from {}?",
            self.uuid,
            names.join(", ")
        );
        if self.yes || is_confirmed(&question)? {
            Ok(Some(places))
        } else {
            Ok(None)
        }
    }

    /// Refuses while the vCon is in work or will be: it would come back.
    fn check_standing(&self, settings: &Settings, config: &Config) -> Result<(), Refusal> {
        let id = &self.uuid;
        let standing = match standing(settings, config, id) {
            Ok(standing) => standing,
            Err(cause) if self.force => {
                complain(format_args!("warning: {cause}"));
                return Ok(());
            }
            Err(cause) => {
                return Err(Refusal::Unknown {
                    id: id.clone(),
                    cause,
                });
            }
        };
        for list in &standing.dead {
            complain(format_args!(
                "vCon {id} is in the dead letter queue DLQ:{list}, and stays there: \
                 `conserver dlq drop {id}` drops it"
            ));
        }
        let Some(reason) = in_work(id, &standing) else {
            return Ok(());
        };
        if self.force {
            complain(format_args!("warning: {reason}"));
            return Ok(());
        }
        Err(Refusal::InWork(format!(
            "{reason}; nothing was deleted (--force deletes it all the same)"
        )))
    }

    fn delete(&self, places: Vec<Place<'_>>, settings: &Settings) -> Exit {
        let mut out = io::stdout().lock();
        let (mut said, mut was_anywhere, mut is_done) = (Ok(()), false, true);
        for mut place in places {
            match place.delete(&self.uuid) {
                Ok(deleted) => {
                    was_anywhere |= may_have_been_there(&deleted);
                    let line = format!("{place}: {}", outcome(&deleted, &settings.sorted_set));
                    // Whoever does not listen any more does not keep the rest from being done.
                    said = said.and(writeln!(out, "{}", Printable(line)));
                }
                Err(fault) => {
                    is_done = false;
                    complain(format_args!("{place}: NOT deleted: {fault}"));
                }
            }
        }
        match said.and(out.flush()) {
            _ if !is_done => Exit::Unavailable,
            Err(error) => dlq::Fault::Output(error).exit(),
            Ok(()) if was_anywhere => Exit::Ok,
            Ok(()) => Exit::Data,
        }
    }
}

fn standing(settings: &Settings, config: &Config, id: &VconId) -> Result<Whereabouts, QueueError> {
    let lease = Server::new(&settings.redis_url)?.connect("conserver:delete")?;
    let ingress = config.chains.iter().flat_map(|it| it.ingress_lists.clone());
    let lists = AuditLists {
        ingress: ingress.collect(),
        storages: config.storages.keys().cloned().collect(),
        ..AuditLists::default()
    };
    Audit::new(lease, &lists, settings.redis_expiry)?.whereabouts(id)
}

/// Why the vCon would come back.
fn in_work(id: &VconId, standing: &Whereabouts) -> Option<String> {
    if !standing.waiting.is_empty() {
        let lists: Vec<String> = standing.waiting.iter().map(ToString::to_string).collect();
        return Some(format!("vCon {id} waits in list {}", lists.join(", ")));
    }
    let claimed = || format!("a worker has vCon {id}, and will store it when it is done");
    standing.is_claimed.then(claimed)
}

fn may_have_been_there(deleted: &Deleted) -> bool {
    match deleted {
        Deleted::Storage | Deleted::Unseen => true,
        Deleted::Redis(Removed { document, entry }) => *document || *entry,
        Deleted::Nothing | Deleted::HandedOn => false,
    }
}

fn outcome(deleted: &Deleted, sorted_set: &str) -> String {
    match deleted {
        Deleted::Storage => "deleted".to_owned(),
        Deleted::Redis(Removed { document, entry }) => match (document, entry) {
            (true, true) => format!("deleted, and its entry in {sorted_set}"),
            (true, false) => "deleted".to_owned(),
            (false, true) => format!("was not there; its entry in {sorted_set} is deleted"),
            (false, false) => "was not there".to_owned(),
        },
        Deleted::Nothing => "was not there".to_owned(),
        Deleted::Unseen => "deleted whatever it had of it, which it does not tell".to_owned(),
        Deleted::HandedOn => "keeps none; what it handed on cannot be taken back".to_owned(),
    }
}
