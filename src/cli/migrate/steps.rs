//! What to do for the switch and for the way back, in order.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::deployment::{Deployment, Generation};
use super::plan::{EnvironmentLine, ModuleRow, Runs, without_login};
use super::python::{self, FOLDERS};
use crate::config::{ListName, Section};
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

/// Where the service may write.
const OWN_FOLDER: &str = "/var/lib/conserver";

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
    steps.extend([
        Step::new("Check with the settings of the service, beside the existing worker")
            .note(
                "Mend what they name until all three succeed. The last one checks within the limits of the unit.",
            )
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
        Step::new("Start conserver")
            .run("sudo systemctl enable --now conserver"),
        Step::new("Watch the lists go down")
            .run("as_service status --queues")
            .run("journalctl -u conserver -f"),
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
            "A value that may be a secret is shown as ***: write the value that the existing deployment has for it.",
        );
    }
    step
}

/// What Python does not have.
fn packages(deployment: &Deployment, modules: &[ModuleRow]) -> Option<Step> {
    let rows = modules.iter().zip(&deployment.outline.modules);
    let missing: Vec<_> = rows.filter(|(row, _)| row.runs == Runs::Missing).collect();
    if missing.is_empty() {
        return None;
    }
    let mut step = Step::new("Give Python what is missing");
    let mut packages: Vec<&str> = Vec::new();
    for (row, module) in missing {
        step = step.note(format!(
            "{}.{}: `{}`: {}",
            row.section, row.name, row.module, row.note
        ));
        let package = module.package.as_deref();
        let package =
            package.filter(|it| deployment.python.is_absent(module) && !packages.contains(it));
        packages.extend(package);
    }
    if !deployment.settings.python.is_set() {
        step = step.note(format!(
            "{FOLDERS} in the settings above names the folders that hold them, separated by colons: the roots of the \
             `common` and `conserver` folders of the existing worker, and those of your own packages."
        ));
    }
    if !packages.is_empty() {
        let interpreter = shell_word(&deployment.settings.python.interpreter);
        let packages = packages
            .into_iter()
            .map(|it| shell_word(&without_login(it)));
        step = step.run(format!(
            "sudo -u conserver {interpreter} -m pip install --target {PACKAGES} {}",
            packages.collect::<Vec<_>>().join(" ")
        ));
    }
    Some(step)
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
            "The service may write below {OWN_FOLDER} alone. Before it gets another folder, look who else writes there: \
             for the way back, the existing worker may have to get it back."
        ));
    }
    Some(folders.iter().fold(step, |step, folder| {
        step.run(format!("sudo chown -R conserver: {}", shell_word(folder)))
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
        QueueKind::Ingress | QueueKind::Egress => false,
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
            .run(format!(
                "redis-cli -u {} DEL {}    # only if nobody replays",
                shell_word(&deployment.settings.redis_url.to_string()),
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
    let lists = deployment.outline.plan.ingress_lists();
    let list = lists.first().map_or("LIST", ListName::as_str);
    Step::new("Find the vCons that the existing worker has lost")
        .note(
            "One that it had in hand when it died is in no list and in no storage, but its document is in Redis. \
             The first command lists them, the second puts them on a list.",
        )
        .run("as_service audit")
        .run(format!("as_service audit --requeue {}", shell_word(list)))
}

/// Back to the existing worker.
pub(super) fn way_back(deployment: &Deployment) -> Vec<Step> {
    let mut steps = vec![
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
    ];
    steps.extend(storage_letters(deployment));
    steps.push(
        Step::new("Start the existing worker")
            .notes_of(deployment)
            .run("docker compose start conserver    # or: sudo systemctl start NAME"),
    );
    steps
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

/// A word of a shell command.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-+=:,./@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell_are_quoted() {
        for (text, word) in [
            ("/data/vcons", "/data/vcons"),
            ("DLQ:storage:pg", "DLQ:storage:pg"),
            ("a b", "'a b'"),
            ("it's $HOME", r"'it'\''s $HOME'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }
}
