//! Taking things out of a document.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::Vcon;
use super::document::{Member, Part, Section, write};
use super::json::{self, Borrowed, Object, ObjectWriter};

/// The body of one dialog.
#[derive(Debug, Clone)]
pub struct DialogBody<'a> {
    /// The dialog's place among the objects of `dialog`, from 0.
    pub place: usize,
    /// The body, as JSON.
    pub content: &'a RawValue,
    /// The dialog's `id`; empty where it has none.
    pub dialog_id: String,
}

impl<'a> DialogBody<'a> {
    fn of(place: usize, dialog: &'a Object) -> Option<Self> {
        let content = dialog.get("body")?;
        let is_empty = matches!(content.get(), "\"\"" | "null");
        (!is_empty && !is_kept_elsewhere(dialog)).then(|| Self {
            place,
            content,
            dialog_id: dialog
                .get("id")
                .and_then(|id| json::text(id))
                .unwrap_or_default(),
        })
    }
}

/// Whether a dialog's body is the URL of it.
fn is_kept_elsewhere(dialog: &Object) -> bool {
    let body_type = dialog.get("body_type").and_then(|value| json::text(value));
    body_type.as_deref() == Some("url")
}

impl Vcon {
    /// The bodies of its dialogs that hold something, and not only where it is.
    pub fn dialog_bodies(&self) -> Vec<DialogBody<'_>> {
        let Some(Member::Parts(_, parts)) = self.members.get(Section::Dialog.name()) else {
            return Vec::new();
        };
        let objects = parts.iter().filter_map(|part| match part {
            Part::Object(object) => Some(object),
            Part::Other(_) => None,
        });
        objects
            .enumerate()
            .filter_map(|(place, object)| DialogBody::of(place, object))
            .collect()
    }

    /// Empties the bodies of all dialogs; those that are kept elsewhere, by the dialog's place, get
    /// the URL instead.
    pub fn replace_dialog_bodies(&mut self, kept: &[(usize, Option<String>)]) {
        let mut changed = false;
        let dialogs = objects(&mut self.members, Section::Dialog);
        for (place, dialog) in dialogs.enumerate() {
            let url = kept.iter().find(|(kept, _)| *kept == place);
            let url = url.and_then(|(_, url)| url.as_deref());
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
        }
        self.changed |= changed;
    }

    /// Removes all of `analysis`.
    pub fn remove_analysis(&mut self) {
        let removed = self.members.shift_remove(Section::Analysis.name());
        self.changed |= removed.is_some();
    }

    /// Removes the attachments of these media types.
    pub fn remove_attachments(&mut self, types: &[String]) {
        self.changed |= remove_attachments(&mut self.members, types);
    }

    /// Removes a key wherever it stands, at any level that a document of a conversation has.
    pub fn remove_key(&mut self, key: &str) {
        self.changed |= remove_key(&mut self.members, key);
    }

    /// Whether arrays and objects stand within each other more than so many times.
    pub fn nests_deeper_than(&self, levels: usize) -> bool {
        nests_deeper_than(&write(&self.members), levels)
    }
}

/// The deepest level at which a key is looked for: no document of a conversation has so many, and
/// the search takes a part of the stack for each.
pub(super) const DEEPEST: usize = 500;

/// Whether arrays and objects stand within each other more than so many times.
pub(super) fn nests_deeper_than(text: &str, levels: usize) -> bool {
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

/// The objects of a section.
pub(super) fn objects(
    members: &mut IndexMap<String, Member>,
    section: Section,
) -> impl Iterator<Item = &mut Object> {
    let parts = match members.get_mut(section.name()) {
        Some(Member::Parts(_, parts)) => &mut parts[..],
        _ => &mut [],
    };
    parts.iter_mut().filter_map(|part| match part {
        Part::Object(object) => Some(object),
        Part::Other(_) => None,
    })
}

/// Removes the attachments of these media types; answers whether there were any.
pub(super) fn remove_attachments(members: &mut IndexMap<String, Member>, types: &[String]) -> bool {
    let Some(Member::Parts(_, parts)) = members.get_mut(Section::Attachments.name()) else {
        return false;
    };
    let before = parts.len();
    parts.retain(|part| match part {
        Part::Object(object) => !["mediatype", "mime_type"].iter().any(|key| {
            let media_type = object.get(*key).and_then(|value| json::text(value));
            media_type.is_some_and(|media_type| types.contains(&media_type))
        }),
        Part::Other(_) => true,
    });
    parts.len() < before
}

/// Removes a key wherever it stands, also in bodies that are the text of JSON; answers whether it
/// stood anywhere.
pub(super) fn remove_key(members: &mut IndexMap<String, Member>, key: &str) -> bool {
    let mut removed = members.shift_remove(key).is_some();
    for member in members.values_mut() {
        match member {
            Member::Raw(value) => removed |= replace(value, key),
            Member::Parts(_, parts) => {
                for part in parts {
                    removed |= match part {
                        Part::Object(object) => remove_from_part(object, key),
                        Part::Other(value) => replace(value, key),
                    };
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
        .and_then(|value| json::text(value))
        .as_deref()
        == Some("json");
    for (name, value) in part.iter_mut() {
        removed |= match json::text(value).filter(|_| is_json && name == "body") {
            Some(text) => match without(&text, key, 0) {
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

fn replace(value: &mut Box<RawValue>, key: &str) -> bool {
    let Some(text) = without(value.get(), key, 0) else {
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

/// A JSON text without the key, where it has it anywhere; `None` where it does not, or is no JSON.
fn without(text: &str, key: &str, depth: usize) -> Option<String> {
    if depth > DEEPEST {
        return None;
    }
    let start = text.trim_ascii_start();
    if start.starts_with('{') {
        let mut object = Borrowed::read(text).ok()?.0;
        let mut changed = object.shift_remove(key).is_some();
        let mut out = String::with_capacity(text.len());
        let mut writer = ObjectWriter::begin(&mut out);
        for (name, value) in &object {
            let reduced = without(value.get(), key, depth + 1);
            changed |= reduced.is_some();
            writer
                .key(name)
                .push_str(reduced.as_deref().unwrap_or(value.get()));
        }
        writer.end();
        changed.then_some(out)
    } else if start.starts_with('[') {
        let elements = json::elements(text)?;
        let mut changed = false;
        let mut parts = Vec::with_capacity(elements.len());
        for element in &elements {
            let reduced = without(element.get(), key, depth + 1);
            changed |= reduced.is_some();
            parts.push(reduced.unwrap_or_else(|| element.get().to_owned()));
        }
        changed.then(|| format!("[{}]", parts.join(",")))
    } else {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_out_at_every_level_and_the_rest_stays_as_it_was() {
        for (text, expected) in [
            (r#"{"k":1}"#, Some("{}")),
            (
                r#"{"a":1.0,"k":{"x":[1]},"b":1E5}"#,
                Some(r#"{"a":1.0,"b":1E5}"#),
            ),
            (
                r#"{"a":[{"k":1,"z":"k"},[{"\u006b":2}],3]}"#,
                Some(r#"{"a":[{"z":"k"},[{}],3]}"#),
            ),
            (r#"{"a":"k","K":1}"#, None),
            ("[1,2]", None),
            ("\"k\"", None),
            ("not JSON", None),
        ] {
            assert_eq!(without(text, "k", 0).as_deref(), expected, "{text}");
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
        let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(without(&deep, "k", 0), None);
        assert!(nests_deeper_than(&deep, DEEPEST));
    }
}
