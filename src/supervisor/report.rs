//! What the supervisor says about its workers, and its regular look after them.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::deaths::suspects;
use super::health::{Health, judge, next_deadline};
use super::notify::Tell;
use super::place::{Phase, Post, State};
use super::{DaemonPhase, Supervisor};
use crate::logging;
use crate::queue::Blame;
use crate::scoreboard::{LaneView, RestartCause, SlotView, is_silent};
use crate::sys;

/// A forkserver that does not answer within this time is as good as dead.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Logs a line for each place.
pub(super) fn log_all(supervisor: &Supervisor) {
    log::info!("{}", summary(supervisor));
    for place in supervisor.places.values() {
        let Some(slot) = place.post.slot() else {
            continue;
        };
        let view = supervisor.board.slot(slot);
        let state = place.shown().state;
        let memory = view.memory().map_or(String::new(), |bytes| {
            format!(", {:.1} MB", bytes as f64 / f64::from(1 << 20))
        });
        let counts = match place.post.worker() {
            Some(_) => format!(
                ": {}; done {}, failed {}",
                doing(&view),
                view.done(),
                view.failed
            ),
            None => String::new(),
        };
        let deaths = place.deaths;
        log::info!("{} {state}{counts}, deaths {deaths}{memory}", place.name());
    }
}

/// What a worker has in hand, in words.
pub(super) fn doing(view: &SlotView) -> String {
    let lanes = view.worker.as_ref().map_or(&[][..], |worker| &worker.lanes);
    if lanes.is_empty() {
        return "idle".to_owned();
    }
    let lanes: Vec<String> = lanes.iter().map(in_hand).collect();
    format!("at work on {}", lanes.join(" and "))
}

fn in_hand(lane: &LaneView) -> String {
    let seconds = sys::monotonic_ms().saturating_sub(lane.since) as f64 / 1e3;
    match lane.vcon {
        Some(vcon) => format!("{vcon} for {seconds:.1} s"),
        None => format!("an entry that is no UUID for {seconds:.1} s"),
    }
}

/// A line for `systemctl status` and for the log.
fn summary(supervisor: &Supervisor) -> String {
    let (mut busy, mut done, mut failed) = (0, 0_u64, 0_u64);
    for slot in supervisor.workers().filter_map(|place| place.post.slot()) {
        let view = supervisor.board.slot(slot);
        busy += view.worker.as_ref().map_or(0, |worker| worker.lanes.len());
        done = done.saturating_add(view.done());
        failed = failed.saturating_add(view.failed);
    }
    let (ready, wanted) = (supervisor.ready_workers(), supervisor.wanted);
    format!(
        "{}: {ready} of {wanted} workers ready, {busy} vCons in work, {done} done, {failed} failed",
        supervisor.phase
    )
}

impl Supervisor {
    /// What is done regularly: the configuration, the health of the children, the watchdog.
    pub(super) fn look_after(&mut self) {
        self.watch.begin();
        logging::report_lost();
        if let Err(error) = self.board.mend() {
            log::error!("{error}");
        }
        self.board.beat();
        if self.stop.is_none() {
            let before = self.followed.generation;
            self.followed.look(&mut self.board);
            if self.followed.generation != before {
                self.forgive_refusals();
            }
        }
        let all_answer = self.check_health();
        self.check_forkserver();
        if all_answer {
            self.notify.tell(Tell::Alive);
        }
        // The supervisor has deadlines of its own for all of these.
        if !self.up || self.phase != DaemonPhase::Running {
            self.notify.tell(Tell::Extend(self.watch.interval() * 4));
        }
        let summary = summary(self);
        self.notify.tell(Tell::Status(&summary));
    }

    /// Kills what hangs. Answers whether every child that should has shown itself.
    fn check_health(&mut self) -> bool {
        let now = sys::monotonic_ms();
        let beat = self.watch.beat();
        let mut sick: Vec<(Post, Health)> = Vec::new();
        for place in self.places.values() {
            let (Some(slot), State::Running { since, phase, .. }) =
                (place.post.slot(), place.state)
            else {
                continue;
            };
            if phase == Phase::Killed {
                continue;
            }
            let Some(worker) = self.board.slot(slot).worker else {
                let excused = self.watch.standstills().since(place.since_ms());
                let silent = since.elapsed().saturating_sub(excused);
                if is_silent(silent, beat) {
                    sick.push((place.post, Health::Silent(silent)));
                }
                continue;
            };
            for lane in self
                .stuck
                .newly(slot, &worker, now, self.watch.standstills())
            {
                let (name, number) = (place.post.name(), lane.number);
                log::warn!(
                    "{name} is stuck: lane {number} is at work on {}",
                    in_hand(&lane)
                );
            }
            match judge(&worker, now, beat, self.watch.standstills()) {
                Health::Good => {
                    if let Some(due) = next_deadline(&worker, self.watch.standstills()) {
                        let wait = Duration::from_millis(due.saturating_sub(now) + 1);
                        self.watch.no_later_than(Instant::now() + wait);
                    }
                }
                health => sick.push((place.post, health)),
            }
        }
        let all_answer = sick.is_empty();
        for (post, health) in sick {
            self.put_down(post, &health);
        }
        all_answer
    }

    fn put_down(&mut self, post: Post, health: &Health) {
        let Some(place) = self.places.get_mut(&post) else {
            return;
        };
        let name = place.name();
        let (cause, blame, end) = match health {
            Health::Good => return,
            Health::Silent(time) => {
                let seconds = time.as_secs_f64();
                log::error!("{name} has not shown itself for {seconds:.0} s and is killed");
                let end = format!("killed after it had not shown itself for {seconds:.0} s");
                let view = post.slot().map(|slot| self.board.slot(slot));
                let worker = view.as_ref().and_then(|view| view.worker.as_ref());
                (RestartCause::Silent, suspects(worker), end)
            }
            Health::Overdue(lane) => {
                let limit = lane.limit.unwrap_or(0) as f64 / 1e3;
                log::error!(
                    "{name} has been at work on {}, longer than {limit} s, which is its chain's timeout and the \
                     longest limit of a call: it is killed",
                    in_hand(lane)
                );
                let end = format!(
                    "killed for not moving on for {limit} s, which is its chain's timeout and the \
                     longest limit of a call"
                );
                let vcon = lane.vcon.map(|vcon| vec![vcon]);
                let blame = Blame::These(vcon.unwrap_or_default());
                (RestartCause::Overdue, blame, end)
            }
        };
        if let Some(pid) = place.pid() {
            place.set_phase(Phase::Killed);
            place.killed_for = Some(cause);
            place.blame(blame, end);
            self.send(pid, Signal::SIGKILL);
        }
    }

    fn check_forkserver(&mut self) {
        let unanswered = self.places.values().any(
            |place| matches!(place.state, State::Asked { since } if since.elapsed() > ANSWER_TIME),
        );
        if let Some(pid) = self.method.forkserver().filter(|_| unanswered) {
            log::error!("The forkserver (PID {pid}) does not answer and is killed");
            sys::kill(pid, Signal::SIGKILL);
        }
    }
}
