//! A list of a document as the merge compares it: the value of each element, and by what it is known.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::Members;
use super::tags::Tags;
use crate::vcon::digest::{self, Digest};
use crate::vcon::document::{Member, Part};
use crate::vcon::json::{self, Borrowed, Object};

/// A list, as one side has it.
pub(super) struct List<'a> {
    pub(super) is_present: bool,
    pub(super) elements: Vec<Element<'a>>,
    pub(super) tags: Option<Tags<'a>>,
}

/// An element of a list.
pub(super) struct Element<'a> {
    pub(super) part: Cow<'a, Part>,
    /// Its value as this side has it.
    pub(super) original: Digest,
    /// Its value with references as they are in the merged document.
    pub(super) value: Digest,
    /// What it is, whatever else changes.
    pub(super) identity: Option<Digest>,
    /// What sort of element it is.
    pub(super) kind: Option<Digest>,
    /// The property that refers to something that the other side removed.
    pub(super) dangling: Option<&'static str>,
}

impl<'a> List<'a> {
    pub(super) fn of(name: &str, members: &'a Members) -> Self {
        let parts: Vec<Cow<'a, Part>> = match members.get(name) {
            Some(Member::Parts(_, parts)) => parts.iter().map(Cow::Borrowed).collect(),
            Some(Member::Raw(raw)) => {
                let elements = json::elements(raw.get()).unwrap_or_default();
                let part = |element: &RawValue| Cow::Owned(Part::Other(element.to_owned()));
                elements.into_iter().map(part).collect()
            }
            None => Vec::new(),
        };
        let elements: Vec<Element<'a>> = parts
            .into_iter()
            .map(|part| Element::of(name, part))
            .collect();
        let tags = match members.get(name) {
            Some(Member::Parts(_, parts)) if name == "attachments" => Tags::find(parts, &elements),
            _ => None,
        };
        Self {
            is_present: members.contains_key(name),
            elements,
            tags,
        }
    }

    pub(super) fn values(&self) -> Vec<Digest> {
        let values = self.elements.iter();
        values.map(|element| element.original).collect()
    }

    pub(super) fn is_tags(&self, place: usize) -> bool {
        self.tags.as_ref().is_some_and(|tags| tags.place == place)
    }
}

impl<'a> Element<'a> {
    pub(super) fn of(list: &str, part: Cow<'a, Part>) -> Self {
        let value = value_of(list, &part);
        let opened;
        let object = part.object();
        let get: &dyn Fn(&str) -> Option<Digest> = match &*part {
            Part::Object(_) | Part::Closed(_) => &|key| telling(object.as_ref()?.get(key)?),
            Part::Other(raw) if json::is_object(raw) => {
                opened = Borrowed::read(raw.get());
                &|key| telling(opened.as_ref().ok()?.0.get(key)?)
            }
            Part::Other(_) => &|_| None,
        };
        Self {
            identity: get("uuid").or_else(|| get("id")),
            kind: get("type").or_else(|| get("purpose")),
            original: value,
            value,
            dangling: None,
            part,
        }
    }
}

/// The digest of a value that can tell one element from another.
fn telling(value: &RawValue) -> Option<Digest> {
    let says_nothing = matches!(value.get(), "null" | "\"\"");
    (!says_nothing).then(|| digest::of(value))
}

/// The value of an element. A body that is JSON is the same as its own text, which it is written as.
pub(super) fn value_of(list: &str, part: &Part) -> Digest {
    let object = &*match part {
        Part::Other(raw) => return digest::of(raw),
        part => part.object().unwrap_or_default(),
    };
    let Some(body) = json_body(list, object) else {
        let members = object.iter();
        return digest::of_members(members.map(|(key, value)| (&**key, digest::of(value))));
    };
    let others = object
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "body" | "encoding"))
        .map(|(key, value)| (&**key, digest::of(value)));
    let body = [
        ("body", digest::of_all(b'j', [body].into_iter())),
        ("encoding", digest::of(&json::string("json"))),
    ];
    digest::of_members(others.chain(body))
}

/// The value of a body that is JSON or the text of some.
fn json_body(list: &str, object: &Object) -> Option<Digest> {
    let body = object.get("body")?;
    if json::is_object(body) || json::is_array(body) {
        return (list != "dialog").then(|| digest::of(body));
    }
    if !json::says(object.get("encoding")?, "json") {
        return None;
    }
    let text = json::text(body)?;
    let body: &RawValue = serde_json::from_str(&text).ok()?;
    Some(digest::of(body))
}
