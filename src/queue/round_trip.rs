//! Several commands in one round trip.

use redis::{Connection, Pipeline, RedisResult, Value};

/// Sends the commands together and reads an answer to each; what the server refuses is among the
/// answers, as [`Value::ServerError`].
///
/// The client library's own pipelines go on reading after an answer that did not come in time, so
/// that a server that hangs holds them up for one time limit per command; this stops at the first.
///
/// # Errors
/// The connection failed; it is not to be used again.
pub(super) fn round_trip(
    connection: &mut Connection,
    commands: &Pipeline,
) -> RedisResult<Vec<Value>> {
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    connection.send_packed_command(&commands.get_packed_pipeline())?;
    (0..commands.len())
        .map(|_| connection.recv_response())
        .collect()
}

/// Runs the commands as one transaction and gives the answer to each; what the server refuses
/// when it comes to a command is among the answers.
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
    let mut answers = round_trip(connection, &steps)?;
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
