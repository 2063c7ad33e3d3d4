//! Numbers by which elements refer to a party or dialog, when those have moved.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::Placed;
use super::list::{Element, value_of};
use crate::vcon::document::Part;
use crate::vcon::json::{self, Borrowed, ObjectWriter};

/// How deep such numbers stand in lists.
const REFERENCE_DEPTH: usize = 3;

/// The side whose places the references of an element mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Ours,
    Theirs,
    Both,
}

/// For each place of a side, the place in the merged list; nothing if it was removed.
#[derive(Default)]
pub(super) struct Shift {
    pub(super) ours: Vec<Option<usize>>,
    pub(super) theirs: Vec<Option<usize>>,
}

/// A list that elements refer to by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReferredList {
    Parties,
    Dialog,
}

/// The properties of a list's elements that hold places in another list.
fn references(list: &str) -> &'static [(&'static str, ReferredList)] {
    match list {
        "dialog" => &[
            ("parties", ReferredList::Parties),
            ("originator", ReferredList::Parties),
            ("party_history", ReferredList::Parties),
            ("transferee", ReferredList::Parties),
            ("transferor", ReferredList::Parties),
            ("transfer_target", ReferredList::Parties),
            ("original", ReferredList::Dialog),
            ("consultation", ReferredList::Dialog),
            ("target_dialog", ReferredList::Dialog),
        ],
        "analysis" => &[("dialog", ReferredList::Dialog)],
        "attachments" => &[
            ("dialog", ReferredList::Dialog),
            ("party", ReferredList::Parties),
        ],
        _ => &[],
    }
}

/// Where the elements that others refer to have moved.
#[derive(Default)]
pub(super) struct Moves {
    pub(super) parties: Shift,
    pub(super) dialog: Shift,
}

/// What a reference becomes.
enum Reference {
    Stays,
    Becomes(usize),
    /// What it refers to was removed.
    Dangles,
}

impl Moves {
    fn reference(&self, target: ReferredList, side: Side, place: usize) -> Reference {
        let shift = match target {
            ReferredList::Parties => &self.parties,
            ReferredList::Dialog => &self.dialog,
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
    pub(super) fn refer(&mut self, list: &str, side: Side, moves: &Moves) {
        let is_known = |target| list != "dialog" || target == ReferredList::Parties;
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
    pub(super) fn refer_after(&mut self, list: &str, moves: &Moves) -> Option<&'static str> {
        let is_left =
            |target| self.side == Side::Both || list == "dialog" && target == ReferredList::Dialog;
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
    targets: impl Fn(ReferredList) -> bool,
    dangling: &mut Option<&'static str>,
) -> bool {
    let Some(object) = part.object() else {
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
    drop(object);
    if let Some(object) = part.to_mut().open() {
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
