//! One lane: claim, load, links, storages, finish, again and again until the drain.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, TryRecvError, select};

use super::doorbell::Doorbell;
use super::kit::{Ending, Fault, Journey, Kit, Way};
use super::loader::Loader;
use super::{Outage, Shared, Turn};
use crate::config::{Chain, ListName};
use crate::queue::{Claim, Document, Finish, Kind, Queue, Reason, Settled, dead_letter_list};
use crate::scoreboard::{LaneCell, Outcome};
use crate::vcon::VconId;

/// A lane of a worker.
pub(super) struct Lane {
    shared: Arc<Shared>,
    queue: Queue,
    kit: Kit,
    lists: Vec<ListName>,
    door: Doorbell,
    drain: Receiver<()>,
    cell: LaneCell,
    outage: Outage,
    fault: Option<String>,
    ready: bool,
    busy: bool,
}

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
    /// To the dead letter queue.
    Bury(Fault),
}

impl Lane {
    /// A lane that has not begun.
    pub fn new(
        shared: Arc<Shared>,
        queue: Queue,
        door: Doorbell,
        drain: Receiver<()>,
        cell: LaneCell,
    ) -> Self {
        let config = shared.current.get();
        let lists = config.ingress_lists();
        let kit = Kit::open(config);
        let outage = Outage::new("Redis", &shared.settings);
        Self {
            shared,
            queue,
            kit,
            lists,
            door,
            drain,
            cell,
            outage,
            fault: None,
            ready: false,
            busy: false,
        }
    }

    /// Works until the worker drains.
    pub fn run(mut self) {
        while !self.draining() {
            self.follow_configuration();
            match self.queue.claim(&self.lists) {
                Ok(claimed) => {
                    self.outage.over();
                    self.note_ready();
                    self.report(claimed.fault);
                    match claimed.work {
                        Some((claim, document)) => self.work(&claim, document),
                        None => self.rest(),
                    }
                }
                Err(error) if error.is_interruption() => {}
                // What the server may have claimed for us is handed over by the next request.
                Err(error) => {
                    let turn = Turn::idle(&self.drain, Some(&self.cell));
                    let _ = self.outage.wait(&error, &turn);
                }
            }
        }
    }

    /// A lane is ready once it has asked for work and been answered.
    fn note_ready(&mut self) {
        if !self.ready {
            self.ready = true;
            self.shared.note_ready();
        }
    }

    fn show(&mut self, busy: bool) {
        if self.busy != busy {
            self.busy = busy;
            if busy {
                self.shared.title.busy();
            } else {
                self.shared.title.idle();
            }
        }
    }

    fn draining(&self) -> bool {
        self.drain.try_recv() == Err(TryRecvError::Disconnected)
    }

    fn rest(&mut self) {
        self.show(false);
        let ring = self.door.idle();
        select! {
            recv(ring) -> _ => {}
            recv(self.drain) -> _ => {}
        }
    }

    fn follow_configuration(&mut self) {
        let config = self.shared.current.get();
        if !Arc::ptr_eq(&config, self.kit.config()) {
            self.lists = config.ingress_lists();
            self.kit = Kit::open(config);
        }
    }

    /// A list that is no list is reported when it is found and when it has changed, not at every
    /// look.
    fn report(&mut self, fault: Option<String>) {
        if fault != self.fault {
            if let Some(fault) = &fault {
                log::error!("an ingress list cannot be read, the others are served: {fault}");
            }
            self.fault = fault;
        }
    }

    fn work(&mut self, claim: &Claim, document: Document) {
        let start = Instant::now();
        self.show(true);
        let Self {
            shared,
            queue,
            kit,
            drain,
            cell,
            outage,
            ..
        } = self;
        let config = Arc::clone(kit.config());
        let chain = config.chain_for(&claim.list);
        let limit = chain.and_then(|chain| chain.timeout);
        let turn = Turn::at(drain, cell, claim.id(), limit);
        let mut visit = Visit {
            shared,
            queue,
            kit,
            outage,
            turn: &turn,
        };
        if let Some(chain) = chain {
            let verdict = visit.process(chain, claim, document);
            visit.settle(claim, chain, start, &verdict);
        } else {
            // Handed over again from a former configuration, in which its list was served.
            visit.return_unserved(claim);
        }
    }
}

/// A lane's work on one claim.
struct Visit<'a> {
    shared: &'a Shared,
    queue: &'a mut Queue,
    kit: &'a mut Kit,
    outage: &'a mut Outage,
    turn: &'a Turn<'a>,
}

impl Visit<'_> {
    fn return_unserved(&mut self, claim: &Claim) {
        while let Err(error) = self.queue.give_back(claim) {
            self.outage.insist(&error, self.turn);
        }
        self.shared.count(Outcome::Returned);
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
            Err(_) => Verdict::GiveBack,
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
            loader.leave(kind, journey);
            let document = loader.load(id);
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
                    let error = format!("the egress list {why}");
                    let fault = Fault {
                        stage: "egress".to_owned(),
                        error,
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
            Verdict::GiveBack => Outcome::Returned,
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
            Verdict::Bury(fault) => log::error!(
                vcon_id = entry, chain_name = name, vcon_processing_time = seconds;
                "{entry} went to {} from chain {name} after {seconds:.4} s, {}: {}",
                dead_letter_list(&claim.list), fault.stage, fault.error
            ),
        }
    }
}
