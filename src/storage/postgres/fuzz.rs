//! What a fuzzer runs on the options of the storage, and on what a server sends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Map, Value};

use super::hosts::Hosts;
use super::open;
use super::table::Table;
use super::wire::filtered;
use crate::config::Options;
use crate::fuzzing::LONGEST_MESSAGE;

const SECRET: &str = "Kj7-pQ2_wX";

/// The options, each on a line of its own.
const KEYS: [&str; 7] = [
    "host",
    "port",
    "target_session_attrs",
    "sslmode",
    "table_name",
    "database",
    "user",
];

/// Options as they stand in a file, with a host as it is, in a URL and in a connection string.
pub fn options(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let given: Map<String, Value> = KEYS
        .iter()
        .zip(text.split('\n'))
        .map(|(key, value)| ((*key).to_owned(), value.into()))
        .collect();
    let host = given
        .get("host")
        .and_then(Value::as_str)
        .unwrap_or_default();
    for host in [
        host.to_owned(),
        format!("postgresql://u:{SECRET}@{host}"),
        format!("host={host} password={SECRET}"),
        format!("{host}?password={SECRET}&sslmode=disable=1"),
    ] {
        let mut given = given.clone();
        given.insert("host".to_owned(), host.into());
        given.insert("password".to_owned(), SECRET.into());
        let yaml = Value::Object(given).to_string();
        let hosts = Hosts::read(&mut Options::from_yaml(&yaml));
        assert!(hosts.count() > 0 && hosts.each().len() == hosts.count() as usize);
        assert!(!hosts.shown().is_empty());
        let mut options = Options::from_yaml(&yaml);
        open(&mut options);
        options.finish();
        for fault in options.faults() {
            assert!(!fault.contains(SECRET), "{fault}");
            assert!(fault.len() <= LONGEST_MESSAGE, "{fault}");
        }
    }
    if let Some(name) = given.get("table_name").and_then(Value::as_str)
        && let Ok(table) = Table::parse(name)
    {
        assert_eq!(unquoted(&table.quoted).join("."), name);
    }
}

/// What the quoted identifiers stand for; there is nothing but the dots between them.
fn unquoted(sql: &str) -> Vec<String> {
    let (mut names, mut characters) = (Vec::new(), sql.chars().peekable());
    loop {
        assert_eq!(characters.next(), Some('"'), "{sql}");
        let mut name = String::new();
        while let Some(c) = characters.next() {
            if c == '"' && characters.next_if_eq(&'"').is_none() {
                break;
            }
            name.push(c);
        }
        names.push(name);
        match characters.next() {
            None => return names,
            dot => assert_eq!(dot, Some('.'), "{sql}"),
        }
    }
}

/// The bytes of a server.
pub fn answer(data: &[u8]) {
    let whole = filtered(data, data.len().max(1));
    // It is the same in whatever pieces it comes.
    for size in [1, 7] {
        assert_eq!(filtered(data, size), whole);
    }
    let Ok(passed) = whole else {
        return;
    };
    assert!(passed.len() <= data.len() + 8, "{} bytes", passed.len());
    let mut rest = &passed[..];
    while let Some((head, after)) = rest.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
        let body = &after[..length.min(after.len())];
        assert!(!b"ANS".contains(&head[0]), "{}", head[0]);
        assert!(head[0] != b'R' || !body.starts_with(&[0, 0, 0, 3]));
        rest = &after[body.len()..];
    }
}
