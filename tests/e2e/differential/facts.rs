//! What becomes of a document, as the facts about existing deployments say. Written from those
//! alone: nothing of the daemon is used here.

use super::json::Json;

/// How bodies that are objects or lists are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bodies {
    /// As values: the newer generation.
    Values,
    /// As their text: the older one.
    Text,
}

const SECTIONS: [&str; 3] = ["dialog", "analysis", "attachments"];
const WITH_JSON: [&str; 2] = ["analysis", "attachments"];

/// Old names and those of today.
const TOP: [(&str, &str); 2] = [("appended", "amended"), ("must_support", "critical")];
const PART: [(&str, &str); 3] = [
    ("schema_version", "schema"),
    ("mimetype", "mediatype"),
    ("must_support", "critical"),
];

/// A document as it is written to Redis and to storages.
pub fn written(document: &Json, bodies: Bodies) -> Json {
    let mut it = read(document);
    it.set("vcon", Json::text("0.4.0"));
    if it.get("group") == Some(&Json::List(Vec::new())) {
        it.remove("group");
    }
    if it.get("redacted") == Some(&Json::Object(Vec::new())) {
        it.remove("redacted");
    }
    for section in WITH_JSON {
        for part in it.parts(section) {
            let Some(body @ (Json::Object(_) | Json::List(_))) = part.get("body").cloned() else {
                continue;
            };
            if bodies == Bodies::Text {
                part.set("body", Json::Text(body.written()));
            }
            part.set("encoding", Json::text("json"));
        }
    }
    it
}

/// The names of today.
fn read(document: &Json) -> Json {
    let mut it = document.clone();
    renew(&mut it, &TOP);
    for section in SECTIONS {
        for part in it.parts(section) {
            renew(part, &PART);
            if section == "attachments" && !part.has("purpose") {
                part.rename("type", "purpose");
            }
            if part.get("encoding").is_some_and(|it| it.is_text("text")) {
                part.set("encoding", Json::text("none"));
            }
        }
    }
    it
}

fn renew(object: &mut Json, names: &[(&str, &str)]) {
    for (old, new) in names {
        if object.has(new) {
            object.remove(old);
        } else {
            object.rename(old, new);
        }
    }
}

/// The document that the link `links.tag` makes of it, or nothing if it has the tag.
pub fn tagged(document: &Json, tag: &str) -> Option<Json> {
    let mut it = read(document);
    let is_tags = |part: &Json| {
        let is = |name| part.get(name).is_some_and(|it: &Json| it.is_text("tags"));
        is("purpose") || is("type")
    };
    let mut parts = it.parts("attachments");
    match parts.iter_mut().find(|part| is_tags(part)) {
        Some(part) => {
            let mut tags = tags_in(part.get("body").unwrap_or(&Json::Null));
            if tags.contains(&Json::text(tag)) {
                return None;
            }
            tags.push(Json::text(tag));
            part.set("body", Json::Text(Json::List(tags).written()));
            part.set("encoding", Json::text("json"));
        }
        None => {
            let body = Json::Text(Json::texts(&[tag]).written());
            let attachment = Json::object(&[
                ("purpose", Json::text("tags")),
                ("body", body),
                ("encoding", Json::text("json")),
            ]);
            let mut all = match it.get("attachments") {
                Some(Json::List(all)) => all.clone(),
                _ => Vec::new(),
            };
            all.push(attachment);
            it.set("attachments", Json::List(all));
        }
    }
    Some(it)
}

/// The tags in a body of whatever shape.
fn tags_in(body: &Json) -> Vec<Json> {
    match body {
        Json::List(items) => items.clone(),
        Json::Object(members) => {
            let tag = |(name, value): &(String, Json)| match value {
                Json::Text(text) => Json::Text(format!("{name}:{text}")),
                other => Json::Text(format!("{name}:{}", other.written())),
            };
            members.iter().map(tag).collect()
        }
        Json::Text(text) => match text.trim() {
            "" => Vec::new(),
            list if list.starts_with(['[', '{']) => tags_in(&parsed(list)),
            _ => vec![body.clone()],
        },
        Json::Null => Vec::new(),
        other => vec![other.clone()],
    }
}

/// A written document in the version 0.0.1.
pub fn downgraded(written: &Json) -> Json {
    let mut it = written.clone();
    age(&mut it, &TOP);
    for section in SECTIONS {
        for part in it.parts(section) {
            if WITH_JSON.contains(&section)
                && part.get("encoding").is_some_and(|it| it.is_text("json"))
                && let Some(body) = part.get("body").cloned()
            {
                if let Json::Text(text) = &body {
                    part.set("body", parsed(text));
                }
                part.set("encoding", Json::text("none"));
            }
            age(part, &PART);
            if section == "attachments" {
                age(part, &[("type", "purpose")]);
            }
        }
    }
    it.set("vcon", Json::text("0.0.1"));
    for (name, empty) in [
        ("group", Json::List(Vec::new())),
        ("redacted", Json::Object(Vec::new())),
        ("appended", Json::Null),
    ] {
        if !it.has(name) {
            it.set(name, empty);
        }
    }
    it
}

/// The old names, unless somebody else has them.
fn age(object: &mut Json, names: &[(&str, &str)]) {
    for (old, new) in names {
        if !object.has(old) {
            object.rename(new, old);
        }
    }
}

/// JSON text, read. Numbers keep their digits only if they are short.
fn parsed(text: &str) -> Json {
    fn of(value: serde_json::Value) -> Json {
        match value {
            serde_json::Value::Null => Json::Null,
            serde_json::Value::Bool(value) => Json::Bool(value),
            serde_json::Value::Number(number) => Json::Number(number.to_string()),
            serde_json::Value::String(text) => Json::Text(text),
            serde_json::Value::Array(items) => Json::List(items.into_iter().map(of).collect()),
            serde_json::Value::Object(members) => Json::Object(
                members
                    .into_iter()
                    .map(|(name, it)| (name, of(it)))
                    .collect(),
            ),
        }
    }
    of(serde_json::from_str(text).expect("JSON"))
}
