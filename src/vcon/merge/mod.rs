//! The three-way merge: joins the chain's changes to a document with the changes that other writers
//! made to it in the meantime.
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
//! * If one of these members is no list at one side, it is a member like others; `null` is a list
//!   without elements where another side has some.
//! * A sealed document comes from one side as a whole; if both sides changed it, it cannot be merged.
//! * Their elements come first, in their order, then those that ours added. Numbers that refer to a
//!   party or dialog are changed if the element has moved.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};

use indexmap::IndexMap;
use serde_json::value::RawValue;

use self::list::{Alignment, Element, List, Origin};
use self::references::{Moves, Shift, Side};
use crate::vcon::digest::{self, Digest};
use crate::vcon::document::{Member, Part, Section, write_part, write_parts};
use crate::vcon::json::{self, Object};
use crate::vcon::{Sealed, Vcon, VconError, tags};

mod list;
#[cfg(test)]
mod properties;
mod references;
#[cfg(test)]
mod tests;

/// The lists of a document. Those that others refer to come before them.
const LISTS: [&str; 4] = ["parties", "dialog", "analysis", "attachments"];

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
    let base = Vcon::read(ours.id().clone(), base)?;
    let mut vcon = Vcon::parse(ours.id().clone(), theirs)?.writing(ours.bodies);
    let sealed = [&base, ours, &vcon].into_iter().find_map(Vcon::sealed);
    if let Some(sealed) = sealed {
        return whole(&base, ours, vcon, sealed);
    }
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

/// The merge if one of the three is sealed: there is nothing in it to merge with.
///
/// # Errors
/// Both sides have changed it.
fn whole(base: &Vcon, ours: &Vcon, theirs: Vcon, sealed: Sealed) -> Result<Merged, VconError> {
    let value = |vcon: &Vcon| digest::digest(&vcon.clone().with_values());
    let (mut vcon, changed) = match choose(value(base), value(ours), value(&theirs)) {
        Choice::Theirs => (theirs, false),
        Choice::Ours => (ours.clone(), true),
        Choice::Conflict => return Err(VconError::SealedMeanwhile(sealed)),
    };
    vcon.changed = changed;
    Ok(Merged {
        vcon,
        conflicts: Vec::new(),
    })
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

    /// Whether a member is merged element by element: all sides have a list, or none, and one of them
    /// has elements in it.
    fn is_list(&self, name: &str) -> bool {
        let sides = [self.base, self.ours, self.theirs].map(|members| members.get(name));
        let mut sides = sides.into_iter().flatten();
        let has_elements = |member: &Member| match member {
            Member::Raw(raw) if raw.get() == "null" => Some(false),
            Member::Raw(raw) => json::is_array(raw).then(|| !json::is_empty(raw)),
            Member::Parts(_, parts) => Some(!parts.is_empty()),
        };
        let has_any = sides.try_fold(false, |any, member| Some(any | has_elements(member)?));
        has_any == Some(true)
    }

    /// What is to be done to a list of theirs that is merged as other members are.
    fn plain(&self, name: &str, conflicts: &mut Vec<String>) -> Option<Option<Member>> {
        let value = |members: &Members| members.get(name).map(value_of_member);
        match choose(value(self.base), value(self.ours), value(self.theirs)) {
            Choice::Theirs => return None,
            Choice::Ours => {}
            Choice::Conflict => conflicts.push(name.to_owned()),
        }
        Some(self.ours.get(name).cloned())
    }

    /// The lists that become others than theirs.
    fn lists(
        &self,
        conflicts: &mut Vec<String>,
    ) -> Result<HashMap<&'static str, Option<Member>>, VconError> {
        let mut changes = HashMap::new();
        let mut moves = Moves::default();
        for name in LISTS {
            if !self.is_list(name) {
                if let Some(change) = self.plain(name, conflicts) {
                    changes.insert(name, change);
                }
                continue;
            }
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
                Some(member_of(name, elements)?)
            };
            changes.insert(name, change);
        }
        Ok(changes)
    }
}

/// The value of a list as a whole.
fn value_of_member(member: &Member) -> Digest {
    match member {
        Member::Raw(raw) => digest::of(raw),
        Member::Parts(section, parts) => {
            let values = parts
                .iter()
                .map(|part| list::value_of(section.name(), part));
            digest::of_all(b'[', values)
        }
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

/// An element of the merged list.
pub(super) struct Placed<'a> {
    pub(super) part: Cow<'a, Part>,
    pub(super) value: Digest,
    side: Side,
}

/// A merged list.
pub(super) struct Laid<'a> {
    pub(super) placed: Vec<Placed<'a>>,
    shift: Shift,
    pub(super) conflicts: Vec<String>,
}

/// The member of this name that holds these elements.
pub(super) fn member_of(name: &str, elements: Vec<Placed<'_>>) -> Result<Member, VconError> {
    let parts = elements.into_iter();
    let parts: Vec<Part> = parts.map(|element| element.part.into_owned()).collect();
    if let Some(section) = Section::named(name) {
        return Ok(Member::Parts(section, parts));
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
        let part = Cow::Owned(Part::Object(Box::new(attachment)));
        let at = self.put(Element::of(self.name, part), Side::Theirs);
        let named = |key| format!("{}[{at}].{key}", self.name);
        self.laid.conflicts.extend(conflicts.into_iter().map(named));
        at
    }
}

/// The attachment that holds the tags.
pub(super) struct Tags<'a> {
    pub(super) place: usize,
    attachment: Cow<'a, Object>,
    pub(super) value: Digest,
    entries: Vec<(Digest, Box<RawValue>)>,
}

impl<'a> Tags<'a> {
    /// The first attachment whose tags can be read.
    fn find(parts: &'a [Part], elements: &[Element<'a>]) -> Option<Self> {
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
