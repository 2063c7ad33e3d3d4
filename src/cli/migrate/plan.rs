//! The plan as data: what is printed as tables, and as JSON under these very names.

use serde::Serialize;

use super::deployment::{Deployment, Generation, Recognition, RedisFindings};
use super::differences::DIFFERENCES;
use super::environment::{Meaning, VariableNote};
use super::python::FOLDERS;
use super::steps::{self, Step};
use crate::config::{Fault, NamedModule};
use crate::options::yaml::joined;
use crate::queue::{DocumentSample, QueueKind, QueueLength, Survey};
use crate::secret::Secret;

/// The section of the hooks, which the file does not name.
const HOOKS: &str = "hooks";

/// How to switch a deployment over.
#[derive(Debug, Serialize)]
pub(super) struct Plan {
    /// Whether nothing keeps conserver from working there.
    pub works: bool,
    /// What does.
    pub problems: Vec<String>,
    /// The configuration that was read.
    pub config_file: String,
    /// The file whose variables were read; `null` for those of the process.
    pub env_file: Option<String>,
    /// Which generation the deployment is of.
    pub generation: Recognition,
    /// What runs where.
    pub modules: Vec<ModuleRow>,
    /// What of the configuration has no effect, or hardly the one that is meant.
    pub warnings: Vec<String>,
    /// What the variables of the deployment mean.
    pub variables: Vec<VariableNote>,
    /// What differs.
    pub differences: Vec<DifferenceRow>,
    /// What waits in Redis.
    pub waiting: Waiting,
    /// The lines of `/etc/conserver/conserver.env`.
    pub environment: Vec<EnvironmentLine>,
    /// What to do, in this order.
    pub switch: Vec<Step>,
    /// The same for going back.
    pub way_back: Vec<Step>,
}

/// What becomes of an entry of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Runs {
    /// It is built in.
    BuiltIn,
    /// It runs in Python, as before.
    Python,
    /// It would run in Python, which does not have it.
    Missing,
    /// Something is wrong with it.
    Refused,
}

/// An entry of the configuration.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct ModuleRow {
    /// The section: `links`, `storages`, `tracers`, `imports`, `followers`, or `hooks`, which the file
    /// does not name.
    pub section: &'static str,
    pub name: String,
    pub module: String,
    pub runs: Runs,
    /// Why it does not run, or what it needs.
    pub note: String,
    /// The chains that name it.
    pub chains: Vec<String>,
}

/// A difference that concerns the deployment.
#[derive(Debug, Serialize)]
pub(super) struct DifferenceRow {
    pub id: &'static str,
    pub what: &'static str,
    pub existing: &'static str,
    pub conserver: &'static str,
    /// What it concerns; empty for everything.
    pub concerns: Vec<String>,
}

/// What waits in Redis.
#[derive(Debug, Serialize)]
pub(super) struct Waiting {
    /// The server, without its password.
    pub redis: String,
    /// Why nothing is known.
    pub error: Option<String>,
    /// The lists.
    pub lists: Vec<WaitingRow>,
    /// The storages whose dead letters somebody replays.
    pub replay_locks: Vec<String>,
    /// What daemons like this one have in hand.
    pub claims: Vec<ClaimsRow>,
    /// How the documents are kept that were looked at.
    pub documents: Option<DocumentSample>,
    /// Whether the server has RedisJSON.
    pub has_redis_json: Option<bool>,
    /// Whether all keys were looked at, or only a part of a large server.
    pub complete: bool,
}

/// A list in which something may wait.
#[derive(Debug, Serialize)]
pub(super) struct WaitingRow {
    pub key: String,
    pub kind: QueueKind,
    /// `null` if the key is not a list.
    pub entries: Option<u64>,
    pub note: String,
}

/// The claims of a daemon.
#[derive(Debug, Serialize)]
pub(super) struct ClaimsRow {
    pub instance: String,
    pub entries: u64,
}

/// A line of the settings of the service.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct EnvironmentLine {
    pub name: String,
    /// `null` if it may be a secret, which is never shown: it is the one of the deployment.
    pub value: Option<String>,
    /// Why it is there if the deployment does not have it, or what is shown of a secret.
    pub why: String,
}

impl Plan {
    /// Makes it.
    pub fn of(deployment: &Deployment) -> Self {
        let secrets = deployment.variables.secrets();
        let modules = modules(deployment, &secrets);
        let problems = problems(deployment, &modules);
        let waiting = Waiting::of(deployment);
        let environment = environment(deployment);
        Self {
            works: problems.is_empty(),
            config_file: deployment.config_file.display().to_string(),
            env_file: (deployment.variables.file.as_ref()).map(|path| path.display().to_string()),
            generation: deployment.generation.clone(),
            warnings: deployment.warnings.clone(),
            variables: variables(deployment),
            differences: differences(deployment),
            switch: steps::switch(deployment, &modules, &environment),
            way_back: steps::way_back(deployment),
            problems,
            modules,
            waiting,
            environment,
        }
    }
}

/// The notes on the variables, with what is wrong with a setting.
fn variables(deployment: &Deployment) -> Vec<VariableNote> {
    let variables = &deployment.variables;
    let mut notes = variables.notes(&deployment.outline, deployment.runs_programs());
    for note in &mut notes {
        let mut faults = deployment.settings_faults.iter();
        let fault = faults.find_map(|it| it.strip_prefix(&note.name)?.strip_prefix(": "));
        if let Some(fault) = fault {
            note.means = Meaning::Wrong;
            fault.clone_into(&mut note.note);
        }
    }
    notes
}

fn modules(deployment: &Deployment, secrets: &[Secret]) -> Vec<ModuleRow> {
    let outline = &deployment.outline;
    let row = |module: &NamedModule| {
        let (runs, note) = runs(deployment, module);
        let chains = outline.chains_of(module).into_iter();
        ModuleRow {
            section: module.section.key(),
            name: module.name.clone(),
            module: module.module.clone(),
            runs,
            note: hidden(note, secrets),
            chains: chains.map(str::to_owned).collect(),
        }
    };
    let followers = outline.followers.iter().map(|name| {
        let faults = faults_of(&deployment.faults, "followers", name);
        ModuleRow {
            section: "followers",
            name: name.clone(),
            module: String::new(),
            runs: match faults.is_empty() {
                true => Runs::BuiltIn,
                false => Runs::Refused,
            },
            note: faults.join("; "),
            chains: Vec::new(),
        }
    });
    let hooks = deployment.python.hooks.iter().map(|(hook, why)| ModuleRow {
        section: HOOKS,
        name: (*hook).to_owned(),
        module: (*hook).to_owned(),
        runs: match why {
            None => Runs::Python,
            Some(_) => Runs::Missing,
        },
        note: match why {
            None => "is called if its functions do something".to_owned(),
            Some(why) => hidden(why.clone(), secrets),
        },
        chains: Vec::new(),
    });
    let modules = outline.modules.iter().map(row);
    modules.chain(hooks).chain(followers).collect()
}

/// Where a module runs, and what is to be said about that.
fn runs(deployment: &Deployment, module: &NamedModule) -> (Runs, String) {
    if let Some(why) = deployment.python.missing(module) {
        let package = deployment.python.package(module).map(without_login);
        return match package {
            Some(package) if deployment.settings.python.pip_install => (
                Runs::Python,
                format!("its package {package} is installed at the start"),
            ),
            Some(package) => (Runs::Missing, format!("{why}; its package is {package}")),
            None => (Runs::Missing, why.to_owned()),
        };
    }
    let faults = faults_of(&deployment.faults, module.section.key(), &module.name);
    match (faults.is_empty(), module.is_python()) {
        (false, _) => (Runs::Refused, faults.join("; ")),
        (true, true) => (Runs::Python, String::new()),
        (true, false) => (Runs::BuiltIn, String::new()),
    }
}

/// What is wrong with an entry of a section.
fn faults_of(faults: &[Fault], section: &str, name: &str) -> Vec<String> {
    let path = joined(section, name);
    let is_its = |fault: &&Fault| {
        let rest = fault.key.strip_prefix(&path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let shown = |fault: &Fault| match fault.key.strip_prefix(&path).unwrap_or_default() {
        "" => fault.message.clone(),
        key => format!("{}: {}", key.trim_start_matches('.'), fault.message),
    };
    faults.iter().filter(is_its).map(shown).collect()
}

/// The text without what is secret.
fn hidden(text: String, secrets: &[Secret]) -> String {
    secrets
        .iter()
        .fold(text, |text, secret| secret.hide_in(text))
}

/// The name of a package without the login that its URL may hold.
pub(super) fn without_login(package: &str) -> String {
    let Some((scheme, rest)) = package.split_once("://") else {
        return package.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => package.to_owned(),
    }
}

fn problems(deployment: &Deployment, modules: &[ModuleRow]) -> Vec<String> {
    let mut problems = deployment.settings_faults.clone();
    problems.extend(deployment.fault_lines.iter().cloned());
    for (row, module) in modules.iter().zip(&deployment.outline.modules) {
        // Without the folders, the configuration has said so.
        let is_told = !faults_of(&deployment.faults, row.section, &row.name).is_empty();
        if row.runs == Runs::Missing && !is_told && deployment.outline.is_needed(module) {
            let (section, name) = (row.section, &row.name);
            problems.push(format!("{section}.{name}: `{}`: {}", row.module, row.note));
        }
    }
    let hooks = modules.iter().filter(|row| row.section == HOOKS);
    let broken = hooks.filter(|row| row.runs == Runs::Missing);
    problems.extend(broken.map(|row| format!("{HOOKS}.{}: {}", row.name, row.note)));
    problems.extend(against_the_generation(deployment));
    match &deployment.redis {
        RedisFindings::NotAsked => {}
        RedisFindings::Unavailable(why) => {
            if !problems.contains(why) {
                problems.push(why.clone());
            }
        }
        RedisFindings::Found(survey) => {
            let odd = survey.queues.iter().filter(|queue| queue.entries.is_none());
            problems.extend(odd.map(|queue| format!("the key {} is not a list", queue.key)));
        }
    }
    problems
}

/// A setting with which the API server could not read what conserver writes.
fn against_the_generation(deployment: &Deployment) -> Option<String> {
    let format = deployment.variables.text("VCON_REDIS_FORMAT");
    let format = format.unwrap_or_default().trim().to_ascii_lowercase();
    let problem = match (deployment.generation.is, format.as_str()) {
        (Generation::Older, "plain") => {
            "VCON_REDIS_FORMAT=plain: the API server of this older generation reads RedisJSON only; set json"
        }
        (Generation::Newer, "json") => {
            "VCON_REDIS_FORMAT=json: the API server of this newer generation reads plain strings only; set plain"
        }
        (Generation::Mixed, "" | "auto") => {
            "some documents are RedisJSON and some are plain strings: name the generation with --generation, or set \
             VCON_REDIS_FORMAT to what the API server reads: json (older) or plain (newer)"
        }
        _ => return None,
    };
    Some(problem.to_owned())
}

fn differences(deployment: &Deployment) -> Vec<DifferenceRow> {
    let concerned = DIFFERENCES.iter().filter_map(|it| {
        let concerns = (it.concerns)(deployment)?;
        Some(DifferenceRow {
            id: it.id,
            what: it.what,
            existing: it.existing,
            conserver: it.conserver,
            concerns,
        })
    });
    concerned.collect()
}

impl Waiting {
    fn of(deployment: &Deployment) -> Self {
        let survey = deployment.redis.survey();
        let error = match &deployment.redis {
            RedisFindings::NotAsked => Some("it was not asked (--offline)".to_owned()),
            RedisFindings::Unavailable(why) => Some(why.clone()),
            RedisFindings::Found(_) => None,
        };
        let claims = |survey: &Survey| {
            let claims = survey.claims.iter().cloned();
            let row = |(instance, entries)| ClaimsRow { instance, entries };
            claims.map(row).collect()
        };
        let rows = |survey: &Survey| {
            let queues = survey.queues.iter();
            queues
                .map(|queue| WaitingRow::of(deployment, queue))
                .collect()
        };
        Self {
            redis: deployment.settings.redis_url.to_string(),
            error,
            lists: survey.map(rows).unwrap_or_default(),
            replay_locks: survey.map(|it| it.replay_locks.clone()).unwrap_or_default(),
            claims: survey.map(claims).unwrap_or_default(),
            documents: survey.map(|it| it.documents.clone()),
            has_redis_json: survey.map(|it| it.has_json),
            complete: survey.is_some_and(|it| it.is_complete),
        }
    }
}

impl WaitingRow {
    fn of(deployment: &Deployment, queue: &QueueLength) -> Self {
        let plan = &deployment.outline.plan;
        let served = plan.ingress_lists();
        let is_served = |name: &str| served.iter().any(|list| list.as_str() == name);
        let name = queue.key.strip_prefix("DLQ:").unwrap_or(&queue.key);
        let note = match (queue.kind, queue.entries) {
            (_, None) => "the key is not a list".to_owned(),
            (QueueKind::Ingress, _) if is_served(name) => {
                "is worked off after the start".to_owned()
            }
            (QueueKind::Ingress, _) => "stays: its chain has `enabled: 0`".to_owned(),
            (QueueKind::Egress, _) => "stays for its readers".to_owned(),
            (_, Some(0)) => String::new(),
            (QueueKind::Follower, _) if queue.is_configured => {
                "is fetched by conserver alone: the other server's list no longer has it".to_owned()
            }
            (QueueKind::Follower, _) => {
                "stays: config.yml has no such follower, and the other server's list no longer has it"
                    .to_owned()
            }
            (_, _) if !queue.is_configured => {
                "stays: config.yml does not name what it belongs to".to_owned()
            }
            (QueueKind::DeadLetters, _) if !is_served(name) => {
                "stays: its chain has `enabled: 0`".to_owned()
            }
            (QueueKind::DeadLetters | QueueKind::StorageDeadLetters, _) => {
                format!("stays until `conserver dlq retry {name}`")
            }
        };
        Self {
            key: queue.key.clone(),
            kind: queue.kind,
            entries: queue.entries,
            note,
        }
    }
}

/// The settings of the service. A value that is refused is left out: it would keep the service from starting.
fn environment(deployment: &Deployment) -> Vec<EnvironmentLine> {
    let variables = &deployment.variables;
    let notes = self::variables(deployment);
    let stays = |note: &VariableNote| {
        let is_kept = matches!(
            note.means,
            Meaning::Setting | Meaning::Configuration | Meaning::Modules
        );
        // The file is copied to the place where it is looked for.
        is_kept && note.name != "CONSERVER_CONFIG_FILE"
    };
    let mut lines: Vec<EnvironmentLine> = (notes.into_iter())
        .filter(stays)
        .map(|note| EnvironmentLine {
            value: variables.shown(&note.name),
            why: match note.name == "REDIS_URL" && variables.shown("REDIS_URL").is_none() {
                true => deployment.settings.redis_url.to_string(),
                false => String::new(),
            },
            name: note.name,
        })
        .collect();
    let mut add = |name: &str, value: &str, why: &str| {
        if variables.get(name).is_none() {
            lines.push(EnvironmentLine {
                name: name.to_owned(),
                value: Some(value.to_owned()),
                why: why.to_owned(),
            });
        }
    };
    let has_json = deployment.redis.survey().is_some_and(|it| it.has_json);
    match deployment.generation.is {
        Generation::Older => {
            let why = "the API server of the older generation reads RedisJSON only";
            add("VCON_REDIS_FORMAT", "json", why);
            let why = "readers of the older generation expect JSON bodies as text";
            add("VCON_JSON_BODIES", "text", why);
        }
        Generation::Newer if has_json => {
            let why = "this Redis has RedisJSON, which the newer generation cannot read";
            add("VCON_REDIS_FORMAT", "plain", why);
        }
        _ => {}
    }
    if deployment.takes_python_path {
        let folders = deployment.settings.python.path.iter();
        let folders: Vec<String> = folders.map(|folder| folder.display().to_string()).collect();
        add(FOLDERS, &folders.join(":"), "the folders of PYTHONPATH");
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::cli::migrate::environment::tests::of_text;

    /// The deployment with these texts as `config.yml` and `.env`.
    fn deployment(config: &str, variables: &str) -> Deployment {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        Deployment::read(of_text(variables), Some(path))
    }

    fn documents(redis_json: usize, plain: usize) -> RedisFindings {
        RedisFindings::Found(Survey {
            has_json: redis_json > 0,
            documents: DocumentSample {
                redis_json,
                plain,
                ..DocumentSample::default()
            },
            ..Survey::default()
        })
    }

    fn ids(config: &str, variables: &str, redis: RedisFindings) -> Vec<&'static str> {
        let deployment = deployment(config, variables).with_redis(redis, None);
        let rows = differences(&deployment).into_iter();
        rows.map(|row| row.id).collect()
    }

    /// What the plan of every deployment has.
    const ALWAYS: [&str; 3] = ["lost_worker", "changes_at_once", "no_document"];

    #[test]
    fn a_plain_deployment_has_few_differences() {
        let config = "chains: {main: {ingress_lists: [in], egress_lists: [out]}}";
        let variables = "CONSERVER_WORKERS=4\nCONSERVER_CONFIG_FILE=config.yml\n";
        assert_eq!(ids(config, variables, documents(0, 1)), ALWAYS);
    }

    #[test]
    fn each_difference_concerns_those_who_use_what_differs() {
        let link = |module: &str, options: &str| {
            format!(
                "links: {{it: {{module: {module}, options: {{{options}}}}}}}\n\
                 chains: {{main: {{links: [it], ingress_lists: [in]}}}}"
            )
        };
        let storage = |module: &str, options: &str| {
            format!(
                "storages: {{it: {{module: {module}, options: {{{options}}}}}}}\n\
                 chains: {{main: {{storages: [it], ingress_lists: [in], egress_lists: [out]}}}}"
            )
        };
        let chain = |keys: &str| format!("chains: {{main: {{ingress_lists: [in], {keys}}}}}");
        let file = &[
            "egress_after_storage",
            "failed_storage",
            "unwritten_storage",
            "created_at",
            "half_files",
            "json_text",
        ];
        let other_storage = &[
            "egress_after_storage",
            "failed_storage",
            "unavailable_server",
            "unwritten_storage",
        ];
        let search = [&other_storage[..], &["elasticsearch_parts"]].concat();
        let search_tls = [&search[..], &["elasticsearch_certificates"]].concat();
        let python = [
            "python_threads",
            "python_unavailable",
            "python_crash",
            "python_hangs",
        ];
        let python_link = [&["unavailable_server"][..], &python].concat();
        let python_import = [&["pip_name"][..], &python].concat();
        let cases: Vec<(String, &[&str])> = vec![
            (chain("enabled: 0"), &["chain_enabled"]),
            (chain("timeout: 30"), &["chain_timeout"]),
            (chain("timeout: 0"), &[]),
            (link("links.tag", "tags: [a]"), &["tag_twice"]),
            (link("links.tag_router", "tag_routes: {a: x, b: y}"), &[]),
            (
                link("links.tag_router", "tag_routes: {a: x, b: x}"),
                &["route_twice"],
            ),
            (
                link("links.jq_link", "filter: .a"),
                &["jq_error", "jq_language"],
            ),
            (link("links.sampler", "value: 5"), &[]),
            (link("links.sampler", "seed: 5"), &["sampler_seed"]),
            (
                link("links.diet", "remove_dialog_body: true"),
                &["diet_nothing"],
            ),
            (
                link("links.diet", "remove_system_prompts: true"),
                &["diet_types", "diet_nothing"],
            ),
            (
                link("links.diet", "post_media_to_url: 'http://h'"),
                &["unavailable_server", "diet_nothing", "diet_post"],
            ),
            (
                link("links.webhook", "webhook-urls: ['http://h']"),
                &["unavailable_server", "unwritten_webhook"],
            ),
            (
                link("links.transcribe", "vendor: groq"),
                &[
                    "unavailable_server",
                    "transcribe_dialog",
                    "transcribe_duration",
                    "transcribe_inline",
                    "transcribe_urls",
                ],
            ),
            (
                link("links.openai_transcribe", "allow_private_urls: true"),
                &[
                    "unavailable_server",
                    "transcribe_dialog",
                    "transcribe_duration",
                    "transcribe_inline",
                    "transcribe_pieces",
                ],
            ),
            (link("links.scitt", ""), &python_link),
            (storage("storage.file", ""), file),
            (storage("storage.redis_storage", ""), other_storage),
            (storage("storage.elasticsearch", "url: 'http://h'"), &search),
            (
                storage("storage.elasticsearch", "url: 'https://h'"),
                &search_tls,
            ),
            (
                format!("followers: {{far: {{url: 'http://h'}}}}\n{}", chain("")),
                &["follower_loss", "follower_other"],
            ),
            (
                format!(
                    "imports: {{far: {{module: far, pip_name: far}}}}\n{}",
                    chain("")
                ),
                &python_import,
            ),
        ];
        let variables = "CONSERVER_WORKERS=4\nCONSERVER_CONFIG_FILE=config.yml\n";
        for (config, expected) in cases {
            let mut found = ids(&config, variables, documents(0, 1));
            found.retain(|id| !ALWAYS.contains(id));
            let mut expected = expected.to_vec();
            expected.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, expected, "{config}");
        }
        let hook = storage("storage.webhook", "webhook-urls: ['http://h']");
        assert!(ids(&hook, variables, documents(1, 0)).contains(&"webhook_status"));
        assert!(!ids(&hook, variables, documents(0, 1)).contains(&"webhook_status"));
        for (variables, id) in [
            ("VCON_DLQ_EXPIRY=0", "dead_letter_expiry_0"),
            ("CONSERVER_WORKERS=-3", "one_worker"),
            ("CONSERVER_PARALLEL_STORAGE=nope", "wrong_settings"),
            ("A=1", "config_file_default"),
        ] {
            assert!(
                ids(&chain(""), variables, documents(0, 1)).contains(&id),
                "{id}"
            );
        }
    }

    #[test]
    fn what_no_chain_uses_makes_no_difference() {
        let config = "links: {it: {module: links.jq_link, options: {filter: .a}}}\nchains: {main: {ingress_lists: [in]}}";
        assert!(!ids(config, "", documents(0, 1)).contains(&"jq_error"));
    }

    #[test]
    fn each_difference_has_a_name_of_its_own() {
        let mut ids: Vec<&str> = DIFFERENCES.iter().map(|it| it.id).collect();
        ids.sort_unstable();
        let count = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), count);
    }

    #[test]
    fn the_settings_are_those_of_the_deployment_and_what_its_generation_needs() {
        let config = "chains: {main: {ingress_lists: [in]}}";
        let older = [
            ("VCON_REDIS_FORMAT", Some("json")),
            ("VCON_JSON_BODIES", Some("text")),
        ];
        for (redis, variables, expected) in [
            (documents(0, 1), "", vec![]),
            (documents(1, 0), "", older.to_vec()),
            (documents(1, 1), "", vec![]),
            (
                documents(1, 0),
                "VCON_JSON_BODIES=native\nVCON_REDIS_FORMAT=auto",
                vec![
                    ("VCON_JSON_BODIES", Some("native")),
                    ("VCON_REDIS_FORMAT", Some("auto")),
                ],
            ),
            (
                documents(0, 1),
                "REDIS_URL=redis://:hunter2@h\nCONSERVER_CONFIG_FILE=x\nOPENAI_API_KEY=k\nTICK_INTERVAL=10",
                vec![("REDIS_URL", None), ("TICK_INTERVAL", Some("10"))],
            ),
        ] {
            let deployment = deployment(config, variables).with_redis(redis, None);
            let lines = environment(&deployment);
            let found: Vec<(&str, Option<&str>)> = lines
                .iter()
                .map(|line| (line.name.as_str(), line.value.as_deref()))
                .collect();
            assert_eq!(found, expected, "{variables}");
        }
        // A server with the module, of which the newer generation makes no use.
        let with_module = RedisFindings::Found(Survey {
            has_json: true,
            documents: DocumentSample {
                plain: 1,
                ..DocumentSample::default()
            },
            ..Survey::default()
        });
        let deployment = deployment(config, "").with_redis(with_module, None);
        let lines = environment(&deployment);
        assert_eq!(lines[0].name, "VCON_REDIS_FORMAT");
        assert_eq!(lines[0].value.as_deref(), Some("plain"));
    }

    #[test]
    fn what_keeps_it_from_working_is_a_problem_and_what_is_odd_is_not() {
        let good = "chains: {main: {ingress_lists: [in], description: odd}}";
        let missing =
            "links: {a: {module: links.scitt}}\nchains: {main: {links: [a], ingress_lists: [in]}}";
        for (config, variables, redis, words) in [
            (good, "", documents(0, 1), vec![]),
            (
                good,
                "VCON_REDIS_FORMAT=json",
                documents(0, 1),
                vec!["plain strings only"],
            ),
            (
                good,
                "VCON_REDIS_FORMAT=Plain",
                documents(1, 0),
                vec!["RedisJSON only"],
            ),
            (
                good,
                "CONSERVER_WORKERS=x",
                documents(0, 1),
                vec!["CONSERVER_WORKERS: "],
            ),
            (good, "", documents(1, 1), vec!["--generation"]),
            (good, "VCON_REDIS_FORMAT=plain", documents(1, 1), vec![]),
            (
                good,
                "REDIS_URL=hunter2",
                RedisFindings::Unavailable("away".to_owned()),
                vec!["REDIS_URL: ", "away"],
            ),
            (
                missing,
                "",
                documents(0, 1),
                vec!["CONSERVER_PYTHON_PATH", "links.a.module"],
            ),
            ("chains: [", "", documents(0, 1), vec![":1:"]),
        ] {
            let deployment = deployment(config, variables).with_redis(redis, None);
            let plan = Plan::of(&deployment);
            assert_eq!(plan.works, words.is_empty(), "{:?}", plan.problems);
            assert_eq!(plan.problems.len(), words.len(), "{:?}", plan.problems);
            for (problem, word) in plan.problems.iter().zip(words) {
                assert!(
                    problem.contains(word) && !problem.contains("hunter2"),
                    "{problem}"
                );
            }
            assert!(!plan.switch.is_empty() && !plan.way_back.is_empty());
        }
    }

    #[test]
    fn modules_that_are_not_built_in_are_looked_for_where_the_existing_worker_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        std::fs::write(
            folder.path().join("rating.py"),
            "def run(uuid, name, opts): return uuid\n",
        )
        .unwrap();
        std::fs::write(
            folder.path().join("odd.py"),
            "import os\nraise ValueError(os.environ['A_KEY'])\n",
        )
        .unwrap();
        let config = "\
links:
  good: {module: rating}
  odd: {module: odd}
  gone: {module: gone, pip_name: 'git+https://me:hunter2@h/gone'}
  tag: {module: links.tag, options: {tags: [a]}}
  own: {module: links.tag, native: false}
chains: {main: {links: [good, odd, gone, tag], ingress_lists: [in]}}
";
        for variable in ["PYTHONPATH", "CONSERVER_PYTHON_PATH"] {
            let variables = format!("{variable}={path}\nA_KEY=GeheimesWort\n");
            let deployment = deployment(config, &variables).with_redis(documents(0, 1), None);
            let plan = Plan::of(&deployment);
            let runs: Vec<Runs> = plan.modules.iter().map(|row| row.runs).collect();
            let expected = [
                Runs::Python,
                Runs::Missing,
                Runs::Missing,
                Runs::BuiltIn,
                Runs::Missing,
            ];
            assert_eq!(runs, expected);
            let text = serde_json::to_string(&plan).unwrap();
            assert!(
                !text.contains("GeheimesWort") && !text.contains("hunter2"),
                "{text}"
            );
            assert!(
                plan.modules[1].note.contains("ValueError"),
                "{:?}",
                plan.modules[1]
            );
            // Nobody in service needs `own`.
            assert_eq!(plan.problems.len(), 2, "{:?}", plan.problems);
            let lines: Vec<&str> = plan
                .environment
                .iter()
                .map(|line| line.name.as_str())
                .collect();
            assert_eq!(lines, ["A_KEY", "CONSERVER_PYTHON_PATH"]);
            let pip = plan.switch.iter().flat_map(|step| &step.commands);
            let pip: Vec<&String> = pip.filter(|command| command.contains(" pip ")).collect();
            assert_eq!(pip.len(), 1);
            assert!(pip[0].ends_with(" 'git+https://***@h/gone'"), "{}", pip[0]);
        }
    }

    /// The titles of steps, and their commands below them.
    fn lines(steps: &[Step]) -> Vec<&str> {
        let lines = steps.iter().flat_map(|step| {
            let commands = step.commands.iter().map(String::as_str);
            std::iter::once(step.title.as_str()).chain(commands)
        });
        lines.collect()
    }

    fn position(lines: &[&str], begin: &str) -> usize {
        let found = lines.iter().position(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("{begin}: {lines:#?}"))
    }

    #[test]
    fn folders_change_hands_while_nobody_works_and_one_that_is_not_there_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let (there, missing) = (folder.path().display(), folder.path().join("none"));
        let missing = missing.display();
        let config = format!(
            "storages:\n  a: {{module: storage.file, options: {{path: '{there}'}}}}\n  \
             b: {{module: storage.file, options: {{path: '{missing}'}}}}\n\
             chains: {{main: {{storages: [a, b], ingress_lists: [in]}}}}"
        );
        let plan = Plan::of(&deployment(&config, "").with_redis(documents(0, 1), None));
        let (switch, back) = (lines(&plan.switch), lines(&plan.way_back));
        let made = format!("sudo install -d -o conserver -g conserver {missing} ");
        assert!(position(&switch, &made) < position(&switch, "Check with"));
        assert!(
            !switch
                .iter()
                .any(|it| it.contains(&format!("-g conserver {there} ")))
        );
        for folder in [there.to_string(), missing.to_string()] {
            let given = position(&switch, &format!("sudo chown -R conserver: {folder}"));
            assert!(position(&switch, "Stop the existing worker") < given);
            assert!(given < position(&switch, "Start conserver"));
        }
        let owner = std::fs::metadata(folder.path()).unwrap();
        let owner = format!("{}:{}", owner.uid(), owner.gid());
        let given = position(&back, &format!("sudo chown -R {owner} {there}"));
        assert!(position(&back, "Stop conserver") < given);
        assert!(given < position(&back, "Start the existing worker"));
        position(&back, &format!("sudo chown -R USER: {missing}"));
    }

    #[test]
    fn what_a_follower_took_has_a_row_and_steps() {
        let taken = |name: &str, is_configured| QueueLength {
            key: format!("conserver:follower:{name}"),
            kind: QueueKind::Follower,
            is_configured,
            entries: Some(2),
        };
        let survey = Survey {
            queues: vec![taken("far", true), taken("gone", false)],
            ..Survey::default()
        };
        let config = "followers: {far: {url: 'http://me:hunter2@h', egress_list: 'out put', \
                      follower_ingress_list: in}}\nchains: {main: {ingress_lists: [in]}}";
        let redis = RedisFindings::Found(survey);
        let plan = Plan::of(&deployment(config, "").with_redis(redis, None));
        assert!(plan.waiting.lists[0].note.contains("by conserver alone"));
        assert!(plan.waiting.lists[1].note.contains("no such follower"));
        let back = lines(&plan.way_back);
        let cli = "redis-cli -u redis://localhost";
        let asked = position(&back, &format!("{cli} LLEN conserver:follower:far "));
        assert!(asked < position(&back, "Stop conserver"));
        for (name, list) in [("far", "'out put'"), ("gone", "EGRESS_LIST")] {
            let pushed = format!(
                "{cli} --raw LRANGE conserver:follower:{name} 0 -1 | xargs -r redis-cli -u OTHER_REDIS_URL RPUSH {list}"
            );
            assert!(position(&back, "Stop conserver") < position(&back, &pushed));
        }
        let text = serde_json::to_string(&plan).unwrap();
        assert!(!text.contains("hunter2") && !text.contains("LLEN conserver:follower:gone"));
        let without = Plan::of(&deployment("chains: {}", "").with_redis(documents(0, 1), None));
        let back = serde_json::to_string(&without.way_back).unwrap();
        assert!(!back.contains("redis-cli"), "{back}");
    }

    #[test]
    fn a_broken_hook_has_a_row_of_its_own_and_no_module_is_blamed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::write(path.join("rating.py"), "def run(*all): return all[0]\n").unwrap();
        std::fs::write(path.join("hook.py"), "import not_there_at_all\n").unwrap();
        std::fs::write(
            path.join("after_link_hook.py"),
            "def after_link(*all): print(all)\n",
        )
        .unwrap();
        let chain =
            "links: {rate: {module: rating}}\nchains: {main: {links: [rate], ingress_lists: [in]}}";
        let variables = format!("CONSERVER_PYTHON_PATH={}", path.display());
        for (config, count) in [(chain, 3), ("chains: {main: {ingress_lists: [in]}}", 2)] {
            let plan = Plan::of(&deployment(config, &variables).with_redis(documents(0, 1), None));
            assert_eq!(plan.modules.len(), count);
            for row in &plan.modules {
                let expected = match row.name.as_str() {
                    "hook" => Runs::Missing,
                    _ => Runs::Python,
                };
                assert_eq!(row.runs, expected, "{row:?}");
            }
            assert_eq!(plan.problems.len(), 1, "{:?}", plan.problems);
            assert!(
                plan.problems[0].starts_with("hooks.hook: ")
                    && plan.problems[0].contains("not_there_at_all"),
                "{:?}",
                plan.problems
            );
        }
    }

    #[test]
    fn what_python_lacks_comes_with_commands() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().display();
        let config = "links: {a: {module: surely_not_there}, b: {module: links.scitt}}\n\
                      chains: {main: {links: [a, b], ingress_lists: [in]}}";
        let plan = |variables: &str| {
            Plan::of(&deployment(config, variables).with_redis(documents(0, 1), None))
        };
        let pip = |plan: &Plan| -> Vec<String> {
            let lines = lines(&plan.switch).into_iter();
            let lines = lines.filter(|line| line.contains(" pip install "));
            lines.map(str::to_owned).collect()
        };
        let notes = |plan: &Plan| -> String {
            let notes = plan.switch.iter().flat_map(|step| step.notes.clone());
            notes.collect::<Vec<_>>().join("\n")
        };
        let asked = plan(&format!(
            "CONSERVER_PYTHON_PATH={here}\nCONSERVER_PYTHON=/usr/bin/python3"
        ));
        assert_eq!(
            pip(&asked),
            [
                "sudo -u conserver /usr/bin/python3 -m pip install --target /var/lib/conserver/python surely_not_there"
            ]
        );
        assert!(notes(&asked).contains("The interpreter that was asked is /usr/bin/python3."));
        let installed = plan(&format!(
            "CONSERVER_PYTHON_PATH={here}\nCONSERVER_PIP_INSTALL=yes"
        ));
        assert_eq!(installed.modules[0].runs, Runs::Python);
        assert_eq!(installed.modules[1].runs, Runs::Missing);
        assert_eq!(pip(&installed), [""; 0]);
        // The module may be in the folder that is not there.
        for variables in [
            format!("CONSERVER_PYTHON_PATH={here}:/none/app"),
            String::new(),
        ] {
            let plan = plan(&variables);
            assert_eq!(pip(&plan), [""; 0]);
            let lines = lines(&plan.switch);
            let copies: Vec<&&str> = lines.iter().filter(|it| it.contains("docker cp")).collect();
            match variables.is_empty() {
                true => assert_eq!(copies.len(), 2),
                false => assert_eq!(
                    **copies[0],
                    *"sudo mkdir -p /none && sudo docker cp NAME:/none/app /none    # from a container"
                ),
            }
        }
    }

    #[test]
    fn values_that_are_refused_and_variables_of_the_system_are_not_written() {
        let config =
            "links: {a: {module: rating}}\nchains: {main: {links: [a], ingress_lists: [in]}}";
        let variables = "CONSERVER_WORKERS=x\nHOME=/root\nPATH=/bin\nLANG=C\nGPG_KEY=k\nPYTHON_VERSION=3\n\
                         PYTHON_SHA256=x\nHOSTNAME=h\nSENTRY_DSN=s\nLOGGING_CONFIG_FILE=l\nTICK_INTERVAL=10\n\
                         A_KEY='a b'";
        let plan = Plan::of(&deployment(config, variables).with_redis(documents(0, 1), None));
        let names: Vec<&str> = plan
            .environment
            .iter()
            .map(|line| line.name.as_str())
            .collect();
        assert_eq!(names, ["A_KEY", "TICK_INTERVAL"]);
        let text = crate::cli::migrate::print::text(&plan);
        assert!(
            text.contains("  # CONSERVER_WORKERS is left out, its value is refused: "),
            "{text}"
        );
    }

    #[test]
    fn a_fault_belongs_to_the_entry_whose_path_it_has() {
        let faults = [
            Fault::at(1, "links.a", "whole"),
            Fault::at(2, "links.a.options.tags", "part"),
            Fault::at(3, "links.ab.options", "other"),
            Fault::at(4, "storages.a", "other section"),
            Fault::of_file("all"),
        ];
        assert_eq!(
            faults_of(&faults, "links", "a"),
            ["whole", "options.tags: part"]
        );
        assert_eq!(faults_of(&faults, "links", "b"), [""; 0]);
    }

    #[test]
    fn a_package_is_named_without_its_login() {
        for (package, shown) in [
            ("visit-rating==1.4.0", "visit-rating==1.4.0"),
            (
                "git+https://github.com/a/b.git@v1",
                "git+https://github.com/a/b.git@v1",
            ),
            (
                "git+https://me:hunter2@github.com/a/b.git@v1",
                "git+https://***@github.com/a/b.git@v1",
            ),
            ("https://hunter2@h", "https://***@h"),
        ] {
            assert_eq!(without_login(package), shown);
        }
    }
}
