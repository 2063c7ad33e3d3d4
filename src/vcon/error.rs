//! Why a text is not a vCon, or cannot be changed as asked.

/// Why a text is not a vCon, or cannot be changed as asked. Reads well after the vCon's id.
#[derive(Debug, thiserror::Error)]
pub enum VconError {
    /// The text is not JSON.
    #[error("is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// The text is JSON of another kind.
    #[error("is not a JSON object but {0}")]
    NotAnObject(&'static str),
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
    #[error("the body of the `tags` attachment is not a JSON array")]
    TagsNotAnArray,
    /// It is to take the place of a vCon with another UUID.
    #[error("has the uuid {0}, which is another vCon's")]
    AnotherVcon(String),
}
