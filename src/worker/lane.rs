//! One lane: claims, has the pipeline work on what it got, and waits when there is nothing, until
//! the drain.
//!
//! ```text
//!         ┌──────────────── next claim, with the finish ◄─────┐
//!         ▼                                                   │
//! ask: trial ─► ingress lists ─► backlogs ──work──► pipeline ─┴─► released
//!  ▲                                │ nothing
//!  └── token, tick, unblocked ◄── BLPOP on the wake list
//! ```

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError};

use super::circuit_breaker::{Trial, backlog_list, begin_trial, defers};
use super::clock::Clock;
use super::modules::Modules;
use super::next_claim::NextClaim;
use super::pipeline::Pipeline;
use super::quarantine::InFlight;
use super::retry::{Backoff, Outage};
use super::shared::Shared;
use crate::config::{Chain, Config, ListName};
use crate::queue::{Claim, Claimed, Document, Queue, QueueError, Released};
use crate::scoreboard::LaneCell;
use crate::settings::ListOrder;
use crate::storage::fan_out::WriterPool;

/// What a document of more bytes than this leaves free is given back to the system.
const LARGE: usize = 1 << 20;

/// How long a suspect waits for what is in flight, which may hang.
const QUARANTINE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a request for work has brought. The lane is in flight from before the request on.
struct Asked<'a> {
    claimed: Result<Claimed, QueueError>,
    in_flight: InFlight<'a>,
    /// If it is a vCon to try a failing backend with.
    trial: Option<Trial>,
    /// Whether it went with a finish: then only ingress lists were asked.
    with_finish: bool,
}

/// A lane of a worker.
pub(super) struct Lane {
    shared: Arc<Shared>,
    queue: Queue,
    modules: Modules,
    /// The ingress lists that are claimed from now.
    lists: Vec<ListName>,
    /// The queues of storages that are worked off when those are empty.
    backlogs: Vec<ListName>,
    /// What the circuit breakers were when these were looked at.
    breakers: u64,
    /// Its number, from 0.
    number: usize,
    drain: Receiver<()>,
    cell: LaneCell,
    outage: Outage,
    /// The pauses while another daemon has our name.
    displaced: Backoff,
    fault: Option<String>,
    is_ready: bool,
    is_busy: bool,
    /// Whether the server may have claimed something of which this lane does not know.
    is_unsure: bool,
}

impl Lane {
    /// A lane that has not begun; its number is counted from 0.
    pub fn new(shared: Arc<Shared>, queue: Queue, number: usize, drain: Receiver<()>) -> Self {
        let cell = shared.slot.lane(number);
        let modules = shared.open_modules(shared.current.get());
        let outage = Outage::new("Redis", &shared.settings, &shared.redis);
        let displaced = Backoff::new(shared.settings.retry_first, shared.settings.retry_max);
        let mut lane = Self {
            shared,
            queue,
            modules,
            lists: Vec::new(),
            backlogs: Vec::new(),
            breakers: 0,
            number,
            drain,
            cell,
            outage,
            displaced,
            fault: None,
            is_ready: false,
            is_busy: false,
            is_unsure: false,
        };
        lane.look_at_lists();
        lane
    }

    /// Works until the worker drains. Returns false if a claim may be left that is not known here.
    pub fn run(mut self) -> bool {
        let nothing_left = thread::scope(|scope| self.serve(&mut WriterPool::new(scope)));
        self.shared.wakeup.note_end(self.number);
        nothing_left
    }

    fn serve(&mut self, writers: &mut WriterPool<'_, '_>) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut next = None;
        loop {
            let asked = match next.take() {
                // Claimed before the drain began, or while it did.
                Some(asked) => asked,
                None if self.is_draining() => break,
                None => match self.ask(&shared) {
                    Some(asked) => asked,
                    None => continue,
                },
            };
            next = self.go_on(&shared, asked, writers);
        }
        !self.is_unsure || self.leave()
    }

    /// Asks for work; waits instead while a suspect is in work.
    fn ask<'a>(&mut self, shared: &'a Shared) -> Option<Asked<'a>> {
        self.follow_configuration();
        let Some(in_flight) = shared.quarantine.enter() else {
            // A lane that waits for a suspect is as ready as the one that works on it.
            self.note_ready();
            let clock = Clock::idle(&self.drain, None);
            // By then the worker may drain, or a list be on hold.
            shared.quarantine.wait_until_open(&clock);
            return None;
        };
        let found_nothing =
            |claimed: &Result<Claimed, _>| matches!(claimed, Ok(Claimed { work: None, .. }));
        if let Some(trial) = begin_trial(&self.shared, self.modules.config()) {
            let claimed = if trial.is_backlog {
                self.queue.claim_backlog(&trial.lists)
            } else {
                self.queue.claim(&trial.lists)
            };
            if !found_nothing(&claimed) {
                return Some(Asked {
                    claimed,
                    in_flight,
                    trial: Some(trial),
                    with_finish: false,
                });
            }
        }
        let mut claimed = self.queue.claim(&self.lists);
        if found_nothing(&claimed) && !self.backlogs.is_empty() {
            claimed = self.queue.claim_backlog(&self.backlogs);
        }
        Some(Asked {
            claimed,
            in_flight,
            trial: None,
            with_finish: false,
        })
    }

    /// Does what such an answer asks for; returns the next one if the work has brought it along.
    fn go_on<'a>(
        &mut self,
        shared: &'a Shared,
        asked: Asked<'a>,
        writers: &mut WriterPool<'_, '_>,
    ) -> Option<Asked<'a>> {
        let Asked {
            claimed,
            in_flight,
            trial,
            with_finish,
        } = asked;
        // What the server may have claimed for us is handed over by the next request.
        self.is_unsure = claimed.is_err();
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                drop(in_flight);
                self.wait_after(&error);
                return None;
            }
        };
        self.outage.over();
        self.displaced.reset();
        self.note_ready();
        self.report(claimed.fault);
        let Some((claim, document)) = claimed.work else {
            drop(in_flight);
            // Otherwise the backlogs are still to be looked at.
            if !with_finish || self.backlogs.is_empty() {
                self.wait_for_work();
            }
            return None;
        };
        if self.is_draining() {
            // It was asked for before the drain, which the finish of the one before may have begun.
            self.give_back(&claim);
            return None;
        }
        if !shared.is_last_chance(claim.deaths) {
            let claimed = self.work(&claim, document, writers)?;
            drop(trial);
            return Some(Asked {
                claimed,
                in_flight,
                trial: None,
                with_finish: true,
            });
        }
        drop(in_flight);
        self.cell.waiting(claim.id().as_ref());
        let alone = {
            let clock = Clock::idle(&self.drain, None);
            shared.quarantine.alone(QUARANTINE_TIMEOUT, &clock)
        };
        if alone.is_some() {
            // Nothing is asked for beside a suspect.
            self.work(&claim, document, writers);
        } else {
            self.give_back(&claim);
            self.cell.idle();
        }
        None
    }

    /// Works on a claim; returns the answer to the request for the next one if that was sent.
    fn work(
        &mut self,
        claim: &Claim,
        document: Document,
        writers: &mut WriterPool<'_, '_>,
    ) -> Option<Result<Claimed, QueueError>> {
        self.show(true);
        self.rotate();
        let config = Arc::clone(self.modules.config());
        let configured = config.chain_for(&claim.list);
        let backlog = match configured {
            Some(_) => None,
            None => backlog_chain(&claim.list, &config),
        };
        let is_backlog = backlog.is_some();
        let unserved;
        let chain = match configured.or(backlog.as_ref()) {
            Some(chain) => chain,
            None => {
                unserved = unserved_chain(&claim.list);
                &unserved
            }
        };
        let is_served = is_backlog || configured.is_some();
        let longest_call = self.modules.longest_call(chain);
        let id = claim.id();
        let clock = Clock::start(&self.drain, &self.cell, id, chain.timeout, longest_call);
        let mut pipeline = Pipeline {
            shared: &self.shared,
            queue: &mut self.queue,
            modules: &mut self.modules,
            writers,
            outage: &mut self.outage,
            clock: &clock,
            chain,
            claim,
            is_backlog,
            next: NextClaim::new(&self.lists, self.breakers),
        };
        // One that is missing comes from a storage.
        let is_large = match &document {
            Document::Found(_, text) => text.len() > LARGE,
            other => *other == Document::Missing,
        };
        let released = if is_served {
            pipeline.run(document)
        } else {
            // Handed over again from a former configuration, in which its list was served.
            pipeline.return_unserved()
        };
        self.is_unsure = !released || pipeline.next.is_unsure();
        let next = pipeline.next.into_answer();
        if is_large {
            self.shared.note_large();
        }
        next
    }

    /// Puts what was not begun back at the head of its list.
    fn give_back(&mut self, claim: &Claim) {
        let released = self.queue.release(claim, None);
        self.is_unsure = !matches!(released, Ok(Released::Done | Released::NotOurs));
    }

    fn wait_after(&mut self, error: &QueueError) {
        if error.is_interruption() {
            return;
        }
        // Another daemon has our name: it is for the monitor to say what follows.
        let is_displaced = error.is_about_the_lease();
        if is_displaced {
            self.outage.over();
            self.show(false);
        }
        let clock = Clock::idle(&self.drain, Some(&self.cell));
        let _ = if is_displaced {
            clock.wait(self.displaced.next_wait())
        } else {
            self.outage.wait(error, &clock)
        };
    }

    /// At the end: gives back what was claimed for us by a request whose answer was lost. False
    /// if that cannot be found out.
    fn leave(&mut self) -> bool {
        match self.queue.claim(&[]) {
            Ok(Claimed { work: None, .. }) => true,
            Ok(Claimed {
                work: Some((claim, _)),
                ..
            }) => {
                self.give_back(&claim);
                !self.is_unsure
            }
            // Whoever has the name now has returned it, or will.
            Err(error) => error.is_about_the_lease(),
        }
    }

    /// A lane is ready once it has asked for work and been answered.
    fn note_ready(&mut self) {
        if !self.is_ready {
            self.is_ready = true;
            self.shared.note_ready();
        }
    }

    fn show(&mut self, is_busy: bool) {
        if self.is_busy != is_busy {
            self.is_busy = is_busy;
            if is_busy {
                self.shared.title.busy();
            } else {
                self.shared.title.idle();
            }
        }
    }

    fn is_draining(&self) -> bool {
        self.drain.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Blocks until there may be something to do.
    fn wait_for_work(&mut self) {
        self.show(false);
        self.shared.give_back_memory();
        let longest = self.shared.breakers.next_trial();
        let wakeup = &self.shared.wakeup;
        if let Err(error) = wakeup.wait(self.number, &mut self.queue, &self.drain, longest) {
            self.wait_after(&error);
        }
    }

    fn follow_configuration(&mut self) {
        let config = self.shared.current.get();
        let is_same = Arc::ptr_eq(&config, self.modules.config());
        if !is_same {
            self.modules = self.shared.open_modules(config);
        }
        if !is_same || self.shared.breakers.changes() != self.breakers {
            self.look_at_lists();
        } else {
            self.rotate();
        }
    }

    fn look_at_lists(&mut self) {
        let breakers = &self.shared.breakers;
        let config = self.modules.config();
        self.breakers = breakers.changes();
        self.lists = breakers.open_lists(config);
        self.backlogs = breakers.backlogs(config);
        let lists = config.chains.iter().flat_map(|it| &it.ingress_lists);
        self.queue.set_ingress(lists);
    }

    /// Begins with another list each time, so that a full one starves nobody, if that is wanted.
    fn rotate(&mut self) {
        if self.shared.settings.list_order == ListOrder::Rotate && !self.lists.is_empty() {
            self.lists.rotate_left(1);
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
}

/// The chain of what is claimed from a storage's own queue: that storage, and nothing else. None if
/// the list is an ingress list, or the storage does not defer.
fn backlog_chain(list: &ListName, config: &Config) -> Option<Chain> {
    let is_its_queue = |name: &&String| backlog_list(name).as_ref() == Some(list);
    let storage = config.storages.keys().find(is_its_queue)?;
    let is_backlog = defers(storage, config) && config.chain_for(list).is_none();
    is_backlog.then(|| Chain {
        name: format!("storage {storage}"),
        storages: vec![storage.clone()],
        ..unserved_chain(list)
    })
}

/// A chain that does nothing.
fn unserved_chain(list: &ListName) -> Chain {
    Chain {
        name: String::new(),
        links: Vec::new(),
        storages: Vec::new(),
        ingress_lists: vec![list.clone()],
        egress_lists: Vec::new(),
        enabled: true,
        timeout: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::shared::tests::parse;
    use super::*;

    #[test]
    fn the_queue_of_a_storage_that_defers_is_a_chain_of_that_storage_alone() {
        let config = parse(
            "links: {l: {module: links.tag, options: {tags: [x]}}}\n\
             storages: {holds: {module: storage.webhook, options: {webhook-urls: ['http://h']}}, \
                        later: {module: storage.webhook, on_outage: defer, options: {webhook-urls: ['http://h']}}, \
                        served: {module: storage.webhook, on_outage: defer, options: {webhook-urls: ['http://h']}}}\n\
             chains: {main: {links: [l], storages: [holds, later], ingress_lists: [in], egress_lists: [out]}, \
                      other: {storages: [served], ingress_lists: ['DLQ:storage:served']}}\n",
        );
        let chain_of = |list: &str| backlog_chain(&list.parse().unwrap(), &config);
        let chain = chain_of("DLQ:storage:later").unwrap();
        assert_eq!(chain.name, "storage later");
        assert_eq!(chain.storages, ["later"]);
        assert!(chain.links.is_empty() && chain.egress_lists.is_empty());
        assert_eq!(chain.ingress_lists[0].as_str(), "DLQ:storage:later");
        assert_eq!(chain.timeout, None);
        for list in [
            "DLQ:storage:holds",
            "DLQ:storage:served",
            "DLQ:storage:none",
            "in",
            "later",
        ] {
            assert!(chain_of(list).is_none(), "{list}");
        }
    }
}
