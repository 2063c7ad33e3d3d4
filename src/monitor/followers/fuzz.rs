//! What a fuzzer runs on answers of servers that vCons are pulled from.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::remote::{Fetched, document, handed_out};

/// An answer to a pop, whole and broken off; and an answer to a request for a document.
pub fn answer(data: &[u8]) {
    for cut in [None, Some("it broke off".to_owned())] {
        let is_cut = cut.is_some();
        let Ok(popped) = handed_out(data, cut, "there") else {
            continue;
        };
        assert!(popped.cut.is_some() || !is_cut);
        for shown in &popped.refused {
            assert!(shown.chars().count() <= 80, "{shown:?}");
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
        let text = String::from_utf8_lossy(data);
        for id in &popped.ids {
            // A whole answer may spell it with escapes.
            assert!(text.contains(id.as_str()) || text.contains('\\'), "{id}");
        }
    }
    match document(data.to_vec(), "there") {
        Fetched::Document(text, _) => assert_eq!(text.as_bytes(), data),
        Fetched::Refused(why) | Fetched::Failed(why) | Fetched::Away(why) => {
            assert!(why.len() <= 1000, "{why:?}");
        }
    }
}
