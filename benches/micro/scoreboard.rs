//! What a worker shows of a vCon.

use std::time::Duration;

use conserver::scoreboard::{Board, Event, Outcome, SeriesKind, Shape, Slot};
use conserver::vcon::VconId;
use divan::Bencher;

#[divan::bench]
fn one_vcon(bencher: Bencher<'_, '_>) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut board =
        Board::create(folder.path(), "bench", Shape::of(4, 1, 1, 1), 1).expect("a scoreboard");
    let series = [(SeriesKind::Chain, "main")];
    board.keep_figures_of(series.into_iter()).expect("room");
    board.prepare(1).expect("room");
    let slot = Slot::attach(board.id(), 1, 1).expect("a slot");
    let (lane, id) = (slot.lane(0), VconId::random());
    let meter = slot.meters().of(SeriesKind::Chain, "main");
    bencher.bench_local(|| {
        lane.busy(Some(&id), Some(Duration::from_secs(30)));
        meter.count(Event::Received);
        lane.waiting(Some(&id));
        slot.count(Outcome::Finished);
        meter.count(Event::Done);
        meter.observe(Duration::from_micros(700));
        lane.idle();
    });
}
