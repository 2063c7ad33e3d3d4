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
//! are faults of the place, every other code is an error of this vCon's.
//!
//! `stream`: one program for each lane, a line of JSON each way for each vCon: see [`Stream`].

use std::time::Duration;

use crossbeam_channel::Receiver;

use super::program::{Clock, Program, Ran, Stream};
use super::{Context, Link, LinkError, Next};
use crate::failure::Failure;
use crate::options::Options;
use crate::settings::Critical;
use crate::sys::End;
use crate::vcon::{self, Vcon, VconError};

/// The exit code that ends the chain: one more than the last of sysexits.
const HALT: i32 = 79;

/// Exit codes for which the vCon is not to blame.
const PLACE: [i32; 3] = [75, 126, 127];

enum Exec {
    Once(Program),
    Stream(Stream),
}

pub(super) fn open(options: &mut Options) -> Box<dyn Link> {
    let command = options.strings("command");
    match command.as_slice() {
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
    let mode = options.string_or("mode", "once");
    let handed = options.json("options");
    let name = command.first().cloned().unwrap_or_default();
    let program = Program::open(options, command, &name);
    Box::new(match mode.as_str() {
        "stream" => {
            let link = options.owner().to_owned();
            let handed = handed.as_deref().unwrap_or("{}");
            Exec::Stream(Stream::new(program, &link, handed, None))
        }
        "once" => {
            if handed.is_some() {
                let message = "are for `mode: stream`; give the program arguments in `command`";
                options.fault("options", message);
            }
            Exec::Once(program)
        }
        other => {
            options.fault("mode", format!("{other:?} is neither once nor stream"));
            Exec::Once(program)
        }
    })
}

impl Link for Exec {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        match self {
            Self::Once(program) => once(program, vcon, context),
            Self::Stream(stream) => {
                let document = vcon.to_json();
                let reply = stream.ask(vcon.id(), Some(document), context)?;
                if let Some(document) = &reply.vcon {
                    let name = stream.program().name();
                    replace(vcon, name, document.get().to_owned(), context)?;
                }
                reply.next(vcon.id(), stream.program().name())
            }
        }
    }

    fn longest_call(&self) -> Duration {
        match self {
            Self::Once(program) => program.timeout(),
            Self::Stream(stream) => stream.longest_ask(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let program = match self {
            Self::Once(program) => program,
            Self::Stream(stream) => stream.program(),
        };
        program.account().map(drop)
    }

    fn probe(&mut self, drain: &Receiver<()>) -> Result<(), Failure> {
        match self {
            Self::Once(program) => program.check(),
            Self::Stream(stream) => stream.probe(drain),
        }
    }
}

fn once(program: &Program, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
    let input = vcon.to_json();
    let mut clock = Clock::start(program.timeout(), context);
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
mod tests;
