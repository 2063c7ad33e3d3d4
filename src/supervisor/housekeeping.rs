//! Housekeeping: is every child alive, is any lane stuck, what do the log and `systemctl status` say?
//!
//! At least once in each heartbeat interval the supervisor reads what its children show on the
//! scoreboard, kills those that hang, and tells the service manager's watchdog that all is well. Time
//! in which the supervisor itself did not run is nobody's fault (a *pause*): it is excused.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use uuid::Uuid;

use super::Supervisor;
use super::child_slot::{ProcessPhase, Role, SlotState};
use super::notify::Notification;
use super::restart_policy::suspects;
use crate::logging;
use crate::queue::Suspects;
use crate::scoreboard::{
    DaemonPhase, LaneState, LaneView, RestartCause, SlotView, WorkerView, is_silent,
};
use crate::spelling::counted;
use crate::sys;

/// How long a lane may exceed the limit that it shows: what is left of its chain's `timeout` plus the
/// longest limit of a call. Links and storages end a call by themselves, without a death.
const GRACE: Duration = Duration::from_secs(5);

/// The health of a child, judged by what it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum WorkerHealth {
    /// All is well.
    Good,
    /// It has not shown itself for this long.
    Silent(Duration),
    /// This lane has exceeded its limit and the grace.
    Overdue(LaneView),
}

/// Judges a worker at `now`, in monotonic milliseconds.
fn judge(worker: &WorkerView, now: u64, heartbeat: Duration, pauses: &Pauses) -> WorkerHealth {
    let since = |then: u64| {
        Duration::from_millis(now.saturating_sub(then)).saturating_sub(pauses.since(then))
    };
    let silent = since(worker.beat);
    if is_silent(silent, heartbeat) {
        return WorkerHealth::Silent(silent);
    }
    let overdue = worker
        .lanes
        .iter()
        .find(|lane| deadline(lane).is_some_and(|deadline| since(lane.since) > deadline));
    overdue.map_or(WorkerHealth::Good, |lane| {
        WorkerHealth::Overdue(lane.clone())
    })
}

/// When the next lane will be overdue, in monotonic milliseconds.
fn next_deadline(worker: &WorkerView, pauses: &Pauses) -> Option<u64> {
    let at = |lane: &LaneView| {
        let after = deadline(lane)?.saturating_add(pauses.since(lane.since));
        let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Some(lane.since.saturating_add(after))
    };
    worker.lanes.iter().filter_map(at).min()
}

/// How long after its begin a lane's work is overdue.
fn deadline(lane: &LaneView) -> Option<Duration> {
    let limit = lane.limit.filter(|_| lane.state == LaneState::Busy)?;
    Some(Duration::from_millis(limit).saturating_add(GRACE))
}

/// The lanes that work on one vCon for longer than anybody expects: logged once for each vCon.
pub(super) struct StuckLanes {
    after: Option<u64>,
    /// By slot and lane: the vCon that the log has named.
    logged: BTreeMap<(usize, u32), Option<Uuid>>,
}

impl StuckLanes {
    /// A lane is stuck after this time on one vCon; with `None`, never.
    pub fn after(time: Option<Duration>) -> Self {
        Self {
            after: time.map(|time| time.as_millis().try_into().unwrap_or(u64::MAX)),
            logged: BTreeMap::new(),
        }
    }

    /// The stuck lanes of a worker that have not been logged yet.
    pub fn newly(
        &mut self,
        slot: usize,
        worker: &WorkerView,
        now: u64,
        pauses: &Pauses,
    ) -> Vec<LaneView> {
        // A lane that has released its vCon begins anew; one that only waits has not.
        self.logged.retain(|(logged_slot, number), vcon| {
            let is_it = |lane: &LaneView| lane.number == *number && lane.vcon == *vcon;
            *logged_slot != slot || worker.lanes.iter().any(is_it)
        });
        let stuck = worker.lanes.iter().filter(|lane| {
            lane.is_stuck(now, self.after, pauses.since(lane.since))
                && !self.logged.contains_key(&(slot, lane.number))
        });
        let stuck: Vec<LaneView> = stuck.cloned().collect();
        let logged = stuck.iter().map(|lane| ((slot, lane.number), lane.vcon));
        self.logged.extend(logged);
        stuck
    }
}

/// How many pauses are remembered.
const REMEMBERED: usize = 16;

/// When the next housekeeping is due, and in which pauses none was done.
pub(super) struct HousekeepingTimer {
    every: Duration,
    heartbeat: Duration,
    due: Instant,
    pauses: Pauses,
}

/// Times in which the supervisor did not run. Presumably its children did not either: stopped by a
/// debugger, in a frozen control group, on a suspended or overloaded machine. Each stands with its end,
/// in monotonic milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Pauses(Vec<(u64, Duration)>);

impl Pauses {
    /// How much of the time since `then`, in monotonic milliseconds, was a pause.
    pub fn since(&self, then: u64) -> Duration {
        let later = self.0.iter().filter(|(at, _)| *at >= then);
        later.map(|(_, length)| *length).sum()
    }

    /// Notes one that has just ended.
    pub fn note(&mut self, now: u64, length: Duration) {
        if self.0.len() == REMEMBERED {
            self.0.remove(0);
        }
        self.0.push((now, length));
    }
}

impl HousekeepingTimer {
    /// Housekeeping is due once in `every`; children show themselves once in `heartbeat`.
    pub fn every(every: Duration, heartbeat: Duration) -> Self {
        Self {
            every,
            heartbeat,
            due: Instant::now() + every,
            pauses: Pauses::default(),
        }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    pub fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    /// Housekeeping begins. If it is more than a heartbeat late, there was a pause.
    pub fn begin(&mut self) {
        let now = Instant::now();
        let late = now.saturating_duration_since(self.due);
        if late > self.heartbeat {
            self.pauses.note(sys::monotonic_ms(), late);
        }
        self.due = now + self.every;
    }

    /// Makes the next housekeeping due by this time.
    pub fn no_later_than(&mut self, due: Instant) {
        self.due = self.due.min(due);
    }

    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    pub fn interval(&self) -> Duration {
        self.every
    }

    pub fn pauses(&self) -> &Pauses {
        &self.pauses
    }
}

/// A forkserver that does not answer within this time counts as hung.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Logs a line for the daemon and one for each child.
pub(super) fn log_children(supervisor: &Supervisor) {
    log::info!("{}", summary(supervisor));
    for child in supervisor.children.values() {
        let Some(slot) = child.role.slot() else {
            continue;
        };
        let view = supervisor.board.slot(slot);
        let state = child.view().state;
        let memory = view.memory().map_or(String::new(), |bytes| {
            format!(", {:.1} MB", bytes as f64 / f64::from(1 << 20))
        });
        let counts = match child.role.worker() {
            Some(_) => format!(
                ": {}; done {}, failed {}",
                work_in_hand(&view),
                view.done(),
                view.failed
            ),
            None => String::new(),
        };
        let deaths = child.deaths;
        log::info!("{} {state}{counts}, deaths {deaths}{memory}", child.name());
    }
}

/// The vCons that a worker has in hand, in words.
pub(super) fn work_in_hand(view: &SlotView) -> String {
    let lanes = view.worker.as_ref().map_or(&[][..], |worker| &worker.lanes);
    if lanes.is_empty() {
        return "idle".to_owned();
    }
    let lanes: Vec<String> = lanes.iter().map(lane_in_hand).collect();
    format!("at work on {}", lanes.join(" and "))
}

fn lane_in_hand(lane: &LaneView) -> String {
    let seconds = sys::monotonic_ms().saturating_sub(lane.since) as f64 / 1e3;
    match lane.vcon {
        Some(vcon) => format!("{vcon} for {seconds:.1} s"),
        None => format!("an entry that is no UUID for {seconds:.1} s"),
    }
}

/// A line for `systemctl status` and for the log.
fn summary(supervisor: &Supervisor) -> String {
    let (mut busy, mut done, mut failed) = (0, 0_u64, 0_u64);
    for slot in supervisor.workers().filter_map(|child| child.role.slot()) {
        let view = supervisor.board.slot(slot);
        busy += view.worker.as_ref().map_or(0, |worker| worker.lanes.len());
        done = done.saturating_add(view.done());
        failed = failed.saturating_add(view.failed);
    }
    let (ready, wanted) = (supervisor.ready_workers(), supervisor.wanted);
    format!(
        "{}: {ready} of {wanted} workers ready, {} in work, {done} done, {failed} failed",
        supervisor.phase,
        counted(busy, "vCon")
    )
}

impl Supervisor {
    /// Does what is done regularly: the configuration, the health of the children, the watchdog.
    pub(super) fn do_housekeeping(&mut self) {
        self.timer.begin();
        logging::report_lost();
        if let Err(error) = self.board.mend() {
            log::error!("{error}");
        }
        self.board.beat();
        if self.stop.is_none() {
            self.active_config.mend(&self.board);
            if self.active_config.has_changed() {
                self.read_config(false);
            }
        }
        let all_well = self.check_health();
        self.check_forkserver();
        if all_well {
            self.notify.send(Notification::Alive);
        }
        // The supervisor has its own deadlines for start, reload and stop.
        if !self.up || self.phase != DaemonPhase::Running || self.reload_is_waiting() {
            self.notify
                .send(Notification::Extend(self.timer.interval() * 4));
        }
        let summary = summary(self);
        self.notify.send(Notification::Status(&summary));
    }

    /// Kills children that hang. Returns whether there were none.
    fn check_health(&mut self) -> bool {
        let now = sys::monotonic_ms();
        let heartbeat = self.timer.heartbeat();
        let mut hanging: Vec<(Role, WorkerHealth)> = Vec::new();
        for child in self.children.values() {
            let (Some(slot), SlotState::Running { since, phase, .. }) =
                (child.role.slot(), child.state)
            else {
                continue;
            };
            if phase == ProcessPhase::Killed {
                continue;
            }
            let Some(worker) = self.board.slot(slot).worker else {
                let excused = self.timer.pauses().since(child.since_ms());
                let silent = since.elapsed().saturating_sub(excused);
                if is_silent(silent, heartbeat) {
                    hanging.push((child.role, WorkerHealth::Silent(silent)));
                }
                continue;
            };
            for lane in self.stuck.newly(slot, &worker, now, self.timer.pauses()) {
                let (name, number) = (child.role.name(), lane.number);
                log::warn!(
                    "{name} is stuck: lane {number} is at work on {}",
                    lane_in_hand(&lane)
                );
            }
            match judge(&worker, now, heartbeat, self.timer.pauses()) {
                WorkerHealth::Good => {
                    if let Some(due) = next_deadline(&worker, self.timer.pauses()) {
                        let wait = Duration::from_millis(due.saturating_sub(now) + 1);
                        self.timer.no_later_than(Instant::now() + wait);
                    }
                }
                health => hanging.push((child.role, health)),
            }
        }
        let all_well = hanging.is_empty();
        for (role, health) in hanging {
            self.kill_hanging(role, &health);
        }
        all_well
    }

    fn kill_hanging(&mut self, role: Role, health: &WorkerHealth) {
        let Some(child) = self.children.get_mut(&role) else {
            return;
        };
        let name = child.name();
        let (cause, blame, end) = match health {
            WorkerHealth::Good => return,
            WorkerHealth::Silent(time) => {
                let seconds = time.as_secs_f64();
                log::error!("{name} has not shown itself for {seconds:.0} s and is killed");
                let end = format!("killed after it had not shown itself for {seconds:.0} s");
                let view = role.slot().map(|slot| self.board.slot(slot));
                let worker = view.as_ref().and_then(|view| view.worker.as_ref());
                (RestartCause::Silent, suspects(worker), end)
            }
            WorkerHealth::Overdue(lane) => {
                let limit = lane.limit.unwrap_or(0) as f64 / 1e3;
                log::error!(
                    "{name} is killed: lane {} has been at work on {}, longer than its limit of {limit} s \
                     (its chain's timeout and the longest limit of a call)",
                    lane.number,
                    lane_in_hand(lane)
                );
                let end = format!(
                    "killed for exceeding its limit of {limit} s (its chain's timeout and the longest limit \
                     of a call)"
                );
                let vcon = lane.vcon.map(|vcon| vec![vcon]);
                let blame = Suspects::These(vcon.unwrap_or_default());
                (RestartCause::Overdue, blame, end)
            }
        };
        if let Some(pid) = child.pid() {
            child.set_phase(ProcessPhase::Killed);
            child.killed_for = Some(cause);
            child.blame(blame, end);
            self.send(pid, Signal::SIGKILL);
        }
    }

    fn check_forkserver(&mut self) {
        let unanswered = self.children.values().any(
            |child| matches!(child.state, SlotState::Requested { since } if since.elapsed() > ANSWER_TIME),
        );
        if let Some(pid) = self.starter.forkserver().filter(|_| unanswered) {
            log::error!("The forkserver (PID {pid}) does not answer and is killed");
            sys::kill(pid, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scoreboard::{LaneStep, WorkerState};

    const HEARTBEAT: Duration = Duration::from_secs(5);

    fn judge_at(worker: &WorkerView, now: u64) -> WorkerHealth {
        judge(worker, now, HEARTBEAT, &Pauses::default())
    }

    fn worker(beat: u64, lanes: &[(LaneState, u64, Option<u64>)]) -> WorkerView {
        let lane =
            |(number, (state, since, limit)): (u32, &(LaneState, u64, Option<u64>))| LaneView {
                number,
                state: *state,
                vcon: None,
                since: *since,
                limit: *limit,
                step: LaneStep::Load,
                chain: None,
            };
        WorkerView {
            held: None,
            deferring: None,
            waits: false,
            redis_away: None,
            state: WorkerState::Ready,
            memory: None,
            beat,
            recovered: true,
            released: 0,
            lanes: (1..).zip(lanes).map(lane).collect(),
        }
    }

    #[test]
    fn a_lane_is_overdue_after_its_limit_and_the_grace() {
        let lanes = [
            (LaneState::Busy, 1_000, None),
            (LaneState::Busy, 10_000, Some(2_000)),
        ];
        let overdue = |now| judge_at(&worker(now, &lanes), now);
        assert_eq!(overdue(17_000), WorkerHealth::Good);
        assert!(matches!(overdue(17_001), WorkerHealth::Overdue(lane) if lane.number == 2));
        assert_eq!(
            next_deadline(&worker(0, &lanes), &Pauses::default()),
            Some(17_000)
        );
    }

    #[test]
    fn a_lane_that_waits_for_a_server_is_never_overdue() {
        let lanes = [(LaneState::Waiting, 0, Some(1_000))];
        let now = 1_000_000;
        assert_eq!(judge_at(&worker(now, &lanes), now), WorkerHealth::Good);
        assert_eq!(
            next_deadline(&worker(now, &lanes), &Pauses::default()),
            None
        );
    }

    #[test]
    fn a_worker_that_misses_its_heartbeats_is_silent() {
        let health = |now| judge_at(&worker(1_000, &[]), now);
        assert_eq!(health(31_000), WorkerHealth::Good);
        assert_eq!(
            health(31_001),
            WorkerHealth::Silent(Duration::from_millis(30_001))
        );
        let ahead = judge_at(&worker(5_000, &[]), 1_000);
        assert_eq!(ahead, WorkerHealth::Good);
    }

    #[test]
    fn time_in_which_the_machine_stood_still_does_not_count() {
        let lanes = [(LaneState::Busy, 0, Some(1_000))];
        let mut asleep = Pauses::default();
        let now = 3_600_000;
        asleep.note(now, Duration::from_millis(now));
        assert_eq!(
            judge(&worker(0, &lanes), now, HEARTBEAT, &asleep),
            WorkerHealth::Good
        );
    }

    const NOW: u64 = 100_000;

    fn at_work(lanes: &[(u32, LaneState, u128, u64)]) -> WorkerView {
        let lane = |(number, state, vcon, busy): &(u32, LaneState, u128, u64)| LaneView {
            number: *number,
            state: *state,
            vcon: Some(Uuid::from_u128(*vcon)),
            since: NOW - busy,
            limit: None,
            step: LaneStep::Load,
            chain: None,
        };
        WorkerView {
            held: None,
            deferring: None,
            waits: false,
            redis_away: None,
            state: WorkerState::Ready,
            memory: None,
            beat: NOW,
            recovered: true,
            released: 0,
            lanes: lanes.iter().map(lane).collect(),
        }
    }

    fn after(seconds: u64) -> StuckLanes {
        StuckLanes::after(Some(Duration::from_secs(seconds)))
    }

    fn newly(stuck: &mut StuckLanes, slot: usize, worker: &WorkerView) -> Vec<u32> {
        let found = stuck.newly(slot, worker, NOW, &Pauses::default());
        found.iter().map(|lane| lane.number).collect()
    }

    #[test]
    fn a_lane_is_called_stuck_once_for_each_vcon() {
        use LaneState::{Busy, Waiting};
        let mut stuck = after(5);
        let first = at_work(&[
            (1, Busy, 7, 5_001),
            (2, Busy, 8, 5_000),
            (3, Waiting, 9, 90_000),
        ]);
        assert_eq!(newly(&mut stuck, 1, &first), [1]);
        assert_eq!(newly(&mut stuck, 1, &first), [0; 0]);
        assert_eq!(newly(&mut stuck, 2, &first), [1], "another worker");
        let waits = at_work(&[(1, Waiting, 7, 1)]);
        assert_eq!(newly(&mut stuck, 1, &waits), [0; 0]);
        assert_eq!(newly(&mut stuck, 1, &first), [0; 0], "the same vCon");
        let next = at_work(&[(1, Busy, 10, 6_000)]);
        assert_eq!(newly(&mut stuck, 1, &next), [1]);
        assert_eq!(newly(&mut stuck, 1, &at_work(&[])), [0; 0]);
        assert_eq!(newly(&mut stuck, 1, &next), [1], "again after a pause");
    }

    #[test]
    fn nobody_is_stuck_without_a_limit_or_while_the_machine_stood_still() {
        let busy = at_work(&[(1, LaneState::Busy, 7, NOW)]);
        assert_eq!(newly(&mut StuckLanes::after(None), 1, &busy), [0; 0]);
        let mut asleep = Pauses::default();
        asleep.note(NOW, Duration::from_millis(NOW));
        assert!(after(5).newly(1, &busy, NOW, &asleep).is_empty());
    }

    #[test]
    fn only_housekeeping_that_is_late_notes_a_pause() {
        let (every, heartbeat) = (Duration::from_millis(20), Duration::from_millis(20));
        let mut timer = HousekeepingTimer::every(every, heartbeat);
        timer.begin();
        assert_eq!(timer.pauses().since(0), Duration::ZERO);
        std::thread::sleep(every + heartbeat + Duration::from_millis(20));
        assert!(timer.is_due());
        timer.begin();
        assert!(timer.pauses().since(0) >= heartbeat);
    }

    #[test]
    fn pauses_count_for_what_began_before_them() {
        let mut pauses = Pauses::default();
        pauses.note(1_000, Duration::from_secs(1));
        pauses.note(5_000, Duration::from_secs(2));
        let since = |then| pauses.since(then).as_secs();
        assert_eq!([since(500), since(2_000), since(5_001)], [3, 2, 0]);
        for at in 0..100 {
            pauses.note(10_000 + at, Duration::from_secs(1));
        }
        assert_eq!(pauses.since(0).as_secs(), REMEMBERED as u64);
    }
}
