//! The rolling restart: every worker is replaced, one by one, after SIGHUP.
//!
//! ```text
//! N old ─► one new beside them ─ready─► one old drains ─► its number is started anew ─ready─► …
//! ```
//!
//! The number of a worker is free only when the worker has ended: a successor returns the claims of
//! its predecessor, and must not take them from a process that still works on them. So the first new
//! worker (the *spare*) gets the number above the highest wanted one, and is drained last.
//!
//! An old worker that is ready drains only while enough others are ready. The others drain at once:
//! nobody misses them.
//!
//! A new worker that refuses the configuration ends the rolling restart: the other old workers stay.
//! If its number is a wanted one, the spare stays in its place.

use std::collections::BTreeMap;

use super::child_slot::{ChildSlot, Role, SlotState};
use super::notify::Notification;
use super::{MOST_WORKERS, Supervisor};
use crate::exit::Exit;
use crate::scoreboard::{DaemonPhase, ReloadState};

/// A worker, as far as a rolling restart needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RollingWorker {
    /// Its number.
    number: u32,
    /// Whether it was started before the reload.
    outdated: bool,
    /// Whether it takes work.
    ready: bool,
    /// Whether it drains.
    draining: bool,
}

/// The next step of a rolling restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RollingStep {
    /// A worker is still on its way: starting, draining, or about to be started.
    Wait,
    /// Drain this one.
    Drain(u32),
    /// No old worker is left.
    Done,
}

/// Decides on the next step of a rolling restart that keeps `wanted` workers running.
fn next_step(workers: &[RollingWorker], wanted: u32) -> RollingStep {
    let old = workers.iter().filter(|worker| worker.outdated);
    let ready = workers.iter().filter(|w| w.ready && !w.draining);
    let Some(next) = old
        .clone()
        .filter(|worker| !worker.draining)
        .min_by_key(|w| w.number)
    else {
        let in_place = ready.filter(|worker| worker.number <= wanted).count();
        let done = old.count() == 0 && in_place >= wanted as usize;
        return if done {
            RollingStep::Done
        } else {
            RollingStep::Wait
        };
    };
    if !next.ready || ready.count() > wanted as usize {
        RollingStep::Drain(next.number)
    } else {
        RollingStep::Wait
    }
}

/// Whether the spare is needed although no rolling restart is in progress: a worker with a wanted number
/// refuses the configuration, and the spare, which has been started, does not. One that stands in already
/// does so until all workers with wanted numbers are ready.
fn spare_stands_in(children: &BTreeMap<Role, ChildSlot>, wanted: u32, stands_in: bool) -> bool {
    let refuses = |child: &ChildSlot| child.state == SlotState::Refused;
    let spare = children.get(&Role::Worker(wanted + 1));
    let mut in_place = children.range(..=Role::Worker(wanted)).map(|(_, it)| it);
    spare.is_some_and(|child| child.starts > 0 && !refuses(child))
        && in_place.any(|child| refuses(child) || (stands_in && !child.is_ready()))
}

impl Supervisor {
    /// Reads the configuration again, and replaces the workers when it is in force.
    pub(super) fn reload(&mut self) {
        if self.stop.is_some() {
            return;
        }
        self.board.begin_reload();
        // Before the daemon is up, the service manager waits for its start.
        if self.up {
            self.notify.send(Notification::Reloading);
        }
        self.read_config(true);
    }

    /// The workers that run now are outdated.
    pub(super) fn begin_rolling_restart(&mut self) {
        self.round += 1;
        self.reloading = true;
        self.set_phase(DaemonPhase::Reloading);
        log::info!("Replacing the workers one by one");
    }

    /// A new configuration gives workers that refused the former one another chance.
    pub(super) fn forgive_refusals(&mut self) {
        for child in self.children.values_mut() {
            if child.state == SlotState::Refused {
                child.set(SlotState::Vacant { until: None });
            }
        }
    }

    /// Decides whether the spare of a rolling restart that was given up is still needed.
    fn note_spare(&mut self) {
        self.spare_stands_in = spare_stands_in(&self.children, self.wanted, self.spare_stands_in);
    }

    /// How many workers there are beside the wanted ones: the spare of a rolling restart, or none.
    pub(super) fn spare(&self) -> u32 {
        u32::from(self.reloading || self.spare_stands_in)
    }

    /// Goes on with a rolling restart, and notes when the daemon runs as it should.
    pub(super) fn note_progress(&mut self) {
        if self.stop.is_some() {
            return;
        }
        let started = self.workers().filter(|child| child.pid().is_some()).count();
        if !self.all_started && started >= self.wanted as usize {
            self.all_started = true;
            log::info!("All {started} workers started");
        }
        if self.reloading {
            let workers: Vec<RollingWorker> = self
                .workers()
                .filter_map(|child| self.rolling_worker(child))
                .collect();
            match next_step(&workers, self.wanted) {
                RollingStep::Wait => {}
                RollingStep::Drain(number) => self.drain(Role::Worker(number)),
                RollingStep::Done => {
                    self.reloading = false;
                    log::info!("All workers are replaced");
                    self.show_reload_end(ReloadState::Done);
                    self.note_running();
                    self.drain_unwanted();
                }
            }
        } else if self.phase == DaemonPhase::Starting
            && self.ready_workers() >= self.wanted as usize
        {
            log::info!("All {} workers ready", self.wanted);
            self.note_running();
        }
    }

    fn rolling_worker(&self, child: &ChildSlot) -> Option<RollingWorker> {
        Some(RollingWorker {
            number: child.role.worker().filter(|_| !child.is_empty())?,
            outdated: child.round < self.round,
            ready: child.is_ready(),
            draining: child.is_ending(),
        })
    }

    fn note_running(&mut self) {
        let has_started = !std::mem::replace(&mut self.up, true);
        self.set_phase(DaemonPhase::Running);
        let reloads = self.reload_is_waiting();
        if has_started || !reloads {
            self.notify.send(Notification::Ready);
        }
        // It could not be told before the daemon was up.
        if has_started && reloads {
            self.notify.send(Notification::Reloading);
        }
    }

    /// A worker that refuses the configuration ends a rolling restart, whose spare may stand in for it; if all
    /// refuse it, the daemon stops.
    pub(super) fn act_on_refusals(&mut self) {
        let refuses = |child: &&ChildSlot| child.state == SlotState::Refused;
        let refusing = self.workers().find(refuses).map(|child| child.role);
        let refusing = refusing.filter(|_| self.stop.is_none());
        if let Some(role) = refusing
            && self.reloading
        {
            let name = role.name();
            log::error!("The workers are not replaced: {name} cannot work with the configuration");
            self.give_up_reload();
        }
        self.note_spare();
        let wanted = || self.workers().filter(|child| self.is_wanted(child.role));
        if refusing.is_some() && wanted().all(|child| refuses(&child)) {
            log::error!("No worker can work with the configuration");
            self.stop(false, Exit::Config);
        }
    }

    /// Shows what has become of this rolling restart, unless another reload has been asked for since it began: what is
    /// shown would count for that one, whose configuration is still being tried.
    fn show_reload_end(&mut self, state: ReloadState) {
        if !self.reload_is_waiting() {
            self.board.set_reload_state(state);
        }
    }

    /// The remaining workers are not replaced.
    fn give_up_reload(&mut self) {
        self.reloading = false;
        self.show_reload_end(ReloadState::GivenUp);
        for child in self.children.values_mut() {
            child.round = self.round;
        }
        if self.up {
            self.note_running();
        } else {
            self.set_phase(DaemonPhase::Starting);
        }
    }

    /// Changes the number of workers if an operator asks for that. The request stands on the scoreboard, where only
    /// this user and root can write.
    pub(super) fn take_request(&mut self) {
        if let Some(wanted) = self.board.take_requested_workers() {
            log::info!("An operator asks for {wanted} workers");
            self.scale(wanted);
        }
    }

    /// Changes the number of workers.
    pub(super) fn scale(&mut self, wanted: u32) {
        let wanted = wanted.clamp(1, MOST_WORKERS);
        if wanted == self.wanted {
            log::warn!(
                "The number of workers must be between 1 and {MOST_WORKERS}: keeping {wanted}"
            );
        } else {
            log::info!(
                "Changing the number of workers from {} to {wanted}",
                self.wanted
            );
            self.wanted = wanted;
            self.board.set_wanted(wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn worker(number: u32, state: &str) -> RollingWorker {
        RollingWorker {
            number,
            outdated: state.starts_with("old"),
            ready: !state.ends_with("starting"),
            draining: state.ends_with("draining"),
        }
    }

    fn step(states: &[&str], wanted: u32) -> RollingStep {
        let workers: Vec<_> = (1..).zip(states).map(|(n, s)| worker(n, s)).collect();
        next_step(&workers, wanted)
    }

    #[test]
    fn an_old_worker_drains_only_when_a_new_one_is_ready_beside_all() {
        use RollingStep::{Done, Drain, Wait};
        assert_eq!(step(&["old", "old"], 2), Wait);
        assert_eq!(step(&["old", "old", "new starting"], 2), Wait);
        assert_eq!(step(&["old", "old", "new"], 2), Drain(1));
        assert_eq!(step(&["old draining", "old", "new"], 2), Wait);
        assert_eq!(step(&["new starting", "old", "new"], 2), Wait);
        assert_eq!(step(&["new", "old", "new"], 2), Drain(2));
        assert_eq!(step(&["new", "old draining", "new"], 2), Wait);
        assert_eq!(step(&["new", "new starting", "new"], 2), Wait);
        assert_eq!(step(&["new", "new", "new"], 2), Done);
    }

    #[test]
    fn an_old_worker_that_is_not_ready_drains_at_once() {
        assert_eq!(step(&["old starting", "old"], 2), RollingStep::Drain(1));
    }

    #[test]
    fn a_spare_stands_in_only_for_a_worker_that_refuses() {
        let (vacant, refused) = (SlotState::Vacant { until: None }, SlotState::Refused);
        for (states, expected) in [
            (&[(refused, 1), (vacant, 1), (vacant, 1)][..], true),
            (&[(vacant, 1), (refused, 1), (vacant, 1)], true),
            (&[(vacant, 1), (vacant, 1), (vacant, 1)], false),
            (&[(refused, 1), (vacant, 1), (refused, 1)], false),
            (&[(refused, 1), (vacant, 1), (vacant, 0)], false),
            (&[(refused, 1), (vacant, 1)], false),
        ] {
            let child = |(number, (state, starts)): (u32, &(SlotState, u32))| {
                let mut child = ChildSlot::new(Role::Worker(number), Duration::MAX);
                (child.state, child.starts) = (*state, *starts);
                (child.role, child)
            };
            let children = (1..).zip(states).map(child).collect();
            assert_eq!(spare_stands_in(&children, 2, false), expected, "{states:?}");
        }
    }

    #[test]
    fn a_spare_that_stands_in_does_so_until_the_others_are_ready() {
        let slot = |number| {
            let mut child = ChildSlot::new(Role::Worker(number), Duration::MAX);
            child.starts = 1;
            (child.role, child)
        };
        // The configuration was mended: the worker that refused it is to be started again.
        let mut children: BTreeMap<_, _> = (1..=2).map(slot).collect();
        assert!(spare_stands_in(&children, 1, true));
        children.remove(&Role::Worker(2));
        assert!(!spare_stands_in(&children, 1, true));
    }
}
