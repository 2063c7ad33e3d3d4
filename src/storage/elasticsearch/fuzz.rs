//! What a fuzzer runs on answers of Elasticsearch, and on the documents that it is sent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::bulk::{self, Bulk};
use super::documents::{self, Document};
use super::fault::{self, Reason};
use super::former::{Found, Window, found, indices};
use super::section::Section;
use super::trial::Trial;
use crate::fuzzing::{LONGEST_MESSAGE, id};
use crate::vcon::{Vcon, Version};

/// An answer to each of its requests; and as a document, which is sent.
pub fn answer(data: &[u8]) {
    let reason = Reason::of_answer(data);
    assert!(reason.is_as(&reason));
    let told = fault::described(400, &reason);
    assert!(
        told.len() <= LONGEST_MESSAGE && !told.chars().any(char::is_control),
        "{told:?}"
    );

    let id = id();
    let document = |number| Document {
        section: Section::Dialog,
        number,
        index: format!("vcon_dialog{}", number % 2),
        json: format!("{{\"n\":{number}}}"),
    };
    let documents: Vec<Document> = (0..2).map(document).collect();
    let mut bulk = Bulk::new(&id);
    documents.iter().for_each(|document| bulk.index(document));
    let mut tally = bulk.tally();
    let mut told = 0;
    let read = bulk::read(&mut &*data, &mut |verdict| {
        told += 1;
        tally.take(verdict);
    });
    if let (Ok(true), Ok(refusal)) = (read, tally.end()) {
        // It speaks of each part.
        assert_eq!(told, documents.len());
        if let Some(refusal) = refusal {
            let (message, doubtful) = (&refusal.message, &refusal.doubtful);
            assert!(message.len() <= LONGEST_MESSAGE, "{message:?}");
            assert!(!message.chars().any(char::is_control), "{message:?}");
            let blamed = usize::from(refusal.is_the_vcons) + doubtful.len();
            assert!(blamed + refusal.indices.len() > 0);
            let trial = Trial::of(&id, &documents, doubtful);
            if let Ok(verdicts) = trial.read(&mut &*data) {
                trial.blame(&verdicts);
                trial.leaves_something(&verdicts);
            }
        }
    }
    let indices = indices("", &mut &*data).ok().flatten();
    for (section, names) in indices.into_iter().flatten() {
        let places: Vec<_> = Window::first(1).places(section, &names[..1]).collect();
        if let Ok(Found::In(found)) = found(&places, &mut &*data) {
            assert!(found.len() <= places.len());
        }
    }
    sent(data);
}

/// Each part of a vCon is sent on a line of its own, with an index that may be one.
fn sent(data: &[u8]) {
    let Ok(mut vcon) = Vcon::parse(id(), String::from_utf8_lossy(data).into_owned()) else {
        return;
    };
    let Ok(documents) = documents::of(&vcon.outgoing(Version::Current), "") else {
        return;
    };
    for document in documents {
        assert!(!document.json.contains('\n'), "{}", document.json);
        assert!(document.index.len() <= 255 && document.index.starts_with("vcon_"));
        let is_bad = |c: char| c.is_control() || c.is_whitespace() || "\\/*?\"<>|,#:".contains(c);
        assert!(!document.index.contains(is_bad), "{:?}", document.index);
    }
}
