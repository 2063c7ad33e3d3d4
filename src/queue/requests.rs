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

use std::io::Write;
use std::mem;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::thread::{self, Thread};

use redis::{
    Cmd, ConnectionLike, FromRedisValue, Pipeline, RedisError, RedisResult, ToRedisArgs, Value,
};

use super::documents::LARGE;
use crate::lock::locked;
use crate::redis_server::Connection;

/// A Lua script: called by its hash, and in full if the server does not know it.
///
/// `EVAL` stores the script on the server as `SCRIPT LOAD` does, for which a user may lack the right.
pub(super) struct Script {
    code: &'static str,
    hash: Arc<str>,
}

/// A call of a script, with its keys and arguments so far.
pub(super) struct Call<'a> {
    script: &'a Script,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

impl Script {
    /// A script with this code.
    pub fn new(code: &'static str) -> Self {
        let hash = redis::Script::new(code).get_hash().into();
        Self { code, hash }
    }

    pub fn hash(&self) -> &Arc<str> {
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

    /// The beginning of a command that calls the script in full, with this number of keys.
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
            reply => reply,
        }
    }
}

/// Whether the server does not know the script that was called.
pub(super) fn is_missing(error: &redis::RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}

/// The code of a script made of files in `scripts/`, each of which may use those before it.
macro_rules! code {
    ($($file:literal),+) => {
        concat!($(include_str!(concat!("scripts/", $file, ".lua"))),+)
    };
}
pub(super) use code;

macro_rules! script {
    ($($file:literal),+) => {
        Script::new(code!($($file),+))
    };
}

/// The scripts of a vCon's usual way through a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LaneScript {
    /// Claims the next entry.
    Claim,
    /// Claims the next entry of a storage's backlog.
    ClaimBacklog,
    /// Finishes a vCon.
    Finish,
    /// Finishes a vCon, then claims the next entry.
    FinishAndClaim,
    /// The same for several lanes at once, for vCons with nothing unusual about them.
    FinishAndClaimMany,
}

/// All scripts of one lane.
pub(super) struct LaneScripts {
    pub replace_document: Script,
    pub replace_large_document: Script,
    pub direct_write_begin: Script,
    pub direct_write_end: Script,
    pub direct_write_forget: Script,
    pub direct_write_orphans: Script,
    pub direct_write_overwritten: Script,
    pub direct_write_restored: Script,
    pub direct_write_reassign: Script,
    pub dead_letter: Script,
    pub release: Script,
    pub postpone: Script,
    pub recover: Script,
    pub instance_lease: Script,
    pub forget_instance: Script,
    pub retry_dead_letters: Script,
    pub unreadable_claim: Script,
    /// In the order of [`LaneScript`].
    usual: [Script; 5],
}

impl LaneScripts {
    pub fn new() -> Self {
        Self {
            direct_write_begin: script!("direct_writes", "direct_write_begin"),
            direct_write_end: script!("direct_writes", "direct_write_end"),
            direct_write_forget: script!("direct_writes", "direct_write_forget"),
            direct_write_orphans: script!("direct_writes", "direct_write_orphans"),
            direct_write_overwritten: script!("direct_writes", "direct_write_overwritten"),
            direct_write_restored: script!("direct_writes", "direct_write_restored"),
            direct_write_reassign: script!("direct_writes", "direct_write_reassign"),
            replace_document: script!(
                "direct_writes",
                "progress",
                "compare_and_write",
                "replace_document"
            ),
            replace_large_document: script!(
                "direct_writes",
                "progress",
                "compare_and_write",
                "replace_large_document"
            ),
            dead_letter: script!(
                "claim_token",
                "reason_time",
                "reason_age",
                "progress",
                "dead_letter"
            ),
            release: script!(
                "claim_token",
                "extend_ttl",
                "put_back_context",
                "progress",
                "release"
            ),
            postpone: script!(
                "claim_token",
                "extend_ttl",
                "put_back_context",
                "progress",
                "postpone"
            ),
            recover: script!(
                "extend_ttl",
                "put_back_context",
                "progress",
                "reason_time",
                "claim_limits",
                "claim_token",
                "claim_record",
                "recover"
            ),
            unreadable_claim: script!("claim_token", "unreadable_claim"),
            instance_lease: script!("instance_lease"),
            forget_instance: script!("forget_instance"),
            retry_dead_letters: script!("retry_dead_letters"),
            usual: [
                script!(
                    "extend_ttl",
                    "claim_limits",
                    "claim_token",
                    "claim_record",
                    "progress",
                    "pop_ingress",
                    "claim",
                    "run_claim"
                ),
                script!(
                    "extend_ttl",
                    "claim_limits",
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
                    "claim_limits",
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
                script!("claim_limits", "finish_and_claim_many"),
            ],
        }
    }

    /// One of the usual scripts.
    pub fn of(&self, script: LaneScript) -> &Script {
        &self.usual[script as usize]
    }
}

/// The scripts of whoever does the housekeeping.
pub(super) struct HousekeepingScripts {
    pub lease: Script,
    pub extend_waiting: Script,
    pub drop_stale_reasons: Script,
    pub read_list: Script,
    pub scan_keys: Script,
    pub scan_reasons: Script,
}

impl HousekeepingScripts {
    pub fn new() -> Self {
        Self {
            lease: script!("housekeeping_lease"),
            extend_waiting: script!("extend_ttl", "extend_waiting"),
            drop_stale_reasons: script!("reason_age", "drop_stale_reasons"),
            read_list: script!("read_list"),
            scan_keys: scan_keys_script(),
            scan_reasons: script!("scan_reasons"),
        }
    }
}

/// The scripts of an operator's commands.
pub(super) struct OperatorScripts {
    pub read_list: Script,
    pub read_reasons: Script,
    pub retry_dead_letters: Script,
    pub drop_dead_letters: Script,
    pub replay_saved: Script,
    pub replay_refused: Script,
    pub locate_vcon: Script,
}

impl OperatorScripts {
    pub fn new() -> Self {
        Self {
            read_list: script!("read_list"),
            read_reasons: script!("read_reasons"),
            retry_dead_letters: script!("retry_dead_letters"),
            drop_dead_letters: script!("drop_dead_letters"),
            replay_saved: script!("replay_lock_held", "replay_saved"),
            replay_refused: script!("replay_lock_held", "reason_time", "replay_refused"),
            locate_vcon: script!("locate_vcon"),
        }
    }
}

/// The scripts that only look: for groups of dead letters, and for one vCon.
pub(super) struct SearchScripts {
    pub read_list: Script,
    pub read_reasons: Script,
    pub read_some_reasons: Script,
    pub find_claims: Script,
}

/// Those scripts.
pub(super) fn search_scripts() -> &'static SearchScripts {
    static SCRIPTS: LazyLock<SearchScripts> = LazyLock::new(|| SearchScripts {
        read_list: script!("read_list"),
        read_reasons: script!("read_reasons"),
        read_some_reasons: script!("read_some_reasons"),
        find_claims: script!("find_claims"),
    });
    &SCRIPTS
}

/// The script that tries every command the daemon needs.
pub(super) fn preflight_script() -> Script {
    script!("preflight")
}

/// The script that returns the members of a set that are not too long.
pub(super) fn read_members_script() -> &'static Script {
    static SCRIPT: LazyLock<Script> = LazyLock::new(|| script!("read_members"));
    &SCRIPT
}

/// The script that returns the next keys of a type, up to a length of their names.
pub(super) fn scan_keys_script() -> Script {
    script!("scan_keys")
}

/// The script that takes, renews and releases a replay lock.
pub(super) fn replay_lock_script() -> Script {
    script!("replay_lock_held", "replay_lock")
}

/// A text of at most this many bytes is copied in among the commands, so that all are sent at once.
const SHORT: usize = 64 * 1024;

/// About how many bytes the commands around such a text have.
const ROOM: usize = 2048;

/// Commands that are sent in one round trip. At most one of them holds a long text, which is not copied.
///
/// The client library's own pipelines copy their arguments more than once, and go on reading after a
/// reply that did not come in time: a server that hangs costs them one time limit for each command. This
/// one stops at the first.
pub(super) struct Commands<'a> {
    before: Vec<u8>,
    text: &'a str,
    after: Vec<u8>,
    replies: usize,
}

impl<'a> Commands<'a> {
    /// These commands.
    pub fn of(commands: &Pipeline) -> Self {
        Self {
            before: commands.get_packed_pipeline(),
            text: "",
            after: Vec::new(),
            replies: commands.len(),
        }
    }

    /// Adds a command: words, a text, words.
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
        self.replies += 1;
        self
    }

    /// Adds commands.
    pub fn add(&mut self, commands: &Pipeline) {
        let packed = commands.get_packed_pipeline();
        self.tail().extend_from_slice(&packed);
        self.replies += commands.len();
    }

    /// Sends the commands and reads a reply to each. An error that the server replies to a command is a
    /// [`Value::ServerError`] among the replies.
    ///
    /// # Errors
    /// The connection failed and must not be used again.
    pub fn send(&self, connection: &mut Connection) -> RedisResult<Vec<Value>> {
        for bytes in [&*self.before, self.text.as_bytes(), &*self.after] {
            if !bytes.is_empty() {
                connection.send_packed_command(bytes)?;
            }
        }
        (0..self.replies)
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

/// The replies to the commands of a transaction, taken from the replies to everything from its `MULTI` to
/// its `EXEC`. Errors of the commands are among them.
///
/// # Errors
/// The first command that the server refused to queue.
pub(super) fn executed(mut replies: Vec<Value>) -> RedisResult<Vec<Value>> {
    let executed = replies.pop();
    // The error of a command says more than the "discarded because of previous errors" of `EXEC`.
    for reply in replies {
        reply.extract_error()?;
    }
    match executed {
        Some(Value::Array(replies)) => Ok(replies),
        Some(Value::ServerError(error)) => Err(error.into()),
        _ => Err((
            redis::ErrorKind::UnexpectedReturnType,
            "EXEC did not answer with a list",
        )
            .into()),
    }
}

/// Sends the commands together and reads a reply to each, as [`Commands::send`] does.
pub(super) fn round_trip(
    connection: &mut Connection,
    commands: &Pipeline,
) -> RedisResult<Vec<Value>> {
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    Commands::of(commands).send(connection)
}

/// Runs the commands as one transaction and returns the reply to each, as [`executed`] does.
///
/// # Errors
/// The connection failed, or the first command that the server refused to queue.
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

/// A longer request is sent alone, so that no other lane waits for it.
const LONGEST: usize = 64 * 1024;

/// A command that a lane wants to send.
#[derive(Debug, Clone)]
pub(super) enum LaneRequest {
    /// A command of its own, packed.
    Alone(Vec<u8>),
    /// One lane's part of a call that serves several lanes.
    Shared(SharedCall),
}

/// One lane's part of a script call that serves several lanes. The script returns two values for each lane,
/// one lane after the other.
#[derive(Debug, Clone)]
pub(super) struct SharedCall {
    /// `EVALSHA`, or `EVAL` if the server does not know the script.
    pub command: &'static str,
    /// The script's hash, or the script.
    pub script: Arc<str>,
    /// Keys and first arguments: lanes share a call only if these are the same.
    pub head: Arc<Arguments>,
    /// How many of those are keys.
    pub keys: usize,
    /// The lane's own arguments.
    pub own: Arguments,
    /// Commands of the lane's own to send before the call. Nobody looks at their replies.
    pub before: Vec<Arguments>,
    /// A command to send after the call. It returns two values for each lane, the last lane first; its
    /// last argument, the number of lanes, is added. `None` once the server has refused it.
    pub then: Option<Arc<Arguments>>,
}

/// Arguments of a command, packed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    bytes: Vec<u8>,
    count: usize,
}

impl Arguments {
    /// Adds an argument.
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
}

impl SharedCall {
    fn can_share(&self, other: &Self) -> bool {
        self.keys == other.keys
            && self.command == other.command
            && self.head == other.head
            && self.script == other.script
            && self.then == other.then
    }

    /// The one call for all these lanes.
    fn pack(calls: &[&Self], out: &mut Vec<u8>) {
        let Some(first) = calls.first() else { return };
        let before = || calls.iter().flat_map(|call| &call.before);
        out.reserve(before().map(|it| it.bytes.len()).sum::<usize>());
        before().for_each(|command| command.pack(out));
        let keys = first.keys.to_string();
        let own = || calls.iter().map(|call| &call.own);
        let count = 3 + first.head.count + own().map(|own| own.count).sum::<usize>();
        let size = first.head.bytes.len() + own().map(|own| own.bytes.len()).sum::<usize>();
        out.reserve(size + ROOM);
        push(out, format_args!("*{count}\r\n"));
        for word in [first.command, &*first.script, &*keys] {
            push_word(out, word);
        }
        out.extend_from_slice(&first.head.bytes);
        own().for_each(|own| out.extend_from_slice(&own.bytes));
        if let Some(then) = &first.then {
            let mut then = Arguments::clone(then);
            then.arg(calls.len().to_string().as_bytes()).pack(out);
        }
    }
}

impl LaneRequest {
    /// The same request with the whole script in place of its hash.
    pub fn in_full(self, script: &Script) -> Self {
        match self {
            Self::Alone(packed) => Self::Alone(packed_in_full(packed, script)),
            Self::Shared(call) => Self::Shared(SharedCall {
                command: "EVAL",
                script: script.code().into(),
                ..call
            }),
        }
    }

    fn is_long(&self) -> bool {
        match self {
            Self::Alone(bytes) => bytes.len() > LONGEST,
            Self::Shared(call) => {
                let before = call.before.iter().map(|it| it.bytes.len());
                call.own.bytes.len() + before.sum::<usize>() > LONGEST
            }
        }
    }
}

/// Turns the packed call of this script by its hash into a call in full. Returns any other command as it
/// is.
fn packed_in_full(packed: Vec<u8>, script: &Script) -> Vec<u8> {
    let mut by_hash = Arguments::default();
    by_hash.arg(b"EVALSHA").arg(script.hash().as_bytes());
    // The number of arguments before it is the same in full.
    let start = packed.iter().position(|byte| *byte == b'$').unwrap_or(0);
    let (count, call) = packed.split_at(start);
    let Some(rest) = call.strip_prefix(&*by_hash.bytes) else {
        return packed;
    };
    let mut in_full = Arguments::default();
    in_full.arg(b"EVAL").arg(script.code().as_bytes());
    [count, &in_full.bytes, rest].concat()
}

/// A reply of the server to one lane.
pub(super) struct Reply {
    /// An error that the server replied is a [`Value::ServerError`].
    pub value: Value,
    /// Whether the lane should close its connection because it read a large reply and keeps a buffer as large
    /// as the longest one.
    pub is_large: bool,
}

/// Sends one request and returns its reply.
pub(super) fn ask_alone(connection: &mut Connection, request: &LaneRequest) -> RedisResult<Reply> {
    let (mut replies, is_large) = send(connection, std::slice::from_ref(request));
    let value = replies.pop().unwrap_or_else(|| Err(not_sent()))?;
    Ok(Reply { value, is_large })
}

/// Joins the requests of a worker's lanes.
#[derive(Default)]
pub struct RequestBatcher {
    state: Mutex<BatcherState>,
}

#[derive(Default)]
struct BatcherState {
    /// The lanes whose requests nobody has sent yet, in the order in which they came.
    waiting: Vec<WaitingLane>,
    is_sending: bool,
}

struct WaitingLane {
    request: LaneRequest,
    waiter: Arc<Waiter>,
}

/// Where a lane waits. Each is woken for itself: lanes that are woken together wait for one another's locks, and
/// most of them in vain.
struct Waiter {
    thread: Thread,
    handover: Mutex<Handover>,
}

/// What a lane waits for.
enum Handover {
    /// It has not come yet.
    Waits,
    /// It is the lane that sends, its own request first.
    Sends(LaneRequest),
    /// Another lane has sent its request.
    Has(RedisResult<Value>, LaneRequest),
}

impl RequestBatcher {
    /// Sends one request, together with those of other lanes. Returns its reply, and the request. Uses the connection
    /// only if this lane is the one that sends.
    ///
    /// The reply is an error if the connection that was used, of this lane or another, failed.
    pub(super) fn ask(
        &self,
        connection: &mut Connection,
        request: LaneRequest,
    ) -> (RedisResult<Reply>, LaneRequest) {
        if request.is_long() {
            return (ask_alone(connection, &request), request);
        }
        let mut state = self.lock();
        if !state.is_sending {
            state.is_sending = true;
            drop(state);
            return self.send(connection, request);
        }
        let waiter = Arc::new(Waiter::new());
        state.waiting.push(WaitingLane {
            request,
            waiter: Arc::clone(&waiter),
        });
        drop(state);
        loop {
            match waiter.take() {
                Handover::Waits => thread::park(),
                Handover::Sends(request) => return self.send(connection, request),
                Handover::Has(reply, request) => {
                    let is_large = false;
                    return (reply.map(|value| Reply { value, is_large }), request);
                }
            }
        }
    }

    /// Sends the lane's own request with those that wait, hands out the replies, and lets the next lane send.
    fn send(
        &self,
        connection: &mut Connection,
        request: LaneRequest,
    ) -> (RedisResult<Reply>, LaneRequest) {
        // Lanes that got their replies together are about to ask again. Those that wait for a processor
        // get one here and join. With 4 workers of 4 lanes on 2 processors, 3.4 requests instead of 2.4
        // share a call, and Redis spends a tenth less.
        thread::yield_now();
        let waiting = mem::take(&mut self.lock().waiting);
        let (mut requests, mut waiters) = (vec![request], Vec::new());
        for lane in waiting {
            requests.push(lane.request);
            waiters.push(lane.waiter);
        }
        let (replies, is_large) = send(connection, &requests);
        let mut results = replies.into_iter().zip(requests);
        let own = results.next();
        for (waiter, (reply, request)) in waiters.iter().zip(results) {
            waiter.give(Handover::Has(reply, request));
        }
        {
            let mut state = self.lock();
            if state.waiting.is_empty() {
                state.is_sending = false;
            } else {
                let lane = state.waiting.remove(0);
                lane.waiter.give(Handover::Sends(lane.request));
            }
        }
        let (reply, request) =
            own.unwrap_or_else(|| (Err(not_sent()), LaneRequest::Alone(Vec::new())));
        (reply.map(|value| Reply { value, is_large }), request)
    }

    fn lock(&self) -> MutexGuard<'_, BatcherState> {
        locked(&self.state)
    }
}

impl Waiter {
    fn new() -> Self {
        Self {
            thread: thread::current(),
            handover: Mutex::new(Handover::Waits),
        }
    }

    /// Takes what the lane was woken for, if that has come.
    fn take(&self) -> Handover {
        mem::replace(&mut *locked(&self.handover), Handover::Waits)
    }

    /// Hands this to the waiting lane, and wakes it.
    fn give(&self, handover: Handover) {
        *locked(&self.handover) = handover;
        self.thread.unpark();
    }
}

/// Sends the requests together. Returns a reply to each, in their order, and whether the connection should be
/// closed, as the documents that the commands after shared calls returned are large. Once the connection has
/// failed, the rest of the replies is that error.
fn send(connection: &mut Connection, batch: &[LaneRequest]) -> (Vec<RedisResult<Value>>, bool) {
    // The requests that each command serves.
    let mut commands: Vec<Vec<usize>> = Vec::new();
    for (index, request) in batch.iter().enumerate() {
        let can_share = |command: &&mut Vec<usize>| match (&batch[command[0]], request) {
            (LaneRequest::Shared(first), LaneRequest::Shared(call)) => first.can_share(call),
            _ => false,
        };
        match commands.iter_mut().find(can_share) {
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
    let mut error = connection.send_packed_command(&packed).err();
    let mut replies: Vec<Option<RedisResult<Value>>> = batch.iter().map(|_| None).collect();
    let mut is_large = false;
    for command in &commands {
        let mut receive = || {
            let reply = match &error {
                Some(error) => Err(error.clone()),
                None => connection.recv_response(),
            };
            error = reply.as_ref().err().cloned();
            reply
        };
        for index in command {
            if let LaneRequest::Shared(SharedCall { before, .. }) = &batch[*index] {
                // If one was refused, the script finds that out.
                before.iter().for_each(|_| drop(receive()));
            }
        }
        let mut reply = receive();
        let mut then = Value::Nil;
        if let LaneRequest::Shared(SharedCall { then: Some(_), .. }) = &batch[command[0]] {
            match receive() {
                Ok(value) => then = value,
                // Half a reply is none: the lanes ask again, and get the claims that they hold.
                Err(error) => reply = Err(error),
            }
        }
        match (reply, &batch[command[0]]) {
            (Ok(Value::Array(values)), LaneRequest::Shared(_)) => {
                is_large |= connection.keeps_buffers() && size_of(&then) > LARGE;
                let then = of_each(then, command.len());
                let mut values = values.into_iter();
                for (index, then) in command.iter().zip(then) {
                    let own = values.by_ref().take(2).chain([then]);
                    replies[*index] = Some(Ok(Value::Array(own.collect())));
                }
            }
            (reply, _) => {
                for index in command {
                    replies[*index] = Some(reply.clone());
                }
            }
        }
    }
    let replies = replies.into_iter();
    let replies = replies.map(|reply| reply.unwrap_or_else(|| Err(not_sent())));
    (replies.collect(), is_large)
}

/// How many bytes the strings of an array have.
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

/// What the command after a call returned for each lane: a pair, or the code of the server's error as a
/// simple string. Such an error does not void the reply to the call.
fn of_each(then: Value, lanes: usize) -> Vec<Value> {
    match then {
        Value::Array(mut values) if values.len() == 2 * lanes => (0..lanes)
            .map(|_| Value::Array(values.split_off(values.len() - 2)))
            .collect(),
        Value::ServerError(refusal) => vec![Value::SimpleString(refusal.code().to_owned()); lanes],
        _ => vec![Value::Nil; lanes],
    }
}

fn not_sent() -> RedisError {
    (redis::ErrorKind::Client, "a request has no reply").into()
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
            script: "hash".into(),
            head: Arc::new(arguments(head)),
            keys: 1,
            own: arguments(own),
            before: Vec::new(),
            then: None,
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
        assert!(first.can_share(&second));
        assert!(!first.can_share(&call(&["key", "b"], &["1"])));
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
        by_hash.arg(&**script.hash()).arg(1).arg("key").arg("$7");
        let mut expected = redis::cmd("EVAL");
        expected.arg("return 1").arg(1).arg("key").arg("$7");
        let LaneRequest::Alone(packed) =
            LaneRequest::Alone(by_hash.get_packed_command()).in_full(&script)
        else {
            unreachable!("it is sent alone");
        };
        assert_eq!(packed, expected.get_packed_command());
        // It is none of this script.
        let other = LaneRequest::Alone(by_hash.get_packed_command());
        let LaneRequest::Alone(packed) = other.in_full(&Script::new("return 2")) else {
            unreachable!("it is sent alone");
        };
        assert_eq!(packed, by_hash.get_packed_command());

        let mut packed = Vec::new();
        let request = LaneRequest::Shared(call(&["key", "a"], &["1"])).in_full(&script);
        let LaneRequest::Shared(call) = request else {
            unreachable!("it is a shared call");
        };
        SharedCall::pack(&[&call], &mut packed);
        let mut expected = redis::cmd("EVAL");
        expected.arg("return 1").arg(1).arg("key").arg("a").arg("1");
        assert_eq!(packed, expected.get_packed_command());
    }
}
