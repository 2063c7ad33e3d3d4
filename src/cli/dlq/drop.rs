//! `conserver dlq drop`: removes dead letters for good.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use super::{
    DlqError, connect, find_entry, known_lists, load_plan, no_such_entry, owner, queue_named,
};
use crate::cli::output::{
    can_ask, counted, eprint_line, is_confirmed, progress_bar, remaining_ttl,
};
use crate::config::Plan;
use crate::exit::Exit;
use crate::queue::{DeadLetters, Moved, Raw};
use crate::settings::Settings;
use crate::visible::{printable, visible_json};

/// Dead letters dropped in one step.
const BATCH: u64 = 200;

/// The same if their documents are deleted, which may be large.
const BATCH_WITH_DOCUMENTS: u64 = 10;

/// Which dead letters to drop.
#[derive(Debug, Args)]
pub struct DropArgs {
    /// The vCon's UUID, to drop it from every queue; or one queue, and the UUIDs to drop from it
    ///
    /// A queue is named by its ingress list, or as storage:NAME. An entry that is no UUID is named as
    /// `dlq ls` prints it.
    #[arg(required = true, value_name = "[QUEUE] UUID")]
    what: Vec<String>,

    /// Drop every dead letter of the queue, and its backlog
    #[arg(long)]
    all: bool,

    /// Delete its document from Redis as well
    #[arg(long)]
    document: bool,

    /// Do not ask for confirmation; required without a terminal
    #[arg(long)]
    yes: bool,

    /// Print the result as a JSON object on each line
    #[arg(long)]
    json: bool,
}

/// The result for one entry.
#[derive(Serialize)]
struct DroppedEntry {
    uuid: String,
    lists: Vec<String>,
    document_deleted: bool,
}

/// The result for a whole queue.
#[derive(Serialize)]
struct EmptiedQueue {
    list: String,
    dropped: u64,
}

/// An entry, and the queues to drop it from.
struct ChosenEntry {
    entry: Raw,
    lists: Vec<Raw>,
}

impl DropArgs {
    pub(super) fn run(&self, settings: &Settings) -> Result<Exit, DlqError> {
        if self.all && self.what.len() != 1 {
            eprint_line("--all drops every dead letter of one queue: name that queue and no UUID");
            return Ok(Exit::Usage);
        }
        if !self.yes && !can_ask() {
            eprint_line(
                "standard input is no terminal, so nobody can confirm: --yes drops without asking",
            );
            return Ok(Exit::Usage);
        }
        let plan = load_plan(settings);
        let plan = plan.as_ref();
        let mut letters = connect(settings)?;
        if self.all {
            return self.drop_all(&mut letters, plan);
        }
        let chosen = self.chosen(&mut letters, plan)?;
        if !self.yes && !self.is_confirmed(&mut letters, &chosen)? {
            eprint_line("Nothing was dropped");
            return Ok(Exit::Ok);
        }
        let mut exit = Exit::Ok;
        for letter in chosen {
            if self.drop_one(&mut letters, plan, letter)? != Exit::Ok {
                exit = Exit::Data;
            }
        }
        Ok(exit)
    }

    /// The entries that the arguments name.
    fn chosen(
        &self,
        letters: &mut DeadLetters,
        plan: Option<&Plan>,
    ) -> Result<Vec<ChosenEntry>, DlqError> {
        let (lists, entries) = match &self.what[..] {
            [queue, entries @ ..] if !entries.is_empty() => {
                let known = known_lists(letters, plan)?;
                (
                    std::iter::once(queue_named(letters, queue, &known)?).collect(),
                    entries,
                )
            }
            entries => (letters.lists()?, entries),
        };
        let mut chosen = Vec::new();
        for text in entries {
            let found = find_entry(letters, &lists, text)?;
            let (entry, lists) = found.ok_or_else(|| no_such_entry(text))?;
            chosen.push(ChosenEntry { entry, lists });
        }
        Ok(chosen)
    }

    fn drop_one(
        &self,
        letters: &mut DeadLetters,
        plan: Option<&Plan>,
        ChosenEntry { entry, lists }: ChosenEntry,
    ) -> Result<Exit, DlqError> {
        let mut done = DroppedEntry {
            uuid: entry.to_string(),
            lists: Vec::new(),
            document_deleted: false,
        };
        let mut exit = Exit::Ok;
        for list in lists {
            let owner = owner(&list, plan);
            match letters.drop_one(owner, &list, &entry, self.document)? {
                Moved::Some(0) => {}
                Moved::Some(_) => done.lists.push(list.to_string()),
                Moved::Refused(why) => {
                    eprint_line(&why);
                    exit = Exit::Data;
                }
            }
        }
        if done.lists.is_empty() && exit == Exit::Ok {
            // Somebody else has just removed it.
            return Err(no_such_entry(&entry.to_string()));
        }
        done.document_deleted = self.document && entry.id().is_some() && !done.lists.is_empty();
        self.report(&done)?;
        Ok(exit)
    }

    /// Drops all that is in the queue now.
    fn drop_all(&self, letters: &mut DeadLetters, plan: Option<&Plan>) -> Result<Exit, DlqError> {
        let known = known_lists(letters, plan)?;
        let list = queue_named(letters, &self.what[0], &known)?;
        let Some(length) = letters.length(&list)? else {
            let why = format!("DLQ:{list} is not a list: something else has the key");
            return Err(DlqError::NotThere(why));
        };
        let entries = match length {
            1 => "the one entry".to_owned(),
            more => format!("all {more} entries"),
        };
        let question = format!("Drop {entries} of DLQ:{list}{}?", self.and_documents());
        if !self.yes && !is_confirmed(&question)? {
            eprint_line("Nothing was dropped");
            return Ok(Exit::Ok);
        }
        let owner = owner(&list, plan);
        let bar = progress_bar(usize::try_from(length).unwrap_or(usize::MAX));
        let mut dropped = 0;
        let batch = if self.document {
            BATCH_WITH_DOCUMENTS
        } else {
            BATCH
        };
        // Later ones are appended behind these.
        while dropped < length {
            let some = batch.min(length - dropped);
            let Moved::Some(count @ 1..) =
                letters.drop_oldest(owner, &list, some, self.document)?
            else {
                break;
            };
            dropped += count;
            bar.inc(count);
        }
        bar.finish_and_clear();
        let list = list.to_string();
        let mut out = io::stdout().lock();
        if self.json {
            let json =
                serde_json::to_string(&EmptiedQueue { list, dropped }).map_err(io::Error::from)?;
            writeln!(out, "{}", visible_json(&json))?;
        } else {
            writeln!(out, "Dropped {} of DLQ:{list}", counted(dropped, "entry"))?;
        }
        out.flush()?;
        Ok(Exit::Ok)
    }

    fn is_confirmed(
        &self,
        letters: &mut DeadLetters,
        chosen: &[ChosenEntry],
    ) -> Result<bool, DlqError> {
        let [ChosenEntry { entry, lists }] = chosen else {
            let queue = printable(self.what.first().map_or("", String::as_str));
            let (count, documents) = (counted(chosen.len(), "entry"), self.and_documents());
            let question = format!("Drop {count} from {queue}{documents}?");
            return Ok(is_confirmed(&question)?);
        };
        let lists: Vec<String> = lists.iter().map(|list| format!("DLQ:{list}")).collect();
        let document = match entry.id() {
            None => String::new(),
            Some(_) if self.document => ", and delete its document".to_owned(),
            Some(id) => {
                let ttl = letters.document(&id)?.ttl;
                format!(" (a document in Redis stays there: {})", remaining_ttl(ttl))
            }
        };
        let question = format!("Drop {entry} from {}{document}?", lists.join(", "));
        Ok(is_confirmed(&question)?)
    }

    fn and_documents(&self) -> &'static str {
        if self.document {
            ", and delete their documents"
        } else {
            ""
        }
    }

    fn report(&self, done: &DroppedEntry) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", visible_json(&serde_json::to_string(done)?))?;
        } else {
            for list in &done.lists {
                writeln!(out, "Dropped {} from DLQ:{list}", done.uuid)?;
            }
        }
        out.flush()
    }
}
