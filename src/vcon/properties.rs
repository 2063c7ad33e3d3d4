//! Property tests: promises that hold for every document, checked on random ones.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::json::Borrowed;
use super::{CreatedAt, Vcon, VconId, Version};

/// The texts of the example vCons.
fn examples() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/examples/vcons");
    let files = std::fs::read_dir(folder).unwrap();
    let texts: Vec<String> = files
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    assert!(!texts.is_empty());
    texts
}

fn parse(text: &str) -> Vcon {
    Vcon::parse(VconId::random(), text.to_owned()).unwrap()
}

fn canonical(text: &str) -> String {
    parse(text).to_json()
}

/// A document of the examples with a few of its bytes overwritten, doubled or dropped.
pub(super) fn damaged_example() -> impl Strategy<Value = Vec<u8>> {
    let edit = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        0..4usize,
        any::<u8>(),
    );
    let edits = prop::collection::vec(edit, 1..6);
    (prop::sample::select(examples()), edits).prop_map(|(text, edits)| {
        let mut bytes = text.into_bytes();
        for (first, second, kind, byte) in edits {
            let (at, other) = (first.index(bytes.len()), second.index(bytes.len()));
            let range = at..bytes.len().min(at + other % 40 + 1);
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] = br#"{}[]":,\0e"#[usize::from(byte) % 10],
                2 => {
                    let doubled = bytes[range].to_vec();
                    bytes.splice(other..other, doubled);
                }
                _ => drop(bytes.drain(range)),
            }
            if bytes.is_empty() {
                break;
            }
        }
        bytes
    })
}

/// All that is ever done with a document.
fn used(text: String) -> Option<String> {
    let mut vcon = Vcon::parse(VconId::random(), text).ok()?;
    vcon.outgoing(Version::V0_0_1);
    let _ = vcon.add_tags(&["a:a".to_owned()]);
    let _ = vcon.tags();
    let _ = vcon.dialog().map(Iterator::count);
    vcon.unknown_extensions();
    let outgoing = vcon.outgoing(Version::Current);
    outgoing.created_or_now();
    Some(outgoing.json.to_string())
}

/// The document without the `amended` that a downgrade adds as `null`.
fn without_null_amended(text: &str) -> String {
    text.replace(r#","amended":null"#, "")
}

/// Bodies that are JSON text become what it says, as after a downgrade.
fn bodies_as_values(document: &mut serde_json::Value) {
    for section in ["analysis", "attachments"] {
        let parts = document.get_mut(section).and_then(|it| it.as_array_mut());
        for part in parts.into_iter().flatten() {
            if part["encoding"] == "json"
                && let Some(text) = part["body"].as_str()
                && let Ok(value) = serde_json::from_str(text)
            {
                part["body"] = value;
            }
        }
    }
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        "-?(0|[1-9][0-9]{0,40})",
        "-?(0|[1-9][0-9]{0,5})\\.[0-9]{1,20}",
        "-?[1-9][0-9]{0,3}[eE][+-]?[0-9]{1,4}",
    ]
}

fn literal() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        r#""(a|\\ud800|\\u00e9|\\/|\\n|é|😀){0,6}""#,
    ]
}

fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        number(),
        literal(),
        Just("null".to_owned()),
        Just("true".to_owned()),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let member = (literal(), inner.clone()).prop_map(|(key, value)| format!("{key}: {value}"));
        prop_oneof![
            prop::collection::vec(inner, 0..4)
                .prop_map(|values| format!("[{}]", values.join(" ,"))),
            prop::collection::vec(member, 0..4)
                .prop_map(|members| format!("{{{}}}", members.join(","))),
        ]
    })
}

/// Members with the names that are looked at, and others, with values of every kind.
fn part() -> impl Strategy<Value = String> {
    let names = [
        "type",
        "purpose",
        "mimetype",
        "mediatype",
        "schema",
        "schema_version",
        "critical",
        "must_support",
        "body",
        "encoding",
        "x",
        "\\ud800",
    ];
    let body = value().prop_map(|value| serde_json::to_string(&value).unwrap());
    let value = prop_oneof![
        value(),
        Just(r#""json""#.to_owned()),
        Just(r#""tags""#.to_owned()),
        body
    ];
    let member = (prop::sample::select(names.to_vec()), value)
        .prop_map(|(name, value)| format!(r#""{name}":{value}"#));
    let object = prop::collection::vec(member, 0..6)
        .prop_map(|members| format!("{{{}}}", members.join(",")));
    prop_oneof![9 => object, 1 => number()]
}

pub(super) fn document() -> impl Strategy<Value = String> {
    let names = [
        "uuid",
        "created_at",
        "subject",
        "group",
        "redacted",
        "appended",
        "amended",
        "critical",
        "must_support",
        "x",
        "vcon",
    ];
    let member = (prop::sample::select(names.to_vec()), value())
        .prop_map(|(name, value)| format!(r#""{name}":{value}"#));
    let section = (
        prop::sample::select(vec!["dialog", "analysis", "attachments"]),
        prop::collection::vec(part(), 0..4),
    )
        .prop_map(|(name, parts)| format!(r#""{name}":[{}]"#, parts.join(",")));
    prop::collection::vec(prop_oneof![member, section], 0..10)
        .prop_map(|members| format!("{{{}}}", members.join(",")))
}

#[test]
fn examples_downgraded_and_read_again_are_the_same() {
    for text in examples() {
        let mut current: serde_json::Value = serde_json::from_str(&canonical(&text)).unwrap();
        bodies_as_values(&mut current);
        let old = parse(&text).outgoing(Version::V0_0_1).json;
        assert!(old.contains(r#""vcon":"0.0.1""#));
        assert!(!old.contains(r#""mediatype""#) && !old.contains(r#""amended""#));
        let again = without_null_amended(&canonical(&old));
        let again: serde_json::Value = serde_json::from_str(&again).unwrap();
        current
            .as_object_mut()
            .unwrap()
            .retain(|key, value| key != "amended" || !value.is_null());
        assert_eq!(again, current);
    }
}

#[test]
fn examples_have_an_id_a_date_and_a_canonical_form() {
    for text in examples() {
        let mut vcon = parse(&text);
        let outgoing = vcon.outgoing(Version::Current);
        assert!(outgoing.created_at.is_some(), "{text}");
        assert_eq!(canonical(&outgoing.json), *outgoing.json);
    }
}

#[test]
fn no_depth_is_too_deep() {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    for deep in [deep, objects] {
        for text in [
            format!(r#"{{"x":{deep},"vcon":"0.4.0"}}"#),
            format!(r#"{{"dialog":[{deep}],"vcon":"0.4.0"}}"#),
            format!(
                r#"{{"parties":[{deep}],"created_at":{deep},"subject":{deep},"group":{deep}}}"#
            ),
            format!(r#"{{"analysis":[{{"body":{deep}}}]}}"#),
            format!(r#"{{"attachments":[{{"purpose":"tags","body":[{deep}]}}]}}"#),
            deep.clone(),
        ] {
            if let Some(once) = used(text) {
                assert!(once.len() > deep.len());
                assert!(used(once).is_some());
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        used(String::from_utf8_lossy(&bytes).into_owned());
    }

    #[test]
    fn a_damaged_example_is_refused_or_settles_at_once(bytes in damaged_example()) {
        if let Some(once) = used(String::from_utf8_lossy(&bytes).into_owned()) {
            prop_assert_eq!(canonical(&once), once);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = Vcon::parse(VconId::random(), text.clone());
        let _ = CreatedAt::parse(&text);
    }

    #[test]
    fn no_damage_to_a_document_makes_it_panic(text in document(), at in any::<prop::sample::Index>(), with in any::<char>()) {
        let mut chars: Vec<char> = text.chars().collect();
        let index = at.index(chars.len());
        chars[index] = with;
        if let Ok(mut vcon) = Vcon::parse(VconId::random(), chars.into_iter().collect()) {
            let _ = vcon.add_tags(&["a".to_owned()]);
            vcon.outgoing(Version::V0_0_1);
        }
    }

    #[test]
    fn order_and_values_survive(members in prop::collection::vec(("[a-f]{1,3}", value()), 0..8)) {
        let text: Vec<String> = members.iter().map(|(key, value)| format!(r#""{key}" : {value}"#)).collect();
        let text = format!("{{{}}}", text.join(", "));
        let before: Vec<(String, String)> = Borrowed::read(&text).unwrap().0
            .into_iter().map(|(key, value)| (key.into_owned(), value.get().to_owned())).collect();
        let out = canonical(&text);
        let mut after: Vec<(String, String)> = Borrowed::read(&out).unwrap().0
            .into_iter().map(|(key, value)| (key.into_owned(), value.get().to_owned())).collect();
        prop_assert_eq!(after.pop().unwrap().0, "vcon");
        prop_assert_eq!(after, before);
    }

    #[test]
    fn normalising_twice_is_normalising_once(text in document()) {
        let once = canonical(&text);
        prop_assert_eq!(canonical(&once), once);
    }

    #[test]
    fn a_downgrade_is_json_and_settles_at_once(text in document()) {
        let old = parse(&text).outgoing(Version::V0_0_1).json;
        let again = parse(&old).outgoing(Version::V0_0_1).json;
        prop_assert_eq!(parse(&again).outgoing(Version::V0_0_1).json, again);
    }

    #[test]
    fn a_downgrade_read_again_is_the_same(
        purpose in "[a-z]{1,8}",
        number in number(),
        body in prop::collection::vec(value(), 0..4),
        encoding in prop::sample::select(vec!["json", "none", "base64url"]),
        plain in "[a-z ]{1,20}x",
    ) {
        let text = format!(
            r#"{{"critical":["c"],"amended":{{"n":{number}}},"n":{number},"dialog":[{{"mediatype":"a/b","body":"{plain}"}}],"analysis":[{{"body":[{}],"schema":"s","encoding":"none"}}],"attachments":[{{"purpose":"{purpose}","body":"{plain}","encoding":"{encoding}"}}]}}"#,
            body.join(",")
        );
        let current = canonical(&text);
        let old = parse(&text).outgoing(Version::V0_0_1).json;
        prop_assert_eq!(canonical(&old), current);
    }
}
