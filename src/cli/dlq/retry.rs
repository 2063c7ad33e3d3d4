//! `conserver dlq retry`

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use super::ls::no_such_list;
use super::{Fault, configuration, find, known_lists, list_named, not_found, open};
use crate::cli::shown::{printable, visible_json};
use crate::cli::submit::progress;
use crate::config::Plan;
use crate::exit::Exit;
use crate::queue::{DeadLetters, Moved, QueueError, Raw};
use crate::settings::Settings;
use crate::vcon::VconId;

/// So many dead letters are moved in one step.
const BATCH: u64 = 200;

/// Which dead letters to try again.
#[derive(Debug, Args)]
pub struct Retry {
    /// The dead letters of this ingress list, or this one; without it, all there are
    #[arg(value_name = "LIST|UUID")]
    what: Option<String>,

    /// At most so many, the oldest first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
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

/// What is meant by the argument.
enum Meant {
    Lists(Vec<(Raw, u64)>),
    One(Raw, Vec<Raw>),
}

impl Retry {
    pub(super) fn run(&self, settings: &Settings) -> Result<Exit, Fault> {
        let config = configuration(settings);
        let mut letters = open(settings)?;
        let mut done = Done::default();
        let meant = self.meant(&mut letters, config.as_ref())?;
        let result = self.retry(&mut letters, meant, config.as_ref(), &mut done);
        done.retried = done.lists.iter().map(|list| list.retried).sum();
        self.report(&done)?;
        result?;
        if done.lists.iter().any(|list| list.error.is_some()) {
            return Ok(Exit::Data);
        }
        Ok(Exit::Ok)
    }

    fn meant(&self, letters: &mut DeadLetters, config: Option<&Plan>) -> Result<Meant, Fault> {
        let known = known_lists(letters, config)?;
        let lists: Vec<Raw> = match &self.what {
            None => known.into_iter().collect(),
            Some(text) => match list_named(text, &known) {
                Some(list) => vec![list],
                None => {
                    return match find(letters, &known, text)? {
                        Some((entry, lists)) => Ok(Meant::One(entry, lists)),
                        None if text.parse::<VconId>().is_ok() => Err(not_found(text)),
                        None => Err(no_such_list(text)),
                    };
                }
            },
        };
        let mut counted = Vec::new();
        for list in lists {
            match letters.length(&list)? {
                Some(0) => {}
                // A key that is no list is told of when the move is refused.
                length => counted.push((list, length.unwrap_or(1))),
            }
        }
        Ok(Meant::Lists(counted))
    }

    fn retry(
        &self,
        letters: &mut DeadLetters,
        meant: Meant,
        config: Option<&Plan>,
        done: &mut Done,
    ) -> Result<(), QueueError> {
        match meant {
            Meant::One(entry, lists) => {
                for list in lists {
                    let moved = letters.retry_one(&list, &entry)?;
                    done.begin(&list, config).add(&moved);
                }
            }
            Meant::Lists(lists) => {
                let mut left = self.count.unwrap_or(u64::MAX);
                let all = lists
                    .iter()
                    .fold(0u64, |all, (_, n)| all.saturating_add(*n));
                let bar = progress(usize::try_from(all.min(left)).unwrap_or(usize::MAX));
                for (list, length) in lists {
                    let entry = done.begin(&list, config);
                    // Those that fail again meanwhile come behind these.
                    let mut of_list = length.min(left);
                    while of_list > 0 {
                        let moved = letters.retry_oldest(&list, of_list.min(BATCH));
                        let moved = moved.inspect_err(|_| bar.finish_and_clear())?;
                        entry.add(&moved);
                        let count = count(&moved);
                        if count == 0 {
                            break;
                        }
                        bar.inc(count);
                        of_list = of_list.saturating_sub(count);
                        left = left.saturating_sub(count);
                    }
                }
                bar.finish_and_clear();
            }
        }
        Ok(())
    }

    fn report(&self, done: &Done) -> io::Result<()> {
        for list in &done.lists {
            if let Some(error) = &list.error {
                eprintln!("list {}: {}", list.list, printable(error));
            }
            if list.served == Some(false) && list.retried > 0 {
                let list = &list.list;
                eprintln!("warning: no enabled chain takes from list {list}: they wait there");
            }
        }
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", visible_json(&serde_json::to_string(done)?))?;
        } else {
            for list in done.lists.iter().filter(|list| list.retried > 0) {
                writeln!(out, "Put {} back on list {}", list.retried, list.list)?;
            }
            if done.retried == 0 {
                writeln!(out, "Nothing was put back")?;
            }
        }
        out.flush()
    }
}

impl Done {
    fn begin(&mut self, list: &Raw, config: Option<&Plan>) -> &mut List {
        let is_served = |config: &Plan| {
            let lists = config.ingress_lists();
            lists
                .iter()
                .any(|served| served.as_str().as_bytes() == list.as_bytes())
        };
        self.lists.push(List {
            list: list.to_string(),
            retried: 0,
            served: config.map(is_served),
            error: None,
        });
        let last = self.lists.len() - 1;
        &mut self.lists[last]
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
