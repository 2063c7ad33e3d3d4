//! A lane's turn at one vCon, as the scoreboard shows it, with its waits.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::outage::Draining;
use crate::deadline::Deadline;
use crate::scoreboard::LaneCell;
use crate::vcon::VconId;

/// A limit of nothing would be shown as none.
const MOMENT: Duration = Duration::from_millis(1);

/// What a lane has in hand. While it waits for a server that is away, no time limit runs; with
/// the next attempt, the limit starts again.
pub(super) struct Turn<'a> {
    drain: &'a Receiver<()>,
    cell: Option<&'a LaneCell>,
    work: Option<Work>,
    ended: Cell<bool>,
    drain_end: Cell<Option<Instant>>,
}

struct Work {
    id: Option<VconId>,
    /// The chain's timeout.
    limit: Option<Duration>,
    /// The longest limit of a call of the chain.
    longest: Duration,
    deadline: Cell<Deadline>,
}

impl<'a> Turn<'a> {
    /// Nothing in hand.
    pub fn idle(drain: &'a Receiver<()>, cell: Option<&'a LaneCell>) -> Self {
        Self {
            drain,
            cell,
            work: None,
            ended: Cell::new(false),
            drain_end: Cell::new(None),
        }
    }

    /// Works on a vCon from now on, for `limit`; a call that has begun by then may take `longest`.
    pub fn at(
        drain: &'a Receiver<()>,
        cell: &'a LaneCell,
        id: Option<VconId>,
        limit: Option<Duration>,
        longest: Duration,
    ) -> Self {
        let work = Some(Work {
            id,
            limit,
            longest,
            deadline: Cell::new(Deadline::NONE),
        });
        let this = Self {
            drain,
            cell: Some(cell),
            work,
            ended: Cell::new(false),
            drain_end: Cell::new(None),
        };
        this.resume();
        this
    }

    /// The channel that is disconnected when the worker drains.
    pub fn drain(&self) -> &'a Receiver<()> {
        self.drain
    }

    /// When work that is still going on must have ended, once it has noticed the drain.
    pub fn drain_end(&self) -> &Cell<Option<Instant>> {
        &self.drain_end
    }

    /// By when the work must be done.
    pub fn deadline(&self) -> Deadline {
        let work = self.work.as_ref();
        work.map_or(Deadline::NONE, |work| work.deadline.get())
    }

    /// The next call begins. The deadline ends calls and not the work: after it, each shows that the
    /// lane moves.
    pub fn step(&self) {
        if self.deadline().left() == Some(Duration::ZERO) {
            self.show(Some(MOMENT));
        }
    }

    /// Waits; ends early when the worker drains.
    pub fn wait(&self, time: Duration) -> Result<(), Draining> {
        self.pause();
        let waited = self.drain.recv_timeout(time);
        self.resume();
        match waited {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Draining),
        }
    }

    /// Whether the worker drains.
    pub fn is_draining(&self) -> bool {
        self.drain.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits, whatever happens.
    pub fn insist(&self, time: Duration) {
        self.pause();
        thread::sleep(time);
        self.resume();
    }

    /// No time limit runs from now on, and what is in hand is not to blame for anything.
    pub fn pause(&self) {
        if let (Some(cell), Some(work)) = (self.cell, &self.work) {
            cell.waiting(work.id.as_ref());
        }
    }

    /// The work is done: what is in hand is only to be let go of, and no time limit runs any more.
    pub fn end(&self) {
        self.ended.set(true);
        self.pause();
    }

    fn resume(&self) {
        if self.ended.get() {
            return;
        }
        if let Some(work) = &self.work {
            work.deadline.set(Deadline::after(work.limit));
            self.show(work.limit);
        }
    }

    /// Shows that the lane moves, and must do so again when what is left, and a call, are over.
    fn show(&self, left: Option<Duration>) {
        if let (Some(cell), Some(work)) = (self.cell, &self.work) {
            let limit = left.map(|left| left.saturating_add(work.longest));
            cell.busy(work.id.as_ref(), limit);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let (Some(cell), Some(_)) = (self.cell, &self.work) {
            cell.idle();
        }
    }
}
