//! The names and forms of today in documents of any age: on read the renames, on write the rest.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::document::{Member, Part, Section};
use super::json::{self, Members, Object};

/// A property's old name and its name of today.
pub(super) type Rename = (&'static str, &'static str);

/// What was renamed in the document itself.
pub(super) const DOCUMENT: &[Rename] = &[("appended", "amended"), ("must_support", "critical")];

/// What was renamed in each dialog and analysis.
const PART: &[Rename] = &[
    ("schema_version", "schema"),
    ("mimetype", "mediatype"),
    ("must_support", "critical"),
];

/// What was renamed in each attachment: that, and the one name that does not push out the other.
const ATTACHMENT: &[Rename] = &[PART[0], PART[1], PART[2], ("type", "purpose")];

/// What was renamed in the parts of a section.
pub(super) fn renames(section: Section) -> &'static [Rename] {
    match section {
        Section::Dialog | Section::Analysis => PART,
        Section::Attachments => ATTACHMENT,
    }
}

/// The read step for the document itself.
pub(super) fn read_document(members: &mut IndexMap<String, Member>) {
    for (old, new) in DOCUMENT {
        json::rename(members, old, new);
    }
}

/// Whether neither the read step nor [`name_encoding`] changes anything in a part.
pub(super) fn is_of_today(section: Section, part: &Members<'_>) -> bool {
    let is_json = |body: &RawValue| json::is_object(body) || json::is_array(body);
    part.iter().all(|(key, value)| match &**key {
        "encoding" => !json::says(value, "text"),
        "body" => !(section.has_json_bodies() && is_json(value)),
        key => renames(section).iter().all(|(old, _)| key != *old),
    })
}

/// The read step for one part.
pub(super) fn read_part(section: Section, part: &mut Object) {
    for (old, new) in renames(section) {
        // A `type` beside a `purpose` says something else, and stays.
        if *old != "type" || !part.contains_key(*new) {
            json::rename(part, old, new);
        }
    }
    // The word of an older draft.
    if let Some(encoding) = part.get_mut("encoding")
        && json::says(encoding, "text")
    {
        *encoding = json::string("none");
    }
}

/// The write step, for a document that has been through the read step.
pub(super) fn write(members: &mut IndexMap<String, Member>) {
    members.insert("vcon".to_owned(), Member::Raw(json::string("0.4.0")));
    members.retain(|name, member| match (name.as_str(), member) {
        ("group", Member::Raw(value)) => !(json::is_array(value) && json::is_empty(value)),
        ("redacted", Member::Raw(value)) => !(json::is_object(value) && json::is_empty(value)),
        _ => true,
    });
    for member in members.values_mut() {
        if let Member::Parts(section, parts) = member
            && section.has_json_bodies()
        {
            for part in parts {
                if let Part::Object(part) = part {
                    name_encoding(part);
                }
            }
        }
    }
}

/// A body that is an object or array is JSON, whatever else is said of it. Parts that are closed have been
/// through this.
pub(super) fn name_encoding(part: &mut Object) {
    let is_json = |body: &RawValue| json::is_object(body) || json::is_array(body);
    if part.get("body").is_some_and(|body| is_json(body)) {
        part.insert("encoding".to_owned(), json::string("json"));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use crate::vcon::{Vcon, VconId};

    fn written(text: &str) -> String {
        Vcon::parse(VconId::random(), text.to_owned())
            .unwrap()
            .to_json()
    }

    #[test]
    fn old_names_become_new_ones_in_their_place() {
        assert_eq!(
            written(
                r#"{"vcon":"0.0.1","appended":null,"must_support":["x"],
                "dialog":[{"schema_version":"1","mimetype":"a/b","must_support":[],"type":"text"}],
                "analysis":[{"type":"summary","mimetype":"a/b","schema_version":"1","must_support":[]}],
                "attachments":[{"type":"note","mimetype":"a/b","schema_version":"1","must_support":[]}]}"#
            ),
            concat!(
                r#"{"vcon":"0.4.0","amended":null,"critical":["x"],"#,
                r#""dialog":[{"schema":"1","mediatype":"a/b","critical":[],"type":"text"}],"#,
                r#""analysis":[{"type":"summary","mediatype":"a/b","schema":"1","critical":[]}],"#,
                r#""attachments":[{"purpose":"note","mediatype":"a/b","schema":"1","critical":[]}]}"#
            )
        );
    }

    #[test]
    fn where_both_names_are_present_the_new_one_wins() {
        assert_eq!(
            written(
                r#"{"vcon":"0.4.0","amended":{"a":1},"appended":{"b":2},"dialog":[{"mimetype":"old/x","mediatype":"new/x"}]}"#
            ),
            r#"{"vcon":"0.4.0","amended":{"a":1},"dialog":[{"mediatype":"new/x"}]}"#
        );
    }

    #[test]
    fn a_type_beside_a_purpose_stays() {
        let text = r#"{"vcon":"0.4.0","attachments":[{"type":"x","purpose":"tags"}]}"#;
        assert_eq!(written(text), text);
    }

    #[test]
    fn renames_do_not_reach_into_other_members() {
        let text = r#"{"vcon":"0.4.0","parties":[{"mimetype":"a/b"}],"dialog":[{"meta":{"mimetype":"a/b"}}]}"#;
        assert_eq!(written(text), text);
    }

    #[test]
    fn the_version_is_written_in_its_place_or_at_the_end() {
        assert_eq!(
            written(r#"{"vcon":"0.0.2","a":1}"#),
            r#"{"vcon":"0.4.0","a":1}"#
        );
        assert_eq!(written(r#"{"a":1}"#), r#"{"a":1,"vcon":"0.4.0"}"#);
    }

    #[test]
    fn only_an_empty_group_and_redacted_are_dropped() {
        assert_eq!(
            written(r#"{"group":[ ],"vcon":"0.4.0","redacted":{}}"#),
            r#"{"vcon":"0.4.0"}"#
        );
        for kept in [
            r#"{"vcon":"0.4.0","group":[{"uuid":"x"}],"redacted":{"uuid":"y"}}"#,
            r#"{"vcon":"0.4.0","group":{},"redacted":[]}"#,
            r#"{"vcon":"0.4.0","group":null,"redacted":""}"#,
        ] {
            assert_eq!(written(kept), kept);
        }
    }

    #[test]
    fn bodies_of_analysis_and_attachments_stay_values_and_say_that_they_are_json() {
        assert_eq!(
            written(
                r#"{"vcon":"0.4.0","analysis":[{"body":{"b": 1.0,"a":[1e5]},"encoding":"none","type":"x"}],"attachments":[{"body":["t:t"]}]}"#
            ),
            r#"{"vcon":"0.4.0","analysis":[{"body":{"b": 1.0,"a":[1e5]},"encoding":"json","type":"x"}],"attachments":[{"body":["t:t"],"encoding":"json"}]}"#
        );
    }

    #[test]
    fn the_encoding_of_an_older_draft_gets_its_name_of_today() {
        for section in ["dialog", "analysis", "attachments"] {
            for old in ["\"text\"", "\"\\u0074ext\""] {
                let text = |encoding| {
                    format!(
                        r#"{{"vcon":"0.4.0","{section}":[{{"body":"b","encoding":{encoding}}}]}}"#
                    )
                };
                assert_eq!(written(&text(old)), text("\"none\""));
            }
        }
        for kept in [
            r#"{"vcon":"0.4.0","parties":[{"encoding":"text"}],"encoding":"text"}"#,
            r#"{"vcon":"0.4.0","dialog":[{"encoding":["text"]},{"encoding":"Text"}]}"#,
            r#"{"vcon":"0.4.0","dialog":{"body":"b","encoding":"text"}}"#,
        ] {
            assert_eq!(written(kept), kept);
        }
    }

    #[test]
    fn other_bodies_stay() {
        let text = concat!(
            r#"{"vcon":"0.4.0","dialog":[{"body":{"a":1},"encoding":"none"}],"#,
            r#""analysis":[{"body":"text","encoding":"none"},{"body":"[1]","encoding":"json"},"#,
            r#"{"body":null},{"body":5},"x",7,null,[]]}"#
        );
        assert_eq!(written(text), text);
    }
}
