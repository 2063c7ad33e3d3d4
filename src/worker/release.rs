//! How a claim ends that did not get to the end of its chain.
//!
//! ```text
//! interrupted by a drain ─────────────► head of its list
//! not now ─┬──────────────────────────► head of its list, and its chain waits (circuit_breaker)
//!          └─ denied in a trial ──────► end of its list: another vCon is tried next (also if others got through
//!                                       since it was denied before)
//! unavailable ─┬─ the probe fails ────► head of its list, and its chain is on hold
//!              └─ the probe succeeds ─► end of its list; after too many rounds a dead letter
//! failed ─────────────────────────────► dead letter; back to the end of its list if others are
//!                                       refused for the same reason
//! ```
//!
//! What has been done by then is written to Redis, and the next claim goes on from there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::Level;

use super::backend_health::{DeadLetterAt, denied_by, refused_by};
use super::budget::OVER_BUDGET;
use super::job::{ChainProgress, Job};
use super::modules::Stage;
use super::pipeline::Pipeline;
use super::prober::Diagnosis;
use crate::backoff::Backoff;
use crate::config::ListName;
use crate::failure::{Failure, FailureKind};
use crate::queue::{
    self, Claim, Document, Evidence, FailedStorage, Finish, Finished, Queue, QueueError, Reason,
    Released, dead_letter_list,
};
use crate::scoreboard::{Event, Outcome};
use crate::vcon::VconId;

/// After this time, a vCon at which a backend gave up at its time limit is taken for bad: ten minutes with
/// the default settings. Until then others may hold a lock. (This and the next four are in multiples of
/// `CONSERVER_RETRY_MAX_MS`, which is a second by default.)
const SLOW: u32 = 600;

/// The same if the backend has been given no other vCon since: an hour.
const SLOW_UNTRIED: u32 = 3_600;

/// After this time, a vCon with which a program crashed is taken for bad: five minutes. Until then the
/// machine may be short of memory, or the program be replaced.
const CRASHED: u32 = 300;

/// After this time, a vCon for which a reachable backend failed is taken for bad even if the backend has been
/// given no other vCon since, or said that it is busy: a day. No outage may make dead letters.
const UNTRIED: u32 = 86_400;

/// The longest pause before a vCon goes to the end of its list once more: a minute.
const ROUND_PAUSE: u32 = 60;

/// How often a document that somebody else has written meanwhile is merged before a claim is released.
const MOST_MERGES: u32 = 5;

/// Waits that servers ask for are logged at most once in this time for each stage.
const WAIT_LOG_PAUSE: Duration = Duration::from_secs(60);

/// The worker drains, and Redis may still have the claim.
struct ClaimLeft;

/// Why a vCon did not get to the end of its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// The worker drains, and the vCon would keep it waiting.
    Interrupted,
    /// The worker drains, and Redis does not take the claim back: the next start returns it.
    ClaimLeft,
    /// Somebody else has released the claim, or has it by now.
    NotOurs,
    /// It has failed for good.
    Failed(ChainFailure),
    /// All attempts have failed, in ways that pass: it is tried again later.
    Unavailable(ChainFailure),
    /// These stages do nothing for any vCon at present.
    NotNow(Vec<NotNow>),
}

/// A stage that does nothing for any vCon at present, whatever is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotNow {
    /// The stage.
    pub stage: Stage,
    /// What it waits for.
    pub until: Until,
    /// Why, in the server's words.
    pub error: String,
}

/// What a stage waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Its server wants to be left alone until then.
    Asked(Instant),
    /// Its budget has a token then.
    Due(Instant),
    /// Somebody has to mend its credentials, rights or quota; its server may have named a time besides.
    Mended(Option<Instant>),
}

impl NotNow {
    /// What a failure says of all vCons alike; `None` if it says nothing of that kind.
    pub fn of(stage: &Stage, failure: &Failure) -> Option<Self> {
        // A time in the past says no more than that the server is busy.
        let asked = failure.not_before.filter(|time| *time > Instant::now());
        let until = match (failure.kind, asked) {
            (FailureKind::Denied, asked) => Until::Mended(asked),
            (kind, Some(time)) if !kind.is_final() => Until::Asked(time),
            _ => return None,
        };
        Some(Self {
            stage: stage.clone(),
            until,
            error: failure.message.clone(),
        })
    }

    /// What its server has said, if it was asked.
    pub fn refusal(&self) -> Option<&str> {
        (!matches!(self.until, Until::Due(_))).then_some(self.error.as_str())
    }

    /// A stage whose budget is used up.
    pub fn over_budget(stage: &Stage, due: Instant) -> Self {
        Self {
            stage: stage.clone(),
            until: Until::Due(due),
            error: OVER_BUDGET.to_owned(),
        }
    }
}

impl Ending {
    /// Whether it says no more than that budgets are used up.
    pub fn is_bounce(&self) -> bool {
        let is_due = |it: &NotNow| matches!(it.until, Until::Due(_));
        matches!(self, Self::NotNow(stages) if stages.iter().all(is_due))
    }

    /// It has failed for good, for what was found in the queue.
    pub fn failed(stage: &str, error: String) -> Self {
        Self::Failed(ChainFailure {
            stage: stage.to_owned(),
            stages: Vec::new(),
            error,
            attempts: 1,
            kind: FailureKind::Permanent,
        })
    }
}

/// Why a chain cannot go on with a vCon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainFailure {
    /// Where, in the words of a dead letter: `link <name>`, `storage <name>`, `load` and so on.
    pub stage: String,
    /// The same as stages, if these have failed.
    pub stages: Vec<Stage>,
    /// Why.
    pub error: String,
    /// Attempts made.
    pub attempts: u32,
    /// What it says of the vCon.
    pub kind: FailureKind,
}

impl ChainFailure {
    /// A failure of one stage.
    pub fn at(stage: &Stage, failure: &Failure, attempts: u32) -> Self {
        Self {
            stage: stage.to_string(),
            stages: vec![stage.clone()],
            error: failure.message.clone(),
            attempts,
            kind: failure.kind,
        }
    }

    /// The failures of these storages.
    pub fn at_storages(failures: &[(String, Failure)], attempts: u32) -> Self {
        let names: Vec<&str> = failures.iter().map(|(name, _)| name.as_str()).collect();
        let errors: Vec<String> = match failures {
            // The stage names it.
            [(_, failure)] => vec![failure.to_string()],
            _ => failures
                .iter()
                .map(|(name, failure)| format!("{name}: {failure}"))
                .collect(),
        };
        let kinds = failures.iter().map(|(_, failure)| failure.kind);
        Self {
            stage: format!("storage {}", names.join(", ")),
            stages: failures
                .iter()
                .map(|(name, _)| Stage::Storage(name.clone()))
                .collect(),
            error: errors.join("; "),
            attempts,
            kind: kinds.min_by_key(rank).unwrap_or(FailureKind::Transient),
        }
    }

    /// The key of an egress list is not a list.
    pub fn at_list(list: &ListName, holds: &str) -> Self {
        Self {
            stage: "egress".to_owned(),
            stages: vec![Stage::List(list.clone())],
            error: format!("the egress list {list} holds a {holds}"),
            attempts: 1,
            kind: FailureKind::Transient,
        }
    }
}

/// Of several failures, the one with the lowest rank counts: the one that says least against the vCon.
fn rank(kind: &FailureKind) -> u8 {
    match kind {
        FailureKind::Crowded => 0,
        FailureKind::Busy => 1,
        FailureKind::Denied => 2,
        FailureKind::Transient => 3,
        FailureKind::Slow => 4,
        FailureKind::Crashed => 5,
        FailureKind::Refused => 6,
        FailureKind::Permanent => 7,
    }
}

impl Pipeline<'_, '_, '_> {
    /// Releases the claim in the way that the ending requires.
    ///
    /// Returns false if Redis may still have it: the worker drains, and Redis is unavailable.
    pub(super) fn release(&mut self, job: Option<Job>, ending: Ending, start: Instant) -> bool {
        let mut job = job;
        let released = match ending {
            Ending::ClaimLeft => Err(ClaimLeft),
            Ending::NotOurs => Ok(Released::NotOurs),
            Ending::Interrupted => self.requeue(&mut job, &[Event::Returned]),
            Ending::Failed(failure) => {
                let released = self.dead_letter(&mut job, &failure, start);
                if matches!(released, Ok(Released::Done)) {
                    self.note_dead_letter(job.as_ref(), &failure);
                }
                released
            }
            Ending::Unavailable(failure) => self.hold_or_postpone(&mut job, failure, start),
            Ending::NotNow(stages) => {
                // First, so that no lane claims it again at once.
                stages.iter().for_each(|it| self.wait_for(it));
                let denied = |it: &&NotNow| matches!(it.until, Until::Mended(_));
                match stages
                    .iter()
                    .find(denied)
                    .filter(|_| self.is_last_if_denied)
                {
                    Some(denied) => self.postpone_denied(&mut job, denied),
                    None if self.is_begun => self.requeue_quietly(&mut job, &[Event::Returned]),
                    None => self.requeue_quietly(&mut job, &[]),
                }
            }
        };
        if let Ok(Released::NotOurs) = released {
            self.log_not_ours();
            if let Some(job) = job {
                self.update_storages(job);
            }
        }
        released.is_ok()
    }

    /// Releases a claim whose list no chain serves any more.
    pub(super) fn release_unserved(&mut self) -> bool {
        self.clock.end();
        let released = self.requeue(&mut None, &[]);
        if let Ok(Released::NotOurs) = released {
            self.log_not_ours();
        }
        released.is_ok()
    }

    /// Returns the vCon to the head of its list, and counts these events of its chain.
    fn requeue(&mut self, job: &mut Option<Job>, events: &[Event]) -> Result<Released, ClaimLeft> {
        self.requeue_at(Level::Info, job, events)
    }

    /// The same for what is usual: nobody wants to read that of each vCon.
    fn requeue_quietly(
        &mut self,
        job: &mut Option<Job>,
        events: &[Event],
    ) -> Result<Released, ClaimLeft> {
        self.requeue_at(Level::Debug, job, events)
    }

    fn requeue_at(
        &mut self,
        level: Level,
        job: &mut Option<Job>,
        events: &[Event],
    ) -> Result<Released, ClaimLeft> {
        let released = self.release_with_progress(job, Queue::release)?;
        if released == Released::Done {
            self.shared.count(Outcome::Returned);
            events.iter().for_each(|event| self.count(*event));
            let (entry, list) = (self.claim.shown(), &self.claim.list);
            log::log!(
                level, vcon_id = entry.as_str(), chain_name = self.chain.name.as_str();
                "Returned {entry} to the head of list {list}"
            );
        }
        Ok(released)
    }

    /// Puts the chains that need a stage on hold, or lets them wait: nothing is asked of it for now.
    pub(super) fn wait_for(&self, not_now: &NotNow) {
        if let Some(meter) = self.modules.meters().stage(&not_now.stage) {
            meter.count(Event::Waited);
        }
        let NotNow {
            stage,
            until,
            error,
        } = not_now;
        let (shared, config) = (self.shared, self.modules.config());
        match *until {
            Until::Asked(time) => {
                // First for the lanes here: Redis may take its time.
                let is_new = shared.breakers.note_wait(stage, config, error, time);
                shared.slot.note_wait();
                if let Some((budget, _)) = self.modules.budget_of(stage) {
                    shared.budgets.leave_alone(&budget, time);
                }
                let what = format_args!("{stage} asks to wait");
                if is_new && shared.slot.is_log_due(what, WAIT_LOG_PAUSE) {
                    let seconds = time.saturating_duration_since(Instant::now()).as_secs_f64();
                    log::info!(
                        "{stage} is left alone for {seconds:.1} s, as its server asks: {error}"
                    );
                }
            }
            Until::Due(time) => shared.breakers.note_over_budget(stage, config, error, time),
            Until::Mended(time) => {
                shared.health.note_denied(stage, error);
                shared.breakers.note_denied(stage, config, error, time);
            }
        }
    }

    /// A stage has refused this deployment when this vCon was tried. It may be the vCon all the same, as where a
    /// receiver takes some only: it goes to the end of its list, and the next trial is made with another one. If
    /// that gets through, see [`Pipeline::judge_denial`].
    fn postpone_denied(
        &mut self,
        job: &mut Option<Job>,
        denied: &NotNow,
    ) -> Result<Released, ClaimLeft> {
        let noted = denied_by(&denied.stage.to_string());
        let released = self.release_with_progress(job, |queue, claim, progress| {
            // However often: nothing is a dead letter as long as all are denied.
            queue.postpone(claim, &Evidence::NONE, 0, &noted, progress)
        })?;
        if released == Released::Done {
            self.shared.count(Outcome::Returned);
            self.count(Event::Returned);
            let (entry, list) = (self.claim.shown(), &self.claim.list);
            log::debug!(
                vcon_id = entry.as_str(), chain_name = self.chain.name.as_str();
                "Returned {entry} to the end of list {list}, {}: {}", denied.stage, denied.error
            );
        }
        Ok(released)
    }

    /// All attempts at some stages have failed, in ways that pass. If one of them is unavailable, its
    /// chains are on hold until it is back. Else it may be the vCon: that goes to the end of its list, and
    /// others are tried.
    fn hold_or_postpone(
        &mut self,
        job: &mut Option<Job>,
        failure: ChainFailure,
        start: Instant,
    ) -> Result<Released, ClaimLeft> {
        let (mut on_hold, mut all_fail, mut is_crowded) = (false, true, false);
        for stage in &failure.stages {
            match self.diagnose(stage, failure.kind) {
                Diagnosis::Failing { is_probe_crowded } => is_crowded |= is_probe_crowded,
                Diagnosis::Crowded => all_fail = false,
                Diagnosis::Unavailable(probe) => {
                    all_fail = false;
                    if self.is_backlog || stage.is_in(self.chain, self.modules.config()) {
                        on_hold = true;
                        // The error of several storages names them all.
                        let is_alone = failure.stages.len() == 1;
                        let attempted = is_alone.then_some(failure.error.as_str());
                        self.hold(stage, attempted, &probe);
                    } else {
                        // A storage of another chain, which may have a document that Redis has lost.
                        let health = &self.shared.health;
                        health.note_attempt(stage, failure.attempts, &probe);
                    }
                }
            }
        }
        let events = [Event::Failed, Event::Returned];
        if on_hold {
            return self.requeue(job, &events);
        }
        let noted = match failure.kind {
            FailureKind::Refused => refused_by(&failure.stage),
            _ => failure.stage.clone(),
        };
        let mut evidence = Evidence::NONE;
        if all_fail {
            let mut others_fail = false;
            if let Some(id) = self.claim.id() {
                for stage in &failure.stages {
                    others_fail |= self.note_failing(stage, &id, &failure.error);
                    if failure.kind == FailureKind::Refused {
                        let config = self.modules.config();
                        self.shared.breakers.note_refused(stage, config);
                    }
                }
            }
            // A crowded backend says nothing of the vCon.
            if !is_crowded {
                evidence = self.evidence(&failure, others_fail);
            }
            let failed = Instant::now();
            // The links must not run again if this process dies meanwhile.
            self.save_progress(job);
            self.pause_before_next_round(&failure, &noted);
            evidence.since = failed.elapsed();
        }
        let most = self.shared.settings.max_rounds;
        let released = self.release_with_progress(job, |queue, claim, progress| {
            queue.postpone(claim, &evidence, most, &noted, progress)
        })?;
        match released {
            Released::Spent(rounds) => {
                let attempts = failure.attempts.saturating_mul(rounds);
                let failure = ChainFailure {
                    attempts,
                    ..failure
                };
                self.dead_letter(job, &failure, start)
            }
            Released::Done => {
                self.shared.count(Outcome::Returned);
                events.iter().for_each(|event| self.count(*event));
                let (entry, list) = (self.claim.shown(), &self.claim.list);
                // The log has said once for all vCons that the backend fails.
                log::debug!(
                    vcon_id = entry.as_str(), chain_name = self.chain.name.as_str();
                    "Returned {entry} to the end of list {list}, {}: {}", failure.stage, failure.error
                );
                Ok(released)
            }
            _ => Ok(released),
        }
    }

    /// What speaks against the vCon if a reachable stage has failed for it in all attempts.
    fn evidence(&self, failure: &ChainFailure, others_fail: bool) -> Evidence {
        let unit = self.shared.settings.retry_max;
        let untried = unit.saturating_mul(UNTRIED);
        let of_others = self.shared.health.since_success(&failure.stages);
        let mut evidence = Evidence {
            worked: of_others,
            longest: (!others_fail).then_some(untried),
            ..Evidence::NONE
        };
        match failure.kind {
            FailureKind::Busy => evidence.worked = None,
            FailureKind::Slow => {
                evidence.least = unit.saturating_mul(SLOW);
                evidence.longest = (!others_fail).then_some(unit.saturating_mul(SLOW_UNTRIED));
            }
            FailureKind::Crashed => {
                // The program was started anew: it works, unless it fails for others too.
                evidence.worked = (!others_fail).then_some(Duration::ZERO).or(of_others);
                evidence.least = unit.saturating_mul(CRASHED);
                evidence.longest = Some(untried);
            }
            _ => {}
        }
        evidence
    }

    /// Waits with a vCon that would be claimed again at once, as no other waits: longer after each round, until
    /// another one comes or the stage has worked for another.
    fn pause_before_next_round(&mut self, failure: &ChainFailure, noted: &str) {
        const LOOK: Duration = Duration::from_millis(200);
        let config = Arc::clone(self.modules.config());
        let shared = Arc::clone(self.shared);
        let rounds = self.queue.rounds(&self.claim.entry, noted);
        let Ok(rounds) = rounds else { return };
        // The next claim, or the return to the list, renews the document's time to live.
        let ttl_part = Duration::from_secs(shared.settings.redis_expiry) / 4;
        let longest = shared.settings.retry_max.saturating_mul(ROUND_PAUSE);
        let longest = longest.min(ttl_part);
        let pause = Backoff::new(shared.settings.retry_max, longest)
            .after(rounds)
            .next_wait();
        let begun = Instant::now();
        loop {
            let left = pause.saturating_sub(begun.elapsed());
            // A stage that fails for all vCons is tried at its own pace.
            let is_paced = |stage: &Stage| shared.breakers.is_open(stage, &config);
            let worked = shared.health.since_success(&failure.stages);
            if left.is_zero()
                || self.clock.is_draining()
                || failure.stages.iter().any(is_paced)
                || worked.is_some_and(|worked| worked < begun.elapsed())
                || shared.breakers.has_due()
                || !Arc::ptr_eq(&config, &shared.current.get())
            {
                return;
            }
            let lists = shared.breakers.open_lists(&config);
            let backlogs = shared.breakers.backlogs(&config);
            if !matches!(self.queue.has_work(&lists, &backlogs), Ok(false)) {
                return;
            }
            self.clock.wait_anyway(left.min(LOOK));
        }
    }

    /// Moves the vCon to the dead letter queue of its list, or, if it came from the queue of a storage, back
    /// there with the reason.
    fn dead_letter(
        &mut self,
        job: &mut Option<Job>,
        failure: &ChainFailure,
        start: Instant,
    ) -> Result<Released, ClaimLeft> {
        // Whoever retries it wants everything tried again.
        if let Some(job) = job {
            job.progress.forget_parts();
        }
        let name = self.shared.name.clone();
        let reason = Reason {
            stage: &failure.stage,
            error: &failure.error,
            attempts: failure.attempts,
            worker: &name,
        };
        let backlog = self.chain.storages.first().filter(|_| self.is_backlog);
        let released = match (backlog.cloned(), self.claim.id()) {
            (Some(storage), Some(id)) => {
                let letters = [FailedStorage::refused(&storage, &reason)];
                self.release_until_done(|queue, claim| {
                    requeue_in_backlog(queue, claim, &id, &letters)
                })?
            }
            _ => self.move_to_dead_letters(job, &reason)?,
        };
        if released != Released::Done {
            return Ok(released);
        }
        self.after_processing(job.as_ref(), Some(&failure.error));
        self.shared.count(Outcome::Failed);
        self.count(Event::Failed);
        self.count(Event::DeadLettered);
        let meters = self.modules.meters();
        if !self.is_backlog {
            meters.list(&self.claim.list).count(Event::DeadLettered);
        }
        for meter in failure
            .stages
            .iter()
            .filter_map(|stage| meters.stage(stage))
        {
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
            failure.stage, failure.error
        );
        Ok(released)
    }

    /// Moves the vCon to the dead letter queue of its list. The API server, when it reprocesses that queue, puts
    /// each entry back at once and would never find it empty: so an entry that comes again and again waits,
    /// longer each time.
    fn move_to_dead_letters(
        &mut self,
        job: &mut Option<Job>,
        reason: &Reason<'_>,
    ) -> Result<Released, ClaimLeft> {
        let mut has_waited = false;
        loop {
            let at_once = has_waited || self.clock.is_draining();
            let released = self.release_with_progress(job, |queue, claim, progress| {
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
                "{} was a dead letter a moment ago, waiting for {wait:.1?}",
                self.claim.shown()
            );
            self.clock.wait_anyway(wait);
            has_waited = true;
        }
    }

    /// Remembers a dead letter, which is recalled if it turns out that the backend refuses every vCon.
    fn note_dead_letter(&mut self, job: Option<&Job>, failure: &ChainFailure) {
        let Some(id) = job.map(|job| job.id().clone()).or_else(|| self.claim.id()) else {
            return;
        };
        for stage in &failure.stages {
            let letter = match stage {
                Stage::Storage(storage) if self.is_backlog => {
                    DeadLetterAt::Storage(storage.clone(), id.clone())
                }
                _ => DeadLetterAt::List(self.claim.list.clone(), self.claim.entry.clone()),
            };
            self.shared.health.note_letter(stage, &id, letter);
            self.recall_dead_letters(stage);
        }
    }

    /// Writes to Redis what the links have done, and returns the progress to keep there. `None` if nothing has
    /// been done.
    fn save_progress(&mut self, job: &mut Option<Job>) -> Option<queue::ProgressRecord> {
        let job = job.as_mut()?;
        // A record is needed after any save: another claim of the vCon may have saved a newer version.
        if !job.progress.is_begun() && !job.was_given {
            return None;
        }
        let kept = match self.write(job) {
            Ok(()) => {
                // A link may have named another vCon, whose document could not be loaded.
                let is_its = job.id() == job.progress.id();
                let document = job.base.as_deref().filter(|_| is_its);
                job.progress.record(self.chain, document)
            }
            Err(ending) => {
                let id = job.id();
                log::debug!("could not keep the progress of {id}: {ending:?}");
                None
            }
        };
        kept.or_else(|| self.void_progress())
    }

    /// A record that nothing done for the claimed vCon counts.
    fn void_progress(&self) -> Option<queue::ProgressRecord> {
        self.claim.id().map(queue::ProgressRecord::void)
    }

    /// Releases the claim and keeps the progress, together with the document that has the work of the links.
    /// If somebody else writes another document in between, merges with that first.
    fn release_with_progress(
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
            let progress = if is_void {
                self.void_progress()
            } else {
                self.save_progress(job)
            };
            let released =
                self.release_until_done(|queue, claim| step(queue, claim, progress.as_ref()))?;
            if released != Released::Changed {
                return Ok(released);
            }
            merges += 1;
            let is_merged = job.as_mut().is_some_and(|job| self.merge(job).is_ok());
            is_void = !is_merged || merges == MOST_MERGES;
        }
    }

    /// Tries a step that releases the claim until it succeeds: waits for Redis, and for a list that cannot
    /// take the vCon back.
    fn release_until_done(
        &mut self,
        mut step: impl FnMut(&mut Queue, &Claim) -> Result<Released, QueueError>,
    ) -> Result<Released, ClaimLeft> {
        let settings = &self.shared.settings;
        let mut backoff = Backoff::new(settings.retry_first, settings.retry_max);
        loop {
            match step(self.queue, self.claim) {
                Ok(Released::Refused(why)) => {
                    self.outage.end();
                    if backoff.failures() == 0 {
                        let entry = self.claim.shown();
                        log::error!("{entry} cannot be put back, trying again until it can: {why}");
                    }
                    if self.clock.is_draining() {
                        return Err(ClaimLeft);
                    }
                    self.clock.wait_anyway(backoff.next_wait());
                }
                Ok(released) => {
                    self.outage.end();
                    return Ok(released);
                }
                Err(error) => {
                    let waited = self.outage.wait_anyway(&error, self.clock);
                    waited.map_err(|_| ClaimLeft)?;
                }
            }
        }
    }

    /// Somebody else has the claim, or had it, as after a long stop of this process. Then this lane may have
    /// saved an older document than others did meanwhile: saves what Redis has, until that is what was saved
    /// last.
    fn update_storages(&mut self, mut job: Job) {
        if !job.was_given {
            return;
        }
        self.clock.reopen();
        let saved = self.save_current_document(&mut job);
        self.clock.end();
        if let Err(ending) = saved {
            let (id, chain) = (job.id(), &self.chain.name);
            log::error!(
                vcon_id = id.as_str(), chain_name = chain.as_str();
                "{id}: storages of chain {chain} may have an older document than Redis: {ending:?}"
            );
        }
    }

    /// Saves the document that Redis has to the storages, until the two are the same.
    fn save_current_document(&mut self, job: &mut Job) -> Result<(), Ending> {
        let settings = &self.shared.settings;
        let mut backoff = Backoff::new(settings.retry_first, settings.retry_max);
        let mut is_given = true;
        loop {
            let id = job.id().clone();
            let document = self.with_redis(|queue| queue.load(&id))?;
            if is_given && job.matches(&document) || matches!(document, Document::Missing) {
                return Ok(());
            }
            log::info!(
                vcon_id = id.as_str(), chain_name = self.chain.name.as_str();
                "{id} has another document by now, saving that to the storages"
            );
            let (kind, text) = self.document_text(&id, document)?;
            let (bodies, progress) = (
                self.shared.settings.json_bodies,
                ChainProgress::none(id.clone()),
            );
            *job = Job::open(id.clone(), kind, text, bodies, progress)?;
            is_given = match self.save(job) {
                Ok(()) => true,
                Err(Ending::Unavailable(_) | Ending::NotNow(_)) if !self.clock.is_draining() => {
                    self.clock.wait_anyway(backoff.next_wait());
                    false
                }
                Err(ending) => return Err(ending),
            };
            for storage in job.progress.deferred().filter(|_| is_given) {
                self.with_redis(|queue| queue.defer(storage, &id))?;
            }
        }
    }

    /// Logs that the claim is not this lane's any more.
    fn log_not_ours(&self) {
        let entry = self.claim.shown();
        log::warn!(
            "{entry}: the claim was released already, by an earlier call or by another worker"
        );
    }
}

/// Releases a claim of a storage's queue, to which the vCon returns as a dead letter.
fn requeue_in_backlog(
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
        context: None,
        failed_storages: letters,
    };
    Ok(match queue.finish(claim, &finish)? {
        Finished::NotOurs => Released::NotOurs,
        _ => Released::Done,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_all_vcons_is_told_from_what_it_says_of_one() {
        let stage = Stage::Link("l".to_owned());
        let later = Instant::now() + Duration::from_secs(60);
        for (failure, expected) in [
            (
                Failure::busy("429").until(Some(later)),
                Some(Until::Asked(later)),
            ),
            (
                Failure::transient("503").until(Some(later)),
                Some(Until::Asked(later)),
            ),
            (Failure::busy("429").until(Some(Instant::now())), None),
            (Failure::busy("429"), None),
            (Failure::denied("401"), Some(Until::Mended(None))),
            (
                Failure::denied("402").until(Some(later)),
                Some(Until::Mended(Some(later))),
            ),
            (Failure::refused("422").until(Some(later)), None),
            (Failure::permanent("no").until(Some(later)), None),
        ] {
            let found = NotNow::of(&stage, &failure).map(|it| it.until);
            assert_eq!(found, expected, "{failure:?}");
        }
    }

    #[test]
    fn of_several_storages_the_failure_counts_that_says_least_of_the_vcon_in_whatever_order() {
        let kinds = [
            Failure::crowded("full"),
            Failure::busy("locked"),
            Failure::transient("away"),
            Failure::slow("slow"),
            Failure::crashed("killed"),
            Failure::refused("too large"),
            Failure::permanent("no"),
        ];
        let of = |failures: &[&Failure]| {
            let names = ["a", "b", "c"].map(str::to_owned).into_iter();
            let failures = failures.iter().map(|it| (*it).clone());
            ChainFailure::at_storages(&names.zip(failures).collect::<Vec<_>>(), 2)
        };
        for (i, one) in kinds.iter().enumerate() {
            for (j, two) in kinds.iter().enumerate() {
                for (k, three) in kinds.iter().enumerate() {
                    let least = &kinds[i.min(j).min(k)];
                    assert_eq!(of(&[one, two, three]).kind, least.kind, "{i} {j} {k}");
                }
            }
        }
        let fault = of(&[&kinds[2], &kinds[6]]);
        assert_eq!(fault.stage, "storage a, b");
        assert_eq!(fault.error, "a: away; b: no");
        assert_eq!(fault.attempts, 2);
        let stages = ["a", "b"].map(|name| Stage::Storage(name.to_owned()));
        assert_eq!(fault.stages, stages);
    }
}
