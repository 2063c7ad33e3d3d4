//! The part of `conserver dlq retry` that is about storages: their dead letters are saved.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use super::view::{LONGEST_ENTRY, LONGEST_ERROR};
use super::{Fault, queue_of};
use crate::backoff::Backoff;
use crate::cli::shelf::Shelf;
use crate::cli::shown::{complain, shortened};
use crate::cli::submit::progress;
use crate::config::StorageConfig;
use crate::failure::Failure;
use crate::queue::{
    DeadLetters, Document, HeldLock, Raw, RawDeadLetter, Reason, ReplayLock, ReplayOutcome,
    ReplayStart, Server, StoredReason,
};
use crate::settings::Settings;
use crate::vcon::{self, Leaving, Vcon, VconId};

/// Entries read at once.
const PAGE: u64 = 200;

/// A vCon that others keep changing while it is saved is saved again at most this often.
const CHANGES: usize = 10;

/// Without a terminal, a line on the progress is printed this often.
const REPORT: Duration = Duration::from_secs(10);

/// Who gives the reason of an entry that stays.
const WORKER: &str = "conserver dlq retry";

/// What was done with the dead letters of a storage.
#[derive(Debug, Default, Serialize)]
pub(super) struct Replayed {
    pub storage: String,
    pub saved: u64,
    /// Those that stay, with a new reason.
    pub refused: u64,
    /// Why it stopped before the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether the configuration has no such storage.
    #[serde(skip)]
    pub is_unknown: bool,
}

/// Which entries to save.
pub(super) enum Which<'a> {
    /// The oldest, at most so many.
    Oldest(u64),
    /// These.
    These(&'a [Raw]),
}

/// What became of one entry.
enum Step {
    /// It is saved, or has gone.
    Left,
    /// It stays.
    Stays,
    /// Nothing more can be done, for this reason.
    Stop(String),
}

/// One run over the dead letters of one storage.
pub(super) struct Replay<'a> {
    letters: &'a mut DeadLetters,
    settings: &'a Settings,
    interrupted: &'a AtomicBool,
    storage: Shelf,
    list: Raw,
    lock: ReplayLock,
    bar: ProgressBar,
    total: u64,
    reported: Instant,
    done: Replayed,
}

/// Saves dead letters to their storage, under its lock.
pub(super) fn replay(
    letters: &mut DeadLetters,
    settings: &Settings,
    config: &StorageConfig,
    which: &Which<'_>,
    interrupted: &AtomicBool,
) -> Result<Replayed, Fault> {
    let name = &config.name;
    let stopped = |error: String| Replayed {
        storage: name.clone(),
        error: Some(error),
        ..Replayed::default()
    };
    let list = queue_of(name);
    let length = letters.length(&list)?;
    let Some(length) = length else {
        let error = format!("DLQ:{list} is not a list: something else has the key");
        return Ok(stopped(error));
    };
    let server = Server::new(&settings.redis_url).map_err(crate::queue::QueueError::from)?;
    let lock = match ReplayLock::take(&server, name)? {
        ReplayStart::Ours(lock) => lock,
        ReplayStart::Held(held) => return Ok(stopped(said_of_lock(&held))),
    };
    let mut storage = Shelf::open(config);
    if let Err(failure) = storage.probe() {
        return Ok(stopped(format!("storage {name} is unavailable: {failure}")));
    }
    let total = match which {
        Which::Oldest(count) => length.min(*count),
        Which::These(entries) => entries.len() as u64,
    };
    let mut replay = Replay {
        letters,
        settings,
        interrupted,
        storage,
        list,
        lock,
        bar: progress(usize::try_from(total).unwrap_or(usize::MAX)),
        total,
        reported: Instant::now(),
        done: Replayed {
            storage: name.clone(),
            ..Replayed::default()
        },
    };
    let ended = match which {
        Which::Oldest(_) => replay.oldest(),
        Which::These(entries) => replay.these(entries),
    };
    replay.bar.finish_and_clear();
    let mut done = replay.done;
    match ended {
        Ok(stopped) => done.error = stopped,
        // What was done before is reported all the same.
        Err(fault) => done.error = Some(fault.to_string()),
    }
    Ok(done)
}

/// Who has the lock, and what to do about it.
pub(super) fn said_of_lock(lock: &HeldLock) -> String {
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

impl Replay<'_> {
    /// Saves the oldest; those that stay are passed over.
    fn oldest(&mut self) -> Result<Option<String>, Fault> {
        let (mut left, mut stay) = (self.total, 0);
        while left > 0 {
            let entries = self.letters.entries(&self.list, stay, PAGE.min(left))?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                match self.next(&entry)? {
                    Step::Left => {}
                    Step::Stays => stay += 1,
                    Step::Stop(why) => return Ok(Some(why)),
                }
                left -= 1;
            }
        }
        Ok(None)
    }

    fn these(&mut self, entries: &[Raw]) -> Result<Option<String>, Fault> {
        for entry in entries {
            let Some((place, _)) = self.letters.find(&self.list, entry)? else {
                continue;
            };
            // Its reason as it is kept; somebody may have taken it out just now.
            let found = self.letters.entries(&self.list, place, 1)?.into_iter();
            for found in found.filter(|found| found.entry == *entry) {
                if let Step::Stop(why) = self.next(&found)? {
                    return Ok(Some(why));
                }
            }
        }
        Ok(None)
    }

    /// One entry, unless a signal came.
    fn next(&mut self, entry: &RawDeadLetter) -> Result<Step, Fault> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Ok(Step::Stop("interrupted".to_owned()));
        }
        let result = self.one(entry)?;
        self.bar.inc(1);
        if self.bar.is_hidden() && self.reported.elapsed() >= REPORT {
            self.reported = Instant::now();
            let Replayed {
                storage,
                saved,
                refused,
                ..
            } = &self.done;
            let total = self.total;
            complain(format_args!(
                "storage {storage}: {saved} of {total} saved, {refused} stay"
            ));
        }
        Ok(result)
    }

    fn one(&mut self, entry: &RawDeadLetter) -> Result<Step, Fault> {
        let Some(id) = entry.entry.id() else {
            if entry.is_cut() {
                // Without the whole entry, no reason can be recorded for it.
                return Ok(self.stays(
                    entry,
                    "queue",
                    "the entry is not a UUID, and too long to be shown",
                ));
            }
            let shown = shortened(&entry.entry.to_string(), LONGEST_ENTRY);
            let error = format!("the entry \"{shown}\" is not a UUID");
            return self.keep(entry, "queue", &error);
        };
        let mut document = self.letters.document(&id)?.document;
        for _ in 0..CHANGES {
            let vcon = match self.outgoing(&id, &document) {
                Ok(vcon) => vcon,
                Err((stage, error)) => return self.keep(entry, stage, &error),
            };
            if let Err(failure) = self.save(&vcon) {
                let stage = format!("storage {}", self.done.storage);
                return if failure.is_transient() {
                    let why = format!("{stage} is unavailable, at vCon {id}: {failure}");
                    Ok(Step::Stop(why))
                } else {
                    self.keep(entry, &stage, &failure.message)
                };
            }
            // A worker may have saved a newer one in the meantime, which ours would have replaced.
            let now = self.letters.document(&id)?.document;
            if now == document || now == Document::Missing {
                break;
            }
            document = now;
        }
        match self.letters.saved(&self.lock, &self.list, entry)? {
            ReplayOutcome::Lost => Ok(Step::Stop(self.lost())),
            ReplayOutcome::Done | ReplayOutcome::Gone => {
                self.done.saved += 1;
                Ok(Step::Left)
            }
        }
    }

    /// The document as a worker gives it to storages; else the stage that failed, and why.
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

    /// Tries as often as a worker does.
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
    fn keep(&mut self, entry: &RawDeadLetter, stage: &str, error: &str) -> Result<Step, Fault> {
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
            worker: WORKER,
        };
        let kept = self
            .letters
            .refused(&self.lock, &self.list, &entry.entry, &reason)?;
        match kept {
            ReplayOutcome::Lost => Ok(Step::Stop(self.lost())),
            ReplayOutcome::Gone => Ok(Step::Left),
            ReplayOutcome::Done => Ok(self.stays(entry, stage, error)),
        }
    }

    fn stays(&mut self, entry: &RawDeadLetter, stage: &str, error: &str) -> Step {
        self.done.refused += 1;
        let entry = shortened(&entry.entry.to_string(), LONGEST_ENTRY);
        let error = shortened(error, LONGEST_ERROR);
        self.bar
            .suspend(|| complain(format_args!("{entry} stays, {stage}: {error}")));
        Step::Stays
    }

    fn lost(&self) -> String {
        let key = self.lock.key();
        format!("somebody has removed or taken the lock {key}")
    }
}
