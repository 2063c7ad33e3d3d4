//! `storage.webhook`: posts the vCon, once its links are done, as JSON to each of a list of URLs.
//!
//! Options and the classes of answers are those of [`Webhooks`]. What was posted cannot be asked
//! for again: to [`Storage::get`] and [`Storage::delete`] nothing is there.

use std::time::Duration;

use super::Storage;
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::options::Options;
use crate::vcon::{Outgoing, VconId};
use crate::webhooks::Webhooks;

struct Webhook {
    webhooks: Webhooks,
}

/// Reads the options.
pub(super) fn open(options: &mut Options) -> Box<dyn Storage> {
    Box::new(Webhook {
        webhooks: Webhooks::open(options),
    })
}

impl Storage for Webhook {
    fn save(&mut self, vcon: &Outgoing, deadline: Deadline) -> Result<(), Failure> {
        self.webhooks.post(&vcon.json, deadline)
    }

    fn get(&mut self, _: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    fn delete(&mut self, _: &VconId) -> Result<(), Failure> {
        Ok(())
    }

    fn probe(&mut self) -> Result<(), Failure> {
        self.webhooks.reach()
    }

    fn longest_call(&self) -> Duration {
        self.webhooks.longest_post()
    }

    fn keeps_documents(&self) -> bool {
        false
    }

    fn can_delete(&self) -> bool {
        false
    }
}
