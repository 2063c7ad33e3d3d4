//! What a fuzzer runs: one function for each thing that strangers write and this program reads.
//!
//! Each takes any bytes and fails (by a panic) if a property does not hold, not only if the reader panics.
//! `tests/fuzz` runs them under libFuzzer, from the corpora in `tests/fuzz/corpus`; `cargo test fuzzing`
//! runs the same functions over the corpora and over changes of them.
//!
//! Compiled for tests and fuzzers only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;
use std::path::Path;

use serde_json::value::RawValue;

use crate::config::Config;
use crate::queue::Raw;
use crate::settings::RedisUrl;
use crate::vcon::{CreatedAt, Vcon, VconError, VconId, Version, decode, digest, merge};

pub use crate::link::fuzz::{jq_document, jq_filter};
pub use crate::monitor::fuzz::{follower, http_request};
pub use crate::settings::fuzz::content as env_file;
pub use crate::storage::fuzz::{elasticsearch, postgres, postgres_options, s3};
pub use crate::worker::fuzz::claim;

/// A function that a fuzzer runs.
pub type Target = fn(&[u8]);

/// All of them, by the names of their programs and corpora.
pub const TARGETS: [(&str, Target); 15] = [
    ("claim", claim),
    ("config", config),
    ("created_at", created_at),
    ("document", document),
    ("elasticsearch", elasticsearch),
    ("env_file", env_file),
    ("follower", follower),
    ("http_request", http_request),
    ("jq_document", jq_document),
    ("jq_filter", jq_filter),
    ("merge", merged),
    ("postgres", postgres),
    ("postgres_options", postgres_options),
    ("redis_url", redis_url),
    ("s3", s3),
];

/// What a message may quote of a stranger's text, with room for the words around it.
pub(crate) const LONGEST_MESSAGE: usize = 4096;

/// The id under which documents are read here.
pub(crate) fn id() -> VconId {
    "05cec3d4-0561-4010-9fb8-23cc7edef146".parse().unwrap()
}

/// A document: read, written, downgraded, tagged, replaced.
pub fn document(data: &[u8]) {
    let Ok(text) = decode(data.to_vec()) else {
        return;
    };
    let Ok(mut vcon) = Vcon::parse(id(), text.clone()) else {
        return;
    };
    // What is written is read as what it was, and does not grow: quotes and backslashes of a text in a text
    // are escaped once.
    let outgoing = vcon.outgoing(Version::Current);
    assert!(!vcon.is_changed());
    let most = 2 * text.len() + 1000;
    assert!(outgoing.json.len() <= most, "{} bytes", outgoing.json.len());
    let mut again = Vcon::read(id(), &outgoing.json).unwrap();
    assert_eq!(again.sealed(), vcon.sealed());
    assert_eq!(again.to_json(), *outgoing.json);
    let read = again.outgoing(Version::Current);
    assert_eq!(read.created_at, outgoing.created_at);
    assert_eq!(read.subject, outgoing.subject);

    let old = vcon.outgoing(Version::V0_0_1).json;
    assert!(old.len() <= most, "{} bytes", old.len());
    let older = Vcon::read(id(), &old).unwrap().outgoing(Version::V0_0_1);
    let oldest = Vcon::read(id(), &older.json).unwrap();
    assert_eq!(oldest.clone().outgoing(Version::V0_0_1).json, older.json);

    tagged(&vcon);
    if let Some(extensions) = vcon.unknown_extensions() {
        assert!(extensions.chars().count() <= 200);
    }
    let mut other = Vcon::read(id(), r#"{"uuid":"1","x":[1]}"#).unwrap();
    match other.replace(text) {
        Ok(()) => assert!(other.is_changed()),
        Err(error) => {
            assert!(!other.is_changed());
            assert!(error.to_string().len() <= LONGEST_MESSAGE);
        }
    }
}

fn names(vcon: &Vcon) -> Result<Vec<String>, VconError> {
    let tags = vcon.tags()?.into_iter();
    Ok(tags.map(|(name, _)| name).collect())
}

/// Tags are added once, and stay.
fn tagged(vcon: &Vcon) {
    let mut vcon = vcon.clone();
    let before = names(&vcon);
    let tags = ["fuzz-a:1".to_owned(), "fuzz-b:2".to_owned()];
    if vcon.add_tags(&tags).is_err() {
        return assert!(!vcon.is_changed());
    }
    let text = vcon.to_json();
    let mut again = Vcon::read(id(), &text).unwrap();
    let names = names(&again).unwrap();
    for name in ["fuzz-a", "fuzz-b"] {
        assert!(names.iter().any(|it| it == name), "{name} of {names:?}");
    }
    for name in before.unwrap() {
        // In a list of texts, a name ends before its first colon; nothing before it is no name.
        let is_it = |it: &String| *it == name || name.starts_with(&format!("{it}:"));
        assert!(
            name.starts_with(':') || names.iter().any(is_it),
            "{name} of {names:?}"
        );
    }
    again.add_tags(&tags).unwrap();
    assert!(!again.is_changed());
    assert_eq!(again.to_json(), text);
}

/// Three documents, with a zero byte between them: what was loaded, what the chain made of it, and what
/// stands in Redis now.
pub fn merged(data: &[u8]) {
    let mut texts = data.split(|byte| *byte == 0);
    let mut next = || std::str::from_utf8(texts.next()?).ok();
    let (Some(base), Some(ours), Some(theirs)) = (next(), next(), next()) else {
        return;
    };
    let read = |text: &str| Vcon::read(id(), text).ok();
    let all = (read(base), read(ours), read(theirs));
    let (Some(base_vcon), Some(ours_vcon), Some(theirs_vcon)) = all else {
        assert!(read(ours).is_none_or(|ours| merge(base, &ours, theirs.to_owned()).is_err()));
        return;
    };
    // If one side did nothing, the other side stands.
    let mut same = merge(base, &base_vcon, theirs.to_owned()).unwrap();
    assert!(same.conflicts.is_empty() && !same.vcon.is_changed());
    assert_eq!(value(&mut same.vcon), value(&mut theirs_vcon.clone()));
    let mut same = merge(base, &ours_vcon, base.to_owned()).unwrap();
    assert!(same.conflicts.is_empty());
    assert_eq!(elements(&mut same.vcon), elements(&mut ours_vcon.clone()));
    // If both did the same, that stands.
    let mut same = merge(base, &ours_vcon, ours.to_owned()).unwrap();
    assert!(same.conflicts.is_empty() && !same.vcon.is_changed());
    assert_eq!(value(&mut same.vcon), value(&mut ours_vcon.clone()));

    let Ok(mut merged) = merge(base, &ours_vcon, theirs.to_owned()) else {
        // Sealed, and changed by both.
        let all = [&base_vcon, &ours_vcon, &theirs_vcon];
        return assert!(all.iter().any(|vcon| vcon.sealed().is_some()));
    };
    let text = merged.vcon.to_json();
    // Nothing is there twice; what refers to a moved element may have a digit more.
    assert!(text.len() <= 2 * data.len() + 1000, "{} bytes", text.len());
    let settled = read(&text).unwrap();
    let mut again = merge(&text, &settled, text.clone()).unwrap();
    assert!(again.conflicts.is_empty() && !again.vcon.is_changed());
    assert_eq!(again.vcon.to_json(), text);
    nothing_is_missing(
        &base_vcon,
        &ours_vcon,
        &theirs_vcon,
        &text,
        &merged.conflicts,
    );
}

type Members = HashMap<String, Box<RawValue>>;

/// The value of a document.
fn value(vcon: &mut Vcon) -> String {
    digest(&vcon.with_values())
}

/// The values of its members but for lists without elements: `null` is one where another side has some.
fn elements(vcon: &mut Vcon) -> Vec<(String, String)> {
    // A key may be no text: half of a pair.
    let Ok(members) = serde_json::from_str::<Members>(&vcon.with_values()) else {
        return Vec::new();
    };
    let lists = ["parties", "dialog", "analysis", "attachments"];
    let is_empty = |name: &str, value: &RawValue| {
        lists.contains(&name) && matches!(value.get(), "null" | "[]")
    };
    let members = members.into_iter().filter(|it| !is_empty(&it.0, &it.1));
    let mut members: Vec<_> = members.map(|it| (it.0, digest(it.1.get()))).collect();
    members.sort();
    members
}

/// Each party that a side added is there: ours always, theirs unless a conflict is named.
fn nothing_is_missing(base: &Vcon, ours: &Vcon, theirs: &Vcon, merged: &str, conflicts: &[String]) {
    let count = |text: &str| -> Option<HashMap<String, usize>> {
        let members: Members = serde_json::from_str(text).ok()?;
        let mut counts = HashMap::new();
        if let Some(list) = members.get("parties") {
            let elements: Vec<Box<RawValue>> = serde_json::from_str(list.get()).ok()?;
            for element in elements {
                *counts.entry(digest(element.get())).or_insert(0) += 1;
            }
        }
        Some(counts)
    };
    let of = |vcon: &Vcon| count(&vcon.clone().with_values());
    let (Some(base), Some(ours), Some(theirs), Some(merged)) =
        (of(base), of(ours), of(theirs), count(merged))
    else {
        return;
    };
    let get = |counts: &HashMap<String, usize>, it: &String| counts.get(it).copied().unwrap_or(0);
    let missing = |side: &HashMap<String, usize>| -> usize {
        let added = side
            .keys()
            .map(|it| (it, get(side, it).saturating_sub(get(&base, it))));
        added
            .map(|(it, added)| added.saturating_sub(get(&merged, it)))
            .sum()
    };
    assert_eq!(missing(&ours), 0, "of ours");
    assert!(missing(&theirs) <= conflicts.len(), "of theirs");
    for (it, count) in &merged {
        assert!(*count <= get(&ours, it) + get(&theirs, it), "of nobody");
    }
}

/// A date, as text and as JSON.
pub fn created_at(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let json = serde_json::from_str::<&RawValue>(text).ok();
    let dates = [CreatedAt::parse(text), json.and_then(CreatedAt::from_json)];
    for date in dates.into_iter().flatten() {
        let day = date.day_path();
        let shape: String = day
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000/00/00", "{day}");
        let unix = date.local.and_utc().timestamp() - date.unix;
        assert!(unix.abs() <= 24 * 3600, "{unix} s east");
        let again = CreatedAt::parse(&date.local.format("%Y-%m-%dT%H:%M:%S%.f").to_string());
        assert_eq!(again.map(|again| again.local), Some(date.local));
    }
}

/// A URL of Redis, as it is and behind a login.
pub fn redis_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(url) = text.parse::<RedisUrl>() {
        assert!(url.server().is_ok() != url.master().is_some());
        let shown = url.to_string();
        // What is shown is a URL, too, and shows as itself.
        let again: Result<RedisUrl, _> = shown.parse();
        assert_eq!(again.map(|again| again.to_string()), Ok(shown));
    }
    const SECRET: &str = "Kj7-pQ2_wX";
    // A fuzzer finds the password in the program.
    if text.contains(SECRET) {
        return;
    }
    let (scheme, rest) = text.split_once("://").unwrap_or(("redis", text));
    let before_fragment = rest.split('#').next().unwrap_or_default();
    // A parameter behind no question mark.
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let has_query = before_fragment.contains('?');
    let mark = if has_query { '&' } else { '?' };
    for url in [
        format!("{scheme}://user:{SECRET}@{rest}"),
        format!("{scheme}://:{SECRET}@{rest}"),
        format!("{scheme}://{SECRET}@{rest}"),
        format!("{scheme}://{before_fragment}{mark}password={SECRET}"),
        format!("{scheme}://{host}&password={SECRET}"),
    ] {
        let told = match url.parse::<RedisUrl>() {
            Ok(url) => format!(
                "{url} {url:?} {} {:?}",
                url.login_advice(),
                url.parameters()
            ),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!told.contains(SECRET), "{told}");
    }
}

/// A `config.yml`.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let lines = text.matches(['\n', '\r']).count() + 2;
    match Config::parse(text, Path::new("config.yml")) {
        Ok(config) => {
            for chain in &config.chains {
                assert!(chain.links.iter().all(|it| config.links.contains_key(it)));
                assert!(
                    chain
                        .storages
                        .iter()
                        .all(|it| config.storages.contains_key(it))
                );
            }
            let lists = config.ingress_lists();
            for list in &lists {
                assert!(config.chain_for(list).is_some());
            }
        }
        Err(errors) => {
            assert!(!errors.faults().is_empty());
            for fault in errors.faults() {
                assert!(!fault.message.is_empty());
                assert!(fault.line.is_none_or(|line| (1..=lines).contains(&line)));
            }
        }
    }
}

/// What is shown of an entry is one line that can be typed to name it.
pub(crate) fn shown_and_typed(data: &[u8]) {
    let raw = Raw::new(data);
    let shown = raw.to_string();
    assert_eq!(crate::visible::printable(&shown), shown);
    assert_eq!(Raw::named(&shown)[0], raw);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// So many changes are made of each file of a corpus.
    const CHANGES: usize = 25;

    /// What means something to one reader or another.
    const WORDS: [&[u8]; 24] = [
        b"\"",
        b"\\",
        b"\\u",
        b"\\ud800",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"null",
        b"-",
        b"1e400",
        b"99999999999999999999",
        b"0",
        b"\0",
        b"\r\n",
        b"@",
        b"%00",
        b"%",
        b"<",
        b"&",
        "\u{202e}".as_bytes(),
        b"\xff",
    ];

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = format!("{}/tests/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| fs::read(file).unwrap()).collect()
    }

    fn change(input: &[u8], other: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..=bytes.len());
            let end = (at + random.usize(1..30)).min(bytes.len());
            match random.usize(..6) {
                0 => drop(bytes.drain(at..end)),
                1 => {
                    let part = bytes[at..end].to_vec();
                    let to = random.usize(..=bytes.len());
                    bytes.splice(to..to, part);
                }
                2 if at < bytes.len() => bytes[at] = random.u8(..),
                3 if at < bytes.len() => bytes[at] ^= 1 << random.u32(..8),
                4 if !other.is_empty() => {
                    let from = random.usize(..other.len());
                    let to = (from + random.usize(1..60)).min(other.len());
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
                _ => {
                    let word = WORDS[random.usize(..WORDS.len())];
                    bytes.splice(at..at, word.iter().copied());
                }
            }
        }
        bytes
    }

    fn run(name: &str, target: Target, input: &[u8]) {
        if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
            panic!("{name} fails with {}", input.escape_ascii());
        }
    }

    #[test]
    fn each_corpus_and_changes_of_it_go_through_its_target() {
        for (name, target) in TARGETS {
            let corpus = corpus(name);
            assert!(corpus.len() > 2, "{name}: {} files", corpus.len());
            let mut random = fastrand::Rng::with_seed(1);
            for input in &corpus {
                run(name, target, input);
                for _ in 0..CHANGES {
                    let other = &corpus[random.usize(..corpus.len())];
                    run(name, target, &change(input, other, &mut random));
                }
            }
        }
    }
}
