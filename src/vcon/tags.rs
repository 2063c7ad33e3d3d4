//! Tags: a list of `name:value` in the body of the attachment whose purpose, or older `type`, is
//! `tags`.
//!
//! The body may be a list, an object of names and values, the JSON text of either, or one tag as bare
//! text. Written is the JSON text of a list.

use std::borrow::Cow;
use std::collections::HashSet;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::document::{Member, Part, Section, parts_of, parts_to_change};
use super::json::{self, Borrowed, Object};
use super::{Vcon, VconError, parts};

/// Adds each tag, as `name:value`, that is not there yet; returns whether any was added.
pub(super) fn add(
    members: &mut IndexMap<String, Member>,
    tags: &[String],
) -> Result<bool, VconError> {
    let found = attachment(members)?;
    let mut all = match found.as_deref() {
        Some(found) => entries_of(found)?,
        None => Vec::new(),
    };
    let mut known: HashSet<String> = all.iter().filter_map(|entry| json::text(entry)).collect();
    let before = all.len();
    for tag in tags {
        if known.insert(tag.clone()) {
            all.push(json::string(tag));
        }
    }
    if all.len() == before {
        return Ok(false);
    }

    match found {
        Some(found) => set_entries(found, &all),
        None => {
            let mut attachment = Object::new();
            attachment.insert("purpose".to_owned(), json::string("tags"));
            set_entries(&mut attachment, &all);
            parts::add(members, Section::Attachments, attachment)?;
        }
    }
    Ok(true)
}

impl Vcon {
    /// Checks that tags could be added, for whoever pays for them first.
    ///
    /// # Errors
    /// Those of [`Vcon::add_tags`].
    pub fn check_taggable(&self) -> Result<(), VconError> {
        self.check_open()?;
        let attachments = parts_of(&self.members, Section::Attachments)?;
        let mut attachments = attachments.iter().filter_map(Part::object);
        match attachments.find(|attachment| is_tags(attachment)) {
            Some(found) => entries_of(&found).map(drop),
            None => Ok(()),
        }
    }
}

/// Makes these the tags of an attachment.
pub(super) fn set_entries(attachment: &mut Object, entries: &[Box<RawValue>]) {
    let list: Vec<&str> = entries.iter().map(|entry| entry.get()).collect();
    let body = json::string(&format!("[{}]", list.join(",")));
    attachment.insert("body".to_owned(), body);
    attachment.insert("encoding".to_owned(), json::string("json"));
}

/// The tags there are, each with its name and value, from every attachment of tags. What has no colon
/// or no name is none.
pub(super) fn pairs(
    members: &IndexMap<String, Member>,
) -> Result<Vec<(String, String)>, VconError> {
    let mut pairs = Vec::new();
    for part in parts_of(members, Section::Attachments)? {
        if let Some(attachment) = part.object()
            && is_tags(&attachment)
            // A body in another encoding holds none.
            && let Ok(Some(content)) = content(&attachment)
        {
            match Borrowed::read(content.get()) {
                Ok(object) => pairs.extend(object.0.into_iter().map(named)),
                Err(_) => pairs.extend(entries(&content).iter().filter_map(|tag| pair(tag))),
            }
        }
    }
    pairs.retain(|(name, _)| !name.is_empty());
    Ok(pairs)
}

/// The name and the value of a tag, if it is one.
fn pair(entry: &RawValue) -> Option<(String, String)> {
    let tag = json::text(entry)?;
    let (name, value) = tag.split_once(':')?;
    Some((name.to_owned(), value.to_owned()))
}

/// A member of an object of tags: its key is a name, whatever stands in it.
fn named((key, value): (Cow<'_, str>, &RawValue)) -> (String, String) {
    (json::unescaped(&key), json::shown(value))
}

/// Whether an attachment is one of tags.
pub(super) fn is_tags(part: &Object) -> bool {
    let is = |key| part.get(key).is_some_and(|value| json::says(value, "tags"));
    is("purpose") || is("type")
}

/// The first attachment of tags.
fn attachment(members: &mut IndexMap<String, Member>) -> Result<Option<&mut Object>, VconError> {
    let is_it = |part: &Part| part.object().is_some_and(|object| is_tags(&object));
    let mut parts = parts_to_change(members, Section::Attachments)?
        .into_iter()
        .flatten();
    Ok(parts.find(|part| is_it(part)).and_then(Part::open))
}

/// The tags of an attachment. What is no text is kept as it is.
///
/// # Errors
/// The body is encoded in a way that no tags are.
pub(super) fn entries_of(attachment: &Object) -> Result<Vec<Box<RawValue>>, VconError> {
    let content = content(attachment)?;
    Ok(content.map_or_else(Vec::new, |content| entries(&content)))
}

/// What the body of an attachment of tags holds: a list, an object, or one tag; `None` if nothing.
///
/// # Errors
/// The body is encoded in a way that no tags are.
fn content(attachment: &Object) -> Result<Option<Cow<'_, RawValue>>, VconError> {
    let Some(body) = attachment.get("body").filter(|body| body.get() != "null") else {
        return Ok(None);
    };
    if !json::is_string(body) {
        return Ok(Some(Cow::Borrowed(body)));
    }
    let is_encoding = |name| {
        attachment
            .get("encoding")
            .is_some_and(|it| json::says(it, name))
    };
    if is_encoding("base64url") {
        return Err(VconError::TagsEncoded);
    }
    // One that is no Unicode text is no JSON either.
    let Some(text) = json::text(body) else {
        return Ok(Some(Cow::Borrowed(body)));
    };
    let text = text.trim_ascii();
    let inside = serde_json::from_str(text)
        .ok()
        .filter(|inside: &&RawValue| {
            let is_json = json::is_string(inside) && is_encoding("json");
            is_json || json::is_array(inside) || json::is_object(inside)
        });
    Ok(match inside {
        Some(inside) => Some(Cow::Owned(inside.to_owned())),
        None if matches!(text, "" | "null") => None,
        // Bare text, also if it happens to be JSON, as a number is.
        None => Some(Cow::Borrowed(body)),
    })
}

/// The tags in a value.
fn entries(value: &RawValue) -> Vec<Box<RawValue>> {
    if let Some(list) = json::elements(value.get()) {
        return list.into_iter().map(ToOwned::to_owned).collect();
    }
    let Ok(object) = Borrowed::read(value.get()) else {
        return vec![value.to_owned()];
    };
    let tag = |(name, value)| json::string(&format!("{name}:{value}"));
    object.0.into_iter().map(named).map(tag).collect()
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

    fn with(attachment: &str) -> String {
        format!(r#"{{"vcon":"0.4.0","attachments":[{attachment}]}}"#)
    }

    /// What the attachment becomes when a tag is added.
    fn tagged(attachment: &str) -> String {
        let mut vcon = parse(&with(attachment));
        vcon.add_tags(&tags(&["a:b"])).unwrap();
        assert!(vcon.is_changed());
        vcon.to_json()
    }

    #[test]
    fn it_is_known_beforehand_whether_tags_can_be_added() {
        let encoded = r#"{"purpose":"tags","body":"YQ","encoding":"base64url"}"#;
        for text in [
            &with(encoded),
            &with(r#"{"purpose":"tags","body":"[]"}"#),
            &with(&format!("{{}},{encoded}")),
            &with(""),
            r#"{"attachments":{}}"#,
            r#"{"attachments":"x"}"#,
            r#"{"payload":"p","signature":"s"}"#,
        ] {
            let mut vcon = parse(text);
            let checked = vcon.check_taggable().is_ok();
            let is_added = vcon.add_tags(&tags(&["a:b"])).is_ok();
            assert_eq!(checked, is_added, "{text}");
        }
    }

    #[test]
    fn the_attachment_is_made_where_there_is_none() {
        for text in [
            r#"{"vcon":"0.4.0"}"#,
            r#"{"vcon":"0.4.0","attachments":[]}"#,
            r#"{"vcon":"0.4.0","attachments":null}"#,
        ] {
            let mut vcon = parse(text);
            vcon.add_tags(&tags(&["a:a", "b\":c", "a:a"])).unwrap();
            assert!(vcon.is_changed());
            assert_eq!(
                vcon.to_json(),
                r#"{"vcon":"0.4.0","attachments":[{"purpose":"tags","body":"[\"a:a\",\"b\\\":c\"]","encoding":"json"}]}"#
            );
        }
    }

    #[test]
    fn every_shape_of_tags_becomes_the_text_of_a_list() {
        for (body, list) in [
            (r#""[\"x:y\", 1.0]","encoding":"json""#, r#"\"x:y\",1.0,"#),
            (r#"["x:y", 1.0],"encoding":"none""#, r#"\"x:y\",1.0,"#),
            (r#"[{"name":"x"},null]"#, r#"{\"name\":\"x\"},null,"#),
            (
                r#"{"x":"y:z","n":2.50,"t":true,"o":{"k": 1},"q\"":"é"}"#,
                r#"\"x:y:z\",\"n:2.50\",\"t:true\",\"o:{\\\"k\\\": 1}\",\"q\\\":é\","#,
            ),
            (r#"" {\"x\": \"y\"}\n""#, r#"\"x:y\","#),
            (r#""x:y","encoding":"none""#, r#"\"x:y\","#),
            (r#""hello""#, r#"\"hello\","#),
            (r#""7""#, r#"\"7\","#),
            (r#""false","encoding":"json""#, r#"\"false\","#),
            (r#""\"x:y\"","encoding":"json""#, r#"\"x:y\","#),
            (r#""\"x\"","encoding":"none""#, r#"\"\\\"x\\\"\","#),
            (r#""\ud800""#, r#"\"\\ud800\","#),
            ("7", "7,"),
            (r#""""#, ""),
            (r#""  ""#, ""),
            (r#""null""#, ""),
            (r#""[]""#, ""),
            (r#""{}""#, ""),
            ("[]", ""),
            ("{}", ""),
            ("null", ""),
        ] {
            for is_by in [r#""purpose":"tags""#, r#""purpose":"note","type":"tags""#] {
                let found = tagged(&format!(r#"{{{is_by},"body":{body}}}"#));
                let expected = format!(r#""body":"[{list}\"a:b\"]","encoding":"json"}}]}}"#);
                assert!(found.ends_with(&expected), "{body}: {found}");
                assert!(found.contains(&format!("[{{{is_by},")), "{found}");
            }
        }
    }

    #[test]
    fn the_first_attachment_of_tags_is_used_and_what_else_it_has_stays() {
        let attachments = concat!(
            r#"{"purpose":"note"},"tags",{"type":"tags","party":0,"body":["x:y"]},"#,
            r#"{"purpose":"tags","body":"[]"}"#
        );
        assert_eq!(
            tagged(attachments),
            with(concat!(
                r#"{"purpose":"note"},"tags",{"purpose":"tags","party":0,"body":"[\"x:y\",\"a:b\"]","encoding":"json"},"#,
                r#"{"purpose":"tags","body":"[]"}"#
            ))
        );
    }

    #[test]
    fn an_attachment_without_a_body_gets_one() {
        assert_eq!(
            tagged(r#"{"purpose":"tags"}"#),
            with(r#"{"purpose":"tags","body":"[\"a:b\"]","encoding":"json"}"#)
        );
    }

    #[test]
    fn tags_that_are_there_change_nothing() {
        for attachment in [
            r#"{"purpose":"tags","body":"[ \"\u0061:b\" ]","encoding":"json"}"#,
            r#"{"purpose":"tags","body":["c","a:b"],"encoding":"json"}"#,
            r#"{"purpose":"tags","body":{"a": "b"},"encoding":"json"}"#,
            r#"{"purpose":"tags","body":"a:b","encoding":"none"}"#,
        ] {
            let text = with(attachment);
            let mut vcon = parse(&text);
            vcon.add_tags(&tags(&["a:b"])).unwrap();
            vcon.add_tags(&[]).unwrap();
            assert!(!vcon.is_changed());
            assert_eq!(vcon.to_json(), text);
        }
    }

    #[test]
    fn what_tags_cannot_be_added_to_is_named_and_stays() {
        let no_list = |kind| format!("`attachments` is {kind}, not an array");
        let encoded = r#"[{"purpose":"tags","body":"YTpi","encoding":"base64url"}]"#;
        for (attachments, expected) in [
            (r#"{"purpose":"tags"}"#, no_list("an object")),
            ("\"x\"", no_list("a string")),
            (
                encoded,
                "the body of the `tags` attachment is base64url, not tags".to_owned(),
            ),
        ] {
            let text = format!(r#"{{"vcon":"0.4.0","attachments":{attachments}}}"#);
            let mut vcon = parse(&text);
            let error = vcon.add_tags(&tags(&["a:b"])).unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert!(!vcon.is_changed());
            assert_eq!(vcon.to_json(), text);
        }
        // A list is a list, whatever is said of it.
        let found = tagged(r#"{"purpose":"tags","body":["x:y"],"encoding":"base64url"}"#);
        assert!(found.contains(r#"[\"x:y\",\"a:b\"]"#), "{found}");
    }

    #[test]
    fn names_and_values_come_from_every_attachment_of_tags_in_every_shape() {
        let text = with(concat!(
            r#"{"purpose":"tags","body":["vip:yes","a:b:c",":x","none",7,{"name":"n"}]},"#,
            r#"{"purpose":"note","body":["no:no"]},"x",{"purpose":"note","type":"tags","body":"{\"k\\u00e9\":1}"},"#,
            r#"{"type":"tags","body":"one:1"},{"purpose":"tags","body":"[\"l:2\"]","encoding":"json"},"#,
            r#"{"purpose":"tags","body":{"o:p":{"q:r":1},"":2}},{"purpose":"tags"},"#,
            r#"{"purpose":"tags","body":"YTpi","encoding":"base64url"}"#
        ));
        let tags = parse(&text).tags().unwrap();
        let tags: Vec<(&str, &str)> = tags.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let expected = [
            ("vip", "yes"),
            ("a", "b:c"),
            ("ké", "1"),
            ("one", "1"),
            ("l", "2"),
            ("o:p", r#"{"q:r":1}"#),
        ];
        assert_eq!(tags, expected);
        for (attachments, is_list) in [("null", true), ("[]", true), ("{}", false)] {
            let vcon = parse(&format!(r#"{{"attachments":{attachments}}}"#));
            let tags = vcon.tags();
            assert_eq!(tags.is_ok(), is_list);
            assert!(tags.unwrap_or_default().is_empty());
        }
        assert!(parse("{}").tags().unwrap().is_empty());
    }
}
