//! What to do for the switch and for the way back, in order.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use indexmap::IndexSet;
use serde::Serialize;

use super::deployment::{Deployment, Generation};
use super::plan::{EnvironmentLine, ModuleRow, Runs, without_login};
use super::python::{self, FOLDERS};
use crate::cli::output::shell_word;
use crate::config::Section;
use crate::queue::{QueueKind, QueueLength};

/// One step.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    /// What it does.
    pub title: String,
    /// What to know about it.
    pub notes: Vec<String>,
    /// The commands for a shell.
    pub commands: Vec<String>,
}

/// Runs a command with the settings and as the user of the service.
const AS_SERVICE: &str = "as_service() { sudo systemd-run -qPG --uid=conserver -E STATE_DIRECTORY=/var/lib/conserver \
                          -p EnvironmentFile=-/etc/conserver/conserver.env conserver \"$@\"; }";

/// Where the service looks for packages of Python.
const PACKAGES: &str = "/var/lib/conserver/python";

/// What the keys begin with in which followers keep what they took.
const FOLLOWER_KEYS: &str = "conserver:follower:";

/// Where the service may write.
const OWN_FOLDER: &str = "/var/lib/conserver";

/// Tells which folders of this machine the volumes of a container are.
const MOUNTS: &str =
    "docker inspect --format '{{range .Mounts}}{{println .Source .Destination}}{{end}}' NAME";

/// Where `storage.file` writes if its options do not say it.
const FILES: &str = "/data/vcons";

impl Step {
    fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            notes: Vec::new(),
            commands: Vec::new(),
        }
    }

    fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// For commands that name Redis.
    fn login_of(self, deployment: &Deployment) -> Self {
        let hides_one = deployment.settings.redis_url.to_string().contains("***");
        match hides_one {
            true => self.note("Write the login of Redis in place of ***."),
            false => self,
        }
    }

    fn run(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }
}

/// From the existing worker to conserver.
pub(super) fn switch(
    deployment: &Deployment,
    modules: &[ModuleRow],
    environment: &[EnvironmentLine],
) -> Vec<Step> {
    let mut steps = vec![
        Step::new("Install conserver, without starting it")
            .note(
                "The mask keeps the package from starting the service before the existing worker has ended; below, the \
                 service is enabled and started.",
            )
            .run("sudo systemctl mask conserver")
            .run("sudo apt install ./conserver_*_amd64.deb    # or: sudo dnf install ./conserver-*.x86_64.rpm")
            .run("sudo systemctl unmask conserver")
            .run("sudo systemctl disable conserver"),
        files(deployment, environment),
    ];
    steps.extend(packages(deployment, modules));
    steps.extend(rights(deployment));
    let mut check = Step::new("Check with the settings of the service, beside the existing worker").note(
        "Mend what they name until all three succeed. The last one checks within the limits of the unit.",
    );
    if !written_folders(deployment).is_empty() {
        check = check.note(
            "The service cannot write yet in the folders of `storage.file` that the existing worker has: if nothing \
             else is named, go on. They are checked again when it has ended.",
        );
    }
    steps.extend([
        check
            .run(AS_SERVICE)
            .run("as_service check")
            .run("as_service migrate --check")
            .run("sudo /usr/libexec/conserver/check-service"),
        Step::new("Stop the existing worker, and wait until it has ended by itself")
            .note(
                "Stop it as it was started, and give it time for the vCons that it has in hand: what it loses if \
                 it is killed, the last step finds. The API server and the producers go on.",
            )
            .run("docker compose stop --timeout 600 conserver    # or: sudo systemctl stop NAME"),
    ]);
    steps.extend(handed_over(deployment));
    steps.extend([
        Step::new("Start conserver").run("sudo systemctl enable --now conserver"),
        Step::new("Watch the lists go down")
            .run("as_service status --queues")
            .run("sudo conserver logs -f"),
    ]);
    steps.extend(dead_letters(deployment));
    steps.push(lost(deployment));
    steps
}

/// The files of the service.
fn files(deployment: &Deployment, environment: &[EnvironmentLine]) -> Step {
    let config = shell_word(&deployment.config_file.display().to_string());
    let mut step = Step::new("Copy config.yml, and write the settings")
        .run(format!(
            "sudo install -m 640 -g conserver {config} /etc/conserver/config.yml"
        ))
        .run("sudoedit /etc/conserver/conserver.env    # the lines above");
    if environment.iter().any(|line| line.value.is_none()) {
        step = step.note(
            "A value that may be a secret is shown as ***: write the value that the existing deployment has for it, in \
             single quotes if there are spaces, quotes or # in it.",
        );
    }
    step
}

/// What Python does not have.
fn packages(deployment: &Deployment, modules: &[ModuleRow]) -> Option<Step> {
    let settings = &deployment.settings.python;
    let is_missing = |row: &&ModuleRow| row.runs == Runs::Missing;
    let mut absent: Vec<PathBuf> = settings.path.clone();
    absent.retain(|folder| !folder.is_dir());
    if modules.iter().filter(is_missing).count() == 0 && absent.is_empty() {
        return None;
    }
    let mut step = Step::new("Give Python what is missing");
    for row in modules.iter().filter(is_missing) {
        step = step.note(format!(
            "{}.{}: `{}`: {}",
            row.section, row.name, row.module, row.note
        ));
    }
    for folder in &absent {
        step = step.note(format!(
            "{} is not there on this machine, or is no folder.",
            folder.display()
        ));
    }
    if !settings.is_set() {
        step = step.note(format!(
            "{FOLDERS} in the settings above names the folders that hold them, separated by colons: the roots of the \
             `common` and `conserver` folders of the existing worker, and those of your own packages. In its container \
             that is /app/conserver:/app/common, in the older generation /app/server."
        ));
        absent.extend(["/app/conserver", "/app/common"].map(PathBuf::from));
        absent.retain(|folder| !folder.is_dir());
    }
    if !absent.is_empty() {
        step = step.note(
            "If they are in the container of the existing worker, copy them out of it: NAME is its name, and it need \
             not run.",
        );
    }
    for folder in absent.iter().filter(|folder| folder.is_absolute()) {
        let parent = folder.parent().unwrap_or(folder).display().to_string();
        let parent = shell_word(&parent);
        step = step.run(format!(
            "sudo mkdir -p {parent} && sudo docker cp NAME:{} {parent}    # from a container",
            shell_word(&folder.display().to_string())
        ));
    }
    let asked = match deployment.python.was_asked {
        true => format!(
            "The interpreter that was asked is {}.",
            settings.interpreter
        ),
        false => format!("The interpreter will be {}.", settings.interpreter),
    };
    step = step.note(format!(
        "{asked} If another one has the libraries of the existing worker, as that of its virtual environment, name it \
         in the settings: `CONSERVER_PYTHON=/PATH/TO/bin/python3`."
    ));
    Some(pip(step, deployment, modules))
}

/// The command that installs what is missing.
fn pip(step: Step, deployment: &Deployment, modules: &[ModuleRow]) -> Step {
    let rows = modules.iter().zip(&deployment.outline.modules);
    let missing = rows.filter(|(row, _)| row.runs == Runs::Missing);
    let packages = missing.filter_map(|(_, module)| deployment.python.package(module));
    let packages: IndexSet<String> = packages.map(|it| shell_word(&without_login(it))).collect();
    if packages.is_empty() {
        return step;
    }
    let step = match packages.iter().any(|package| package.contains("://***@")) {
        true => step.note("Write the login of a package in place of ***."),
        false => step,
    };
    let packages: Vec<String> = packages.into_iter().collect();
    step.note(
        "The service looks into the folder of this command besides; with CONSERVER_PIP_INSTALL=yes in the settings it \
         installs at its start what `pip_name` names, and the command is not needed.",
    )
    .run(format!(
        "sudo -u conserver {} -m pip install --target {PACKAGES} {}",
        shell_word(&deployment.settings.python.interpreter),
        packages.join(" ")
    ))
}

/// What the service may do beyond what its unit allows.
fn rights(deployment: &Deployment) -> Option<Step> {
    let folders = written_folders(deployment);
    let runs_python = python::needed(&deployment.outline).next().is_some();
    let in_line = |folder: &String| format!("ReadWritePaths={}", folder.replace('%', "%%"));
    let mut lines: Vec<String> = folders.iter().map(in_line).collect();
    if runs_python && is_in_a_home(deployment) {
        lines.push("ProtectHome=read-only".to_owned());
    }
    if lines.is_empty() && !runs_python {
        return None;
    }
    let mut step = Step::new("Let the service do what this configuration needs");
    let missing = folders.iter().filter(|folder| !Path::new(folder).is_dir());
    let missing: Vec<&String> = missing.collect();
    if !missing.is_empty() {
        step = step.run(format!("{MOUNTS}    # in a container"));
    }
    if runs_python {
        step = step.note(format!(
            "The user conserver must be able to read the interpreter and the folders of {FOLDERS}. They cannot be \
             below /tmp, of which the service has one of its own. Some libraries need further lines in the unit: \
             conserver-operations(7), What the service may do."
        ));
    }
    if !lines.is_empty() {
        let words: Vec<String> = lines.iter().map(|line| shell_word(line)).collect();
        let words = words.join(" ");
        step = step
            .run("sudo mkdir -p /etc/systemd/system/conserver.service.d")
            .run(format!(
                "printf '%s\\n' '[Service]' {words} | sudo tee \
                 /etc/systemd/system/conserver.service.d/deployment.conf"
            ))
            .run("sudo systemctl daemon-reload");
    }
    if !folders.is_empty() {
        step = step.note(format!(
            "The service may write below {OWN_FOLDER} alone, and in the folders that these lines name. What the \
             existing worker has there becomes the service's after it has ended, below."
        ));
    }
    Some(missing.into_iter().fold(step, |step, folder| {
        let word = shell_word(folder);
        step.note(format!(
            "{folder} is not there on this machine. If the existing worker runs in a container, that is a path inside \
             a volume, and its files are elsewhere here: the docker command names the folder. Then write that as \
             `path` into /etc/conserver/config.yml and in place of {folder} in all commands, and make no new folder: \
             what the existing worker has stored would not be found."
        ))
        .run(format!(
            "sudo install -d -o conserver -g conserver {word}    # if it is nowhere"
        ))
    }))
}

/// The folders that the existing worker had until now.
fn handed_over(deployment: &Deployment) -> Option<Step> {
    let folders = written_folders(deployment);
    if folders.is_empty() {
        return None;
    }
    let step = Step::new("Give the service the folders of the existing worker").note(
        "Look who else writes there, or reads as the present owner. The way back has the commands that give them back: \
         keep this plan, as a later one finds the new owner.",
    );
    let step = folders.iter().fold(step, |step, folder| {
        step.run(format!("sudo chown -R conserver: {}", shell_word(folder)))
    });
    Some(step.run("as_service check"))
}

/// The same folders, for their former owners.
fn handed_back(deployment: &Deployment) -> Option<Step> {
    let folders = written_folders(deployment);
    if folders.is_empty() {
        return None;
    }
    let step = Step::new("Give the existing worker its folders back");
    Some(folders.iter().fold(step, |step, folder| {
        let word = shell_word(folder);
        match fs::metadata(folder) {
            Ok(found) => step
                .note(format!(
                    "{folder} belongs to {}:{}, by its numbers, while this plan is made. If that is the service \
                     already, take the command of the plan before the switch.",
                    found.uid(),
                    found.gid()
                ))
                .run(format!(
                    "sudo chown -R {}:{} {word}",
                    found.uid(),
                    found.gid()
                )),
            Err(_) => step
                .note(format!(
                    "{folder} is not there on this machine while this plan is made: write the user as which the \
                     existing worker runs in place of USER; in a container that is mostly 0."
                ))
                .run(format!("sudo chown -R USER: {word}")),
        }
    }))
}

/// The folders in which `storage.file` writes and the service may not.
fn written_folders(deployment: &Deployment) -> Vec<String> {
    let mut folders: Vec<String> = Vec::new();
    for module in &deployment.outline.modules {
        let is_file = module.section == Section::Storages && module.module == "storage.file";
        let folder = module.option("path").unwrap_or(FILES);
        let is_elsewhere = folder.starts_with('/')
            && !Path::new(folder).starts_with(OWN_FOLDER)
            && !folder.contains("${");
        if is_file && module.is_built_in() && is_elsewhere && !folders.iter().any(|it| it == folder)
        {
            folders.push(folder.to_owned());
        }
    }
    folders
}

/// Whether Python or its modules are in a folder that the service does not see.
fn is_in_a_home(deployment: &Deployment) -> bool {
    let settings = &deployment.settings.python;
    let interpreter = Path::new(&settings.interpreter);
    let mut places = settings
        .path
        .iter()
        .map(PathBuf::as_path)
        .chain([interpreter]);
    places.any(|place| place.starts_with("/home") || place.starts_with("/root"))
}

/// Dead letters that wait.
fn dead_letters(deployment: &Deployment) -> Option<Step> {
    let survey = deployment.redis.survey()?;
    let served = deployment.outline.plan.ingress_lists();
    let is_served = |queue: &&QueueLength| match queue.kind {
        QueueKind::StorageDeadLetters => queue.is_configured,
        QueueKind::DeadLetters => {
            let name = queue.key.strip_prefix("DLQ:");
            served.iter().any(|list| Some(list.as_str()) == name)
        }
        QueueKind::Ingress | QueueKind::Egress | QueueKind::Follower => false,
    };
    let waiting = survey.queues.iter().filter(|it| it.entries > Some(0));
    let waiting: Vec<&QueueLength> = waiting.filter(is_served).collect();
    if waiting.is_empty() {
        return None;
    }
    let mut step = Step::new("Look at the dead letters, and retry those that are worth it")
        .note("Dead letters of the existing worker have no reason here. Those that fail again are back with one.")
        .run("as_service dlq ls");
    for storage in &survey.replay_locks {
        step = step
            .note(format!(
                "The API server replays the dead letters of storage {storage}, or has left its lock: wait for it, \
                 or remove the lock if nobody replays any more."
            ))
            .login_of(deployment)
            .run(format!(
                "{} DEL {}    # only if nobody replays",
                redis_cli(deployment),
                shell_word(&format!("DLQ:storage:{storage}:replay-lock"))
            ));
    }
    for queue in waiting {
        let name = queue.key.strip_prefix("DLQ:").unwrap_or(&queue.key);
        step = step.run(format!("as_service dlq retry {}", shell_word(name)));
    }
    Some(step)
}

/// What the existing worker has lost.
fn lost(deployment: &Deployment) -> Step {
    let step = Step::new("Find the vCons that the existing worker has lost").note(
        "One that it had in hand when it died is in no list and in no storage, but its document is in Redis: this \
         lists those that may be lost, and changes nothing.",
    );
    let lists = deployment.outline.plan.ingress_lists();
    let lists: Vec<String> = lists.iter().map(|list| shell_word(list.as_str())).collect();
    step.note(format!(
        "Read what it notes before you add `--requeue LIST`. A chain without storages, a link that ends its chain \
         early or returns another UUID, and a storage without `get` leave finished vCons that look the same, and all \
         that it lists goes to that one list: work, paid calls included, is done again, and vCons of other chains go \
         through the chain of that list. If only some are lost, push these alone: `redis-cli RPUSH LIST UUID…`. The \
         ingress lists are {}.",
        lists.join(", ")
    ))
    .run("as_service audit")
}

/// Back to the existing worker.
pub(super) fn way_back(deployment: &Deployment) -> Vec<Step> {
    let mut steps = Vec::from_iter(fetched(deployment));
    steps.extend([
        Step::new("Stop conserver, and wait until it has drained")
            .note("It finishes the vCons that it has in hand, for at most CONSERVER_DRAIN_TIMEOUT (30 s).")
            .run("sudo systemctl disable --now conserver"),
        Step::new("See that no claim is left")
            .note(
                "Under \"What waits\" it names each daemon that has claims. Such a one was killed, still runs, or could \
                 not reach Redis: start conserver once more under its CONSERVER_INSTANCE, wait until \
                 `as_service status` says that it is running, and stop it again.",
            )
            .run(AS_SERVICE)
            .run("as_service migrate"),
    ]);
    steps.extend(pushed_back(deployment));
    steps.extend(storage_letters(deployment));
    steps.extend(handed_back(deployment));
    steps.push(
        Step::new("Start the existing worker")
            .notes_of(deployment)
            .run("docker compose start conserver    # or: sudo systemctl start NAME"),
    );
    steps
}

/// What a follower took off another server's list, and only conserver knows.
struct Taken {
    /// The follower.
    name: String,
    /// The list that it took them off, as a word of a command.
    egress_list: String,
    /// The other server.
    url: String,
}

impl Taken {
    /// A word for each follower that has taken anything, or may by then.
    fn of(deployment: &Deployment) -> Vec<Self> {
        let names = deployment.outline.followers.iter().cloned();
        let mut names: Vec<String> = names.collect();
        let queues = deployment.redis.survey().into_iter();
        for queue in queues.flat_map(|survey| &survey.queues) {
            let name = queue.key.strip_prefix(FOLLOWER_KEYS).unwrap_or_default();
            if queue.kind == QueueKind::Follower && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        let taken = names.into_iter().map(|name| {
            let mut known = deployment.followers.iter();
            let known = known.find(|follower| follower.name == name);
            Self {
                egress_list: known.map_or("EGRESS_LIST".to_owned(), |it| {
                    shell_word(it.egress_list.as_str())
                }),
                url: known.map_or("the other server".to_owned(), |it| it.url.to_string()),
                name,
            }
        });
        taken.collect()
    }

    fn key(&self) -> String {
        shell_word(&format!("{FOLLOWER_KEYS}{}", self.name))
    }
}

/// Followers of the configuration fetch what they took while conserver still runs.
fn fetched(deployment: &Deployment) -> Option<Step> {
    let followers = &deployment.outline.followers;
    if followers.is_empty() {
        return None;
    }
    let step = Step::new("Let conserver fetch what its followers took")
        .note(
            "A follower takes UUIDs off the other server's list, which no longer has them, and keeps them in \
             conserver:follower:NAME until it has fetched their documents. The existing worker does not know that key: \
             what is left there would be lost.",
        )
        .note(
            "In the service's config.yml write `enabled: false` into each chain and `pulling_interval: 604800` into each \
             follower. Then conserver works on nothing more, takes UUIDs at most once more, and pushes what it fetches \
             onto its ingress list, where the existing worker finds it. If the other server is away, go on: a step \
             below puts back what is left.",
        )
        .login_of(deployment)
        .run("sudoedit /etc/conserver/config.yml")
        .run("sudo systemctl reload conserver");
    let taken = Taken::of(deployment).into_iter();
    let taken = taken.filter(|it| followers.contains(&it.name));
    Some(taken.fold(step, |step, it| {
        step.run(format!(
            "{} LLEN {}    # again, until it is 0",
            redis_cli(deployment),
            it.key()
        ))
    }))
}

/// What followers have not fetched goes back to the list that they took it off.
fn pushed_back(deployment: &Deployment) -> Option<Step> {
    let taken = Taken::of(deployment);
    if taken.is_empty() {
        return None;
    }
    let step = Step::new("Put back what followers took and have not fetched")
        .note(
            "Do this with conserver stopped. The second command for each follower pushes what the first one shows onto \
             the list of the other server, where the follower of the existing worker takes it again; the third one is \
             for afterwards. OTHER_REDIS_URL is the Redis of that server. Who cannot reach it sends the UUIDs as a JSON list \
             to its API: POST /vcon/ingress?ingress_list=LIST, which takes any list.",
        )
        .note(format!(
            "UUIDs that did not reach Redis are in files {OWN_FOLDER}/*.taken-*. If the last command names any, start \
             conserver again as for the first step, with Redis available, and stop it again."
        ))
        .login_of(deployment);
    let redis = redis_cli(deployment);
    let step =
        taken.iter().fold(step, |step, it| {
            let (key, list) = (it.key(), &it.egress_list);
            let tries = shell_word(&format!("conserver:follower-tries:{}", it.name));
            step.note(format!(
            "Follower {} took them off {list} of {}.",
            it.name, it.url
        ))
        .run(format!("{redis} --raw LRANGE {key} 0 -1"))
        .run(format!(
            "{redis} --raw LRANGE {key} 0 -1 | xargs -r redis-cli -u OTHER_REDIS_URL RPUSH {list}"
        ))
        .run(format!("{redis} DEL {key} {tries}    # once they are there"))
        });
    Some(step.run(format!("sudo find {OWN_FOLDER} -name '*.taken-*'")))
}

/// The queues of storages, which only conserver and the newer generation know.
fn storage_letters(deployment: &Deployment) -> Option<Step> {
    let storages = &deployment.outline.plan.storages;
    if storages.is_empty() {
        return None;
    }
    let step = Step::new("Save what storages have missed");
    Some(match deployment.generation.is {
        Generation::Newer => step
            .note(
                "The API server lists and replays DLQ:storage:NAME by itself. Retry here first what you want to have \
                 saved before; a backlog of `on_outage: defer` is among it.",
            )
            .run("as_service dlq ls"),
        _ => {
            let step = step
                .note("The older generation does not know DLQ:storage:NAME: what is left there stays there.")
                .run("as_service dlq ls");
            storages.iter().fold(step, |step, storage| {
                let queue = shell_word(&format!("storage:{storage}"));
                step.run(format!("as_service dlq retry {queue}"))
            })
        }
    })
}

impl Step {
    /// What the existing worker finds.
    fn notes_of(self, deployment: &Deployment) -> Self {
        let step = self
            .note(
                "Lists, documents, contexts, dead letters and storages have the form that it knows. The other keys \
                 conserver:* disturb nobody.",
            )
            .note(
                "A vCon that went back to its list in the middle of its chain has what its links did in its \
                 document: the existing worker runs these links again.",
            );
        let step = match deployment.generation.is {
            Generation::Older => step.note(
                "It reads RedisJSON only: conserver must have run with VCON_REDIS_FORMAT=json and \
                 VCON_JSON_BODIES=text, as in the settings above.",
            ),
            Generation::Newer => step.note(
                "It reads plain strings only: conserver must not have run with VCON_REDIS_FORMAT=json.",
            ),
            Generation::Mixed | Generation::Unknown => step.note(
                "The older generation reads RedisJSON only (VCON_REDIS_FORMAT=json, VCON_JSON_BODIES=text), the newer \
                 plain strings only (VCON_REDIS_FORMAT=plain).",
            ),
        };
        match deployment
            .outline
            .plan
            .chains
            .iter()
            .any(|chain| !chain.enabled)
        {
            true => step
                .note("It works on chains with `enabled: 0`, too: what waits there is worked off."),
            false => step,
        }
    }
}

/// Asks the Redis of the deployment. Its password is not shown.
fn redis_cli(deployment: &Deployment) -> String {
    let url = deployment.settings.redis_url.to_string();
    let (place, options) = url.split_once('?').unwrap_or((&url, ""));
    let Some(path) = place.strip_prefix("unix://") else {
        return format!("redis-cli -u {}", shell_word(&url));
    };
    let mut options = options.split('&');
    let database = options.find_map(|option| option.strip_prefix("db="));
    let database = database.map_or(String::new(), |it| format!(" -n {}", shell_word(it)));
    format!("redis-cli -s {}{database}", shell_word(path))
}
