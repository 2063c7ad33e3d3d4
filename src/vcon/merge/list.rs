//! A list of a document as the merge compares it: the value of each element, and by what it is known.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use serde_json::value::RawValue;

use super::{Members, Tags};
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

/// Where an element of a side comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// This side added it.
    Added,
    /// This side made it of the element of the base at this place.
    Changed(usize),
    /// It is the element of the base at this place.
    Kept(usize),
}

/// Which elements of a side are which of the base.
pub(super) struct Alignment {
    /// For each place of the side.
    pub(super) origins: Vec<Origin>,
    /// For each place of the base, the place at the side; nothing if it was removed.
    pub(super) places: Vec<Option<usize>>,
}

impl Alignment {
    pub(super) fn of(base: &List<'_>, side: &List<'_>) -> Self {
        let mut alignment = Self {
            origins: vec![Origin::Added; side.elements.len()],
            places: vec![None; base.elements.len()],
        };
        if let (Some(before), Some(after)) = (&base.tags, &side.tags) {
            let same = before.value == after.value;
            alignment.pair(before.place, after.place, same);
        }
        let both = || base.elements.iter().zip(&side.elements).enumerate();
        // By value: in the same place, then in any.
        for (place, (before, after)) in both() {
            let is_tags = base.is_tags(place) || side.is_tags(place);
            if !is_tags && before.original == after.original {
                alignment.pair(place, place, true);
            }
        }
        alignment.pair_by(base, side, true, |element| Some(element.original));
        alignment.pair_by(base, side, false, |element| element.identity);
        for (place, (before, after)) in both() {
            let is_tags = base.is_tags(place) || side.is_tags(place);
            let is_free = alignment.is_free(place, place);
            let others = match (before.identity, after.identity) {
                (Some(before), Some(after)) => before != after,
                _ => false,
            };
            if !is_tags && is_free && !others && before.kind == after.kind {
                alignment.pair(place, place, false);
            }
        }
        alignment
    }

    fn is_free(&self, before: usize, after: usize) -> bool {
        self.places[before].is_none() && self.origins[after] == Origin::Added
    }

    fn pair(&mut self, before: usize, after: usize, same: bool) {
        self.places[before] = Some(after);
        self.origins[after] = if same {
            Origin::Kept(before)
        } else {
            Origin::Changed(before)
        };
    }

    /// Pairs, in their order, the elements that are not paired yet and have the same key.
    fn pair_by(
        &mut self,
        base: &List<'_>,
        side: &List<'_>,
        same: bool,
        key: impl Fn(&Element<'_>) -> Option<Digest>,
    ) {
        let mut free: HashMap<Digest, VecDeque<usize>> = HashMap::new();
        for (place, element) in base.elements.iter().enumerate() {
            let is_free = self.places[place].is_none() && !base.is_tags(place);
            if let Some(key) = key(element).filter(|_| is_free) {
                free.entry(key).or_default().push_back(place);
            }
        }
        for (place, element) in side.elements.iter().enumerate() {
            let is_free = self.origins[place] == Origin::Added && !side.is_tags(place);
            let found = key(element).filter(|_| is_free);
            let found = found.and_then(|key| free.get_mut(&key)?.pop_front());
            if let Some(before) = found {
                self.pair(before, place, same);
            }
        }
    }

    /// Whether the side has the list of the base.
    pub(super) fn is_the_base(&self) -> bool {
        let mut origins = self.origins.iter().enumerate();
        self.origins.len() == self.places.len()
            && origins.all(|(place, origin)| *origin == Origin::Kept(place))
    }
}
