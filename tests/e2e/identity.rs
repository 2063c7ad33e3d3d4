//! Commands act as the service on this machine, and only as the one that root has put there.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::harness::{Conserver, Ledger, Redis, chain, fresh, run, said};

/// The service's user, who need not be known.
const USER: u32 = 12_345;

/// A group that every system knows.
const GROUP: u32 = 1;

/// Somebody else.
const OTHER: u32 = 12_346;

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a file");
}

/// A runtime folder of a service, as systemd makes it. It goes with this.
struct RuntimeFolder(PathBuf);

impl RuntimeFolder {
    fn make(name: &str) -> Self {
        let path = PathBuf::from(format!("/run/conserver-{name}"));
        fs::create_dir(&path).expect("a folder");
        let this = Self(path);
        this.is_for(USER, 0o750);
        this
    }

    fn is_for(&self, user: u32, mode: u32) {
        chown(&self.0, Some(user), Some(GROUP)).expect("root");
        allow(&self.0, mode);
    }
}

impl Drop for RuntimeFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The program as this user, who can execute a copy of it.
fn as_user(conserver: Conserver, user: u32, groups: &str) -> Conserver {
    let folder = conserver.folder().to_owned();
    allow(&folder, 0o755);
    let (copy, script) = (folder.join("program"), folder.join("as-user"));
    let built = env!("CARGO_BIN_EXE_conserver");
    if fs::hard_link(built, &copy).is_err() {
        fs::copy(built, &copy).expect("a copy");
    }
    let text = format!(
        "#!/bin/sh\nexec setpriv --reuid {user} --regid {user} {groups} '{}' \"$@\"\n",
        copy.display()
    );
    fs::write(
        &script,
        text.replace(&format!("--regid {USER} "), &format!("--regid {GROUP} ")),
    )
    .expect("a file");
    allow(&script, 0o755);
    conserver.program(script)
}

/// Somebody who has set nothing.
fn caller() -> Conserver {
    // It lies in the folder that commands are run in.
    let mut conserver = Conserver::without_redis().config(&chain(&[], &[]));
    for name in [
        "RUNTIME_DIRECTORY",
        "CONSERVER_INSTANCE",
        "CONSERVER_HTTP",
        "CONSERVER_CONFIG_FILE",
    ] {
        conserver = conserver.without(name);
    }
    conserver
}

#[test]
fn a_command_of_roots_acts_as_the_service_and_others_are_told_what_to_do() {
    if !geteuid().is_root() {
        return;
    }
    let name = format!("e2e-{}", std::process::id());
    let folder = RuntimeFolder::make(&name);
    let (redis, samples) = (Redis::plain(), fresh(1));
    let (server, id) = (redis.url(), samples[0].id.clone());
    let service = as_user(Conserver::without_redis(), USER, "--clear-groups")
        .config(&chain(&[], &[]))
        .env("REDIS_URL", format!("{server}/0"))
        .env("RUNTIME_DIRECTORY", &folder.0)
        .env("CONSERVER_INSTANCE", "there");
    let config = service.folder().join("config.yml");
    let daemon = service.start();

    // Root, whose file nobody else may read.
    let root = caller();
    let file = root.folder().join("sample.json");
    fs::write(&file, samples[0].text()).expect("a file");
    allow(&file, 0o600);
    let file = file.display().to_string();
    let quiet = run(&root, &["submit", &file, "--instance", &name], 0);
    assert_eq!(quiet.stderr, "", "{}", quiet.output());
    Ledger::of(&redis, &samples).settles();
    run(&root, &["get", &id, "--instance", &name, "--as-service"], 0);
    said(
        &run(&root, &["status", "--queues", "--instance", &name], 0),
        &["there (PID ", "default"],
    );
    // Who did it is the caller, not the service's user.
    let sudo = caller().env("SUDO_USER", "alice");
    run(&sudo, &["pause", "default", "--instance", &name], 0);
    let paused = run(&sudo, &["pause", "--instance", &name], 0);
    said(&paused, &["default", "alice@"]);
    run(&sudo, &["resume", "default", "--instance", &name], 0);

    // The rights are those of the service's user.
    chown(&config, Some(0), Some(0)).expect("root");
    allow(&config, 0o600);
    let check = ["check", "--offline", "--instance", &name];
    said(
        &run(&root, &check, 78),
        &["config.yml", "Permission denied"],
    );
    allow(&config, 0o644);
    run(&root, &check, 0);

    // The caller's own settings come first, and it is said that the daemon has others.
    let own = caller().env("REDIS_URL", format!("{server}/6"));
    let note = format!(
        "note: this command uses {server}/6; the daemon there (PID {}) uses {server}",
        daemon.pid()
    );
    said(&run(&own, &["get", &id], 65), &[&note]);
    run(&own, &["get", &id, "--as-service", "--instance", &name], 0);
    let other = run(
        &root,
        &["get", &id, "--instance", "there", "--no-service"],
        69,
    );
    said(&other, &["note: this command uses redis://localhost"]);
    said(
        &run(&root, &["check", "--as-service", "--no-service"], 64),
        &["--no-service"],
    );
    said(&run(&root, &["run", "--as-service"], 64), &["--as-service"]);
    let nobody = ["get", &id, "--as-service", "--instance", "no-such-one"];
    said(
        &run(&root, &nobody, 69),
        &["conserver@no-such-one.service neither runs"],
    );

    // A user outside of the group, and one in it.
    let outside = as_user(caller(), OTHER, "--clear-groups");
    let denied = [
        "permission denied: ",
        &*folder.0.display().to_string(),
        "sudo usermod -aG ",
        "use sudo",
    ];
    said(
        &run(&outside, &["get", &id, "--instance", &name], 77),
        &denied,
    );
    said(
        &run(&outside, &["status", "--instance", "there"], 69),
        &denied,
    );
    let member = as_user(caller(), OTHER, &format!("--groups {GROUP}"));
    said(
        &run(&member, &["status", "--instance", "there"], 0),
        &["there (PID "],
    );
    let refused = run(
        &member,
        &["get", &id, "--as-service", "--instance", &name],
        77,
    );
    said(&refused, &["only root can read the settings"]);

    // Folders that another user could have made or filled.
    let get = ["get", &*id, "--instance", &name];
    allow(&folder.0, 0o777);
    said(&run(&root, &get, 69), &["others may write to it"]);
    folder.is_for(OTHER, 0o750);
    let board = folder.0.join("there.scoreboard");
    chown(&board, Some(OTHER), None).expect("root");
    said(
        &run(&root, &get, 77),
        &["runs as user 12345, whose folder that is not"],
    );
    folder.is_for(USER, 0o750);
    chown(&board, Some(USER), None).expect("root");
    run(&root, &get, 0);

    // A scoreboard that names a process of the user's that has not locked it, as one from a container does.
    let pid = daemon.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.expect("its children");
    let child = children.split_whitespace().next().expect("a worker");
    let file = OpenOptions::new().write(true).open(&board).expect("a file");
    // The fifth word.
    let name_pid = |pid: u64| file.write_all_at(&pid.to_ne_bytes(), 32).expect("a word");
    name_pid(child.parse().expect("a PID"));
    said(
        &run(&root, &get, 77),
        &["is not here the process that has locked it"],
    );
    name_pid(u64::from(pid.unsigned_abs()));
    run(&root, &get, 0);
    daemon.stop();
}
