//! What a daemon does, in words and numbers, as `conserver status` and the monitor show it.
//!
//! Made from a snapshot of the scoreboard, the configuration in force, and the lengths of the lists. Its fields are
//! the JSON of `status --json` and `/status`.

mod figures;
mod queues;
mod unavailable;

use std::io;
use std::time::Duration;

use indexmap::IndexMap;
use serde::Serialize;

pub use figures::{Figures, fixed, short_time};
pub use queues::{DeadLetterGroupView, GroupCache, ListNames, NO_REASON, Queues, StorageQueue};
pub use unavailable::{
    Hold, LastError, NamedStage, Outage, StageWait, duration, holds, outages, since, waits,
};

use crate::config::Plan;
use crate::queue::{PauseRecord, PauseTarget, Pauses};
use crate::scoreboard::{
    ChildState, LaneState, LaneStep, LaneView, RestartCause, SeriesKind, SlotView, Snapshot,
    WorkerView, is_silent, shown_name,
};
use crate::settings::StartMethod;

/// What the daemon does.
#[derive(Debug, Serialize)]
pub struct View {
    /// `CONSERVER_INSTANCE`
    pub instance: String,
    /// The supervisor.
    pub pid: i32,
    /// Its phase, in a word.
    pub state: String,
    /// The version of the program that looks: the daemon's own, unless its file has been replaced
    /// since it was started.
    pub version: &'static str,
    /// `fork`, `spawn` or `forkserver`.
    pub start_method: String,
    /// How long the supervisor has run.
    pub uptime_seconds: f64,
    /// How many workers the supervisor keeps running.
    pub workers_wanted: u64,
    /// How many are ready to take work.
    pub workers_ready: usize,
    /// `CONSERVER_VCON_CONCURRENCY`
    pub lanes_per_worker: usize,
    /// Every worker's child slot.
    pub workers: Vec<WorkerStatus>,
    /// The monitor, once it has a child slot.
    pub monitor: Option<MonitorStatus>,
    /// For how long Redis has been unavailable to the monitor.
    pub redis_away_seconds: Option<f64>,
    /// Why, as the monitor has found last.
    pub redis_error: Option<String>,
    /// Processes that replaced another, by cause, since the daemon started.
    pub restarts: IndexMap<&'static str, u64>,
    /// Links, storages, egress lists, tracers and hooks that are unavailable, so that chains are on hold.
    pub holds: Vec<Hold>,
    /// Storages with `on_outage: defer` that are unavailable. Their chains go on.
    pub outages: Vec<Outage>,
    /// Links and storages that wait for their budgets, or until their servers want to be asked again.
    pub waits: Vec<StageWait>,
    /// The lists and chains that operators have paused.
    pub paused: Vec<Pause>,
    /// Why these are not known, if they could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_error: Option<String>,
    /// What chains have done.
    pub chains: Vec<Figures>,
    /// What links have done.
    pub links: Vec<Figures>,
    /// What storages have done.
    pub storages: Vec<Figures>,
    /// The lengths of the lists, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<Queues>,
}

/// One worker's child slot.
#[derive(Debug, Serialize)]
pub struct WorkerStatus {
    /// Its number, from 1.
    pub worker: usize,
    /// Its process, if one runs.
    pub pid: Option<i32>,
    /// What it does, in a word.
    pub state: String,
    /// The vCon that a lane has held for the longest time.
    pub vcon: Option<String>,
    /// How long, in seconds.
    pub seconds: Option<f64>,
    /// The lanes that hold a vCon.
    pub lanes: Vec<LaneStatus>,
    /// vCons that came to their end here, halted ones among them, by this worker and its
    /// predecessors.
    pub done: u64,
    /// vCons whose chain a link ended early, likewise.
    pub halted: u64,
    /// vCons that went to a dead letter queue, likewise.
    pub failed: u64,
    /// vCons put back into their lists, likewise.
    pub returned: u64,
    /// Workers that have died here.
    pub restarts: u64,
    /// When the next worker starts, if it backs off.
    pub restart_in_seconds: Option<f64>,
    /// Proportional set size, if the system reports it.
    pub memory_bytes: Option<u64>,
    /// Processor time of it and its predecessors, as of its last beat.
    pub cpu_seconds: f64,
}

/// A lane that holds a vCon.
#[derive(Debug, Serialize)]
pub struct LaneStatus {
    /// Its number, from 1.
    pub lane: u32,
    /// What it does with it, in a word.
    pub state: String,
    /// The vCon; `None` if the entry is not a UUID.
    pub vcon: Option<String>,
    /// How long it has held it.
    pub seconds: f64,
    /// How long it may.
    pub limit_seconds: Option<f64>,
    /// Whether it has held it for longer than `CONSERVER_STUCK_AFTER`.
    pub stuck: bool,
    /// The step of the chain: `load`, `link <name>`, `storages` or `finish`.
    pub step: String,
}

/// The monitor.
#[derive(Debug, Serialize)]
pub struct MonitorStatus {
    /// Its process, if one runs.
    pub pid: Option<i32>,
    /// What it does, in a word.
    pub state: String,
    /// Proportional set size, if the system reports it.
    pub memory_bytes: Option<u64>,
    /// Processor time of it and its predecessors, as of its last beat.
    pub cpu_seconds: f64,
}

impl View {
    /// Makes it. `plan` is the configuration in force, if known.
    pub fn new(snapshot: &Snapshot, plan: Option<&Plan>, queues: Option<Queues>) -> Self {
        let header = &snapshot.header;
        let workers = snapshot.slots.iter().enumerate().skip(1);
        let is_ready = |slot: &SlotView| {
            let place = slot.place.as_ref();
            place.is_some_and(|place| place.state == ChildState::Ready)
        };
        let (redis_away_seconds, redis_error) = unavailable::redis_away(snapshot);
        let (paused, paused_error) = match paused(snapshot) {
            Ok(paused) => (paused, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        Self {
            instance: header.instance.clone(),
            pid: header.pid,
            state: daemon_state(snapshot).to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            start_method: StartMethod::from_number(header.method)
                .map_or("unknown", StartMethod::as_str)
                .to_owned(),
            uptime_seconds: seconds(snapshot.taken, header.started),
            workers_wanted: header.wanted,
            workers_ready: workers.clone().filter(|(_, slot)| is_ready(slot)).count(),
            lanes_per_worker: header.shape.lanes,
            workers: workers
                .filter_map(|(number, slot)| WorkerStatus::new(number, slot, snapshot, plan))
                .collect(),
            monitor: snapshot.slots.first().and_then(MonitorStatus::new),
            redis_away_seconds,
            redis_error,
            restarts: (RestartCause::ALL.iter().zip(header.restarts))
                .map(|(cause, n)| (cause.as_str(), n))
                .collect(),
            holds: holds(snapshot, plan),
            waits: waits(snapshot, plan),
            outages: outages(snapshot, plan),
            paused,
            paused_error,
            chains: figures::of(SeriesKind::Chain, snapshot, plan),
            links: figures::of(SeriesKind::Link, snapshot, plan),
            storages: figures::of(SeriesKind::Storage, snapshot, plan),
            queues,
        }
    }
}

impl View {
    /// Whether the supervisor hangs, so that nobody is replaced or stopped.
    pub fn stands_still(&self) -> bool {
        self.state == NOT_ANSWERING
    }
}

/// The state of a daemon whose supervisor hangs.
const NOT_ANSWERING: &str = "not answering";

fn daemon_state(snapshot: &Snapshot) -> &'static str {
    let header = &snapshot.header;
    let silent = Duration::from_millis(snapshot.taken.saturating_sub(header.beat));
    // The supervisor beats often enough for the shortest limit of silence.
    if is_silent(silent, Duration::ZERO) {
        return NOT_ANSWERING;
    }
    header.phase.map_or("unknown", |phase| phase.as_str())
}

impl WorkerStatus {
    fn new(
        number: usize,
        slot: &SlotView,
        snapshot: &Snapshot,
        plan: Option<&Plan>,
    ) -> Option<Self> {
        let now = snapshot.taken;
        let stuck_after = snapshot.header.stuck_after;
        let place = slot.place.as_ref()?;
        let lanes = slot.worker.as_ref().map_or(&[][..], |worker| &worker.lanes);
        let longest = lanes.iter().min_by_key(|lane| lane.since);
        Some(Self {
            worker: number,
            pid: place.pid,
            state: state(place.state, slot.worker.as_ref(), now, stuck_after),
            vcon: longest
                .and_then(|lane| lane.vcon)
                .map(|vcon| vcon.to_string()),
            seconds: longest.map(|lane| seconds(now, lane.since)),
            lanes: (lanes.iter())
                .map(|lane| LaneStatus::new(lane, now, stuck_after, plan))
                .collect(),
            done: slot.done(),
            halted: slot.halted,
            failed: slot.failed,
            returned: slot.returned,
            restarts: place.deaths,
            restart_in_seconds: place.retry.map(|retry| seconds(retry, now)),
            memory_bytes: slot.memory(),
            cpu_seconds: slot.cpu_us as f64 / 1e6,
        })
    }
}

/// The state of a worker. A ready one is idle, holds chains whose backends are unavailable, is busy, waits for a
/// server, has a lane beyond its chain's timeout (overdue), or works on one vCon for suspiciously long (stuck).
fn state(
    place: ChildState,
    worker: Option<&WorkerView>,
    now: u64,
    stuck_after: Option<u64>,
) -> String {
    let lanes = worker.map_or(&[][..], |worker| &worker.lanes);
    let holds = worker.is_some_and(|worker| worker.held.is_some());
    let overdue = |lane: &LaneView| {
        let limit = lane.limit.unwrap_or(u64::MAX);
        lane.state == LaneState::Busy && now.saturating_sub(lane.since) > limit
    };
    let stuck = |lane: &LaneView| lane.is_stuck(now, stuck_after, Duration::ZERO);
    let waits = |lane: &LaneView| lane.state == LaneState::Waiting;
    match place {
        ChildState::Ready if lanes.is_empty() && holds => "holding",
        ChildState::Ready if lanes.is_empty() => "idle",
        ChildState::Ready if lanes.iter().any(overdue) => "overdue",
        ChildState::Ready if lanes.iter().any(stuck) => "stuck",
        ChildState::Ready if lanes.iter().all(waits) => "waiting",
        ChildState::Ready => "busy",
        other => other.as_str(),
    }
    .to_owned()
}

impl LaneStatus {
    /// What a lane shows at this time. `plan` is the configuration in force, if known.
    pub fn new(lane: &LaneView, now: u64, stuck_after: Option<u64>, plan: Option<&Plan>) -> Self {
        Self {
            lane: lane.number,
            state: lane.state.to_string(),
            vcon: lane.vcon.map(|vcon| vcon.to_string()),
            seconds: seconds(now, lane.since),
            limit_seconds: lane.limit.map(|limit| seconds(limit, 0)),
            stuck: lane.is_stuck(now, stuck_after, Duration::ZERO),
            step: step_name(lane.step, plan),
        }
    }
}

fn step_name(step: LaneStep, plan: Option<&Plan>) -> String {
    match step {
        LaneStep::Load => "load".to_owned(),
        LaneStep::Link(index) => match plan.and_then(|plan| plan.links.get(index)) {
            Some(name) => format!("link {}", shown_name(name)),
            None => format!("link number {}", index + 1),
        },
        LaneStep::Storages => "storages".to_owned(),
        LaneStep::Finish => "finish".to_owned(),
    }
}

impl MonitorStatus {
    fn new(slot: &SlotView) -> Option<Self> {
        let place = slot.place.as_ref()?;
        Some(Self {
            pid: place.pid,
            state: place.state.to_string(),
            memory_bytes: slot.memory(),
            cpu_seconds: slot.cpu_us as f64 / 1e6,
        })
    }
}

/// From milliseconds to seconds; 0 if `then` is in the future.
fn seconds(now: u64, then: u64) -> f64 {
    now.saturating_sub(then) as f64 / 1e3
}

/// A list or chain from which operators let nothing be claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// `list` or `chain`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The time at which it was paused, as in RFC 3339; empty if that is not known.
    pub since: String,
    /// Who paused it, as in `user@host`; empty if that is not known.
    pub by: String,
}

impl Pause {
    /// `list default (by root@db3 since 2026-01-02T03:04:05Z)`, not made fit for people yet.
    pub fn told(&self) -> String {
        let by = format!("by {}", self.by);
        // Seconds are enough to read.
        let time = self
            .since
            .split_once('.')
            .map_or(&*self.since, |(whole, _)| whole);
        let since = format!("since {}Z", time.trim_end_matches('Z'));
        let known = [(&self.by, by), (&self.since, since)];
        let known = known.into_iter().filter(|(text, _)| !text.is_empty());
        let known: Vec<String> = known.map(|(_, told)| told).collect();
        match &known[..] {
            [] => format!("{} {}", self.kind, self.name),
            known => format!("{} {} ({})", self.kind, self.name, known.join(" ")),
        }
    }
}

/// All pauses, as views show them.
pub fn pauses(pauses: &Pauses) -> Vec<Pause> {
    let pause = |(target, record): (&PauseTarget, &PauseRecord)| Pause {
        kind: target.kind(),
        name: target.name().to_owned(),
        since: record.since.clone(),
        by: record.by.clone(),
    };
    pauses.iter().map(pause).collect()
}

/// What operators have paused, as the daemon follows it.
///
/// # Errors
/// It cannot be read: the text says why.
pub fn paused(snapshot: &Snapshot) -> Result<Vec<Pause>, String> {
    let Some(path) = &snapshot.pauses else {
        return Ok(Vec::new());
    };
    match Pauses::load(path) {
        Ok(read) => Ok(pauses(&read)),
        // One that is missing is replaced within a second.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("could not read {}: {error}", path.display())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::scoreboard::{Board, DaemonPhase, Shape};

    #[test]
    fn pauses_that_cannot_be_read_are_not_shown_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
        let mut snapshot = Snapshot::take_own(&board.id().path).unwrap();
        assert_eq!(paused(&snapshot), Ok(Vec::new()), "no monitor has looked");
        let path = folder.path().join("here.pauses");
        snapshot.pauses = Some(path.clone());
        assert_eq!(paused(&snapshot), Ok(Vec::new()), "it is being replaced");
        std::fs::write(&path, "no JSON").unwrap();
        let view = View::new(&snapshot, None, None);
        let error = view.paused_error.unwrap();
        assert!(error.contains("here.pauses"), "{error}");
        std::fs::write(&path, r#"{"list a": {}}"#).unwrap();
        let view = View::new(&snapshot, None, None);
        assert_eq!((view.paused.len(), view.paused_error), (1, None));
    }

    #[test]
    fn a_supervisor_that_hangs_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
        board.set_phase(DaemonPhase::Running);
        let mut snapshot = Snapshot::take_own(&board.id().path).unwrap();
        let view = View::new(&snapshot, None, None);
        assert_eq!((&*view.state, view.stands_still()), ("running", false));
        snapshot.taken += 31_000;
        let view = View::new(&snapshot, None, None);
        assert_eq!((&*view.state, view.stands_still()), ("not answering", true));
    }
}
