//! The name of an ingress or egress list, checked once and carried as a type.

use std::fmt;
use std::str::FromStr;

/// The name of a Redis list: not empty, without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListName(String);

/// The error of parsing a [`ListName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a list: it is empty or has control characters")]
pub struct NotAListName(String);

impl ListName {
    /// The name as it is in Redis.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ListName {
    type Err = NotAListName;

    fn from_str(text: &str) -> Result<Self, NotAListName> {
        if text.trim().is_empty() || text.chars().any(char::is_control) {
            return Err(NotAListName(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ListName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_name() {
        for good in ["default", "DLQ:default", "liste d'entrée"] {
            assert_eq!(
                good.parse::<ListName>().map(|name| name.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in ["", " ", "a\n", "\0"] {
            assert!(bad.parse::<ListName>().is_err(), "{bad:?}");
        }
    }
}
