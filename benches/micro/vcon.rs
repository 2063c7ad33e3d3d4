//! The document: parsed with its names made those of today, tagged, and written.

use conserver::vcon::{Vcon, VconId, Version};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};

use super::document::Document;

const SIZES: [usize; 4] = [1_000, 4_500, 1_000_000, 50_000_000];

fn text(size: usize) -> (VconId, String) {
    let id = VconId::random();
    let text = Document::of_size(size).plain(id.as_str());
    (id, text)
}

#[divan::bench(args = SIZES, max_time = 2)]
fn parse(bencher: Bencher<'_, '_>, size: usize) {
    let (id, text) = text(size);
    bencher
        .counter(BytesCount::new(text.len()))
        .with_inputs(|| (id.clone(), text.clone()))
        .bench_values(|(id, text)| Vcon::parse(id, text).expect("a vCon"));
}

#[divan::bench(args = SIZES, max_time = 2)]
fn parse_tag_write(bencher: Bencher<'_, '_>, size: usize) {
    let (id, text) = text(size);
    let tags = ["checked".to_owned()];
    bencher
        .counter(BytesCount::new(text.len()))
        .with_inputs(|| (id.clone(), text.clone()))
        .bench_values(|(id, text)| {
            let mut vcon = Vcon::parse(id, text).expect("a vCon");
            vcon.add_tags(&tags).expect("tags");
            black_box(vcon.outgoing(Version::Current))
        });
}

#[divan::bench(args = SIZES, max_time = 2)]
fn parse_write_old(bencher: Bencher<'_, '_>, size: usize) {
    let (id, text) = text(size);
    bencher
        .counter(BytesCount::new(text.len()))
        .with_inputs(|| (id.clone(), text.clone()))
        .bench_values(|(id, text)| {
            let mut vcon = Vcon::parse(id, text).expect("a vCon");
            black_box(vcon.outgoing(Version::V0_0_1))
        });
}
