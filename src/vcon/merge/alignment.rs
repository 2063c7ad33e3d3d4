//! Which elements of a side's list are which of the base's.

use std::collections::{HashMap, VecDeque};

use super::list::{Element, List};
use crate::vcon::digest::Digest;

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
