//! Getting at documents: from Redis, or from a storage where Redis has lost them.

use super::fault::{Away, Ending, Fault};
use super::kit::{Journey, Kit};
use super::{Outage, Retry, Turn};
use crate::queue::{Document, Kind, Queue, QueueError};
use crate::settings::Settings;
use crate::vcon::{Vcon, VconId};

/// What a lane needs to get at a document.
pub(super) struct Loader<'a> {
    pub queue: &'a mut Queue,
    pub outage: &'a mut Outage,
    pub settings: &'a Settings,
    pub turn: &'a Turn<'a>,
}

impl Loader<'_> {
    /// Makes a vCon of what stands under its key, or, where nothing does, of what a storage has.
    pub fn open(
        &mut self,
        kit: &mut Kit,
        id: &VconId,
        document: Document,
    ) -> Result<(Kind, Vcon), Ending> {
        let (kind, text) = match document {
            Document::Found(kind, bytes) => {
                let text = String::from_utf8(bytes)
                    .map_err(|error| unusable(format!("the document is not UTF-8: {error}")))?;
                (kind, text)
            }
            Document::Missing => self.find(kit, id)?,
            Document::NotAnId => return Err(unusable(format!("{id} is not a UUID"))),
            Document::Unusable(why) => return Err(unusable(why)),
        };
        let vcon = Vcon::parse(id.clone(), text)
            .map_err(|error| failed("parse", format!("the document {error}")))?;
        Ok((kind, vcon))
    }

    /// What stands under another vCon's key.
    pub fn load(&mut self, id: &VconId) -> Result<Document, Ending> {
        self.insist(|queue| queue.load(id))
    }

    /// Writes what the links have done so far.
    pub fn write(&mut self, kind: Kind, journey: &mut Journey) -> Result<(), Ending> {
        if journey.vcon.is_changed() {
            let json = journey.vcon.to_json();
            let id = journey.vcon.id();
            self.insist(|queue| queue.put(id, kind, &json))?;
            journey.vcon.note_written();
        }
        Ok(())
    }

    /// Finishes with a vCon, before the chain goes over to another one.
    pub fn leave(&mut self, kind: Kind, journey: &mut Journey) -> Result<(), Ending> {
        self.write(kind, journey)?;
        if let Some(seconds) = journey.expire {
            let id = journey.vcon.id();
            self.insist(|queue| queue.expire(id, seconds))?;
        }
        Ok(())
    }

    fn find(&mut self, kit: &mut Kit, id: &VconId) -> Result<(Kind, String), Ending> {
        let missing = "there is no document under its key in Redis";
        if !self.settings.storage_fallback {
            return Err(unusable(missing.to_owned()));
        }
        let mut retry = Retry::new(self.settings);
        loop {
            match kit.find(id, self.turn.deadline()) {
                Ok(Some((storage, json))) => {
                    let kind = self.insist(|queue| queue.restore(id, &json))?;
                    log::info!(
                        vcon_id = id.as_str(), storage_name = storage.as_str();
                        "{id} had gone from Redis and was restored from storage {storage}"
                    );
                    return Ok((kind, json));
                }
                Ok(None) => {
                    return Err(unusable(format!("{missing} and in none of the storages")));
                }
                Err((stage, failure)) => {
                    let attempts = retry.attempt();
                    log::debug!("{stage} may hold {id}, attempt {attempts}: {failure}");
                    if !retry.again(self.turn).map_err(|_| Ending::Interrupted)? {
                        let error = format!("{missing}, and {stage} may hold it: {failure}");
                        let fault = Fault {
                            stage: "load".to_owned(),
                            stages: vec![stage],
                            error,
                            attempts,
                        };
                        return Err(Ending::Away(Away {
                            kind: failure.kind,
                            fault,
                        }));
                    }
                }
            }
        }
    }

    fn insist<T>(
        &mut self,
        mut step: impl FnMut(&mut Queue) -> Result<T, QueueError>,
    ) -> Result<T, Ending> {
        loop {
            match step(self.queue) {
                Ok(done) => {
                    self.outage.over();
                    return Ok(done);
                }
                Err(error @ QueueError::Document(_)) => {
                    return Err(failed("queue", error.to_string()));
                }
                Err(error) => self
                    .outage
                    .insist(&error, self.turn)
                    .map_err(|_| Ending::Interrupted)?,
            }
        }
    }
}

fn unusable(error: String) -> Ending {
    failed("load", error)
}

fn failed(stage: &str, error: String) -> Ending {
    Ending::Failed(Fault::of_queue(stage, error))
}
