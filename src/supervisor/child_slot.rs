//! The slot of one child: its role, the state of its process, and what is known of those before it.
//!
//! ```text
//!          start                            ready             drain
//! vacant ────────► (requested) starting ──────────► ready ────────────► draining
//!   ▲ ▲                           │ died              │ died               │ ended
//!   │ └── after a back-off ───────┴───────────────────┘                    │
//!   ├── at once, if a process is still wanted ─────────────────────────────┘
//!   └── refused (exit code 78): only when the configuration has changed; the monitor, if another
//!       daemon has this one's name (75): never
//! ```

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::restart_policy::{Lifetime, RestartBackoff};
use crate::child::{MONITOR_SLOT, OrphanedClaims};
use crate::queue::{ENDED_BEFORE_START, Suspects};
use crate::scoreboard::{ChildState, ChildView, RestartCause};
use crate::sys;

/// What a child is for. Workers come first, so that they are started first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// A worker, by its number.
    Worker(u32),
    /// The monitor.
    Monitor,
    /// The process that returns claims that no other process will.
    Recovery,
}

impl Role {
    /// The number of its slot on the scoreboard.
    pub fn slot(self) -> Option<usize> {
        match self {
            Self::Worker(number) => usize::try_from(number).ok(),
            Self::Monitor => Some(MONITOR_SLOT),
            Self::Recovery => None,
        }
    }

    /// The name in the log.
    pub fn name(self) -> String {
        match self {
            Self::Worker(number) => format!("Worker-{number}"),
            Self::Monitor => "Monitor".to_owned(),
            Self::Recovery => "Recovery".to_owned(),
        }
    }

    /// The number of a worker.
    pub fn worker(self) -> Option<u32> {
        match self {
            Self::Worker(number) => Some(number),
            Self::Monitor | Self::Recovery => None,
        }
    }
}

/// The slot of one child.
#[derive(Debug)]
pub(super) struct ChildSlot {
    pub role: Role,
    pub state: SlotState,
    /// Which start the present process is.
    pub generation: u64,
    /// The number of the configuration in force when it was started.
    pub config_generation: u64,
    /// Which round of reloads it was started in.
    pub round: u64,
    pub starts: u32,
    pub deaths: u64,
    pub backoff: RestartBackoff,
    /// Set if former processes may have left claims behind that the present one has not returned: the
    /// vCons that are suspects in those.
    pub left: Option<Suspects>,
    /// The suspects among what the present process leaves behind, and how it ended, if the supervisor
    /// knows before the end.
    pub verdict: Option<(Suspects, String)>,
    /// Why the present process was killed, if not for being late.
    pub killed_for: Option<RestartCause>,
    /// How the last process ended, in words.
    pub end: String,
    /// Whether the present process has returned what was left behind here before it, and so may
    /// hold claims of its own.
    pub recovered: bool,
    /// Whether the present process was also given the sweep of an earlier daemon's claims.
    pub sweeps: bool,
    /// What a recovery process was given to return.
    pub recovering: Vec<OrphanedClaims>,
    since_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    /// No process; the next is due at this time, or at once.
    Vacant { until: Option<Instant> },
    /// No process, and none will be started before the configuration changes; if another daemon has
    /// this one's name, none at all.
    Refused,
    /// The forkserver was asked for one.
    Requested { since: Instant },
    /// A process runs.
    Running {
        pid: Pid,
        since: Instant,
        phase: ProcessPhase,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessPhase {
    Starting,
    Ready,
    Draining {
        until: Instant,
    },
    /// SIGKILL was sent.
    Killed,
}

impl ChildSlot {
    /// A slot with no process yet. After deaths the next start is put off by at most `longest_wait`.
    pub fn new(role: Role, longest_wait: Duration) -> Self {
        Self {
            role,
            state: SlotState::Vacant { until: None },
            generation: 0,
            config_generation: 0,
            round: 0,
            starts: 0,
            deaths: 0,
            backoff: RestartBackoff::none(longest_wait),
            // An earlier daemon may have left some.
            left: role.worker().map(|_| Suspects::ALL),
            verdict: None,
            killed_for: None,
            end: ENDED_BEFORE_START.to_owned(),
            recovered: false,
            sweeps: false,
            recovering: Vec::new(),
            since_ms: sys::monotonic_ms(),
        }
    }

    pub fn pid(&self) -> Option<Pid> {
        match self.state {
            SlotState::Running { pid, .. } => Some(pid),
            SlotState::Vacant { .. } | SlotState::Refused | SlotState::Requested { .. } => None,
        }
    }

    pub fn phase(&self) -> Option<ProcessPhase> {
        match self.state {
            SlotState::Running { phase, .. } => Some(phase),
            SlotState::Vacant { .. } | SlotState::Refused | SlotState::Requested { .. } => None,
        }
    }

    /// Whether there is no process, nor one requested.
    pub fn is_empty(&self) -> bool {
        matches!(self.state, SlotState::Vacant { .. } | SlotState::Refused)
    }

    pub fn is_ready(&self) -> bool {
        self.phase() == Some(ProcessPhase::Ready)
    }

    /// Whether the process is on its way out.
    pub fn is_ending(&self) -> bool {
        matches!(
            self.phase(),
            Some(ProcessPhase::Draining { .. } | ProcessPhase::Killed)
        )
    }

    /// Since when it is as it is, in monotonic milliseconds.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// When the next process is started, if that is not now.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            SlotState::Vacant { until } => until,
            SlotState::Refused | SlotState::Requested { .. } | SlotState::Running { .. } => None,
        }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, SlotState::Vacant { until } if until.is_none_or(|until| until <= now))
    }

    pub fn set(&mut self, state: SlotState) {
        if state != self.state {
            self.state = state;
            self.since_ms = sys::monotonic_ms();
        }
    }

    /// Moves the process that runs to another phase.
    pub fn set_phase(&mut self, to: ProcessPhase) {
        if let SlotState::Running { pid, since, .. } = self.state {
            self.set(SlotState::Running {
                pid,
                since,
                phase: to,
            });
        }
    }

    /// Notes the suspects among what the present process will leave behind, and how it ends.
    pub fn blame(&mut self, blame: Suspects, end: impl Into<String>) {
        self.verdict = Some((blame, end.into()));
    }

    /// Closes the books on a process that has ended. One that drained has left nothing of its own. One
    /// that had not even returned its predecessors' claims has none of its own either, and their
    /// suspects stay.
    pub fn close(&mut self, drained: bool) {
        let verdict = self.verdict.take();
        if drained {
            self.left.take_if(|_| self.recovered);
        } else if let Some((blame, end)) = verdict
            && (self.recovered || self.left.is_none())
        {
            self.left = self.role.worker().map(|_| blame);
            self.end = end;
        }
    }

    /// After a death: puts the next start off, and returns for how long.
    pub fn back_off(&mut self, life: Lifetime) -> Duration {
        let wait = self.backoff.after_death(life, fastrand::f64());
        let until = (!wait.is_zero()).then(|| Instant::now() + wait);
        self.set(SlotState::Vacant { until });
        wait
    }

    /// `Worker-3 (PID 4711)`
    pub fn name(&self) -> String {
        match self.pid() {
            Some(pid) => format!("{} (PID {pid})", self.role.name()),
            None => self.role.name(),
        }
    }

    /// What the scoreboard shows of it.
    pub fn view(&self) -> ChildView {
        let state = match self.state {
            SlotState::Vacant { .. } => ChildState::Vacant,
            SlotState::Refused => ChildState::Refused,
            SlotState::Requested { .. } => ChildState::Starting,
            SlotState::Running { phase, .. } => match phase {
                ProcessPhase::Starting => ChildState::Starting,
                ProcessPhase::Ready => ChildState::Ready,
                ProcessPhase::Draining { .. } | ProcessPhase::Killed => ChildState::Draining,
            },
        };
        let retry = self.due().map(|due| {
            let wait = due.saturating_duration_since(Instant::now());
            sys::monotonic_ms() + u64::try_from(wait.as_millis()).unwrap_or(0)
        });
        ChildView {
            generation: self.generation,
            pid: self.pid().map(Pid::as_raw),
            state,
            since: self.since_ms,
            deaths: self.deaths,
            retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blame_is_for_what_a_process_leaves_of_its_own() {
        let blamed = |left, recovered, blame| {
            let mut slot = ChildSlot::new(Role::Worker(1), Duration::MAX);
            (slot.left, slot.recovered) = (left, recovered);
            slot.blame(blame, "");
            slot.close(false);
            slot.left
        };
        let (all, nobody) = (|| Some(Suspects::ALL), || Some(Suspects::NOBODY));
        assert_eq!(blamed(nobody(), true, Suspects::ALL), all());
        assert_eq!(blamed(nobody(), false, Suspects::ALL), nobody());
        assert_eq!(blamed(all(), false, Suspects::NOBODY), all());
        assert_eq!(blamed(None, false, Suspects::NOBODY), nobody());
        let mut monitor = ChildSlot::new(Role::Monitor, Duration::MAX);
        monitor.blame(Suspects::ALL, "");
        monitor.close(false);
        assert_eq!(monitor.left, None);
    }
}
