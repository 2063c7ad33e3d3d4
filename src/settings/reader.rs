//! Reads variables one by one and keeps every fault.

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

use super::table::TABLE;
use crate::visible::printable;

/// Everything that is wrong with the environment, one line for each variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsErrors(pub(super) Vec<String>);

impl fmt::Display for SettingsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(|fault| printable(fault)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for SettingsErrors {}

/// Reads variables through a look-up.
pub(super) struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
    pub faults: Vec<String>,
}

impl<'a> Reader<'a> {
    pub fn new(lookup: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self {
            lookup,
            faults: Vec::new(),
        }
    }

    /// The variable as it is; nothing where it is empty.
    pub fn raw(&self, name: &str) -> Option<OsString> {
        (self.lookup)(name).filter(|value| !value.is_empty())
    }

    /// The variable's text; nothing where it is blank.
    pub fn text(&mut self, name: &str) -> Option<String> {
        match self.raw(name)?.into_string() {
            Ok(text) if text.trim().is_empty() => None,
            Ok(text) => Some(text.trim().to_owned()),
            Err(_) => {
                self.fault(name, "the value is not UTF-8 text");
                None
            }
        }
    }

    /// The variable as `parse` understands it, else `default`.
    pub fn parsed<T>(&mut self, name: &str, default: T, parse: impl Fn(&str) -> Option<T>) -> T {
        let Some(text) = self.text(name) else {
            return default;
        };
        parse(&text).unwrap_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            self.fault(name, &format!("{shown:?} is not {}", accepted(name)));
            default
        })
    }

    /// A number from `least` to `most`.
    pub fn number<T: FromStr + PartialOrd>(
        &mut self,
        name: &str,
        default: T,
        least: T,
        most: T,
    ) -> T {
        self.parsed(name, default, |text| {
            let number = text.parse().ok()?;
            (least <= number && number <= most).then_some(number)
        })
    }

    /// A yes or no.
    pub fn boolean(&mut self, name: &str, default: bool) -> bool {
        self.parsed(name, default, |text| {
            match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" => Some(true),
                "false" | "0" | "no" => Some(false),
                _ => None,
            }
        })
    }

    pub fn fault(&mut self, name: &str, message: &str) {
        self.faults.push(format!("{name}: {message}"));
    }
}

/// What the variable can be set to.
pub(super) fn accepted(name: &str) -> &'static str {
    let row = TABLE.iter().find(|row| row.name == name);
    row.map_or("a value that is accepted", |row| row.values)
}
