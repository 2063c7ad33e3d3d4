//! Learning of new work without taking it.
//!
//! `BLPOP` would wake an idle lane too, but it takes the entry out of Redis before anyone holds a
//! claim on it: a worker killed, or a connection cut, between the server's answer and the next
//! command loses the vCon. So nothing is popped while waiting. The server tracks the ingress
//! lists for one connection of the worker (server-assisted client-side caching, `CLIENT
//! TRACKING`, <https://redis.io/docs/latest/develop/reference/client-side-caching/>): reading
//! their lengths arms it, and the next change of any of them is pushed to us at once.

use std::time::Duration;

use super::scripts::Scripts;
use super::{Lease, QueueError, Server};
use crate::config::ListName;

/// A connection that is told when an ingress list changes.
pub struct Bell {
    lease: Lease,
    scripts: Scripts,
}

impl Bell {
    /// Connects and switches tracking on; `server` must be one [`Server::with_pushes`]. No wait
    /// will be longer than `tick`.
    pub fn connect(server: &Server, name: &str, tick: Duration) -> Result<Self, QueueError> {
        let mut lease = server.connect(name)?;
        redis::cmd("CLIENT")
            .arg("TRACKING")
            .arg("ON")
            .query::<()>(&mut *lease)?;
        lease.set_read_timeout(Some(tick))?;
        Ok(Self {
            lease,
            scripts: Scripts::new(),
        })
    }

    /// Returns as soon as one of the open lists holds work (at once where one does already), and
    /// at the latest after the tick. `lists` tells the open lists, and the others: a change of
    /// these too has it asked again, as one of them may have been opened in the meantime.
    pub fn wait(
        &mut self,
        lists: &dyn Fn() -> (Vec<ListName>, Vec<ListName>),
    ) -> Result<(), QueueError> {
        // The reading arms the tracking. A change after it is pushed behind the answer, so none
        // is missed between the two.
        while self.waiting(&lists())? == 0 {
            match self.lease.recv_response() {
                Ok(_) => {}
                Err(error) if error.is_timeout() => {
                    // The client library takes the silence for a late answer, and will drop the
                    // next one it reads: so there is one to drop.
                    self.lease
                        .send_packed_command(&redis::cmd("PING").get_packed_command())?;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn waiting(
        &mut self,
        (open, others): &(Vec<ListName>, Vec<ListName>),
    ) -> Result<i64, QueueError> {
        let mut call = self.scripts.waiting.prepare_invoke();
        for list in open.iter().chain(others) {
            call.key(list.as_str());
        }
        call.arg(open.len());
        Ok(call.invoke(&mut *self.lease)?)
    }
}
