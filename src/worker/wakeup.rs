//! How idle lanes wait for work, and who wakes them.
//!
//! ```text
//! lane: nothing to claim ──► BLPOP on the wake list ──token, or the time is over──► claim
//!                                 ▲
//! main thread, prober ──unblock───┘  drain, end of a hold, the monitor stops watching
//! ```
//!
//! Tokens come from the monitor, which watches the ingress lists. No lane relies on that: if the
//! monitor does not show on the scoreboard that it watches, the waits are short. And the end of a worker
//! does not rely on Redis: a lane in this wait has no claim, so the process may end around it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};

use crate::queue::{LaneWaker, Queue, QueueError, Server, Waited};
use crate::scoreboard::Slot;
use crate::settings::Settings;

/// The longest wait, well below the time limit of a Redis command.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// The longest wait while the monitor does not watch the ingress lists.
const UNWATCHED_WAIT: Duration = Duration::from_millis(100);

/// The monitor watches them if it has shown that within this time.
const WATCH_SIGN_TTL: Duration = Duration::from_secs(1);

/// How a worker's idle lanes wait, and how they are woken.
pub(super) struct Wakeup {
    server: Server,
    slot: Slot,
    instance: String,
    tick: Duration,
    lanes: Box<[LaneWait]>,
    has_refused: AtomicBool,
}

/// What other threads know of a lane's wait.
#[derive(Default)]
struct LaneWait {
    is_waiting: AtomicBool,
    has_ended: AtomicBool,
    /// The client ID of its connection; 0 if the server does not tell.
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
                .map(|_| LaneWait::default())
                .collect(),
            has_refused: AtomicBool::new(false),
        }
    }

    /// Lets a lane, counted from 0, wait until there may be work, for `longest` at most if that is given. It
    /// must have no claim.
    pub fn wait(
        &self,
        lane: usize,
        queue: &mut Queue,
        drain: &Receiver<()>,
        longest: Option<Duration>,
    ) -> Result<(), QueueError> {
        let Some(lane_wait) = self.lanes.get(lane) else {
            return Ok(());
        };
        lane_wait.client.store(queue.client_id()?, Ordering::SeqCst);
        // First it shows that it waits, then it checks for the drain: whoever begins the drain and sees it
        // wait knows that it claims nothing any more.
        lane_wait.is_waiting.store(true, Ordering::SeqCst);
        let waited = if drain.try_recv() == Err(TryRecvError::Disconnected) {
            Ok(Waited::Woken)
        } else {
            let wait = longest_wait(self.tick, self.slot.since_watch());
            queue.wait_for_token(longest.map_or(wait, |longest| longest.min(wait)))
        };
        lane_wait.is_waiting.store(false, Ordering::SeqCst);
        if let Waited::Refused(why) = waited? {
            if !self.has_refused.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "Redis does not let idle lanes wait, they look for work 10 times a second: {why}"
                );
            }
            // The caller checks for the drain.
            let _ = drain.recv_timeout(UNWATCHED_WAIT);
        }
        Ok(())
    }

    /// This lane has ended.
    pub fn note_end(&self, lane: usize) {
        if let Some(lane_wait) = self.lanes.get(lane) {
            lane_wait.has_ended.store(true, Ordering::SeqCst);
        }
    }

    /// Whether every lane has ended or waits.
    pub fn all_wait_or_have_ended(&self) -> bool {
        let idle = |lane_wait: &LaneWait| {
            lane_wait.is_waiting.load(Ordering::SeqCst)
                || lane_wait.has_ended.load(Ordering::SeqCst)
        };
        self.lanes.iter().all(idle)
    }

    /// Whether this lane waits. Once the drain has begun, a waiting lane has no claim and makes none.
    pub fn is_waiting(&self, lane: usize) -> bool {
        let lane_wait = self.lanes.get(lane);
        lane_wait.is_some_and(|lane_wait| lane_wait.is_waiting.load(Ordering::SeqCst))
    }

    /// Whether the monitor watches the ingress lists.
    pub fn is_watched(&self) -> bool {
        self.slot.since_watch() <= WATCH_SIGN_TTL
    }

    /// Wakes every lane of this worker that waits.
    pub fn wake_all(&self) {
        self.wake_all_with(&mut self.waker());
    }

    /// A connection for [`Wakeup::wake_all_with`], to be used more than once.
    pub fn waker(&self) -> LaneWaker {
        LaneWaker::new(self.server.clone(), &self.instance)
    }

    /// Wakes every lane of this worker that waits, over this connection.
    pub fn wake_all_with(&self, waker: &mut LaneWaker) {
        self.wake_some(waker, usize::MAX);
    }

    /// Wakes as many lanes of this worker that wait, over this connection.
    pub fn wake_some(&self, waker: &mut LaneWaker, most: usize) {
        let waiting = self
            .lanes
            .iter()
            .filter(|lane_wait| lane_wait.is_waiting.load(Ordering::SeqCst));
        let clients: Vec<i64> = waiting
            .take(most)
            .map(|lane_wait| lane_wait.client.load(Ordering::SeqCst))
            .collect();
        if clients.is_empty() {
            return;
        }
        if let Err(error) = waker.wake(&clients) {
            log::debug!("could not wake idle lanes: {error}");
        }
    }
}

/// The longest wait, if the monitor has shown this long ago that it watches the ingress lists.
fn longest_wait(tick: Duration, since_watch: Duration) -> Duration {
    if since_watch > WATCH_SIGN_TTL {
        tick.min(UNWATCHED_WAIT)
    } else {
        tick.min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_as_long_as_the_tick_but_short_if_nobody_watches() {
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
