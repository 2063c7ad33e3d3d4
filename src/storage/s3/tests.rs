//! Keys and answers of `storage.s3`; no server.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::bounded;

use super::*;
use crate::failure::FailureKind;
use crate::http_client::tests::{FLOOD, FLOODS, flood, request as read_request, serve_with};
use crate::vcon::{Vcon, Version};

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
        formerly: None,
        subject: None,
    }
}

fn of_day(day: &str) -> Outgoing {
    let text = format!("{{\"created_at\":\"{day}\"}}");
    let mut vcon = Vcon::parse(vcon().id, text).unwrap();
    vcon.outgoing(Version::Current)
}

/// The verb and the path of each request.
fn lines(requests: &[String]) -> Vec<String> {
    let line = |request: &String| request.split(" http/").next().unwrap().to_owned();
    requests.iter().map(line).collect()
}

const POINTER: &str = "/calls/a/lookup/05cec3d4-0561-4010-9fb8-23cc7edef146.txt";
const MARCH: &str = "/calls/a/2025/03/07/05cec3d4-0561-4010-9fb8-23cc7edef146.vcon";
const APRIL: &str = "/calls/a/2025/04/01/05cec3d4-0561-4010-9fb8-23cc7edef146.vcon";
/// How long the other side of a test may take.
const PATIENCE: Duration = Duration::from_secs(20);
const DENIED: &str = "<Error><Code>AccessDenied</Code></Error>";
const MISSING: &str = "<Error><Code>NoSuchKey</Code></Error>";

#[test]
fn the_document_goes_before_its_pointer_and_the_session_token_with_both() {
    let (address, server) = serve(&[(404, MISSING), (200, ""), (200, "")]);
    storage(&address)
        .save(&of_day("2025-03-07"), Deadline::NONE)
        .unwrap();
    let heads = requests(server);
    let expected = [
        format!("get {POINTER}"),
        format!("put {MARCH}"),
        format!("put {POINTER}"),
    ];
    assert_eq!(lines(&heads), expected);
    assert!(heads[2].ends_with("\r\n\r\n2025/03/07"), "{}", heads[2]);
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
        (404, MISSING),
        (403, DENIED),
        (403, DENIED),
        (200, ""),
        (204, ""),
        (403, DENIED),
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
    // Where the pointer may not be read, there is none.
    let expected = [
        "get", "get", "get", "put", "put", "put", "delete", "get", "put", "put", "get",
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
        agent: http_client::agent(),
        write_refused: false,
        superseded: None,
    }
}

fn answer(status: u16, body: &str) -> S3Answer {
    S3Answer {
        status,
        body: body.as_bytes().to_vec(),
        is_cut: false,
    }
}

#[test]
fn keys_follow_the_layout() {
    let id = "05cec3d4-0561-4010-9fb8-23cc7edef146".parse().unwrap();
    for (path, before) in [
        ("", ""),
        ("a/b", "a/b/"),
        ("a/b/", "a/b/"),
        ("a//", "a/"),
        ("/a", "/a/"),
        ("//a//b//", "//a//b/"),
        ("/", "/"),
        ("//", "/"),
        (" a ", " a /"),
        ("./../a", "./../a/"),
    ] {
        let storage = s3(&prefix(path));
        assert_eq!(
            storage.document_key("2025/03/07", &id),
            format!("{before}2025/03/07/05cec3d4-0561-4010-9fb8-23cc7edef146.vcon")
        );
        assert_eq!(
            storage.pointer_key(&id),
            format!("{before}lookup/05cec3d4-0561-4010-9fb8-23cc7edef146.txt")
        );
    }
}

#[test]
fn the_document_of_a_former_day_is_removed_after_the_new_one_has_its_pointer() {
    let (address, server) = serve(&[
        (200, "2025/03/07"),
        (200, ""),
        (200, ""),
        (204, ""),
        (200, "2025/04/01"),
        (200, ""),
        // The same day again: the pointer is right already.
        (200, "2025/04/01"),
        (200, ""),
    ]);
    let mut storage = storage(&address);
    for _ in 0..2 {
        let saved = storage.save(&of_day("2025-04-01"), Deadline::NONE);
        assert_eq!(saved, Ok(()));
    }
    let expected = [
        format!("get {POINTER}"),
        format!("put {APRIL}"),
        format!("put {POINTER}"),
        format!("delete {MARCH}"),
        format!("get {POINTER}"),
        format!("head {APRIL}"),
        format!("get {POINTER}"),
        format!("put {APRIL}"),
    ];
    assert_eq!(lines(&requests(server)), expected);
}

#[test]
fn a_former_document_is_remembered_until_it_is_removed() {
    let (address, server) = serve(&[
        (200, "2025/03/07"),
        (200, ""),
        // The pointer may be written, whatever the server says.
        (503, ""),
        (200, "2025/04/01"),
        (200, ""),
        (500, ""),
        (200, "2025/04/01"),
        (200, ""),
        (204, ""),
        (200, "2025/04/01"),
        (200, ""),
        (200, "2025/04/01"),
        (200, ""),
    ]);
    let mut storage = storage(&address);
    let mut save = || storage.save(&of_day("2025-04-01"), Deadline::NONE);
    assert!(save().unwrap_err().is_transient());
    assert!(save().unwrap_err().is_transient());
    assert_eq!(save(), Ok(()));
    assert_eq!(save(), Ok(()));
    let lines = lines(&requests(server));
    let removed = lines.iter().filter(|line| line.starts_with("delete"));
    assert_eq!(removed.collect::<Vec<_>>(), [&format!("delete {MARCH}"); 2]);
    assert_eq!(lines[8], format!("delete {MARCH}"));
}

#[test]
fn a_document_that_became_the_present_one_again_is_not_removed() {
    let (address, server) = serve(&[
        (200, "2025/03/07"),
        (200, ""),
        (200, ""),
        (500, ""),
        // Back to the former day, before its document could be removed.
        (200, "2025/04/01"),
        (200, ""),
        (200, ""),
        (204, ""),
        (200, "2025/03/07"),
        (200, ""),
    ]);
    let mut storage = storage(&address);
    let mut save = |day: &str| storage.save(&of_day(day), Deadline::NONE);
    assert!(save("2025-04-01").unwrap_err().is_transient());
    assert_eq!(save("2025-03-07"), Ok(()));
    let lines = lines(&requests(server));
    assert_eq!(lines[3], format!("delete {MARCH}"));
    assert_eq!(lines[7], format!("delete {APRIL}"));
}

#[test]
fn keys_that_may_not_remove_leave_a_second_copy_and_store_the_vcon() {
    let (address, server) = serve(&[(200, "2025/03/07"), (200, ""), (200, ""), (403, DENIED)]);
    let saved = storage(&address).save(&of_day("2025-04-01"), Deadline::NONE);
    assert_eq!(saved, Ok(()));
    requests(server);
}

#[test]
fn a_save_under_the_former_day_at_the_same_time_is_seen() {
    let (address, server) = serve(&[
        (200, "2025/03/07"),
        (200, ""),
        (200, ""),
        (204, ""),
        (200, "2025/03/07"),
    ]);
    let saved = storage(&address).save(&of_day("2025-04-01"), Deadline::NONE);
    let failure = saved.unwrap_err();
    assert!(failure.is_transient());
    assert!(failure.message.contains("at the same time"), "{failure}");
    requests(server);
}

#[test]
fn a_document_that_is_gone_after_a_removal_is_written_again() {
    // Amazon says the latter to keys that may not list.
    for status in [404, 403] {
        let (address, server) = serve(&[
            (200, "2025/03/07"),
            (200, ""),
            (200, ""),
            (204, ""),
            (200, "2025/04/01"),
            (status, ""),
            (200, "2025/04/01"),
            (200, ""),
        ]);
        let mut storage = storage(&address);
        let mut save = || storage.save(&of_day("2025-04-01"), Deadline::NONE);
        let failure = save().unwrap_err();
        assert!(failure.is_transient());
        assert!(failure.message.contains("at the same time"), "{failure}");
        assert_eq!(save(), Ok(()));
        let lines = lines(&requests(server));
        assert_eq!(lines[5], format!("head {APRIL}"));
        assert_eq!(lines[7], format!("put {APRIL}"));
    }
}

/// A server with objects. It calls `before` with the line and the body of each request
/// before it does what is asked, and has a thread for each.
fn serve_objects(before: impl Fn(&str, &str) + Sync + Send + 'static) -> (String, Objects) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (objects, before) = (Objects::default(), Arc::new(before));
    let all = Arc::clone(&objects);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let (objects, before) = (Arc::clone(&all), Arc::clone(&before));
            std::thread::spawn(move || answer_with(&objects, &*before, stream));
        }
    });
    (address, objects)
}

/// Bodies by their paths.
type Objects = Arc<Mutex<HashMap<String, String>>>;

fn answer_with(objects: &Objects, before: &dyn Fn(&str, &str), mut stream: TcpStream) {
    let request = read_request(&mut BufReader::new(&stream));
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let line = head.split(" HTTP/").next().unwrap();
    before(line, body);
    let (verb, path) = line.split_once(' ').unwrap();
    let mut objects = objects.lock().unwrap();
    let found = match verb {
        "PUT" => {
            objects.insert(path.to_owned(), body.to_owned());
            Some(String::new())
        }
        "DELETE" => {
            objects.remove(path);
            Some(String::new())
        }
        _ => objects.get(path).cloned(),
    };
    let (status, body) = found.map_or((404, MISSING.to_owned()), |body| (200, body));
    let length = body.len();
    let body = if verb == "HEAD" { "" } else { &body };
    let answer = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).unwrap();
}

#[test]
fn saves_under_two_days_that_cross_leave_a_document() {
    let (march_may_begin, march_begins) = bounded::<()>(1);
    let (march_is_late, march_waits) = bounded::<()>(1);
    let (april_is_done, april_ends) = bounded::<()>(1);
    let (address, objects) = serve_objects(move |line, body| {
        if line == format!("DELETE {MARCH}") {
            // The save under March begins when that under April has put its pointer, and writes its
            // document before this one is removed.
            march_may_begin.try_send(()).ok();
            march_waits.recv_timeout(PATIENCE).unwrap();
        } else if line == format!("PUT {POINTER}") && body == "2025/03/07" {
            march_is_late.try_send(()).ok();
            april_ends.recv_timeout(PATIENCE).unwrap();
        }
    });
    let put = |path: &str, body: &str| {
        let mut objects = objects.lock().unwrap();
        objects.insert(path.to_owned(), body.to_owned());
    };
    put(MARCH, "{}");
    put(POINTER, "2025/03/07");
    std::thread::scope(|scope| {
        let march = scope.spawn(|| {
            march_begins.recv_timeout(PATIENCE).unwrap();
            let mut storage = storage(&address);
            let mut save = || storage.save(&of_day("2025-03-07"), Deadline::NONE);
            let first = save();
            (first.clone(), first.or_else(|_| save()))
        });
        let april = storage(&address).save(&of_day("2025-04-01"), Deadline::NONE);
        assert_eq!(april, Ok(()));
        april_is_done.send(()).unwrap();
        let (first, last) = march.join().unwrap();
        assert_eq!(last, Ok(()));
        let mut left: Vec<String> = objects.lock().unwrap().keys().cloned().collect();
        left.sort();
        assert_eq!(left, [MARCH, POINTER]);
        assert!(first.unwrap_err().is_transient());
    });
    assert_eq!(objects.lock().unwrap()[POINTER], "2025/03/07");
}

#[test]
fn a_pointer_that_cannot_be_read_or_holds_no_day_is_written_over() {
    for answer in [
        (200, "../../x"),
        (200, ""),
        (403, DENIED),
        (403, "<Error><Code>InvalidObjectState</Code></Error>"),
        (404, ""),
    ] {
        let (address, server) = serve(&[answer, (200, ""), (200, "")]);
        let saved = storage(&address).save(&of_day("2025-04-01"), Deadline::NONE);
        assert_eq!(saved, Ok(()), "{answer:?}");
        let expected = [
            format!("get {POINTER}"),
            format!("put {APRIL}"),
            format!("put {POINTER}"),
        ];
        assert_eq!(lines(&requests(server)), expected, "{answer:?}");
    }
}

#[test]
fn a_server_that_cannot_show_a_pointer_now_is_waited_for() {
    for status in [408, 429, 500, 503] {
        let (address, server) = serve(&[(status, "")]);
        let saved = storage(&address).save(&of_day("2025-04-01"), Deadline::NONE);
        assert!(saved.unwrap_err().is_transient(), "{status}");
        requests(server);
    }
}

/// The signatures are those of botocore, for the same request.
#[test]
fn a_key_is_signed_and_sent_as_it_stands() {
    for (key, path, signature) in [
        (
            "2025/02/11/x.vcon",
            "/calls/2025/02/11/x.vcon",
            "576aad43a7b5c5e5a1f6d0cf5d2b2c05c9db6754d6eef75c9621d554afd72cf9",
        ),
        (
            "/vcons/x",
            "/calls//vcons/x",
            "06e1b6748848dbfe1f125a9caacfd056783037a5f22733fd5f6673a2990f818c",
        ),
        (
            "//a//b/",
            "/calls///a//b/",
            "48f1f970480c2987c2a3de3704b357e21fc54c514c95cdbf6c2defd59744dc2b",
        ),
        (
            "a/../b/./c/..",
            "/calls/a/../b/./c/..",
            "4f45558be8d49dd2959b549f234430f87dc2a2c777777d38c7e94339559ae5ec",
        ),
        (
            "..",
            "/calls/..",
            "c204fe3e4a052fe62ae7bd46c5bcada5f2e3ddcee7f445099858e3597c862806",
        ),
        (
            "100%+ü/?#&= ~",
            "/calls/100%25%2B%C3%BC/%3F%23%26%3D%20~",
            "245bfbcded01fbc126ac52a9e73794c8341fdcc3fcf24d8db5ebeb867d499cc7",
        ),
        (
            "%2e%2e/%2F",
            "/calls/%252e%252e/%252F",
            "a6adf36ea3edc6e037bfbd6e7d944920d5bbf3f5e02a42e148e8dc29ed2d5813",
        ),
    ] {
        let region = Region::Custom {
            region: "us-east-1".to_owned(),
            endpoint: "http://127.0.0.1:9000".to_owned(),
        };
        let keys = Credentials::new(Some("AKID"), Some("SECRET"), None, None, None);
        let bucket = Bucket::new("calls", region, keys.unwrap()).unwrap();
        let signed = request::sign_at(&bucket.with_path_style(), key, 1_739_261_700).unwrap();
        assert_eq!(signed.url, format!("http://127.0.0.1:9000{path}"));
        let header = signed.headers["authorization"].to_str().unwrap();
        assert!(
            header.ends_with(&format!("Signature={signature}")),
            "{key}: {header}"
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
    assert!(failure.message.contains("could not write"), "{failure}");
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

#[test]
fn of_an_error_only_the_beginning_is_read() {
    for lines in FLOODS {
        for status in [403, 500] {
            let error = "<Error><Code>Broken</Code><Message>no</Message>";
            let (address, server) = flood(status, lines, error, "<x>");
            let found = storage(&address).get(&of_day("2025-04-01").id, Deadline::NONE);
            let failure = found.unwrap_err();
            assert!(failure.is_transient(), "{failure}");
            assert!(failure.message.ends_with(": Broken: no"), "{failure}");
            assert!(server.join().unwrap() < FLOOD, "{lines}");
        }
    }
}

#[test]
fn an_object_that_is_too_long_is_not_read_to_its_end() {
    for lines in FLOODS {
        let (address, server) = flood(200, lines, "", " ");
        let found = storage(&address).get(&of_day("2025-04-01").id, Deadline::NONE);
        let failure = found.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Permanent, "{failure}");
        assert!(
            failure.message.ends_with("larger than 65536 bytes"),
            "{failure}"
        );
        assert!(server.join().unwrap() < FLOOD, "{lines}");
    }
}

#[test]
fn a_document_that_speaks_of_an_error_is_none() {
    let text = r#"{"subject":"<Code>AccessDenied</Code>"}"#;
    let (address, server) = serve(&[(200, "2025/04/01"), (200, text)]);
    let found = storage(&address).get(&of_day("2025-04-01").id, Deadline::NONE);
    assert_eq!(found, Ok(Some(text.to_owned())));
    server.join().unwrap();
}
