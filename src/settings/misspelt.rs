//! Variables that are hardly anything else than a setting with a mistake in its name.
//!
//! Others have variables of these prefixes, too (the API server, Kubernetes), so a name that is not
//! near to a setting's is passed over.

use std::env;
use std::ffi::OsString;

use super::table::TABLE;
use crate::spelling::distance;

/// What the names of settings begin with that nobody else would give.
const PREFIXES: [&str; 2] = ["CONSERVER_", "VCON_"];

/// Variables of others: of the API server, of Kubernetes for a service of our name, and of the tests.
const OF_OTHERS: [&str; 7] = [
    "CONSERVER_API_",
    "CONSERVER_HEADER_",
    "CONSERVER_PORT",
    "CONSERVER_SERVICE_",
    "CONSERVER_TEST_",
    "VCON_INDEX_",
    "VCON_SORTED_FORCE_RESET",
];

/// One line for each variable of this process that is probably a misspelt setting.
pub fn misspelt() -> Vec<String> {
    among(env::vars_os())
}

fn among(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let names = variables.filter(|(_, value)| !value.is_empty());
    let names = names.filter_map(|(name, _)| name.into_string().ok());
    let mut found: Vec<String> = names.filter_map(|name| warning(&name)).collect();
    found.sort_unstable();
    found
}

fn warning(name: &str) -> Option<String> {
    let is_of_others = OF_OTHERS.iter().any(|other| name.starts_with(other));
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
mod tests {
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
        let found = among(variables.into_iter());
        let expected = "VCON_DLQ_EXPIR is not a setting; did you mean VCON_DLQ_EXPIRY?";
        assert_eq!(found, [expected]);
    }
}
