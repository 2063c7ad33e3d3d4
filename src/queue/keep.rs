//! Documents whose vCons wait in a list must not run out before their turn has come.

use redis::Script;

use super::scripts::keep;
use super::{Expiry, Lease, QueueError, Server};
use crate::config::ListName;

/// Entries looked at in one step on the server; it does nothing else in that time.
const STEP: i64 = 200;

/// Keeps the documents of waiting vCons alive.
pub struct Keeper {
    server: Server,
    connected: Option<Lease>,
    script: Script,
    expiry: Expiry,
}

impl Keeper {
    /// One that connects when first used.
    pub fn new(server: Server, expiry: Expiry) -> Self {
        Self {
            server,
            connected: None,
            script: keep(),
            expiry,
        }
    }

    /// Looks at every entry of the list, and gives each document of which less than half of its
    /// time is left the whole of it again. Answers how many got it.
    pub fn keep(&mut self, list: &ListName) -> Result<u64, QueueError> {
        let kept = self.keep_all(list);
        if kept.is_err() {
            self.connected = None;
        }
        kept
    }

    fn keep_all(&mut self, list: &ListName) -> Result<u64, QueueError> {
        let connection = match &mut self.connected {
            Some(connection) => connection,
            empty => empty.insert(self.server.connect("conserver:keeper")?),
        };
        let mut kept = 0;
        // From the end: what is taken from the head meanwhile does not move what comes next, and
        // what is added at the end is looked at again or is new.
        let mut last = -1;
        loop {
            let mut call = self.script.key(list.as_str());
            call.arg(last + 1 - STEP).arg(last);
            call.arg(self.expiry.document).arg(self.expiry.context);
            let (seen, more): (i64, u64) = call.invoke(&mut **connection)?;
            kept += more;
            if seen < STEP {
                return Ok(kept);
            }
            last -= STEP;
        }
    }
}
