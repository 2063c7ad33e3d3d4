//! One child's place: what is known of the process there, and of the ones before it.
//!
//! ```text
//!          start                       ready                drain
//! vacant ────────► (asked) starting ──────────► ready ─────────────► draining
//!   ▲ ▲                      │ died               │ died                │ ended
//!   │ └── after a back-off ──┴────────────────────┘                     │
//!   ├── at once, where the place is still wanted ───────────────────────┘
//!   └── refused (exit code 78): only when the configuration has changed; the monitor, where
//!       another daemon has our name (75): not again
//! ```

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::restart::{Life, Restarts};
use crate::child::{Leftover, MONITOR_SLOT};
use crate::queue::{Blame, ENDED_BEFORE_START};
use crate::scoreboard::{Place as Shown, PlaceState, RestartCause};
use crate::sys;

/// Whose place it is. Workers come first, so that they are started first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Post {
    /// A worker, by its number.
    Worker(u32),
    /// The monitor.
    Monitor,
    /// The process that returns claims nobody else will.
    Recovery,
}

impl Post {
    /// Its slot on the scoreboard.
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

    /// Its number, where it is a worker's.
    pub fn worker(self) -> Option<u32> {
        match self {
            Self::Worker(number) => Some(number),
            Self::Monitor | Self::Recovery => None,
        }
    }
}

/// One child's place.
#[derive(Debug)]
pub(super) struct Place {
    pub post: Post,
    pub state: State,
    /// Which start the present process is.
    pub generation: u64,
    /// Which round of reloads it was started in.
    pub round: u64,
    pub starts: u32,
    pub deaths: u64,
    pub restarts: Restarts,
    /// Set when claims may have been left behind here that the present process has not returned.
    pub left: Option<Blame>,
    /// Who has the blame for what the present process leaves, where that is known already.
    pub verdict: Option<(Blame, String)>,
    /// Why the present process was killed, where that was not for being late.
    pub killed_for: Option<RestartCause>,
    /// How the last process ended, in words.
    pub end: String,
    /// Whether the present process has returned what was left behind here before it, and so may
    /// hold claims of its own.
    pub recovered: bool,
    /// Whether the present process was also given the sweep of an earlier daemon's claims.
    pub sweeps: bool,
    /// What a recovery process was given to return.
    pub load: Vec<Leftover>,
    since_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No process; the next is due then, or at once.
    Vacant { until: Option<Instant> },
    /// No process, and none will be started before the configuration changes; where another
    /// daemon has our name, none at all.
    Refused,
    /// The forkserver was asked for one.
    Asked { since: Instant },
    /// A process runs.
    Running {
        pid: Pid,
        since: Instant,
        phase: Phase,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Ready,
    Draining {
        until: Instant,
    },
    /// SIGKILL was sent.
    Killed,
}

impl Place {
    /// A place with no process yet. After deaths the next start is put off by at most
    /// `longest_wait`.
    pub fn new(post: Post, longest_wait: Duration) -> Self {
        Self {
            post,
            state: State::Vacant { until: None },
            generation: 0,
            round: 0,
            starts: 0,
            deaths: 0,
            restarts: Restarts::none(longest_wait),
            // An earlier daemon may have left some.
            left: post.worker().map(|_| Blame::ALL),
            verdict: None,
            killed_for: None,
            end: ENDED_BEFORE_START.to_owned(),
            recovered: false,
            sweeps: false,
            load: Vec::new(),
            since_ms: sys::monotonic_ms(),
        }
    }

    pub fn pid(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::Vacant { .. } | State::Refused | State::Asked { .. } => None,
        }
    }

    pub fn phase(&self) -> Option<Phase> {
        match self.state {
            State::Running { phase, .. } => Some(phase),
            State::Vacant { .. } | State::Refused | State::Asked { .. } => None,
        }
    }

    /// Whether there is no process, nor one on its way.
    pub fn is_empty(&self) -> bool {
        matches!(self.state, State::Vacant { .. } | State::Refused)
    }

    pub fn is_ready(&self) -> bool {
        self.phase() == Some(Phase::Ready)
    }

    /// Whether the process is on its way out.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase(), Some(Phase::Draining { .. } | Phase::Killed))
    }

    /// Since when it is as it is, in monotonic milliseconds.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// When a process is to be started, where that is not now.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Vacant { until } => until,
            State::Refused | State::Asked { .. } | State::Running { .. } => None,
        }
    }

    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Vacant { until } if until.is_none_or(|until| until <= now))
    }

    pub fn set(&mut self, state: State) {
        if state != self.state {
            self.state = state;
            self.since_ms = sys::monotonic_ms();
        }
    }

    /// Goes over to another phase of the process that runs.
    pub fn set_phase(&mut self, to: Phase) {
        if let State::Running { pid, since, .. } = self.state {
            self.set(State::Running {
                pid,
                since,
                phase: to,
            });
        }
    }

    /// Says who has the blame for what the present process will have left behind when it has
    /// ended, and how it ended.
    pub fn blame(&mut self, blame: Blame, end: impl Into<String>) {
        self.verdict = Some((blame, end.into()));
    }

    /// Closes the books on a process that has ended; one that has drained has left nothing of its
    /// own. One that had not even returned what was left before it has nothing of its own either:
    /// that keeps its blame.
    pub fn close(&mut self, drained: bool) {
        let verdict = self.verdict.take();
        if drained {
            self.left.take_if(|_| self.recovered);
        } else if let Some((blame, end)) = verdict
            && (self.recovered || self.left.is_none())
        {
            self.left = self.post.worker().map(|_| blame);
            self.end = end;
        }
    }

    /// After a death: waits before the next start, and answers for how long.
    pub fn back_off(&mut self, life: Life) -> Duration {
        let wait = self.restarts.after_death(life, fastrand::f64());
        let until = (!wait.is_zero()).then(|| Instant::now() + wait);
        self.set(State::Vacant { until });
        wait
    }

    /// `Worker-3 (PID 4711)`
    pub fn name(&self) -> String {
        match self.pid() {
            Some(pid) => format!("{} (PID {pid})", self.post.name()),
            None => self.post.name(),
        }
    }

    /// What the scoreboard shows of it.
    pub fn shown(&self) -> Shown {
        let state = match self.state {
            State::Vacant { .. } => PlaceState::Vacant,
            State::Refused => PlaceState::Refused,
            State::Asked { .. } => PlaceState::Starting,
            State::Running { phase, .. } => match phase {
                Phase::Starting => PlaceState::Starting,
                Phase::Ready => PlaceState::Ready,
                Phase::Draining { .. } | Phase::Killed => PlaceState::Draining,
            },
        };
        let retry = self.due().map_or(0, |due| {
            let wait = due.saturating_duration_since(Instant::now());
            sys::monotonic_ms() + u64::try_from(wait.as_millis()).unwrap_or(0)
        });
        Shown {
            generation: self.generation,
            pid: self.pid().map_or(0, Pid::as_raw),
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
            let mut place = Place::new(Post::Worker(1), Duration::MAX);
            (place.left, place.recovered) = (left, recovered);
            place.blame(blame, "");
            place.close(false);
            place.left
        };
        let (all, nobody) = (|| Some(Blame::ALL), || Some(Blame::NOBODY));
        assert_eq!(blamed(nobody(), true, Blame::ALL), all());
        assert_eq!(blamed(nobody(), false, Blame::ALL), nobody());
        assert_eq!(blamed(all(), false, Blame::NOBODY), all());
        assert_eq!(blamed(None, false, Blame::NOBODY), nobody());
        let mut monitor = Place::new(Post::Monitor, Duration::MAX);
        monitor.blame(Blame::ALL, "");
        monitor.close(false);
        assert_eq!(monitor.left, None);
    }
}
