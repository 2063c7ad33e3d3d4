//! The document as version 0.0.1 wrote it, for consumers that know no other.
//!
//! Read back and written again it is the document it was made of, but for two things: a `null`
//! `amended` where there was none, and a body that was JSON text, which stays the value.

use std::borrow::Cow;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::document::{Member, Part, Section, length, write_parts};
use super::json::{self, Object, ObjectWriter};
use super::normalise::{self, Rename};

/// What version 0.0.1 always has: its name, its name of today, and what it is when empty.
const ALWAYS: &[(&str, &str, &str)] = &[
    ("group", "group", "[]"),
    ("redacted", "redacted", "{}"),
    ("appended", "amended", "null"),
];

/// Writes a document that has been through the write step.
pub(super) fn write(members: &IndexMap<String, Member>) -> String {
    let mut out = String::with_capacity(length(members));
    let mut document = ObjectWriter::begin(&mut out);
    for (key, member) in members {
        let value = document.key(old_name(normalise::DOCUMENT, key, members));
        match member {
            Member::Raw(_) if key == "vcon" => value.push_str("\"0.0.1\""),
            Member::Raw(raw) => value.push_str(raw.get()),
            Member::Parts(section, parts) => write_parts(value, parts, |value, part| match part {
                Part::Other(raw) => value.push_str(raw.get()),
                part => write_part(value, *section, &part.object().unwrap_or_default()),
            }),
        }
    }
    for (old, new, empty) in ALWAYS {
        if !members.contains_key(*new) {
            document.key(old).push_str(empty);
        }
    }
    document.end();
    out
}

fn write_part(out: &mut String, section: Section, part: &Object) {
    let body = if section.has_json_bodies() {
        json_body(part)
    } else {
        None
    };
    let mut writer = ObjectWriter::begin(out);
    for (key, raw) in part {
        let value = writer.key(old_name(normalise::renames(section), key, part));
        value.push_str(match (key.as_str(), &body) {
            ("body", Some(body)) => body.get(),
            ("encoding", Some(_)) => "\"none\"",
            _ => raw.get(),
        });
    }
    writer.end();
}

/// The name a property had, unless another one has that name.
fn old_name<'a, V>(renames: &[Rename], key: &'a str, object: &IndexMap<String, V>) -> &'a str {
    match renames.iter().find(|(_, new)| *new == key) {
        Some((old, _)) if !object.contains_key(*old) => old,
        _ => key,
    }
}

/// The value of a body that is JSON, as it is or as its text.
fn json_body(part: &Object) -> Option<Cow<'_, RawValue>> {
    if !json::says(part.get("encoding")?, "json") {
        return None;
    }
    let body = part.get("body")?;
    if !json::is_string(body) {
        return Some(Cow::Borrowed(body));
    }
    let value = RawValue::from_string(json::text(body)?).ok()?;
    Some(Cow::Owned(value))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use crate::vcon::{Vcon, VconId, Version};

    fn downgraded(text: &str) -> String {
        Vcon::parse(VconId::random(), text.to_owned())
            .unwrap()
            .outgoing(Version::V0_0_1)
            .json
            .to_string()
    }

    #[test]
    fn new_names_become_old_ones_in_their_place() {
        assert_eq!(
            downgraded(concat!(
                r#"{"vcon":"0.4.0","amended":{"uuid":"u"},"critical":["x"],"group":[1],"redacted":{"a":1},"#,
                r#""dialog":[{"type":"text","schema":"1","mediatype":"a/b","critical":[],"purpose":"p"}],"#,
                r#""analysis":[{"schema":"1","mediatype":"a/b","critical":[],"purpose":"p"}],"#,
                r#""attachments":[{"schema":"1","mediatype":"a/b","critical":[],"purpose":"p"}, 7]}"#
            )),
            concat!(
                r#"{"vcon":"0.0.1","appended":{"uuid":"u"},"must_support":["x"],"group":[1],"redacted":{"a":1},"#,
                r#""dialog":[{"type":"text","schema_version":"1","mimetype":"a/b","must_support":[],"purpose":"p"}],"#,
                r#""analysis":[{"schema_version":"1","mimetype":"a/b","must_support":[],"purpose":"p"}],"#,
                r#""attachments":[{"schema_version":"1","mimetype":"a/b","must_support":[],"type":"p"},7]}"#
            )
        );
    }

    #[test]
    fn a_purpose_beside_a_type_keeps_its_name() {
        let attachments = r#""attachments":[{"purpose":"tags","type":"x"}]"#;
        let out = downgraded(&format!("{{{attachments}}}"));
        assert!(out.starts_with(&format!("{{{attachments},")), "{out}");
    }

    #[test]
    fn what_the_old_version_always_has_is_added() {
        assert_eq!(
            downgraded(r#"{"uuid":"u"}"#),
            r#"{"uuid":"u","vcon":"0.0.1","group":[],"redacted":{},"appended":null}"#
        );
    }

    #[test]
    fn json_bodies_become_values() {
        assert_eq!(
            downgraded(concat!(
                r#"{"analysis":[{"body":{"n": 1.0},"type":"x"},{"encoding":"json","body":"5"},"#,
                r#"{"body":"{\"n\": 1.0}","encoding":"json"},{"body":[1],"encoding":"json"},"#,
                r#"{"body":7,"encoding":"json"},{"body":null,"encoding":"\u006ason"}]}"#
            )),
            concat!(
                r#"{"analysis":[{"body":{"n": 1.0},"type":"x","encoding":"none"},{"encoding":"none","body":5},"#,
                r#"{"body":{"n": 1.0},"encoding":"none"},{"body":[1],"encoding":"none"},"#,
                r#"{"body":7,"encoding":"none"},{"body":null,"encoding":"none"}],"#,
                r#""vcon":"0.0.1","group":[],"redacted":{},"appended":null}"#
            )
        );
    }

    #[test]
    fn other_bodies_keep_their_encoding() {
        for analysis in [
            r#"[{"body":"not json","encoding":"json"}]"#,
            r#"[{"body":"\ud800","encoding":"json"}]"#,
            r#"[{"body":"{}","encoding":"none"}]"#,
            r#"[{"body":"{}"}]"#,
            r#"[{"body":7,"encoding":"none"}]"#,
            r#"[{"body":7}]"#,
            r#"[{"encoding":"json"}]"#,
        ] {
            let out = downgraded(&format!(r#"{{"analysis":{analysis}}}"#));
            assert!(
                out.starts_with(&format!(r#"{{"analysis":{analysis},"#)),
                "{out}"
            );
        }
        let dialog = r#"{"dialog":[{"body":"{}","encoding":"json"}],"#;
        assert!(downgraded(r#"{"dialog":[{"body":"{}","encoding":"json"}]}"#).starts_with(dialog));
    }

    #[test]
    fn the_document_itself_stays_as_it_is() {
        let text =
            r#"{"vcon":"0.4.0","attachments":[{"purpose":"tags","body":"[]","encoding":"json"}]}"#;
        let mut vcon = Vcon::parse(VconId::random(), text.to_owned()).unwrap();
        vcon.outgoing(Version::V0_0_1);
        assert_eq!(vcon.to_json(), text);
        assert!(!vcon.is_changed());
    }
}
