//! The identity of a vCon, checked once and carried as a type.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, NaiveDate};
use uuid::Uuid;

/// The years in which a UUID may have been made.
const PLAUSIBLE: std::ops::Range<i32> = 2000..2200;

/// A vCon's UUID, in the 36-character form it has in Redis (`8-4-4-4-12` hexadecimal digits).
///
/// The text is kept as it was written, because it is part of the key `vcon:<uuid>`. Made only by
/// parsing: whatever goes into a key, a path, a URL or SQL has passed through here.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VconId(String);

/// The error of parsing a [`VconId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a UUID of the form 8-4-4-4-12")]
pub struct NotAnId(String);

impl VconId {
    /// A fresh random identity (UUID version 4).
    pub fn random() -> Self {
        Self(Uuid::new_v4().to_string())
    }

    /// The text as it stands in Redis.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The sixteen bytes, for a database column of type `uuid`.
    pub fn uuid(&self) -> Uuid {
        // The text was parsed when this value was made.
        Uuid::parse_str(&self.0).unwrap_or_default()
    }

    /// The day on which it was made, in UTC, if its UUID tells: of version 7, or of version 8 as vCon
    /// libraries make them, with the same time in it. Others may use version 8 in another way, so this
    /// is a hint.
    pub fn made_on(&self) -> Option<NaiveDate> {
        let uuid = self.uuid();
        if !matches!(uuid.get_version_num(), 7 | 8) {
            return None;
        }
        let milliseconds = i64::try_from(uuid.as_u128() >> 80).ok()?;
        let day = DateTime::from_timestamp_millis(milliseconds)?.date_naive();
        PLAUSIBLE.contains(&day.year()).then_some(day)
    }

    /// The Redis key of the document, `vcon:<uuid>`.
    pub fn key(&self) -> String {
        format!("vcon:{}", self.0)
    }
}

impl FromStr for VconId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        if text.len() == 36 && Uuid::try_parse(text).is_ok() {
            Ok(Self(text.to_owned()))
        } else {
            let shown: String = text.chars().take(80).collect();
            Err(NotAnId(format!("{shown:?}")))
        }
    }
}

impl fmt::Display for VconId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VconId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VconId({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_versions_7_and_8_tell_their_day() {
        for (id, day) in [
            // The example of RFC 9562.
            ("017f22e2-79b0-7cc3-98c4-dc0c0c07398f", Some("2022-02-22")),
            ("017F22E2-79B0-8CC3-98C4-DC0C0C07398F", Some("2022-02-22")),
            ("05cec3d4-0561-4010-9fb8-23cc7edef146", None),
            ("017f22e2-79b0-1cc3-98c4-dc0c0c07398f", None),
            // No time, but something else.
            ("ffffffff-ffff-8fff-bfff-ffffffffffff", None),
            ("00000000-0000-7000-8000-000000000000", None),
        ] {
            let made = id.parse::<VconId>().map(|id| id.made_on());
            assert_eq!(made, Ok(day.and_then(|day| day.parse().ok())), "{id}");
        }
    }

    #[test]
    fn only_the_hyphenated_form_is_an_id() {
        for good in [
            "05cec3d4-0561-4010-9fb8-23cc7edef146",
            "05CEC3D4-0561-4010-9FB8-23CC7EDEF146",
        ] {
            assert_eq!(
                good.parse::<VconId>().map(|id| id.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "",
            "../../etc/passwd",
            "05cec3d405614010 9fb823cc7edef146    ",
            "05cec3d4056140109fb823cc7edef146",
            "{05cec3d4-0561-4010-9fb8-23cc7edef146}",
            "urn:uuid:05cec3d4-0561-4010-9fb8-23cc7edef146",
            "05cec3d4-0561-4010-9fb8-23cc7edef14g",
            "05cec3d4-0561-4010-9fb8-23cc7edef146\n",
        ] {
            assert!(bad.parse::<VconId>().is_err(), "{bad:?}");
        }
    }
}
