//! Keys and answers of `storage.s3`; no server.
#![allow(clippy::unwrap_used)]

use super::*;

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
