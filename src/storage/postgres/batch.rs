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
//! a small part of the time. A lane whose deadline would not leave enough for both saves alone at once.
//!
//! Knows rows and lanes, not how a row is written.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::statements::NewRow;
use crate::backoff::Backoff;
use crate::deadline::Deadline;

/// How long a lane waits for the batch of another before it writes in another session.
///
/// As long as commits cost the server little but its processor, a batch is back sooner, and rows gather. A
/// commit that waits for a disk or a standby takes longer. Then the server waits once for all that commit
/// at the same time, and one batch after the other would get less done than lanes that write alone: with
/// 20 ms, 8 lanes wrote 0.6 times as many rows to a disk that took 15 ms; with 0.5 to 2 ms, as many or more.
const PATIENCE: Duration = Duration::from_millis(2);

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
pub(super) struct Batcher {
    state: Mutex<BatcherState>,
    changed: Condvar,
    patience: Duration,
}

impl Default for Batcher {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            patience: PATIENCE,
        }
    }
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
pub(super) enum Joined {
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
    pub(super) fn join(self: &Arc<Self>, row: &Arc<NewRow>, deadline: Deadline) -> Joined {
        // What a batch takes in vain must leave as much for the lane's own call.
        let is_hurried = deadline.left().is_some_and(|left| left < 2 * LIMIT);
        if is_hurried || row.json.0.len() > LONGEST {
            return Joined::Over(Outcome::Alone);
        }
        let now = Instant::now();
        let mut state = self.lock();
        if state.pause_until.is_some_and(|until| until > now) {
            return Joined::Over(Outcome::Alone);
        }
        state.last += 1;
        let number = state.last;
        state.waiting.push(Member {
            number,
            row: Arc::clone(row),
        });
        let until = now + self.patience;
        let own = loop {
            if let Some(outcome) = state.outcome_of(number) {
                return Joined::Over(outcome);
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
        let mut members = vec![own];
        state.fill(&mut members);
        Joined::Write(Batch {
            batcher: Arc::clone(self),
            number,
            begun: Instant::now(),
            members,
        })
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};
    use std::thread;

    use chrono::NaiveDateTime;

    use super::super::statements::Jsonb;
    use super::*;

    /// Longer than any wait of these tests.
    const LONG: Duration = Duration::from_secs(20);

    /// Its lanes wait as long as it takes.
    fn patient() -> Arc<Batcher> {
        Arc::new(Batcher {
            patience: LONG,
            ..Batcher::default()
        })
    }

    fn row_of(id: Uuid, length: usize) -> Arc<NewRow> {
        Arc::new(NewRow {
            id,
            version: "0.4.0",
            created_at: NaiveDateTime::default(),
            subject: None,
            json: Jsonb(Arc::new("x".repeat(length))),
        })
    }

    fn row() -> Arc<NewRow> {
        row_of(Uuid::new_v4(), 10)
    }

    fn ids(rows: &[Arc<NewRow>]) -> Vec<Uuid> {
        rows.iter().map(|row| row.id).collect()
    }

    /// The batch of a lane that writes at once.
    fn batch_of(batcher: &Arc<Batcher>, row: &Arc<NewRow>) -> Batch {
        match batcher.join(row, Deadline::NONE) {
            Joined::Write(batch) => batch,
            Joined::Over(outcome) => panic!("{outcome:?}"),
        }
    }

    /// A lane that waits for the batch of another: if it is to write, that comes of its batch.
    fn lane<'scope>(
        scope: &'scope thread::Scope<'scope, '_>,
        batcher: &Arc<Batcher>,
        row: &Arc<NewRow>,
        written: impl FnOnce(Vec<Uuid>) -> Written + Send + 'scope,
    ) -> thread::ScopedJoinHandle<'scope, (Outcome, usize)> {
        let (batcher, row) = (Arc::clone(batcher), Arc::clone(row));
        scope.spawn(move || match batcher.join(&row, Deadline::NONE) {
            Joined::Over(outcome) => (outcome, 0),
            Joined::Write(batch) => {
                let rows = batch.rows();
                assert!(rows.is_sorted_by_key(|row| row.id));
                (batch.end(&written(ids(&rows))), rows.len())
            }
        })
    }

    fn wait_for_waiting(batcher: &Batcher, count: usize) {
        let begun = Instant::now();
        while batcher.lock().waiting.len() < count {
            assert!(begun.elapsed() < LONG, "{count} lanes wait");
            thread::yield_now();
        }
    }

    /// A batch of a new row, which others wait for.
    fn hold(batcher: &Arc<Batcher>) -> Batch {
        batch_of(batcher, &row())
    }

    #[test]
    fn lanes_that_wait_at_the_same_time_share_a_batch_and_get_their_own_outcomes() {
        let batcher = patient();
        let held = hold(&batcher);
        assert!(held.is_of_one());
        let rows: Vec<Arc<NewRow>> = (0..5).map(|_| row()).collect();
        let kept_out = rows[3].id;
        let outcomes: Vec<(Outcome, usize)> = thread::scope(|scope| {
            let without = |ids: Vec<Uuid>| {
                Written::Ids(ids.into_iter().filter(|id| *id != kept_out).collect())
            };
            let lanes: Vec<_> = rows
                .iter()
                .map(|row| lane(scope, &batcher, row, without))
                .collect();
            wait_for_waiting(&batcher, rows.len());
            drop(held);
            lanes.into_iter().map(|it| it.join().unwrap()).collect()
        });
        for (index, (outcome, _)) in outcomes.iter().enumerate() {
            let expected = if index == 3 {
                Outcome::NotInserted
            } else {
                Outcome::Inserted
            };
            assert_eq!(*outcome, expected, "{index}");
        }
        let mut written: Vec<usize> = outcomes.iter().map(|(_, rows)| *rows).collect();
        written.sort_unstable();
        assert_eq!(written, [0, 0, 0, 0, 5], "one lane wrote for all");
        let state = batcher.lock();
        assert!(state.waiting.is_empty() && state.outcomes.is_empty() && state.writer.is_none());
    }

    #[test]
    fn nobody_waits_for_long_for_a_batch_that_does_not_come_back() {
        let batcher = Arc::new(Batcher::default());
        let stuck = hold(&batcher);
        let begun = Instant::now();
        let second = hold(&batcher);
        let waited = begun.elapsed();
        assert!(waited >= PATIENCE && waited < LONG, "{waited:?}");
        // The end of the first is not that of the second.
        drop(stuck);
        assert!(batcher.lock().writer.is_some());
        drop(second);
        assert!(batcher.lock().writer.is_none());
    }

    #[test]
    fn after_a_batch_that_failed_all_save_alone_for_a_while() {
        for written in [Written::Failed, Written::Impossible] {
            let batcher = patient();
            let (mut held, (second, third)) = (hold(&batcher), (row(), row()));
            thread::scope(|scope| {
                let fail = |_| panic!("it is not its turn");
                let in_batch = lane(scope, &batcher, &second, fail);
                wait_for_waiting(&batcher, 1);
                batcher.lock().fill(&mut held.members);
                let next = lane(scope, &batcher, &third, fail);
                wait_for_waiting(&batcher, 1);
                held.begun = Instant::now() - LONG;
                assert_eq!(held.end(&written), Outcome::Alone);
                for lane in [in_batch, next] {
                    assert_eq!(lane.join().unwrap(), (Outcome::Alone, 0));
                }
            });
            let left = batcher.lock().pause_until.unwrap() - Instant::now();
            assert!(left > LONGEST_PAUSE / 3, "{left:?}");
            let turn = batcher.join(&row(), Deadline::NONE);
            assert!(matches!(turn, Joined::Over(Outcome::Alone)));
            // Then again together, and a success ends it.
            batcher.lock().pause_until = Some(Instant::now());
            let batch = hold(&batcher);
            let id = ids(&batch.rows());
            assert_eq!(batch.end(&Written::Ids(id)), Outcome::Inserted);
            assert_eq!(batcher.lock().failures, 0);
        }
    }

    #[test]
    fn pauses_are_in_proportion_to_what_failed_and_double() {
        let mut state = BatcherState::default();
        for most in [10, 20, 40, 80] {
            state.note_failure(Duration::from_millis(10));
            let pause = state.pause_until.unwrap() - Instant::now();
            assert!(pause <= Duration::from_millis(most), "{pause:?} of {most}");
        }
        assert_eq!(state.failures, 4);
    }

    #[test]
    fn a_lane_that_panics_while_it_writes_leaves_nobody_waiting() {
        let batcher = patient();
        let (mut held, second) = (hold(&batcher), row());
        thread::scope(|scope| {
            let in_batch = lane(scope, &batcher, &second, |_| panic!("not its turn"));
            wait_for_waiting(&batcher, 1);
            batcher.lock().fill(&mut held.members);
            let panicked = panic::catch_unwind(AssertUnwindSafe(move || {
                let _batch = held;
                panic!("inside");
            }));
            assert!(panicked.is_err());
            assert_eq!(in_batch.join().unwrap(), (Outcome::Alone, 0));
        });
        assert!(hold(&batcher).is_of_one());
    }

    #[test]
    fn a_batch_has_each_id_once_and_no_more_rows_than_it_may() {
        let id = Uuid::new_v4();
        let member = |row| Member { number: 0, row };
        let mut members = vec![member(row_of(id, 10))];
        let mut state = BatcherState::default();
        state.waiting.push(member(row_of(id, 10)));
        state.waiting.extend((0..MOST).map(|_| member(row())));
        state.fill(&mut members);
        assert_eq!(members.len(), MOST);
        assert_eq!(state.waiting.len(), 2);
        assert_eq!(state.waiting[0].row.id, id);
    }

    #[test]
    fn a_long_row_goes_alone_and_so_does_one_whose_chain_has_little_time() {
        let batcher = patient();
        let (long, usual) = (
            row_of(Uuid::new_v4(), LONGEST + 1),
            row_of(Uuid::new_v4(), LONGEST),
        );
        let ample = Deadline::after(Some(2 * LIMIT + LONG));
        let short = Deadline::after(Some(2 * LIMIT));
        for (row, deadline, goes_alone) in [
            (&long, Deadline::NONE, true),
            (&usual, Deadline::NONE, false),
            (&usual, ample, false),
            (&usual, short, true),
        ] {
            let turn = batcher.join(row, deadline);
            let is_alone = matches!(turn, Joined::Over(Outcome::Alone));
            assert_eq!(is_alone, goes_alone, "{deadline:?}");
        }
    }

    #[test]
    fn a_trigger_that_changes_ids_does_not_have_rows_saved_twice() {
        let batcher = patient();
        let batch = hold(&batcher);
        let other = Written::Ids(vec![Uuid::new_v4()]);
        assert_eq!(batch.end(&other), Outcome::Inserted);
    }
}
