//! What is wrong with a configuration file: every fault, each with its place.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Options;
use crate::visible::printable;

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
    pub(crate) fn at(line: usize, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            line: Some(line),
            column: None,
            key: key.into(),
            message: message.into(),
        }
    }

    pub(crate) fn of_file(message: impl Into<String>) -> Self {
        Self {
            line: None,
            column: None,
            key: String::new(),
            message: message.into(),
        }
    }
}

/// What was found while a file was read.
#[derive(Default)]
pub(crate) struct Findings {
    /// What makes the file unusable.
    pub faults: Vec<Fault>,
    /// What has no effect, or hardly the one that is meant.
    pub warnings: Vec<Fault>,
    /// The modules that are not built in, in the order of the file.
    pub missing: Vec<String>,
}

impl Findings {
    /// Adds what the accessors of `options` have found.
    pub fn take(&mut self, options: &mut Options) {
        self.faults.append(&mut options.faults);
        self.warnings.append(&mut options.warnings);
    }
}

/// Everything in a configuration file that is no fault but should be looked at, in the order of
/// its lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigWarnings {
    file: PathBuf,
    warnings: Vec<Fault>,
}

impl ConfigWarnings {
    pub(crate) fn new(file: &Path, warnings: Vec<Fault>) -> Self {
        let mut warnings = in_order(warnings);
        let more = warnings.len().saturating_sub(MOST_WARNINGS);
        if more > 0 {
            warnings.truncate(MOST_WARNINGS);
            warnings.push(Fault::of_file(format!("{more} more warnings")));
        }
        Self {
            file: file.to_owned(),
            warnings,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.warnings.is_empty()
    }

    /// One line for each, as `config.yml:12: chains.main: ...`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let file = self.file.display();
        self.warnings
            .iter()
            .map(move |warning| printable(&format!("{file}{warning}")).into_owned())
    }
}

/// In the order of their lines, each once: a line shared by an alias is read more than once.
fn in_order(mut found: Vec<Fault>) -> Vec<Fault> {
    found.sort_by_key(|fault| (fault.line, fault.column));
    found.dedup();
    found
}

/// Without the name of the file, which comes before it.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with a configuration file, in the order of its lines.
///
/// Prints as one line for each fault, then one for each warning, without a line break after the
/// last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    file: PathBuf,
    faults: Vec<Fault>,
    warnings: ConfigWarnings,
}

impl ConfigErrors {
    pub(crate) fn new(file: &Path, faults: Vec<Fault>) -> Self {
        Self {
            file: file.to_owned(),
            faults: in_order(faults),
            warnings: ConfigWarnings::default(),
        }
    }

    /// How many faults there are, and how many warnings.
    pub fn counts(&self) -> (usize, usize) {
        (self.faults.len(), self.warnings.warnings.len())
    }

    /// The same, with what was warned of: a misspelt key may be the cause of a fault.
    pub(crate) fn with(self, warnings: ConfigWarnings) -> Self {
        Self { warnings, ..self }
    }

    /// The faults, in the order of their lines.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// What was warned of.
    pub fn warnings(&self) -> &ConfigWarnings {
        &self.warnings
    }

    /// One line for each fault, then one for each warning.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let file = self.file.display();
        let fault = move |fault| printable(&format!("{file}{fault}")).into_owned();
        let warning = |warning| format!("warning: {warning}");
        let faults = self.faults.iter().map(fault);
        faults.chain(self.warnings.lines().map(warning))
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&line)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// How many warnings are kept: the daemon logs them whenever the file changes.
const MOST_WARNINGS: usize = 100;

/// How many names a message lists.
const MOST_NAMES: usize = 20;

/// The names in one line, or a word for none: `tagger, router`. Of many names, the first: each of
/// many faults may list them.
pub(crate) fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

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
