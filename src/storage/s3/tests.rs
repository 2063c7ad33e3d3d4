//! Keys and answers of `storage.s3`; no server.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Instant;

use super::*;
use crate::http::tests::serve_with;
use crate::vcon::Version;

/// Answers one connection for each status and body.
fn serve(answers: &[(u16, &str)]) -> (String, JoinHandle<Vec<String>>) {
    let answers = answers.iter();
    serve_with(
        answers
            .map(|(status, body)| (*status, (*body).to_owned()))
            .collect(),
    )
}

/// The requests as they came, in lower case.
fn requests(server: JoinHandle<Vec<String>>) -> Vec<String> {
    let requests = server.join().unwrap().into_iter();
    requests.map(|request| request.to_lowercase()).collect()
}

fn storage(address: &str) -> Box<dyn Storage> {
    storage_with(address, "")
}

fn storage_with(address: &str, more: &str) -> Box<dyn Storage> {
    let mut options = Options::from_yaml(&format!(
        "{{aws_bucket: calls, aws_access_key_id: K, aws_secret_access_key: S, \
         aws_session_token: Token, endpoint_url: 'http://{address}', s3_path: a{more}}}"
    ));
    let storage = open(&mut options);
    options.finish();
    assert_eq!(options.faults(), [""; 0]);
    storage
}

fn vcon() -> Outgoing {
    Outgoing {
        id: "05cec3d4-0561-4010-9fb8-23cc7edef146".parse().unwrap(),
        json: "{}".to_owned().into(),
        version: Version::Current,
        created_at: None,
        stand_in: std::sync::OnceLock::new(),
        subject: None,
    }
}

const DENIED: &str = "<Error><Code>AccessDenied</Code></Error>";
const MISSING: &str = "<Error><Code>NoSuchKey</Code></Error>";

#[test]
fn the_document_goes_before_its_pointer_and_the_session_token_with_both() {
    let (address, server) = serve(&[(200, ""), (200, "")]);
    storage(&address).save(&vcon(), Deadline::NONE).unwrap();
    let heads = requests(server);
    let id = vcon().id;
    assert!(heads[0].starts_with("put /calls/a/20"), "{}", heads[0]);
    assert!(
        heads[0].contains(&format!("/{id}.vcon http")),
        "{}",
        heads[0]
    );
    let pointer = format!("put /calls/a/lookup/{id}.txt http");
    assert!(heads[1].starts_with(&pointer), "{}", heads[1]);
    for head in heads {
        assert!(
            head.contains("\r\nx-amz-security-token: token\r\n"),
            "{head}"
        );
        let signed = head.split("signedheaders=").nth(1).unwrap();
        let signed = signed.split(',').next().unwrap();
        assert!(signed.contains("x-amz-security-token"), "{signed}");
    }
}

#[test]
fn a_probe_writes_only_after_a_write_was_forbidden() {
    let (address, server) = serve(&[
        (404, MISSING),
        (403, DENIED),
        (403, DENIED),
        (403, DENIED),
        (200, ""),
        (204, ""),
        (200, ""),
        (200, ""),
        (403, DENIED),
    ]);
    let mut storage = storage(&address);
    assert_eq!(storage.probe(), Ok(()));
    // Without the right to list, this is what a missing object looks like.
    assert_eq!(storage.probe(), Ok(()));
    assert!(
        storage
            .save(&vcon(), Deadline::NONE)
            .unwrap_err()
            .is_transient()
    );
    assert!(storage.probe().unwrap_err().is_transient());
    assert_eq!(storage.probe(), Ok(()));
    assert_eq!(storage.save(&vcon(), Deadline::NONE), Ok(()));
    assert_eq!(storage.probe(), Ok(()));
    let heads = requests(server);
    let verbs: Vec<&str> = heads.iter().map(|h| h.split(' ').next().unwrap()).collect();
    let expected = [
        "get", "get", "put", "put", "put", "delete", "put", "put", "get",
    ];
    assert_eq!(verbs, expected);
}

#[test]
fn an_object_that_may_not_be_read_does_not_hold_up_the_others() {
    let (address, server) = serve(&[(403, DENIED), (404, MISSING), (503, "")]);
    let mut storage = storage(&address);
    assert!(
        !storage
            .get(&vcon().id, Deadline::NONE)
            .unwrap_err()
            .is_transient()
    );
    assert_eq!(storage.get(&vcon().id, Deadline::NONE), Ok(None));
    assert!(
        storage
            .get(&vcon().id, Deadline::NONE)
            .unwrap_err()
            .is_transient()
    );
    requests(server);
}

fn s3(prefix: &str) -> S3 {
    S3 {
        bucket: None,
        prefix: prefix.to_owned(),
        timeout: Duration::from_secs(1),
        agent: agent(),
        write_refused: false,
    }
}

fn answer(status: u16, body: &str) -> Answer {
    Answer {
        status,
        body: body.as_bytes().to_vec(),
    }
}

#[test]
fn keys_follow_the_layout() {
    let id = "05cec3d4-0561-4010-9fb8-23cc7edef146".parse().unwrap();
    let cases = [
        ("", "2025/03/07/05cec3d4-0561-4010-9fb8-23cc7edef146.vcon"),
        (
            "a/b/",
            "a/b/2025/03/07/05cec3d4-0561-4010-9fb8-23cc7edef146.vcon",
        ),
    ];
    for (prefix, key) in cases {
        assert_eq!(s3(prefix).document_key("2025/03/07", &id), key);
        assert_eq!(
            s3(prefix).pointer_key(&id),
            format!("{prefix}lookup/05cec3d4-0561-4010-9fb8-23cc7edef146.txt")
        );
    }
}

#[test]
fn only_days_become_part_of_a_key() {
    assert!(is_day("2025/03/07"));
    for bad in [
        "",
        "2025-03-07",
        "2025/03/7",
        "../../../x",
        "2025/03/07/",
        "２０25/03",
    ] {
        assert!(!is_day(bad), "{bad:?}");
    }
}

#[test]
fn the_reason_of_a_refusal_is_in_the_failure() {
    let body = "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code>\
                <Message>The &quot;b&quot; &amp;amp; bucket</Message><RequestId>1</RequestId></Error>";
    let failure = s3("").failure(&Verb::Put(b""), "k", &answer(404, body));
    assert!(failure.is_transient());
    assert_eq!(
        failure.message,
        "S3: could not write /k: HTTP 404: NoSuchBucket: The \"b\" &amp; bucket; \
         create the bucket, or mend `aws_bucket`"
    );
    let failure = s3("").failure(&Verb::Put(b""), "k", &answer(413, ""));
    assert!(!failure.is_transient());
    let failure = s3("").failure(&Verb::Put(b""), "k", &answer(503, "<html>busy"));
    assert!(failure.is_transient());
    assert_eq!(failure.message, "S3: could not write /k: HTTP 503");
}

#[test]
fn a_missing_bucket_is_no_missing_object() {
    assert!(answer(404, "<Error><Code>NoSuchKey</Code></Error>").is_missing());
    // Another server than S3, or a proxy, says so about any path.
    assert!(!answer(404, "<html>").is_missing());
    assert!(!answer(404, "<Error><Code>NoSuchBucket</Code></Error>").is_missing());
    assert!(!answer(403, "<Error><Code>NoSuchKey</Code></Error>").is_missing());
}

#[test]
fn a_save_has_one_limit_for_both_objects() {
    let (address, server) = serve_late(Duration::from_secs(1));
    let mut storage = storage_with(&address, ", timeout: 2");
    let begun = Instant::now();
    let failure = storage.save(&vcon(), Deadline::NONE).unwrap_err();
    // Two limits would be at least three seconds.
    assert!(begun.elapsed() < Duration::from_millis(2_900));
    assert!(failure.is_transient());
    assert!(failure.message.contains("no answer within 2s"), "{failure}");
    assert!(failure.message.contains("/lookup/"), "{failure}");
    drop(server);
}

#[test]
fn a_server_that_is_silent_until_the_deadline_may_answer_later() {
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hole.local_addr().unwrap().to_string();
    let deadline = Deadline::after(Some(Duration::ZERO));
    let failure = storage(&address).save(&vcon(), deadline).unwrap_err();
    assert!(failure.is_transient());
    let words = "no answer within 1.0 s, what was left of the chain's timeout";
    assert!(failure.message.contains(words), "{failure}");
    assert_eq!(storage(&address).longest_call(), Duration::from_secs(30));
}

/// Answers the first request after so long, and no other.
fn serve_late(time: Duration) -> (String, JoinHandle<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::thread::sleep(time);
        let answer = b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).unwrap();
        stream
    });
    (address, server)
}
