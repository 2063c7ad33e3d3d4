//! What an answer of Elasticsearch means for the vCon, and what a person can do about it.
//!
//! | answer | class |
//! |---|---|
//! | to the request: 413, the vCon is too large for the server, or a proxy before it | permanent |
//! | to the request: all others (401, 403, 404, 429, 5xx, no answer of Elasticsearch at all, …) | transient |
//! | to a part: 400 for what is in it: it does not fit the mapping or its limits, or an ingest pipeline says no; 413 | permanent |
//! | to a part: 400 for the index: closed, no more shards allowed, an alias without a write index, a missing pipeline, … | transient |
//! | to a part: 401, 403 (a right, an index blocked or read-only), 404 (no such index, and none may be made), 409, 429 (too busy, disk full), 5xx (no shard) | transient |
//!
//! One part that is refused for good is enough: the vCon cannot be stored as a whole.

use serde_json::Value;

use super::request::shown;

/// Types of errors that come from what is in a document.
const OF_THE_DOCUMENT: &[&str] = &[
    "document_parsing_exception",
    "mapper_parsing_exception",
    "strict_dynamic_mapping_exception",
    "mapper_exception",
    "illegal_argument_exception",
    "parsing_exception",
    "parse_exception",
    "x_content_parse_exception",
    "invalid_index_name_exception",
    "script_exception",
    "fail_processor_exception",
];

/// What the reason of such an error says when it comes from the index after all.
const OF_THE_INDEX: &[&str] = &[
    "pipeline with id",
    "no write index is defined",
    "has more than one ind",
    "data stream",
    "maximum shards open",
    "maximum normal shards open",
];

/// Why something was refused, in the server's words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reason {
    pub(super) kind: String,
    pub(super) text: String,
}

impl Reason {
    /// Reads the `error` of an answer; a cause deeper down says more.
    pub(super) fn of(error: Option<&Value>) -> Self {
        let Some(error) = error else {
            return Self::default();
        };
        if let Some(text) = error.as_str() {
            return Self {
                kind: String::new(),
                text: text.to_owned(),
            };
        }
        let text = |of: &Value, key| {
            of.get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let mut reason = Self {
            kind: text(error, "type"),
            text: text(error, "reason"),
        };
        if let Some(cause) = error.get("caused_by") {
            let cause = text(cause, "reason");
            if !cause.is_empty() && !reason.text.contains(&cause) {
                reason.text = format!("{}: {cause}", reason.text);
            }
        }
        reason
    }
}

/// Whether the vCon is to blame for the refusal of a part.
pub(super) fn is_the_vcons(status: u64, reason: &Reason) -> bool {
    match status {
        413 => true,
        400 => {
            OF_THE_DOCUMENT.contains(&reason.kind.as_str())
                && !OF_THE_INDEX.iter().any(|words| reason.text.contains(words))
        }
        _ => false,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn reason(kind: &str, text: &str) -> Reason {
        Reason {
            kind: kind.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn parts_are_classified_as_the_table_says() {
        for (status, kind, text) in [
            (400, "mapper_parsing_exception", "failed to parse field [a]"),
            (400, "document_parsing_exception", "[1:6] failed to parse"),
            (400, "strict_dynamic_mapping_exception", ""),
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
            (413, "", ""),
        ] {
            assert!(
                is_the_vcons(status, &reason(kind, text)),
                "{status} {kind} {text}"
            );
        }
        for (status, kind, text) in [
            (400, "", ""),
            (400, "index_closed_exception", "closed"),
            (
                400,
                "validation_exception",
                "this action would add [2] shards",
            ),
            (
                400,
                "illegal_argument_exception",
                "pipeline with id [p] does not exist",
            ),
            (
                400,
                "illegal_argument_exception",
                "no write index is defined for alias [x]",
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
            (503, "unavailable_shards_exception", ""),
        ] {
            assert!(
                !is_the_vcons(status, &reason(kind, text)),
                "{status} {kind} {text}"
            );
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
                r#"{"type":"t","reason":"r c","caused_by":{"reason":"c"}}"#,
                "t",
                "r c",
            ),
            ("[]", "", ""),
        ] {
            let error: Value = serde_json::from_str(error).unwrap();
            assert_eq!(Reason::of(Some(&error)), reason(kind, text));
        }
        assert_eq!(Reason::of(None), Reason::default());
        assert_eq!(
            described(401, &reason("security_exception", "unable to authenticate")),
            "HTTP 401: security_exception: unable to authenticate; \
             see to `username` and `password`, or `api_key`"
        );
    }
}
