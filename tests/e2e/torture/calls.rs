//! The server that links tell of each vCon: it counts, so that what a link did twice is seen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::harness::Webhook;

/// How often each link has told of each vCon.
type Heard = HashMap<String, HashMap<String, usize>>;

/// A server that counts what links tell it.
pub struct Calls {
    server: Webhook,
    heard: Arc<Mutex<Heard>>,
    refuses: Arc<AtomicBool>,
}

impl Calls {
    /// The link whose calls are refused now and then.
    pub const REFUSED: &str = "second_refused";

    pub fn listen() -> Self {
        let heard = Arc::new(Mutex::new(Heard::new()));
        let refuses = Arc::new(AtomicBool::new(false));
        let (book, refused) = (Arc::clone(&heard), Arc::clone(&refuses));
        let server = Webhook::unrecorded(move |request| {
            let link = request.head.split(['/', ' ']).nth(2).unwrap_or_default();
            if link == Self::REFUSED && refused.load(Ordering::SeqCst) {
                return 503;
            }
            let document: Value = serde_json::from_str(&request.body).unwrap_or_default();
            let id = document["uuid"].as_str().unwrap_or_default().to_owned();
            let mut book = lock(&book);
            *book
                .entry(link.to_owned())
                .or_default()
                .entry(id)
                .or_default() += 1;
            200
        });
        Self {
            server,
            heard,
            refuses,
        }
    }

    /// Where a link tells of its vCons.
    pub fn url(&self, link: &str) -> String {
        format!("http://127.0.0.1:{}/{link}", self.server.port())
    }

    /// From now on refuses, or accepts, what [`Calls::REFUSED`] tells.
    pub fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }

    /// How often a link has told of each vCon.
    pub fn of(&self, link: &str) -> HashMap<String, usize> {
        lock(&self.heard).get(link).cloned().unwrap_or_default()
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}
