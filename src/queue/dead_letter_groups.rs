//! Dead letters in groups: those of one queue that failed at the same step with the same error, apart from what
//! differs from one vCon to the next (UUIDs, numbers, times, addresses).
//!
//! Reads the reasons that stand beside the queues, piece by piece, and only so many: there may be millions, each
//! may be long, and anybody may have written them.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use serde::Deserialize;
use uuid::Uuid;

use super::dead_letters::{cursor_and_items, letters_key, reasons_key};
use super::requests::{round_trip, search_scripts};
use super::{QueueError, Raw, RedisConnection, StoredReason, now};

/// How many reasons one step reads: few at first and after long ones, as the server copies all of them at once, each as
/// long as somebody has made it.
const STEP: usize = 100;
const STEP_OF_LONG: usize = 10;

/// How many bytes of an entry are read. No command is shown with a longer one.
const MOST_OF_ENTRY: usize = 1024;

/// How many bytes of the beginning of a reason are read: what is longer, a program or a server has said.
const BEGINNING: usize = 4096;

/// How many bytes of its end are read, where the time stands.
const ENDING: usize = 80;

/// How many dead letters a group has as examples.
const EXAMPLES: usize = 3;

/// The most groups that are kept. More of them say nothing to anybody.
const MOST_GROUPS: usize = 100;

/// How many of the newest entries are looked at for some without a reason.
const NEWEST: usize = 100;

/// A queue whose dead letters are grouped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupedQueue {
    /// Its list, or `storage:<name>`.
    pub list: Raw,
    /// How many entries it has.
    pub entries: u64,
    /// Whether entries without a reason are no dead letters but backlog.
    pub defers: bool,
}

/// How much is read at most.
#[derive(Debug, Clone, Copy)]
pub struct GroupLimits {
    /// Reasons.
    pub reasons: usize,
    /// Bytes of entries and reasons.
    pub bytes: usize,
    /// Time.
    pub time: Duration,
}

/// Dead letters that failed alike.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterGroup {
    /// The list whose dead letters they are, or `storage:<name>`.
    pub queue: Raw,
    /// The step that failed; `None` if the reason does not tell.
    pub stage: Option<String>,
    /// The error as [`error_pattern`] makes it; `None` if no reason was kept.
    pub error: Option<String>,
    /// How many they are.
    pub count: u64,
    /// Some of them, the newest first.
    pub examples: Vec<Raw>,
    /// When the first of them failed, in seconds since 1970, if known.
    pub oldest: Option<f64>,
    /// When the last of them failed.
    pub newest: Option<f64>,
}

/// The groups of some queues.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterGroups {
    /// The groups, the largest first.
    pub groups: Vec<DeadLetterGroup>,
    /// Whether they are all, and their counts are whole.
    pub is_complete: bool,
    /// The time by Redis' clock when they were read.
    pub now: f64,
}

/// A reason as far as it was read.
#[derive(Debug, PartialEq)]
struct ReasonPiece {
    stage: Option<String>,
    error: String,
    at: Option<f64>,
}

impl DeadLetterGroups {
    /// Groups the dead letters of these queues.
    pub(super) fn read(
        connection: &mut RedisConnection,
        queues: &[GroupedQueue],
        limits: &GroupLimits,
    ) -> Result<Self, QueueError> {
        let now = now(connection)?;
        let mut reader = GroupReader {
            connection,
            groups: IndexMap::new(),
            reasons: limits.reasons,
            bytes: limits.bytes,
            end: Instant::now() + limits.time,
            is_complete: true,
        };
        // A short queue does not wait behind a long one for what may be read.
        let mut queues: Vec<&GroupedQueue> = queues.iter().filter(|it| it.entries > 0).collect();
        queues.sort_by_key(|queue| queue.entries);
        for (number, queue) in queues.iter().enumerate() {
            reader.read_queue(queue, queues.len() - number)?;
        }
        let groups = reader.groups.into_iter();
        let mut groups: Vec<DeadLetterGroup> = groups.map(|(key, it)| it.of(key)).collect();
        groups.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.queue.cmp(&b.queue)));
        let is_complete = reader.is_complete && groups.len() <= MOST_GROUPS;
        groups.truncate(MOST_GROUPS);
        Ok(Self {
            groups,
            is_complete,
            now,
        })
    }
}

/// What makes a group: the queue, the stage, the error.
type GroupKey = (Raw, Option<String>, Option<String>);

/// A group that more may be added to.
#[derive(Default)]
struct OpenGroup {
    count: u64,
    oldest: Option<f64>,
    newest: Option<f64>,
    /// With their times, the newest first.
    examples: Vec<(Option<f64>, Raw)>,
}

struct GroupReader<'a> {
    connection: &'a mut RedisConnection,
    groups: IndexMap<GroupKey, OpenGroup>,
    /// What may still be read.
    reasons: usize,
    bytes: usize,
    end: Instant,
    is_complete: bool,
}

impl GroupReader<'_> {
    /// Reads one of so many queues that are left, with its share of what may be read.
    fn read_queue(&mut self, queue: &GroupedQueue, left: usize) -> Result<(), QueueError> {
        let reasons_key = reasons_key(&queue.list);
        let mut share = self.reasons / left;
        let least_bytes = self.bytes - self.bytes / left;
        // A step may return a field again while the hash grows.
        let (mut seen, mut cursor, mut step) = (HashSet::new(), 0, STEP_OF_LONG);
        loop {
            if share == 0 || self.bytes <= least_bytes || Instant::now() >= self.end {
                self.is_complete = false;
                break;
            }
            let mut call = search_scripts().read_some_reasons.key(&reasons_key);
            call.arg(cursor).arg(step).arg(MOST_OF_ENTRY + 1);
            call.arg(BEGINNING).arg(ENDING);
            let reply = call.invoke(&mut **self.connection)?;
            let (next, items) = cursor_and_items(reply)?;
            step = STEP;
            for item in items.chunks_exact(3) {
                let [entry, beginning, ending] = item else {
                    continue;
                };
                // It is longer than its beginning.
                if !ending.is_empty() {
                    step = STEP_OF_LONG;
                }
                let size = entry.len() + beginning.len() + ending.len();
                self.bytes = self.bytes.saturating_sub(size);
                self.reasons = self.reasons.saturating_sub(1);
                share = share.saturating_sub(1);
                if seen.insert(digest(entry)) {
                    self.add(queue, entry, ReasonPiece::read(beginning, ending));
                }
            }
            if next == 0 {
                break;
            }
            cursor = next;
        }
        self.add_without_reason(queue, &reasons_key)
    }

    fn add(&mut self, queue: &GroupedQueue, entry: &[u8], reason: ReasonPiece) {
        let ReasonPiece { stage, error, at } = reason;
        let key = (queue.list.clone(), stage, Some(error_pattern(&error)));
        self.groups.entry(key).or_default().add(entry, at);
    }

    /// Counts those that nobody has kept a reason of.
    fn add_without_reason(&mut self, queue: &GroupedQueue, key: &[u8]) -> Result<(), QueueError> {
        if queue.defers {
            return Ok(());
        }
        let mut ask = redis::pipe();
        ask.cmd("HLEN").arg(key);
        let replies = round_trip(self.connection, &ask)?.into_iter();
        // A key of another type holds no reasons.
        let reasoned = replies.filter_map(|reply| redis::from_redis_value::<u64>(reply).ok());
        let count = queue.entries.saturating_sub(reasoned.sum());
        if count == 0 {
            return Ok(());
        }
        let mut newest = search_scripts().read_list.key(letters_key(&queue.list));
        newest.arg(-(NEWEST as i64)).arg(-1).arg(MOST_OF_ENTRY + 1);
        let entries: Vec<Vec<u8>> = newest.invoke(&mut **self.connection)?;
        let known: Vec<Option<Vec<u8>>> = match entries.is_empty() {
            true => Vec::new(),
            false => {
                let mut reasons = search_scripts().read_reasons.key(key);
                reasons.arg(1).arg(&entries);
                reasons.invoke(&mut **self.connection)?
            }
        };
        let known = known.into_iter().chain(std::iter::repeat(None));
        let without = entries
            .into_iter()
            .zip(known)
            .filter(|(_, it)| it.is_none());
        let mut examples: Vec<Raw> = without
            .filter(|(entry, _)| entry.len() <= MOST_OF_ENTRY)
            .map(|(entry, _)| Raw::new(entry))
            .collect();
        examples.reverse();
        examples.dedup();
        examples.truncate(EXAMPLES);
        let group = OpenGroup {
            count,
            examples: examples.into_iter().map(|entry| (None, entry)).collect(),
            ..OpenGroup::default()
        };
        self.groups.insert((queue.list.clone(), None, None), group);
        Ok(())
    }
}

impl OpenGroup {
    fn add(&mut self, entry: &[u8], at: Option<f64>) {
        self.count += 1;
        self.newest = if at >= self.newest { at } else { self.newest };
        self.oldest = match (self.oldest, at) {
            (Some(oldest), Some(at)) => Some(oldest.min(at)),
            (oldest, at) => oldest.or(at),
        };
        if entry.len() <= MOST_OF_ENTRY {
            let place = self.examples.partition_point(|(time, _)| *time >= at);
            self.examples.insert(place, (at, Raw::new(entry)));
            self.examples.truncate(EXAMPLES);
        }
    }

    fn of(self, (queue, stage, error): GroupKey) -> DeadLetterGroup {
        DeadLetterGroup {
            queue,
            stage,
            error,
            count: self.count,
            examples: self.examples.into_iter().map(|(_, entry)| entry).collect(),
            oldest: self.oldest,
            newest: self.newest,
        }
    }
}

fn digest(entry: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    entry.hash(&mut hasher);
    hasher.finish()
}

impl ReasonPiece {
    /// Reads a reason; if it is longer than its beginning, `ending` is its end.
    fn read(beginning: &[u8], ending: &[u8]) -> Self {
        if ending.is_empty() {
            return match StoredReason::read(beginning) {
                StoredReason::Known {
                    stage, error, at, ..
                } => Self {
                    stage: Some(stage),
                    error,
                    at: Some(at).filter(|at| at.is_finite()),
                },
                StoredReason::Other(error) => Self {
                    stage: None,
                    error,
                    at: None,
                },
            };
        }
        let text = String::from_utf8_lossy(beginning);
        match completed(&text) {
            Some((stage, error)) => Self {
                stage: Some(stage),
                error,
                at: time_at_end(ending),
            },
            None => Self {
                stage: None,
                error: text.into_owned(),
                at: None,
            },
        }
    }
}

/// The stage and the beginning of the error of a reason in the form of daemons that was cut in its error.
fn completed(beginning: &str) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Beginning {
        stage: String,
        error: String,
    }
    // It may have been cut in an escape, of which the longest are pairs like \ud83d\ude00.
    let cut = beginning.trim_end_matches('\u{fffd}');
    (0..=12).find_map(|less| {
        let text = cut.get(..cut.len().checked_sub(less)?)?;
        let read: Beginning = serde_json::from_str(&format!("{text}\"}}")).ok()?;
        Some((read.stage, read.error))
    })
}

/// The time at the end of a reason in the form of daemons.
fn time_at_end(ending: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(ending);
    let (_, time) = text.strip_suffix('}')?.rsplit_once("\"at\":")?;
    time.parse().ok().filter(|at: &f64| at.is_finite())
}

/// How many bytes of an error are looked at.
const MOST_OF_ERROR: usize = 2000;

/// The most characters of a pattern.
const LONGEST_PATTERN: usize = 300;

/// A quoted text of more characters is content, not a name.
const LONGEST_QUOTED: usize = 40;

/// Numbers behind these words tell errors apart.
const TELLING: [&str; 9] = [
    "answered", "code", "errno", "exit", "http", "sqlstate", "signal", "status", "error",
];

/// The error without what differs from one vCon to the next, on one line: `UUID`, `TIME`, `ADDRESS` and `ID` stand
/// for these, `N` for a number. Numbers that say what went wrong stay: statuses of HTTP, exit codes, SQLSTATEs.
///
/// `EOF at line 1 column 17` and `EOF at line 3 column 5` are both `EOF at line N column N`.
pub fn error_pattern(error: &str) -> String {
    let error = &error[..error.floor_char_boundary(MOST_OF_ERROR)];
    let (mut pattern, mut rest) = (String::new(), error.trim());
    let mut word_before = "";
    while let Some(c) = rest.chars().next() {
        let (shown, length) = if c.is_whitespace() {
            let end = rest.find(|c: char| !c.is_whitespace());
            (" ", end.unwrap_or(rest.len()))
        } else if c == '"' {
            match long_quoted(rest) {
                Some(length) => ("\"…\"", length),
                None => ("\"", 1),
            }
        } else if !pattern.ends_with(is_of_word)
            && let Some(found) = variable(rest)
        {
            found
        } else if is_of_word(c) {
            let end = rest.find(|c: char| !is_of_word(c)).unwrap_or(rest.len());
            let word = &rest[..end];
            let (shown, length) = shown_word(word, word_before, &rest[end..]);
            word_before = word;
            pattern.push_str(shown);
            // The unit of a number.
            if shown == "N" && length < end {
                pattern.push_str(&word[length..]);
            }
            rest = &rest[length.max(end)..];
            continue;
        } else {
            (&rest[..c.len_utf8()], c.len_utf8())
        };
        pattern.push_str(shown);
        rest = &rest[length..];
    }
    if pattern.chars().nth(LONGEST_PATTERN).is_some() {
        pattern = pattern.chars().take(LONGEST_PATTERN - 1).collect();
        pattern.push('…');
    }
    pattern
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What is shown for a word, and how many bytes that stands for: more than the word if a number goes on behind it,
/// fewer if it has a unit.
fn shown_word<'a>(word: &'a str, before: &str, behind: &str) -> (&'a str, usize) {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    let is_number = word.starts_with(|c: char| c.is_ascii_digit());
    if digits == 0 {
        return (word, word.len());
    }
    let is_telling = TELLING.iter().any(|it| it.eq_ignore_ascii_case(before));
    if is_number && is_telling && word.len() <= 5 {
        return (word, word.len());
    }
    let is_hex = word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_id = digits < word.len()
        && (is_hex && word.len() >= 8 || digits >= 4 && word.len() >= 16)
        || word.starts_with("0x");
    if is_id {
        return ("ID", word.len());
    }
    if !is_number {
        return (word, word.len());
    }
    let whole = word.find(|c: char| !c.is_ascii_digit());
    if let Some(unit) = whole {
        return ("N", unit);
    }
    // 1.5, 10,000
    let mut length = word.len();
    let mut behind = behind;
    while let Some(more) = behind.strip_prefix(['.', ',']) {
        let count = more.bytes().take_while(u8::is_ascii_digit).count();
        if count == 0 {
            break;
        }
        length += 1 + count;
        behind = &more[count..];
    }
    ("N", length)
}

/// What stands at the beginning of the text and differs from vCon to vCon, if it does, and its length.
fn variable(text: &str) -> Option<(&'static str, usize)> {
    let ends = |length: usize| !text[length..].starts_with(is_of_word);
    if let Some(id) = text.get(..36)
        && id.as_bytes()[8] == b'-'
        && Uuid::try_parse(id).is_ok()
        && ends(36)
    {
        return Some(("UUID", 36));
    }
    if let Some(length) = time(text)
        && ends(length)
    {
        return Some(("TIME", length));
    }
    let length = address(text)?;
    let port = text[length..].strip_prefix(':').unwrap_or_default();
    let digits = port.bytes().take_while(u8::is_ascii_digit).count();
    let port = if digits > 0 { 1 + digits } else { 0 };
    Some(("ADDRESS", length + port))
}

/// The length of a date, a time of day, or both.
fn time(text: &str) -> Option<usize> {
    let date = shaped(text, "0000-00-00");
    let clock_at = match date {
        Some(length) if text[length..].starts_with(['T', ' ']) => length + 1,
        Some(length) => length,
        None => 0,
    };
    let clock = &text[clock_at..];
    let Some(mut length) = shaped(clock, "00:00:00").or_else(|| {
        let minutes = shaped(clock, "00:00");
        minutes.filter(|_| date.is_some())
    }) else {
        return date;
    };
    if let Some(fraction) = clock[length..].strip_prefix(['.', ',']) {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        length += if digits > 0 { 1 + digits } else { 0 };
    }
    let zone = &clock[length..];
    length += if zone.starts_with('Z') {
        1
    } else if let Some(offset) = zone.strip_prefix(['+', '-']) {
        let known = shaped(offset, "00:00").or_else(|| shaped(offset, "0000"));
        known
            .or_else(|| shaped(offset, "00"))
            .map_or(0, |it| 1 + it)
    } else {
        0
    };
    Some(clock_at + length)
}

/// The length of the shape if the text begins with it; `0` stands for any digit.
fn shaped(text: &str, shape: &str) -> Option<usize> {
    let text = text.as_bytes().get(..shape.len())?;
    let fits = |(byte, form): (&u8, u8)| match form {
        b'0' => byte.is_ascii_digit(),
        form => *byte == form,
    };
    let fit = text.iter().zip(shape.bytes()).all(fits);
    fit.then_some(shape.len())
}

/// The length of an IP address, in brackets or without.
fn address(text: &str) -> Option<usize> {
    if let Some(inner) = text.strip_prefix('[') {
        let end = inner.find(']').filter(|end| *end <= 45)?;
        return inner[..end].parse::<Ipv6Addr>().ok().map(|_| end + 2);
    }
    let run = |is_part: fn(u8) -> bool| {
        let length = text.bytes().take_while(|byte| is_part(*byte)).count();
        let part = text[..length].trim_end_matches(['.', ':']);
        let is_whole = !text[part.len()..].starts_with(is_of_word);
        is_whole.then_some(part)
    };
    let four = run(|byte| byte.is_ascii_digit() || byte == b'.');
    if let Some(part) = four.filter(|part| part.parse::<Ipv4Addr>().is_ok()) {
        return Some(part.len());
    }
    let six = run(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))?;
    // `::` alone stands in names of code.
    let is_six = six.len() > 2 && six.contains(':') && six.parse::<Ipv6Addr>().is_ok();
    is_six.then_some(six.len())
}

/// The length of a quoted text that is too long for a name.
fn long_quoted(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('"')?;
    let end = inner.find('"')?;
    let is_long = inner[..end].chars().nth(LONGEST_QUOTED).is_some();
    is_long.then_some(end + 2)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_differs_from_vcon_to_vcon_does_not_make_a_group_of_its_own() {
        for (error, pattern) in [
            (
                "the document is not JSON: EOF while parsing a value at line 1 column 10",
                "the document is not JSON: EOF while parsing a value at line N column N",
            ),
            (
                "has the uuid 05cec3d4-0561-4010-9fb8-23cc7edef146, which is another vCon's",
                "has the uuid UUID, which is another vCon's",
            ),
            (
                "could not POST to http://localhost:40081/calls: it answered 503 Service Unavailable",
                "could not POST to http://localhost:N/calls: it answered 503 Service Unavailable",
            ),
            (
                "could not connect to 127.0.0.1:40081: Connection refused (os error 111)",
                "could not connect to ADDRESS: Connection refused (os error 111)",
            ),
            (
                "[::1]:80 and fe80::1 and 10.0.0.7.",
                "ADDRESS and ADDRESS and ADDRESS.",
            ),
            (
                "created_at 2024-03-16T16:09:20.25+01:00, seen 2024-03-16 at 16:09:20",
                "created_at TIME, seen TIME at TIME",
            ),
            ("2024-03-16 16:09 Z", "TIME Z"),
            (
                "request 7f3a90bc12de of 17,5 MB in 1.5 s, 300ms",
                "request ID of N MB in N s, Nms",
            ),
            (
                "ended with exit code 3, killed by signal 9",
                "ended with exit code 3, killed by signal 9",
            ),
            (
                "duplicate key (SQLSTATE 23505)",
                "duplicate key (SQLSTATE 23505)",
            ),
            ("HTTP 404 and HTTP/1.1", "HTTP 404 and HTTP/1.N"),
            (
                "s3 has sha256 in utf8 of Worker-2",
                "s3 has sha256 in utf8 of Worker-N",
            ),
            ("two\n\tlines  \n", "two lines"),
            ("std::io::Error at 0xdeadbeef", "std::io::Error at ID"),
            (
                "column \"subject\" of \"a text that somebody has written into a vCon of theirs\"",
                "column \"subject\" of \"…\"",
            ),
            ("", ""),
        ] {
            assert_eq!(error_pattern(error), pattern);
        }
        let long = error_pattern(&"word ".repeat(1000));
        assert_eq!(long.chars().count(), LONGEST_PATTERN);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn a_group_knows_its_newest_and_its_ages() {
        let mut group = OpenGroup::default();
        for (entry, at) in [
            ("c", Some(3.0)),
            ("none", None),
            ("e", Some(5.0)),
            ("a", Some(1.0)),
            ("d", Some(4.0)),
        ] {
            group.add(entry.as_bytes(), at);
        }
        group.add(&[b'x'; MOST_OF_ENTRY + 1], Some(9.0));
        let group = group.of((Raw::new("default"), None, None));
        assert_eq!(group.examples, ["e", "d", "c"].map(Raw::new));
        assert_eq!(
            (group.count, group.oldest, group.newest),
            (6, Some(1.0), Some(9.0))
        );
    }

    #[test]
    fn a_reason_that_was_cut_still_tells_its_stage_error_and_time() {
        let piece = |stage: Option<&str>, error: &str, at| ReasonPiece {
            stage: stage.map(str::to_owned),
            error: error.to_owned(),
            at,
        };
        let whole = br#"{"stage":"load","error":"e","attempts":1,"worker":"W","at":1.5}"#;
        assert_eq!(
            ReasonPiece::read(whole, b""),
            piece(Some("load"), "e", Some(1.5))
        );
        let ending = br#"nd","attempts":1,"worker":"W","again":2,"at":1710605360.25}"#;
        for (cut, error) in [
            ("abc", "abc"),
            ("abc\\", "abc"),
            ("abc\\n", "abc\n"),
            ("abc\\u00", "abc"),
            ("abc\\ud83d\\ude0", "abc"),
            ("abc\\\\", "abc\\"),
        ] {
            let beginning = format!("{{\"stage\":\"link x\",\"error\":\"{cut}");
            let read = ReasonPiece::read(beginning.as_bytes(), ending);
            assert_eq!(read, piece(Some("link x"), error, Some(1_710_605_360.25)));
        }
        // In the middle of a character, of another form, without a time.
        let cut = ReasonPiece::read(b"{\"stage\":\"a\",\"error\":\"\xc3", b"\"at\":x}");
        assert_eq!(cut, piece(Some("a"), "", None));
        let other = ReasonPiece::read(b"because", b"it is so");
        assert_eq!(other, piece(None, "because", None));
    }

    proptest! {
        #[test]
        fn any_error_has_a_pattern(error in "([a-f0-9:.\\-T \"\\[\\]\u{e9}\n]|.){0,80}") {
            let pattern = error_pattern(&error);
            prop_assert!(!pattern.contains('\n'));
            prop_assert!(pattern.chars().count() <= LONGEST_PATTERN);
        }

        #[test]
        fn any_reason_is_read(
            beginning in prop::collection::vec(any::<u8>(), 0..60),
            ending in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            ReasonPiece::read(&beginning, &ending);
        }
    }
}
