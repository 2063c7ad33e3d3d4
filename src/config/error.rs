//! What is wrong with a configuration file: every fault, each with its place.

use std::fmt;
use std::path::{Path, PathBuf};

/// One fault of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The line it stands on, from 1; `None` where the fault is the file's as a whole.
    pub line: Option<usize>,
    /// The column, from 1, where the text is not YAML.
    pub column: Option<usize>,
    /// The path of keys to it, as in `chains.main.links`; may be empty.
    pub key: String,
    /// What is wrong. Holds no secret.
    pub message: String,
}

impl Fault {
    pub(super) fn at(line: usize, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            line: Some(line),
            column: None,
            key: key.into(),
            message: message.into(),
        }
    }

    pub(super) fn of_file(message: impl Into<String>) -> Self {
        Self {
            line: None,
            column: None,
            key: String::new(),
            message: message.into(),
        }
    }
}

/// Everything that is wrong with a configuration file, in the order of its lines.
///
/// Prints as one line for each fault, without a line break after the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    file: PathBuf,
    faults: Vec<Fault>,
}

impl ConfigErrors {
    pub(super) fn new(file: &Path, mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(|fault| (fault.line, fault.column));
        // One faulty line shared by an alias is read more than once.
        faults.dedup();
        Self {
            file: file.to_owned(),
            faults,
        }
    }

    /// The faults, in the order of their lines.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.file.display())?;
            for number in [fault.line, fault.column].into_iter().flatten() {
                write!(f, ":{number}")?;
            }
            if !fault.key.is_empty() {
                write!(f, ": {}", fault.key)?;
            }
            write!(f, ": {}", fault.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// How many names a message lists.
const MOST_NAMES: usize = 20;

/// The names in one line, or a word for none: `tagger, router`. Of many names, the first: each of
/// many faults may list them.
pub(super) fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let mut names = names.into_iter();
    let first: Vec<S> = names.by_ref().take(MOST_NAMES).collect();
    if first.is_empty() {
        return "none".to_owned();
    }
    let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
    match names.count() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// `; did you mean ...?` where one of `known` is at most two edits away from `name`.
pub(super) fn did_you_mean<S: AsRef<str>>(
    name: &str,
    known: impl IntoIterator<Item = S>,
) -> String {
    let nearest = known
        .into_iter()
        .map(|known| (distance(name, known.as_ref()), known))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        Some((edits, known)) if edits <= 2 && edits < known.as_ref().chars().count() => {
            format!("; did you mean `{}`?", known.as_ref())
        }
        _ => String::new(),
    }
}

/// The number of letters to insert, remove or replace to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, other) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = *slot;
            left = replaced.min(left + 1).min(diagonal + 1);
            *slot = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("tagr", "tagger", 2),
            ("storage", "storages", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }

    #[test]
    fn only_near_names_are_suggested() {
        let known = ["links", "chains"];
        assert_eq!(
            did_you_mean("chain", known),
            "; did you mean `chains`?".to_owned()
        );
        assert_eq!(did_you_mean("webhooks", known), "");
        assert_eq!(did_you_mean("x", ["y"]), "");
    }

    #[test]
    fn faults_print_in_the_order_of_lines() {
        let errors = ConfigErrors::new(
            Path::new("config.yml"),
            vec![
                Fault::at(12, "chains.main", "b"),
                Fault::at(3, "", "a"),
                Fault::at(12, "chains.main", "b"),
                Fault::of_file("whole"),
            ],
        );
        assert_eq!(
            errors.to_string(),
            "config.yml: whole\nconfig.yml:3: a\nconfig.yml:12: chains.main: b"
        );
    }
}
