//! A server at which vCons in work wait until they are let go.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde_json::{Value, json};

use super::Entry;
use crate::harness::{Request, reply};

/// A link posts each vCon to it, and is answered when the barrier of its list is open.
pub struct Barrier {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: BTreeSet<String>,
    waiting: Vec<(Entry, TcpStream)>,
    calls: BTreeMap<Entry, usize>,
}

impl Barrier {
    pub fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::<Mutex<State>>::default();
        let barrier = Arc::clone(&state);
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&barrier);
                thread::spawn(move || arrive(&state, stream));
            }
        });
        Self { port, state }
    }

    /// The link for the chain of a list.
    pub fn link(&self, list: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/{list}", self.port);
        json!({"module": "links.webhook", "options": {"webhook-urls": [url], "timeout": 300}})
    }

    /// The vCons that wait, in order; those of workers that are dead do not.
    pub fn waiting(&self) -> Vec<Entry> {
        let mut state = lock(&self.state);
        state.waiting.retain(|(_, stream)| is_connected(stream));
        let mut waiting: Vec<Entry> = state.waiting.iter().map(|(it, _)| it.clone()).collect();
        waiting.sort();
        waiting
    }

    /// How often each vCon has come to it so far.
    pub fn calls(&self) -> BTreeMap<Entry, usize> {
        lock(&self.state).calls.clone()
    }

    /// Lets all go that wait there as entries of this list, or come.
    pub fn open(&self, list: &str) {
        let mut state = lock(&self.state);
        state.open.insert(list.to_owned());
        let waiting = std::mem::take(&mut state.waiting);
        for (entry, stream) in waiting {
            if entry.0 == list {
                // Its worker may be dead.
                let _ = reply(stream, 200, "");
            } else {
                state.waiting.push((entry, stream));
            }
        }
    }

    pub fn close(&self, list: &str) {
        lock(&self.state).open.remove(list);
    }
}

fn arrive(state: &Mutex<State>, stream: TcpStream) {
    // Nothing comes if the worker is killed meanwhile.
    let Some((request, stream)) = Request::receive(stream) else {
        return;
    };
    let path = request.head.split_whitespace().nth(1).expect("a path");
    let list = path.trim_start_matches('/').to_owned();
    let document: Value = serde_json::from_str(&request.body).expect("JSON");
    let entry = (list, document["uuid"].as_str().expect("a UUID").to_owned());
    let mut state = lock(state);
    *state.calls.entry(entry.clone()).or_default() += 1;
    if state.open.contains(&entry.0) {
        let _ = reply(stream, 200, "");
    } else {
        stream.set_nonblocking(true).expect("a socket");
        state.waiting.push((entry, stream));
    }
}

/// Whether the other side, which has nothing more to say, still waits for an answer.
fn is_connected(stream: &TcpStream) -> bool {
    let peeked = stream.peek(&mut [0]);
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
