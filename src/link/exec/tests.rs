//! Real programs, well and badly behaved.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, never};

use super::*;
use crate::config::Options;
use crate::deadline::Deadline;
use crate::failure::FailureKind;
use crate::vcon::{VconId, Version};

const OTHER: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

fn opened(options: &str) -> Box<dyn Link> {
    let mut options = Options::from_yaml(options);
    let link = open(&mut options);
    options.finish();
    assert_eq!(options.faults(), [""; 0]);
    link
}

/// A shell script, once for each vCon.
fn script(script: &str, more: &str) -> Box<dyn Link> {
    let command = serde_json::json!(["sh", "-c", script]);
    opened(&format!("{{command: {command}, {more}}}"))
}

fn vcon(text: &str) -> Vcon {
    Vcon::parse(VconId::random(), text.to_owned()).unwrap()
}

fn run_with(link: &mut dyn Link, vcon: &mut Vcon, drain: &Receiver<()>) -> Result<Next, LinkError> {
    link.run(vcon, &mut Context::new(drain, Version::Current))
}

fn run(link: &mut dyn Link, vcon: &mut Vcon) -> Result<Next, LinkError> {
    run_with(link, vcon, &never())
}

/// Runs it when its deadline has passed: what it asks for gets a second.
fn run_by_now(link: &mut dyn Link, vcon: &mut Vcon) -> Result<Next, LinkError> {
    let drain = never();
    let context = Context::new(&drain, Version::Current);
    link.run(vcon, &mut context.by(Deadline::after(Some(Duration::ZERO))))
}

fn failure(ran: Result<Next, LinkError>) -> (FailureKind, String) {
    let Err(LinkError::Failed(failure)) = ran else {
        unreachable!("{ran:?}")
    };
    (failure.kind, failure.message)
}

fn runs(path: &Path) -> bool {
    let pid = std::fs::read_to_string(path).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_json_object_replaces_the_vcon_and_no_output_keeps_it() {
    let mut it = vcon(r#"{"subject":"a","vcon":"0.4.0"}"#);
    assert_eq!(
        run(&mut *script("cat >/dev/null", ""), &mut it),
        Ok(Next::Continue)
    );
    assert_eq!(run(&mut *script("cat", ""), &mut it), Ok(Next::Continue));
    assert!(!it.is_changed());
    assert_eq!(
        run(&mut *script("sed s/a/b/", ""), &mut it),
        Ok(Next::Continue)
    );
    assert!(it.is_changed());
    assert!(
        it.to_json().contains(r#""subject":"b""#),
        "{}",
        it.to_json()
    );
}

#[test]
fn exit_codes_say_what_to_do() {
    let mut it = vcon("{}");
    assert_eq!(run(&mut *script("exit 79", ""), &mut it), Ok(Next::Halt));
    for (code, kind) in [
        (1, FailureKind::Permanent),
        (2, FailureKind::Permanent),
        (74, FailureKind::Permanent),
        (75, FailureKind::Transient),
        (126, FailureKind::Transient),
        (127, FailureKind::Transient),
    ] {
        let text = format!("echo one >&2; echo >&2; echo two >&2; exit {code}");
        let found = failure(run(&mut *script(&text, ""), &mut it));
        let message = format!("`sh` failed, exit code {code}: one | two");
        assert_eq!(found, (kind, message));
    }
    let (kind, message) = failure(run(&mut *script("kill -KILL $$", ""), &mut it));
    assert_eq!(kind, FailureKind::Crashed);
    assert_eq!(message, "`sh` failed, killed by SIGKILL");
}

#[test]
fn what_is_no_vcon_is_refused() {
    for (text, why) in [
        ("echo no", "is not JSON"),
        ("echo '[]'", "is not a JSON object but an array"),
        ("echo '{} {}'", "is not JSON: trailing characters"),
        (
            r#"echo '{"uuid":"x"}'"#,
            r#"has the uuid "x", which is another"#,
        ),
        (r"printf '\377'", "is not UTF-8"),
    ] {
        let mut it = vcon("{}");
        let (kind, message) = failure(run(&mut *script(text, ""), &mut it));
        assert_eq!(kind, FailureKind::Permanent);
        assert!(message.contains(why), "{text}: {message}");
        assert!(!it.is_changed());
    }
}

#[test]
fn a_sealed_vcon_is_handed_on_and_not_changed() {
    let signed = " {\"payload\":\"p\",\"signature\":\"s\"}\n";
    for text in ["cat", "true", "tr -d ' '"] {
        let mut it = vcon(signed);
        assert_eq!(run(&mut *script(text, ""), &mut it), Ok(Next::Continue));
        assert!(!it.is_changed(), "{text}");
        assert_eq!(it.to_json(), signed);
    }
    for text in ["echo '{}'", r#"sed 's/"s"/"t"/'"#] {
        let mut it = vcon(signed);
        let (kind, message) = failure(run(&mut *script(text, ""), &mut it));
        assert_eq!(kind, FailureKind::Permanent);
        assert!(message.contains("`sh` changed the vCon"), "{message}");
        assert!(message.contains("signed"), "{message}");
        assert!(!it.is_changed());
    }
}

#[test]
fn a_vcon_with_unknown_critical_extensions_is_not_changed() {
    let text = r#"{"vcon":"0.4.0","critical":["x_rules"],"a":1}"#;
    for (program, is_change) in [("cat", false), ("echo '{\"vcon\":\"0.4.0\"}'", true)] {
        for critical in [Critical::Pass, Critical::Refuse] {
            let drain = never();
            let mut context = Context::new(&drain, Version::Current);
            context.critical = critical;
            let mut it = vcon(text);
            let ran = script(program, "").run(&mut it, &mut context);
            if is_change && critical == Critical::Refuse {
                let (kind, message) = failure(ran);
                assert_eq!(kind, FailureKind::Permanent);
                assert!(message.contains("x_rules"), "{message}");
                assert_eq!(context.left_alone, None);
            } else {
                assert_eq!(ran, Ok(Next::Continue));
                let told = is_change.then(|| "x_rules".to_owned());
                assert_eq!(context.left_alone, told);
            }
            assert!(!it.is_changed());
            assert_eq!(it.to_json(), text);
        }
    }
}

#[test]
fn both_sides_of_a_large_document_go_on_at_the_same_time() {
    let large = format!(r#"{{"vcon":"0.4.0","a":"{}"}}"#, "x".repeat(3 << 20));
    // It answers before it reads, and complains all the while.
    let text = r#"printf '{"b":"'; head -c 3000000 /dev/zero | tr '\0' y; printf '"}';
        head -c 300000 /dev/zero | tr '\0' '\n' >&2; cat >/dev/null"#;
    let mut it = vcon(&large);
    assert_eq!(run(&mut *script(text, ""), &mut it), Ok(Next::Continue));
    assert!(it.to_json().contains("yyyy"));
    // One that reads nothing at all does no harm.
    let mut it = vcon(&large);
    assert_eq!(
        run(&mut *script("exec 0<&-; sleep 0.1", ""), &mut it),
        Ok(Next::Continue)
    );
}

#[test]
fn output_is_limited() {
    let mut it = vcon("{}");
    let mut link = script("yes", "max_output: 100000");
    let (kind, message) = failure(run(&mut *link, &mut it));
    assert_eq!(kind, FailureKind::Permanent);
    assert_eq!(message, "`sh` put out more than 100000 bytes (max_output)");
}

#[test]
fn at_the_time_limit_the_whole_group_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let text = format!(
        "echo so >&2; sleep 1000 & echo $! >{}; wait",
        file.display()
    );
    let mut link = script(&text, "timeout: 0.5");
    let (kind, message) = failure(run(&mut *link, &mut vcon("{}")));
    assert_eq!(kind, FailureKind::Permanent);
    assert_eq!(message, "`sh` was killed at its time limit of 0.5 s: so");
    while runs(&file) {
        std::thread::yield_now();
    }
}

#[test]
fn what_outlives_its_program_is_killed_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    // It holds the output open.
    let text = format!(
        "sleep 1000 & echo $! >{}; echo '{{\"a\":1}}'",
        file.display()
    );
    let mut it = vcon("{}");
    assert_eq!(
        run(&mut *script(&text, "timeout: 900"), &mut it),
        Ok(Next::Continue)
    );
    assert!(it.to_json().contains(r#""a":1"#));
    while runs(&file) {
        std::thread::yield_now();
    }
}

#[test]
fn a_drain_interrupts_when_its_time_is_up() {
    let (hold, drain) = bounded(0);
    drop(hold);
    let mut link = script("sleep 1000", "");
    let ran = run_with(&mut *link, &mut vcon("{}"), &drain);
    assert_eq!(ran, Err(LinkError::Interrupted));
    // What can be finished in that time is.
    let mut link = script("sleep 0.2; exit 79", "");
    let end = Cell::new(None);
    let context = Context::new(&drain, Version::Current);
    let mut context = context.finishing_within(Duration::from_secs(600), &end);
    assert_eq!(link.run(&mut vcon("{}"), &mut context), Ok(Next::Halt));
    // That time is one for all that work on the same vCon.
    assert!(end.get().is_some());
    let over = Cell::new(Some(Instant::now()));
    let mut link = script("sleep 1000", "");
    let context = Context::new(&drain, Version::Current);
    let mut context = context.finishing_within(Duration::from_secs(600), &over);
    let ran = link.run(&mut vcon("{}"), &mut context);
    assert_eq!(ran, Err(LinkError::Interrupted));
}

#[test]
fn a_program_that_is_not_there_is_a_fault_of_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("program");
    std::fs::write(&file, "#!/bin/sh\nexit 79\n").unwrap();
    for command in ["/nowhere/at/all", "no-such-program", file.to_str().unwrap()] {
        for mode in ["once", "stream"] {
            let mut link = opened(&format!("{{command: {command}, mode: {mode}}}"));
            let (kind, message) = failure(run(&mut *link, &mut vcon("{}")));
            assert_eq!(kind, FailureKind::Transient);
            assert!(message.contains(command), "{message}");
            let probed = link.probe(&never()).unwrap_err();
            assert!(probed.is_transient() && probed.message.contains(command));
        }
    }
    let mut link = opened("command: [sh, -c, 'exit 1']");
    assert_eq!(link.probe(&never()), Ok(()));
}

#[test]
fn no_descriptor_is_handed_on() {
    // One that is inherited unless somebody sees to it.
    let file = std::fs::File::open("/proc/self/status").unwrap();
    let kept = nix::unistd::dup(&file).unwrap();
    let text = "for fd in /proc/$$/fd/*; do readlink $fd; done >&2; exit 1";
    let (_, message) = failure(run(&mut *script(text, ""), &mut vcon("{}")));
    drop(kept);
    assert!(message.contains("pipe:"), "{message}");
    assert!(!message.contains("status"), "{message}");
}

#[test]
fn options_that_make_no_sense_are_faults() {
    for (text, expected) in [
        ("{}", "command: needs at least the name of a program"),
        (
            "command: jq -c .",
            "command: is not split into words by a shell; write a list, as in [jq, -c, .]",
        ),
        ("command: ['']", "command: the program has no name"),
        ("{command: [a, \"\\0\"]}", "command: a word has a NUL in it"),
        (
            "{command: a, mode: twice}",
            "mode: \"twice\" is neither once nor stream",
        ),
        ("{command: a, timeout: 0}", "timeout: must be more than 0"),
        (
            "{command: a, options: {b: 1}}",
            "options: are for `mode: stream`; give the program arguments in `command`",
        ),
        (
            "{command: a, mode: stream, options: [b]}",
            "options: is a list, not a mapping",
        ),
        (
            "{command: a, env: {'x=y': 1}}",
            "env: a name is empty, or has a `=` or a NUL in it",
        ),
        (
            "{command: a, env: {x: \"\\0\"}}",
            "env: a value has a NUL in it",
        ),
        (
            "{command: a, max_output: 0}",
            "max_output: \"0\" is not a whole number from 1 to 9223372036854775807",
        ),
    ] {
        let mut options = Options::from_yaml(text);
        let _ = open(&mut options);
        options.finish();
        assert_eq!(options.faults(), [expected], "{text}");
    }
}

mod stream;
