//! `conserver get`: prints the document of a vCon, from Redis or else from a storage.

use std::io::{self, Write};

use clap::Args;
use serde::de::IgnoredAny;

use super::find::in_queues;
use super::load_config;
use super::output::{JsonLayout, eprint_line, format_json, output_failed, remaining_ttl};
use super::storage_access::{DocumentStore, FoundDocument, select_stores};
use crate::exit::Exit;
use crate::settings::Settings;
use crate::vcon::VconId;
use crate::visible::{printable_lines, visible_json};

/// Which vCon to get, and how.
#[derive(Debug, Args)]
pub struct GetArgs {
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

/// The stores of a search that found nothing, by their replies.
#[derive(Debug, Default, PartialEq, Eq)]
struct FailedSearch {
    /// Do not have it.
    empty: Vec<String>,
    /// Cannot be reached.
    unavailable: Vec<String>,
    /// Have something under its id that cannot be read.
    unreadable: Vec<String>,
    /// Do not give documents back.
    write_only: Vec<String>,
}

impl GetArgs {
    /// Looks for it, and prints it.
    pub fn run(&self, settings: &Settings) -> Exit {
        let config = match load_config(settings) {
            Ok(config) => config,
            Err(exit) => return exit,
        };
        let mut stores = match select_stores(settings, &config, self.from.as_slice()) {
            Ok(stores) => stores,
            Err(why) => {
                eprint_line(&why);
                return Exit::Usage;
            }
        };
        let found = self.find(&mut stores);
        let is_redis_away =
            |search: &FailedSearch| search.unavailable.iter().any(|it| it == "Redis");
        if self.from.is_none() && !found.as_ref().is_err_and(is_redis_away) {
            in_queues(settings, &config, &self.uuid)
                .iter()
                .for_each(eprint_line);
        }
        match found {
            Ok(found) => match self.print(&found.document) {
                Ok(()) => Exit::Ok,
                Err(error) => output_failed(&error),
            },
            Err(search) => {
                let (message, exit) = search.verdict(&self.uuid);
                eprint_line(&message);
                exit
            }
        }
    }

    fn find(&self, stores: &mut [DocumentStore<'_>]) -> Result<FoundDocument, FailedSearch> {
        let mut search = FailedSearch::default();
        for store in stores {
            let name = store.to_string();
            if !store.keeps_documents() {
                search.write_only.push(name);
                continue;
            }
            match store.get(&self.uuid) {
                Ok(Some(found)) => {
                    match found.ttl {
                        Some(_) => eprint_line(format_args!(
                            "Found in {name}, expires in {}",
                            remaining_ttl(found.ttl)
                        )),
                        None => eprint_line(format_args!("Found in {name}")),
                    }
                    return Ok(found);
                }
                Ok(None) => search.empty.push(name),
                Err(error) => {
                    eprint_line(format_args!("{name}: {error}"));
                    if error.is_unavailable() {
                        search.unavailable.push(name);
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
            Ok(IgnoredAny) => return visible_json(&format_json(text, JsonLayout::Indented)),
        },
    };
    eprint_line(format_args!("the document is not JSON: {why}"));
    printable_lines(&String::from_utf8_lossy(document))
}

impl FailedSearch {
    /// The message, and the exit code.
    fn verdict(&self, id: &VconId) -> (String, Exit) {
        let mut parts = Vec::new();
        let mut part = |what: &str, names: &[String]| {
            if !names.is_empty() {
                parts.push(format!("{what} {}", names.join(", ")));
            }
        };
        part("it is not in", &self.empty);
        part("no answer from", &self.unavailable);
        part("unreadable in", &self.unreadable);
        part("cannot be read back from", &self.write_only);
        let exit = if !self.unavailable.is_empty() {
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
    fn a_vcon_that_was_not_found_may_be_in_a_store_that_is_unavailable() {
        let id: VconId = "05cec3d4-0561-4010-9fb8-23cc7edef146".parse().unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        for (empty, unavailable, unreadable, write_only, exit, said) in [
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
                "it is not in Redis; no answer from storage a; unreadable in \
                 storage b; cannot be read back from storage c",
            ),
            (
                &[],
                &[],
                &["storage b"],
                &[],
                Exit::Data,
                "unreadable in storage b",
            ),
            (
                &[],
                &[],
                &[],
                &["storage c"],
                Exit::Usage,
                "cannot be read back from storage c",
            ),
        ] {
            let search = FailedSearch {
                empty: names(empty),
                unavailable: names(unavailable),
                unreadable: names(unreadable),
                write_only: names(write_only),
            };
            let expected = format!("vCon {id} was not found: {said}");
            assert_eq!(search.verdict(&id), (expected, exit));
        }
    }
}
