//! How new rows of several lanes go to the server in one statement and one commit.
//!
//! The server spends most of its time for a row on what it does once for each statement. So lanes of a
//! worker that have a new row at the same time share one: the first lane writes for all that wait, in one
//! session, and hands out the results. A lane that comes meanwhile goes with the next statement.
//!
//! ```text
//! lane 1  row ──► write [1] ─────────► done
//! lane 2     row ── waits ──► write [2, 3] ──► done, tells lane 3
//! lane 3       row ── waits ────────────────► done
//! lane 4                         row ── waits for PATIENCE ──► write [4], in another session
//! ```
//!
//! A batch saves time and decides nothing else. Whatever goes wrong with it, each of its lanes saves its
//! row alone, with its own time limit, and reports what comes of that: no vCon is blamed for the row of
//! another. After such a failure lanes save alone for a while, so that a table on which batches fail costs
//! a small part of the time.
//!
//! Knows rows and lanes, not how a row is written.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::statements::NewRow;
use crate::backoff::Backoff;
use crate::deadline::Deadline;

/// How long a lane waits for the batch of another before it writes in another session.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long a batch may take, with its session. It ends the wait of its lanes, which then save alone.
pub(super) const LIMIT: Duration = Duration::from_secs(2);

/// The longest time that a lane spends in the batcher: it waits, and another lane, or itself, waits for a
/// session, connects and writes, each for at least the second that is left when the time is over.
pub(super) const LONGEST_CALL: Duration = Duration::from_secs(6);

/// A row with a longer document goes alone: its document is nearly all that it costs.
const LONGEST: usize = 64 << 10;

/// The most rows of a batch.
const MOST: usize = 64;

/// How many times longer than a batch that failed lanes save alone afterwards.
const SHARE: u32 = 10;

/// The longest time for which lanes save alone after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Joins the new rows of a worker's lanes.
#[derive(Default)]
pub(super) struct Batcher {
    state: Mutex<BatcherState>,
    changed: Condvar,
}

#[derive(Default)]
struct BatcherState {
    /// Rows that no lane has begun to write.
    waiting: Vec<Member>,
    /// Outcomes that their lanes have not taken yet, by the numbers of their rows.
    outcomes: Vec<(u64, Outcome)>,
    /// The lane that writes, by the number of its row. One that takes too long is not waited for any
    /// more, and is not here.
    writer: Option<u64>,
    last: u64,
    /// Until then lanes save alone.
    pause_until: Option<Instant>,
    /// Batches in a row that failed.
    failures: u32,
}

/// A row in a batch, or on its way to one.
struct Member {
    number: u64,
    row: Arc<NewRow>,
    /// How long its lane lets a batch take.
    limit: Duration,
}

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in the table.
    Inserted,
    /// It is not, most likely because the table has one with its id.
    NotInserted,
    /// Nobody has tried, or nobody knows: its lane saves it alone.
    Alone,
}

/// What came of a batch.
pub(super) enum Written {
    /// The rows with these ids are in the table.
    Ids(Vec<Uuid>),
    /// Nobody knows whether a row is.
    Failed,
    /// The session takes no batches.
    Impossible,
}

/// What a lane does next.
pub(super) enum Turn {
    /// It takes this outcome.
    Over(Outcome),
    /// It writes these rows.
    Write(Batch),
}

/// Rows that a lane writes, its own first. The lanes of those that are left when it is dropped save them
/// alone.
pub(super) struct Batch {
    batcher: Arc<Batcher>,
    number: u64,
    begun: Instant,
    members: Vec<Member>,
}

impl Batcher {
    /// Waits until the row is written together with others, or until it is this lane's turn to write.
    pub(super) fn join(self: &Arc<Self>, row: &Arc<NewRow>, deadline: Deadline) -> Turn {
        if row.json.0.len() > LONGEST {
            return Turn::Over(Outcome::Alone);
        }
        let now = Instant::now();
        let mut state = self.lock();
        if state.pause_until.is_some_and(|until| until > now) {
            return Turn::Over(Outcome::Alone);
        }
        state.last += 1;
        let number = state.last;
        state.waiting.push(Member {
            number,
            row: Arc::clone(row),
            limit: deadline.limit(LIMIT),
        });
        let until = now + PATIENCE;
        let own = loop {
            if let Some(outcome) = state.outcome_of(number) {
                return Turn::Over(outcome);
            }
            let Some(index) = state.waiting.iter().position(|it| it.number == number) else {
                // It is being written.
                state = self.wait(state);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if state.writer.is_none() || left.is_zero() {
                break state.waiting.remove(index);
            }
            state = self.wait_for(state, left);
        };
        state.writer = Some(number);
        drop(state);
        let mut batch = Batch {
            batcher: Arc::clone(self),
            number,
            begun: now,
            members: vec![own],
        };
        // Lanes that got their outcomes together are about to come again. Those that wait for a processor
        // get one here and join.
        std::thread::yield_now();
        self.lock().fill(&mut batch.members);
        batch.begun = Instant::now();
        Turn::Write(batch)
    }

    fn lock(&self) -> MutexGuard<'_, BatcherState> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, BatcherState>) -> MutexGuard<'a, BatcherState> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(
        &self,
        state: MutexGuard<'a, BatcherState>,
        time: Duration,
    ) -> MutexGuard<'a, BatcherState> {
        self.changed
            .wait_timeout(state, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

impl BatcherState {
    fn outcome_of(&mut self, number: u64) -> Option<Outcome> {
        let index = self.outcomes.iter().position(|(it, _)| *it == number)?;
        Some(self.outcomes.swap_remove(index).1)
    }

    /// Takes rows that wait into the batch. Two with one id are never in the same one: the second waits for
    /// the next, which finds the first in the table.
    fn fill(&mut self, members: &mut Vec<Member>) {
        let mut index = 0;
        while index < self.waiting.len() && members.len() < MOST {
            let id = self.waiting[index].row.id;
            if members.iter().any(|member| member.row.id == id) {
                index += 1;
            } else {
                members.push(self.waiting.remove(index));
            }
        }
    }

    fn note_success(&mut self) {
        (self.failures, self.pause_until) = (0, None);
    }

    /// From now on, lanes save alone for a while: those that wait as well.
    fn note_failure(&mut self, first_pause: Duration) {
        let mut backoff = Backoff::new(first_pause, LONGEST_PAUSE).after(self.failures);
        self.pause_until = Some(Instant::now() + backoff.next_wait());
        self.failures = backoff.failures();
        let waiting = self.waiting.drain(..);
        let alone = waiting.map(|member| (member.number, Outcome::Alone));
        self.outcomes.extend(alone);
    }
}

impl Batch {
    /// Whether it is the lane's own row alone.
    pub(super) fn is_of_one(&self) -> bool {
        self.members.len() == 1
    }

    /// How long it may take: no longer than each of its lanes allows.
    pub(super) fn limit(&self) -> Duration {
        let limits = self.members.iter().map(|member| member.limit);
        limits.min().unwrap_or(LIMIT)
    }

    /// Its rows in the order of their ids. All batches of all workers lock their rows in that order, so
    /// none waits for another that waits for it.
    pub(super) fn rows(&self) -> Vec<Arc<NewRow>> {
        let rows = self.members.iter().map(|member| Arc::clone(&member.row));
        let mut rows: Vec<_> = rows.collect();
        rows.sort_unstable_by_key(|row| row.id);
        rows
    }

    /// Tells each lane what came of its row, and returns what came of the lane's own.
    pub(super) fn end(mut self, written: &Written) -> Outcome {
        let is_written = |member: &Member, ids: &[Uuid]| {
            // A trigger may give rows other ids.
            ids.len() == self.members.len() || ids.contains(&member.row.id)
        };
        let outcomes: Vec<(u64, Outcome)> = self
            .members
            .iter()
            .map(|member| {
                let outcome = match written {
                    Written::Ids(ids) if is_written(member, ids) => Outcome::Inserted,
                    Written::Ids(_) => Outcome::NotInserted,
                    Written::Failed | Written::Impossible => Outcome::Alone,
                };
                (member.number, outcome)
            })
            .collect();
        self.members.clear();
        let own = outcomes.first().map_or(Outcome::Alone, |(_, own)| *own);
        let mut state = self.batcher.lock();
        match written {
            Written::Ids(_) => state.note_success(),
            Written::Failed => state.note_failure(self.begun.elapsed() * SHARE),
            Written::Impossible => state.note_failure(LONGEST_PAUSE),
        }
        state.outcomes.extend(outcomes.into_iter().skip(1));
        drop(state);
        own
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut state = self.batcher.lock();
        let left = self.members.drain(..).skip(1);
        let alone = left.map(|member| (member.number, Outcome::Alone));
        state.outcomes.extend(alone);
        if state.writer == Some(self.number) {
            state.writer = None;
        }
        // A notification is a system call even if no lane waits.
        if !state.outcomes.is_empty() || !state.waiting.is_empty() {
            self.batcher.changed.notify_all();
        }
    }
}
