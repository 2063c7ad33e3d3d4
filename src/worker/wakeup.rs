//! The wait of idle lanes.
//!
//! ```text
//! lane: nothing to claim ──► BLPOP on the wake list ──token, or the time is over──► claim
//!                                 ▲
//! main thread, prober ──unblock───┘  drain, end of a hold, nobody watches the ingress lists
//! ```
//!
//! No lane relies on the monitor, which watches the ingress lists for it: where that does not show
//! that it does, the waits are short. And no end of a worker relies on Redis: a lane in this wait
//! holds nothing, so the process may end around it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};

use crate::queue::{LaneWaker, Queue, QueueError, Server, Waited};
use crate::scoreboard::Slot;
use crate::settings::Settings;

/// The longest wait, well below the time that a command may take.
const LONGEST: Duration = Duration::from_secs(20);

/// The longest wait while nobody watches the ingress lists.
const UNWATCHED: Duration = Duration::from_millis(100);

/// Nobody watches them where the monitor has not shown it for so long.
const STALE: Duration = Duration::from_secs(1);

/// How a worker's idle lanes wait, and how they are woken.
pub(super) struct Wakeup {
    server: Server,
    slot: Slot,
    instance: String,
    tick: Duration,
    lanes: Box<[Waiter]>,
    has_refused: AtomicBool,
}

/// What others may know of a lane's wait.
#[derive(Default)]
struct Waiter {
    waits: AtomicBool,
    has_ended: AtomicBool,
    /// What the server calls its connection; 0 where the server does not tell.
    client: AtomicI64,
}

impl Wakeup {
    /// No lane waits yet.
    pub fn new(settings: &Settings, slot: Slot, server: Server) -> Self {
        Self {
            server,
            slot,
            instance: settings.instance.clone(),
            tick: settings.tick,
            lanes: (0..settings.concurrency)
                .map(|_| Waiter::default())
                .collect(),
            has_refused: AtomicBool::new(false),
        }
    }

    /// Has a lane, counted from 0, wait until there may be something to do, for `longest` at most if
    /// that is known. It must hold no claim.
    pub fn wait(
        &self,
        lane: usize,
        queue: &mut Queue,
        drain: &Receiver<()>,
        longest: Option<Duration>,
    ) -> Result<(), QueueError> {
        let Some(waiter) = self.lanes.get(lane) else {
            return Ok(());
        };
        waiter.client.store(queue.client_id()?, Ordering::SeqCst);
        // First it shows that it waits, then it looks for the drain: whoever begins the drain and
        // sees it wait knows that it claims nothing any more.
        waiter.waits.store(true, Ordering::SeqCst);
        let waited = if drain.try_recv() == Err(TryRecvError::Disconnected) {
            Ok(Waited::Woken)
        } else {
            let wait = longest_wait(self.tick, self.slot.since_watch());
            queue.wait_for_token(longest.map_or(wait, |longest| longest.min(wait)))
        };
        waiter.waits.store(false, Ordering::SeqCst);
        if let Waited::Refused(why) = waited? {
            if !self.has_refused.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "Redis does not let idle lanes wait, they look 10 times a second: {why}"
                );
            }
            // Its end by the drain is seen by whoever asked for the wait.
            let _ = drain.recv_timeout(UNWATCHED);
        }
        Ok(())
    }

    /// This lane has ended.
    pub fn note_end(&self, lane: usize) {
        if let Some(waiter) = self.lanes.get(lane) {
            waiter.has_ended.store(true, Ordering::SeqCst);
        }
    }

    /// Whether every lane has ended or waits.
    pub fn all_wait_or_have_ended(&self) -> bool {
        let idle = |waiter: &Waiter| {
            waiter.waits.load(Ordering::SeqCst) || waiter.has_ended.load(Ordering::SeqCst)
        };
        self.lanes.iter().all(idle)
    }

    /// Whether this lane waits. Once the drain has begun, one that does holds nothing and never
    /// will.
    pub fn is_waiting(&self, lane: usize) -> bool {
        let waiter = self.lanes.get(lane);
        waiter.is_some_and(|waiter| waiter.waits.load(Ordering::SeqCst))
    }

    /// Whether the monitor watches the ingress lists.
    pub fn is_watched(&self) -> bool {
        self.slot.since_watch() <= STALE
    }

    /// Has every lane of this worker that waits look for work.
    pub fn wake_all(&self) {
        self.wake_over(&mut self.waker());
    }

    /// What wakes lanes; for repeated use.
    pub fn waker(&self) -> LaneWaker {
        LaneWaker::new(self.server.clone(), &self.instance)
    }

    /// Like [`Wakeup::wake_all`].
    pub fn wake_over(&self, waker: &mut LaneWaker) {
        let waiting = self
            .lanes
            .iter()
            .filter(|waiter| waiter.waits.load(Ordering::SeqCst));
        let clients: Vec<i64> = waiting
            .map(|waiter| waiter.client.load(Ordering::SeqCst))
            .collect();
        if clients.is_empty() {
            return;
        }
        if let Err(error) = waker.wake(&clients) {
            log::debug!("idle lanes could not be woken: {error}");
        }
    }
}

/// The longest time that an idle lane waits, by how long ago the monitor has shown that it watches
/// the ingress lists.
fn longest_wait(tick: Duration, since_watch: Duration) -> Duration {
    if since_watch > STALE {
        tick.min(UNWATCHED)
    } else {
        tick.min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_as_long_as_the_tick_but_short_where_nobody_watches() {
        for (tick, since_watch, expected) in [
            (5_000, 0, 5_000),
            (5_000, 1_000, 5_000),
            (5_000, 1_001, 100),
            (5_000, u64::MAX, 100),
            (1, 0, 1),
            (50, 5_000, 50),
            (3_600_000, 200, 20_000),
        ] {
            let [tick, since_watch, expected] =
                [tick, since_watch, expected].map(Duration::from_millis);
            let wait = longest_wait(tick, since_watch);
            assert_eq!(wait, expected, "{tick:?}, {since_watch:?}");
        }
    }
}
