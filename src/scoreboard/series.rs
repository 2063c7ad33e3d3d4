//! The names of what has figures of its own: chains, links and storages.

use super::layout::{NAME, WORD};
use super::states::state;
use crate::visible::printable;

/// What a series is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SeriesKind {
    /// A chain: the whole work on its vCons.
    Chain = 1,
    /// A link, in whatever chain.
    Link,
    /// A storage, likewise.
    Storage,
}

impl SeriesKind {
    const ALL: &'static [Self] = &[Self::Chain, Self::Link, Self::Storage];
}

/// The longest name, in bytes; of a longer one the rest is left out.
const LONGEST: usize = (NAME - 1) * WORD;

/// The words a name stands in. What begins with the same 128 bytes is one series.
pub(super) fn written(kind: SeriesKind, name: &str) -> [u64; NAME] {
    let name = &name[..name.floor_char_boundary(LONGEST)];
    let mut words = [0; NAME];
    words[0] = (kind as u64) << 32 | name.len() as u64;
    for (word, bytes) in words[1..].iter_mut().zip(name.as_bytes().chunks(WORD)) {
        let mut padded = [0; WORD];
        padded[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(padded);
    }
    words
}

/// The name that stands in these words; nothing where it is none.
pub(super) fn read(words: &[u64; NAME]) -> Option<(SeriesKind, String)> {
    let kind = state(SeriesKind::ALL, words[0] >> 32)?;
    let length = usize::try_from(words[0] & u64::from(u32::MAX)).ok()?;
    let bytes: Vec<u8> = words[1..].iter().flat_map(|w| w.to_ne_bytes()).collect();
    let name = std::str::from_utf8(bytes.get(..length)?).ok()?;
    Some((kind, printable(name).into_owned()))
}

/// A name as readers of the scoreboard see it.
pub fn shown_name(name: &str) -> String {
    printable(&name[..name.floor_char_boundary(LONGEST)]).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written_and_cut_between_letters() {
        for name in ["", "main", "Zoë", &"x".repeat(LONGEST)] {
            let words = written(SeriesKind::Link, name);
            assert_eq!(read(&words), Some((SeriesKind::Link, name.to_owned())));
        }
        let long = "x".repeat(LONGEST - 1) + "ë";
        let (_, cut) = read(&written(SeriesKind::Chain, &long)).unwrap();
        assert_eq!(cut, "x".repeat(LONGEST - 1));
        assert_eq!(cut, shown_name(&long));
    }

    #[test]
    fn words_that_are_no_name_are_none() {
        assert_eq!(read(&[0; NAME]), None);
        assert_eq!(read(&[u64::MAX; NAME]), None);
        let mut words = written(SeriesKind::Storage, "name");
        words[1] = u64::MAX;
        assert_eq!(read(&words), None);
    }
}
