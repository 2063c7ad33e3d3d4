//! A lane's work on one claim: from the document to letting go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::doorbell::Doorbell;
use super::holds::hold;
use super::kit::{Ending, Fault, Journey, Kit, Way};
use super::loader::Loader;
use super::{Outage, Shared, Stage, Turn};
use crate::config::Chain;
use crate::queue::{
    Claim, Document, Finish, Kind, Postponed, Queue, QueueError, Reason, Settled, dead_letter_list,
};
use crate::scoreboard::Outcome;
use crate::vcon::VconId;

/// What becomes of a claim.
enum Verdict {
    /// Write, announce, let go.
    Finish {
        id: VconId,
        document: Option<(Kind, String)>,
        expire: Option<u64>,
        announce: bool,
    },
    /// Back to the head of its list.
    GiveBack,
    /// To the end of its list, where it has not been too often while others were served. The
    /// time is the one since the backend last served anyone.
    Postpone(Option<Duration>, Fault),
    /// To the dead letter queue.
    Bury(Fault),
}

/// A lane's work on one claim.
pub(super) struct Visit<'a> {
    pub shared: &'a Arc<Shared>,
    pub queue: &'a mut Queue,
    pub kit: &'a mut Kit,
    pub outage: &'a mut Outage,
    pub door: &'a Doorbell,
    pub turn: &'a Turn<'a>,
}

impl Visit<'_> {
    /// Works on the claim and lets go of it.
    pub fn work(&mut self, chain: &Chain, claim: &Claim, document: Document) {
        let start = Instant::now();
        let verdict = self.process(chain, claim, document);
        self.settle(claim, chain, start, &verdict);
    }

    /// Lets go of a claim whose list no chain serves any more.
    pub fn return_unserved(&mut self, claim: &Claim) {
        let entry = claim.shown();
        let Settled::Refused(why) = self.insist(|queue| queue.give_back(claim)) else {
            return self.shared.count(Outcome::Returned);
        };
        let error = format!("its list cannot take it back: {why}");
        let reason = Reason {
            stage: "queue",
            error: &error,
            attempts: 1,
            worker: &self.shared.name,
        };
        self.insist(|queue| queue.bury(claim, &reason));
        self.shared.count(Outcome::Failed);
        let dead = dead_letter_list(&claim.list);
        log::error!(vcon_id = entry.as_str(); "{entry} went to {dead}, queue: {error}");
    }

    fn insist<T>(&mut self, mut step: impl FnMut(&mut Queue) -> Result<T, QueueError>) -> T {
        loop {
            match step(self.queue) {
                Ok(done) => return done,
                Err(error) => self.outage.insist(&error, self.turn),
            }
        }
    }

    fn process(&mut self, chain: &Chain, claim: &Claim, document: Document) -> Verdict {
        let Some(id) = claim.id() else {
            let error = format!("the entry {:?} is not a UUID", claim.shown());
            return Verdict::Bury(Fault {
                stage: "queue".to_owned(),
                error,
                attempts: 1,
            });
        };
        match self.walk(chain, &id, document) {
            Ok(verdict) => verdict,
            Err(Ending::Failed(fault)) => Verdict::Bury(fault),
            Err(Ending::Away(stages, fault)) => self.let_go(chain, &stages, fault),
            Err(Ending::Interrupted) => Verdict::GiveBack,
        }
    }

    /// Takes the vCon through its chain.
    fn walk(&mut self, chain: &Chain, id: &VconId, document: Document) -> Result<Verdict, Ending> {
        let Self {
            shared,
            queue,
            kit,
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
        let mut journey = Journey { vcon, expire: None };
        let mut go_over = |kit: &mut Kit, journey: &mut Journey, id: &VconId| {
            loader.leave(kind, journey)?;
            let document = loader.load(id)?;
            let (found, vcon) = loader.open(kit, id, document)?;
            kind = found;
            *journey = Journey { vcon, expire: None };
            Ok(())
        };
        let halted = kit.links(chain, &mut journey, settings, turn, &mut go_over)? == Way::Ends;
        if !halted {
            kit.store(chain, &mut journey.vcon, settings, turn)?;
        }
        Ok(Verdict::Finish {
            id: journey.vcon.id().clone(),
            document: journey
                .vcon
                .is_changed()
                .then(|| (kind, journey.vcon.to_json())),
            expire: journey.expire,
            announce: !halted,
        })
    }

    /// What becomes of a vCon for which these have failed in all attempts, in ways that pass.
    ///
    /// Those that do not answer a probe are away: the chain is on hold until they are back, and
    /// the vCon waits at the head of its list. Where all of them answer, it may be the vCon: it
    /// goes to the end, and others have their turn.
    fn let_go(&mut self, chain: &Chain, stages: &[Stage], fault: Fault) -> Verdict {
        let config = Arc::clone(self.kit.config());
        let mut away = false;
        for stage in stages.iter().filter(|stage| stage.is_in(chain)) {
            if let Err(failure) = self.kit.probe(stage) {
                away = true;
                let why = format!("{}: {failure}", fault.error);
                let drain = self.turn.drain();
                hold(self.shared, &config, stage, &why, self.door, drain);
            }
        }
        if away {
            return Verdict::GiveBack;
        }
        let health = &self.shared.health;
        for stage in stages {
            if health.note_failure(stage) {
                let error = &fault.error;
                log::warn!(
                    "{stage} answers and does not do its work, vCons are tried again later: {error}"
                );
            }
        }
        Verdict::Postpone(health.since_success(stages), fault)
    }

    /// Lets go of the claim in the way the verdict says; a Redis that is away is waited for.
    fn settle(&mut self, claim: &Claim, chain: &Chain, start: Instant, verdict: &Verdict) {
        loop {
            let settled = match verdict {
                Verdict::Finish {
                    id,
                    document,
                    expire,
                    announce,
                } => {
                    let document = document.as_ref().map(|(kind, text)| (*kind, text.as_str()));
                    let egress = if *announce {
                        chain.egress_lists.as_slice()
                    } else {
                        &[]
                    };
                    self.queue.finish(
                        claim,
                        &Finish {
                            id,
                            document,
                            expire: *expire,
                            egress,
                        },
                    )
                }
                Verdict::GiveBack => self.queue.give_back(claim),
                Verdict::Postpone(worked, fault) => {
                    let most = self.shared.settings.max_rounds;
                    match self.queue.postpone(claim, *worked, most) {
                        Ok(Postponed::Done) => Ok(Settled::Done),
                        Ok(Postponed::NotOurs) => Ok(Settled::NotOurs),
                        Ok(Postponed::Spent(rounds)) => {
                            let fault = Fault {
                                attempts: fault.attempts.saturating_mul(rounds),
                                ..fault.clone()
                            };
                            return self.settle(claim, chain, start, &Verdict::Bury(fault));
                        }
                        Err(error) => Err(error),
                    }
                }
                Verdict::Bury(fault) => {
                    let reason = Reason {
                        stage: &fault.stage,
                        error: &fault.error,
                        attempts: fault.attempts,
                        worker: &self.shared.name,
                    };
                    self.queue.bury(claim, &reason)
                }
            };
            match settled {
                Ok(Settled::Done) => {
                    self.outage.over();
                    return self.tell(claim, chain, start, verdict);
                }
                Ok(Settled::NotOurs) => {
                    self.outage.over();
                    let entry = claim.shown();
                    return log::warn!(
                        "{entry}: the claim was settled already, by an earlier call or by another worker"
                    );
                }
                Ok(Settled::Refused(why)) => {
                    self.outage.over();
                    let (stage, error) = match verdict {
                        Verdict::GiveBack => {
                            ("queue", format!("its list cannot take it back: {why}"))
                        }
                        _ => ("egress", format!("the egress list {why}")),
                    };
                    let fault = Fault {
                        stage: stage.to_owned(),
                        error,
                        attempts: 1,
                    };
                    return self.settle(claim, chain, start, &Verdict::Bury(fault));
                }
                Err(error @ QueueError::Document(_)) => {
                    self.outage.over();
                    let fault = Fault {
                        stage: "queue".to_owned(),
                        error: error.to_string(),
                        attempts: 1,
                    };
                    return self.settle(claim, chain, start, &Verdict::Bury(fault));
                }
                Err(error) => self.outage.insist(&error, self.turn),
            }
        }
    }

    fn tell(&self, claim: &Claim, chain: &Chain, start: Instant, verdict: &Verdict) {
        self.shared.count(match verdict {
            Verdict::Finish { announce: true, .. } => Outcome::Finished,
            Verdict::Finish { .. } => Outcome::Halted,
            Verdict::GiveBack | Verdict::Postpone(..) => Outcome::Returned,
            Verdict::Bury(_) => Outcome::Failed,
        });
        let entry = claim.shown();
        let (entry, name) = (entry.as_str(), chain.name.as_str());
        let seconds = start.elapsed().as_secs_f64();
        match verdict {
            Verdict::Finish { announce, .. } => {
                let done = if *announce { "Finished" } else { "Halted" };
                log::info!(
                    vcon_id = entry, chain_name = name, vcon_processing_time = seconds;
                    "{done} {entry} in chain {name} in {seconds:.4} s"
                );
            }
            Verdict::GiveBack => log::info!(
                vcon_id = entry, chain_name = name;
                "Returned {entry} to the head of list {}", claim.list
            ),
            Verdict::Postpone(_, fault) => log::info!(
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
}
