//! `conserver dlq show`

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::replay::said_of_lock;
use super::view::View;
use super::{
    Fault, configuration, defers, find, find_anywhere, known_lists, not_found, open, queue_named,
    storage_of,
};
use crate::cli::shown::{Layout, laid_out, life, moment, size};
use crate::config::Plan;
use crate::exit::Exit;
use crate::queue::{DeadLetters, Document, HeldLock, Kind, Raw, StoredDocument};
use crate::settings::Settings;
use crate::view::StorageQueue;
use crate::visible::{printable, printable_lines, visible_json};

/// Which dead letter to show, and how.
#[derive(Debug, Args)]
pub struct Show {
    /// The vCon's UUID; or a queue, to show how much is in it, and the oldest
    ///
    /// A queue is named by its ingress list, or as storage:NAME. What is no UUID is named as `dlq ls`
    /// prints it.
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
struct Whole {
    uuid: String,
    letters: Vec<Place>,
    /// `json`, `text`, `missing`, `not-an-id` or `unusable`.
    kind: &'static str,
    /// Why there is no document.
    fault: Option<String>,
    bytes: Option<usize>,
    ttl_seconds: Option<u64>,
    document: Option<Box<RawValue>>,
    /// The document where it is not JSON.
    text: Option<String>,
}

/// One place where it is.
#[derive(Serialize)]
struct Place {
    #[serde(flatten)]
    letter: View,
    /// From 1, the oldest.
    number: u64,
    of: u64,
}

impl Show {
    pub(super) fn run(&self, settings: &Settings) -> Result<Exit, Fault> {
        let config = configuration(settings);
        let config = config.as_ref();
        let mut letters = open(settings)?;
        let now = letters.now()?;
        let (json, text) = match self.meant(&mut letters, config)? {
            Meant::Entry(entry, lists) => {
                let whole = gather(&mut letters, config, &entry, lists)?;
                (serde_json::to_string(&whole), text(&whole, now))
            }
            Meant::Queue(list) => {
                let whole = look_at_queue(&mut letters, config, &list)?;
                (serde_json::to_string(&whole), text_of_queue(&whole, now))
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

    fn meant(&self, letters: &mut DeadLetters, config: Option<&Plan>) -> Result<Meant, Fault> {
        if let Some(uuid) = &self.uuid {
            let known = known_lists(letters, config)?;
            let queue = std::iter::once(queue_named(letters, &self.what, &known)?).collect();
            let found = find(letters, &queue, uuid)?;
            let (entry, lists) = found.ok_or_else(|| not_found(uuid))?;
            return Ok(Meant::Entry(entry, lists));
        }
        let known = known_lists(letters, config)?;
        if let Some((entry, lists)) = find_anywhere(letters, &known, &self.what)? {
            return Ok(Meant::Entry(entry, lists));
        }
        let queue = queue_named(letters, &self.what, &known);
        queue.map(Meant::Queue).map_err(|_| not_found(&self.what))
    }
}

/// What the arguments name.
enum Meant {
    Entry(Raw, Vec<Raw>),
    Queue(Raw),
}

/// Everything known of a queue.
#[derive(Serialize)]
struct Queue {
    list: String,
    #[serde(flatten)]
    counts: StorageQueue,
    /// Who saves them at present.
    replay: Option<Replay>,
    oldest: Option<View>,
}

#[derive(Serialize)]
struct Replay {
    key: String,
    by: Option<String>,
    #[serde(skip)]
    said: String,
}

impl Replay {
    fn of(lock: &HeldLock) -> Self {
        Self {
            key: lock.key.clone(),
            by: lock.by.as_ref().map(Raw::to_string),
            said: said_of_lock(lock),
        }
    }
}

fn look_at_queue(
    letters: &mut DeadLetters,
    config: Option<&Plan>,
    list: &Raw,
) -> Result<Queue, Fault> {
    let Some(entries) = letters.length(list)? else {
        let why = format!("DLQ:{list} is not a list: something else has the key");
        return Err(Fault::NotThere(why));
    };
    let defers = defers(list, config);
    let replay = match storage_of(list, config) {
        Some(storage) => letters.replay_lock(&storage)?,
        None => None,
    };
    let oldest = letters.page(list, 0, 1)?.into_iter().next();
    Ok(Queue {
        list: list.to_string(),
        counts: StorageQueue::of(entries, letters.reasoned(list)?, defers),
        replay: replay.as_ref().map(Replay::of),
        oldest: oldest.map(|letter| View::new(letter, defers)),
    })
}

fn text_of_queue(queue: &Queue, now: f64) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<9} {value}\n"));
    line("Queue", &format!("DLQ:{}", queue.list));
    line("Dead", &queue.counts.dead_letters.to_string());
    if queue.counts.backlog > 0 {
        line("Backlog", &queue.counts.backlog.to_string());
    }
    if let Some(replay) = &queue.replay {
        line("Replay", &replay.said);
    }
    if let Some(oldest) = &queue.oldest {
        let when = oldest.at.map(|at| format!(", {}", moment(at, now)));
        let when = when.unwrap_or_default();
        line("Oldest", &format!("{}{when}", oldest.uuid));
        line("Error", &printable(oldest.error()));
    }
    text
}

fn gather(
    letters: &mut DeadLetters,
    config: Option<&Plan>,
    entry: &Raw,
    lists: Vec<Raw>,
) -> Result<Whole, Fault> {
    let mut places = Vec::new();
    for list in lists {
        // It may have been moved just now.
        if let Some((place, letter)) = letters.find(&list, entry)? {
            places.push(Place {
                letter: View::new(letter, defers(&list, config)),
                number: place + 1,
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
    Ok(whole(entry.to_string(), places, kept))
}

fn whole(uuid: String, letters: Vec<Place>, kept: StoredDocument) -> Whole {
    let mut whole = Whole {
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
            whole.kind = match kind {
                Kind::Json => "json",
                Kind::Text => "text",
            };
            whole.bytes = Some(bytes.len());
            match read(&bytes) {
                Ok(document) => whole.document = Some(document),
                Err(why) => {
                    whole.fault = Some(format!("it is not JSON: {why}"));
                    whole.text = Some(String::from_utf8_lossy(&bytes).into_owned());
                }
            }
        }
        Document::Missing => {
            whole.fault = Some("it has gone from Redis; a storage may still have it".to_owned());
        }
        Document::NotAnId => {
            whole.kind = "not-an-id";
            whole.fault = Some("there is none: the entry is not a UUID".to_owned());
        }
        Document::Unusable(why) => {
            whole.kind = "unusable";
            whole.fault = Some(why);
        }
    }
    whole
}

/// The document on one line.
fn read(bytes: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::from_slice::<IgnoredAny>(bytes)?;
    let line = laid_out(&String::from_utf8_lossy(bytes), Layout::Line);
    RawValue::from_string(line)
}

fn text(whole: &Whole, now: f64) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let value = value.replace('\n', "\n          ");
        text.push_str(&format!("{name:<9} {value}\n"));
    };
    line("vCon", &whole.uuid);
    for place in &whole.letters {
        let letter = &place.letter;
        let (number, of) = (place.number, place.of);
        let list = &letter.list;
        line(
            "Queue",
            &format!("DLQ:{list}, number {number} of {of}, the oldest first"),
        );
        if let Some(stage) = &letter.stage {
            line("Stage", &printable(stage));
        }
        line("Error", &printable_lines(letter.error()));
        if let Some(attempts) = letter.attempts {
            line("Attempts", &attempts.to_string());
        }
        if let Some(worker) = &letter.worker {
            line("Worker", &printable(worker));
        }
        if let Some(at) = letter.at {
            line("When", &moment(at, now));
        }
    }
    let expires = whole.ttl_seconds.is_some();
    let still = if expires { "still lives" } else { "lives" };
    let mut said = match whole.bytes {
        Some(bytes) => format!("{}, {still} {}", size(bytes), life(whole.ttl_seconds)),
        None => String::new(),
    };
    if let Some(fault) = &whole.fault {
        if !said.is_empty() {
            said.push_str("; ");
        }
        said.push_str(&printable(fault));
    }
    line("Document", &said);
    if let Some(document) = &whole.document {
        text.push_str(&visible_json(&laid_out(document.get(), Layout::Lines)));
        text.push('\n');
    } else if let Some(document) = &whole.text {
        text.push_str(&printable_lines(document));
        text.push('\n');
    }
    text
}
