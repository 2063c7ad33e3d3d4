//! The parts of a written document one by one, for layouts that keep one document for each.

use std::borrow::Cow;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::json::{self, Borrowed, ObjectWriter};
use super::{Outgoing, VconError};

/// A written document, opened up as far as its lists.
pub struct Parts<'a>(Borrowed<'a>);

/// A party, dialog, analysis or attachment, opened up by one level.
pub struct OpenPart<'a>(IndexMap<String, Cow<'a, str>>);

impl<'a> Parts<'a> {
    /// Opens up a document that leaves.
    pub fn of(vcon: &'a Outgoing) -> Result<Self, VconError> {
        Ok(Self(Borrowed::read(&vcon.json)?))
    }

    /// The elements of one of its lists; none if it has no such list, or `null`.
    ///
    /// # Errors
    /// The list is none, or one of its elements is no object.
    pub fn list(&self, name: &'static str) -> Result<Vec<OpenPart<'a>>, VconError> {
        let list = self.0.0.get(name).filter(|list| list.get() != "null");
        let Some(list) = list else {
            return Ok(Vec::new());
        };
        if !json::is_array(list) {
            let kind = json::kind(list);
            return Err(VconError::NotAnArray { member: name, kind });
        }
        let elements: Vec<&RawValue> = serde_json::from_str(list.get())?;
        let part = |(number, element): (usize, &'a RawValue)| {
            if !json::is_object(element) {
                let kind = json::kind(element);
                return Err(VconError::PartNotAnObject {
                    list: name,
                    number,
                    kind,
                });
            }
            let members = Borrowed::read(element.get())?.0.into_iter();
            let members = members.map(|(key, value)| (key, Cow::Borrowed(value.get())));
            Ok(OpenPart(members.collect()))
        };
        elements.into_iter().enumerate().map(part).collect()
    }
}

impl OpenPart<'_> {
    /// A property as JSON.
    pub fn json(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|value| &**value)
    }

    /// A property that is a string.
    pub fn text(&self, key: &str) -> Option<String> {
        serde_json::from_str(self.json(key)?).ok()
    }

    /// Sets a property, to JSON.
    pub fn set(&mut self, key: &str, json: String) {
        self.0.insert(key.to_owned(), Cow::Owned(json));
    }

    /// The body's own text where the part says that it is JSON and it is; `None` otherwise.
    pub fn json_body(&self) -> Option<String> {
        if self.text("encoding")? != "json" {
            return None;
        }
        let text = self.text("body")?;
        let raw = RawValue::from_string(text).ok()?;
        Some(Box::<str>::from(raw).into_string())
    }

    /// The part as JSON on one line.
    pub fn write(&self, out: &mut String) {
        let start = out.len();
        let mut writer = ObjectWriter::begin(out);
        for (key, value) in &self.0 {
            writer.key(key).push_str(value);
        }
        writer.end();
        // Between the values only: in a string they are escaped.
        if out[start..].contains(['\n', '\r']) {
            let line = out.split_off(start).replace(['\n', '\r'], " ");
            out.push_str(&line);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vcon::{Vcon, VconId, Version};

    fn outgoing(text: &str) -> Outgoing {
        let vcon = Vcon::parse(VconId::random(), text.to_owned());
        vcon.unwrap().outgoing(Version::Current)
    }

    #[test]
    fn a_part_comes_out_on_one_line_with_what_was_set() {
        let vcon = outgoing("{\"parties\":[{\"n\":1.0,\n \"deep\": [\r\n{}],\"s\":\"a\\nb\"}]}");
        let mut parties = Parts::of(&vcon).unwrap().list("parties").unwrap();
        parties[0].set("n", "\"new\"".to_owned());
        parties[0].set("vcon_id", "7".to_owned());
        let mut out = String::from("before\n");
        parties[0].write(&mut out);
        let expected = r#"{"n":"new","deep":[  {}],"s":"a\nb","vcon_id":7}"#;
        assert_eq!(out, format!("before\n{expected}"));
        assert_eq!(parties[0].text("s").unwrap(), "a\nb");
    }

    #[test]
    fn a_body_is_json_where_it_says_so_and_is() {
        for (part, body) in [
            (r#"{"body":"[1, 2.0]","encoding":"json"}"#, Some("[1, 2.0]")),
            (r#"{"body":"5","encoding":"json"}"#, Some("5")),
            (r#"{"body":"[1","encoding":"json"}"#, None),
            (r#"{"body":"[1]","encoding":"none"}"#, None),
            (r#"{"body":"[1]"}"#, None),
            (r#"{"encoding":"json"}"#, None),
        ] {
            let vcon = outgoing(&format!("{{\"dialog\":[{part}]}}"));
            let dialog = Parts::of(&vcon).unwrap().list("dialog").unwrap();
            assert_eq!(dialog[0].json_body().as_deref(), body, "{part}");
        }
    }

    #[test]
    fn what_is_no_part_is_told_with_its_place() {
        let vcon = outgoing(r#"{"dialog":[{},7],"analysis":null,"attachments":{}}"#);
        let parts = Parts::of(&vcon).unwrap();
        assert_eq!(parts.list("parties").unwrap().len(), 0);
        assert_eq!(parts.list("analysis").unwrap().len(), 0);
        let error = parts.list("attachments").err().unwrap();
        let expected = "`attachments` is an object, not an array";
        assert_eq!(error.to_string(), expected);
        let error = parts.list("dialog").err().unwrap();
        assert_eq!(error.to_string(), "`dialog[1]` is a number, not an object");
    }
}
