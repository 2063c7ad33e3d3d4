//! Signed and encrypted vCons: JSON Web Signatures and JSON Web Encryption around a vCon.
//!
//! Nothing in them is ours to change: they are carried as the text they are.

use std::fmt;

use serde_json::value::RawValue;

use super::json::{self, Borrowed, Members};

/// What keeps a vCon from being read or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// A JSON Web Signature (RFC 7515): a change would break it.
    Signed,
    /// JSON Web Encryption (RFC 7516): only who has the key can read it.
    Encrypted,
}

impl Sealed {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signed => "signed",
            Self::Encrypted => "encrypted",
        }
    }
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signed => "signed (JWS)",
            Self::Encrypted => "encrypted (JWE)",
        })
    }
}

/// Whether a text is a signed or encrypted vCon, in the general or the flattened JSON serialisation.
pub fn sealed(text: &str) -> Option<Sealed> {
    let text = super::json::without_mark(text);
    of(&Borrowed::read(text).ok()?.0)
}

/// The same for a document that is opened up already.
pub(super) fn of(members: &Members<'_>) -> Option<Sealed> {
    let is = |name: &str, is_kind: fn(&RawValue) -> bool| {
        members.get(name).is_some_and(|value| is_kind(value))
    };
    let is_signature = is("signatures", json::is_array) || is("signature", json::is_string);
    if is("payload", json::is_string) && is_signature {
        return Some(Sealed::Signed);
    }
    let is_jwe = [
        "recipients",
        "encrypted_key",
        "protected",
        "unprotected",
        "header",
        "iv",
    ]
    .iter()
    .any(|name| members.contains_key(*name));
    (is("ciphertext", json::is_string) && is_jwe).then_some(Sealed::Encrypted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vcon::{Body, Vcon, VconError, VconId, Version};

    const SIGNED: &str = "{ \"payload\" : \"eyJ9\",\n \"signatures\": [{\"signature\":\"c2ln\"}] }";
    const ENCRYPTED: &str = r#"{"protected":"eyJ9", "iv":"aXY","ciphertext":"Ym9k","tag":"dGFn"}"#;

    #[test]
    fn both_serialisations_of_both_kinds_are_known() {
        for (text, kind) in [
            (SIGNED, Some(Sealed::Signed)),
            (
                r#"{"payload":"p","protected":"h","signature":"s"}"#,
                Some(Sealed::Signed),
            ),
            (
                "\u{feff}{\"payload\":\"p\",\"signature\":\"s\"}",
                Some(Sealed::Signed),
            ),
            (ENCRYPTED, Some(Sealed::Encrypted)),
            (
                r#"{"ciphertext":"c","recipients":[]}"#,
                Some(Sealed::Encrypted),
            ),
            (
                r#"{"ciphertext":"c","encrypted_key":"k"}"#,
                Some(Sealed::Encrypted),
            ),
            (
                r#"{"ciphertext":"c","unprotected":{}}"#,
                Some(Sealed::Encrypted),
            ),
            (r#"{"ciphertext":"c","header":{}}"#, Some(Sealed::Encrypted)),
            (
                r#"{"ciphertext":"c","protected":"h"}"#,
                Some(Sealed::Encrypted),
            ),
            (r#"{"ciphertext":"c","iv":"i"}"#, Some(Sealed::Encrypted)),
            (r#"{"payload":{"a":1},"signatures":[]}"#, None),
            (r#"{"payload":"p","signatures":"s"}"#, None),
            (r#"{"payload":"p","signature":[]}"#, None),
            (r#"{"payload":"p"}"#, None),
            (r#"{"signatures":[],"signature":"s"}"#, None),
            (r#"{"ciphertext":"c"}"#, None),
            (r#"{"ciphertext":{},"iv":"i"}"#, None),
            (r#"{"iv":"i","recipients":[]}"#, None),
            (r#"{"vcon":"0.4.0","parties":[]}"#, None),
            ("eyJ9.eyJ9.c2ln", None),
        ] {
            assert_eq!(sealed(text), kind, "{text}");
        }
    }

    #[test]
    fn a_sealed_vcon_goes_through_byte_for_byte() {
        for (text, word) in [(SIGNED, "signed"), (ENCRYPTED, "encrypted")] {
            for version in [Version::Current, Version::V0_0_1] {
                let mut vcon = Vcon::read(VconId::random(), text).unwrap();
                assert_eq!(vcon.sealed().map(Sealed::as_str), Some(word));
                assert_eq!(vcon.to_json(), text);
                let outgoing = vcon.outgoing(version);
                assert_eq!(*outgoing.json, text);
                assert_eq!(outgoing.version.as_str(), word);
                assert_eq!(outgoing.subject, None);
                assert_eq!(outgoing.created_at, None);
                assert_eq!(&outgoing.id, vcon.id());
                let (leaving, kept) = vcon.depart(version);
                assert_eq!(*leaving.older.json, text);
                assert_eq!(*leaving.current.json, text);
                assert_eq!(kept, None);
            }
        }
        // What stands beside it is not read.
        let beside = r#"{"payload":"p","signature":"s","subject":"x","created_at":"2025-02-11"}"#;
        let outgoing = Vcon::read(VconId::random(), beside)
            .unwrap()
            .outgoing(Version::Current);
        assert_eq!((outgoing.subject, outgoing.created_at), (None, None));
        // A mark is no part of it.
        let marked = format!("\u{feff}{SIGNED}");
        assert_eq!(
            Vcon::read(VconId::random(), &marked).unwrap().to_json(),
            SIGNED
        );
    }

    #[test]
    fn whoever_would_change_a_sealed_vcon_is_told_why_not() {
        type Change = fn(&mut Vcon) -> Result<(), VconError>;
        let changes: [Change; 8] = [
            |vcon| vcon.add_tags(&["a:a".to_owned()]),
            |vcon| vcon.add_attachment("p", Body::Text("b")),
            |vcon| vcon.add_analysis("t", &[], "v", Body::Text("b")),
            |vcon| vcon.replace("{}".to_owned()),
            |vcon| vcon.replace_dialog_bodies(&[]),
            Vcon::remove_analysis,
            |vcon| vcon.remove_attachments(&["a/b".to_owned()]),
            |vcon| vcon.remove_key("k"),
        ];
        for (text, word) in [(SIGNED, "signed"), (ENCRYPTED, "encrypted")] {
            for change in changes {
                let mut vcon = Vcon::read(VconId::random(), text).unwrap();
                let error = change(&mut vcon).unwrap_err().to_string();
                assert!(error.contains(word), "{error}");
                assert!(!vcon.is_changed());
                assert_eq!(vcon.to_json(), text);
            }
            let vcon = Vcon::read(VconId::random(), text).unwrap();
            assert_eq!(
                vcon.dialog().map(Iterator::count).unwrap_err().to_string(),
                format!(
                    "the vCon is {}, so it cannot be changed",
                    vcon.sealed().unwrap()
                )
            );
            assert!(vcon.tags().unwrap().is_empty());
        }
    }

    #[test]
    fn a_link_may_seal_a_vcon() {
        let mut vcon = Vcon::read(VconId::random(), r#"{"vcon":"0.4.0","subject":"s"}"#).unwrap();
        vcon.replace(SIGNED.to_owned()).unwrap();
        assert!(vcon.is_changed());
        assert_eq!(vcon.to_json(), SIGNED);
        let (leaving, kept) = vcon.depart(Version::Current);
        assert_eq!(kept.as_deref(), Some(&*leaving.current.json));
    }
}
