//! `conserver config`: shows what is in force, writes a configuration to start with, and prints the schema.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::value::RawValue;

use super::output::{JsonLayout, eprint_line, eprint_lines, format_json, print_line, print_lines};
use super::status::find;
use crate::config::{Config, ConfigErrors, ShownConfig, ShownPlace, json_schema, yaml_text};
use crate::exit::Exit;
use crate::options::substitution::{Environment, references};
use crate::secret::names_a_secret;
use crate::settings::{EnvFile, Setting, Settings, TABLE};
use crate::visible::{printable, visible_json};

/// The configuration to start with, as the packages have it.
const STARTING: &str = include_str!("../../packaging/etc/config.yml");

/// Where the packages put the schema that the first line of [`STARTING`] names.
const SCHEMA: &str = "/usr/share/conserver/config.schema.json";

/// The section that holds the settings where all is shown as one file. Names that begin with `x-` are ignored.
const SETTINGS: &str = "x-settings-in-force";

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show the settings and the configuration in force, without secrets, as a config.yml
    ///
    /// The configuration is that of the running daemon, else that of the file; a last line on standard error
    /// says if the file differs from what is in force. Values that come from variables and files stay as
    /// they are written, as in ${PG_PASSWORD}. Settings are those that this command finds.
    ///
    /// Exits 0, or 78 when there is no configuration that can be read.
    Show(ShowArgs),
    /// Write a configuration to start with, with comments; never over a file that is there
    ///
    /// Exits 0, 64 when the file is there already, 70 when it cannot be written.
    Init(InitArgs),
    /// Print the JSON Schema of config.yml, by which editors complete and check it
    ///
    /// The packages have it as /usr/share/conserver/config.schema.json. An editor finds it by the first
    /// line of the file: # yaml-language-server: $schema=PATH
    Schema,
}

/// How to show it.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Say where each value comes from: the environment, .env, a file, the default
    #[arg(long)]
    origin: bool,

    /// Print a JSON object instead of YAML
    #[arg(long)]
    json: bool,
}

/// Where to write it.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The file [default: the one that the daemon would read]
    path: Option<PathBuf>,

    /// Print it instead
    #[arg(long, conflicts_with = "path")]
    print: bool,
}

impl ConfigCommand {
    /// Whether it shows settings, which are those of a service where one is.
    pub fn shows_settings(&self) -> bool {
        matches!(self, Self::Show(_))
    }

    /// Runs the command. `is_named` says whether `--config` names the file.
    pub fn run(&self, settings: &Settings, env_file: &EnvFile, is_named: bool) -> Exit {
        match self {
            Self::Show(show) => show.run(settings, env_file, is_named),
            Self::Init(init) => init.run(settings),
            Self::Schema => {
                print_lines(format_json(
                    &json_schema().to_string(),
                    JsonLayout::Indented,
                ));
                Exit::Ok
            }
        }
    }
}

/// A setting with its value in force.
#[derive(Serialize)]
struct ShownSetting {
    name: &'static str,
    /// `None` if it has none by default.
    value: Option<String>,
    origin: String,
}

/// All that `show` shows, as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    /// The file that the daemon reads.
    file: String,
    /// The instance and the process in which the configuration is in force, if a daemon runs.
    instance: Option<&'a str>,
    pid: Option<i32>,
    /// Whether the file differs from what is in force.
    changed: bool,
    settings: &'a [ShownSetting],
    config: &'a RawValue,
}

/// The configuration of a running daemon, or of the file.
struct Found {
    text: String,
    /// The instance and PID of the daemon that has it in force.
    daemon: Option<(String, i32)>,
    /// Whether the file differs from what is in force.
    changed: bool,
    /// What is to be said of it.
    note: Option<String>,
}

impl ShowArgs {
    fn run(&self, settings: &Settings, env_file: &EnvFile, is_named: bool) -> Exit {
        let file = &settings.config_file;
        let found = Found::of(settings);
        let shown = found.and_then(|found| Ok((ShownConfig::parse(&found.text, file)?, found)));
        let (config, found) = match shown {
            Ok(shown) => shown,
            Err(errors) => {
                eprint_lines(errors);
                return Exit::Config;
            }
        };
        let origins = Origins::new(settings, env_file, is_named);
        let all: Vec<ShownSetting> = TABLE.iter().map(|row| origins.setting(row)).collect();
        if self.json {
            let daemon = found.daemon.as_ref();
            let json = RawValue::from_string(config.json()).and_then(|config| {
                serde_json::to_string(&Shown {
                    file: file.display().to_string(),
                    instance: daemon.map(|(instance, _)| instance.as_str()),
                    pid: daemon.map(|(_, pid)| *pid),
                    changed: found.changed,
                    settings: &all,
                    config: &config,
                })
            });
            match json {
                Ok(json) => print_lines(visible_json(&format_json(&json, JsonLayout::Indented))),
                Err(error) => {
                    eprint_line(format_args!("could not write the result: {error}"));
                    return Exit::Internal;
                }
            }
        } else {
            let comment = |place: ShownPlace<'_>| origins.comment(place);
            let none = |_: ShownPlace<'_>| None;
            let config = if self.origin {
                config.yaml(&comment)
            } else {
                config.yaml(&none)
            };
            let head = match &found.daemon {
                Some((instance, pid)) => format!("# In force in {instance} (PID {pid})"),
                None => format!("# From {}; no daemon runs", file.display()),
            };
            print_line(head);
            print_lines(settings_text(&all, self.origin));
            print_lines(config);
        }
        if let Some(note) = found.note {
            eprint_line(note);
        }
        Exit::Ok
    }
}

/// The settings as a section of the file.
fn settings_text(settings: &[ShownSetting], with_origin: bool) -> String {
    let mut text = format!("{SETTINGS}:");
    for ShownSetting {
        name,
        value,
        origin,
    } in settings
    {
        let value = value.as_deref().map_or("null".to_owned(), yaml_text);
        text += &format!("\n  {name}: {value}");
        if with_origin {
            text += &format!("  # {}", printable(origin));
        }
    }
    text
}

impl Found {
    fn of(settings: &Settings) -> Result<Self, ConfigErrors> {
        let file = &settings.config_file;
        let on_disk = ShownConfig::text_of_file(file);
        let Ok(daemon) = find(settings) else {
            return Ok(Self {
                text: on_disk?,
                daemon: None,
                changed: false,
                note: None,
            });
        };
        let text = match ShownConfig::text_in_force(&daemon.config) {
            Ok(text) => text,
            Err(errors) => {
                let why = "what is in force cannot be read, this is the file";
                return Ok(Self {
                    text: on_disk?,
                    daemon: None,
                    changed: false,
                    note: Some(format!("{why}: {errors}")),
                });
            }
        };
        let shown = file.display();
        let note = match &on_disk {
            Ok(now) if *now == text => None,
            Ok(now) if Config::parse(now, file).is_err() => Some(format!(
                "{shown} differs from what is in force, and is not valid: `conserver check` says why"
            )),
            Ok(_) => Some(format!(
                "{shown} has changed since; `conserver reload` puts it in force"
            )),
            Err(errors) => Some(errors.to_string()),
        };
        Ok(Self {
            text,
            daemon: Some((daemon.header.instance, daemon.header.pid)),
            changed: note.is_some(),
            note,
        })
    }
}

/// Where values come from.
struct Origins<'a> {
    settings: &'a Settings,
    env_file: &'a EnvFile,
    /// Whether `--config` names the file.
    is_named: bool,
    environment: Environment,
}

impl<'a> Origins<'a> {
    fn new(settings: &'a Settings, env_file: &'a EnvFile, is_named: bool) -> Self {
        Self {
            settings,
            env_file,
            is_named,
            environment: Environment::of_process(),
        }
    }

    fn setting(&self, row: &Setting) -> ShownSetting {
        let name = row.name;
        let given = env::var_os(name).map(|value| value.to_string_lossy().trim().to_owned());
        let given = given.filter(|value| !value.is_empty());
        let is_file = name == "CONSERVER_CONFIG_FILE";
        let origin = match &given {
            _ if is_file && self.is_named => "--config".to_owned(),
            Some(_) => self.variable(name),
            None => "default".to_owned(),
        };
        let value = match name {
            "REDIS_URL" => Some(self.settings.redis_url.to_string()),
            "CONSERVER_CONFIG_FILE" => Some(self.settings.config_file.display().to_string()),
            "CONSERVER_INSTANCE" => Some(self.settings.instance.clone()),
            "CONSERVER_START_METHOD" => Some(self.settings.start_method.as_str().to_owned()),
            _ if given.is_some() && names_a_secret(name) && !name.ends_with("_FILE") => {
                Some("***".to_owned())
            }
            _ => given.or_else(|| (!row.default.starts_with('(')).then(|| row.default.to_owned())),
        };
        ShownSetting {
            name,
            value,
            origin,
        }
    }

    /// Where a variable has its value from.
    fn variable(&self, name: &str) -> String {
        match self.env_file.origin(name) {
            Some((path, line)) => format!("{}, line {line}", path.display()),
            None if env::var_os(name).is_some() => "environment".to_owned(),
            None => "not set".to_owned(),
        }
    }

    /// Where the values come from that a text of the configuration names.
    fn comment(&self, place: ShownPlace<'_>) -> Option<String> {
        let (key, text) = match place {
            ShownPlace::Entry(line) => return Some(format!("line {line}")),
            ShownPlace::Text(key, text) => (key, text),
        };
        let mut origins = Vec::new();
        for name in references(text) {
            origins.push(match name.strip_prefix("file:") {
                Some(file) => self.file(file),
                None => format!("{name}: {}", self.variable(name)),
            });
        }
        if origins.is_empty() && key.ends_with("_file") {
            origins.push(self.file(text));
        }
        let text = origins.join("; ");
        (!text.is_empty()).then(|| printable(&text).into_owned())
    }

    fn file(&self, name: &str) -> String {
        match self.environment.place(name) {
            Ok(place) => format!("file {}", place.display()),
            Err(why) => why,
        }
    }
}

impl InitArgs {
    fn run(&self, settings: &Settings) -> Exit {
        let text = starting_text(Path::new(SCHEMA).exists());
        if self.print {
            print_lines(text.trim_end());
            return Exit::Ok;
        }
        let path = self.path.as_ref().unwrap_or(&settings.config_file);
        let shown = path.display();
        match write_new(path, text) {
            Ok(()) => {
                print_line(format_args!(
                    "Wrote {shown}; after a change of it: conserver check --config {shown}"
                ));
                Exit::Ok
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                eprint_line(format_args!("{shown} is there already, and stays as it is"));
                Exit::Usage
            }
            Err(error) => {
                eprint_line(format_args!("could not write {shown}: {error}"));
                Exit::Internal
            }
        }
    }
}

/// The configuration to start with. Without the schema, an editor would complain of the line that names it.
fn starting_text(has_schema: bool) -> &'static str {
    match STARTING.split_once('\n') {
        Some((first, rest)) if !has_schema && first.contains(SCHEMA) => rest,
        _ => STARTING,
    }
}

/// Writes a file that is not there yet. What could not be written whole is removed.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    // It may come to hold secrets.
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(path)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(fs::remove_file(path)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_starting_configuration_names_the_schema_where_there_is_one() {
        let line = format!("# yaml-language-server: $schema={SCHEMA}\n");
        let (with, without) = (starting_text(true), starting_text(false));
        assert_eq!(with, format!("{line}{without}"));
        let config = Config::parse(without, Path::new("config.yml")).unwrap();
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn a_file_that_is_there_is_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yml");
        write_new(&path, "a").unwrap();
        let error = write_new(&path, "b").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        std::os::unix::fs::symlink("nowhere", folder.path().join("link")).unwrap();
        write_new(&folder.path().join("link"), "b").unwrap_err();
        assert_eq!(fs::read_to_string(path).unwrap(), "a");
    }

    #[test]
    fn settings_are_shown_as_a_section_that_is_ignored() {
        let setting = |value: Option<&str>| ShownSetting {
            name: "CONSERVER_WORKERS",
            value: value.map(str::to_owned),
            origin: "a\nb".to_owned(),
        };
        let text = settings_text(&[setting(Some("4")), setting(None)], true);
        let expected = "x-settings-in-force:\n  CONSERVER_WORKERS: \"4\"  # a\\nb\n  \
                        CONSERVER_WORKERS: null  # a\\nb";
        assert_eq!(text, expected);
    }
}
