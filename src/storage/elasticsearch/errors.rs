//! What an answer of Elasticsearch means for the vCon, and what a person can do about it.
//!
//! | answer | class |
//! |---|---|
//! | to the request: 413, the vCon is too large for the server, or a proxy before it | permanent |
//! | to the request: all others (401, 403, 404, 429, 5xx, no answer of Elasticsearch at all, …) | transient |
//! | to a part: 413 | permanent |
//! | to a part: 400 for the index: closed, no more shards allowed, an alias without a write index, a missing pipeline or analyzer, … | transient |
//! | to a part: any other 400, and what the step of an ingest pipeline refuses (400, or 500 before 7.5) | in doubt |
//! | to a part: 401, 403 (a right, an index blocked or read-only), 404 (no such index, and none may be made), 409, 429 (too busy, disk full), other 5xx (no shard) | transient |
//!
//! No list of reasons is complete, so a trial settles the doubt: the same part is sent again, and beside it, in
//! the same request, a document that has nothing but the field that all have. What refuses both alike is the
//! fault of the index: the template names an analyzer that is not there, the index takes no ids, a pipeline
//! is broken.
//!
//! ```text
//! the document │ the minimal one        │ whose fault
//! ─────────────┼────────────────────────┼────────────────────────────────────
//! taken now    │                        │ the place's: it has passed
//! refused      │ taken                  │ the vCon's
//! refused      │ refused alike          │ the place's
//! refused      │ refused otherwise      │ in doubt: what others meet will tell
//! ```
//!
//! The same request removes the minimal document again.
//!
//! One part that is refused for good is enough: the vCon cannot be stored as a whole.

use std::io::Read;

use serde::de::MapAccess;
use serde_json::json;

use super::bulk::{self, Verdict};
use super::client::{self, Pick, Scalar, shown};
use super::documents::PartDocument;
use crate::failure::pattern;
use crate::vcon::VconId;

/// Types of errors that come from the index or the cluster, whatever the document is.
const KINDS_OF_THE_INDEX: &[&str] = &[
    "index_closed_exception",
    "validation_exception",
    "cluster_block_exception",
    "security_exception",
];

/// Words in the reason of other errors that come from there.
const WORDS_OF_THE_INDEX: &[&str] = &[
    "pipeline with id",
    "no write index is defined",
    "has more than one ind",
    "data stream",
    "maximum shards open",
    "maximum normal shards open",
    "has not been configured in mappings",
    "more than 1 type",
    "Document ID is not supported",
];

/// Who is to blame for the refusal of a part, as far as the answer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Culprit {
    /// The index, the server or the login: every vCon meets it.
    Server,
    /// The vCon.
    VCon,
    /// Either of them.
    Unclear,
}

/// The server's reason to refuse something, in its words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reason {
    pub(super) kind: String,
    pub(super) text: String,
    /// Whether the step of an ingest pipeline says so.
    pub(super) is_of_pipeline: bool,
}

impl Reason {
    /// Reads the beginning of an answer that is an error.
    pub(super) fn of_answer(mut body: &[u8]) -> Self {
        struct Outer(Reason);
        impl Pick for Outer {
            fn field<'de, A: MapAccess<'de>>(
                &mut self,
                name: &str,
                map: &mut A,
            ) -> Result<(), A::Error> {
                if name != "error" {
                    return client::pass_over(map);
                }
                self.0 = Reason::of(map)?;
                Ok(())
            }
        }
        let mut outer = Outer(Self::default());
        // An answer that is not JSON, or breaks off, has no reason, or an incomplete one.
        let _ = client::read_json(&mut body, &mut outer);
        outer.0
    }

    /// Reads the `error` of an answer or of a part of one; adds a deeper cause, which says more.
    pub(super) fn of<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Self, A::Error> {
        let mut error = ErrorBody::default();
        client::value(map, &mut error)?;
        let ErrorBody { mut reason, cause } = error;
        if !cause.is_empty() && !reason.text.contains(&cause) {
            reason.text = format!("{}: {cause}", reason.text);
        }
        Ok(reason)
    }

    /// Whether two documents were refused for the same reason.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.kind == other.kind && pattern(&self.text) == pattern(&other.text)
    }

    fn is_of_the_index(&self) -> bool {
        KINDS_OF_THE_INDEX.contains(&self.kind.as_str())
            || WORDS_OF_THE_INDEX
                .iter()
                .any(|words| self.text.contains(words))
    }
}

/// The fields of an error.
#[derive(Default)]
struct ErrorBody {
    reason: Reason,
    /// The reason of its cause.
    cause: String,
}

impl Pick for ErrorBody {
    fn single(&mut self, single: Scalar) {
        if let Scalar::Text(text) = single {
            self.reason.text = text;
        }
    }

    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "type" => self.reason.kind = client::text(map)?,
            "reason" => self.reason.text = client::text(map)?,
            "header" => {
                let mut header = NamedField::new("processor_type");
                client::value(map, &mut header)?;
                self.reason.is_of_pipeline = header.is_there;
            }
            "caused_by" => {
                let mut cause = NamedField::new("reason");
                client::value(map, &mut cause)?;
                self.cause = cause.text;
            }
            _ => client::pass_over(map)?,
        }
        Ok(())
    }
}

/// One field of an object.
struct NamedField {
    name: &'static str,
    is_there: bool,
    text: String,
}

impl NamedField {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            is_there: false,
            text: String::new(),
        }
    }
}

impl Pick for NamedField {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        if name != self.name {
            return client::pass_over(map);
        }
        self.is_there = true;
        self.text = client::text(map)?;
        Ok(())
    }
}

/// Who is to blame for the refusal of a part.
pub(super) fn culprit(status: u64, reason: &Reason) -> Culprit {
    match status {
        413 => Culprit::VCon,
        400 if !reason.is_of_the_index() => Culprit::Unclear,
        500 if reason.is_of_pipeline => Culprit::Unclear,
        _ => Culprit::Server,
    }
}

/// A status with its reason, and what to do about it.
pub(super) fn described(status: u64, reason: &Reason) -> String {
    let mut text = format!("HTTP {status}");
    for part in [&reason.kind, &reason.text] {
        if !part.is_empty() {
            text = format!("{text}: {}", shown(part).trim_end_matches(';'));
        }
    }
    match advice(status, &reason.kind) {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

fn advice(status: u64, kind: &str) -> Option<&'static str> {
    Some(match (status, kind) {
        (_, "cluster_block_exception") => "make room on its disks, or lift the block of the index",
        (400, "document_parsing_exception" | "mapper_parsing_exception") => {
            "mend the vCon, or the mapping of the index"
        }
        (400, "strict_dynamic_mapping_exception") => "let the mapping of the index take new fields",
        (400, "validation_exception") => "see to the cluster's limits",
        (400, "index_closed_exception") => "open the index",
        (300..=399, _) => "give the URL that it leads to",
        (401 | 407, _) => "see to `username` and `password`, or `api_key`",
        (403, _) => {
            "give this user the rights read, write, create_index and view_index_metadata on its indices"
        }
        (404, "index_not_found_exception") => "create the index, or let it be created",
        (404 | 405, "") => "this is no Elasticsearch: see to `url`",
        (413, _) => {
            "raise http.max_content_length of the server, and the limit of a proxy before it"
        }
        _ => return None,
    })
}

/// A trial sends at most this many documents again.
const MOST: usize = 20;

/// A request whose answer tells who is to blame for a refusal.
pub(super) struct RefusalTrial {
    body: String,
    /// How many documents are sent again, each with a minimal one after it.
    pairs: usize,
}

impl RefusalTrial {
    /// Makes a trial of the first doubtful document of each index.
    pub(super) fn of(
        id: &VconId,
        documents: &[PartDocument],
        doubtful: &[(String, usize)],
    ) -> Self {
        let mut tried: Vec<&PartDocument> = Vec::new();
        for (index, number) in doubtful {
            let is_refused = |it: &&PartDocument| it.index == *index && it.number == *number;
            let is_tried = tried.len() == MOST || tried.iter().any(|it| it.index == *index);
            if !is_tried && let Some(document) = documents.iter().find(is_refused) {
                tried.push(document);
            }
        }
        let nobody = VconId::random();
        let minimal = json!({"vcon_id": nobody.as_str()}).to_string();
        let mut body = String::new();
        let mut action = |verb: &str, index: &str, id: String, document: Option<&str>| {
            let action = json!({verb: {"_index": index, "_id": id}}).to_string();
            for line in std::iter::once(action.as_str()).chain(document) {
                body.push_str(line);
                body.push('\n');
            }
        };
        for (place, document) in tried.iter().enumerate() {
            let (index, own) = (&document.index, format!("{id}_{}", document.number));
            action("index", index, own, Some(&document.json));
            let other = format!("{nobody}_{place}");
            action("index", index, other, Some(&minimal));
        }
        for (place, document) in tried.iter().enumerate() {
            action("delete", &document.index, format!("{nobody}_{place}"), None);
        }
        Self {
            body,
            pairs: tried.len(),
        }
    }

    pub(super) fn body(&self) -> &str {
        &self.body
    }

    /// The most bytes that the answer may have.
    pub(super) fn most(&self) -> u64 {
        bulk::most(3 * self.pairs, &self.body)
    }

    /// Reads the answer: the result of each action, of no more than there are.
    pub(super) fn read(&self, reader: &mut dyn Read) -> serde_json::Result<Verdicts> {
        let mut verdicts = Verdicts::new();
        bulk::read(reader, &mut |verdict| {
            if verdicts.len() < 3 * self.pairs {
                verdicts.push(verdict);
            }
        })?;
        Ok(verdicts)
    }

    /// Who is to blame, by the answer.
    pub(super) fn culprit(&self, answer: &Verdicts) -> Culprit {
        let pairs = answer.chunks_exact(2).take(self.pairs);
        let culprits: Vec<Culprit> = pairs
            .map(|pair| culprit_of_pair(&pair[0], &pair[1]))
            .collect();
        if culprits.contains(&Culprit::VCon) {
            Culprit::VCon
        } else if culprits.is_empty() || culprits.contains(&Culprit::Unclear) {
            Culprit::Unclear
        } else {
            Culprit::Server
        }
    }

    /// Whether the answer says that a minimal document is still there.
    pub(super) fn leaves_something(&self, answer: &Verdicts) -> bool {
        let is_done = |place: usize| answer.get(place) == Some(&Some(Verdict::Done));
        (0..self.pairs).any(|pair| is_done(2 * pair + 1) && !is_done(2 * self.pairs + pair))
    }
}

/// The result of each action, as far as the answer tells.
pub(super) type Verdicts = Vec<Option<Verdict>>;

/// The table in the module's head.
fn culprit_of_pair(document: &Option<Verdict>, minimal: &Option<Verdict>) -> Culprit {
    match (document, minimal) {
        (Some(Verdict::Done), _) => Culprit::Server,
        (Some(Verdict::Refused(status, reason)), minimal) => {
            match (culprit(*status, reason), minimal) {
                (Culprit::Server, _) => Culprit::Server,
                (_, Some(Verdict::Done)) => Culprit::VCon,
                (_, Some(Verdict::Refused(same, other)))
                    if same == status && other.is_as(reason) =>
                {
                    Culprit::Server
                }
                (_, Some(Verdict::Refused(status, other))) => match culprit(*status, other) {
                    Culprit::Server => Culprit::Server,
                    Culprit::VCon | Culprit::Unclear => Culprit::Unclear,
                },
                (_, None) => Culprit::Unclear,
            }
        }
        (None, _) => Culprit::Unclear,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::super::documents::VconList;
    use super::*;

    /// The reason of an answer with this error.
    fn of(error: &str) -> Reason {
        Reason::of_answer(format!("{{\"status\":400,\"error\":{error}}}").as_bytes())
    }

    fn reason(kind: &str, text: &str) -> Reason {
        Reason {
            kind: kind.to_owned(),
            text: text.to_owned(),
            is_of_pipeline: false,
        }
    }

    #[test]
    fn parts_are_classified_as_the_table_says() {
        for (status, kind, text) in [
            (400, "", ""),
            (400, "mapper_parsing_exception", "failed to parse field [a]"),
            (400, "document_parsing_exception", "[1:6] failed to parse"),
            (400, "strict_dynamic_mapping_exception", ""),
            (400, "something_new_exception", "new"),
            (
                400,
                "illegal_argument_exception",
                "Limit of total fields [1000] has been exceeded",
            ),
            (
                400,
                "illegal_argument_exception",
                "Document contains at least one immense term",
            ),
            (400, "fail_processor_exception", "not today"),
        ] {
            let culprit = culprit(status, &reason(kind, text));
            assert_eq!(culprit, Culprit::Unclear, "{status} {kind} {text}");
        }
        assert_eq!(culprit(413, &reason("", "")), Culprit::VCon);
        let argument = "illegal_argument_exception";
        for (status, kind, text) in [
            (400, "index_closed_exception", "closed"),
            (
                400,
                "validation_exception",
                "this action would add [2] shards",
            ),
            (400, "cluster_block_exception", "blocked"),
            (400, "security_exception", "no"),
            (400, argument, "pipeline with id [p] does not exist"),
            (400, argument, "no write index is defined for alias [x]"),
            (
                400,
                argument,
                "alias [x] has more than one index associated",
            ),
            (400, argument, "only write ops with create in data stream"),
            (400, argument, "[1000]/[1000] maximum shards open;"),
            (400, argument, "[1000]/[1000] maximum normal shards open;"),
            (
                400,
                "mapper_parsing_exception",
                "analyzer [words] has not been configured in mappings",
            ),
            (
                400,
                argument,
                "the final mapping would have more than 1 type: [_doc, doc]",
            ),
            (
                400,
                argument,
                "Document ID is not supported in create/index operation request",
            ),
            (401, "security_exception", ""),
            (403, "security_exception", ""),
            (403, "cluster_block_exception", "index [x] blocked by"),
            (404, "index_not_found_exception", "no such index [x]"),
            (409, "version_conflict_engine_exception", ""),
            (429, "es_rejected_execution_exception", ""),
            (
                429,
                "cluster_block_exception",
                "disk usage exceeded flood-stage watermark",
            ),
            (500, "", ""),
            (
                500,
                "illegal_argument_exception",
                "not an IP string literal",
            ),
            (503, "unavailable_shards_exception", ""),
        ] {
            let culprit = culprit(status, &reason(kind, text));
            assert_eq!(culprit, Culprit::Server, "{status} {kind} {text}");
        }
    }

    #[test]
    fn what_the_step_of_a_pipeline_refuses_may_be_the_vcons_fault_with_either_status() {
        let reason = of(
            r#"{"type": "exception", "reason": "not an IP string literal.",
            "header": {"processor_type": "geoip"}}"#,
        );
        assert!(reason.is_of_pipeline);
        for (status, expected) in [
            (400, Culprit::Unclear),
            (500, Culprit::Unclear),
            (429, Culprit::Server),
            (503, Culprit::Server),
        ] {
            assert_eq!(culprit(status, &reason), expected, "{status}");
        }
        let elsewhere = of(r#"{"type": "exception", "header": {"other": 1}}"#);
        assert!(!elsewhere.is_of_pipeline);
    }

    #[test]
    fn a_reason_is_the_same_if_only_the_documents_differ() {
        let one = reason("t", "failed to parse field [a] in document with id '1_0'");
        for (kind, text, expected) in [
            (
                "t",
                "failed to parse field [a] in document with id '2_7'",
                true,
            ),
            (
                "t",
                "failed to parse field [b] in document with id '1_0'",
                false,
            ),
            (
                "u",
                "failed to parse field [a] in document with id '1_0'",
                false,
            ),
        ] {
            assert_eq!(one.is_as(&reason(kind, text)), expected, "{kind} {text}");
        }
    }

    #[test]
    fn a_reason_is_read_in_each_of_its_forms() {
        for (error, kind, text) in [
            (r#""no handler found""#, "", "no handler found"),
            (r#"{"type":"t","reason":"r"}"#, "t", "r"),
            (
                r#"{"type":"t","reason":"r","caused_by":{"reason":"c"}}"#,
                "t",
                "r: c",
            ),
            (
                r#"{"type":"t","reason":"r","caused_by":{"reason":""}}"#,
                "t",
                "r",
            ),
            (
                r#"{"type":"t","reason":"r c","caused_by":{"reason":"c"}}"#,
                "t",
                "r c",
            ),
            (
                r#"{"type":7,"reason":["r"],"header":"h","caused_by":[1]}"#,
                "",
                "",
            ),
            (r#"{"type":"t","other":{"reason":"no"}}"#, "t", ""),
            ("[{}]", "", ""),
            ("7.5", "", ""),
            ("null", "", ""),
        ] {
            assert_eq!(of(error), reason(kind, text), "{error}");
        }
        for no_error in ["", "{}", "[]", "<html>", "{\"error\":"] {
            let found = Reason::of_answer(no_error.as_bytes());
            assert_eq!(found, Reason::default(), "{no_error}");
        }
        let broken = Reason::of_answer(br#"{"error":{"type":"t","reason":"r"},"more":[1"#);
        assert_eq!(broken, reason("t", "r"));
        let long = of(&format!("\"{}\"", "é".repeat(1 << 20)));
        assert_eq!(long.text, "é".repeat(4 << 10));
        assert_eq!(
            described(
                401,
                &reason("security_exception", "unable to authenticate;")
            ),
            "HTTP 401: security_exception: unable to authenticate; \
             see to `username` and `password`, or `api_key`"
        );
        assert_eq!(described(500, &reason("", "")), "HTTP 500");
        assert_eq!(described(500, &reason("", "why")), "HTTP 500: why");
    }

    #[test]
    fn what_a_person_can_do_is_said() {
        for (status, kind, words) in [
            (
                403,
                "cluster_block_exception",
                Some("make room on its disks"),
            ),
            (
                429,
                "cluster_block_exception",
                Some("make room on its disks"),
            ),
            (
                400,
                "document_parsing_exception",
                Some("mend the vCon, or the mapping"),
            ),
            (
                400,
                "mapper_parsing_exception",
                Some("mend the vCon, or the mapping"),
            ),
            (
                400,
                "strict_dynamic_mapping_exception",
                Some("take new fields"),
            ),
            (400, "validation_exception", Some("the cluster's limits")),
            (400, "index_closed_exception", Some("open the index")),
            (400, "illegal_argument_exception", None),
            (300, "", Some("give the URL that it leads to")),
            (399, "", Some("give the URL that it leads to")),
            (401, "security_exception", Some("see to `username`")),
            (407, "", Some("see to `username`")),
            (
                403,
                "security_exception",
                Some("give this user the rights read"),
            ),
            (404, "index_not_found_exception", Some("create the index")),
            (404, "", Some("this is no Elasticsearch")),
            (405, "", Some("this is no Elasticsearch")),
            (404, "resource_not_found_exception", None),
            (413, "", Some("raise http.max_content_length")),
            (500, "mapper_parsing_exception", None),
            (500, "", None),
        ] {
            let advice = advice(status, kind);
            let is_as_expected = match (advice, words) {
                (Some(advice), Some(words)) => advice.contains(words),
                (advice, words) => advice.is_none() && words.is_none(),
            };
            assert!(is_as_expected, "{status} {kind}: {advice:?}");
        }
    }

    const TAKEN: &str = r#"{"index":{"status":201}}"#;
    const REMOVED: &str = r#"{"delete":{"status":200}}"#;
    const ABSENT: &str = r#"{"delete":{"status":404}}"#;
    const MISFIT: &str =
        r#"{"index":{"status":400,"error":{"type":"t","reason":"field [a] of 7"}}}"#;
    const ALIKE: &str =
        r#"{"index":{"status":400,"error":{"type":"t","reason":"field [a] of 8"}}}"#;
    const OTHERWISE: &str = r#"{"index":{"status":400,"error":{"type":"t","reason":"no field"}}}"#;
    const OTHER_KIND: &str =
        r#"{"index":{"status":400,"error":{"type":"u","reason":"field [a] of 7"}}}"#;
    const OTHER_STATUS: &str = r#"{"index":{"status":500,"error":{"type":"t","reason":"field [a] of 7","header":{"processor_type":"set"}}}}"#;
    const BUSY: &str = r#"{"index":{"status":429}}"#;
    const UNKNOWN: &str = r#"{"index":{}}"#;

    fn document(index: &str, number: usize) -> PartDocument {
        PartDocument {
            section: VconList::Dialog,
            number,
            index: index.to_owned(),
            json: format!("{{\"number\":{number}}}"),
        }
    }

    /// The answer with these items, as it is read.
    fn answer(items: &[&str]) -> Verdicts {
        let text = format!("{{\"items\":[{}]}}", items.join(","));
        let trial = RefusalTrial {
            body: String::new(),
            pairs: MOST,
        };
        trial.read(&mut text.as_bytes()).unwrap()
    }

    fn trial(documents: &[PartDocument]) -> RefusalTrial {
        let places = documents.iter().map(|it| (it.index.clone(), it.number));
        let doubtful: Vec<(String, usize)> = places.collect();
        RefusalTrial::of(&VconId::random(), documents, &doubtful)
    }

    #[test]
    fn what_refuses_the_minimal_document_as_well_is_the_places_fault() {
        let trial = trial(&[document("a", 0)]);
        for (items, expected) in [
            (&[MISFIT, TAKEN, REMOVED][..], Culprit::VCon),
            (&[MISFIT, TAKEN], Culprit::VCon),
            (&[MISFIT, ALIKE, ABSENT], Culprit::Server),
            (&[MISFIT, OTHERWISE, ABSENT], Culprit::Unclear),
            (&[MISFIT, OTHER_KIND, ABSENT], Culprit::Unclear),
            (&[MISFIT, OTHER_STATUS, ABSENT], Culprit::Unclear),
            (&[MISFIT, BUSY, ABSENT], Culprit::Server),
            (&[BUSY, TAKEN, REMOVED], Culprit::Server),
            (&[TAKEN, TAKEN, REMOVED], Culprit::Server),
            (&[TAKEN, MISFIT, ABSENT], Culprit::Server),
            (&[MISFIT, UNKNOWN, ABSENT], Culprit::Unclear),
            (&[UNKNOWN, TAKEN, REMOVED], Culprit::Unclear),
            (&[MISFIT], Culprit::Unclear),
            (&[], Culprit::Unclear),
        ] {
            assert_eq!(trial.culprit(&answer(items)), expected, "{items:?}");
        }
        assert_eq!(trial.culprit(&Verdicts::new()), Culprit::Unclear);
    }

    #[test]
    fn one_document_that_is_the_vcons_fault_is_enough_and_one_in_doubt_remains_so() {
        let trial = trial(&[document("a", 0), document("b", 0)]);
        for (pairs, expected) in [
            ([MISFIT, ALIKE, MISFIT, TAKEN], Culprit::VCon),
            ([MISFIT, OTHERWISE, MISFIT, TAKEN], Culprit::VCon),
            ([MISFIT, ALIKE, MISFIT, OTHERWISE], Culprit::Unclear),
            ([MISFIT, ALIKE, MISFIT, ALIKE], Culprit::Server),
        ] {
            let items = [&pairs[..], &[REMOVED, ABSENT]].concat();
            assert_eq!(trial.culprit(&answer(&items)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn one_document_of_each_index_is_sent_again_and_each_minimal_one_removed() {
        let documents = [document("a", 0), document("a", 1), document("b", 3)];
        let trial = trial(&documents);
        let lines: Vec<Value> = trial
            .body()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let verbs: Vec<String> = lines
            .iter()
            .map(
                |line| match line.as_object().unwrap().iter().next().unwrap() {
                    (verb, about) if about.is_object() => format!("{verb} {}", about["_index"]),
                    (field, value) if field == "number" => value.to_string(),
                    (field, _) => field.clone(),
                },
            )
            .collect();
        let expected = [
            r#"index "a""#,
            "0",
            r#"index "a""#,
            "vcon_id",
            r#"index "b""#,
            "3",
            r#"index "b""#,
            "vcon_id",
            r#"delete "a""#,
            r#"delete "b""#,
        ];
        assert_eq!(verbs, expected);
        assert_eq!(lines[2]["index"]["_id"], lines[8]["delete"]["_id"]);
        assert_eq!(lines[6]["index"]["_id"], lines[9]["delete"]["_id"]);
        assert_ne!(lines[2]["index"]["_id"], lines[0]["index"]["_id"]);
        assert!(trial.body().ends_with('\n'));
    }

    #[test]
    fn a_trial_has_an_end() {
        let documents: Vec<PartDocument> =
            (0..100).map(|n| document(&format!("i{n}"), n)).collect();
        let trial = trial(&documents);
        assert_eq!(trial.body().lines().count(), MOST * 5);
        assert_eq!(trial.pairs, MOST);
    }

    #[test]
    fn a_minimal_document_that_is_not_removed_is_noticed() {
        let trial = trial(&[document("a", 0), document("b", 0)]);
        for (items, is_left) in [
            ([MISFIT, TAKEN, MISFIT, TAKEN, REMOVED, REMOVED], false),
            ([MISFIT, ALIKE, MISFIT, TAKEN, ABSENT, REMOVED], false),
            ([MISFIT, TAKEN, MISFIT, TAKEN, REMOVED, BUSY], true),
            ([MISFIT, TAKEN, MISFIT, ALIKE, BUSY, ABSENT], true),
        ] {
            assert_eq!(
                trial.leaves_something(&answer(&items)),
                is_left,
                "{items:?}"
            );
        }
        assert!(trial.leaves_something(&answer(&[MISFIT, TAKEN])));
        assert!(!trial.leaves_something(&Verdicts::new()));
    }
}
