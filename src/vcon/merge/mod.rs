//! The merge of two documents that were made of one: what the chain changed is laid over what
//! others changed meanwhile.
//!
//! Everything is compared by value (see [`super::digest`]), and the text of the chosen side is kept.
//!
//! * A member that only one side changed, added or removed comes from that side. If both sides
//!   changed it differently, the chain's value stands, and the conflict is named. Only `updated_at`
//!   is no conflict: it differs whenever both sides wrote it, and the chain wrote last.
//! * In `parties`, `dialog`, `analysis` and `attachments`, what either side added is kept, once if
//!   both added it; what one side removed and the other left alone is removed. Elements are matched
//!   with those of the base by value, then by their `uuid` or `id`, then by place if their `type`
//!   or `purpose` is the same. An element that one side changed takes the changed form in its
//!   place. If both changed it differently, the chain's form stands, and the conflict is named. If
//!   one side changed an element that the other removed, the changed form is kept: it counts as
//!   added.
//! * The first `tags` attachments of both sides become one, with the tags that either side added
//!   and without those that either side removed.
//! * Their elements come first, in their order, then those that ours added. Numbers that refer to a
//!   party or dialog are changed if the element has moved.

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::digest::{self, Digest};
use super::document::{Member, Part, write_part, write_parts};
use super::json::{self, Borrowed, Object, ObjectWriter};
use super::{Vcon, VconError, tags};

/// The lists of a document. Those that others refer to come before them.
const LISTS: [&str; 4] = ["parties", "dialog", "analysis", "attachments"];

/// How deep the numbers that refer to parties and dialogs stand in lists.
const REFERENCE_DEPTH: usize = 3;

/// What a merge made.
#[derive(Debug)]
pub struct Merged {
    /// The document. It counts as changed if it differs from theirs.
    pub vcon: Vcon,
    /// The members and elements that both sides changed differently: there the chain's value
    /// stands. Also references to a party or dialog that the other side removed.
    pub conflicts: Vec<String>,
}

/// Lays what the chain made of `base` over what stands in Redis now.
///
/// `base` is the text that the lane loaded or wrote last, `ours` the chain's document, `theirs` the
/// text that stands in Redis now.
///
/// # Errors
/// `base` or `theirs` is not a vCon.
pub fn merge(base: &str, ours: &Vcon, theirs: String) -> Result<Merged, VconError> {
    let base = Vcon::parse(ours.id().clone(), base.to_owned())?;
    let mut vcon = Vcon::parse(ours.id().clone(), theirs)?;
    let sides = Sides {
        base: &base.members,
        ours: &ours.members,
        theirs: &vcon.members,
    };
    let (changes, conflicts) = sides.changes()?;
    drop(base);
    vcon.changed = !changes.is_empty();
    for (name, member) in changes {
        match member {
            Some(member) => drop(vcon.members.insert(name, member)),
            None => drop(vcon.members.shift_remove(&name)),
        }
    }
    Ok(Merged { vcon, conflicts })
}

type Members = IndexMap<String, Member>;

/// What is to be done to theirs: members to set, or to remove.
type Changes = Vec<(String, Option<Member>)>;

/// The members of the three documents.
struct Sides<'a> {
    base: &'a Members,
    ours: &'a Members,
    theirs: &'a Members,
}

impl Sides<'_> {
    fn changes(&self) -> Result<(Changes, Vec<String>), VconError> {
        let mut conflicts = Vec::new();
        let mut lists = self.lists(&mut conflicts)?;
        let [base, ours, theirs] = [self.base, self.ours, self.theirs].map(plain_values);
        let mut changes = Changes::new();
        let others = self
            .theirs
            .keys()
            .filter(|name| !self.ours.contains_key(*name));
        // Ours first: what is new in theirs takes its place in this order.
        for name in self.ours.keys().chain(others) {
            if LISTS.contains(&name.as_str()) {
                if let Some(change) = lists.remove(name.as_str()) {
                    changes.push((name.clone(), change));
                }
                continue;
            }
            let value = |values: &Values<'_>| values.get(name.as_str()).copied();
            let choice = choose(value(&base), value(&ours), value(&theirs));
            if choice == Choice::Theirs {
                continue;
            }
            if choice == Choice::Conflict && name != "updated_at" {
                conflicts.push(shown(name));
            }
            let chosen = self.ours.get(name).filter(|_| value(&ours).is_some());
            changes.push((name.clone(), chosen.cloned()));
        }
        Ok((changes, conflicts))
    }

    /// The lists that become others than theirs.
    fn lists(
        &self,
        conflicts: &mut Vec<String>,
    ) -> Result<HashMap<&'static str, Option<Member>>, VconError> {
        let mut changes = HashMap::new();
        let mut moves = Moves::default();
        for name in LISTS {
            let [base, ours, theirs] =
                [self.base, self.ours, self.theirs].map(|members| List::of(name, members));
            let before = theirs.values();
            let as_ours = ours.values();
            let was_present = theirs.is_present;
            let is_present = choose(base.is_present, ours.is_present, was_present);
            let is_present = match is_present {
                Choice::Theirs => was_present,
                Choice::Ours | Choice::Conflict => ours.is_present,
            };
            let laid = lay(name, &base, ours, theirs, &moves);
            conflicts.extend(laid.conflicts);
            match name {
                "parties" => moves.parties = laid.shift,
                "dialog" => moves.dialog = laid.shift,
                _ => {}
            }
            let mut elements = laid.placed;
            for (place, element) in elements.iter_mut().enumerate() {
                let dangling = element.refer_after(name, &moves);
                conflicts.extend(dangling.map(|key| format!("{name}[{place}].{key}")));
            }
            let values: Vec<Digest> = elements.iter().map(|element| element.value).collect();
            let is_present = is_present || !values.is_empty();
            if values == before && is_present == was_present {
                continue;
            }
            let change = if !is_present {
                None
            } else if values == as_ours && self.ours.contains_key(name) {
                self.ours.get(name).cloned()
            } else {
                let like = self.ours.get(name).or(self.theirs.get(name));
                Some(member_of(elements, like)?)
            };
            changes.insert(name, change);
        }
        Ok(changes)
    }
}

/// Members and their values.
type Values<'a> = IndexMap<&'a str, Digest>;

/// The members that are no lists. What normalising sets or drops is the same on all sides.
fn plain_values(members: &Members) -> Values<'_> {
    let value = |(name, member): (&'_ String, &'_ Member)| match member {
        Member::Raw(raw) if !LISTS.contains(&name.as_str()) => match name.as_str() {
            "vcon" => None,
            "group" if json::is_array(raw) && json::is_empty(raw) => None,
            "redacted" if json::is_object(raw) && json::is_empty(raw) => None,
            _ => Some(digest::of(raw)),
        },
        _ => None,
    };
    let values = members.iter();
    values
        .filter_map(|entry| Some((entry.0.as_str(), value(entry)?)))
        .collect()
}

/// Whose value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// Theirs: ours is as it was, or the same.
    Theirs,
    /// Ours: theirs is as it was.
    Ours,
    /// Ours, although theirs is another than it was.
    Conflict,
}

fn choose<T: PartialEq>(base: T, ours: T, theirs: T) -> Choice {
    if ours == theirs || ours == base {
        Choice::Theirs
    } else if theirs == base {
        Choice::Ours
    } else {
        Choice::Conflict
    }
}

/// A name as it is told: a document's author may have made it very long.
fn shown(name: &str) -> String {
    name.chars().take(80).collect()
}

/// A list, as one side has it.
struct List<'a> {
    is_present: bool,
    elements: Vec<Element<'a>>,
    tags: Option<Tags<'a>>,
}

/// An element of a list.
struct Element<'a> {
    part: Cow<'a, Part>,
    /// Its value as this side has it.
    original: Digest,
    /// Its value with references as they are in the merged document.
    value: Digest,
    /// What it is, whatever else changes.
    identity: Option<Digest>,
    /// What sort of element it is.
    kind: Option<Digest>,
    /// The property that refers to something that the other side removed.
    dangling: Option<&'static str>,
}

/// The attachment that holds the tags.
struct Tags<'a> {
    place: usize,
    attachment: &'a Object,
    value: Digest,
    entries: Vec<(Digest, Box<RawValue>)>,
}

impl<'a> List<'a> {
    fn of(name: &str, members: &'a Members) -> Self {
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

    fn values(&self) -> Vec<Digest> {
        let values = self.elements.iter();
        values.map(|element| element.original).collect()
    }

    fn is_tags(&self, place: usize) -> bool {
        self.tags.as_ref().is_some_and(|tags| tags.place == place)
    }
}

impl<'a> Element<'a> {
    fn of(list: &str, part: Cow<'a, Part>) -> Self {
        let value = value_of(list, &part);
        let opened;
        let get: &dyn Fn(&str) -> Option<Digest> = match &*part {
            Part::Object(object) => &|key| object.get(key).and_then(|value| telling(value)),
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
fn value_of(list: &str, part: &Part) -> Digest {
    let object = match part {
        Part::Other(raw) => return digest::of(raw),
        Part::Object(object) => object,
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
    if json::text(object.get("encoding")?)? != "json" {
        return None;
    }
    let text = json::text(body)?;
    let body: &RawValue = serde_json::from_str(&text).ok()?;
    Some(digest::of(body))
}

impl<'a> Tags<'a> {
    /// The first attachment whose tags can be read.
    fn find(parts: &'a [Part], elements: &[Element<'a>]) -> Option<Self> {
        let mut parts = parts.iter().zip(elements).enumerate();
        parts.find_map(|(place, (part, element))| match part {
            Part::Object(attachment) if tags::is_tags(attachment) => {
                let entries = match attachment.get("body") {
                    Some(body) => tags::entries(body).ok()?,
                    None => Vec::new(),
                };
                let entry = |json: Box<RawValue>| (digest::of(&json), json);
                Some(Self {
                    place,
                    attachment,
                    value: element.original,
                    entries: entries.into_iter().map(entry).collect(),
                })
            }
            _ => None,
        })
    }

    fn values(&self) -> HashSet<Digest> {
        self.entries.iter().map(|(value, _)| *value).collect()
    }

    /// The members besides the tags.
    fn others(&self) -> Values<'a> {
        let members = self.attachment.iter();
        members
            .filter(|(key, _)| !matches!(key.as_str(), "body" | "encoding"))
            .map(|(key, value)| (key.as_str(), digest::of(value)))
            .collect()
    }

    /// The attachment with these tags.
    fn with(&self, entries: &[Box<RawValue>]) -> Object {
        let mut attachment = self.attachment.clone();
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
fn unite<'a>(
    base: Option<&Tags<'_>>,
    ours: Option<&Tags<'a>>,
    theirs: Option<&Tags<'a>>,
) -> Option<(Object, Vec<String>)> {
    let whole = |tags: &Tags<'_>| Some((tags.attachment.clone(), Vec::new()));
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

/// Where an element of a side comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This side added it.
    Added,
    /// This side made it of the element of the base at this place.
    Changed(usize),
    /// It is the element of the base at this place.
    Kept(usize),
}

/// Which elements of a side are which of the base.
struct Alignment {
    /// For each place of the side.
    origins: Vec<Origin>,
    /// For each place of the base, the place at the side; nothing if it was removed.
    places: Vec<Option<usize>>,
}

impl Alignment {
    fn of(base: &List<'_>, side: &List<'_>) -> Self {
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
    fn is_the_base(&self) -> bool {
        let mut origins = self.origins.iter().enumerate();
        self.origins.len() == self.places.len()
            && origins.all(|(place, origin)| *origin == Origin::Kept(place))
    }
}

/// The side whose places the references of an element mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Ours,
    Theirs,
    Both,
}

/// An element of the merged list.
struct Placed<'a> {
    part: Cow<'a, Part>,
    value: Digest,
    side: Side,
}

/// A merged list.
struct Laid<'a> {
    placed: Vec<Placed<'a>>,
    shift: Shift,
    conflicts: Vec<String>,
}

/// For each place of a side, the place in the merged list; nothing if it was removed.
#[derive(Default)]
struct Shift {
    ours: Vec<Option<usize>>,
    theirs: Vec<Option<usize>>,
}

/// The member that holds these elements, in the form that one of the sides has it in.
fn member_of(elements: Vec<Placed<'_>>, like: Option<&Member>) -> Result<Member, VconError> {
    let parts = elements.into_iter();
    let parts: Vec<Part> = parts.map(|element| element.part.into_owned()).collect();
    if let Some(Member::Parts(section, _)) = like {
        return Ok(Member::Parts(*section, parts));
    }
    let mut text = String::new();
    write_parts(&mut text, &parts, write_part);
    Ok(Member::Raw(RawValue::from_string(text)?))
}

/// Merges one list.
fn lay<'a>(
    name: &'static str,
    base: &List<'_>,
    ours: List<'a>,
    theirs: List<'a>,
    moves: &Moves,
) -> Laid<'a> {
    let (from_ours, from_theirs) = (Alignment::of(base, &ours), Alignment::of(base, &theirs));
    let mut laying = Laying {
        name,
        laid: Laid {
            placed: Vec::new(),
            shift: Shift {
                ours: vec![None; ours.elements.len()],
                theirs: vec![None; theirs.elements.len()],
            },
            conflicts: Vec::new(),
        },
        new: HashMap::new(),
    };
    if from_theirs.is_the_base() {
        // Nobody else touched it: what the chain made of it stands, in the chain's order.
        laying.laid.shift.theirs.clone_from(&from_ours.places);
        for (place, mut element) in ours.elements.into_iter().enumerate() {
            let side = match from_ours.origins[place] {
                Origin::Kept(_) => Side::Both,
                _ => Side::Ours,
            };
            element.refer(name, side, moves);
            laying.laid.shift.ours[place] = Some(laying.put(element, side));
        }
        return laying.laid;
    }
    let united = unite(base.tags.as_ref(), ours.tags.as_ref(), theirs.tags.as_ref());
    laying.lay(ours, theirs, &from_ours, &from_theirs, united, moves)
}

/// A merged list in the making.
struct Laying<'a> {
    name: &'static str,
    laid: Laid<'a>,
    /// The places of what is there because they added or changed it, by value.
    new: HashMap<Digest, VecDeque<usize>>,
}

impl<'a> Laying<'a> {
    fn lay(
        mut self,
        ours: List<'a>,
        theirs: List<'a>,
        from_ours: &Alignment,
        from_theirs: &Alignment,
        mut united: Option<(Object, Vec<String>)>,
        moves: &Moves,
    ) -> Laid<'a> {
        let name = self.name;
        let our_tags = ours.tags.as_ref().map(|tags| tags.place);
        let their_tags = theirs.tags.as_ref().map(|tags| tags.place);
        let refer = |elements: Vec<Element<'a>>, alignment: &Alignment, side| -> Vec<_> {
            let elements = elements.into_iter().zip(&alignment.origins);
            let referred = elements.map(|(mut element, origin)| {
                if !matches!(origin, Origin::Kept(_)) {
                    element.refer(name, side, moves);
                }
                Some(element)
            });
            referred.collect()
        };
        let mut our_elements = refer(ours.elements, from_ours, Side::Ours);
        let their_elements = refer(theirs.elements, from_theirs, Side::Theirs);

        for (place, element) in their_elements.into_iter().flatten().enumerate() {
            if their_tags == Some(place) {
                if let Some(united) = united.take() {
                    let at = self.put_tags(united);
                    self.laid.shift.theirs[place] = Some(at);
                    if let Some(our_tags) = our_tags {
                        self.laid.shift.ours[our_tags] = Some(at);
                    }
                }
                continue;
            }
            let origin = from_theirs.origins[place];
            let kept = matches!(origin, Origin::Kept(_));
            let our_place = match origin {
                Origin::Added => None,
                Origin::Kept(before) | Origin::Changed(before) => from_ours.places[before],
            };
            let our_element = our_place.and_then(|place| our_elements[place].take());
            let we_kept =
                our_place.is_some_and(|place| matches!(from_ours.origins[place], Origin::Kept(_)));
            let at = match our_element {
                // Ours removed it.
                None if kept => continue,
                None => self.put_new(element),
                Some(_) if we_kept && kept => self.put(element, Side::Both),
                Some(_) if we_kept => self.put_new(element),
                Some(ours) if ours.value == element.value => self.put(element, Side::Theirs),
                Some(ours) => {
                    let at = self.put(ours, Side::Ours);
                    if !kept {
                        self.laid.conflicts.push(format!("{name}[{at}]"));
                    }
                    at
                }
            };
            self.laid.shift.theirs[place] = Some(at);
            if let Some(our_place) = our_place {
                self.laid.shift.ours[our_place] = Some(at);
            }
        }

        for (place, element) in our_elements.into_iter().enumerate() {
            let Some(element) = element else { continue };
            let at = if our_tags == Some(place) {
                united.take().map(|united| self.put_tags(united))
            } else if matches!(from_ours.origins[place], Origin::Kept(_)) {
                // They removed it.
                None
            } else {
                let same = self.new.get_mut(&element.value);
                let same = same.and_then(VecDeque::pop_front);
                Some(same.unwrap_or_else(|| self.put(element, Side::Ours)))
            };
            self.laid.shift.ours[place] = self.laid.shift.ours[place].or(at);
        }
        self.laid
    }

    fn put(&mut self, element: Element<'a>, side: Side) -> usize {
        let at = self.laid.placed.len();
        if let Some(key) = element.dangling {
            self.laid
                .conflicts
                .push(format!("{}[{at}].{key}", self.name));
        }
        self.laid.placed.push(Placed {
            part: element.part,
            value: element.value,
            side,
        });
        at
    }

    /// Puts what they added or changed.
    fn put_new(&mut self, element: Element<'a>) -> usize {
        let value = element.value;
        let at = self.put(element, Side::Theirs);
        self.new.entry(value).or_default().push_back(at);
        at
    }

    fn put_tags(&mut self, (attachment, conflicts): (Object, Vec<String>)) -> usize {
        let part = Cow::Owned(Part::Object(attachment));
        let at = self.put(Element::of(self.name, part), Side::Theirs);
        let named = |key| format!("{}[{at}].{key}", self.name);
        self.laid.conflicts.extend(conflicts.into_iter().map(named));
        at
    }
}

/// A list that elements refer to by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Parties,
    Dialog,
}

/// The properties of a list's elements that hold places in another list.
fn references(list: &str) -> &'static [(&'static str, Target)] {
    match list {
        "dialog" => &[
            ("parties", Target::Parties),
            ("originator", Target::Parties),
            ("party_history", Target::Parties),
            ("transferee", Target::Parties),
            ("transferor", Target::Parties),
            ("transfer_target", Target::Parties),
            ("original", Target::Dialog),
            ("consultation", Target::Dialog),
            ("target_dialog", Target::Dialog),
        ],
        "analysis" => &[("dialog", Target::Dialog)],
        "attachments" => &[("dialog", Target::Dialog), ("party", Target::Parties)],
        _ => &[],
    }
}

/// Where the elements that others refer to have moved.
#[derive(Default)]
struct Moves {
    parties: Shift,
    dialog: Shift,
}

/// What a reference becomes.
enum Reference {
    Stays,
    Becomes(usize),
    /// What it refers to was removed.
    Dangles,
}

impl Moves {
    fn reference(&self, target: Target, side: Side, place: usize) -> Reference {
        let shift = match target {
            Target::Parties => &self.parties,
            Target::Dialog => &self.dialog,
        };
        let (ours, theirs) = (shift.ours.get(place), shift.theirs.get(place));
        let moved = match side {
            Side::Ours => ours,
            Side::Theirs => theirs,
            // Of what both sides have alike nobody knows whose places it means.
            Side::Both => ours.filter(|ours| ours.is_some() && Some(*ours) == theirs),
        };
        match moved {
            None => Reference::Stays,
            Some(None) => Reference::Dangles,
            Some(Some(moved)) if *moved == place => Reference::Stays,
            Some(Some(moved)) => Reference::Becomes(*moved),
        }
    }
}

impl Element<'_> {
    /// Changes the references that are known before the list is laid: all but those of dialogs to
    /// dialogs.
    fn refer(&mut self, list: &str, side: Side, moves: &Moves) {
        let is_known = |target| list != "dialog" || target == Target::Parties;
        // What both sides have alike is compared as it is.
        if side == Side::Both {
            return;
        }
        let changed = refer(
            &mut self.part,
            list,
            side,
            moves,
            is_known,
            &mut self.dangling,
        );
        if changed {
            self.value = value_of(list, &self.part);
        }
    }
}

impl Placed<'_> {
    /// Changes the references that are left; returns the one that refers to something removed.
    fn refer_after(&mut self, list: &str, moves: &Moves) -> Option<&'static str> {
        let is_left =
            |target| self.side == Side::Both || list == "dialog" && target == Target::Dialog;
        let (side, mut dangling) = (self.side, None);
        if refer(&mut self.part, list, side, moves, is_left, &mut dangling) {
            self.value = value_of(list, &self.part);
        }
        dangling
    }
}

/// Changes the references of an element; returns whether there was anything to change.
fn refer(
    part: &mut Cow<'_, Part>,
    list: &str,
    side: Side,
    moves: &Moves,
    targets: impl Fn(Target) -> bool,
    dangling: &mut Option<&'static str>,
) -> bool {
    let Part::Object(object) = &**part else {
        return false;
    };
    let mut changed = Vec::new();
    for &(key, target) in references(list) {
        let Some(value) = object.get(key).filter(|_| targets(target)) else {
            continue;
        };
        let mut dangles = false;
        let reference = |place| moves.reference(target, side, place);
        if let Some(text) = renumbered(value, REFERENCE_DEPTH, &reference, &mut dangles) {
            changed.extend(RawValue::from_string(text).map(|value| (key, value)));
        }
        if dangles {
            *dangling = Some(key);
        }
    }
    if changed.is_empty() {
        return false;
    }
    if let Part::Object(object) = part.to_mut() {
        for (key, value) in changed {
            object.insert(key.to_owned(), value);
        }
    }
    true
}

/// A number, or a list of numbers or of objects with a `party`, with other numbers; nothing if they
/// are the same.
fn renumbered(
    value: &RawValue,
    depth: usize,
    reference: &dyn Fn(usize) -> Reference,
    dangles: &mut bool,
) -> Option<String> {
    let text = value.get();
    if let Ok(place) = text.parse() {
        return match reference(place) {
            Reference::Stays => None,
            Reference::Becomes(moved) => Some(moved.to_string()),
            Reference::Dangles => {
                *dangles = true;
                None
            }
        };
    }
    let depth = depth.checked_sub(1)?;
    if json::is_object(value) {
        let mut object = Borrowed::read(text).ok()?.into_owned();
        let party = object.get_mut("party")?;
        let moved = renumbered(party, depth, reference, dangles)?;
        *party = RawValue::from_string(moved).ok()?;
        let mut out = String::with_capacity(text.len());
        let mut writer = ObjectWriter::begin(&mut out);
        for (key, value) in &object {
            writer.key(key).push_str(value.get());
        }
        writer.end();
        return Some(out);
    }
    let elements = json::is_array(value).then(|| json::elements(text))??;
    let mut changed = false;
    let elements =
        elements.into_iter().map(
            |element| match renumbered(element, depth, reference, dangles) {
                Some(text) => {
                    changed = true;
                    Cow::Owned(text)
                }
                None => Cow::Borrowed(element.get()),
            },
        );
    let elements: Vec<Cow<'_, str>> = elements.collect();
    changed.then(|| format!("[{}]", elements.join(",")))
}
