//! Faults that were found in the process model, each with the circumstances that brought it about.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::json;

use crate::harness::{
    Conserver, Daemon, Ledger, PATIENCE, Redis, chain, exec, fresh, is_alive, number_from_env,
    preload, stuck, submit, wait_until,
};

fn a_worker_killed_by_a_real_time_signal_is_replaced(method: &str) {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .method(method)
        .workers(2)
        .start();
    let before = daemon.wait_for_workers(2);
    // The library knows no such signal.
    let killed = Command::new("kill")
        .args(["-34", &before[&1].to_string()])
        .status();
    assert!(killed.expect("the program kill").success());
    daemon.wait_for_log("killed by SIGRTMIN+0", PATIENCE);
    assert_ne!(daemon.wait_for_workers(2)[&1], before[&1]);
    daemon.stop();
}

#[test]
fn a_forked_worker_killed_by_a_real_time_signal_is_replaced() {
    a_worker_killed_by_a_real_time_signal_is_replaced("fork");
}

#[test]
fn a_worker_of_the_forkserver_killed_by_a_real_time_signal_is_replaced() {
    a_worker_killed_by_a_real_time_signal_is_replaced("forkserver");
}

#[test]
fn a_forkserver_starts_hundreds_of_workers() {
    let count = number_from_env("CONSERVER_TEST_WORKERS", 350);
    let redis = Redis::plain();
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .method("forkserver")
        .workers(count)
        .launch();
    daemon.wait_for_log(&format!("All {count} workers ready"), PATIENCE * 3);
    assert_eq!(daemon.count_in_log("Started the forkserver"), 1);
    daemon.terminate();
    assert_eq!(daemon.wait_exit(PATIENCE * 3), 0);
}

#[test]
fn a_pipe_in_the_place_of_the_configuration_holds_nobody_up() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .workers(2)
        .env("TICK_INTERVAL", "100")
        .start();
    let before = daemon.wait_for_workers(2);
    let config = daemon.conserver().folder().join("config.yml");
    let pipe = daemon.conserver().folder().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).expect("a pipe");
    fs::rename(&pipe, &config).expect("a file");
    daemon.wait_for_log("it is not a regular file", PATIENCE);
    let checked = daemon.conserver().run(&["check"]);
    assert_eq!(checked.code, 78, "{}", checked.output());
    kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("the worker runs");
    wait_until("the worker is replaced", PATIENCE, || {
        daemon.workers()[&1] != before[&1]
    });
    daemon.stop();
}

/// A pipe for the log that is full from the start, and that nobody reads.
struct FullPipe {
    end: File,
}

impl FullPipe {
    fn new(path: &Path) -> Self {
        mkfifo(path, Mode::S_IRWXU).expect("a pipe");
        let end = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .expect("a pipe");
        fcntl(&end, FcntlArg::F_SETPIPE_SZ(4096)).expect("a small pipe");
        let mut this = Self { end };
        this.fill();
        this
    }

    fn fill(&mut self) {
        while self.end.write(b"x").is_ok() {}
    }

    fn read(&mut self) -> String {
        let mut bytes = [0; 4096];
        let count = self.end.read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }
}

#[test]
fn a_log_that_nobody_reads_does_not_stop_the_supervisor() {
    for method in ["fork", "forkserver"] {
        let redis = Redis::plain();
        let conserver = Conserver::with(&redis)
            .config(&chain(&[], &[]))
            .method(method)
            .workers(2)
            .env("TICK_INTERVAL", "100")
            .env("CONSERVER_DRAIN_TIMEOUT", "1");
        let (log, script) = (
            conserver.folder().join("log"),
            conserver.folder().join("run.sh"),
        );
        let mut pipe = FullPipe::new(&log);
        let program = env!("CARGO_BIN_EXE_conserver");
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = run ] && exec {program} \"$@\" 2<>{}\nexec {program} \"$@\"\n",
            log.display()
        );
        fs::write(&script, text).expect("a file");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("a file");
        let mut daemon = conserver.program(script).launch();
        let before = daemon.wait_for_workers(2);
        kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("the worker runs");
        wait_until("the worker is replaced", PATIENCE, || {
            daemon.wait_for_workers(2)[&1] != before[&1]
        });

        let mut read = String::new();
        wait_until("the log says what it has lost", PATIENCE, || {
            read += &pipe.read();
            read.contains("lines of this log were lost")
        });
        pipe.fill();
        daemon.terminate();
        assert_eq!(daemon.wait_exit(PATIENCE), 0);
    }
}

#[test]
fn a_forkserver_that_dies_during_the_drain_costs_no_vcon_a_death() {
    let redis = Redis::plain();
    let (_hole, stuck) = stuck();
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[stuck], &[]))
        .method("forkserver")
        .workers(2)
        .env("CONSERVER_DRAIN_TIMEOUT", "600")
        .start();
    daemon.wait_for_workers(2);
    let samples = fresh(4);
    submit(&redis, "default", &samples);
    wait_until("work is in hand", PATIENCE, || redis.length("default") == 2);
    let forkserver = daemon.process("conserver-fork");
    daemon.terminate();
    daemon.wait_for_log("SIGTERM received", PATIENCE);
    kill(Pid::from_raw(forkserver), Signal::SIGKILL).expect("it runs");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["default"]);
    assert_eq!(redis.keys("conserver:deaths"), Vec::<String>::new());
}

#[test]
fn the_monitor_stays_as_long_as_a_worker_when_the_whole_group_is_told_to_end() {
    let redis = Redis::plain();
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", server.local_addr().expect("an address"));
    let link = json!({"module": "links.webhook", "options": {"webhook-urls": [url]}});
    let mut daemon = Conserver::with(&redis)
        .config(&chain(&[("answered late", link)], &[]))
        .workers(2)
        .start();
    daemon.wait_for_workers(2);
    let samples = fresh(1);
    submit(&redis, "default", &samples);
    let (mut asked, _) = server.accept().expect("the webhook is called");
    let monitor = daemon.process("conserver-mon");
    killpg(Pid::from_raw(daemon.pid()), Signal::SIGTERM).expect("the daemon runs");
    daemon.wait_for_log("SIGTERM received", PATIENCE);
    // That nothing happens is what is tested.
    thread::sleep(Duration::from_millis(500));
    assert!(is_alive(monitor), "the monitor ended before the worker");
    assert_eq!(redis.keys("conserver:instance:*").len(), 1);
    asked
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        .expect("the webhook listens");
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    Ledger::of(&redis, &samples).is_split_between(&["done"]);
    assert_eq!(redis.keys("conserver:instance:*"), Vec::<String>::new());
}

#[test]
fn a_child_that_does_not_answer_for_a_while_is_left_alone() {
    let redis = Redis::plain();
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[]))
        .env("TICK_INTERVAL", "100")
        .start();
    let before = daemon.wait_for_workers(1);
    let monitor = daemon.process("conserver-mon");
    for pid in [before[&1], monitor] {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it runs");
    }
    // Far beyond six beats: that nothing happens is what is tested.
    thread::sleep(Duration::from_secs(3));
    for pid in [before[&1], monitor] {
        kill(Pid::from_raw(pid), Signal::SIGCONT).expect("it runs");
    }
    assert_eq!(daemon.count_in_log("has not shown itself"), 0);
    assert_eq!(daemon.wait_for_workers(1), before);
    daemon.stop();
}

/// Under this, whoever opens the configuration file waits until there is a file `go`.
const SLOW: &str = r#"
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <fcntl.h>
    #include <stdarg.h>
    #include <string.h>
    #include <unistd.h>
    int open64(const char *path, int flags, ...) {
        static int (*next)(const char *, int, ...);
        if (!next) next = dlsym(RTLD_NEXT, "open64");
        va_list rest;
        va_start(rest, flags);
        int mode = va_arg(rest, int);
        va_end(rest);
        const char *name = strrchr(path, '/');
        if (name && !strcmp(name, "/config.yml") && access("go", F_OK)) {
            close(creat("waits", 0600));
            while (access("go", F_OK)) usleep(1000);
        }
        return next(path, flags, mode);
    }"#;

/// A daemon that is about to read its configuration for the first time.
fn before_its_configuration(redis: &Redis) -> Daemon {
    let conserver = Conserver::with(redis).config(&chain(&[], &[]));
    let library = preload(conserver.folder(), SLOW);
    let daemon = conserver.env("LD_PRELOAD", library).launch();
    let waits = daemon.conserver().folder().join("waits");
    wait_until("it waits for its configuration", PATIENCE, || {
        waits.exists()
    });
    daemon
}

fn let_go(daemon: &Daemon) {
    fs::write(daemon.conserver().folder().join("go"), "").expect("a file");
}

#[test]
fn signals_that_come_before_the_configuration_is_read_are_acted_on_later() {
    let redis = Redis::plain();
    let daemon = before_its_configuration(&redis);
    for signal in [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTTIN,
    ] {
        for _ in 0..20 {
            daemon.signal(signal);
        }
    }
    let_go(&daemon);
    daemon.wait_for_log("SIGHUP received", PATIENCE);
    daemon.wait_for_log("number of workers from 1 to 2", PATIENCE);
    daemon.wait_for_workers(2);
    daemon.stop();

    let mut daemon = before_its_configuration(&redis);
    daemon.terminate();
    let_go(&daemon);
    assert_eq!(daemon.wait_exit(PATIENCE), 0);
    assert_eq!(daemon.count_in_log("SIGTERM received"), 1);
}

#[test]
fn a_daemon_can_be_reloaded_from_its_first_instant_on() {
    let redis = Redis::plain();
    for _ in 0..10 {
        let daemon = Conserver::with(&redis).config(&chain(&[], &[])).launch();
        let status = format!("/proc/{}/status", daemon.pid());
        wait_until("it holds its signals back, or takes them", PATIENCE, || {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let masks = |name: &str| {
                let mask = text.lines().find_map(|line| line.strip_prefix(name));
                mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            };
            let hup = |mask: Option<u64>| mask.is_some_and(|mask| mask & 1 != 0);
            hup(masks("SigBlk:")) || hup(masks("SigCgt:"))
        });
        for _ in 0..50 {
            daemon.signal(Signal::SIGHUP);
        }
        daemon.wait_for_workers(1);
        assert!(daemon.count_in_log("SIGHUP received") >= 1);
        daemon.stop();
    }
}

#[test]
fn a_spawned_process_survives_signals_from_its_first_instant_on() {
    for (method, name) in [("spawn", "child"), ("forkserver", "forkserver")] {
        let redis = Redis::plain();
        let conserver = Conserver::with(&redis)
            .config(&chain(&[], &[]))
            .method(method);
        let library = preload(
            conserver.folder(),
            &r#"
            #include <fcntl.h>
            #include <stdio.h>
            #include <string.h>
            #include <unistd.h>
            __attribute__((constructor)) static void wait(void) {
                char line[256] = "";
                int file = open("/proc/self/cmdline", O_RDONLY);
                if (read(file, line, sizeof line - 1) < 10) return;
                close(file);
                if (strcmp(line + strlen(line) + 1, "NAME")) return;
                char pid[64];
                sprintf(pid, "waits-%d", getpid());
                close(open(pid, O_CREAT | O_WRONLY, 0600));
                while (access("go", F_OK)) usleep(1000);
            }"#
            .replace("NAME", name),
        );
        let daemon = conserver.env("LD_PRELOAD", library).launch();
        let waiting = || -> Vec<i32> {
            let folder = daemon.conserver().folder().read_dir().expect("a folder");
            let names = folder
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok());
            names
                .filter_map(|name| name.strip_prefix("waits-")?.parse().ok())
                .collect()
        };
        // A worker and the monitor, or the forkserver.
        let expected = if method == "spawn" { 2 } else { 1 };
        wait_until("they are in their first instant", PATIENCE, || {
            waiting().len() == expected
        });
        for pid in waiting() {
            for signal in [
                Signal::SIGHUP,
                Signal::SIGUSR1,
                Signal::SIGTTIN,
                Signal::SIGQUIT,
            ] {
                kill(Pid::from_raw(pid), signal).expect("it runs");
            }
        }
        let_go(&daemon);
        daemon.wait_for_workers(1);
        for wrong in ["died", "Restarted"] {
            assert_eq!(daemon.count_in_log(wrong), 0, "{}", daemon.log());
        }
        daemon.stop();
    }
}

#[test]
fn a_daemon_without_proc_does_its_work() {
    for method in ["fork", "spawn", "forkserver"] {
        let redis = Redis::plain();
        let copy = exec(&json!({"command": ["cat"]}));
        let conserver = Conserver::with(&redis)
            .config(&chain(&[("copy", copy)], &[]))
            .method(method)
            .workers(2)
            .env("TICK_INTERVAL", "100");
        let script = conserver.folder().join("run.sh");
        let text = format!(
            "#!/bin/sh\nexec unshare --user --map-root-user --mount /bin/sh -c '\n\
             mount -t tmpfs none /proc && exec {} \"$@\"' sh \"$@\"\n",
            env!("CARGO_BIN_EXE_conserver")
        );
        fs::write(&script, text).expect("a file");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("a file");
        let daemon = conserver.program(script).start();
        daemon.wait_for_log("/proc is not mounted", PATIENCE);
        assert_eq!(
            daemon.count_in_log("/proc is not mounted"),
            1,
            "{}",
            daemon.log()
        );
        let before = daemon.wait_for_workers(2);
        let samples = fresh(20);
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("the worker runs");
        daemon.wait_for_log("Restarted Worker-1", PATIENCE);
        daemon.wait_for_workers(2);
        assert_eq!(daemon.count_in_log("ERROR"), 1, "{}", daemon.log());
        daemon.stop();
    }
}
