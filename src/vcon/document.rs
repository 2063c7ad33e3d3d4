//! The parsed document: which of it is opened up, and how it is written again.

use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::json::{self, Borrowed, Object, ObjectWriter};
use super::{CreatedAt, Outgoing, VconError, VconId, Version, downgrade, normalise, tags};

/// A vCon, with the property names of today whatever its age.
///
/// Only the members of the document and of its dialogs, analyses and attachments are opened up;
/// what they hold is the text it was.
#[derive(Debug, Clone)]
pub struct Vcon {
    id: VconId,
    pub(super) members: IndexMap<String, Member>,
    pub(super) changed: bool,
}

/// A member of the document.
#[derive(Debug, Clone)]
pub(super) enum Member {
    /// One that is left as it is.
    Raw(Box<RawValue>),
    /// One whose parts are opened up.
    Parts(Section, Vec<Part>),
}

/// The members of a document whose parts are opened up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Section {
    /// What was said.
    Dialog,
    /// What was made of it.
    Analysis,
    /// What came with it.
    Attachments,
}

/// An element of a section.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// A dialog, an analysis, an attachment.
    Object(Object),
    /// Something that does not belong there, left as it is.
    Other(Box<RawValue>),
}

impl Section {
    const ALL: [Self; 3] = [Self::Dialog, Self::Analysis, Self::Attachments];

    /// The member's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dialog => "dialog",
            Self::Analysis => "analysis",
            Self::Attachments => "attachments",
        }
    }
}

impl Vcon {
    /// Parses a document and gives its properties the names of today.
    ///
    /// Takes the text to free it as soon as its parts are copied: until then there are two of it.
    pub fn parse(id: VconId, text: String) -> Result<Self, VconError> {
        Self::read(id, &text)
    }

    /// The same, for a text that is still needed.
    pub fn read(id: VconId, text: &str) -> Result<Self, VconError> {
        let mut members = members(text)?;
        normalise::read_document(&mut members);
        Ok(Self {
            id,
            members,
            changed: false,
        })
    }

    /// The id under which it was claimed.
    pub fn id(&self) -> &VconId {
        &self.id
    }

    /// Whether a link changed it; what normalising does is no change.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Adds `"t:t"` for each tag `t` to the `tags` attachment, which is made where it is missing.
    /// Tags that are there already are no change.
    pub fn add_tags(&mut self, tags: &[String]) -> Result<(), VconError> {
        self.changed |= tags::add(&mut self.members, tags)?;
        Ok(())
    }

    /// The names of its tags: what stands before the colon in each entry of its `tags` attachments.
    pub fn tag_names(&self) -> Vec<String> {
        tags::names(&self.members)
    }

    /// Puts another document in the place of this one. Its `uuid` is the same, or absent: then it
    /// gets the one that was there.
    pub fn replace(&mut self, text: String) -> Result<(), VconError> {
        let mut members = members(&text)?;
        normalise::read_document(&mut members);
        let before = self.raw("uuid").map(ToOwned::to_owned);
        match members.get("uuid") {
            None => {
                let uuid = before.unwrap_or_else(|| json::string(self.id.as_str()));
                members.insert("uuid".to_owned(), Member::Raw(uuid));
            }
            Some(Member::Raw(uuid)) => {
                let text = json::text(uuid);
                let is_ours = text.as_deref() == Some(self.id.as_str());
                let same = |other: &RawValue| {
                    other.get() == uuid.get() || (text.is_some() && json::text(other) == text)
                };
                if !is_ours && !before.as_deref().is_some_and(same) {
                    let shown: String = uuid.get().chars().take(80).collect();
                    return Err(VconError::AnotherVcon(shown));
                }
            }
            // No section has that name.
            Some(Member::Parts(..)) => {}
        }
        self.members = members;
        self.changed = true;
        Ok(())
    }

    /// What stands in Redis is another document, whatever links have done.
    pub fn note_changed(&mut self) {
        self.changed = true;
    }

    /// What links have done until now is in Redis, and counts as a change no more.
    pub fn note_written(&mut self) {
        self.changed = false;
    }

    /// The document as it is kept in Redis.
    pub fn to_json(&mut self) -> String {
        normalise::write(&mut self.members);
        write(&self.members)
    }

    /// The document as it leaves for storages and webhooks. An older version is a copy.
    pub fn outgoing(&mut self, version: Version) -> Outgoing {
        normalise::write(&mut self.members);
        Outgoing {
            id: self.id.clone(),
            json: Arc::new(match version {
                Version::Current => write(&self.members),
                Version::V0_0_1 => downgrade::write(&self.members),
            }),
            version,
            created_at: self.raw("created_at").and_then(CreatedAt::from_json),
            stand_in: std::sync::OnceLock::new(),
            subject: self.raw("subject").and_then(json::text),
        }
    }

    /// The document as it leaves for storages, and as it is to be kept in Redis where a link changed
    /// it. Where the two are the same text there is one of it, and the parts of the document are
    /// gone: a large one is in memory once.
    pub fn depart(&mut self, version: Version) -> (Outgoing, Option<Arc<String>>) {
        let outgoing = self.outgoing(version);
        let kept = match version {
            Version::Current => self.changed.then(|| Arc::clone(&outgoing.json)),
            Version::V0_0_1 => self.changed.then(|| Arc::new(self.to_json())),
        };
        self.members = IndexMap::new();
        (outgoing, kept)
    }

    fn raw(&self, name: &str) -> Option<&RawValue> {
        match self.members.get(name) {
            Some(Member::Raw(value)) => Some(value),
            _ => None,
        }
    }
}

fn members(text: &str) -> Result<IndexMap<String, Member>, VconError> {
    if !text.trim_ascii_start().starts_with('{') {
        let value: &RawValue = serde_json::from_str(text)?;
        return Err(VconError::NotAnObject(json::kind(value)));
    }
    let mut members = IndexMap::new();
    for (name, value) in Borrowed::read(text)?.0 {
        let member = match Section::ALL.iter().find(|section| section.name() == name) {
            Some(section) => Member::Parts(*section, parts(*section, value)?),
            None if name == "parties" => {
                check_array("parties", value)?;
                Member::Raw(value.to_owned())
            }
            None => Member::Raw(value.to_owned()),
        };
        members.insert(name, member);
    }
    Ok(members)
}

fn parts(section: Section, value: &RawValue) -> Result<Vec<Part>, VconError> {
    check_array(section.name(), value)?;
    let elements: Vec<&RawValue> = serde_json::from_str(value.get())?;
    let part = |element: &RawValue| {
        if !json::is_object(element) {
            return Ok(Part::Other(element.to_owned()));
        }
        let mut part = Borrowed::read(element.get())?.into_owned();
        normalise::read_part(section, &mut part);
        Ok(Part::Object(part))
    };
    elements.into_iter().map(part).collect()
}

fn check_array(member: &'static str, value: &RawValue) -> Result<(), VconError> {
    if json::is_array(value) {
        return Ok(());
    }
    let kind = json::kind(value);
    Err(VconError::NotAnArray { member, kind })
}

/// Writes the document as it is.
fn write(members: &IndexMap<String, Member>) -> String {
    let mut out = String::with_capacity(length(members));
    let mut document = ObjectWriter::begin(&mut out);
    for (key, member) in members {
        let value = document.key(key);
        match member {
            Member::Raw(raw) => value.push_str(raw.get()),
            Member::Parts(_, parts) => write_parts(value, parts, write_part),
        }
    }
    document.end();
    out
}

/// Writes one part.
pub(super) fn write_part(out: &mut String, part: &Part) {
    match part {
        Part::Object(part) => {
            let mut writer = ObjectWriter::begin(out);
            for (key, value) in part {
                writer.key(key).push_str(value.get());
            }
            writer.end();
        }
        Part::Other(raw) => out.push_str(raw.get()),
    }
}

/// Writes the array of a section's parts.
pub(super) fn write_parts(out: &mut String, parts: &[Part], write: impl Fn(&mut String, &Part)) {
    out.push('[');
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write(out, part);
    }
    out.push(']');
}

/// About the length of the written document, so that a large one is not moved while it is written.
pub(super) fn length(members: &IndexMap<String, Member>) -> usize {
    const PUNCTUATION: usize = 4;
    let object = |object: &Object| -> usize {
        let values: usize = object.values().map(|value| value.get().len()).sum();
        let keys: usize = object.keys().map(|key| key.len() + PUNCTUATION).sum();
        values + keys
    };
    let part = |part: &Part| match part {
        Part::Object(part) => object(part) + PUNCTUATION,
        Part::Other(raw) => raw.get().len() + PUNCTUATION,
    };
    let member = |(key, member): (&String, &Member)| {
        let value = match member {
            Member::Raw(raw) => raw.get().len(),
            Member::Parts(_, parts) => parts.iter().map(part).sum::<usize>(),
        };
        key.len() + value + PUNCTUATION
    };
    PUNCTUATION + members.iter().map(member).sum::<usize>()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vcon, VconError> {
        Vcon::parse(VconId::random(), text.to_owned())
    }

    #[test]
    fn what_is_not_looked_at_survives_byte_for_byte() {
        let text = concat!(
            r#"{"vcon":"0.4.0","uuid":"u","n":[1.0, 1,1E5 ,-0.0,123456789012345678901234567890],"#,
            r#""dialog":[{"z":1.50,"type":"text","body":"\ud800\u00e9 \/","a":{"k" : 1.0}}],"#,
            r#""parties":[{"name":"Zoë"},7],"unknown":{"dialog":null}}"#
        );
        assert_eq!(parse(text).unwrap().to_json(), text);
    }

    #[test]
    fn a_key_is_known_however_it_is_escaped() {
        assert_eq!(
            parse(r#"{"\u0064ialog":[{"mime\u0074ype":"a/b"}],"vcon":"0.4.0"}"#)
                .unwrap()
                .to_json(),
            r#"{"dialog":[{"mediatype":"a/b"}],"vcon":"0.4.0"}"#
        );
    }

    #[test]
    fn missing_lists_stay_missing() {
        let vcon = parse("{}").unwrap().to_json();
        assert_eq!(vcon, r#"{"vcon":"0.4.0"}"#);
    }

    #[test]
    fn errors_say_what_is_wrong_and_where() {
        for (text, message) in [
            (
                "",
                "is not JSON: EOF while parsing a value at line 1 column 0",
            ),
            (
                "{\n\"a\":1\n\"b\":2}",
                "is not JSON: expected `,` or `}` at line 3 column 1",
            ),
            (
                "{} x",
                "is not JSON: trailing characters at line 1 column 4",
            ),
            (
                "nul",
                "is not JSON: EOF while parsing a value at line 1 column 3",
            ),
            (" [1]", "is not a JSON object but an array"),
            ("\"x\"", "is not a JSON object but a string"),
            ("7", "is not a JSON object but a number"),
            ("null", "is not a JSON object but null"),
            ("true", "is not a JSON object but a boolean"),
            (r#"{"dialog":null}"#, "`dialog` is null, not an array"),
            (
                r#"{"analysis":"x"}"#,
                "`analysis` is a string, not an array",
            ),
            (
                r#"{"attachments":{}}"#,
                "`attachments` is an object, not an array",
            ),
            (r#"{"parties":1}"#, "`parties` is a number, not an array"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn of_a_repeated_list_the_last_one_counts() {
        let text = r#"{"vcon":"0.4.0","dialog":null,"dialog":[]}"#;
        assert_eq!(
            parse(text).unwrap().to_json(),
            r#"{"vcon":"0.4.0","dialog":[]}"#
        );
    }

    #[test]
    fn another_document_takes_the_place_of_this_one_and_keeps_its_uuid() {
        let id = VconId::random();
        let own = format!(r#"{{"uuid":"{id}","vcon":"0.4.0"}}"#);
        for (before, text, expected) in [
            ("{}", "{}".to_owned(), Ok(own.clone())),
            ("{}", own.clone(), Ok(own.clone())),
            (
                r#"{"uuid":7}"#,
                r#"{"must_support":1}"#.to_owned(),
                Ok(r#"{"critical":1,"uuid":7,"vcon":"0.4.0"}"#.to_owned()),
            ),
            (r#"{"uuid":"x"}"#, own.clone(), Ok(own)),
            (
                r#"{"uuid":"x"}"#,
                r#"{"vcon":"1","uuid":"\u0078"}"#.to_owned(),
                Ok(r#"{"vcon":"0.4.0","uuid":"\u0078"}"#.to_owned()),
            ),
            (
                "{}",
                r#"{"uuid":"x"}"#.to_owned(),
                Err(r#"has the uuid "x", which is another vCon's"#.to_owned()),
            ),
            (
                "{}",
                "[]".to_owned(),
                Err("is not a JSON object but an array".to_owned()),
            ),
        ] {
            let mut vcon = Vcon::parse(id.clone(), before.to_owned()).unwrap();
            let replaced = vcon.replace(text).map_err(|error| error.to_string());
            assert_eq!(vcon.is_changed(), replaced.is_ok());
            assert_eq!(replaced.map(|()| vcon.to_json()), expected, "{before}");
        }
    }

    #[test]
    fn outgoing_has_what_layouts_need() {
        let text = r#"{"subject":"H\u00e9","created_at":"2024-03-16T16:09:20.701906"}"#;
        let mut vcon = parse(text).unwrap();
        let outgoing = vcon.outgoing(Version::Current);
        assert_eq!(&outgoing.id, vcon.id());
        assert_eq!(*outgoing.json, vcon.to_json());
        assert_eq!(outgoing.subject.as_deref(), Some("Hé"));
        assert_eq!(outgoing.created_at.unwrap().unix, 1_710_605_360);
    }

    #[test]
    fn a_subject_or_date_of_another_kind_is_none() {
        let outgoing = parse(r#"{"subject":["x"],"created_at":{"dialog":[]}}"#)
            .unwrap()
            .outgoing(Version::Current);
        assert_eq!(outgoing.subject, None);
        assert_eq!(outgoing.created_at, None);
        // One time for every storage and every try.
        let first = outgoing.created_or_now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(outgoing.created_or_now(), first);
    }
}
