//! `conserver version`: what this program was built from, for reports of faults and for audits.

use std::env::consts::{ARCH, OS};
use std::fmt::Write as _;
use std::sync::LazyLock;

use chrono::{DateTime, SecondsFormat};
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use super::output::print_lines;
use crate::exit::Exit;
use crate::{link, storage};

/// The versions of all libraries.
const LOCK: &str = include_str!("../../Cargo.lock");

/// The libraries that talk to others or read what others have written.
const LIBRARIES: &[&str] = &[
    "redis",
    "postgres",
    "rust-s3",
    "ureq",
    "rustls",
    "ring",
    "rustls-platform-verifier",
    "httparse",
    "serde_json",
    "saphyr",
    "jaq-core",
    "prometheus-client",
    "simplelog",
];

/// What `--version` prints after the name of the program; `-V` prints the first line of it.
static DETAILS: LazyLock<String> = LazyLock::new(|| Build::this().details());

/// [`DETAILS`], for the command line.
pub fn details() -> &'static str {
    &DETAILS
}

/// How to show it.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl VersionArgs {
    /// Prints it.
    pub fn run(&self) -> Exit {
        if self.json {
            // Texts and maps of texts are always JSON.
            print_lines(serde_json::to_string_pretty(&Build::this()).unwrap_or_default());
        } else {
            print_lines(format_args!("conserver {}", details()));
        }
        Exit::Ok
    }
}

/// What a program was built from.
#[derive(Debug, Serialize)]
struct Build {
    version: &'static str,
    /// The commit of the source; unknown unless the build says it.
    commit: Option<&'static str>,
    /// The time of that commit.
    date: Option<String>,
    target: String,
    links: Vec<&'static str>,
    storages: Vec<&'static str>,
    libraries: Map<String, Value>,
}

impl Build {
    fn this() -> Self {
        let abi = if cfg!(target_env = "musl") {
            "-musl"
        } else if cfg!(target_env = "gnu") {
            "-gnu"
        } else {
            ""
        };
        let locked = |name: &&str| Some(((*name).to_owned(), locked(name)?.into()));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("CONSERVER_COMMIT").filter(|it| !it.is_empty()),
            date: option_env!("SOURCE_DATE_EPOCH").and_then(date),
            target: format!("{ARCH}-{OS}{abi}"),
            links: link::MODULES.iter().map(|it| it.name).collect(),
            storages: storage::MODULES.iter().map(|it| it.name).collect(),
            libraries: LIBRARIES.iter().filter_map(locked).collect(),
        }
    }

    fn details(&self) -> String {
        let unknown = "unknown";
        let libraries = self.libraries.iter();
        let libraries: Vec<String> = libraries
            .map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or(unknown)))
            .collect();
        let mut text = self.version.to_owned();
        for (name, value) in [
            ("commit", self.commit.unwrap_or(unknown)),
            ("date", self.date.as_deref().unwrap_or(unknown)),
            ("target", &self.target),
            ("links", &self.links.join(", ")),
            ("storages", &self.storages.join(", ")),
            ("libraries", &libraries.join(", ")),
        ] {
            // Writing to a string does not fail.
            let _ = write!(text, "\n{:<11}{value}", format!("{name}:"));
        }
        text
    }
}

/// The time of `SOURCE_DATE_EPOCH`, which is in seconds since 1970.
fn date(epoch: &str) -> Option<String> {
    let time = DateTime::from_timestamp(epoch.parse().ok()?, 0)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// The version of a library in Cargo.lock.
fn locked(name: &str) -> Option<&'static str> {
    LOCK.split("[[package]]").find_map(|package| {
        let (named, rest) = package.trim_start().split_once('\n')?;
        let version = rest.lines().next()?.strip_prefix("version = \"")?;
        let is_it = named == format!("name = \"{name}\"");
        version.strip_suffix('"').filter(|_| is_it)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn each_library_is_locked_in_one_version() {
        for name in LIBRARIES {
            let version = locked(name).expect(name);
            assert!(
                version.starts_with(|c: char| c.is_ascii_digit()),
                "{name}: {version}"
            );
            let line = format!("\nname = \"{name}\"\n");
            assert_eq!(
                LOCK.matches(&line).count(),
                1,
                "{name}: name the version that is meant"
            );
        }
        assert_eq!(locked("conserver"), Some(env!("CARGO_PKG_VERSION")));
        assert_eq!(locked("no-such-library"), None);
    }

    #[test]
    fn the_first_line_is_the_version_alone_and_the_rest_says_what_it_was_built_from() {
        let details = details();
        let (first, rest) = details.split_once('\n').unwrap();
        assert_eq!(first, env!("CARGO_PKG_VERSION"));
        for word in [
            "commit: ",
            "target: ",
            "links.exec",
            "storage.postgres",
            "redis 1.",
        ] {
            assert!(rest.contains(word), "{word}: {rest}");
        }
        let json = serde_json::to_value(Build::this()).unwrap();
        assert_eq!(json["libraries"]["redis"].as_str(), locked("redis"));
    }

    #[test]
    fn the_date_is_that_of_the_source() {
        assert_eq!(date("1764547200").as_deref(), Some("2025-12-01T00:00:00Z"));
        for wrong in ["", "soon", "9999999999999999"] {
            assert_eq!(date(wrong), None, "{wrong}");
        }
    }
}
