//! How long a program may still work.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use super::Trouble;
use crate::deadline::{Deadline, Limit};
use crate::link::Context;

/// The longest pause before the worker's drain is noticed.
const TICK: Duration = Duration::from_millis(50);

/// The time limit of one piece of work, and what is left of it when the worker drains.
pub(in crate::link) struct Clock<'a> {
    limit: Limit,
    drain: &'a Receiver<()>,
    drain_time: Duration,
    /// When the time of the drain is over, where it has begun: one time for all work on a vCon.
    drain_end: Option<&'a Cell<Option<Instant>>>,
    draining_until: Option<Instant>,
}

impl<'a> Clock<'a> {
    /// Starts now, for work on a vCon that takes `own` at most, or what is left until its deadline.
    pub fn start(own: Duration, context: &Context<'a>) -> Self {
        Self {
            drain_time: context.drain_time,
            drain_end: context.drain_end,
            limit: context.deadline.begin(own),
            ..Self::probing(own, context.drain)
        }
    }

    /// Starts now, for work that ends as soon as the worker drains.
    pub fn probing(limit: Duration, drain: &'a Receiver<()>) -> Self {
        Self {
            limit: Deadline::NONE.begin(limit),
            drain,
            drain_time: Duration::ZERO,
            drain_end: None,
            draining_until: None,
        }
    }

    /// How long to wait at most before the next look at the clock.
    pub(super) fn tick(&mut self) -> Result<Duration, Trouble> {
        let now = Instant::now();
        if self.draining_until.is_none() && self.drain.try_recv() == Err(TryRecvError::Disconnected)
        {
            self.draining_until = Some(self.drain_end_from(now));
        }
        if self.draining_until.is_some_and(|until| until <= now) {
            return Err(Trouble::Interrupted);
        }
        if self.limit.is_over() {
            return Err(Trouble::TimedOut(self.limit));
        }
        Ok(TICK.min(self.limit.left()))
    }

    fn drain_end_from(&self, now: Instant) -> Instant {
        let known = self.drain_end.and_then(Cell::get);
        let end = known.unwrap_or_else(|| now + self.drain_time);
        if let Some(shared) = self.drain_end {
            shared.set(Some(end));
        }
        end
    }
}
