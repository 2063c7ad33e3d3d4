//! The states that stand on the scoreboard: there, each is a number from 1 in the order given
//! here, and any other number is none.

use std::fmt;

/// What the daemon as a whole does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not every worker has been ready yet.
    Starting = 1,
    /// At work.
    Running,
    /// Replacing its workers one by one, for a new configuration.
    Reloading,
    /// Ending.
    Stopping,
}

impl Phase {
    pub(super) const ALL: &'static [Self] = &[
        Self::Starting,
        Self::Running,
        Self::Reloading,
        Self::Stopping,
    ];

    /// The name that status, log and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Reloading => "reloading",
            Self::Stopping => "stopping",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the supervisor knows of a worker's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceState {
    /// No worker is there; one will be started, perhaps after a back-off.
    Vacant = 1,
    /// The last worker refused its configuration; no other is started before that changes.
    Refused,
    /// Started, and not ready to take work yet.
    Starting,
    /// Takes work.
    Ready,
    /// Finishes what it has in hand, then ends.
    Draining,
}

impl PlaceState {
    pub(super) const ALL: &'static [Self] = &[
        Self::Vacant,
        Self::Refused,
        Self::Starting,
        Self::Ready,
        Self::Draining,
    ];

    /// The name that status, log and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vacant => "restarting",
            Self::Refused => "refused",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for PlaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a process took the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartCause {
    /// It died.
    Died = 1,
    /// It was killed, because a lane had not moved for its chain's timeout and the longest limit of a
    /// call.
    Overdue,
    /// It was killed, because it did not show any more that it was alive.
    Silent,
    /// It was killed, because its forkserver had died.
    Forkserver,
    /// It made way for a fresh one by itself.
    Recycled,
    /// It was replaced in a reload.
    Reloaded,
}

impl RestartCause {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Died,
        Self::Overdue,
        Self::Silent,
        Self::Forkserver,
        Self::Recycled,
        Self::Reloaded,
    ];

    /// The name that figures and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Died => "died",
            Self::Overdue => "overdue",
            Self::Silent => "silent",
            Self::Forkserver => "forkserver",
            Self::Recycled => "recycled",
            Self::Reloaded => "reloaded",
        }
    }
}

/// What a worker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// Returning its predecessor's claims, connecting.
    Starting = 1,
    /// Takes work.
    Ready,
    /// Finishes what it has in hand, then ends.
    Draining,
}

impl WorkerState {
    pub(super) const ALL: &'static [Self] = &[Self::Starting, Self::Ready, Self::Draining];

    /// The name that status, log and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a lane does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneState {
    /// There is nothing to do.
    Idle = 1,
    /// It works on a vCon.
    Busy,
    /// It holds a vCon and waits for a server that is away.
    Waiting,
}

impl LaneState {
    pub(super) const ALL: &'static [Self] = &[Self::Idle, Self::Busy, Self::Waiting];

    /// The name that status, log and documentation use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Waiting => "waiting",
        }
    }
}

impl fmt::Display for LaneState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state a word stands for.
pub(super) fn state<T: Copy>(all: &[T], word: u64) -> Option<T> {
    let index = usize::try_from(word.checked_sub(1)?).ok()?;
    all.get(index).copied()
}
