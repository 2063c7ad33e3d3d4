//! One document as it is handed in: what it is, and the UUID under which it is kept.

use std::borrow::Cow;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::vcon::{JsonBodies, Outgoing, Sealed, Vcon, VconId, Version, sealed};

/// So many times a vCon may have been made a JSON string.
const MOST_STRINGS: usize = 3;

/// What the names of files with vCons end with.
const ENDINGS: [&str; 2] = ["json", "vcon"];

/// Names for a signed or encrypted vCon that does not tell its own.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    /// The one that is asked for.
    pub given: Option<&'a VconId>,
    /// The file it stands in.
    pub file: &'a Path,
}

/// Whether a folder's file of this name is one of vCons.
pub(super) fn is_named(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ENDINGS.iter().any(|it| it.eq_ignore_ascii_case(ending)))
}

/// Checks one document, and makes it ready for Redis. A JSON string stands for the vCon that it
/// holds; a signed or encrypted one stays as it is.
pub(super) fn vcon(text: &str, names: Names<'_>, bodies: JsonBodies) -> Result<Outgoing, String> {
    let mut text = Cow::Borrowed(bare(text));
    let mut strings = 0;
    while text.starts_with('"') {
        strings += 1;
        if strings > MOST_STRINGS {
            return Err("is a JSON string in a JSON string".to_owned());
        }
        let held: String =
            serde_json::from_str(&text).map_err(|error| format!("is not JSON: {error}"))?;
        text = Cow::Owned(bare(&held).to_owned());
    }
    let id = match id_of_open(&text, strings > 0)? {
        Some(id) => id,
        None => id_of_sealed(&text, names)?,
    };
    let vcon = Vcon::read(id, &text).map_err(|error| error.to_string())?;
    Ok(vcon.writing(bodies).outgoing(Version::Current))
}

/// A text without what may stand before and after it.
fn bare(text: &str) -> &str {
    text.trim_start_matches('\u{feff}').trim()
}

/// The UUID of a vCon that is neither signed nor encrypted; nothing if it is.
fn id_of_open(text: &str, is_string: bool) -> Result<Option<VconId>, String> {
    #[derive(Deserialize)]
    struct Named {
        uuid: Option<Value>,
        payload: Option<IgnoredAny>,
        ciphertext: Option<IgnoredAny>,
    }
    // A list of three would be read as one, too.
    if text.starts_with('[') {
        return Err(match is_string {
            true => "is a JSON string that holds no vCon: it holds a list".to_owned(),
            false => "is a list, not a vCon: hand in each vCon by itself".to_owned(),
        });
    }
    let named: Named = serde_json::from_str(text).map_err(|error| match is_string {
        true => format!("is a JSON string that holds no vCon: {error}"),
        false => format!("is not a vCon: {error}"),
    })?;
    if (named.payload.is_some() || named.ciphertext.is_some()) && sealed(text).is_some() {
        return Ok(None);
    }
    let uuid = named.uuid.ok_or("has no `uuid`")?;
    let uuid = uuid.as_str().ok_or("`uuid` is not a string")?;
    let id = uuid.parse().map_err(|error| format!("`uuid`: {error}"))?;
    Ok(Some(id))
}

/// The UUID of a signed or encrypted vCon: from its protected header, else the one given, the
/// file's name, an unprotected header, or the vCon that is signed.
fn id_of_sealed(text: &str, names: Names<'_>) -> Result<VconId, String> {
    #[derive(Deserialize)]
    struct Envelope {
        payload: Option<Value>,
        #[serde(flatten)]
        own: Headers,
        unprotected: Option<Value>,
        #[serde(default)]
        signatures: Vec<Headers>,
        #[serde(default)]
        recipients: Vec<Headers>,
    }
    #[derive(Deserialize)]
    struct Headers {
        protected: Option<Value>,
        header: Option<Value>,
    }
    let envelope: Envelope =
        serde_json::from_str(text).map_err(|error| format!("is not a vCon: {error}"))?;
    let parts = || {
        let others = envelope.signatures.iter().chain(&envelope.recipients);
        std::iter::once(&envelope.own).chain(others)
    };
    let mut protected = None;
    for header in parts().filter_map(|part| decoded(part.protected.as_ref()?)) {
        let Some(uuid) = uuid_in(&header) else {
            continue;
        };
        let id: VconId = uuid
            .parse()
            .map_err(|error| format!("`uuid` of its protected header: {error}"))?;
        if protected.as_ref().is_some_and(|other| *other != id) {
            return Err("its protected headers have several UUIDs".to_owned());
        }
        protected = Some(id);
    }
    if let (Some(id), Some(given)) = (&protected, names.given)
        && id != given
    {
        return Err(format!("is vCon {id} by its protected header, not {given}"));
    }
    let unprotected = || {
        let headers = parts().filter_map(|part| part.header.as_ref());
        let mut headers = headers.chain(envelope.unprotected.as_ref());
        headers.find_map(|header| uuid_in(header)?.parse().ok())
    };
    let payload = || uuid_in(&decoded(envelope.payload.as_ref()?)?)?.parse().ok();
    protected
        .or_else(|| names.given.cloned())
        .or_else(|| named(names.file))
        .or_else(unprotected)
        .or_else(payload)
        .ok_or_else(|| {
            let kind = sealed(text).map_or("sealed", Sealed::as_str);
            format!(
                "is {kind}, and no header says which vCon it is; name the file <uuid>.json or \
                 give --uuid"
            )
        })
}

fn uuid_in(object: &Value) -> Option<&str> {
    object.get("uuid")?.as_str()
}

/// What a text in base64url holds, if that is JSON.
fn decoded(text: &Value) -> Option<Value> {
    let text = text.as_str()?.trim_end_matches('=');
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// The UUID that is the name of a file, without its endings.
fn named(file: &Path) -> Option<VconId> {
    let mut name = file.file_name()?.to_str()?;
    while let Some((stem, ending)) = name.rsplit_once('.')
        && ENDINGS.iter().any(|it| it.eq_ignore_ascii_case(ending))
    {
        name = stem;
    }
    name.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: &str = "0a1b2c3d-0000-4000-8000-000000000001";
    const TWO: &str = "0a1b2c3d-0000-4000-8000-000000000002";

    fn read(text: &str, file: &str, given: Option<&str>) -> Result<Outgoing, String> {
        let given: Option<VconId> = given.map(|id| id.parse().unwrap());
        let names = Names {
            given: given.as_ref(),
            file: Path::new(file),
        };
        vcon(text, names, JsonBodies::default())
    }

    fn id(text: &str, file: &str, given: Option<&str>) -> Result<String, String> {
        read(text, file, given).map(|vcon| vcon.id.to_string())
    }

    fn encoded(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    fn signed(protected: &str, payload: &str) -> String {
        let (protected, payload) = (encoded(protected), encoded(payload));
        format!(
            r#"{{"payload":"{payload}", "signatures":[{{"protected":"{protected}","signature":"c2ln"}}]}}"#
        )
    }

    #[test]
    fn a_string_stands_for_the_vcon_in_it() {
        let plain = format!(r#"{{"uuid":"{ONE}","parties":[]}}"#);
        let mut text = plain.clone();
        for _ in 0..MOST_STRINGS {
            text = serde_json::to_string(&text).unwrap();
            let found = read(&text, "x.json", None).unwrap();
            assert_eq!(found.id.as_str(), ONE);
            assert_eq!(found.json, read(&plain, "x.json", None).unwrap().json);
        }
        let text = serde_json::to_string(&text).unwrap();
        assert!(read(&text, "x.json", None).is_err());
        for (text, why) in [
            (r#""hello""#, "a JSON string that holds no vCon"),
            (r#""{\"uuid\":\"x\"}""#, "`uuid`:"),
            (r#""[]""#, "a JSON string that holds no vCon"),
            ("[]", "is a list, not a vCon: hand in each vCon by itself"),
            (
                "[null, null, null]",
                "is a list, not a vCon: hand in each vCon by itself",
            ),
            ("{}", "has no `uuid`"),
            (r#"{"uuid":7}"#, "`uuid` is not a string"),
            (r#"{"uuid":null}"#, "has no `uuid`"),
        ] {
            let error = read(text, "x.json", None).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_mark_before_the_document_is_passed_over() {
        let text = format!("\u{feff}{{\"uuid\":\"{ONE}\"}}");
        assert_eq!(id(&text, "x", None).as_deref(), Ok(ONE));
        let inner = serde_json::to_string(&text).unwrap();
        assert_eq!(id(&inner, "x", None).as_deref(), Ok(ONE));
    }

    #[test]
    fn a_sealed_vcon_is_named_by_its_protected_header_first() {
        let header = format!(r#"{{"alg":"RS256","uuid":"{ONE}"}}"#);
        let general = signed(&header, &format!(r#"{{"uuid":"{TWO}"}}"#));
        let protected = encoded(&header);
        let flattened =
            format!(r#"{{"protected":"{protected}","iv":"aXY","ciphertext":"Ym9k","tag":"dGFn"}}"#);
        for text in [&general, &flattened] {
            for file in ["x.json", &format!("{TWO}.vcon.json")] {
                assert_eq!(id(text, file, None).as_deref(), Ok(ONE), "{text}");
            }
            assert_eq!(id(text, "x", Some(ONE)).as_deref(), Ok(ONE));
            let error = id(text, "x", Some(TWO)).unwrap_err();
            assert!(error.contains(ONE) && error.contains(TWO), "{error}");
            assert_eq!(*read(text, "x", None).unwrap().json, **text);
        }
        let bad = signed(r#"{"uuid":"../x"}"#, "{}");
        assert!(
            id(&bad, ONE, None)
                .unwrap_err()
                .contains("protected header")
        );
    }

    #[test]
    fn a_sealed_vcon_without_a_name_of_its_own_takes_the_one_given_or_that_of_its_file() {
        let text = signed(r#"{"alg":"RS256"}"#, "{}");
        for ending in ["", ".json", ".vcon", ".vcon.json", ".VCON", ".jws.json"] {
            let file = format!("/a/{ONE}{ending}");
            let found = id(&text, &file, None);
            match ending {
                ".jws.json" => assert!(found.is_err(), "{file}"),
                _ => assert_eq!(found.as_deref(), Ok(ONE), "{file}"),
            }
            assert_eq!(id(&text, &file, Some(TWO)).as_deref(), Ok(TWO));
        }
        let error = id(&text, "-", None).unwrap_err();
        assert!(
            error.contains("signed") && error.contains("--uuid"),
            "{error}"
        );
    }

    #[test]
    fn what_is_signed_and_unprotected_headers_come_last() {
        let payload = format!(r#"{{"uuid":"{TWO}"}}"#);
        assert_eq!(id(&signed("{}", &payload), "x", None).as_deref(), Ok(TWO));
        assert_eq!(id(&signed("{}", &payload), ONE, None).as_deref(), Ok(ONE));
        let header = format!(
            r#"{{"payload":"","signatures":[{{"header":{{"uuid":"{ONE}"}},"signature":""}}]}}"#
        );
        assert_eq!(id(&header, "x", None).as_deref(), Ok(ONE));
        let unprotected =
            format!(r#"{{"unprotected":{{"uuid":"{ONE}"}},"ciphertext":"c","recipients":[]}}"#);
        assert_eq!(id(&unprotected, "x", None).as_deref(), Ok(ONE));
    }

    #[test]
    fn the_files_of_a_folder_are_known_by_their_endings() {
        for (name, is_one) in [
            ("a.json", true),
            ("a.vcon", true),
            ("a.vcon.json", true),
            ("a.JSON", true),
            ("a.txt", false),
            ("json", false),
            (".json", false),
            ("a.json.gz", false),
        ] {
            assert_eq!(is_named(Path::new(name)), is_one, "{name}");
        }
    }
}
