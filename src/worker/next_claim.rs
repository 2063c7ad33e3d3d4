//! Asking for the next vCon together with the finish of this one, so that both take one round trip.

use std::sync::Arc;

use super::clock::Clock;
use super::shared::Shared;
use crate::config::{Config, ListName};
use crate::queue::{Claimed, QueueError};

/// The request for a lane's next vCon.
pub(super) struct NextClaim<'a> {
    lists: &'a [ListName],
    /// What the circuit breakers were when these lists were open.
    breakers: u64,
    sent: bool,
    answer: Option<Result<Claimed, QueueError>>,
}

impl<'a> NextClaim<'a> {
    /// Not sent yet.
    pub fn new(lists: &'a [ListName], breakers: u64) -> Self {
        Self {
            lists,
            breakers,
            sent: false,
            answer: None,
        }
    }

    /// The lists to ask for, if a lane would claim from them now as well; nothing once they were
    /// asked for.
    pub fn lists(
        &self,
        shared: &Shared,
        config: &Arc<Config>,
        clock: &Clock<'_>,
    ) -> Option<&'a [ListName]> {
        let may = !self.sent
            && !clock.is_draining()
            && shared.quarantine.is_open()
            && shared.breakers.changes() == self.breakers
            && !shared.breakers.has_trial_due()
            && Arc::ptr_eq(&shared.current.get(), config);
        may.then_some(self.lists)
    }

    /// It is sent. Until the answer is noted, the server may have claimed something for us.
    pub fn note_sent(&mut self) {
        self.sent = true;
    }

    /// The finish that it went with is answered. Where it has no answer of its own, the claim that
    /// was to be finished was handed over again; or, where somebody took that claim from us in
    /// between, another one.
    pub fn note_answer(&mut self, answer: Option<Result<Claimed, QueueError>>) {
        self.sent = answer.is_none();
        self.answer = answer;
    }

    /// Whether the server may have claimed something of which we do not know.
    pub fn is_unsure(&self) -> bool {
        self.sent
    }

    /// What the server has answered.
    pub fn into_answer(self) -> Option<Result<Claimed, QueueError>> {
        self.answer
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::{bounded, never};

    use super::super::fault::Stage;
    use super::super::shared::tests::{Worker, parse};
    use super::*;

    const CONFIG: &str = "\
        storages: {s: {module: storage.webhook, options: {webhook-urls: ['http://h']}}}\n\
        chains: {main: {storages: [s], ingress_lists: [in]}}\n";

    #[test]
    fn the_next_is_asked_for_where_a_lane_would_claim_it_too() {
        let worker = Worker::with(
            CONFIG,
            &[
                ("CONSERVER_RETRY_FIRST_MS", "1"),
                ("CONSERVER_RETRY_MAX_MS", "1"),
            ],
        );
        let (shared, config) = (&worker.shared, worker.config());
        let lists = shared.breakers.open_lists(&config);
        let now = || NextClaim::new(&lists, shared.breakers.changes());
        let drain = never();
        let clock = Clock::idle(&drain, None);
        let asks = |next: &NextClaim<'_>| next.lists(shared, &config, &clock) == Some(&lists[..]);
        assert!(asks(&now()));

        let mut sent = now();
        sent.note_sent();
        assert!(!asks(&sent), "it is sent already");

        let other = parse(CONFIG);
        let asked = now().lists(shared, &other, &clock);
        assert_eq!(asked, None, "another configuration is in force");

        let (hold, drain) = bounded(0);
        drop(hold);
        let asked = now().lists(shared, &config, &Clock::idle(&drain, None));
        assert_eq!(asked, None, "the worker drains");

        let alone = shared.quarantine.alone(Duration::ZERO, &clock);
        assert!(alone.is_some() && !asks(&now()), "a suspect is in work");
        drop(alone);
        assert!(asks(&now()));

        let stale = now();
        let stage = Stage::Storage("s".to_owned());
        assert!(shared.breakers.note_failing(&stage, &config));
        while !shared.breakers.has_trial_due() {
            std::thread::yield_now();
        }
        assert!(!asks(&now()), "a trial is due");
        assert!(shared.breakers.note_success(&stage, &config));
        assert!(asks(&now()));
        assert!(!asks(&stale), "other lists may be open by now");
    }

    #[test]
    fn without_an_answer_something_may_be_claimed_that_is_not_known() {
        let mut next = NextClaim::new(&[], 0);
        assert!(!next.is_unsure());
        next.note_sent();
        assert!(next.is_unsure());
        next.note_answer(None);
        assert!(next.is_unsure());
        let nothing = Claimed {
            work: None,
            fault: None,
        };
        next.note_answer(Some(Ok(nothing)));
        assert!(!next.is_unsure());
    }
}
