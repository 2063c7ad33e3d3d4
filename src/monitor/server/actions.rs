//! What the monitor does for whoever has the token: it retries or drops dead letters, and pauses or resumes lists and
//! chains.
//!
//! ```text
//! POST /actions/dlq/retry   {"queue": "default"}
//! POST /actions/dlq/drop    {"queue": "storage:pg", "group": {"stage": "storage pg", "error": "…"}}
//! POST /actions/pause       {"kind": "list", "name": "default"}
//! POST /actions/resume      {"kind": "chain", "name": "main"}
//! ```
//!
//! Each action runs in a thread of its own, one at a time, on at most [`MOST`] dead letters, and is logged.
//! Dead letters of a storage are saved by `conserver dlq retry` in a process of its own: storages may hang, crash, or
//! need a Python interpreter, and the monitor must not.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::access::{Gate, Refusal, TokenFile};
use super::request::{ACTIONS, HttpRequest, Post};
use super::response::{Response, StatusCode};
use crate::config::Plan;
use crate::deadline::Deadline;
use crate::program::{Clock, Program, ProgramError};
use crate::queue::{
    DeadLetters, KNOWN_OF_REASON, Moved, Owner, PauseTable, PauseTarget, QueueError, Raw,
    RawDeadLetter, Server, StoredReason, error_pattern, may_hold_backlog, storage_of_queue,
};
use crate::scoreboard::{Slot, Snapshot};
use crate::settings::Settings;
use crate::sys;
use crate::view;
use crate::visible::{printable, visible_json};

/// The most dead letters of one action.
const MOST: u64 = 1000;

/// Dead letters moved in one step.
const BATCH: u64 = 200;

/// Entries looked at for those of a group, a page at a time.
const MOST_LOOKED_AT: u64 = 20_000;
const PAGE: u64 = 500;

/// How long Redis may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Dead letters that one process saves to a storage, how long it may take, and after how long no other is started.
const SAVED_AT_ONCE: usize = 50;
const SAVING: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(45);

/// The actions, for whoever may act.
pub(super) struct Actions {
    gate: Gate,
    /// Held by the one that runs.
    running: Mutex<()>,
    redis: Server,
    board: PathBuf,
    /// The file that the daemon's configuration was read from.
    config: PathBuf,
    least_ttl: u64,
}

/// The path of each action after [`ACTIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Retry,
    Drop,
    Pause,
    Resume,
}

impl Verb {
    fn at(path: &str) -> Option<Self> {
        match path.strip_prefix(ACTIONS)? {
            "dlq/retry" => Some(Self::Retry),
            "dlq/drop" => Some(Self::Drop),
            "pause" => Some(Self::Pause),
            "resume" => Some(Self::Resume),
            _ => None,
        }
    }
}

/// The dead letters of a queue, or a group of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Letters {
    /// An ingress list, or `storage:NAME`.
    queue: String,
    /// Those of one group alone.
    group: Option<Group>,
}

/// Dead letters that failed alike, as `/status` has them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    stage: Option<String>,
    error: String,
}

impl Group {
    /// The group of a dead letter with this reason.
    fn of(reason: Option<&[u8]>) -> Self {
        let (stage, error) = match reason.map(StoredReason::read) {
            None => (None, view::NO_REASON.to_owned()),
            Some(StoredReason::Other(text)) => (None, error_pattern(&text)),
            Some(StoredReason::Known { stage, error, .. }) => (Some(stage), error_pattern(&error)),
        };
        Self { stage, error }
    }
}

/// What to pause or resume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Paused {
    kind: PausedKind,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PausedKind {
    List,
    Chain,
}

impl Paused {
    fn target(&self) -> Result<PauseTarget, ActionError> {
        match self.kind {
            PausedKind::Chain => Ok(PauseTarget::Chain(self.name.clone())),
            PausedKind::List => match self.name.parse() {
                Ok(list) => Ok(PauseTarget::List(list)),
                Err(error) => Err(ActionError::NotUnderstood(format!("{error}"))),
            },
        }
    }

    /// Whether the configuration has it.
    fn is_in(&self, plan: &Plan) -> bool {
        plan.chains.iter().any(|chain| match self.kind {
            PausedKind::Chain => chain.name == self.name,
            PausedKind::List => chain
                .ingress_lists
                .iter()
                .any(|it| it.as_str() == self.name),
        })
    }
}

/// What an action has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Outcome {
    /// Dead letters that were put back, saved or dropped.
    done: u64,
    /// Those that the storage refused again.
    refused: u64,
    /// How many are left.
    left: u64,
    /// Why it ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// All that in a sentence.
    message: String,
}

/// Why an action was not done.
#[derive(Debug, thiserror::Error)]
enum ActionError {
    #[error("{0}")]
    NotUnderstood(String),
    #[error("{0}")]
    NotThere(String),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl ActionError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotUnderstood(_) => StatusCode::Malformed,
            Self::NotThere(_) => StatusCode::NotFound,
            Self::Failed(_) | Self::Queue(_) => StatusCode::Unavailable,
        }
    }
}

impl Actions {
    /// `None` without a token file.
    pub fn of(slot: &Slot, settings: &Settings, redis: &Server) -> Option<Self> {
        let token = TokenFile::new(settings.http_token_file.as_deref()?);
        match token.check() {
            Ok(None) => {}
            Ok(Some(warning)) => log::warn!("{warning} (CONSERVER_HTTP_TOKEN_FILE)"),
            Err(why) => {
                log::error!("nobody can act through the monitor: {why} (CONSERVER_HTTP_TOKEN_FILE)")
            }
        }
        Some(Self {
            gate: Gate::new(token),
            running: Mutex::default(),
            redis: redis.clone(),
            board: slot.board_path().to_owned(),
            config: settings.config_file.clone(),
            least_ttl: settings.redis_expiry,
        })
    }

    /// Does what a request asks for, if `client` may ask for it.
    pub fn respond(&self, request: &HttpRequest, post: &Post, client: &str) -> Response {
        let now = Instant::now();
        let refuse = |refusal: Refusal| {
            self.gate.note(&refusal, client, now);
            refusal.response()
        };
        if let Err(refusal) = self.gate.check(request, post, now) {
            return refuse(refusal);
        }
        let Some(verb) = Verb::at(&request.path) else {
            return Response::text(StatusCode::NotFound, "there is no such action");
        };
        let _running = match self.running.try_lock() {
            Ok(running) => running,
            // One that panicked has ended.
            Err(TryLockError::Poisoned(running)) => running.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let why = "another action is running; try again when it has ended";
                return Response::text(StatusCode::Unavailable, why);
            }
        };
        if let Err(refusal) = self.gate.use_key(post) {
            return refuse(refusal);
        }
        let path = &request.path;
        match self.in_a_thread(|| self.act(verb, &post.body, client)) {
            Ok(outcome) => {
                log::info!("{client} asked for {path}: {}", printable(&outcome.message));
                match serde_json::to_string(&outcome) {
                    Ok(json) => {
                        let json = visible_json(&json) + "\n";
                        Response::new(StatusCode::Ok, "application/json", &json)
                    }
                    Err(error) => Response::text(StatusCode::Unavailable, &error.to_string()),
                }
            }
            Err(error) => {
                let why = error.to_string();
                log::warn!("{client} asked for {path} in vain: {}", printable(&why));
                Response::text(error.status(), &why)
            }
        }
    }

    /// Logs the refusals of a burst that is over, or all if the monitor ends.
    pub fn report_refusals(&self, is_end: bool) {
        if let Some(line) = self.gate.take_report(Instant::now(), is_end) {
            log::warn!("{line}");
        }
    }

    /// Runs it beside the connection's thread, whose stack is too small to read a configuration.
    fn in_a_thread(
        &self,
        act: impl FnOnce() -> Result<Outcome, ActionError> + Send,
    ) -> Result<Outcome, ActionError> {
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("action".to_owned());
            let running = thread.spawn_scoped(scope, act).map_err(|error| {
                ActionError::Failed(format!("could not start a thread: {error}"))
            })?;
            let failed = |_| ActionError::Failed("the action failed; the log says why".to_owned());
            running.join().map_err(failed)?
        })
    }

    fn act(&self, verb: Verb, body: &[u8], client: &str) -> Result<Outcome, ActionError> {
        match verb {
            Verb::Retry | Verb::Drop => self.dead_letters(verb == Verb::Retry, &read(body)?),
            Verb::Pause | Verb::Resume => self.pauses(verb == Verb::Pause, &read(body)?, client),
        }
    }

    /// The configuration in force, if it can be read.
    fn plan(&self) -> Option<Plan> {
        let snapshot = Snapshot::without_figures(&self.board).ok()?;
        Plan::load_kept(&snapshot.config).ok()
    }

    fn pauses(&self, pauses: bool, what: &Paused, client: &str) -> Result<Outcome, ActionError> {
        let target = what.target()?;
        let mut table = PauseTable::new(self.redis.clone(), LIMIT);
        let (is_new, done, not_new) = if pauses {
            if self.plan().is_some_and(|plan| !what.is_in(&plan)) {
                let why = format!("the configuration has no {target}");
                return Err(ActionError::NotThere(why));
            }
            let is_new = table.pause(&target, &format!("the page, {client}"))?;
            (is_new, "paused", "was paused before")
        } else {
            (table.resume(&target)?, "resumed", "was not paused")
        };
        let message = if is_new {
            format!("{target} is {done}; every instance follows within a second")
        } else {
            format!("{target} {not_new}")
        };
        Ok(Outcome {
            done: u64::from(is_new),
            message,
            ..Outcome::default()
        })
    }

    fn dead_letters(&self, retries: bool, which: &Letters) -> Result<Outcome, ActionError> {
        let connection = self.redis.connect_for("conserver:actions", LIMIT);
        let connection = connection.map_err(QueueError::from)?;
        let mut letters = DeadLetters::new(connection, self.least_ttl);
        let list = queue_named(&mut letters, &which.queue)?;
        let plan = self.plan();
        let storage = storage_of_queue(&list, plan.as_ref());
        let defers = |plan: &Plan| may_hold_backlog(&list, Some(plan));
        let scope = Scope {
            // What has no reason may wait for its storage, and is no dead letter.
            with_reason_only: storage.is_some() && plan.as_ref().is_none_or(defers),
            group: which.group.as_ref(),
        };
        match storage {
            None if retries => retry(&mut letters, &list, &scope),
            Some(storage) if retries => save(&mut letters, &list, &storage, &scope, &self.config),
            None => drop_letters(&mut letters, Owner::List, &list, &scope),
            Some(_) => drop_letters(&mut letters, Owner::Storage, &list, &scope),
        }
    }
}

/// Reads the body of an action.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ActionError> {
    serde_json::from_slice(body).map_err(|error| {
        ActionError::NotUnderstood(format!("the body is not what this action takes: {error}"))
    })
}

/// The queue of this name that has dead letters.
fn queue_named(letters: &mut DeadLetters, name: &str) -> Result<Raw, ActionError> {
    for list in Raw::named(name) {
        if letters.length(&list)?.is_some_and(|length| length > 0) {
            return Ok(list);
        }
    }
    let why = format!("{name} has no dead letters any more");
    Err(ActionError::NotThere(why))
}

/// Which dead letters of a queue are meant.
struct Scope<'a> {
    with_reason_only: bool,
    group: Option<&'a Group>,
}

impl Scope<'_> {
    /// Whether all entries of the queue are meant.
    fn is_everything(&self) -> bool {
        !self.with_reason_only && self.group.is_none()
    }

    fn includes(&self, letter: &RawDeadLetter) -> bool {
        let reason = letter.reason.as_deref();
        let is_of_group = |group: &Group| Group::of(reason) == *group;
        (!self.with_reason_only || reason.is_some()) && self.group.is_none_or(is_of_group)
    }

    /// The oldest entries that are meant, at most [`MOST`], and how many more there are among those looked at.
    fn find(
        &self,
        letters: &mut DeadLetters,
        list: &Raw,
    ) -> Result<(Vec<RawDeadLetter>, u64), QueueError> {
        let (mut found, mut more) = (Vec::<RawDeadLetter>::new(), 0);
        for start in (0..MOST_LOOKED_AT).step_by(PAGE as usize) {
            let page = letters.entries(list, start, PAGE)?;
            let is_last = (page.len() as u64) < PAGE;
            for mut letter in page {
                let is_known = found.iter().any(|it| it.entry == letter.entry);
                // No command can name one that is cut.
                if letter.is_cut() || !self.includes(&letter) || is_known {
                    continue;
                }
                if (found.len() as u64) < MOST {
                    // Those of a thousand may be large.
                    if let Some(reason) = &mut letter.reason {
                        reason.truncate(KNOWN_OF_REASON);
                        reason.shrink_to_fit();
                    }
                    found.push(letter);
                } else {
                    more += 1;
                }
            }
            if is_last {
                break;
            }
        }
        Ok((found, more))
    }
}

/// What was done with each of some dead letters.
fn one_by_one(
    letters: &mut DeadLetters,
    list: &Raw,
    scope: &Scope<'_>,
    mut step: impl FnMut(&mut DeadLetters, &RawDeadLetter) -> Result<Moved, QueueError>,
) -> Result<Outcome, ActionError> {
    let (found, left) = scope.find(letters, list)?;
    let mut outcome = Outcome {
        left,
        ..Outcome::default()
    };
    for letter in found {
        match step(letters, &letter)? {
            Moved::Some(0) => {}
            Moved::Some(_) => outcome.done += 1,
            Moved::Refused(why) => {
                outcome.error = Some(why);
                break;
            }
        }
    }
    Ok(outcome)
}

/// The same with the oldest, many in one step.
fn oldest(
    letters: &mut DeadLetters,
    list: &Raw,
    mut step: impl FnMut(&mut DeadLetters, u64) -> Result<Moved, QueueError>,
) -> Result<Outcome, ActionError> {
    // Those that fail again meanwhile are appended behind these.
    let length = letters.length(list)?.unwrap_or(0);
    let mut outcome = Outcome::default();
    while outcome.done < length.min(MOST) {
        match step(letters, BATCH.min(length.min(MOST) - outcome.done))? {
            Moved::Some(0) => break,
            Moved::Some(count) => outcome.done += count,
            Moved::Refused(why) => {
                outcome.error = Some(why);
                break;
            }
        }
    }
    outcome.left = length.saturating_sub(outcome.done);
    Ok(outcome)
}

fn retry(letters: &mut DeadLetters, list: &Raw, scope: &Scope<'_>) -> Result<Outcome, ActionError> {
    let outcome = if scope.is_everything() {
        oldest(letters, list, |letters, count| {
            letters.retry_oldest(list, count)
        })?
    } else {
        one_by_one(letters, list, scope, |letters, letter| {
            letters.retry_one(list, &letter.entry)
        })?
    };
    Ok(outcome.with_message("put back on list", &list.to_string()))
}

fn drop_letters(
    letters: &mut DeadLetters,
    owner: Owner,
    list: &Raw,
    scope: &Scope<'_>,
) -> Result<Outcome, ActionError> {
    let outcome = if scope.is_everything() {
        oldest(letters, list, |letters, count| {
            letters.drop_oldest(owner, list, count, false)
        })?
    } else {
        // What has failed for another reason since, or waits to be saved, is not what was shown.
        one_by_one(letters, list, scope, |letters, letter| {
            letters.drop_known(owner, list, letter)
        })?
    };
    Ok(outcome.with_message("dropped from", &format!("DLQ:{list}")))
}

/// Has `conserver dlq retry` save dead letters to their storage.
fn save(
    letters: &mut DeadLetters,
    list: &Raw,
    storage: &str,
    scope: &Scope<'_>,
    config: &Path,
) -> Result<Outcome, ActionError> {
    let start = Instant::now();
    let (found, more) = scope.find(letters, list)?;
    let all = found.len() as u64 + more;
    let mut outcome = Outcome::default();
    for some in found.chunks(SAVED_AT_ONCE) {
        if start.elapsed() >= LONGEST {
            outcome.error = Some(format!("{} s are over", LONGEST.as_secs()));
            break;
        }
        match save_some(list, some, config) {
            Ok(saved) => {
                outcome.done += saved.saved;
                outcome.refused += saved.refused;
                outcome.error = saved.error;
            }
            Err(why) => outcome.error = Some(why),
        }
        if outcome.error.is_some() {
            break;
        }
    }
    outcome.left = all.saturating_sub(outcome.done);
    Ok(outcome.with_message("saved to storage", storage))
}

/// What `conserver dlq retry --json` says of a storage.
#[derive(Debug, Default, Deserialize)]
struct Saved {
    saved: u64,
    refused: u64,
    error: Option<String>,
}

fn save_some(list: &Raw, some: &[RawDeadLetter], config: &Path) -> Result<Saved, String> {
    #[derive(Deserialize)]
    struct Printed {
        #[serde(default)]
        storages: Vec<Saved>,
    }
    let program = sys::own_program().map_err(|error| error.to_string())?;
    let mut argv = vec![program.display().to_string()];
    argv.extend(["dlq", "retry", "--json", "--for-monitor"].map(str::to_owned));
    argv.extend([format!("--config={}", config.display()), "--".to_owned()]);
    let entries = some.iter().map(|letter| &letter.entry);
    argv.extend([list].into_iter().chain(entries).map(Raw::to_string));
    let name = "conserver dlq retry";
    let program = Program::with_environment(argv, name, SAVING, &[], Vec::new());
    let mut clock = Clock::new(Deadline::NONE.begin(SAVING));
    let ran = program.run(b"", &mut clock).map_err(|error| match error {
        ProgramError::Failed(failure) | ProgramError::TimedOut(failure) => failure.message,
        ProgramError::Interrupted => "interrupted".to_owned(),
    })?;
    let printed: Option<Printed> = serde_json::from_slice(&ran.output).ok();
    let saved = printed.and_then(|printed| printed.storages.into_iter().next());
    saved.ok_or_else(|| format!("`{name}` saved nothing, {}{}", ran.end, ran.reason))
}

impl Outcome {
    fn with_message(mut self, what: &str, place: &str) -> Self {
        let Self {
            done,
            refused,
            left,
            error,
            ..
        } = &self;
        let mut message = format!("{done} {what} {place}");
        if *refused > 0 {
            message += &format!(", {refused} refused again");
        }
        if *left > 0 {
            message += &format!(", {left} left");
        }
        if let Some(why) = error {
            message += &format!("; stopped: {why}");
        }
        self.message = message;
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn letter(entry: &str, reason: Option<&str>) -> RawDeadLetter {
        RawDeadLetter {
            entry: Raw::new(entry),
            reason: reason.map(|text| text.as_bytes().to_vec()),
        }
    }

    #[test]
    fn a_group_is_told_by_its_stage_and_error() {
        let known =
            r#"{"stage":"link x","error":"no\nroute to 5","attempts":1,"worker":"W","at":1.5}"#;
        let group = |stage: Option<&str>, error: &str| Group {
            stage: stage.map(str::to_owned),
            error: error.to_owned(),
        };
        for (group, expected) in [
            (None, [true, true, true]),
            (
                Some(group(Some("link x"), "no route to N")),
                [true, false, false],
            ),
            (
                Some(group(Some("link x"), "another")),
                [false, false, false],
            ),
            (Some(group(None, "because")), [false, true, false]),
            (Some(group(None, view::NO_REASON)), [false, false, true]),
        ] {
            let scope = |with_reason_only| Scope {
                with_reason_only,
                group: group.as_ref(),
            };
            let reasons = [Some(known), Some("because"), None];
            let found = reasons.map(|reason| scope(false).includes(&letter("a", reason)));
            assert_eq!(found, expected, "{group:?}");
            // Backlog is no dead letter.
            assert!(!scope(true).includes(&letter("a", None)));
        }
    }

    #[test]
    fn a_body_is_read_strictly() {
        let read = |text: &str| serde_json::from_str::<Letters>(text);
        assert_eq!(read(r#"{"queue":"a"}"#).unwrap().queue, "a");
        for text in [
            "",
            "[]",
            "{}",
            r#"{"queue":1}"#,
            r#"{"queue":"a","all":true}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_outcome_is_a_sentence() {
        let outcome = Outcome {
            done: 1000,
            left: 234,
            refused: 2,
            error: Some("storage pg is unavailable".to_owned()),
            ..Outcome::default()
        };
        assert_eq!(
            outcome.with_message("saved to storage", "pg").message,
            "1000 saved to storage pg, 2 refused again, 234 left; stopped: storage pg is unavailable"
        );
    }
}
