//! What saving to several storages costs beside the storages' own work.

use std::time::Duration;

use conserver::storage::Storage;
use conserver::storage::fanout::{Backend, save_all};
use divan::Bencher;

use crate::backend::{Taking, vcon};

#[divan::bench(args = [1, 3, 6])]
fn inline(bencher: Bencher<'_, '_>, storages: usize) {
    save(bencher, storages, false);
}

#[divan::bench(args = [1, 3, 6])]
fn parallel(bencher: Bencher<'_, '_>, storages: usize) {
    save(bencher, storages, true);
}

fn save(bencher: Bencher<'_, '_>, storages: usize, parallel: bool) {
    let vcon = vcon();
    bencher.bench_local(|| {
        let mut storages: Vec<Taking> = (0..storages).map(|_| Taking(Duration::ZERO)).collect();
        let backend = |storage| Backend {
            name: "nothing",
            storage,
        };
        let backends = storages.iter_mut().map(|s| backend(s as &mut dyn Storage));
        save_all(backends.collect(), &vcon, parallel).len()
    });
}
