//! What one lane works with: its own links and storages, and the way of one vCon through them.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use indexmap::IndexMap;

use super::fault::{Away, Ending, Fault, storage_fault};
use super::holds::guarded;
use super::{Health, Meters, Retry, Stage, Turn};
use crate::config::{Chain, Config, ListName};
use crate::deadline::Deadline;
use crate::failure::{Failure, FailureKind};
use crate::link::{Context, Link, LinkError, Next};
use crate::queue::Route;
use crate::scoreboard::Event;
use crate::settings::Settings;
use crate::storage::Storage;
use crate::storage::fanout::{Backend, Crew};
use crate::vcon::{Outgoing, Vcon, VconId};

/// How much of the drain timeout links get to finish: what is put back after it is put back in
/// order, while at the end of the timeout the whole worker is killed.
const FINISHING_SHARE: f64 = 0.8;

/// The links and storages of a configuration, opened for one lane and kept open.
pub(super) struct Kit {
    config: Arc<Config>,
    links: HashMap<String, Box<dyn Link>>,
    /// Each is missing only while it is lent.
    storages: IndexMap<Arc<str>, Option<Box<dyn Storage>>>,
    health: Arc<Health>,
    meters: Meters,
}

/// What the links decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The storages are next.
    GoesOn,
    /// A link ended the chain early: no storage, no egress.
    Ends,
}

/// One vCon on its way.
pub(super) struct Journey {
    /// The document, as the links have left it.
    pub vcon: Vcon,
    /// A time to live that a link asked for.
    pub expire: Option<u64>,
    /// What links want announced besides the chain's own lists, when the work is done.
    pub routes: Vec<Route>,
}

impl Journey {
    /// A vCon that no link has seen yet.
    pub fn of(vcon: Vcon) -> Self {
        Self {
            vcon,
            expire: None,
            routes: Vec::new(),
        }
    }

    /// Notes that the vCon as it is now is to be announced on these lists, once on each.
    fn announce_on(&mut self, lists: Vec<ListName>) {
        for list in lists {
            let id = self.vcon.id().clone();
            let route = Route { list, id };
            if !self.routes.contains(&route) {
                self.routes.push(route);
            }
        }
    }

    /// Drops the routes on which the vCon is announced by its chain already.
    pub fn announce_once(&mut self, egress: &[ListName]) {
        let id = self.vcon.id();
        let is_announced = |route: &Route| route.id == *id && egress.contains(&route.list);
        self.routes.retain(|route| !is_announced(route));
    }
}

/// What is to be done about the documents in Redis between two links.
#[derive(Debug, Clone, Copy)]
pub(super) enum Errand<'a> {
    /// Write what the links have done so far.
    Write,
    /// Read the document again, which something else has changed.
    Reread,
    /// Finish with the vCon of the journey and go over to this one.
    GoOver(&'a VconId),
}

/// Runs errands on a journey.
pub(super) type Errands<'a> =
    &'a mut dyn FnMut(&mut Kit, &mut Journey, Errand<'_>) -> Result<(), Ending>;

impl Kit {
    /// Opens every link and storage; none connects before it is used.
    pub fn open(config: Arc<Config>, health: Arc<Health>, meters: Meters) -> Self {
        let links = config
            .links
            .iter()
            .map(|(name, link)| (name.clone(), link.open_link()));
        let storages = config
            .storages
            .iter()
            .map(|(name, storage)| (name.as_str().into(), Some(storage.open_storage())));
        Self {
            links: links.collect(),
            storages: storages.collect(),
            health,
            meters,
            config,
        }
    }

    /// The meters of this configuration.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// The configuration this kit was made for.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The longest time that a link or storage of the chain may take by its own limits.
    pub fn longest_call(&self, chain: &Chain) -> Duration {
        let links = chain.links.iter().filter_map(|name| self.links.get(name));
        let links = links.map(|link| link.longest_call());
        let storages = chain.storages.iter().map(String::as_str);
        let storages = storages.filter_map(|name| self.storages.get(name)?.as_ref());
        let storages = storages.map(|storage| storage.longest_call());
        links.chain(storages).max().unwrap_or_default()
    }

    /// Runs the chain's links in order.
    pub fn links(
        &mut self,
        chain: &Chain,
        journey: &mut Journey,
        settings: &Settings,
        turn: &Turn<'_>,
        errands: Errands<'_>,
    ) -> Result<Way, Ending> {
        let drain_time = settings.drain_timeout.mul_f64(FINISHING_SHARE);
        for name in &chain.links {
            let in_redis = self.links.get(name).is_some_and(|l| l.works_in_redis());
            if in_redis {
                errands(self, journey, Errand::Write)?;
            }
            let meter = self.meters.link(name).clone();
            meter.count(Event::Received);
            let mut retry = Retry::new(settings);
            loop {
                turn.step();
                let start = Instant::now();
                let mut context = Context::new(turn.drain(), settings.egress_version)
                    .by(turn.deadline())
                    .finishing_within(drain_time, turn.drain_end());
                let ran = self.run_link(name, &mut journey.vcon, &mut context);
                journey.expire = context.expire.or(journey.expire);
                meter.observe(start.elapsed());
                meter.count(match &ran {
                    Ok(Next::Halt) => Event::Halted,
                    Ok(_) => Event::Done,
                    Err(LinkError::Interrupted) => Event::Returned,
                    Err(LinkError::Failed(_)) => Event::Failed,
                });
                if ran.is_ok() {
                    journey.announce_on(context.routes);
                    self.health.note_success(Stage::Link(name.clone()));
                }
                match ran {
                    Ok(Next::Continue) if in_redis => {
                        break errands(self, journey, Errand::Reread)?;
                    }
                    Ok(Next::Continue) => break,
                    Ok(Next::Halt) => return Ok(Way::Ends),
                    Ok(Next::Switch(id)) => break errands(self, journey, Errand::GoOver(&id))?,
                    Err(LinkError::Interrupted) => return Err(Ending::Interrupted),
                    Err(LinkError::Failed(failure)) => {
                        let stage = Stage::Link(name.clone());
                        let fault = Fault::at(&stage, &failure, retry.attempt());
                        if !failure.is_transient() {
                            return Err(Ending::Failed(fault));
                        }
                        self.health.note_attempt(&stage, retry.attempt(), &failure);
                        if !retry.again(turn).map_err(|_| Ending::Interrupted)? {
                            let kind = failure.kind;
                            return Err(Ending::Away(Away { kind, fault }));
                        }
                        meter.count(Event::Retried);
                        self.meters.chain(&chain.name).count(Event::Retried);
                    }
                }
            }
        }
        Ok(Way::GoesOn)
    }

    fn run_link(
        &mut self,
        name: &str,
        vcon: &mut Vcon,
        context: &mut Context<'_>,
    ) -> Result<Next, LinkError> {
        let Some(link) = self.links.get_mut(name) else {
            return Err(Failure::permanent("it is not in the configuration").into());
        };
        match catch_unwind(AssertUnwindSafe(|| link.run(vcon, context))) {
            Ok(ran) => ran,
            Err(panic) => {
                self.reopen_link(name);
                Err(Failure::permanent(format!("it panicked: {}", panic_text(&*panic))).into())
            }
        }
    }

    /// Saves the vCon to the chain's storages; those that fail in ways that pass are tried again.
    pub fn store(
        &mut self,
        chain: &Chain,
        outgoing: &Arc<Outgoing>,
        settings: &Settings,
        turn: &Turn<'_>,
        crew: &mut Crew<'_, '_>,
    ) -> Result<(), Ending> {
        let mut missing: Vec<String> = chain.storages.clone();
        for name in &missing {
            self.meters.storage(name).count(Event::Received);
        }
        let mut retry = Retry::new(settings);
        loop {
            let backends = self.lend(&missing);
            turn.step();
            let (deadline, parallel) = (turn.deadline(), settings.parallel_storage);
            let outcomes = crew.save_all(backends, outgoing, deadline, parallel);
            let mut refused: Vec<(String, Failure)> = Vec::new();
            let mut away: Vec<(String, Failure)> = Vec::new();
            for outcome in outcomes {
                self.take_back(&outcome.name, outcome.storage);
                let (name, seconds) = (&*outcome.name, outcome.took.as_secs_f64());
                let meter = self.meters.storage(name);
                meter.observe(outcome.took);
                meter.count(match outcome.result {
                    Ok(()) => Event::Done,
                    Err(_) => Event::Failed,
                });
                match outcome.result {
                    Ok(()) => {
                        log::info!(
                            vcon_id = outgoing.id.as_str(), chain_name = chain.name.as_str(),
                            storage_name = name, storage_processing_time = seconds;
                            "Stored {} in {name} in {seconds:.4} s", outgoing.id
                        );
                        self.health.note_success(Stage::Storage(name.to_owned()));
                        missing.retain(|still| still != name);
                    }
                    Err(failure) if failure.is_transient() => {
                        let stage = Stage::Storage(name.to_owned());
                        self.health.note_attempt(&stage, retry.attempt(), &failure);
                        away.push((name.to_owned(), failure));
                    }
                    Err(failure) => refused.push((name.to_owned(), failure)),
                }
            }
            if !refused.is_empty() {
                return Err(Ending::Failed(storage_fault(&refused, retry.attempt())));
            }
            // Not `away`: a storage that was not asked does not count as saved to.
            if missing.is_empty() {
                return Ok(());
            }
            if !retry.again(turn).map_err(|_| Ending::Interrupted)? {
                let fault = storage_fault(&away, retry.attempt());
                let busy = away
                    .iter()
                    .any(|(_, failure)| failure.kind == FailureKind::Busy);
                let kind = if busy {
                    FailureKind::Busy
                } else {
                    FailureKind::Transient
                };
                return Err(Ending::Away(Away { kind, fault }));
            }
            for (name, _) in &away {
                self.meters.storage(name).count(Event::Retried);
            }
            self.meters.chain(&chain.name).count(Event::Retried);
        }
    }

    /// The backends of these names, in the order of the configuration.
    fn lend(&mut self, names: &[String]) -> Vec<Backend> {
        let storages = self.storages.iter_mut();
        let wanted = storages.filter(|(name, _)| names.iter().any(|wanted| **wanted == ***name));
        let lent = wanted.filter_map(|(name, storage)| {
            Some(Backend {
                name: Arc::clone(name),
                storage: storage.take()?,
            })
        });
        lent.collect()
    }

    /// Takes a backend back; one that has panicked is opened anew.
    fn take_back(&mut self, name: &str, storage: Option<Box<dyn Storage>>) {
        let anew = || Some(self.config.storages.get(name)?.open_storage());
        let storage = storage.or_else(anew);
        if let Some(place) = self.storages.get_mut(name) {
            *place = storage;
        }
    }

    /// Asks a link or storage whether it could be used now.
    pub fn probe(&mut self, stage: &Stage, drain: &Receiver<()>) -> Result<(), Failure> {
        let gone = || Err(Failure::permanent("it is not in the configuration"));
        match stage {
            Stage::Link(name) => {
                let link = self.links.get_mut(name);
                link.map_or_else(gone, |link| guarded(|| link.probe(drain)))
            }
            Stage::Storage(name) => {
                let storage = self.storages.get_mut(name.as_str());
                let storage = storage.and_then(Option::as_mut);
                storage.map_or_else(gone, |storage| guarded(|| storage.probe()))
            }
        }
    }

    /// Looks for a vCon in the storages, in the order of the configuration.
    ///
    /// # Errors
    /// A storage that is away: the vCon may be there, so nothing is known.
    pub fn find(
        &mut self,
        id: &VconId,
        deadline: Deadline,
    ) -> Result<Option<(String, String)>, (Stage, Failure)> {
        let mut doubt = None;
        for (name, storage) in &mut self.storages {
            // Nothing is lent while it is looked for.
            let Some(storage) = storage else { continue };
            match catch_unwind(AssertUnwindSafe(|| storage.get(id, deadline))) {
                Ok(Ok(Some(json))) => return Ok(Some((name.to_string(), json))),
                Ok(Ok(None)) => {}
                Ok(Err(failure)) if failure.is_transient() => {
                    doubt = Some((Stage::Storage(name.to_string()), failure));
                }
                Ok(Err(failure)) => log::warn!("could not look for {id} in {name}: {failure}"),
                Err(panic) => {
                    log::error!("storage {name} panicked: {}", panic_text(&*panic));
                }
            }
        }
        doubt.map_or(Ok(None), Err)
    }

    fn reopen_link(&mut self, name: &str) {
        if let Some(link) = self.config.links.get(name) {
            self.links.insert(name.to_owned(), link.open_link());
        }
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests;
