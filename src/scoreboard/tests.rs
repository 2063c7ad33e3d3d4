//! A scoreboard between a supervisor and a worker, and files that are none.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::vcon::VconId;

fn board(lanes: usize) -> (TempDir, Board) {
    let folder = tempfile::tempdir().unwrap();
    let board = Board::create(folder.path(), "here", lanes, 1).unwrap();
    (folder, board)
}

fn place(generation: u64) -> Place {
    Place {
        generation,
        pid: 4711,
        state: PlaceState::Starting,
        since: 5,
        deaths: 2,
        retry: 0,
    }
}

#[test]
fn the_supervisor_reads_what_the_worker_shows() {
    let (_folder, mut board) = board(3);
    board.prepare(2).unwrap();
    board.set_place(2, Some(place(9)));
    assert_eq!(board.slot(2).worker, None);

    let slot = Slot::attach(board.id(), 2, 9).unwrap();
    let id = VconId::random();
    slot.set_state(WorkerState::Ready);
    slot.lane(0).busy(Some(&id), Some(Duration::from_secs(30)));
    slot.lane(2).busy(None, None);
    slot.count(Outcome::Finished);
    assert_eq!(slot.count(Outcome::Failed), 2);

    let view = board.slot(2);
    let worker = view.worker.unwrap();
    assert_eq!(view.place.unwrap().pid, Some(4711));
    assert_eq!((view.finished, view.failed), (1, 1));
    assert_eq!((worker.state, worker.settled), (WorkerState::Ready, 2));
    assert_eq!(worker.lanes.len(), 2);
    assert_eq!(worker.lanes[0].vcon, Some(id.uuid()));
    assert_eq!(worker.lanes[0].limit, Some(30_000));
    assert_eq!((worker.lanes[1].number, worker.lanes[1].vcon), (3, None));
}

#[test]
fn a_successor_goes_on_with_the_counters_and_not_with_the_lanes() {
    let (_folder, mut board) = board(1);
    board.prepare(1).unwrap();
    board.set_place(1, Some(place(1)));
    let first = Slot::attach(board.id(), 1, 1).unwrap();
    first.lane(0).busy(Some(&VconId::random()), None);
    first.count(Outcome::Finished);
    board.set_place(1, Some(place(2)));
    assert_eq!(
        board.slot(1).worker,
        None,
        "the predecessor's words are not its own"
    );

    let _second = Slot::attach(board.id(), 1, 2).unwrap();
    let view = board.slot(1);
    let worker = view.worker.unwrap();
    assert_eq!((view.finished, worker.settled), (1, 0));
    assert_eq!(worker.lanes, []);
}

#[test]
fn a_lane_caught_halfway_is_left_out() {
    let (_folder, mut board) = board(1);
    board.prepare(0).unwrap();
    board.set_place(0, Some(place(1)));
    let slot = Slot::attach(board.id(), 0, 1).unwrap();
    slot.lane(0).busy(Some(&VconId::random()), None);
    let bytes = fs::read(&board.id().path).unwrap();
    let lane = (layout::slot_start(0, 1) + layout::SLOT + layout::lane::LOW) * layout::WORD;
    let mut torn = bytes.clone();
    torn[lane] ^= 1;
    let lanes = |bytes: &[u8]| {
        Snapshot::parse(bytes).unwrap().1[0]
            .worker
            .clone()
            .unwrap()
            .lanes
    };
    assert_eq!(lanes(&bytes).len(), 1);
    assert_eq!(lanes(&torn), []);
}

#[test]
fn the_file_is_private_and_goes_with_its_board() {
    let (_folder, board) = board(1);
    let path = board.id().path.clone();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    drop(board);
    assert!(!path.exists());
}

#[test]
fn a_file_left_behind_is_replaced_whatever_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("here.scoreboard");
    for left in [&b""[..], b"rubbish", &[0xff; 100_000]] {
        fs::write(&path, left).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(Snapshot::take(&path).is_err());
        let board = Board::create(folder.path(), "here", 1, 1).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(board.slot(1), SlotView::default());
    }
}

#[test]
fn a_link_a_folder_and_a_file_of_two_names_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("here.scoreboard");
    let create = || {
        Board::create(folder.path(), "here", 1, 1)
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    let target = folder.path().join("target");
    fs::write(&target, "precious").unwrap();
    symlink(&target, &path).unwrap();
    assert!(create().contains("a symbolic link"), "{}", create());
    fs::remove_file(&path).unwrap();
    fs::hard_link(&target, &path).unwrap();
    assert!(create().contains("more than one name"), "{}", create());
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(create().contains("could not open"), "{}", create());
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn a_worker_refuses_a_scoreboard_that_is_not_its_supervisors() {
    let (_folder, board) = board(1);
    let mut id = board.id().clone();
    id.nonce ^= 1;
    let refused = Slot::attach(&id, 1, 1).map(drop).unwrap_err().to_string();
    assert!(refused.contains("another supervisor"), "{refused}");
    fs::OpenOptions::new()
        .write(true)
        .open(&id.path)
        .unwrap()
        .set_len(2000)
        .unwrap();
    let refused = Slot::attach(board.id(), 1, 1)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("cut short"), "{refused}");
}

#[test]
fn a_scoreboard_whose_daemon_has_ended_is_stale() {
    let (folder, board) = board(1);
    // The lock is this process's own, so it does not see it: to itself the board is stale.
    let taken = Snapshot::take(&board.id().path);
    assert!(matches!(taken, Err(BoardError::Stale { .. })), "{taken:?}");
    drop(folder);
}

/// A scoreboard with two workers at work, as bytes.
fn valid() -> Vec<u8> {
    let (_folder, mut board) = board(2);
    for number in 0..3 {
        board.prepare(number).unwrap();
        board.set_place(number, Some(place(7)));
        let slot = Slot::attach(board.id(), number, 7).unwrap();
        slot.set_state(WorkerState::Ready);
        slot.lane(0).busy(Some(&VconId::random()), None);
        slot.count(Outcome::Finished);
    }
    let bytes = fs::read(&board.id().path).unwrap();
    assert_eq!(Snapshot::parse(&bytes).unwrap().1[2].finished, 1);
    bytes
}

/// What a reader makes of these bytes in a file whose daemon is alive. The lock is this process's
/// own, which it does not see, so the liveness is left out.
fn read(bytes: &[u8]) -> Option<usize> {
    let (header, slots) = Snapshot::parse(bytes)?;
    assert!((1..=1024).contains(&header.lanes) && slots.len() <= SLOTS);
    let lanes = slots.iter().filter_map(|slot| slot.worker.as_ref());
    Some(lanes.map(|worker| worker.lanes.len()).sum())
}

#[test]
fn a_scoreboard_cut_anywhere_shows_no_more_than_it_holds() {
    let bytes = valid();
    let whole = read(&bytes).unwrap();
    let end = layout::slot_start(4, 2) * layout::WORD;
    let mut last = 0;
    for cut in 0..end {
        let lanes = read(&bytes[..cut]).unwrap_or(0);
        assert!(lanes >= last && lanes <= whole, "{cut}");
        last = lanes;
    }
    assert_eq!((last, whole), (3, 3));
}

#[test]
fn a_file_that_promises_more_than_it_has_is_refused_before_memory_is_taken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("here.scoreboard");
    let mut bytes = valid();
    let mut put = |index: usize, word: u64| {
        bytes[index * layout::WORD..][..layout::WORD].copy_from_slice(&word.to_ne_bytes());
    };
    put(layout::header::USED, u64::MAX);
    put(layout::header::LANES, 1024);
    bytes.truncate(layout::HEADER * layout::WORD);
    fs::write(&path, &bytes).unwrap();
    assert!(Snapshot::take(&path).is_err());
    let slots = Snapshot::parse(&bytes).unwrap().1;
    assert_eq!(slots, vec![SlotView::default(); SLOTS]);
}

proptest! {
    #[test]
    fn no_damage_to_a_scoreboard_makes_a_reader_fail(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), any::<bool>()), 1..40),
    ) {
        let mut bytes = valid();
        let words = layout::slot_start(4, 2);
        for (index, word, flip) in edits {
            let at = index.index(words) * layout::WORD;
            let cell = &mut bytes[at..at + layout::WORD];
            let before = u64::from_ne_bytes((&*cell).try_into().unwrap());
            let after = if flip { before ^ (1 << (word % 64)) } else { word };
            cell.copy_from_slice(&after.to_ne_bytes());
        }
        read(&bytes);
    }

    #[test]
    fn no_bytes_make_a_reader_fail(
        words in prop::collection::vec(any::<u64>(), 0..400),
        cut in 0usize..8,
        lanes in 0u64..4,
        used in any::<u64>(),
    ) {
        let mut words = words;
        let sensible = [layout::MAGIC, layout::VERSION, 7, lanes, 4711];
        for (word, sensible) in words.iter_mut().zip(sensible) {
            *word = sensible;
        }
        if let Some(word) = words.get_mut(layout::header::USED) {
            *word = used % 2000;
        }
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Some((header, slots)) = Snapshot::parse(&bytes) {
            prop_assert!(header.lanes > 0 && slots.len() <= SLOTS);
        }
    }
}
