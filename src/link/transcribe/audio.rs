//! The audio of a dialog: where it is, what it is called, and its bytes.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha512};

use crate::http_client::Fetched;
use crate::vcon::Dialog;

/// Base64 as the body of a dialog has it where its `encoding` says so, or says nothing.
const BASE64: GeneralPurpose = engine(&alphabet::STANDARD, DecodePaddingMode::RequireCanonical);

/// The same for `base64url`, with or without padding.
const BASE64URL: GeneralPurpose = engine(&alphabet::URL_SAFE, DecodePaddingMode::Indifferent);

const fn engine(alphabet: &alphabet::Alphabet, padding: DecodePaddingMode) -> GeneralPurpose {
    // Bits that are left over at the end say nothing: some encoders do not clear them.
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(padding)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(alphabet, config)
}

/// What is sent where nobody knows what it is.
const UNKNOWN: &str = "application/octet-stream";

/// The most characters of a file name that are sent.
const LONGEST_NAME: usize = 80;

/// Media types of audio, each with the endings of file names that stand for it; the first is the usual one.
const TYPES: [(&str, &[&str]); 8] = [
    ("audio/wav", &["wav", "wave"]),
    ("audio/mpeg", &["mp3", "mpga", "mpeg"]),
    ("audio/flac", &["flac"]),
    ("audio/mp4", &["m4a"]),
    ("video/mp4", &["mp4"]),
    ("audio/ogg", &["ogg", "oga", "opus"]),
    ("audio/webm", &["webm"]),
    ("audio/aac", &["aac"]),
];

/// Other names of these types.
const ALIASES: [(&str, &str); 12] = [
    ("audio/mp3", "audio/mpeg"),
    ("audio/mpeg3", "audio/mpeg"),
    ("audio/x-mp3", "audio/mpeg"),
    ("audio/x-wav", "audio/wav"),
    ("audio/wave", "audio/wav"),
    ("audio/vnd.wave", "audio/wav"),
    ("audio/x-flac", "audio/flac"),
    ("audio/m4a", "audio/mp4"),
    ("audio/x-m4a", "audio/mp4"),
    ("audio/opus", "audio/ogg"),
    ("application/ogg", "audio/ogg"),
    ("video/webm", "audio/webm"),
];

/// Where the audio of a dialog is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// In the dialog's body: its bytes.
    Inline(Vec<u8>),
    /// Elsewhere.
    Url(String),
}

/// What a dialog says of its audio.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Label {
    media_type: Option<String>,
    file_name: Option<String>,
    /// The SHA-512 of what its URL leads to, in base64url, and the member that has it.
    hash: Option<(&'static str, String)>,
}

/// Audio as it is sent to a service.
#[derive(Debug)]
pub(super) struct Audio {
    pub(super) bytes: Vec<u8>,
    /// A media type that can stand in a header.
    pub(super) media_type: String,
    /// A name with an ending that tells the format, if anybody knows it.
    pub(super) file_name: String,
}

impl Source {
    /// The audio of a dialog: its body, or else what its URL leads to; in the other order where the service
    /// fetches URLs by itself; `None` if it has neither.
    ///
    /// # Errors
    /// The body is not what its encoding says.
    pub(super) fn of(dialog: &Dialog<'_>, prefers_urls: bool) -> Result<Option<Self>, String> {
        let is_given = |text: &String| !text.trim().is_empty();
        // A body may be the URL.
        let elsewhere = dialog.text("body_type").is_some_and(|it| it == "url");
        let url = dialog.text("url").filter(is_given);
        let url = url.or_else(|| dialog.text("body").filter(|_| elsewhere).filter(is_given));
        match (url, dialog.body()) {
            (Some(url), body) if prefers_urls || body.is_none() => Ok(Some(Self::Url(url))),
            (_, Some(body)) => {
                let encoding = dialog.text("encoding");
                let bytes = decoded(body, encoding.as_deref())?;
                Ok(Some(Self::Inline(bytes)))
            }
            (_, None) => Ok(None),
        }
    }
}

impl Label {
    pub(super) fn of(dialog: &Dialog<'_>) -> Self {
        let media_type = dialog.text("mediatype").or_else(|| dialog.text("mimetype"));
        Self {
            media_type: media_type.filter(|it| is_media_type(it)),
            file_name: dialog.text("filename"),
            hash: hash_of(dialog),
        }
    }

    /// Checks what the URL of the dialog led to against the hash in the dialog, if it has one.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn verify(&self, bytes: &[u8]) -> Result<(), String> {
        let Some((member, hash)) = &self.hash else {
            return Ok(());
        };
        let named = BASE64URL.decode(hash.trim());
        let is_same = named.is_ok_and(|named| named == Sha512::digest(bytes).as_slice());
        is_same.then_some(()).ok_or_else(|| {
            format!("what its URL leads to does not have the SHA-512 in its `{member}`")
        })
    }
}

/// The SHA-512 in `content_hash`, or in `signature` of the older form; others are not known here.
fn hash_of(dialog: &Dialog<'_>) -> Option<(&'static str, String)> {
    let hashes = dialog.get("content_hash").map(|it| it.get());
    let hashes: Value = serde_json::from_str(hashes.unwrap_or("null")).unwrap_or_default();
    let one = hashes.as_str();
    let several = hashes.as_array().into_iter().flatten();
    let mut hashes = one.into_iter().chain(several.filter_map(Value::as_str));
    if let Some(hash) = hashes.find_map(|hash| hash.strip_prefix("sha512-")) {
        return Some(("content_hash", hash.to_owned()));
    }
    let is_sha = dialog.text("alg").is_some_and(|alg| alg == "SHA-512");
    let signature = dialog.text("signature").filter(|_| is_sha)?;
    Some(("signature", signature))
}

impl Audio {
    /// Audio that stood in the dialog.
    pub(super) fn inline(bytes: Vec<u8>, label: &Label) -> Self {
        Self::new(bytes, label.media_type.clone(), label.file_name.clone())
    }

    /// Audio that was fetched from this URL. What the dialog says of it counts more than what its server says.
    pub(super) fn fetched(fetched: Fetched, url: &str, label: &Label) -> Self {
        let of_server = fetched.media_type.filter(|it| {
            let is_audio = ["audio/", "video/"].iter().any(|kind| it.starts_with(kind));
            is_audio && is_media_type(it)
        });
        let end = url.find(['?', '#']).unwrap_or(url.len());
        let last = url[..end].rsplit('/').next().map(str::to_owned);
        let file_name = label.file_name.clone().or(last);
        Self::new(
            fetched.bytes,
            label.media_type.clone().or(of_server),
            file_name,
        )
    }

    fn new(bytes: Vec<u8>, media_type: Option<String>, file_name: Option<String>) -> Self {
        let name = file_name.map(|name| sendable_name(&name));
        let name = name.filter(|name| !name.is_empty());
        let of_name = name.as_deref().and_then(type_of_name);
        let said = media_type.as_deref().and_then(known_type);
        let known = said.or(of_name).or_else(|| type_of_bytes(&bytes));
        let media_type = media_type.or_else(|| known.map(str::to_owned));
        let name = name.unwrap_or_else(|| "audio".to_owned());
        // A name with an ending that is known is left as it is.
        let file_name = match known {
            Some(known) if of_name.is_none() => format!("{name}.{}", ending_of(known)),
            _ => name,
        };
        Self {
            bytes,
            media_type: media_type.unwrap_or_else(|| UNKNOWN.to_owned()),
            file_name,
        }
    }
}

/// The bytes of a body.
///
/// # Errors
/// What is wrong with it.
fn decoded(body: &RawValue, encoding: Option<&str>) -> Result<Vec<u8>, String> {
    let (engine, name) = match encoding {
        Some("base64url") => (&BASE64URL, "base64url"),
        None | Some("base64") => (&BASE64, "base64"),
        Some("none") => return Err("its body is text (encoding none), not audio".to_owned()),
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            return Err(format!(
                "its body has the encoding {other:?}, not base64url"
            ));
        }
    };
    let json = body.get().as_bytes();
    let inside = match json {
        [b'"', inside @ .., b'"'] => inside,
        _ => return Err("its body is not text".to_owned()),
    };
    let wrong = |error| format!("its body is not {name}: {error}");
    // Nearly always: the text is decoded from where it stands, without a copy.
    if !inside
        .iter()
        .any(|byte| *byte == b'\\' || byte.is_ascii_whitespace())
        && inside.is_ascii()
    {
        return engine.decode(inside).map_err(wrong);
    }
    let mut text: String = serde_json::from_str(body.get()).map_err(|error| error.to_string())?;
    text.retain(|c| !c.is_whitespace());
    engine.decode(text).map_err(wrong)
}

/// Whether a text is a media type that can stand in a header: `type/subtype`, with parameters perhaps.
fn is_media_type(text: &str) -> bool {
    let is_token = |text: &str| {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$&-^_.+".contains(c);
        !text.is_empty() && text.chars().all(is_token)
    };
    let (essence, rest) = text.split_once(';').unwrap_or((text, ""));
    let is_sound = |c: char| matches!(c, ' '..='~');
    essence
        .trim()
        .split_once('/')
        .is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype))
        && rest.chars().all(is_sound)
}

/// The type of audio that a media type stands for.
fn known_type(media_type: &str) -> Option<&'static str> {
    let essence = media_type.split(';').next()?.trim().to_ascii_lowercase();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == essence);
    let essence = alias.map_or(&*essence, |(_, known)| known);
    let known = TYPES.iter().find(|(known, _)| *known == essence)?;
    Some(known.0)
}

/// The type of audio that the ending of a file name stands for.
fn type_of_name(name: &str) -> Option<&'static str> {
    let (_, ending) = name.rsplit_once('.')?;
    let ending = ending.to_ascii_lowercase();
    let known = TYPES
        .iter()
        .find(|(_, endings)| endings.contains(&&*ending))?;
    Some(known.0)
}

/// The type of audio that its first bytes tell.
fn type_of_bytes(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'A',
            b'V',
            b'E',
            ..,
        ] => Some("audio/wav"),
        [b'f', b'L', b'a', b'C', ..] => Some("audio/flac"),
        [b'O', b'g', b'g', b'S', ..] => Some("audio/ogg"),
        [b'I', b'D', b'3', ..] | [0xff, 0xf2 | 0xf3 | 0xfa | 0xfb, ..] => Some("audio/mpeg"),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some("audio/mp4"),
        [0x1a, 0x45, 0xdf, 0xa3, ..] => Some("audio/webm"),
        _ => None,
    }
}

fn ending_of(known: &str) -> &'static str {
    let row = TYPES.iter().find(|(name, _)| *name == known);
    row.and_then(|(_, endings)| endings.first().copied())
        .unwrap_or("bin")
}

/// A file name without folders and without characters that mean something to somebody; cut at its front, as
/// its end tells the format.
fn sendable_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain = |c: char| match c {
        c if c.is_alphanumeric() || "._-".contains(c) => c,
        _ => '_',
    };
    let plain: Vec<char> = last.trim().chars().map(plain).collect();
    let begin = plain.len().saturating_sub(LONGEST_NAME);
    plain[begin..].iter().collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::vcon::{Vcon, VconId};

    fn vcon(dialog: &Value) -> Vcon {
        let text = json!({"dialog": [dialog]}).to_string();
        Vcon::parse(VconId::random(), text).unwrap()
    }

    fn source(dialog: &Value, prefers_urls: bool) -> Result<Source, String> {
        let vcon = vcon(dialog);
        let dialog = vcon.dialog().unwrap().next().unwrap();
        let source = Source::of(&dialog, prefers_urls)?;
        source.ok_or_else(|| "neither".to_owned())
    }

    fn body(dialog: &Value) -> Result<Vec<u8>, String> {
        source(dialog, false).map(|source| match source {
            Source::Inline(bytes) => bytes,
            Source::Url(url) => unreachable!("{url}"),
        })
    }

    fn audio(media_type: Option<&str>, name: Option<&str>, bytes: &[u8]) -> (String, String) {
        let [media_type, name] = [media_type, name].map(|it| it.map(str::to_owned));
        let audio = Audio::new(bytes.to_vec(), media_type, name);
        (audio.media_type, audio.file_name)
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(bytes: Vec<u8>, breaks in 1..80_usize) {
            let broken = |text: &str| {
                let letters: Vec<char> = text.chars().collect();
                let lines: Vec<String> = letters.chunks(breaks).map(|it| it.iter().collect()).collect();
                lines.join("\r\n ")
            };
            prop_assume!(!bytes.is_empty());
            for (encoding, text) in [
                (json!("base64url"), URL_SAFE.encode(&bytes)),
                (json!("base64url"), URL_SAFE_NO_PAD.encode(&bytes)),
                (json!("base64"), STANDARD.encode(&bytes)),
                (Value::Null, STANDARD.encode(&bytes)),
            ] {
                for text in [broken(&text), text] {
                    let dialog = json!({"body": text, "encoding": encoding});
                    prop_assert_eq!(body(&dialog).unwrap(), bytes.clone());
                }
            }
        }

        #[test]
        fn no_text_is_taken_for_what_it_is_not(text in "[ -~]{1,40}") {
            let is_of = |more: &str| text.chars().all(|c| {
                c.is_ascii_alphanumeric() || c == '=' || c.is_whitespace() || more.contains(c)
            });
            for (encoding, more) in [("base64url", "-_"), ("base64", "+/")] {
                let decoded = body(&json!({"body": text, "encoding": encoding}));
                prop_assert!(decoded.is_err() || is_of(more), "{} {:?}", encoding, decoded);
            }
        }
    }

    #[test]
    fn a_body_that_is_not_what_its_encoding_says_is_told() {
        for (dialog, why) in [
            (
                json!({"body": "+/+/", "encoding": "base64url"}),
                "its body is not base64url: ",
            ),
            (
                json!({"body": "-_-_", "encoding": "base64"}),
                "its body is not base64: ",
            ),
            (json!({"body": "-_-_"}), "its body is not base64: "),
            (json!({"body": "YQ"}), "its body is not base64: "),
            (
                json!({"body": "YQ=", "encoding": "base64"}),
                "its body is not base64: ",
            ),
            (
                json!({"body": "Y", "encoding": "base64url"}),
                "its body is not base64url: ",
            ),
            (json!({"body": "Grüße"}), "its body is not base64: "),
            (
                json!({"body": "hello", "encoding": "none"}),
                "encoding none",
            ),
            (
                json!({"body": "hello", "encoding": "text"}),
                "encoding none",
            ),
            (
                json!({"body": "aa", "encoding": "hex"}),
                "the encoding \"hex\"",
            ),
            (
                json!({"body": {"a": 1}, "encoding": "base64"}),
                "its body is not text",
            ),
        ] {
            let error = source(&dialog, false).unwrap_err();
            assert!(error.contains(why), "{dialog}: {error}");
        }
    }

    #[test]
    fn escapes_of_json_in_base64_are_read() {
        let vcon = Vcon::parse(
            VconId::random(),
            r#"{"dialog":[{"body":"\/\/\/\/\u0041A==","encoding":"base64"}]}"#.to_owned(),
        );
        let vcon = vcon.unwrap();
        let dialog = vcon.dialog().unwrap().next().unwrap();
        let source = Source::of(&dialog, false).unwrap();
        assert_eq!(source, Some(Source::Inline(vec![0xff, 0xff, 0xff, 0])));
    }

    #[test]
    fn a_body_is_taken_before_a_url_unless_the_service_fetches() {
        let url = |text: &str| Source::Url(text.to_owned());
        let inline = Source::Inline(b"a".to_vec());
        let both = json!({"url": "https://h/x", "body": "YQ=="});
        let elsewhere = json!({"body": "https://h/y", "body_type": "url"});
        let of_url = json!({"url": "https://h/x", "body": ""});
        let of_body = json!({"body": "YQ=="});
        for (dialog, prefers_urls, expected) in [
            (&both, false, &inline),
            (&both, true, &url("https://h/x")),
            (&elsewhere, false, &url("https://h/y")),
            (&of_url, false, &url("https://h/x")),
            (&of_body, true, &inline),
        ] {
            assert_eq!(
                source(dialog, prefers_urls).as_ref(),
                Ok(expected),
                "{dialog}"
            );
        }
    }

    #[test]
    fn a_file_has_an_ending_that_tells_its_format() {
        let wav = b"RIFF____WAVEfmt ";
        for (media_type, name, bytes, expected) in [
            (
                Some("audio/mp3"),
                Some("a.mp3"),
                &b"x"[..],
                ("audio/mp3", "a.mp3"),
            ),
            (
                Some("audio/x-wav"),
                None,
                b"x",
                ("audio/x-wav", "audio.wav"),
            ),
            (
                Some("audio/mpeg; rate=8000"),
                Some("call"),
                b"x",
                ("audio/mpeg; rate=8000", "call.mp3"),
            ),
            (None, Some("a.FLAC"), b"x", ("audio/flac", "a.FLAC")),
            (None, None, wav, ("audio/wav", "audio.wav")),
            (None, None, b"OggS", ("audio/ogg", "audio.ogg")),
            (
                None,
                None,
                b"\0\0\0\x20ftypM4A ",
                ("audio/mp4", "audio.m4a"),
            ),
            (
                None,
                Some("x.bin"),
                b"?",
                ("application/octet-stream", "x.bin"),
            ),
            (
                Some("audio/basic"),
                Some("x.au"),
                b"?",
                ("audio/basic", "x.au"),
            ),
            (
                None,
                Some("../../e t c/Grüße \"1\"\r\n.wav"),
                b"x",
                ("audio/wav", "Grüße__1___.wav"),
            ),
        ] {
            let (media_type, name) = audio(media_type, name, bytes);
            assert_eq!((&*media_type, &*name), expected);
        }
        let long = format!("{}.wav", "x".repeat(500));
        let (_, name) = audio(None, Some(&long), b"x");
        assert!(
            name.ends_with(".wav") && name.len() == LONGEST_NAME,
            "{name}"
        );
    }

    #[test]
    fn what_a_url_leads_to_is_held_against_the_hash_in_the_dialog() {
        let hash = |bytes: &[u8]| URL_SAFE.encode(Sha512::digest(bytes));
        let bare = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(Sha512::digest(bytes));
        let (right, wrong) = (b"audio", b"other");
        for (dialog, member) in [
            (json!({}), None),
            (json!({"alg": "SHA-512", "signature": hash(right)}), None),
            (json!({"alg": "SHA-512", "signature": bare(right)}), None),
            (
                json!({"alg": "SHA-512", "signature": bare(wrong)}),
                Some("signature"),
            ),
            (
                json!({"alg": "SHA-512", "signature": "?"}),
                Some("signature"),
            ),
            (json!({"alg": "SHA-512"}), None),
            (json!({"alg": "other", "signature": bare(wrong)}), None),
            (
                json!({"content_hash": format!("sha512-{}", bare(right))}),
                None,
            ),
            (
                json!({"content_hash": format!("sha512-{}", bare(wrong))}),
                Some("content_hash"),
            ),
            (
                json!({"content_hash": ["sha256-x", format!("sha512-{}", bare(wrong))]}),
                Some("content_hash"),
            ),
            (json!({"content_hash": "sha256-x"}), None),
            (json!({"content_hash": 7}), None),
        ] {
            let vcon = vcon(&dialog);
            let label = Label::of(&vcon.dialog().unwrap().next().unwrap());
            let why = label.verify(right).err();
            let expected = member.map(|member| {
                format!("what its URL leads to does not have the SHA-512 in its `{member}`")
            });
            assert_eq!(why, expected, "{dialog}");
        }
    }

    #[test]
    fn what_the_dialog_says_counts_more_than_its_server() {
        let label = |dialog: &Value| {
            let vcon = vcon(dialog);
            let dialog = vcon.dialog().unwrap().next().unwrap();
            Label::of(&dialog)
        };
        let fetched = |dialog: &Value, media_type: &str| {
            let of_server = Fetched {
                bytes: b"x".to_vec(),
                media_type: Some(media_type.to_owned()),
            };
            let audio = Audio::fetched(of_server, "https://h/a/call.ogg?x=y.mp3", &label(dialog));
            (audio.media_type, audio.file_name)
        };
        for (dialog, of_server, expected) in [
            (json!({}), "audio/ogg", ("audio/ogg", "call.ogg")),
            (json!({}), "text/html", ("audio/ogg", "call.ogg")),
            (
                json!({"mimetype": "audio/flac"}),
                "audio/ogg",
                ("audio/flac", "call.ogg"),
            ),
            (
                json!({"mediatype": "audio/x-wav", "filename": "b.wav"}),
                "audio/ogg",
                ("audio/x-wav", "b.wav"),
            ),
            (
                json!({"mediatype": "x\r\nX-Evil: 1/2"}),
                "audio/ogg",
                ("audio/ogg", "call.ogg"),
            ),
        ] {
            let (media_type, name) = fetched(&dialog, of_server);
            assert_eq!((&*media_type, &*name), expected, "{dialog}");
        }
    }
}
