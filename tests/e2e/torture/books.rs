//! The ledger: what became of every vCon that was submitted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde_json::Value;

use super::producer::{JOURNAL, Submitted, context_of};
use super::run::Run;
use super::sampler::ANNOUNCED;
use crate::harness::{Files, Redis, same};

/// The sums of the ledger.
#[derive(Default)]
pub struct Books {
    pub acknowledged: usize,
    pub unacknowledged: usize,
    /// Of the unacknowledged, those that Redis has taken all the same.
    pub taken: usize,
    pub stored: usize,
    /// How many vCons were announced so often.
    pub announced: BTreeMap<usize, usize>,
    pub lost: usize,
    /// Files that killed workers have left half written, under their hidden names.
    pub drafts: usize,
}

impl Books {
    /// Looks up every vCon everywhere; each that is not exactly where it should be is a fault.
    pub fn close(
        run: &Run,
        redis: &Redis,
        rows: Vec<(String, Value)>,
        files: &Files,
        submitted: &Submitted,
    ) -> Self {
        let journal: BTreeSet<String> = redis.ask(&["SMEMBERS", JOURNAL]);
        let announced: HashMap<String, usize> = redis.ask(&["HGETALL", ANNOUNCED]);
        let rows: HashMap<String, Value> = rows.into_iter().collect();
        let documents: HashMap<String, Value> = files.documents().into_iter().collect();
        let mut books = Self {
            acknowledged: submitted.acknowledged.len(),
            unacknowledged: submitted.unacknowledged.len(),
            taken: submitted.unacknowledged.intersection(&journal).count(),
            drafts: files.with_hidden().len() - documents.len(),
            ..Self::default()
        };
        for id in submitted.acknowledged.difference(&journal) {
            books.lost += 1;
            run.fault_of(id, format!("{id}: Redis has acknowledged and forgotten it"));
        }
        let ids: Vec<&String> = journal.iter().collect();
        for some in ids.chunks(500) {
            let some: Vec<&str> = some.iter().map(|id| id.as_str()).collect();
            let before = redis.lists(&some, |id| format!("context:default:{id}"));
            let after = redis.lists(&some, |id| format!("context:done:{id}"));
            let contexts = before.into_iter().zip(after);
            let found = redis.documents(&some).into_iter().zip(contexts);
            for (id, (document, (before, after))) in some.iter().zip(found) {
                let times = announced.get(*id).copied().unwrap_or(0);
                *books.announced.entry(times).or_default() += 1;
                let entry = Entry {
                    document,
                    row: rows.get(*id),
                    file: documents.get(*id),
                    announced: times,
                    has_its_context: before.is_empty() && after == [context_of(id)],
                };
                books.enter(run, id, &entry);
            }
        }
        let stored = rows.keys().chain(documents.keys()).chain(announced.keys());
        for id in stored.filter(|id| !journal.contains(*id)) {
            run.fault_of(
                id,
                format!("{id} is stored or announced and was never pushed"),
            );
        }
        nothing_is_left(run, redis);
        books
    }

    fn enter(&mut self, run: &Run, id: &str, entry: &Entry<'_>) {
        let wrong = entry.faults();
        if entry.is_stored() {
            self.stored += 1;
        }
        if !entry.is_stored() || entry.announced == 0 {
            self.lost += 1;
        }
        if !wrong.is_empty() {
            run.fault_of(id, format!("{id}: {}", wrong.join(", ")));
        }
    }
}

/// What is known of one vCon.
struct Entry<'a> {
    document: Option<Value>,
    row: Option<&'a Value>,
    file: Option<&'a Value>,
    announced: usize,
    has_its_context: bool,
}

impl Entry<'_> {
    fn is_stored(&self) -> bool {
        self.row.is_some() && self.file.is_some()
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, text: &str| {
            if !holds {
                faults.push(text.to_owned());
            }
        };
        let Some(document) = &self.document else {
            return vec!["its document is gone from Redis".to_owned()];
        };
        check(
            has_been_tagged_once(document),
            "its tags are not as they should be",
        );
        check(self.row.is_some(), "not in PostgreSQL");
        check(
            self.row.is_none_or(|row| same(row, document)),
            "its row is another",
        );
        check(self.file.is_some(), "no file");
        check(
            self.file.is_none_or(|file| same(file, document)),
            "its file is another",
        );
        check(self.has_its_context, "its context is lost, or there twice");
        // A claim is let go in the step that announces: whatever dies, there is no second time.
        check(
            self.announced == 1,
            &format!("announced {} times", self.announced),
        );
        faults
    }
}

/// Whether the link's tag is there, once, beside those that the vCon came with.
fn has_been_tagged_once(document: &Value) -> bool {
    let attachments = document["attachments"].as_array();
    let tags: Vec<&Value> = attachments
        .into_iter()
        .flatten()
        .filter(|attachment| attachment["purpose"] == "tags")
        .collect();
    let [tags] = tags.as_slice() else {
        return false;
    };
    let body = tags["body"]
        .as_str()
        .map(serde_json::from_str::<Vec<String>>);
    let entries = body.and_then(Result::ok).unwrap_or_default();
    let ours = entries.iter().filter(|entry| *entry == "checked:checked");
    ours.count() == 1
}

/// Nothing waits, and no key of the daemons' own is left behind by what is done.
fn nothing_is_left(run: &Run, redis: &Redis) {
    for list in ["default", "done", "DLQ:default"] {
        let left = redis.list(list);
        if !left.is_empty() {
            run.fault(format!("in the list {list}: {left:?}"));
        }
    }
    let left = redis.keys("conserver:*");
    if !left.is_empty() {
        run.fault(format!("keys are left: {left:?}"));
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, count: usize| writeln!(f, "  {name:<34}{count:>8}");
        line("vCons acknowledged by Redis", self.acknowledged)?;
        line("not acknowledged", self.unacknowledged)?;
        line("  of these taken all the same", self.taken)?;
        line("in PostgreSQL and as files", self.stored)?;
        for (times, count) in &self.announced {
            line(&format!("announced {times} times"), *count)?;
        }
        line("half-written files left", self.drafts)?;
        line("lost", self.lost)
    }
}
