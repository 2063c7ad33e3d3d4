//! The storage against answers that no server at hand gives; no server.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::failure::FailureKind;
use crate::http::tests::{FLOOD, FLOODS, flood, serve_with as serve};
use crate::vcon::{Vcon, Version};

const ID: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";
const NO_INDEX: &str = "{}";
const DIALOGS: &str = r#"{"vcon_dialog":{"aliases":{}}}"#;

fn storage(address: &str) -> Box<dyn Storage> {
    let mut options = Options::from_yaml(&format!(
        "{{url: 'http://{address}/es/', username: keeper, password: Geheim, timeout: 10}}"
    ));
    let storage = open(&mut options);
    options.finish();
    assert_eq!(options.faults(), [""; 0]);
    storage
}

fn vcon(dialogs: usize) -> Outgoing {
    let dialog = vec!["{}"; dialogs].join(",");
    let text = format!("{{\"dialog\":[{dialog}]}}");
    let mut vcon = Vcon::parse(ID.parse().unwrap(), text).unwrap();
    vcon.outgoing(Version::Current)
}

fn fine(body: impl Into<String>) -> (u16, String) {
    (200, body.into())
}

/// An answer to `_mget`: of so many places, the numbers that are there.
fn there(places: usize, numbers: &[usize]) -> (u16, String) {
    let doc = |number| format!("{{\"found\":{}}}", numbers.contains(&number));
    let docs: Vec<String> = (0..places).map(doc).collect();
    fine(format!("{{\"docs\":[{}]}}", docs.join(",")))
}

/// An answer to `_bulk`.
fn done(items: &[&str]) -> (u16, String) {
    let items: Vec<String> = items
        .iter()
        .map(|item| format!("{{\"index\":{item}}}"))
        .collect();
    fine(format!("{{\"items\":[{}]}}", items.join(",")))
}

const OK: &str = r#"{"status":201}"#;
const BUSY: &str =
    r#"{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"queue full"}}"#;
const BLOCKED: &str = r#"{"status":403,"error":{"type":"cluster_block_exception","reason":"index [vcon_dialog] blocked"}}"#;
const MISFIT: &str = r#"{"status":400,"error":{"type":"mapper_parsing_exception","reason":"failed to parse field [body]","caused_by":{"reason":"not a number"}}}"#;
const STRICT: &str = r#"{"status":400,"error":{"type":"strict_dynamic_mapping_exception","reason":"introduction of [vcon_id]"}}"#;
const ABSENT: &str = r#"{"status":404,"result":"not_found"}"#;

const REMOVED: &str = r#"{"status":200,"result":"deleted"}"#;

/// What the storage makes of these answers to its writes.
fn refusal(answers: Vec<(u16, String)>) -> (Failure, Vec<String>) {
    let mut all = vec![fine(NO_INDEX)];
    all.extend(answers);
    let (address, server) = serve(all);
    let failure = storage(&address).save(&vcon(2), Deadline::NONE);
    let failure = failure.unwrap_err();
    let start = format!("Elasticsearch http://{address}/es/: could not save vCon {ID}: ");
    assert!(failure.message.starts_with(&start), "{failure}");
    (failure, server.join().unwrap())
}

#[test]
fn a_part_that_is_refused_is_the_vcons_fault_if_a_minimal_document_is_taken() {
    for (items, words) in [
        ([BUSY, MISFIT], "2 of 2 parts were refused"),
        (
            [MISFIT, OK],
            "first dialog 0 in index vcon_dialog: HTTP 400: mapper_parsing_exception: failed to parse field [body]: not a number; mend the vCon",
        ),
    ] {
        let (failure, requests) = refusal(vec![done(&items), done(&[MISFIT, OK, REMOVED])]);
        assert_eq!(failure.kind, FailureKind::Permanent, "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        let body = requests[2].split("\r\n\r\n").nth(1).unwrap();
        assert_eq!(body.lines().count(), 5, "{body}");
        assert!(body.contains(ID), "{body}");
    }
}

#[test]
fn a_part_that_is_refused_as_a_minimal_document_is_waits() {
    for trial in [
        done(&[MISFIT, MISFIT, ABSENT]),
        done(&[OK, OK, REMOVED]),
        (503, String::new()),
    ] {
        let (failure, _) = refusal(vec![done(&[MISFIT, MISFIT]), trial]);
        assert!(failure.is_transient(), "{failure}");
    }
}

#[test]
fn a_part_is_in_doubt_if_the_trial_does_not_tell() {
    for trial in [
        done(&[MISFIT, STRICT, ABSENT]),
        done(&[]),
        fine("{}"),
        (413, String::new()),
    ] {
        let (failure, _) = refusal(vec![done(&[OK, MISFIT]), trial]);
        assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
        let words = "1 of 2 parts were refused, first dialog 1 in index vcon_dialog: HTTP 400";
        assert!(failure.message.contains(words), "{failure}");
    }
}

#[test]
fn what_the_server_is_to_blame_for_needs_no_trial() {
    for (items, words) in [
        (
            [OK, BUSY],
            "1 of 2 parts were refused, first dialog 1 in index vcon_dialog: HTTP 429: es_rejected_execution_exception: queue full",
        ),
        ([BLOCKED, BLOCKED], "2 of 2 parts were refused"),
    ] {
        let (failure, requests) = refusal(vec![done(&items)]);
        assert!(failure.is_transient(), "{failure}");
        assert!(failure.message.contains(words), "{failure}");
        assert_eq!(requests.len(), 2);
    }
}

#[test]
fn one_request_writes_all_parts_with_the_login() {
    let (address, server) = serve(vec![fine(NO_INDEX), done(&[OK, OK])]);
    storage(&address).save(&vcon(2), Deadline::NONE).unwrap();
    let requests = server.join().unwrap();
    assert!(
        requests[0].starts_with("GET /es/vcon_*/_alias?"),
        "{}",
        requests[0]
    );
    assert!(
        requests[1].starts_with("POST /es/_bulk?"),
        "{}",
        requests[1]
    );
    for request in &requests {
        let head = request.to_lowercase();
        assert!(
            head.contains("\r\nauthorization: basic a2vlcgvyokdlagvpbq==\r\n"),
            "{head}"
        );
    }
    let body = requests[1].split("\r\n\r\n").nth(1).unwrap();
    let lines: Vec<&str> = body.lines().collect();
    assert_eq!(
        lines[0],
        format!(r#"{{"index":{{"_id":"{ID}_0","_index":"vcon_dialog"}}}}"#)
    );
    assert_eq!(lines[1], format!(r#"{{"vcon_id":"{ID}"}}"#));
    assert_eq!(lines.len(), 4);
    assert!(body.ends_with('\n'));
}

#[test]
fn a_large_surplus_goes_from_its_end() {
    let answers = vec![
        fine(DIALOGS),
        there(17, &[0, 1, 16]),
        // From 17 to 33, and from 34 to 67.
        there(17, &[16]),
        there(34, &[]),
        done(&[OK]),
        done(&[OK, OK, OK]),
    ];
    let (address, server) = serve(answers);
    storage(&address).save(&vcon(1), Deadline::NONE).unwrap();
    let requests = server.join().unwrap();
    let actions = |request: &String| -> Vec<String> {
        let body = request.split("\r\n\r\n").nth(1).unwrap();
        let lines = body.lines().filter(|line| line.contains("_index"));
        let short = |line: &str| {
            line.replace(ID, "U")
                .replace(r#","_index":"vcon_dialog""#, "")
        };
        lines.map(short).collect()
    };
    assert_eq!(actions(&requests[4]), [r#"{"delete":{"_id":"U_33"}}"#]);
    assert_eq!(
        actions(&requests[5]),
        [
            r#"{"delete":{"_id":"U_1"}}"#,
            r#"{"delete":{"_id":"U_16"}}"#,
            r#"{"index":{"_id":"U_0"}}"#
        ]
    );
}

#[test]
fn a_probe_tries_to_write_only_after_a_write_was_refused() {
    let (address, server) = serve(vec![
        fine(NO_INDEX),
        fine(NO_INDEX),
        done(&[BLOCKED]),
        done(&[BLOCKED]),
        done(&[ABSENT]),
        fine(NO_INDEX),
    ]);
    let mut storage = storage(&address);
    assert_eq!(storage.probe(), Ok(()));
    assert!(
        storage
            .save(&vcon(1), Deadline::NONE)
            .unwrap_err()
            .is_transient()
    );
    // Another thread may ask in its place.
    let mut prober = storage.prober().unwrap();
    let failure = prober.probe().unwrap_err();
    assert!(failure.is_transient());
    assert!(failure.message.contains("lift the block"), "{failure}");
    assert_eq!(prober.probe(), Ok(()));
    assert_eq!(prober.probe(), Ok(()));
    let requests = server.join().unwrap();
    assert!(requests[3].contains(r#"{"update":{"#), "{}", requests[3]);
    assert!(!requests[3].contains(ID), "{}", requests[3]);
}

#[test]
fn answers_to_a_request_are_classified() {
    let body = |kind: &str| format!(r#"{{"error":{{"type":"{kind}","reason":"keeper: Geheim"}}}}"#);
    for (status, body, is_transient, words) in [
        (
            401,
            body("security_exception"),
            true,
            "security_exception: ***: ***; see to `username`",
        ),
        (
            403,
            body("security_exception"),
            true,
            "give this user the rights",
        ),
        (
            404,
            "<html>".to_owned(),
            true,
            "this is no Elasticsearch: see to `url`",
        ),
        (302, String::new(), true, "give the URL that it leads to"),
        (400, "<html>".to_owned(), true, "HTTP 400"),
        (429, body("circuit_breaking_exception"), true, "HTTP 429"),
        (503, String::new(), true, "HTTP 503"),
        (
            413,
            "<html>".to_owned(),
            false,
            "raise http.max_content_length",
        ),
        (200, "<html>".to_owned(), true, "none of Elasticsearch"),
        (200, "{}".to_owned(), true, "none of Elasticsearch"),
        (
            200,
            r#"{"items":[]}"#.to_owned(),
            true,
            "does not speak of all parts",
        ),
        (
            200,
            r#"{"items":[{"index":{}}]}"#.to_owned(),
            true,
            "what became of each part",
        ),
    ] {
        let (address, server) = serve(vec![fine(NO_INDEX), (status, body)]);
        let failure = storage(&address)
            .save(&vcon(1), Deadline::NONE)
            .unwrap_err();
        assert_eq!(failure.is_transient(), is_transient, "{status} {failure}");
        assert!(failure.message.contains(words), "{status} {failure}");
        assert!(!failure.message.contains("Geheim"), "{failure}");
        server.join().unwrap();
    }
}

#[test]
fn a_place_that_cannot_be_looked_at_is_waited_for() {
    let gone = r#"{"error":{"type":"index_not_found_exception","reason":"no such index"}}"#;
    let away = r#"{"error":{"type":"no_shard_available_action_exception","reason":"No shard"}}"#;
    for (doc, is_fine) in [(gone, true), (away, false), ("{}", false)] {
        let docs = vec![doc; 17].join(",");
        let mut answers = vec![fine(DIALOGS), fine(format!("{{\"docs\":[{docs}]}}"))];
        if is_fine {
            answers.push(done(&[OK]));
        }
        let (address, server) = serve(answers);
        let saved = storage(&address).save(&vcon(1), Deadline::NONE);
        assert_eq!(saved.is_ok(), is_fine, "{doc}");
        assert!(saved.err().is_none_or(|failure| failure.is_transient()));
        server.join().unwrap();
    }
}

#[test]
fn options_that_make_no_sense_are_faults() {
    for (text, fault) in [
        ("{}", "url: is required, or `cloud_id`"),
        ("{url: '', cloud_id: ''}", "url: is required, or `cloud_id`"),
        ("{url: 'h:9200'}", "url: is not a URL"),
        ("{url: 'http://h/?a=b'}", "url: must have no query"),
        (
            "{url: 'http://h', cloud_id: 'a:b'}",
            "cloud_id: cannot stand beside `url`",
        ),
        ("{cloud_id: 'a:b'}", "cloud_id: is not of the form"),
        (
            "{url: 'http://h', ca_certs: /nowhere}",
            "ca_certs: could not read /nowhere",
        ),
        (
            "{url: 'http://h', index_prefix: 'A'}",
            "index_prefix: must be in lower case",
        ),
        (
            "{url: 'http://h', timeout: 0}",
            "timeout: must be more than 0",
        ),
    ] {
        let mut options = Options::from_yaml(text);
        open(&mut options);
        options.finish();
        let faults = options.faults();
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].contains(fault), "{text}: {faults:?}");
    }
    let mut options = Options::from_yaml("{url: 'http://h', index: x, ca_certs: }");
    open(&mut options);
    options.finish();
    assert_eq!(options.faults(), [""; 0]);
    let warnings = options.warnings();
    let [warning] = &warnings[..] else {
        unreachable!("{warnings:?}");
    };
    assert!(warning.contains("unknown option `index` has no effect"));
}

#[test]
fn a_server_that_is_silent_until_the_deadline_may_answer_later() {
    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hole.local_addr().unwrap().to_string();
    let deadline = Deadline::after(Some(Duration::ZERO));
    let failure = storage(&address).save(&vcon(1), deadline).unwrap_err();
    assert!(failure.is_transient());
    let words = "no answer within 1.0 s, what was left of the chain's timeout";
    assert!(failure.message.contains(words), "{failure}");
    assert_eq!(storage(&address).longest_call(), Duration::from_secs(30));
}

#[test]
fn an_answer_that_is_too_long_is_not_read_to_its_end() {
    for lines in &FLOODS[..2] {
        let (address, server) = flood(200, lines, r#"{"x":[0"#, ",[[]],{}");
        let failure = storage(&address).save(&vcon(1), Deadline::NONE);
        let failure = failure.unwrap_err();
        assert!(failure.is_transient(), "{failure}");
        let words = "the answer is longer than 4194304 bytes";
        assert!(failure.message.contains(words), "{failure}");
        assert!(server.join().unwrap() < FLOOD, "{lines}");
    }
    for lines in FLOODS {
        let error = r#"{"error":{"type":"t","reason":"r"},"x":[0"#;
        let (address, server) = flood(500, lines, error, ",[[]],{}");
        let failure = storage(&address).probe().unwrap_err();
        assert!(failure.is_transient(), "{failure}");
        assert!(failure.message.ends_with("HTTP 500: t: r"), "{failure}");
        assert!(server.join().unwrap() < FLOOD, "{lines}");
    }
}

#[test]
fn an_answer_may_have_as_much_as_its_request_allows() {
    let [small, large] = [1, 1_000].map(|parts| {
        let vcon = vcon(parts);
        let documents = documents::of(&vcon, "").unwrap();
        let mut bulk = Bulk::new(&vcon.id);
        documents.iter().for_each(|it| bulk.index(it));
        bulk.most()
    });
    assert!(small < 80_000, "{small}");
    assert!(
        large > 1_000 * (small - 65_536) && large < 10 << 20,
        "{large}"
    );
    // Every part refused at length.
    let reason = "é".repeat(1_500);
    let item = format!(r#"{{"status":429,"error":{{"type":"t","reason":"{reason}"}}}}"#);
    let (failure, _) = refusal(vec![done(&[&item, &item])]);
    assert!(
        failure.message.contains("2 of 2 parts were refused"),
        "{failure}"
    );
    assert!(failure.message.len() < 2_000, "{failure}");
    let item = item.replace("é", &"é".repeat(50));
    let (failure, _) = refusal(vec![done(&[&item, &item])]);
    assert!(
        failure.message.contains("the answer is longer than"),
        "{failure}"
    );
}
