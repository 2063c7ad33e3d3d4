//! The tags of two documents that were made of one.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::value::RawValue;

use super::list::Element;
use super::{Choice, Values, choose, shown};
use crate::vcon::digest::{self, Digest};
use crate::vcon::document::Part;
use crate::vcon::json::Object;
use crate::vcon::tags;

/// The attachment that holds the tags.
pub(super) struct Tags<'a> {
    pub(super) place: usize,
    attachment: Cow<'a, Object>,
    pub(super) value: Digest,
    entries: Vec<(Digest, Box<RawValue>)>,
}

impl<'a> Tags<'a> {
    /// The first attachment whose tags can be read.
    pub(super) fn find(parts: &'a [Part], elements: &[Element<'a>]) -> Option<Self> {
        let mut parts = parts.iter().zip(elements).enumerate();
        parts.find_map(|(place, (part, element))| {
            let attachment = part.object().filter(|it| tags::is_tags(it))?;
            let entries = tags::entries_of(&attachment).ok()?;
            let entry = |json: Box<RawValue>| (digest::of(&json), json);
            Some(Self {
                place,
                attachment,
                value: element.original,
                entries: entries.into_iter().map(entry).collect(),
            })
        })
    }

    fn values(&self) -> HashSet<Digest> {
        self.entries.iter().map(|(value, _)| *value).collect()
    }

    /// The members besides the tags.
    fn others(&self) -> Values<'_> {
        let members = self.attachment.iter();
        members
            .filter(|(key, _)| !matches!(key.as_str(), "body" | "encoding"))
            .map(|(key, value)| (key.as_str(), digest::of(value)))
            .collect()
    }

    /// The attachment with these tags.
    fn with(&self, entries: &[Box<RawValue>]) -> Object {
        let mut attachment = Object::clone(&self.attachment);
        tags::set_entries(&mut attachment, entries);
        attachment
    }

    /// What is left of it where the other side removed those of the base; nothing if it added none.
    fn added_to(&self, base: &Tags<'_>) -> Option<Object> {
        let mut known = base.values();
        let entries = self.entries.iter();
        let added = entries.filter(|(value, _)| known.insert(*value));
        let added: Vec<Box<RawValue>> = added.map(|(_, json)| json.clone()).collect();
        (!added.is_empty()).then(|| self.with(&added))
    }
}

/// The one tags attachment that the merged document has, if any, and its properties that both sides
/// changed differently.
pub(super) fn unite<'a>(
    base: Option<&Tags<'_>>,
    ours: Option<&Tags<'a>>,
    theirs: Option<&Tags<'a>>,
) -> Option<(Object, Vec<String>)> {
    let whole = |tags: &Tags<'_>| Some((Object::clone(&tags.attachment), Vec::new()));
    let (ours, theirs) = match (ours, theirs, base) {
        (None, None, _) => return None,
        (Some(one), None, None) | (None, Some(one), None) => return whole(one),
        (Some(one), None, Some(base)) | (None, Some(one), Some(base)) => {
            return Some((one.added_to(base)?, Vec::new()));
        }
        (Some(ours), Some(theirs), _) => (ours, theirs),
    };
    match choose(
        base.map(|base| base.value),
        Some(ours.value),
        Some(theirs.value),
    ) {
        Choice::Theirs => return whole(theirs),
        Choice::Ours => return whole(ours),
        Choice::Conflict => {}
    }
    let (before, kept) = (base.map(Tags::values).unwrap_or_default(), ours.values());
    let stays = |value: &Digest| kept.contains(value) || !before.contains(value);
    let is_new = |value: &Digest| !before.contains(value);
    let from_theirs = theirs.entries.iter().filter(|(value, _)| stays(value));
    let from_ours = ours.entries.iter().filter(|(value, _)| is_new(value));
    let mut seen = HashSet::new();
    let entries: Vec<Box<RawValue>> = from_theirs
        .chain(from_ours)
        .filter(|(value, _)| seen.insert(*value))
        .map(|(_, json)| json.clone())
        .collect();

    let (mut united, mut conflicts) = (theirs.with(&entries), Vec::new());
    let values = [
        base.map(Tags::others).unwrap_or_default(),
        ours.others(),
        theirs.others(),
    ];
    let only_theirs = values[2].keys().filter(|key| !values[1].contains_key(*key));
    for key in values[1].keys().chain(only_theirs) {
        let [base, from_ours, from_theirs] = [0, 1, 2].map(|side| values[side].get(key));
        let choice = choose(base, from_ours, from_theirs);
        if choice == Choice::Theirs {
            continue;
        }
        if choice == Choice::Conflict {
            conflicts.push(shown(key));
        }
        match ours.attachment.get(*key) {
            Some(value) => drop(united.insert((*key).to_owned(), value.clone())),
            None => drop(united.shift_remove(*key)),
        }
    }
    Some((united, conflicts))
}
