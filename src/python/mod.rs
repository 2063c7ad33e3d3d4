//! The modules of an existing deployment that are not built in: Python code, run unchanged beside us.
//!
//! ```text
//! lane ── Host ──► interpreter: conserver_host.py ── imports, hook, links.x, storage.y, tracers.z
//!          │            one line of JSON for each call, one as its answer
//!          └─ killed with its process group at a limit, started again when it has ended
//! ```
//!
//! Each lane has a [`Host`] of its own, and not each worker one: a call that has to be killed takes no
//! other lane's vCon along, nobody waits for another lane's interpreter lock, and a leak or a crash is
//! one lane's. The interpreter is started with the first call that needs it, so that a lane without Python
//! modules has none.
//!
//! Here is what is known of modules ([`PythonModule`]) and of their host ([`HostSetup`]), the calls, and
//! [`look`], which asks an interpreter whether modules can be used; `pip` installs what is missing. The link, the storage and the way of a
//! vCon that make these calls are in `link`, `storage` and `worker`.

mod hooks;
mod host;
mod pip;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::Value;

pub use hooks::{AfterLink, Hooks, LinkStatus, Trace};
pub use host::{Host, look};
pub use pip::{Installer, TIME_LIMIT as PIP_TIME_LIMIT, line as pip_line};

use crate::failure::{Failure, FailureKind};
use crate::program::Program;
use crate::secret::{Secret, names_a_secret};
use crate::settings::PythonSettings;
use crate::vcon::VconId;

/// What runs the modules.
pub const SCRIPT: &str = include_str!("../../packaging/python/conserver_host.py");

/// Reads the host and runs it: byte by byte, for what follows is the host's to read.
const BEGIN: &str = "import os; exec(compile(bytes(os.read(0, 1)[0] for _ in range(LENGTH)), \
    'conserver_host.py', 'exec'))";

/// The arguments of an interpreter that reads [`SCRIPT`] from its standard input: so there is no file that
/// could be of another version than the program. `what` it runs is for those who look with `ps`.
pub fn arguments(interpreter: &str, what: &str) -> Vec<String> {
    let begin = BEGIN.replace("LENGTH", &SCRIPT.len().to_string());
    let interpreter = interpreter.to_owned();
    vec![interpreter, "-c".to_owned(), begin, what.to_owned()]
}

/// So often may the host die of one vCon: then it is the vCon that kills it.
const DEATHS: u32 = 3;

/// Counts how often a host has died of the vCon that it has worked on last.
#[derive(Debug, Default)]
pub struct Deaths {
    last: Option<(VconId, u32)>,
}

impl Deaths {
    /// Judges how a call for this vCon has failed: the last death that is allowed is the vCon's own fault.
    pub fn judge(&mut self, id: &VconId, failure: Failure) -> Failure {
        if failure.kind != FailureKind::Crashed {
            return failure;
        }
        let before = self.last.take().filter(|(other, _)| other == id);
        let deaths = before.map_or(0, |(_, deaths)| deaths) + 1;
        if deaths < DEATHS {
            self.last = Some((id.clone(), deaths));
            return failure;
        }
        // Not beyond doubt: if the host dies of one vCon after the other, that is no vCon's fault.
        let message = failure.message;
        Failure::refused(format!("{message} ({deaths} times with this vCon)"))
    }
}

/// What a module is used for, which says what it must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModuleKind {
    /// `run(uuid, name, options)`
    Link,
    /// `save(uuid, options)`, perhaps `get` and `delete`
    Storage,
    /// `run(in_uuid, out_uuid, name, links, index, options)`
    Tracer,
    /// Nothing: it is loaded.
    Import,
}

impl ModuleKind {
    /// The word of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Storage => "storage",
            Self::Tracer => "tracer",
            Self::Import => "import",
        }
    }
}

/// A Python module as an entry of `config.yml` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonModule {
    /// Its name, as in `links.scitt`.
    pub module: String,
    /// What it is used for.
    pub kind: ModuleKind,
    /// The name of the entry.
    pub entry: String,
    /// The entry's options as JSON, if it has any.
    pub options: Option<String>,
    /// The package that has it, if the entry says so.
    pub pip_name: Option<String>,
    /// The longest time of one call, if the entry says so.
    pub timeout: Option<Duration>,
    /// The key of the module's name in the file, and its line.
    pub key: String,
    /// See `key`.
    pub line: usize,
}

/// Older names of `links.transcribe`, each with the vendor it stands for.
const LEGACY: [(&str, &str); 4] = [
    ("links.openai_transcribe", "openai"),
    ("links.groq_whisper", "groq"),
    ("links.hugging_face_whisper", "hugging_face"),
    ("links.deepgram_link", "deepgram"),
];

impl PythonModule {
    /// The vendor, if the name is an older one of `links.transcribe`.
    pub fn vendor(&self) -> Option<&'static str> {
        let is_link = self.kind == ModuleKind::Link;
        let legacy = LEGACY.iter().find(|(name, _)| *name == self.module);
        legacy.filter(|_| is_link).map(|(_, vendor)| *vendor)
    }

    /// Its members in a request: `"module":…,"kind":…` and, for an older name, `"vendor":…`.
    fn members(&self) -> String {
        let (module, kind) = (json(&self.module), self.kind.as_str());
        let vendor = self.vendor();
        let vendor = vendor.map_or_else(String::new, |vendor| format!(r#","vendor":"{vendor}""#));
        format!(r#""module":{module},"kind":"{kind}"{vendor}"#)
    }
}

/// A text as JSON.
fn json(text: &str) -> String {
    // Writing a string to memory does not fail.
    serde_json::to_string(text).unwrap_or_default()
}

/// What a host begins with: the settings, and what the configuration says for all modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSetup {
    /// Where the interpreter and the modules are.
    pub settings: PythonSettings,
    /// The file of the configuration, which modules may read too.
    pub config_file: PathBuf,
    /// The modules that are loaded at its start.
    pub imports: Vec<PythonModule>,
    /// What stands in the configuration and is not to be shown.
    pub secrets: Vec<Secret>,
    /// Variables that take the place of the daemon's own.
    pub variables: Vec<(String, OsString)>,
    /// Whether hooks are left aside, so that a broken one does not keep others from being looked at.
    pub without_hooks: bool,
}

/// The other forms in which a program may show a secret: decoded from a URL, and escaped in JSON.
fn other_forms(secret: &Secret) -> Vec<Secret> {
    let text = secret.reveal();
    let decoded = percent_decode_str(text).decode_utf8_lossy().into_owned();
    let escaped = json(text);
    let escaped = escaped.trim_matches('"').to_owned();
    let forms = [decoded, escaped].into_iter();
    forms.filter(|it| it != text).map(Secret::new).collect()
}

/// What in these options, a JSON text, is not to be shown.
pub fn secrets_of(options: &str) -> Vec<Secret> {
    fn collect(value: &Value, is_secret: bool, found: &mut Vec<Secret>) {
        match value {
            Value::String(text) if is_secret => found.push(Secret::new(text.as_str())),
            Value::Number(number) if is_secret => found.push(Secret::new(number.to_string())),
            Value::String(text) if text.contains("://") => found.extend(passwords(text)),
            Value::Array(items) => items.iter().for_each(|it| collect(it, is_secret, found)),
            Value::Object(members) => members
                .iter()
                .for_each(|(name, it)| collect(it, is_secret || names_a_secret(name), found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_str(options) {
        collect(&value, false, &mut found);
    }
    found
}

impl HostSetup {
    /// The program, which is not running yet.
    fn program(&self) -> Program {
        let settings = &self.settings;
        let argv = arguments(&settings.interpreter, "conserver-python-host");
        self.program_of(argv, "the Python host", settings.timeout, &[], Vec::new())
    }

    /// A program in the same environment but for these variables, and with these secrets besides.
    fn program_of(
        &self,
        argv: Vec<String>,
        name: &str,
        timeout: Duration,
        variables: &[(&str, OsString)],
        more_secrets: Vec<Secret>,
    ) -> Program {
        let own = self.variables.iter();
        let own = own.map(|(name, value)| (name.as_str(), value.clone()));
        let mut besides: Vec<(&str, OsString)> = own.chain(variables.iter().cloned()).collect();
        const CONFIG_FILE: &str = "CONSERVER_CONFIG_FILE";
        let is_given = besides.iter().any(|(name, _)| *name == CONFIG_FILE);
        if !is_given && env::var_os(CONFIG_FILE).is_none() {
            besides.push((CONFIG_FILE, self.config_file.clone().into()));
        }
        let mut secrets = self.secrets.clone();
        secrets.extend(more_secrets);
        let given = besides.iter();
        let given = given.map(|(name, value)| ((*name).into(), value.clone()));
        for (name, value) in env::vars_os().chain(given) {
            let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
            if names_a_secret(&name) {
                secrets.push(Secret::new(&*value));
            }
            if value.contains("://") {
                secrets.extend(passwords(&value));
            }
        }
        let others: Vec<Secret> = secrets.iter().flat_map(other_forms).collect();
        secrets.extend(others);
        Program::with_environment(argv, name, timeout, &besides, secrets)
    }

    /// What it is greeted with: the script, then its first line.
    fn greeting(&self, imports: &[PythonModule]) -> Vec<u8> {
        let imports: Vec<&str> = imports.iter().map(|it| it.module.as_str()).collect();
        let greeting = serde_json::json!({
            "path": self.folders(), "imports": imports, "load": [], "hooks": self.may_have_hooks(),
        });
        format!("{SCRIPT}{greeting}\n").into_bytes()
    }

    /// The folders in which the interpreter looks for modules before all others, in order.
    pub fn folders(&self) -> Vec<String> {
        let packages = packages_folder();
        let folders = self.settings.path.iter().chain(&packages);
        folders.map(|folder| folder.display().to_string()).collect()
    }

    /// Whether there may be hooks: a file of their name is on the path.
    pub fn may_have_hooks(&self) -> bool {
        let mut folders = self.settings.path.iter();
        !self.without_hooks
            && folders.any(|folder| {
                let is_there = |name: &str| {
                    folder.join(format!("{name}.py")).exists() || folder.join(name).exists()
                };
                is_there("hook") || is_there("after_link_hook")
            })
    }

    /// Whether a lane has to start its host before it works on anything.
    pub fn is_needed_at_start(&self) -> bool {
        !self.imports.is_empty() || self.may_have_hooks()
    }
}

/// Where packages are installed: below the state directory that systemd gives, else the user's.
pub fn packages_folder() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    let of_service = || env::split_paths(&variable("STATE_DIRECTORY")?).next();
    let of_user = || match variable("XDG_STATE_HOME") {
        Some(folder) => Some(PathBuf::from(folder).join("conserver")),
        None => Some(PathBuf::from(variable("HOME")?).join(".local/state/conserver")),
    };
    let folder = of_service().or_else(of_user)?;
    folder.is_absolute().then(|| folder.join("python"))
}

/// What of a URL must not be shown.
pub fn passwords(url: &str) -> Vec<Secret> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let user = rest.rsplit_once('@').map(|(user, _)| user);
    let password = user.and_then(|user| user.split_once(':')).map(|(_, it)| it);
    let value_of = |name: &str| {
        let (_, rest) = url.split_once(name)?;
        Some(rest.split_once('&').map_or(rest, |(value, _)| value))
    };
    let queries = [value_of("pass="), value_of("password=")];
    let found = [user, password].into_iter().chain(queries).flatten();
    found.map(Secret::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_in_options_is_known_by_its_name() {
        let options = r#"{"api_key":"one","model":"x","deep":{"auth":["two",{"a":"three"}]},
            "url":"mongodb://u:four@h","n":7,"DB_PASS":"five","password":83749182}"#;
        let found = secrets_of(options);
        let mut found: Vec<&str> = found.iter().map(Secret::reveal).collect();
        found.sort_unstable();
        assert_eq!(
            found,
            ["83749182", "five", "four", "one", "three", "two", "u:four"]
        );
        assert!(secrets_of("no JSON").is_empty());
    }

    #[test]
    fn a_secret_has_other_forms_in_which_a_program_may_show_it() {
        let forms = |text: &str| -> Vec<String> {
            let forms = other_forms(&Secret::new(text));
            forms.iter().map(|it| it.reveal().to_owned()).collect()
        };
        assert_eq!(forms("p%40ss word"), ["p@ss word"]);
        assert_eq!(forms("a\"b\nc"), [r#"a\"b\nc"#]);
        assert_eq!(forms("plain"), [""; 0]);
    }

    #[test]
    fn passwords_of_a_url_are_known() {
        for (url, secrets) in [
            ("redis://localhost", &[] as &[&str]),
            ("redis://user:word@host:1/2", &["user:word", "word"]),
            ("rediss://:w@rd@host", &[":w@rd", "w@rd"]),
            ("unix:///run/redis?db=1&pass=word&user=u", &["word"]),
            ("redis://h?sentinel_password=word", &["word"]),
        ] {
            let found = passwords(url);
            let found: Vec<&str> = found.iter().map(Secret::reveal).collect();
            assert_eq!(found, secrets, "{url}");
        }
    }
}
