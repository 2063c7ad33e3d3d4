//! The stream protocol: one long-lived program, a line of JSON for each request and one as its answer.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::process::{Process, Until};
use super::{Clock, Program, ProgramError};
use crate::failure::Failure;

/// So many characters of an error are taken over.
const LONGEST_ERROR: usize = 2000;

/// A program that is kept running for one request after another, and started again when it has ended.
///
/// One that was ready and ends while it has a vCon has crashed on it. Ready is one that has answered
/// its greeting, and without a greeting, one that reads what it is asked: a program that cannot begin
/// ends before that, and is no vCon's fault.
pub struct Stream {
    program: Program,
    /// What it is given at its start, and answers with a line of its own.
    greeting: Option<Vec<u8>>,
    process: Option<Process>,
}

/// What a program answers. A link's program has the first five members; the rest is of the Python host.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reply {
    /// The document that takes the place of the vCon's, or that a storage has.
    pub vcon: Option<Box<RawValue>>,
    /// The vCon that the rest of the chain is to work on.
    pub uuid: Option<String>,
    /// Whether the chain ends here.
    pub halt: bool,
    /// Why the work was not done.
    pub error: Option<String>,
    /// Whether the error is not the vCon's fault, so that trying again can help.
    pub transient: bool,
    /// Whether a storage had the vCon that it has deleted.
    pub deleted: bool,
    /// The hooks that there are.
    pub hooks: Vec<String>,
    /// The functions that a storage has.
    pub functions: Vec<String>,
    /// The modules that cannot be used.
    pub missing: Vec<MissingModule>,
}

/// A Python module that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MissingModule {
    /// Its name.
    pub module: String,
    /// The error of the import, or what the module lacks.
    pub why: String,
    /// Whether the module itself was not found, so that to install it could help.
    #[serde(default)]
    pub absent: bool,
}

impl Stream {
    /// A program that is not running yet. What it is greeted with it answers too.
    pub fn new(program: Program, greeting: Option<Vec<u8>>) -> Self {
        Self {
            program,
            greeting,
            process: None,
        }
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Asks for work on a vCon: one line of JSON. What it takes to begin is not the vCon's: `clock` is
    /// started anew for each of both.
    pub fn ask<'a>(
        &mut self,
        request: &str,
        clock: impl Fn() -> Clock<'a>,
    ) -> Result<Reply, ProgramError> {
        self.begin(&mut clock())?;
        self.exchange(request.as_bytes(), &mut clock())
    }

    /// Makes sure that there is a process waiting for a request. Returns the answer to the greeting if
    /// it has just begun.
    ///
    /// # Errors
    /// It cannot begin, and works for no vCon at all.
    pub fn begin(&mut self, clock: &mut Clock<'_>) -> Result<Option<Reply>, ProgramError> {
        if let Some(process) = &mut self.process {
            if process.is_idle() {
                return Ok(None);
            }
            let end = process.finish();
            let (name, reason) = (self.program.name(), process.tail().reason());
            log::warn!("`{name}` no longer works and is started again: {end}{reason}");
            self.process = None;
        }
        self.process = Some(self.program.start()?);
        let Some(greeting) = self.greeting.take() else {
            return Ok(Some(Reply::default()));
        };
        let begun = self.exchange(&greeting, clock);
        self.greeting = Some(greeting);
        begun.map(Some).map_err(|error| {
            self.process = None;
            error.before_the_vcon()
        })
    }

    /// One request to the process that waits for it, and its answer.
    pub fn exchange(
        &mut self,
        request: &[u8],
        clock: &mut Clock<'_>,
    ) -> Result<Reply, ProgramError> {
        let name = self.program.name();
        let Some(process) = &mut self.process else {
            return Err(Failure::transient(format!("`{name}` does not run")).into());
        };
        let most = self.program.most_output;
        let answer = process.exchange(request, Until::Line, most, clock);
        let failure = match answer.map(|line| read(&line)) {
            Ok(Ok(reply)) => {
                let judged = failed(reply, process);
                // It belongs to work that is done, and is no reason of what comes next.
                process.forget_output();
                return judged;
            }
            Ok(Err(why)) => {
                // It may quote the answer, however long that is.
                let why = why.to_string();
                let why = process.tail().clean(why.as_bytes(), LONGEST_ERROR);
                let message = format!("the answer of `{name}` is not in the protocol: {why}");
                Failure::permanent(message).into()
            }
            Err(trouble) => {
                process.finish();
                self.program.fault(&trouble, process)
            }
        };
        // Whatever it says next, it is not known which request that is about.
        self.process = None;
        Err(failure)
    }

    /// Lets the program end, if it runs.
    pub fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.dismiss();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
    }
}

fn read(line: &[u8]) -> Result<Reply, serde_json::Error> {
    serde_json::from_slice(line)
}

/// A reply that says what went wrong is a failure.
fn failed(mut reply: Reply, process: &Process) -> Result<Reply, ProgramError> {
    for missing in &mut reply.missing {
        missing.why = process.tail().clean(missing.why.as_bytes(), LONGEST_ERROR);
    }
    let Some(error) = &reply.error else {
        return Ok(reply);
    };
    let message = process.tail().clean(error.as_bytes(), LONGEST_ERROR);
    Err(if reply.transient {
        Failure::transient(message).into()
    } else {
        Failure::permanent(message).into()
    })
}

/// JSON without line breaks, which it has only between its tokens.
pub fn one_line(json: String) -> String {
    if json.contains(['\n', '\r']) {
        json.replace(['\n', '\r'], " ")
    } else {
        json
    }
}
