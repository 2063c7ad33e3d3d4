//! A vCon on its way through its chain: its document, in Redis and in hand, and how far it has come.

use std::sync::Arc;

use super::fault::{Ending, failed};
use super::progress::Progress;
use crate::queue::{Document, Kind};
use crate::vcon::{JsonBodies, Leaving, Vcon, VconId, Version};

/// A vCon on its way.
pub(super) struct Job {
    /// How it is kept in Redis.
    pub kind: Kind,
    /// The text that stands in Redis, as far as this lane knows; `None` once it has been deleted.
    pub base: Option<String>,
    /// What the base was made of, if this lane has written that: what somebody else stores may be made
    /// of it too, without what the links have done.
    pub origin: Option<String>,
    pub content: Content,
    /// How bodies that are JSON are written.
    bodies: JsonBodies,
    /// How far it has come.
    pub progress: Progress,
    /// Whether it has been told that links may not change it.
    pub is_critical_told: bool,
    /// Whether any storage was asked to take it, in whatever version.
    pub was_given: bool,
}

/// What the chain has made of the document.
pub(super) enum Content {
    /// Links may still change it.
    Open(Vcon),
    /// It is on its way to the storages, and to Redis if a link changed it.
    Leaving {
        leaving: Leaving,
        changed: Option<Arc<String>>,
    },
}

impl Job {
    /// Opens a document.
    ///
    /// # Errors
    /// It is no vCon.
    pub fn open(
        id: VconId,
        kind: Kind,
        text: String,
        bodies: JsonBodies,
        progress: Progress,
    ) -> Result<Self, Ending> {
        let vcon = Vcon::read(id, &text)
            .map_err(|error| failed("parse", format!("the document {error}")))?
            .writing(bodies);
        Ok(Self {
            kind,
            base: Some(text),
            origin: None,
            content: Content::Open(vcon),
            bodies,
            progress,
            is_critical_told: false,
            was_given: false,
        })
    }

    /// Whether this is the document that the chain has made, or left as it was.
    pub fn is_as(&mut self, document: &Document) -> bool {
        let changed = self.changed_text();
        let text = changed.as_deref().or(self.base.as_ref());
        matches!(document, Document::Found(_, bytes) if text.is_some_and(|it| it.as_bytes() == bytes))
    }

    /// The document, for a link to change.
    pub fn open_vcon(&mut self) -> Result<&mut Vcon, Ending> {
        match &mut self.content {
            Content::Open(vcon) => Ok(vcon),
            // Links come before storages.
            Content::Leaving { .. } => Err(failed("queue", "the document has left".to_owned())),
        }
    }

    /// The document as the links have left it, opened again if need be.
    pub fn chain_version(&self) -> Result<Vcon, Ending> {
        match &self.content {
            Content::Open(vcon) => Ok(vcon.clone()),
            Content::Leaving { leaving, changed } => {
                let text = match changed {
                    Some(text) => text.as_str(),
                    None => self.base.as_deref().unwrap_or_default(),
                };
                Vcon::read(leaving.current.id.clone(), text)
                    .map(|vcon| vcon.writing(self.bodies))
                    .map_err(|error| failed("parse", format!("the document {error}")))
            }
        }
    }

    /// The document as it is to be kept in Redis, if a link changed it.
    pub fn changed_text(&mut self) -> Option<Arc<String>> {
        match &mut self.content {
            Content::Open(vcon) => vcon.is_changed().then(|| Arc::new(vcon.to_json())),
            Content::Leaving { changed, .. } => changed.clone(),
        }
    }

    /// Has the document leave for the storages.
    pub fn leave(&mut self, version: Version) -> Result<Leaving, Ending> {
        if let Content::Open(vcon) = &mut self.content {
            // Its parts are gone then, so that a large document is not in memory twice.
            let (leaving, changed) = vcon.depart(version);
            self.content = Content::Leaving { leaving, changed };
        }
        match &self.content {
            Content::Leaving { leaving, .. } => Ok(leaving.clone()),
            Content::Open(_) => Err(failed("queue", "the document has not left".to_owned())),
        }
    }

    /// What links have done until now is in Redis, and counts as a change no more.
    pub fn note_written(&mut self, text: String) {
        let base = self.base.replace(text);
        self.origin = self.origin.take().or(base);
        match &mut self.content {
            Content::Open(vcon) => vcon.note_written(),
            Content::Leaving { changed, .. } => *changed = None,
        }
    }

    /// Somebody has deleted it: nothing is written to Redis any more.
    pub fn note_deleted(&mut self) {
        self.base = None;
        self.origin = None;
    }

    /// The vCon that the chain works on now: the claimed one, or the one that a link went over to.
    pub fn id(&self) -> &VconId {
        match &self.content {
            Content::Open(vcon) => vcon.id(),
            Content::Leaving { leaving, .. } => &leaving.current.id,
        }
    }
}
