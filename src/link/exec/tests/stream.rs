//! Programs that stay.

use std::time::{Duration, Instant};

use super::*;

/// A program that answers each line with what the shell's `$line` makes of it.
fn stream(body: &str, more: &str) -> Box<dyn Link> {
    let text = format!("while read -r line; do {body}; done");
    let command = serde_json::json!(["sh", "-c", text]);
    opened(&format!("{{command: {command}, mode: stream, {more}}}"))
}

#[test]
fn one_program_answers_for_one_vcon_after_another() {
    let mut link = stream(r#"n=$((n+1)); echo "{\"vcon\":{\"n\":$n}}""#, "");
    for n in 1..=3 {
        let mut it = vcon("{\"a\":\n1}");
        assert_eq!(run(&mut *link, &mut it), Ok(Next::Continue));
        assert!(
            it.to_json().contains(&format!(r#""n":{n}"#)),
            "{}",
            it.to_json()
        );
    }
}

#[test]
fn requests_say_what_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("line");
    let body = format!("printf '%s\\n' \"$line\" >{}; echo '{{}}'", file.display());
    let mut link = stream(&body, "options: {a: 1, b: '2', c: [yes]}");
    let mut it = vcon("{\"x\":\r\n\"\\n\"}");
    assert_eq!(run(&mut *link, &mut it), Ok(Next::Continue));
    let line = std::fs::read_to_string(&file).unwrap();
    let id = it.id();
    assert_eq!(
        line,
        format!(
            "{{\"uuid\":\"{id}\",\"vcon\":{{\"x\":\"\\n\",\"vcon\":\"0.4.0\"}},\
             \"link\":\"\",\"options\":{{\"a\":1,\"b\":\"2\",\"c\":[true]}}}}\n"
        )
    );
}

#[test]
fn answers_say_what_to_do() {
    let switch = Next::Switch(OTHER.parse().unwrap());
    for (answer, expected) in [
        ("{}", Ok(Next::Continue)),
        (
            r#"{"vcon":null,"uuid":null,"halt":false}"#,
            Ok(Next::Continue),
        ),
        (r#"{"halt":true}"#, Ok(Next::Halt)),
        (&format!(r#"{{"uuid":"{OTHER}"}}"#), Ok(switch)),
        (
            r#"{"uuid":"x"}"#,
            Err((FailureKind::Permanent, "vCon that is none")),
        ),
        (
            r#"{"error":"no good"}"#,
            Err((FailureKind::Permanent, "no good")),
        ),
        (
            r#"{"error":"busy","transient":true}"#,
            Err((FailureKind::Transient, "busy")),
        ),
        (
            r#"{"vcon":[]}"#,
            Err((FailureKind::Permanent, "but an array")),
        ),
        (
            r#"{"vcom":{}}"#,
            Err((FailureKind::Permanent, "unknown field")),
        ),
        (
            "hello",
            Err((FailureKind::Permanent, "not in the protocol")),
        ),
        ("", Err((FailureKind::Permanent, "not in the protocol"))),
        (
            "{}\n{}",
            Err((FailureKind::Permanent, "more than one line")),
        ),
    ] {
        let mut link = stream(
            "printf '%s\\n' \"$ANSWER\"",
            &format!("env: {{ANSWER: {answer:?}}}"),
        );
        let ran = run(&mut *link, &mut vcon("{}"));
        match expected {
            Ok(next) => assert_eq!(ran, Ok(next), "{answer}"),
            Err((kind, part)) => {
                let (found, message) = failure(ran);
                assert_eq!(found, kind, "{answer}");
                assert!(message.contains(part), "{answer}: {message}");
            }
        }
    }
}

#[test]
fn a_program_that_has_ended_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let body = format!("echo $$ >{}; echo '{{}}'; exit", file.display());
    let mut link = stream(&body, "");
    for _ in 0..3 {
        assert_eq!(run(&mut *link, &mut vcon("{}")), Ok(Next::Continue));
        while runs(&file) {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_program_that_ends_while_it_has_a_vcon_has_crashed_and_one_that_cannot_begin_has_not() {
    let reads = stream("echo why >&2; exit 3", "");
    let is_killed = stream("kill -9 $$", "");
    let begins_in_vain = opened("{command: [sh, -c, 'echo why >&2; exit 3'], mode: stream}");
    for (mut link, kind, end) in [
        (reads, FailureKind::Crashed, "exit code 3: why"),
        (is_killed, FailureKind::Crashed, "killed by SIGKILL"),
        (begins_in_vain, FailureKind::Transient, "exit code 3: why"),
    ] {
        // Small, and more than a pipe holds.
        for size in [1, 1 << 20] {
            let document = format!("{{\"a\":\"{}\"}}", "x".repeat(size));
            let (found, message) = failure(run(&mut *link, &mut vcon(&document)));
            assert_eq!(found, kind, "{end}, {size}");
            assert_eq!(message, format!("`sh` ended without an answer, {end}"));
        }
    }
}

#[test]
fn a_program_that_does_not_answer_by_the_deadline_is_no_fault_of_the_vcon() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("there").display().to_string();
    let body = "[ -e \"$FILE\" ] || { touch \"$FILE\"; sleep 1000; }; echo '{}'";
    let mut link = stream(body, &format!("env: {{FILE: '{file}'}}"));
    let (kind, message) = failure(run_by_now(&mut *link, &mut vcon("{}")));
    assert_eq!(kind, FailureKind::Transient);
    let expected = "`sh` gave no answer within 1.0 s, what was left of the chain's timeout";
    assert_eq!(message, expected);
    assert_eq!(run_by_now(&mut *link, &mut vcon("{}")), Ok(Next::Continue));
    let mut once = script("sleep 1000", "");
    let (kind, message) = failure(run_by_now(&mut *once, &mut vcon("{}")));
    assert_eq!((kind, message.as_str()), (FailureKind::Transient, expected));
}

#[test]
fn what_is_said_without_being_asked_is_not_taken_for_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name| folder.path().join(name);
    let body = "echo $$ >pid; echo '{}'; until [ -e go ]; do sleep 0.01; done; \
                echo '{\"halt\":true}'; echo >said";
    let body = format!("cd {}; {body}", folder.path().display());
    let mut link = stream(&body, "");
    assert_eq!(run(&mut *link, &mut vcon("{}")), Ok(Next::Continue));
    let first = std::fs::read_to_string(file("pid")).unwrap();
    std::fs::write(file("go"), "").unwrap();
    while !file("said").exists() {
        std::thread::yield_now();
    }
    std::fs::remove_file(file("go")).unwrap();
    assert_eq!(run(&mut *link, &mut vcon("{}")), Ok(Next::Continue));
    assert_ne!(std::fs::read_to_string(file("pid")).unwrap(), first);
}

#[test]
fn a_program_that_does_not_answer_is_killed_at_its_limit_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("there").display().to_string();
    let body = "[ -e \"$FILE\" ] || { touch \"$FILE\"; sleep 1000; }; echo '{}'";
    let mut link = stream(body, &format!("timeout: 0.5, env: {{FILE: '{file}'}}"));
    let (kind, message) = failure(run(&mut *link, &mut vcon("{}")));
    assert_eq!(kind, FailureKind::Permanent);
    assert_eq!(message, "`sh` was killed at its time limit of 0.5 s");
    assert_eq!(run(&mut *link, &mut vcon("{}")), Ok(Next::Continue));
    let mut mute = opened("{command: [sh, -c, 'exec >&-; sleep 1000'], mode: stream}");
    let begun = Instant::now();
    let (_, message) = failure(run(&mut *mute, &mut vcon("{}")));
    assert_eq!(message, "`sh` closed its standard output");
    assert!(begun.elapsed() < Duration::from_secs(50));
}

#[test]
fn the_end_of_the_link_is_the_end_of_its_program() {
    let folder = tempfile::tempdir().unwrap();
    let (pid, bye) = (folder.path().join("pid"), folder.path().join("bye"));
    let text = format!(
        "sleep 1000 & echo $! >{}; while read -r line; do echo '{{}}'; done; echo >{}",
        pid.display(),
        bye.display()
    );
    let command = serde_json::json!(["sh", "-c", text]);
    let mut link = opened(&format!("{{command: {command}, mode: stream}}"));
    assert_eq!(run(&mut *link, &mut vcon("{}")), Ok(Next::Continue));
    assert!(runs(&pid));
    drop(link);
    assert!(bye.exists(), "it was not let to end by itself");
    while runs(&pid) {
        std::thread::yield_now();
    }
}
