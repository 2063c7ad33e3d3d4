//! What is unavailable, to which workers, since when and why: the holds and outages of `status`.
//!
//! Each worker shows what it has found itself. Of all workers together the newest error counts, the earliest
//! time since when, and the soonest next try.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Local, TimeDelta};
use serde::Serialize;

use super::seconds;
use crate::config::{Chain, ListName, Plan};
use crate::scoreboard::{
    HoldReason, Snapshot, StageKind, StagesView, UnavailableStage, WorkerView, shown_name,
};

/// A link, storage, egress list, tracer or hook that is unavailable, so that chains are on hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// `link <name>`, `storage <name>`, `list <name>`, `tracer <name>` or `hook <name>`.
    pub stage: String,
    /// The chains that wait for it, as far as they are known.
    pub chains: Vec<String>,
    /// The workers to which it is unavailable.
    pub workers: Vec<usize>,
    /// Since when one of them has had a chain on hold for it, in seconds.
    pub seconds: u64,
    /// The last error.
    #[serde(flatten)]
    pub last: LastError,
    /// Whether it refuses this deployment: its credentials, its rights or what is left of its quota.
    pub denied: bool,
    /// Whether it is reachable, and fails or refuses one vCon after the other.
    pub failing: bool,
}

/// A storage with `on_outage: defer` that is unavailable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outage {
    /// The storage, by its name in all figures.
    pub storage: String,
    /// The workers to which it is unavailable.
    pub workers: Vec<usize>,
    /// Since when it has been unavailable to one of them, in seconds.
    pub seconds: u64,
    /// The last error.
    #[serde(flatten)]
    pub last: LastError,
}

/// A stage that works as it should, and of which nothing is asked for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StageWait {
    /// `link <name>` or `storage <name>`.
    pub stage: String,
    /// `budget`, or `server` if that wants to be left alone.
    pub waits_for: &'static str,
    /// The chains that wait with it, as far as they are known.
    pub chains: Vec<String>,
    /// The workers that have found that.
    pub workers: Vec<usize>,
    /// Since when, in seconds.
    pub seconds: u64,
    /// For how many seconds more; 0: not a whole one.
    pub seconds_left: u64,
}

impl StageWait {
    /// `link analyze waits for its budget`, `link analyze waits until 12:13:14, as its server asks`.
    pub fn text(&self) -> String {
        self.text_at(Local::now())
    }

    fn text_at(&self, now: DateTime<Local>) -> String {
        if self.waits_for == BUDGET {
            return format!("{} waits for its budget", self.stage);
        }
        let left = i64::try_from(self.seconds_left).unwrap_or(i64::MAX);
        let left = TimeDelta::try_seconds(left).unwrap_or_default();
        let then = now.checked_add_signed(left).unwrap_or(now);
        let is_today = then.date_naive() == now.date_naive();
        let format = if is_today {
            "%H:%M:%S"
        } else {
            "%Y-%m-%d %H:%M:%S"
        };
        format!(
            "{} waits until {}, as its server asks",
            self.stage,
            then.format(format)
        )
    }
}

const BUDGET: &str = "budget";

/// Why something is unavailable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// The last error that any worker has met, if it is known.
    pub error: Option<String>,
    /// How long ago that was, in seconds.
    pub error_seconds: Option<u64>,
    /// When the first worker tries it again, in seconds; 0: now.
    pub next_try_seconds: Option<u64>,
}

impl LastError {
    /// `could not connect to http://h:9000: connection refused; next try in 12 s`, as far as it is known.
    pub fn text(&self) -> Option<String> {
        let error = self.error.clone()?;
        Some(match self.next_try_seconds {
            None => error,
            Some(0) => format!("{error}; next try now"),
            Some(seconds) => format!("{error}; next try in {}", duration(seconds as f64)),
        })
    }
}

impl Hold {
    /// What is wrong: `storage pg is unavailable`, `list done is not a list`.
    pub fn fault(&self) -> String {
        let fault = match self.stage.split_once(' ') {
            Some(("list", _)) => "is not a list",
            _ if self.denied => "denies access",
            _ if self.failing => "is reachable but fails",
            _ => "is unavailable",
        };
        format!("{} {fault}", self.stage)
    }
}

/// `since 02:13, 4 min 2 s`: the time of day, with the date if that is another one, and how long ago it was.
pub fn since(seconds: f64) -> String {
    since_at(seconds, Local::now())
}

fn since_at(seconds: f64, now: DateTime<Local>) -> String {
    let ago = TimeDelta::try_seconds(seconds as i64).unwrap_or_default();
    let then = now.checked_sub_signed(ago).unwrap_or(now);
    let is_today = then.date_naive() == now.date_naive();
    let format = if is_today { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    format!("since {}, {}", then.format(format), duration(seconds))
}

/// `3 d 4 h`, `5 min 6 s`: the two largest units.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {} min", minutes % 60),
        (days, hours, _) => format!("{days} d {} h", hours % 24),
    }
}

/// A stage that is unavailable, by its name in the configuration in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedStage {
    kind: StageKind,
    name: String,
}

impl NamedStage {
    /// The stage at this position. The `last` position stands for all from there on, which have no name.
    pub fn at((kind, position): (StageKind, usize), last: usize, plan: &Plan) -> Option<Self> {
        let named = |names: &[String]| names.get(position).cloned();
        let name = match kind {
            _ if position >= last => None,
            StageKind::Link => named(&plan.links),
            StageKind::Storage | StageKind::DeferringStorage => named(&plan.storages),
            StageKind::Tracer => named(&plan.tracers),
            StageKind::Hook => Some("before_processing".to_owned()),
            StageKind::List => plan
                .egress_lists()
                .get_index(position)
                .map(ListName::to_string),
            StageKind::Redis => None,
        };
        name.map(|name| Self { kind, name })
    }

    /// Whether the chain waits while it is unavailable.
    pub fn is_needed_by(&self, chain: &Chain) -> bool {
        match self.kind {
            StageKind::Link => chain.links.contains(&self.name),
            StageKind::Storage => chain.storages.contains(&self.name),
            StageKind::List => {
                let mut lists = chain.egress_lists.iter();
                lists.any(|list| list.as_str() == self.name)
            }
            StageKind::Tracer => !chain.links.is_empty(),
            StageKind::Hook => true,
            StageKind::DeferringStorage | StageKind::Redis => false,
        }
    }
}

/// What the workers have found of one stage.
#[derive(Default)]
struct Found {
    workers: Vec<usize>,
    since: Option<u64>,
    /// When the last error was seen.
    seen: u64,
    last: LastError,
    /// Why, as the newest error says.
    reason: Option<HoldReason>,
    next_try: Option<u64>,
}

impl Found {
    fn note(&mut self, worker: usize, since: u64, reason: Option<&UnavailableStage>) {
        self.workers.push(worker);
        let since = reason.map_or(since, |reason| reason.since);
        self.since = Some(self.since.map_or(since, |first| first.min(since)));
        let Some(reason) = reason else { return };
        if self.last.error.is_none() || reason.seen > self.seen {
            self.seen = reason.seen;
            self.reason = Some(reason.reason);
            self.last.error = Some(reason.error.clone());
        }
        let next = [self.next_try, reason.next_try].into_iter().flatten();
        self.next_try = next.min();
    }

    fn seconds(&self, now: u64) -> u64 {
        now.saturating_sub(self.since.unwrap_or(now)) / 1000
    }

    fn last_error(&self, now: u64) -> LastError {
        let is_known = self.last.error.is_some();
        let next_try = self.next_try.map(|next| next.saturating_sub(now));
        LastError {
            error: self.last.error.clone(),
            error_seconds: is_known.then(|| now.saturating_sub(self.seen) / 1000),
            next_try_seconds: next_try.map(|wait| wait.div_ceil(1000)),
        }
    }
}

/// Finds what is on hold; names come from the configuration in force, if known.
pub fn holds(snapshot: &Snapshot, plan: Option<&Plan>) -> Vec<Hold> {
    let found = collect(snapshot, |worker| worker.held.as_ref());
    let hold = |(stage, found): ((StageKind, usize), Found)| {
        let named = name(stage, snapshot, plan);
        Hold {
            stage: stage_name(stage, named.as_ref()),
            chains: chains(named.as_ref(), plan),
            seconds: found.seconds(snapshot.taken),
            last: found.last_error(snapshot.taken),
            workers: found.workers,
            denied: found.reason == Some(HoldReason::Denied),
            failing: found.reason == Some(HoldReason::Failing),
        }
    };
    found.into_iter().map(hold).collect()
}

/// Finds the storages that are unavailable and hold no chain.
pub fn outages(snapshot: &Snapshot, plan: Option<&Plan>) -> Vec<Outage> {
    let found = collect(snapshot, |worker| worker.deferring.as_ref());
    let outage = |(stage, found): ((StageKind, usize), Found)| {
        let named = name(stage, snapshot, plan);
        let storage = match &named {
            Some(named) => shown_name(&named.name),
            None => stage_name(stage, None),
        };
        Outage {
            storage,
            seconds: found.seconds(snapshot.taken),
            last: found.last_error(snapshot.taken),
            workers: found.workers,
        }
    };
    found.into_iter().map(outage).collect()
}

/// Finds the stages that wait for their budgets, or until their servers want to be asked again.
pub fn waits(snapshot: &Snapshot, plan: Option<&Plan>) -> Vec<StageWait> {
    let mut found: BTreeMap<_, StageWait> = BTreeMap::new();
    let now = snapshot.taken;
    for (worker, reason) in &snapshot.reasons {
        let waits_for = match reason.reason {
            HoldReason::Budget => BUDGET,
            HoldReason::ServerWait => "server",
            _ => continue,
        };
        let stage = (reason.kind, reason.position);
        let named = name(stage, snapshot, plan);
        let wait = found
            .entry((stage, waits_for))
            .or_insert_with(|| StageWait {
                stage: stage_name(stage, named.as_ref()),
                waits_for,
                chains: chains(named.as_ref(), plan),
                workers: Vec::new(),
                seconds: 0,
                seconds_left: 0,
            });
        let left = reason.next_try.unwrap_or(now).saturating_sub(now);
        wait.workers.push(*worker);
        wait.seconds = wait.seconds.max(now.saturating_sub(reason.since) / 1000);
        wait.seconds_left = wait.seconds_left.max(left.div_ceil(1000));
    }
    found.into_values().collect()
}

/// For how many seconds Redis has been unavailable to the monitor, and why.
pub(super) fn redis_away(snapshot: &Snapshot) -> (Option<f64>, Option<String>) {
    let monitor = snapshot.slots.first().and_then(|slot| slot.worker.as_ref());
    let Some(since) = monitor.and_then(|monitor| monitor.redis_away) else {
        return (None, None);
    };
    let mut reasons = snapshot.reasons.iter();
    let reason = reasons.find(|(slot, reason)| *slot == 0 && reason.kind == StageKind::Redis);
    let error = reason.map(|(_, reason)| reason.error.clone());
    (Some(seconds(snapshot.taken, since)), error)
}

/// What each worker has found, put together.
fn collect(
    snapshot: &Snapshot,
    stages: impl Fn(&WorkerView) -> Option<&StagesView>,
) -> BTreeMap<(StageKind, usize), Found> {
    // There may be many thousands.
    let reasons = snapshot.reasons.iter();
    let reasons: HashMap<_, _> = reasons
        .map(|(slot, reason)| ((*slot, reason.kind, reason.position), reason))
        .collect();
    let mut found: BTreeMap<_, Found> = BTreeMap::new();
    for (number, slot) in snapshot.slots.iter().enumerate() {
        let Some(view) = slot.worker.as_ref().and_then(&stages) else {
            continue;
        };
        for stage in &view.stages {
            let reason = reasons.get(&(number, stage.0, stage.1)).copied();
            let found = found.entry(*stage).or_default();
            found.note(number, view.since, reason);
        }
    }
    found
}

fn name(stage: (StageKind, usize), snapshot: &Snapshot, plan: Option<&Plan>) -> Option<NamedStage> {
    NamedStage::at(stage, snapshot.header.shape.last_held(), plan?)
}

fn stage_name((kind, position): (StageKind, usize), named: Option<&NamedStage>) -> String {
    let kind = match kind {
        StageKind::Link => "link",
        StageKind::Storage | StageKind::DeferringStorage => "storage",
        StageKind::List => "list",
        StageKind::Tracer => "tracer",
        StageKind::Hook => "hook",
        StageKind::Redis => "Redis",
    };
    match named {
        Some(named) => format!("{kind} {}", named.name),
        None => format!("{kind} number {}", position + 1),
    }
}

fn chains(named: Option<&NamedStage>, plan: Option<&Plan>) -> Vec<String> {
    let (Some(named), Some(plan)) = (named, plan) else {
        return Vec::new();
    };
    let enabled = plan.chains.iter().filter(|chain| chain.enabled);
    enabled
        .filter(|chain| named.is_needed_by(chain))
        .map(|chain| chain.name.clone())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use chrono::TimeZone;
    use tempfile::TempDir;

    use super::*;
    use crate::scoreboard::{Board, ChildState, ChildView, Shape, Slot};
    use crate::view::View;

    const CONFIG: &str = "\
storages: {s3: {module: storage.s3}, pg: {module: storage.postgres, on_outage: defer}}
tracers: {audit: {module: tracers.audit}}
links: {tagger: {module: links.tag}}
chains:
  main: {storages: [s3, pg], ingress_lists: [a], egress_lists: [done]}
  other: {links: [tagger], ingress_lists: [b], egress_lists: [done, gone]}
";

    /// A daemon with two workers, and what `CONFIG` says.
    struct TestDaemon {
        board: Board,
        plan: Plan,
        slots: Vec<Slot>,
        _folder: TempDir,
    }

    impl TestDaemon {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.yml");
            std::fs::write(&path, CONFIG).unwrap();
            let mut board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
            let mut slots = Vec::new();
            for number in 0..3 {
                let place = ChildView {
                    generation: 1,
                    pid: None,
                    state: ChildState::Ready,
                    since: 0,
                    deaths: 0,
                    retry: None,
                };
                board.prepare(number).unwrap();
                board.show_child(number, Some(place));
                slots.push(Slot::attach(board.id(), number, 1).unwrap());
            }
            Self {
                plan: Plan::load(&path).unwrap(),
                board,
                slots,
                _folder: folder,
            }
        }

        /// What it does at this time.
        fn view(&self, now: u64) -> View {
            let mut snapshot = Snapshot::take_own(&self.board.id().path).unwrap();
            snapshot.taken = now;
            View::new(&snapshot, Some(&self.plan), None)
        }
    }

    fn stage(kind: StageKind, position: usize) -> UnavailableStage {
        UnavailableStage {
            kind,
            position,
            name: 0,
            since: 1_000,
            error: "connection refused".to_owned(),
            seen: 1_000,
            next_try: None,
            reason: HoldReason::Unavailable,
        }
    }

    #[test]
    fn what_holds_a_chain_is_a_hold_and_a_storage_that_defers_is_not() {
        use StageKind::{DeferringStorage, Hook, List, Storage, Tracer};
        let daemon = TestDaemon::new();
        for (stages, state, expected_holds, expected_outages) in [
            (&[(DeferringStorage, 1)][..], "idle", &[][..], &["pg"][..]),
            (
                &[(DeferringStorage, 1), (List, 0)],
                "holding",
                &["list done is not a list: main, other"],
                &["pg"],
            ),
            (
                &[(Storage, 0), (List, 1)],
                "holding",
                &[
                    "storage s3 is unavailable: main",
                    "list gone is not a list: other",
                ],
                &[],
            ),
            (
                &[(Hook, 0), (Tracer, 0)],
                "holding",
                &[
                    "tracer audit is unavailable: other",
                    "hook before_processing is unavailable: main, other",
                ],
                &[],
            ),
        ] {
            let stages: Vec<_> = (stages.iter())
                .map(|(kind, it)| stage(*kind, *it))
                .collect();
            daemon.slots[1].show_unavailable(&stages);
            let view = daemon.view(1_000);
            let holds: Vec<String> = (view.holds.iter())
                .map(|hold| format!("{}: {}", hold.fault(), hold.chains.join(", ")))
                .collect();
            let outages: Vec<String> = view.outages.into_iter().map(|it| it.storage).collect();
            assert_eq!(view.workers[0].state, state);
            assert_eq!(holds, expected_holds);
            assert_eq!(outages, expected_outages);
        }
    }

    #[test]
    fn a_hold_says_whether_its_stage_does_not_answer_fails_or_denies() {
        let daemon = TestDaemon::new();
        for (reason, fault) in [
            (HoldReason::Unavailable, "storage s3 is unavailable"),
            (HoldReason::Failing, "storage s3 is reachable but fails"),
            (HoldReason::Denied, "storage s3 denies access"),
        ] {
            let s3 = UnavailableStage {
                reason,
                ..stage(StageKind::Storage, 0)
            };
            daemon.slots[1].show_unavailable(&[s3]);
            assert_eq!(daemon.view(1_000).holds[0].fault(), fault);
        }
    }

    #[test]
    fn the_newest_error_counts_the_earliest_time_and_the_soonest_try() {
        let daemon = TestDaemon::new();
        let found = |kind, since, seen, error: &str, next_try| UnavailableStage {
            since,
            seen,
            error: error.to_owned(),
            next_try,
            ..stage(kind, 0)
        };
        let show = |worker: usize, since, seen, error, next_try| {
            let pg = UnavailableStage {
                position: 1,
                ..found(
                    StageKind::DeferringStorage,
                    9_000,
                    9_000,
                    "full",
                    Some(9_500),
                )
            };
            let s3 = found(StageKind::Storage, since, seen, error, next_try);
            daemon.slots[worker].show_unavailable(&[s3, pg]);
        };
        show(1, 3_000, 7_000, "timed out", Some(22_500));
        show(2, 5_000, 6_000, "connection refused", Some(21_001));
        let view = daemon.view(10_000);
        let hold = &view.holds[0];
        assert_eq!((&hold.workers[..], hold.seconds), (&[1, 2][..], 7));
        let expected = LastError {
            error: Some("timed out".to_owned()),
            error_seconds: Some(3),
            next_try_seconds: Some(12),
        };
        assert_eq!(hold.last, expected);
        let text = hold.last.text();
        assert_eq!(text.as_deref(), Some("timed out; next try in 12 s"));
        // What another stage does is no matter.
        let outage = &view.outages[0];
        assert_eq!(outage.seconds, 1);
        assert_eq!(outage.last.text().as_deref(), Some("full; next try now"));

        show(2, 5_000, 8_000, "connection refused", None);
        let last = daemon.view(10_000).holds[0].last.clone();
        assert_eq!(last.error.as_deref(), Some("connection refused"));
        assert_eq!(last.next_try_seconds, Some(13));
        assert_eq!(LastError::default().text(), None);
    }

    #[test]
    fn the_monitor_says_why_redis_is_unavailable() {
        let daemon = TestDaemon::new();
        let redis = || {
            let view = daemon.view(u64::MAX);
            (view.redis_away_seconds.is_some(), view.redis_error)
        };
        assert_eq!(redis(), (false, None));
        let monitor = &daemon.slots[0];
        monitor.set_state(crate::scoreboard::WorkerState::Ready);
        monitor.show_redis_away(Some("connection refused"));
        assert_eq!(redis(), (true, Some("connection refused".to_owned())));
        monitor.show_redis_away(None);
        assert_eq!(redis(), (false, None));
    }

    #[test]
    fn the_time_of_day_has_its_date_if_it_was_on_another_day() {
        let now = Local.with_ymd_and_hms(2026, 3, 14, 2, 17, 9).unwrap();
        for (seconds, expected) in [
            (12.3, "since 02:16, 12 s"),
            (240.0, "since 02:13, 4 min 0 s"),
            (3.0 * 3600.0, "since 2026-03-13 23:17, 3 h 0 min"),
        ] {
            assert_eq!(since_at(seconds, now), expected);
        }
        // Longer than there are dates.
        let shown = since_at(f64::MAX, now);
        assert!(shown.starts_with("since 02:17, "), "{shown}");
    }
}
