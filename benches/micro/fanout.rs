//! What saving to several storages costs beside the storages' own work.

use std::time::Duration;
use std::{mem, thread};

use conserver::deadline::Deadline;
use conserver::storage::fan_out::{Backend, WriterPool};
use divan::Bencher;

use crate::backend::{Taking, lent_again, vcon};

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
    let backend = |place| Backend {
        name: format!("nothing-{place}").into(),
        storage: Box::new(Taking(Duration::ZERO)),
        is_downgraded: false,
    };
    thread::scope(|scope| {
        let mut writers = WriterPool::new(scope);
        let mut backends: Vec<Backend> = (0..storages).map(backend).collect();
        bencher.bench_local(|| {
            let outcomes =
                writers.save_all(mem::take(&mut backends), &vcon, Deadline::NONE, parallel);
            backends = lent_again(outcomes);
        });
    });
}
