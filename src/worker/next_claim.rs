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
mod tests {
    use super::*;

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
