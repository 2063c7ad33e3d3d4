//! Bad vCon or bad backend? How each link and storage has worked lately for the lanes of this worker, and
//! what follows from that for a refusal.
//!
//! One refusal proves nothing: how other vCons fare does. Refusals for one reason form a *streak*
//! until the backend takes a vCon:
//!
//! ```text
//! refused for a reason
//!   │ it was refused before, and others were taken since ──► the vCon is bad: dead letter
//!   │                             (up to a number of them in a streak, then they wait for a success)
//!   │ it is one of the first two new ones in its streak ───► the vCon seems bad: dead letter
//!   └ it is the third new one, or a later one ─────────────► the backend is bad: the vCon waits, as do
//!                                                            all others; the first two are recalled
//! the backend takes a vCon ──► all streaks end; a vCon that is refused again is bad
//! ```
//!
//! A server that denies this deployment access whatever the vCon is taken at its word, and its vCons wait. But if
//! one was denied in a trial, another got through after that, and the first is denied again, then that is a
//! refusal like the others here. All that are denied count in its streak.
//!
//! So a bad vCon goes to the dead letters at once, a backend that refuses everything costs none, and bad
//! vCons that come together hold up the others until the first good one is tried.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

use super::circuit_breaker::{MOST_FAILURES, defers};
use super::job::Job;
use super::modules::Stage;
use super::pipeline::Pipeline;
use crate::config::ListName;
use crate::failure::{Failure, FailureKind, pattern};
use crate::scoreboard::Slot;
use crate::vcon::VconId;

/// Failed attempts at one stage are logged at level INFO at most once in this time.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// The most streaks (for different reasons) that are kept; a new one replaces the oldest.
const MOST_STREAKS: usize = 16;

/// The most vCons that are known as bad; a new one replaces the oldest.
const MOST_KNOWN: usize = 1000;

/// After a success, this many vCons that are refused again may become dead letters in one streak; after more
/// successes one for each, up to [`MOST_AGAIN`].
const LEAST_AGAIN: usize = 5;

/// See [`LEAST_AGAIN`].
const MOST_AGAIN: usize = 100;

/// The streak that a failure belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FailureStreak {
    /// Whether the stage worked the last time before that.
    pub is_first: bool,
    /// For how many different vCons in a row it has failed; not counted beyond [`MOST_FAILURES`].
    pub vcons: usize,
}

/// The names of outages for the log: what a reachable stage does.
const FAILS: &str = "fails";
const FAILS_IN_A_ROW: &str = "fails in a row";
const REFUSES: &str = "refuses";

/// The name of the outage of a stage that refuses this deployment.
const DENIES: &str = "denies access";

/// All of these, which are over once the stage works.
const OUTAGES: [&str; 4] = [FAILS, REFUSES, FAILS_IN_A_ROW, DENIES];

/// What the lanes of a worker know of each link and storage.
pub(super) struct BackendHealth {
    slot: Slot,
    stages: Mutex<HashMap<Stage, StageRecord>>,
}

#[derive(Default)]
struct StageRecord {
    /// When it last worked.
    worked: Option<Instant>,
    /// Different vCons for which all attempts have failed since.
    failed: Vec<VconId>,
    /// When a failed attempt was last logged.
    logged: Option<Instant>,
    /// Whether it has refused this deployment since.
    has_denied: bool,
    /// What it has refused since.
    refusals: Refusals,
}

impl BackendHealth {
    /// Nothing is known yet.
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            stages: Mutex::default(),
        }
    }

    /// The stage has worked. Returns whether it had failed before.
    pub fn note_success(&self, stage: &Stage) -> bool {
        let has_failed = self.record_success(stage);
        let slot = &self.slot;
        let over = OUTAGES.map(|what| match has_failed {
            true => slot.end_outage(format_args!("{stage} {what}")),
            // A worker that has ended may have left it in the log.
            false => slot.settle_outage(format_args!("{stage} {what}")),
        });
        if !log_again(stage, over) && has_failed {
            log::debug!("{stage} works again here");
        }
        has_failed
    }

    fn record_success(&self, stage: &Stage) -> bool {
        let mut stages = self.lock();
        let now = Some(Instant::now());
        let Some(record) = stages.get_mut(stage) else {
            let record = StageRecord {
                worked: now,
                ..StageRecord::default()
            };
            stages.insert(stage.clone(), record);
            return false;
        };
        record.worked = now;
        record.refusals.note_success();
        let has_failed = !record.failed.is_empty() || std::mem::take(&mut record.has_denied);
        record.failed.clear();
        has_failed
    }

    /// An attempt has failed, and another one follows. Logged now and then for all workers, as long as that goes on.
    pub fn note_attempt(&self, stage: &Stage, attempt: u32, failure: &Failure) {
        let mut stages = self.lock();
        let record = stages.entry(stage.clone()).or_default();
        let due = (record.logged).is_none_or(|logged| logged.elapsed() >= LOG_PAUSE)
            && self
                .slot
                .is_log_due(format_args!("{stage} attempt"), LOG_PAUSE);
        if due {
            record.logged = Some(Instant::now());
        }
        drop(stages);
        let level = if due { Level::Info } else { Level::Debug };
        log::log!(level, "{stage} has failed in attempt {attempt}: {failure}");
    }

    /// The stage is reachable, but all attempts for this vCon have failed.
    pub fn note_failure(&self, stage: &Stage, id: &VconId) -> FailureStreak {
        let mut stages = self.lock();
        let record = stages.entry(stage.clone()).or_default();
        let is_first = record.failed.is_empty();
        if record.failed.len() < MOST_FAILURES && !record.failed.contains(id) {
            record.failed.push(id.clone());
        }
        FailureStreak {
            is_first,
            vcons: record.failed.len(),
        }
    }

    /// The stage refuses this deployment. Logged once for all workers until it works again.
    pub fn note_denied(&self, stage: &Stage, error: &str) {
        let mut stages = self.lock();
        let record = stages.entry(stage.clone()).or_default();
        let was_known = std::mem::replace(&mut record.has_denied, true);
        drop(stages);
        let is_news = match was_known {
            true => self.slot.renew_outage(format_args!("{stage} {DENIES}")),
            false => self.slot.begin_outage(format_args!("{stage} {DENIES}")),
        };
        if is_news {
            log::error!("{stage} {DENIES}, its vCons wait until somebody mends that: {error}");
        }
    }

    /// The stage answers no more that it refuses this deployment: it works, or does not answer at all, as others say.
    pub fn end_denial(&self, stage: &Stage) {
        let mut stages = self.lock();
        let record = stages.get_mut(stage);
        let has_denied = record.is_some_and(|it| std::mem::take(&mut it.has_denied));
        drop(stages);
        if has_denied {
            self.slot.end_outage(format_args!("{stage} {DENIES}"));
        }
    }

    /// The stage has worked for other workers, which have done all that waited for it. That is no proof for or against
    /// any vCon here: only the log no longer has that it fails for this one.
    pub fn end_outages(&self, stage: &Stage) {
        let over = OUTAGES.map(|what| self.slot.end_outage(format_args!("{stage} {what}")));
        log_again(stage, over);
    }

    /// The stage has refused this vCon. If the stage is bad, it has failed for all that it refused alike.
    pub fn judge_refusal(
        &self,
        stage: &Stage,
        id: &VconId,
        message: &str,
        was_refused: bool,
    ) -> AtFault {
        let mut stages = self.lock();
        let record = stages.entry(stage.clone()).or_default();
        let culprit = record.refusals.judge(id, message, was_refused);
        if matches!(culprit, AtFault::Backend { .. }) {
            for other in record.refusals.some_like(id) {
                if record.failed.len() < MOST_FAILURES && !record.failed.contains(other) {
                    record.failed.push(other.clone());
                }
            }
        }
        culprit
    }

    /// Whether the stage has refused or denied the vCon, and has taken others since.
    pub fn is_known(&self, stage: &Stage, id: &VconId) -> bool {
        let stages = self.lock();
        let record = stages.get(stage);
        record.is_some_and(|record| record.refusals.known.contains(id))
    }

    /// A vCon that the stage has refused is a dead letter.
    pub fn note_letter(&self, stage: &Stage, id: &VconId, letter: DeadLetterAt) {
        let mut stages = self.lock();
        if let Some(record) = stages.get_mut(stage) {
            record.refusals.note_letter(id, letter);
        }
    }

    /// Takes the dead letters that must be recalled, as it turned out that the stage is bad.
    pub fn take_letters(&self, stage: &Stage) -> Vec<DeadLetterAt> {
        let mut stages = self.lock();
        let record = stages.get_mut(stage);
        record.map_or_else(Vec::new, |record| record.refusals.take_letters())
    }

    /// One of these could not be recalled now. Returns false if the vCon is bad after all.
    pub fn keep_letter(&self, stage: &Stage, letter: DeadLetterAt) -> bool {
        let mut stages = self.lock();
        let record = stages.get_mut(stage);
        record.is_some_and(|record| record.refusals.keep_letter(letter))
    }

    /// How long ago the one of these stages worked that has not worked for longest; `None` if one never has.
    pub fn since_success(&self, needed: &[Stage]) -> Option<Duration> {
        let stages = self.lock();
        let worked = |stage| stages.get(stage).and_then(|record| record.worked);
        let all: Option<Vec<Instant>> = needed.iter().map(worked).collect();
        all?.into_iter().min().map(|oldest| oldest.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Stage, StageRecord>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs that a stage works again, if the log has had any of its outages, each for this time. Returns whether it has.
fn log_again(stage: &Stage, over: [Option<Duration>; OUTAGES.len()]) -> bool {
    let longest = over.into_iter().flatten().max();
    if let Some(time) = longest {
        log::info!("{stage} works again after {:.1} s", time.as_secs_f64());
    }
    longest.is_some()
}

impl Pipeline<'_, '_, '_> {
    /// A stage has worked: closes its breaker if it was failing.
    pub(super) fn note_success(&self, stage: &Stage) {
        self.shared.health.note_success(stage);
        self.settle_outage(stage);
        // Not only if it had failed: another lane may open the breaker just after this success was noted.
        if self
            .shared
            .breakers
            .note_success(stage, self.modules.config())
        {
            self.shared.wakeup.wake_all();
        }
    }

    /// A stage is reachable, and all attempts for this vCon have failed. Returns whether that was so for
    /// [`MOST_FAILURES`] different vCons in a row: then one vCon at a time is tried.
    pub(super) fn note_failing(&self, stage: &Stage, id: &VconId, error: &str) -> bool {
        let streak = self.shared.health.note_failure(stage, id);
        let slot = &self.shared.slot;
        let is_news = if streak.is_first {
            slot.begin_outage(format_args!("{stage} {FAILS}"))
        } else {
            slot.renew_outage(format_args!("{stage} {FAILS}"))
        };
        if is_news {
            log::warn!("{stage} is reachable but fails, vCons are tried again later: {error}");
        }
        if streak.vcons < MOST_FAILURES {
            return false;
        }
        let config = self.modules.config();
        let is_new = self.shared.breakers.note_failing(stage, config, error);
        if is_new && slot.begin_outage(format_args!("{stage} {FAILS_IN_A_ROW}")) {
            let vcons = streak.vcons;
            log::warn!("{stage} has failed for {vcons} vCons in a row, one at a time is tried");
        }
        true
    }

    /// Whether a final failure is the vCon's fault. If the stage refuses every vCon, recalls the dead letters
    /// of those before it.
    pub(super) fn is_vcon_bad(&mut self, stage: &Stage, id: &VconId, failure: &Failure) -> bool {
        if failure.kind != FailureKind::Refused {
            return failure.kind == FailureKind::Permanent;
        }
        let was_refused = self.was_refused(stage);
        let health = &self.shared.health;
        match health.judge_refusal(stage, id, &failure.message, was_refused) {
            AtFault::VCon => true,
            AtFault::Backend { is_news } => {
                let slot = &self.shared.slot;
                if is_news && slot.begin_outage(format_args!("{stage} {REFUSES}")) {
                    log::warn!(
                        "{stage} refuses one vCon after the other for the same reason, they wait until \
                         it takes one: {failure}"
                    );
                }
                self.recall_dead_letters(stage);
                false
            }
        }
    }

    /// What a denial means for this vCon: if the stage has denied it in a trial and has taken another one since, it is
    /// a refusal of the vCon, unless the stage denies others alike again.
    pub(super) fn judge_denial(&mut self, stage: &Stage, id: &VconId, failure: Failure) -> Failure {
        if failure.kind != FailureKind::Denied {
            return failure;
        }
        let health = &self.shared.health;
        // Lanes that had begun before may get through after a denial: that alone is no proof.
        self.is_last_if_denied |= health.is_known(stage, id);
        match health.judge_refusal(stage, id, &failure.message, false) {
            AtFault::Backend { .. } => {
                self.recall_dead_letters(stage);
                failure
            }
            AtFault::VCon if self.was_denied(stage) => Failure::refused(failure.message),
            AtFault::VCon => failure,
        }
    }

    /// Whether some worker has postponed the vCon because the stage denied it in a trial, and the stage has taken a
    /// vCon of this worker since.
    fn was_denied(&mut self, stage: &Stage) -> bool {
        // A dead letter that was recalled counts as refused.
        self.was_postponed(stage, &denied_by(&stage.to_string())) || self.was_refused(stage)
    }

    /// Whether some worker has postponed the vCon because the stage refused it like others, and the stage has
    /// taken a vCon of this worker since.
    fn was_refused(&mut self, stage: &Stage) -> bool {
        self.was_postponed(stage, &refused_by(&stage.to_string()))
    }

    /// Whether some worker has postponed the vCon with this note, and the stage has taken a vCon of this worker
    /// since.
    fn was_postponed(&mut self, stage: &Stage, noted: &str) -> bool {
        let health = &self.shared.health;
        let Some(worked) = health.since_success(std::slice::from_ref(stage)) else {
            return false;
        };
        match self.queue.postponed(&self.claim.entry, noted) {
            Ok(postponed) => postponed.is_some_and(|postponed| worked < postponed),
            Err(error) => {
                log::debug!(
                    "could not read the rounds of {}: {error}",
                    self.claim.shown()
                );
                false
            }
        }
    }

    /// Recalls the dead letters that turn out to be the stage's fault.
    pub(super) fn recall_dead_letters(&mut self, stage: &Stage) {
        let why = refused_by(&stage.to_string());
        for letter in self.shared.health.take_letters(stage) {
            let (taken, what) = match &letter {
                DeadLetterAt::List(list, entry) => {
                    let what = String::from_utf8_lossy(entry).into_owned();
                    (self.queue.undo_dead_letter(list, entry, &why), what)
                }
                DeadLetterAt::Storage(storage, id) if defers(storage, self.modules.config()) => (
                    self.queue.undo_storage_dead_letter(storage, id, &why),
                    id.to_string(),
                ),
                // The other storages have it and it is announced, so no worker saves it again.
                DeadLetterAt::Storage(..) => continue,
            };
            match taken {
                Ok(true) => {
                    log::info!("recalled the dead letter {what}: {stage} refuses every vCon")
                }
                Ok(false) => {}
                Err(error) if self.shared.health.keep_letter(stage, letter) => {
                    log::debug!(
                        "could not recall the dead letter {what} now, trying again later: {error}"
                    );
                }
                Err(error) => {
                    log::warn!(
                        "could not recall the dead letter {what}, retry it by hand: {error}"
                    );
                }
            }
        }
    }

    /// Remembers the dead letters of a vCon that is done, but that storages have refused.
    pub(super) fn note_storage_letters(&mut self, job: Option<&Job>) {
        let Some(job) = job else { return };
        for (storage, ..) in job.progress.refused() {
            let stage = Stage::Storage(storage.to_owned());
            let letter = DeadLetterAt::Storage(storage.to_owned(), job.id().clone());
            self.shared.health.note_letter(&stage, job.id(), letter);
            self.recall_dead_letters(&stage);
        }
    }
}

/// The note on a vCon that is postponed because a stage refuses every vCon.
pub(super) fn refused_by(stage: &str) -> String {
    format!("refused by {stage}")
}

/// The note on a vCon that is postponed because a stage has denied it in a trial.
pub(super) fn denied_by(stage: &str) -> String {
    format!("denied by {stage}")
}

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtFault {
    /// The vCon's: it becomes a dead letter.
    VCon,
    /// The backend's: the vCon waits.
    Backend {
        /// Whether this was not known before.
        is_news: bool,
    },
}

/// Where the dead letter of a vCon is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DeadLetterAt {
    /// In the dead letter queue of an ingress list, as this entry.
    List(ListName, Vec<u8>),
    /// In the queue of a storage.
    Storage(String, VconId),
}

/// The refusals of one stage since it last took a vCon, and the vCons known as bad.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    streaks: VecDeque<RefusalStreak>,
    /// The vCons that were refused before others were taken.
    known: VecDeque<VconId>,
    /// How many vCons it has taken since it was last found to refuse everything.
    successes: usize,
}

/// Different vCons refused for one reason, with none taken in between.
#[derive(Debug)]
struct RefusalStreak {
    reason: String,
    /// All of them, up to [`MOST_KNOWN`].
    vcons: VecDeque<VconId>,
    /// How many of them had not been refused before; not counted beyond [`MOST_FAILURES`].
    new: usize,
    /// How many of them had been.
    again: usize,
    /// The dead letters of the first of them.
    letters: Vec<DeadLetterAt>,
    /// Whether the backend is at fault.
    is_backends: bool,
}

impl Refusals {
    /// A vCon was refused with this message. `was_refused`: another worker knows that it was refused before,
    /// and others were taken since.
    fn judge(&mut self, id: &VconId, message: &str, was_refused: bool) -> AtFault {
        let is_known = was_refused || self.known.contains(id);
        let most_again = self.successes.clamp(LEAST_AGAIN, MOST_AGAIN);
        let reason = pattern(message);
        let streak = self.streak(reason);
        if !streak.vcons.contains(id) {
            push_capped(&mut streak.vcons, id.clone());
            if is_known {
                streak.again += 1;
            } else {
                streak.new = MOST_FAILURES.min(streak.new + 1);
            }
        }
        if streak.new < MOST_FAILURES && streak.again <= most_again {
            return AtFault::VCon;
        }
        let is_news = !std::mem::replace(&mut streak.is_backends, true);
        if is_news {
            self.successes = 0;
        }
        AtFault::Backend { is_news }
    }

    fn streak(&mut self, reason: String) -> &mut RefusalStreak {
        let found = self
            .streaks
            .iter()
            .position(|streak| streak.reason == reason);
        let index = found.unwrap_or_else(|| {
            if self.streaks.len() == MOST_STREAKS {
                self.streaks.pop_front();
            }
            self.streaks.push_back(RefusalStreak {
                reason,
                vcons: VecDeque::new(),
                new: 0,
                again: 0,
                letters: Vec::new(),
                is_backends: false,
            });
            self.streaks.len() - 1
        });
        &mut self.streaks[index]
    }

    /// The stage has taken a vCon.
    fn note_success(&mut self) {
        if self.streaks.is_empty() && self.known.is_empty() {
            return;
        }
        self.successes = self.successes.saturating_add(1);
        for streak in std::mem::take(&mut self.streaks) {
            for id in streak.vcons {
                if !self.known.contains(&id) {
                    push_capped(&mut self.known, id);
                }
            }
        }
    }

    /// Some vCons of the streak that this one belongs to, up to [`MOST_FAILURES`].
    fn some_like(&self, id: &VconId) -> impl Iterator<Item = &VconId> {
        let streaks = self
            .streaks
            .iter()
            .filter(|streak| streak.vcons.contains(id));
        streaks.flat_map(|streak| &streak.vcons).take(MOST_FAILURES)
    }

    /// A vCon that seemed bad has become a dead letter.
    fn note_letter(&mut self, id: &VconId, letter: DeadLetterAt) {
        let streak = self
            .streaks
            .iter_mut()
            .find(|streak| streak.vcons.contains(id));
        if let Some(streak) = streak {
            streak.keep(letter);
        }
    }

    /// A dead letter could not be recalled, and must be taken once more. Returns false if the stage has taken
    /// a vCon by now, so that the refused one is bad after all.
    fn keep_letter(&mut self, letter: DeadLetterAt) -> bool {
        let streak = self.streaks.iter_mut().find(|streak| streak.must_recall());
        streak.map(|streak| streak.keep(letter)).is_some()
    }

    /// Takes the dead letters whose vCons are not bad after all.
    fn take_letters(&mut self) -> Vec<DeadLetterAt> {
        let streaks = self.streaks.iter_mut();
        let streaks = streaks.filter(|streak| streak.must_recall());
        streaks
            .flat_map(|streak| std::mem::take(&mut streak.letters))
            .collect()
    }
}

impl RefusalStreak {
    /// Whether its dead letters must be recalled: the backend refused enough new vCons, too.
    fn must_recall(&self) -> bool {
        self.is_backends && self.new == MOST_FAILURES
    }

    /// Keeps a dead letter, once: the vCon may have failed more than once.
    fn keep(&mut self, letter: DeadLetterAt) {
        if !self.letters.contains(&letter) {
            self.letters.push(letter);
        }
    }
}

/// Adds an ID; the oldest goes if there are [`MOST_KNOWN`].
fn push_capped(ids: &mut VecDeque<VconId>, id: VconId) {
    if ids.len() == MOST_KNOWN {
        ids.pop_front();
    }
    ids.push_back(id);
}

#[cfg(test)]
mod tests {
    use super::super::shared::tests::TestWorker;
    use super::*;

    #[test]
    fn the_stage_that_worked_longest_ago_counts_or_one_that_never_did() {
        let worker = TestWorker::with("chains: {}\n", &[]);
        let health = &worker.shared.health;
        let [a, b] = ["a", "b"].map(|name| Stage::Storage(name.to_owned()));
        health.note_success(&a);
        assert!(health.since_success(std::slice::from_ref(&a)).is_some());
        assert_eq!(health.since_success(&[a.clone(), b.clone()]), None);
        health.note_success(&b);
        let oldest = health.since_success(std::slice::from_ref(&a));
        assert!(health.since_success(&[a, b]) >= oldest);
    }

    #[test]
    fn a_stage_that_refuses_everything_has_failed_for_all_of_them() {
        let worker = TestWorker::with("chains: {}\n", &[]);
        let health = &worker.shared.health;
        let stage = Stage::Storage("s".to_owned());
        let ids = [(); 3].map(|()| VconId::random());
        let culprits =
            [0, 1, 2].map(|number: usize| health.judge_refusal(&stage, &ids[number], "no", false));
        let news = AtFault::Backend { is_news: true };
        assert_eq!(culprits, [AtFault::VCon, AtFault::VCon, news]);
        health.note_letter(
            &stage,
            &ids[0],
            DeadLetterAt::Storage("s".to_owned(), ids[0].clone()),
        );
        assert_eq!(health.take_letters(&stage).len(), 1);
        assert_eq!(health.take_letters(&Stage::Link("l".to_owned())), []);
        assert_eq!(health.note_failure(&stage, &ids[2]).vcons, 3);
        assert!(health.note_success(&stage));
        assert_eq!(
            health.judge_refusal(&stage, &ids[2], "no", false),
            AtFault::VCon
        );
        assert_eq!(health.note_failure(&stage, &ids[2]).vcons, 1);
    }

    #[test]
    fn different_vcons_in_a_row_count_and_a_success_ends_the_row() {
        let worker = TestWorker::with("chains: {}\n", &[]);
        let health = &worker.shared.health;
        let stage = Stage::Link("l".to_owned());
        let ids = [(); 5].map(|()| VconId::random());
        let fail = |id: &VconId| {
            let failing = health.note_failure(&stage, id);
            (failing.is_first, failing.vcons)
        };
        let streaks = [0, 0, 1, 1, 2, 3, 4].map(|number| fail(&ids[number]));
        let expected = [
            (true, 1),
            (false, 1),
            (false, 2),
            (false, 2),
            (false, 3),
            (false, 3),
            (false, 3),
        ];
        assert_eq!(streaks, expected);
        assert!(health.note_success(&stage));
        assert!(!health.note_success(&stage));
        assert_eq!(fail(&ids[0]), (true, 1));
    }

    const NEWS: AtFault = AtFault::Backend { is_news: true };
    const WAITS: AtFault = AtFault::Backend { is_news: false };

    fn ids(count: usize) -> Vec<VconId> {
        (0..count).map(|_| VconId::random()).collect()
    }

    fn letter(id: &VconId) -> DeadLetterAt {
        DeadLetterAt::Storage("s".to_owned(), id.clone())
    }

    /// What becomes of these vCons, all refused for one reason.
    fn judge(refusals: &mut Refusals, ids: &[VconId]) -> Vec<AtFault> {
        let judge_one = |id: &VconId| {
            let culprit = refusals.judge(id, &format!("vCon {id} is not good"), false);
            if culprit == AtFault::VCon {
                refusals.note_letter(id, letter(id));
            }
            culprit
        };
        ids.iter().map(judge_one).collect()
    }

    #[test]
    fn a_bad_vcon_among_good_ones_is_a_dead_letter_at_once() {
        let mut refusals = Refusals::default();
        for id in ids(50) {
            assert_eq!(judge(&mut refusals, &[id]), [AtFault::VCon]);
            refusals.note_success();
            assert_eq!(refusals.take_letters(), []);
        }
    }

    #[test]
    fn from_the_third_on_a_stage_that_refuses_everything_is_at_fault_and_the_first_two_come_back() {
        let (mut refusals, ids) = (Refusals::default(), ids(5));
        let culprits = judge(&mut refusals, &ids[..2]);
        assert_eq!(culprits, [AtFault::VCon, AtFault::VCon]);
        assert_eq!(refusals.take_letters(), []);
        assert_eq!(judge(&mut refusals, &ids[2..]), [NEWS, WAITS, WAITS]);
        let back = refusals.take_letters();
        assert_eq!(back, [letter(&ids[0]), letter(&ids[1])]);
        assert_eq!(refusals.take_letters(), []);
        // They wait like the others, however often they are tried.
        let all: Vec<AtFault> = judge(&mut refusals, &ids);
        assert_eq!(all, [WAITS; 5]);
    }

    #[test]
    fn a_dead_letter_that_is_noted_late_comes_back_too() {
        let (mut refusals, ids) = (Refusals::default(), ids(3));
        for id in &ids {
            refusals.judge(id, "no", false);
        }
        assert_eq!(refusals.take_letters(), []);
        refusals.note_letter(&ids[0], letter(&ids[0]));
        assert_eq!(refusals.take_letters(), [letter(&ids[0])]);
        // After a success it is too late: then it was the vCon.
        refusals.note_success();
        refusals.note_letter(&ids[1], letter(&ids[1]));
        assert_eq!(refusals.take_letters(), []);
    }

    #[test]
    fn the_same_vcon_again_says_nothing_new() {
        let (mut refusals, ids) = (Refusals::default(), ids(4));
        let (first, others) = ids.split_at(1);
        for _ in 0..10 {
            assert_eq!(judge(&mut refusals, first), [AtFault::VCon]);
        }
        // And it is one dead letter.
        judge(&mut refusals, others);
        let back = [&ids[0], &ids[1]].map(letter);
        assert_eq!(refusals.take_letters(), back);
    }

    #[test]
    fn a_dead_letter_that_could_not_be_recalled_is_taken_again_until_a_vcon_is() {
        let (mut refusals, ids) = (Refusals::default(), ids(3));
        judge(&mut refusals, &ids);
        let taken = refusals.take_letters();
        assert_eq!(taken, [letter(&ids[0]), letter(&ids[1])]);
        assert!(refusals.keep_letter(taken[0].clone()));
        assert_eq!(refusals.take_letters(), taken[..1]);
        refusals.note_success();
        assert!(!refusals.keep_letter(taken[1].clone()));
        assert_eq!(refusals.take_letters(), []);
    }

    #[test]
    fn different_reasons_are_different_rows_and_one_does_not_end_another() {
        let (mut refusals, ids) = (Refusals::default(), ids(6));
        for (pair, expected) in ids.chunks(2).zip([AtFault::VCon, AtFault::VCon, NEWS]) {
            assert_eq!(refusals.judge(&pair[0], "too red", false), expected);
            assert_eq!(refusals.judge(&pair[1], "too blue", false), expected);
        }
        // A vCon that is refused for a reason of its own is bad all the same.
        let other = VconId::random();
        assert_eq!(refusals.judge(&other, "too green", false), AtFault::VCon);
        assert_eq!(refusals.judge(&ids[0], "too red", false), WAITS);
    }

    #[test]
    fn five_bad_ones_in_a_row_are_dead_letters_once_a_good_one_was_taken() {
        let (mut refusals, bad) = (Refusals::default(), ids(5));
        let culprits = judge(&mut refusals, &bad);
        assert_eq!(culprits, [AtFault::VCon, AtFault::VCon, NEWS, WAITS, WAITS]);
        assert_eq!(refusals.take_letters().len(), 2);
        refusals.note_success();
        assert_eq!(judge(&mut refusals, &bad), [AtFault::VCon; 5]);
        assert_eq!(refusals.take_letters(), []);
    }

    #[test]
    fn any_number_of_bad_ones_are_dead_letters_in_the_end() {
        let (mut refusals, mut bad) = (Refusals::default(), ids(100));
        let mut successes = 0;
        while !bad.is_empty() {
            let culprits = judge(&mut refusals, &bad);
            refusals.take_letters();
            let mut culprits = culprits.into_iter();
            // What was taken back at first is among those that wait.
            if successes > 0 {
                bad.retain(|_| culprits.next() != Some(AtFault::VCon));
            }
            refusals.note_success();
            successes += 1;
            assert!(successes < 30);
        }
    }

    #[test]
    fn a_stage_that_breaks_again_costs_no_more_than_some() {
        let (mut refusals, ids) = (Refusals::default(), ids(50));
        judge(&mut refusals, &ids);
        refusals.take_letters();
        refusals.note_success();
        let culprits = judge(&mut refusals, &ids);
        let dead = culprits.iter().filter(|it| **it == AtFault::VCon).count();
        assert_eq!(dead, LEAST_AGAIN);
        // No new one was refused: those may be bad indeed.
        assert_eq!(refusals.take_letters(), []);
        // Once new ones are, all come back.
        judge(&mut refusals, &[(); 3].map(|()| VconId::random()));
        assert_eq!(refusals.take_letters().len(), LEAST_AGAIN);
    }

    #[test]
    fn more_successes_let_more_bad_ones_go() {
        let (mut refusals, bad) = (Refusals::default(), ids(50));
        judge(&mut refusals, &bad);
        (0..20).for_each(|_| refusals.note_success());
        let culprits = judge(&mut refusals, &bad);
        let dead = culprits.iter().filter(|it| **it == AtFault::VCon).count();
        assert_eq!(dead, 20);
        refusals.note_success();
        let culprits = judge(&mut refusals, &bad[20..]);
        let dead = culprits.iter().filter(|it| **it == AtFault::VCon).count();
        assert_eq!(dead, LEAST_AGAIN);
    }

    #[test]
    fn one_that_another_worker_has_refused_counts_as_refused_again() {
        let (mut refusals, bad) = (Refusals::default(), ids(5));
        for id in &bad {
            assert_eq!(refusals.judge(id, "no", true), AtFault::VCon);
        }
        // Of new ones it takes three all the same.
        let new = ids(3);
        assert_eq!(
            judge(&mut refusals, &new),
            [AtFault::VCon, AtFault::VCon, NEWS]
        );
    }

    #[test]
    fn some_vcons_of_a_row_are_named() {
        let (mut refusals, ids) = (Refusals::default(), ids(5));
        for id in &ids {
            refusals.judge(id, "no", false);
        }
        let other = VconId::random();
        refusals.judge(&other, "something else", false);
        let some: Vec<&VconId> = refusals.some_like(&ids[4]).collect();
        assert_eq!(some, [&ids[0], &ids[1], &ids[2]]);
        assert_eq!(refusals.some_like(&other).collect::<Vec<_>>(), [&other]);
    }

    #[test]
    fn what_is_kept_has_an_end() {
        let mut refusals = Refusals::default();
        for number in 0..2 * MOST_STREAKS {
            let words = "x".repeat(number + 1);
            refusals.judge(&VconId::random(), &words, false);
        }
        assert_eq!(refusals.streaks.len(), MOST_STREAKS);
        let newest = refusals.streaks.back().map(|streak| streak.reason.len());
        assert_eq!(newest, Some(2 * MOST_STREAKS));
        let many = ids(2 * MOST_KNOWN);
        judge(&mut refusals, &many);
        let longest = refusals
            .streaks
            .iter()
            .map(|streak| streak.vcons.len())
            .max();
        assert_eq!(longest, Some(MOST_KNOWN));
        refusals.note_success();
        assert_eq!(refusals.known.len(), MOST_KNOWN);
        assert!(refusals.known.contains(&many[2 * MOST_KNOWN - 1]));
        (0..10 * MOST_AGAIN).for_each(|_| refusals.note_success());
        let culprits = judge(&mut refusals, &many[MOST_KNOWN + 100..]);
        let dead = culprits.iter().filter(|it| **it == AtFault::VCon).count();
        assert_eq!(dead, MOST_AGAIN);
    }
}
