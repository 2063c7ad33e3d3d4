//! A lane's work on one claim: from the document to letting go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ahead::Ahead;
use super::doorbell::Doorbell;
use super::fault::{Away, Ending, Fault};
use super::holds::hold;
use super::kit::{Errand, Journey, Kit, Way};
use super::loader::Loader;
use super::outage::Draining;
use super::{Outage, Shared, Turn};
use crate::config::{Chain, ListName};
use crate::failure::FailureKind;
use crate::queue::{
    Claim, Document, Finish, Kind, Postponed, Queue, QueueError, Reason, Route, Settled,
    dead_letter_list,
};
use crate::scoreboard::{Event, Outcome};
use crate::storage::fanout::Crew;
use crate::vcon::VconId;

/// A changed document of more bytes than this is let go before the next vCon is asked for, so that
/// a lane does not hold both.
const LARGE: usize = 4 << 20;

/// What becomes of a claim.
enum Verdict {
    /// Write, announce, let go.
    Finish {
        id: VconId,
        document: Option<(Kind, Arc<String>)>,
        expire: Option<u64>,
        /// Where to announce it.
        egress: Vec<ListName>,
        /// What links want announced besides.
        routes: Vec<Route>,
        /// Whether a link ended the chain early.
        halted: bool,
    },
    /// Back to the head of its list, because the worker drains.
    GiveBack,
    /// Back to the head of its list, because its chain is on hold.
    Hold,
    /// To the end of its list, where it has not been too often while others were served. The
    /// time is the one since the backend last served anyone.
    Postpone(Option<Duration>, Fault),
    /// To the dead letter queue.
    Bury(Fault),
}

/// What an attempt to let go of a claim came to.
enum Step {
    /// As the queue says.
    Settled(Settled),
    /// It has been postponed too often.
    Spent(Fault),
}

/// A lane's work on one claim.
pub(super) struct Visit<'a, 'scope, 'env> {
    pub shared: &'a Arc<Shared>,
    pub queue: &'a mut Queue,
    pub kit: &'a mut Kit,
    pub crew: &'a mut Crew<'scope, 'env>,
    pub outage: &'a mut Outage,
    pub door: &'a Doorbell,
    pub turn: &'a Turn<'a>,
    /// The request for the next claim, to go with the finish of this one.
    pub ahead: Ahead<'a>,
}

impl Visit<'_, '_, '_> {
    /// Works on the claim and lets go of it. Fails where the worker drains and Redis does not
    /// take the claim back.
    pub fn work(
        &mut self,
        chain: &Chain,
        claim: &Claim,
        document: Document,
    ) -> Result<(), Draining> {
        let start = Instant::now();
        self.kit.meters().chain(&chain.name).count(Event::Received);
        let verdict = self.process(chain, claim, document);
        // Its chain is done with it, however long Redis takes.
        self.turn.end();
        self.settle(claim, chain, start, &verdict)
    }

    /// Lets go of a claim whose list no chain serves any more; fails as [`Visit::work`] does.
    pub fn return_unserved(&mut self, claim: &Claim) -> Result<(), Draining> {
        self.turn.end();
        let entry = claim.shown();
        let Settled::Refused(why) = self.insist(|queue| queue.give_back(claim))? else {
            self.shared.count(Outcome::Returned);
            return Ok(());
        };
        let error = format!("its list cannot take it back: {why}");
        let reason = Reason {
            stage: "queue",
            error: &error,
            attempts: 1,
            worker: &self.shared.name,
        };
        self.insist(|queue| queue.bury(claim, &reason))?;
        self.shared.count(Outcome::Failed);
        let dead = dead_letter_list(&claim.list);
        log::error!(vcon_id = entry.as_str(); "{entry} went to {dead}, queue: {error}");
        Ok(())
    }

    fn insist<T>(
        &mut self,
        mut step: impl FnMut(&mut Queue) -> Result<T, QueueError>,
    ) -> Result<T, Draining> {
        loop {
            match step(self.queue) {
                Ok(done) => return Ok(done),
                Err(error) => self.outage.insist(&error, self.turn)?,
            }
        }
    }

    fn process(&mut self, chain: &Chain, claim: &Claim, document: Document) -> Verdict {
        let Some(id) = claim.id() else {
            let error = format!("the entry \"{}\" is not a UUID", claim.shown());
            return Verdict::Bury(Fault::of_queue("queue", error));
        };
        match self.walk(chain, &id, document) {
            Ok(verdict) => verdict,
            Err(Ending::Failed(fault)) => Verdict::Bury(fault),
            Err(Ending::Away(away)) => self.let_go(chain, away),
            Err(Ending::Interrupted) => Verdict::GiveBack,
        }
    }

    /// Takes the vCon through its chain.
    fn walk(&mut self, chain: &Chain, id: &VconId, document: Document) -> Result<Verdict, Ending> {
        let Self {
            shared,
            queue,
            kit,
            crew,
            outage,
            turn,
            ..
        } = self;
        let settings = &shared.settings;
        let mut loader = Loader {
            queue,
            outage,
            settings,
            turn,
        };
        let (mut kind, vcon) = loader.open(kit, id, document)?;
        let mut journey = Journey::of(vcon);
        let mut errands = |kit: &mut Kit, journey: &mut Journey, errand: Errand<'_>| {
            let id = match errand {
                Errand::Write => return loader.write(kind, journey),
                Errand::Reread => journey.vcon.id().clone(),
                Errand::GoOver(id) => {
                    loader.leave(kind, journey)?;
                    journey.expire = None;
                    id.clone()
                }
            };
            let document = loader.load(&id)?;
            let (found, vcon) = loader.open(kit, &id, document)?;
            kind = found;
            journey.vcon = vcon;
            Ok(())
        };
        let halted = kit.links(chain, &mut journey, settings, turn, &mut errands)? == Way::Ends;
        let egress = if halted {
            Vec::new()
        } else {
            journey.announce_once(&chain.egress_lists);
            chain.egress_lists.clone()
        };
        let Journey {
            vcon,
            expire,
            routes,
        } = journey;
        let id = vcon.id().clone();
        let document = if halted || chain.storages.is_empty() {
            vcon.into_changed()
        } else {
            let (outgoing, document) = vcon.depart(settings.egress_version);
            kit.store(chain, &Arc::new(outgoing), settings, turn, crew)?;
            document
        };
        Ok(Verdict::Finish {
            id,
            document: document.map(|text| (kind, text)),
            expire,
            egress,
            routes,
            halted,
        })
    }

    /// What becomes of a vCon for which these have failed in all attempts, in ways that pass.
    ///
    /// Those that do not answer a probe are away: the chain is on hold until they are back, and
    /// the vCon waits at the head of its list. Where all of them answer, it may be the vCon: it
    /// goes to the end, and others have their turn.
    fn let_go(&mut self, chain: &Chain, away: Away) -> Verdict {
        let Away { kind, fault } = away;
        let config = Arc::clone(self.kit.config());
        self.turn.pause();
        let mut on_hold = false;
        let mut answers = true;
        for stage in &fault.stages {
            let Err(failure) = self.kit.probe(stage, self.turn.drain()) else {
                continue;
            };
            answers = false;
            if stage.is_in(chain) {
                on_hold = true;
                let why = format!("{}: {failure}", fault.error);
                let drain = self.turn.drain();
                hold(self.shared, &config, stage, &why, self.door, drain);
            } else {
                // One that may hold a document that Redis has lost.
                let health = &self.shared.health;
                health.note_attempt(stage, fault.attempts, &failure);
            }
        }
        if on_hold {
            return Verdict::Hold;
        }
        let health = &self.shared.health;
        for stage in fault.stages.iter().filter(|_| answers) {
            if health.note_failure(stage) {
                let error = &fault.error;
                log::warn!(
                    "{stage} answers and does not do its work, vCons are tried again later: {error}"
                );
            }
        }
        let worked = match kind {
            _ if !answers => None,
            FailureKind::Busy => None,
            // It counts, also when nothing has worked in between.
            FailureKind::Crashed => Some(Duration::ZERO),
            _ => health.since_success(&fault.stages),
        };
        Verdict::Postpone(worked, fault)
    }

    /// Lets go of the claim in the way the verdict says; a Redis that is away is waited for.
    fn settle(
        &mut self,
        claim: &Claim,
        chain: &Chain,
        start: Instant,
        verdict: &Verdict,
    ) -> Result<(), Draining> {
        loop {
            // Without the finish, which may bring the next vCon along.
            let took = start.elapsed();
            let settled = self.try_to_settle(claim, verdict);
            if settled.is_ok() {
                self.outage.over();
            }
            let fault = match settled {
                Ok(Step::Settled(Settled::Done)) => {
                    self.tell(claim, chain, took, verdict);
                    return Ok(());
                }
                Ok(Step::Settled(Settled::NotOurs)) => {
                    let entry = claim.shown();
                    log::warn!(
                        "{entry}: the claim was settled already, by an earlier call or by another worker"
                    );
                    return Ok(());
                }
                Ok(Step::Settled(Settled::Refused(why))) => match verdict {
                    Verdict::GiveBack | Verdict::Hold => {
                        Fault::of_queue("queue", format!("its list cannot take it back: {why}"))
                    }
                    _ => Fault::of_queue("egress", format!("the egress list {why}")),
                },
                Ok(Step::Spent(fault)) => fault,
                Err(error @ QueueError::Document(_)) => {
                    self.outage.over();
                    Fault::of_queue("queue", error.to_string())
                }
                Err(error) => {
                    self.outage.insist(&error, self.turn)?;
                    continue;
                }
            };
            return self.settle(claim, chain, start, &Verdict::Bury(fault));
        }
    }

    fn try_to_settle(&mut self, claim: &Claim, verdict: &Verdict) -> Result<Step, QueueError> {
        let settled = match verdict {
            Verdict::Finish {
                id,
                document,
                expire,
                egress,
                routes,
                ..
            } => {
                let document = document.as_ref().map(|(kind, text)| (*kind, text.as_str()));
                let finish = Finish {
                    id,
                    document,
                    expire: *expire,
                    egress,
                    routes,
                };
                self.finish(claim, &finish)?
            }
            Verdict::GiveBack | Verdict::Hold => self.queue.give_back(claim)?,
            Verdict::Postpone(worked, fault) => {
                let most = self.shared.settings.max_rounds;
                match self.queue.postpone(claim, *worked, most, &fault.stage)? {
                    Postponed::Done => Settled::Done,
                    Postponed::NotOurs => Settled::NotOurs,
                    Postponed::Spent(rounds) => {
                        let attempts = fault.attempts.saturating_mul(rounds);
                        let fault = fault.clone();
                        return Ok(Step::Spent(Fault { attempts, ..fault }));
                    }
                }
            }
            Verdict::Bury(fault) => {
                let reason = Reason {
                    stage: &fault.stage,
                    error: &fault.error,
                    attempts: fault.attempts,
                    worker: &self.shared.name,
                };
                self.queue.bury(claim, &reason)?
            }
        };
        Ok(Step::Settled(settled))
    }

    fn finish(&mut self, claim: &Claim, finish: &Finish<'_>) -> Result<Settled, QueueError> {
        let config = self.kit.config();
        let is_large = finish.document.is_some_and(|(_, text)| text.len() > LARGE);
        let lists = self.ahead.lists(self.shared, config, self.turn);
        let Some(lists) = lists.filter(|_| !is_large) else {
            return self.queue.finish(claim, finish);
        };
        self.ahead.note_sent();
        let (settled, next) = self.queue.finish_and_claim(claim, finish, lists)?;
        self.ahead.note_answer(next);
        Ok(settled)
    }

    fn tell(&self, claim: &Claim, chain: &Chain, took: Duration, verdict: &Verdict) {
        self.count(chain, took, verdict);
        let entry = claim.shown();
        let (entry, name) = (entry.as_str(), chain.name.as_str());
        let seconds = took.as_secs_f64();
        match verdict {
            Verdict::Finish { halted, .. } => {
                let done = if *halted { "Halted" } else { "Finished" };
                log::info!(
                    vcon_id = entry, chain_name = name, vcon_processing_time = seconds;
                    "{done} {entry} in chain {name} in {seconds:.4} s"
                );
            }
            Verdict::GiveBack | Verdict::Hold => log::info!(
                vcon_id = entry, chain_name = name;
                "Returned {entry} to the head of list {}", claim.list
            ),
            // Told once for all of them, when the backend began to fail.
            Verdict::Postpone(_, fault) => log::debug!(
                vcon_id = entry, chain_name = name;
                "Returned {entry} to the end of list {}, {}: {}", claim.list, fault.stage, fault.error
            ),
            Verdict::Bury(fault) => log::error!(
                vcon_id = entry, chain_name = name, vcon_processing_time = seconds;
                "{entry} went to {} from chain {name} after {seconds:.4} s, {}: {}",
                dead_letter_list(&claim.list), fault.stage, fault.error
            ),
        }
    }

    fn count(&self, chain: &Chain, took: Duration, verdict: &Verdict) {
        let meters = self.kit.meters();
        let meter = meters.chain(&chain.name);
        let (outcome, events): (Outcome, &[Event]) = match verdict {
            Verdict::Finish { halted: false, .. } => (Outcome::Finished, &[Event::Done]),
            Verdict::Finish { .. } => (Outcome::Halted, &[Event::Halted]),
            Verdict::GiveBack => (Outcome::Returned, &[Event::Returned]),
            Verdict::Hold | Verdict::Postpone(..) => {
                (Outcome::Returned, &[Event::Failed, Event::Returned])
            }
            Verdict::Bury(_) => (Outcome::Failed, &[Event::Failed, Event::DeadLettered]),
        };
        self.shared.count(outcome);
        events.iter().for_each(|event| meter.count(*event));
        match verdict {
            Verdict::Finish { .. } => meter.observe(took),
            Verdict::Bury(fault) => {
                for stage in &fault.stages {
                    meters.stage(stage).count(Event::DeadLettered);
                }
            }
            _ => {}
        }
    }
}
