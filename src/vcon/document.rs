//! The parsed document: which parts of it are parsed, and how it is written again.

use std::borrow::{Borrow, Cow};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::json::{self, Borrowed, Members, Object, ObjectWriter};
use super::outgoing::{JsonBodies, Leaving};
use super::{
    CreatedAt, Outgoing, Sealed, VconError, VconId, Version, normalise, outgoing, sealed, tags,
};

/// The extensions that are known here: they add properties of parties and dialogs, and kinds of
/// analyses, of which whatever a link changes leaves the others right.
const KNOWN: [&str; 3] = ["CC", "WTF", "wtf_transcription"];

/// A vCon, with the property names of today whatever its age.
///
/// Only the members of the document and of its dialogs, analyses and attachments are opened up;
/// what they hold is the text it was.
#[derive(Debug, Clone)]
pub struct Vcon {
    id: VconId,
    pub(super) members: IndexMap<String, Member>,
    pub(super) changed: bool,
    /// The date in the text that was read.
    read_date: Option<CreatedAt>,
    /// Set if it is signed or encrypted: why nothing may change it, and its whole text.
    pub(super) sealed: Option<(Sealed, Arc<String>)>,
    /// How bodies that are JSON are written.
    pub(super) bodies: JsonBodies,
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
    /// A dialog, an analysis, an attachment, opened up.
    Object(Box<Object>),
    /// One that is short, as the text it is written as: opened up, it takes many times the memory.
    Closed(Box<str>),
    /// Something that does not belong there, left as it is.
    Other(Box<RawValue>),
}

/// Parts up to this many bytes stay text. A longer part takes little more memory parsed than as text, and
/// parsing it anew at each access would be slow.
const SHORT: usize = 4096;

impl Part {
    /// Its members, if it is an object.
    pub(super) fn object(&self) -> Option<Cow<'_, Object>> {
        match self {
            Self::Object(object) => Some(Cow::Borrowed(object)),
            Self::Closed(text) => Some(Cow::Owned(members_of(text))),
            Self::Other(_) => None,
        }
    }

    /// Opens it up to be changed, if it is an object.
    pub(super) fn open(&mut self) -> Option<&mut Object> {
        if let Self::Closed(text) = self {
            *self = Self::Object(Box::new(members_of(text)));
        }
        match self {
            Self::Object(object) => Some(object),
            Self::Closed(_) | Self::Other(_) => None,
        }
    }

    /// Makes it the text it is written as, if that is short.
    pub(super) fn close(&mut self, section: Section) {
        let Self::Object(object) = self else { return };
        if section.has_json_bodies() {
            normalise::name_encoding(object);
        }
        let length = length_of(object);
        if length <= SHORT {
            let mut text = String::with_capacity(length);
            write_part(&mut text, self);
            *self = Self::Closed(text.into_boxed_str());
        }
    }
}

/// The members of a part that is closed: what was written from an object is one.
fn members_of(text: &str) -> Object {
    Borrowed::read(text).map_or_else(|_| Object::new(), Borrowed::into_owned)
}

/// The list of those who took part, which no link opens up.
const PARTIES: &str = "parties";

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

    /// The section of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|section| section.name() == name)
    }

    /// Whether bodies of its parts may be JSON.
    pub(super) fn has_json_bodies(self) -> bool {
        match self {
            Self::Dialog => false,
            Self::Analysis | Self::Attachments => true,
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
        let (members, sealed) = opened(text)?;
        let mut vcon = Self {
            id,
            members,
            changed: false,
            read_date: None,
            sealed,
            bodies: JsonBodies::default(),
        };
        vcon.read_date = vcon.created_at();
        Ok(vcon)
    }

    /// The same, which writes bodies that are JSON like this.
    pub fn writing(self, bodies: JsonBodies) -> Self {
        Self { bodies, ..self }
    }

    /// The id under which it was claimed.
    pub fn id(&self) -> &VconId {
        &self.id
    }

    /// Whether a link changed it; what normalising does is no change.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// Whether it is signed or encrypted: it is carried as it is then.
    pub fn sealed(&self) -> Option<Sealed> {
        self.sealed.as_ref().map(|(sealed, _)| *sealed)
    }

    /// # Errors
    /// It is sealed.
    pub(super) fn check_open(&self) -> Result<(), VconError> {
        self.sealed()
            .map_or(Ok(()), |sealed| Err(VconError::Sealed(sealed)))
    }

    /// The extensions that whoever changes it must know, by `critical`, and that are not known here;
    /// `None` if there are none.
    pub fn unknown_extensions(&self) -> Option<String> {
        const LONGEST: usize = 200;
        let critical = self.raw("critical").filter(|_| self.sealed.is_none())?;
        let names: Vec<String> = match json::elements(critical.get()) {
            Some(names) => {
                let is_known = |name: &String| KNOWN.iter().any(|it| it.eq_ignore_ascii_case(name));
                let names = names.into_iter().map(json::shown);
                names.filter(|name| !is_known(name)).collect()
            }
            None if json::is_nothing(critical) => Vec::new(),
            None => vec![json::shown(critical)],
        };
        let names = names.join(", ").chars().take(LONGEST).collect::<String>();
        (!names.is_empty()).then_some(names)
    }

    /// The telephone numbers and mail addresses of its parties (`tel` and `mailto`), in their order; none
    /// where they cannot be read.
    pub fn contacts(&self) -> Vec<String> {
        let parties = self.raw(PARTIES).map(|it| serde_json::from_str(it.get()));
        let parties: Vec<serde_json::Value> = parties.and_then(Result::ok).unwrap_or_default();
        let contact = |value: Option<&serde_json::Value>| {
            let text = value
                .and_then(serde_json::Value::as_str)
                .filter(|it| !it.is_empty());
            text.map(str::to_owned)
        };
        let of_party =
            |party: &serde_json::Value| ["tel", "mailto"].map(|name| contact(party.get(name)));
        parties.iter().flat_map(of_party).flatten().collect()
    }

    /// Adds each tag, as `name:value`, to the `tags` attachment, which is made if it is missing.
    /// Tags that are there already are no change.
    ///
    /// # Errors
    /// It is sealed, or its attachments are no list.
    pub fn add_tags(&mut self, tags: &[String]) -> Result<(), VconError> {
        self.check_open()?;
        self.changed |= tags::add(&mut self.members, tags)?;
        Ok(())
    }

    /// Its tags, each with its name and value: what stands before and after the first colon in each
    /// entry of its `tags` attachments. A sealed one shows none.
    ///
    /// # Errors
    /// Its attachments are no list.
    pub fn tags(&self) -> Result<Vec<(String, String)>, VconError> {
        if self.sealed.is_some() {
            return Ok(Vec::new());
        }
        tags::pairs(&self.members)
    }

    /// Puts another document in the place of this one. Its `uuid` is the same, or absent: then it
    /// gets the one that was there. A sealed document has none to see.
    ///
    /// # Errors
    /// The text is no vCon, or another one's, or this one is sealed.
    pub fn replace(&mut self, text: String) -> Result<(), VconError> {
        self.check_open()?;
        let (mut members, sealed) = opened(&text)?;
        if sealed.is_some() {
            (self.members, self.sealed, self.changed) = (members, sealed, true);
            return Ok(());
        }
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

    /// Redis has all changes that links have made so far: the document counts as unchanged again.
    pub fn note_written(&mut self) {
        self.changed = false;
    }

    /// The document as it is kept in Redis.
    pub fn to_json(&mut self) -> String {
        self.written_as(self.bodies)
    }

    /// The document without the bodies of its dialogs.
    pub fn without_dialog_bodies(&self) -> String {
        let mut out = String::new();
        let mut document = ObjectWriter::begin(&mut out);
        for (key, member) in &self.members {
            let value = document.key(key);
            match member {
                Member::Raw(raw) => value.push_str(raw.get()),
                Member::Parts(Section::Dialog, parts) => write_parts(value, parts, write_bodiless),
                Member::Parts(_, parts) => write_parts(value, parts, write_part),
            }
        }
        document.end();
        out
    }

    /// The document with bodies as they are kept: a value is a value whatever is written.
    pub fn with_values(&mut self) -> String {
        self.written_as(JsonBodies::Native)
    }

    fn written_as(&mut self, bodies: JsonBodies) -> String {
        if let Some((_, text)) = &self.sealed {
            return text.to_string();
        }
        normalise::write(&mut self.members);
        write(&self.members, bodies)
    }

    /// The document as it leaves for storages and webhooks. An older version is a copy.
    pub fn outgoing(&mut self, version: Version) -> Outgoing {
        if let Some((sealed, text)) = &self.sealed {
            return Outgoing {
                id: self.id.clone(),
                json: Arc::clone(text),
                version: Version::Sealed(*sealed),
                created_at: None,
                stand_in: std::sync::OnceLock::new(),
                formerly: self.read_date,
                subject: None,
            };
        }
        let outgoing = self.without_text(version);
        normalise::write(&mut self.members);
        let json = match version {
            Version::Current | Version::Sealed(_) => write(&self.members, self.bodies),
            Version::V0_0_1 => outgoing::write_as_0_0_1(&self.members),
        };
        Outgoing {
            json: Arc::new(json),
            ..outgoing
        }
    }

    /// What leaves, without the document.
    fn without_text(&self, version: Version) -> Outgoing {
        let created_at = self.created_at();
        Outgoing {
            id: self.id.clone(),
            json: Arc::default(),
            version,
            created_at,
            stand_in: std::sync::OnceLock::new(),
            formerly: self.read_date.filter(|date| Some(*date) != created_at),
            subject: self.raw("subject").and_then(json::text),
        }
    }

    /// Returns the document for storages and, if a link changed it, the text for Redis. If both texts
    /// are the same, they share one copy. Frees each parsed part as it is written, so that a large document
    /// is in memory only once.
    pub fn depart(&mut self, version: Version) -> (Leaving, Option<Arc<String>>) {
        let (current, older) = if self.sealed.is_some() {
            (Arc::new(self.outgoing(Version::Current)), None)
        } else {
            let mut current = self.without_text(Version::Current);
            normalise::write(&mut self.members);
            let older = (version == Version::V0_0_1).then(|| {
                if current.created_at.is_none() {
                    // One time for both.
                    current.created_or_now();
                }
                Arc::new(Outgoing {
                    json: Arc::new(outgoing::write_as_0_0_1(&self.members)),
                    version,
                    ..current.clone()
                })
            });
            let members = std::mem::take(&mut self.members);
            current.json = Arc::new(write_and_free(members, self.bodies));
            (Arc::new(current), older)
        };
        let kept = self.changed.then(|| Arc::clone(&current.json));
        let older = older.unwrap_or_else(|| Arc::clone(&current));
        (Leaving { current, older }, kept)
    }

    fn created_at(&self) -> Option<CreatedAt> {
        self.raw("created_at").and_then(CreatedAt::from_json)
    }

    fn raw(&self, name: &str) -> Option<&RawValue> {
        match self.members.get(name) {
            Some(Member::Raw(value)) => Some(value),
            _ => None,
        }
    }
}

/// The members of a document that go through the read step, or what it is besides if it is sealed.
type Opened = (IndexMap<String, Member>, Option<(Sealed, Arc<String>)>);

fn opened(text: &str) -> Result<Opened, VconError> {
    let text = json::without_mark(text);
    if !text.trim_ascii_start().starts_with('{') {
        let value: &RawValue = serde_json::from_str(text)?;
        let inside = json::text(value);
        return Err(
            match inside.is_some_and(|text| Borrowed::read(&text).is_ok()) {
                true => VconError::EncodedTwice,
                false => VconError::NotAnObject(json::kind(value)),
            },
        );
    }
    let read = Borrowed::read(text)?.0;
    if let Some(sealed) = sealed::of(&read) {
        return Ok((IndexMap::new(), Some((sealed, Arc::new(text.to_owned())))));
    }
    let mut members = IndexMap::new();
    for (name, value) in read {
        let member = match Section::named(&name) {
            // What is no list is left as it is.
            Some(section) if json::is_array(value) => {
                Member::Parts(section, parts(section, value)?)
            }
            _ => Member::Raw(value.to_owned()),
        };
        members.insert(name.into_owned(), member);
    }
    normalise::read_document(&mut members);
    Ok((members, None))
}

fn parts(section: Section, value: &RawValue) -> Result<Vec<Part>, VconError> {
    let elements: Vec<&RawValue> = serde_json::from_str(value.get())?;
    let part = |element: &RawValue| {
        if !json::is_object(element) {
            return Ok(Part::Other(element.to_owned()));
        }
        let read = Borrowed::read(element.get())?;
        let closed = closed_unread(section, &read.0).map(Part::Closed);
        Ok(closed.unwrap_or_else(|| opened_part(section, read)))
    };
    elements.into_iter().map(part).collect()
}

/// A part after the read step.
fn opened_part(section: Section, read: Borrowed<'_>) -> Part {
    let mut object = read.into_owned();
    normalise::read_part(section, &mut object);
    let mut part = Part::Object(Box::new(object));
    part.close(section);
    part
}

/// The text of a part that is short, and that the read step leaves as it is. Most parts are such, and need not be opened
/// up to find that out.
fn closed_unread(section: Section, members: &Members<'_>) -> Option<Box<str>> {
    if !normalise::is_of_today(section, members) {
        return None;
    }
    let mut length = 2;
    for (key, value) in members {
        length += key.len() + value.get().len() + PUNCTUATION;
    }
    if length > SHORT {
        return None;
    }
    let mut text = String::with_capacity(length);
    let mut writer = ObjectWriter::begin(&mut text);
    for (key, value) in members {
        writer.key(key).push_str(value.get());
    }
    writer.end();
    Some(text.into_boxed_str())
}

/// The parts of a section. One that is missing, or `null`, has none.
///
/// # Errors
/// It is something else than a list.
pub(super) fn parts_of(
    members: &IndexMap<String, Member>,
    section: Section,
) -> Result<&[Part], VconError> {
    match members.get(section.name()) {
        None => Ok(&[]),
        Some(Member::Parts(_, parts)) => Ok(parts),
        Some(Member::Raw(value)) => check_none(section, value).map(|()| &[][..]),
    }
}

/// The same, to be changed; `None` if it has none.
pub(super) fn parts_to_change(
    members: &mut IndexMap<String, Member>,
    section: Section,
) -> Result<Option<&mut Vec<Part>>, VconError> {
    match members.get_mut(section.name()) {
        None => Ok(None),
        Some(Member::Parts(_, parts)) => Ok(Some(parts)),
        Some(Member::Raw(value)) => check_none(section, value).map(|()| None),
    }
}

fn check_none(section: Section, value: &RawValue) -> Result<(), VconError> {
    check_no_value(section.name(), value)
}

fn check_no_value(member: &'static str, value: &RawValue) -> Result<(), VconError> {
    if value.get() == "null" {
        return Ok(());
    }
    let kind = json::kind(value);
    Err(VconError::NotAnArray { member, kind })
}

impl Vcon {
    /// Whether the members that are needed, of those that should be lists, are lists, or there is
    /// nothing in their place.
    ///
    /// # Errors
    /// Names the first one that is something else.
    pub fn check_lists(&self, is_needed: impl Fn(&str) -> bool) -> Result<(), VconError> {
        for section in Section::ALL {
            if is_needed(section.name()) {
                parts_of(&self.members, section)?;
            }
        }
        match self.members.get(PARTIES) {
            Some(Member::Raw(value)) if is_needed(PARTIES) && !value.get().starts_with('[') => {
                check_no_value(PARTIES, value)
            }
            _ => Ok(()),
        }
    }
}

/// Writes the document as it is.
fn write(members: &IndexMap<String, Member>, bodies: JsonBodies) -> String {
    let mut out = String::with_capacity(length(members));
    let mut document = ObjectWriter::begin(&mut out);
    for (key, member) in members {
        let value = document.key(key);
        match member {
            Member::Raw(raw) => value.push_str(raw.get()),
            Member::Parts(section, parts) => {
                write_parts(value, parts, part_writer(*section, bodies));
            }
        }
    }
    document.end();
    out
}

/// The same. Frees each part as soon as it is written.
fn write_and_free(members: IndexMap<String, Member>, bodies: JsonBodies) -> String {
    let mut out = String::with_capacity(length(&members));
    let mut document = ObjectWriter::begin(&mut out);
    for (key, member) in members {
        let value = document.key(&key);
        match member {
            Member::Raw(raw) => value.push_str(raw.get()),
            Member::Parts(section, parts) => {
                write_parts(value, parts, part_writer(section, bodies));
            }
        }
    }
    document.end();
    out
}

fn part_writer(section: Section, bodies: JsonBodies) -> fn(&mut String, &Part) {
    if bodies == JsonBodies::Text && section.has_json_bodies() {
        write_with_text
    } else {
        write_part
    }
}

/// Writes one part.
pub(super) fn write_part(out: &mut String, part: &Part) {
    match part {
        Part::Object(part) => {
            let mut writer = ObjectWriter::begin(out);
            for (key, value) in &**part {
                writer.key(key).push_str(value.get());
            }
            writer.end();
        }
        Part::Closed(text) => out.push_str(text),
        Part::Other(raw) => out.push_str(raw.get()),
    }
}

/// Writes one part; a body that is a value becomes its text. That it is JSON, it says already.
fn write_with_text(out: &mut String, part: &Part) {
    let Some(object) = part.object() else {
        return write_part(out, part);
    };
    let mut writer = ObjectWriter::begin(out);
    for (key, value) in &*object {
        let out = writer.key(key);
        if key == "body" && (json::is_object(value) || json::is_array(value)) {
            out.push_str(json::string(value.get()).get());
        } else {
            out.push_str(value.get());
        }
    }
    writer.end();
}

/// Writes one part without its body.
fn write_bodiless(out: &mut String, part: &Part) {
    let Some(object) = part.object() else {
        return write_part(out, part);
    };
    let mut writer = ObjectWriter::begin(out);
    for (key, value) in object.iter().filter(|(key, _)| *key != "body") {
        writer.key(key).push_str(value.get());
    }
    writer.end();
}

/// Writes the array of a section's parts. Frees each after it, if it gets them for good.
pub(super) fn write_parts(
    out: &mut String,
    parts: impl IntoIterator<Item: Borrow<Part>>,
    write: impl Fn(&mut String, &Part),
) {
    out.push('[');
    for (index, part) in parts.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write(out, part.borrow());
    }
    out.push(']');
}

/// At most the bytes around a key and its value.
const PUNCTUATION: usize = 4;

/// At least the length of a written object.
fn length_of(object: &Object) -> usize {
    let values: usize = object.values().map(|value| value.get().len()).sum();
    let keys: usize = object.keys().map(|key| key.len() + PUNCTUATION).sum();
    values + keys + 2
}

/// About the length of the written document, so that a large one is not moved while it is written.
pub(super) fn length(members: &IndexMap<String, Member>) -> usize {
    let part = |part: &Part| match part {
        Part::Object(part) => length_of(part) + PUNCTUATION,
        Part::Closed(text) => text.len() + PUNCTUATION,
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
    fn a_part_that_is_not_opened_up_is_the_same_as_one_that_is() {
        let mut closed = 0;
        for members in [
            "",
            r#""a" : 1.0 , "b":[ 1],"a":2"#,
            r#""type":"text","body":"x","encoding":"none""#,
            r#""type":"tags","purpose":"x","body":"[]","encoding":"json""#,
            r#""encoding":"text""#,
            r#""encoding":"te\u0078t""#,
            r#""mimetype":"a/b""#,
            r#""m\u0069metype":"a/b","mediatype":"c/d""#,
            r#""schema_version":"1""#,
            r#""must_support":[]"#,
            r#""type":"note""#,
            r#""body":{"b":1},"encoding":"none""#,
            r#""body":[1],"encoding":"json""#,
            r#""bod\u0079":[1]"#,
            r#""body":5"#,
        ] {
            let text = format!("{{{members}}}");
            for section in Section::ALL {
                let read = || Borrowed::read(&text).unwrap();
                let mut opened = String::new();
                write_part(&mut opened, &opened_part(section, read()));
                if let Some(left) = closed_unread(section, &read().0) {
                    assert_eq!(&*left, opened, "{section:?} {text}");
                    closed += 1;
                }
            }
        }
        assert!(closed >= 15, "{closed}");
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
            (
                "\"{\\\"vcon\\\":\\\"0.4.0\\\"}\"",
                "is not a JSON object but a string that holds one: it was encoded twice",
            ),
            ("\"[]\"", "is not a JSON object but a string"),
            (
                "\u{feff}\u{feff}{}",
                "is not JSON: expected value at line 1 column 1",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn what_is_no_list_stays_as_it_is() {
        for value in ["null", "{\"type\": 1.0}", "\"x\"", "7", "true"] {
            for name in ["parties", "dialog", "analysis", "attachments"] {
                let text = format!("{{\"vcon\":\"0.4.0\",\"{name}\":{value}}}");
                assert_eq!(parse(&text).unwrap().to_json(), text);
            }
        }
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        let text = "\u{feff} {\"vcon\":\"0.4.0\"}";
        assert_eq!(parse(text).unwrap().to_json(), r#"{"vcon":"0.4.0"}"#);
    }

    #[test]
    fn extensions_that_must_be_known_are_named() {
        let long = format!("[\"{}\"]", "x".repeat(300));
        for (critical, names) in [
            ("[\"house_rules\",\"b\"]", Some("house_rules, b")),
            ("[\"a\",7,{}]", Some("a, 7, {}")),
            ("[\"CC\",\"x\",\"wtf\"]", Some("x")),
            ("[\"CC\",\"WTF\",\"cc\",\"wtf_transcription\"]", None),
            ("[\"WTFs\"]", Some("WTFs")),
            ("\"a\"", Some("a")),
            ("{\"a\":1}", Some("{\"a\":1}")),
            ("7", Some("7")),
            ("true", Some("true")),
            ("[]", None),
            ("[ ]", None),
            ("null", None),
            ("{}", None),
            ("\"\"", None),
            ("false", None),
        ] {
            for member in ["critical", "must_support"] {
                let vcon = parse(&format!("{{\"{member}\":{critical}}}")).unwrap();
                assert_eq!(vcon.unknown_extensions().as_deref(), names, "{critical}");
            }
        }
        let vcon = parse(&format!("{{\"critical\":{long}}}")).unwrap();
        assert_eq!(vcon.unknown_extensions().unwrap().len(), 200);
        for text in [
            "{\"vcon\":\"0.4.0\"}",
            r#"{"dialog":[{"critical":["x"]}]}"#,
            r#"{"payload":"p","signature":"s","critical":["x"]}"#,
        ] {
            assert_eq!(parse(text).unwrap().unknown_extensions(), None, "{text}");
        }
    }

    #[test]
    fn dialogs_are_written_without_their_bodies_and_nothing_else_is_left_out() {
        let long = "x".repeat(10_000);
        let text = format!(
            r#"{{"vcon":"0.4.0","body":1,"dialog":[{{"n":1.0,"body":"b","type":"text"}},7,{{"body":"{long}"}}],"analysis":[{{"body":"b"}}]}}"#
        );
        let expected = r#"{"vcon":"0.4.0","body":1,"dialog":[{"n":1.0,"type":"text"},7,{}],"analysis":[{"body":"b"}]}"#;
        let mut vcon = parse(&text).unwrap();
        assert_eq!(vcon.without_dialog_bodies(), expected);
        assert_eq!(vcon.to_json(), text);
    }

    #[test]
    fn bodies_are_written_as_asked_and_the_filter_sees_values() {
        let text = concat!(
            r#"{"vcon":"0.4.0","dialog":[{"body":{"a":1}}],"analysis":[{"body":{"b": 1.0,"a":[1e5]},"#,
            r#""encoding":"json"},"x",{"body":"{}","encoding":"json"}],"attachments":[{"body":["t:t"]}]}"#
        );
        let native = text.replace(r#"["t:t"]}"#, r#"["t:t"],"encoding":"json"}"#);
        let textual = native
            .replace(r#"{"b": 1.0,"a":[1e5]}"#, r#""{\"b\": 1.0,\"a\":[1e5]}""#)
            .replace(r#"["t:t"]"#, r#""[\"t:t\"]""#);
        let mut vcon = parse(text).unwrap();
        assert_eq!(vcon.to_json(), native);
        assert_eq!(*vcon.outgoing(Version::Current).json, native);
        let mut vcon = vcon.writing(JsonBodies::Text);
        assert_eq!(vcon.to_json(), textual);
        assert_eq!(*vcon.outgoing(Version::Current).json, textual);
        assert_eq!(vcon.with_values(), native);
        let old = vcon.outgoing(Version::V0_0_1).json;
        assert!(
            old.contains(r#""body":{"b": 1.0,"a":[1e5]},"encoding":"none""#),
            "{old}"
        );
        let (leaving, _) = vcon.depart(Version::V0_0_1);
        assert_eq!(*leaving.current.json, textual);
        assert_eq!(leaving.older.json, old);
    }

    #[test]
    fn there_is_room_for_the_written_document_and_not_much_more() {
        let long = "x".repeat(100);
        for text in [
            format!(r#"{{"vcon":"0.4.0","{long}":"{long}"}}"#),
            format!(r#"{{"vcon":"0.4.0","dialog":[{{"{long}":"{long}","b":1}}]}}"#),
            format!(r#"{{"vcon":"0.4.0","dialog":["{long}",{{}},7,{{"a":"{long}"}}]}}"#),
            r#"{"vcon":"0.4.0"}"#.to_owned(),
        ] {
            let vcon = parse(&text).unwrap();
            let room = length(&vcon.members);
            assert!(
                (text.len()..text.len() + 24).contains(&room),
                "{room}: {text}"
            );
        }
    }

    #[test]
    fn what_is_written_counts_as_a_change_no_more() {
        let mut vcon = parse("{}").unwrap();
        vcon.note_changed();
        assert!(vcon.is_changed());
        vcon.note_written();
        assert!(!vcon.is_changed());
    }

    #[test]
    fn what_departs_is_what_redis_keeps_and_what_older_readers_get() {
        let text = r#"{"vcon":"0.4.0","dialog":[{"mediatype":"a/b"}]}"#;
        for (version, older) in [
            (Version::Current, text),
            (
                Version::V0_0_1,
                r#"{"vcon":"0.0.1","dialog":[{"mimetype":"a/b"}],"group":[],"redacted":{},"appended":null}"#,
            ),
        ] {
            let mut vcon = parse(text).unwrap();
            let (leaving, kept) = vcon.clone().depart(version);
            assert_eq!(kept, None);
            assert_eq!(leaving.of(false).json.as_str(), text);
            assert_eq!(leaving.of(true).json.as_str(), older);
            assert_eq!(leaving.of(true).version, version);
            assert_eq!(leaving.of(false).version, Version::Current);
            // One time for all storages, whatever version they get.
            let time = leaving.of(true).created_or_now();
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert_eq!(leaving.of(false).created_or_now(), time);
            vcon.note_changed();
            let (_, kept) = vcon.depart(version);
            assert_eq!(kept.unwrap().as_str(), text);
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
                r#"{"uuid":"y"}"#,
                r#"{"uuid":"x"}"#.to_owned(),
                Err(r#"has the uuid "x", which is another vCon's"#.to_owned()),
            ),
            (
                r#"{"uuid":7}"#,
                r#"{"uuid":8}"#.to_owned(),
                Err("has the uuid 8, which is another vCon's".to_owned()),
            ),
            (
                r#"{"uuid":7}"#,
                r#"{"uuid":7,"vcon":"1"}"#.to_owned(),
                Ok(r#"{"uuid":7,"vcon":"0.4.0"}"#.to_owned()),
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
    fn outgoing_has_the_date_that_a_link_has_changed() {
        let mut vcon = parse(r#"{"created_at":"2024-03-16"}"#).unwrap();
        assert_eq!(vcon.outgoing(Version::Current).formerly, None);
        vcon.replace(r#"{"created_at":"2024-03-17"}"#.to_owned())
            .unwrap();
        let outgoing = vcon.outgoing(Version::Current);
        assert_eq!(outgoing.formerly, CreatedAt::parse("2024-03-16"));
        assert_eq!(outgoing.created_at, CreatedAt::parse("2024-03-17"));
        vcon.replace("{}".to_owned()).unwrap();
        let outgoing = vcon.outgoing(Version::Current);
        assert_eq!(outgoing.formerly, CreatedAt::parse("2024-03-16"));
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
