//! What may be read in a vCon of a link's options: nothing that is secret.

use serde_json::{Map, Value};

use crate::http_client::Url;
use crate::secret::{Secret, names_a_secret};

/// The options without what must not be read in a vCon, at any depth: what has the name of a secret, the logins
/// in URLs, and what was looked up in a variable or file.
pub(in crate::link) fn shown(
    options: Map<String, Value>,
    looked_up: &[Secret],
) -> Map<String, Value> {
    let shown = options.into_iter().filter(|(name, _)| !is_secret(name));
    let shown = shown.filter_map(|(name, value)| Some((name, shown_value(value, looked_up)?)));
    shown.collect()
}

fn is_secret(name: &str) -> bool {
    name.ends_with("_file") || names_a_secret(name)
}

fn shown_value(value: Value, looked_up: &[Secret]) -> Option<Value> {
    match value {
        Value::Object(members) => Some(shown(members, looked_up).into()),
        Value::Array(items) => {
            let shown = items.into_iter();
            Some(shown.filter_map(|it| shown_value(it, looked_up)).collect())
        }
        Value::String(text) => shown_text(text, looked_up).map(Value::String),
        value => Some(value),
    }
}

/// A text of the options without what was looked up and without the login in a URL; nothing if all of it was
/// looked up.
pub(in crate::link) fn shown_text(text: String, looked_up: &[Secret]) -> Option<String> {
    if looked_up.iter().any(|it| it.reveal() == text) {
        return None;
    }
    let text = hidden(looked_up, text);
    // A prompt may speak of a URL and is none.
    if text.contains("://") && !text.contains(char::is_whitespace) {
        let url: Url = text.parse().ok()?;
        return Some(url.to_string());
    }
    Some(text)
}

/// A text from elsewhere without these secrets.
pub(in crate::link) fn hidden(secrets: &[Secret], text: String) -> String {
    secrets
        .iter()
        .fold(text, |text, secret| secret.hide_in(text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_secret_is_shown_at_any_depth() {
        let given = json!({"model": "m", "api_key": "k", "key_file": "f", "base_url": "http://u:p@h/v1?token=t",
            "prompt": "as at http://h/a, not variable", "whole": "variable",
            "api": {"token": "t", "list": ["variable", "b"]}});
        let looked_up = [Secret::new("variable")];
        let options = given.as_object().cloned().unwrap_or_default();
        let expected = json!({"model": "m", "base_url": "http://h/v1", "prompt": "as at http://h/a, not ***",
            "api": {"list": ["b"]}});
        assert_eq!(Value::Object(shown(options, &looked_up)), expected);
    }

    #[test]
    fn no_secret_is_shown_in_a_vcon() {
        let looked_up = [Secret::new("aus-der-umgebung")];
        let options = json!({
            "model": "m", "API_KEY": "geheim", "api_key_file": "key", "Content-Type": "audio/flac",
            "LITELLM_PROXY_URL": "http://geheim", "prompt": "say aus-der-umgebung", "language": "aus-der-umgebung",
            "API_URL": "https://us:geheim@h/x?token=geheim",
            "api": {"token": "geheim", "tier": ["a", "https://u:geheim@h"], "passwd": 1},
        });
        let Value::Object(options) = options else {
            unreachable!()
        };
        let found = Value::Object(shown(options, &looked_up));
        assert_eq!(
            found,
            json!({
                "model": "m", "Content-Type": "audio/flac", "prompt": "say ***", "API_URL": "https://h/x",
                "api": {"tier": ["a", "https://h/"]},
            })
        );
    }
}
