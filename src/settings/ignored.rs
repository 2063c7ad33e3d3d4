//! Variables that the existing server reads and this program has no use for, in one table.

use std::env;

use super::env_file::EnvFile;

/// A variable of the existing server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ignored {
    /// Its name.
    pub name: &'static str,
    /// Why it has no effect, or what has its effect here.
    pub why: &'static str,
    /// Whose it may be if the environment, and not `.env`, has it.
    owner: Owner,
}

/// Who sets a variable in the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A deployment of the existing server alone.
    Deployment,
    /// Shells and containers too, with the name of the host: a deployment sets it to a URL.
    Host,
    /// Anybody.
    Anybody,
}

impl Ignored {
    /// Whether a variable with this value is the one of the existing server.
    pub fn is_meant(&self, value: &str, is_from_file: bool) -> bool {
        is_from_file
            || match self.owner {
                Owner::Deployment => true,
                Owner::Host => value.contains("://"),
                Owner::Anybody => false,
            }
    }
}

const fn ignored_for(why: &'static str, name: &'static str) -> Ignored {
    let owner = Owner::Deployment;
    Ignored { name, why, owner }
}

const LOG: &str = "LOG_LEVEL and CONSERVER_LOG_FORMAT say how the log looks";
const SENTRY: &str = "Sentry is not built in; errors are in the log, in /metrics and, with OTEL_EXPORTER_OTLP_ENDPOINT, in \
                      spans";
const API: &str = "of the API server";
const UNUSED: &str = "without effect in the existing server too";

/// Every such variable, in the order of the documentation.
pub const IGNORED: &[Ignored] = &[
    ignored_for(LOG, "LOGGING_CONFIG_FILE"),
    Ignored {
        owner: Owner::Host,
        ..ignored_for("CONSERVER_INSTANCE names this daemon", "HOSTNAME")
    },
    ignored_for(SENTRY, "SENTRY_DSN"),
    Ignored {
        owner: Owner::Anybody,
        ..ignored_for(SENTRY, "ENV")
    },
    ignored_for(API, "CONSERVER_API_TOKEN"),
    ignored_for(API, "CONSERVER_API_TOKEN_FILE"),
    ignored_for(API, "API_ROOT_PATH"),
    ignored_for(API, "VCON_INDEX_EXPIRY"),
    ignored_for(UNUSED, "VCON_SORTED_FORCE_RESET"),
    ignored_for(UNUSED, "VCON_STORAGE"),
    ignored_for(UNUSED, "WEVIATE_HOST"),
    ignored_for(UNUSED, "WEVIATE_API_KEY"),
    ignored_for(UNUSED, "UUID8_DOMAIN_NAME"),
];

/// One line that names those which are set and not empty, with why they have no effect; `None` if there are none.
pub fn ignored(file: &EnvFile) -> Option<String> {
    among(&|name| env::var(name).ok(), &|name| file.has_set(name))
}

fn among(
    value: &dyn Fn(&str) -> Option<String>,
    is_from_file: &dyn Fn(&str) -> bool,
) -> Option<String> {
    let is_set = |it: &&Ignored| {
        let value = value(it.name).unwrap_or_default();
        !value.is_empty() && it.is_meant(&value, is_from_file(it.name))
    };
    let set: Vec<&Ignored> = IGNORED.iter().filter(is_set).collect();
    let groups = set.chunk_by(|one, other| one.why == other.why);
    let groups: Vec<String> = groups
        .map(|group| {
            let names: Vec<&str> = group.iter().map(|it| it.name).collect();
            format!("{} ({})", names.join(", "), group[0].why)
        })
        .collect();
    (!groups.is_empty()).then(|| groups.join("; "))
}

/// The table as Markdown, for conserver-settings(7).
pub fn ignored_markdown_table() -> String {
    let mut text = String::from("| variable | why |\n|---|---|\n");
    for Ignored { name, why, .. } in IGNORED {
        text += &format!("| `{name}` | {why} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::TABLE;

    fn line(variables: &[(&str, &str)], from_file: &[&str]) -> Option<String> {
        let value = |name: &str| {
            let mut variables = variables.iter();
            let found = variables.find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        among(&value, &|name| from_file.contains(&name))
    }

    #[test]
    fn what_is_set_is_named_with_why() {
        let variables = [
            ("API_ROOT_PATH", "/api"),
            ("CONSERVER_API_TOKEN", "hunter2"),
            ("LOGGING_CONFIG_FILE", "x.conf"),
            ("SENTRY_DSN", ""),
            ("PATH", "/bin"),
        ];
        let expected = "LOGGING_CONFIG_FILE (LOG_LEVEL and CONSERVER_LOG_FORMAT say how the log looks); \
                        CONSERVER_API_TOKEN, API_ROOT_PATH (of the API server)";
        assert_eq!(line(&variables, &[]).as_deref(), Some(expected));
        assert_eq!(line(&[], &[]), None);
    }

    #[test]
    fn what_every_shell_sets_is_named_only_if_a_deployment_set_it() {
        let host = [("HOSTNAME", "web-1"), ("ENV", "prod")];
        assert_eq!(line(&host, &[]), None);
        let named = line(&host, &["HOSTNAME", "ENV"]).unwrap_or_default();
        assert!(
            named.contains("HOSTNAME (") && named.contains("ENV ("),
            "{named}"
        );
        let url = line(&[("HOSTNAME", "https://api.example.org")], &[]);
        assert_eq!(
            url.as_deref(),
            Some("HOSTNAME (CONSERVER_INSTANCE names this daemon)")
        );
    }

    #[test]
    fn no_setting_is_ignored() {
        for ignored in IGNORED {
            assert!(
                TABLE.iter().all(|row| row.name != ignored.name),
                "src/settings/ignored.rs: remove {}, which is a setting",
                ignored.name
            );
        }
    }
}
