//! How long a program may still work.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use super::Trouble;
use crate::link::Context;

/// The longest pause before the worker's drain is noticed.
const TICK: Duration = Duration::from_millis(50);

/// The time limit of one piece of work, and what is left of it when the worker drains.
pub(in crate::link) struct Clock<'a> {
    deadline: Instant,
    drain: Option<&'a Receiver<()>>,
    drain_time: Duration,
    draining_until: Option<Instant>,
}

impl<'a> Clock<'a> {
    /// Starts now, for work on a vCon.
    pub fn start(limit: Duration, context: &Context<'a>) -> Self {
        Self {
            drain: Some(context.drain),
            drain_time: context.drain_time,
            ..Self::alone(limit)
        }
    }

    /// Starts now, whether the worker drains or not.
    pub fn alone(limit: Duration) -> Self {
        Self {
            deadline: Instant::now() + limit,
            drain: None,
            drain_time: Duration::ZERO,
            draining_until: None,
        }
    }

    /// How long to wait at most before the next look at the clock.
    pub(super) fn tick(&mut self) -> Result<Duration, Trouble> {
        let now = Instant::now();
        if self.draining_until.is_none()
            && let Some(drain) = self.drain
            && drain.try_recv() == Err(TryRecvError::Disconnected)
        {
            self.draining_until = Some(now + self.drain_time);
        }
        if self.draining_until.is_some_and(|until| until <= now) {
            return Err(Trouble::Interrupted);
        }
        if self.deadline <= now {
            return Err(Trouble::TimedOut);
        }
        Ok(TICK.min(self.deadline - now))
    }
}
