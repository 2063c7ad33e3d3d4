//! Reads variables one by one and keeps every fault.

use std::ffi::OsString;
use std::str::FromStr;
use std::{env, fmt};

use super::ignored::IGNORED;
use super::table::TABLE;
use crate::spelling::distance;
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

/// What the names of settings begin with that nobody else would give.
const PREFIXES: [&str; 2] = ["CONSERVER_", "VCON_"];

/// What the names of others' variables begin with: of Kubernetes for a service of our name, of the API server
/// besides those in [`IGNORED`], and of the tests.
const OF_OTHERS: [&str; 6] = [
    "CONSERVER_API_",
    "CONSERVER_HEADER_",
    "CONSERVER_PORT",
    "CONSERVER_SERVICE_",
    "CONSERVER_TEST_",
    "VCON_INDEX_",
];

/// One line for each variable of this process that is probably a misspelt setting.
pub fn misspelt() -> Vec<String> {
    misspelt_among(env::vars_os())
}

/// The same for these variables.
pub fn misspelt_among(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let names = variables.filter(|(_, value)| !value.is_empty());
    let names = names.filter_map(|(name, _)| name.into_string().ok());
    let mut found: Vec<String> = names.filter_map(|name| warning(&name)).collect();
    found.sort_unstable();
    found
}

fn warning(name: &str) -> Option<String> {
    let is_of_others = OF_OTHERS.iter().any(|other| name.starts_with(other))
        || IGNORED.iter().any(|ignored| name == ignored.name);
    if is_of_others || TABLE.iter().any(|row| row.name == name) {
        return None;
    }
    let meant = meant(&name.to_ascii_uppercase())?;
    let shown: String = name.chars().take(80).collect();
    Some(format!("{shown} is not a setting; did you mean {meant}?"))
}

/// The setting whose name is nearest, if one is near: two letters are wrong at most, or a word is
/// missing or too much.
fn meant(name: &str) -> Option<&'static str> {
    let has_prefix = |name: &str| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let ours = TABLE.iter().map(|row| row.name);
    let near = ours.clone().filter(|known| has_prefix(known));
    let near = near.map(|known| (distance(name, known), known)).min();
    if let Some((0..=2, known)) = near {
        return Some(known);
    }
    if !has_prefix(name) {
        return None;
    }
    let words: Vec<&str> = name.split('_').collect();
    let similar = ours.filter(|known| {
        let known: Vec<&str> = known.split('_').collect();
        has_all(&words, &known) || words.len() > 1 && has_all(&known, &words)
    });
    similar.min_by_key(|known| distance(name, known))
}

/// Whether all of `few` are among `words`, but for a letter.
fn has_all(words: &[&str], few: &[&str]) -> bool {
    let is_near = |one: &str, other: &str| {
        one == other || one.len() > 3 && other.len() > 3 && distance(one, other) == 1
    };
    few.iter()
        .all(|word| words.iter().any(|other| is_near(word, other)))
}

#[cfg(test)]
mod tests_of_misspelt {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_a_settings_is_told() {
        for (name, meant) in [
            ("CONSERVER_WORKRES", "CONSERVER_WORKERS"),
            ("CONSERVER_WORKER", "CONSERVER_WORKERS"),
            ("CONSERVR_WORKERS", "CONSERVER_WORKERS"),
            ("Conserver_Workers", "CONSERVER_WORKERS"),
            ("CONSERVER_NUM_WORKERS", "CONSERVER_WORKERS"),
            ("CONSERVER_WORKER_COUNT", "CONSERVER_WORKERS"),
            ("CONSERVER_STORAGE_PARALLEL", "CONSERVER_PARALLEL_STORAGE"),
            ("CONSERVER_CONCURRENCY", "CONSERVER_VCON_CONCURRENCY"),
            ("CONSERVER_HTTP_HOST", "CONSERVER_HTTP_HOSTS"),
            ("CONSERVER_LOG_LEVEL", "LOG_LEVEL"),
            ("CONSERVER_REDIS_URL", "REDIS_URL"),
            ("VCON_DLQ_EXPIRE", "VCON_DLQ_EXPIRY"),
            ("VCON_SORTED_SET", "VCON_SORTED_SET_NAME"),
        ] {
            let expected = format!("{name} is not a setting; did you mean {meant}?");
            assert_eq!(warning(name), Some(expected));
        }
    }

    #[test]
    fn settings_and_the_variables_of_others_are_passed_over() {
        let of_others = [
            "CONSERVER_API_TOKEN",
            "CONSERVER_API_TOKEN_FILE",
            "CONSERVER_HEADER_NAME",
            "CONSERVER_PYTHON_PATH",
            "CONSERVER_SERVICE_HOST",
            "CONSERVER_SERVICE_PORT_HTTP",
            "CONSERVER_PORT_9180_TCP_ADDR",
            "CONSERVER_TEST_WORKERS",
            "CONSERVER_IMAGE",
            "VCON_INDEX_EXPIRY",
            "VCON_STORAGE_TYPE",
            "CONSERVER",
            "CONSERVER_",
            "VCON_SERVER_URL",
            "VCON_EXPIRY_DAYS",
            "REDIS_URI",
            "LOGLEVEL",
            "PATH",
            "",
        ];
        let settings = TABLE.iter().map(|row| row.name);
        for name in of_others.into_iter().chain(settings) {
            assert_eq!(warning(name), None);
        }
    }

    #[test]
    fn an_empty_variable_is_as_good_as_none() {
        let variables = [("VCON_DLQ_EXPIR", "1"), ("CONSERVER_WORKR", "")];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let found = misspelt_among(variables.into_iter());
        let expected = "VCON_DLQ_EXPIR is not a setting; did you mean VCON_DLQ_EXPIRY?";
        assert_eq!(found, [expected]);
    }
}
