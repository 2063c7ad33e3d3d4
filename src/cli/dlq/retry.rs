//! `conserver dlq retry`: puts dead letters back on their list, or saves them to the storage that
//! refused them.
//!
//! Dead letters of an ingress list are moved, each in one step. Those of a storage are saved by
//! [`StorageReplay`], under the lock that the API server takes as well.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use indexmap::IndexSet;
use indicatif::ProgressBar;
use serde::Serialize;

use super::list::LONGEST_ENTRY;
use super::{
    DlqError, all_lists, connect, find_entry, find_entry_anywhere, known_lists, load_plan,
    no_such_entry, queue_if_named, queue_named,
};
use crate::backoff::Backoff;
use crate::cli::interruption;
use crate::cli::output::{LONGEST_ERROR, eprint_line, progress_bar, truncated};
use crate::cli::storage_access::StorageHandle;
use crate::config::{Config, Plan, StorageConfig};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::queue::{
    DeadLetters, Document, HeldLock, Moved, QueueError, Raw, RawDeadLetter, Reason, ReplayLock,
    ReplayOutcome, ReplayStart, Server, StoredReason, error_pattern, storage_of_queue,
    storage_queue,
};
use crate::settings::Settings;
use crate::vcon::{self, Leaving, Vcon, VconId};
use crate::visible::{printable, visible_json};

/// Dead letters moved in one step.
const BATCH: u64 = 200;

/// Dead letters read at once, to find those of a group.
const GROUP_PAGE: u64 = 100;

/// Which dead letters to try again.
#[derive(Debug, Args)]
pub struct RetryArgs {
    /// The dead letters of this ingress list or storage (storage:NAME), or this one; without it, all
    /// there are
    #[arg(value_name = "LIST|storage:NAME|UUID")]
    what: Option<String>,

    /// Of the list or storage, only these
    #[arg(value_name = "UUID")]
    uuids: Vec<String>,

    /// All of the list or storage, as without any UUID
    #[arg(long, requires = "what", conflicts_with_all = ["uuids", "count"])]
    all: bool,

    /// Of the list or storage, only those that failed at this step, as `dlq ls` names it
    #[arg(long, value_name = "STAGE", requires = "what", conflicts_with_all = ["uuids", "all"])]
    stage: Option<String>,

    /// Of the list or storage, only those whose error has this text in it
    ///
    /// Either the error itself, or as `dlq ls` shows it for a group, with N for numbers.
    #[arg(long, value_name = "TEXT", requires = "what", conflicts_with_all = ["uuids", "all"])]
    error: Option<String>,

    /// At most this many, the oldest first
    #[arg(long, value_name = "N", conflicts_with = "uuids",
        value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Print the result as a JSON object
    #[arg(long)]
    json: bool,

    /// Act for the monitor, whose settings are in the environment
    #[arg(long, hide = true)]
    pub(super) for_monitor: bool,
}

/// The result of the command.
#[derive(Debug, Default, Serialize)]
struct RetryResult {
    retried: u64,
    lists: Vec<ListResult>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    storages: Vec<StorageResult>,
}

/// The result for the dead letters of one list.
#[derive(Debug, Serialize)]
struct ListResult {
    list: String,
    retried: u64,
    /// Whether a chain in service takes from the list; unknown without a configuration.
    served: Option<bool>,
    /// Why not all were moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What the arguments name.
enum RetryTarget {
    /// Queues with their lengths.
    Queues(Vec<(Raw, u64)>),
    /// Entries of queues.
    Entries(Vec<(Raw, Vec<Raw>)>),
}

/// One run of the command.
struct RetryRun<'a> {
    args: &'a RetryArgs,
    settings: &'a Settings,
    plan: Option<Plan>,
    /// The full configuration, loaded when the first storage is needed.
    config: Option<Config>,
    letters: DeadLetters,
    /// Set by a signal, from the first storage on.
    interrupted: Option<Arc<AtomicBool>>,
    done: RetryResult,
}

impl RetryArgs {
    pub(super) fn run(&self, settings: &Settings) -> Result<Exit, DlqError> {
        let mut run = RetryRun {
            args: self,
            settings,
            plan: load_plan(settings),
            config: None,
            letters: connect(settings)?,
            interrupted: None,
            done: RetryResult::default(),
        };
        let target = run.target()?;
        let result = match target {
            RetryTarget::Queues(queues) => run.queues(queues),
            RetryTarget::Entries(entries) => run.entries(&entries),
        };
        let mut done = run.done;
        done.retried = done.lists.iter().map(|list| list.retried).sum();
        self.report(&done)?;
        result?;
        Ok(done.exit())
    }

    /// Whether only some of a queue are meant, by their reasons.
    fn is_group(&self) -> bool {
        self.stage.is_some() || self.error.is_some()
    }

    /// Whether a dead letter with this reason is meant.
    fn means(&self, reason: Option<&StoredReason>) -> bool {
        let (stage, error) = match reason {
            None => return false,
            Some(StoredReason::Known { stage, error, .. }) => (Some(stage), error),
            Some(StoredReason::Other(text)) => (None, text),
        };
        let is_stage = |meant: &String| {
            stage.is_some_and(|stage| stage == meant || printable(stage) == meant.as_str())
        };
        let is_error = |meant: &String| {
            let pattern = error_pattern(error);
            error.contains(meant) || printable(&pattern).contains(meant)
        };
        self.stage.as_ref().is_none_or(is_stage) && self.error.as_ref().is_none_or(is_error)
    }

    fn report(&self, done: &RetryResult) -> io::Result<()> {
        for list in &done.lists {
            if let Some(error) = &list.error {
                eprint_line(format_args!("list {}: {error}", list.list));
            }
            if list.served == Some(false) && list.retried > 0 {
                let list = &list.list;
                eprint_line(format_args!(
                    "warning: no enabled chain takes from list {list}: they wait there"
                ));
            }
        }
        for storage in &done.storages {
            if let Some(error) = &storage.error {
                let name = &storage.storage;
                eprint_line(format_args!("storage {name}: stopped: {error}"));
            }
        }
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", visible_json(&serde_json::to_string(done)?))?;
        } else {
            for list in done.lists.iter().filter(|list| list.retried > 0) {
                writeln!(out, "Put {} back on list {}", list.retried, list.list)?;
            }
            for StorageResult {
                storage,
                saved,
                refused,
                ..
            } in &done.storages
            {
                let storage = printable(storage);
                let stay = match refused {
                    0 => String::new(),
                    refused => format!("; {refused} stay (conserver dlq ls storage:{storage})"),
                };
                writeln!(out, "Saved {saved} to storage {storage}{stay}")?;
            }
            if done.retried == 0 && done.storages.is_empty() {
                writeln!(out, "Nothing was put back")?;
            }
        }
        out.flush()
    }
}

impl RetryRun<'_> {
    fn target(&mut self) -> Result<RetryTarget, DlqError> {
        let known = known_lists(&mut self.letters, self.plan.as_ref())?;
        let lists: Vec<Raw> = match &self.args.what {
            None => {
                let all = all_lists(&mut self.letters, self.plan.as_ref())?;
                all.into_iter().collect()
            }
            Some(text) if !self.args.uuids.is_empty() => {
                let queue =
                    std::iter::once(queue_named(&mut self.letters, text, &known)?).collect();
                let mut entries = Vec::new();
                for uuid in &self.args.uuids {
                    let found = find_entry(&mut self.letters, &queue, uuid)?;
                    entries.push(found.ok_or_else(|| no_such_entry(uuid))?);
                }
                return Ok(RetryTarget::Entries(entries));
            }
            Some(text) => match queue_if_named(&mut self.letters, text, &known)? {
                Some(list) if self.args.is_group() => {
                    return Ok(RetryTarget::Entries(self.group(&list)?));
                }
                Some(list) => vec![list],
                None if self.args.is_group() => {
                    queue_named(&mut self.letters, text, &known)?;
                    Vec::new()
                }
                None => {
                    return match find_entry_anywhere(&mut self.letters, &known, text)? {
                        Some(found) => Ok(RetryTarget::Entries(vec![found])),
                        None if text.parse::<VconId>().is_ok() => Err(no_such_entry(text)),
                        None => queue_named(&mut self.letters, text, &known)
                            .map(|list| RetryTarget::Queues(vec![(list, 0)])),
                    };
                }
            },
        };
        let mut counted = Vec::new();
        for list in lists {
            match self.letters.length(&list)? {
                Some(0) => {}
                // A key that is not a list is reported when the move fails.
                length => counted.push((list, length.unwrap_or(1))),
            }
        }
        Ok(RetryTarget::Queues(counted))
    }

    /// The entries of the queue that `--stage` and `--error` name, the oldest first. Those that fail again meanwhile
    /// are behind the last that is looked at.
    fn group(&mut self, list: &Raw) -> Result<Vec<(Raw, Vec<Raw>)>, DlqError> {
        let length = self.letters.length(list)?.unwrap_or(0);
        let most = self.args.count.unwrap_or(u64::MAX);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let mut found = IndexSet::new();
        for start in (0..length).step_by(GROUP_PAGE as usize) {
            let page = GROUP_PAGE.min(length - start);
            let page = self.letters.page(list, start, page)?.into_iter();
            let meant = page.filter(|letter| self.args.means(letter.reason.as_ref()));
            found.extend(meant.map(|letter| letter.entry));
            if found.len() >= most {
                break;
            }
        }
        let entries = found.into_iter().take(most);
        Ok(entries.map(|entry| (entry, vec![list.clone()])).collect())
    }

    /// Moves those of lists first, then saves those of storages.
    fn queues(&mut self, queues: Vec<(Raw, u64)>) -> Result<(), DlqError> {
        let mut left = self.args.count.unwrap_or(u64::MAX);
        let of_storage = |(list, _): &(Raw, u64)| storage_of_queue(list, self.plan.as_ref());
        let (storages, lists): (Vec<_>, Vec<_>) = queues
            .into_iter()
            .partition(|queue| of_storage(queue).is_some());
        self.lists(lists, &mut left)?;
        for (list, _) in storages {
            if let Some(storage) = storage_of_queue(&list, self.plan.as_ref())
                && left > 0
            {
                let done = self.storage(&storage, &ReplayScope::Oldest(left))?;
                left = left.saturating_sub(done);
            }
        }
        Ok(())
    }

    fn lists(&mut self, lists: Vec<(Raw, u64)>, left: &mut u64) -> Result<(), QueueError> {
        let all = lists
            .iter()
            .fold(0u64, |all, (_, n)| all.saturating_add(*n));
        let bar = progress_bar(usize::try_from(all.min(*left)).unwrap_or(usize::MAX));
        for (list, length) in lists {
            let entry = self.done.begin(&list, self.plan.as_ref());
            // Those that fail again are appended behind these.
            let mut of_list = length.min(*left);
            while of_list > 0 {
                let moved = self.letters.retry_oldest(&list, of_list.min(BATCH));
                let moved = moved.inspect_err(|_| bar.finish_and_clear())?;
                entry.add(&moved);
                let count = count(&moved);
                if count == 0 {
                    break;
                }
                bar.inc(count);
                of_list = of_list.saturating_sub(count);
                *left = left.saturating_sub(count);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn entries(&mut self, entries: &[(Raw, Vec<Raw>)]) -> Result<(), DlqError> {
        // All of one storage are saved under one lock.
        let mut of_storages: Vec<(String, Vec<Raw>)> = Vec::new();
        for (entry, lists) in entries {
            for list in lists {
                let Some(storage) = storage_of_queue(list, self.plan.as_ref()) else {
                    let moved = self.letters.retry_one(list, entry)?;
                    self.done.begin(list, self.plan.as_ref()).add(&moved);
                    continue;
                };
                let mut known = of_storages.iter_mut();
                match known.find(|(name, _)| *name == storage) {
                    Some((_, entries)) => entries.push(entry.clone()),
                    None => of_storages.push((storage, vec![entry.clone()])),
                }
            }
        }
        for (storage, entries) in of_storages {
            self.storage(&storage, &ReplayScope::These(&entries))?;
        }
        Ok(())
    }

    /// Saves dead letters to a storage; returns how many were processed.
    fn storage(&mut self, name: &str, which: &ReplayScope<'_>) -> Result<u64, DlqError> {
        let config = match &mut self.config {
            Some(config) => config,
            empty => empty.insert(Config::load(&self.settings.config_file)?),
        };
        let interrupted = match &mut self.interrupted {
            Some(interrupted) => interrupted,
            empty => empty.insert(interruption()?),
        };
        let done = match config.storages.get(name) {
            Some(storage) => replay(
                &mut self.letters,
                self.settings,
                storage,
                which,
                interrupted,
            )?,
            None => StorageResult {
                storage: name.to_owned(),
                error: Some("the configuration has no storage of this name".to_owned()),
                is_unknown: true,
                ..StorageResult::default()
            },
        };
        let processed = done.saved + done.refused;
        self.done.storages.push(done);
        Ok(processed)
    }
}

impl RetryResult {
    fn begin(&mut self, list: &Raw, plan: Option<&Plan>) -> &mut ListResult {
        let is_served = |plan: &Plan| {
            let lists = plan.ingress_lists();
            lists
                .iter()
                .any(|served| served.as_str().as_bytes() == list.as_bytes())
        };
        // Single entries of one list are reported together.
        let name = list.to_string();
        let index = self.lists.iter().position(|known| known.list == name);
        let index = index.unwrap_or_else(|| {
            self.lists.push(ListResult {
                list: name,
                retried: 0,
                served: plan.map(is_served),
                error: None,
            });
            self.lists.len() - 1
        });
        &mut self.lists[index]
    }

    fn exit(&self) -> Exit {
        let stopped = |storage: &StorageResult| storage.error.is_some() && !storage.is_unknown;
        if self.storages.iter().any(stopped) {
            return Exit::Unavailable;
        }
        let is_left = |storage: &StorageResult| storage.refused > 0 || storage.is_unknown;
        if self.lists.iter().any(|list| list.error.is_some()) || self.storages.iter().any(is_left) {
            return Exit::Data;
        }
        Exit::Ok
    }
}

impl ListResult {
    fn add(&mut self, moved: &Moved) {
        match moved {
            Moved::Some(count) => self.retried += count,
            Moved::Refused(why) => self.error = Some(why.clone()),
        }
    }
}

fn count(moved: &Moved) -> u64 {
    match moved {
        Moved::Some(count) => *count,
        Moved::Refused(_) => 0,
    }
}

/// Entries read at once.
const REPLAY_PAGE: u64 = 200;

/// A vCon that others keep changing while it is saved is saved again at most this often.
const MOST_CHANGES: usize = 10;

/// Without a terminal, a line of progress is printed this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The worker in the reason of an entry that stays.
const REASON_WORKER: &str = "conserver dlq retry";

/// The result for the dead letters of a storage.
#[derive(Debug, Default, Serialize)]
struct StorageResult {
    storage: String,
    saved: u64,
    /// Those that stay, with a new reason.
    refused: u64,
    /// Why it stopped before the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Whether the configuration has no such storage.
    #[serde(skip)]
    is_unknown: bool,
}

/// Which entries to save.
enum ReplayScope<'a> {
    /// The oldest, at most this many.
    Oldest(u64),
    /// These.
    These(&'a [Raw]),
}

/// The result for one entry.
enum EntryResult {
    /// It is saved, or no longer there.
    Removed,
    /// It stays.
    Stays,
    /// The replay cannot go on, for this reason.
    Stop(String),
}

/// One run over the dead letters of one storage.
struct StorageReplay<'a> {
    letters: &'a mut DeadLetters,
    settings: &'a Settings,
    interrupted: &'a AtomicBool,
    storage: StorageHandle,
    list: Raw,
    lock: ReplayLock,
    bar: ProgressBar,
    total: u64,
    reported_at: Instant,
    done: StorageResult,
}

/// Saves dead letters to their storage, under its lock.
fn replay(
    letters: &mut DeadLetters,
    settings: &Settings,
    config: &StorageConfig,
    scope: &ReplayScope<'_>,
    interrupted: &AtomicBool,
) -> Result<StorageResult, DlqError> {
    let name = &config.name;
    let stopped = |error: String| StorageResult {
        storage: name.clone(),
        error: Some(error),
        ..StorageResult::default()
    };
    let list = storage_queue(name);
    let length = letters.length(&list)?;
    let Some(length) = length else {
        let error = format!("DLQ:{list} is not a list: something else has the key");
        return Ok(stopped(error));
    };
    let server = Server::new(&settings.redis_url).map_err(QueueError::from)?;
    let lock = match ReplayLock::take(&server, name)? {
        ReplayStart::Ours(lock) => lock,
        ReplayStart::Held(held) => return Ok(stopped(held_lock_message(&held))),
    };
    let mut storage = StorageHandle::open(config);
    if let Err(failure) = storage.probe() {
        return Ok(stopped(format!("storage {name} is unavailable: {failure}")));
    }
    let total = match scope {
        ReplayScope::Oldest(count) => length.min(*count),
        ReplayScope::These(entries) => entries.len() as u64,
    };
    let mut replay = StorageReplay {
        letters,
        settings,
        interrupted,
        storage,
        list,
        lock,
        bar: progress_bar(usize::try_from(total).unwrap_or(usize::MAX)),
        total,
        reported_at: Instant::now(),
        done: StorageResult {
            storage: name.clone(),
            ..StorageResult::default()
        },
    };
    let ended = match scope {
        ReplayScope::Oldest(_) => replay.save_oldest(),
        ReplayScope::These(entries) => replay.save_these(entries),
    };
    replay.bar.finish_and_clear();
    let mut done = replay.done;
    match ended {
        Ok(stopped) => done.error = stopped,
        // The entries done before are reported as well.
        Err(error) => done.error = Some(error.to_string()),
    }
    Ok(done)
}

/// Names who has the lock, and what to do about it.
pub(super) fn held_lock_message(lock: &HeldLock) -> String {
    let key = &lock.key;
    let by = match &lock.by {
        Some(by) => format!(" (its value: {by})"),
        None => String::new(),
    };
    let end = if lock.expires {
        "it expires by itself if its holder has ended".to_owned()
    } else {
        format!("if nobody replays any more, remove it: redis-cli DEL '{key}'")
    };
    format!("the API server, or another conserver, replays it now: {key} is there{by}; {end}")
}

impl StorageReplay<'_> {
    /// Saves the oldest, passing over those that stay.
    fn save_oldest(&mut self) -> Result<Option<String>, DlqError> {
        let (mut left, mut stay) = (self.total, 0);
        while left > 0 {
            let entries = self
                .letters
                .entries(&self.list, stay, REPLAY_PAGE.min(left))?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                match self.save_next(&entry)? {
                    EntryResult::Removed => {}
                    EntryResult::Stays => stay += 1,
                    EntryResult::Stop(why) => return Ok(Some(why)),
                }
                left -= 1;
            }
        }
        Ok(None)
    }

    fn save_these(&mut self, entries: &[Raw]) -> Result<Option<String>, DlqError> {
        for entry in entries {
            let Some((index, _)) = self.letters.find(&self.list, entry)? else {
                continue;
            };
            // Read again, with its reason: somebody may just have removed it.
            let found = self.letters.entries(&self.list, index, 1)?.into_iter();
            for found in found.filter(|found| found.entry == *entry) {
                if let EntryResult::Stop(why) = self.save_next(&found)? {
                    return Ok(Some(why));
                }
            }
        }
        Ok(None)
    }

    /// Saves one entry, unless a signal came.
    fn save_next(&mut self, entry: &RawDeadLetter) -> Result<EntryResult, DlqError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Ok(EntryResult::Stop("interrupted".to_owned()));
        }
        let result = self.save_entry(entry)?;
        self.bar.inc(1);
        if self.bar.is_hidden() && self.reported_at.elapsed() >= REPORT_INTERVAL {
            self.reported_at = Instant::now();
            let StorageResult {
                storage,
                saved,
                refused,
                ..
            } = &self.done;
            let total = self.total;
            eprint_line(format_args!(
                "storage {storage}: {saved} of {total} saved, {refused} stay"
            ));
        }
        Ok(result)
    }

    fn save_entry(&mut self, entry: &RawDeadLetter) -> Result<EntryResult, DlqError> {
        let Some(id) = entry.entry.id() else {
            if entry.is_cut() {
                // No reason can be kept of what cannot be named.
                return Ok(self.stays(
                    entry,
                    "queue",
                    "the entry is not a UUID, and too long to be shown",
                ));
            }
            let shown = truncated(&entry.entry.to_string(), LONGEST_ENTRY);
            let error = format!("the entry \"{shown}\" is not a UUID");
            return self.keep_with_reason(entry, "queue", &error);
        };
        let mut document = self.letters.document(&id)?.document;
        for _ in 0..MOST_CHANGES {
            let vcon = match self.outgoing(&id, &document) {
                Ok(vcon) => vcon,
                Err((stage, error)) => return self.keep_with_reason(entry, stage, &error),
            };
            if let Err(failure) = self.save(&vcon) {
                let stage = format!("storage {}", self.done.storage);
                return if failure.is_transient() {
                    let why = format!("{stage} is unavailable, at vCon {id}: {failure}");
                    Ok(EntryResult::Stop(why))
                } else {
                    self.keep_with_reason(entry, &stage, &failure.message)
                };
            }
            // A worker may have saved a newer document in the meantime, which this save has replaced.
            let now = self.letters.document(&id)?.document;
            if now == document || now == Document::Missing {
                break;
            }
            document = now;
        }
        match self.letters.saved(&self.lock, &self.list, entry)? {
            ReplayOutcome::Lost => Ok(EntryResult::Stop(self.lock_lost())),
            ReplayOutcome::Done | ReplayOutcome::Gone => {
                self.done.saved += 1;
                Ok(EntryResult::Removed)
            }
        }
    }

    /// The document as workers save it.
    ///
    /// # Errors
    /// The stage that failed, and why.
    fn outgoing(
        &self,
        id: &VconId,
        document: &Document,
    ) -> Result<Leaving, (&'static str, String)> {
        let text = match document {
            Document::Found(_, text) => text.clone(),
            Document::Unusable(why) => return Err(("load", why.clone())),
            Document::Missing | Document::NotAnId => {
                return Err(("load", "document gone".to_owned()));
            }
        };
        let parsed = vcon::decode(text).and_then(|text| Vcon::parse(id.clone(), text));
        let parsed = parsed.map_err(|error| ("parse", format!("the document {error}")))?;
        let mut vcon = parsed.writing(self.settings.json_bodies);
        Ok(vcon.depart(self.settings.egress_version).0)
    }

    /// Saves the vCon, with as many attempts as a worker makes.
    fn save(&mut self, vcon: &Leaving) -> Result<(), Failure> {
        let mut backoff = Backoff::new(self.settings.retry_first, self.settings.retry_max);
        loop {
            match self.storage.save(vcon) {
                Err(failure)
                    if failure.is_transient()
                        && backoff.failures() + 1 < self.settings.retry_attempts
                        && !self.interrupted.load(Ordering::Relaxed) =>
                {
                    thread::sleep(backoff.next_wait());
                }
                result => return result,
            }
        }
    }

    /// Leaves the entry where it is, with this reason.
    fn keep_with_reason(
        &mut self,
        entry: &RawDeadLetter,
        stage: &str,
        error: &str,
    ) -> Result<EntryResult, DlqError> {
        let before = entry.reason.as_deref().map(StoredReason::read);
        let attempts = match before {
            Some(StoredReason::Known {
                stage: before,
                attempts,
                ..
            }) if before == stage => u32::try_from(attempts).unwrap_or(u32::MAX),
            _ => 0,
        };
        let reason = Reason {
            stage,
            error,
            attempts: attempts.saturating_add(1),
            worker: REASON_WORKER,
        };
        let kept = self
            .letters
            .refused(&self.lock, &self.list, &entry.entry, &reason)?;
        match kept {
            ReplayOutcome::Lost => Ok(EntryResult::Stop(self.lock_lost())),
            ReplayOutcome::Gone => Ok(EntryResult::Removed),
            ReplayOutcome::Done => Ok(self.stays(entry, stage, error)),
        }
    }

    fn stays(&mut self, entry: &RawDeadLetter, stage: &str, error: &str) -> EntryResult {
        self.done.refused += 1;
        let entry = truncated(&entry.entry.to_string(), LONGEST_ENTRY);
        let error = truncated(error, LONGEST_ERROR);
        self.bar
            .suspend(|| eprint_line(format_args!("{entry} stays, {stage}: {error}")));
        EntryResult::Stays
    }

    fn lock_lost(&self) -> String {
        let key = self.lock.key();
        format!("somebody has removed or taken the lock {key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_meant_by_its_stage_and_a_part_of_its_error() {
        let args = |stage: Option<&str>, error: Option<&str>| RetryArgs {
            what: Some("default".to_owned()),
            uuids: Vec::new(),
            all: false,
            stage: stage.map(str::to_owned),
            error: error.map(str::to_owned),
            count: None,
            json: false,
            for_monitor: false,
        };
        let known = StoredReason::Known {
            stage: "link x".to_owned(),
            error: "EOF at line 7\n".to_owned(),
            attempts: 1,
            worker: "Worker-1".to_owned(),
            at: 0.0,
        };
        for (stage, error, is_meant) in [
            (Some("link x"), None, true),
            (Some("link"), None, false),
            (None, Some("line 7"), true),
            (None, Some("EOF at line N"), true),
            (None, Some("line 8"), false),
            (Some("link y"), Some("EOF"), false),
            (Some("link x"), Some("EOF"), true),
        ] {
            let args = args(stage, error);
            assert_eq!(args.means(Some(&known)), is_meant, "{stage:?} {error:?}");
            assert!(!args.means(None));
        }
        let other = StoredReason::Other("because".to_owned());
        assert!(args(None, Some("because")).means(Some(&other)));
        assert!(!args(Some("because"), None).means(Some(&other)));
    }
}
