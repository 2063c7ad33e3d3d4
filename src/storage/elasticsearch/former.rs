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
use std::io::Read;
use std::rc::Rc;

use serde::de::{DeserializeSeed as _, MapAccess};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::answer::{self, Each, Form, Pick, Picking, Single};
use super::fault::Reason;
use super::names;
use super::section::Section;
use crate::http::EXPLANATION;
use crate::vcon::VconId;

/// So many numbers more than there are parts are asked for first.
const MORE: usize = 16;

/// The most documents that are asked for in one request.
pub(super) const MOST: usize = 5_000;

/// The most documents of one vCon that are removed: a server that finds one in every place would have this
/// go on for ever.
pub(super) const MOST_FOUND: usize = 1_000_000;

/// The most bytes of the list of indices: those of more than ten thousand.
pub(super) const MOST_OF_INDICES: u64 = 4 << 20;

/// Where a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) section: Section,
    pub(super) index: Rc<str>,
    pub(super) number: usize,
}

/// The indices of each section that has any.
pub(super) type Indices = BTreeMap<Section, Vec<Rc<str>>>;

/// Reads the answer to `GET <prefix>vcon_*/_alias`; `None` where it is no such answer.
pub(super) fn indices(prefix: &str, reader: &mut dyn Read) -> serde_json::Result<Option<Indices>> {
    struct Named<'a> {
        prefix: &'a str,
        indices: Indices,
        is_strange: bool,
    }
    impl Pick for Named<'_> {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            let mut index = Index {
                prefix: self.prefix,
                section: names::section(self.prefix, name),
                has_aliases: false,
            };
            answer::value(map, &mut index)?;
            self.is_strange |= !index.has_aliases;
            if let Some(section) = index.section {
                let indices = self.indices.entry(section).or_default();
                indices.push(Rc::from(name));
            }
            Ok(())
        }
    }
    /// What is said of one index.
    struct Index<'a> {
        prefix: &'a str,
        section: Option<Section>,
        has_aliases: bool,
    }
    impl Pick for Index<'_> {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            if name != "aliases" {
                return answer::pass_over(map);
            }
            let mut aliases = Aliases(self.prefix, self.section);
            self.has_aliases = answer::value(map, &mut aliases)? == Form::Object;
            self.section = aliases.1;
            Ok(())
        }
    }
    struct Aliases<'a>(&'a str, Option<Section>);
    impl Pick for Aliases<'_> {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            self.1 = self.1.or_else(|| names::section(self.0, name));
            answer::pass_over(map)
        }
    }
    let mut named = Named {
        prefix,
        indices: Indices::new(),
        is_strange: false,
    };
    let form = answer::read(reader, &mut named)?;
    let is_one = form == Form::Object && !named.is_strange;
    Ok(is_one.then_some(named.indices))
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

    /// The places of a section in this window, which may be very many.
    pub(super) fn places(
        self,
        section: Section,
        indices: &[Rc<str>],
    ) -> impl Iterator<Item = Place> {
        let numbers = self.from..self.to;
        numbers.flat_map(move |number| {
            indices.iter().map(move |index| Place {
                section,
                index: Rc::clone(index),
                number,
            })
        })
    }
}

/// The request for some places.
pub(super) fn question(id: &VconId, places: &[Place]) -> String {
    let docs = places.iter().map(|place| {
        let id = format!("{id}_{}", place.number);
        json!({"_index": &*place.index, "_id": id, "_source": false})
    });
    json!({"docs": docs.collect::<Vec<_>>()}).to_string()
}

/// The most bytes of an answer to a request for so many places: each may be an error.
pub(super) fn most(places: usize) -> u64 {
    EXPLANATION + places.saturating_mul(4 << 10) as u64
}

/// What an answer to the request for some places says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// In which of the places there is a document.
    In(Vec<Place>),
    /// Why the server could not look at one of them.
    Not(Reason),
    /// It is no answer to this request.
    Stranger,
}

/// Reads the answer to the request for these places.
pub(super) fn found(places: &[Place], reader: &mut dyn Read) -> serde_json::Result<Found> {
    struct Docs<'a>(&'a mut dyn FnMut(Doc));
    impl Pick for Docs<'_> {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            match name {
                "docs" => answer::value(map, &mut Each(self.0)).map(|_| ()),
                _ => answer::pass_over(map),
            }
        }
    }
    let mut left = places.iter();
    let (mut found, mut is_strange, mut error) = (Vec::new(), false, None);
    let mut each = |doc: Doc| match (left.next(), doc) {
        (Some(place), Doc::Is(true)) => found.push(place.clone()),
        (Some(_), Doc::Is(false)) => {}
        // Removed since the indices were listed.
        (Some(_), Doc::Error(reason)) if reason.kind == "index_not_found_exception" => {}
        (Some(_), Doc::Error(reason)) => {
            error.get_or_insert(reason);
        }
        (None, _) | (_, Doc::Unclear) => is_strange = true,
    };
    answer::read(reader, &mut Docs(&mut each))?;
    is_strange |= left.next().is_some();
    Ok(match error {
        _ if is_strange => Found::Stranger,
        Some(reason) => Found::Not(reason),
        None => Found::In(found),
    })
}

/// What is said of one place.
enum Doc {
    /// Whether there is a document.
    Is(bool),
    Error(Reason),
    Unclear,
}

impl<'de> Deserialize<'de> for Doc {
    fn deserialize<D: Deserializer<'de>>(doc: D) -> Result<Self, D::Error> {
        #[derive(Default)]
        struct Said {
            is_found: Option<bool>,
            error: Option<Reason>,
        }
        impl Pick for Said {
            fn field<'de, A: MapAccess<'de>>(
                &mut self,
                name: &str,
                map: &mut A,
            ) -> Result<(), A::Error> {
                match name {
                    "found" => {
                        self.is_found = match answer::single(map)? {
                            Single::Switch(is_found) => Some(is_found),
                            _ => None,
                        };
                    }
                    "error" => self.error = Some(Reason::of(map)?),
                    _ => answer::pass_over(map)?,
                }
                Ok(())
            }
        }
        let mut said = Said::default();
        Picking(&mut said).deserialize(doc)?;
        Ok(match (said.is_found, said.error) {
            (Some(is_found), _) => Self::Is(is_found),
            (None, Some(reason)) => Self::Error(reason),
            (None, None) => Self::Unclear,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn indices_are_known_by_their_own_names_or_their_aliases() {
        let answer = json!({
            "p_vcon_parties": {"aliases": {}},
            "p_vcon_parties_agent": {"aliases": {"everything": {}}},
            "archive-1": {"aliases": {"everything": {}, "p_vcon_dialog": {"is_write_index": true}}},
            "p_vcon_strange": {"aliases": {}},
        });
        let names = |names: &[&str]| names.iter().map(|&name| Rc::from(name)).collect();
        let indices = |answer: &Value| {
            let text = answer.to_string();
            indices("p_", &mut text.as_bytes()).unwrap()
        };
        let expected = [
            (
                Section::Parties,
                names(&["p_vcon_parties", "p_vcon_parties_agent"]),
            ),
            (Section::Dialog, names(&["archive-1"])),
        ];
        assert_eq!(indices(&answer), Some(Indices::from(expected)));
        for other in [
            json!([]),
            json!({"error": "x"}),
            json!({"a": {"aliases": []}}),
            json!({"a": {}}),
            json!(7),
        ] {
            assert_eq!(indices(&other), None, "{other}");
        }
    }

    #[test]
    fn windows_go_on_while_there_is_a_surplus() {
        let place = |number| Place {
            section: Section::Dialog,
            index: Rc::from("x"),
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
        assert_eq!(first.places(Section::Dialog, &[]).count(), 0);
    }
}
