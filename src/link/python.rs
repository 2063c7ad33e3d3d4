//! `links.python`: a link module of the existing deployment, unchanged, in an interpreter of its
//! own for each lane.
//!
//! Reads the options `module`, `path` (a string or a list, added to `sys.path`), `python` (the
//! interpreter, python3), `timeout` (seconds for each vCon, and for the import, 60), `env`,
//! `max_output`, `user`. Everything else, and what stands in the mapping `options`, is handed to the
//! module's `run`, which reads and writes the vCon in Redis itself. The interpreter gets `REDIS_URL`
//! as the daemon has it, which may hold a password, in its environment.
//!
//! The host script `packaging/python/conserver_link.py` is part of this program. The interpreter is
//! given it on standard input, so that there is no file to get out of step with the program, and
//! a short command line.

use std::time::Duration;

use crossbeam_channel::Receiver;

use super::program::{Program, Stream};
use super::{Context, Link, LinkError, Next};
use crate::failure::Failure;
use crate::options::Options;
use crate::secret::Secret;
use crate::vcon::Vcon;

/// What runs the module.
const HOST: &str = include_str!("../../packaging/python/conserver_link.py");

/// Reads the host and runs it: byte by byte, for what follows is the host's to read.
const BEGIN: &str = "import os; exec(compile(bytes(os.read(0, 1)[0] for _ in range(LENGTH)), \
    'conserver_link.py', 'exec'))";

struct Python {
    stream: Stream,
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let module = options.required_string("module");
    if !module.is_empty() && !module.split('.').all(is_identifier) {
        options.fault(
            "module",
            format!("{module:?} is not the name of a Python module"),
        );
    }
    let python = options.string_or("python", "python3");
    if python.is_empty() || python.contains('\0') {
        options.fault("python", "is not the name of a program");
    }
    let path = options.strings("path");
    let begin = BEGIN.replace("LENGTH", &HOST.len().to_string());
    let argv = vec![python, "-c".to_owned(), begin, module.clone()];
    let mut program = Program::open(options, argv, &module);
    program.hand_on("REDIS_URL", passwords);
    let handed = options.rest_as_json("options");
    let setup = serde_json::json!({"module": module, "path": path});
    let greeting = format!("{HOST}{setup}\n").into_bytes();
    let stream = Stream::new(program, options.owner(), &handed, Some(greeting));
    Box::new(Python { stream })
}

impl Link for Python {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        let reply = self.stream.ask(vcon.id(), None, context)?;
        reply.next(vcon.id(), self.stream.program().name())
    }

    fn works_in_redis(&self) -> bool {
        true
    }

    fn longest_call(&self) -> Duration {
        self.stream.longest_ask()
    }

    fn check(&self) -> Result<(), String> {
        self.stream.program().account().map(drop)
    }

    fn probe(&mut self, drain: &Receiver<()>) -> Result<(), Failure> {
        self.stream.probe(drain)
    }
}

fn is_identifier(word: &str) -> bool {
    let mut letters = word.chars();
    let first = letters.next();
    first.is_some_and(|c| c.is_alphabetic() || c == '_')
        && letters.all(|c| c.is_alphanumeric() || c == '_')
}

/// What of a URL must not be shown.
fn passwords(url: &str) -> Vec<Secret> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let user = rest.rsplit_once('@').map(|(user, _)| user);
    let password = user.and_then(|user| user.split_once(':')).map(|(_, it)| it);
    let value_of = |name: &str| {
        let (_, rest) = url.split_once(name)?;
        Some(rest.split_once('&').map_or(rest, |(value, _)| value))
    };
    let queries = [value_of("pass="), value_of("password=")];
    let found = [user, password].into_iter().chain(queries).flatten();
    found.map(Secret::new).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    // The host script, with modules that do not need Redis.

    use std::fs;

    use crossbeam_channel::never;

    use super::*;
    use crate::failure::FailureKind;
    use crate::vcon::{VconId, Version};

    const OTHER: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

    /// A link that runs this module.
    fn link(text: &str, more: &str) -> (tempfile::TempDir, Box<dyn Link>) {
        let folder = tempfile::tempdir().unwrap();
        let package = folder.path().join("steps");
        fs::create_dir(&package).unwrap();
        fs::write(package.join("step.py"), text).unwrap();
        let path = folder.path().display();
        let yaml = format!("{{module: steps.step, path: '{path}', {more}}}");
        let mut options = Options::from_yaml(&yaml);
        let link = open(&mut options);
        options.finish();
        assert_eq!(options.faults(), [""; 0]);
        (folder, link)
    }

    fn run(link: &mut dyn Link) -> Result<Next, LinkError> {
        let mut vcon = Vcon::parse(VconId::random(), "{}".to_owned()).unwrap();
        let never = never();
        let ran = link.run(&mut vcon, &mut Context::new(&never, Version::Current));
        assert!(!vcon.is_changed());
        ran
    }

    fn failure(ran: Result<Next, LinkError>) -> (FailureKind, String) {
        let Err(LinkError::Failed(failure)) = ran else {
            unreachable!("{ran:?}")
        };
        (failure.kind, failure.message)
    }

    #[test]
    fn what_run_returns_says_how_the_chain_goes_on() {
        for (body, expected) in [
            ("return vcon_uuid", Ok(Next::Continue)),
            ("return True", Ok(Next::Continue)),
            ("return None", Ok(Next::Halt)),
            ("return False", Ok(Next::Halt)),
            ("pass", Ok(Next::Halt)),
            (
                &format!("import uuid; return uuid.UUID('{OTHER}')"),
                Ok(Next::Switch(OTHER.parse().unwrap())),
            ),
            (
                "return 'x'",
                Err(
                    "`steps.step` answered with a vCon that is none: \"x\" is not a UUID of the form 8-4-4-4-12",
                ),
            ),
            ("raise ValueError('no\\ngood')", Err("ValueError: no good")),
            ("raise KeyError('a')", Err("KeyError: 'a'")),
            ("raise ValueError('\\ud800')", Err("ValueError: ?")),
            ("import sys; sys.exit(3)", Err("SystemExit: 3")),
            ("exec('a b')", Err("File \"<string>\", line 1 a b")),
        ] {
            let (_folder, mut link) = link(
                &format!("def run(vcon_uuid, name, opts):\n    {body}\n"),
                "",
            );
            for _ in 0..2 {
                match &expected {
                    Ok(next) => assert_eq!(run(&mut *link).as_ref(), Ok(next), "{body}"),
                    Err(text) => {
                        let (kind, message) = failure(run(&mut *link));
                        assert_eq!(kind, FailureKind::Permanent);
                        assert!(message.starts_with(text), "{body}: {message}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_server_that_is_away_is_no_fault_of_the_vcon() {
        for (body, message) in [
            (
                "raise ConnectionRefusedError('a')",
                "ConnectionRefusedError: a",
            ),
            (
                "class Timeout(Exception): pass\n    raise Timeout('b')",
                "b",
            ),
            (
                "class ConnectionError(Exception): pass\n    class Mine(ConnectionError): pass\n    raise Mine('c')",
                "c",
            ),
        ] {
            let (_folder, mut link) = link(
                &format!("def run(vcon_uuid, name, opts):\n    {body}\n"),
                "",
            );
            let (kind, found) = failure(run(&mut *link));
            assert_eq!(kind, FailureKind::Transient, "{body}");
            assert!(found.ends_with(message), "{found}");
        }
    }

    #[test]
    fn state_is_kept_and_whatever_is_printed_does_no_harm() {
        let text = "
import os, subprocess, sys
count = 0
print('{\"halt\": true}')
def run(vcon_uuid, link_name, opts):
    global count
    count += 1
    print('{\"halt\": true}')
    os.write(1, b'{\"halt\": true}\\n')
    subprocess.run(['echo', '{\"halt\": true}'], check=True)
    assert subprocess.run(['cat'], stdout=subprocess.PIPE, check=True).stdout == b''
    assert sys.stdin.read() == ''
    if count == 3:
        raise ValueError(count)
    return vcon_uuid
";
        let (_folder, mut link) = link(text, "");
        assert_eq!(run(&mut *link), Ok(Next::Continue));
        assert_eq!(run(&mut *link), Ok(Next::Continue));
        assert_eq!(failure(run(&mut *link)).1, "ValueError: 3");
    }

    #[test]
    fn coroutines_are_run() {
        let text = "
import asyncio
async def run(vcon_uuid, link_name, opts):
    await asyncio.sleep(0)
    return vcon_uuid
";
        let (_folder, mut link) = link(text, "");
        assert_eq!(run(&mut *link), Ok(Next::Continue));
    }

    #[test]
    fn everything_else_is_handed_to_the_module() {
        let text = "
import os
def run(vcon_uuid, link_name, opts):
    raise ValueError([opts, os.environ.get('KEY'), 'CARGO' in os.environ])
";
        let more = "prompt: 'a', top: 0.5, none: , list: [1, '2'], env: {KEY: v}, timeout: 50, \
                options: {timeout: 7, module: x}";
        let (_folder, mut link) = link(text, more);
        assert_eq!(
            failure(run(&mut *link)).1,
            "ValueError: [{'prompt': 'a', 'top': 0.5, 'none': None, 'list': [1, '2'], \
         'timeout': 7, 'module': 'x'}, 'v', False]"
        );
    }

    #[test]
    fn a_module_that_cannot_be_imported_is_a_fault_of_the_place() {
        for (text, message) in [
            (
                "import nothing_of_this_name",
                "ModuleNotFoundError: No module named",
            ),
            ("def walk(): pass", "AttributeError: "),
            ("a b", "SyntaxError: invalid syntax"),
            ("raise SystemExit(3)", "SystemExit: 3"),
        ] {
            let (folder, mut link) = link(text, "");
            let (kind, found) = failure(run(&mut *link));
            assert_eq!(kind, FailureKind::Transient);
            assert!(
                found.starts_with("could not import steps.step: "),
                "{found}"
            );
            assert!(found.contains(message), "{found}");
            assert!(link.probe(&never()).is_err());
            fs::write(
                folder.path().join("steps/step.py"),
                "def run(a, b, c): return a\n# longer now",
            )
            .unwrap();
            assert_eq!(link.probe(&never()), Ok(()));
            assert_eq!(run(&mut *link), Ok(Next::Continue));
        }
    }

    #[test]
    fn an_interpreter_that_does_not_begin_is_a_fault_of_the_place() {
        let text = "def run(a, b, c): return a";
        for (python, message) in [
            (
                "/nowhere/python3",
                "could not start `/nowhere/python3`: No such file",
            ),
            ("false", "`steps.step` ended without an answer, exit code 1"),
            ("echo", "not in the protocol"),
        ] {
            let (_folder, mut link) = link(text, &format!("python: {python}"));
            let (kind, found) = failure(run(&mut *link));
            assert_eq!(kind, FailureKind::Transient);
            assert!(found.contains(message), "{found}");
        }
    }

    #[test]
    fn passwords_of_a_url_are_known() {
        for (url, secrets) in [
            ("redis://localhost", &[] as &[&str]),
            ("redis://user:word@host:1/2", &["user:word", "word"]),
            ("rediss://:w@rd@host", &[":w@rd", "w@rd"]),
            ("unix:///run/redis?db=1&pass=word&user=u", &["word"]),
            ("redis://h?sentinel_password=word", &["word"]),
        ] {
            let found = passwords(url);
            let found: Vec<&str> = found.iter().map(Secret::reveal).collect();
            assert_eq!(found, secrets, "{url}");
        }
    }

    #[test]
    fn options_that_make_no_sense_are_faults() {
        for (text, expected) in [
            ("{}", "module: is required"),
            (
                "module: links/tag",
                "module: \"links/tag\" is not the name of a Python module",
            ),
            (
                "module: a..b",
                "module: \"a..b\" is not the name of a Python module",
            ),
            (
                "{module: a, python: ''}",
                "python: is not the name of a program",
            ),
            (
                "{module: a, options: 7}",
                "options: is a single value, not a mapping",
            ),
            ("{module: a, timeout: 0}", "timeout: must be more than 0"),
        ] {
            let mut options = Options::from_yaml(text);
            let _ = open(&mut options);
            options.finish();
            assert_eq!(options.faults(), [expected], "{text}");
        }
    }

    #[test]
    fn an_import_that_takes_too_long_is_a_fault_of_the_place() {
        let text = "import time; time.sleep(1000)";
        let (_folder, mut link) = link(text, "timeout: 0.5");
        let (kind, found) = failure(run(&mut *link));
        assert_eq!(kind, FailureKind::Transient);
        assert!(found.contains("time limit of 0.5 s"), "{found}");
    }

    #[test]
    fn an_interpreter_that_dies_of_a_vcon_has_crashed() {
        let text = "import os\ndef run(a, b, c): os._exit(3)";
        let (_folder, mut link) = link(text, "");
        for _ in 0..2 {
            let (kind, found) = failure(run(&mut *link));
            assert_eq!(kind, FailureKind::Crashed);
            assert_eq!(found, "`steps.step` ended without an answer, exit code 3");
        }
    }
}
