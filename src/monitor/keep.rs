//! A thread of the monitor that keeps waiting vCons from running out, however long an outage, a
//! hold or a backlog lasts.
//!
//! Of all daemons on a Redis, one at a time does this (see [`Housekeeper`]), in small steps with pauses.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use indexmap::IndexSet;

use crate::child::Child;
use crate::config::{ListName, Plan};
use crate::queue::{Chore, Expiry, Housekeeper, HousekeepingLease, QueueError, Server};
use crate::scoreboard::Slot;
use crate::settings::Settings;

/// How often everything is looked through, by the time that documents live.
const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(600);

/// The pause after something went wrong.
const RETRY: Duration = Duration::from_secs(1);

/// The longest time to live of the lease of a keeper at work: if a keeper dies, another one goes on after it.
const LEASE: Duration = Duration::from_secs(10);

/// A pause is this many times as long as the step before it took: so the steps take 3% of the server's time.
const REST: u32 = 30;

/// How long the end of the daemon waits for the keeper to give its lease up.
const FAREWELL: Duration = Duration::from_millis(500);

/// The thread.
pub(super) struct Keeping(Option<Receiver<()>>);

impl Keeping {
    /// Waits for its end, once the monitor drains.
    pub(super) fn close(self) {
        if let Some(ended) = self.0 {
            // Nothing is sent: it is closed at the end. A lease that is kept runs out.
            let _ = ended.recv_timeout(FAREWELL);
        }
    }
}

/// Starts the thread; it lives until the monitor drains.
pub(super) fn start(child: &Child, settings: &Settings, server: &Server) -> io::Result<Keeping> {
    let Some(slot) = child.slot.clone() else {
        return Ok(Keeping(None));
    };
    // Documents are kept once half of their time has gone: two rounds fall into the other half, even if
    // the keeper changes in between.
    let period = (Duration::from_secs(settings.redis_expiry) / 6).clamp(SHORTEST, LONGEST);
    let lease = period.min(LEASE);
    let watch = Watch {
        keeper: Housekeeper::new(
            server.clone(),
            Expiry::of(settings),
            &settings.instance,
            lease,
        ),
        draining: child.draining.clone(),
        period,
        lease,
        slot,
        generation: None,
    };
    let (end, ended) = bounded::<()>(0);
    let work = move || {
        watch.run();
        drop(end);
    };
    let name = "keeper".to_owned();
    thread::Builder::new().name(name).spawn(work)?;
    Ok(Keeping(Some(ended)))
}

struct Watch {
    keeper: Housekeeper,
    draining: Receiver<()>,
    period: Duration,
    /// How long the keeper's lease lives.
    lease: Duration,
    slot: Slot,
    generation: Option<u64>,
}

impl Watch {
    fn run(mut self) {
        loop {
            self.follow_configuration();
            let pause = match self.look() {
                Ok(pause) if self.generation.is_some() => pause.min(self.period),
                Ok(_) => RETRY,
                Err(error) => {
                    log::debug!("could not keep waiting documents: {error}");
                    RETRY
                }
            };
            if self.draining.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                break;
            }
        }
        self.release();
    }

    /// Does the work, unless another daemon has done it not long ago, or does it. Returns how long it is
    /// until the next look.
    fn look(&mut self) -> Result<Duration, QueueError> {
        if let HousekeepingLease::Held(left) = self.keeper.take()? {
            return Ok(left.max(self.lease / 4));
        }
        let begun = Instant::now();
        if !self.work()? {
            return Ok(self.lease);
        }
        // Our own lease does not keep us from the next round, so that it is in time.
        let rest = (self.period.saturating_sub(begun.elapsed())).max(SHORTEST);
        self.keeper.rest(rest)?;
        Ok(rest)
    }

    /// Does the work as the holder of the lease; false if that is lost, or the monitor drains.
    fn work(&mut self) -> Result<bool, QueueError> {
        let (chores, steps) = self.keeper.filled()?;
        let longest = longest_pause(self.period, self.lease, steps);
        let draining = &self.draining;
        let mut pace = |took: Duration| {
            let pause = (took * REST).min(longest);
            draining.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
        };
        for chore in &chores {
            match self.keeper.run(chore, &mut pace) {
                Ok(Some(0)) => {}
                Ok(Some(count)) => log::debug!("{}: {count}", what(chore)),
                Ok(None) => return Ok(false),
                // What is wrong with one of them, such as a right that is missing, keeps nobody from the others.
                Err(error) if !error.breaks_connection() => {
                    log::debug!("{}: {error}", what(chore));
                }
                Err(error) => return Err(error),
            }
        }
        self.record_letters()?;
        Ok(true)
    }

    /// Goes on with the search for dead letter queues that nobody has recorded, for a part of the period: the
    /// next round is to be in time.
    fn record_letters(&mut self) -> Result<(), QueueError> {
        let (begun, most, longest) = (Instant::now(), self.period / 4, self.lease / 4);
        let draining = &self.draining;
        let mut pace = |took: Duration| {
            let pause = (took * REST).min(longest);
            draining.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) && begun.elapsed() < most
        };
        match self.keeper.record_dead_letter_lists(&mut pace) {
            Err(error) if !error.breaks_connection() => {
                log::debug!("could not search for dead letter queues: {error}");
                Ok(())
            }
            recorded => recorded,
        }
    }

    fn release(&mut self) {
        if let Err(error) = self.keeper.release() {
            log::debug!("the keeper's lease will run out by itself: {error}");
        }
    }

    fn follow_configuration(&mut self) {
        let generation = Some(self.slot.config_generation());
        if generation != self.generation
            && let Ok(plan) = Plan::load_kept(self.slot.config_path())
        {
            if self.generation.is_some() {
                self.release();
            }
            self.generation = generation;
            self.keeper.set_chores(chores(&plan));
        }
    }
}

/// The longest pause between two steps: all of them fall into half the period, and the lease does not run out.
fn longest_pause(period: Duration, lease: Duration, steps: u64) -> Duration {
    let steps = u32::try_from(steps).unwrap_or(u32::MAX).max(1);
    (period / 2 / steps).min(lease / 4)
}

/// What is to be done for a configuration.
fn chores(plan: &Plan) -> Vec<Chore> {
    let waiting = plan.ingress_lists().into_iter().map(Chore::Waiting);
    let backlogs = plan.deferring.iter().cloned().map(Chore::Backlog);
    let storages = plan.storages.iter().cloned().map(Chore::StorageReasons);
    // Those of chains out of service among them: of these the dead letters stay.
    let lists = plan.chains.iter().flat_map(|chain| &chain.ingress_lists);
    let lists: IndexSet<&ListName> = lists.collect();
    let reasons = lists.into_iter().cloned().map(Chore::Reasons);
    waiting
        .chain(backlogs)
        .chain(storages)
        .chain(reasons)
        .collect()
}

/// What was done, for the log.
fn what(chore: &Chore) -> String {
    match chore {
        Chore::Waiting(list) => format!("kept documents of list {list} from running out"),
        Chore::Backlog(storage) => {
            format!("kept documents of the backlog of storage {storage} from running out")
        }
        Chore::StorageReasons(storage) => {
            format!("dropped reasons of storage {storage} without entries")
        }
        Chore::Reasons(list) => format!("dropped reasons of list {list} without entries"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_fall_into_half_the_period_and_the_lease_outlives_a_pause() {
        let ms = Duration::from_millis;
        for (period, lease, steps, expected) in [
            (600_000, 10_000, 5000, 60),
            (600_000, 10_000, 0, 2500),
            (600_000, 10_000, 1, 2500),
            (666, 666, 1, 166),
            (600_000, 10_000, u64::MAX, 0),
        ] {
            let pause = longest_pause(ms(period), ms(lease), steps).as_millis();
            assert_eq!(pause, expected, "{steps}");
        }
    }
}
