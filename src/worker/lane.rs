//! One lane: claims a vCon, has the pipeline take it through its chain, and waits when there is none,
//! until the worker drains.
//!
//! ```text
//!           ┌──────────────── next claim, with the finish ◄─────┐
//!           ▼                                                   │
//! claim: trial ─► ingress lists ─► backlogs ──vCon──► pipeline ─┴─► released
//!  ▲                                  │ nothing
//!  └── token, tick, unblocked ◄── BLPOP on the wake list (wakeup)
//! ```
//!
//! The request for the next vCon goes with the finish of this one ([`NextClaim`]), so that both take one
//! round trip. Until its reply is known, Redis may have claimed something for this lane of which the lane
//! does not know; it hands that over at the next request, or at the end.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use super::budget::{Granting, Hand, TokenWatch, begin_budgeted, hand_over, next_token};
use super::circuit_breaker::{backlog_list, defers};
use super::modules::LaneModules;
use super::pipeline::Pipeline;
use super::quarantine::InFlightGuard;
use super::retry::{LaneClock, Outage};
use super::shared::{FollowedPauses, OwnLook, SharedState};
use super::trial::{TrialPermit, begin_trial};
use crate::backoff::Backoff;
use crate::config::{Chain, Config, ListName};
use crate::queue::{Claim, Claimed, Document, Pauses, Queue, QueueError, Released};
use crate::scoreboard::LaneCell;
use crate::settings::ListOrder;
use crate::storage::fan_out::WriterPool;

/// After a document of more bytes than this, free memory is returned to the system.
const LARGE: usize = 1 << 20;

/// How long a suspect waits for the vCons in flight, which may hang.
const QUARANTINE_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest wait for work while it cannot be read what is paused.
const UNKNOWN_WAIT: Duration = Duration::from_millis(500);

/// Redis ends a wait up to this much late. So this is how long the lane that waits for a token waits by itself at most:
/// nothing else wakes it meanwhile.
const REDIS_LATE: Duration = Duration::from_millis(100);

/// The longest pause before the host of Python modules is started again.
const PYTHON_PAUSE: Duration = Duration::from_secs(30);

/// The reply to a request for work. The lane counts as in flight from before the request on.
struct ClaimReply<'a> {
    claimed: Result<Claimed, QueueError>,
    in_flight: InFlightGuard<'a>,
    /// Set if the vCon is claimed to try a failing backend.
    trial: Option<TrialPermit>,
    /// The tokens with which the vCon is claimed, if a stage of its chain is over budget.
    hand: Vec<Granting>,
    /// Whether the request went with a finish: then it named only ingress lists.
    with_finish: bool,
}

/// A lane of a worker.
pub(super) struct Lane {
    shared: Arc<SharedState>,
    queue: Queue,
    modules: LaneModules,
    /// The ingress lists to claim from, none of whose chains is on hold.
    lists: Vec<ListName>,
    /// The queues of storages to claim from when those are empty.
    backlogs: Vec<ListName>,
    /// The version of the circuit breakers that both belong to.
    breakers: u64,
    /// The pauses that they follow.
    pauses: FollowedPauses,
    /// The lane's number in its worker, from 0.
    number: usize,
    drain: Receiver<()>,
    cell: LaneCell,
    outage: Outage,
    /// The pauses while another daemon has this instance's name.
    displaced: Backoff,
    /// The pauses while the host of Python modules does not begin.
    python_pause: Backoff,
    /// What the log says of an ingress list that cannot be read.
    list_error: Option<String>,
    is_ready: bool,
    /// Whether Redis may have claimed something for this lane of which the lane does not know.
    is_unsure: bool,
    /// Whether an earlier request than the last one was not answered, and may still be on its way.
    has_unanswered: bool,
}

impl Lane {
    /// A lane that has not begun. The number counts from 0.
    pub fn new(shared: Arc<SharedState>, queue: Queue, number: usize, drain: Receiver<()>) -> Self {
        let cell = shared.slot.lane(number);
        let modules =
            LaneModules::open(shared.current.get(), &shared.slot, &drain, &shared.settings);
        let outage = Outage::new(&shared.settings, &shared.redis_outage);
        let displaced = Backoff::new(shared.settings.retry_first, shared.settings.retry_max);
        let python_pause = Backoff::new(shared.settings.retry_first, PYTHON_PAUSE);
        let mut lane = Self {
            shared,
            queue,
            modules,
            lists: Vec::new(),
            backlogs: Vec::new(),
            breakers: 0,
            pauses: FollowedPauses::default(),
            number,
            drain,
            cell,
            outage,
            displaced,
            python_pause,
            list_error: None,
            is_ready: false,
            is_unsure: false,
            has_unanswered: false,
        };
        lane.refresh_lists();
        lane
    }

    /// Works until the worker drains. Returns false if Redis may still have a claim for this lane.
    pub fn run(mut self) -> bool {
        let is_released = thread::scope(|scope| self.serve(&mut WriterPool::new(scope)));
        self.shared.wakeup.note_end(self.number);
        is_released
    }

    fn serve(&mut self, writers: &mut WriterPool<'_, '_>) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut next = None;
        loop {
            let reply = match next.take() {
                // Claimed before the drain began, or while it did.
                Some(reply) => reply,
                None if self.is_draining() => break,
                None => match self.claim(&shared) {
                    Some(reply) => reply,
                    None => continue,
                },
            };
            next = self.handle(&shared, reply, writers);
        }
        !self.is_unsure || self.release_unknown()
    }

    /// Claims from whatever may have work. While a suspect is in work, waits instead and returns `None`.
    fn claim<'a>(&mut self, shared: &'a SharedState) -> Option<ClaimReply<'a>> {
        self.follow_configuration();
        if !self.begin_python() {
            return None;
        }
        let Some(in_flight) = shared.quarantine.enter() else {
            // A lane that waits for a suspect is as ready as the one that works on it.
            self.note_ready();
            let clock = LaneClock::idle(&self.drain, None);
            // After that the worker may drain, or a list be on hold: the caller checks anew.
            shared.quarantine.wait_until_open(&clock);
            return None;
        };
        if let Err(error) = self.begin_claim() {
            return Some(ClaimReply {
                claimed: Err(error),
                in_flight,
                trial: None,
                hand: Vec::new(),
                with_finish: false,
            });
        }
        let found_nothing =
            |claimed: &Result<Claimed, _>| matches!(claimed, Ok(Claimed { work: None, .. }));
        if let Some(trial) = begin_trial(&self.shared, self.modules.config()) {
            let claimed = if trial.is_backlog {
                self.queue.claim_backlog(&trial.lists)
            } else {
                self.queue.claim(&trial.lists)
            };
            if !found_nothing(&claimed) {
                return Some(ClaimReply {
                    claimed,
                    in_flight,
                    trial: Some(trial),
                    hand: Vec::new(),
                    with_finish: false,
                });
            }
            trial.note_nothing();
            if self.shared.breakers.version() != self.breakers {
                self.refresh_lists();
            }
        }
        match begin_budgeted(&self.shared, &self.modules) {
            Ok(None) => {}
            Ok(Some(permit)) => {
                permit.wait(&self.shared);
                let claimed = if permit.is_backlog {
                    self.queue.claim_backlog(&permit.lists)
                } else {
                    self.queue.claim(&permit.lists)
                };
                if !found_nothing(&claimed) {
                    return Some(ClaimReply {
                        claimed,
                        in_flight,
                        trial: None,
                        hand: permit.hand,
                        with_finish: false,
                    });
                }
                permit.note_nothing(&self.shared, self.modules.config());
                // What it has closed is open to all by now.
                self.refresh_lists();
            }
            // The other chains go on as long as Redis answers those.
            Err(error) => log::debug!("could not ask for tokens: {error}"),
        }
        let mut claimed = self.queue.claim(&self.lists);
        if found_nothing(&claimed) && !self.backlogs.is_empty() {
            claimed = self.queue.claim_backlog(&self.backlogs);
        }
        Some(ClaimReply {
            claimed,
            in_flight,
            trial: None,
            hand: Vec::new(),
            with_finish: false,
        })
    }

    /// Works on what was claimed, or waits if it is nothing. Returns the reply to the next request if that
    /// went with the finish.
    fn handle<'a>(
        &mut self,
        shared: &'a SharedState,
        reply: ClaimReply<'a>,
        writers: &mut WriterPool<'_, '_>,
    ) -> Option<ClaimReply<'a>> {
        let ClaimReply {
            claimed,
            in_flight,
            trial,
            hand,
            with_finish,
        } = reply;
        // Without a connection, an earlier request whose reply was lost may be on its way still.
        let is_unsent = matches!(claimed, Err(QueueError::Connect(_)));
        if is_over(&claimed) && !(is_unsent && self.has_unanswered) {
            self.cell.end_claim();
            self.has_unanswered = false;
        }
        // If Redis has claimed something all the same, the next request hands it over.
        self.is_unsure = claimed.is_err();
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                drop(in_flight);
                self.wait_after(&error);
                return None;
            }
        };
        self.outage.end();
        self.displaced.reset();
        self.note_ready();
        self.log_list_error(claimed.fault);
        let Some((claim, document)) = claimed.work else {
            drop(in_flight);
            // A request with a finish has not asked the backlogs yet.
            if !with_finish || self.backlogs.is_empty() {
                self.wait_for_work();
            }
            return None;
        };
        if self.is_draining() {
            // It was requested before the drain, which the finish of the one before may have begun.
            self.requeue(&claim);
            return None;
        }
        hand_over(shared);
        if !shared.is_last_chance(claim.deaths) {
            let claimed = self.work(&claim, document, (hand, trial.is_some()), writers)?;
            drop(trial);
            return Some(ClaimReply {
                claimed,
                in_flight,
                trial: None,
                hand: Vec::new(),
                with_finish: true,
            });
        }
        drop(in_flight);
        self.cell.waiting(claim.id().as_ref());
        let suspect_guard = {
            let clock = LaneClock::idle(&self.drain, None);
            shared.quarantine.isolate(QUARANTINE_TIMEOUT, &clock)
        };
        if suspect_guard.is_some() {
            // The finish of a suspect claims nothing: quarantine is closed.
            self.work(&claim, document, (hand, false), writers);
        } else {
            self.requeue(&claim);
            self.cell.idle();
        }
        None
    }

    /// Works on a claim, which may be a trial, to its end. Returns the reply to the request for the next one if
    /// that was sent.
    fn work(
        &mut self,
        claim: &Claim,
        document: Document,
        (hand, is_trial): (Vec<Granting>, bool),
        writers: &mut WriterPool<'_, '_>,
    ) -> Option<Result<Claimed, QueueError>> {
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
        let clock = LaneClock::start(&self.drain, &self.cell, id, chain.timeout, longest_call);
        if self.shared.settings.telemetry.metrics.is_some() {
            let position = config.chains.iter().position(|it| it.name == chain.name);
            self.cell.chain(position);
        }
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
            is_last_if_denied: is_trial,
            hand: Hand::new(hand, &clock),
            start: Instant::now(),
            is_begun: false,
            trace: None,
            next: NextClaim::new(&self.lists, (self.breakers, self.pauses), &self.cell),
        };
        // A missing document comes from a storage, and may be large.
        let is_large = match &document {
            Document::Found(_, text) => text.len() > LARGE,
            other => *other == Document::Missing,
        };
        let released = if is_served {
            pipeline.run(document)
        } else {
            // Claimed under a former configuration, in which a chain served its list.
            pipeline.release_unserved()
        };
        self.is_unsure = !released || pipeline.next.is_unsure();
        let next = pipeline.next.into_reply();
        if is_large {
            self.shared.note_large();
        }
        next
    }

    /// Returns a claim that was not begun to the head of its list.
    fn requeue(&mut self, claim: &Claim) {
        let released = self.queue.release(claim, None);
        self.is_unsure = !matches!(released, Ok(Released::Done | Released::NotOurs));
    }

    /// Waits after a request that failed.
    fn wait_after(&mut self, error: &QueueError) {
        if error.is_interruption() {
            return;
        }
        // Another daemon has this instance's name: the monitor decides what follows.
        let is_displaced = error.is_about_the_lease();
        if is_displaced {
            self.outage.end();
        }
        let clock = LaneClock::idle(&self.drain, Some(&self.cell));
        let _ = if is_displaced {
            clock.wait(self.displaced.next_wait())
        } else {
            self.outage.wait(error, &clock)
        };
    }

    /// At the end: releases what Redis has claimed for a request whose reply was lost. Returns false if
    /// that is not known.
    fn release_unknown(&mut self) -> bool {
        match self.queue.claim(&[]) {
            Ok(Claimed { work: None, .. }) => true,
            Ok(Claimed {
                work: Some((claim, _)),
                ..
            }) => {
                self.requeue(&claim);
                !self.is_unsure
            }
            // Whoever has the name now returns it.
            Err(error) => error.is_about_the_lease(),
        }
    }

    /// The lane is ready once a request for work was answered.
    fn note_ready(&mut self) {
        if !self.is_ready {
            self.is_ready = true;
            self.shared.note_ready();
        }
    }

    fn is_draining(&self) -> bool {
        self.drain.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Blocks until there may be something to do.
    fn wait_for_work(&mut self) {
        self.shared.return_memory();
        self.shared.budgets.tell();
        let unknown = (!self.pauses.are_known).then_some(UNKNOWN_WAIT);
        let token = next_token(&self.shared, self.modules.config());
        let watch = token.and_then(|due| TokenWatch::begin(&self.shared.budgets, due));
        let token = token.filter(|_| watch.is_some());
        let token = token.map(|due| due.saturating_duration_since(Instant::now()));
        if let Some(wait) = token.filter(|wait| *wait <= REDIS_LATE) {
            self.shared.budgets.wait(wait, &self.drain);
            return;
        }
        let token = token.map(|wait| wait.saturating_sub(REDIS_LATE));
        let waits = [self.shared.breakers.next_due(), unknown, token];
        let longest = waits.into_iter().flatten().min();
        let wakeup = &self.shared.wakeup;
        let waited = wakeup.wait(self.number, &mut self.queue, &self.drain, longest);
        drop(watch);
        if let Err(error) = waited {
            self.wait_after(&error);
        }
    }

    /// Follows a change of the configuration, of the circuit breakers or of the pauses.
    fn follow_configuration(&mut self) {
        let config = self.shared.current.get();
        self.shared.breakers.follow_waits(&config);
        if self.shared.breakers.end_waits() {
            self.shared.wakeup.wake_all();
        }
        let is_same = Arc::ptr_eq(&config, self.modules.config());
        if !is_same {
            self.shared.budgets.give_back_all();
            self.modules = LaneModules::open(
                config,
                &self.shared.slot,
                &self.drain,
                &self.shared.settings,
            );
        }
        let is_current = is_same
            && self.shared.breakers.version() == self.breakers
            && self.shared.pauses.are_current(&self.pauses);
        if !is_current {
            self.refresh_lists();
        } else {
            self.rotate();
        }
    }

    /// Starts the host of Python modules where it is needed from the start on. Returns false after a pause
    /// if it does not begin: the lane claims nothing, and its worker does not get ready, until it does.
    fn begin_python(&mut self) -> bool {
        let Err(failure) = self.modules.begin_python(&self.drain) else {
            self.python_pause.reset();
            self.shared.forget_python_failure();
            return true;
        };
        if !self.is_draining() {
            self.shared.log_python_failure(&failure);
            let clock = LaneClock::idle(&self.drain, Some(&self.cell));
            let _ = clock.wait(self.python_pause.next_wait());
        }
        false
    }

    /// Finds out from which lists to claim now.
    fn refresh_lists(&mut self) {
        let breakers = &self.shared.breakers;
        let config = self.modules.config();
        self.breakers = breakers.version();
        self.lists = breakers.open_lists(config);
        self.backlogs = breakers.backlogs(config);
        let (followed, pauses) = self.shared.pauses.get();
        self.pauses = followed;
        for lists in [&mut self.lists, &mut self.backlogs] {
            retain_claimable(lists, pauses.as_deref(), config);
        }
        let lists = config.chains.iter().flat_map(|it| &it.ingress_lists);
        self.queue.set_ingress(lists);
    }

    /// Shows that a request for work may be on its way from now on, and makes sure that it follows the pauses in
    /// force.
    fn begin_claim(&mut self) -> Result<(), QueueError> {
        // The connection of an earlier request was lost, but the system may still deliver that.
        let unanswered = self.cell.claiming_by();
        self.has_unanswered = unanswered.is_some();
        loop {
            self.look_at_pauses()?;
            let version = self.pauses.version;
            let oldest = unanswered.map_or(version, |earlier| earlier.min(version));
            self.cell.begin_claim(oldest);
            if self.shared.pauses.version() == self.pauses.version {
                return Ok(());
            }
            self.refresh_lists();
        }
    }

    /// Looks at the pauses itself if neither the monitor nor another lane of this worker has done so recently enough.
    fn look_at_pauses(&mut self) -> Result<(), QueueError> {
        while !self.shared.pauses.are_fresh(&self.pauses) {
            self.refresh_lists();
            if self.shared.pauses.are_fresh(&self.pauses) {
                break;
            }
            let (look, found) = OwnLook::take(&self.shared.slot, &mut self.queue)?;
            self.shared.pauses.note_look(look, found);
            self.refresh_lists();
            // However long that took. If the version has changed meanwhile, the monitor has looked.
            if self.pauses.own_look.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// With `CONSERVER_LIST_ORDER=rotate`: begins with another list each time, so that a full one starves no
    /// other.
    fn rotate(&mut self) {
        if self.shared.settings.list_order == ListOrder::Rotate && !self.lists.is_empty() {
            self.lists.rotate_left(1);
        }
    }

    /// Logs that a key is not a list when that is found and when it has changed, not at every request.
    fn log_list_error(&mut self, error: Option<String>) {
        if error != self.list_error {
            if let Some(error) = &error {
                log::error!("an ingress list cannot be read, the others are served: {error}");
            }
            self.list_error = error;
        }
    }
}

/// Removes the lists from which nothing may be claimed: all of them, if it is not known what is paused.
pub(super) fn retain_claimable(
    lists: &mut Vec<ListName>,
    pauses: Option<&Pauses>,
    config: &Config,
) {
    match pauses {
        Some(pauses) if pauses.is_empty() => {}
        Some(pauses) => lists.retain(|list| !pauses.hold(list, &config.chains)),
        None => lists.clear(),
    }
}

/// Whether Redis has done what a request for work asks for, or will not do it any more.
fn is_over(claimed: &Result<Claimed, QueueError>) -> bool {
    match claimed {
        Ok(_) | Err(QueueError::Connect(_)) => true,
        Err(error) => !error.breaks_connection(),
    }
}

/// The request for a lane's next vCon, which goes with the finish of the present one.
pub(super) struct NextClaim<'a> {
    lists: &'a [ListName],
    /// The version of the circuit breakers and the pauses that the lists belong to.
    versions: (u64, FollowedPauses),
    cell: &'a LaneCell,
    /// Whether it is sent and its reply is not known.
    is_unsure: bool,
    reply: Option<Result<Claimed, QueueError>>,
}

impl<'a> NextClaim<'a> {
    /// Not sent yet.
    pub fn new(lists: &'a [ListName], versions: (u64, FollowedPauses), cell: &'a LaneCell) -> Self {
        Self {
            lists,
            versions,
            cell,
            is_unsure: false,
            reply: None,
        }
    }

    /// The lists to claim from, if the lane would claim from them now as well. `None` if it is sent already. Otherwise
    /// the request must be sent now: the lane shows that it is on its way.
    pub fn lists(
        &self,
        shared: &SharedState,
        config: &Arc<Config>,
        clock: &LaneClock<'_>,
    ) -> Option<&'a [ListName]> {
        let (breakers, pauses) = self.versions;
        let may = !self.is_unsure
            && !clock.is_draining()
            && shared.quarantine.is_open()
            && shared.breakers.version() == breakers
            && !shared.breakers.has_due()
            && next_token(shared, config).is_none_or(|due| due > Instant::now())
            && shared.pauses.are_fresh(&pauses)
            && Arc::ptr_eq(&shared.current.get(), config);
        if !may {
            return None;
        }
        self.cell.begin_claim(pauses.version);
        if shared.pauses.version() != pauses.version {
            self.cell.end_claim();
            return None;
        }
        Some(self.lists)
    }

    /// It is sent. Until the reply is noted, Redis may have claimed something for this lane.
    pub fn note_sent(&mut self) {
        self.is_unsure = true;
    }

    /// The finish that it went with is answered. Without a reply of its own, Redis has handed over the claim
    /// that was to be finished, or, if somebody else took that meanwhile, another one.
    pub fn note_reply(&mut self, reply: Option<Result<Claimed, QueueError>>) {
        self.is_unsure = reply.is_none();
        if reply.as_ref().is_some_and(is_over) {
            self.cell.end_claim();
        }
        self.reply = reply;
    }

    /// Whether Redis may have claimed something of which the lane does not know.
    pub fn is_unsure(&self) -> bool {
        self.is_unsure
    }

    /// The reply, if it was sent and answered.
    pub fn into_reply(self) -> Option<Result<Claimed, QueueError>> {
        self.reply
    }
}

/// The chain for a vCon from the queue of a storage: that storage, and nothing else. `None` if the list is
/// an ingress list, or the storage does not defer.
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
        details: String::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::{bounded, never};

    use super::super::modules::Stage;
    use super::super::shared::tests::{TestWorker, parse};
    use super::*;
    use crate::queue::{Expiry, Holder, LaneId, NameLease, PauseTarget, Server};
    use crate::{runtime_dir, sys};

    const CONFIG: &str = "\
        storages: {s: {module: storage.webhook, options: {webhook-urls: ['http://h']}}}\n\
        chains: {main: {storages: [s], ingress_lists: [in]}}\n";

    #[test]
    fn the_next_vcon_is_requested_only_if_the_lane_would_claim_it_anyway() {
        let worker = TestWorker::with(
            CONFIG,
            &[
                ("CONSERVER_RETRY_FIRST_MS", "1"),
                ("CONSERVER_RETRY_MAX_MS", "1"),
            ],
        );
        let (shared, config) = (&worker.shared, worker.config());
        let lists = shared.breakers.open_lists(&config);
        let cell = shared.slot.lane(0);
        let (pauses, _) = shared.pauses.get();
        let now = || NextClaim::new(&lists, (shared.breakers.version(), pauses), &cell);
        let drain = never();
        let clock = LaneClock::idle(&drain, None);
        let asks = |next: &NextClaim<'_>| next.lists(shared, &config, &clock) == Some(&lists[..]);
        assert!(asks(&now()));
        assert!(!shared.slot.all_claims_follow(1), "it is on its way");
        now().note_reply(Some(Ok(nothing())));
        assert!(shared.slot.all_claims_follow(1));

        let mut sent = now();
        sent.note_sent();
        assert!(!asks(&sent), "it is sent already");

        let other = parse(CONFIG);
        let asked = now().lists(shared, &other, &clock);
        assert_eq!(asked, None, "another configuration is in force");

        let (hold, drain) = bounded(0);
        drop(hold);
        let asked = now().lists(shared, &config, &LaneClock::idle(&drain, None));
        assert_eq!(asked, None, "the worker drains");

        let alone = shared.quarantine.isolate(Duration::ZERO, &clock);
        assert!(alone.is_some() && !asks(&now()), "a suspect is in work");
        drop(alone);
        assert!(asks(&now()));

        let stale = now();
        let stage = Stage::Storage("s".to_owned());
        assert!(shared.breakers.note_failing(&stage, &config, "busy"));
        while !shared.breakers.has_due() {
            std::thread::yield_now();
        }
        assert!(!asks(&now()), "a trial is due");
        assert!(shared.breakers.note_success(&stage, &config));
        assert!(asks(&now()));
        assert!(!asks(&stale), "other lists may be open by now");

        now().note_reply(Some(Ok(nothing())));
        let old = FollowedPauses {
            own_look: Some(1),
            ..pauses
        };
        let stale = NextClaim::new(&lists, (shared.breakers.version(), old), &cell);
        assert!(!asks(&stale), "the pauses were read too long ago");
        shared.slot.set_pauses_version(1);
        assert!(!asks(&now()), "other lists may be paused by now");
        assert!(shared.slot.all_claims_follow(1));
    }

    fn nothing() -> Claimed {
        Claimed {
            work: None,
            fault: None,
        }
    }

    #[test]
    fn a_lane_claims_only_from_lists_that_are_not_paused() {
        let config = "\
            storages: {later: {module: storage.webhook, on_outage: defer, options: {webhook-urls: ['http://h']}}}\n\
            chains: {main: {ingress_lists: [a, b], storages: [later]}, other: {ingress_lists: [c]}}\n";
        let worker = TestWorker::with(config, &[("CONSERVER_LIST_ORDER", "rotate")]);
        let (shared, slot) = (&worker.shared, &worker.shared.slot);
        let queue = Queue::new(
            Server::new(&shared.settings.redis_url).unwrap(),
            LaneId {
                instance: "here".to_owned(),
                worker: 1,
                lane: 1,
            },
            Expiry::of(&shared.settings),
            NameLease::new(&shared.settings, Holder::this_process(1)),
        );
        let mut lane = Lane::new(Arc::clone(shared), queue, 0, never());
        let names = |lane: &Lane| {
            let lists = lane.lists.iter().chain(&lane.backlogs);
            let mut names: Vec<String> = lists.map(ToString::to_string).collect();
            names.sort_unstable();
            names.join(" ")
        };
        let now = |lane: &mut Lane, pauses: Option<Pauses>| {
            match pauses {
                Some(pauses) => {
                    let text = serde_json::to_string(&pauses).unwrap();
                    runtime_dir::replace(slot.pauses_path(), &text).unwrap();
                }
                None => std::fs::remove_file(slot.pauses_path()).unwrap(),
            }
            slot.lane(0).end_claim();
            let version = slot.pauses_version() + 1;
            slot.set_pauses_version(version);
            slot.note_pauses_look(sys::monotonic_ms());
            lane.begin_claim().unwrap();
            assert!(slot.all_claims_follow(version));
            names(lane)
        };
        let list = |name: &str| PauseTarget::List(name.parse().unwrap());
        let all = "DLQ:storage:later a b c";
        assert_eq!(now(&mut lane, Some(Pauses::default())), all);
        assert_eq!(
            now(&mut lane, Some([list("b")].into())),
            "DLQ:storage:later a c"
        );
        let main = PauseTarget::Chain("main".to_owned());
        assert_eq!(now(&mut lane, Some([main].into())), "DLQ:storage:later c");
        let queue = list("DLQ:storage:later");
        assert_eq!(now(&mut lane, Some([queue, list("x")].into())), "a b c");
        assert_eq!(now(&mut lane, None), "", "it is not known what is paused");
        // The version has not changed, only the file can be read again.
        let text = serde_json::to_string(&Pauses::from([list("b")])).unwrap();
        runtime_dir::replace(slot.pauses_path(), &text).unwrap();
        lane.follow_configuration();
        assert!(!names(&lane).is_empty(), "the lane tries to read it again");
        assert_eq!(now(&mut lane, Some(Pauses::default())), all);

        // A request by these pauses is not answered yet.
        let version = slot.pauses_version() + 1;
        slot.set_pauses_version(version);
        lane.begin_claim().unwrap();
        assert_eq!(lane.pauses.version, version);
        assert!(!slot.all_claims_follow(version));
        shared.slot.lane(0).end_claim();
        // The last look is too old: nothing is claimed without another one, for which nothing listens here.
        slot.note_pauses_look(1);
        assert!(lane.begin_claim().is_err() && slot.all_claims_follow(u64::MAX));
        // Another lane of this worker has looked itself.
        let look = OwnLook::begin(slot);
        shared.pauses.note_look(look, Some([list("a")].into()));
        lane.begin_claim().unwrap();
        assert_eq!(names(&lane), "DLQ:storage:later b c");
        // The monitor is back, and has found nothing new since its last look.
        slot.note_pauses_look(sys::monotonic_ms());
        lane.follow_configuration();
        assert_eq!(names(&lane), all);
        assert!(lane.pauses.own_look.is_none());
    }

    #[test]
    fn without_a_reply_something_may_be_claimed_that_is_not_known() {
        let worker = TestWorker::with(CONFIG, &[]);
        let cell = worker.shared.slot.lane(0);
        let mut next = NextClaim::new(&[], (0, FollowedPauses::default()), &cell);
        assert!(!next.is_unsure());
        next.note_sent();
        assert!(next.is_unsure());
        next.note_reply(None);
        assert!(next.is_unsure());
        next.note_reply(Some(Ok(nothing())));
        assert!(!next.is_unsure());
    }

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
