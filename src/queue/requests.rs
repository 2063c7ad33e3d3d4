//! How requests reach Redis: scripts by their hash, several commands in one round trip, and several
//! lanes in one call.
//!
//! Most of what a small request costs a server is reading from and writing to a socket. So lanes of a
//! worker that ask at the same time share one request: the first lane sends for all that wait, on its
//! own connection, and hands out the replies. A lane that comes meanwhile goes with the next request.
//!
//! ```text
//! lane 1  ask ──► send [1] ─────────► reply 1
//! lane 2     ask ── waits ──► send [2, 3] ──► reply 2, hands out 3
//! lane 3       ask ── waits ────────────────► reply 3
//! ```
//!
//! Knows the form of requests and which files make up a script, not what scripts do.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use redis::{
    Cmd, Connection, ConnectionLike, FromRedisValue, Pipeline, RedisError, RedisResult,
    ToRedisArgs, Value,
};

use super::documents::LARGE;

/// A script.
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

/// A call of a script, with its keys and arguments so far.
pub(super) struct Call<'a> {
    script: &'a Script,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

impl Script {
    /// This code.
    pub fn new(code: &'static str) -> Self {
        let hash = redis::Script::new(code).get_hash().to_owned();
        Self { code, hash }
    }

    pub fn hash(&self) -> &str {
        &self.hash
    }

    pub fn code(&self) -> &'static str {
        self.code
    }

    /// A call without keys and arguments.
    pub fn call(&self) -> Call<'_> {
        Call {
            script: self,
            keys: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// A call with its first key.
    pub fn key(&self, key: impl ToRedisArgs) -> Call<'_> {
        let mut call = self.call();
        call.key(key);
        call
    }

    /// The beginning of a command that calls the script in full, with so many keys.
    pub fn in_full(&self, keys: usize) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(self.code).arg(keys);
        command
    }
}

impl Call<'_> {
    /// Adds a key, or several.
    pub fn key(&mut self, key: impl ToRedisArgs) -> &mut Self {
        key.write_redis_args(&mut self.keys);
        self
    }

    /// Adds an argument, or several.
    pub fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        argument.write_redis_args(&mut self.arguments);
        self
    }

    /// The command that calls the script by its hash.
    pub fn by_hash(&self) -> Cmd {
        self.command("EVALSHA", &self.script.hash)
    }

    /// The command that calls the script in full.
    pub fn in_full(&self) -> Cmd {
        self.command("EVAL", self.script.code)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(self.keys.len());
        command.arg(&self.keys).arg(&self.arguments);
        command
    }

    /// Calls the script.
    pub fn invoke<T: FromRedisValue>(&self, connection: &mut dyn ConnectionLike) -> RedisResult<T> {
        match self.by_hash().query(connection) {
            Err(error) if is_missing(&error) => self.in_full().query(connection),
            answer => answer,
        }
    }
}

/// Whether the server does not have the script that was called.
pub(super) fn is_missing(error: &redis::RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}

/// A script made of files in `scripts/`, each of which may use those before it.
macro_rules! script {
    ($($file:literal),+) => {
        Script::new(concat!($(include_str!(concat!("scripts/", $file, ".lua"))),+))
    };
}

/// The scripts of one lane; each is sent by its hash, and in full if the server has lost it.
pub(super) struct LaneScripts {
    pub replace: Script,
    pub replace_large: Script,
    pub foreign_begin: Script,
    pub foreign_end: Script,
    pub foreign_forget: Script,
    pub foreign_left: Script,
    pub foreign_kept: Script,
    pub foreign_laid: Script,
    pub foreign_keep: Script,
    pub dead_letter: Script,
    pub release: Script,
    pub postpone: Script,
    pub recover: Script,
    pub lease: Script,
    pub forget: Script,
    pub retry: Script,
    pub set_aside: Script,
    steps: [Script; 5],
}

/// The steps of a vCon's usual way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LaneScript {
    /// Takes the next entry.
    Claim,
    /// Takes the next entry of a storage's queue.
    ClaimBacklog,
    /// Finishes a vCon.
    Finish,
    /// Finishes a vCon, then takes the next entry.
    FinishAndClaim,
    /// The same for several lanes, in the usual way.
    FinishAndClaimMany,
}

impl LaneScripts {
    pub fn new() -> Self {
        Self {
            foreign_begin: script!("direct_writes", "direct_write_begin"),
            foreign_end: script!("direct_writes", "direct_write_end"),
            foreign_forget: script!("direct_writes", "direct_write_forget"),
            foreign_left: script!("direct_writes", "direct_write_orphans"),
            foreign_kept: script!("direct_writes", "direct_write_overwritten"),
            foreign_laid: script!("direct_writes", "direct_write_restored"),
            foreign_keep: script!("direct_writes", "direct_write_reassign"),
            replace: script!("direct_writes", "progress", "compare_and_write", "replace_document"),
            replace_large: script!("direct_writes", "progress", "compare_and_write", "replace_large_document"),
            dead_letter: script!("claim_token", "reason_time", "reason_age", "progress", "dead_letter"),
            release: script!("claim_token", "extend_ttl", "put_back_context", "progress", "release"),
            postpone: script!("claim_token", "extend_ttl", "put_back_context", "progress", "postpone"),
            recover: script!(
                "extend_ttl", "put_back_context", "progress", "reason_time", "claim_token", "claim_record", "recover"
            ),
            set_aside: script!("claim_token", "unreadable_claim"),
            lease: script!("instance_lease"),
            forget: script!("forget_instance"),
            retry: script!("retry_dead_letters"),
            steps: [
                script!(
                    "extend_ttl",
                    "claim_token",
                    "claim_record",
                    "progress",
                    "pop_ingress",
                    "claim",
                    "run_claim"
                ),
                script!(
                    "extend_ttl",
                    "claim_token",
                    "claim_record",
                    "progress",
                    "pop_backlog",
                    "claim",
                    "run_claim"
                ),
                script!(
                    "claim_token",
                    "direct_writes",
                    "progress",
                    "compare_and_write",
                    "reason_time",
                    "finish",
                    "run_finish"
                ),
                script!(
                    "extend_ttl",
                    "claim_token",
                    "claim_record",
                    "progress",
                    "pop_ingress",
                    "claim",
                    "direct_writes",
                    "compare_and_write",
                    "reason_time",
                    "finish",
                    "run_finish_and_claim"
                ),
                script!("claim_token", "finish_and_claim_many"),
            ],
        }
    }

    /// The script of a step.
    pub fn step(&self, step: LaneScript) -> &Script {
        &self.steps[step as usize]
    }
}

/// What keeps the documents of waiting vCons alive.
pub(super) fn keep() -> Script {
    script!("extend_ttl", "extend_waiting")
}

/// The lease of who does so.
pub(super) fn keeper() -> Script {
    script!("housekeeping_lease")
}

/// What tries all that the work needs.
pub(super) fn preflight() -> Script {
    script!("preflight")
}

/// What drops reasons without entries.
pub(super) fn forget_reasons() -> Script {
    script!("reason_age", "drop_stale_reasons")
}

/// What takes, renews and releases the lock of a replay.
pub(super) fn replay_lock() -> Script {
    script!("replay_lock_held", "replay_lock")
}

/// The scripts of those who look after the queues.
pub(super) struct AdminScripts {
    pub letters: Script,
    pub retry: Script,
    pub drop: Script,
    pub saved: Script,
    pub refused: Script,
    pub locate: Script,
}

impl AdminScripts {
    pub fn new() -> Self {
        Self {
            letters: script!("page_dead_letters"),
            retry: script!("retry_dead_letters"),
            drop: script!("drop_dead_letter"),
            saved: script!("replay_lock_held", "replay_saved"),
            refused: script!("replay_lock_held", "reason_time", "replay_refused"),
            locate: script!("locate_vcon"),
        }
    }
}

/// A text up to this many bytes is copied in among the commands, so that all go out at once.
const SHORT: usize = 64 * 1024;

/// About the bytes of the commands around such a text.
const ROOM: usize = 2048;

/// Commands that are sent together; at most one of them holds a long text, which is not copied.
///
/// The client library's own pipelines copy their arguments more than once, and go on reading after
/// an answer that did not come in time, so that a server that hangs holds them up for one time
/// limit per command; this stops at the first.
pub(super) struct Commands<'a> {
    before: Vec<u8>,
    text: &'a str,
    after: Vec<u8>,
    answers: usize,
}

impl<'a> Commands<'a> {
    /// These commands.
    pub fn of(commands: &Pipeline) -> Self {
        Self {
            before: commands.get_packed_pipeline(),
            text: "",
            after: Vec::new(),
            answers: commands.len(),
        }
    }

    /// One command more: words, a text, words.
    pub fn command(mut self, first: &[&str], text: &'a str, last: &[&str]) -> Self {
        let count = first.len() + 1 + last.len();
        let out = &mut self.before;
        if text.len() <= SHORT {
            out.reserve(text.len() + ROOM);
        }
        push(out, format_args!("*{count}\r\n"));
        first.iter().for_each(|word| push_word(out, word));
        push(out, format_args!("${}\r\n", text.len()));
        if text.len() <= SHORT {
            out.extend_from_slice(text.as_bytes());
        } else {
            self.text = text;
        }
        let out = self.tail();
        out.extend_from_slice(b"\r\n");
        last.iter().for_each(|word| push_word(out, word));
        self.answers += 1;
        self
    }

    /// More commands.
    pub fn add(&mut self, commands: &Pipeline) {
        let packed = commands.get_packed_pipeline();
        self.tail().extend_from_slice(&packed);
        self.answers += commands.len();
    }

    /// Sends the commands and reads an answer to each; what the server refuses is among the
    /// answers, as [`Value::ServerError`].
    ///
    /// # Errors
    /// The connection failed; it is not to be used again.
    pub fn send(&self, connection: &mut Connection) -> RedisResult<Vec<Value>> {
        for bytes in [&*self.before, self.text.as_bytes(), &*self.after] {
            if !bytes.is_empty() {
                connection.send_packed_command(bytes)?;
            }
        }
        (0..self.answers)
            .map(|_| connection.recv_response())
            .collect()
    }

    fn tail(&mut self) -> &mut Vec<u8> {
        if self.text.is_empty() {
            &mut self.before
        } else {
            &mut self.after
        }
    }
}

fn push_word(out: &mut Vec<u8>, word: &str) {
    push(out, format_args!("${}\r\n{word}\r\n", word.len()));
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = out.write_fmt(text);
}

/// The answers to the commands of a transaction, from the answers to all that was sent from its
/// `MULTI` to its `EXEC`; what the server refuses when it comes to a command is among them.
///
/// # Errors
/// The first thing the server refused before the transaction.
pub(super) fn executed(mut answers: Vec<Value>) -> RedisResult<Vec<Value>> {
    let executed = answers.pop();
    // What was refused before EXEC says more than its "discarded because of previous errors".
    for answer in answers {
        answer.extract_error()?;
    }
    match executed {
        Some(Value::Array(answers)) => Ok(answers),
        Some(Value::ServerError(error)) => Err(error.into()),
        _ => Err((
            redis::ErrorKind::UnexpectedReturnType,
            "EXEC did not answer with a list",
        )
            .into()),
    }
}

/// Sends the commands together and reads an answer to each, as [`Commands::send`] does.
pub(super) fn round_trip(
    connection: &mut Connection,
    commands: &Pipeline,
) -> RedisResult<Vec<Value>> {
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    Commands::of(commands).send(connection)
}

/// Runs the commands as one transaction and gives the answer to each, as [`executed`] does.
///
/// # Errors
/// The first thing the server refused before the transaction, or the connection failed.
pub(super) fn transaction(
    connection: &mut Connection,
    commands: &Pipeline,
) -> RedisResult<Vec<Value>> {
    let mut steps = redis::pipe();
    steps.cmd("MULTI");
    for command in commands.cmd_iter() {
        steps.add_command(command.clone());
    }
    steps.cmd("EXEC");
    executed(round_trip(connection, &steps)?)
}

/// A longer request goes alone, so that it holds nobody up.
const LONGEST: usize = 64 * 1024;

/// A command that a lane has to send.
#[derive(Debug, Clone)]
pub(super) enum LaneRequest {
    /// One that stands for itself, packed.
    Alone(Vec<u8>),
    /// The call of a script that takes the requests of several lanes.
    Shared(SharedCall),
}

/// The call of a script that takes the requests of several lanes, of which this is one's.
#[derive(Debug, Clone)]
pub(super) struct SharedCall {
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

impl SharedCall {
    fn goes_with(&self, other: &Self) -> bool {
        self.keys == other.keys
            && self.command == other.command
            && self.head == other.head
            && self.script == other.script
            && self.behind == other.behind
    }

    /// The call for these lanes.
    fn pack(calls: &[&Self], out: &mut Vec<u8>) {
        let Some(first) = calls.first() else { return };
        let mut call = Arguments::default();
        call.arg(first.command.as_bytes())
            .arg(first.script.as_bytes());
        call.arg(first.keys.to_string().as_bytes());
        call.add(&first.head);
        calls.iter().for_each(|lane| call.add(&lane.own));
        call.pack(out);
        if let Some(behind) = &first.behind {
            let mut behind = behind.clone();
            behind.arg(calls.len().to_string().as_bytes()).pack(out);
        }
    }
}

impl LaneRequest {
    /// The same request, with the script that it calls by its hash.
    pub fn in_full(self, script: &Script) -> Self {
        match self {
            Self::Alone(packed) => Self::Alone(packed_in_full(packed, script)),
            Self::Shared(call) => Self::Shared(SharedCall {
                command: "EVAL",
                script: script.code().to_owned(),
                ..call
            }),
        }
    }

    fn is_long(&self) -> bool {
        match self {
            Self::Alone(bytes) => bytes.len() > LONGEST,
            Self::Shared(call) => call.own.bytes.len() > LONGEST,
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
pub(super) struct Reply {
    /// What the server refuses is a [`Value::ServerError`].
    pub value: Value,
    /// Whether the connection has read so much for it that it is better closed: the client library
    /// keeps a buffer as large as the longest answer for as long as the connection lives.
    pub is_large: bool,
}

/// Sends one request and returns its answer.
pub(super) fn ask_alone(connection: &mut Connection, request: &LaneRequest) -> RedisResult<Reply> {
    let (mut answers, is_large) = send(connection, std::slice::from_ref(request));
    let value = answers.pop().unwrap_or_else(|| Err(not_sent()))?;
    Ok(Reply { value, is_large })
}

/// What the lanes of a worker have to ask.
#[derive(Default)]
pub struct Exchange {
    state: Mutex<BatcherState>,
    changed: Condvar,
}

#[derive(Default)]
struct BatcherState {
    /// Requests that nobody has sent yet, by number.
    waiting: Vec<(u64, LaneRequest)>,
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
    pub(super) fn ask(&self, connection: &mut Connection, request: LaneRequest) -> RedisResult<Reply> {
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
                return answer.map(|value| Reply { value, is_large });
            }
        }
        state.is_sending = true;
        drop(state);
        // Lanes that were answered together are about to ask again: those that wait for a processor get
        // one here, and go along. With 4 workers of 4 lanes on 2 processors, 3.4 requests share a call
        // instead of 2.4, and Redis pays a tenth less.
        std::thread::yield_now();
        let waiting = std::mem::take(&mut self.lock().waiting);
        let (numbers, batch): (Vec<u64>, Vec<LaneRequest>) = waiting.into_iter().unzip();
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
        Ok(Reply { value, is_large })
    }

    fn lock(&self) -> MutexGuard<'_, BatcherState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, BatcherState>) -> MutexGuard<'a, BatcherState> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the requests together and returns an answer to each, in their order, and whether what the
/// commands behind calls have got is large. After a fault of the connection, the rest have that for an
/// answer.
fn send(connection: &mut Connection, batch: &[LaneRequest]) -> (Vec<RedisResult<Value>>, bool) {
    // Which requests a command stands for.
    let mut commands: Vec<Vec<usize>> = Vec::new();
    for (index, request) in batch.iter().enumerate() {
        let goes_with = |command: &&mut Vec<usize>| match (&batch[command[0]], request) {
            (LaneRequest::Shared(first), LaneRequest::Shared(call)) => first.goes_with(call),
            _ => false,
        };
        match commands.iter_mut().find(goes_with) {
            Some(command) => command.push(index),
            None => commands.push(vec![index]),
        }
    }
    let mut packed = Vec::new();
    for command in &commands {
        let calls: Vec<&SharedCall> = command
            .iter()
            .filter_map(|index| match &batch[*index] {
                LaneRequest::Shared(call) => Some(call),
                LaneRequest::Alone(bytes) => {
                    packed.extend_from_slice(bytes);
                    None
                }
            })
            .collect();
        SharedCall::pack(&calls, &mut packed);
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
        if let LaneRequest::Shared(SharedCall {
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
            (Ok(Value::Array(of_lanes)), LaneRequest::Shared(_)) => {
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

    fn call(head: &[&str], own: &[&str]) -> SharedCall {
        let arguments = |words: &[&str]| {
            let mut arguments = Arguments::default();
            for word in words {
                arguments.arg(word.as_bytes());
            }
            arguments
        };
        SharedCall {
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
            let alone = LaneRequest::Alone(vec![b'x'; length]);
            assert_eq!(alone.is_long(), expected, "{length}");
        }
        let long = "x".repeat(LONGEST);
        // What all calls have in common does not count.
        for (head, own, expected) in [("a", "1", false), (&long, "1", false), ("a", &long, true)] {
            let request = LaneRequest::Shared(call(&[head], &[own]));
            assert_eq!(request.is_long(), expected);
        }
    }

    #[test]
    fn requests_of_one_kind_are_one_call() {
        let (first, second) = (
            call(&["key", "a"], &["1"]),
            call(&["key", "a"], &["2", "x"]),
        );
        assert!(first.goes_with(&second));
        assert!(!first.goes_with(&call(&["key", "b"], &["1"])));
        let mut packed = Vec::new();
        SharedCall::pack(&[&first, &second], &mut packed);
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
        let LaneRequest::Alone(packed) = LaneRequest::Alone(by_hash.get_packed_command()).in_full(&script)
        else {
            unreachable!("it stands for itself");
        };
        assert_eq!(packed, expected.get_packed_command());
        // It is none of this script.
        let other = LaneRequest::Alone(by_hash.get_packed_command());
        let LaneRequest::Alone(packed) = other.in_full(&Script::new("return 2")) else {
            unreachable!("it stands for itself");
        };
        assert_eq!(packed, by_hash.get_packed_command());

        let mut packed = Vec::new();
        let request = LaneRequest::Shared(call(&["key", "a"], &["1"])).in_full(&script);
        let LaneRequest::Shared(call) = request else {
            unreachable!("it is of a call");
        };
        SharedCall::pack(&[&call], &mut packed);
        let mut expected = redis::cmd("EVAL");
        expected.arg("return 1").arg(1).arg("key").arg("a").arg("1");
        assert_eq!(packed, expected.get_packed_command());
    }
}
