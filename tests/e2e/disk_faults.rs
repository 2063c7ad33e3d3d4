//! Disks that fill up, lose their rights or go away: the vCons wait, and none is a dead letter.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Disk, Files, Ledger, PATIENCE, Redis, Sample, chain, fresh, submit,
    wait_until,
};

/// What the log says of a storage of which nothing can be used.
const AWAY: &str = "storage files is away, on hold until it is back";

/// What it says of one that is there, and fails for each vCon.
const OF_NO_USE: &str = "storage files is reachable but fails";

/// Breaks the disk by a command, sends vCons, waits for what the log must say, mends the disk by
/// another command, and wants every vCon stored.
fn waits_until_it_is_mended(breaks: &str, state: &str, says: &[&str], mends: &str) {
    let (redis, disk) = (Redis::plain(), Disk::new());
    let daemon = disk.conserver("64m", &redis).workers(2).lanes(2).start();
    let before = fresh(10);
    submit(&redis, "default", &before);
    Ledger::of(&redis, &before).settles();
    redis.ask::<i64>(&["DEL", "done"]);
    disk.shell(&daemon, breaks);

    let samples = fresh(30);
    submit(&redis, "default", &samples);
    daemon.wait_for_log(state, PATIENCE);
    for part in says
        .iter()
        .chain([&disk.mounted().display().to_string().as_str()])
    {
        assert!(daemon.log().contains(part), "{part:?} is not in the log");
    }
    assert_eq!(redis.length("DLQ:default"), 0);
    disk.shell(&daemon, mends);
    Ledger::of(&redis, &samples).settles();
    holds(&disk, &daemon, &samples);
    daemon.stop();
}

/// Fails unless the disk holds every one of the vCons, whole, and nothing half written.
fn holds(disk: &Disk, daemon: &Daemon, samples: &[Sample]) {
    let stored = Files::in_folder(&disk.seen_through(daemon));
    for sample in samples {
        let document: Value = serde_json::from_str(&stored.text(&sample.id)).expect("JSON");
        assert_eq!(document["uuid"], json!(sample.id));
    }
    assert_eq!(stored.with_hidden(), stored.paths());
}

/// The directory and all below it.
fn directories(top: &Path) -> Vec<PathBuf> {
    let mut found = vec![top.to_owned()];
    for entry in fs::read_dir(top).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.append(&mut directories(&path));
        }
    }
    found
}

#[test]
fn a_full_disk_is_waited_out() {
    let (redis, disk) = (Redis::plain(), Disk::new());
    // Room for some of them only: a page for each file and directory.
    let daemon = disk.conserver("256k", &redis).workers(2).lanes(2).start();
    let samples = fresh(200);
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    daemon.wait_for_log(AWAY, PATIENCE);
    assert!(daemon.log().contains("No space left on device"));
    assert!(daemon.log().contains("make room on that disk"));
    assert!(ledger.done() > 0 && ledger.done() < samples.len());
    assert_eq!(redis.length("DLQ:default"), 0);
    disk.shell(&daemon, r#"mount -o remount,size=64m "$DISK""#);
    ledger.settles();
    holds(&disk, &daemon, &samples);
    daemon.stop();
}

#[test]
fn a_disk_that_was_mounted_read_only_is_waited_out() {
    waits_until_it_is_mended(
        r#"mount -o remount,ro "$DISK""#,
        AWAY,
        &["Read-only file system", "mount it writable"],
        r#"mount -o remount,rw "$DISK""#,
    );
}

#[test]
fn a_disk_without_names_left_is_waited_out() {
    waits_until_it_is_mended(
        r#"mount -o remount,nr_inodes=$(($(df --output=iused "$DISK" | tail -1) + 5)) "$DISK""#,
        AWAY,
        &["No space left on device"],
        r#"mount -o remount,nr_inodes=10000 "$DISK""#,
    );
}

#[test]
fn a_folder_that_may_not_be_written_is_waited_out() {
    // The day's folder as well: it is there already.
    waits_until_it_is_mended(
        r#"find "$DISK" -type d -exec chmod 555 {} +"#,
        AWAY,
        &["Permission denied", "needs the right to write"],
        r#"find "$DISK" -type d -exec chmod 755 {} +"#,
    );
}

/// Takes the right to write away and gives it back, over and over, while vCons come in: a save may
/// meet that at any of its steps.
#[test]
fn rights_that_change_under_load_cost_no_vcon_and_leave_nothing_behind() {
    let (redis, disk) = (Redis::plain(), Disk::new());
    let daemon = disk
        .conserver("256m", &redis)
        .workers(2)
        .lanes(4)
        .env("CONSERVER_RETRY_FIRST_MS", "1")
        .env("CONSERVER_RETRY_MAX_MS", "20")
        .start();
    let samples = fresh(600);
    let ledger = Ledger::of(&redis, &samples);
    let mounted = disk.seen_through(&daemon);
    for part in samples.chunks(20) {
        // Before they come, as they may be done at once.
        let done = ledger.done();
        submit(&redis, "default", part);
        wait_until("half of them are done", PATIENCE, || {
            let directories = directories(&mounted);
            for mode in [0o555, 0o755].repeat(1000) {
                for directory in &directories {
                    fs::set_permissions(directory, fs::Permissions::from_mode(mode))
                        .expect("rights");
                }
            }
            ledger.done() >= done + 10
        });
    }
    ledger.settles();
    assert!(daemon.log().contains("Permission denied"));
    holds(&disk, &daemon, &samples);
    daemon.stop();
}

#[test]
fn a_file_in_the_place_of_a_folder_is_waited_out() {
    waits_until_it_is_mended(
        r#"for year in "$DISK"/*; do rm -rf "$year"; touch "$year"; done"#,
        OF_NO_USE,
        &["could not make directory", "must be directories"],
        r#"rm "$DISK"/*"#,
    );
}

#[test]
fn check_finds_a_disk_that_cannot_be_written() {
    let redis = Redis::plain();
    for (size, folder, says) in [
        // Not even a page for the file's content.
        ("4k", "", "No space left on device"),
        ("64m", "file", "must be directories"),
    ] {
        let disk = Disk::new();
        let conserver = disk.conserver(size, &redis);
        let storage = if folder.is_empty() {
            disk.storage()
        } else {
            let file = conserver.folder().join(folder);
            fs::write(&file, "").expect("a file");
            json!({"module": "storage.file", "options": {"path": file}})
        };
        let finished = Conserver::with(&redis)
            .config(&chain(&[], &[("files", storage)]))
            .program(disk.sized(size))
            .env("COLUMNS", "1000")
            .run(&["check"]);
        assert_eq!(finished.code, 69, "{}", finished.output());
        assert!(finished.output().contains(says), "{}", finished.output());
    }
}

#[test]
fn a_vcon_whose_name_is_taken_is_a_dead_letter_and_the_others_are_stored() {
    let (redis, files) = (Redis::plain(), Files::new());
    let config = json!({"module": "storage.file",
        "options": {"path": files.folder(), "organize_by_date": false}});
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("files", config)]))
        .lanes(2)
        .start();
    let samples = fresh(20);
    let taken = files.folder().join(format!("{}.json", samples[7].id));
    fs::create_dir(taken).expect("a folder");
    submit(&redis, "default", &samples);
    wait_until("the others are done", PATIENCE, || {
        redis.length("done") == 19 && redis.length("DLQ:default") == 1
    });
    assert_eq!(redis.list("DLQ:default"), [samples[7].id.clone()]);
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", &samples[7].id]);
    assert!(reason.contains("a directory has the name"), "{reason}");
    assert_eq!(files.paths().len(), 19);
    daemon.stop();
}
