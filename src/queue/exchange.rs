//! Requests of several lanes in one round trip.
//!
//! What a small request costs a server is mostly the reading and writing of a socket. So lanes of a
//! worker that ask at the same time share one: the first to come sends for all who wait, on its own
//! connection, and hands out the answers. Whoever comes meanwhile goes with the next.
//!
//! ```text
//! lane 1  ask ──► send [1] ─────────► answer 1
//! lane 2     ask ── waits ──► send [2, 3] ──► answer 2, hands out 3
//! lane 3       ask ── waits ────────────────► answer 3
//! ```

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use redis::{Connection, RedisResult, Value};

/// A longer request goes alone, so that it holds nobody up.
const LONGEST: usize = 64 * 1024;

/// What the lanes of a worker have to ask.
#[derive(Default)]
pub struct Exchange {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests that nobody has sent yet, by number.
    waiting: Vec<(u64, Vec<u8>)>,
    /// Answers that their lanes have not taken yet.
    answers: HashMap<u64, RedisResult<Value>>,
    is_sending: bool,
    last: u64,
}

impl Exchange {
    /// Sends one command and returns its answer; what the server refuses is a
    /// [`Value::ServerError`]. The connection is used only if this lane sends.
    ///
    /// # Errors
    /// The connection that was used, this lane's or another one's, failed.
    pub(super) fn ask(&self, connection: &mut Connection, request: &[u8]) -> RedisResult<Value> {
        if request.len() > LONGEST {
            connection.send_packed_command(request)?;
            return connection.recv_response();
        }
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.waiting.push((number, request.to_vec()));
        while state.is_sending {
            state = self.wait(state);
            if let Some(answer) = state.answers.remove(&number) {
                return answer;
            }
        }
        state.is_sending = true;
        let batch = std::mem::take(&mut state.waiting);
        drop(state);
        let answers = send(connection, &batch);
        let mut state = self.lock();
        state.is_sending = false;
        let mut own = None;
        for ((asked, _), answer) in batch.iter().zip(answers) {
            if *asked == number {
                own = Some(answer);
            } else {
                state.answers.insert(*asked, answer);
            }
        }
        // Waking nobody is a system call, too.
        if batch.len() > 1 || !state.waiting.is_empty() {
            self.changed.notify_all();
        }
        drop(state);
        own.unwrap_or_else(|| Err((redis::ErrorKind::Client, "a request was not sent").into()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the requests together and reads an answer to each. After a fault of the connection, the
/// rest have that for an answer.
fn send(connection: &mut Connection, batch: &[(u64, Vec<u8>)]) -> Vec<RedisResult<Value>> {
    let sent = match batch {
        [(_, only)] => connection.send_packed_command(only),
        _ => {
            let requests: Vec<&[u8]> = batch.iter().map(|(_, request)| &**request).collect();
            connection.send_packed_command(&requests.concat())
        }
    };
    let mut fault = sent.err();
    let mut read = || {
        let answer = match &fault {
            Some(fault) => Err(fault.clone()),
            None => connection.recv_response(),
        };
        fault = answer.as_ref().err().cloned();
        answer
    };
    batch.iter().map(|_| read()).collect()
}
