//! The vCon document: parse, normalise, downgrade, tags, merge.
//!
//! A link reads a [`Vcon`] by [`Vcon::dialog`], [`Vcon::analysis`], [`Vcon::attachments`] and
//! [`Vcon::tags`], and changes it by [`Vcon::add_tags`], [`Vcon::add_attachment`],
//! [`Vcon::add_analysis`], [`Vcon::set_in_analysis`] and the functions that take things out
//! (`remove_…`).
//!
//! A document is looked at only where there is something to do. The rest stays the text it was, so
//! that the order of keys, numbers of any size, unknown properties and any depth of nesting come
//! out as they went in, and a document in memory is hardly larger than its text. Nothing here
//! knows of Redis, of links or of storages.

use std::str::Utf8Error;

pub use created::CreatedAt;
pub use digest::digest;
pub use document::Vcon;
pub use id::{NotAnId, VconId};
pub use json::decode;
pub use merge::{Merged, merge};
pub use outgoing::{JsonBodies, Leaving, OpenPart, Outgoing, Parts, Version};
pub use parts::{Body, Dialog, Entry};
pub use reduce::nests_deeper_than;
pub use sealed::{Sealed, sealed};

mod created;
mod digest;
mod document;
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

/// The most bytes that a document may have: Redis keeps no longer text in one value.
pub const LARGEST_DOCUMENT: u64 = 512 << 20;

/// Why a text is not a vCon, or cannot be changed as asked. Reads well after the vCon's id.
#[derive(Debug, thiserror::Error)]
pub enum VconError {
    /// The text is not JSON.
    #[error("is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// The bytes are no text.
    #[error("is not UTF-8: {0}")]
    NotUtf8(#[from] Utf8Error),
    /// The bytes are a text in another encoding.
    #[error("is {0}, not UTF-8")]
    Encoding(&'static str),
    /// The text is JSON of another kind.
    #[error("is not a JSON object but {0}")]
    NotAnObject(&'static str),
    /// The text is a JSON string that holds the text of an object.
    #[error("is not a JSON object but a string that holds one: it was encoded twice")]
    EncodedTwice,
    /// A member that holds a list holds something else.
    #[error("`{member}` is {kind}, not an array")]
    NotAnArray {
        /// Its name.
        member: &'static str,
        /// What it is, as in "a string".
        kind: &'static str,
    },
    /// An element of a list is none of its parts.
    #[error("`{list}[{number}]` is {kind}, not an object")]
    PartNotAnObject {
        /// The list.
        list: &'static str,
        /// The element's place.
        number: usize,
        /// What it is, as in "a string".
        kind: &'static str,
    },
    /// There is a `tags` attachment, and tags cannot be added to what it holds.
    #[error("the body of the `tags` attachment is base64url, not tags")]
    TagsEncoded,
    /// It is to take the place of a vCon with another UUID.
    #[error("has the uuid {0}, which is another vCon's")]
    AnotherVcon(String),
    /// It is sealed, and was to be changed.
    #[error("the vCon is {0}, so it cannot be changed")]
    Sealed(Sealed),
    /// It is to be merged with another document, and one of them is sealed.
    #[error("is another than the chain's, and one of the two is {0}: they cannot be merged")]
    SealedMeanwhile(Sealed),
}
