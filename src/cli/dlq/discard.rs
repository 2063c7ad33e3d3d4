//! `conserver dlq drop`

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use super::{Fault, find, not_found, open};
use crate::cli::ask::{can_ask, is_confirmed};
use crate::cli::shown::{life, printable, visible_json};
use crate::exit::Exit;
use crate::queue::{DeadLetters, Moved, Raw};
use crate::settings::Settings;

/// Which dead letter to drop.
#[derive(Debug, Args)]
pub struct Discard {
    /// The vCon's UUID; what is no UUID is named as `dlq ls` prints it
    uuid: String,

    /// Delete its document from Redis as well
    #[arg(long)]
    document: bool,

    /// Do not ask; needed where nobody can be asked
    #[arg(long)]
    yes: bool,

    /// Print the result as a JSON object
    #[arg(long)]
    json: bool,
}

/// What was done.
#[derive(Serialize)]
struct Done {
    uuid: String,
    lists: Vec<String>,
    document_deleted: bool,
}

impl Discard {
    pub(super) fn run(&self, settings: &Settings) -> Result<Exit, Fault> {
        if !self.yes && !can_ask() {
            eprintln!("nobody can be asked, as standard input is no terminal: --yes drops it");
            return Ok(Exit::Usage);
        }
        let mut letters = open(settings)?;
        let lists = letters.lists()?;
        let (entry, lists) =
            find(&mut letters, &lists, &self.uuid)?.ok_or_else(|| not_found(&self.uuid))?;
        if !self.yes && !self.is_confirmed(&mut letters, &entry, &lists)? {
            eprintln!("Nothing was dropped");
            return Ok(Exit::Ok);
        }
        let mut done = Done {
            uuid: entry.to_string(),
            lists: Vec::new(),
            document_deleted: false,
        };
        let mut exit = Exit::Ok;
        for list in lists {
            match letters.drop_one(&list, &entry, self.document)? {
                Moved::Some(0) => {}
                Moved::Some(_) => done.lists.push(list.to_string()),
                Moved::Refused(why) => {
                    eprintln!("{}", printable(&why));
                    exit = Exit::Data;
                }
            }
        }
        if done.lists.is_empty() && exit == Exit::Ok {
            // Somebody else was faster.
            return Err(not_found(&self.uuid));
        }
        done.document_deleted = self.document && entry.id().is_some() && !done.lists.is_empty();
        self.report(&done)?;
        Ok(exit)
    }

    fn is_confirmed(
        &self,
        letters: &mut DeadLetters,
        entry: &Raw,
        lists: &[Raw],
    ) -> Result<bool, Fault> {
        let lists: Vec<String> = lists.iter().map(|list| format!("DLQ:{list}")).collect();
        let document = match entry.id() {
            None => String::new(),
            Some(_) if self.document => ", and delete its document".to_owned(),
            Some(id) => {
                let ttl = letters.document(&id)?.ttl;
                format!(" (a document in Redis stays there: {})", life(ttl))
            }
        };
        let question = format!("Drop {entry} from {}{document}?", lists.join(", "));
        Ok(is_confirmed(&question)?)
    }

    fn report(&self, done: &Done) -> io::Result<()> {
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
