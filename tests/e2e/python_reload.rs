//! A changed configuration with Python modules: it comes into force when these can be used, and nobody waits for
//! that. What is missing is installed before, if that is asked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, PATIENCE, Programs, Redis, Sample, chain, free_port, is_alive, name_of,
    private_folder, run, said, submit, wait_until, wait_until_gone, wait_until_reaped,
};

/// A link that leaves a mark in each document.
const MARKING: &str = "
import store

def run(uuid, name, options):
    vcon = store.load(uuid)
    vcon['marked'] = MARK
    store.save(uuid, vcon)
    return uuid
";

/// What an import begins with that goes on when the file `door` is there. Before, it starts a process that
/// hears of no end.
const WAITING: &str = "
import os, subprocess, time

folder = os.path.dirname(__file__)
child = subprocess.Popen(['sleep', '1000'])
with open(folder + '/pids', 'a') as file:
    print(os.getpid(), child.pid, sep='\\n', file=file)
while not os.path.exists(folder + '/door'):
    time.sleep(0.01)
child.kill()
child.wait()
";

/// The text of a module that marks with `mark`, after `before`.
fn marking(before: &str, mark: &str) -> String {
    format!("{before}\nMARK = '{mark}'\n{MARKING}")
}

/// A chain with a link of this Python module.
fn config(module: &str) -> Value {
    chain(&[("python", json!({"module": module}))], &[])
}

/// A daemon that works with the module `good`, in force from the start.
fn conserver(redis: &Redis, programs: &Programs) -> Conserver {
    programs.write("good.py", &marking("", "good"));
    Conserver::with(redis)
        .config(&config("good"))
        .env("CONSERVER_PYTHON_PATH", programs.folder())
        .env("TICK_INTERVAL", "100")
}

/// The mark of a vCon that is submitted now.
fn mark(redis: &Redis) -> Value {
    let sample = Sample::small();
    submit(redis, "default", std::slice::from_ref(&sample));
    wait_until("the vCon is done", PATIENCE, || {
        redis.list("done").contains(&sample.id)
    });
    redis.document(&sample.id).expect("a document")["marked"].clone()
}

/// The process that tries the modules.
fn candidate(daemon: &Daemon) -> Pid {
    let mut found = None;
    wait_until("the modules are tried", PATIENCE, || {
        let tries = |pid: &i32| name_of(*pid) == "conserver-try";
        found = daemon.family().into_iter().find(tries);
        found.is_some()
    });
    Pid::from_raw(found.expect("a process"))
}

/// Fails if one that tries modules runs, as soon as all are reaped that have ended.
fn nobody_tries(daemon: &Daemon) {
    wait_until_reaped(daemon);
    let family = daemon.family();
    let tries = |pid: &&i32| name_of(**pid) == "conserver-try";
    assert_eq!(family.iter().filter(tries).count(), 0, "{}", daemon.log());
}

#[test]
fn a_module_that_cannot_be_imported_replaces_none_that_works() {
    for method in ["fork", "spawn", "forkserver"] {
        let (redis, programs) = (Redis::plain(), Programs::new());
        let daemon = conserver(&redis, &programs).method(method).start();
        assert_eq!(mark(&redis), "good");

        programs.write("changed.py", "import nothing_there\n");
        daemon.reconfigure(&config("changed"));
        daemon.wait_for_log("the former one stays", PATIENCE);
        let why = "links.python.module: `changed` cannot be used: ModuleNotFoundError: No module named \
                   'nothing_there'";
        daemon.wait_for_log(why, PATIENCE);
        daemon.signal(Signal::SIGHUP);
        wait_until("it is told again", PATIENCE, || {
            daemon.count_in_log(why) == 2
        });
        assert_eq!(mark(&redis), "good");
        assert_eq!(daemon.count_in_log("is in force"), 0);
        assert_eq!(daemon.count_in_log("Replacing the workers"), 0);

        // Nothing but the module changes.
        programs.write("changed.py", &marking("", "mended"));
        daemon.signal(Signal::SIGHUP);
        daemon.wait_for_log("All workers are replaced", PATIENCE);
        assert_eq!(mark(&redis), "mended");
        assert_eq!(daemon.count_in_log("is in force"), 1);

        // Without a signal.
        programs.write("another.py", &marking("", "another"));
        daemon.reconfigure(&config("another"));
        wait_until("the change is in force", PATIENCE, || {
            daemon.count_in_log("is in force") == 2
        });
        wait_until("the workers have it", PATIENCE, || {
            mark(&redis) == "another"
        });
        nobody_tries(&daemon);
        daemon.stop();
    }
}

#[test]
fn an_import_that_hangs_holds_up_nobody() {
    for method in ["fork", "spawn", "forkserver"] {
        let (redis, programs) = (Redis::plain(), Programs::new());
        let daemon = conserver(&redis, &programs).method(method).start();
        let before = daemon.wait_for_workers(1);
        programs.write("slow.py", &marking(WAITING, "slow"));
        daemon.reconfigure(&config("slow"));
        let first = programs.wait_for_pids(2);

        kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("a worker");
        daemon.wait_for_log("Restarted Worker-1", PATIENCE);
        assert_eq!(mark(&redis), "good");
        assert!(first.iter().all(|pid| is_alive(*pid)), "{}", daemon.log());

        // It begins anew, and replaces the workers when it is done.
        daemon.signal(Signal::SIGHUP);
        wait_until_gone(&first);
        let second = programs.wait_for_pids(4).split_off(2);
        assert_eq!(daemon.count_in_log("Replacing the workers"), 0);
        assert_eq!(mark(&redis), "good");
        programs.write("door", "");
        daemon.wait_for_log("All workers are replaced", PATIENCE);
        wait_until_gone(&second);
        assert_eq!(mark(&redis), "slow");
        assert_eq!(daemon.count_in_log("is in force"), 1);
        nobody_tries(&daemon);
        daemon.stop();
    }
}

#[test]
fn what_is_not_valid_drops_what_was_being_tried() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let daemon = conserver(&redis, &programs).start();
    programs.write("slow.py", &marking(WAITING, "slow"));
    daemon.reconfigure(&config("slow"));
    let pids = programs.wait_for_pids(2);
    daemon.reconfigure(&json!({"chains": 1}));
    daemon.wait_for_log("The configuration is not valid", PATIENCE);
    wait_until_gone(&pids);
    programs.write("door", "");
    assert_eq!(mark(&redis), "good");
    assert_eq!(daemon.count_in_log("is in force"), 0);
    nobody_tries(&daemon);
    daemon.stop();
}

#[test]
fn a_stop_ends_the_import() {
    for method in ["fork", "spawn", "forkserver"] {
        let (redis, programs) = (Redis::plain(), Programs::new());
        let mut daemon = conserver(&redis, &programs).method(method).start();
        programs.write("slow.py", &marking(WAITING, "slow"));
        daemon.reconfigure(&config("slow"));
        let pids = programs.wait_for_pids(2);
        daemon.terminate();
        assert_eq!(daemon.wait_exit(PATIENCE), 0);
        wait_until_gone(&pids);
    }
}

#[test]
fn a_stop_ends_the_import_at_the_start_too() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let conserver = conserver(&redis, &programs)
        .config(&config("slow"))
        .method("fork");
    programs.write("slow.py", &marking(WAITING, "slow"));
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut running = conserver.launch_again();
        let pids = programs.wait_for_pids(2);
        // One that only asks for the configuration is too early, and ends nothing.
        running.signal(Signal::SIGHUP);
        running.signal(signal);
        assert_eq!(running.wait_exit(PATIENCE), 0, "{}", running.log());
        wait_until_gone(&pids);
        programs.write("pids", "");
    }
    // A daemon that is killed leaves nothing behind either.
    let running = conserver.launch_again();
    let pids = programs.wait_for_pids(2);
    running.signal(Signal::SIGKILL);
    wait_until_gone(&pids);
}

#[test]
fn an_import_that_takes_too_long_leaves_the_former_configuration() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let daemon = conserver(&redis, &programs)
        .env("CONSERVER_PYTHON_TIMEOUT", "5")
        .start();
    programs.write("slow.py", &marking(WAITING, "slow"));
    daemon.reconfigure(&config("slow"));
    daemon.wait_for_log("Python modules cannot be used: ", PATIENCE);
    wait_until_gone(&programs.pids());
    assert_eq!(mark(&redis), "good");
    assert_eq!(daemon.count_in_log("is in force"), 0);
    nobody_tries(&daemon);
    daemon.stop();
}

#[test]
fn a_trial_that_dies_leaves_the_former_configuration() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let daemon = conserver(&redis, &programs).start();
    programs.write("slow.py", &marking(WAITING, "slow"));
    daemon.reconfigure(&config("slow"));
    let pids = programs.wait_for_pids(2);
    kill(candidate(&daemon), Signal::SIGKILL).expect("a process");
    let told = "The Python modules could not be tried (killed by SIGKILL)";
    daemon.wait_for_log(told, PATIENCE);
    wait_until_gone(&pids);
    assert_eq!(mark(&redis), "good");
    assert_eq!(daemon.count_in_log("is in force"), 0);
    nobody_tries(&daemon);
    daemon.stop();
}

#[test]
fn a_trial_that_stands_still_leaves_the_former_configuration() {
    let (redis, programs) = (Redis::plain(), Programs::new());
    let daemon = conserver(&redis, &programs)
        .env("CONSERVER_PYTHON_TIMEOUT", "5")
        .start();
    programs.write("slow.py", &marking(WAITING, "slow"));
    daemon.reconfigure(&config("slow"));
    kill(candidate(&daemon), Signal::SIGSTOP).expect("a process");
    daemon.wait_for_log(
        "The Python modules could not be tried within 15 s",
        PATIENCE,
    );
    wait_until_gone(&programs.pids());
    assert_eq!(mark(&redis), "good");
    assert_eq!(daemon.count_in_log("is in force"), 0);
    nobody_tries(&daemon);
    daemon.stop();
}

/// Makes a package of the module `tiny`, which marks with `tiny`; returns its file.
fn package(programs: &Programs) -> String {
    programs.write("tiny.text", &marking("", "tiny"));
    let code = "
import sys, zipfile
folder = sys.argv[1]
path = folder + '/tiny-1.0-py3-none-any.whl'
with zipfile.ZipFile(path, 'w') as file:
    file.write(folder + '/tiny.text', 'tiny/__init__.py')
    about = 'tiny-1.0.dist-info/'
    file.writestr(about + 'METADATA', 'Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n')
    file.writestr(about + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    file.writestr(about + 'RECORD', 'tiny/__init__.py,,\\n')
print(path)
";
    let folder = programs.folder();
    let output = Command::new("python3")
        .args(["-c", code])
        .arg(folder)
        .output()
        .expect("python3");
    assert!(output.status.success(), "{output:?}");
    let path = String::from_utf8(output.stdout).expect("text");
    path.trim().to_owned()
}

/// A chain with a link of the module `tiny` from this package.
fn packaged(package: &str) -> Value {
    let link = json!({"module": "tiny", "pip_name": package});
    chain(&[("python", link)], &[])
}

/// Has packages installed below this folder, from no server.
fn installing(conserver: Conserver, state: &Path) -> Conserver {
    conserver
        .env("CONSERVER_PIP_INSTALL", "yes")
        .env("STATE_DIRECTORY", state)
        .env("PIP_NO_INDEX", "1")
}

/// An interpreter whose pip says nothing and hangs, with a child.
fn hanging_pip(programs: &Programs) -> PathBuf {
    let text = "if [ \"$2\" != pip ]; then exec python3 \"$@\"; fi
cd \"${0%/*}\"
sleep 1000 &
echo $! >>pids; echo $$ >>pids
wait";
    programs.shell("interpreter", text)
}

#[test]
fn a_package_is_installed_once_and_only_if_it_is_asked_for() {
    let (redis, programs, state) = (Redis::plain(), Programs::new(), private_folder());
    let package = package(&programs);
    let conserver = conserver(&redis, &programs)
        .config(&packaged(&package))
        .env("STATE_DIRECTORY", state.path());
    let line = format!("to install what is missing: python3 -m pip install '{package}'");
    let why = "`tiny` cannot be used: ModuleNotFoundError: No module named 'tiny'";
    for command in [&["run"][..], &["check", "--offline"]] {
        said(&run(&conserver, command, 78), &[&line, why]);
    }
    assert!(!state.path().join("python").exists());

    let conserver = installing(conserver, state.path());
    let told = format!(
        "the start of the daemon installs what is missing: python3 -m pip install '{package}'"
    );
    said(&run(&conserver, &["check", "--offline"], 0), &[&told, why]);
    assert!(!state.path().join("python").exists());

    let daemon = conserver.launch_again();
    daemon.wait_for_log("All 1 workers started", PATIENCE);
    assert_eq!(mark(&redis), "tiny");
    let folder = state.path().join("python");
    let log = daemon.log();
    let begun = format!("Installing '{package}' into {} with pip", folder.display());
    for text in [&begun, &format!("Installed '{package}': took ")] {
        assert!(log.contains(text), "{text}: {log}");
    }
    daemon.stop();
    assert!(folder.join("tiny/__init__.py").exists());
    assert!(!folder.join(".pip").exists());

    let daemon = conserver.launch_again();
    daemon.wait_for_log("All 1 workers started", PATIENCE);
    assert_eq!(mark(&redis), "tiny");
    assert_eq!(daemon.count_in_log("Install"), 0);
    daemon.stop();
    said(
        &run(&conserver, &["check", "--offline"], 0),
        &["link python (tiny)"],
    );
}

#[test]
fn a_package_of_a_changed_configuration_is_installed_before_it_is_in_force() {
    let (redis, programs, state) = (Redis::plain(), Programs::new(), private_folder());
    let package = package(&programs);
    let daemon = installing(conserver(&redis, &programs), state.path()).start();
    assert_eq!(mark(&redis), "good");
    daemon.reconfigure(&packaged(&package));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("All workers are replaced", PATIENCE);
    assert_eq!(daemon.count_in_log("Installed"), 1);
    assert_eq!(mark(&redis), "tiny");
    nobody_tries(&daemon);
    daemon.stop();
}

#[test]
fn daemons_that_share_a_folder_install_once() {
    let (programs, state) = (Programs::new(), private_folder());
    let package = package(&programs);
    let folder = state.path().join("python");
    fs::create_dir(&folder).expect("a folder");
    let lock = fs::File::create(folder.join(".lock")).expect("a file");
    let lock = Flock::lock(lock, FlockArg::LockExclusive).expect("a lock");
    let servers = [Redis::plain(), Redis::plain()];
    let daemons: Vec<Daemon> = servers
        .iter()
        .map(|redis| {
            let conserver = conserver(redis, &programs).config(&packaged(&package));
            installing(conserver, state.path()).launch()
        })
        .collect();
    for daemon in &daemons {
        daemon.wait_for_log("Waiting for another daemon that installs into", PATIENCE);
    }
    drop(lock);
    for (daemon, redis) in daemons.iter().zip(&servers) {
        daemon.wait_for_log("All 1 workers started", PATIENCE);
        assert_eq!(mark(redis), "tiny");
    }
    let count = |daemon: &Daemon| daemon.count_in_log("Installed");
    assert_eq!(daemons.iter().map(count).sum::<usize>(), 1);
    daemons.into_iter().for_each(Daemon::stop);
}

#[test]
fn what_cannot_be_installed_is_told_without_its_token() {
    let (redis, programs, state) = (Redis::plain(), Programs::new(), private_folder());
    let url = format!("http://user:verysecret@127.0.0.1:{}/tiny.whl", free_port());
    let conserver = installing(conserver(&redis, &programs), state.path())
        .config(&packaged(&url))
        .env("LOG_LEVEL", "DEBUG")
        .env("PIP_RETRIES", "0");
    let finished = run(&conserver, &["run"], 78);
    let told = "packages could not be installed: pip has ended with exit code 1: ";
    said(
        &finished,
        &[told, "`tiny` cannot be used", "http://***@127.0.0.1:"],
    );
    assert!(
        !finished.output().contains("verysecret"),
        "{}",
        finished.output()
    );

    // While the daemon runs, it costs nothing but the change.
    let daemon = conserver.again().config(&config("good")).start();
    daemon.reconfigure(&packaged(&url));
    daemon.wait_for_log(told, PATIENCE);
    daemon.wait_for_log("the former one stays", PATIENCE);
    assert_eq!(mark(&redis), "good");
    assert!(
        !daemon.output().contains("verysecret"),
        "{}",
        daemon.output()
    );
    daemon.stop();
}

#[test]
fn a_stop_ends_pip_and_the_wait_for_it() {
    let (redis, programs, state) = (Redis::plain(), Programs::new(), private_folder());
    let installing = installing(conserver(&redis, &programs), state.path())
        .env("CONSERVER_PYTHON", hanging_pip(&programs));
    // A reload.
    let mut reloads = installing.start();
    reloads.reconfigure(&packaged("tiny"));
    let pids = programs.wait_for_pids(2);
    reloads.terminate();
    assert_eq!(reloads.wait_exit(PATIENCE), 0);
    wait_until_gone(&pids);

    // The start, of two daemons.
    programs.write("pids", "");
    let conserver = reloads.conserver();
    let mut installs = conserver.again().config(&packaged("tiny")).launch();
    let pids = programs.wait_for_pids(2);
    let mut waits = conserver.again().config(&packaged("tiny")).launch();
    waits.wait_for_log("Waiting for another daemon", PATIENCE);
    for daemon in [&mut waits, &mut installs] {
        daemon.terminate();
        assert_eq!(daemon.wait_exit(PATIENCE), 0, "{}", daemon.log());
    }
    wait_until_gone(&pids);
}
