//! Other users of the machine and the folder for what lives as long as the daemon.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::json;

use crate::harness::{
    Conserver, Ledger, PATIENCE, Redis, chain, exec, fresh, run, said, submit, wait_until,
};

/// Any user but root, who need not be known.
const OTHER: u32 = 12_345;

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a folder");
}

/// Neither the daemon nor `status` uses it; both say why, and what to do.
fn is_refused(conserver: &Conserver, words: &[&str]) {
    let folder = conserver.runtime_folder().display().to_string();
    let refused = run(conserver, &["run"], 69);
    said(&refused, words);
    said(&refused, &[&folder, "RUNTIME_DIRECTORY"]);
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 0);
    said(&run(conserver, &["status"], 69), words);
}

#[test]
fn a_folder_that_another_user_made_or_can_write_to_is_not_used() {
    let conserver = Conserver::without_redis().config(&chain(&[], &[]));
    let folder = conserver.runtime_folder();
    allow(&folder, 0o777);
    let shown = format!("(owner {}, mode 0777)", geteuid());
    is_refused(&conserver, &["others may write to it", &shown]);
    allow(&folder, 0o700);
    let above = conserver.folder().to_owned();
    allow(&above, 0o777);
    let shown = format!("(owner {}, mode 0777)", geteuid());
    is_refused(&conserver, &["others can rename it in", &shown]);
    allow(&above, 0o700);
    if geteuid().is_root() {
        chown(&folder, Some(OTHER), Some(OTHER)).expect("root");
        let refused = run(&conserver, &["run"], 69);
        said(&refused, &["another user (owner 12345, mode 0700)"]);
    }
    // The variable of desktops is looked at in the same way.
    let conserver = Conserver::without_redis()
        .config(&chain(&[], &[]))
        .env("RUNTIME_DIRECTORY", "");
    let above = conserver.folder().join("user");
    let folder = above.join("conserver");
    fs::create_dir_all(&folder).expect("a folder");
    let conserver = conserver.env("XDG_RUNTIME_DIR", above);
    allow(&folder, 0o777);
    said(&run(&conserver, &["run"], 69), &["others may write to it"]);
}

#[test]
fn a_configuration_that_another_user_could_have_kept_is_not_worked_with() {
    for method in ["spawn", "forkserver"] {
        let redis = Redis::plain();
        let daemon = Conserver::with(&redis)
            .config(&chain(&[], &[]))
            .method(method)
            .workers(2)
            .env("TICK_INTERVAL", "100")
            .start();
        let before = daemon.wait_for_workers(2);
        let kept = daemon.conserver().runtime_folder().join("here.config");
        let text = fs::read_to_string(&kept).expect("a file");
        let proof = daemon.conserver().folder().join("proof");
        let touch = exec(&json!({"command": ["touch", proof]}));
        let forged = chain(&[("touch", touch)], &[]).to_string();
        fs::write(&kept, forged).expect("a file");
        if geteuid().is_root() {
            chown(&kept, Some(OTHER), Some(OTHER)).expect("root");
        }
        allow(&kept, 0o666);
        kill(Pid::from_raw(before[&1]), Signal::SIGKILL).expect("the worker runs");
        wait_until("the configuration is kept anew", PATIENCE, || {
            fs::read_to_string(&kept).is_ok_and(|found| found == text)
        });
        wait_until(
            "the worker is there again, or has refused",
            PATIENCE,
            || {
                let log = daemon.log();
                let is_ready = || daemon.status().is_some_and(|it| it["workers_ready"] == 2);
                log.contains("cannot work with its configuration")
                    || log.contains("Restarted Worker-1") && is_ready()
            },
        );
        // One that met the forged one has refused it, and is started again by this.
        daemon.signal(Signal::SIGHUP);
        daemon.wait_for_log("All workers are replaced", PATIENCE);
        let samples = fresh(3);
        submit(&redis, "default", &samples);
        Ledger::of(&redis, &samples).settles();
        assert!(!proof.exists(), "{}", daemon.log());
        daemon.stop();
    }
}
