//! Why something is unavailable: the last error, since when, and when it is tried next.
//!
//! Each slot has room for some reasons, which its process alone writes. A reader that meets the writer halfway
//! finds a wrong checksum, and then there is no reason: the stage is shown as unavailable all the same.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

use super::figures::words_at;
use super::layout::{
    self, BITS, HoldReason, REASON, REASON_TEXT, Shape, StageKind, WORD, reason, worker,
};
use super::{Slot, SlotView};
use crate::sys;
use crate::visible::printable;

/// The longest text of an error, in bytes; a longer one is cut.
const LONGEST: usize = REASON_TEXT * WORD;

/// What stands for the rest of an error that was cut.
const REST: &str = "…";

/// A part of a chain that is unavailable to a process, or Redis. Times are monotonic milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnavailableStage {
    /// What it is.
    pub kind: StageKind,
    /// Its position among those of its kind in the configuration of this process.
    pub position: usize,
    /// The mark of its name, by which a process with another configuration knows it; 0 if none is to.
    pub name: u64,
    /// Since when this process has found it unavailable.
    pub since: u64,
    /// The last error.
    pub error: String,
    /// When that was seen.
    pub seen: u64,
    /// When it is tried next, if that is known.
    pub next_try: Option<u64>,
    /// What kind of reason it is.
    pub reason: HoldReason,
}

impl UnavailableStage {
    fn words(&self, shape: Shape) -> [u64; REASON] {
        let error = cut(&self.error);
        let position = self.position.min(shape.last_held());
        let mut words = [0; REASON];
        words[reason::STAGE] = (self.kind as u64) << 32 | position as u64;
        words[reason::SINCE] = self.since;
        words[reason::SEEN] = self.seen;
        words[reason::NEXT_TRY] = self.next_try.unwrap_or(0);
        words[reason::LENGTH] = error.len() as u64;
        words[reason::WHY] = self.reason as u64;
        words[reason::NAME] = self.name;
        let text = words[reason::TEXT..].iter_mut();
        for (word, bytes) in text.zip(error.as_bytes().chunks(WORD)) {
            let mut padded = [0; WORD];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(padded);
        }
        words[reason::CHECK] = check(&words);
        words
    }

    /// What stands in these words; `None` if they are no reason, or not a whole one.
    fn read(words: &[u64; REASON]) -> Option<Self> {
        if words[reason::CHECK] != check(words) {
            return None;
        }
        let length = usize::try_from(words[reason::LENGTH]).ok()?;
        let text = words[reason::TEXT..].iter();
        let bytes: Vec<u8> = text.flat_map(|word| word.to_ne_bytes()).collect();
        let error = std::str::from_utf8(bytes.get(..length)?).ok()?;
        Some(Self {
            kind: layout::state(StageKind::ALL, words[reason::STAGE] >> 32)?,
            position: usize::try_from(words[reason::STAGE] & u64::from(u32::MAX)).ok()?,
            since: words[reason::SINCE],
            error: printable(error).into_owned(),
            seen: words[reason::SEEN],
            next_try: Some(words[reason::NEXT_TRY]).filter(|time| *time > 0),
            reason: layout::state(HoldReason::ALL, words[reason::WHY])?,
            name: words[reason::NAME],
        })
    }
}

/// The mark of a stage's name: never 0.
pub fn name_mark(name: &str) -> u64 {
    super::outages::key(format_args!("{name}"))
}

/// A checksum over all other words of a reason.
fn check(words: &[u64; REASON]) -> u64 {
    let mix = |sum: u64, word: &u64| {
        (sum ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    };
    words[reason::CHECK + 1..].iter().fold(layout::MAGIC, mix)
}

/// The text, cut between two characters if it is too long.
fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST {
        return text.into();
    }
    let end = text.floor_char_boundary(LONGEST - REST.len());
    format!("{}{REST}", &text[..end]).into()
}

impl Slot {
    /// Shows what is unavailable or waits, and why. There is room for some reasons; what is unavailable and has
    /// none is shown without.
    pub fn show_unavailable(&self, stages: &[UnavailableStage]) {
        let is_deferring = |it: &&UnavailableStage| it.kind == StageKind::DeferringStorage;
        let is_wait = |it: &&UnavailableStage| it.reason.is_wait();
        let earliest = |since: Option<u64>| since.unwrap_or(0);
        let unavailable = || stages.iter().filter(|it| !is_wait(it));
        let held = unavailable().filter(|it| !is_deferring(it));
        let deferring = unavailable().filter(is_deferring);
        let (held, deferring) = (
            earliest(held.map(|it| it.since).min()),
            earliest(deferring.map(|it| it.since).min()),
        );
        let waiting = stages.iter().filter(is_wait).map(|it| it.since).min();
        self.word(worker::WAITING_SINCE)
            .store(earliest(waiting), Ordering::Relaxed);
        self.word(worker::HELD_SINCE).store(held, Ordering::Relaxed);
        self.word(worker::DEFERRING_SINCE)
            .store(deferring, Ordering::Relaxed);
        let shape = self.shape;
        let mut bits = vec![0_u64; layout::STAGE_KINDS * shape.held];
        for stage in unavailable() {
            // Those without a bit of their own share the last one.
            let bit = stage.position.min(shape.last_held());
            let word = stage.kind.first_bits(shape) + bit / BITS;
            if let Some(word) = bits.get_mut(word) {
                *word |= 1 << (bit % BITS);
            }
        }
        for (index, bits) in bits.into_iter().enumerate() {
            self.word(layout::SLOT + index)
                .store(bits, Ordering::Relaxed);
        }
        for index in 0..shape.reasons {
            self.show_reason(index, stages.get(index));
        }
    }

    /// Shows whether Redis is unavailable, and why. For the monitor alone.
    pub fn show_redis_away(&self, error: Option<&str>) {
        self.show_since(worker::REDIS_AWAY, error.is_some());
        let reason = error.map(|error| UnavailableStage {
            kind: StageKind::Redis,
            position: 0,
            name: 0,
            since: self.word(worker::REDIS_AWAY).load(Ordering::Relaxed),
            error: error.to_owned(),
            seen: sys::monotonic_ms(),
            next_try: None,
            reason: HoldReason::Unavailable,
        });
        self.show_reason(0, reason.as_ref());
    }

    fn show_reason(&self, index: usize, stage: Option<&UnavailableStage>) {
        let words = stage.map_or([0; REASON], |stage| stage.words(self.shape));
        let start = self.shape.reason_start(self.number, index);
        let cells = &self.words.words()[start..start + REASON];
        for (cell, word) in cells.iter().zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
    }
}

/// Reads the reasons of all processes that show something as unavailable, each with its slot.
pub(super) fn read_reasons(
    file: &File,
    shape: Shape,
    slots: &[SlotView],
) -> io::Result<Vec<(usize, UnavailableStage)>> {
    let mut reasons = Vec::new();
    for (number, slot) in slots.iter().enumerate().take(layout::SLOTS) {
        let worker = slot.worker.as_ref();
        let has_some = worker.is_some_and(|worker| {
            worker.held.is_some()
                || worker.deferring.is_some()
                || worker.redis_away.is_some()
                || worker.waits
        });
        if has_some {
            let words = words_at(file, shape.reason_start(number, 0), shape.reasons * REASON)?;
            let found = words.as_chunks::<REASON>().0.iter();
            reasons
                .extend(found.filter_map(|words| Some((number, UnavailableStage::read(words)?))));
        }
    }
    Ok(reasons)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape() -> Shape {
        Shape::of(1, 0, 0, 0)
    }

    fn stage(error: &str) -> UnavailableStage {
        UnavailableStage {
            kind: StageKind::Storage,
            position: 3,
            name: name_mark("s"),
            since: 5,
            error: error.to_owned(),
            seen: 7,
            next_try: Some(9),
            reason: HoldReason::Denied,
        }
    }

    #[test]
    fn an_error_is_read_as_it_was_written_and_cut_between_letters() {
        for error in ["", "no", "Zoë is away", &"x".repeat(LONGEST)] {
            let read = UnavailableStage::read(&stage(error).words(shape()));
            assert_eq!(read, Some(stage(error)));
        }
        for error in [
            "ë".repeat(LONGEST),
            "日".repeat(LONGEST),
            "x".repeat(LONGEST + 1),
        ] {
            let read = UnavailableStage::read(&stage(&error).words(shape())).unwrap();
            let kept = read.error.strip_suffix(REST).unwrap();
            assert!(error.starts_with(kept));
            assert!(
                (LONGEST - 6..=LONGEST).contains(&read.error.len()),
                "{}",
                read.error.len()
            );
        }
        // Of what has no bit of its own, one reason is shown.
        let far = UnavailableStage {
            position: usize::MAX,
            next_try: None,
            ..stage("no")
        };
        let read = UnavailableStage::read(&far.words(shape())).unwrap();
        assert_eq!((read.position, read.next_try), (shape().last_held(), None));
    }

    #[test]
    fn an_error_cannot_steer_a_terminal() {
        let read = UnavailableStage::read(&stage("a\x1b[2J\nb").words(shape()));
        assert_eq!(read.unwrap().error, r"a\u{1b}[2J\nb");
    }

    #[test]
    fn words_that_are_no_reason_are_none() {
        assert_eq!(UnavailableStage::read(&[0; REASON]), None);
        assert_eq!(UnavailableStage::read(&[u64::MAX; REASON]), None);
        for (word, value) in [
            (reason::LENGTH, LONGEST as u64 + 1),
            (reason::STAGE, 0),
            (reason::STAGE, u64::MAX),
            (reason::WHY, 0),
            (reason::TEXT, u64::MAX),
        ] {
            let mut words = stage("an error").words(shape());
            words[word] = value;
            words[reason::CHECK] = check(&words);
            assert_eq!(UnavailableStage::read(&words), None, "{word} {value}");
        }
    }

    proptest! {
        #[test]
        fn a_reader_that_meets_the_writer_halfway_finds_one_of_the_two_or_nothing(
            before in "\\PC{0,300}",
            after in "\\PC{0,300}",
            since in 1_u64..9,
            written in prop::collection::vec(any::<bool>(), REASON),
        ) {
            let former = stage(&before);
            let new = UnavailableStage { since, ..stage(&after) };
            let (former, new) = (former.words(shape()), new.words(shape()));
            let mut torn = former;
            for (index, is_written) in written.into_iter().enumerate() {
                if is_written {
                    torn[index] = new[index];
                }
            }
            let read = UnavailableStage::read(&torn);
            let whole = [UnavailableStage::read(&former), UnavailableStage::read(&new)];
            prop_assert!(read.is_none() || whole.contains(&read), "{read:?}");
        }

        #[test]
        fn no_words_make_a_reader_fail(words in prop::collection::vec(any::<u64>(), REASON), length in 0_u64..400) {
            let mut words: [u64; REASON] = words.try_into().unwrap();
            UnavailableStage::read(&words);
            words[reason::LENGTH] = length;
            words[reason::CHECK] = check(&words);
            if let Some(read) = UnavailableStage::read(&words) {
                prop_assert!(length <= LONGEST as u64 && read.error.chars().count() > 0 || length == 0);
            }
        }
    }
}
