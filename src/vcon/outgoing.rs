//! What leaves for storages and webhooks.

use std::sync::{Arc, OnceLock};

use super::{CreatedAt, Sealed, VconId};

/// The version of the vCon syntax in which documents leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// What we write: 0.4.0.
    Current,
    /// The version of older consumers.
    V0_0_1,
    /// Whatever version is under the seal: nobody can ask for it.
    Sealed(Sealed),
}

/// How the bodies of analysis and attachments are written that are objects or arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JsonBodies {
    /// As the values they are.
    #[default]
    Native,
    /// As their JSON text, for readers that know no other form.
    Text,
}

impl Version {
    /// The version as documents name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "0.4.0",
            Self::V0_0_1 => "0.0.1",
            Self::Sealed(sealed) => sealed.as_str(),
        }
    }
}

/// What leaves for storages and webhooks: the document in its written form, with the fields that
/// layouts need.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The id under which it is kept.
    pub id: VconId,
    /// The document.
    pub json: Arc<String>,
    /// The version it is written in.
    pub version: Version,
    /// When the vCon was made; `None` where the document does not say so readably.
    pub created_at: Option<CreatedAt>,
    /// What stands for that where it is needed and missing, from the first time on.
    pub stand_in: OnceLock<CreatedAt>,
    /// When it was made as the document said before a link changed that.
    pub formerly: Option<CreatedAt>,
    /// Its subject.
    pub subject: Option<String>,
}

/// A vCon on its way to storages, for each of them in the version that it gets.
#[derive(Debug, Clone)]
pub struct Leaving {
    /// In the version that is kept in Redis.
    pub current: Arc<Outgoing>,
    /// In the version of `EGRESS_FORMAT_VERSION`: the same one if that is not set.
    pub older: Arc<Outgoing>,
}

impl Leaving {
    /// The one for storages that get the older version, or for the others.
    pub fn of(&self, is_older: bool) -> &Arc<Outgoing> {
        if is_older { &self.older } else { &self.current }
    }
}

impl Outgoing {
    /// When the vCon was made, or the present time with a warning in the log. It is the same for
    /// every storage and at every further try, also after midnight: a layout by days would keep
    /// the vCon twice.
    pub fn created_or_now(&self) -> CreatedAt {
        let present = || {
            log::warn!(
                "vCon {}: `created_at` is missing or unreadable, the present time is used",
                self.id
            );
            CreatedAt::now()
        };
        self.created_at
            .unwrap_or_else(|| *self.stand_in.get_or_init(present))
    }
}
