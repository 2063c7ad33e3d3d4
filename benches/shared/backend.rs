//! A storage that only takes time, and a vCon for it.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use conserver::deadline::Deadline;
use conserver::failure::Failure;
use conserver::storage::Storage;
use conserver::storage::fan_out::{Backend, SaveOutcome};
use conserver::vcon::{Leaving, Outgoing, VconId, Version};

/// A backend that takes so long to save.
pub struct Taking(pub Duration);

impl Storage for Taking {
    fn save(&mut self, _: &Outgoing, _: Deadline) -> Result<(), Failure> {
        if !self.0.is_zero() {
            thread::sleep(self.0);
        }
        Ok(())
    }

    fn get(&mut self, _: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    fn delete(&mut self, _: &VconId) -> Result<(), Failure> {
        Ok(())
    }

    fn longest_call(&self) -> Duration {
        self.0
    }

    fn probe(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// The backends that these outcomes give back.
pub fn lent_again(outcomes: Vec<SaveOutcome>) -> Vec<Backend> {
    let lent = |SaveOutcome { name, storage, .. }| Backend {
        name,
        storage: storage.expect("a backend that has not panicked"),
        is_downgraded: false,
    };
    outcomes.into_iter().map(lent).collect()
}

/// A vCon with nothing in it.
pub fn vcon() -> Leaving {
    let vcon = Arc::new(Outgoing {
        id: VconId::random(),
        json: "{}".to_owned().into(),
        version: Version::Current,
        created_at: None,
        stand_in: OnceLock::new(),
        formerly: None,
        subject: None,
    });
    Leaving {
        current: Arc::clone(&vcon),
        older: vcon,
    }
}
