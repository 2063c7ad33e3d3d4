//! The variables of the existing deployment: where they come from, and what each of them means here.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Outline;
use crate::python::passwords;
use crate::secret::Secret;
use crate::secret::names_a_secret;
use crate::settings::{IGNORED, RedisUrl, SettingsErrors, TABLE, misspelt_among, variables_of};

/// The variables of a deployment.
pub(super) struct Variables {
    /// The file they are from; none for those of this process.
    pub file: Option<PathBuf>,
    values: BTreeMap<String, OsString>,
}

/// What a variable means to conserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Meaning {
    /// It is a setting.
    Setting,
    /// It is a setting, with a value that it cannot have.
    Wrong,
    /// The configuration names it as `${NAME}`.
    Configuration,
    /// Python modules, or programs of links, may read it.
    Modules,
    /// The existing server reads it, conserver does not.
    NoEffect,
    /// It is probably a misspelt setting.
    Misspelt,
    /// Nobody is known to read it.
    Unknown,
}

/// One variable of the deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct VariableNote {
    pub name: String,
    pub means: Meaning,
    pub note: String,
}

/// The settings that the existing worker has too.
const OF_BOTH: &[&str] = &[
    "REDIS_URL",
    "CONSERVER_CONFIG_FILE",
    "CONSERVER_WORKERS",
    "CONSERVER_VCON_CONCURRENCY",
    "CONSERVER_PARALLEL_STORAGE",
    "CONSERVER_START_METHOD",
    "CONSERVER_HEADER_NAME",
    "TICK_INTERVAL",
    "LOG_LEVEL",
    "VCON_REDIS_EXPIRY",
    "VCON_CONTEXT_EXPIRY",
    "VCON_DLQ_EXPIRY",
    "VCON_SORTED_SET_NAME",
    "VCON_STORAGE_FALLBACK_ENABLED",
    "EGRESS_FORMAT_VERSION",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_METRIC_EXPORT_INTERVAL",
];

/// What the names of further variables of the existing server begin with that have no effect here, and why.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    (
        "OTEL_",
        "spans and metrics are sent as the OTEL_ variables among the settings say",
    ),
    ("CONSERVER_API_", "of the API server"),
    ("VCON_INDEX_", "of the API server"),
];

/// Variables that every process or container image has of its own: those of another one would do harm.
const OF_THE_SYSTEM: &[&str] = &[
    "GPG_KEY",
    "HOME",
    "HOSTNAME",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "OLDPWD",
    "PATH",
    "PWD",
    "PYTHON_GET_PIP_SHA256",
    "PYTHON_GET_PIP_URL",
    "PYTHON_PIP_VERSION",
    "PYTHON_SETUPTOOLS_VERSION",
    "PYTHON_SHA256",
    "PYTHON_VERSION",
    "SHELL",
    "SHLVL",
    "TERM",
    "USER",
    "VIRTUAL_ENV",
];

/// The folders of Python modules in the existing deployment.
const PYTHON_FOLDERS: &str = "PYTHONPATH";

/// Variables that modules of the existing worker read, for an environment that holds much else besides.
const OF_MODULES: &[&str] = &[
    "API_KEY",
    "API_URL",
    "AWS_",
    "AZURE_",
    "DEEPGRAM_",
    "GROQ_",
    "HF_",
    "HUGGING",
    "LITELLM_",
    "MILVUS_",
    "MONGO",
    "OPENAI_",
    "SLACK_",
    "openai_api_key",
    "api_key",
];

impl Variables {
    /// Those of this process.
    pub fn of_process() -> Self {
        let named =
            env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Self {
            file: None,
            values: named.collect(),
        }
    }

    /// Those of a file in the form of `.env`.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it.
    pub fn of_file(path: &Path) -> Result<Self, SettingsErrors> {
        Ok(Self {
            file: Some(path.to_owned()),
            values: variables_of(path)?.into_iter().collect(),
        })
    }

    /// The value of one, if it is set and not empty.
    pub fn get(&self, name: &str) -> Option<&OsString> {
        self.values.get(name).filter(|value| !value.is_empty())
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.to_str()
    }

    /// All of them.
    pub fn all(&self) -> HashMap<OsString, OsString> {
        let all = self.values.iter();
        all.map(|(name, value)| (name.into(), value.clone()))
            .collect()
    }

    /// Those of a file, for a process that has those of this one besides, without those of another system.
    pub fn of_file_alone(&self) -> Vec<(String, OsString)> {
        let all = self.values.iter().filter(|_| self.file.is_some());
        let all = all.filter(|(name, _)| !OF_THE_SYSTEM.contains(&name.as_str()));
        all.map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// The path in one of them. A relative path in a file is one from the file's folder, where the existing worker
    /// runs that reads it.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.get(name)?);
        let folder = self.file.as_deref().and_then(Path::parent);
        Some(match folder {
            Some(folder) if path.is_relative() => folder.join(path),
            _ => path,
        })
    }

    /// The folders of Python modules in the existing deployment, if they are named.
    pub fn python_folders(&self) -> Option<&OsString> {
        self.get(PYTHON_FOLDERS)
    }

    /// What each of them means, in their order; of this process's, only those that may be the worker's.
    pub fn notes(&self, outline: &Outline, has_modules: bool) -> Vec<VariableNote> {
        let names = self.values.iter().filter(|(_, value)| !value.is_empty());
        let notes = names.map(|(name, _)| self.note(name, outline, has_modules));
        // Much in a process's environment is nobody's.
        notes
            .filter(|note| self.file.is_some() || note.means != Meaning::Unknown)
            .collect()
    }

    fn note(&self, name: &str, outline: &Outline, has_modules: bool) -> VariableNote {
        let is_of_modules = has_modules && (self.file.is_some() || may_be_of_modules(name));
        let (means, note) = if TABLE.iter().any(|row| row.name == name) {
            (Meaning::Setting, self.setting(name))
        } else if outline.variables.iter().any(|named| named == name) {
            (Meaning::Configuration, "config.yml names it".to_owned())
        } else if name == PYTHON_FOLDERS {
            let note = "folders of Python modules are named by CONSERVER_PYTHON_PATH";
            (Meaning::NoEffect, note.to_owned())
        } else if let Some(why) = self.ignored(name) {
            (Meaning::NoEffect, why.to_owned())
        } else if OF_THE_SYSTEM.contains(&name) {
            let note = "of the system or the container image: the service has its own";
            match self.file.is_some() {
                true => (Meaning::NoEffect, note.to_owned()),
                false => (Meaning::Unknown, note.to_owned()),
            }
        } else if let Some(warning) = misspelt(name) {
            (Meaning::Misspelt, warning)
        } else if is_of_modules {
            let note = "Python modules and programs get it with the environment of the service";
            (Meaning::Modules, note.to_owned())
        } else if let Some(why) = of_a_family(name) {
            (Meaning::NoEffect, why.to_owned())
        } else {
            (Meaning::Unknown, "nothing here reads it".to_owned())
        };
        VariableNote {
            name: name.to_owned(),
            means,
            note,
        }
    }

    /// Why a variable that the existing server alone reads has no effect here.
    fn ignored(&self, name: &str) -> Option<&'static str> {
        let value = self.text(name).unwrap_or_default();
        let mut ignored = IGNORED.iter().filter(|it| it.name == name);
        let ignored = ignored.find(|it| it.is_meant(value, self.file.is_some()));
        ignored.map(|it| it.why)
    }

    /// What is special about a setting of this deployment.
    fn setting(&self, name: &str) -> String {
        let value = self.text(name).unwrap_or_default().trim();
        match name {
            "CONSERVER_CONFIG_FILE" => "the file is copied to /etc/conserver/config.yml".to_owned(),
            "CONSERVER_WORKERS" if value.parse::<i64>().is_ok_and(|number| number <= 1) => {
                "one worker process beside the supervisor, replaced if it dies".to_owned()
            }
            "VCON_DLQ_EXPIRY" if value == "0" => {
                "dead letters keep the time to live that they have".to_owned()
            }
            "EGRESS_FORMAT_VERSION" => {
                "for links.webhook, storage.postgres, storage.s3 and storage.elasticsearch"
                    .to_owned()
            }
            "OTEL_EXPORTER_OTLP_ENDPOINT" => {
                "HTTP with protobuf, on the collector's port 4318: gRPC is not built in".to_owned()
            }
            "OTEL_EXPORTER_OTLP_PROTOCOL" if value == "grpc" => {
                "grpc is not built in: set http/protobuf".to_owned()
            }
            _ if OF_BOTH.contains(&name) => "as before".to_owned(),
            _ => "conserver's own".to_owned(),
        }
    }

    /// The value of a setting as it can be shown; `None` if it holds a secret.
    pub fn shown(&self, name: &str) -> Option<String> {
        let value = self.text(name)?;
        if name == "REDIS_URL" {
            let url = value.trim().parse::<RedisUrl>().ok()?;
            return Some(value.to_owned()).filter(|_| url.to_string() == value.trim());
        }
        let is_setting = TABLE.iter().any(|row| row.name == name);
        let has_login = name.ends_with("_ENDPOINT") && value.contains('@');
        (is_setting && !names_a_secret(name) && !has_login).then(|| value.to_owned())
    }

    /// The values that no text from elsewhere may show.
    pub fn secrets(&self) -> Vec<Secret> {
        let mut secrets = Vec::new();
        for (name, value) in &self.values {
            let Some(value) = value.to_str() else {
                continue;
            };
            if names_a_secret(name) {
                secrets.push(Secret::new(value));
            }
            if value.contains("://") {
                secrets.extend(passwords(value));
            }
        }
        secrets
    }
}

/// Why a variable with such a name has no effect here, unless a module reads it.
fn of_a_family(name: &str) -> Option<&'static str> {
    let mut families = WITHOUT_EFFECT.iter();
    let family = families.find(|(begin, _)| name.starts_with(begin));
    family.map(|(_, why)| *why)
}

/// Whether modules of the existing worker read it.
fn may_be_of_modules(name: &str) -> bool {
    OF_MODULES.iter().any(|begin| name.starts_with(begin))
}

fn misspelt(name: &str) -> Option<String> {
    let variable = [(name.into(), "set".into())];
    misspelt_among(variable.into_iter()).pop()
}

/// A value as it stands in `/etc/conserver/conserver.env`, where systemd reads it.
pub(super) fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-+=:,./@%?&~^[]".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
    }
    if !value.contains(['\'', '\\']) {
        return format!("'{value}'");
    }
    let mut quoted = String::from("\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// The variables in `.env` with this text, in a folder that is gone.
    pub fn of_text(text: &str) -> Variables {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".env");
        std::fs::write(&path, text).unwrap();
        Variables::of_file(&path).unwrap()
    }

    #[test]
    fn values_are_quoted_as_systemd_reads_them() {
        for (value, line) in [
            ("redis://h:6379/2?db=3", "redis://h:6379/2?db=3"),
            ("", "''"),
            ("a b", "'a b'"),
            ("p$w\"`#", "'p$w\"`#'"),
            ("it's", "\"it's\""),
            ("it's $5 \\ \"x\"", "\"it's \\$5 \\\\ \\\"x\\\"\""),
        ] {
            assert_eq!(quoted(value), line);
        }
    }

    #[test]
    fn each_variable_has_its_meaning() {
        let text = "chains: {}\nlinks: {a: {module: links.webhook, options: {x: '${HOOK_URL}'}}}";
        let outline = Outline::parse(text, Path::new("config.yml")).unwrap();
        let variables = of_text(
            "REDIS_URL=redis://u:hunter2@h\nHOOK_URL=http://h\nCONSERVER_API_TOKEN=t\nLOGGING_CONFIG_FILE=l\n\
             OTEL_EXPORTER_OTLP_HEADERS=a=h\nOTEL_EXPORTER_OTLP_INSECURE=1\nCONSERVER_WORKER=2\nOPENAI_API_KEY=k\nPYTHONPATH=/app\n\
             VCON_DLQ_EXPIRY=0\nEMPTY=\nHOSTNAME=http://h\nPATH=/bin\nGPG_KEY=k\n",
        );
        let means = |has_modules| -> Vec<(String, Meaning)> {
            let notes = variables.notes(&outline, has_modules).into_iter();
            notes.map(|note| (note.name, note.means)).collect()
        };
        let expected = |of_modules: Meaning, key: Meaning| {
            let expected = [
                ("CONSERVER_API_TOKEN", Meaning::NoEffect),
                ("CONSERVER_WORKER", Meaning::Misspelt),
                ("GPG_KEY", Meaning::NoEffect),
                ("HOOK_URL", Meaning::Configuration),
                ("HOSTNAME", Meaning::NoEffect),
                ("LOGGING_CONFIG_FILE", Meaning::NoEffect),
                ("OPENAI_API_KEY", key),
                ("OTEL_EXPORTER_OTLP_HEADERS", Meaning::Setting),
                ("OTEL_EXPORTER_OTLP_INSECURE", of_modules),
                ("PATH", Meaning::NoEffect),
                ("PYTHONPATH", Meaning::NoEffect),
                ("REDIS_URL", Meaning::Setting),
                ("VCON_DLQ_EXPIRY", Meaning::Setting),
            ];
            expected.map(|(name, means)| (name.to_owned(), means))
        };
        assert_eq!(means(false), expected(Meaning::NoEffect, Meaning::Unknown));
        assert_eq!(means(true), expected(Meaning::Modules, Meaning::Modules));
        assert_eq!(variables.shown("REDIS_URL"), None);
        assert_eq!(variables.shown("HOOK_URL"), None);
        assert_eq!(variables.shown("OTEL_EXPORTER_OTLP_HEADERS"), None);
        let given = variables.of_file_alone();
        let has = |name: &str| given.iter().any(|(known, _)| known == name);
        assert!(has("OPENAI_API_KEY") && !has("PATH"));
        assert_eq!(variables.shown("VCON_DLQ_EXPIRY").as_deref(), Some("0"));
    }

    #[test]
    fn a_redis_url_is_shown_if_it_holds_no_login() {
        for (url, shown) in [
            ("redis://h:6379/2", true),
            ("redis://:hunter2@h", false),
            ("redis://h?password=hunter2", false),
            ("unix:///run/redis.sock?db=2", true),
            ("hunter2", false),
        ] {
            let variables = of_text(&format!("REDIS_URL='{url}'"));
            assert_eq!(variables.shown("REDIS_URL").is_some(), shown, "{url}");
        }
    }

    #[test]
    fn a_relative_path_of_a_file_is_one_from_its_folder() {
        let variables = of_text("A=./config.yml\nB=/app/config.yml");
        let folder = variables.file.as_deref().and_then(Path::parent).unwrap();
        assert_eq!(variables.path("A").unwrap(), folder.join("config.yml"));
        assert_eq!(variables.path("B").unwrap(), Path::new("/app/config.yml"));
        assert_eq!(variables.path("C"), None);
    }
}
