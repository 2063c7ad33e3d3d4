//! A server that is away: waited for with back-off, and reported once when it goes and once when
//! it is back.

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::{Backoff, Turn};
use crate::settings::Settings;

/// A server's absence, as one lane sees it.
pub(super) struct Outage {
    what: String,
    backoff: Backoff,
    since: Option<Instant>,
}

/// The worker drains; there is no time to wait.
pub(super) struct Draining;

impl Outage {
    /// No absence yet of `what`.
    pub fn new(what: impl Into<String>, settings: &Settings) -> Self {
        Self {
            what: what.into(),
            backoff: Backoff::new(settings.retry_first, settings.retry_max),
            since: None,
        }
    }

    /// Failures so far.
    pub fn failures(&self) -> u32 {
        self.backoff.failures()
    }

    /// Notes a failure and waits before the next try; ends early when the worker drains.
    pub fn wait(&mut self, why: &dyn Display, turn: &Turn<'_>) -> Result<(), Draining> {
        turn.wait(self.failed(why))
    }

    /// Notes a failure and waits before the next try, whatever happens.
    pub fn insist(&mut self, why: &dyn Display, turn: &Turn<'_>) {
        turn.insist(self.failed(why));
    }

    fn failed(&mut self, why: &dyn Display) -> Duration {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            log::warn!(
                "{} is away, trying again until it is back: {why}",
                self.what
            );
        } else {
            log::debug!("{} is still away: {why}", self.what);
        }
        self.backoff.next_wait()
    }

    /// The server has answered.
    pub fn over(&mut self) {
        if let Some(since) = self.since.take() {
            log::info!(
                "{} is back after {:.1} s",
                self.what,
                since.elapsed().as_secs_f64()
            );
            self.backoff.reset();
        }
    }
}
