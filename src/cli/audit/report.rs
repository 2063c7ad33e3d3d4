//! What an audit prints.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::cli::shown::{life, shortened, size};
use crate::exit::Exit;
use crate::queue::{Document, StoredDocument};
use crate::vcon::VconId;
use crate::visible::{printable, visible_json};

/// So many characters of a date are shown: it may be any text.
const LONGEST_DATE: usize = 80;

/// A vCon that is nowhere.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    uuid: String,
    /// As its document has it; nothing where it has none, or cannot be read.
    created_at: Option<String>,
    /// Seconds until its document expires; nothing where it does not.
    ttl_seconds: Option<u64>,
    bytes: Option<usize>,
    requeued: bool,
}

impl Found {
    pub fn new(id: &VconId, kept: &StoredDocument, requeued: bool) -> Self {
        let text = match &kept.document {
            Document::Found(_, text) => Some(text),
            Document::Missing | Document::NotAnId | Document::Unusable(_) => None,
        };
        Self {
            uuid: id.to_string(),
            created_at: text.and_then(|text| created_at(text)),
            ttl_seconds: kept.ttl,
            bytes: text.map(Vec::len),
            requeued,
        }
    }

    fn line(&self) -> String {
        let created = self.created_at.as_deref().unwrap_or("unknown");
        let created = shortened(&printable(created), 32);
        let bytes = self.bytes.map_or("no document".to_owned(), size);
        let requeued = if self.requeued { "  put back" } else { "" };
        let life = life(self.ttl_seconds);
        format!(
            "{}  {created:<32}  {life:<14}  {bytes:>12}{requeued}",
            self.uuid
        )
    }
}

/// A document's date as it is written there.
fn created_at(text: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Dated<'a> {
        #[serde(borrow)]
        created_at: Option<&'a RawValue>,
    }
    let raw = serde_json::from_slice::<Dated<'_>>(text).ok()?.created_at?;
    let text = serde_json::from_str::<String>(raw.get());
    let text = text.as_deref().unwrap_or(raw.get());
    Some(shortened(text, LONGEST_DATE))
}

/// What has been found so far.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    #[serde(skip)]
    json: bool,
    /// Documents in Redis that were looked at.
    pub documents: u64,
    /// Those that are nowhere.
    pub found: u64,
    /// Those of them that were put back.
    requeued: u64,
    /// How many were found in each storage.
    #[serde(serialize_with = "as_object")]
    pub shelves: Vec<(String, u64)>,
    /// What of the configuration lets a vCon be nowhere without having been lost.
    pub unknown: Vec<String>,
}

fn as_object<S: serde::Serializer>(
    counts: &[(String, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|(name, count)| (name, count)))
}

impl Report {
    pub fn new(json: bool) -> Self {
        Self {
            json,
            ..Self::default()
        }
    }

    /// Prints a vCon.
    pub fn add(&mut self, found: &Found) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", visible_json(&serde_json::to_string(found)?))?;
        } else {
            if self.found == 0 {
                let (uuid, created, life, size) = ("UUID", "Created", "Lives", "Size");
                writeln!(out, "{uuid:<36}  {created:<32}  {life:<14}  {size:>12}")?;
            }
            writeln!(out, "{}", found.line())?;
        }
        self.found += 1;
        self.requeued += u64::from(found.requeued);
        out.flush()
    }

    /// Prints what was found in all.
    pub fn summary(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            #[derive(Serialize)]
            struct Last<'a> {
                summary: &'a Report,
            }
            let json = serde_json::to_string(&Last { summary: self })?;
            writeln!(out, "{}", visible_json(&json))?;
            return out.flush();
        }
        writeln!(
            out,
            "Looked for {} vCons; in no list, with no worker and in no storage: {}",
            self.documents, self.found
        )?;
        if self.requeued > 0 {
            writeln!(out, "Put {} back", self.requeued)?;
        }
        for (name, count) in &self.shelves {
            writeln!(out, "Storage {} has {count} of the others", printable(name))?;
        }
        for sentence in &self.unknown {
            writeln!(out, "Note: {}", printable(sentence))?;
        }
        out.flush()
    }

    /// What the exit code says: whether any are left.
    pub fn exit(&self) -> Exit {
        if self.requeued < self.found {
            Exit::Data
        } else {
            Exit::Ok
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Kind;

    fn found(document: Document) -> Found {
        let kept = StoredDocument {
            document,
            ttl: None,
        };
        Found::new(&VconId::random(), &kept, false)
    }

    #[test]
    fn a_date_is_shown_as_it_is_written() {
        for (text, date) in [
            (
                r#"{"created_at": "2024-03-16T16:09:20Z"}"#,
                Some("2024-03-16T16:09:20Z"),
            ),
            (r#"{"created_at": 1710605360}"#, Some("1710605360")),
            (r#"{"created_at": null}"#, None),
            (r#"{"parties": []}"#, None),
            ("[", None),
        ] {
            let found = found(Document::Found(Kind::Text, text.into()));
            assert_eq!(found.created_at.as_deref(), date, "{text}");
            assert_eq!(found.bytes, Some(text.len()));
        }
    }

    #[test]
    fn no_document_steers_the_terminal() {
        let text = r#"{"created_at": "\u001b[2J\n"}"#;
        let line = found(Document::Found(Kind::Json, text.into())).line();
        assert!(line.chars().all(|c| !c.is_control()), "{line}");
        let line = found(Document::Unusable("a hash".to_owned())).line();
        assert!(
            line.contains("unknown") && line.contains("no document"),
            "{line}"
        );
    }

    #[test]
    fn the_exit_code_says_whether_any_are_left() {
        for (found, requeued, exit) in [(0, 0, Exit::Ok), (3, 0, Exit::Data), (3, 3, Exit::Ok)] {
            let report = Report {
                found,
                requeued,
                ..Report::default()
            };
            assert_eq!(report.exit(), exit);
        }
    }
}
