//! How a claim ends that did not get to the end of its chain.
//!
//! ```text
//! interrupted by a drain ─────────────► head of its list
//! unavailable ─┬─ the probe fails ────► head of its list, and its chain is on hold
//!              └─ the probe succeeds ─► end of its list; after too many rounds a dead letter
//! failed ─────────────────────────────► dead letter; back to the end of its list if others are
//!                                       refused for the same reason
//! ```
//!
//! What has been done by then is written to Redis, and the next claim goes on from there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::circuit_breaker::hold;
use super::fault::{Ending, Fault, Stage};
use super::job::Job;
use super::pipeline::{Pipeline, refused_by};
use super::progress::Progress;
use super::refusals::Letter;
use super::retry::{ALONE, Backoff, CRASHED, ROUND_PAUSE, SLOW, SLOW_ALONE};
use crate::failure::FailureKind;
use crate::queue::{
    self, Claim, Document, Evidence, FailedStorage, Finish, Finished, Queue, QueueError, Reason,
    Released, dead_letter_list,
};
use crate::scoreboard::{Event, Outcome};
use crate::vcon::VconId;

/// So often what was written meanwhile is merged before a claim is let go.
const MOST_MERGES: u32 = 5;

/// The worker drains, and a claim may still be held.
struct ClaimLeft;

impl Pipeline<'_, '_, '_> {
    /// Lets go of the claim in the way that the ending asks for; a Redis that is away is waited for.
    ///
    /// Returns false if the claim may still be held: the worker drains, and Redis is away.
    pub(super) fn release(&mut self, job: Option<Job>, ending: Ending, start: Instant) -> bool {
        let mut job = job;
        let released = match ending {
            Ending::ClaimLeft => Err(ClaimLeft),
            Ending::NotOurs => Ok(Released::NotOurs),
            Ending::Interrupted => self.put_back(&mut job, Outcome::Returned, &[Event::Returned]),
            Ending::Failed(fault) => {
                let released = self.dead_letter(&mut job, &fault, start);
                if matches!(released, Ok(Released::Done)) {
                    self.note_dead_letter(job.as_ref(), &fault);
                }
                released
            }
            Ending::Unavailable(fault) => self.wait_for_backend(&mut job, fault, start),
        };
        if let Ok(Released::NotOurs) = released {
            self.tell_not_ours();
            if let Some(job) = job {
                self.bring_up_to_date(job);
            }
        }
        released.is_ok()
    }

    /// Lets go of a claim whose list no chain serves any more.
    pub(super) fn return_unserved(&mut self) -> bool {
        self.clock.end();
        let released = self.put_back(&mut None, Outcome::Returned, &[]);
        if let Ok(Released::NotOurs) = released {
            self.tell_not_ours();
        }
        released.is_ok()
    }

    /// Back to the head of its list, to be taken again.
    fn put_back(
        &mut self,
        job: &mut Option<Job>,
        outcome: Outcome,
        events: &[Event],
    ) -> Result<Released, ClaimLeft> {
        let released = self.let_go_keeping(job, Queue::release)?;
        if released == Released::Done {
            self.shared.count(outcome);
            events.iter().for_each(|event| self.count(*event));
            let (entry, list) = (self.claim.shown(), &self.claim.list);
            log::info!(
                vcon_id = entry.as_str(), chain_name = self.chain.name.as_str();
                "Returned {entry} to the head of list {list}"
            );
        }
        Ok(released)
    }

    /// All attempts at some stages have failed, in ways that pass. Those that do not answer a probe
    /// are away: their chains are on hold until they are back. If all of them answer, it may be
    /// the vCon: it goes to the end of its list, and others are tried.
    fn wait_for_backend(
        &mut self,
        job: &mut Option<Job>,
        fault: Fault,
        start: Instant,
    ) -> Result<Released, ClaimLeft> {
        let config = Arc::clone(self.modules.config());
        let id = self.claim.id();
        let (mut on_hold, mut all_answer, mut is_crowded) = (false, true, false);
        for stage in &fault.stages {
            let failure = match self.modules.probe(stage, self.clock.drain()) {
                Err(failure) if failure.kind != FailureKind::Crowded => failure,
                // It has let others in, or nobody could be too many.
                Err(_) => {
                    is_crowded = true;
                    continue;
                }
                Ok(()) => continue,
            };
            all_answer = false;
            if self.is_backlog || stage.is_in(self.chain, &config) {
                on_hold = true;
                let why = format!("{}: {failure}", fault.error);
                let prober = self.modules.prober(stage);
                hold(
                    self.shared,
                    &config,
                    stage,
                    &why,
                    self.clock.drain(),
                    prober,
                );
            } else {
                // One that may hold a document that Redis has lost.
                let health = &self.shared.health;
                health.note_attempt(stage, fault.attempts, &failure);
            }
        }
        let events = [Event::Failed, Event::Returned];
        if on_hold {
            return self.put_back(job, Outcome::Returned, &events);
        }
        let noted = match fault.kind {
            FailureKind::Refused => refused_by(&fault.stage),
            _ => fault.stage.clone(),
        };
        let mut evidence = Evidence::NONE;
        if all_answer && fault.kind != FailureKind::Crowded {
            let mut others_fail = false;
            for stage in &fault.stages {
                if let Some(id) = &id {
                    others_fail |= self.note_failing(stage, id, &fault.error, &config);
                }
            }
            // That it had too much to do may be the reason.
            if !is_crowded {
                evidence = self.evidence(&fault, others_fail);
            }
            let failed = Instant::now();
            // What the links have done is not to be done again if this process dies meanwhile.
            self.keep(job);
            self.pause_before_next_round(&fault, &noted);
            evidence.since = failed.elapsed();
        }
        let most = self.shared.settings.max_rounds;
        let released = self.let_go_keeping(job, |queue, claim, progress| {
            queue.postpone(claim, &evidence, most, &noted, progress)
        })?;
        match released {
            Released::Spent(rounds) => {
                let attempts = fault.attempts.saturating_mul(rounds);
                let fault = Fault { attempts, ..fault };
                self.dead_letter(job, &fault, start)
            }
            Released::Done => {
                self.shared.count(Outcome::Returned);
                events.iter().for_each(|event| self.count(*event));
                let (entry, list) = (self.claim.shown(), &self.claim.list);
                // Told once for all of them, when the backend began to fail.
                log::debug!(
                    vcon_id = entry.as_str(), chain_name = self.chain.name.as_str();
                    "Returned {entry} to the end of list {list}, {}: {}", fault.stage, fault.error
                );
                Ok(released)
            }
            _ => Ok(released),
        }
    }

    /// What it says of the vCon that a stage that answers has failed for it in all attempts.
    fn evidence(&self, fault: &Fault, others_fail: bool) -> Evidence {
        let unit = self.shared.settings.retry_max;
        let alone = unit.saturating_mul(ALONE);
        let of_others = self.shared.health.since_success(&fault.stages);
        let mut evidence = Evidence {
            worked: of_others,
            longest: (!others_fail).then_some(alone),
            ..Evidence::NONE
        };
        match fault.kind {
            FailureKind::Busy => evidence.worked = None,
            FailureKind::Slow => {
                evidence.least = unit.saturating_mul(SLOW);
                evidence.longest = (!others_fail).then_some(unit.saturating_mul(SLOW_ALONE));
            }
            FailureKind::Crashed => {
                // The program was started anew: it is well, unless others fail there, too.
                evidence.worked = (!others_fail).then_some(Duration::ZERO).or(of_others);
                evidence.least = unit.saturating_mul(CRASHED);
                evidence.longest = Some(alone);
            }
            _ => {}
        }
        evidence
    }

    /// Holds a vCon back that would be claimed again at once, as nothing else waits: longer after each
    /// round, until another one comes or its stage does its work for one.
    fn pause_before_next_round(&mut self, fault: &Fault, noted: &str) {
        const LOOK: Duration = Duration::from_millis(200);
        let config = Arc::clone(self.modules.config());
        let shared = Arc::clone(self.shared);
        let rounds = self.queue.rounds(&self.claim.entry, noted);
        let Ok(rounds) = rounds else { return };
        // Its document lives on from the next claim, or from when it is put back.
        let lives = Duration::from_secs(shared.settings.redis_expiry) / 4;
        let longest = shared.settings.retry_max.saturating_mul(ROUND_PAUSE);
        let longest = longest.min(lives);
        let pause = Backoff::new(shared.settings.retry_max, longest)
            .after(rounds)
            .next_wait();
        let begun = Instant::now();
        loop {
            let left = pause.saturating_sub(begun.elapsed());
            // A stage that fails for all is tried at its own pace.
            let is_paced = |stage: &Stage| shared.breakers.is_open(stage, &config);
            let worked = shared.health.since_success(&fault.stages);
            if left.is_zero()
                || self.clock.is_draining()
                || fault.stages.iter().any(is_paced)
                || worked.is_some_and(|worked| worked < begun.elapsed())
                || shared.breakers.has_trial_due()
                || !Arc::ptr_eq(&config, &shared.current.get())
            {
                return;
            }
            let lists = shared.breakers.open_lists(&config);
            let backlogs = shared.breakers.backlogs(&config);
            if !matches!(self.queue.has_work(&lists, &backlogs), Ok(false)) {
                return;
            }
            self.clock.insist(left.min(LOOK));
        }
    }

    /// To the dead letter queue of its list; what came from a storage's own queue goes back there,
    /// with the reason.
    fn dead_letter(
        &mut self,
        job: &mut Option<Job>,
        fault: &Fault,
        start: Instant,
    ) -> Result<Released, ClaimLeft> {
        let name = self.shared.name.clone();
        let reason = Reason {
            stage: &fault.stage,
            error: &fault.error,
            attempts: fault.attempts,
            worker: &name,
        };
        let backlog = self.chain.storages.first().filter(|_| self.is_backlog);
        let released = match (backlog.cloned(), self.claim.id()) {
            (Some(storage), Some(id)) => {
                let letters = [FailedStorage::refused(&storage, &reason)];
                self.let_go(|queue, claim| finish_with(queue, claim, &id, &letters))?
            }
            _ => self.move_to_dead_letters(job, &reason)?,
        };
        if released != Released::Done {
            return Ok(released);
        }
        self.shared.count(Outcome::Failed);
        self.count(Event::Failed);
        self.count(Event::DeadLettered);
        let meters = self.modules.meters();
        for meter in fault.stages.iter().filter_map(|stage| meters.stage(stage)) {
            meter.count(Event::DeadLettered);
        }
        let (entry, chain) = (self.claim.shown(), &self.chain.name);
        let seconds = start.elapsed().as_secs_f64();
        let dead = if self.is_backlog {
            self.claim.list.to_string()
        } else {
            dead_letter_list(&self.claim.list)
        };
        log::error!(
            vcon_id = entry.as_str(), chain_name = chain.as_str(), vcon_processing_time = seconds;
            "{entry} went to {dead} from chain {chain} after {seconds:.4} s, {}: {}",
            fault.stage, fault.error
        );
        Ok(released)
    }

    /// To the dead letter queue of its list. Who puts back at once what comes there, as the API server does
    /// when it reprocesses the queue, would never find it empty: an entry that comes again and again is held
    /// for a while, and longer each time.
    fn move_to_dead_letters(
        &mut self,
        job: &mut Option<Job>,
        reason: &Reason<'_>,
    ) -> Result<Released, ClaimLeft> {
        let mut has_waited = false;
        loop {
            let at_once = has_waited || self.clock.is_draining();
            let released = self.let_go_keeping(job, |queue, claim, progress| {
                if at_once {
                    queue.dead_letter(claim, reason, progress)
                } else {
                    queue.dead_letter_unless_again(claim, reason, progress)
                }
            })?;
            let Released::Again(times) = released else {
                return Ok(released);
            };
            let settings = &self.shared.settings;
            let mut backoff = Backoff::new(settings.retry_first, settings.retry_max)
                .after(times.saturating_sub(1));
            let wait = backoff.next_wait();
            log::debug!(
                "{} was a dead letter just before, and is held for {wait:.1?}",
                self.claim.shown()
            );
            self.clock.insist(wait);
            has_waited = true;
        }
    }

    /// The vCon was taken for bad: it is taken back if it turns out that all are refused.
    fn note_dead_letter(&mut self, job: Option<&Job>, fault: &Fault) {
        let Some(id) = job.map(|job| job.id().clone()).or_else(|| self.claim.id()) else {
            return;
        };
        for stage in &fault.stages {
            let letter = match stage {
                Stage::Storage(storage) if self.is_backlog => {
                    Letter::OfStorage(storage.clone(), id.clone())
                }
                _ => Letter::OfList(self.claim.list.clone(), self.claim.entry.clone()),
            };
            self.shared.health.note_letter(stage, &id, letter);
            self.take_back(stage);
        }
    }

    /// Writes what the links have done to Redis, and says how far the vCon has come. `None` if nothing
    /// has been done.
    fn keep(&mut self, job: &mut Option<Job>) -> Option<queue::ProgressRecord> {
        let job = job.as_mut()?;
        // What storages were given may be older than what another claim of the vCon has given them.
        if !job.progress.is_begun() && !job.was_given {
            return None;
        }
        let kept = match self.write(job) {
            Ok(()) => job.progress.record(self.chain, job.base.as_deref()),
            Err(ending) => {
                let id = job.id();
                log::debug!("what has been done for {id} is not kept: {ending:?}");
                None
            }
        };
        kept.or_else(|| self.void())
    }

    /// That nothing that has been done for the claimed vCon counts.
    fn void(&self) -> Option<queue::ProgressRecord> {
        self.claim.id().map(queue::ProgressRecord::void)
    }

    /// Lets go of the claim with how far its vCon has come. That is kept with the document that has what
    /// the links have done: if somebody else writes another one in between, it is merged with that.
    fn let_go_keeping(
        &mut self,
        job: &mut Option<Job>,
        mut step: impl FnMut(
            &mut Queue,
            &Claim,
            Option<&queue::ProgressRecord>,
        ) -> Result<Released, QueueError>,
    ) -> Result<Released, ClaimLeft> {
        let (mut merges, mut is_void) = (0, false);
        loop {
            let progress = if is_void { self.void() } else { self.keep(job) };
            let released = self.let_go(|queue, claim| step(queue, claim, progress.as_ref()))?;
            if released != Released::Changed {
                return Ok(released);
            }
            merges += 1;
            let is_merged = job.as_mut().is_some_and(|job| self.merge(job).is_ok());
            is_void = !is_merged || merges == MOST_MERGES;
        }
    }

    /// Takes a step that lets go of the claim, until it is taken. A list that cannot take the vCon
    /// back is waited for like a Redis that is away.
    fn let_go(
        &mut self,
        mut step: impl FnMut(&mut Queue, &Claim) -> Result<Released, QueueError>,
    ) -> Result<Released, ClaimLeft> {
        let settings = &self.shared.settings;
        let mut backoff = Backoff::new(settings.retry_first, settings.retry_max);
        loop {
            match step(self.queue, self.claim) {
                Ok(Released::Refused(why)) => {
                    self.outage.over();
                    if backoff.failures() == 0 {
                        let entry = self.claim.shown();
                        log::error!("{entry} cannot be put back, trying again until it can: {why}");
                    }
                    if self.clock.is_draining() {
                        return Err(ClaimLeft);
                    }
                    self.clock.insist(backoff.next_wait());
                }
                Ok(released) => {
                    self.outage.over();
                    return Ok(released);
                }
                Err(error) => {
                    let insisted = self.outage.insist(&error, self.clock);
                    insisted.map_err(|_| ClaimLeft)?;
                }
            }
        }
    }

    /// Somebody else has the claim, or had it. What this lane gave to storages may be older than what
    /// they were given meanwhile, as after a sleep of this process: they get what stands in Redis,
    /// until that is what they got last.
    fn bring_up_to_date(&mut self, mut job: Job) {
        if !job.was_given {
            return;
        }
        self.clock.begin_again();
        let renewed = self.renew(&mut job);
        self.clock.end();
        if let Err(ending) = renewed {
            let (id, chain) = (job.id(), &self.chain.name);
            log::error!(
                vcon_id = id.as_str(), chain_name = chain.as_str();
                "{id}: storages of chain {chain} may have an older document than Redis: {ending:?}"
            );
        }
    }

    fn renew(&mut self, job: &mut Job) -> Result<(), Ending> {
        let settings = &self.shared.settings;
        let mut backoff = Backoff::new(settings.retry_first, settings.retry_max);
        let mut is_given = true;
        loop {
            let id = job.id().clone();
            let document = self.insist(|queue| queue.load(&id))?;
            if is_given && job.is_as(&document) || matches!(document, Document::Missing) {
                return Ok(());
            }
            log::info!(
                vcon_id = id.as_str(), chain_name = self.chain.name.as_str();
                "{id} has another document by now, storages get that"
            );
            let (kind, text) = self.found(&id, document)?;
            let (bodies, progress) = (self.shared.settings.json_bodies, Progress::none(id.clone()));
            *job = Job::open(id.clone(), kind, text, bodies, progress)?;
            is_given = match self.save(job) {
                Ok(()) => true,
                Err(Ending::Unavailable(_)) if !self.clock.is_draining() => {
                    self.clock.insist(backoff.next_wait());
                    false
                }
                Err(ending) => return Err(ending),
            };
            for storage in job.progress.deferred().filter(|_| is_given) {
                self.insist(|queue| queue.defer(storage, &id))?;
            }
        }
    }

    fn tell_not_ours(&self) {
        let entry = self.claim.shown();
        log::warn!(
            "{entry}: the claim was settled already, by an earlier call or by another worker"
        );
    }
}

/// Finishes a vCon of a storage's own queue, which goes back there as a dead letter.
fn finish_with(
    queue: &mut Queue,
    claim: &Claim,
    id: &VconId,
    letters: &[FailedStorage],
) -> Result<Released, QueueError> {
    let finish = Finish {
        id,
        document: None,
        expire: None,
        egress: &[],
        routes: &[],
        failed_storages: letters,
    };
    Ok(match queue.finish(claim, &finish)? {
        Finished::NotOurs => Released::NotOurs,
        _ => Released::Done,
    })
}
