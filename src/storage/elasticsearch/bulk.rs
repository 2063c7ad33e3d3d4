//! One `_bulk` request: what is to be done, and what became of it.

use serde_json::{Value, json};

use super::documents::Document;
use super::fault::{self, Blame, Reason};
use super::former::Place;
use super::request::shown;
use crate::vcon::VconId;

/// The actions of a request, in their order.
pub(super) struct Bulk<'a> {
    id: &'a VconId,
    body: String,
    actions: Vec<Action>,
}

struct Action {
    /// What messages call the part, as in `dialog 3`.
    part: String,
    index: String,
    /// The number in the document's id.
    number: usize,
    /// That there is no such document is what was wanted.
    may_be_missing: bool,
}

/// What the server did not do.
pub(super) struct Refusal {
    /// What it refused, and why.
    pub(super) message: String,
    /// The vCon is to blame for one of them.
    pub(super) is_the_vcons: bool,
    /// The indices for which something else is.
    pub(super) indices: Vec<String>,
    /// The documents for which it may be either: their indices and numbers.
    pub(super) doubtful: Vec<(String, usize)>,
}

/// What the server did with one document.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has done what was asked for.
    Done,
    /// It has refused.
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

    pub(super) fn delete(&mut self, place: &Place) {
        self.action("delete", &place.index, place.number);
        self.actions.push(Action {
            part: format!("former {} {}", place.section.name(), place.number),
            index: place.index.clone(),
            number: place.number,
            may_be_missing: true,
        });
    }

    pub(super) fn index(&mut self, document: &Document) {
        self.action("index", &document.index, document.number);
        self.body.push_str(&document.json);
        self.body.push('\n');
        self.actions.push(Action {
            part: format!("{} {}", document.section.name(), document.number),
            index: document.index.clone(),
            number: document.number,
            may_be_missing: false,
        });
    }

    /// Tries to write to an index, and changes nothing: nobody has the document that this is to
    /// update.
    pub(super) fn try_to_write(&mut self, index: &str) {
        self.action("update", index, 0);
        self.body.push_str("{\"doc\":{}}\n");
        self.actions.push(Action {
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

    /// Reads the answer: what was refused, if anything was. The error says that it is no answer
    /// to this request.
    pub(super) fn refusal(&self, answer: &Value) -> Result<Option<Refusal>, &'static str> {
        let items = answer.get("items").and_then(Value::as_array);
        let items = items.ok_or("the answer is none of Elasticsearch; see to `url`")?;
        if items.len() != self.actions.len() {
            return Err("the answer does not speak of all parts");
        }
        let mut refused = Vec::new();
        let mut is_the_vcons = false;
        let mut indices: Vec<String> = Vec::new();
        let mut doubtful = Vec::new();
        for (action, item) in self.actions.iter().zip(items) {
            let verdict =
                verdict(item).ok_or("the answer does not say what became of each part")?;
            let Verdict::Refused(status, reason) = verdict else {
                continue;
            };
            if action.may_be_missing && status == 404 {
                continue;
            }
            match fault::blame(status, &reason) {
                Blame::VCon if !action.may_be_missing => is_the_vcons = true,
                Blame::Doubt if !action.may_be_missing => {
                    doubtful.push((action.index.clone(), action.number));
                }
                _ if !indices.contains(&action.index) => indices.push(action.index.clone()),
                _ => {}
            }
            refused.push((action, status, reason));
        }
        let Some((action, status, reason)) = refused.first() else {
            return Ok(None);
        };
        let (count, all) = (refused.len(), self.actions.len());
        let (part, index) = (&action.part, shown(&action.index));
        let message = format!(
            "{count} of {all} parts were refused, first {part} in index {index}: {}",
            fault::described(*status, reason)
        );
        Ok(Some(Refusal {
            message,
            is_the_vcons,
            indices,
            doubtful,
        }))
    }
}

/// What an item of an answer says; `None` if it does not say what became of its document.
pub(super) fn verdict(item: &Value) -> Option<Verdict> {
    let about = item.as_object()?.values().next()?;
    let status = about.get("status")?.as_u64()?;
    if (200..300).contains(&status) {
        return Some(Verdict::Done);
    }
    Some(Verdict::Refused(status, Reason::of(about.get("error"))))
}
