//! The documents of a vCon in Elasticsearch: those made of its parts, the indices they belong to, and
//! those that the server has from earlier saves.
//!
//! Parts that an update has dropped must go, so a save has to find the earlier documents. A search, and
//! with it `_delete_by_query`, sees only what the index has refreshed: it would miss parts written a
//! moment ago, and they would stay for ever. `_mget` sees every document as soon as its write is
//! confirmed, but needs an index and an id. Both are known: the indices are the existing ones of the
//! layout (metadata of the cluster, which needs no refresh either), and the ids of a list are numbered
//! without a gap. So a save asks for the numbers that the vCon has now and some more; if one of those
//! exists, for twice as many, until none does.

use std::collections::BTreeMap;
use std::io::Read;
use std::rc::Rc;

use serde::de::{DeserializeSeed as _, MapAccess};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::client::{self, Each, Pick, Picking, Scalar, ValueForm};
use super::errors::Reason;
use crate::http_client::EXPLANATION;
use crate::vcon::{OpenPart, Outgoing, Parts, VconError, VconId};

/// A list of a vCon whose parts are indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum VconList {
    /// Who took part.
    Parties,
    /// What came with it.
    Attachments,
    /// What was made of it.
    Analysis,
    /// What was said.
    Dialog,
}

impl VconList {
    pub(super) const ALL: [Self; 4] = [
        Self::Parties,
        Self::Attachments,
        Self::Analysis,
        Self::Dialog,
    ];

    /// The list's name in the document.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Parties => "parties",
            Self::Attachments => "attachments",
            Self::Analysis => "analysis",
            Self::Dialog => "dialog",
        }
    }

    /// The beginning of the names of its indices, after the prefix.
    pub(super) fn stem(self) -> &'static str {
        match self {
            Self::Parties => "vcon_parties",
            Self::Attachments => "vcon_attachments",
            Self::Analysis => "vcon_analysis",
            Self::Dialog => "vcon_dialog",
        }
    }

    /// The part's word by which the indices of the list are told apart.
    pub(super) fn word(self, part: &OpenPart<'_>) -> Option<String> {
        let text = |key| part.text(key).filter(|text| !text.is_empty());
        let unknown = || Some("unknown".to_owned());
        match self {
            Self::Parties => text("role"),
            // Reading a vCon renames a `type` without a `purpose`: a `type` that is left says more.
            Self::Attachments => text("type").or_else(|| text("purpose")).or_else(unknown),
            Self::Analysis => text("type").or_else(unknown),
            Self::Dialog => None,
        }
    }

    /// Whether a body that is JSON text is indexed parsed. Dialogs share one index, in which most bodies
    /// are plain text, so that it would refuse an object.
    pub(super) fn parses_bodies(self) -> bool {
        matches!(self, Self::Attachments | Self::Analysis)
    }
}

/// One part as it is indexed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PartDocument {
    pub(super) section: VconList,
    /// Its place in the list.
    pub(super) number: usize,
    pub(super) index: String,
    /// JSON on one line.
    pub(super) json: String,
}

/// Makes the documents of a vCon, list by list.
pub(super) fn of(vcon: &Outgoing, prefix: &str) -> Result<Vec<PartDocument>, VconError> {
    let parts = Parts::of(vcon)?;
    let common = common(vcon, &parts)?;
    let mut documents = Vec::new();
    for section in VconList::ALL {
        for (number, mut part) in parts.list(section.name())?.into_iter().enumerate() {
            let word = section.word(&part);
            if section.parses_bodies()
                && let Some(body) = part.json_body()
            {
                part.set("body", body);
            }
            for (key, json) in &common {
                part.set(key, json.clone());
            }
            let mut json = String::new();
            part.write(&mut json);
            documents.push(PartDocument {
                section,
                number,
                index: index(prefix, section, word.as_deref()),
                json,
            });
        }
    }
    Ok(documents)
}

/// The fields that every document has, as JSON.
fn common(vcon: &Outgoing, parts: &Parts<'_>) -> Result<Vec<(&'static str, String)>, VconError> {
    let mut common = vec![("vcon_id", format!("\"{}\"", vcon.id))];
    let dialog = parts.list("dialog")?;
    if let Some(start) = dialog.first().and_then(|first| first.json("start")) {
        common.push(("started_at", start.to_owned()));
    }
    let attachments = parts.list("attachments")?;
    if let Some(tenant) = attachments.iter().find_map(tenant) {
        common.push(("tenant_id", tenant));
    }
    Ok(common)
}

/// The tenant's id, if this attachment holds it: in an object, or in the JSON text of one.
fn tenant(attachment: &OpenPart<'_>) -> Option<String> {
    let purpose = attachment
        .text("purpose")
        .or_else(|| attachment.text("type"));
    if purpose.as_deref() != Some("tenant") {
        return None;
    }
    let text = attachment.text("body");
    let body = text.as_deref().or_else(|| attachment.json("body"))?;
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    let id = body.get("id").filter(|id| !id.is_null())?;
    Some(id.to_string())
}

/// The longest name of an index, in bytes.
const LONGEST: usize = 255;

/// The index for the parts of a list that have this word.
fn index(prefix: &str, section: VconList, word: Option<&str>) -> String {
    let mut name = format!("{prefix}{}", section.stem());
    if let Some(word) = word {
        name.push('_');
        name.extend(word.to_lowercase().chars().map(legal));
    }
    name.truncate(name.floor_char_boundary(LONGEST));
    name
}

/// The character, or a `_` in its place if the name of an index cannot have it.
fn legal(character: char) -> char {
    let forbidden = matches!(
        character,
        '\\' | '/' | '*' | '?' | '"' | '<' | '>' | '|' | ',' | '#' | ':'
    );
    if forbidden || character.is_whitespace() || character.is_control() {
        '_'
    } else {
        character
    }
}

/// The fault of a prefix; `None` if the names that begin with it are legal.
pub(super) fn prefix_fault(prefix: &str) -> Option<&'static str> {
    if prefix.starts_with(['-', '_', '+']) {
        Some("must not begin with -, _ or +")
    } else if prefix.to_lowercase() != prefix {
        Some("must be in lower case")
    } else if prefix
        .chars()
        .any(|character| legal(character) != character)
    {
        Some("must not hold spaces nor any of \\ / * ? \" < > | , # :")
    } else if prefix.len() > 100 {
        Some("must not be longer than 100 bytes")
    } else {
        None
    }
}

/// The list whose parts an index holds, by its name: the one that we write to, or one behind such a name
/// (`vcon_dialog-000001`).
fn section(prefix: &str, index: &str) -> Option<VconList> {
    let name = index.strip_prefix(prefix)?;
    VconList::ALL.into_iter().find(|section| {
        name.strip_prefix(section.stem())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', '-']))
    })
}

/// The first round asks for this many numbers more than there are parts.
const MORE: usize = 16;

/// The most documents that are asked for in one request.
pub(super) const MOST: usize = 5_000;

/// The most documents of one vCon that are removed: without it, a server that finds a document for every
/// number would keep a save going for ever.
pub(super) const MOST_FOUND: usize = 1_000_000;

/// The most bytes of the list of indices: those of more than ten thousand.
pub(super) const MOST_OF_INDICES: u64 = 4 << 20;

/// An indexed part: its index and number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IndexedPart {
    pub(super) section: VconList,
    pub(super) index: Rc<str>,
    pub(super) number: usize,
}

/// The indices of each section that has any.
pub(super) type Indices = BTreeMap<VconList, Vec<Rc<str>>>;

/// Reads the answer to `GET <prefix>vcon_*/_alias`; `None` if it has another form.
pub(super) fn indices(prefix: &str, reader: &mut dyn Read) -> serde_json::Result<Option<Indices>> {
    struct NamedIndices<'a> {
        prefix: &'a str,
        indices: Indices,
        is_strange: bool,
    }
    impl Pick for NamedIndices<'_> {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            let mut index = IndexEntry {
                prefix: self.prefix,
                section: section(self.prefix, name),
                has_aliases: false,
            };
            client::value(map, &mut index)?;
            self.is_strange |= !index.has_aliases;
            if let Some(section) = index.section {
                let indices = self.indices.entry(section).or_default();
                indices.push(Rc::from(name));
            }
            Ok(())
        }
    }
    /// What is said of one index.
    struct IndexEntry<'a> {
        prefix: &'a str,
        section: Option<VconList>,
        has_aliases: bool,
    }
    impl Pick for IndexEntry<'_> {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            if name != "aliases" {
                return client::pass_over(map);
            }
            let mut aliases = Aliases(self.prefix, self.section);
            self.has_aliases = client::value(map, &mut aliases)? == ValueForm::Object;
            self.section = aliases.1;
            Ok(())
        }
    }
    struct Aliases<'a>(&'a str, Option<VconList>);
    impl Pick for Aliases<'_> {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            self.1 = self.1.or_else(|| section(self.0, name));
            client::pass_over(map)
        }
    }
    let mut named = NamedIndices {
        prefix,
        indices: Indices::new(),
        is_strange: false,
    };
    let form = client::read_json(reader, &mut named)?;
    let is_one = form == ValueForm::Object && !named.is_strange;
    Ok(is_one.then_some(named.indices))
}

/// The numbers to ask for in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    from: usize,
    to: usize,
    /// A document from here on shows that there may be more.
    surplus: usize,
}

impl Window {
    /// The first window, for a list that has this many parts now.
    pub(super) fn first(parts: usize) -> Self {
        Self {
            from: 0,
            to: parts.saturating_add(MORE),
            surplus: parts,
        }
    }

    /// The next window, as long as all before it together; `None` if this one had no document that the
    /// vCon has no longer.
    pub(super) fn next(self, found: &[IndexedPart]) -> Option<Self> {
        let is_surplus = |place: &IndexedPart| place.number >= self.surplus;
        found.iter().any(is_surplus).then_some(Self {
            from: self.to,
            to: self.to.saturating_mul(2),
            surplus: self.to,
        })
    }

    /// The places of a list in this window, which may be very many.
    pub(super) fn places(
        self,
        section: VconList,
        indices: &[Rc<str>],
    ) -> impl Iterator<Item = IndexedPart> {
        let numbers = self.from..self.to;
        numbers.flat_map(move |number| {
            indices.iter().map(move |index| IndexedPart {
                section,
                index: Rc::clone(index),
                number,
            })
        })
    }
}

/// The request for some places.
pub(super) fn question(id: &VconId, places: &[IndexedPart]) -> String {
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

/// The answer to the request for some places.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PartsFound {
    /// The places that have a document.
    In(Vec<IndexedPart>),
    /// Why the server could not look at one of them.
    Not(Reason),
    /// It does not answer this request.
    Stranger,
}

/// Reads the answer to the request for these places.
pub(super) fn found(
    places: &[IndexedPart],
    reader: &mut dyn Read,
) -> serde_json::Result<PartsFound> {
    struct Docs<'a>(&'a mut dyn FnMut(MgetItem));
    impl Pick for Docs<'_> {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            match name {
                "docs" => client::value(map, &mut Each(self.0)).map(|_| ()),
                _ => client::pass_over(map),
            }
        }
    }
    let mut left = places.iter();
    let (mut found, mut is_strange, mut error) = (Vec::new(), false, None);
    let mut each = |doc: MgetItem| match (left.next(), doc) {
        (Some(place), MgetItem::Is(true)) => found.push(place.clone()),
        (Some(_), MgetItem::Is(false)) => {}
        // Removed since the indices were listed.
        (Some(_), MgetItem::Error(reason)) if reason.kind == "index_not_found_exception" => {}
        (Some(_), MgetItem::Error(reason)) => {
            error.get_or_insert(reason);
        }
        (None, _) | (_, MgetItem::Unclear) => is_strange = true,
    };
    client::read_json(reader, &mut Docs(&mut each))?;
    is_strange |= left.next().is_some();
    Ok(match error {
        _ if is_strange => PartsFound::Stranger,
        Some(reason) => PartsFound::Not(reason),
        None => PartsFound::In(found),
    })
}

/// The part of an answer that is about one place.
enum MgetItem {
    /// Whether there is a document.
    Is(bool),
    Error(Reason),
    Unclear,
}

impl<'de> Deserialize<'de> for MgetItem {
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
                        self.is_found = match client::single(map)? {
                            Scalar::Switch(is_found) => Some(is_found),
                            _ => None,
                        };
                    }
                    "error" => self.error = Some(Reason::of(map)?),
                    _ => client::pass_over(map)?,
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
    use crate::vcon::{Vcon, Version};

    const ID: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

    fn documents(text: &str, version: Version) -> Vec<(String, String)> {
        let mut vcon = Vcon::parse(ID.parse().unwrap(), text.to_owned()).unwrap();
        let documents = of(&vcon.outgoing(version), "p_").unwrap();
        documents
            .into_iter()
            .map(|it| (it.index, it.json))
            .collect()
    }

    #[test]
    fn each_part_is_a_document_of_its_index() {
        let text = r#"{
            "parties": [{"name": "Zoë", "role": "Agent"}, {"meta": {"role": "x"}}],
            "attachments": [
                {"type": "Order Form", "body": {"n": 1.0}},
                {"purpose": "tenant", "type": "x", "body": "{\"id\": 17}", "encoding": "json"},
                {"body": "[1", "encoding": "json"}
            ],
            "analysis": [{"type": "summary", "body": "short"}, {}],
            "dialog": [
                {"start": "2024-03-16T16:09:20Z", "body": "[1]", "encoding": "json", "vcon_id": 7},
                {"start": "2025-01-01T00:00:00Z"}
            ]
        }"#;
        let common =
            format!(r#""vcon_id":"{ID}","started_at":"2024-03-16T16:09:20Z","tenant_id":17"#);
        let expected = [
            ("p_vcon_parties_agent", r#""name":"Zoë","role":"Agent","#),
            ("p_vcon_parties", r#""meta":{"role": "x"},"#),
            (
                "p_vcon_attachments_order_form",
                r#""purpose":"Order Form","body":{"n": 1.0},"encoding":"json","#,
            ),
            (
                "p_vcon_attachments_x",
                r#""purpose":"tenant","type":"x","body":{"id": 17},"encoding":"json","#,
            ),
            (
                "p_vcon_attachments_unknown",
                r#""body":"[1","encoding":"json","#,
            ),
            (
                "p_vcon_analysis_summary",
                r#""type":"summary","body":"short","#,
            ),
            ("p_vcon_analysis_unknown", ""),
        ];
        let found = documents(text, Version::Current);
        for (found, (index, json)) in found.iter().zip(expected) {
            assert_eq!(found.0, index);
            assert_eq!(found.1, format!("{{{json}{common}}}"));
        }
        assert_eq!(found.len(), 9);
        assert_eq!(found[7].0, "p_vcon_dialog");
        assert!(found[7].1.contains(r#""body":"[1]""#), "{}", found[7].1);
        assert!(found[7].1.contains(&format!(r#""vcon_id":"{ID}""#)));
        assert_eq!(found[8].0, "p_vcon_dialog");
        assert!(found[8].1.contains(&common), "{}", found[8].1);
    }

    #[test]
    fn the_older_version_has_the_same_indices() {
        let text = r#"{"attachments": [
            {"purpose": "tenant", "body": "{\"id\":\"t\"}", "encoding": "json"}
        ]}"#;
        let found = documents(text, Version::V0_0_1);
        assert_eq!(found[0].0, "p_vcon_attachments_tenant");
        assert_eq!(
            found[0].1,
            format!(
                r#"{{"type":"tenant","body":{{"id":"t"}},"encoding":"none","vcon_id":"{ID}","tenant_id":"t"}}"#
            )
        );
    }

    #[test]
    fn a_vcon_without_dialogs_or_without_anything_has_no_start() {
        assert_eq!(documents("{}", Version::Current), []);
        for text in [
            r#"{"parties":[{}]}"#,
            r#"{"parties":[{}],"dialog":[]}"#,
            r#"{"parties":[{}],"attachments":[{"purpose":"tenant","body":"x"}]}"#,
        ] {
            let found = documents(text, Version::Current);
            assert_eq!(found[0].1, format!(r#"{{"vcon_id":"{ID}"}}"#), "{text}");
        }
    }

    #[test]
    fn names_are_made_legal() {
        for (section, word, name) in [
            (VconList::Parties, None, "p_vcon_parties"),
            (VconList::Parties, Some("Agent"), "p_vcon_parties_agent"),
            (VconList::Dialog, None, "p_vcon_dialog"),
            (
                VconList::Analysis,
                Some("a/b\\c*d?e\"f<g>h|i j,k#l:m\nn"),
                "p_vcon_analysis_a_b_c_d_e_f_g_h_i_j_k_l_m_n",
            ),
            (VconList::Attachments, Some("ÉTÉ"), "p_vcon_attachments_été"),
            (
                VconList::Attachments,
                Some("-_+."),
                "p_vcon_attachments_-_+.",
            ),
        ] {
            assert_eq!(index("p_", section, word), name);
        }
        let long = index("p_", VconList::Analysis, Some(&"é".repeat(300)));
        assert_eq!(long.len(), 254);
        assert!(long.ends_with('é'));
    }

    #[test]
    fn prefixes_that_no_index_can_have_are_refused() {
        for good in ["", "calls_", "a-b.c_", "größe_", ".hidden_"] {
            assert_eq!(prefix_fault(good), None, "{good}");
        }
        let long = "x".repeat(101);
        for bad in [
            "-a", "_a", "+a", "Calls_", "a b", "a/b", "a*", "a,b", "a:b", "a#", &long,
        ] {
            assert!(prefix_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn an_index_is_known_by_its_name() {
        for (name, expected) in [
            ("p_vcon_parties", Some(VconList::Parties)),
            ("p_vcon_parties_agent", Some(VconList::Parties)),
            ("p_vcon_dialog-000001", Some(VconList::Dialog)),
            ("p_vcon_analysis_x", Some(VconList::Analysis)),
            ("p_vcon_attachments_x", Some(VconList::Attachments)),
            ("p_vcon_dialogue", None),
            ("p_vcon_archive", None),
            ("vcon_dialog", None),
        ] {
            assert_eq!(section("p_", name), expected, "{name}");
        }
    }

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
            super::indices("p_", &mut text.as_bytes()).unwrap()
        };
        let expected = [
            (
                VconList::Parties,
                names(&["p_vcon_parties", "p_vcon_parties_agent"]),
            ),
            (VconList::Dialog, names(&["archive-1"])),
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
        let place = |number| IndexedPart {
            section: VconList::Dialog,
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
        assert_eq!(first.places(VconList::Dialog, &[]).count(), 0);
    }
}
