//! Passwords, keys and tokens: text that is never shown.

use std::{fmt, iter};

/// A shorter secret, or line of one, is not searched for: it would be found in everything.
const SHORTEST: usize = 6;

/// Parts of the names of variables and options whose values are not to be shown.
const SECRET_NAMES: [&str; 15] = [
    "PWD",
    "CONN",
    "WEBHOOK",
    "COOKIE",
    "SIGNATURE",
    "KEY",
    "TOKEN",
    "SECRET",
    "PASS",
    "AUTH",
    "CREDENTIAL",
    "PRIVATE",
    "PROXY_URL",
    "DSN",
    // Of requests, as OTEL_EXPORTER_OTLP_HEADERS.
    "HEADERS",
];

/// Whether a variable or option of this name holds what is not to be shown.
pub fn names_a_secret(name: &str) -> bool {
    let name = name.to_uppercase();
    // The shell's working directories.
    if name == "PWD" || name == "OLDPWD" {
        return false;
    }
    SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// A password, key or token. It prints as `***`; only [`Secret::reveal`] gives the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the server it is meant for.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Text from elsewhere without this secret: neither whole, nor any of its lines.
    pub fn hide_in(&self, text: String) -> String {
        let parts = iter::once(self.reveal()).chain(self.reveal().lines().map(str::trim));
        let parts = parts.filter(|part| part.len() >= SHORTEST);
        parts.fold(text, |text, part| text.replace(part, "***"))
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_stars() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.reveal(), "hunter2");
    }
}
