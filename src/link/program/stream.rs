//! The stream protocol: one long-lived program, a line of JSON for each vCon and one as its answer.

use std::time::Duration;

use crossbeam_channel::Receiver;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::process::{Process, Until};
use super::{Clock, Program};
use crate::failure::Failure;
use crate::link::{Context, LinkError, Next};
use crate::vcon::VconId;

/// So many characters of an error are taken over.
const LONGEST_ERROR: usize = 2000;

/// A program that is kept running for one vCon after another, and started again when it has ended.
///
/// One that was ready and ends while it has a vCon has crashed on it. Ready is one that has answered
/// its greeting, and without a greeting, one that reads what it is asked: a program that cannot begin
/// ends before that, and is no vCon's fault.
pub(in crate::link) struct Stream {
    program: Program,
    /// What it is given at its start, and answers with a line of its own.
    greeting: Option<Vec<u8>>,
    /// The members of each request that are always the same, with a comma before each.
    constant: String,
    process: Option<Process>,
}

/// What a program answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::link) struct Reply {
    /// The document that takes the place of the vCon's.
    pub vcon: Option<Box<RawValue>>,
    /// The vCon that the rest of the chain is to work on.
    pub uuid: Option<String>,
    /// Whether the chain ends here.
    pub halt: bool,
    /// Why the work was not done.
    pub error: Option<String>,
    /// Whether the error is not the vCon's fault, so that trying again can help.
    pub transient: bool,
}

impl Reply {
    /// What the chain does next.
    pub fn next(&self, id: &VconId, name: &str) -> Result<Next, LinkError> {
        if self.halt {
            return Ok(Next::Halt);
        }
        match &self.uuid {
            None => Ok(Next::Continue),
            Some(uuid) if uuid == id.as_str() => Ok(Next::Continue),
            Some(uuid) => match uuid.parse() {
                Ok(other) => Ok(Next::Switch(other)),
                Err(error) => {
                    let message = format!("`{name}` answered with a vCon that is none: {error}");
                    Err(Failure::permanent(message).into())
                }
            },
        }
    }
}

impl Stream {
    /// A program that is not running yet. `options` is JSON. What it is greeted with it answers
    /// too.
    pub fn new(program: Program, link: &str, options: &str, greeting: Option<Vec<u8>>) -> Self {
        // Writing a string to memory does not fail.
        let link = serde_json::to_string(link).unwrap_or_default();
        Self {
            program,
            greeting,
            constant: one_line(format!(r#","link":{link},"options":{options}"#)),
            process: None,
        }
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The longest time that an [`ask`](Self::ask) takes: the program's start, and its work.
    pub fn longest_ask(&self) -> Duration {
        self.program.timeout.saturating_mul(2)
    }

    /// Asks for the work on a vCon, whose document goes along where it is given.
    pub fn ask(
        &mut self,
        id: &VconId,
        document: Option<String>,
        context: &Context<'_>,
    ) -> Result<Reply, LinkError> {
        let mut request = format!(r#"{{"uuid":"{id}""#);
        if let Some(document) = document {
            request.reserve(document.len() + self.constant.len() + 16);
            request.push_str(r#","vcon":"#);
            request.push_str(&one_line(document));
        }
        request.push_str(&self.constant);
        request.push_str("}\n");
        // What it takes to begin is not the vCon's.
        self.settle(&mut Clock::start(self.program.timeout, context))?;
        let mut clock = Clock::start(self.program.timeout, context);
        self.exchange(request.as_bytes(), &mut clock)
    }

    /// Answers whether the program can be started, and has begun; not for longer than until the
    /// worker drains.
    pub fn probe(&mut self, drain: &Receiver<()>) -> Result<(), Failure> {
        self.program.check()?;
        let mut clock = Clock::probing(self.program.timeout, drain);
        match self.settle(&mut clock) {
            Ok(()) => Ok(()),
            Err(LinkError::Failed(failure)) => Err(failure),
            Err(LinkError::Interrupted) => Err(Failure::transient("interrupted")),
        }
    }

    /// Makes sure that there is a process waiting for a request.
    fn settle(&mut self, clock: &mut Clock<'_>) -> Result<(), LinkError> {
        if let Some(process) = &mut self.process {
            if process.is_idle() {
                return Ok(());
            }
            let end = process.finish();
            let (name, reason) = (self.program.name(), process.tail().reason());
            log::warn!("`{name}` no longer works and is started again: {end}{reason}");
            self.process = None;
        }
        self.process = Some(self.program.start()?);
        let Some(greeting) = self.greeting.take() else {
            return Ok(());
        };
        let begun = self.exchange(&greeting, clock);
        self.greeting = Some(greeting);
        // What cannot begin works for no vCon at all.
        begun.map(|_| ()).map_err(|error| {
            self.process = None;
            match error {
                LinkError::Failed(failure) => Failure::transient(failure.message).into(),
                LinkError::Interrupted => error,
            }
        })
    }

    fn exchange(&mut self, input: &[u8], clock: &mut Clock<'_>) -> Result<Reply, LinkError> {
        let name = self.program.name();
        let Some(process) = &mut self.process else {
            return Err(Failure::transient(format!("`{name}` does not run")).into());
        };
        let most = self.program.most_output;
        let answer = process.exchange(input, Until::Line, most, clock);
        let failure = match answer.map(|line| read(&line)) {
            Ok(Ok(reply)) => return failed(reply, process),
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
        // Whatever it says next, it is not known which vCon that is about.
        self.process = None;
        Err(failure)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            process.dismiss();
        }
    }
}

fn read(line: &[u8]) -> Result<Reply, serde_json::Error> {
    serde_json::from_slice(line)
}

/// A reply that says what went wrong is a failure.
fn failed(reply: Reply, process: &Process) -> Result<Reply, LinkError> {
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
fn one_line(json: String) -> String {
    if json.contains(['\n', '\r']) {
        json.replace(['\n', '\r'], " ")
    } else {
        json
    }
}
