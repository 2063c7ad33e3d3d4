//! What every process of the daemon shows to the others: a file of 64-bit words in the runtime folder.
//!
//! ```text
//! supervisor ──Board──► header, its part of each slot  (writes and reads with pwrite and pread)
//! child      ──Slot───► its part of its own slot, lanes  (mapped: no lock, no system call)
//!              ├─Meter──► what all count for each chain, link and storage
//!              ├─answers► how long webhooks took to answer: shared by all
//!              ├─reasons► why something is unavailable to it
//!              └─outages► which outages the log has: shared by all
//! status, monitor ◄──Snapshot── the whole file           (read once, then checked word by word)
//! ```
//!
//! Nobody trusts the file. The supervisor and the readers take copies, in which a word that is no
//! state counts as none, and a lane caught halfway through a change is left out: what is read may be
//! stale, never invalid. The supervisor holds a lock on the file as long as it lives, which tells the
//! scoreboard of a running daemon from one that was left behind.

mod answers;
mod board;
mod figures;
mod histogram;
mod layout;
mod outages;
mod reasons;
mod slot;
mod snapshot;

pub use answers::AnswerTimes;
pub use board::{Board, BoardError, BoardId, lock_holder, request_workers};
pub use figures::{Event, Meter, Series, SeriesKind, chain_link_name, shown_name};
#[cfg(test)]
pub(crate) use histogram::tests::histogram;
pub use histogram::{Histogram, Quantile, SCHEMA};
pub use layout::{
    ChildState, DaemonPhase, HoldReason, LaneState, LaneStep, MOST_SERIES, ReloadState,
    RestartCause, SLOTS, Shape, StageKind, WorkerState,
};
pub use reasons::{UnavailableStage, name_mark};
pub use slot::{LaneCell, Outcome, Slot, SlotMeters};
pub use snapshot::{
    BoardHeader, ChildView, LaneView, SlotView, Snapshot, StagesView, WorkerView, is_silent,
};

/// A scoreboard between a supervisor and a worker, and files that are none.
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::LazyLock;
    use std::time::Duration;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::vcon::VconId;

    fn board(lanes: usize) -> (TempDir, Board) {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::create(folder.path(), "here", Shape::of(lanes, 0, 0, 0), 1).unwrap();
        (folder, board)
    }

    fn place(generation: u64) -> ChildView {
        ChildView {
            generation,
            pid: Some(4711),
            state: ChildState::Starting,
            since: 5,
            deaths: 2,
            retry: None,
        }
    }

    #[test]
    fn the_supervisor_reads_what_the_worker_shows() {
        let (_folder, mut board) = board(3);
        board.prepare(2).unwrap();
        board.show_child(2, Some(place(9)));
        assert_eq!(board.slot(2).worker, None);

        let slot = Slot::attach(board.id(), 2, 9).unwrap();
        let id = VconId::random();
        slot.set_state(WorkerState::Ready);
        slot.lane(0).busy(Some(&id), Some(Duration::from_secs(30)));
        slot.lane(0).step(LaneStep::Link(4));
        slot.lane(2).busy(None, None);
        slot.count(Outcome::Finished);
        assert_eq!(slot.count(Outcome::Failed), 2);

        let view = board.slot(2);
        let worker = view.worker.unwrap();
        assert_eq!(view.place.unwrap().pid, Some(4711));
        assert_eq!((view.finished, view.failed), (1, 1));
        assert_eq!((worker.state, worker.released), (WorkerState::Ready, 2));
        assert_eq!(worker.lanes.len(), 2);
        assert_eq!(worker.lanes[0].vcon, Some(id.uuid()));
        assert_eq!(worker.lanes[0].limit, Some(30_000));
        assert_eq!(worker.lanes[0].step, LaneStep::Link(4));
        assert_eq!((worker.lanes[1].number, worker.lanes[1].vcon), (3, None));
    }

    #[test]
    fn whoever_renews_the_lease_shows_it_to_all() {
        let (_folder, mut board) = board(2);
        for number in [0, 2] {
            board.prepare(number).unwrap();
            board.show_child(number, Some(place(1)));
        }
        let worker = Slot::attach(board.id(), 2, 1).unwrap();
        assert_eq!(worker.lease_renewed(), 0);
        let monitor = Slot::attach(board.id(), 0, 1).unwrap();
        monitor.note_lease(5);
        assert_eq!(worker.lease_renewed(), 5);
        worker.note_lease(7);
        // Also to a new monitor, whose predecessor did it last.
        let monitor = Slot::attach(board.id(), 0, 2).unwrap();
        assert_eq!(monitor.lease_renewed(), 7);
    }

    #[test]
    fn a_number_of_workers_is_asked_for_once() {
        let (_folder, mut board) = board(1);
        let path = board.id().path.clone();
        assert_eq!(board.take_requested_workers(), None);
        request_workers(&path, 5).unwrap();
        assert_eq!(board.take_requested_workers(), Some(5));
        assert_eq!(board.take_requested_workers(), None);
        request_workers(&path, u32::MAX).unwrap();
        let word = (layout::header::SCALE_CHECK * layout::WORD) as u64;
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 8], word).unwrap();
        assert_eq!(board.take_requested_workers(), None, "a stray write");
        request_workers(&path, 2).unwrap();
        assert_eq!(board.take_requested_workers(), Some(2));
    }

    #[test]
    fn a_request_on_its_way_keeps_older_pauses_from_being_confirmed() {
        let (_folder, mut board) = board(2);
        for number in 0..3 {
            board.prepare(number).unwrap();
            board.show_child(number, Some(place(1)));
        }
        let monitor = Slot::attach(board.id(), 0, 1).unwrap();
        let worker = Slot::attach(board.id(), 2, 1).unwrap();
        assert_eq!(worker.pauses_version(), 0);
        let lane = worker.lane(1);
        lane.begin_claim(0);
        monitor.set_pauses_version(1);
        assert_eq!(worker.pauses_version(), 1);
        assert!(!monitor.all_claims_follow(1));
        lane.begin_claim(1);
        assert!(monitor.all_claims_follow(1) && !monitor.all_claims_follow(2));
        lane.end_claim();
        assert!(monitor.all_claims_follow(2));
        // The request of a worker that has ended is none; its successor begins without one.
        lane.begin_claim(1);
        let ended = ChildView {
            pid: None,
            state: ChildState::Vacant,
            ..place(1)
        };
        board.show_child(2, Some(ended));
        assert!(monitor.all_claims_follow(2));
        board.show_child(2, Some(place(2)));
        let successor = Slot::attach(board.id(), 2, 2).unwrap();
        assert!(monitor.all_claims_follow(2));
        // A forkserver has started it, and has not reported its PID yet.
        let unreported = ChildView {
            pid: None,
            ..place(2)
        };
        board.show_child(2, Some(unreported));
        successor.lane(1).begin_claim(1);
        assert!(!monitor.all_claims_follow(2));
        // The version outlives the monitor.
        let _next = Slot::attach(board.id(), 0, 2).unwrap();
        assert_eq!(successor.pauses_version(), 1);
    }

    #[test]
    fn a_successor_goes_on_with_the_counters_and_not_with_the_lanes() {
        let (_folder, mut board) = board(1);
        board.prepare(1).unwrap();
        board.show_child(1, Some(place(1)));
        let first = Slot::attach(board.id(), 1, 1).unwrap();
        first.lane(0).busy(Some(&VconId::random()), None);
        first.count(Outcome::Finished);
        board.show_child(1, Some(place(2)));
        assert_eq!(
            board.slot(1).worker,
            None,
            "the predecessor's words are not its own"
        );

        let _second = Slot::attach(board.id(), 1, 2).unwrap();
        let view = board.slot(1);
        let worker = view.worker.unwrap();
        assert_eq!((view.finished, worker.released), (1, 0));
        assert_eq!(worker.lanes, []);
    }

    #[test]
    fn a_lane_caught_halfway_is_left_out() {
        let (_folder, mut board) = board(1);
        board.prepare(0).unwrap();
        board.show_child(0, Some(place(1)));
        let slot = Slot::attach(board.id(), 0, 1).unwrap();
        slot.lane(0).busy(Some(&VconId::random()), None);
        let bytes = fs::read(&board.id().path).unwrap();
        let shape = Shape::of(1, 0, 0, 0);
        let lane = (shape.slot_start(0) + shape.lane_start(0) + layout::lane::LOW) * layout::WORD;
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
    fn the_file_is_for_its_user_and_group_and_goes_with_its_board() {
        let (_folder, board) = board(1);
        let path = board.id().path.clone();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
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
            let board = Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1).unwrap();
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o640
            );
            assert_eq!(board.slot(1), SlotView::default());
        }
    }

    #[test]
    fn a_link_a_folder_and_a_file_of_two_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here.scoreboard");
        let create = || {
            Board::create(folder.path(), "here", Shape::of(1, 0, 0, 0), 1)
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
            board.show_child(number, Some(place(7)));
            let slot = Slot::attach(board.id(), number, 7).unwrap();
            slot.set_state(WorkerState::Ready);
            slot.lane(0).busy(Some(&VconId::random()), None);
            slot.count(Outcome::Finished);
        }
        let bytes = fs::read(&board.id().path).unwrap();
        assert_eq!(Snapshot::parse(&bytes).unwrap().1[2].finished, 1);
        bytes
    }

    static VALID: LazyLock<Vec<u8>> = LazyLock::new(valid);

    /// What a reader makes of these bytes in a file whose daemon is alive. The lock is this process's
    /// own, which it does not see, so the liveness is left out.
    fn read(bytes: &[u8]) -> Option<usize> {
        let (header, slots) = Snapshot::parse(bytes)?;
        assert!((1..=1024).contains(&header.shape.lanes) && slots.len() <= SLOTS);
        let lanes = slots.iter().filter_map(|slot| slot.worker.as_ref());
        Some(lanes.map(|worker| worker.lanes.len()).sum())
    }

    #[test]
    fn a_scoreboard_cut_anywhere_shows_no_more_than_it_holds() {
        let bytes = valid();
        let whole = read(&bytes).unwrap();
        let end = Shape::of(2, 0, 0, 0).slot_start(4) * layout::WORD;
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
            let mut bytes = VALID.clone();
            let words = Shape::of(2, 0, 0, 0).slot_start(4);
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
            for (index, most) in [
                (layout::header::ROOM, 300),
                (layout::header::HELD, 4),
                (layout::header::REASONS, 70),
            ] {
                if let Some(word) = words.get_mut(index) {
                    *word %= most;
                }
            }
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Some((header, slots)) = Snapshot::parse(&bytes) {
                prop_assert!(header.shape.lanes > 0 && slots.len() <= SLOTS);
            }
        }
    }

    fn names() -> [(SeriesKind, &'static str); 3] {
        [
            (SeriesKind::Chain, "main"),
            (SeriesKind::Link, "main"),
            (SeriesKind::Storage, "pg"),
        ]
    }

    fn series(board: &Board) -> Vec<Series> {
        Snapshot::take_own(&board.id().path).unwrap().series
    }

    #[test]
    fn figures_of_all_workers_are_added_up_and_go_on_with_their_successors() {
        let (_folder, mut board) = board(2);
        board.prepare(1).unwrap();
        board.keep_figures_of(names().into_iter()).unwrap();
        board.prepare(2).unwrap();
        for (number, generation) in [(1, 1), (2, 2), (1, 3)] {
            let slot = Slot::attach(board.id(), number, generation).unwrap();
            let meter = slot.meters().of(SeriesKind::Storage, "pg");
            meter.count(Event::Done);
            meter.observe(Duration::from_micros(244));
            meter.observe(Duration::from_micros(257));
            slot.meters()
                .of(SeriesKind::Chain, "main")
                .count(Event::Returned);
            slot.meters()
                .of(SeriesKind::Link, "unknown")
                .count(Event::Done);
        }
        let series = series(&board);
        assert_eq!(series.len(), 3);
        let (chain, link, storage) = (&series[0], &series[1], &series[2]);
        assert_eq!((storage.kind, &*storage.name), (SeriesKind::Storage, "pg"));
        assert_eq!(storage.count(Event::Done), 3);
        assert_eq!((storage.times.sum(), storage.times.count()), (0.001_503, 6));
        // 2^-12 s are 244 µs.
        assert_eq!(storage.times.up_to(-12), 3);
        assert_eq!(chain.count(Event::Returned), 3);
        assert_eq!((link.count(Event::Done), link.times.count()), (0, 0));
    }

    #[test]
    fn a_series_keeps_its_figures_whatever_configurations_come_and_go() {
        let (_folder, mut board) = board(1);
        board.prepare(1).unwrap();
        board.keep_figures_of(names().into_iter()).unwrap();
        let slot = Slot::attach(board.id(), 1, 1).unwrap();
        slot.meters()
            .of(SeriesKind::Chain, "main")
            .count(Event::Done);
        let others = [(SeriesKind::Chain, "other"), (SeriesKind::Chain, "main")];
        board.keep_figures_of(others.into_iter()).unwrap();
        slot.meters()
            .of(SeriesKind::Chain, "other")
            .count(Event::Done);
        let series = series(&board);
        let names: Vec<&str> = series.iter().map(|series| &*series.name).collect();
        assert_eq!(names, ["main", "main", "pg", "other"]);
        let done: Vec<u64> = series.iter().map(|s| s.count(Event::Done)).collect();
        assert_eq!(done, [1, 0, 0, 1]);
    }

    #[test]
    fn what_there_is_no_room_for_has_no_figures() {
        let (_folder, mut board) = board(1);
        board.prepare(1).unwrap();
        let many: Vec<String> = (0..layout::FEWEST_SERIES + 2)
            .map(|n| n.to_string())
            .collect();
        let names = || many.iter().map(|name| (SeriesKind::Link, name.as_str()));
        assert_eq!(board.keep_figures_of(names()).unwrap(), 2);
        let slot = Slot::attach(board.id(), 1, 1).unwrap();
        let (last, none) = (
            &many[layout::FEWEST_SERIES - 1],
            &many[layout::FEWEST_SERIES],
        );
        slot.meters().of(SeriesKind::Link, last).count(Event::Done);
        slot.meters().of(SeriesKind::Link, none).count(Event::Done);
        let done: u64 = series(&board).iter().map(|s| s.count(Event::Done)).sum();
        assert_eq!(done, 1);
    }

    #[test]
    fn a_scoreboard_has_room_for_what_its_configuration_has() {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape::of(2, 300, 90, 70);
        let mut board = Board::create(folder.path(), "here", shape, 1).unwrap();
        board.prepare(1).unwrap();
        let place = ChildView {
            generation: 1,
            pid: Some(4711),
            state: ChildState::Ready,
            since: 0,
            deaths: 0,
            retry: None,
        };
        board.show_child(1, Some(place));
        let many: Vec<String> = (0..460).map(|n| n.to_string()).collect();
        let names = many.iter().map(|name| (SeriesKind::Link, name.as_str()));
        assert_eq!(board.keep_figures_of(names).unwrap(), 0);
        let slot = Slot::attach(board.id(), 1, 1).unwrap();
        slot.meters().of(SeriesKind::Link, "459").count(Event::Done);
        let figures = series(&board);
        assert_eq!(figures.len(), 460);
        assert_eq!(figures[459].count(Event::Done), 1);

        use StageKind::{DeferringStorage, Hook, Link, List, Storage, Tracer};
        let show = |stages: &[(StageKind, usize)]| {
            let stages: Vec<UnavailableStage> = (stages.iter())
                .map(|(kind, position)| unavailable(*kind, *position))
                .collect();
            slot.show_unavailable(&stages);
            let worker = board.slot(1).worker.unwrap();
            let stages = |view: Option<StagesView>| view.map(|view| view.stages);
            (stages(worker.held), stages(worker.deferring))
        };
        slot.lane(1).busy(None, None);
        let held = [
            (Link, 0),
            (Link, 89),
            (Storage, 63),
            (Storage, 64),
            (Storage, 69),
            (List, 7),
            (Tracer, 1),
            (Hook, 0),
        ];
        let deferring = [(DeferringStorage, 1), (DeferringStorage, 64)];
        let all = [&held[..], &deferring].concat();
        let both = (Some(held.to_vec()), Some(deferring.to_vec()));
        assert_eq!(show(&all), both);
        assert_eq!(board.slot(1).worker.unwrap().lanes.len(), 1);
        let reasons = Snapshot::take_own(&board.id().path).unwrap().reasons;
        let expected = all.iter().map(|(kind, it)| (1, unavailable(*kind, *it)));
        assert_eq!(reasons, expected.collect::<Vec<_>>());
        // What a later configuration has beyond that is not told apart.
        let last = shape.last_held();
        let far = show(&[(Storage, last), (Storage, 5_000)]);
        assert_eq!(far, (Some(vec![(Storage, last)]), None));
        let many: Vec<_> = (0..90).map(|position| (Link, position)).collect();
        assert_eq!(show(&many), (Some(many), None));
        let reasons = Snapshot::take_own(&board.id().path).unwrap().reasons;
        assert_eq!(reasons.len(), shape.reasons, "as many as there is room for");
        assert_eq!(show(&deferring[..1]), (None, Some(deferring[..1].to_vec())));
        assert_eq!(show(&[]), (None, None));
        let reasons = Snapshot::take_own(&board.id().path).unwrap().reasons;
        assert_eq!(reasons, []);
    }

    fn unavailable(kind: StageKind, position: usize) -> UnavailableStage {
        UnavailableStage {
            kind,
            position,
            name: 0,
            since: 3,
            error: format!("error {position}"),
            seen: 4,
            next_try: None,
            reason: HoldReason::Unavailable,
        }
    }

    #[test]
    fn a_successor_shows_nothing_of_what_was_unavailable_to_its_predecessor() {
        let (_folder, mut board) = board(1);
        board.prepare(0).unwrap();
        board.show_child(0, Some(place(1)));
        let reasons = || Snapshot::take_own(&board.id().path).unwrap().reasons;
        let first = Slot::attach(board.id(), 0, 1).unwrap();
        first.set_state(WorkerState::Ready);
        first.show_redis_away(Some("refused"));
        first.show_redis_away(Some("timed out"));
        let (number, reason) = reasons().remove(0);
        assert_eq!((number, reason.kind), (0, StageKind::Redis));
        assert_eq!(reason.error, "timed out");
        assert!(reason.seen >= reason.since);
        board.show_child(0, Some(place(2)));
        assert_eq!(reasons(), [], "the predecessor's words are not its own");
        Slot::attach(board.id(), 0, 2).unwrap();
        assert_eq!(reasons(), []);
    }

    #[test]
    fn a_time_of_any_length_counts_and_short_ones_are_rounded() {
        let (_folder, mut board) = board(1);
        board.prepare(1).unwrap();
        board.keep_figures_of(names().into_iter()).unwrap();
        let slot = Slot::attach(board.id(), 1, 1).unwrap();
        let short = slot.meters().of(SeriesKind::Link, "main");
        for nanoseconds in [0, 499, 500, 1_700] {
            short.observe(Duration::from_nanos(nanoseconds));
        }
        let long = slot.meters().of(SeriesKind::Chain, "main");
        long.observe(Duration::MAX);
        let series = series(&board);
        let (long, short) = (&series[0].times, &series[1].times);
        assert_eq!((short.sum(), short.count()), (0.000_003, 4));
        assert_eq!(long.count(), 1);
        assert!(matches!(long.quantile(0.5), Some(Quantile::Above(_))));
    }

    #[test]
    fn restarts_are_counted_by_cause() {
        let (_folder, mut board) = board(1);
        board.count_restart(RestartCause::Died);
        board.count_restart(RestartCause::Reloaded);
        board.count_restart(RestartCause::Died);
        let header = Snapshot::take_own(&board.id().path).unwrap().header;
        assert_eq!(header.restarts, [2, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn meters_reasons_and_outages_have_room_in_the_file_before_anyone_writes_to_them() {
        let (_folder, mut board) = board(1);
        board.prepare(1).unwrap();
        board.keep_figures_of(names().into_iter()).unwrap();
        let file = fs::File::open(&board.id().path).unwrap();
        let has_room_at = |word: usize| {
            let start = (word * layout::WORD) as i64;
            let data = nix::unistd::lseek(&file, start, nix::unistd::Whence::SeekData);
            assert_eq!(data, Ok(start), "word {word}");
        };
        for series in 0..names().len() {
            let start = Shape::of(1, 0, 0, 0).meter_start(series);
            has_room_at(start);
            has_room_at(start + layout::METER - 1);
        }
        for reason in 0..layout::FEWEST_REASONS {
            has_room_at(Shape::of(1, 0, 0, 0).reason_start(1, reason));
        }
        for outage in 0..layout::OUTAGES {
            has_room_at(Shape::of(1, 0, 0, 0).outage_start(outage));
        }
    }

    #[test]
    fn counters_that_make_no_sense_bring_nobody_down() {
        let slot = SlotView {
            finished: u64::MAX,
            halted: 1,
            ..SlotView::default()
        };
        assert_eq!(slot.done(), u64::MAX);
    }

    #[test]
    fn mending_a_file_that_was_cut_leaves_alone_what_is_still_there() {
        let (_folder, mut board) = board(1);
        for number in [1, 2] {
            board.prepare(number).unwrap();
            board.show_child(number, Some(place(7)));
        }
        board.keep_figures_of(names().into_iter()).unwrap();
        for number in [1, 2] {
            let slot = Slot::attach(board.id(), number, 7).unwrap();
            slot.count(Outcome::Finished);
            for kind in [SeriesKind::Chain, SeriesKind::Link] {
                slot.meters().of(kind, "main").count(Event::Done);
            }
        }
        let file = fs::File::options()
            .write(true)
            .open(&board.id().path)
            .unwrap();
        let length = file.metadata().unwrap().len();
        // In the midst of the second meter.
        file.set_len((Shape::of(1, 0, 0, 0).meter_start(1) * layout::WORD) as u64 + 100)
            .unwrap();
        board.mend().unwrap();
        assert_eq!(file.metadata().unwrap().len(), length);
        let shown = Snapshot::take_own(&board.id().path).unwrap();
        assert_eq!(shown.series.len(), 3);
        let done = [0, 1].map(|series| shown.series[series].count(Event::Done));
        assert_eq!(done, [2, 0]);
        assert!(shown.slots[2].worker.is_some());
        assert_eq!((shown.slots[1].finished, shown.slots[2].finished), (1, 1));

        file.set_len((Shape::of(1, 0, 0, 0).slot_start(2) * layout::WORD) as u64)
            .unwrap();
        board.mend().unwrap();
        let shown = Snapshot::take_own(&board.id().path).unwrap();
        assert_eq!(shown.series[0].count(Event::Done), 0);
        assert_eq!((shown.slots[1].finished, shown.slots[2].finished), (1, 0));
    }
}
