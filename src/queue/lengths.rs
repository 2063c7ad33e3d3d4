//! How long lists are.

use std::time::Duration;

use redis::RedisResult;

use super::{QueueError, Server};

/// Asks for the lengths of the lists of these names, within `limit`. What is not a list has none.
pub fn lengths(
    server: &Server,
    names: &[String],
    limit: Duration,
) -> Result<Vec<Option<u64>>, QueueError> {
    let mut lease = server.connect_within("conserver:lengths", limit)?;
    lease.set_read_timeout(Some(limit))?;
    let mut pipe = redis::pipe();
    pipe.ignore_errors();
    for name in names {
        pipe.cmd("LLEN").arg(name);
    }
    let answers: Vec<RedisResult<u64>> = pipe.query(&mut *lease)?;
    Ok(answers.into_iter().map(Result::ok).collect())
}
