//! What a link reads of a document's parts, and what it adds to them: dialogs, analyses, attachments.
//!
//! Tags are an attachment with rules of its own (`tags`); `reduce` takes things out.

use std::borrow::Cow;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::document::{Member, Part, Section, parts_of, parts_to_change};
use super::json::{self, Object};
use super::{Vcon, VconError};

/// One dialog, as links read it.
#[derive(Debug, Clone)]
pub struct Dialog<'a> {
    /// Its index in `dialog`, by which analyses and attachments refer to it.
    pub index: usize,
    members: Cow<'a, Object>,
}

impl Dialog<'_> {
    /// One of its properties, as JSON.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.members.get(name).map(|value| &**value)
    }

    /// One of its properties that is text, such as `id`, `type`, `mediatype` or `start`.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(json::text)
    }

    /// The body, as JSON; `None` if there is none, if it is empty, and if it is only the URL of one
    /// (`body_type`).
    pub fn body(&self) -> Option<&RawValue> {
        let body = self
            .get("body")
            .filter(|_| !is_kept_elsewhere(&self.members))?;
        (!matches!(body.get(), "\"\"" | "null")).then_some(body)
    }
}

/// Whether a dialog's body is the URL of it.
pub(super) fn is_kept_elsewhere(dialog: &Object) -> bool {
    dialog
        .get("body_type")
        .is_some_and(|it| json::says(it, "url"))
}

/// One analysis or attachment, as links read it.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Its index in its list.
    pub index: usize,
    members: Cow<'a, Object>,
}

impl Entry<'_> {
    /// One of its properties, as JSON.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.members.get(name).map(|value| &**value)
    }

    /// One of its properties that is text, such as `type`, `purpose` or `vendor`.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(json::text)
    }

    /// The dialogs that it was made of ([`Dialog::index`]): its `dialog` is a number, or a list of them.
    pub fn dialogs(&self) -> Vec<usize> {
        let Some(value) = self.get("dialog") else {
            return Vec::new();
        };
        let all = json::elements(value.get()).unwrap_or_else(|| vec![value]);
        let index = |value: &RawValue| serde_json::from_str(value.get()).ok();
        all.into_iter().filter_map(index).collect()
    }

    /// The body, as JSON. One that is the text of an object or array is that, whatever its encoding says, as
    /// is one that is the text of any JSON if the encoding is `json`. `None` if there is none, or if it is empty.
    pub fn body(&self) -> Option<Cow<'_, RawValue>> {
        let body = self.get("body")?;
        let text = json::is_string(body).then(|| json::text(body)).flatten();
        let Some(text) = text else {
            return (body.get() != "null").then_some(Cow::Borrowed(body));
        };
        if text.is_empty() {
            return None;
        }
        let is_json = self
            .get("encoding")
            .is_some_and(|it| json::says(it, "json"));
        let inside = serde_json::from_str::<&RawValue>(text.trim_ascii()).ok();
        let inside = inside.filter(|it| is_json || json::is_object(it) || json::is_array(it));
        Some(inside.map_or(Cow::Borrowed(body), |it| Cow::Owned(it.to_owned())))
    }
}

/// The body of an analysis or attachment that a link adds.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// Text as it is: the encoding is `none`.
    Text(&'a str),
    /// JSON: the encoding is `json`. [`serde_json::value::to_raw_value`] makes it of anything.
    Json(&'a RawValue),
    /// The text of JSON, which stays text: the encoding is `json`.
    JsonText(&'a str),
}

impl Body<'_> {
    fn write_to(self, part: &mut Object) {
        let (body, encoding) = match self {
            Self::Text(text) => (json::string(text), "none"),
            Self::Json(value) if json::is_object(value) || json::is_array(value) => {
                (value.to_owned(), "json")
            }
            // A text whose encoding is `json` is read as the text of JSON.
            Self::Json(value) => (json::string(value.get()), "json"),
            Self::JsonText(text) => (json::string(text), "json"),
        };
        part.insert("body".to_owned(), body);
        part.insert("encoding".to_owned(), json::string(encoding));
    }
}

impl Vcon {
    /// Its dialogs, without what stands among them and is no object.
    ///
    /// # Errors
    /// It is sealed, or its dialogs are no list.
    pub fn dialog(&self) -> Result<impl Iterator<Item = Dialog<'_>>, VconError> {
        self.check_open()?;
        let parts = parts_of(&self.members, Section::Dialog)?.iter();
        Ok(parts.enumerate().filter_map(|(index, part)| {
            let members = part.object()?;
            Some(Dialog { index, members })
        }))
    }

    /// Its analyses, without what stands among them and is no object.
    ///
    /// # Errors
    /// It is sealed, or its analyses are no list.
    pub fn analysis(&self) -> Result<impl Iterator<Item = Entry<'_>>, VconError> {
        self.entries(Section::Analysis)
    }

    /// Its attachments, without what stands among them and is no object.
    ///
    /// # Errors
    /// It is sealed, or its attachments are no list.
    pub fn attachments(&self) -> Result<impl Iterator<Item = Entry<'_>>, VconError> {
        self.entries(Section::Attachments)
    }

    fn entries(&self, section: Section) -> Result<impl Iterator<Item = Entry<'_>>, VconError> {
        self.check_open()?;
        let parts = parts_of(&self.members, section)?.iter();
        Ok(parts.enumerate().filter_map(|(index, part)| {
            let members = part.object()?;
            Some(Entry { index, members })
        }))
    }

    /// Adds an attachment after those that are there.
    ///
    /// # Errors
    /// It is sealed, or its attachments are no list.
    pub fn add_attachment(&mut self, purpose: &str, body: Body<'_>) -> Result<(), VconError> {
        let mut attachment = Object::new();
        attachment.insert("purpose".to_owned(), json::string(purpose));
        body.write_to(&mut attachment);
        self.add_part(Section::Attachments, attachment)
    }

    /// Adds an analysis after those that are there. `kind` is its `type`, such as `summary`; `dialog` the
    /// indices of the dialogs that it was made of ([`Dialog::index`]), which may be none; `vendor` who made
    /// it.
    ///
    /// # Errors
    /// It is sealed, or its analyses are no list.
    pub fn add_analysis(
        &mut self,
        kind: &str,
        dialog: &[usize],
        vendor: &str,
        body: Body<'_>,
    ) -> Result<(), VconError> {
        self.add_analysis_with(kind, dialog, vendor, body, &[])
    }

    /// The same, with further members behind those, such as `vendor_schema`.
    ///
    /// # Errors
    /// It is sealed, or its analyses are no list.
    pub fn add_analysis_with(
        &mut self,
        kind: &str,
        dialog: &[usize],
        vendor: &str,
        body: Body<'_>,
        more: &[(&str, &RawValue)],
    ) -> Result<(), VconError> {
        let mut analysis = Object::new();
        analysis.insert("type".to_owned(), json::string(kind));
        if !dialog.is_empty() {
            analysis.insert("dialog".to_owned(), json::indices(dialog));
        }
        analysis.insert("vendor".to_owned(), json::string(vendor));
        body.write_to(&mut analysis);
        for (name, value) in more {
            analysis.insert(json::key(name), (*value).to_owned());
        }
        self.add_part(Section::Analysis, analysis)
    }

    /// Sets a member of the analysis at this index ([`Entry::index`]), if there is one.
    ///
    /// # Errors
    /// It is sealed, or its analyses are no list.
    pub fn set_in_analysis(
        &mut self,
        index: usize,
        name: &str,
        value: &RawValue,
    ) -> Result<(), VconError> {
        self.check_open()?;
        let parts = parts_to_change(&mut self.members, Section::Analysis)?;
        let part = parts.and_then(|parts| parts.get_mut(index));
        let Some(part) = part else { return Ok(()) };
        if let Some(analysis) = part.open() {
            let before = analysis.insert(json::key(name), value.to_owned());
            self.changed |= before.is_none_or(|before| before.get() != value.get());
        }
        part.close(Section::Analysis);
        Ok(())
    }

    fn add_part(&mut self, section: Section, part: Object) -> Result<(), VconError> {
        self.check_open()?;
        add(&mut self.members, section, part)?;
        self.changed = true;
        Ok(())
    }
}

/// Adds a part to a section, which is made if it is missing or `null`.
///
/// # Errors
/// The section is something else than a list.
pub(super) fn add(
    members: &mut IndexMap<String, Member>,
    section: Section,
    part: Object,
) -> Result<(), VconError> {
    let mut part = Part::Object(Box::new(part));
    part.close(section);
    match parts_to_change(members, section)? {
        Some(parts) => parts.push(part),
        None => {
            let parts = Member::Parts(section, vec![part]);
            members.insert(section.name().to_owned(), parts);
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::vcon::{JsonBodies, VconId, Version};

    fn parse(text: &str) -> Vcon {
        Vcon::read(VconId::random(), text).unwrap()
    }

    #[test]
    fn an_attachment_stands_after_the_others_which_stay_the_text_they_were() {
        for (before, after) in [
            ("", r#","attachments":[NEW]"#),
            (r#","attachments":null"#, r#","attachments":[NEW]"#),
            (r#","attachments":[]"#, r#","attachments":[NEW]"#),
            (
                r#","attachments":[{"n": 1.0,"é":1e5},7],"n":18446744073709551616"#,
                r#","attachments":[{"n":1.0,"é":1e5},7,NEW],"n":18446744073709551616"#,
            ),
        ] {
            let mut vcon = parse(&format!(r#"{{"vcon":"0.4.0"{before}}}"#));
            vcon.add_attachment("note", Body::Text("say \"hi\""))
                .unwrap();
            assert!(vcon.is_changed());
            let new = r#"{"purpose":"note","body":"say \"hi\"","encoding":"none"}"#;
            let after = after.replace("NEW", new);
            assert_eq!(vcon.to_json(), format!(r#"{{"vcon":"0.4.0"{after}}}"#));
        }
    }

    #[test]
    fn an_analysis_names_its_dialogs_and_its_vendor() {
        for (dialog, named) in [
            (&[][..], ""),
            (&[2], r#""dialog":2,"#),
            (&[0, 2], r#""dialog":[0,2],"#),
        ] {
            let mut vcon = parse(r#"{"vcon":"0.4.0","analysis":[{"type":"summary"}]}"#);
            vcon.add_analysis("sentiment", dialog, "us", Body::Text("good"))
                .unwrap();
            assert!(vcon.is_changed());
            let new = format!(
                r#"{{"type":"sentiment",{named}"vendor":"us","body":"good","encoding":"none"}}"#
            );
            let whole = r#"{"vcon":"0.4.0","analysis":[{"type":"summary"},NEW]}"#;
            assert_eq!(vcon.to_json(), whole.replace("NEW", &new));
        }
    }

    #[test]
    fn further_members_stand_behind_the_others() {
        let mut vcon = parse(r#"{"vcon":"0.4.0"}"#);
        let schema = to_raw_value(&serde_json::json!({"model": "m"})).unwrap();
        let more = [("vendor_schema", &*schema), ("say \"x\"", &*schema)];
        vcon.add_analysis_with("t", &[0], "v", Body::Text("b"), &more)
            .unwrap();
        let analysis = concat!(
            r#"{"type":"t","dialog":0,"vendor":"v","body":"b","encoding":"none","#,
            r#""vendor_schema":{"model":"m"},"say \"x\"":{"model":"m"}}"#
        );
        assert_eq!(
            vcon.to_json(),
            format!(r#"{{"vcon":"0.4.0","analysis":[{analysis}]}}"#)
        );
    }

    #[test]
    fn one_member_of_an_analysis_is_set_and_the_rest_stays() {
        let long = "x".repeat(10_000);
        let text = format!(
            r#"{{"vcon":"0.4.0","analysis":[7,{{"type":"a","n":1.0,"posted":false}},{{"body":"{long}","encoding":"none"}}]}}"#
        );
        let mut vcon = parse(&text);
        let yes = to_raw_value(&true).unwrap();
        for index in [0, 3, 99] {
            vcon.set_in_analysis(index, "posted", &yes).unwrap();
            assert!(!vcon.is_changed());
        }
        vcon.set_in_analysis(1, "posted", &yes).unwrap();
        assert!(vcon.is_changed());
        vcon.set_in_analysis(2, "posted", &yes).unwrap();
        let expected = text.replace("false", "true").replace(
            r#""encoding":"none"}"#,
            r#""encoding":"none","posted":true}"#,
        );
        assert_eq!(vcon.to_json(), expected);
        vcon.note_written();
        vcon.set_in_analysis(1, "posted", &yes).unwrap();
        assert!(!vcon.is_changed());
    }

    #[test]
    fn analyses_and_attachments_are_read_with_their_bodies_decoded() {
        let vcon = parse(
            r#"{"analysis":[{"type":"a","dialog":1},null,{"dialog":[0, 2],"vendor":"v"},{"dialog":"1"}],
            "attachments":[{"purpose":"p","body":{"a": 1.0}},{"body":"{\"a\": 1.0}","encoding":"none"},
            {"body":"say \"hi\""},{"body":"7","encoding":"json"},{"body":"7"},{"body":""},{"body":null},{}]}"#,
        );
        let analyses: Vec<Entry> = vcon.analysis().unwrap().collect();
        let indices: Vec<usize> = analyses.iter().map(|it| it.index).collect();
        assert_eq!(indices, [0, 2, 3]);
        let of = |dialog| -> Vec<bool> {
            let of = |it: &Entry| it.dialogs().contains(&dialog);
            analyses.iter().map(of).collect()
        };
        assert_eq!(of(0), [false, true, false]);
        assert_eq!(of(1), [true, false, false]);
        assert_eq!(of(2), [false, true, false]);
        assert_eq!(analyses[1].text("vendor").as_deref(), Some("v"));

        let attachments: Vec<Entry> = vcon.attachments().unwrap().collect();
        assert_eq!(attachments[0].text("purpose").as_deref(), Some("p"));
        let bodies: Vec<Option<String>> = attachments
            .iter()
            .map(|it| it.body().map(|body| body.get().to_owned()))
            .collect();
        let expected = [
            Some(r#"{"a": 1.0}"#),
            Some(r#"{"a": 1.0}"#),
            Some(r#""say \"hi\"""#),
            Some("7"),
            Some("\"7\""),
            None,
            None,
            None,
        ];
        assert_eq!(bodies, expected.map(|it| it.map(str::to_owned)));
        assert!(!vcon.is_changed());
        assert_eq!(parse("{}").analysis().unwrap().count(), 0);
    }

    #[test]
    fn a_body_of_json_is_written_as_others_are() {
        for (value, native, text) in [
            (
                r#"{"b": 1.0,"a":2}"#,
                r#"{"b": 1.0,"a":2}"#,
                r#""{\"b\": 1.0,\"a\":2}""#,
            ),
            ("[1e5]", "[1e5]", "\"[1e5]\""),
            ("\"x\"", r#""\"x\"""#, r#""\"x\"""#),
            ("7", "\"7\"", "\"7\""),
        ] {
            let value = RawValue::from_string(value.to_owned()).unwrap();
            for (bodies, body) in [(JsonBodies::Native, native), (JsonBodies::Text, text)] {
                let mut vcon = parse(r#"{"vcon":"0.4.0"}"#).writing(bodies);
                vcon.add_attachment("p", Body::Json(&value)).unwrap();
                let part = format!(r#"{{"purpose":"p","body":{body},"encoding":"json"}}"#);
                assert_eq!(
                    vcon.to_json(),
                    format!(r#"{{"vcon":"0.4.0","attachments":[{part}]}}"#)
                );
            }
        }
        let mut vcon = parse(r#"{"vcon":"0.4.0"}"#);
        vcon.add_attachment("p", Body::JsonText("{\"a\": 1}"))
            .unwrap();
        let part = r#"{"purpose":"p","body":"{\"a\": 1}","encoding":"json"}"#;
        assert_eq!(
            vcon.to_json(),
            format!(r#"{{"vcon":"0.4.0","attachments":[{part}]}}"#)
        );
        // As older consumers get it.
        let mut vcon = parse("{}");
        let value = to_raw_value(&[1, 2]).unwrap();
        vcon.add_analysis("t", &[], "v", Body::Json(&value))
            .unwrap();
        let outgoing = vcon.outgoing(Version::V0_0_1);
        assert!(
            outgoing.json.contains(r#""body":[1,2]"#),
            "{}",
            outgoing.json
        );
    }

    #[test]
    fn what_is_no_list_gets_nothing_and_stays() {
        let text = r#"{"vcon":"0.4.0","dialog":7,"analysis":"x","attachments":{}}"#;
        let mut vcon = parse(text);
        let errors = [
            vcon.add_attachment("p", Body::Text("b")).unwrap_err(),
            vcon.add_analysis("t", &[], "v", Body::Text("b"))
                .unwrap_err(),
            vcon.dialog().map(Iterator::count).unwrap_err(),
        ];
        let expected = [
            "`attachments` is an object, not an array",
            "`analysis` is a string, not an array",
            "`dialog` is a number, not an array",
        ];
        assert_eq!(errors.map(|error| error.to_string()), expected);
        assert!(!vcon.is_changed());
        assert_eq!(vcon.to_json(), text);
    }

    #[test]
    fn dialogs_are_read_with_their_index_whether_they_are_long_or_short() {
        let long = "x".repeat(10_000);
        let text = format!(
            r#"{{"dialog":[{{"id":"a","type":"text","body":"x","duration": 1.50}},null,
            {{"body":"http://h/1","body_type":"url"}},{{"body":""}},{{"type":"text"}},
            {{"mimetype":"text/plain","body":"{long}"}}]}}"#
        );
        let vcon = parse(&text);
        let dialogs: Vec<Dialog> = vcon.dialog().unwrap().collect();
        let indices: Vec<usize> = dialogs.iter().map(|it| it.index).collect();
        assert_eq!(indices, [0, 2, 3, 4, 5]);
        assert_eq!(dialogs[0].text("type").as_deref(), Some("text"));
        assert_eq!(dialogs[0].text("duration"), None);
        assert_eq!(dialogs[0].get("duration").unwrap().get(), "1.50");
        assert_eq!(dialogs[4].text("mediatype").as_deref(), Some("text/plain"));
        let bodies: Vec<usize> = dialogs
            .iter()
            .map(|it| it.body().map_or(0, |body| body.get().len()))
            .collect();
        assert_eq!(bodies, [3, 0, 0, 0, 10_002]);
        assert!(!vcon.is_changed());
        assert_eq!(parse("{}").dialog().unwrap().count(), 0);
    }
}
