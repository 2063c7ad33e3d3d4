//! `links.exec`: any program as a step, in any language.
//!
//! Reads the options `command` (a list, no shell), `mode` (once, stream), `timeout` (seconds for
//! each vCon, 60), `env` (variables besides PATH, HOME and LANG), `max_output` (bytes), `user` (a name or
//! an id, where the daemon may switch) and, for
//! `stream`, `options` (anything, handed to the program); writes what the program makes of the
//! vCon.
//!
//! `once`: the program is started for each vCon, which is its standard input. Exit code 0 with a
//! JSON object on standard output replaces the vCon, and without output leaves it; 79 ends the
//! chain. 75 (`EX_TEMPFAIL`), 126 and 127 (a shell's "cannot execute", "not found") and a signal
//! mean that the vCon is tried again; any other code is the vCon's fault.
//!
//! `stream`: one program for each lane, a line of JSON each way for each vCon: see [`Stream`].

use std::time::Duration;

use crossbeam_channel::Receiver;

use super::{Context, Link, LinkError, Next};
use crate::failure::Failure;
use crate::options::Options;
use crate::program::{Program, Ran, Stream, one_line};
use crate::settings::Critical;
use crate::sys::End;
use crate::vcon::{self, Vcon, VconError};

/// The exit code that ends the chain: one more than the last of sysexits.
const HALT: i32 = 79;

/// Exit codes for which the vCon is not to blame.
const PLACE: [i32; 3] = [75, 126, 127];

enum Exec {
    Once(Program),
    Stream {
        stream: Stream,
        /// The members of each request that are always the same, with a comma before each.
        constant: String,
    },
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    options.require("command");
    let command = options.strings("command");
    match command.as_slice() {
        [] if !options.is_given("command") => {}
        [] => options.fault("command", "needs at least the name of a program"),
        [line] if line.trim().contains(char::is_whitespace) => options.fault(
            "command",
            "is not split into words by a shell; write a list, as in [jq, -c, .]",
        ),
        [name, ..] if name.is_empty() => options.fault("command", "the program has no name"),
        _ => {}
    }
    if command.iter().any(|word| word.contains('\0')) {
        options.fault("command", "a word has a NUL in it");
    }
    let mode = options.word_or("mode", "once", &["once", "stream"]);
    let handed = options.json("options");
    let name = command.first().cloned().unwrap_or_default();
    let program = Program::open(options, command, &name);
    Box::new(match mode {
        Some("stream") => {
            // Writing a string to memory does not fail.
            let link = serde_json::to_string(options.owner()).unwrap_or_default();
            let handed = handed.as_deref().unwrap_or("{}");
            Exec::Stream {
                stream: Stream::new(program, None),
                constant: one_line(format!(r#","link":{link},"options":{handed}"#)),
            }
        }
        mode => {
            if handed.is_some() && mode.is_some() {
                let message = "are for `mode: stream`; give the program arguments in `command`";
                options.fault("options", message);
            }
            Exec::Once(program)
        }
    })
}

impl Link for Exec {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        match self {
            Self::Once(program) => once(program, vcon, context),
            Self::Stream { stream, constant } => {
                let document = one_line(vcon.to_json());
                let request = format!(
                    "{{\"uuid\":\"{}\",\"vcon\":{document}{constant}}}\n",
                    vcon.id()
                );
                let timeout = stream.program().timeout();
                let reply = stream.ask(&request, || context.clock(timeout))?;
                let name = stream.program().name();
                if let Some(document) = &reply.vcon {
                    replace(vcon, name, document.get().to_owned(), context)?;
                }
                Next::of(&reply, vcon.id(), name)
            }
        }
    }

    fn longest_call(&self) -> Duration {
        match self {
            Self::Once(program) => program.timeout(),
            // Its start, and its work.
            Self::Stream { stream, .. } => stream.program().timeout().saturating_mul(2),
        }
    }

    fn check(&self) -> Result<(), String> {
        let program = match self {
            Self::Once(program) => program,
            Self::Stream { stream, .. } => stream.program(),
        };
        program.account().map(drop)
    }

    fn probe(&mut self, drain: &Receiver<()>) -> Result<(), Failure> {
        match self {
            Self::Once(program) => program.check(),
            Self::Stream { stream, .. } => super::probe(stream, drain),
        }
    }
}

fn once(program: &Program, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
    let input = vcon.to_json();
    let mut clock = context.clock(program.timeout());
    let Ran {
        end,
        output,
        reason,
    } = program.run(input.as_bytes(), &mut clock)?;
    let name = program.name();
    match end {
        End::Exited(0) => {}
        End::Exited(HALT) => return Ok(Next::Halt),
        End::Exited(code) if !PLACE.contains(&code) => {
            return Err(Failure::permanent(format!("`{name}` failed, {end}{reason}")).into());
        }
        End::Killed { .. } => {
            return Err(Failure::crashed(format!("`{name}` failed, {end}{reason}")).into());
        }
        _ => return Err(Failure::transient(format!("`{name}` failed, {end}{reason}")).into()),
    }
    let output = String::from_utf8(output).map_err(|error| {
        Failure::permanent(format!("what `{name}` put out is not UTF-8: {error}"))
    })?;
    if !output.trim_ascii().is_empty() && output.trim_ascii() != input.trim_ascii() {
        replace(vcon, name, output, context)?;
    }
    Ok(Next::Continue)
}

fn replace(
    vcon: &mut Vcon,
    name: &str,
    document: String,
    context: &mut Context<'_>,
) -> Result<(), LinkError> {
    let extensions = vcon.unknown_extensions();
    let is_guarded = extensions.is_some() || vcon.sealed().is_some();
    // The same in other letters is no change.
    if is_guarded && vcon::digest(&document) == vcon::digest(&vcon.to_json()) {
        return Ok(());
    }
    match extensions {
        Some(extensions) if context.critical == Critical::Refuse => {
            return Err(Context::refusal(&extensions).into());
        }
        Some(extensions) => {
            context.left_alone = Some(extensions);
            return Ok(());
        }
        None => {}
    }
    if let Some(sealed) = vcon.sealed() {
        let error = VconError::Sealed(sealed);
        return Err(Failure::permanent(format!("`{name}` changed the vCon: {error}")).into());
    }
    vcon.replace(document)
        .map_err(|error| Failure::permanent(format!("the vCon that `{name}` put out {error}")))?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    // Real programs, well and badly behaved.

    use std::cell::Cell;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use crossbeam_channel::{Receiver, bounded, never};

    use super::*;
    use crate::deadline::Deadline;
    use crate::failure::FailureKind;
    use crate::options::Options;
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

    fn run_with(
        link: &mut dyn Link,
        vcon: &mut Vcon,
        drain: &Receiver<()>,
    ) -> Result<Next, LinkError> {
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
            ("{}", "command: is required"),
            (
                "{command: []}",
                "command: needs at least the name of a program",
            ),
            (
                "command: jq -c .",
                "command: is not split into words by a shell; write a list, as in [jq, -c, .]",
            ),
            ("command: ['']", "command: the program has no name"),
            ("{command: [a, \"\\0\"]}", "command: a word has a NUL in it"),
            (
                "{command: a, mode: twice}",
                "mode: \"twice\" is not once or stream",
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

    // Programs that stay.

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
}
