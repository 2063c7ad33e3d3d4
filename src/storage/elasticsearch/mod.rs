//! `storage.elasticsearch`: one document for each part of a vCon, in indices of Elasticsearch or
//! OpenSearch.
//!
//! Layout: parties in `<prefix>vcon_parties_<role>` or `<prefix>vcon_parties`, attachments in
//! `<prefix>vcon_attachments_<type, purpose or unknown>`, analyses in
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
//! in them already (see the module `documents`), and one `_bulk` that removes those it has no longer
//! and writes all others. The same vCon saved again overwrites the same documents, so a request
//! whose answer was lost can be sent again; what was refused in part is done again as a whole.
//!
//! Documents do not make a vCon: what stands outside its parts is not indexed, and a body that was
//! JSON text is another one afterwards. So nothing can be got back from here; `get` never finds
//! anything, and neither a vCon that Redis has lost nor an audit is looked for in this storage.
//!
//! The module `errors` has the table of the answers and what each means for the vCon; if the answer does
//! not tell whose fault a refusal is, a trial does. The server maps a field by the first value it gets: if
//! bodies of one name are text in one vCon and an object in another, it refuses one of them, until the index
//! has a mapping that takes both (`"body": {"type": "object", "enabled": false}`).

mod bulk;
mod client;
mod documents;
mod errors;

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

#[cfg(any(test, fuzzing))]
pub(super) use self::bulk::fuzz;
use self::bulk::{Bulk, BulkRefusal};
use self::client::{ElasticServer, Reply, ReplyReader, RequestBody};
use self::documents::{
    IndexedPart, Indices, MOST, MOST_FOUND, MOST_OF_INDICES, PartDocument, PartsFound, VconList,
    Window,
};
use self::errors::{Culprit, RefusalTrial};
use super::Storage;
use crate::deadline::{Deadline, Limit};
use crate::failure::Failure;
use crate::http_client::agent_that_trusts;
use crate::options::Options;
use crate::vcon::{Outgoing, VconId, Version};

/// How long a probe waits for an answer.
const PROBE: Duration = Duration::from_secs(5);

/// The usual number of requests of a save, which have this many times the time of one together. A save
/// needs more if there were far more documents of the vCon before.
const REQUESTS: u32 = 3;

/// Where documents are written.
const BULK: &str = "/_bulk?filter_path=errors,items.*.status,items.*.error";

/// A probe tries at most this many of the indices that refused something.
const MOST_PROBED: usize = 20;

/// Reads the options.
pub(super) fn open(options: &mut Options) -> Box<dyn Storage> {
    let url = client::url(options);
    let (authorization, secrets) = client::login(options);
    let trust = client::trust(options);
    let prefix = options.string_or("index_prefix", "").trim().to_owned();
    if let Some(fault) = documents::prefix_fault(&prefix) {
        options.fault("index_prefix", fault);
    }
    let timeout = options.seconds_or("timeout", 30.0);
    if timeout.is_zero() {
        options.fault("timeout", "must be more than 0");
    }
    Box::new(Elasticsearch {
        server: url.map(|url| ElasticServer {
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
    server: Option<ElasticServer>,
    prefix: String,
    timeout: Duration,
    /// The indices that refused the latest write for a reason that may pass.
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

    /// Finds nothing: the indexed documents do not make a vCon.
    fn get(&mut self, _: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    fn delete(&mut self, id: &VconId) -> Result<(), Failure> {
        let what = format!("delete vCon {id}");
        let limit = Deadline::NONE.begin(self.longest_call());
        let former = self.former(&what, id, &[], limit)?;
        self.replace(&what, id, former, &[], limit)
    }

    /// Asks which indices there are, as each save does. After a write was refused for a reason that may
    /// pass, only another write shows whether it has passed: the probe updates a document that does not
    /// exist.
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
    /// Returns the documents of the vCon that the server has, by rounds of their numbers. The first
    /// round covers all numbers that the new documents have, and some more.
    fn former(
        &self,
        what: &str,
        id: &VconId,
        documents: &[PartDocument],
        limit: Limit,
    ) -> Result<Vec<Vec<IndexedPart>>, Failure> {
        let indices = self.indices(what, limit)?;
        let mut windows: BTreeMap<VconList, Window> = BTreeMap::new();
        for section in indices.keys() {
            let parts = documents.iter().filter(|it| it.section == *section).count();
            windows.insert(*section, Window::first(parts));
        }
        let mut rounds: Vec<Vec<IndexedPart>> = Vec::new();
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

    /// Removes the documents that the vCon has no longer, and writes the others, in one request.
    ///
    /// If there were far more documents than there are now, removes the surplus before that, the highest
    /// numbers first: if that breaks off, the next save finds what is left, as no gap is wider than the
    /// range that it asks for.
    fn replace(
        &mut self,
        what: &str,
        id: &VconId,
        former: Vec<Vec<IndexedPart>>,
        documents: &[PartDocument],
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
        // Removals come first: an index may be another one under a second name, and hold a document that
        // is written next.
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
        let reading = ReplyReader {
            most: MOST_OF_INDICES,
            read: |reader: &mut dyn Read| documents::indices(&self.prefix, reader),
        };
        let indices = self.ask(what, &path, RequestBody::Get, reading, limit)?;
        indices
            .flatten()
            .ok_or_else(|| self.not_elasticsearch(what))
    }

    /// Returns those of the places that have a document.
    fn found(
        &self,
        what: &str,
        id: &VconId,
        mut places: impl Iterator<Item = IndexedPart>,
        limit: Limit,
    ) -> Result<Vec<IndexedPart>, Failure> {
        let mut found = Vec::new();
        loop {
            let some: Vec<IndexedPart> = places.by_ref().take(MOST).collect();
            if some.is_empty() {
                return Ok(found);
            }
            let question = documents::question(id, &some);
            let reading = ReplyReader {
                most: documents::most(some.len()),
                read: |reader: &mut dyn Read| documents::found(&some, reader),
            };
            match self.ask(what, "/_mget", RequestBody::Post(&question), reading, limit)? {
                Some(PartsFound::In(places)) => found.extend(places),
                None | Some(PartsFound::Stranger) => return Err(self.not_elasticsearch(what)),
                Some(PartsFound::Not(reason)) => {
                    let why = errors::described(200, &reason);
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
        documents: &[PartDocument],
        limit: Limit,
    ) -> Result<(), Failure> {
        if bulk.is_empty() {
            return Ok(());
        }
        let mut tally = bulk.tally();
        let reading = ReplyReader {
            most: bulk.most(),
            read: |reader: &mut dyn Read| bulk::read(reader, &mut |it| tally.take(it)),
        };
        let question = RequestBody::PostLines(bulk.body());
        if self.ask(what, BULK, question, reading, limit)? != Some(true) {
            return Err(self.not_elasticsearch(what));
        }
        let refusal = tally
            .end()
            .map_err(|why| Failure::transient(self.message(what, why)))?;
        let Some(refusal) = refusal else {
            self.refused.clear();
            return Ok(());
        };
        let message = self.message(what, &refusal.message);
        let culprit = match &refusal {
            BulkRefusal {
                is_the_vcons: true, ..
            } => Culprit::VCon,
            BulkRefusal { doubtful, .. } if doubtful.is_empty() => Culprit::Server,
            BulkRefusal { doubtful, .. } => {
                let trial = RefusalTrial::of(bulk.id(), documents, doubtful);
                self.find_culprit(what, &trial, limit)?
            }
        };
        // A probe tries only indices that refuse every write; vCons find out about the others.
        self.refused = refusal.indices;
        Err(match culprit {
            Culprit::VCon => Failure::permanent(message),
            Culprit::Unclear => Failure::refused(message),
            Culprit::Server => Failure::transient(message),
        })
    }

    /// Finds out whether the server refuses the documents of a vCon for their content.
    fn find_culprit(
        &self,
        what: &str,
        trial: &RefusalTrial,
        limit: Limit,
    ) -> Result<Culprit, Failure> {
        let reading = ReplyReader {
            most: trial.most(),
            read: |reader: &mut dyn Read| trial.read(reader),
        };
        let question = RequestBody::PostLines(trial.body());
        let answer = match self.ask(what, BULK, question, reading, limit) {
            Ok(answer) => answer.unwrap_or_default(),
            // As if the first answer had been lost.
            Err(failure) if failure.is_transient() => return Err(failure),
            Err(_) => return Ok(Culprit::Unclear),
        };
        if trial.leaves_something(&answer) {
            let place = self.message("remove a minimal document", "it was refused");
            log::warn!(
                "{place}; remove the documents in {}vcon_* that have no field but `vcon_id`",
                self.prefix
            );
        }
        Ok(trial.culprit(&answer))
    }

    /// Asks, and reads the answer; returns `None` if it is not JSON.
    fn ask<T>(
        &self,
        what: &str,
        path: &str,
        question: RequestBody<'_>,
        reading: ReplyReader<impl FnOnce(&mut dyn Read) -> serde_json::Result<T>>,
        limit: Limit,
    ) -> Result<Option<T>, Failure> {
        let Some(server) = &self.server else {
            return Err(Failure::transient(self.message(what, "no address")));
        };
        let answer = server
            .ask(path, question, reading, self.timeout, limit)
            .map_err(|why| Failure::transient(self.message(what, &why)))?;
        let (status, reason) = match answer {
            Reply::Done(said) => return Ok(said),
            Reply::Refused(status, reason) => (status, reason),
        };
        let why = errors::described(u64::from(status), &reason);
        let message = self.message(what, &why);
        Err(match status {
            413 => Failure::permanent(message),
            429 | 503 => Failure::busy(message),
            _ => Failure::transient(message),
        })
    }

    fn not_elasticsearch(&self, what: &str) -> Failure {
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::failure::FailureKind;
    use crate::http_client::tests::{FLOOD, FLOODS, flood, serve_with as serve};
    use crate::vcon::{Vcon, Version};

    const ID: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";
    const NO_INDEX: &str = "{}";
    const DIALOGS: &str = r#"{"vcon_dialog":{"aliases":{}}}"#;

    fn storage(address: &str) -> Box<dyn Storage> {
        let mut options = Options::from_yaml(&format!(
            "{{url: 'http://{address}/es/', username: keeper, password: Geheim, timeout: 10}}"
        ));
        let storage = open(&mut options);
        options.finish();
        assert_eq!(options.faults(), [""; 0]);
        storage
    }

    fn vcon(dialogs: usize) -> Outgoing {
        let dialog = vec!["{}"; dialogs].join(",");
        let text = format!("{{\"dialog\":[{dialog}]}}");
        let mut vcon = Vcon::parse(ID.parse().unwrap(), text).unwrap();
        vcon.outgoing(Version::Current)
    }

    fn fine(body: impl Into<String>) -> (u16, String) {
        (200, body.into())
    }

    /// An answer to `_mget`: of so many places, the numbers that are there.
    fn there(places: usize, numbers: &[usize]) -> (u16, String) {
        let doc = |number| format!("{{\"found\":{}}}", numbers.contains(&number));
        let docs: Vec<String> = (0..places).map(doc).collect();
        fine(format!("{{\"docs\":[{}]}}", docs.join(",")))
    }

    /// An answer to `_bulk`.
    fn done(items: &[&str]) -> (u16, String) {
        let items: Vec<String> = items
            .iter()
            .map(|item| format!("{{\"index\":{item}}}"))
            .collect();
        fine(format!("{{\"items\":[{}]}}", items.join(",")))
    }

    const OK: &str = r#"{"status":201}"#;
    const BUSY: &str = r#"{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"queue full"}}"#;
    const BLOCKED: &str = r#"{"status":403,"error":{"type":"cluster_block_exception","reason":"index [vcon_dialog] blocked"}}"#;
    const MISFIT: &str = r#"{"status":400,"error":{"type":"mapper_parsing_exception","reason":"failed to parse field [body]","caused_by":{"reason":"not a number"}}}"#;
    const STRICT: &str = r#"{"status":400,"error":{"type":"strict_dynamic_mapping_exception","reason":"introduction of [vcon_id]"}}"#;
    const ABSENT: &str = r#"{"status":404,"result":"not_found"}"#;

    const REMOVED: &str = r#"{"status":200,"result":"deleted"}"#;

    /// What the storage makes of these answers to its writes.
    fn refusal(answers: Vec<(u16, String)>) -> (Failure, Vec<String>) {
        let mut all = vec![fine(NO_INDEX)];
        all.extend(answers);
        let (address, server) = serve(all);
        let failure = storage(&address).save(&vcon(2), Deadline::NONE);
        let failure = failure.unwrap_err();
        let start = format!("Elasticsearch http://{address}/es/: could not save vCon {ID}: ");
        assert!(failure.message.starts_with(&start), "{failure}");
        (failure, server.join().unwrap())
    }

    #[test]
    fn a_part_that_is_refused_is_the_vcons_fault_if_a_minimal_document_is_taken() {
        for (items, words) in [
            ([BUSY, MISFIT], "2 of 2 parts were refused"),
            (
                [MISFIT, OK],
                "first dialog 0 in index vcon_dialog: HTTP 400: mapper_parsing_exception: failed to parse field [body]: not a number; mend the vCon",
            ),
        ] {
            let (failure, requests) = refusal(vec![done(&items), done(&[MISFIT, OK, REMOVED])]);
            assert_eq!(failure.kind, FailureKind::Permanent, "{failure}");
            assert!(failure.message.contains(words), "{failure}");
            let body = requests[2].split("\r\n\r\n").nth(1).unwrap();
            assert_eq!(body.lines().count(), 5, "{body}");
            assert!(body.contains(ID), "{body}");
        }
    }

    #[test]
    fn a_part_that_is_refused_as_a_minimal_document_is_waits() {
        for trial in [
            done(&[MISFIT, MISFIT, ABSENT]),
            done(&[OK, OK, REMOVED]),
            (503, String::new()),
        ] {
            let (failure, _) = refusal(vec![done(&[MISFIT, MISFIT]), trial]);
            assert!(failure.is_transient(), "{failure}");
        }
    }

    #[test]
    fn a_part_is_in_doubt_if_the_trial_does_not_tell() {
        for trial in [
            done(&[MISFIT, STRICT, ABSENT]),
            done(&[]),
            fine("{}"),
            (413, String::new()),
        ] {
            let (failure, _) = refusal(vec![done(&[OK, MISFIT]), trial]);
            assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
            let words = "1 of 2 parts were refused, first dialog 1 in index vcon_dialog: HTTP 400";
            assert!(failure.message.contains(words), "{failure}");
        }
    }

    #[test]
    fn what_the_server_is_to_blame_for_needs_no_trial() {
        for (items, words) in [
            (
                [OK, BUSY],
                "1 of 2 parts were refused, first dialog 1 in index vcon_dialog: HTTP 429: es_rejected_execution_exception: queue full",
            ),
            ([BLOCKED, BLOCKED], "2 of 2 parts were refused"),
        ] {
            let (failure, requests) = refusal(vec![done(&items)]);
            assert!(failure.is_transient(), "{failure}");
            assert!(failure.message.contains(words), "{failure}");
            assert_eq!(requests.len(), 2);
        }
    }

    #[test]
    fn one_request_writes_all_parts_with_the_login() {
        let (address, server) = serve(vec![fine(NO_INDEX), done(&[OK, OK])]);
        storage(&address).save(&vcon(2), Deadline::NONE).unwrap();
        let requests = server.join().unwrap();
        assert!(
            requests[0].starts_with("GET /es/vcon_*/_alias?"),
            "{}",
            requests[0]
        );
        assert!(
            requests[1].starts_with("POST /es/_bulk?"),
            "{}",
            requests[1]
        );
        for request in &requests {
            let head = request.to_lowercase();
            assert!(
                head.contains("\r\nauthorization: basic a2vlcgvyokdlagvpbq==\r\n"),
                "{head}"
            );
        }
        let body = requests[1].split("\r\n\r\n").nth(1).unwrap();
        let lines: Vec<&str> = body.lines().collect();
        assert_eq!(
            lines[0],
            format!(r#"{{"index":{{"_id":"{ID}_0","_index":"vcon_dialog"}}}}"#)
        );
        assert_eq!(lines[1], format!(r#"{{"vcon_id":"{ID}"}}"#));
        assert_eq!(lines.len(), 4);
        assert!(body.ends_with('\n'));
    }

    #[test]
    fn a_large_surplus_goes_from_its_end() {
        let answers = vec![
            fine(DIALOGS),
            there(17, &[0, 1, 16]),
            // From 17 to 33, and from 34 to 67.
            there(17, &[16]),
            there(34, &[]),
            done(&[OK]),
            done(&[OK, OK, OK]),
        ];
        let (address, server) = serve(answers);
        storage(&address).save(&vcon(1), Deadline::NONE).unwrap();
        let requests = server.join().unwrap();
        let actions = |request: &String| -> Vec<String> {
            let body = request.split("\r\n\r\n").nth(1).unwrap();
            let lines = body.lines().filter(|line| line.contains("_index"));
            let short = |line: &str| {
                line.replace(ID, "U")
                    .replace(r#","_index":"vcon_dialog""#, "")
            };
            lines.map(short).collect()
        };
        assert_eq!(actions(&requests[4]), [r#"{"delete":{"_id":"U_33"}}"#]);
        assert_eq!(
            actions(&requests[5]),
            [
                r#"{"delete":{"_id":"U_1"}}"#,
                r#"{"delete":{"_id":"U_16"}}"#,
                r#"{"index":{"_id":"U_0"}}"#
            ]
        );
    }

    #[test]
    fn an_attachment_that_is_indexed_under_another_name_is_moved() {
        let text = r#"{"attachments":[{"purpose":"tenant","type":"X Y"}]}"#;
        let mut vcon = Vcon::parse(ID.parse().unwrap(), text.to_owned()).unwrap();
        let vcon = vcon.outgoing(Version::Current);
        let answers = vec![
            fine(r#"{"vcon_attachments_tenant":{"aliases":{}}}"#),
            there(17, &[0]),
            done(&[OK, OK]),
        ];
        let (address, server) = serve(answers);
        storage(&address).save(&vcon, Deadline::NONE).unwrap();
        let requests = server.join().unwrap();
        let body = requests[2].split("\r\n\r\n").nth(1).unwrap();
        let lines = body.lines().filter(|line| line.contains("_index"));
        let expected = [("delete", "tenant"), ("index", "x_y")].map(|(action, word)| {
            format!(r#"{{"{action}":{{"_id":"{ID}_0","_index":"vcon_attachments_{word}"}}}}"#)
        });
        assert_eq!(lines.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_probe_tries_to_write_only_after_a_write_was_refused() {
        let (address, server) = serve(vec![
            fine(NO_INDEX),
            fine(NO_INDEX),
            done(&[BLOCKED]),
            done(&[BLOCKED]),
            done(&[ABSENT]),
            fine(NO_INDEX),
        ]);
        let mut storage = storage(&address);
        assert_eq!(storage.probe(), Ok(()));
        assert!(
            storage
                .save(&vcon(1), Deadline::NONE)
                .unwrap_err()
                .is_transient()
        );
        // Another thread may ask in its place.
        let mut prober = storage.prober().unwrap();
        let failure = prober.probe().unwrap_err();
        assert!(failure.is_transient());
        assert!(failure.message.contains("lift the block"), "{failure}");
        assert_eq!(prober.probe(), Ok(()));
        assert_eq!(prober.probe(), Ok(()));
        let requests = server.join().unwrap();
        assert!(requests[3].contains(r#"{"update":{"#), "{}", requests[3]);
        assert!(!requests[3].contains(ID), "{}", requests[3]);
    }

    #[test]
    fn answers_to_a_request_are_classified() {
        let body =
            |kind: &str| format!(r#"{{"error":{{"type":"{kind}","reason":"keeper: Geheim"}}}}"#);
        for (status, body, is_transient, words) in [
            (
                401,
                body("security_exception"),
                true,
                "security_exception: ***: ***; see to `username`",
            ),
            (
                403,
                body("security_exception"),
                true,
                "give this user the rights",
            ),
            (
                404,
                "<html>".to_owned(),
                true,
                "this is no Elasticsearch: see to `url`",
            ),
            (302, String::new(), true, "give the URL that it leads to"),
            (400, "<html>".to_owned(), true, "HTTP 400"),
            (429, body("circuit_breaking_exception"), true, "HTTP 429"),
            (503, String::new(), true, "HTTP 503"),
            (
                413,
                "<html>".to_owned(),
                false,
                "raise http.max_content_length",
            ),
            (200, "<html>".to_owned(), true, "none of Elasticsearch"),
            (200, "{}".to_owned(), true, "none of Elasticsearch"),
            (
                200,
                r#"{"items":[]}"#.to_owned(),
                true,
                "does not speak of all parts",
            ),
            (
                200,
                r#"{"items":[{"index":{}}]}"#.to_owned(),
                true,
                "what became of each part",
            ),
        ] {
            let (address, server) = serve(vec![fine(NO_INDEX), (status, body)]);
            let failure = storage(&address)
                .save(&vcon(1), Deadline::NONE)
                .unwrap_err();
            assert_eq!(failure.is_transient(), is_transient, "{status} {failure}");
            assert!(failure.message.contains(words), "{status} {failure}");
            assert!(!failure.message.contains("Geheim"), "{failure}");
            server.join().unwrap();
        }
    }

    #[test]
    fn a_place_that_cannot_be_looked_at_is_waited_for() {
        let gone = r#"{"error":{"type":"index_not_found_exception","reason":"no such index"}}"#;
        let away =
            r#"{"error":{"type":"no_shard_available_action_exception","reason":"No shard"}}"#;
        for (doc, is_fine) in [(gone, true), (away, false), ("{}", false)] {
            let docs = vec![doc; 17].join(",");
            let mut answers = vec![fine(DIALOGS), fine(format!("{{\"docs\":[{docs}]}}"))];
            if is_fine {
                answers.push(done(&[OK]));
            }
            let (address, server) = serve(answers);
            let saved = storage(&address).save(&vcon(1), Deadline::NONE);
            assert_eq!(saved.is_ok(), is_fine, "{doc}");
            assert!(saved.err().is_none_or(|failure| failure.is_transient()));
            server.join().unwrap();
        }
    }

    #[test]
    fn options_that_make_no_sense_are_faults() {
        for (text, fault) in [
            ("{}", "url: is required, or `cloud_id`"),
            ("{url: '', cloud_id: ''}", "url: is required, or `cloud_id`"),
            ("{url: 'h:9200'}", "url: is not a URL"),
            ("{url: 'http://h/?a=b'}", "url: must have no query"),
            (
                "{url: 'http://h', cloud_id: 'a:b'}",
                "cloud_id: cannot stand beside `url`",
            ),
            ("{cloud_id: 'a:b'}", "cloud_id: is not of the form"),
            (
                "{url: 'http://h', ca_certs: /nowhere}",
                "ca_certs: could not read /nowhere",
            ),
            (
                "{url: 'http://h', index_prefix: 'A'}",
                "index_prefix: must be in lower case",
            ),
            (
                "{url: 'http://h', timeout: 0}",
                "timeout: must be more than 0",
            ),
        ] {
            let mut options = Options::from_yaml(text);
            open(&mut options);
            options.finish();
            let faults = options.faults();
            assert_eq!(faults.len(), 1, "{text}: {faults:?}");
            assert!(faults[0].contains(fault), "{text}: {faults:?}");
        }
        let mut options = Options::from_yaml("{url: 'http://h', index: x, ca_certs: }");
        open(&mut options);
        options.finish();
        assert_eq!(options.faults(), [""; 0]);
        let warnings = options.warnings();
        let [warning] = &warnings[..] else {
            unreachable!("{warnings:?}");
        };
        assert!(warning.contains("unknown option `index` has no effect"));
    }

    #[test]
    fn a_server_that_is_silent_until_the_deadline_may_answer_later() {
        let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = hole.local_addr().unwrap().to_string();
        let deadline = Deadline::after(Some(Duration::ZERO));
        let failure = storage(&address).save(&vcon(1), deadline).unwrap_err();
        assert!(failure.is_transient());
        let words = "no answer within 1.0 s, what was left of the chain's timeout";
        assert!(failure.message.contains(words), "{failure}");
        assert_eq!(storage(&address).longest_call(), Duration::from_secs(30));
    }

    #[test]
    fn an_answer_that_is_too_long_is_not_read_to_its_end() {
        for lines in &FLOODS[..2] {
            let (address, server) = flood(200, lines, r#"{"x":[0"#, ",[[]],{}");
            let failure = storage(&address).save(&vcon(1), Deadline::NONE);
            let failure = failure.unwrap_err();
            assert!(failure.is_transient(), "{failure}");
            let words = "the answer is longer than 4194304 bytes";
            assert!(failure.message.contains(words), "{failure}");
            assert!(server.join().unwrap() < FLOOD, "{lines}");
        }
        for lines in FLOODS {
            let error = r#"{"error":{"type":"t","reason":"r"},"x":[0"#;
            let (address, server) = flood(500, lines, error, ",[[]],{}");
            let failure = storage(&address).probe().unwrap_err();
            assert!(failure.is_transient(), "{failure}");
            assert!(failure.message.ends_with("HTTP 500: t: r"), "{failure}");
            assert!(server.join().unwrap() < FLOOD, "{lines}");
        }
    }

    #[test]
    fn an_answer_may_have_as_much_as_its_request_allows() {
        let [small, large] = [1, 1_000].map(|parts| {
            let vcon = vcon(parts);
            let documents = documents::of(&vcon, "").unwrap();
            let mut bulk = Bulk::new(&vcon.id);
            documents.iter().for_each(|it| bulk.index(it));
            bulk.most()
        });
        assert!(small < 80_000, "{small}");
        assert!(
            large > 1_000 * (small - 65_536) && large < 10 << 20,
            "{large}"
        );
        // Every part refused at length.
        let reason = "é".repeat(1_500);
        let item = format!(r#"{{"status":429,"error":{{"type":"t","reason":"{reason}"}}}}"#);
        let (failure, _) = refusal(vec![done(&[&item, &item])]);
        assert!(
            failure.message.contains("2 of 2 parts were refused"),
            "{failure}"
        );
        assert!(failure.message.len() < 2_000, "{failure}");
        let item = item.replace("é", &"é".repeat(50));
        let (failure, _) = refusal(vec![done(&[&item, &item])]);
        assert!(
            failure.message.contains("the answer is longer than"),
            "{failure}"
        );
    }
}
