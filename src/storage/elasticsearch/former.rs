//! What is kept of a vCon already.
//!
//! Parts that an update has dropped must go, so what is there has to be found. A search, and with
//! it `_delete_by_query`, sees only what the index has refreshed: parts that were written a moment
//! ago would be missed, and stay for ever. `_mget` sees every document as soon as its write is
//! answered, but asks for an index and an id. Both are known: the indices are those of the layout
//! that there are (metadata of the cluster, which needs no refresh either), and the ids of a list
//! are numbered without a gap. So it is asked for the numbers that the vCon has now and some more;
//! where any of the latter is there, for twice as many, until none is.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::names;
use super::section::Section;
use crate::vcon::VconId;

/// So many numbers more than there are parts are asked for first.
const MORE: usize = 16;

/// The most documents that are asked for in one request.
pub(super) const MOST: usize = 5_000;

/// Where a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) section: Section,
    pub(super) index: String,
    pub(super) number: usize,
}

/// The indices of each section that has any.
pub(super) type Indices = BTreeMap<Section, Vec<String>>;

/// Reads the answer to `GET <prefix>vcon_*/_alias`; `None` where it is no such answer.
pub(super) fn indices(prefix: &str, answer: &Value) -> Option<Indices> {
    let mut indices = Indices::new();
    for (index, about) in answer.as_object()? {
        let aliases = about.get("aliases")?.as_object()?;
        let names = std::iter::once(index).chain(aliases.keys());
        let section = names
            .into_iter()
            .find_map(|name| names::section(prefix, name));
        if let Some(section) = section {
            indices.entry(section).or_default().push(index.clone());
        }
    }
    Some(indices)
}

/// The numbers to ask for in one round, the next ones after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    from: usize,
    to: usize,
    /// What is found from here on says that there may be more.
    surplus: usize,
}

impl Window {
    /// The first one, for a section that has so many parts now.
    pub(super) fn first(parts: usize) -> Self {
        Self {
            from: 0,
            to: parts.saturating_add(MORE),
            surplus: parts,
        }
    }

    /// The one after it, as long as all before it together, where something was found that the
    /// vCon has no longer.
    pub(super) fn next(self, found: &[Place]) -> Option<Self> {
        let is_surplus = |place: &Place| place.number >= self.surplus;
        found.iter().any(is_surplus).then_some(Self {
            from: self.to,
            to: self.to.saturating_mul(2),
            surplus: self.to,
        })
    }

    /// The places of a section in this window.
    pub(super) fn places(self, section: Section, indices: &[String]) -> Vec<Place> {
        let numbers = self.from..self.to;
        let places = |number| {
            indices.iter().map(move |index| Place {
                section,
                index: index.clone(),
                number,
            })
        };
        numbers.flat_map(places).collect()
    }
}

/// The request for some places.
pub(super) fn question(id: &VconId, places: &[Place]) -> String {
    let docs = places.iter().map(|place| {
        let id = format!("{id}_{}", place.number);
        json!({"_index": place.index, "_id": id, "_source": false})
    });
    json!({"docs": docs.collect::<Vec<_>>()}).to_string()
}

/// Those of the places where there is a document. The error is what the server says of a place
/// that it could not look at, or nothing where its answer is no answer to this request.
pub(super) fn found<'a>(places: &'a [Place], answer: &Value) -> Result<Vec<&'a Place>, Value> {
    let docs = answer.get("docs").and_then(Value::as_array);
    let docs = docs
        .filter(|docs| docs.len() == places.len())
        .ok_or(Value::Null)?;
    let mut found = Vec::new();
    for (place, doc) in places.iter().zip(docs) {
        match (doc.get("found"), doc.get("error")) {
            (Some(Value::Bool(true)), _) => found.push(place),
            (Some(Value::Bool(false)), _) => {}
            // Removed since the indices were listed.
            (_, Some(error)) if error.get("type") == Some(&json!("index_not_found_exception")) => {}
            (_, error) => return Err(error.cloned().unwrap_or_default()),
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_known_by_their_own_names_or_their_aliases() {
        let answer = json!({
            "p_vcon_parties": {"aliases": {}},
            "p_vcon_parties_agent": {"aliases": {"everything": {}}},
            "archive-1": {"aliases": {"everything": {}, "p_vcon_dialog": {"is_write_index": true}}},
            "p_vcon_strange": {"aliases": {}},
        });
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let expected = [
            (
                Section::Parties,
                names(&["p_vcon_parties", "p_vcon_parties_agent"]),
            ),
            (Section::Dialog, names(&["archive-1"])),
        ];
        assert_eq!(indices("p_", &answer), Some(Indices::from(expected)));
        for other in [
            json!([]),
            json!({"error": "x"}),
            json!({"a": {"aliases": []}}),
        ] {
            assert_eq!(indices("p_", &other), None, "{other}");
        }
    }

    #[test]
    fn windows_go_on_while_there_is_a_surplus() {
        let place = |number| Place {
            section: Section::Dialog,
            index: "x".to_owned(),
            number,
        };
        let first = Window::first(2);
        assert_eq!((first.from, first.to), (0, 18));
        assert_eq!(first.next(&[]), None);
        assert_eq!(first.next(&[place(0), place(1)]), None);
        let second = first.next(&[place(2)]).unwrap();
        assert_eq!((second.from, second.to), (18, 36));
        assert_eq!(second.next(&[]), None);
        let third = second.next(&[place(35)]).unwrap();
        assert_eq!((third.from, third.to), (36, 72));
        assert_eq!(first.places(Section::Dialog, &[]), []);
    }
}
