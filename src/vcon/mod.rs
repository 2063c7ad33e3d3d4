//! The vCon document: parse, normalise, downgrade, tags.

mod id;

pub use id::{NotAnId, VconId};

/// A parsed vCon.
pub struct Vcon;

/// The version of the vCon syntax in which documents leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// What we write: 0.4.0.
    Current,
    /// The version of older consumers.
    V0_0_1,
}

/// What leaves for storages and webhooks: the document in its written form, with the fields that
/// layouts need.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The id under which it is kept.
    pub id: VconId,
    /// The document.
    pub json: String,
    /// The version it is written in.
    pub version: Version,
    /// When the vCon was made; `None` where the document does not say so readably.
    pub created_at: Option<CreatedAt>,
    /// Its subject.
    pub subject: Option<String>,
}

/// A vCon's `created_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreatedAt {
    /// The wall clock as it is written, in its own zone.
    pub local: chrono::NaiveDateTime,
    /// Seconds since 1970-01-01 UTC; a time without a zone counts as UTC.
    pub unix: i64,
}
