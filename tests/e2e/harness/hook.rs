//! A webhook server that answers by a rule, and remembers which vCons it has taken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::{Sample, Webhook};

/// The status for a vCon.
type Rule = Box<dyn FnMut(&str) -> u16 + Send>;

/// The server, for a link or a storage.
pub struct Hook {
    server: Webhook,
    book: Arc<Mutex<Book>>,
}

struct Book {
    rule: Rule,
    calls: Vec<Call>,
}

/// A vCon that was posted.
#[derive(Clone)]
pub struct Call {
    pub id: String,
    pub status: u16,
    pub document: Value,
}

impl Hook {
    /// Takes everything.
    pub fn new() -> Self {
        let rule: Rule = Box::new(|_| 200);
        let calls = Vec::new();
        let book = Arc::new(Mutex::new(Book { rule, calls }));
        let server = Webhook::deciding({
            let book = Arc::clone(&book);
            move |body| {
                let document: Value = serde_json::from_str(body).expect("JSON");
                let id = document["uuid"].as_str().expect("a UUID").to_owned();
                let mut book = lock(&book);
                let status = (book.rule)(&id);
                book.calls.push(Call {
                    id,
                    status,
                    document,
                });
                status
            }
        });
        Self { server, book }
    }

    /// From now on, each vCon gets this answer.
    pub fn answers(&self, status: u16) {
        self.decides(move |_| status);
    }

    /// From now on, the answer depends on the vCon.
    pub fn decides(&self, rule: impl FnMut(&str) -> u16 + Send + 'static) {
        lock(&self.book).rule = Box::new(rule);
    }

    /// The link as it stands in `config.yml`.
    pub fn link(&self) -> Value {
        json!({"module": "links.webhook", "options": {"webhook-urls": [self.server.url()]}})
    }

    /// The storage as it stands in `config.yml`.
    pub fn storage(&self) -> Value {
        storage_at(self.port())
    }

    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// All that was posted so far, in its order.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.book).calls.clone()
    }

    /// The vCons that were taken, in their order.
    pub fn taken(&self) -> Vec<String> {
        let calls = self.calls().into_iter();
        let taken = calls.filter(|call| call.status < 300);
        taken.map(|call| call.id).collect()
    }

    /// How many were refused.
    pub fn refused(&self) -> usize {
        let book = lock(&self.book);
        book.calls.iter().filter(|call| call.status >= 300).count()
    }

    /// Fails unless each of these, and nothing besides, was taken this often.
    pub fn has_taken_each(&self, what: &str, samples: &[Sample], times: usize) {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for id in self.taken() {
            *counts.entry(id).or_default() += 1;
        }
        let expected: BTreeMap<String, usize> =
            samples.iter().map(|it| (it.id.clone(), times)).collect();
        let others: Vec<_> = counts
            .iter()
            .filter(|it| expected.get(it.0) != Some(it.1))
            .collect();
        assert!(
            others.is_empty(),
            "{what} has taken, not {times} times: {others:?}"
        );
        assert_eq!(counts.len(), expected.len(), "{what} has not taken all");
    }
}

/// A webhook storage at a port of this host.
pub fn storage_at(port: u16) -> Value {
    let url = format!("http://127.0.0.1:{port}/calls");
    json!({"module": "storage.webhook", "options": {"webhook-urls": [url]}})
}

/// The same storage with `on_outage: defer`.
pub fn deferring(mut storage: Value) -> Value {
    storage["on_outage"] = json!("defer");
    storage
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}
