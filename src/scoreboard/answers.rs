//! How long webhooks took to answer, by the status of the answer.
//!
//! Which statuses there are shows only as they come. The first process that gets one writes it into the next free
//! place, and from then on all count in the meter of that place. Places are never given up: no count goes back while
//! the daemon runs. If a server makes up more statuses than there are places, the further ones are not counted.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::figures::{self, words_at};
use super::layout::{ANSWERS, Shape};
use super::{Histogram, Meter, Slot};
use crate::sys::SharedWords;

/// Where all workers count the times of answers; cheap to clone.
#[derive(Clone)]
pub struct AnswerTimes {
    words: Arc<SharedWords>,
    shape: Shape,
}

impl Slot {
    /// Where this daemon counts the times of answers.
    pub fn answer_times(&self) -> AnswerTimes {
        AnswerTimes {
            words: Arc::clone(&self.words),
            shape: self.shape,
        }
    }
}

impl AnswerTimes {
    /// Counts an answer with this status, which took this time.
    pub fn observe(&self, status: u16, time: Duration) {
        if let Some(place) = (0..ANSWERS).find(|place| self.is_of(*place, status.into())) {
            Meter::at(&self.words, self.shape.answer_start(place)).observe(time);
        }
    }

    /// Whether the place is that of this status, which takes it if it is free.
    fn is_of(&self, place: usize, status: u64) -> bool {
        let word = &self.words.words()[self.shape.status_place(place)];
        let found = match word.load(Relaxed) {
            // Another process may take it for another status at the same moment.
            0 => word.compare_exchange(0, status, Relaxed, Relaxed),
            found => Err(found),
        };
        found.map_or_else(|found| found == status, |_| true)
    }
}

/// Reads the times of each status that was met.
pub(super) fn read_answers(file: &File, shape: Shape) -> io::Result<Vec<(u16, Histogram)>> {
    let statuses = words_at(file, shape.status_place(0), ANSWERS)?;
    let known = statuses.iter().enumerate();
    let known = known.filter_map(|(place, status)| Some((place, u16::try_from(*status).ok()?)));
    let known = known.filter(|(_, status)| *status > 0);
    known
        .map(|(place, status)| {
            let times = figures::read_times(file, shape.answer_start(place))?;
            Ok((status, times))
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::thread;

    use super::*;
    use crate::scoreboard::{Board, Snapshot};

    /// The answers that a scoreboard shows after this.
    fn shown_after(work: impl Fn(&Board)) -> Vec<(u16, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let mut board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
        board.prepare(2).unwrap();
        work(&board);
        let snapshot = Snapshot::take_own(&board.id().path).unwrap();
        let answers = snapshot.answers.iter();
        let mut shown: Vec<_> = answers.map(|(it, times)| (*it, times.count())).collect();
        shown.sort_unstable();
        shown
    }

    #[test]
    fn processes_that_meet_the_same_statuses_at_once_count_in_the_same_places() {
        let shown = shown_after(|board| {
            let slots = [1, 2].map(|number| Slot::attach(board.id(), number, 1).unwrap());
            thread::scope(|scope| {
                for slot in &slots {
                    scope.spawn(|| {
                        let times = slot.answer_times();
                        for round in 0..100 {
                            for status in 0..40 {
                                let status = 200 + (status * 7 + round) % 40;
                                times.observe(status, Duration::from_millis(3));
                            }
                        }
                    });
                }
            });
        });
        let all: Vec<_> = (200..240).map(|status| (status, 200)).collect();
        assert_eq!(shown, all);
    }

    #[test]
    fn what_there_is_no_room_for_is_not_counted_for_another() {
        let shown = shown_after(|board| {
            let times = Slot::attach(board.id(), 1, 1).unwrap().answer_times();
            for status in 100..300 {
                times.observe(status, Duration::from_millis(3));
            }
        });
        let first: Vec<_> = (100..).take(ANSWERS).map(|status| (status, 1)).collect();
        assert_eq!(shown, first);
    }
}
