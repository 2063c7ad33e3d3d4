//! The attempts a lane makes at a link or storage before it lets go of the vCon.

use super::outage::Draining;
use super::{Backoff, Turn};
use crate::settings::Settings;

/// Attempts with growing pauses, and an end.
pub(super) struct Retry {
    backoff: Backoff,
    most: u32,
}

impl Retry {
    /// No attempt yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            backoff: Backoff::new(settings.retry_first, settings.retry_max),
            most: settings.retry_attempts,
        }
    }

    /// The number of the present attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.backoff.failures().saturating_add(1)
    }

    /// After a failed attempt: waits for the time of the next one; false where there is none.
    pub fn again(&mut self, turn: &Turn<'_>) -> Result<bool, Draining> {
        if self.attempt() >= self.most {
            return Ok(false);
        }
        turn.wait(self.backoff.next_wait())?;
        Ok(true)
    }
}
