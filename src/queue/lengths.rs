//! How long lists are.

use std::time::Duration;

use redis::Value;

use super::round_trip::round_trip;
use super::{QueueError, Server};

/// Asks for the lengths of the lists of these names, within `limit`. What is not a list has none.
pub fn lengths(
    server: &Server,
    names: &[String],
    limit: Duration,
) -> Result<Vec<Option<u64>>, QueueError> {
    let mut lease = server.connect_within("conserver:lengths", limit)?;
    lease.set_read_timeout(Some(limit))?;
    let mut asked = redis::pipe();
    for name in names {
        asked.cmd("LLEN").arg(name);
    }
    let answers = round_trip(&mut lease, &asked)?;
    let length = |answer: Value| redis::from_redis_value(answer).ok();
    Ok(answers.into_iter().map(length).collect())
}
