//! The deployment that is to be switched over, as it is found: its configuration, its variables, its Redis.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::environment::Variables;
use super::python::{self, FOLDERS, PythonFindings};
use crate::config::{Config, Fault, Follower, Outline};
use crate::queue::{Server, Survey, SurveyLists};
use crate::settings::Settings;

/// The time limit for connecting to Redis, and for each of its replies.
const REDIS_LIMIT: Duration = Duration::from_secs(5);

/// A deployment of the existing worker.
pub(super) struct Deployment {
    /// Where its configuration is.
    pub config_file: PathBuf,
    /// What that names.
    pub outline: Outline,
    /// What is wrong with it, with the lines that say so.
    pub faults: Vec<Fault>,
    /// The same as lines.
    pub fault_lines: Vec<String>,
    /// What should be looked at in it.
    pub warnings: Vec<String>,
    /// Its followers; none if something is wrong with it.
    pub followers: Vec<Follower>,
    /// Its environment.
    pub variables: Variables,
    /// What conserver makes of that; a faulty setting has its default.
    pub settings: Settings,
    /// The faulty settings, a line each.
    pub settings_faults: Vec<String>,
    /// What Python has of the modules that are not built in.
    pub python: PythonFindings,
    /// Whether the folders of its modules are those of `PYTHONPATH`.
    pub takes_python_path: bool,
    /// What is in Redis.
    pub redis: RedisFindings,
    /// The generation of its server.
    pub generation: Recognition,
}

/// What is known of Redis.
pub(super) enum RedisFindings {
    /// It was not to be asked.
    NotAsked,
    /// It could not be asked, and why.
    Unavailable(String),
    /// What was found.
    Found(Survey),
}

/// A generation of vCon Server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Generation {
    /// Documents are RedisJSON, JSON bodies are text.
    Older,
    /// Documents are plain strings, JSON bodies are values.
    Newer,
    /// Some documents are of the one kind and some of the other.
    #[value(skip)]
    Mixed,
    /// Nothing tells.
    #[value(skip)]
    Unknown,
}

/// Which generation it is, and how that was recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Recognition {
    pub is: Generation,
    pub because: String,
}

impl Deployment {
    /// Reads what its files and variables say, without Redis. `config` is the file that was named on the command
    /// line.
    pub fn read(variables: Variables, config: Option<PathBuf>) -> Self {
        let config = config.or_else(|| variables.path("CONSERVER_CONFIG_FILE"));
        let config = config.map(PathBuf::into_os_string);
        // The file is looked for by the variables; whether Python is needed, it says itself.
        let read = |folders: Option<&OsString>| {
            Settings::with_faults(&|name| match (name, &config) {
                ("CONSERVER_CONFIG_FILE", Some(config)) => Some(config.clone()),
                (name, _) => {
                    let value = variables.get(name).cloned();
                    value.or_else(|| folders.filter(|_| name == FOLDERS).cloned())
                }
            })
        };
        let (settings, _) = read(None);
        let config_file = settings.config_file;
        let outline = Outline::load(&config_file).unwrap_or_default();
        let folders = variables.python_folders();
        let folders = folders.filter(|_| python::needed(&outline).next().is_some());
        let takes_python_path = folders.is_some() && variables.get(FOLDERS).is_none();
        let (settings, settings_faults) = read(folders);
        let loaded = Config::load_with(&config_file, variables.all(), &settings.python);
        let (faults, fault_lines, warnings, followers) = match loaded {
            Ok(config) => {
                let warnings = config.warnings.lines().collect();
                (Vec::new(), Vec::new(), warnings, config.followers)
            }
            Err(errors) => {
                let faults = errors.faults().to_vec();
                let lines = errors.lines().take(faults.len()).collect();
                let warnings = errors.warnings().lines().collect();
                (faults, lines, warnings, Vec::new())
            }
        };
        Self {
            python: PythonFindings::look(&variables, &settings.python, &config_file, &outline),
            takes_python_path,
            config_file,
            outline,
            faults,
            fault_lines,
            warnings,
            followers,
            variables,
            settings,
            settings_faults,
            redis: RedisFindings::NotAsked,
            generation: Recognition::of(None, &RedisFindings::NotAsked),
        }
    }

    /// Asks its Redis.
    pub fn ask_redis(&self) -> RedisFindings {
        RedisFindings::look(&self.settings, &self.settings_faults, &self.outline)
    }

    /// The same with what Redis tells; `given` is the generation that was named on the command line.
    pub fn with_redis(self, redis: RedisFindings, given: Option<Generation>) -> Self {
        Self {
            generation: Recognition::of(given, &redis),
            redis,
            ..self
        }
    }

    /// Whether Python modules or programs run, which may read any variable.
    pub fn runs_programs(&self) -> bool {
        let mut modules = self.outline.modules.iter();
        modules.any(|module| {
            module.is_python() || ["links.python", "links.exec"].contains(&&*module.module)
        })
    }
}

impl RedisFindings {
    fn look(settings: &Settings, faults: &[String], outline: &Outline) -> Self {
        if let Some(fault) = faults.iter().find(|fault| fault.starts_with("REDIS_URL:")) {
            return Self::Unavailable(fault.clone());
        }
        let plan = &outline.plan;
        let lists = SurveyLists {
            ingress: (plan.chains.iter())
                .flat_map(|chain| chain.ingress_lists.iter().cloned())
                .collect(),
            egress: plan.egress_lists().into_iter().collect(),
            storages: plan.storages.clone(),
            followers: outline.followers.clone(),
        };
        let taken = Server::new(&settings.redis_url)
            .map_err(Into::into)
            .and_then(|server| Survey::take(&server, &lists, REDIS_LIMIT));
        match taken {
            Ok(survey) => Self::Found(survey),
            Err(error) => Self::Unavailable(error.to_string()),
        }
    }

    /// What was found, if anything.
    pub fn survey(&self) -> Option<&Survey> {
        match self {
            Self::Found(survey) => Some(survey),
            _ => None,
        }
    }
}

impl Recognition {
    fn of(given: Option<Generation>, redis: &RedisFindings) -> Self {
        if let Some(is) = given {
            let because = "--generation says so".to_owned();
            return Self { is, because };
        }
        let survey = match redis {
            RedisFindings::Found(survey) => survey,
            RedisFindings::NotAsked => return Self::unknown("Redis was not asked"),
            RedisFindings::Unavailable(_) => return Self::unknown("Redis could not be asked"),
        };
        let documents = &survey.documents;
        let (is, because) = match (documents.redis_json, documents.plain) {
            (0, 0) => {
                let has_letters = survey
                    .queues
                    .iter()
                    .any(|queue| queue.key.starts_with("DLQ:storage:") && queue.entries > Some(0));
                if !has_letters {
                    return Self::unknown("there is no document in Redis");
                }
                let because =
                    "there are dead letters of storages, which the older one does not write";
                (Generation::Newer, because.to_owned())
            }
            (json, 0) => (
                Generation::Older,
                format!("all {json} documents that were looked at are RedisJSON"),
            ),
            (0, plain) => (
                Generation::Newer,
                format!("all {plain} documents that were looked at are plain strings"),
            ),
            (json, plain) => (
                Generation::Mixed,
                format!(
                    "{json} documents that were looked at are RedisJSON, {plain} are plain strings"
                ),
            ),
        };
        Self { is, because }
    }

    fn unknown(because: &str) -> Self {
        Self {
            is: Generation::Unknown,
            because: because.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{DocumentSample, QueueKind, QueueLength};

    fn recognised(redis_json: usize, plain: usize, letters: u64) -> Generation {
        let survey = Survey {
            documents: DocumentSample {
                redis_json,
                plain,
                ..DocumentSample::default()
            },
            queues: vec![QueueLength {
                key: "DLQ:storage:pg".to_owned(),
                kind: QueueKind::StorageDeadLetters,
                is_configured: true,
                entries: Some(letters),
            }],
            ..Survey::default()
        };
        Recognition::of(None, &RedisFindings::Found(survey)).is
    }

    #[test]
    fn documents_tell_the_generation_and_dead_letters_of_storages_do_without_any() {
        for (json, plain, letters, expected) in [
            (3, 0, 0, Generation::Older),
            (3, 0, 1, Generation::Older),
            (0, 3, 0, Generation::Newer),
            (1, 3, 0, Generation::Mixed),
            (0, 0, 1, Generation::Newer),
            (0, 0, 0, Generation::Unknown),
        ] {
            assert_eq!(recognised(json, plain, letters), expected);
        }
        let given = Some(Generation::Older);
        let told = Recognition::of(given, &RedisFindings::NotAsked);
        assert_eq!(told.is, Generation::Older);
        let unavailable = RedisFindings::Unavailable("away".to_owned());
        assert_eq!(Recognition::of(None, &unavailable).is, Generation::Unknown);
    }
}
