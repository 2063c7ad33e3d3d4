//! `conserver get`: the document of a vCon, wherever it is.

use std::io::{self, Write};

use clap::Args;
use serde::de::IgnoredAny;

use super::dlq;
use super::places::{self, Found, Place};
use super::shown::{Layout, complain, complain_lines, laid_out, life};
use crate::config::Config;
use crate::exit::Exit;
use crate::settings::Settings;
use crate::vcon::VconId;
use crate::visible::{printable_lines, visible_json};

/// Which vCon to get, and how.
#[derive(Debug, Args)]
pub struct Get {
    /// The vCon's UUID
    uuid: VconId,

    /// Ask this storage of config.yml only, or `redis`
    ///
    /// A storage that is itself called `redis` is named by its path: `storages.redis`.
    #[arg(long, value_name = "STORAGE")]
    from: Option<String>,

    /// Print the document byte for byte as it is kept
    ///
    /// Otherwise it is laid out in lines, and what could steer a terminal is escaped; numbers and
    /// the order of keys stay as they are either way.
    #[arg(long)]
    raw: bool,
}

/// The places that did not have it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Search {
    /// Those that said so.
    empty: Vec<String>,
    /// Those that cannot be reached.
    away: Vec<String>,
    /// Those that have something under its id which cannot be read.
    unreadable: Vec<String>,
    /// Those that keep no documents.
    blind: Vec<String>,
}

impl Get {
    /// Looks for it, and prints it.
    pub fn run(&self, settings: &Settings) -> Exit {
        let config = match Config::load(&settings.config_file) {
            Ok(config) => config,
            Err(errors) => {
                complain_lines(errors);
                return Exit::Config;
            }
        };
        let mut places = match places::chosen(settings, &config, self.from.as_slice()) {
            Ok(places) => places,
            Err(why) => {
                complain(&why);
                return Exit::Usage;
            }
        };
        match self.find(&mut places) {
            Ok(found) => match self.print(&found.document) {
                Ok(()) => Exit::Ok,
                Err(error) => dlq::Fault::Output(error).exit(),
            },
            Err(search) => {
                let (said, exit) = search.verdict(&self.uuid);
                complain(&said);
                exit
            }
        }
    }

    fn find(&self, places: &mut [Place<'_>]) -> Result<Found, Search> {
        let mut search = Search::default();
        for place in places {
            let name = place.to_string();
            if !place.keeps_documents() {
                search.blind.push(name);
                continue;
            }
            match place.get(&self.uuid) {
                Ok(Some(found)) => {
                    match found.ttl {
                        Some(_) => complain(format_args!(
                            "Found in {name}, still lives {}",
                            life(found.ttl)
                        )),
                        None => complain(format_args!("Found in {name}")),
                    }
                    return Ok(found);
                }
                Ok(None) => search.empty.push(name),
                Err(fault) => {
                    complain(format_args!("{name}: {fault}"));
                    if fault.is_away() {
                        search.away.push(name);
                    } else {
                        search.unreadable.push(name);
                    }
                }
            }
        }
        Err(search)
    }

    fn print(&self, document: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.raw {
            out.write_all(document)?;
        } else {
            writeln!(out, "{}", laid_out_for_people(document))?;
        }
        out.flush()
    }
}

fn laid_out_for_people(document: &[u8]) -> String {
    let why = match std::str::from_utf8(document) {
        Err(error) => error.to_string(),
        Ok(text) => match serde_json::from_str::<IgnoredAny>(text) {
            Err(error) => error.to_string(),
            Ok(IgnoredAny) => return visible_json(&laid_out(text, Layout::Lines)),
        },
    };
    complain(format_args!("What is there is not JSON: {why}"));
    printable_lines(&String::from_utf8_lossy(document))
}

impl Search {
    /// What to say when it was not found, and how to end.
    fn verdict(&self, id: &VconId) -> (String, Exit) {
        let mut parts = Vec::new();
        let mut part = |what: &str, names: &[String]| {
            if !names.is_empty() {
                parts.push(format!("{what} {}", names.join(", ")));
            }
        };
        part("it is not in", &self.empty);
        part("no answer from", &self.away);
        part("what is there cannot be read:", &self.unreadable);
        part("not to be got back from", &self.blind);
        let exit = if !self.away.is_empty() {
            Exit::Unavailable
        } else if self.empty.is_empty() && self.unreadable.is_empty() {
            Exit::Usage
        } else {
            Exit::Data
        };
        (
            format!("vCon {id} was not found: {}", parts.join("; ")),
            exit,
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_found_may_be_where_nobody_answers() {
        let id: VconId = "05cec3d4-0561-4010-9fb8-23cc7edef146".parse().unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        for (empty, away, unreadable, blind, exit, said) in [
            (
                &["Redis", "storage a"][..],
                &[][..],
                &[][..],
                &[][..],
                Exit::Data,
                "it is not in Redis, storage a",
            ),
            (
                &["Redis"],
                &["storage a"],
                &["storage b"],
                &["storage c"],
                Exit::Unavailable,
                "it is not in Redis; no answer from storage a; what is there cannot be read: \
                 storage b; not to be got back from storage c",
            ),
            (
                &[],
                &[],
                &["storage b"],
                &[],
                Exit::Data,
                "what is there cannot be read: storage b",
            ),
            (
                &[],
                &[],
                &[],
                &["storage c"],
                Exit::Usage,
                "not to be got back from storage c",
            ),
        ] {
            let search = Search {
                empty: names(empty),
                away: names(away),
                unreadable: names(unreadable),
                blind: names(blind),
            };
            let expected = format!("vCon {id} was not found: {said}");
            assert_eq!(search.verdict(&id), (expected, exit));
        }
    }
}
