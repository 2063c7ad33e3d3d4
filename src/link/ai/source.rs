//! The text of a dialog that a model is asked about: it stands in an analysis, such as its transcript.

use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::options::Options;
use crate::vcon::Entry;

/// Where the text of a dialog stands.
pub(super) struct Source {
    analysis_type: String,
    location: Vec<String>,
}

impl Source {
    /// Reads `source`; `location` is the default of its `text_location`.
    pub fn open(options: &mut Options, location: &str) -> Self {
        let mut analysis_type = "transcript".to_owned();
        let mut location = location.to_owned();
        for (key, value) in options.string_map("source") {
            match key.as_str() {
                "analysis_type" => analysis_type = value,
                "text_location" => location = value,
                _ => options.warn(
                    "source",
                    format!(
                        "unknown key `{key}` has no effect (known: analysis_type, text_location)"
                    ),
                ),
            }
        }
        // `a[0].b` is another way to write `a.0.b`.
        let location: Vec<String> = location
            .replace('[', ".")
            .replace(']', "")
            .split('.')
            .map(|key| key.trim().to_owned())
            .filter(|key| !key.is_empty())
            .collect();
        if location.is_empty() {
            options.fault("source", "its `text_location` is empty");
        }
        Self {
            analysis_type,
            location,
        }
    }

    /// Whether an analysis is of the type that has the text.
    pub fn is_in(&self, analysis: &Entry<'_>) -> bool {
        analysis.text("type").as_deref() == Some(&self.analysis_type)
    }

    /// The text in this analysis, if it is of the right type and has one. What is a list or an object there, as
    /// a transcript by speakers is, counts as its JSON.
    pub fn text(&self, analysis: &Entry<'_>) -> Option<String> {
        if !self.is_in(analysis) {
            return None;
        }
        let (first, rest) = self.location.split_first()?;
        let body = analysis.body();
        let start = match first.as_str() {
            "body" => body.as_deref()?,
            other => analysis.get(other)?,
        };
        let found = rest
            .iter()
            .try_fold(start, |value, key| member(value, key))?;
        if let Ok(text) = serde_json::from_str::<String>(found.get()) {
            return (!text.trim().is_empty()).then_some(text);
        }
        let json = found.get();
        let inside = json
            .strip_prefix(['[', '{'])
            .and_then(|inside| inside.strip_suffix([']', '}']));
        inside
            .is_some_and(|inside| !inside.trim().is_empty())
            .then(|| json.to_owned())
    }
}

/// What stands in an object under this key, or in a list at this place.
fn member<'a>(value: &'a RawValue, key: &str) -> Option<&'a RawValue> {
    if value.get().starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
        return items.get(key.parse::<usize>().ok()?).copied();
    }
    let mut members: HashMap<String, &RawValue> = serde_json::from_str(value.get()).ok()?;
    members.remove(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::vcon::{Vcon, VconId};

    fn text(options: &str, analysis: &str) -> Option<String> {
        let mut options = Options::from_yaml(options);
        let source = Source::open(&mut options, "body.paragraphs.transcript");
        assert_eq!(options.faults(), [""; 0]);
        let document = format!("{{\"analysis\":[{analysis}]}}");
        let vcon = Vcon::read(VconId::random(), &document).unwrap();
        let entry = vcon.analysis().unwrap().next().unwrap();
        source.text(&entry)
    }

    #[test]
    fn the_text_is_found_whether_the_body_is_a_value_or_text() {
        let usual = "{}";
        let whole = "{source: {text_location: body}}";
        let nested = "{source: {analysis_type: t, text_location: 'body.a[1].b'}}";
        for (options, analysis, found) in [
            (
                usual,
                r#"{"type":"transcript","body":{"paragraphs":{"transcript":"hé"}}}"#,
                Some("hé"),
            ),
            (
                usual,
                r#"{"type":"transcript","encoding":"json","body":"{\"paragraphs\":{\"transcript\":\"hi\"}}"}"#,
                Some("hi"),
            ),
            (
                usual,
                r#"{"type":"other","body":{"paragraphs":{"transcript":"hi"}}}"#,
                None,
            ),
            (usual, r#"{"type":"transcript","body":"plain"}"#, None),
            (
                usual,
                r#"{"type":"transcript","body":{"paragraphs":[]}}"#,
                None,
            ),
            (
                usual,
                r#"{"type":"transcript","body":{"paragraphs":{"transcript":7}}}"#,
                None,
            ),
            (
                usual,
                r#"{"type":"transcript","body":{"paragraphs":{"transcript":" "}}}"#,
                None,
            ),
            (usual, r#"{"type":"transcript"}"#, None),
            (usual, r#"{"type":7,"body":null}"#, None),
            (
                whole,
                r#"{"type":"transcript","body":"plain"}"#,
                Some("plain"),
            ),
            (
                whole,
                r#"{"type":"transcript","body":[{"speaker": "A","message":"hi"}]}"#,
                Some(r#"[{"speaker": "A","message":"hi"}]"#),
            ),
            (whole, r#"{"type":"transcript","body":[]}"#, None),
            (
                nested,
                r#"{"type":"t","body":{"a":[0,{"b":"deep"}]}}"#,
                Some("deep"),
            ),
            (
                "{source: {text_location: note}}",
                r#"{"type":"transcript","note":"n"}"#,
                Some("n"),
            ),
        ] {
            assert_eq!(
                text(options, analysis).as_deref(),
                found,
                "{options} {analysis}"
            );
        }
    }

    #[test]
    fn unknown_keys_warn_and_an_empty_location_is_a_fault() {
        let mut options = Options::from_yaml("{source: {type: a, text_location: ''}}");
        Source::open(&mut options, "body");
        assert_eq!(options.faults(), ["source: its `text_location` is empty"]);
        assert_eq!(options.warnings().len(), 1);
    }
}
