//! Laying the elements of two sides into one list.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};

use serde_json::value::RawValue;

use super::alignment::{Alignment, Origin};
use super::list::{Element, List};
use super::references::{Moves, Shift, Side};
use super::tags::unite;
use crate::vcon::VconError;
use crate::vcon::digest::Digest;
use crate::vcon::document::{Member, Part, Section, write_part, write_parts};
use crate::vcon::json::Object;

/// An element of the merged list.
pub(super) struct Placed<'a> {
    pub(super) part: Cow<'a, Part>,
    pub(super) value: Digest,
    pub(super) side: Side,
}

/// A merged list.
pub(super) struct Laid<'a> {
    pub(super) placed: Vec<Placed<'a>>,
    pub(super) shift: Shift,
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
pub(super) fn lay<'a>(
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
