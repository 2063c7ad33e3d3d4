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
//! * If one of these members is no list at one side, it is a member like others; `null` is a list
//!   without elements where another side has some.
//! * A sealed document comes from one side as a whole; if both sides changed it, it cannot be merged.
//! * Their elements come first, in their order, then those that ours added. Numbers that refer to a
//!   party or dialog are changed if the element has moved.

mod alignment;
mod lay;
mod list;
#[cfg(test)]
mod properties;
mod references;
mod tags;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use indexmap::IndexMap;

use self::lay::{lay, member_of};
use self::list::List;
use self::references::Moves;
use super::digest::{self, Digest};
use super::document::Member;
use super::{Sealed, Vcon, VconError, json};

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
