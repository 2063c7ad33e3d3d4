//! A storage that only takes time, and a vCon for it.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use conserver::failure::Failure;
use conserver::storage::Storage;
use conserver::vcon::{Outgoing, VconId, Version};

/// A backend that takes so long to save.
pub struct Taking(pub Duration);

impl Storage for Taking {
    fn save(&mut self, _: &Outgoing) -> Result<(), Failure> {
        if !self.0.is_zero() {
            thread::sleep(self.0);
        }
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

/// A vCon with nothing in it.
pub fn vcon() -> Outgoing {
    Outgoing {
        id: VconId::random(),
        json: "{}".to_owned().into(),
        version: Version::Current,
        created_at: None,
        stand_in: OnceLock::new(),
        subject: None,
    }
}
