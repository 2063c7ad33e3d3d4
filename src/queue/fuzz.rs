//! What a fuzzer runs on what stands in Redis.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;

use redis::Value;

use super::claim::{shown, texts};
use super::scripts::Step;
use super::{Expiry, Holder, KeptReason, NameLease, Queue, QueueError, Seat, Server};
use crate::settings::Settings;

/// Fields of one claim, as the claim's script answers them, with a line end between them; then the
/// same bytes as an answer of Redis, as a lease record and as the reason of a dead letter.
pub fn answer(data: &[u8]) {
    let cut = shown(data);
    assert!(
        cut.chars().count() <= 120 && !cut.chars().any(char::is_control),
        "{cut:?}"
    );
    if let KeptReason::Known {
        stage,
        worker,
        error,
        ..
    } = KeptReason::read(data)
    {
        assert!(stage.len() + worker.len() + error.len() <= data.len());
    }
    if let Ok(value) = redis::parse_redis_value(data) {
        claimed(value);
    }
    let fields = data.split(|byte| *byte == b'\n').take(9);
    claimed(Value::Array(
        fields
            .map(|field| Value::BulkString(field.to_vec()))
            .collect(),
    ));
    if let Ok(holder) = serde_json::from_slice::<Holder>(data) {
        let text = serde_json::to_string(&holder).unwrap();
        let again: Holder = serde_json::from_str(&text).unwrap();
        assert_eq!(again.host, holder.host);
    }
}

/// An answer to a claim is a claim of a list, or an error, whoever has written the record.
fn claimed(value: Value) {
    thread_local! {
        static QUEUE: RefCell<Queue> = RefCell::new(unreachable());
    }
    let fields = texts(value.clone());
    let result = QUEUE.with_borrow_mut(|queue| queue.claimed(value, Step::Claim, &[]));
    let Some(fields) = fields.filter(|fields| fields.len() == 9) else {
        return assert!(matches!(result, Err(QueueError::Answer(_))), "{result:?}");
    };
    let Ok(claimed) = result else {
        return;
    };
    let Some((claim, _)) = claimed.work else {
        return assert!(fields[0].is_empty());
    };
    assert_eq!((&claim.token, &claim.entry), (&fields[0], &fields[2]));
    assert_eq!(claim.list.as_str().as_bytes(), fields[1]);
    if let Some(id) = claim.id() {
        assert_eq!(id.as_str().as_bytes(), claim.entry);
    }
}

/// A queue without a server: whatever it asks for fails at once.
fn unreachable() -> Queue {
    let settings = |name: &str| (name == "REDIS_URL").then(|| "unix:///nowhere/redis.sock".into());
    let settings = Settings::from_lookup(&settings).unwrap();
    let seat = Seat {
        instance: "fuzz".to_owned(),
        worker: 1,
        lane: 1,
    };
    let lease = NameLease::new(&settings, Holder::this_process(1));
    let server = Server::new(&settings.redis_url).unwrap();
    Queue::new(server, seat, Expiry::of(&settings), lease)
}
