//! One vCon at a time for a stage that fails, or that refuses this deployment, to find out whether it works again.

use std::sync::Arc;
use std::time::Instant;

use super::circuit_breaker::{TrialEnd, backlog_list, is_deferring};
use super::lane::retain_claimable;
use super::modules::Stage;
use super::shared::SharedState;
use crate::config::{Chain, Config, ListName};

/// The permit to try a failing backend with one vCon. No other lane of this worker has one for it as long
/// as this lives.
pub(super) struct TrialPermit {
    shared: Arc<SharedState>,
    stage: Stage,
    config: Arc<Config>,
    /// Where there may be a vCon to try.
    pub lists: Vec<ListName>,
    /// Whether it is the queue of a storage.
    pub is_backlog: bool,
    /// Whether these are all lists that the stage holds up, so that nothing is held up if nothing is there.
    are_all: bool,
    end: TrialEnd,
}

impl TrialPermit {
    /// There is no vCon to try. If the stage has worked for other workers since it last failed for this one, they have
    /// done all of them, or try the last ones, and nothing is held up any more.
    pub(super) fn note_nothing(mut self) {
        if self.are_all {
            self.end = TrialEnd::NothingToTry;
        }
    }
}

impl Drop for TrialPermit {
    fn drop(&mut self) {
        let Self { shared, stage, .. } = self;
        if shared.breakers.end_trial(stage, &self.config, self.end) {
            shared.health.end_outages(stage);
            shared.wakeup.wake_all();
        }
    }
}

/// The permit for a trial, if one is due and no other lane has it.
pub(super) fn begin_trial(shared: &Arc<SharedState>, config: &Arc<Config>) -> Option<TrialPermit> {
    if !shared.breakers.has_due() {
        return None;
    }
    let mut open = shared.breakers.lock();
    let now = Instant::now();
    let due = open.iter_mut().find(|breaker| {
        let is_untried = breaker.state.is_untried();
        is_untried && breaker.next <= now && Arc::ptr_eq(&breaker.config, config)
    })?;
    due.state = due.state.trying(true);
    let stage = due.stage.clone();
    let is_backlog = is_deferring(&stage, config);
    let mut are_all = true;
    let mut lists: Vec<ListName> = match &stage {
        Stage::Storage(name) if is_backlog => backlog_list(name).into_iter().collect(),
        _ => {
            // The lists of chains that nothing else holds up. Another failing stage does not count, as the
            // same vCon tries it too; unless another lane tries it now.
            let is_free = |chain: &Chain| {
                !open.iter().any(|breaker| {
                    breaker.stage != stage
                        && !breaker.state.is_untried()
                        && breaker.holds(chain, config)
                })
            };
            let chains = config.chains.iter();
            let (free, held): (Vec<_>, Vec<_>) = chains
                .filter(|chain| chain.enabled && stage.is_in(chain, config))
                .partition(|chain| is_free(chain));
            are_all = held.is_empty();
            let lists = free.into_iter().flat_map(|it| &it.ingress_lists);
            lists.cloned().collect()
        }
    };
    drop(open);
    let count = lists.len();
    retain_claimable(&mut lists, shared.pauses.get().1.as_deref(), config);
    are_all &= count > 0 && lists.len() == count;
    // Another list each time: the vCons of the first may all be bad, and go to its end.
    if lists.len() > 1 {
        let first = fastrand::usize(..lists.len());
        lists.rotate_left(first);
    }
    Some(TrialPermit {
        shared: Arc::clone(shared),
        stage,
        config: Arc::clone(config),
        lists,
        is_backlog,
        are_all,
        end: TrialEnd::Tried,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::super::circuit_breaker::BreakerState;
    use super::super::circuit_breaker::tests::{CONFIG, names, storage, worker};
    use super::super::shared::tests::TestWorker;
    use super::*;
    use crate::scoreboard::{Event, SeriesKind};

    /// The permit for the trial that is due; waits for it if need be.
    fn trial(worker: &TestWorker) -> Option<TrialPermit> {
        let breakers = &worker.shared.breakers;
        while breakers.next_due().is_some_and(|wait| !wait.is_zero()) {
            thread::yield_now();
        }
        begin_trial(&worker.shared, &worker.config())
    }

    #[test]
    fn a_trial_takes_from_chains_that_nothing_else_holds_up() {
        let worker = worker();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        assert!(trial(&worker).is_none());
        assert!(breakers.note_failing(&storage("a"), &config, "busy"));
        let first = trial(&worker).unwrap();
        assert_eq!(names(&first.lists), ["la", "lab"]);
        assert!(!first.is_backlog);
        assert!(trial(&worker).is_none(), "it is tried already");
        // With another that fails, one vCon can try both; but not while that one is tried.
        assert!(breakers.note_failing(&storage("b"), &config, "busy"));
        let second = trial(&worker).unwrap();
        assert_eq!(names(&second.lists), ["lb"]);
        drop(first);
        assert_eq!(names(&trial(&worker).unwrap().lists), ["la"]);
        drop(second);
        assert_eq!(names(&trial(&worker).unwrap().lists), ["la", "lab"]);
        // What is unavailable is not tried.
        assert!(breakers.open_breaker(
            &storage("b"),
            &config,
            BreakerState::Unavailable,
            "refused"
        ));
        assert_eq!(names(&trial(&worker).unwrap().lists), ["la"]);
    }

    #[test]
    fn nothing_is_held_up_where_others_have_done_what_was_to_be_tried() {
        let mut worker = worker();
        let series = [(SeriesKind::Storage, "a")];
        worker.board.keep_figures_of(series.into_iter()).unwrap();
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        let another_works = || {
            let meters = worker.shared.slot.meters();
            meters.of(SeriesKind::Storage, "a").count(Event::Done);
        };
        let is_held = || breakers.is_open(&storage("a"), &config);
        another_works();
        assert!(breakers.note_failing(&storage("a"), &config, "busy"));
        trial(&worker).unwrap().note_nothing();
        assert!(is_held(), "nobody has got through since");
        another_works();
        drop(trial(&worker).unwrap());
        assert!(is_held(), "there was a vCon, and it failed");
        assert!(!breakers.note_failing(&storage("a"), &config, "busy"));
        trial(&worker).unwrap().note_nothing();
        assert!(is_held(), "nobody has got through since");
        another_works();
        let away = BreakerState::Unavailable;
        assert!(breakers.open_breaker(&storage("b"), &config, away, "refused"));
        trial(&worker).unwrap().note_nothing();
        assert!(is_held(), "one of its lists was not looked into");
        breakers.close(&storage("b"), &config);
        let before = breakers.version();
        trial(&worker).unwrap().note_nothing();
        assert!(!is_held() && breakers.version() > before);
    }

    #[test]
    fn what_defers_is_tried_with_what_waits_for_it() {
        let worker = worker();
        let config = worker.config();
        assert!(
            worker
                .shared
                .breakers
                .note_failing(&storage("c"), &config, "busy")
        );
        let trial = trial(&worker).unwrap();
        assert_eq!(names(&trial.lists), ["DLQ:storage:c"]);
        assert!(trial.is_backlog);
    }

    #[test]
    fn between_two_trials_there_is_a_pause() {
        let long = [("CONSERVER_RETRY_MAX_MS", "60000")];
        let worker = TestWorker::with(CONFIG, &long);
        let (breakers, config) = (&worker.shared.breakers, worker.config());
        assert_eq!(breakers.next_due(), None);
        assert!(breakers.note_failing(&storage("a"), &config, "busy"));
        let wait = breakers.next_due().unwrap();
        assert!(wait > Duration::from_secs(30), "{wait:?}");
        assert!(!breakers.has_due());
        assert!(begin_trial(&worker.shared, &config).is_none());
        // Once it is unavailable, only its prober tries it.
        assert!(breakers.open_breaker(
            &storage("a"),
            &config,
            BreakerState::Unavailable,
            "refused"
        ));
        assert_eq!(breakers.next_due(), None);
    }
}
