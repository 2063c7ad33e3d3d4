//! What `storage.file` leaves on the disk.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::thread;
use std::time::{Instant, SystemTime};

use super::*;
use crate::failure::FailureKind::{Permanent, Refused};
use crate::vcon::{CreatedAt, Version};

const ID: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

fn files(path: &Path) -> FileStorage {
    FileStorage {
        root: StorageRoot {
            path: path.to_owned(),
            dir_mode: 0o750,
        },
        by_date: true,
        compress: false,
        max_size: 1000,
        file_mode: 0o640,
        timed_calls: TimedCalls::new(),
        left: Vec::new(),
        passed_over: AtomicBool::new(false),
        listings: Listings::default(),
        syncs: Arc::default(),
        shares_syncs: false,
    }
}

fn vcon(day: &str, json: &str) -> Outgoing {
    let local = format!("{day}T23:30:00").parse().unwrap();
    Outgoing {
        id: ID.parse().unwrap(),
        json: json.to_owned().into(),
        version: Version::Current,
        created_at: Some(CreatedAt { local, unix: 0 }),
        stand_in: std::sync::OnceLock::new(),
        formerly: None,
        subject: None,
    }
}

/// Every file below a directory, relative to it and sorted.
fn tree(path: &Path) -> Vec<String> {
    fn walk(root: &Path, at: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                let name = path.strip_prefix(root).unwrap();
                found.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(path, path, &mut found);
    found.sort();
    found
}

#[test]
fn a_vcon_lies_under_its_day_and_comes_back() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("new");
    let mut files = files(&root);
    let vcon = vcon("2025-03-07", "{\"a\":1}");
    assert_eq!(files.get(&vcon.id, Deadline::NONE), Ok(None));
    files.save(&vcon, Deadline::NONE).unwrap();
    assert_eq!(tree(&root), [format!("2025/03/07/{ID}.json")]);
    assert_eq!(
        files.get(&vcon.id, Deadline::NONE),
        Ok(Some(vcon.json.to_string()))
    );
    files.delete(&vcon.id).unwrap();
    assert_eq!(tree(&root), [""; 0]);
    assert_eq!(files.delete(&vcon.id), Ok(()));
}

#[test]
fn without_days_it_lies_in_the_path_itself() {
    let place = tempfile::tempdir().unwrap();
    let mut files = FileStorage {
        by_date: false,
        ..files(place.path())
    };
    let vcon = vcon("2025-03-07", "{}");
    files.save(&vcon, Deadline::NONE).unwrap();
    assert_eq!(tree(place.path()), [format!("{ID}.json")]);
    assert_eq!(
        files.get(&vcon.id, Deadline::NONE),
        Ok(Some(vcon.json.to_string()))
    );
    files.delete(&vcon.id).unwrap();
    assert_eq!(files.get(&vcon.id, Deadline::NONE), Ok(None));
}

#[test]
fn one_copy_is_left_when_compression_is_switched() {
    let place = tempfile::tempdir().unwrap();
    let mut plain = files(place.path());
    let mut gzipped = FileStorage {
        compress: true,
        ..files(place.path())
    };
    let (first, second) = (vcon("2025-03-07", "{\"n\":1}"), vcon("2025-03-07", "{}"));
    plain.save(&first, Deadline::NONE).unwrap();
    gzipped.save(&second, Deadline::NONE).unwrap();
    assert_eq!(tree(place.path()), [format!("2025/03/07/{ID}.json.gz")]);
    // Either setting reads either form.
    assert_eq!(
        plain.get(&first.id, Deadline::NONE),
        Ok(Some(second.json.to_string()))
    );
    plain.save(&first, Deadline::NONE).unwrap();
    assert_eq!(tree(place.path()), [format!("2025/03/07/{ID}.json")]);
    assert_eq!(
        gzipped.get(&first.id, Deadline::NONE),
        Ok(Some(first.json.to_string()))
    );
    gzipped.delete(&first.id).unwrap();
    assert_eq!(tree(place.path()), [""; 0]);
}

/// Writes a copy of the vCon that is so many seconds old.
fn write_copy(path: &Path, text: &str, age: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    let written = SystemTime::now() - Duration::from_secs(age);
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(written).unwrap();
}

#[test]
fn the_newest_copy_is_read_and_every_copy_is_deleted() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let id: VconId = ID.parse().unwrap();
    let copies = [
        format!("2025/10/02/{ID}.json"),
        format!("2024/12/31/{ID}.json"),
        format!("2019/09/30/{ID}.json"),
        format!("{ID}.json"),
    ];
    fs::create_dir_all(place.path().join("lost+found/99/99")).unwrap();
    fs::write(place.path().join("9999"), "a file, not a year").unwrap();
    for newest in &copies {
        for copy in &copies {
            let age = if copy == newest { 10 } else { 20 };
            write_copy(&place.path().join(copy), copy, age);
        }
        let found = files.get(&id, Deadline::NONE);
        assert_eq!(found, Ok(Some(newest.clone())));
    }
    files.delete(&id).unwrap();
    assert_eq!(tree(place.path()), ["9999"]);
}

#[test]
fn a_copy_is_read_though_another_day_cannot_be_searched() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let vcon = vcon("2025-03-07", "{}");
    files.save(&vcon, Deadline::NONE).unwrap();
    // Such a year cannot be listed, whoever asks.
    std::os::unix::fs::symlink("2024", place.path().join("2024")).unwrap();
    let found = files.get(&vcon.id, Deadline::NONE);
    assert_eq!(found, Ok(Some("{}".to_owned())));
    let other = "15cec3d4-0561-4010-9fb8-23cc7edef146".parse().unwrap();
    let failure = files.get(&other, Deadline::NONE).unwrap_err();
    assert!(failure.is_transient(), "{failure}");
}

#[test]
fn a_vcon_is_found_under_any_day_and_without_one() {
    let place = tempfile::tempdir().unwrap();
    let id: VconId = ID.parse().unwrap();
    let mut dated = files(place.path());
    let mut flat = FileStorage {
        by_date: false,
        ..files(place.path())
    };
    for name in [
        "{ID}.json",
        "{ID}.json.gz",
        "1999/12/31/{ID}.json",
        "2025/03/07/{ID}.json.gz",
    ] {
        // Neither a file in the place of a directory nor a directory of another kind is in the way.
        let path = place.path().join(name.replace("{ID}", ID));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir_all(place.path().join("2024/1/x")).unwrap();
        fs::write(place.path().join("2026"), "").unwrap();
        fs::create_dir_all(place.path().join("2024/02")).unwrap();
        fs::write(place.path().join("2024/02/03"), "").unwrap();
        let mut file = File::create(&path).unwrap();
        if name.ends_with("gz") {
            let mut gzip = GzEncoder::new(file, Compression::default());
            gzip.write_all(b"{}").unwrap();
            gzip.finish().unwrap();
        } else {
            file.write_all(b"{}").unwrap();
        }
        for files in [&mut dated, &mut flat] {
            let found = files.get(&id, Deadline::NONE);
            assert_eq!(found, Ok(Some("{}".to_owned())), "{name}");
        }
        flat.delete(&id).unwrap();
        assert!(!path.exists(), "{name}");
        assert_eq!(dated.get(&id, Deadline::NONE), Ok(None));
    }
}

#[test]
fn what_is_longer_than_the_limit_is_read_no_further() {
    let place = tempfile::tempdir().unwrap();
    let mut files = FileStorage {
        max_size: 1000,
        ..files(place.path())
    };
    let id: VconId = ID.parse().unwrap();
    let packed = |length: usize, cut: usize| {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(&vec![b'x'; length]).unwrap();
        let mut bytes = gzip.finish().unwrap();
        bytes.truncate(bytes.len() - cut);
        bytes
    };
    for (name, at_limit, beyond) in [
        (format!("{ID}.json"), vec![b'x'; 1000], vec![b'x'; 1001]),
        // A reader that went on to the end would find that there is none.
        (
            format!("{ID}.json.gz"),
            packed(1000, 0),
            packed(10_000_000, 8),
        ),
    ] {
        let path = place.path().join(name);
        fs::write(&path, at_limit).unwrap();
        let found = files.get(&id, Deadline::NONE).unwrap();
        assert_eq!(found.map(|text| text.len()), Some(1000));
        fs::write(&path, beyond).unwrap();
        let failure = files.get(&id, Deadline::NONE).unwrap_err();
        assert!(failure.kind.is_final(), "{failure}");
        assert!(failure.message.contains("max_file_size"), "{failure}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn without_days_a_copy_in_the_path_itself_goes_before_others() {
    let place = tempfile::tempdir().unwrap();
    let id: VconId = ID.parse().unwrap();
    let dated = place.path().join(format!("2025/03/07/{ID}.json"));
    write_copy(&dated, "dated", 10);
    write_copy(&place.path().join(format!("{ID}.json")), "flat", 20);
    for (by_date, found) in [(true, "dated"), (false, "flat")] {
        let mut files = FileStorage {
            by_date,
            ..files(place.path())
        };
        let text = files.get(&id, Deadline::NONE).unwrap();
        assert_eq!(text.as_deref(), Some(found));
    }
}

#[test]
fn a_look_through_the_days_ends_with_its_time() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("2025/03/07")).unwrap();
    let files = files(place.path());
    let over = Deadline::NONE.begin(Duration::ZERO);
    let failure = files
        .each_directory(over, &mut |_| Ok(ControlFlow::Continue(())))
        .unwrap_err();
    assert!(failure.is_transient());
    assert!(failure.message.contains("no answer within"), "{failure}");
}

#[test]
fn one_copy_is_left_when_the_day_changes() {
    let place = tempfile::tempdir().unwrap();
    let mut gzipped = FileStorage {
        compress: true,
        ..files(place.path())
    };
    let mut files = files(place.path());
    for day in [
        "2025-03-07",
        "2025-03-08",
        "2025-04-01",
        "2019-12-31",
        "2031-01-01",
    ] {
        // The clock of a file system goes in ticks.
        std::thread::sleep(Duration::from_millis(20));
        let vcon = vcon(day, day);
        files.save(&vcon, Deadline::NONE).unwrap();
        let day = day.replace('-', "/");
        assert_eq!(tree(place.path()), [format!("{day}/{ID}.json")]);
        std::thread::sleep(Duration::from_millis(20));
        gzipped.save(&vcon, Deadline::NONE).unwrap();
        assert_eq!(tree(place.path()), [format!("{day}/{ID}.json.gz")]);
    }
}

#[test]
fn a_copy_without_a_day_is_superseded_by_one_with_a_day() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join(format!("{ID}.json")), "flat").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let now = Utc::now().date_naive().to_string();
    let mut files = files(place.path());
    files.save(&vcon(&now, "{}"), Deadline::NONE).unwrap();
    let day = now.replace('-', "/");
    assert_eq!(tree(place.path()), [format!("{day}/{ID}.json")]);
    // Nor is one of yesterday left, which an unreadable date or another time zone gave it.
    let tomorrow = Utc::now().date_naive().succ_opt().unwrap().to_string();
    std::thread::sleep(Duration::from_millis(20));
    files.save(&vcon(&tomorrow, "{}"), Deadline::NONE).unwrap();
    let day = tomorrow.replace('-', "/");
    assert_eq!(tree(place.path()), [format!("{day}/{ID}.json")]);
}

#[test]
fn the_day_before_a_link_changed_it_is_looked_at_however_far_it_is() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let former = vcon("2011-03-07", "{}");
    files.save(&former, Deadline::NONE).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let now = Utc::now().date_naive().to_string();
    let mut changed = vcon(&now, "{}");
    changed.formerly = former.created_at;
    files.save(&changed, Deadline::NONE).unwrap();
    let day = now.replace('-', "/");
    assert_eq!(tree(place.path()), [format!("{day}/{ID}.json")]);
}

#[test]
fn a_younger_copy_under_another_day_is_not_removed() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let younger = place.path().join(format!("2025/03/07/{ID}.json"));
    files
        .save(&vcon("2025-03-07", "young"), Deadline::NONE)
        .unwrap();
    let file = File::options().write(true).open(&younger).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(60);
    file.set_modified(later).unwrap();
    files
        .save(&vcon("2025-03-08", "old"), Deadline::NONE)
        .unwrap();
    assert_eq!(fs::read_to_string(younger).unwrap(), "young");
}

#[test]
fn days_that_are_one_directory_keep_the_only_copy() {
    let present = ("2025/03/07", "2025/03/08");
    for (real, link) in [present, (present.1, present.0)] {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join(real)).unwrap();
        std::os::unix::fs::symlink(place.path().join(real), place.path().join(link)).unwrap();
        let mut files = files(place.path());
        for text in ["[1]", "[2]"] {
            for day in [real, link] {
                let vcon = vcon(&day.replace('/', "-"), text);
                files.save(&vcon, Deadline::NONE).unwrap();
                let found = files.get(&vcon.id, Deadline::NONE);
                assert_eq!(found, Ok(Some(text.to_owned())), "{day}");
            }
        }
        assert_eq!(fs::read_dir(place.path().join(real)).unwrap().count(), 1);
    }
}

#[test]
fn lanes_that_save_a_vcon_under_many_days_at_once_leave_at_least_one() {
    let place = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for lane in 1..=4 {
            let place = place.path();
            scope.spawn(move || {
                let mut files = files(place);
                for _ in 0..30 {
                    let vcon = vcon(&format!("2025-03-{lane:02}"), &lane.to_string());
                    files.save(&vcon, Deadline::NONE).unwrap();
                }
            });
        }
    });
    let left = tree(place.path());
    assert!((1..=4).contains(&left.len()), "{left:?}");
    assert!(left.iter().all(|name| name.ends_with(".json")), "{left:?}");
}

#[test]
fn a_draft_that_could_not_be_removed_is_removed_later() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let id: VconId = ID.parse().unwrap();
    let top = Dir::open(place.path()).unwrap();
    let name = draft::usual_name(&id);
    let draft = place.path().join(&name);
    let note = |files: &mut FileStorage| {
        files.note_left(&top, Path::new(""), name.clone(), HiddenKind::Draft)
    };
    note(&mut files);
    assert_eq!(files.left.len(), 0);
    fs::write(&draft, "half").unwrap();
    for _ in 0..2 {
        note(&mut files);
        assert_eq!(files.left.len(), 1);
    }
    files
        .save(&vcon("2025-03-07", "{}"), Deadline::NONE)
        .unwrap();
    assert!(!draft.exists());
    assert_eq!(files.left.len(), 0);

    fs::write(&draft, "half").unwrap();
    note(&mut files);
    files.probe().unwrap();
    assert!(!draft.exists());

    // One that is in work again is its writer's.
    let writer = Draft::open(&top, &id, 0o600).unwrap();
    note(&mut files);
    files.probe().unwrap();
    assert!(draft.exists());
    assert_eq!(files.left.len(), 0);
    drop(writer);

    for number in 0..2 * MOST_LEFT {
        let name = format!(".{number}.tmp");
        fs::write(place.path().join(&name), "").unwrap();
        files.note_left(&top, Path::new(""), name, HiddenKind::Draft);
    }
    assert_eq!(files.left.len(), MOST_LEFT);
}

/// Has another user own it, which only root may do.
fn give_away(path: &Path) {
    std::os::unix::fs::lchown(path, Some(12345), Some(12345)).unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Does something as one whom the file system takes for another user: 12345.
#[cfg(target_os = "linux")]
fn as_another(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let work = || {
            nix::unistd::setfsuid(12345.into());
            work();
        };
        scope.spawn(work).join().unwrap();
    });
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn a_directory_of_another_user_is_refused_and_named() {
    if !is_root() {
        return;
    }
    for foreign in ["2025", "2025/03", "2025/03/07"] {
        let place = tempfile::tempdir().unwrap();
        let mut files = files(place.path());
        let vcon = vcon("2025-03-07", "{}");
        fs::create_dir_all(place.path().join("2025/03/07")).unwrap();
        let path = place.path().join(foreign);
        give_away(&path);
        // Whether it is sticky or not.
        set_mode(path.parent().unwrap(), 0o1777);
        let failure = files.save(&vcon, Deadline::NONE).unwrap_err();
        assert!(failure.is_transient(), "{failure}");
        let says = format!("{} belongs to user 12345", path.display());
        assert!(failure.message.contains(&says), "{failure}");
        assert_eq!(tree(place.path()), [""; 0]);
        // Nor is anything read there, or removed: nothing is known of the vCon.
        fs::write(place.path().join(format!("2025/03/07/{ID}.json")), "[0]").unwrap();
        for failure in [
            files.get(&vcon.id, Deadline::NONE).unwrap_err(),
            files.has(&vcon.id, None, Deadline::NONE).unwrap_err(),
            files.delete(&vcon.id).unwrap_err(),
        ] {
            assert!(failure.is_transient(), "{failure}");
            assert!(failure.message.contains(&says), "{failure}");
        }
        assert_eq!(tree(place.path()).len(), 1);
        // To whom `path` belongs, it may belong as well.
        give_away(place.path());
        let found = files.get(&vcon.id, Deadline::NONE);
        assert_eq!(found, Ok(Some("[0]".to_owned())));
        files.save(&vcon, Deadline::NONE).unwrap();
    }
}

#[test]
fn directories_of_the_group_are_used_whoever_has_made_them() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let vcon = vcon("2025-03-07", "{}");
    set_mode(place.path(), 0o2775);
    for directory in ["2025", "2025/03", "2025/03/06", "2025/03/07"] {
        let directory = place.path().join(directory);
        fs::create_dir(&directory).unwrap();
        give_away(&directory);
        set_mode(&directory, 0o2775);
    }
    let former = place.path().join(format!("2025/03/06/{ID}.json"));
    write_copy(&former, "[0]", 60);
    give_away(&former);
    files.save(&vcon, Deadline::NONE).unwrap();
    assert_eq!(tree(place.path()), [format!("2025/03/07/{ID}.json")]);
    let found = files.get(&vcon.id, Deadline::NONE);
    assert_eq!(found, Ok(Some("{}".to_owned())));
    assert_eq!(files.has(&vcon.id, None, Deadline::NONE), Ok(true));
    files.delete(&vcon.id).unwrap();
    assert_eq!(tree(place.path()), [""; 0]);
}

/// As a network file system with `root_squash` or `all_squash`.
#[cfg(target_os = "linux")]
#[test]
fn directories_are_ours_if_the_file_system_takes_us_for_their_owner() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    set_mode(place.path(), 0o777);
    as_another(|| {
        let mut files = files(place.path());
        files.root.dir_mode = 0o777;
        let vcon = vcon("2025-03-07", "{}");
        for _ in 0..2 {
            // What a killed process left is ours as well.
            let day = place.path().join("2025/03/07");
            fs::create_dir_all(&day).unwrap();
            fs::write(day.join(draft::usual_name(&vcon.id)), "half").unwrap();
            files.save(&vcon, Deadline::NONE).unwrap();
            assert_eq!(tree(place.path()), [format!("2025/03/07/{ID}.json")]);
        }
        let found = files.get(&vcon.id, Deadline::NONE);
        assert_eq!(found, Ok(Some("{}".to_owned())));
        files.delete(&vcon.id).unwrap();
    });
}

#[test]
fn a_probe_finds_that_todays_directories_are_refused() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    set_mode(place.path(), 0o777);
    let mut files = files(place.path());
    let today = Utc::now().format("%Y").to_string();
    let year = place.path().join(today);
    fs::create_dir(&year).unwrap();
    assert_eq!(files.probe(), Ok(()));
    give_away(&year);
    for failure in [files.probe().unwrap_err(), files.check().unwrap_err()] {
        assert!(failure.is_transient(), "{failure}");
        let says = format!("directory {} belongs to user 12345", year.display());
        assert!(failure.message.contains(&says), "{failure}");
    }
    let mut undated = FileStorage {
        by_date: false,
        ..self::files(place.path())
    };
    assert_eq!(undated.probe(), Ok(()));
    set_mode(place.path(), 0o755);
    assert_eq!(files.probe(), Ok(()));
    #[cfg(target_os = "linux")]
    as_another(|| {
        set_mode(&year, 0o500);
        // The probe itself has the rights of root.
        let failure = files.root.try_today().unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::PermissionDenied);
        assert!(
            failure.to_string().contains(year.to_str().unwrap()),
            "{failure}"
        );
    });
}

/// So nobody can make "not there" impossible.
#[cfg(target_os = "linux")]
#[test]
fn what_another_user_has_locked_away_counts_as_empty() {
    if !is_root() {
        return;
    }
    for (locked, is_ours) in [("9999", false), ("9999/12/31", false), ("9999/12/31", true)] {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join(locked);
        fs::create_dir_all(place.path().join("9999/12/31")).unwrap();
        set_mode(path.parent().unwrap(), 0o777);
        set_mode(place.path(), 0o777);
        set_mode(&path, 0o700);
        if !is_ours {
            std::os::unix::fs::chown(&path, Some(54321), None).unwrap();
        }
        as_another(|| {
            let mut files = files(place.path());
            let id: VconId = ID.parse().unwrap();
            if is_ours {
                assert!(files.get(&id, Deadline::NONE).is_err());
                assert!(files.has(&id, None, Deadline::NONE).is_err());
                assert!(files.delete(&id).is_err());
            } else {
                assert_eq!(files.get(&id, Deadline::NONE), Ok(None), "{locked}");
                assert_eq!(files.has(&id, None, Deadline::NONE), Ok(false), "{locked}");
                assert_eq!(files.delete(&id), Ok(()), "{locked}");
            }
        });
    }
}

#[test]
fn hidden_files_of_killed_processes_go_with_the_next_save_or_a_delete() {
    let hidden = [
        format!(".{ID}.tmp"),
        format!(".{ID}.0.tmp"),
        format!(".{ID}.1.tmp"),
    ];
    let aside = format!(".{ID}.50.tmp");
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let vcon = vcon("2025-03-07", "{}");
    let day = place.path().join("2025/03/07");
    fs::create_dir_all(&day).unwrap();
    for name in hidden.iter().chain([&aside]) {
        fs::write(day.join(name), "half").unwrap();
    }
    files.save(&vcon, Deadline::NONE).unwrap();
    // A lane may be about to put that back.
    let aside = format!("2025/03/07/{aside}");
    let whole = format!("2025/03/07/{ID}.json");
    assert_eq!(tree(place.path()), [aside, whole]);
    let dir = Dir::open(&day).unwrap();
    let later = draft::now() + 1000;
    draft::remove_asides(&dir, &vcon.id, Some(later), false).unwrap();
    assert_eq!(tree(place.path()).len(), 1);

    // Those of several writers leave gaps, of which a name that is taken tells.
    fs::write(day.join(format!(".{ID}.7.tmp")), "half").unwrap();
    fs::create_dir(day.join(&hidden[0])).unwrap();
    files.save(&vcon, Deadline::NONE).unwrap();
    assert_eq!(tree(place.path()).len(), 1);
    fs::remove_dir(day.join(&hidden[0])).unwrap();

    for other_day in ["2025/03/06", "2019/01/01", ""] {
        let other_day = place.path().join(other_day);
        fs::create_dir_all(&other_day).unwrap();
        fs::write(other_day.join(format!(".{ID}.50.tmp")), "old").unwrap();
    }
    for name in &hidden {
        fs::write(day.join(name), "half").unwrap();
    }
    files.delete(&vcon.id).unwrap();
    assert_eq!(tree(place.path()), [""; 0]);
}

#[test]
fn a_copy_that_was_set_aside_is_not_put_over_a_younger_one() {
    let place = tempfile::tempdir().unwrap();
    let (dir, id) = (Dir::open(place.path()).unwrap(), ID.parse().unwrap());
    let copy = place.path().join("copy");
    for is_younger_there in [false, true] {
        fs::write(&copy, "old").unwrap();
        let first = draft::set_aside(&dir, "copy", &id).unwrap();
        fs::write(&copy, "other").unwrap();
        let second = draft::set_aside(&dir, "copy", &id).unwrap();
        assert_ne!(first, second);
        fs::remove_file(place.path().join(second)).unwrap();
        if is_younger_there {
            fs::write(&copy, "young").unwrap();
        }
        draft::put_back(&dir, &first, "copy").unwrap();
        let left = if is_younger_there { "young" } else { "old" };
        assert_eq!(fs::read_to_string(&copy).unwrap(), left);
        assert_eq!(tree(place.path()), ["copy"]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_save_is_done_when_it_has_left_nothing_hidden() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let elsewhere = place.path().join("2024");
    let (draft, aside) = (format!(".{ID}.tmp"), format!(".{ID}.50.tmp"));
    set_mode(place.path(), 0o777);
    fs::create_dir(&elsewhere).unwrap();
    for name in [&draft, &aside] {
        fs::write(elsewhere.join(name), "half").unwrap();
    }
    let mut files = files(place.path());
    files.by_date = false;
    for (name, what) in [
        (draft, HiddenKind::Draft),
        (aside, HiddenKind::Copy("copy".to_owned())),
    ] {
        let below = PathBuf::from("2024");
        files.left.push(HiddenFile { below, name, what });
    }
    as_another(|| {
        let failure = files
            .save(&vcon("2025-03-07", "{}"), Deadline::NONE)
            .unwrap_err();
        assert!(failure.is_transient(), "{failure}");
        assert!(
            failure.message.contains(elsewhere.to_str().unwrap()),
            "{failure}"
        );
    });
    set_mode(&elsewhere, 0o777);
    as_another(|| {
        files
            .save(&vcon("2025-03-07", "{}"), Deadline::NONE)
            .unwrap();
    });
    assert_eq!(
        tree(place.path()),
        [format!("{ID}.json"), "2024/copy".to_owned()]
    );
}

#[test]
fn a_younger_document_that_another_user_has_planted_is_not_read() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let vcon = vcon("2025-03-07", "[1]");
    files.save(&vcon, Deadline::NONE).unwrap();
    for planted in ["2026/01/01", "2024/01/01"] {
        let directory = place.path().join(planted);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{ID}.json")), "[666]").unwrap();
        give_away(&directory);
        set_mode(directory.parent().unwrap(), 0o777);
        let found = files.get(&vcon.id, Deadline::NONE);
        assert_eq!(found, Ok(Some("[1]".to_owned())));
    }
}

#[test]
fn a_link_of_the_operator_is_followed_unless_others_may_exchange_it() {
    let (place, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut files = files(place.path());
    let vcon = vcon("2025-03-07", "{}");
    let link = place.path().join("2025");
    std::os::unix::fs::symlink(other.path(), &link).unwrap();
    files.save(&vcon, Deadline::NONE).unwrap();
    assert_eq!(tree(other.path()), [format!("03/07/{ID}.json")]);
    let refused = |files: &mut FileStorage| {
        for failure in [
            files.save(&vcon, Deadline::NONE).unwrap_err(),
            files.get(&vcon.id, Deadline::NONE).unwrap_err(),
            files.delete(&vcon.id).unwrap_err(),
        ] {
            assert!(failure.is_transient(), "{failure}");
            let says = format!("symbolic link {} is not followed", link.display());
            assert!(failure.message.contains(&says), "{failure}");
        }
        assert_eq!(tree(other.path()), [format!("03/07/{ID}.json")]);
    };
    for mode in [0o770, 0o707, 0o1777] {
        fs::set_permissions(place.path(), Permissions::from_mode(mode)).unwrap();
        refused(&mut files);
    }
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(
        files.get(&vcon.id, Deadline::NONE),
        Ok(Some("{}".to_owned()))
    );
    if is_root() {
        give_away(&link);
        refused(&mut files);
    }
}

#[test]
fn neither_a_pipe_nor_a_link_under_the_name_of_a_document_is_opened() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let directory = place.path().join("2025/03/07");
    let (taken, other) = (directory.join(format!("{ID}.json")), place.path().join("x"));
    fs::create_dir_all(&directory).unwrap();
    fs::write(&other, "[666]").unwrap();
    let vcon = vcon("2025-03-08", "[1]");
    let make: [&dyn Fn(); 3] = [
        &|| nix::unistd::mkfifo(&taken, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        &|| std::os::unix::fs::symlink(&other, &taken).unwrap(),
        &|| {
            std::os::unix::net::UnixListener::bind(&taken).unwrap();
        },
    ];
    for make in make {
        make();
        let failure = files.get(&vcon.id, Deadline::NONE).unwrap_err();
        assert_eq!(failure.kind, Permanent, "{failure}");
        assert!(failure.message.contains("not a regular file"), "{failure}");
        assert_eq!(files.has(&vcon.id, None, Deadline::NONE), Ok(false));
        // A document under another day, older than that, is found.
        write_copy(
            &place.path().join(format!("2025/03/06/{ID}.json")),
            "[0]",
            60,
        );
        let found = files.get(&vcon.id, Deadline::NONE);
        assert_eq!(found, Ok(Some("[0]".to_owned())));
        files.delete(&vcon.id).unwrap();
        assert_eq!(tree(place.path()), ["x"]);
        make();
        let own_day = Outgoing {
            created_at: Some(CreatedAt {
                local: "2025-03-07T12:00:00".parse().unwrap(),
                unix: 0,
            }),
            ..vcon.clone()
        };
        files.save(&own_day, Deadline::NONE).unwrap();
        let found = files.get(&vcon.id, Deadline::NONE);
        assert_eq!(found, Ok(Some("[1]".to_owned())));
        files.delete(&vcon.id).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "[666]");
    }
}

/// A look that is not the last: two writers of one vCon remove each other's former copies.
#[test]
fn of_two_copies_the_younger_stays_though_it_comes_while_the_other_is_removed() {
    let place = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for lane in 1..=4u32 {
            let place = place.path();
            scope.spawn(move || {
                let mut files = files(place);
                for round in 0..100 {
                    let day = format!("2025-03-{:02}", (lane + round) % 3 + 1);
                    files.save(&vcon(&day, "{}"), Deadline::NONE).unwrap();
                    // Another lane may have taken the youngest aside, and puts it back.
                    let until = std::time::Instant::now() + SLOW_DISK;
                    let found = || {
                        let mut days = (1..=3).map(|day| format!("2025/03/{day:02}/{ID}.json"));
                        days.any(|day| place.join(day).exists())
                    };
                    while !found() {
                        assert!(std::time::Instant::now() < until, "{round}");
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    let left = tree(place.path());
    assert!((1..=3).contains(&left.len()), "{left:?}");
    assert!(left.iter().all(|name| name.ends_with(".json")), "{left:?}");
}

#[test]
fn a_vcon_whose_day_is_known_is_found_without_a_look_at_other_days() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let day = |text: &str| Some(text.parse().unwrap());
    let id: VconId = ID.parse().unwrap();
    let at = |below: &str, id: &VconId| place.path().join(format!("{below}/{id}.json"));
    write_copy(&at("2025/03/07", &id), "[1]", 60);
    // A day that cannot be listed shows who has looked.
    std::os::unix::fs::symlink("9999", place.path().join("9999")).unwrap();
    for near in ["2025-03-06", "2025-03-07", "2025-03-08"] {
        assert_eq!(files.has(&id, day(near), Deadline::NONE), Ok(true));
    }
    // A wrong day is no harm.
    assert_eq!(files.has(&id, day("2019-01-01"), Deadline::NONE), Ok(true));
    assert_eq!(files.has(&id, None, Deadline::NONE), Ok(true));
    let other = VconId::random();
    assert!(
        files
            .has(&other, day("2025-03-07"), Deadline::NONE)
            .is_err()
    );

    // 2022-02-22
    let dated: VconId = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f".parse().unwrap();
    write_copy(&at("2022/02/22", &dated), "[2]", 60);
    assert_eq!(
        files.get(&dated, Deadline::NONE),
        Ok(Some("[2]".to_owned()))
    );
    assert_eq!(files.has(&dated, None, Deadline::NONE), Ok(true));
    write_copy(&at("2022/02/23", &dated), "[3]", 30);
    assert_eq!(
        files.get(&dated, Deadline::NONE),
        Ok(Some("[3]".to_owned()))
    );
    // A save far away leaves nothing there, however old the vCon.
    let local = "2025-03-07T10:00:00".parse().unwrap();
    let moved = Outgoing {
        id: dated.clone(),
        created_at: Some(CreatedAt { local, unix: 0 }),
        ..vcon("2025-03-07", "[4]")
    };
    let other_days = (1..=28).map(|day| format!("2025/02/{day:02}"));
    for directory in other_days {
        fs::create_dir_all(place.path().join(directory)).unwrap();
    }
    files.save(&moved, Deadline::NONE).unwrap();
    assert!(!at("2022/02/22", &dated).exists() && !at("2022/02/23", &dated).exists());
    assert_eq!(
        files.get(&dated, Deadline::NONE),
        Ok(Some("[4]".to_owned()))
    );
}

#[test]
fn permissions_are_as_configured_whatever_the_umask() {
    // One wider than the usual umask, and one that does not let us write again.
    for wanted in [0o666, 0o440] {
        let place = tempfile::tempdir().unwrap();
        let mut files = FileStorage {
            file_mode: wanted,
            ..files(place.path())
        };
        files.root.dir_mode = 0o777;
        let mode = |name: &str| {
            let path = place.path().join(name);
            fs::metadata(path).unwrap().permissions().mode() & 0o7777
        };
        for _ in 0..2 {
            files
                .save(&vcon("2025-03-07", "{}"), Deadline::NONE)
                .unwrap();
            assert_eq!(mode(&format!("2025/03/07/{ID}.json")), wanted);
        }
        assert_eq!(mode("2025"), 0o777);
        assert_eq!(mode("2025/03/07"), 0o777);
    }
}

#[test]
fn a_vcon_over_the_limit_is_refused_with_both_sizes() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let failure = files.save(&vcon("2025-03-07", &"x".repeat(1001)), Deadline::NONE);
    let failure = failure.unwrap_err();
    assert_eq!(failure.kind, Permanent);
    assert!(failure.message.contains("1001 bytes"), "{failure}");
    assert!(failure.message.contains("1000 bytes"), "{failure}");
    assert_eq!(
        files.save(&vcon("2025-03-07", &"x".repeat(1000)), Deadline::NONE),
        Ok(())
    );
    files.max_size = 0;
    assert_eq!(
        files.save(&vcon("2025-03-07", &"x".repeat(2000)), Deadline::NONE),
        Ok(())
    );
}

#[test]
fn a_failed_save_leaves_no_temporary_file() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    let taken = place.path().join(format!("2025/03/07/{ID}.json"));
    fs::create_dir_all(&taken).unwrap();
    let failure = files
        .save(&vcon("2025-03-07", "{}"), Deadline::NONE)
        .unwrap_err();
    assert_eq!(failure.kind, Refused);
    assert!(
        failure.message.contains(taken.to_str().unwrap()),
        "{failure}"
    );
    assert_eq!(tree(place.path()), [""; 0]);
}

#[test]
fn a_spoilt_file_is_a_permanent_failure() {
    let place = tempfile::tempdir().unwrap();
    let mut gzipped = FileStorage {
        compress: true,
        ..files(place.path())
    };
    let vcon = vcon("2025-03-07", "{\"some\":\"text\"}");
    gzipped.save(&vcon, Deadline::NONE).unwrap();
    let file = place.path().join(format!("2025/03/07/{ID}.json.gz"));
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 9]).unwrap();
    assert_eq!(
        gzipped.get(&vcon.id, Deadline::NONE).unwrap_err().kind,
        Permanent
    );
    fs::write(&file, "not gzip").unwrap();
    assert_eq!(
        gzipped.get(&vcon.id, Deadline::NONE).unwrap_err().kind,
        Permanent
    );
}

#[test]
fn check_makes_no_directory_and_says_where_it_will_be() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a").join("b");
    let said = files(&path).check().unwrap();
    assert!(
        said.contains(&format!("makes it in {}", place.path().display())),
        "{said}"
    );
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    fs::create_dir_all(&path).unwrap();
    assert_eq!(files(&path).check(), Ok("answers".to_owned()));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);

    fs::write(place.path().join("file"), "x").unwrap();
    std::os::unix::fs::symlink("nowhere", place.path().join("link")).unwrap();
    for wrong in [
        place.path().join("file"),
        place.path().join("file").join("below"),
        place.path().join("link"),
        PathBuf::from("/proc/vcons"),
    ] {
        assert!(files(&wrong).check().is_err(), "{}", wrong.display());
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 3);
}

#[test]
fn probe_makes_the_directory_and_leaves_nothing_in_it() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a/b");
    assert_eq!(files(&path).probe(), Ok(()));
    assert!(path.is_dir());
    assert_eq!(tree(place.path()), [""; 0]);
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let failure = files(&path).probe().unwrap_err();
        assert!(failure.is_transient(), "{failure}");
        assert!(failure.message.contains("must be directories"), "{failure}");
    }
}

#[test]
fn lanes_that_save_the_same_vcon_at_once_leave_one_whole_file() {
    let place = tempfile::tempdir().unwrap();
    let texts = ["1", "2", "3", "4"].map(|n| format!("[{}]", n.repeat(900)));
    std::thread::scope(|scope| {
        for text in &texts {
            scope.spawn(|| {
                let mut files = files(place.path());
                for _ in 0..20 {
                    files
                        .save(&vcon("2025-03-07", text), Deadline::NONE)
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(tree(place.path()), [format!("2025/03/07/{ID}.json")]);
    let read = files(place.path())
        .get(&ID.parse().unwrap(), Deadline::NONE)
        .unwrap();
    assert!(texts.contains(&read.unwrap()));
}

#[test]
fn links_that_lead_nowhere_are_faults_of_the_place() {
    let place = tempfile::tempdir().unwrap();
    let link = |to: &str, name: &str| {
        let path = place.path().join(name);
        std::os::unix::fs::symlink(to, &path).unwrap();
        path
    };
    let (round, away) = (link("round", "round"), link("/nowhere/at/all", "away"));
    let long = place.path().join("x".repeat(256));
    for (path, says) in [
        (round.clone(), "symbolic links"),
        (round.join("below"), "symbolic links"),
        (away, "No such file"),
        (long, "shorter `path`"),
    ] {
        let mut files = files(&path);
        for failure in [
            files
                .save(&vcon("2025-03-07", "{}"), Deadline::NONE)
                .unwrap_err(),
            files.probe().unwrap_err(),
        ] {
            assert!(failure.is_transient(), "{failure}");
            assert!(failure.message.contains(says), "{failure}");
            assert!(
                failure.message.contains(path.to_str().unwrap()),
                "{failure}"
            );
        }
    }
}

#[test]
fn directories_that_are_removed_are_made_anew() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let mut files = files(&root);
    let vcon = vcon("2025-03-07", "{}");
    for gone in ["2025/03/07", "2025", ""] {
        files.save(&vcon, Deadline::NONE).unwrap();
        fs::remove_dir_all(root.join(gone)).unwrap();
        files.save(&vcon, Deadline::NONE).unwrap();
        assert_eq!(tree(&root), [format!("2025/03/07/{ID}.json")]);
    }
}

/// A day that is there is opened in one step, which must not lead anywhere but to where a walk would.
#[test]
fn a_save_goes_into_the_directory_that_is_at_the_path_now() {
    let place = tempfile::tempdir().unwrap();
    let (root, aside) = (place.path().join("root"), place.path().join("aside"));
    let mut files = files(&root);
    files.batch_saves();
    let vcon = vcon("2025-03-07", "{}");
    let name = format!("2025/03/07/{ID}.json");
    for moved in ["", "2025", "2025/03", "2025/03/07"] {
        files.save(&vcon, Deadline::NONE).unwrap();
        let moved = root.join(moved);
        fs::rename(&moved, &aside).unwrap();
        let before = tree(&aside);
        fs::create_dir(&moved).unwrap();
        files.save(&vcon, Deadline::NONE).unwrap();
        assert_eq!(tree(&root), [name.as_str()]);
        assert_eq!(tree(&aside), before);
        let modified = fs::metadata(aside.join(&before[0])).unwrap().modified();
        let now = fs::metadata(root.join(&name)).unwrap().modified();
        assert!(modified.unwrap() <= now.unwrap());
        fs::remove_dir_all(&aside).unwrap();
    }
    // Nor through a link that others may exchange.
    fs::rename(root.join("2025/03"), &aside).unwrap();
    std::os::unix::fs::symlink(&aside, root.join("2025/03")).unwrap();
    files.save(&vcon, Deadline::NONE).unwrap();
    set_mode(&root.join("2025"), 0o777);
    let failure = files.save(&vcon, Deadline::NONE).unwrap_err();
    assert!(failure.message.contains("is not followed"), "{failure}");
}

#[test]
fn a_save_fails_with_the_sync_that_it_shares() {
    let place = tempfile::tempdir().unwrap();
    let mut files = files(place.path());
    files.batch_saves();
    let vcon = vcon("2025-03-07", "{}");
    files.save(&vcon, Deadline::NONE).unwrap();
    let found = fs::metadata(place.path().join("2025/03/07")).unwrap();
    let (directory, syncs) = ((found.dev(), found.ino()), Arc::clone(&files.syncs));
    let until_waiting = |lanes| {
        let begun = Instant::now();
        while sync::waiting(&syncs, directory) < lanes && begun.elapsed() < PROBE {
            thread::yield_now();
        }
    };
    let (begun, has_begun) = mpsc::channel();
    let fails = || Err(io::Error::from_raw_os_error(libc::EIO));
    let failure = thread::scope(|scope| {
        scope.spawn(|| {
            syncs.sync(directory, || {
                begun.send(()).unwrap();
                until_waiting(2);
                Ok(())
            })
        });
        has_begun.recv().unwrap();
        scope.spawn(|| syncs.sync(directory, fails));
        until_waiting(1);
        files.save(&vcon, Deadline::NONE).unwrap_err()
    });
    assert!(failure.is_transient(), "{failure}");
    assert!(failure.message.contains("Input/output error"), "{failure}");
    files.save(&vcon, Deadline::NONE).unwrap();
    assert_eq!(tree(place.path()), [format!("2025/03/07/{ID}.json")]);
}
