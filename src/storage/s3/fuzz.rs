//! What a fuzzer runs on answers of S3.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::fault::{advice, is_the_vcons};
use super::is_day;
use super::request::Answer;

/// The first two bytes are the status, the rest is the body.
pub fn answer(data: &[u8]) {
    let Some((status, body)) = data.split_first_chunk::<2>() else {
        return;
    };
    let answer = Answer {
        status: 100 + u16::from_be_bytes(*status) % 500,
        body: body.to_vec(),
        is_cut: status[0] > 127,
    };
    for name in ["Code", "Message"] {
        let text = answer.element(name);
        assert!(text.chars().count() <= 300, "{text:?}");
    }
    let code = answer.code();
    if is_the_vcons(answer.status, &code) {
        assert!(!answer.is_success() || !code.is_empty());
    }
    let _ = advice(answer.status, &code);
    assert!(!answer.is_missing() || answer.status == 404);
    if let Ok(text) = std::str::from_utf8(body) {
        let day = text.trim();
        if is_day(day) {
            // It becomes part of a key.
            assert!(!day.contains("..") && day.split('/').count() == 3);
        }
    }
}
