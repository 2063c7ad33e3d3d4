//! `storage.elasticsearch`: one document for each part of a vCon, in indices of Elasticsearch or
//! OpenSearch.
//!
//! Layout: parties in `<prefix>vcon_parties_<role>` or `<prefix>vcon_parties`, attachments in
//! `<prefix>vcon_attachments_<purpose, type or unknown>`, analyses in
//! `<prefix>vcon_analysis_<type or unknown>`, dialogs in `<prefix>vcon_dialog`, under the id
//! `<uuid>_<place in its list>`. The names are in lower case; what no index may be called becomes
//! `_`. Each document is the part with `vcon_id`, `started_at` (the first dialog's `start`, where
//! there is one) and `tenant_id` (the `id` in the body of an attachment with the purpose `tenant`,
//! where there is one). Bodies of attachments and analyses that are JSON text are indexed parsed.
//!
//! | option | default | |
//! |---|---|---|
//! | `url` | required, or `cloud_id` | `http(s)://host[:port][/path]` |
//! | `cloud_id` | | of a deployment in Elastic Cloud |
//! | `username`, `password` | none | |
//! | `api_key` | none | instead of them; encoded, or as `id:key` |
//! | `ca_certs` | the system's | a file of the authorities to trust, in PEM form, read when the configuration is |
//! | `verify_certs` | `true` | `false`: any certificate will do |
//! | `index_prefix` | none | before the name of every index |
//! | `timeout` | `30` | seconds for one request, from the name's resolution to the last byte |
//!
//! The user needs the rights `read`, `write`, `create_index` and `view_index_metadata` on
//! `<prefix>vcon_*`. A vCon takes three requests: which indices there are, which documents it has
//! in them already (see the module `former`), and one `_bulk` that removes those it has no longer
//! and writes all others. The same vCon saved again overwrites the same documents, so a request
//! whose answer was lost can be sent again; what was refused in part is done again as a whole.
//!
//! Documents do not make a vCon: what stands outside its parts is not indexed, and a body that was
//! JSON text is another one afterwards. So nothing can be got back from here; `get` never finds
//! anything, and neither a vCon that Redis has lost nor an audit is looked for in this storage.
//!
//! Which answers are transient and which permanent stands in one table, in the module `fault`; where the
//! answer does not tell whose fault it is, a trial does (see the module `trial`). The server maps a field by the first value it gets: where bodies of one name are text in one vCon
//! and an object in another, one of both is refused, until the index has a mapping that takes both
//! (`"body": {"type": "object", "enabled": false}`).

mod answer;
mod bulk;
mod documents;
mod fault;
mod former;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod names;
mod options;
mod request;
mod section;
mod trial;

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use self::bulk::{Bulk, Refusal};
use self::documents::Document;
use self::fault::Blame;
use self::former::{Found, Indices, MOST, MOST_FOUND, MOST_OF_INDICES, Place, Window};
use self::request::{Answer, Question, Reading, Server};
use self::section::Section;
use self::trial::Trial;
use super::Storage;
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
use crate::http::agent_that_trusts;
use crate::options::Options;
use crate::vcon::{Outgoing, VconId, Version};

/// How long a probe waits for an answer.
const PROBE: Duration = Duration::from_secs(5);

/// The requests of a save, which may need more where far more of the vCon was there before; all of
/// them together get the time of so many.
const REQUESTS: u32 = 3;

/// Where documents are written.
const BULK: &str = "/_bulk?filter_path=errors,items.*.status,items.*.error";

/// A probe tries no more of the indices that have refused something.
const MOST_PROBED: usize = 20;

/// Reads the options.
pub(super) fn open(options: &mut Options) -> Box<dyn Storage> {
    let url = options::url(options);
    let (authorization, secrets) = options::login(options);
    let trust = options::trust(options);
    let prefix = options.string_or("index_prefix", "").trim().to_owned();
    if let Some(fault) = names::fault(&prefix) {
        options.fault("index_prefix", fault);
    }
    let timeout = options.seconds_or("timeout", 30.0);
    if timeout.is_zero() {
        options.fault("timeout", "must be more than 0");
    }
    Box::new(Elasticsearch {
        server: url.map(|url| Server {
            url,
            agent: agent_that_trusts(&trust),
            authorization,
            secrets,
        }),
        prefix,
        timeout,
        refused: Vec::new(),
    })
}

#[derive(Clone)]
struct Elasticsearch {
    /// `None` after a fault in the options.
    server: Option<Server>,
    prefix: String,
    timeout: Duration,
    /// The indices to which the latest write was refused, for a reason that may pass.
    refused: Vec<String>,
}

impl Storage for Elasticsearch {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        let limit = deadline.begin(self.longest_call());
        let what = format!("save vCon {}", vcon.id);
        let documents = documents::of(vcon, &self.prefix)
            .map_err(|error| Failure::permanent(self.message(&what, &error.to_string())))?;
        let former = self.former(&what, &vcon.id, &documents, limit)?;
        self.replace(&what, &vcon.id, former, &documents, limit)?;
        if let Version::Sealed(sealed) = vcon.version {
            let id = &vcon.id;
            log::info!(vcon_id = id.as_str(); "{id} is {sealed} and is indexed in no part");
        }
        Ok(())
    }

    /// What is indexed does not make a vCon.
    fn get(&mut self, _: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        let what = format!("delete vCon {id}");
        let limit = Deadline::NONE.begin(self.longest_call());
        let former = self.former(&what, id, &[], limit)?;
        self.replace(&what, id, former, &[], limit)
    }

    /// Asks which indices there are, as each save does. After a write was refused for a reason
    /// that may pass, only another write can tell: one that finds no document to update.
    fn probe(&mut self) -> Result<(), Failure> {
        let limit = Deadline::NONE.begin(self.timeout.min(PROBE));
        if self.refused.is_empty() {
            return self.indices("list indices", limit).map(|_| ());
        }
        let nobody = VconId::random();
        let mut bulk = Bulk::new(&nobody);
        for index in self.refused.iter().take(MOST_PROBED) {
            bulk.try_to_write(index);
        }
        self.write("write", &bulk, &[], limit)
    }

    fn prober(&self) -> Option<Box<dyn Storage>> {
        Some(Box::new(self.clone()))
    }

    fn longest_call(&self) -> Duration {
        self.timeout.saturating_mul(REQUESTS)
    }

    fn keeps_documents(&self) -> bool {
        false
    }
}

impl Elasticsearch {
    /// Where parts of the vCon are, by rounds of their numbers; the first round covers all the
    /// numbers that the documents have, and some more.
    fn former(
        &self,
        what: &str,
        id: &VconId,
        documents: &[Document],
        limit: Limit,
    ) -> Result<Vec<Vec<Place>>, Failure> {
        let indices = self.indices(what, limit)?;
        let mut windows: BTreeMap<Section, Window> = BTreeMap::new();
        for section in indices.keys() {
            let parts = documents.iter().filter(|it| it.section == *section).count();
            windows.insert(*section, Window::first(parts));
        }
        let mut rounds: Vec<Vec<Place>> = Vec::new();
        let mut count = 0;
        while !windows.is_empty() {
            let mut round = Vec::new();
            let mut next = BTreeMap::new();
            for (section, window) in windows {
                let indices = indices.get(&section).map(Vec::as_slice);
                let places = window.places(section, indices.unwrap_or_default());
                let found = self.found(what, id, places, limit)?;
                count += found.len();
                if count > MOST_FOUND {
                    let why = format!("it has more than {MOST_FOUND} documents there");
                    return Err(Failure::permanent(self.message(what, &why)));
                }
                next.extend(window.next(&found).map(|window| (section, window)));
                round.extend(found);
            }
            rounds.push(round);
            windows = next;
        }
        Ok(rounds)
    }

    /// Removes what was there and is no more, and writes the documents, in one request.
    ///
    /// Only where there was far more than there is now, the surplus goes first, the highest
    /// numbers before the others: so whatever is left when that breaks off is found again, as no
    /// gap is wider than what is asked for.
    fn replace(
        &mut self,
        what: &str,
        id: &VconId,
        former: Vec<Vec<Place>>,
        documents: &[Document],
        limit: Limit,
    ) -> Result<(), Failure> {
        let mut rounds = former.into_iter();
        let near = rounds.next().unwrap_or_default();
        for far in rounds.rev() {
            let mut bulk = Bulk::new(id);
            far.iter().for_each(|place| bulk.delete(place));
            self.write(what, &bulk, &[], limit)?;
        }
        let kept: HashSet<(&str, usize)> = documents
            .iter()
            .map(|document| (document.index.as_str(), document.number))
            .collect();
        let mut bulk = Bulk::new(id);
        // First: an index may be one of ours under another name, and hold what is written next.
        for place in near {
            if !kept.contains(&(&*place.index, place.number)) {
                bulk.delete(&place);
            }
        }
        documents.iter().for_each(|document| bulk.index(document));
        self.write(what, &bulk, documents, limit)
    }

    fn indices(&self, what: &str, limit: Limit) -> Result<Indices, Failure> {
        let prefix = utf8_percent_encode(&self.prefix, NON_ALPHANUMERIC);
        let path = format!("/{prefix}vcon_*/_alias?expand_wildcards=open");
        let reading = Reading {
            most: MOST_OF_INDICES,
            read: |reader: &mut dyn Read| former::indices(&self.prefix, reader),
        };
        let indices = self.ask(what, &path, Question::Get, reading, limit)?;
        indices.flatten().ok_or_else(|| self.stranger(what))
    }

    /// Those of the places where there is a document.
    fn found(
        &self,
        what: &str,
        id: &VconId,
        mut places: impl Iterator<Item = Place>,
        limit: Limit,
    ) -> Result<Vec<Place>, Failure> {
        let mut found = Vec::new();
        loop {
            let some: Vec<Place> = places.by_ref().take(MOST).collect();
            if some.is_empty() {
                return Ok(found);
            }
            let question = former::question(id, &some);
            let reading = Reading {
                most: former::most(some.len()),
                read: |reader: &mut dyn Read| former::found(&some, reader),
            };
            match self.ask(what, "/_mget", Question::Post(&question), reading, limit)? {
                Some(Found::In(places)) => found.extend(places),
                None | Some(Found::Stranger) => return Err(self.stranger(what)),
                Some(Found::Not(reason)) => {
                    let why = fault::described(200, &reason);
                    return Err(Failure::transient(self.message(what, &why)));
                }
            }
        }
    }

    /// Sends the request, which may write `documents`.
    fn write(
        &mut self,
        what: &str,
        bulk: &Bulk<'_>,
        documents: &[Document],
        limit: Limit,
    ) -> Result<(), Failure> {
        if bulk.is_empty() {
            return Ok(());
        }
        let mut tally = bulk.tally();
        let reading = Reading {
            most: bulk.most(),
            read: |reader: &mut dyn Read| bulk::read(reader, &mut |it| tally.take(it)),
        };
        let question = Question::PostLines(bulk.body());
        if self.ask(what, BULK, question, reading, limit)? != Some(true) {
            return Err(self.stranger(what));
        }
        let refusal = tally
            .end()
            .map_err(|why| Failure::transient(self.message(what, why)))?;
        let Some(refusal) = refusal else {
            self.refused.clear();
            return Ok(());
        };
        let message = self.message(what, &refusal.message);
        let blame = match &refusal {
            Refusal {
                is_the_vcons: true, ..
            } => Blame::VCon,
            Refusal { doubtful, .. } if doubtful.is_empty() => Blame::Place,
            Refusal { doubtful, .. } => {
                let trial = Trial::of(bulk.id(), documents, doubtful);
                self.settle_doubt(what, &trial, limit)?
            }
        };
        // A probe tries only what refuses every write; the others are found out by vCons.
        self.refused = refusal.indices;
        Err(match blame {
            Blame::VCon => Failure::permanent(message),
            Blame::Doubt => Failure::refused(message),
            Blame::Place => Failure::transient(message),
        })
    }

    /// Finds out whether the documents of a vCon are refused for what is in them.
    fn settle_doubt(&self, what: &str, trial: &Trial, limit: Limit) -> Result<Blame, Failure> {
        let reading = Reading {
            most: trial.most(),
            read: |reader: &mut dyn Read| trial.read(reader),
        };
        let question = Question::PostLines(trial.body());
        let answer = match self.ask(what, BULK, question, reading, limit) {
            Ok(answer) => answer.unwrap_or_default(),
            // As if the first answer had not come.
            Err(failure) if failure.is_transient() => return Err(failure),
            Err(_) => return Ok(Blame::Doubt),
        };
        if trial.leaves_something(&answer) {
            let place = self.message("remove a minimal document", "it was refused");
            log::warn!(
                "{place}; remove the documents in {}vcon_* that have no field but `vcon_id`",
                self.prefix
            );
        }
        Ok(trial.blame(&answer))
    }

    /// Asks, and reads the answer; nothing where that is not JSON.
    fn ask<T>(
        &self,
        what: &str,
        path: &str,
        question: Question<'_>,
        reading: Reading<impl FnOnce(&mut dyn Read) -> serde_json::Result<T>>,
        limit: Limit,
    ) -> Result<Option<T>, Failure> {
        let Some(server) = &self.server else {
            return Err(Failure::transient(self.message(what, "no address")));
        };
        let answer = server
            .ask(path, question, reading, self.timeout, limit)
            .map_err(|why| Failure::transient(self.message(what, &why)))?;
        let (status, reason) = match answer {
            Answer::Done(said) => return Ok(said),
            Answer::Refused(status, reason) => (status, reason),
        };
        let why = fault::described(u64::from(status), &reason);
        let message = self.message(what, &why);
        Err(match status {
            413 => Failure::permanent(message),
            429 | 503 => Failure::busy(message),
            _ => Failure::transient(message),
        })
    }

    fn stranger(&self, what: &str) -> Failure {
        let why = "the answer is none of Elasticsearch; see to `url`";
        Failure::transient(self.message(what, why))
    }

    fn message(&self, what: &str, why: &str) -> String {
        match &self.server {
            Some(server) => {
                let why = server.without_secrets(why);
                format!("Elasticsearch {}: could not {what}: {why}", server.url)
            }
            None => format!("Elasticsearch: could not {what}: {why}"),
        }
    }
}

#[cfg(test)]
mod tests;
