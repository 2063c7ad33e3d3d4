//! The variables of the existing deployment: where they come from, and what each of them means here.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Outline;
use crate::secret::Secret;
use crate::settings::{RedisUrl, TABLE, misspelt_among};

/// The most bytes of a file of variables.
const MOST_BYTES: u64 = 1 << 20;

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
    /// The API server alone reads it.
    ApiServer,
    /// The existing worker reads it, conserver does not.
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
];

/// Variables that the existing worker reads and that mean nothing here, or something else; one that ends with an
/// underscore is the beginning of names.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    (
        "LOGGING_CONFIG_FILE",
        "the log is set by LOG_LEVEL and CONSERVER_LOG_FORMAT (text or json)",
    ),
    (
        "HOSTNAME",
        "the daemon's name is CONSERVER_INSTANCE, by default the host name",
    ),
    (
        "OTEL_",
        "no OpenTelemetry: CONSERVER_HTTP serves metrics for Prometheus",
    ),
    (
        "SENTRY_",
        "errors are in the log; CONSERVER_LOG_FORMAT=json makes them easy to collect",
    ),
];

/// Variables of the API server, which stay where they are.
const OF_API_SERVER: &[&str] = &[
    "CONSERVER_API_",
    "VCON_INDEX_",
    "VCON_SORTED_FORCE_RESET",
    "API_ROOT_PATH",
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

/// Words in the names of variables whose values are never shown.
const OF_SECRETS: &[&str] = &[
    "key",
    "token",
    "secret",
    "password",
    "passwd",
    "credential",
    "proxy_url",
    "dsn",
    "auth",
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

    /// Those of a file in the form of `.env`, of `docker run --env-file` or of systemd's `EnvironmentFile=`.
    ///
    /// # Errors
    /// The file cannot be read, or a line of it.
    pub fn of_file(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = read(path).map_err(|error| format!("{shown} could not be read: {error}"))?;
        let lines = parse(&text, &|name| env::var_os(name))
            .map_err(|(line, why)| format!("{shown}:{line}: {why}"))?;
        Ok(Self {
            file: Some(path.to_owned()),
            values: lines
                .into_iter()
                .map(|(name, value)| (name, value.into()))
                .collect(),
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
    pub fn python_folders(&self) -> Option<&str> {
        self.text(PYTHON_FOLDERS)
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
        let is = |(known, _): &&(&str, &str)| begins(name, known);
        let (means, note) = if TABLE.iter().any(|row| row.name == name) {
            (Meaning::Setting, self.setting(name))
        } else if outline.variables.iter().any(|named| named == name) {
            (Meaning::Configuration, "config.yml names it".to_owned())
        } else if OF_API_SERVER.iter().any(|known| begins(name, known)) {
            let note = "of the API server, which stays as it is";
            (Meaning::ApiServer, note.to_owned())
        } else if let Some((_, why)) = WITHOUT_EFFECT.iter().find(is) {
            (Meaning::NoEffect, (*why).to_owned())
        } else if name == PYTHON_FOLDERS {
            let note = "folders of Python modules are named by CONSERVER_PYTHON_PATH";
            (Meaning::NoEffect, note.to_owned())
        } else if let Some(warning) = misspelt(name) {
            (Meaning::Misspelt, warning)
        } else if has_modules && self.may_be_of_modules(name) {
            let note = "modules and programs get it with the environment of the daemon";
            (Meaning::Modules, note.to_owned())
        } else {
            (Meaning::Unknown, "nothing here reads it".to_owned())
        };
        VariableNote {
            name: name.to_owned(),
            means,
            note,
        }
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
            _ if OF_BOTH.contains(&name) => "as before".to_owned(),
            _ => "conserver's own".to_owned(),
        }
    }

    /// Whether it goes into the settings of the service for Python modules and programs.
    fn may_be_of_modules(&self, name: &str) -> bool {
        self.file.is_some() || OF_MODULES.iter().any(|known| name.starts_with(known))
    }

    /// The value of a setting as it can be shown; `None` if it holds a secret.
    pub fn shown(&self, name: &str) -> Option<String> {
        let value = self.text(name)?;
        if name == "REDIS_URL" {
            let url = value.trim().parse::<RedisUrl>().ok()?;
            return Some(value.to_owned()).filter(|_| url.to_string() == value.trim());
        }
        let is_setting = TABLE.iter().any(|row| row.name == name);
        (is_setting && !is_secret(name)).then(|| value.to_owned())
    }

    /// The values that no text from elsewhere may show.
    pub fn secrets(&self) -> Vec<Secret> {
        let secret = self.values.iter().filter(|(name, _)| is_secret(name));
        secret
            .filter_map(|(_, value)| value.to_str().map(Secret::new))
            .collect()
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    OF_SECRETS.iter().any(|word| name.contains(word))
}

/// Whether a name is this one, or begins with it if it ends with an underscore.
fn begins(name: &str, known: &str) -> bool {
    name == known || known.ends_with('_') && name.starts_with(known)
}

fn misspelt(name: &str) -> Option<String> {
    let variable = [(name.into(), "set".into())];
    misspelt_among(variable.into_iter()).pop()
}

fn read(path: &Path) -> io::Result<String> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if meta.len() > MOST_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    let bytes = fs::read(path)?;
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

/// The variables of a file in their order. `outer` gives those that the file only names.
///
/// # Errors
/// The line that cannot be read, and why.
fn parse(
    text: &str,
    outer: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Vec<(String, String)>, (usize, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let number = index + 1;
        let line = line.trim_start();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let (name, rest) = match line.split_once('=') {
            Some((name, rest)) => (name.trim(), Some(rest.trim_start())),
            None => (line.trim(), None),
        };
        if !is_name(name) {
            return Err((
                number,
                "this is neither NAME=VALUE nor a comment".to_owned(),
            ));
        }
        let Some(rest) = rest else {
            // As docker has it: the value is the one that is set outside.
            let value = outer(name).and_then(|value| value.into_string().ok());
            variables.extend(value.map(|value| (name.to_owned(), value)));
            continue;
        };
        let value = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let mut quoted = rest[1..].to_owned();
                let content = loop {
                    if let Some(content) = unquoted(&quoted, quote) {
                        break content;
                    }
                    let Some((_, more)) = lines.next() else {
                        return Err((number, format!("the value of {name} has no closing quote")));
                    };
                    quoted.push('\n');
                    quoted.push_str(more);
                };
                match quote {
                    '"' => filled(&content, &variables, outer),
                    _ => content,
                }
            }
            _ => filled(bare(rest), &variables, outer),
        };
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

fn is_name(name: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    !name.is_empty() && name.chars().all(is_good) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// A value without quotes: up to a comment.
fn bare(text: &str) -> &str {
    if text.starts_with('#') {
        return "";
    }
    let comment = text.find(" #").or_else(|| text.find("\t#"));
    text[..comment.unwrap_or(text.len())].trim_end()
}

/// The text before the closing quote, without escapes; `None` if there is no such quote.
fn unquoted(text: &str, quote: char) -> Option<String> {
    let mut content = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            c if c == quote => return Some(content),
            '\\' => match characters.next()? {
                c if c == quote || c == '\\' => content.push(c),
                'n' if quote == '"' => content.push('\n'),
                't' if quote == '"' => content.push('\t'),
                'r' if quote == '"' => content.push('\r'),
                // What systemd escapes.
                c @ ('$' | '`') if quote == '"' => content.push(c),
                c => content.extend(['\\', c]),
            },
            c => content.push(c),
        }
    }
}

/// The text with `${NAME}` and `${NAME:-default}` replaced, as python-dotenv and docker compose do.
fn filled(
    text: &str,
    variables: &[(String, String)],
    outer: &dyn Fn(&str) -> Option<OsString>,
) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once("${") {
        done.push_str(before);
        let Some((named, after)) = inside.split_once('}') else {
            done.push_str("${");
            rest = inside;
            continue;
        };
        let (name, default) = named.split_once(":-").unwrap_or((named, ""));
        let known = variables.iter().rev().find(|(known, _)| known == name);
        let value = match known {
            Some((_, value)) => Some(value.clone()),
            None => outer(name).and_then(|value| value.into_string().ok()),
        };
        done.push_str(
            value
                .as_deref()
                .filter(|it| !it.is_empty())
                .unwrap_or(default),
        );
        rest = after;
    }
    done.push_str(rest);
    done
}

/// A value as it stands in `/etc/conserver/conserver.env`, where systemd reads it.
pub(super) fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-+=:,./@%?&~^[]".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return value.to_owned();
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
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        let outer = |name: &str| (name == "OUTER").then(|| "from outside".into());
        parse(text, &outer).unwrap()
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    fn of_text(text: &str) -> Variables {
        Variables {
            file: Some("/srv/vcon/.env".into()),
            values: parsed(text)
                .into_iter()
                .map(|(name, value)| (name, value.into()))
                .collect(),
        }
    }

    #[test]
    fn files_are_read_as_python_docker_and_systemd_read_them() {
        for (text, expected) in [
            ("", vec![]),
            ("\u{feff}A=1\r\n# B=2\n; C=3\n\n", vec![pair("A", "1")]),
            ("export A = b c  # comment\n", vec![pair("A", "b c")]),
            ("A=b#c\nB=#c", vec![pair("A", "b#c"), pair("B", "")]),
            (r#"A="b # c" # d"#, vec![pair("A", "b # c")]),
            (r#"A="b\"\\\n\$c\q""#, vec![pair("A", "b\"\\\n$c\\q")]),
            (r"A='b\'\n${B}'", vec![pair("A", "b'\\n${B}")]),
            ("A='1\n2'\nB=3", vec![pair("A", "1\n2"), pair("B", "3")]),
            (
                "A=x\nB=${A}y${C:-z}${C}",
                vec![pair("A", "x"), pair("B", "xyz")],
            ),
            (
                "OUTER\nUNSET\nB=${OUTER}",
                vec![pair("OUTER", "from outside"), pair("B", "from outside")],
            ),
            ("A=p@ss=w${rd", vec![pair("A", "p@ss=w${rd")]),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_without_its_value() {
        for (text, line, why) in [
            ("A=1\nhunter2 hunter2\n", 2, "neither NAME=VALUE"),
            (
                "A=1\n\nB='hunter2\n",
                3,
                "the value of B has no closing quote",
            ),
            ("=hunter2", 1, "neither NAME=VALUE"),
        ] {
            let (number, told) = parse(text, &|_| None).unwrap_err();
            assert_eq!(number, line, "{text}");
            assert!(told.contains(why) && !told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn what_is_quoted_reads_as_it_was() {
        for value in [
            "plain",
            "redis://h:6379/2",
            "",
            "a b",
            "p$w\"`\\'",
            "#",
            "Grüße",
            "it's",
        ] {
            let line = format!("A={}", quoted(value));
            assert_eq!(parsed(&line), [pair("A", value)], "{line}");
        }
        assert_eq!(quoted("redis://h:6379/2"), "redis://h:6379/2");
        assert_eq!(quoted("a b"), "\"a b\"");
    }

    #[test]
    fn each_variable_has_its_meaning() {
        let text = "chains: {}\nlinks: {a: {module: links.webhook, options: {x: '${HOOK_URL}'}}}";
        let outline = Outline::parse(text, Path::new("config.yml")).unwrap();
        let variables = of_text(
            "REDIS_URL=redis://u:hunter2@h\nHOOK_URL=http://h\nCONSERVER_API_TOKEN=t\nLOGGING_CONFIG_FILE=l\n\
             OTEL_EXPORTER_OTLP_ENDPOINT=http://o\nCONSERVER_WORKER=2\nOPENAI_API_KEY=k\nPYTHONPATH=/app\n\
             VCON_DLQ_EXPIRY=0\nEMPTY=\n",
        );
        let means = |has_modules| -> Vec<(String, Meaning)> {
            let notes = variables.notes(&outline, has_modules).into_iter();
            notes.map(|note| (note.name, note.means)).collect()
        };
        let expected = [
            ("CONSERVER_API_TOKEN", Meaning::ApiServer),
            ("CONSERVER_WORKER", Meaning::Misspelt),
            ("HOOK_URL", Meaning::Configuration),
            ("LOGGING_CONFIG_FILE", Meaning::NoEffect),
            ("OPENAI_API_KEY", Meaning::Unknown),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", Meaning::NoEffect),
            ("PYTHONPATH", Meaning::NoEffect),
            ("REDIS_URL", Meaning::Setting),
            ("VCON_DLQ_EXPIRY", Meaning::Setting),
        ];
        let mut expected = expected.map(|(name, means)| (name.to_owned(), means));
        assert_eq!(means(false), expected);
        expected[4].1 = Meaning::Modules;
        assert_eq!(means(true), expected);
        assert_eq!(variables.shown("REDIS_URL"), None);
        assert_eq!(variables.shown("HOOK_URL"), None);
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
        assert_eq!(
            variables.path("A").unwrap(),
            Path::new("/srv/vcon/./config.yml")
        );
        assert_eq!(variables.path("B").unwrap(), Path::new("/app/config.yml"));
        assert_eq!(variables.path("C"), None);
    }
}
