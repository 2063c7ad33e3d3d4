//! `conserver dlq show`: one dead letter with its document, or one queue.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::list::DeadLetterView;
use super::retry::held_lock_message;
use super::{
    DlqError, connect, find_entry, find_entry_anywhere, known_lists, load_plan, no_such_entry,
    queue_named,
};
use crate::cli::output::{JsonLayout, byte_size, format_json, remaining_ttl, time_and_age};
use crate::config::Plan;
use crate::exit::Exit;
use crate::queue::{
    DeadLetters, Document, DocumentFormat, HeldLock, Raw, StoredDocument, may_hold_backlog,
    storage_of_queue,
};
use crate::settings::Settings;
use crate::view::StorageQueue;
use crate::visible::{printable, printable_lines, visible_json};

/// Which dead letter to show, and how.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The vCon's UUID; or a queue, to show how much is in it, and the oldest
    ///
    /// A queue is named by its ingress list, or as storage:NAME. An entry that is no UUID is named as
    /// `dlq ls` prints it.
    #[arg(value_name = "UUID|QUEUE")]
    what: String,

    /// The UUID, where a queue is named before it: shows it in that queue only
    uuid: Option<String>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Everything known of a dead letter.
#[derive(Serialize)]
struct EntryDetails {
    uuid: String,
    letters: Vec<QueuePosition>,
    /// `json`, `text`, `missing`, `not-an-id` or `unusable`.
    kind: &'static str,
    /// Why there is no JSON document.
    fault: Option<String>,
    bytes: Option<usize>,
    ttl_seconds: Option<u64>,
    document: Option<Box<RawValue>>,
    /// The document if it is not JSON.
    text: Option<String>,
}

/// A queue that holds the entry, and the position in it.
#[derive(Serialize)]
struct QueuePosition {
    #[serde(flatten)]
    letter: DeadLetterView,
    /// From 1 for the oldest.
    number: u64,
    of: u64,
}

impl ShowArgs {
    pub(super) fn run(&self, settings: &Settings) -> Result<Exit, DlqError> {
        let plan = load_plan(settings);
        let plan = plan.as_ref();
        let mut letters = connect(settings)?;
        let now = letters.now()?;
        let (json, text) = match self.target(&mut letters, plan)? {
            ShowTarget::Entry(entry, lists) => {
                let details = entry_details(&mut letters, plan, &entry, lists)?;
                (serde_json::to_string(&details), entry_text(&details, now))
            }
            ShowTarget::Queue(list) => {
                let details = queue_details(&mut letters, plan, &list)?;
                (serde_json::to_string(&details), queue_text(&details, now))
            }
        };
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", visible_json(&json.map_err(io::Error::from)?))?;
        } else {
            write!(out, "{text}")?;
        }
        out.flush()?;
        Ok(Exit::Ok)
    }

    fn target(
        &self,
        letters: &mut DeadLetters,
        plan: Option<&Plan>,
    ) -> Result<ShowTarget, DlqError> {
        if let Some(uuid) = &self.uuid {
            let known = known_lists(letters, plan)?;
            let queue = std::iter::once(queue_named(letters, &self.what, &known)?).collect();
            let found = find_entry(letters, &queue, uuid)?;
            let (entry, lists) = found.ok_or_else(|| no_such_entry(uuid))?;
            return Ok(ShowTarget::Entry(entry, lists));
        }
        let known = known_lists(letters, plan)?;
        if let Some((entry, lists)) = find_entry_anywhere(letters, &known, &self.what)? {
            return Ok(ShowTarget::Entry(entry, lists));
        }
        let queue = queue_named(letters, &self.what, &known);
        queue
            .map(ShowTarget::Queue)
            .map_err(|_| no_such_entry(&self.what))
    }
}

/// What the arguments name: an entry with the queues that hold it, or a queue.
enum ShowTarget {
    Entry(Raw, Vec<Raw>),
    Queue(Raw),
}

/// Everything known of a queue.
#[derive(Serialize)]
struct QueueDetails {
    list: String,
    #[serde(flatten)]
    counts: StorageQueue,
    /// The replay that holds its lock.
    replay: Option<HeldReplay>,
    oldest: Option<DeadLetterView>,
}

#[derive(Serialize)]
struct HeldReplay {
    key: String,
    by: Option<String>,
    #[serde(skip)]
    message: String,
}

impl HeldReplay {
    fn of(lock: &HeldLock) -> Self {
        Self {
            key: lock.key.clone(),
            by: lock.by.as_ref().map(Raw::to_string),
            message: held_lock_message(lock),
        }
    }
}

fn queue_details(
    letters: &mut DeadLetters,
    plan: Option<&Plan>,
    list: &Raw,
) -> Result<QueueDetails, DlqError> {
    let Some(entries) = letters.length(list)? else {
        let why = format!("DLQ:{list} is not a list: something else has the key");
        return Err(DlqError::NotThere(why));
    };
    let defers = may_hold_backlog(list, plan);
    let replay = match storage_of_queue(list, plan) {
        Some(storage) => letters.replay_lock(&storage)?,
        None => None,
    };
    let oldest = letters.page(list, 0, 1)?.into_iter().next();
    Ok(QueueDetails {
        list: list.to_string(),
        counts: StorageQueue::of(entries, letters.reasoned(list)?, defers),
        replay: replay.as_ref().map(HeldReplay::of),
        oldest: oldest.map(|letter| DeadLetterView::new(letter, defers)),
    })
}

fn queue_text(queue: &QueueDetails, now: f64) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<9} {value}\n"));
    line("Queue", &format!("DLQ:{}", queue.list));
    line("Dead", &queue.counts.dead_letters.to_string());
    if queue.counts.backlog > 0 {
        line("Backlog", &queue.counts.backlog.to_string());
    }
    if let Some(replay) = &queue.replay {
        line("Replay", &replay.message);
    }
    if let Some(oldest) = &queue.oldest {
        let when = oldest
            .reason
            .at
            .map(|at| format!(", {}", time_and_age(at, now)));
        let when = when.unwrap_or_default();
        line("Oldest", &format!("{}{when}", oldest.uuid));
        line("Error", &printable(oldest.error()));
    }
    text
}

fn entry_details(
    letters: &mut DeadLetters,
    plan: Option<&Plan>,
    entry: &Raw,
    lists: Vec<Raw>,
) -> Result<EntryDetails, DlqError> {
    let mut positions = Vec::new();
    for list in lists {
        // It may just have been moved.
        if let Some((index, letter)) = letters.find(&list, entry)? {
            positions.push(QueuePosition {
                letter: DeadLetterView::new(letter, may_hold_backlog(&list, plan)),
                number: index + 1,
                of: letters.length(&list)?.unwrap_or(0),
            });
        }
    }
    let kept = match entry.id() {
        Some(id) => letters.document(&id)?,
        None => StoredDocument {
            document: Document::NotAnId,
            ttl: None,
        },
    };
    Ok(details(entry.to_string(), positions, kept))
}

fn details(uuid: String, letters: Vec<QueuePosition>, kept: StoredDocument) -> EntryDetails {
    let mut details = EntryDetails {
        uuid,
        letters,
        kind: "missing",
        fault: None,
        bytes: None,
        ttl_seconds: kept.ttl,
        document: None,
        text: None,
    };
    match kept.document {
        Document::Found(kind, bytes) => {
            details.kind = match kind {
                DocumentFormat::Json => "json",
                DocumentFormat::Text => "text",
            };
            details.bytes = Some(bytes.len());
            match read_json(&bytes) {
                Ok(document) => details.document = Some(document),
                Err(why) => {
                    details.fault = Some(format!("it is not JSON: {why}"));
                    details.text = Some(String::from_utf8_lossy(&bytes).into_owned());
                }
            }
        }
        Document::Missing => {
            details.fault =
                Some("it is no longer in Redis; a storage may still have it".to_owned());
        }
        Document::NotAnId => {
            details.kind = "not-an-id";
            details.fault = Some("there is none: the entry is not a UUID".to_owned());
        }
        Document::Unusable(why) => {
            details.kind = "unusable";
            details.fault = Some(why);
        }
    }
    details
}

/// The document on one line.
fn read_json(bytes: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::from_slice::<IgnoredAny>(bytes)?;
    let line = format_json(&String::from_utf8_lossy(bytes), JsonLayout::Compact);
    RawValue::from_string(line)
}

fn entry_text(details: &EntryDetails, now: f64) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let value = value.replace('\n', "\n          ");
        text.push_str(&format!("{name:<9} {value}\n"));
    };
    line("vCon", &details.uuid);
    for position in &details.letters {
        let letter = &position.letter;
        let (number, of) = (position.number, position.of);
        let list = &letter.list;
        line(
            "Queue",
            &format!("DLQ:{list}, number {number} of {of}, the oldest first"),
        );
        if let Some(stage) = &letter.reason.stage {
            line("Stage", &printable(stage));
        }
        line("Error", &printable_lines(letter.error()));
        if let Some(attempts) = letter.reason.attempts {
            line("Attempts", &attempts.to_string());
        }
        if let Some(worker) = &letter.reason.worker {
            line("Worker", &printable(worker));
        }
        if let Some(at) = letter.reason.at {
            line("When", &time_and_age(at, now));
        }
    }
    let expires = details.ttl_seconds.is_some();
    let verb = if expires { "expires in" } else { "lives" };
    let mut description = match details.bytes {
        Some(bytes) => format!(
            "{}, {verb} {}",
            byte_size(bytes),
            remaining_ttl(details.ttl_seconds)
        ),
        None => String::new(),
    };
    if let Some(fault) = &details.fault {
        if !description.is_empty() {
            description.push_str("; ");
        }
        description.push_str(&printable(fault));
    }
    line("Document", &description);
    if let Some(document) = &details.document {
        text.push_str(&visible_json(&format_json(
            document.get(),
            JsonLayout::Indented,
        )));
        text.push('\n');
    } else if let Some(document) = &details.text {
        text.push_str(&printable_lines(document));
        text.push('\n');
    }
    text
}
