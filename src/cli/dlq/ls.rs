//! `conserver dlq ls`

use std::io::{self, Write};

use clap::Args;

use super::view::{View, listing};
use super::{Fault, all_lists, configuration, defers, known_lists, open, queue_named};
use crate::cli::shown::complain;
use crate::exit::Exit;
use crate::settings::Settings;
use crate::visible::visible_json;

/// The table has so many rows, unless more are asked for.
const ROWS: u64 = 1000;

/// Dead letters read at once. With reasons as long as they may be, they take some 100 MB.
const PAGE: u64 = 100;

/// Which dead letters to list, and how.
#[derive(Debug, Args)]
pub struct Ls {
    /// Only those of this ingress list, named as in config.yml or by its key, DLQ:<LIST>; or of a
    /// storage: storage:<NAME>
    list: Option<String>,

    /// Look through all keys for dead letter queues of other lists, too
    ///
    /// Without it: the lists and storages of config.yml, and all others that a daemon has had dead
    /// letters of. What others have put into queues of their own is only found by this.
    #[arg(long, conflicts_with = "list")]
    all: bool,

    /// At most so many [default: 1000 in the table, all as JSON]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Print one JSON object on each line instead of a table
    #[arg(long)]
    json: bool,
}

impl Ls {
    pub(super) fn run(&self, settings: &Settings) -> Result<Exit, Fault> {
        let config = configuration(settings);
        let mut letters = open(settings)?;
        let now = letters.now()?;
        let known = match self.all {
            true => all_lists(&mut letters, config.as_ref())?,
            false => known_lists(&mut letters, config.as_ref())?,
        };
        let lists: Vec<_> = match &self.list {
            None => known.into_iter().collect(),
            Some(text) => vec![queue_named(&mut letters, text, &known)?],
        };
        let most = self
            .count
            .unwrap_or(if self.json { u64::MAX } else { ROWS });
        let (mut views, mut listed, mut all) = (Vec::new(), 0u64, 0u64);
        let mut out = io::stdout().lock();
        for list in lists {
            let Some(length) = letters.length(&list)? else {
                complain(format_args!(
                    "DLQ:{list} is not a list: something else has the key"
                ));
                continue;
            };
            all = all.saturating_add(length);
            let defers = defers(&list, config.as_ref());
            let mut place = 0;
            while place < length && listed < most {
                let page = PAGE.min(most - listed).min(length - place);
                let some = letters.page(&list, place, page)?;
                if some.is_empty() {
                    break;
                }
                place += page;
                listed += some.len() as u64;
                let some = some.into_iter().map(|letter| View::new(letter, defers));
                if self.json {
                    for view in some {
                        let json = serde_json::to_string(&view).map_err(io::Error::from)?;
                        writeln!(out, "{}", visible_json(&json))?;
                    }
                } else {
                    views.extend(some.map(View::of_row));
                }
            }
        }
        if !self.json && views.is_empty() {
            writeln!(out, "There are no dead letters")?;
        } else if !self.json {
            writeln!(out, "{}", listing(&views, now))?;
        }
        out.flush()?;
        if listed < all && !self.json {
            let more = all - listed;
            complain(format_args!(
                "{more} more are not shown (--count N, or --json for all of them)"
            ));
        }
        Ok(Exit::Ok)
    }
}
