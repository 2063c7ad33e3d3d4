//! Tags: the JSON array in the body of the one attachment whose purpose is `tags`.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::VconError;
use super::document::{Member, Part, Section};
use super::json::{self, Borrowed, Object};

/// Adds `"t:t"` for each tag `t` that is not there yet; answers whether any was added.
pub(super) fn add(
    members: &mut IndexMap<String, Member>,
    tags: &[String],
) -> Result<bool, VconError> {
    let found = attachment(members);
    let mut entries = match found.as_deref().and_then(|found| found.get("body")) {
        Some(body) => entries(body)?,
        None => Vec::new(),
    };
    let mut known: Vec<String> = entries
        .iter()
        .filter_map(|entry| json::text(entry))
        .collect();
    let before = entries.len();
    for tag in tags {
        let entry = format!("{tag}:{tag}");
        if !known.contains(&entry) {
            entries.push(json::string(&entry));
            known.push(entry);
        }
    }
    if entries.len() == before {
        return Ok(false);
    }

    match found {
        Some(found) => set_entries(found, &entries),
        None => append(members, &entries),
    }
    Ok(true)
}

/// Makes these the tags of an attachment.
pub(super) fn set_entries(attachment: &mut Object, entries: &[Box<RawValue>]) {
    let list: Vec<&str> = entries.iter().map(|entry| entry.get()).collect();
    let body = json::string(&format!("[{}]", list.join(",")));
    attachment.insert("body".to_owned(), body);
    attachment.insert("encoding".to_owned(), json::string("json"));
}

/// The names of the tags there are, from every attachment whose purpose is `tags`: an array of
/// `"name:value"`, or an object with the names as its keys.
pub(super) fn names(members: &IndexMap<String, Member>) -> Vec<String> {
    let Some(Member::Parts(_, parts)) = members.get(Section::Attachments.name()) else {
        return Vec::new();
    };
    let bodies = parts.iter().filter_map(|part| match part {
        Part::Object(part) if is_tags(part) => part.get("body"),
        _ => None,
    });
    bodies.flat_map(|body| names_in(body)).collect()
}

fn names_in(body: &RawValue) -> Vec<String> {
    let text = json::text(body);
    let text = text.as_deref().unwrap_or(body.get());
    if let Ok(object) = Borrowed::read(text) {
        return object.0.into_keys().collect();
    }
    let entries = json::elements(text).unwrap_or_default();
    let name = |entry: &RawValue| Some(json::text(entry)?.split_once(':')?.0.to_owned());
    entries
        .into_iter()
        .filter_map(name)
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether an attachment is one of tags.
pub(super) fn is_tags(part: &Object) -> bool {
    part.get("purpose").and_then(|p| json::text(p)).as_deref() == Some("tags")
}

/// The first attachment whose purpose is `tags`.
fn attachment(members: &mut IndexMap<String, Member>) -> Option<&mut Object> {
    let Some(Member::Parts(_, parts)) = members.get_mut(Section::Attachments.name()) else {
        return None;
    };
    parts.iter_mut().find_map(|part| match part {
        Part::Object(part) if is_tags(part) => Some(part),
        _ => None,
    })
}

/// The tags in a body, which is an array or, when it was written before, the text of one.
pub(super) fn entries(body: &RawValue) -> Result<Vec<Box<RawValue>>, VconError> {
    if body.get() == "null" {
        return Ok(Vec::new());
    }
    let text = json::text(body);
    let entries = json::elements(text.as_deref().unwrap_or(body.get()));
    let entries = entries.ok_or(VconError::TagsNotAnArray)?;
    Ok(entries.into_iter().map(ToOwned::to_owned).collect())
}

fn append(members: &mut IndexMap<String, Member>, entries: &[Box<RawValue>]) {
    let mut attachment = Object::from_iter([("purpose".to_owned(), json::string("tags"))]);
    set_entries(&mut attachment, entries);
    let attachments = members
        .entry(Section::Attachments.name().to_owned())
        .or_insert_with(|| Member::Parts(Section::Attachments, Vec::new()));
    if let Member::Parts(_, parts) = attachments {
        parts.push(Part::Object(attachment));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use crate::vcon::{Vcon, VconId};

    fn parse(text: &str) -> Vcon {
        Vcon::parse(VconId::random(), text.to_owned()).unwrap()
    }

    fn tags(tags: &[&str]) -> Vec<String> {
        tags.iter().map(|&tag| tag.to_owned()).collect()
    }

    #[test]
    fn the_attachment_is_made_where_there_is_none() {
        for text in [
            r#"{"vcon":"0.4.0"}"#,
            r#"{"vcon":"0.4.0","attachments":[]}"#,
        ] {
            let mut vcon = parse(text);
            vcon.add_tags(&tags(&["a", "b\"", "a"])).unwrap();
            assert!(vcon.is_changed());
            assert_eq!(
                vcon.to_json(),
                r#"{"vcon":"0.4.0","attachments":[{"purpose":"tags","body":"[\"a:a\",\"b\\\":b\\\"\"]","encoding":"json"}]}"#
            );
        }
    }

    #[test]
    fn the_attachment_that_is_there_is_used_in_each_of_its_forms() {
        for attachment in [
            r#"{"purpose":"tags","body":"[\"x:y\", 1.0]","encoding":"json"}"#,
            r#"{"type":"tags","body":["x:y", 1.0],"encoding":"none"}"#,
        ] {
            let mut vcon = parse(&format!(
                r#"{{"vcon":"0.4.0","attachments":[{{"purpose":"note"}},{attachment}]}}"#
            ));
            vcon.add_tags(&tags(&["a"])).unwrap();
            assert_eq!(
                vcon.to_json(),
                r#"{"vcon":"0.4.0","attachments":[{"purpose":"note"},{"purpose":"tags","body":"[\"x:y\",1.0,\"a:a\"]","encoding":"json"}]}"#
            );
        }
    }

    #[test]
    fn an_attachment_without_a_body_gets_one() {
        for attachment in [r#"{"purpose":"tags"}"#, r#"{"purpose":"tags","body":null}"#] {
            let mut vcon = parse(&format!(
                r#"{{"vcon":"0.4.0","attachments":[{attachment}]}}"#
            ));
            vcon.add_tags(&tags(&["a"])).unwrap();
            assert_eq!(
                vcon.to_json(),
                r#"{"vcon":"0.4.0","attachments":[{"purpose":"tags","body":"[\"a:a\"]","encoding":"json"}]}"#
            );
        }
    }

    #[test]
    fn tags_that_are_there_change_nothing() {
        let text = r#"{"vcon":"0.4.0","attachments":[{"purpose":"tags","body":"[ \"\u0061:a\" ]","encoding":"json"}]}"#;
        let mut vcon = parse(text);
        vcon.add_tags(&tags(&["a"])).unwrap();
        vcon.add_tags(&[]).unwrap();
        assert!(!vcon.is_changed());
        assert_eq!(vcon.to_json(), text);
    }

    #[test]
    fn a_body_that_is_no_array_is_an_error_and_stays() {
        for body in [r#""hello""#, r#"{"a":1}"#, "7", r#""\ud800""#, r#""""#] {
            let mut vcon = parse(&format!(
                r#"{{"attachments":[{{"purpose":"tags","body":{body}}}]}}"#
            ));
            let error = vcon.add_tags(&tags(&["a"])).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the body of the `tags` attachment is not a JSON array"
            );
            assert!(!vcon.is_changed());
        }
    }
}
