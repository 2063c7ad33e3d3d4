//! Several commands in one round trip.

use std::io::Write;

use redis::{Connection, Pipeline, RedisResult, Value};

/// A text up to this many bytes is copied in among the commands, so that all go out at once.
const SHORT: usize = 64 * 1024;

/// About the bytes of the commands around such a text.
const ROOM: usize = 2048;

/// Commands that are sent together; at most one of them holds a long text, which is not copied.
///
/// The client library's own pipelines copy their arguments more than once, and go on reading after
/// an answer that did not come in time, so that a server that hangs holds them up for one time
/// limit per command; this stops at the first.
pub(super) struct Request<'a> {
    before: Vec<u8>,
    text: &'a str,
    after: Vec<u8>,
    answers: usize,
}

impl<'a> Request<'a> {
    /// These commands.
    pub fn of(commands: &Pipeline) -> Self {
        Self {
            before: commands.get_packed_pipeline(),
            text: "",
            after: Vec::new(),
            answers: commands.len(),
        }
    }

    /// One command more: words, a text, words.
    pub fn command(mut self, first: &[&str], text: &'a str, last: &[&str]) -> Self {
        let count = first.len() + 1 + last.len();
        let out = &mut self.before;
        if text.len() <= SHORT {
            out.reserve(text.len() + ROOM);
        }
        push(out, format_args!("*{count}\r\n"));
        first.iter().for_each(|word| push_word(out, word));
        push(out, format_args!("${}\r\n", text.len()));
        if text.len() <= SHORT {
            out.extend_from_slice(text.as_bytes());
        } else {
            self.text = text;
        }
        let out = self.tail();
        out.extend_from_slice(b"\r\n");
        last.iter().for_each(|word| push_word(out, word));
        self.answers += 1;
        self
    }

    /// More commands.
    pub fn add(&mut self, commands: &Pipeline) {
        let packed = commands.get_packed_pipeline();
        self.tail().extend_from_slice(&packed);
        self.answers += commands.len();
    }

    /// Sends the commands and reads an answer to each; what the server refuses is among the
    /// answers, as [`Value::ServerError`].
    ///
    /// # Errors
    /// The connection failed; it is not to be used again.
    pub fn send(&self, connection: &mut Connection) -> RedisResult<Vec<Value>> {
        for bytes in [&*self.before, self.text.as_bytes(), &*self.after] {
            if !bytes.is_empty() {
                connection.send_packed_command(bytes)?;
            }
        }
        (0..self.answers)
            .map(|_| connection.recv_response())
            .collect()
    }

    fn tail(&mut self) -> &mut Vec<u8> {
        if self.text.is_empty() {
            &mut self.before
        } else {
            &mut self.after
        }
    }
}

fn push_word(out: &mut Vec<u8>, word: &str) {
    push(out, format_args!("${}\r\n{word}\r\n", word.len()));
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = out.write_fmt(text);
}

/// The answers to the commands of a transaction, from the answers to all that was sent from its
/// `MULTI` to its `EXEC`; what the server refuses when it comes to a command is among them.
///
/// # Errors
/// The first thing the server refused before the transaction.
pub(super) fn executed(mut answers: Vec<Value>) -> RedisResult<Vec<Value>> {
    let executed = answers.pop();
    // What was refused before EXEC says more than its "discarded because of previous errors".
    for answer in answers {
        answer.extract_error()?;
    }
    match executed {
        Some(Value::Array(answers)) => Ok(answers),
        Some(Value::ServerError(error)) => Err(error.into()),
        _ => Err((
            redis::ErrorKind::UnexpectedReturnType,
            "EXEC did not answer with a list",
        )
            .into()),
    }
}

/// Sends the commands together and reads an answer to each, as [`Request::send`] does.
pub(super) fn round_trip(
    connection: &mut Connection,
    commands: &Pipeline,
) -> RedisResult<Vec<Value>> {
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    Request::of(commands).send(connection)
}

/// Runs the commands as one transaction and gives the answer to each, as [`executed`] does.
///
/// # Errors
/// The first thing the server refused before the transaction, or the connection failed.
pub(super) fn transaction(
    connection: &mut Connection,
    commands: &Pipeline,
) -> RedisResult<Vec<Value>> {
    let mut steps = redis::pipe();
    steps.cmd("MULTI");
    for command in commands.cmd_iter() {
        steps.add_command(command.clone());
    }
    steps.cmd("EXEC");
    executed(round_trip(connection, &steps)?)
}
