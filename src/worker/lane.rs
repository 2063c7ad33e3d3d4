//! One lane: claim, load, links, storages, finish, again and again until the drain.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError, select};

use super::ahead::Ahead;
use super::company::Member;
use super::doorbell::Doorbell;
use super::kit::Kit;
use super::visit::Visit;
use super::{Backoff, Outage, Shared, Turn};
use crate::config::ListName;
use crate::queue::{Claim, Claimed, Document, Queue, QueueError, Settled};
use crate::scoreboard::LaneCell;
use crate::storage::fanout::Crew;

/// How long a suspect waits for those in work, which may hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// The answer to a request for work. It is made, and worked on, by one who takes part.
type Asked<'a> = (Member<'a>, Result<Claimed, QueueError>);

/// A lane of a worker.
pub(super) struct Lane {
    shared: Arc<Shared>,
    queue: Queue,
    kit: Kit,
    lists: Vec<ListName>,
    holds: u64,
    door: Doorbell,
    drain: Receiver<()>,
    cell: LaneCell,
    outage: Outage,
    patience: Backoff,
    fault: Option<String>,
    ready: bool,
    busy: bool,
    unsure: bool,
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
        let holds = shared.holds.changes();
        let lists = shared.holds.lists(&config).open;
        let kit = shared.open_kit(config);
        let outage = Outage::new("Redis", &shared.settings, &shared.redis);
        let patience = Backoff::new(shared.settings.retry_first, shared.settings.retry_max);
        Self {
            shared,
            queue,
            kit,
            lists,
            holds,
            door,
            drain,
            cell,
            outage,
            patience,
            fault: None,
            ready: false,
            busy: false,
            unsure: false,
        }
    }

    /// Works until the worker drains. Answers false where a claim may be left that is not known
    /// here.
    pub fn run(mut self) -> bool {
        thread::scope(|scope| self.serve(&mut Crew::new(scope)))
    }

    fn serve(&mut self, crew: &mut Crew<'_, '_>) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut ahead = None;
        loop {
            let asked = match ahead.take() {
                // Claimed before the drain began, or while it did.
                Some(asked) => asked,
                None if self.draining() => break,
                None => match self.ask(&shared) {
                    Some(asked) => asked,
                    None => continue,
                },
            };
            ahead = self.go_on(&shared, asked, crew);
        }
        !self.unsure || self.leave()
    }

    /// Asks for work; waits instead while a suspect is in work.
    fn ask<'a>(&mut self, shared: &'a Shared) -> Option<Asked<'a>> {
        self.follow_configuration();
        let Some(company) = shared.company.try_join() else {
            // A lane that waits for a suspect is as ready as the one that works on it.
            self.note_ready();
            // By then the worker may drain, or a list be on hold.
            drop(shared.company.join());
            return None;
        };
        Some((company, self.queue.claim(&self.lists)))
    }

    /// Does what is to be done after such an answer; gives the next one where the work has
    /// brought it along.
    fn go_on<'a>(
        &mut self,
        shared: &'a Shared,
        asked: Asked<'a>,
        crew: &mut Crew<'_, '_>,
    ) -> Option<Asked<'a>> {
        let (company, claimed) = asked;
        // What the server may have claimed for us is handed over by the next request.
        self.unsure = claimed.is_err();
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                drop(company);
                self.wait_after(&error);
                return None;
            }
        };
        self.outage.over();
        self.patience.reset();
        self.note_ready();
        self.report(claimed.fault);
        let Some((claim, document)) = claimed.work else {
            drop(company);
            self.rest();
            return None;
        };
        if self.draining() {
            // It was asked for before the drain, which the finish of the one before may have begun.
            self.give_back(&claim);
            return None;
        }
        if !shared.is_last_chance(claim.deaths) {
            return Some((company, self.work(&claim, document, crew)?));
        }
        drop(company);
        self.cell.waiting(claim.id().as_ref());
        let _alone = shared.company.alone(PATIENCE);
        if self.draining() {
            self.give_back(&claim);
            self.cell.idle();
        } else {
            // Nothing is asked for beside a suspect.
            self.work(&claim, document, crew);
        }
        None
    }

    /// Puts what was not begun back at the head of its list.
    fn give_back(&mut self, claim: &Claim) {
        let settled = self.queue.give_back(claim);
        self.unsure = !matches!(settled, Ok(Settled::Done | Settled::NotOurs));
    }

    fn wait_after(&mut self, error: &QueueError) {
        if error.is_interruption() {
            return;
        }
        // Another daemon has our name: what is to be done is for the monitor to say.
        let displaced = error.is_about_the_lease();
        if displaced {
            self.outage.over();
            self.show(false);
        }
        let turn = Turn::idle(&self.drain, Some(&self.cell));
        let _ = if displaced {
            turn.wait(self.patience.next_wait())
        } else {
            self.outage.wait(error, &turn)
        };
    }

    /// At the end: gives back what was claimed for us by a request whose answer was lost. False
    /// where that cannot be found out.
    fn leave(&mut self) -> bool {
        match self.queue.claim(&[]) {
            Ok(Claimed { work: None, .. }) => true,
            Ok(Claimed {
                work: Some((claim, _)),
                ..
            }) => {
                self.give_back(&claim);
                !self.unsure
            }
            // Whoever has the name now has returned it, or will.
            Err(error) => error.is_about_the_lease(),
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
        let holds = self.shared.holds.changes();
        let same = Arc::ptr_eq(&config, self.kit.config());
        if !same || holds != self.holds {
            self.holds = holds;
            self.lists = self.shared.holds.lists(&config).open;
        }
        if !same {
            self.kit = self.shared.open_kit(config);
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

    /// Works on a claim; gives the answer to the request for the next one where that was sent.
    fn work(
        &mut self,
        claim: &Claim,
        document: Document,
        crew: &mut Crew<'_, '_>,
    ) -> Option<Result<Claimed, QueueError>> {
        self.show(true);
        let Self {
            shared,
            queue,
            kit,
            door,
            drain,
            cell,
            outage,
            lists,
            holds,
            ..
        } = self;
        let config = Arc::clone(kit.config());
        let chain = config.chain_for(&claim.list);
        let limit = chain.and_then(|chain| chain.timeout);
        let longest = chain.map_or(Duration::ZERO, |chain| kit.longest_call(chain));
        let turn = Turn::at(drain, cell, claim.id(), limit, longest);
        let mut visit = Visit {
            shared,
            queue,
            kit,
            crew,
            outage,
            door,
            turn: &turn,
            ahead: Ahead::new(lists, *holds),
        };
        let settled = match chain {
            Some(chain) => visit.work(chain, claim, document),
            // Handed over again from a former configuration, in which its list was served.
            None => visit.return_unserved(claim),
        };
        self.unsure = settled.is_err() || visit.ahead.is_unsure();
        visit.ahead.into_answer()
    }
}
