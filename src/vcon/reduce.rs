//! Taking things out of a document.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::document::{Member, Part, Section, parts_to_change};
use super::json::{self, Object};
use super::parts::is_kept_elsewhere;
use super::{Vcon, VconError};

impl Vcon {
    /// Empties the bodies of all dialogs; those that are kept elsewhere, by the dialog's index, get
    /// the URL instead.
    ///
    /// # Errors
    /// It is sealed, or its dialogs are no list.
    pub fn replace_dialog_bodies(&mut self, kept: &[(usize, String)]) -> Result<(), VconError> {
        self.check_open()?;
        let mut changed = false;
        let parts = parts_to_change(&mut self.members, Section::Dialog)?;
        for (index, part) in parts.into_iter().flatten().enumerate() {
            let Some(dialog) = part.open() else { continue };
            let url = kept.iter().find(|(kept, _)| *kept == index);
            let url = url.map(|(_, url)| url.as_str());
            let elsewhere = is_kept_elsewhere(dialog);
            match (dialog.get_mut("body"), url) {
                (Some(body), Some(url)) => {
                    *body = json::string(url);
                    dialog.insert("body_type".to_owned(), json::string("url"));
                    changed = true;
                }
                (Some(body), None) if !elsewhere && body.get() != "\"\"" => {
                    *body = json::string("");
                    changed = true;
                }
                _ => {}
            }
            part.close(Section::Dialog);
        }
        self.changed |= changed;
        Ok(())
    }

    /// Removes all of `analysis`.
    ///
    /// # Errors
    /// It is sealed.
    pub fn remove_analysis(&mut self) -> Result<(), VconError> {
        self.check_open()?;
        let removed = self.members.shift_remove(Section::Analysis.name());
        self.changed |= removed.is_some();
        Ok(())
    }

    /// Removes the attachments of these media types.
    ///
    /// # Errors
    /// It is sealed, or its attachments are no list.
    pub fn remove_attachments(&mut self, types: &[String]) -> Result<(), VconError> {
        self.check_open()?;
        self.changed |= remove_attachments(&mut self.members, types)?;
        Ok(())
    }

    /// Removes a key wherever it stands, at any level and in bodies that are the text of JSON.
    ///
    /// # Errors
    /// It is sealed.
    pub fn remove_key(&mut self, key: &str) -> Result<(), VconError> {
        self.check_open()?;
        self.changed |= remove_key(&mut self.members, key);
        Ok(())
    }
}

/// Whether arrays and objects are nested deeper than this many levels.
pub fn nests_deeper_than(text: &str, levels: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > levels {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Removes the attachments of these media types; answers whether there were any.
fn remove_attachments(
    members: &mut IndexMap<String, Member>,
    types: &[String],
) -> Result<bool, VconError> {
    let Some(parts) = parts_to_change(members, Section::Attachments)? else {
        return Ok(false);
    };
    let before = parts.len();
    parts.retain(|part| {
        let Some(object) = part.object() else {
            return true;
        };
        !["mediatype", "mime_type"].iter().any(|key| {
            let media_type = object.get(*key).and_then(|value| json::text(value));
            let is_it = |found: String| types.iter().any(|it| it.eq_ignore_ascii_case(&found));
            media_type.is_some_and(is_it)
        })
    });
    Ok(parts.len() < before)
}

/// Removes a key at every level, also in bodies that are JSON text. Returns whether it found the key.
pub(super) fn remove_key(members: &mut IndexMap<String, Member>, key: &str) -> bool {
    let mut removed = members.shift_remove(key).is_some();
    for member in members.values_mut() {
        match member {
            Member::Raw(value) => removed |= replace(value, key),
            Member::Parts(section, parts) => {
                for part in parts {
                    removed |= match part {
                        Part::Other(value) => replace(value, key),
                        _ => part.open().is_some_and(|it| remove_from_part(it, key)),
                    };
                    part.close(*section);
                }
            }
        }
    }
    removed
}

fn remove_from_part(part: &mut Object, key: &str) -> bool {
    let mut removed = part.shift_remove(key).is_some();
    let is_json = part
        .get("encoding")
        .is_some_and(|it| json::says(it, "json"));
    for (name, value) in part.iter_mut() {
        removed |=
            match json::text(value).filter(|text| is_json && name == "body" && is_valid(text)) {
                Some(text) => match without(&text, key) {
                    Some(text) => {
                        *value = json::string(&text);
                        true
                    }
                    None => false,
                },
                None => replace(value, key),
            };
    }
    removed
}

fn is_valid(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

fn replace(value: &mut Box<RawValue>, key: &str) -> bool {
    let Some(text) = without(value.get(), key) else {
        return false;
    };
    match RawValue::from_string(text) {
        Ok(reduced) => {
            *value = reduced;
            true
        }
        // What was written from JSON is JSON.
        Err(_) => false,
    }
}

/// A JSON text without the members of that name, at any depth; `None` where it has none.
fn without(text: &str, name: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = String::new();
    let mut open = Vec::new();
    let (mut at, mut copied, mut key_comes, mut found) = (0, 0, false, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => {
                open.push(*byte);
                key_comes = *byte == b'{';
            }
            b'}' | b']' => {
                open.pop();
                key_comes = false;
            }
            b',' => key_comes = open.last() == Some(&b'{'),
            b'"' => {
                let end = string_end(bytes, at);
                if key_comes && is_key(&text[at..end], name) {
                    found = true;
                    out.push_str(&text[copied..at]);
                    at = value_end(bytes, end);
                    if bytes.get(at) == Some(&b',') {
                        at += 1;
                    } else if let Some(before) = out.trim_ascii_end().strip_suffix(',') {
                        // The last member takes along the comma before it.
                        out.truncate(before.len());
                    }
                    copied = at;
                } else {
                    key_comes = false;
                    at = end;
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found.then(|| out + &text[copied..])
}

/// Where the string literal ends that begins at `at`.
pub(super) fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Where the member ends whose key ends at `at`: at its comma, or at the end of its object.
fn value_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b',' | b'}' if depth == 0 => return at,
            b'"' => {
                at = string_end(bytes, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

fn is_key(literal: &str, name: &str) -> bool {
    literal.get(1..literal.len() - 1) == Some(name)
        || literal.contains('\\')
            && serde_json::from_str(literal).is_ok_and(|text: String| text == name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_out_at_every_level_and_the_rest_stays_as_it_was() {
        for (text, rest) in [
            (r#"{"k":1}"#, "{}"),
            (r#"{"a":1.0,"k":{"x":[1]},"b":1E5}"#, r#"{"a":1.0,"b":1E5}"#),
            (
                r#"{"a":[{"k":1,"z":"k"},[{"\u006b":2}],3]}"#,
                r#"{"a":[{"z":"k"},[{}],3]}"#,
            ),
            (r#"{ "k" : 1 , "a":2}"#, r#"{  "a":2}"#),
            (r#"{"a":2 , "k":{"k":[1,"}",{"b":"]\""}]} }"#, r#"{"a":2 }"#),
            (r#"{"a":1,"k":2,"b":3,"k":4}"#, r#"{"a":1,"b":3}"#),
            (r#"{"k":1,"k":2,"k":3}"#, "{}"),
            (r#"[["k",{"k":"k"}],{"y":"k"}]"#, r#"[["k",{}],{"y":"k"}]"#),
            (
                r#"{"a":[1,{"é":"k","k":null}],"k":-1.50e3}"#,
                r#"{"a":[1,{"é":"k"}]}"#,
            ),
        ] {
            assert_eq!(without(text, "k").as_deref(), Some(rest), "{text}");
        }
        for text in [
            r#"{"a":"k","K":1,"kk":2,"\\k":3}"#,
            r#"["k","k"]"#,
            "\"k\"",
            "7",
            "not JSON",
            "",
        ] {
            assert_eq!(without(text, "k"), None, "{text}");
        }
    }

    #[test]
    fn a_body_that_is_kept_elsewhere_stays_and_is_none_to_keep() {
        let text = r#"{"dialog":[{"id":"a","body":"x"},{"body":"http://h/1","body_type":"url"},
            {"body":"y","body_type":"urn"},{"body":"","body_type":"none"},{"body":"z"}]}"#;
        let mut vcon = Vcon::read(crate::vcon::VconId::random(), text).unwrap();
        let dialogs = vcon.dialog().unwrap();
        let found: Vec<_> = dialogs
            .filter_map(|it| Some((it.index, it.body()?.get().to_owned())))
            .collect();
        let expected = [(0, "\"x\""), (2, "\"y\""), (4, "\"z\"")];
        assert_eq!(
            found,
            expected.map(|(index, body)| (index, body.to_owned()))
        );
        vcon.replace_dialog_bodies(&[(4, "http://h/2".to_owned())])
            .unwrap();
        let json: serde_json::Value = serde_json::from_str(&vcon.to_json()).unwrap();
        let bodies = [0, 1, 2, 3, 4].map(|place: usize| {
            let dialog = &json["dialog"][place];
            (dialog["body"].as_str(), dialog["body_type"].as_str())
        });
        let expected = [
            (Some(""), None),
            (Some("http://h/1"), Some("url")),
            (Some(""), Some("urn")),
            (Some(""), Some("none")),
            (Some("http://h/2"), Some("url")),
        ];
        assert_eq!(bodies, expected);
        assert!(vcon.is_changed());
    }

    #[test]
    fn a_body_goes_to_its_own_dialog_whatever_stands_among_them() {
        let text = r#"{"dialog":[null,{"body":"a"},7,{"body":"b"}]}"#;
        let mut vcon = Vcon::read(crate::vcon::VconId::random(), text).unwrap();
        let dialogs = vcon.dialog().unwrap();
        let kept: Vec<_> = dialogs
            .filter_map(|it| Some((it.index, format!("http://h/{}", it.text("body")?))))
            .collect();
        vcon.replace_dialog_bodies(&kept).unwrap();
        let json: serde_json::Value = serde_json::from_str(&vcon.to_json()).unwrap();
        let dialogs = json["dialog"].as_array().unwrap();
        let bodies: Vec<_> = dialogs
            .iter()
            .filter_map(|it| it["body"].as_str())
            .collect();
        assert_eq!(bodies, ["http://h/a", "http://h/b"]);
    }

    #[test]
    fn what_is_no_json_does_not_break_the_search() {
        for text in [
            "{\"k",
            "{\"k\\",
            "{\"k\":",
            "{\"k\":\"",
            "{\"k\":[",
            "}]\"k\":1",
            "{\"é\\é\":1,\"k\"",
            "{\"",
        ] {
            let _ = without(text, "k");
        }
    }

    #[test]
    fn depth_is_counted_outside_of_strings() {
        for (text, depth) in [
            ("1", 0),
            ("[]", 1),
            (r#"{"a":[[1],{"b":2}]}"#, 3),
            (r#"["[[[[\"[[["]"#, 1),
            (r#"["\\",[1]]"#, 2),
        ] {
            assert!(
                nests_deeper_than(text, depth.max(1) - 1) || depth == 0,
                "{text}"
            );
            assert!(!nests_deeper_than(text, depth), "{text}");
        }
    }

    #[test]
    fn no_depth_is_too_much() {
        let around =
            |text: &str| format!("{}{text}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(without(&around(r#"{"k":[]}"#), "k"), Some(around("{}")));
        assert!(nests_deeper_than(&around(""), 999_999));
        assert!(!nests_deeper_than(&around(""), 1_000_000));
    }
}
