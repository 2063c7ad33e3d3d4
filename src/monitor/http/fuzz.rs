//! What a fuzzer runs on requests to the monitor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::answer::Answer;
use super::hosts::Hosts;
use super::metrics::Format;
use super::request::{LONGEST, Refusal, Request, read};
use super::routes;
use crate::settings::Settings;

/// The bytes that somebody has sent, all at once and bit by bit.
pub fn request(data: &[u8]) {
    let whole = read(data);
    match &whole {
        None => assert!(data.len() < LONGEST),
        Some(Ok(request)) => understood(request, data.len()),
        Some(Err(refusal)) => {
            let answer = Answer::refusal(*refusal);
            let head = answer.bytes(true);
            assert!(head.starts_with(b"HTTP/1.1 ") && head.ends_with(b"\r\n\r\n"));
        }
    }
    // What has been answered once is not answered otherwise when more has come.
    let step = (data.len() / 64).max(1);
    for end in (0..data.len()).step_by(step) {
        match (read(&data[..end]), &whole) {
            (None, _) => {}
            (Some(Ok(early)), late) => assert_eq!(Some(&Ok(early)), late.as_ref()),
            (Some(Err(Refusal::TooLarge)), _) => {}
            (Some(Err(_)), late) => assert!(matches!(late, Some(Err(_))), "{late:?}"),
        }
    }
}

fn understood(request: &Request, sent: usize) {
    let path = &request.path;
    assert!(path.starts_with('/') && !path.contains('?'), "{path:?}");
    assert!(!path.chars().any(char::is_control), "{path:?}");
    let host = request.host.as_deref().unwrap_or_default();
    // A byte that is no text becomes a character of three.
    assert!(path.len() + host.len() + request.accept.len() <= 3 * sent);
    if routes::find(path).is_none() {
        let none = routes::none();
        assert!(none.bytes(false).len() < 4096);
    }
    let _ = Format::for_accept(&request.accept);
    thread_local! {
        static HOSTS: Hosts = Hosts::of(&Settings::from_lookup(&|name| {
            (name == "CONSERVER_HTTP_HOSTS").then(|| "watch.example.org".into())
        }).unwrap());
    }
    // Names that are not ours are nobody's who points them here.
    let is_let_in = HOSTS.with(|hosts| hosts.accept(host));
    assert!(
        !is_let_in || !host.to_ascii_lowercase().contains("evil"),
        "{host:?}"
    );
}
