//! The audio of a dialog: where it is, what it is called, and its bytes.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::value::RawValue;

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
    /// fetches URLs by itself.
    ///
    /// # Errors
    /// There is none, or the body is not what its encoding says.
    pub(super) fn of(dialog: &Dialog<'_>, prefers_urls: bool) -> Result<Self, String> {
        let is_given = |text: &String| !text.trim().is_empty();
        // A body may be the URL.
        let elsewhere = dialog.text("body_type").is_some_and(|it| it == "url");
        let url = dialog.text("url").filter(is_given);
        let url = url.or_else(|| dialog.text("body").filter(|_| elsewhere).filter(is_given));
        match (url, dialog.body()) {
            (Some(url), body) if prefers_urls || body.is_none() => Ok(Self::Url(url)),
            (_, Some(body)) => {
                let encoding = dialog.text("encoding");
                decoded(body, encoding.as_deref()).map(Self::Inline)
            }
            (_, None) => Err("it has neither a body nor a URL".to_owned()),
        }
    }
}

impl Label {
    pub(super) fn of(dialog: &Dialog<'_>) -> Self {
        let media_type = dialog.text("mediatype").or_else(|| dialog.text("mimetype"));
        Self {
            media_type: media_type.filter(|it| is_media_type(it)),
            file_name: dialog.text("filename"),
        }
    }
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
