//! `conserver dlq retry`

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::Serialize;

use super::replay::{Replayed, Which, replay};
use super::{
    Fault, all_lists, configuration, find, find_anywhere, known_lists, not_found, open,
    queue_if_named, queue_named, storage_of,
};
use crate::cli::interruption;
use crate::cli::shown::complain;
use crate::cli::submit::progress;
use crate::config::{Config, Plan};
use crate::exit::Exit;
use crate::queue::{DeadLetters, Moved, QueueError, Raw};
use crate::settings::Settings;
use crate::vcon::VconId;
use crate::visible::{printable, visible_json};

/// So many dead letters are moved in one step.
const BATCH: u64 = 200;

/// Which dead letters to try again.
#[derive(Debug, Args)]
pub struct Retry {
    /// The dead letters of this ingress list or storage (storage:NAME), or this one; without it, all
    /// there are
    #[arg(value_name = "LIST|storage:NAME|UUID")]
    what: Option<String>,

    /// Of the list or storage, only these
    #[arg(value_name = "UUID")]
    uuids: Vec<String>,

    /// All of the list or storage, as without any UUID
    #[arg(long, requires = "what", conflicts_with_all = ["uuids", "count"])]
    all: bool,

    /// At most so many, the oldest first
    #[arg(long, value_name = "N", conflicts_with = "uuids",
        value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Print the result as a JSON object
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Done {
    retried: u64,
    lists: Vec<List>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    storages: Vec<Replayed>,
}

/// What was done with the dead letters of one list.
#[derive(Debug, Serialize)]
struct List {
    list: String,
    retried: u64,
    /// Whether a chain in service takes from the list; not known without the configuration.
    served: Option<bool>,
    /// Why not all were moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What is meant by the arguments.
enum Meant {
    /// Queues with their lengths.
    Queues(Vec<(Raw, u64)>),
    /// Entries of queues.
    Entries(Vec<(Raw, Vec<Raw>)>),
}

/// One run of the command.
struct Run<'a> {
    retry: &'a Retry,
    settings: &'a Settings,
    plan: Option<Plan>,
    /// With the options of storages; read when the first one is needed.
    config: Option<Config>,
    letters: DeadLetters,
    /// Becomes true with a signal, from the first storage on.
    interrupted: Option<Arc<AtomicBool>>,
    done: Done,
}

impl Retry {
    pub(super) fn run(&self, settings: &Settings) -> Result<Exit, Fault> {
        let mut run = Run {
            retry: self,
            settings,
            plan: configuration(settings),
            config: None,
            letters: open(settings)?,
            interrupted: None,
            done: Done::default(),
        };
        let meant = run.meant()?;
        let result = match meant {
            Meant::Queues(queues) => run.queues(queues),
            Meant::Entries(entries) => run.entries(&entries),
        };
        let mut done = run.done;
        done.retried = done.lists.iter().map(|list| list.retried).sum();
        self.report(&done)?;
        result?;
        Ok(done.exit())
    }

    fn report(&self, done: &Done) -> io::Result<()> {
        for list in &done.lists {
            if let Some(error) = &list.error {
                complain(format_args!("list {}: {error}", list.list));
            }
            if list.served == Some(false) && list.retried > 0 {
                let list = &list.list;
                complain(format_args!(
                    "warning: no enabled chain takes from list {list}: they wait there"
                ));
            }
        }
        for storage in &done.storages {
            if let Some(error) = &storage.error {
                let name = &storage.storage;
                complain(format_args!("storage {name}: stopped: {error}"));
            }
        }
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", visible_json(&serde_json::to_string(done)?))?;
        } else {
            for list in done.lists.iter().filter(|list| list.retried > 0) {
                writeln!(out, "Put {} back on list {}", list.retried, list.list)?;
            }
            for Replayed {
                storage,
                saved,
                refused,
                ..
            } in &done.storages
            {
                let storage = printable(storage);
                let stay = match refused {
                    0 => String::new(),
                    refused => format!("; {refused} stay (conserver dlq ls storage:{storage})"),
                };
                writeln!(out, "Saved {saved} to storage {storage}{stay}")?;
            }
            if done.retried == 0 && done.storages.is_empty() {
                writeln!(out, "Nothing was put back")?;
            }
        }
        out.flush()
    }
}

impl Run<'_> {
    fn meant(&mut self) -> Result<Meant, Fault> {
        let known = known_lists(&mut self.letters, self.plan.as_ref())?;
        let lists: Vec<Raw> = match &self.retry.what {
            None => {
                let all = all_lists(&mut self.letters, self.plan.as_ref())?;
                all.into_iter().collect()
            }
            Some(text) if !self.retry.uuids.is_empty() => {
                let queue =
                    std::iter::once(queue_named(&mut self.letters, text, &known)?).collect();
                let mut entries = Vec::new();
                for uuid in &self.retry.uuids {
                    let found = find(&mut self.letters, &queue, uuid)?;
                    entries.push(found.ok_or_else(|| not_found(uuid))?);
                }
                return Ok(Meant::Entries(entries));
            }
            Some(text) => match queue_if_named(&mut self.letters, text, &known)? {
                Some(list) => vec![list],
                None => {
                    return match find_anywhere(&mut self.letters, &known, text)? {
                        Some(found) => Ok(Meant::Entries(vec![found])),
                        None if text.parse::<VconId>().is_ok() => Err(not_found(text)),
                        None => queue_named(&mut self.letters, text, &known)
                            .map(|list| Meant::Queues(vec![(list, 0)])),
                    };
                }
            },
        };
        let mut counted = Vec::new();
        for list in lists {
            match self.letters.length(&list)? {
                Some(0) => {}
                // A key that is no list is told of when the move is refused.
                length => counted.push((list, length.unwrap_or(1))),
            }
        }
        Ok(Meant::Queues(counted))
    }

    /// First what only has to be moved, then what is to be saved.
    fn queues(&mut self, queues: Vec<(Raw, u64)>) -> Result<(), Fault> {
        let mut left = self.retry.count.unwrap_or(u64::MAX);
        let of_storage = |(list, _): &(Raw, u64)| storage_of(list, self.plan.as_ref());
        let (storages, lists): (Vec<_>, Vec<_>) = queues
            .into_iter()
            .partition(|queue| of_storage(queue).is_some());
        self.lists(lists, &mut left)?;
        for (list, _) in storages {
            if let Some(storage) = storage_of(&list, self.plan.as_ref())
                && left > 0
            {
                let done = self.storage(&storage, &Which::Oldest(left))?;
                left = left.saturating_sub(done);
            }
        }
        Ok(())
    }

    fn lists(&mut self, lists: Vec<(Raw, u64)>, left: &mut u64) -> Result<(), QueueError> {
        let all = lists
            .iter()
            .fold(0u64, |all, (_, n)| all.saturating_add(*n));
        let bar = progress(usize::try_from(all.min(*left)).unwrap_or(usize::MAX));
        for (list, length) in lists {
            let entry = self.done.begin(&list, self.plan.as_ref());
            // Those that fail again meanwhile come behind these.
            let mut of_list = length.min(*left);
            while of_list > 0 {
                let moved = self.letters.retry_oldest(&list, of_list.min(BATCH));
                let moved = moved.inspect_err(|_| bar.finish_and_clear())?;
                entry.add(&moved);
                let count = count(&moved);
                if count == 0 {
                    break;
                }
                bar.inc(count);
                of_list = of_list.saturating_sub(count);
                *left = left.saturating_sub(count);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn entries(&mut self, entries: &[(Raw, Vec<Raw>)]) -> Result<(), Fault> {
        // Those of one storage are saved under one lock.
        let mut of_storages: Vec<(String, Vec<Raw>)> = Vec::new();
        for (entry, lists) in entries {
            for list in lists {
                let Some(storage) = storage_of(list, self.plan.as_ref()) else {
                    let moved = self.letters.retry_one(list, entry)?;
                    self.done.begin(list, self.plan.as_ref()).add(&moved);
                    continue;
                };
                let mut known = of_storages.iter_mut();
                match known.find(|(name, _)| *name == storage) {
                    Some((_, entries)) => entries.push(entry.clone()),
                    None => of_storages.push((storage, vec![entry.clone()])),
                }
            }
        }
        for (storage, entries) in of_storages {
            self.storage(&storage, &Which::These(&entries))?;
        }
        Ok(())
    }

    /// Saves dead letters to a storage; returns how many were looked at.
    fn storage(&mut self, name: &str, which: &Which<'_>) -> Result<u64, Fault> {
        let config = match &mut self.config {
            Some(config) => config,
            empty => empty.insert(Config::load(&self.settings.config_file)?),
        };
        let interrupted = match &mut self.interrupted {
            Some(interrupted) => interrupted,
            empty => empty.insert(interruption()?),
        };
        let done = match config.storages.get(name) {
            Some(storage) => replay(
                &mut self.letters,
                self.settings,
                storage,
                which,
                interrupted,
            )?,
            None => Replayed {
                storage: name.to_owned(),
                error: Some("the configuration has no storage of this name".to_owned()),
                is_unknown: true,
                ..Replayed::default()
            },
        };
        let looked_at = done.saved + done.refused;
        self.done.storages.push(done);
        Ok(looked_at)
    }
}

impl Done {
    fn begin(&mut self, list: &Raw, plan: Option<&Plan>) -> &mut List {
        let is_served = |plan: &Plan| {
            let lists = plan.ingress_lists();
            lists
                .iter()
                .any(|served| served.as_str().as_bytes() == list.as_bytes())
        };
        // Single entries of one list are told together.
        let name = list.to_string();
        let place = self.lists.iter().position(|known| known.list == name);
        let place = place.unwrap_or_else(|| {
            self.lists.push(List {
                list: name,
                retried: 0,
                served: plan.map(is_served),
                error: None,
            });
            self.lists.len() - 1
        });
        &mut self.lists[place]
    }

    fn exit(&self) -> Exit {
        let stopped = |storage: &Replayed| storage.error.is_some() && !storage.is_unknown;
        if self.storages.iter().any(stopped) {
            return Exit::Unavailable;
        }
        let is_left = |storage: &Replayed| storage.refused > 0 || storage.is_unknown;
        if self.lists.iter().any(|list| list.error.is_some()) || self.storages.iter().any(is_left) {
            return Exit::Data;
        }
        Exit::Ok
    }
}

impl List {
    fn add(&mut self, moved: &Moved) {
        match moved {
            Moved::Some(count) => self.retried += count,
            Moved::Refused(why) => self.error = Some(why.clone()),
        }
    }
}

fn count(moved: &Moved) -> u64 {
    match moved {
        Moved::Some(count) => *count,
        Moved::Refused(_) => 0,
    }
}
