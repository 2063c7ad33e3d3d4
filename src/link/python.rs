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
mod tests;
