//! `links.python`: a link module of the existing deployment, unchanged, in an interpreter of its
//! own for each lane.
//!
//! Reads the options `module`, `path` (a string or a list, added to `sys.path`), `python` (the
//! interpreter, python3), `timeout` (seconds for each vCon, and for the import, 60), `env`,
//! `max_output`, `user`. Everything else, and what stands in the mapping `options`, is handed to the
//! module's `run`, which reads and writes the vCon in Redis itself. The interpreter gets `REDIS_URL`
//! as the daemon has it, which may hold a password, in its environment.
//!
//! [`PythonLink`] is any other entry of `links` whose module is Python's: all of these of a lane
//! share the lane's interpreter.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::{Context, Link, LinkError, Next};
use crate::failure::Failure;
use crate::options::Options;
use crate::program::{Clock, Program, ProgramError, Stream, one_line};
use crate::python::{self, Deaths, Host, PythonModule};
use crate::vcon::{Vcon, VconId};

/// `links.python`
struct Python {
    stream: Stream,
    /// What of each request is always the same.
    constant: String,
}

/// A link that is a Python module of the deployment.
pub(crate) struct PythonLink {
    module: Arc<PythonModule>,
    host: Host,
    deaths: Deaths,
    /// What of each request is always the same.
    constant: String,
}

/// The members of each request for a module that are always the same.
fn constant(module: &str, entry: &str, options: &str) -> String {
    // Writing a string to memory does not fail.
    let json = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let (module, entry) = (json(module), json(entry));
    one_line(format!(
        r#""module":{module},"name":{entry},"options":{options}"#
    ))
}

fn request(constant: &str, id: &VconId) -> String {
    format!("{{\"do\":\"link\",\"uuid\":\"{id}\",{constant}}}\n")
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
    let mut program = Program::open(options, python::arguments(&python, &module), &module);
    program.hand_on("REDIS_URL", python::passwords);
    let handed = options.rest_as_json("options");
    let loaded = serde_json::json!({"module": module, "kind": "link"});
    let setup = serde_json::json!({"path": path, "imports": [], "load": [loaded], "hooks": false});
    let greeting = format!("{}{setup}\n", python::SCRIPT).into_bytes();
    Box::new(Python {
        stream: Stream::new(program, Some(greeting)),
        constant: constant(&module, options.owner(), &handed),
    })
}

impl Link for Python {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        let timeout = self.stream.program().timeout();
        let request = request(&self.constant, vcon.id());
        let reply = self.stream.ask(&request, || context.clock(timeout))?;
        Next::of(&reply, vcon.id(), self.stream.program().name())
    }

    fn works_in_redis(&self) -> bool {
        true
    }

    fn longest_call(&self) -> Duration {
        // Its start, and its work.
        self.stream.program().timeout().saturating_mul(2)
    }

    fn check(&self) -> Result<(), String> {
        self.stream.program().account().map(drop)
    }

    fn probe(&mut self, drain: &Receiver<()>) -> Result<(), Failure> {
        super::probe(&mut self.stream, drain)
    }
}

impl PythonLink {
    /// One whose module is loaded, by this host, at its first use.
    pub fn new(module: &Arc<PythonModule>, host: &Host) -> Self {
        let options = module.options.as_deref().unwrap_or("null");
        let mut constant = constant(&module.module, &module.entry, options);
        if let Some(vendor) = module.vendor() {
            constant += &format!(r#","vendor":"{vendor}""#);
        }
        Self {
            module: Arc::clone(module),
            host: host.clone(),
            deaths: Deaths::default(),
            constant,
        }
    }

    fn timeout(&self) -> Duration {
        let own = self.module.timeout;
        own.unwrap_or(self.host.setup().settings.timeout)
    }
}

impl Link for PythonLink {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        let request = request(&self.constant, vcon.id());
        let clock = || context.clock(self.timeout());
        let reply = match self.host.call(Some(&self.module), &request, clock) {
            Err(ProgramError::Failed(failure)) => {
                return Err(self.deaths.judge(vcon.id(), failure).into());
            }
            replied => replied?,
        };
        Next::of(&reply, vcon.id(), &self.module.module)
    }

    fn works_in_redis(&self) -> bool {
        true
    }

    fn longest_call(&self) -> Duration {
        // The start of the interpreter, the import, and the call.
        self.timeout().saturating_mul(3)
    }

    fn probe(&mut self, drain: &Receiver<()>) -> Result<(), Failure> {
        let mut clock = Clock::probing(self.timeout(), drain);
        self.host.load(&self.module, &mut clock)?;
        Ok(())
    }
}

fn is_identifier(word: &str) -> bool {
    let mut letters = word.chars();
    let first = letters.next();
    first.is_some_and(|c| c.is_alphabetic() || c == '_')
        && letters.all(|c| c.is_alphanumeric() || c == '_')
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
            ("def walk(): pass", "steps.step has no function `run`"),
            ("a b", "SyntaxError: invalid syntax"),
            ("raise SystemExit(3)", "SystemExit: 3"),
        ] {
            let (folder, mut link) = link(text, "");
            let (kind, found) = failure(run(&mut *link));
            assert_eq!(kind, FailureKind::Transient);
            assert!(found.contains("steps.step"), "{found}");
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
