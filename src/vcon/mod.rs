//! The vCon document: parse, normalise, downgrade, tags, merge.
//!
//! A document is looked at only where there is something to do. The rest stays the text it was, so
//! that the order of keys, numbers of any size, unknown properties and any depth of nesting come
//! out as they went in, and a document in memory is hardly larger than its text. Nothing here
//! knows of Redis, of links or of storages.

mod created;
mod decode;
mod digest;
mod document;
mod downgrade;
mod error;
mod id;
mod json;
mod merge;
mod normalise;
mod outgoing;
mod parts;
#[cfg(test)]
mod properties;
mod reduce;
mod sealed;
mod tags;

pub use created::CreatedAt;
pub use decode::decode;
pub use digest::digest;
pub use document::Vcon;
pub use error::VconError;
pub use id::{NotAnId, VconId};
pub use merge::{Merged, merge};
pub use outgoing::{JsonBodies, Leaving, Outgoing, Version};
pub use parts::{OpenPart, Parts};
pub use reduce::{DialogBody, nests_deeper_than};
pub use sealed::{Sealed, sealed};

/// The most bytes that a document may have: Redis keeps no longer text in one value.
pub const LARGEST_DOCUMENT: u64 = 512 << 20;
