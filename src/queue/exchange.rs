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
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use redis::{Connection, RedisError, RedisResult, Value};

use super::documents::LARGE;
use super::script::Script;

/// A longer request goes alone, so that it holds nobody up.
const LONGEST: usize = 64 * 1024;

/// A command that a lane has to send.
#[derive(Debug, Clone)]
pub(super) enum Request {
    /// One that stands for itself, packed.
    Alone(Vec<u8>),
    /// The call of a script that takes the requests of several lanes.
    Turn(Turn),
}

/// The call of a script that takes the requests of several lanes, of which this is one's.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    /// `EVALSHA`, or `EVAL` if the server does not know the script.
    pub command: &'static str,
    /// The script's hash, or the script.
    pub script: String,
    /// What the calls of all lanes must have in common to be sent as one: keys and first arguments.
    pub head: Arguments,
    /// How many of those are keys.
    pub keys: usize,
    /// The lane's own arguments.
    pub own: Arguments,
    /// A command to send behind the call, which gets two values for each lane, the last lane first; their
    /// number follows its arguments. Nothing where the server is known to refuse it.
    pub behind: Option<Arguments>,
}

/// Arguments of a command, packed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    bytes: Vec<u8>,
    count: usize,
}

impl Arguments {
    /// Adds one.
    pub fn arg(&mut self, bytes: &[u8]) -> &mut Self {
        // Writing to memory does not fail.
        let _ = write!(self.bytes, "${}\r\n", bytes.len());
        self.bytes.extend_from_slice(bytes);
        self.bytes.extend_from_slice(b"\r\n");
        self.count += 1;
        self
    }

    fn pack(&self, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let _ = write!(out, "*{}\r\n", self.count);
        out.extend_from_slice(&self.bytes);
    }

    fn add(&mut self, more: &Self) {
        self.bytes.extend_from_slice(&more.bytes);
        self.count += more.count;
    }
}

impl Turn {
    fn goes_with(&self, other: &Self) -> bool {
        self.keys == other.keys
            && self.command == other.command
            && self.head == other.head
            && self.script == other.script
            && self.behind == other.behind
    }

    /// The call for these lanes.
    fn pack(turns: &[&Self], out: &mut Vec<u8>) {
        let Some(first) = turns.first() else { return };
        let mut call = Arguments::default();
        call.arg(first.command.as_bytes())
            .arg(first.script.as_bytes());
        call.arg(first.keys.to_string().as_bytes());
        call.add(&first.head);
        turns.iter().for_each(|turn| call.add(&turn.own));
        call.pack(out);
        if let Some(behind) = &first.behind {
            let mut behind = behind.clone();
            behind.arg(turns.len().to_string().as_bytes()).pack(out);
        }
    }
}

impl Request {
    /// The same request, with the script that it calls by its hash.
    pub fn in_full(self, script: &Script) -> Self {
        match self {
            Self::Alone(packed) => Self::Alone(packed_in_full(packed, script)),
            Self::Turn(turn) => Self::Turn(Turn {
                command: "EVAL",
                script: script.code().to_owned(),
                ..turn
            }),
        }
    }

    fn is_long(&self) -> bool {
        match self {
            Self::Alone(bytes) => bytes.len() > LONGEST,
            Self::Turn(turn) => turn.own.bytes.len() > LONGEST,
        }
    }
}

/// The packed call of a script by its hash, as a call in full; any other command as it is.
fn packed_in_full(packed: Vec<u8>, script: &Script) -> Vec<u8> {
    let mut by_hash = Arguments::default();
    by_hash.arg(b"EVALSHA").arg(script.hash().as_bytes());
    // Before it stands the number of arguments, which is the same in full.
    let start = packed.iter().position(|byte| *byte == b'$').unwrap_or(0);
    let (count, call) = packed.split_at(start);
    let Some(rest) = call.strip_prefix(&*by_hash.bytes) else {
        return packed;
    };
    let mut in_full = Arguments::default();
    in_full.arg(b"EVAL").arg(script.code().as_bytes());
    [count, &in_full.bytes, rest].concat()
}

/// An answer to a request.
pub(super) struct Answer {
    /// What the server refuses is a [`Value::ServerError`].
    pub value: Value,
    /// Whether the connection has read so much for it that it is better closed: the client library
    /// keeps a buffer as large as the longest answer for as long as the connection lives.
    pub is_large: bool,
}

/// Sends one request and returns its answer.
pub(super) fn ask_alone(connection: &mut Connection, request: &Request) -> RedisResult<Answer> {
    let (mut answers, is_large) = send(connection, std::slice::from_ref(request));
    let value = answers.pop().unwrap_or_else(|| Err(not_sent()))?;
    Ok(Answer { value, is_large })
}

/// What the lanes of a worker have to ask.
#[derive(Default)]
pub struct Exchange {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Requests that nobody has sent yet, by number.
    waiting: Vec<(u64, Request)>,
    /// Answers that their lanes have not taken yet.
    answers: HashMap<u64, RedisResult<Value>>,
    is_sending: bool,
    last: u64,
}

impl Exchange {
    /// Sends one request, together with those of other lanes, and returns its answer. The connection is
    /// used only if this lane sends.
    ///
    /// # Errors
    /// The connection that was used, this lane's or another one's, failed.
    pub(super) fn ask(&self, connection: &mut Connection, request: Request) -> RedisResult<Answer> {
        if request.is_long() {
            return ask_alone(connection, &request);
        }
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.waiting.push((number, request));
        while state.is_sending {
            state = self.wait(state);
            if let Some(answer) = state.answers.remove(&number) {
                let is_large = false;
                return answer.map(|value| Answer { value, is_large });
            }
        }
        state.is_sending = true;
        drop(state);
        // Lanes that were answered together are about to ask again: those that wait for a processor get
        // one here, and go along. With 4 workers of 4 lanes on 2 processors, 3.4 requests share a call
        // instead of 2.4, and Redis pays a tenth less.
        std::thread::yield_now();
        let waiting = std::mem::take(&mut self.lock().waiting);
        let (numbers, batch): (Vec<u64>, Vec<Request>) = waiting.into_iter().unzip();
        let (answers, is_large) = send(connection, &batch);
        let mut state = self.lock();
        state.is_sending = false;
        let mut own = None;
        for (asked, answer) in numbers.into_iter().zip(answers) {
            if asked == number {
                own = Some(answer);
            } else {
                state.answers.insert(asked, answer);
            }
        }
        // Waking nobody is a system call, too.
        if !state.answers.is_empty() || !state.waiting.is_empty() {
            self.changed.notify_all();
        }
        drop(state);
        let value = own.unwrap_or_else(|| Err(not_sent()))?;
        Ok(Answer { value, is_large })
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

/// Sends the requests together and returns an answer to each, in their order, and whether what the
/// commands behind calls have got is large. After a fault of the connection, the rest have that for an
/// answer.
fn send(connection: &mut Connection, batch: &[Request]) -> (Vec<RedisResult<Value>>, bool) {
    // Which requests a command stands for.
    let mut commands: Vec<Vec<usize>> = Vec::new();
    for (index, request) in batch.iter().enumerate() {
        let goes_with = |command: &&mut Vec<usize>| match (&batch[command[0]], request) {
            (Request::Turn(first), Request::Turn(turn)) => first.goes_with(turn),
            _ => false,
        };
        match commands.iter_mut().find(goes_with) {
            Some(command) => command.push(index),
            None => commands.push(vec![index]),
        }
    }
    let mut packed = Vec::new();
    for command in &commands {
        let turns: Vec<&Turn> = command
            .iter()
            .filter_map(|index| match &batch[*index] {
                Request::Turn(turn) => Some(turn),
                Request::Alone(bytes) => {
                    packed.extend_from_slice(bytes);
                    None
                }
            })
            .collect();
        Turn::pack(&turns, &mut packed);
    }
    let mut fault = connection.send_packed_command(&packed).err();
    let mut answers: Vec<Option<RedisResult<Value>>> = batch.iter().map(|_| None).collect();
    let mut is_large = false;
    for command in &commands {
        let mut receive = || {
            let answer = match &fault {
                Some(fault) => Err(fault.clone()),
                None => connection.recv_response(),
            };
            fault = answer.as_ref().err().cloned();
            answer
        };
        let mut answer = receive();
        let mut behind = Value::Nil;
        if let Request::Turn(Turn {
            behind: Some(_), ..
        }) = &batch[command[0]]
        {
            match receive() {
                Ok(value) => behind = value,
                // Half an answer is none: the lanes ask again, and are handed over what they hold.
                Err(fault) => answer = Err(fault),
            }
        }
        match (answer, &batch[command[0]]) {
            (Ok(Value::Array(of_lanes)), Request::Turn(_)) => {
                is_large |= size_of(&behind) > LARGE;
                let behind = of_each(behind, command.len());
                for ((index, answer), behind) in command.iter().zip(of_lanes).zip(behind) {
                    answers[*index] = Some(Ok(Value::Array(vec![answer, behind])));
                }
            }
            (answer, _) => {
                for index in command {
                    answers[*index] = Some(answer.clone());
                }
            }
        }
    }
    let answers = answers.into_iter();
    let answers = answers.map(|answer| answer.unwrap_or_else(|| Err(not_sent())));
    (answers.collect(), is_large)
}

/// The bytes of a list of strings.
fn size_of(values: &Value) -> usize {
    let size = |value: &Value| match value {
        Value::BulkString(bytes) => bytes.len(),
        _ => 0,
    };
    match values {
        Value::Array(values) => values.iter().map(size).sum(),
        _ => 0,
    }
}

/// What the command behind a call has got for each lane: a pair, or, as a simple string, the code of the
/// error by which the server refused it. That is no fault of the call, whose answer holds.
fn of_each(behind: Value, lanes: usize) -> Vec<Value> {
    match behind {
        Value::Array(mut values) if values.len() == 2 * lanes => (0..lanes)
            .map(|_| Value::Array(values.split_off(values.len() - 2)))
            .collect(),
        Value::ServerError(refusal) => vec![Value::SimpleString(refusal.code().to_owned()); lanes],
        _ => vec![Value::Nil; lanes],
    }
}

fn not_sent() -> RedisError {
    (redis::ErrorKind::Client, "a request has no answer").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(head: &[&str], own: &[&str]) -> Turn {
        let arguments = |words: &[&str]| {
            let mut arguments = Arguments::default();
            for word in words {
                arguments.arg(word.as_bytes());
            }
            arguments
        };
        Turn {
            command: "EVALSHA",
            script: "hash".to_owned(),
            head: arguments(head),
            keys: 1,
            own: arguments(own),
            behind: None,
        }
    }

    #[test]
    fn a_request_is_long_from_one_byte_more_on() {
        for (length, expected) in [(0, false), (LONGEST, false), (LONGEST + 1, true)] {
            let alone = Request::Alone(vec![b'x'; length]);
            assert_eq!(alone.is_long(), expected, "{length}");
        }
        let long = "x".repeat(LONGEST);
        // What all turns have in common does not count.
        for (head, own, expected) in [("a", "1", false), (&long, "1", false), ("a", &long, true)] {
            let request = Request::Turn(turn(&[head], &[own]));
            assert_eq!(request.is_long(), expected);
        }
    }

    #[test]
    fn requests_of_one_kind_are_one_call() {
        let (first, second) = (
            turn(&["key", "a"], &["1"]),
            turn(&["key", "a"], &["2", "x"]),
        );
        assert!(first.goes_with(&second));
        assert!(!first.goes_with(&turn(&["key", "b"], &["1"])));
        let mut packed = Vec::new();
        Turn::pack(&[&first, &second], &mut packed);
        let mut expected = redis::cmd("EVALSHA");
        expected.arg("hash").arg(1).arg("key").arg("a");
        expected.arg("1").arg("2").arg("x");
        assert_eq!(packed, expected.get_packed_command());
    }

    #[test]
    fn a_script_that_the_server_does_not_know_is_sent_in_full() {
        let script = Script::new("return 1");
        let mut by_hash = redis::cmd("EVALSHA");
        by_hash.arg(script.hash()).arg(1).arg("key").arg("$7");
        let mut expected = redis::cmd("EVAL");
        expected.arg("return 1").arg(1).arg("key").arg("$7");
        let Request::Alone(packed) = Request::Alone(by_hash.get_packed_command()).in_full(&script)
        else {
            unreachable!("it stands for itself");
        };
        assert_eq!(packed, expected.get_packed_command());
        // It is none of this script.
        let other = Request::Alone(by_hash.get_packed_command());
        let Request::Alone(packed) = other.in_full(&Script::new("return 2")) else {
            unreachable!("it stands for itself");
        };
        assert_eq!(packed, by_hash.get_packed_command());

        let mut packed = Vec::new();
        let request = Request::Turn(turn(&["key", "a"], &["1"])).in_full(&script);
        let Request::Turn(turn) = request else {
            unreachable!("it is of a turn");
        };
        Turn::pack(&[&turn], &mut packed);
        let mut expected = redis::cmd("EVAL");
        expected.arg("return 1").arg(1).arg("key").arg("a").arg("1");
        assert_eq!(packed, expected.get_packed_command());
    }
}
