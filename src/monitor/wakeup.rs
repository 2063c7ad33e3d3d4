//! Two threads of the monitor that watch the ingress lists, and wake idle lanes.
//!
//! ```text
//! tracker: look ──► wait until the server tells of a change ──► look …     (CLIENT TRACKING)
//! looker:  shows that the lists are watched; looks by itself
//!            20 times a second, or less often at very many lists, while the tracker is not told of changes
//!            now and then, while entries wait that nobody takes: a token may have been lost
//! ```
//!
//! The lanes wait for long as long as the looker shows that the lists are watched.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::{LIMIT, pause};
use crate::backoff::Backoff;
use crate::child::Child;
use crate::config::{Chain, ListName, Plan};
use crate::queue::{IngressWatcher, NameLease, QueueError, Server, Watched};
use crate::scoreboard::{HeldView, Slot, Snapshot, WorkerState};
use crate::settings::Settings;

/// The pause between two looks where nobody is told of changes.
const UNTOLD: Duration = Duration::from_millis(50);

/// It is longer if there are more lists than 1,000, each of which takes the server about 1 µs.
const UNTOLD_FOR_EACH: Duration = Duration::from_micros(50);

/// Its limit: lanes look by themselves if nobody shows for a second that the lists are watched.
const LONGEST_UNTOLD: Duration = Duration::from_millis(500);

/// The looker's pause while the tracker is told of changes.
const TOLD: Duration = Duration::from_millis(100);

/// The longest pause between two looks while entries wait that nobody takes.
const LONGEST: Duration = Duration::from_secs(1);

/// How long changes are not looked at when there are tokens left: all lanes are at work, and the
/// first that is not finds one.
const BUSY: Duration = Duration::from_millis(5);

/// How often the scoreboard is read: how many lanes there are, and what is on hold.
const READ: Duration = Duration::from_millis(500);

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
    let watch = Arc::new(Watch {
        slot,
        lease: lease.clone(),
        draining: child.draining.clone(),
        state: Mutex::new(State::new()),
    });
    let tracker = Tracker {
        watch: Arc::clone(&watch),
        server: server.with_pushes(),
        // It is told of every renewal of the lease.
        limit: LIMIT.max(pause(settings) * 3),
        has_said_so: false,
    };
    let mut looker = Looker::new(watch, server.clone());
    // So that the tracker knows from the first what to look at.
    looker.read_board();
    let thread = |name: &str| thread::Builder::new().name(name.to_owned());
    thread("tracker").spawn(|| tracker.run())?;
    thread("looker").spawn(|| looker.run())?;
    Ok(())
}

/// What both threads share.
struct Watch {
    slot: Slot,
    lease: NameLease,
    draining: Receiver<()>,
    state: Mutex<State>,
}

struct State {
    targets: Arc<Targets>,
    /// The targets of whose changes the tracker is told.
    told: Option<Arc<Targets>>,
    /// Whether entries waited at the last look.
    is_waiting: bool,
    looked: Instant,
    /// Looks since the last change.
    fruitless: u32,
    /// Whether the looker has been answered since the tracker last failed.
    has_answered: bool,
}

/// What is to be looked at.
#[derive(Debug, Default, PartialEq, Eq)]
struct Targets {
    lists: Arc<[ListName]>,
    /// Of all workers together.
    lanes: u64,
}

impl Targets {
    /// The pause between two looks at all of them.
    fn pause(&self) -> Duration {
        untold_pause(self.lists.len())
    }
}

/// The pause between two looks at so many lists, while nobody is told of changes.
fn untold_pause(lists: usize) -> Duration {
    let lists = u32::try_from(lists).unwrap_or(u32::MAX);
    let pause = UNTOLD_FOR_EACH.saturating_mul(lists);
    pause.clamp(UNTOLD, LONGEST_UNTOLD)
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of it is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_draining(&self) -> bool {
        self.draining.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits; false where the monitor drains.
    fn pause(&self, time: Duration) -> bool {
        self.draining.recv_timeout(time) == Err(RecvTimeoutError::Timeout)
    }
}

impl State {
    fn new() -> Self {
        Self {
            targets: Arc::default(),
            told: None,
            is_waiting: false,
            looked: Instant::now(),
            fruitless: 0,
            has_answered: false,
        }
    }

    /// Whether the tracker is told of changes of all that is to be looked at.
    fn is_told(&self) -> bool {
        let told = self.told.as_ref();
        told.is_some_and(|told| Arc::ptr_eq(&told.lists, &self.targets.lists))
    }

    fn note(&mut self, found: Watched) {
        self.is_waiting = found.waiting > 0;
        self.looked = Instant::now();
    }
}

/// How long after the last look the looker is to look by itself; nothing where it need not. `untold` is its
/// pause while nobody is told of changes.
fn look_after(
    untold: Duration,
    is_told: bool,
    is_waiting: bool,
    fruitless: u32,
) -> Option<Duration> {
    match (is_told, is_waiting) {
        (false, _) => Some(untold),
        (true, true) => Some((TOLD * (1 << fruitless.min(8))).min(LONGEST)),
        (true, false) => None,
    }
}

/// Looks whenever the server tells of a change.
struct Tracker {
    watch: Arc<Watch>,
    server: Server,
    limit: Duration,
    /// Whether the log says that it is told of nothing.
    has_said_so: bool,
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

    /// Looks again and again until the monitor drains. It counts as told of changes once it was
    /// told of one, at the latest when the lease is renewed: a server may accept the tracking and
    /// still keep silent.
    fn track(&self, backoff: &mut Backoff) -> Result<(), QueueError> {
        let watch = &*self.watch;
        let lease = watch.lease.clone();
        let mut lookout = IngressWatcher::tracking(&self.server, "tracker", lease, self.limit)?;
        let mut is_told = false;
        let mut watched = None;
        while !watch.is_draining() {
            let targets = Arc::clone(&watch.state().targets);
            follow(&mut lookout, &mut watched, &targets.lists);
            let found = lookout.look(targets.lanes)?;
            let mut state = watch.state();
            state.note(found);
            state.fruitless = 0;
            state.told = is_told.then_some(targets);
            drop(state);
            if found.has_tokens_left {
                thread::sleep(BUSY);
            }
            lookout.wait()?;
            is_told = true;
            backoff.reset();
        }
        Ok(())
    }

    /// Notes that it is told of nothing. Where that is so although the server is there, it is for
    /// the log to say, once.
    fn note(&mut self, error: &QueueError, failures: u32) {
        let mut state = self.watch.state();
        state.told = None;
        let is_there = std::mem::take(&mut state.has_answered);
        drop(state);
        if failures > 0 && is_there && !std::mem::replace(&mut self.has_said_so, true) {
            log::info!(
                "the server does not tell of changes, \
                 the ingress lists are looked at 20 times a second instead: {error}"
            );
        } else {
            log::debug!("the server tells of no changes: {error}");
        }
    }
}

/// Has the lookout look at these lists, if it does not yet.
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

/// Looks where nobody is told of changes, or a token may have been lost.
struct Looker {
    watch: Arc<Watch>,
    server: Server,
    /// Its connection, and the lists that it looks at.
    lookout: Option<(IngressWatcher, Option<Arc<[ListName]>>)>,
    backoff: Backoff,
    plan: Option<(u64, Plan)>,
    read: Option<Instant>,
}

impl Looker {
    fn new(watch: Arc<Watch>, server: Server) -> Self {
        Self {
            watch,
            server,
            lookout: None,
            backoff: Backoff::new(UNTOLD * 2, LONGEST),
            plan: None,
            read: None,
        }
    }

    fn run(mut self) {
        let mut pause = Duration::ZERO;
        while self.watch.pause(pause) {
            self.read_board();
            pause = self.turn();
        }
    }

    /// Does what is due; answers how long it is to the next time.
    fn turn(&mut self) -> Duration {
        let state = self.watch.state();
        let is_told = state.is_told();
        let targets = Arc::clone(&state.targets);
        let untold = targets.pause();
        let after = look_after(untold, is_told, state.is_waiting, state.fruitless);
        let is_due = after.is_some_and(|after| state.looked.elapsed() >= after);
        drop(state);
        if is_told {
            self.watch.slot.beat_watch();
        }
        if !is_due {
            if after.is_none() {
                self.lookout = None;
            }
            return if is_told { TOLD } else { untold };
        }
        match self.look(&targets) {
            Ok(found) => {
                self.watch.slot.beat_watch();
                self.backoff.reset();
                let mut state = self.watch.state();
                state.note(found);
                state.fruitless = state.fruitless.saturating_add(1);
                state.has_answered = true;
                drop(state);
                if is_told { TOLD } else { untold }
            }
            Err(error) => {
                self.lookout = None;
                log::debug!("the ingress lists could not be looked at: {error}");
                self.backoff.next_wait()
            }
        }
    }

    fn look(&mut self, targets: &Targets) -> Result<Watched, QueueError> {
        let (lookout, watched) = match &mut self.lookout {
            Some(lookout) => lookout,
            none => {
                let lease = self.watch.lease.clone();
                let lookout = IngressWatcher::connect(&self.server, "looker", lease, LIMIT)?;
                none.insert((lookout, None))
            }
        };
        follow(lookout, watched, &targets.lists);
        lookout.look(targets.lanes)
    }

    /// Follows the configuration, the number of lanes, and what is on hold.
    fn read_board(&mut self) {
        let slot = &self.watch.slot;
        let generation = slot.config_generation();
        let is_same = self.plan.as_ref().is_some_and(|(it, _)| *it == generation);
        if is_same && self.read.is_some_and(|read| read.elapsed() < READ) {
            return;
        }
        self.read = Some(Instant::now());
        if !is_same && let Ok(plan) = Plan::load_kept(slot.config_path()) {
            self.plan = Some((generation, plan));
        }
        let (Some((_, plan)), Ok(snapshot)) =
            (&self.plan, Snapshot::without_figures(slot.board_path()))
        else {
            return;
        };
        let lists = open_lists(plan, &holds(&snapshot));
        let mut state = self.watch.state();
        let known = &state.targets.lists;
        // Those who look compare the pointers.
        let lists = match **known == *lists {
            true => Arc::clone(known),
            false => lists.into(),
        };
        let targets = Targets {
            lists,
            lanes: (snapshot.header.wanted).saturating_mul(snapshot.header.shape.lanes as u64),
        };
        if *state.targets != targets {
            state.targets = Arc::new(targets);
        }
    }
}

/// What each worker that claims has on hold.
fn holds(snapshot: &Snapshot) -> Vec<Option<&HeldView>> {
    let workers = snapshot.slots.iter().skip(1);
    let workers = workers.filter_map(|slot| slot.worker.as_ref());
    let ready = workers.filter(|worker| worker.state == WorkerState::Ready);
    ready.map(|worker| worker.held.as_ref()).collect()
}

/// The ingress lists that not every worker has on hold.
fn open_lists(plan: &Plan, holds: &[Option<&HeldView>]) -> Vec<ListName> {
    let is_open = |chain: &&Chain| {
        let holds_it =
            |held: &Option<&HeldView>| held.is_some_and(|held| is_on_hold(chain, plan, held));
        holds.is_empty() || !holds.iter().all(holds_it)
    };
    let in_service = plan.chains.iter().filter(|chain| chain.enabled);
    in_service
        .filter(is_open)
        .flat_map(|chain| chain.ingress_lists.iter().cloned())
        .collect()
}

/// Whether a worker that holds these has this chain on hold.
fn is_on_hold(chain: &Chain, plan: &Plan, held: &HeldView) -> bool {
    // The last place is not only its own.
    let is_held = |places: &[usize], names: &[String], needed: &[String]| {
        let places = places.iter().filter(|place| **place < held.last);
        places
            .filter_map(|place| names.get(*place))
            .any(|name| needed.contains(name))
    };
    is_held(&held.links, &plan.links, &chain.links)
        || is_held(&held.storages, &plan.storages, &chain.storages)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_rare_while_changes_are_told() {
        for (is_told, is_waiting, fruitless, expected) in [
            (false, false, 0, Some(50)),
            (false, true, 9, Some(50)),
            (true, false, 9, None),
            (true, true, 0, Some(100)),
            (true, true, 1, Some(200)),
            (true, true, 3, Some(800)),
            (true, true, 4, Some(1000)),
            (true, true, u32::MAX, Some(1000)),
        ] {
            let after = look_after(UNTOLD, is_told, is_waiting, fruitless);
            let expected = expected.map(Duration::from_millis);
            assert_eq!(after, expected, "{is_told} {is_waiting} {fruitless}");
        }
    }

    #[test]
    fn very_many_lists_are_looked_at_less_often_but_before_lanes_look_by_themselves() {
        for (lists, expected) in [
            (0, 50),
            (1_000, 50),
            (2_000, 100),
            (10_000, 500),
            (usize::MAX, 500),
        ] {
            assert_eq!(
                untold_pause(lists),
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
chains:
  first: {links: [tagger], storages: [one], ingress_lists: [a, b]}
  second: {storages: [two], ingress_lists: [c]}
  spare: {ingress_lists: [d], enabled: 0}
";
        std::fs::write(&path, text).unwrap();
        let plan = Plan::load(&path).unwrap();
        let held = |links: &[usize], storages: &[usize]| HeldView {
            links: links.to_vec(),
            storages: storages.to_vec(),
            last: 127,
            since: 1,
        };
        let [one, two, tagger] = [held(&[], &[0]), held(&[], &[1]), held(&[0], &[])];
        // Those from the last on are not told apart.
        let many = held(&[127], &[127]);
        let none: &[&str] = &[];
        for (holds, expected) in [
            (vec![], &["a", "b", "c"][..]),
            (vec![None, None], &["a", "b", "c"]),
            (vec![Some(&one), None], &["a", "b", "c"]),
            (vec![Some(&one), Some(&one)], &["c"]),
            (vec![Some(&one), Some(&tagger)], &["c"]),
            (vec![Some(&one), Some(&two)], &["a", "b", "c"]),
            (vec![Some(&two)], &["a", "b"]),
            (vec![Some(&many)], &["a", "b", "c"]),
            (vec![Some(&held(&[0], &[1]))], none),
        ] {
            let open = open_lists(&plan, &holds);
            let open: Vec<&str> = open.iter().map(ListName::as_str).collect();
            assert_eq!(open, expected, "{holds:?}");
        }
    }
}
