//! One `_bulk` request: its actions, and the result of each.

use std::io::Read;

use serde::de::{DeserializeSeed as _, MapAccess};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::client::{self, Each, Pick, Picking, Scalar, ValueForm, shown};
use super::documents::{IndexedPart, PartDocument};
use super::errors::{self, Culprit, Reason};
use crate::http_client::EXPLANATION;
use crate::vcon::VconId;

/// The actions of a request, in their order.
pub(super) struct Bulk<'a> {
    id: &'a VconId,
    body: String,
    actions: Vec<BulkAction>,
}

struct BulkAction {
    /// The part's name in messages, as in `dialog 3`.
    part: String,
    index: String,
    /// The number in the document's id.
    number: usize,
    /// Whether "no such document" is a success.
    may_be_missing: bool,
}

/// The actions that the server refused.
pub(super) struct BulkRefusal {
    /// How many it refused, the first of them and why.
    pub(super) message: String,
    /// Whether the vCon is to blame for one of them.
    pub(super) is_the_vcons: bool,
    /// The indices of those for which something else is to blame.
    pub(super) indices: Vec<String>,
    /// The documents for which either may be to blame: their indices and numbers.
    pub(super) doubtful: Vec<(String, usize)>,
}

/// The server's result for one document.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It did the action.
    Done,
    /// It refused the action, with this status.
    Refused(u64, Reason),
}

impl<'a> Bulk<'a> {
    pub(super) fn new(id: &'a VconId) -> Self {
        Self {
            id,
            body: String::new(),
            actions: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    pub(super) fn id(&self) -> &VconId {
        self.id
    }

    pub(super) fn body(&self) -> &str {
        &self.body
    }

    pub(super) fn delete(&mut self, place: &IndexedPart) {
        self.action("delete", &place.index, place.number);
        self.actions.push(BulkAction {
            part: format!("former {} {}", place.section.name(), place.number),
            index: place.index.to_string(),
            number: place.number,
            may_be_missing: true,
        });
    }

    pub(super) fn index(&mut self, document: &PartDocument) {
        self.action("index", &document.index, document.number);
        self.body.push_str(&document.json);
        self.body.push('\n');
        self.actions.push(BulkAction {
            part: format!("{} {}", document.section.name(), document.number),
            index: document.index.clone(),
            number: document.number,
            may_be_missing: false,
        });
    }

    /// Tries to write to an index, and changes nothing: the document to update does not exist.
    pub(super) fn try_to_write(&mut self, index: &str) {
        self.action("update", index, 0);
        self.body.push_str("{\"doc\":{}}\n");
        self.actions.push(BulkAction {
            part: "a probe".to_owned(),
            index: index.to_owned(),
            number: 0,
            may_be_missing: true,
        });
    }

    fn action(&mut self, verb: &str, index: &str, number: usize) {
        let id = format!("{}_{number}", self.id);
        let action = json!({verb: {"_index": index, "_id": id}});
        self.body.push_str(&action.to_string());
        self.body.push('\n');
    }

    /// The most bytes that the answer may have: an error for each action, which may quote what it is about.
    pub(super) fn most(&self) -> u64 {
        most(self.actions.len(), &self.body)
    }

    /// Begins to count the results of the actions.
    pub(super) fn tally(&self) -> BulkTally<'_> {
        BulkTally {
            actions: &self.actions,
            told: 0,
            is_unclear: false,
            refused: 0,
            first: String::new(),
            is_the_vcons: false,
            indices: Vec::new(),
            doubtful: Vec::new(),
        }
    }
}

/// The most bytes that the answer to this many actions in this body may have.
pub(super) fn most(actions: usize, body: &str) -> u64 {
    const OF_AN_ACTION: usize = 4 << 10;
    let all = actions.saturating_mul(OF_AN_ACTION);
    EXPLANATION + all.saturating_add(body.len().saturating_mul(4)) as u64
}

/// The results of the actions of a request, counted one after the other.
pub(super) struct BulkTally<'a> {
    actions: &'a [BulkAction],
    /// How many actions the answer has mentioned.
    told: usize,
    /// Whether it did not tell the result of one of them.
    is_unclear: bool,
    /// How many were refused.
    refused: usize,
    /// The message about the first of those.
    first: String,
    is_the_vcons: bool,
    indices: Vec<String>,
    doubtful: Vec<(String, usize)>,
}

impl BulkTally<'_> {
    /// Counts the result of the next action.
    pub(super) fn take(&mut self, verdict: Option<Verdict>) {
        let action = self.actions.get(self.told);
        self.told += 1;
        let (action, status, reason) = match (action, verdict) {
            (Some(action), Some(Verdict::Refused(status, reason))) => (action, status, reason),
            (_, None) => {
                self.is_unclear = true;
                return;
            }
            _ => return,
        };
        if action.may_be_missing && status == 404 {
            return;
        }
        match errors::culprit(status, &reason) {
            Culprit::VCon if !action.may_be_missing => self.is_the_vcons = true,
            Culprit::Unclear if !action.may_be_missing => {
                self.doubtful.push((action.index.clone(), action.number));
            }
            _ if !self.indices.contains(&action.index) => self.indices.push(action.index.clone()),
            _ => {}
        }
        if self.refused == 0 {
            let (part, index) = (&action.part, shown(&action.index));
            let why = errors::described(status, &reason);
            self.first = format!("{part} in index {index}: {why}");
        }
        self.refused += 1;
    }

    /// Returns what was refused, if anything was. The error says that this is no answer to this request.
    pub(super) fn end(self) -> Result<Option<BulkRefusal>, &'static str> {
        let (count, all) = (self.refused, self.actions.len());
        if self.told != all {
            return Err("the answer does not speak of all parts");
        }
        if self.is_unclear {
            return Err("the answer does not say what became of each part");
        }
        if count == 0 {
            return Ok(None);
        }
        let first = self.first;
        Ok(Some(BulkRefusal {
            message: format!("{count} of {all} parts were refused, first {first}"),
            is_the_vcons: self.is_the_vcons,
            indices: self.indices,
            doubtful: self.doubtful,
        }))
    }
}

/// Reads an answer and passes each action's result to `each`; returns false if it is no answer of
/// Elasticsearch.
pub(super) fn read(
    reader: &mut dyn Read,
    each: &mut dyn FnMut(Option<Verdict>),
) -> serde_json::Result<bool> {
    struct Items<'a>(&'a mut dyn FnMut(Option<Verdict>), bool);
    impl Pick for Items<'_> {
        fn field<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            map: &mut A,
        ) -> Result<(), A::Error> {
            if name != "items" {
                return client::pass_over(map);
            }
            let mut each = |item: BulkItem| (self.0)(item.0);
            self.1 = client::value(map, &mut Each(&mut each))? == ValueForm::List;
            Ok(())
        }
    }
    let mut items = Items(each, false);
    client::read_json(reader, &mut items)?;
    Ok(items.1)
}

/// The result of one action; `None` if the item does not tell it.
struct BulkItem(Option<Verdict>);

impl<'de> Deserialize<'de> for BulkItem {
    fn deserialize<D: Deserializer<'de>>(item: D) -> Result<Self, D::Error> {
        /// The first field, which is named after the action.
        #[derive(Default)]
        struct BulkAnswer(Option<About>);
        impl Pick for BulkAnswer {
            fn field<'de, A: MapAccess<'de>>(
                &mut self,
                _: &str,
                map: &mut A,
            ) -> Result<(), A::Error> {
                if self.0.is_some() {
                    return client::pass_over(map);
                }
                client::value(map, self.0.insert(About::default())).map(|_| ())
            }
        }
        #[derive(Default)]
        struct About {
            status: Option<u64>,
            reason: Reason,
        }
        impl Pick for About {
            fn field<'de, A: MapAccess<'de>>(
                &mut self,
                name: &str,
                map: &mut A,
            ) -> Result<(), A::Error> {
                match name {
                    "status" => {
                        let status = client::single(map)?;
                        self.status = match status {
                            Scalar::Number(status) => Some(status),
                            _ => None,
                        };
                    }
                    "error" => self.reason = Reason::of(map)?,
                    _ => client::pass_over(map)?,
                }
                Ok(())
            }
        }
        let mut outer = BulkAnswer::default();
        Picking(&mut outer).deserialize(item)?;
        let about = outer.0.unwrap_or_default();
        Ok(Self(about.status.map(|status| match status {
            200..300 => Verdict::Done,
            _ => Verdict::Refused(status, about.reason),
        })))
    }
}

/// What a fuzzer runs on answers of Elasticsearch, and on the documents that it is sent.
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub mod fuzz {
    use super::super::documents::{
        self, PartDocument, PartsFound, VconList, Window, found, indices,
    };
    use super::super::errors::{self, Reason, RefusalTrial};
    use super::Bulk;
    use crate::fuzzing::{LONGEST_MESSAGE, id};
    use crate::vcon::{Vcon, Version};

    /// An answer to each of its requests; and as a document, which is sent.
    pub fn answer(data: &[u8]) {
        let reason = Reason::of_answer(data);
        assert!(reason.is_as(&reason));
        let told = errors::described(400, &reason);
        assert!(
            told.len() <= LONGEST_MESSAGE && !told.chars().any(char::is_control),
            "{told:?}"
        );

        let id = id();
        let document = |number| PartDocument {
            section: VconList::Dialog,
            number,
            index: format!("vcon_dialog{}", number % 2),
            json: format!("{{\"n\":{number}}}"),
        };
        let documents: Vec<PartDocument> = (0..2).map(document).collect();
        let mut bulk = Bulk::new(&id);
        documents.iter().for_each(|document| bulk.index(document));
        let mut tally = bulk.tally();
        let mut told = 0;
        let read = super::read(&mut &*data, &mut |verdict| {
            told += 1;
            tally.take(verdict);
        });
        if let (Ok(true), Ok(refusal)) = (read, tally.end()) {
            // It speaks of each part.
            assert_eq!(told, documents.len());
            if let Some(refusal) = refusal {
                let (message, doubtful) = (&refusal.message, &refusal.doubtful);
                assert!(message.len() <= LONGEST_MESSAGE, "{message:?}");
                assert!(!message.chars().any(char::is_control), "{message:?}");
                let blamed = usize::from(refusal.is_the_vcons) + doubtful.len();
                assert!(blamed + refusal.indices.len() > 0);
                let trial = RefusalTrial::of(&id, &documents, doubtful);
                if let Ok(verdicts) = trial.read(&mut &*data) {
                    trial.culprit(&verdicts);
                    trial.leaves_something(&verdicts);
                }
            }
        }
        let indices = indices("", &mut &*data).ok().flatten();
        for (section, names) in indices.into_iter().flatten() {
            let places: Vec<_> = Window::first(1).places(section, &names[..1]).collect();
            if let Ok(PartsFound::In(found)) = found(&places, &mut &*data) {
                assert!(found.len() <= places.len());
            }
        }
        sent(data);
    }

    /// Each part of a vCon is sent on a line of its own, with an index that may be one.
    fn sent(data: &[u8]) {
        let Ok(mut vcon) = Vcon::parse(id(), String::from_utf8_lossy(data).into_owned()) else {
            return;
        };
        let Ok(documents) = documents::of(&vcon.outgoing(Version::Current), "") else {
            return;
        };
        for document in documents {
            assert!(!document.json.contains('\n'), "{}", document.json);
            assert!(document.index.len() <= 255 && document.index.starts_with("vcon_"));
            let is_bad =
                |c: char| c.is_control() || c.is_whitespace() || "\\/*?\"<>|,#:".contains(c);
            assert!(!document.index.contains(is_bad), "{:?}", document.index);
        }
    }
}
