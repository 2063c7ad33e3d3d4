//! What a stage needs before it is asked for a vCon: that its server has not asked to be left alone, and a token
//! of its budget, if it has one.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Granting, Hand, NoToken, begin_request};
use super::job::Job;
use super::modules::Stage;
use super::pipeline::Pipeline;
use super::release::{Ending, NotNow, Until};
use super::shared::SharedState;
use crate::config::Budget;
use crate::link::{LinkError, Permit};
use crate::queue::QueueError;
use crate::scoreboard::{Event, Meter};

impl Pipeline<'_, '_, '_> {
    /// Says that a stage wants to be left alone for now, as another lane has been told.
    pub(super) fn is_left_alone(&self, stage: &Stage) -> Option<NotNow> {
        let breakers = &self.shared.breakers;
        breakers.follow_waits(self.modules.config());
        let wait = breakers.wait_of(stage, self.modules.config());
        wait.map(|(time, error)| NotNow {
            stage: stage.clone(),
            until: Until::Asked(time),
            error,
        })
    }

    /// Puts back the tokens with which the vCon was claimed and that its next step does not need: others can use
    /// them.
    pub(super) fn put_back_tokens(&mut self, job: &Job) {
        let hand = self.hand.tokens();
        if hand.is_empty() {
            return;
        }
        let next = match self.chain.links.get(job.progress.links_done()) {
            Some(link) => vec![Stage::Link(link.clone())],
            None => {
                let storages = job.progress.missing(&self.chain.storages).into_iter();
                storages.map(Stage::Storage).collect()
            }
        };
        let needed = next
            .iter()
            .filter_map(|stage| self.modules.budget_of(stage));
        let needed: Vec<_> = needed.collect();
        hand.retain(|it| needed.iter().any(|(budget, _)| it.is_of(budget)));
    }

    /// A token for a request to this stage, which begins now; nothing if the stage has no budget. Waits for
    /// Redis, but not for a token.
    pub(super) fn token_for(&mut self, stage: &Stage) -> Result<Option<Granting>, Ending> {
        let Some((budget, longest)) = self.modules.budget_of(stage) else {
            return Ok(None);
        };
        loop {
            match begin_request(self.shared, &self.hand, &budget, longest) {
                Ok(granting) => {
                    if let Some(meter) = self.modules.meters().stage(stage) {
                        meter.count(Event::Permitted);
                    }
                    return Ok(Some(granting));
                }
                Err(NoToken::Due(due)) => {
                    return Err(Ending::NotNow(vec![NotNow::over_budget(stage, due)]));
                }
                Err(NoToken::Redis(error)) => self.wait_for_redis(&error)?,
            }
        }
    }

    /// Redis has not answered: waits before the next try.
    pub(super) fn wait_for_redis(&mut self, error: &QueueError) -> Result<(), Ending> {
        let waited = self.outage.wait_anyway(error, self.clock);
        waited.map_err(|_| Ending::Interrupted)
    }
}

/// A permit for one request of a link, whose budget this is. If Redis does not tell, says why in `unknown`.
pub(super) fn permit(
    shared: &SharedState,
    hand: &Hand<'_>,
    budget: Option<&(Arc<Budget>, Duration)>,
    meter: &Meter,
    unknown: &Cell<Option<QueueError>>,
) -> Result<Permit, LinkError> {
    let Some((budget, longest)) = budget else {
        return Ok(Permit::default());
    };
    match begin_request(shared, hand, budget, *longest) {
        Ok(granting) => {
            meter.count(Event::Permitted);
            Ok(Permit::holding(granting))
        }
        Err(NoToken::Due(due)) => Err(LinkError::OverBudget(due)),
        Err(NoToken::Redis(error)) => {
            unknown.set(Some(error));
            Err(LinkError::OverBudget(Instant::now()))
        }
    }
}
