//! What saving to several storages costs beside the storages' own work.

use std::sync::OnceLock;

use conserver::failure::Failure;
use conserver::storage::Storage;
use conserver::storage::fanout::{Backend, save_all};
use conserver::vcon::{Outgoing, VconId, Version};
use divan::Bencher;

/// A backend with nothing to do.
struct Nothing;

impl Storage for Nothing {
    fn save(&mut self, _: &Outgoing) -> Result<(), Failure> {
        Ok(())
    }

    fn get(&mut self, _: &VconId) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    fn delete(&mut self, _: &VconId) -> Result<(), Failure> {
        Ok(())
    }

    fn probe(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

#[divan::bench(args = [1, 3, 6])]
fn inline(bencher: Bencher<'_, '_>, storages: usize) {
    save(bencher, storages, false);
}

#[divan::bench(args = [1, 3, 6])]
fn parallel(bencher: Bencher<'_, '_>, storages: usize) {
    save(bencher, storages, true);
}

fn save(bencher: Bencher<'_, '_>, storages: usize, parallel: bool) {
    let vcon = Outgoing {
        id: VconId::random(),
        json: "{}".to_owned().into(),
        version: Version::Current,
        created_at: None,
        stand_in: OnceLock::new(),
        subject: None,
    };
    bencher.bench_local(|| {
        let mut storages: Vec<Nothing> = (0..storages).map(|_| Nothing).collect();
        let backend = |storage| Backend {
            name: "nothing",
            storage,
        };
        let backends = storages.iter_mut().map(|s| backend(s as &mut dyn Storage));
        save_all(backends.collect(), &vcon, parallel).len()
    });
}
