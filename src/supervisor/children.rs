//! The children: which processes are wanted, their starts, and what follows from their ends.
//!
//! [`Supervisor::advance`] is one turn from what is known towards what is wanted. What an end means is
//! decided in `restart_policy`, how a process is started in `start_method`.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::child_slot::{ChildSlot, ProcessPhase, Role, SlotState};
use super::housekeeping::work_in_hand;
use super::restart_policy::{EndKind, Lifetime, blame, classify, restart_cause, suspects};
use super::start_method::Started;
use super::{LoopStep, Supervisor};
use crate::child::{Assignment, OrphanedClaims, Task, WorkerTask};
use crate::exit::Exit;
use crate::queue::{ENDED_BEFORE_START, Suspects};
use crate::scoreboard::{RestartCause, WorkerState};
use crate::spelling::counted;
use crate::sys::{self, End};

/// How long a recovery process may take: Redis answers soon, or it is unavailable.
const RECOVERY_TIME: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Takes every step that can be taken now.
    pub(super) fn advance(&mut self) -> LoopStep {
        self.act_on_refusals();
        // What former processes left behind decides which are wanted.
        self.remove_slots();
        self.drain_unwanted();
        self.enforce_deadlines();
        self.enforce_deadline_of_candidate();
        self.make_slots();
        if let Some(exit) = self.is_over() {
            return LoopStep::End(exit);
        }
        if let Some(assignment) = self.start_due() {
            return LoopStep::InChild(Box::new(assignment));
        }
        self.note_progress();
        LoopStep::Wait
    }

    /// Whether this role needs a process.
    pub(super) fn is_wanted(&self, role: Role) -> bool {
        let workers_left = || self.workers().next().is_some();
        match role {
            Role::Worker(number) => {
                self.stop.is_none()
                    && (number <= self.wanted || number <= self.wanted + self.spare())
            }
            // It ends last: as long as there may be claims, this instance holds its name.
            Role::Monitor => self.stop.is_none() || workers_left() || !self.orphaned.is_empty(),
            Role::Recovery => !self.orphaned.is_empty() && (self.stop.is_none() || !workers_left()),
        }
    }

    fn make_slots(&mut self) {
        let workers = (1..=self.wanted + self.spare()).map(Role::Worker);
        for role in workers.chain([Role::Monitor, Role::Recovery]) {
            if !self.children.contains_key(&role) && self.is_wanted(role) {
                let child = ChildSlot::new(role, self.longest_wait(role));
                self.children.insert(role, child);
            }
        }
    }

    /// The longest that the next start in this role may be put off. The monitor renews the lease, which
    /// must not run out meanwhile.
    fn longest_wait(&self, role: Role) -> Duration {
        match role {
            Role::Monitor => self.lease_ttl / 3,
            Role::Worker(_) | Role::Recovery => Duration::MAX,
        }
    }

    /// Removes the slots that nobody wants, and notes the claims that their processes left behind.
    fn remove_slots(&mut self) {
        // With the last worker, the monitor is no longer wanted.
        while self.remove_unwanted() {}
    }

    /// Returns whether there were any.
    fn remove_unwanted(&mut self) -> bool {
        let gone: Vec<Role> = self
            .children
            .values()
            .filter(|child| child.is_empty() && !self.is_wanted(child.role))
            .map(|child| child.role)
            .collect();
        // The daemon that has the instance's name has its claims.
        let displaced = self.is_displaced();
        let is_any = !gone.is_empty();
        for role in gone {
            let child = self.children.remove(&role);
            if let Some(slot) = role.slot() {
                self.board.show_child(slot, None);
            }
            // A worker that never started has nothing of its own to leave.
            if let (Some(worker), Some(child)) = (role.worker(), child)
                && let Some(blame) = child.left.filter(|_| child.starts > 0 && !displaced)
            {
                let end = child.end;
                self.orphaned.push(OrphanedClaims { worker, blame, end });
            }
        }
        is_any
    }

    /// Starts every process that is due. Returns, in a new process, what that does.
    fn start_due(&mut self) -> Option<Assignment> {
        let now = Instant::now();
        let due: Vec<Role> = self
            .children
            .values()
            .filter(|child| child.is_due(now) && self.is_wanted(child.role))
            .filter(|child| !self.is_being_recovered(child.role) && !self.awaits_sweep(child.role))
            .map(|child| child.role)
            .collect();
        for role in due {
            if let Some(assignment) = self.start(role) {
                return Some(assignment);
            }
        }
        None
    }

    /// Whether a recovery process is at work on the claims of this number. Until it has ended, no other
    /// process may hold claims under it.
    fn is_being_recovered(&self, role: Role) -> bool {
        let recovery = self.children.get(&Role::Recovery);
        recovery.is_some_and(|child| {
            let theirs = |left: &OrphanedClaims| Some(left.worker) == role.worker();
            !child.is_empty() && child.recovering.iter().any(theirs)
        })
    }

    /// Whether the sweep at the start could still take claims under this number for those of an
    /// earlier daemon.
    fn awaits_sweep(&self, role: Role) -> bool {
        !self.swept && role.worker() > Some(self.first_workers)
    }

    fn start(&mut self, role: Role) -> Option<Assignment> {
        let task = self.task(role);
        self.generations += 1;
        let assignment = Assignment {
            task,
            generation: self.generations,
            instance: self.instance.clone(),
            supervisor: std::process::id().cast_signed(),
            holder: self.holder.clone(),
            board: self.board.id().clone(),
            config_generation: self.active_config.generation,
            config_file: self.active_config.file().to_owned(),
        };
        let child = self.children.get_mut(&role)?;
        child.generation = assignment.generation;
        child.config_generation = assignment.config_generation;
        child.round = self.round;
        child.starts = child.starts.saturating_add(1);
        child.recovered = false;
        match &assignment.task {
            Task::Recover { orphaned } => child.recovering.clone_from(orphaned),
            Task::Work(task) => {
                child.left = Some(task.predecessor.blame.clone());
                child.sweeps = task.sweep_above.is_some();
            }
            Task::Monitor => {}
        }
        let prepared = match role.slot() {
            Some(slot) => self.board.prepare(slot).map_err(|error| error.to_string()),
            None => Ok(()),
        };
        self.show(role);
        let started = prepared.and_then(|()| {
            let started = self.starter.start(&assignment);
            started.map_err(|error| error.to_string())
        });
        match started {
            Ok(Started::InChild) => return Some(assignment),
            Ok(Started::Running(pid)) => self.note_start(assignment.generation, pid),
            Ok(Started::Requested) => {
                let since = Instant::now();
                if let Some(child) = self.children.get_mut(&role) {
                    child.set(SlotState::Requested { since });
                }
            }
            Err(error) => self.note_failed_start(assignment.generation, &error),
        }
        self.show(role);
        None
    }

    fn task(&mut self, role: Role) -> Task {
        match role {
            Role::Monitor => Task::Monitor,
            Role::Recovery => Task::Recover {
                orphaned: self.orphaned.clone(),
            },
            Role::Worker(worker) => {
                let (mut blame, mut end) = (Suspects::ALL, ENDED_BEFORE_START.to_owned());
                if let Some(child) = self.children.get(&role) {
                    blame = child.left.clone().unwrap_or(Suspects::ALL);
                    end.clone_from(&child.end);
                }
                // This number is in use again: the worker returns what was left under it.
                let mut orphaned = std::mem::take(&mut self.orphaned);
                orphaned.retain(|left| {
                    let same = left.worker == worker;
                    if same {
                        blame = left.blame.clone();
                        end.clone_from(&left.end);
                    }
                    !same
                });
                self.orphaned = orphaned;
                let sweeps = worker == 1 && !self.swept;
                Task::Work(WorkerTask {
                    predecessor: OrphanedClaims { worker, blame, end },
                    sweep_above: sweeps.then_some(self.first_workers),
                })
            }
        }
    }

    /// The process of this generation runs.
    pub(super) fn note_start(&mut self, generation: u64, pid: Pid) {
        let since = Instant::now();
        let mut children = self.children.values_mut();
        let Some(child) = children.find(|child| child.generation == generation) else {
            // Nobody waits for it any more.
            sys::kill(pid, Signal::SIGKILL);
            return;
        };
        let phase = match child.role {
            Role::Recovery => ProcessPhase::Draining {
                until: since + RECOVERY_TIME,
            },
            Role::Worker(_) | Role::Monitor => ProcessPhase::Starting,
        };
        child.set(SlotState::Running { pid, since, phase });
        match (child.role, child.starts) {
            (Role::Recovery, _) => {}
            (role, 1) => log::info!("Started {} (PID {pid})", role.name()),
            (role, _) => log::info!("Restarted {} (new PID {pid})", role.name()),
        }
        let role = child.role;
        self.show(role);
    }

    /// The process of this generation could not be started.
    pub(super) fn note_failed_start(&mut self, generation: u64, error: &str) {
        let stopping = self.stop.is_some();
        let mut children = self.children.values_mut();
        if let Some(child) = children.find(|child| child.generation == generation) {
            if stopping && child.role == Role::Recovery {
                return self.give_up_recovery(error);
            }
            let wait = child.back_off(Lifetime::NONE).as_secs_f64();
            log::error!(
                "{} could not be started, trying again in {wait:.1} s: {error}",
                child.role.name()
            );
            let role = child.role;
            self.show(role);
        }
    }

    /// Reads the scoreboard for children that have become ready.
    pub(super) fn note_readiness(&mut self) {
        let starting: Vec<Role> = self
            .children
            .values()
            .filter(|child| child.phase() == Some(ProcessPhase::Starting))
            .map(|child| child.role)
            .collect();
        for role in starting {
            let Some(slot) = role.slot() else { continue };
            let Some(worker) = self.board.slot(slot).worker else {
                continue;
            };
            let Some(child) = self.children.get_mut(&role) else {
                continue;
            };
            child.recovered |= worker.recovered;
            self.swept |= child.recovered && child.sweeps;
            if worker.state != WorkerState::Starting {
                child.set_phase(ProcessPhase::Ready);
                let name = child.name();
                if let SlotState::Running { since, .. } = child.state {
                    let took = Instant::now().saturating_duration_since(since);
                    log::debug!("{name} is ready after {:.1} ms", took.as_secs_f64() * 1e3);
                }
                self.show(role);
            }
        }
    }

    /// A child process has ended.
    pub(super) fn note_end(&mut self, pid: Pid, end: End) {
        if self.starter.note_end(pid) {
            return self.note_end_of_forkserver(pid, end);
        }
        if self.note_end_of_candidate(pid, end) {
            return;
        }
        let stopping = self.stop.is_some();
        let Some(role) = self.child_of(pid).map(|child| child.role) else {
            // A process of a dead worker, which came to the supervisor as an orphan.
            return log::debug!("PID {pid} has ended: {end}");
        };
        if role == Role::Recovery {
            return self.note_end_of_recovery(end);
        }
        let view = role
            .slot()
            .map(|slot| self.board.slot(slot))
            .unwrap_or_default();
        let Some(child) = self.children.get_mut(&role) else {
            return;
        };
        let SlotState::Running { since, phase, .. } = child.state else {
            return;
        };
        let name = child.name();
        // The monitor refuses settings, which do not change.
        let is_outdated =
            role != Role::Monitor && child.config_generation != self.active_config.generation;
        let kind = classify(phase, end, is_outdated);
        child.recovered |= view.worker.as_ref().is_some_and(|worker| worker.recovered);
        self.swept |= child.recovered && child.sweeps;
        if let Some(blame) = blame(kind, || suspects(view.worker.as_ref())) {
            child.blame(blame, end.to_string());
        }
        child.close(kind == EndKind::Drained);
        let released = view.worker.as_ref().map_or(0, |worker| worker.released);
        let life = Lifetime {
            lived: since.elapsed(),
            useful: released > 0,
        };
        let was_ending = matches!(phase, ProcessPhase::Draining { .. });
        let killed_for = child.killed_for.take();
        let is_wanted = self.is_wanted(role);
        let cause = restart_cause(kind, was_ending, killed_for);
        if let Some(cause) = cause.filter(|_| is_wanted && !stopping) {
            self.board.count_restart(cause);
        }
        let Some(child) = self.children.get_mut(&role) else {
            return;
        };
        match kind {
            EndKind::Drained | EndKind::LeftClaims if stopping || was_ending => {
                child.set(SlotState::Vacant { until: None });
                log::debug!("{name} has drained");
            }
            EndKind::Drained | EndKind::LeftClaims => {
                child.set(SlotState::Vacant { until: None });
                log::info!("{name} has drained by itself, restarting");
            }
            EndKind::Killed if stopping => child.set(SlotState::Vacant { until: None }),
            EndKind::Killed => {
                child.deaths += 1;
                let wait = in_seconds(child.back_off(life));
                log::info!("{name} was killed, restarting{wait}");
            }
            // The monitor has logged why: the settings do not fit Redis.
            EndKind::Refused if role == Role::Monitor => {
                child.set(SlotState::Refused);
                self.orphaned.clear();
                if !stopping {
                    self.show(role);
                    return self.stop(false, Exit::Config);
                }
            }
            EndKind::Refused => {
                child.set(SlotState::Refused);
                log::error!(
                    "{name} cannot work with its configuration (exit code {}); \
                     it is not started again before the configuration changes",
                    Exit::Config.code()
                );
            }
            EndKind::RefusedFormer => {
                child.set(SlotState::Vacant { until: None });
                log::warn!("{name} could not work with the former configuration");
            }
            // It has logged why.
            EndKind::Displaced => {
                child.set(SlotState::Refused);
                self.orphaned.clear();
                if !stopping {
                    self.show(role);
                    return self.stop(false, Exit::Unavailable);
                }
            }
            EndKind::Died => {
                child.deaths += 1;
                let wait = in_seconds(child.back_off(life));
                let lived = life.lived.as_secs_f64();
                let work = work_in_hand(&view);
                if stopping {
                    log::error!("{name} died instead of draining: {end}, {work}");
                } else {
                    log::error!(
                        "{name} died unexpectedly, restarting{wait}: {end}, after {lived:.1} s and {}, {work}",
                        counted(released, "vCon")
                    );
                }
            }
        }
        self.show(role);
    }

    fn note_end_of_recovery(&mut self, end: End) {
        let stopping = self.stop.is_some();
        let Some(child) = self.children.get_mut(&Role::Recovery) else {
            return;
        };
        if end == End::Exited(0) {
            let done = std::mem::take(&mut child.recovering);
            child.set(SlotState::Vacant { until: None });
            self.orphaned
                .retain(|left| !done.iter().any(|done| done.worker == left.worker));
        } else if stopping {
            self.give_up_recovery(&end.to_string());
        } else {
            child.back_off(Lifetime::NONE);
        }
    }

    /// At the end there is no time for another try: the next start makes up for it.
    fn give_up_recovery(&mut self, why: &str) {
        let workers: Vec<String> = self
            .orphaned
            .iter()
            .map(|left| left.worker.to_string())
            .collect();
        log::warn!(
            "could not return the claims of workers {}; the next start will: {why}",
            workers.join(", ")
        );
        if let Some(child) = self.children.get_mut(&Role::Recovery) {
            child.set(SlotState::Vacant { until: None });
        }
        self.orphaned.clear();
    }

    /// The forkserver's children end with it, and the supervisor inherits and reaps them.
    fn note_end_of_forkserver(&mut self, pid: Pid, end: End) {
        if self.stop.is_none() || self.workers().any(|child| !child.is_empty()) {
            log::error!("The forkserver (PID {pid}) died, and its workers with it: {end}");
        }
        let mut unseen = Vec::new();
        for child in self.children.values_mut() {
            match child.state {
                SlotState::Requested { .. } => child.set(SlotState::Vacant { until: None }),
                SlotState::Running { pid, phase, .. } => {
                    let seen = sys::kill(pid, Signal::SIGKILL) && sys::ADOPTS_ORPHANS;
                    // Draining ones too: the supervisor ends them now.
                    if phase != ProcessPhase::Killed && child.role != Role::Recovery {
                        child.set_phase(ProcessPhase::Killed);
                        child.killed_for = Some(RestartCause::Forkserver);
                        child.blame(Suspects::NOBODY, "its forkserver died");
                    }
                    if !seen {
                        unseen.push(pid);
                    }
                }
                SlotState::Vacant { .. } | SlotState::Refused => {}
            }
        }
        for pid in unseen {
            self.note_end(pid, End::Unseen);
        }
    }

    /// Sends a child a signal. If there is no such process, its end went by unseen: without this, its
    /// slot would wait for that forever.
    pub(super) fn send(&mut self, pid: Pid, signal: Signal) {
        if !sys::kill(pid, signal) {
            self.note_end(pid, End::Unseen);
        }
    }

    fn child_of(&mut self, pid: Pid) -> Option<&mut ChildSlot> {
        let mut children = self.children.values_mut();
        children.find(|child| child.pid() == Some(pid))
    }

    /// Shows the state of a slot on the scoreboard.
    pub(super) fn show(&self, role: Role) {
        if let (Some(child), Some(slot)) = (self.children.get(&role), role.slot()) {
            self.board.show_child(slot, Some(child.view()));
        }
    }
}

/// The time before the next start, for the log.
fn in_seconds(wait: Duration) -> String {
    match wait.as_secs_f64() {
        0.0 => String::new(),
        seconds => format!(" in {seconds:.1} s"),
    }
}
