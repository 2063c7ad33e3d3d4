//! What leaves for storages and webhooks.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::document::{Member, Part, Section, length, write_parts};
use super::json::{self, Borrowed, Object, ObjectWriter};
use super::normalise::{self, Rename};
use super::{CreatedAt, Sealed, VconError, VconId};

/// The version of the vCon syntax in which documents leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// What we write: 0.4.0.
    Current,
    /// The version of older consumers.
    V0_0_1,
    /// Whatever version is under the seal: nobody can ask for it.
    Sealed(Sealed),
}

/// How the bodies of analysis and attachments are written that are objects or arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JsonBodies {
    /// As the values they are.
    #[default]
    Native,
    /// As their JSON text, for readers that know no other form.
    Text,
}

impl Version {
    /// The version as documents name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "0.4.0",
            Self::V0_0_1 => "0.0.1",
            Self::Sealed(sealed) => sealed.as_str(),
        }
    }
}

/// What leaves for storages and webhooks: the document in its written form, with the fields that
/// layouts need.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The id under which it is kept.
    pub id: VconId,
    /// The document.
    pub json: Arc<String>,
    /// The version it is written in.
    pub version: Version,
    /// When the vCon was made; `None` where the document does not say so readably.
    pub created_at: Option<CreatedAt>,
    /// The time to use if `created_at` is missing; set at the first use, and the same from then on.
    pub stand_in: OnceLock<CreatedAt>,
    /// When it was made as the document said before a link changed that.
    pub formerly: Option<CreatedAt>,
    /// Its subject.
    pub subject: Option<String>,
}

/// A vCon on its way to storages, for each of them in the version that it gets.
#[derive(Debug, Clone)]
pub struct Leaving {
    /// In the version that is kept in Redis.
    pub current: Arc<Outgoing>,
    /// In the version of `EGRESS_FORMAT_VERSION`: the same one if that is not set.
    pub older: Arc<Outgoing>,
}

impl Leaving {
    /// The one for storages that get the older version, or for the others.
    pub fn of(&self, is_older: bool) -> &Arc<Outgoing> {
        if is_older { &self.older } else { &self.current }
    }
}

impl Outgoing {
    /// When the vCon was made, or the present time with a warning in the log. It is the same for
    /// every storage and at every further try, also after midnight: a layout by days would keep
    /// the vCon twice.
    pub fn created_or_now(&self) -> CreatedAt {
        let present = || {
            log::warn!(
                "vCon {}: `created_at` is missing or unreadable, the present time is used",
                self.id
            );
            CreatedAt::now()
        };
        self.created_at
            .unwrap_or_else(|| *self.stand_in.get_or_init(present))
    }
}

/// What version 0.0.1 always has: its name, its name of today, and what it is when empty.
const ALWAYS: &[(&str, &str, &str)] = &[
    ("group", "group", "[]"),
    ("redacted", "redacted", "{}"),
    ("appended", "amended", "null"),
];

/// Writes a document that has been through the write step.
pub(super) fn write_as_0_0_1(members: &IndexMap<String, Member>) -> String {
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

/// A written document, opened up as far as its lists.
pub struct Parts<'a>(Borrowed<'a>);

/// A party, dialog, analysis or attachment, opened up by one level.
pub struct OpenPart<'a>(IndexMap<Cow<'a, str>, Cow<'a, str>>);

impl<'a> Parts<'a> {
    /// Opens up a document that leaves.
    pub fn of(vcon: &'a Outgoing) -> Result<Self, VconError> {
        Ok(Self(Borrowed::read(&vcon.json)?))
    }

    /// The elements of one of its lists; none if it has no such list, or `null`.
    ///
    /// # Errors
    /// The list is none, or one of its elements is no object.
    pub fn list(&self, name: &'static str) -> Result<Vec<OpenPart<'a>>, VconError> {
        let list = self.0.0.get(name).filter(|list| list.get() != "null");
        let Some(list) = list else {
            return Ok(Vec::new());
        };
        if !json::is_array(list) {
            let kind = json::kind(list);
            return Err(VconError::NotAnArray { member: name, kind });
        }
        let elements: Vec<&RawValue> = serde_json::from_str(list.get())?;
        let part = |(number, element): (usize, &'a RawValue)| {
            if !json::is_object(element) {
                let kind = json::kind(element);
                return Err(VconError::PartNotAnObject {
                    list: name,
                    number,
                    kind,
                });
            }
            let members = Borrowed::read(element.get())?.0.into_iter();
            let members = members.map(|(key, value)| (key, Cow::Borrowed(value.get())));
            Ok(OpenPart(members.collect()))
        };
        elements.into_iter().enumerate().map(part).collect()
    }
}

impl OpenPart<'_> {
    /// A property as JSON.
    pub fn json(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|value| &**value)
    }

    /// A property that is a string.
    pub fn text(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.json(key)?).ok()
    }

    /// Sets a property, to JSON.
    pub fn set(&mut self, key: &str, json: String) {
        self.0.insert(Cow::Owned(key.to_owned()), Cow::Owned(json));
    }

    /// The body's own text where the part says that it is JSON and it is; `None` otherwise.
    pub fn json_body(&self) -> Option<String> {
        if self.text("encoding")? != "json" {
            return None;
        }
        let text = self.text("body")?;
        let raw = RawValue::from_string(text).ok()?;
        Some(Box::<str>::from(raw).into_string())
    }

    /// The part as JSON on one line.
    pub fn write(&self, out: &mut String) {
        let start = out.len();
        let mut writer = ObjectWriter::begin(out);
        for (key, value) in &self.0 {
            writer.key(key).push_str(value);
        }
        writer.end();
        // Between the values only: in a string they are escaped.
        if out[start..].contains(['\n', '\r']) {
            let line = out.split_off(start).replace(['\n', '\r'], " ");
            out.push_str(&line);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests_of_downgrade {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests_of_parts {
    use super::*;
    use crate::vcon::{Vcon, VconId, Version};

    fn outgoing(text: &str) -> Outgoing {
        let vcon = Vcon::parse(VconId::random(), text.to_owned());
        vcon.unwrap().outgoing(Version::Current)
    }

    #[test]
    fn a_part_comes_out_on_one_line_with_what_was_set() {
        let vcon = outgoing("{\"parties\":[{\"n\":1.0,\n \"deep\": [\r\n{}],\"s\":\"a\\nb\"}]}");
        let mut parties = Parts::of(&vcon).unwrap().list("parties").unwrap();
        parties[0].set("n", "\"new\"".to_owned());
        parties[0].set("vcon_id", "7".to_owned());
        let mut out = String::from("before\n");
        parties[0].write(&mut out);
        let expected = r#"{"n":"new","deep":[  {}],"s":"a\nb","vcon_id":7}"#;
        assert_eq!(out, format!("before\n{expected}"));
        assert_eq!(parties[0].text("s").unwrap(), "a\nb");
    }

    #[test]
    fn a_body_is_json_where_it_says_so_and_is() {
        for (part, body) in [
            (r#"{"body":"[1, 2.0]","encoding":"json"}"#, Some("[1, 2.0]")),
            (r#"{"body":"5","encoding":"json"}"#, Some("5")),
            (r#"{"body":"[1","encoding":"json"}"#, None),
            (r#"{"body":"[1]","encoding":"none"}"#, None),
            (r#"{"body":"[1]"}"#, None),
            (r#"{"encoding":"json"}"#, None),
        ] {
            let vcon = outgoing(&format!("{{\"dialog\":[{part}]}}"));
            let dialog = Parts::of(&vcon).unwrap().list("dialog").unwrap();
            assert_eq!(dialog[0].json_body().as_deref(), body, "{part}");
        }
    }

    #[test]
    fn what_is_no_part_is_told_with_its_place() {
        let vcon = outgoing(r#"{"dialog":[{},7],"analysis":null,"attachments":{}}"#);
        let parts = Parts::of(&vcon).unwrap();
        assert_eq!(parts.list("parties").unwrap().len(), 0);
        assert_eq!(parts.list("analysis").unwrap().len(), 0);
        let error = parts.list("attachments").err().unwrap();
        let expected = "`attachments` is an object, not an array";
        assert_eq!(error.to_string(), expected);
        let error = parts.list("dialog").err().unwrap();
        assert_eq!(error.to_string(), "`dialog[1]` is a number, not an object");
    }
}
