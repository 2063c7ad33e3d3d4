//! What a fuzzer runs on what is kept of a claim.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::progress::Progress;
use crate::config::Chain;
use crate::queue;

/// A claim's record, what is kept of its progress, the reason of a dead letter: anybody can write them.
pub fn claim(data: &[u8]) {
    crate::fuzzing::shown_and_typed(data);
    queue::fuzz::answer(data);
    let chain = Chain {
        name: "main".to_owned(),
        links: vec!["tagger".to_owned()],
        storages: vec!["files".to_owned()],
        ingress_lists: Vec::new(),
        egress_lists: Vec::new(),
        enabled: true,
        timeout: None,
    };
    let Some(progress) = Progress::read(data, &chain) else {
        return;
    };
    // What is kept of it is read as what it is.
    let kept = progress.record(&chain, None).unwrap();
    let again = Progress::read(kept.text.as_bytes(), &chain).unwrap();
    let twice = again.record(&chain, None).unwrap();
    assert_eq!(twice.text, kept.text);
    assert_eq!(again.id(), progress.id());
}
