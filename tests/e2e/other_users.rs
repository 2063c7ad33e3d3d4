//! What programs and other processes of this machine can do to the daemon's, and which user they are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{User, geteuid};
use serde_json::json;

use crate::harness::{
    Conserver, Ledger, PATIENCE, Redis, chain, exec, fresh, name_of, preload, run, said, submit,
    wait_until,
};

/// Who a program can be.
const SOMEBODY: &str = "nobody";

/// Why a process of the same user, without the rights of root over processes, cannot read the memory of
/// this one.
fn tried_by_an_equal(pid: i32) -> String {
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_ptrace", "cat"]);
        command
    } else {
        Command::new("cat")
    };
    command.arg(format!("/proc/{pid}/mem")).env("LC_ALL", "C");
    let output = command.stdin(Stdio::null()).output().expect("cat runs");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn no_process_of_the_daemon_shows_its_memory_to_programs_of_its_user() {
    for method in ["fork", "spawn", "forkserver"] {
        let redis = Redis::plain();
        let waits = exec(&json!({"command": ["sleep", "600"]}));
        let mut conserver = Conserver::with(&redis)
            .config(&chain(&[("waits", waits)], &[]))
            .method(method);
        if geteuid().is_root() {
            // Else the reader below has fewer rights, and could not read it for that.
            let script = conserver.folder().join("without-ptrace");
            without(&script, "sys_ptrace");
            conserver = conserver.program(script);
        }
        let daemon = conserver.start();
        submit(&redis, "default", &fresh(1));
        let is_program = |pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\0"))
        };
        wait_until("the program runs", PATIENCE, || {
            daemon.family().iter().any(is_program)
        });
        let family = daemon.family();
        let own: Vec<&i32> = family.iter().filter(|pid| !is_program(pid)).collect();
        // Supervisor, monitor, worker and reaper at least.
        assert!(own.len() >= 4, "{method}: {family:?}");
        for pid in own {
            // A program that was just started closes itself first.
            wait_until(&format!("{method}: {pid} is closed"), PATIENCE, || {
                tried_by_an_equal(*pid).contains("Permission denied")
            });
            if name_of(*pid) == "conserver-reap" {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let environment = String::from_utf8_lossy(&environment);
                assert!(
                    !environment.contains("REDIS_URL"),
                    "{method}: {environment}"
                );
            }
        }
        let program = family.iter().find(|pid| is_program(pid));
        // There is nothing to be read at its beginning.
        let why = tried_by_an_equal(*program.expect("it runs"));
        assert!(
            why.contains("Input/output error"),
            "programs do not inherit it: {method}: {why}"
        );
        // What others are not told, the processes tell themselves.
        let status = daemon.status().expect("it runs");
        assert!(
            status["workers"][0]["memory_bytes"].as_u64() > Some(100_000),
            "{status}"
        );
    }
}

#[test]
fn a_program_runs_as_its_user_with_the_groups_of_that() {
    if !geteuid().is_root() {
        return;
    }
    let user = User::from_name(SOMEBODY).expect("users").expect("nobody");
    let (redis, samples) = (Redis::plain(), fresh(3));
    let script = format!(
        "cat /dev/stdin > /dev/null; : > /dev/stdout && : > /dev/stderr || exit 7; test \"$(id -u) $(id -g) $HOME\" = '{} {} {}' && test \"$(id -G)\" = \"$(id -G {SOMEBODY})\"",
        user.uid,
        user.gid,
        user.dir.display()
    );
    let mine = format!("cat > /dev/null; test \"$(id -u)\" = {}", geteuid());
    let links = [
        (
            "by-name",
            exec(&json!({"command": ["sh", "-c", script], "user": SOMEBODY})),
        ),
        (
            "by-id",
            exec(&json!({"command": ["sh", "-c", script], "user": user.uid.as_raw()})),
        ),
        ("mine", exec(&json!({"command": ["sh", "-c", mine]}))),
        // It is ended all the same.
        (
            "slow",
            exec(
                &json!({"command": ["sh", "-c", "sleep 600 & wait"], "user": SOMEBODY, "timeout": 1}),
            ),
        ),
    ];
    submit(&redis, "default", &samples);
    let mut config = chain(&links, &[]);
    config["chains"]["main"]["links"] = json!(["tagger", "by-name", "by-id", "mine"]);
    config["chains"]["slow"] = json!({"links": ["slow"], "ingress_lists": ["slow"]});
    let daemon = Conserver::with(&redis).config(&config).start();
    Ledger::of(&redis, &samples).settles();
    assert_eq!(redis.length("DLQ:default"), 0, "{}", daemon.log());
    submit(&redis, "slow", &fresh(1));
    wait_until("it is killed", PATIENCE, || redis.length("DLQ:slow") == 1);
    wait_until("nothing of it is left", PATIENCE, || {
        daemon.family().len() <= 4
    });
    run(daemon.conserver(), &["check"], 0);
    daemon.stop();
}

#[test]
fn a_program_of_another_user_gets_no_capability_that_the_daemon_hands_on() {
    if !geteuid().is_root() {
        return;
    }
    // Without the right to give its streams to the user, the program has them all the same.
    for (more, read) in [(",+chown", "cat /dev/stdin"), ("", "cat")] {
        let (redis, samples) = (Redis::plain(), fresh(1));
        let script = format!(
            "{read} > /dev/null && test \"$(id -un)\" = {SOMEBODY} && grep CapEff: /proc/self/status >&2 \
             && grep -q 'CapEff:.0000000000000000' /proc/self/status"
        );
        let link = exec(&json!({"command": ["sh", "-c", script], "user": SOMEBODY}));
        let conserver = Conserver::with(&redis).config(&chain(&[("other", link)], &[]));
        // A user with some rights of root, that only ambient capabilities hand on to programs.
        let path = conserver.folder().join("as-a-service");
        let rights = format!("-all,+kill,+setgid,+setuid,+dac_override{more}");
        let program = env!("CARGO_BIN_EXE_conserver");
        let text = format!(
            "#!/bin/sh\nexec setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps {rights} \
             --ambient-caps {rights} '{program}' \"$@\"\n"
        );
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("a file");
        let daemon = conserver.program(path).start();
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        assert_eq!(redis.length("DLQ:default"), 0, "{}", daemon.log());
        daemon.stop();
    }
}

/// Users come from a server that gives no answer for `far-away`, as long as there is this file; then
/// that is another name of `nobody`.
const DIRECTORY: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

int getpwnam_r(const char *name, struct passwd *user, char *text, size_t size, struct passwd **found) {
    int (*ask)(const char *, struct passwd *, char *, size_t, struct passwd **) = dlsym(RTLD_NEXT, "getpwnam_r");
    if (strcmp(name, "far-away") == 0) {
        while (access("SILENT", F_OK) == 0) usleep(10000);
        name = "nobody";
    }
    return ask(name, user, text, size, found);
}
"#;

#[test]
fn a_directory_of_users_that_is_silent_keeps_up_the_link_and_nothing_else() {
    if !geteuid().is_root() {
        return;
    }
    for method in ["fork", "spawn"] {
        let redis = Redis::plain();
        let script = format!("cat > /dev/null; test \"$(id -un)\" = {SOMEBODY}");
        let link = exec(&json!({"command": ["sh", "-c", script], "user": "far-away"}));
        let mut config = chain(&[("other", link)], &[]);
        config["chains"]["main"]["egress_lists"] = json!(["late"]);
        config["chains"]["quick"] =
            json!({"links": ["tagger"], "ingress_lists": ["quick"], "egress_lists": ["done"]});
        let conserver = Conserver::with(&redis).config(&config).method(method);
        let silent = conserver.folder().join("silent");
        fs::write(&silent, "").expect("a file");
        let code = DIRECTORY.replace("SILENT", &silent.display().to_string());
        let library = preload(conserver.folder(), &code);
        let daemon = conserver.lanes(2).env("LD_PRELOAD", library).start();
        submit(&redis, "default", &fresh(1));
        wait_until("a lane has it", PATIENCE, || redis.length("default") == 0);
        submit(&redis, "quick", &fresh(1));
        wait_until("the other lane works", PATIENCE, || {
            redis.length("done") == 1
        });
        assert!(daemon.status().is_some_and(|it| it["workers_ready"] == 1));
        assert_eq!(redis.length("late"), 0);
        fs::remove_file(silent).expect("a file");
        wait_until("the user is found", PATIENCE, || redis.length("late") == 1);
        daemon.stop();
    }
}

#[test]
fn who_may_not_switch_is_told_by_check_and_the_vcons_wait() {
    let redis = Redis::plain();
    let somebody = if geteuid().is_root() {
        SOMEBODY
    } else {
        "root"
    };
    let link = exec(&json!({"command": ["cat"], "user": somebody}));
    let unknown = exec(&json!({"command": ["cat"], "user": "no-such-user"}));
    let mut conserver = Conserver::with(&redis).config(&chain(&[("other", link)], &[]));
    if geteuid().is_root() {
        let script = conserver.folder().join("without-setuid");
        without(&script, "setuid");
        conserver = conserver.program(script);
    }
    let words = [
        "link other",
        &format!("cannot run programs as user {somebody}"),
        "CAP_SETUID",
    ];
    said(&run(&conserver, &["check", "--offline"], 78), &words);
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    let daemon = conserver.env("CONSERVER_RETRY_ATTEMPTS", "1").start();
    daemon.wait_for_log("link other is away", PATIENCE);
    assert!(daemon.log().contains(words[1]), "{}", daemon.log());
    assert_eq!(redis.length("DLQ:default"), 0);
    daemon.reconfigure(&chain(&[("other", unknown)], &[]));
    let checked = run(daemon.conserver(), &["check", "--offline"], 78);
    said(
        &checked,
        &["link other", "this system knows no user \"no-such-user\""],
    );
    daemon.stop();
}

/// The program, without one of the rights of root.
fn without(script: &Path, capability: &str) {
    let program = env!("CARGO_BIN_EXE_conserver");
    let text = format!("#!/bin/sh\nexec setpriv --bounding-set -{capability} '{program}' \"$@\"\n");
    fs::write(script, text).expect("a file");
    fs::set_permissions(script, fs::Permissions::from_mode(0o700)).expect("a file");
}
