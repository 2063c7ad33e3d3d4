//! A folder for files that other users may write to: what they prepare there neither stops a save nor
//! lets them read what is stored.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Disk, Files, Ledger, PATIENCE, Redis, Sample, chain, run, said, submit, wait_until,
};

/// Another user.
const OTHER: u32 = 12345;

fn sample() -> Sample {
    Sample::of(json!({
        "vcon": "0.4.0", "created_at": "2025-03-07T10:00:00Z", "subject": "secret",
        "parties": [], "dialog": [], "analysis": [], "attachments": [],
    }))
}

fn conserver(redis: &Redis, files: &Files) -> Conserver {
    let storage = json!({"module": "storage.file",
        "options": {"path": files.folder(), "file_permissions": "0600"}});
    Conserver::with(redis).config(&chain(&[], &[("files", storage)]))
}

/// A folder that everybody may write to, with the folder of the samples' day.
fn folder() -> (Files, PathBuf) {
    let files = Files::new();
    let day = files.folder().join("2025/03/07");
    fs::create_dir_all(&day).expect("folders");
    for path in [files.folder(), &day] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).expect("rights");
    }
    (files, day)
}

fn pipe(path: &Path) {
    mkfifo(path, Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO).expect("a pipe");
}

fn give(path: &Path, user: u32) {
    std::os::unix::fs::chown(path, Some(user), Some(user)).expect("the right to give it away");
}

/// What others may put under the name of a draft is of no use to them.
#[test]
fn drafts_that_others_have_prepared_neither_stop_a_save_nor_get_the_text() {
    let (redis, (files, day)) = (Redis::plain(), folder());
    let samples: Vec<Sample> = (0..5).map(|_| sample()).collect();
    let draft = |number: usize| day.join(format!(".{}.tmp", samples[number].id));
    pipe(&draft(0));
    // Made by another user, open for all, and kept open: chmod fails after the text was written.
    let open = File::create(draft(1)).expect("a file");
    fs::set_permissions(draft(1), Permissions::from_mode(0o666)).expect("rights");
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        give(&draft(1), OTHER);
    }
    let locked = File::create(draft(2)).expect("a file");
    locked.lock().expect("a lock");
    let elsewhere = files.folder().join("elsewhere");
    fs::write(&elsewhere, "").expect("a file");
    std::os::unix::fs::symlink(&elsewhere, draft(3)).expect("a link");

    let daemon = conserver(&redis, &files).lanes(2).start();
    let ledger = Ledger::of(&redis, &samples);
    submit(&redis, "default", &samples);
    ledger.settles();
    for sample in &samples {
        let stored = day.join(format!("{}.json", sample.id));
        let found = fs::symlink_metadata(&stored).expect("a file");
        assert!(found.is_file());
        assert_eq!(found.mode() & 0o7777, 0o600);
        assert_eq!(found.uid(), nix::unistd::geteuid().as_raw());
    }
    assert_eq!(fs::read_to_string(&elsewhere).expect("a file"), "");
    if is_root {
        // The other user's file is theirs still, and empty.
        assert_eq!(open.metadata().expect("a file").len(), 0);
        assert_eq!(fs::metadata(draft(1)).expect("a file").uid(), OTHER);
    }
    daemon.stop();
}

/// The folder of a day that is another user's, or a link that is: the vCon waits, and the log says why.
#[test]
fn a_day_in_the_hands_of_another_user_is_waited_out_and_named() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for is_link in [false, true] {
        let (redis, (files, _), trap) = (Redis::plain(), folder(), Files::new());
        let year = files.folder().join("2025");
        if is_link {
            fs::remove_dir_all(&year).expect("a folder");
            std::os::unix::fs::symlink(trap.folder(), &year).expect("a link");
            let name = CString::new(year.to_str().expect("a name")).expect("no NUL");
            nix::unistd::fchownat(
                nix::fcntl::AT_FDCWD,
                name.as_c_str(),
                Some(OTHER.into()),
                None,
                nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
            )
            .expect("the right to give it away");
        } else {
            give(&year, OTHER);
        }
        let daemon = conserver(&redis, &files).start();
        let samples = [sample()];
        let ledger = Ledger::of(&redis, &samples);
        submit(&redis, "default", &samples);
        let says = if is_link {
            format!("symbolic link {} is not followed", year.display())
        } else {
            format!("directory {} belongs to user {OTHER}", year.display())
        };
        daemon.wait_for_log(&says, PATIENCE);
        assert_eq!(redis.length("DLQ:default"), 0);
        assert_eq!(trap.with_hidden(), Vec::<PathBuf>::new());
        if is_link {
            fs::remove_file(&year).expect("a link");
        } else {
            give(&year, 0);
        }
        ledger.settles();
        assert!(files.text(&samples[0].id).contains("secret"));
        assert_eq!(trap.with_hidden(), Vec::<PathBuf>::new());
        daemon.stop();
    }
}

/// Neither does a command wait for what has the name of a document, nor does it take it for one.
#[test]
fn commands_do_not_wait_for_a_pipe_with_the_name_of_a_document() {
    let (redis, (files, day)) = (Redis::plain(), folder());
    let conserver = conserver(&redis, &files);
    let (lost, kept) = (sample(), sample());
    let taken = day.join(format!("{}.json", lost.id));
    pipe(&taken);
    fs::write(day.join(format!("{}.json", kept.id)), kept.text()).expect("a file");
    // A planted pipe with the name of the other one, under a later day.
    let later = files.folder().join("2025/03/08");
    fs::create_dir(&later).expect("a folder");
    pipe(&later.join(format!("{}.json", kept.id)));

    let got = conserver.run(&["get", &lost.id, "--from", "files"]);
    assert_ne!(got.code, 0);
    said(&got, &["not a regular file"]);
    let got = run(&conserver, &["get", &kept.id, "--from", "files"], 0);
    assert!(got.stdout.contains("secret"));
    run(&conserver, &["check"], 0);

    submit(&redis, "aside", &[lost.clone(), kept]);
    redis.ask::<i64>(&["DEL", "aside"]);
    let audited = run(&conserver, &["audit", "--settle", "0", "--json"], 65);
    let found: Vec<Value> = audited
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(found.len(), 2, "{}", audited.stdout);
    assert_eq!(found[0]["uuid"], json!(lost.id));

    run(&conserver, &["delete", &lost.id, "--yes"], 0);
    wait_until("it is gone", PATIENCE, || {
        fs::symlink_metadata(&taken).is_err()
    });
}

/// A command that saves what a storage does not have, and one that reads a folder, are not held up either.
#[test]
fn neither_a_retry_nor_a_submit_waits_for_what_others_have_prepared() {
    let (redis, (files, day)) = (Redis::plain(), folder());
    let conserver = conserver(&redis, &files);
    let samples: Vec<Sample> = (0..3).map(|_| sample()).collect();
    let named = |sample: &Sample, ending: &str| day.join(format!("{}{ending}", sample.id));
    pipe(&day.join(format!(".{}.tmp", samples[0].id)));
    pipe(&named(&samples[1], ".json"));
    let elsewhere = files.folder().join("elsewhere");
    fs::write(&elsewhere, "").expect("a file");
    std::os::unix::fs::symlink(&elsewhere, named(&samples[2], ".json")).expect("a link");
    submit(&redis, "DLQ:storage:files", &samples);
    run(&conserver, &["dlq", "retry", "storage:files"], 0);
    assert_eq!(redis.length("DLQ:storage:files"), 0);
    for sample in &samples {
        let found = fs::symlink_metadata(named(sample, ".json")).expect("a file");
        assert!(
            found.is_file() && found.mode() & 0o7777 == 0o600,
            "{found:?}"
        );
        let got = run(&conserver, &["get", &sample.id, "--from", "files"], 0);
        assert!(got.stdout.contains("secret"));
    }
    assert_eq!(fs::read_to_string(&elsewhere).expect("a file"), "");

    let calls = conserver.folder().join("calls");
    fs::create_dir(&calls).expect("a folder");
    let good = sample();
    fs::write(calls.join("good.json"), good.text()).expect("a file");
    pipe(&calls.join("pipe.json"));
    std::os::unix::fs::symlink("pipe.json", calls.join("link.json")).expect("a link");
    std::os::unix::fs::symlink("/dev/zero", calls.join("zero.vcon")).expect("a link");
    std::os::unix::fs::symlink("nowhere", calls.join("gone.json")).expect("a link");
    let submitted = run(&conserver, &["submit", "calls", "--list", "default"], 65);
    said(&submitted, &["Submitted 1 of 5 vCons"]);
    for name in ["pipe.json", "link.json", "zero.vcon"] {
        said(
            &submitted,
            &[&format!("calls/{name}: it is not a regular file")],
        );
    }
    assert_eq!(redis.list("default"), [good.id]);
}

/// All users that a user namespace does not know look the same there: the one to whom `path` belongs, and
/// anybody who has made a directory in it.
#[test]
fn a_directory_of_a_user_who_is_not_known_is_not_the_operators() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (redis, (files, _), disk) = (Redis::plain(), folder(), Disk::new());
    let year = files
        .folder()
        .join(chrono::Utc::now().format("%Y").to_string());
    fs::create_dir(&year).expect("a folder");
    fs::set_permissions(&year, Permissions::from_mode(0o777)).expect("rights");
    give(&year, OTHER);
    give(files.folder(), OTHER + 1);
    let check = || {
        conserver(&redis, &files)
            .program(disk.sized("1m"))
            .env("COLUMNS", "1000")
            .run(&["check"])
    };
    let refused = check();
    assert_eq!(refused.code, 69, "{}", refused.output());
    said(&refused, &[year.to_str().expect("a name"), "PrivateUsers"]);
    give(&year, 0);
    let accepted = check();
    assert_eq!(accepted.code, 0, "{}", accepted.output());
}
