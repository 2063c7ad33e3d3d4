//! Who wakes a lane: two threads of the monitor watch the ingress lists, and wake idle lanes.
//!
//! ```text
//! tracker: check ──► wait until Redis reports a change ──► check …     (CLIENT TRACKING)
//! poller:  shows on the scoreboard that the lists are watched; checks them itself
//!            20 times a second (less often if there are very many), while Redis reports no changes to the tracker
//!            now and then, while entries wait that no lane takes: a token may have been lost
//! ```
//!
//! Idle lanes block as long as the poller shows that the lists are watched; otherwise they check by themselves.
//! What a check does in Redis (add wake-up tokens) is up to [`IngressWatcher`].

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::{LIMIT, pause};
use crate::backoff::Backoff;
use crate::child::Child;
use crate::config::{Chain, ListName, Plan};
use crate::queue::{IngressWatcher, NameLease, Pauses, QueueError, Server, Watched};
use crate::scoreboard::{Slot, Snapshot, StagesView, WorkerState};
use crate::settings::Settings;
use crate::view::NamedStage;

/// The pause between two polls while Redis reports no changes.
const UNTRACKED: Duration = Duration::from_millis(50);

/// The pause is longer if there are more than 1,000 lists, each of which costs the server about 1 µs.
const UNTRACKED_FOR_EACH: Duration = Duration::from_micros(50);

/// Its limit: lanes check by themselves if nobody shows for a second that the lists are watched.
const LONGEST_UNTRACKED: Duration = Duration::from_millis(500);

/// The poller's pause while Redis reports changes to the tracker.
const TRACKED: Duration = Duration::from_millis(100);

/// The longest pause between two polls while entries wait that no lane takes.
const LONGEST: Duration = Duration::from_secs(1);

/// How long the tracker ignores changes while tokens are left: all lanes are busy, and the first idle one finds a
/// token.
const BUSY: Duration = Duration::from_millis(5);

/// How often the poller reads from the scoreboard how many lanes there are, and what is on hold.
const READ_BOARD: Duration = Duration::from_millis(500);

/// The pauses between attempts double, from the first to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Starts the threads; they live until the monitor drains.
pub(super) fn start(
    child: &Child,
    settings: &Settings,
    server: &Server,
    lease: &NameLease,
) -> io::Result<()> {
    let Some(slot) = child.slot.clone() else {
        return Ok(());
    };
    let watch = Arc::new(WatchContext {
        slot,
        lease: lease.clone(),
        draining: child.draining.clone(),
        state: Mutex::new(WatchState::new()),
    });
    let tracker = Tracker {
        watch: Arc::clone(&watch),
        server: server.with_pushes(),
        // Redis reports every renewal of the lease.
        limit: LIMIT.max(pause(settings) * 3),
        has_logged: false,
    };
    let mut poller = Poller::new(watch, server.clone());
    // So that the tracker knows what to check from the start.
    poller.read_board();
    let thread = |name: &str| thread::Builder::new().name(name.to_owned());
    thread("tracker").spawn(|| tracker.run())?;
    thread("poller").spawn(|| poller.run())?;
    Ok(())
}

/// What both threads share.
struct WatchContext {
    slot: Slot,
    lease: NameLease,
    draining: Receiver<()>,
    state: Mutex<WatchState>,
}

struct WatchState {
    targets: Arc<WatchTargets>,
    /// The targets whose changes Redis reports to the tracker.
    tracked: Option<Arc<WatchTargets>>,
    /// Whether entries waited at the last check.
    is_waiting: bool,
    looked: Instant,
    /// Polls since the last change.
    fruitless: u32,
    /// Whether a poll has succeeded since the tracker last failed.
    has_polled: bool,
}

/// What to check.
#[derive(Debug, Default, PartialEq, Eq)]
struct WatchTargets {
    lists: Arc<[ListName]>,
    /// The number of lanes of all workers.
    lanes: u64,
}

impl WatchTargets {
    /// The pause between two polls of all lists.
    fn pause(&self) -> Duration {
        untracked_pause(self.lists.len())
    }
}

/// The pause between two polls of this many lists, while Redis reports no changes.
fn untracked_pause(lists: usize) -> Duration {
    let lists = u32::try_from(lists).unwrap_or(u32::MAX);
    let pause = UNTRACKED_FOR_EACH.saturating_mul(lists);
    pause.clamp(UNTRACKED, LONGEST_UNTRACKED)
}

impl WatchContext {
    fn state(&self) -> MutexGuard<'_, WatchState> {
        // No change of the state is left half done by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_draining(&self) -> bool {
        self.draining.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Sleeps; false if the monitor drains.
    fn pause(&self, time: Duration) -> bool {
        self.draining.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }
}

impl WatchState {
    fn new() -> Self {
        Self {
            targets: Arc::default(),
            tracked: None,
            is_waiting: false,
            looked: Instant::now(),
            fruitless: 0,
            has_polled: false,
        }
    }

    /// Whether Redis reports changes of all targets to the tracker.
    fn is_tracked(&self) -> bool {
        let tracked = self.tracked.as_ref();
        tracked.is_some_and(|tracked| Arc::ptr_eq(&tracked.lists, &self.targets.lists))
    }

    fn note(&mut self, found: Watched) {
        self.is_waiting = found.waiting > 0;
        self.looked = Instant::now();
    }
}

/// How long after the last check the poller polls; `None` if it need not. `untracked` is its pause while Redis
/// reports no changes.
fn poll_after(
    untracked: Duration,
    is_tracked: bool,
    is_waiting: bool,
    fruitless: u32,
) -> Option<Duration> {
    match (is_tracked, is_waiting) {
        (false, _) => Some(untracked),
        (true, true) => Some((TRACKED * (1 << fruitless.min(8))).min(LONGEST)),
        (true, false) => None,
    }
}

/// Checks whenever Redis reports a change.
struct Tracker {
    watch: Arc<WatchContext>,
    server: Server,
    limit: Duration,
    /// Whether the log says that Redis reports no changes.
    has_logged: bool,
}

impl Tracker {
    fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        loop {
            let Err(error) = self.track(&mut backoff) else {
                return;
            };
            self.note(&error, backoff.failures());
            if !self.watch.pause(backoff.next_wait()) {
                return;
            }
        }
    }

    /// Checks after each change until the monitor drains. The lists count as tracked once Redis has reported a
    /// change, at the latest when the lease on the instance's name is renewed: a server may accept
    /// CLIENT TRACKING and still report nothing.
    fn track(&self, backoff: &mut Backoff) -> Result<(), QueueError> {
        let watch = &*self.watch;
        let lease = watch.lease.clone();
        let mut lookout = IngressWatcher::tracking(&self.server, "tracker", lease, self.limit)?;
        let mut is_tracked = false;
        let mut watched = None;
        while !watch.is_draining() {
            let targets = Arc::clone(&watch.state().targets);
            follow(&mut lookout, &mut watched, &targets.lists);
            let found = lookout.look(targets.lanes)?;
            let mut state = watch.state();
            state.note(found);
            state.fruitless = 0;
            state.tracked = is_tracked.then_some(targets);
            drop(state);
            if found.has_tokens_left {
                thread::sleep(BUSY);
            }
            lookout.wait()?;
            is_tracked = true;
            backoff.reset();
        }
        Ok(())
    }

    /// Notes that nothing is tracked. Logs that, once, if the server works otherwise.
    fn note(&mut self, error: &QueueError, failures: u32) {
        let mut state = self.watch.state();
        state.tracked = None;
        let is_there = std::mem::take(&mut state.has_polled);
        drop(state);
        if failures > 0 && is_there && !std::mem::replace(&mut self.has_logged, true) {
            log::info!(
                "Redis does not report changes (CLIENT TRACKING), \
                 polling the ingress lists 20 times a second instead: {error}"
            );
        } else {
            log::debug!("Redis reports no changes: {error}");
        }
    }
}

/// Makes the lookout check these lists, if it does not yet.
fn follow(
    lookout: &mut IngressWatcher,
    watched: &mut Option<Arc<[ListName]>>,
    lists: &Arc<[ListName]>,
) {
    let is_same = |it: &Arc<[ListName]>| Arc::ptr_eq(it, lists);
    if !watched.as_ref().is_some_and(is_same) {
        lookout.watch(lists);
        *watched = Some(Arc::clone(lists));
    }
}

/// Checks while Redis reports no changes, or a token may have been lost.
struct Poller {
    watch: Arc<WatchContext>,
    server: Server,
    /// Its connection, and the lists that it checks.
    lookout: Option<(IngressWatcher, Option<Arc<[ListName]>>)>,
    backoff: Backoff,
    plan: Option<(u64, Plan)>,
    /// What is paused, and the version that it belongs to.
    pauses: (u64, Pauses),
    read: Option<Instant>,
}

impl Poller {
    fn new(watch: Arc<WatchContext>, server: Server) -> Self {
        Self {
            watch,
            server,
            lookout: None,
            backoff: Backoff::new(UNTRACKED * 2, LONGEST),
            plan: None,
            pauses: (0, Pauses::default()),
            read: None,
        }
    }

    fn run(mut self) {
        let mut pause = Duration::ZERO;
        while self.watch.pause(pause) {
            self.read_board();
            pause = self.poll();
        }
    }

    /// Checks if a check is due; returns the pause until the next call.
    fn poll(&mut self) -> Duration {
        let state = self.watch.state();
        let is_tracked = state.is_tracked();
        let targets = Arc::clone(&state.targets);
        let untracked = targets.pause();
        let after = poll_after(untracked, is_tracked, state.is_waiting, state.fruitless);
        let is_due = after.is_some_and(|after| state.looked.elapsed() >= after);
        drop(state);
        if is_tracked {
            self.watch.slot.beat_watch();
        }
        if !is_due {
            if after.is_none() {
                self.lookout = None;
            }
            return if is_tracked { TRACKED } else { untracked };
        }
        match self.look(&targets) {
            Ok(found) => {
                self.watch.slot.beat_watch();
                self.backoff.reset();
                let mut state = self.watch.state();
                state.note(found);
                state.fruitless = state.fruitless.saturating_add(1);
                state.has_polled = true;
                drop(state);
                if is_tracked { TRACKED } else { untracked }
            }
            Err(error) => {
                self.lookout = None;
                log::debug!("could not check the ingress lists: {error}");
                self.backoff.next_wait()
            }
        }
    }

    fn look(&mut self, targets: &WatchTargets) -> Result<Watched, QueueError> {
        let (lookout, watched) = match &mut self.lookout {
            Some(lookout) => lookout,
            none => {
                let lease = self.watch.lease.clone();
                let lookout = IngressWatcher::connect(&self.server, "poller", lease, LIMIT)?;
                none.insert((lookout, None))
            }
        };
        follow(lookout, watched, &targets.lists);
        lookout.look(targets.lanes)
    }

    /// Follows the configuration, the number of lanes, and what is on hold or paused.
    fn read_board(&mut self) {
        let slot = &self.watch.slot;
        let generation = slot.config_generation();
        let is_same = self.plan.as_ref().is_some_and(|(it, _)| *it == generation);
        let version = slot.pauses_version();
        let are_followed = self.pauses.0 == version;
        if is_same && are_followed && self.read.is_some_and(|read| read.elapsed() < READ_BOARD) {
            return;
        }
        self.read = Some(Instant::now());
        if !is_same && let Ok(plan) = Plan::load_kept(slot.config_path()) {
            self.plan = Some((generation, plan));
        }
        if !are_followed && let Ok(pauses) = Pauses::load(slot.pauses_path()) {
            self.pauses = (version, pauses);
        }
        let (Some((_, plan)), Ok(snapshot)) =
            (&self.plan, Snapshot::without_figures(slot.board_path()))
        else {
            return;
        };
        let mut lists = open_lists(plan, &holds(&snapshot));
        lists.retain(|list| !self.pauses.1.hold(list, &plan.chains));
        let mut state = self.watch.state();
        let known = &state.targets.lists;
        // The threads compare the pointers.
        let lists = match **known == *lists {
            true => Arc::clone(known),
            false => lists.into(),
        };
        let targets = WatchTargets {
            lists,
            lanes: (snapshot.header.wanted).saturating_mul(snapshot.header.shape.lanes as u64),
        };
        if *state.targets != targets {
            state.targets = Arc::new(targets);
        }
    }
}

/// What each worker that claims has on hold. What waits for its budget counts too: the worker's own lanes look
/// after that.
fn holds(snapshot: &Snapshot) -> Vec<Option<StagesView>> {
    let last = snapshot.header.shape.last_held();
    let workers = snapshot.slots.iter().enumerate().skip(1);
    let held = workers.filter_map(|(number, slot)| {
        let worker = slot.worker.as_ref();
        let worker = worker.filter(|worker| worker.state == WorkerState::Ready)?;
        let reasons = snapshot.reasons.iter();
        let waits = reasons.filter(|(of, reason)| *of == number && reason.reason.is_wait());
        let waits: Vec<_> = waits.map(|(_, it)| (it.kind, it.position)).collect();
        let mut held = worker.held.clone();
        if !waits.is_empty() {
            let none = || StagesView {
                stages: Vec::new(),
                last,
                since: 0,
            };
            held.get_or_insert_with(none).stages.extend(waits);
        }
        Some(held)
    });
    held.collect()
}

/// The ingress lists that not every worker has on hold.
fn open_lists(plan: &Plan, holds: &[Option<StagesView>]) -> Vec<ListName> {
    let named = |held: &Option<StagesView>| -> Vec<NamedStage> {
        let stages = held.iter().flat_map(|held| &held.stages);
        let last = held.as_ref().map_or(0, |held| held.last);
        stages
            .filter_map(|stage| NamedStage::at(*stage, last, plan))
            .collect()
    };
    let holds: Vec<Vec<NamedStage>> = holds.iter().map(named).collect();
    let is_open = |chain: &&Chain| {
        let holds_it = |held: &Vec<NamedStage>| held.iter().any(|it| it.is_needed_by(chain));
        holds.is_empty() || !holds.iter().all(holds_it)
    };
    let in_service = plan.chains.iter().filter(|chain| chain.enabled);
    in_service
        .filter(is_open)
        .flat_map(|chain| chain.ingress_lists.iter().cloned())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scoreboard::StageKind;

    #[test]
    fn polls_are_rare_while_redis_reports_changes() {
        for (is_tracked, is_waiting, fruitless, expected) in [
            (false, false, 0, Some(50)),
            (false, true, 9, Some(50)),
            (true, false, 9, None),
            (true, true, 0, Some(100)),
            (true, true, 1, Some(200)),
            (true, true, 3, Some(800)),
            (true, true, 4, Some(1000)),
            (true, true, u32::MAX, Some(1000)),
        ] {
            let after = poll_after(UNTRACKED, is_tracked, is_waiting, fruitless);
            let expected = expected.map(Duration::from_millis);
            assert_eq!(after, expected, "{is_tracked} {is_waiting} {fruitless}");
        }
    }

    #[test]
    fn very_many_lists_are_polled_less_often_but_before_lanes_check_by_themselves() {
        for (lists, expected) in [
            (0, 50),
            (1_000, 50),
            (2_000, 100),
            (10_000, 500),
            (usize::MAX, 500),
        ] {
            assert_eq!(
                untracked_pause(lists),
                Duration::from_millis(expected),
                "{lists}"
            );
        }
    }

    #[test]
    fn a_list_is_left_out_while_every_worker_has_it_on_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yml");
        let text = "\
links: {tagger: {module: links.tag, options: {tags: [a]}}}
storages: {one: {module: storage.file}, two: {module: storage.file}}
tracers: {audit: {module: tracers.audit}}
chains:
  first: {links: [tagger], storages: [one], ingress_lists: [a, b]}
  second: {storages: [two], ingress_lists: [c], egress_lists: [done]}
  spare: {ingress_lists: [d], enabled: 0}
";
        std::fs::write(&path, text).unwrap();
        let plan = Plan::load(&path).unwrap();
        use StageKind::{Hook, Link, List, Storage, Tracer};
        let held = |stages: &[(StageKind, usize)]| StagesView {
            stages: stages.to_vec(),
            last: 127,
            since: 1,
        };
        let [one, two, tagger] = [(Storage, 0), (Storage, 1), (Link, 0)].map(|it| held(&[it]));
        let [done, tracer, hook] = [(List, 0), (Tracer, 0), (Hook, 0)].map(|it| held(&[it]));
        // Numbers from the last on are not told apart.
        let many = held(&[(Link, 127), (Storage, 127)]);
        let none: &[&str] = &[];
        for (holds, expected) in [
            (vec![], &["a", "b", "c"][..]),
            (vec![None, None], &["a", "b", "c"]),
            (vec![Some(one.clone()), None], &["a", "b", "c"]),
            (vec![Some(one.clone()), Some(one.clone())], &["c"]),
            (vec![Some(one.clone()), Some(tagger.clone())], &["c"]),
            (vec![Some(one.clone()), Some(two.clone())], &["a", "b", "c"]),
            (vec![Some(two.clone())], &["a", "b"]),
            (vec![Some(many.clone())], &["a", "b", "c"]),
            (vec![Some(done.clone())], &["a", "b"]),
            (vec![Some(tracer.clone())], &["c"]),
            (vec![Some(hook.clone())], none),
            (vec![Some(held(&[(Link, 0), (Storage, 1)]))], none),
        ] {
            let open = open_lists(&plan, &holds);
            let open: Vec<&str> = open.iter().map(ListName::as_str).collect();
            assert_eq!(open, expected, "{holds:?}");
        }
    }
}
