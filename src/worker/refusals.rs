//! Whose fault a refusal is: the vCon's, or that of the link or storage that refuses?
//!
//! One refusal does not tell. What tells is what others meet. Refusals with one reason make a *row*
//! until the stage takes a vCon:
//!
//! ```text
//! refused for a reason
//!   │ it was refused before, and others were taken since ──► the vCon's fault: dead letter
//!   │                                    (some of these in a row, then they wait for a success more)
//!   │ it is one of the first in its row ──► the vCon's fault, as it seems: dead letter
//!   └ it is one of three or more in its row ──► the place's fault: it waits, and so do all
//!                                               others; those before it are taken back
//! the stage takes a vCon ──► all rows end; whoever is refused again is to blame
//! ```
//!
//! So a bad vCon goes to the dead letters at once, a stage that refuses everything costs none, and
//! bad vCons that come together hold up the others until the first good one is tried.

use std::collections::VecDeque;

use super::circuit_breaker::MOST_FAILURES;
use crate::config::ListName;
use crate::failure::pattern;
use crate::vcon::VconId;

/// Rows of different reasons that are kept; a new one takes the place of the oldest.
const MOST_ROWS: usize = 16;

/// The most vCons that are known as bad; a new one takes the place of the oldest.
const MOST_KNOWN: usize = 1000;

/// After a single success, so many vCons that are refused again may go to the dead letters in a row;
/// after more successes, one for each, up to [`MOST_AGAIN`].
const LEAST_AGAIN: usize = 5;

/// See [`LEAST_AGAIN`].
const MOST_AGAIN: usize = 100;

/// Who is to blame for a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The vCon: it becomes a dead letter.
    VCon,
    /// The stage that refuses: the vCon waits.
    Place {
        /// Whether this was not known before.
        is_news: bool,
    },
}

/// Where a vCon is that became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Letter {
    /// In the dead letter queue of an ingress list, as this entry.
    OfList(ListName, Vec<u8>),
    /// In that of a storage.
    OfStorage(String, VconId),
}

/// The refusals of one stage since it last took a vCon, and who is known as bad.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    rows: VecDeque<Row>,
    /// Those that were refused before others were taken.
    known: VecDeque<VconId>,
    /// How many vCons it took since it was last found to refuse everything.
    successes: usize,
}

/// Different vCons refused for one reason, and none taken in between.
#[derive(Debug)]
struct Row {
    reason: String,
    /// All of them; no more are kept than can be known.
    vcons: VecDeque<VconId>,
    /// How many of them had not been refused before; not counted beyond [`MOST_FAILURES`].
    new: usize,
    /// How many had.
    again: usize,
    /// What has become of the first of them.
    letters: Vec<Letter>,
    is_places: bool,
}

impl Refusals {
    /// A vCon was refused with this message. `was_refused` if it was before, as another worker has found,
    /// and others were taken since.
    pub fn judge(&mut self, id: &VconId, message: &str, was_refused: bool) -> Blame {
        let is_known = was_refused || self.known.contains(id);
        let most_again = self.successes.clamp(LEAST_AGAIN, MOST_AGAIN);
        let reason = pattern(message);
        let row = self.row(reason);
        if !row.vcons.contains(id) {
            push(&mut row.vcons, id.clone());
            if is_known {
                row.again += 1;
            } else {
                row.new = MOST_FAILURES.min(row.new + 1);
            }
        }
        if row.new < MOST_FAILURES && row.again <= most_again {
            return Blame::VCon;
        }
        let is_news = !std::mem::replace(&mut row.is_places, true);
        if is_news {
            self.successes = 0;
        }
        Blame::Place { is_news }
    }

    fn row(&mut self, reason: String) -> &mut Row {
        let found = self.rows.iter().position(|row| row.reason == reason);
        let place = found.unwrap_or_else(|| {
            if self.rows.len() == MOST_ROWS {
                self.rows.pop_front();
            }
            self.rows.push_back(Row {
                reason,
                vcons: VecDeque::new(),
                new: 0,
                again: 0,
                letters: Vec::new(),
                is_places: false,
            });
            self.rows.len() - 1
        });
        &mut self.rows[place]
    }

    /// The stage has taken a vCon.
    pub fn end(&mut self) {
        if self.rows.is_empty() && self.known.is_empty() {
            return;
        }
        self.successes = self.successes.saturating_add(1);
        for row in std::mem::take(&mut self.rows) {
            for id in row.vcons {
                if !self.known.contains(&id) {
                    push(&mut self.known, id);
                }
            }
        }
    }

    /// Some vCons of the row that this one was found in, for a count of different ones.
    pub fn some_like(&self, id: &VconId) -> impl Iterator<Item = &VconId> {
        let rows = self.rows.iter().filter(|row| row.vcons.contains(id));
        rows.flat_map(|row| &row.vcons).take(MOST_FAILURES)
    }

    /// A vCon that was judged to be bad has become a dead letter.
    pub fn note_letter(&mut self, id: &VconId, letter: Letter) {
        let row = self.rows.iter_mut().find(|row| row.vcons.contains(id));
        if let Some(row) = row {
            row.keep(letter);
        }
    }

    /// A dead letter that was taken could not be brought back: it is to be taken once more. Returns
    /// false if by now the stage has taken another vCon, so that it is to blame after all.
    pub fn put_back(&mut self, letter: Letter) -> bool {
        let row = self.rows.iter_mut().find(|row| row.is_to_blame_for_all());
        row.map(|row| row.keep(letter)).is_some()
    }

    /// The dead letters that are not to blame after all.
    pub fn take_letters(&mut self) -> Vec<Letter> {
        let rows = self.rows.iter_mut();
        let rows = rows.filter(|row| row.is_to_blame_for_all());
        rows.flat_map(|row| std::mem::take(&mut row.letters))
            .collect()
    }
}

impl Row {
    /// Whether new ones were refused, too, so that the stage is to blame for all of them.
    fn is_to_blame_for_all(&self) -> bool {
        self.is_places && self.new == MOST_FAILURES
    }

    /// One that fails again and again is there already.
    fn keep(&mut self, letter: Letter) {
        if !self.letters.contains(&letter) {
            self.letters.push(letter);
        }
    }
}

fn push(ids: &mut VecDeque<VconId>, id: VconId) {
    if ids.len() == MOST_KNOWN {
        ids.pop_front();
    }
    ids.push_back(id);
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWS: Blame = Blame::Place { is_news: true };
    const WAITS: Blame = Blame::Place { is_news: false };

    fn ids(count: usize) -> Vec<VconId> {
        (0..count).map(|_| VconId::random()).collect()
    }

    fn letter(id: &VconId) -> Letter {
        Letter::OfStorage("s".to_owned(), id.clone())
    }

    /// What becomes of these vCons, all refused for one reason.
    fn judge(refusals: &mut Refusals, ids: &[VconId]) -> Vec<Blame> {
        let judge = |id: &VconId| {
            let blame = refusals.judge(id, &format!("vCon {id} is not good"), false);
            if blame == Blame::VCon {
                refusals.note_letter(id, letter(id));
            }
            blame
        };
        ids.iter().map(judge).collect()
    }

    #[test]
    fn a_bad_vcon_among_good_ones_is_to_blame_at_once() {
        let mut refusals = Refusals::default();
        for id in ids(50) {
            assert_eq!(judge(&mut refusals, &[id]), [Blame::VCon]);
            refusals.end();
            assert_eq!(refusals.take_letters(), []);
        }
    }

    #[test]
    fn a_stage_that_refuses_everything_is_to_blame_from_the_third_on_and_the_others_come_back() {
        let (mut refusals, ids) = (Refusals::default(), ids(5));
        let blames = judge(&mut refusals, &ids[..2]);
        assert_eq!(blames, [Blame::VCon, Blame::VCon]);
        assert_eq!(refusals.take_letters(), []);
        assert_eq!(judge(&mut refusals, &ids[2..]), [NEWS, WAITS, WAITS]);
        let back = refusals.take_letters();
        assert_eq!(back, [letter(&ids[0]), letter(&ids[1])]);
        assert_eq!(refusals.take_letters(), []);
        // They wait like the others, however often they are tried.
        let all: Vec<Blame> = judge(&mut refusals, &ids);
        assert_eq!(all, [WAITS; 5]);
    }

    #[test]
    fn a_dead_letter_that_is_noted_late_comes_back_too() {
        let (mut refusals, ids) = (Refusals::default(), ids(3));
        for id in &ids {
            refusals.judge(id, "no", false);
        }
        assert_eq!(refusals.take_letters(), []);
        refusals.note_letter(&ids[0], letter(&ids[0]));
        assert_eq!(refusals.take_letters(), [letter(&ids[0])]);
        // After a success it is too late: then it was the vCon.
        refusals.end();
        refusals.note_letter(&ids[1], letter(&ids[1]));
        assert_eq!(refusals.take_letters(), []);
    }

    #[test]
    fn the_same_vcon_again_says_nothing_new() {
        let (mut refusals, ids) = (Refusals::default(), ids(4));
        let (first, others) = ids.split_at(1);
        for _ in 0..10 {
            assert_eq!(judge(&mut refusals, first), [Blame::VCon]);
        }
        // And it is one dead letter.
        judge(&mut refusals, others);
        let back = [&ids[0], &ids[1]].map(letter);
        assert_eq!(refusals.take_letters(), back);
    }

    #[test]
    fn a_dead_letter_that_could_not_be_brought_back_is_taken_again_until_a_vcon_is() {
        let (mut refusals, ids) = (Refusals::default(), ids(3));
        judge(&mut refusals, &ids);
        let taken = refusals.take_letters();
        assert_eq!(taken, [letter(&ids[0]), letter(&ids[1])]);
        assert!(refusals.put_back(taken[0].clone()));
        assert_eq!(refusals.take_letters(), taken[..1]);
        refusals.end();
        assert!(!refusals.put_back(taken[1].clone()));
        assert_eq!(refusals.take_letters(), []);
    }

    #[test]
    fn different_reasons_are_different_rows_and_one_does_not_end_another() {
        let (mut refusals, ids) = (Refusals::default(), ids(6));
        for (pair, expected) in ids.chunks(2).zip([Blame::VCon, Blame::VCon, NEWS]) {
            assert_eq!(refusals.judge(&pair[0], "too red", false), expected);
            assert_eq!(refusals.judge(&pair[1], "too blue", false), expected);
        }
        // One that is refused for a reason of its own is to blame all the same.
        let other = VconId::random();
        assert_eq!(refusals.judge(&other, "too green", false), Blame::VCon);
        assert_eq!(refusals.judge(&ids[0], "too red", false), WAITS);
    }

    #[test]
    fn five_bad_ones_in_a_row_are_dead_letters_once_a_good_one_was_taken() {
        let (mut refusals, bad) = (Refusals::default(), ids(5));
        let blames = judge(&mut refusals, &bad);
        assert_eq!(blames, [Blame::VCon, Blame::VCon, NEWS, WAITS, WAITS]);
        assert_eq!(refusals.take_letters().len(), 2);
        refusals.end();
        assert_eq!(judge(&mut refusals, &bad), [Blame::VCon; 5]);
        assert_eq!(refusals.take_letters(), []);
    }

    #[test]
    fn any_number_of_bad_ones_are_dead_letters_in_the_end() {
        let (mut refusals, mut bad) = (Refusals::default(), ids(100));
        let mut successes = 0;
        while !bad.is_empty() {
            let blames = judge(&mut refusals, &bad);
            refusals.take_letters();
            let mut blames = blames.into_iter();
            // What was taken back at first is among those that wait.
            if successes > 0 {
                bad.retain(|_| blames.next() != Some(Blame::VCon));
            }
            refusals.end();
            successes += 1;
            assert!(successes < 30);
        }
    }

    #[test]
    fn a_stage_that_breaks_again_costs_no_more_than_some() {
        let (mut refusals, ids) = (Refusals::default(), ids(50));
        judge(&mut refusals, &ids);
        refusals.take_letters();
        refusals.end();
        let blames = judge(&mut refusals, &ids);
        let dead = blames.iter().filter(|it| **it == Blame::VCon).count();
        assert_eq!(dead, LEAST_AGAIN);
        // No new one was refused: those may be bad indeed.
        assert_eq!(refusals.take_letters(), []);
        // Once new ones are, all come back.
        judge(&mut refusals, &[(); 3].map(|()| VconId::random()));
        assert_eq!(refusals.take_letters().len(), LEAST_AGAIN);
    }

    #[test]
    fn more_successes_let_more_bad_ones_go() {
        let (mut refusals, bad) = (Refusals::default(), ids(50));
        judge(&mut refusals, &bad);
        (0..20).for_each(|_| refusals.end());
        let blames = judge(&mut refusals, &bad);
        let dead = blames.iter().filter(|it| **it == Blame::VCon).count();
        assert_eq!(dead, 20);
        refusals.end();
        let blames = judge(&mut refusals, &bad[20..]);
        let dead = blames.iter().filter(|it| **it == Blame::VCon).count();
        assert_eq!(dead, LEAST_AGAIN);
    }

    #[test]
    fn one_that_another_worker_has_refused_counts_as_refused_again() {
        let (mut refusals, bad) = (Refusals::default(), ids(5));
        for id in &bad {
            assert_eq!(refusals.judge(id, "no", true), Blame::VCon);
        }
        // Of new ones it takes three all the same.
        let new = ids(3);
        assert_eq!(judge(&mut refusals, &new), [Blame::VCon, Blame::VCon, NEWS]);
    }

    #[test]
    fn some_vcons_of_a_row_are_named() {
        let (mut refusals, ids) = (Refusals::default(), ids(5));
        for id in &ids {
            refusals.judge(id, "no", false);
        }
        let other = VconId::random();
        refusals.judge(&other, "something else", false);
        let some: Vec<&VconId> = refusals.some_like(&ids[4]).collect();
        assert_eq!(some, [&ids[0], &ids[1], &ids[2]]);
        assert_eq!(refusals.some_like(&other).collect::<Vec<_>>(), [&other]);
    }

    #[test]
    fn what_is_kept_has_an_end() {
        let mut refusals = Refusals::default();
        for number in 0..2 * MOST_ROWS {
            let words = "x".repeat(number + 1);
            refusals.judge(&VconId::random(), &words, false);
        }
        assert_eq!(refusals.rows.len(), MOST_ROWS);
        let newest = refusals.rows.back().map(|row| row.reason.len());
        assert_eq!(newest, Some(2 * MOST_ROWS));
        let many = ids(2 * MOST_KNOWN);
        judge(&mut refusals, &many);
        let longest = refusals.rows.iter().map(|row| row.vcons.len()).max();
        assert_eq!(longest, Some(MOST_KNOWN));
        refusals.end();
        assert_eq!(refusals.known.len(), MOST_KNOWN);
        assert!(refusals.known.contains(&many[2 * MOST_KNOWN - 1]));
        (0..10 * MOST_AGAIN).for_each(|_| refusals.end());
        let blames = judge(&mut refusals, &many[MOST_KNOWN + 100..]);
        let dead = blames.iter().filter(|it| **it == Blame::VCon).count();
        assert_eq!(dead, MOST_AGAIN);
    }
}
