//! The JSON Schema of config.yml, for editors: `conserver config schema`, and a file of the packages.
//!
//! What an option may hold, its default and whether it is required come from the accessors by which the code reads
//! it ([`OptionForms`]); what it means comes from the tables of conserver.yml(5). It is of draft 7, the latest that
//! the language servers of editors know well.
//!
//! An editor reads YAML 1.2, and values may stand in quotes or be `${VARIABLE}`: the schema takes each form that
//! the daemon takes.

use serde_json::{Map, Value, json};

use super::read::{SECTIONS, forms_of_entries};
use super::{Budget, Follower, budget, read};
use crate::options::forms::{OptionForms, OptionKind};
use crate::{link, storage};

/// The page with the tables of options.
const MANUAL: &str = include_str!("../../packaging/manual/conserver.yml.5.md");

/// A number in quotes, as YAML 1.1 writes it, or what names a variable.
pub(super) const NUMBER: &str = r"^[-+0-9a-fA-FxXoO_:.\s]*$|\$\{";

/// A switch in quotes, or what names a variable.
pub(super) const SWITCH: &str = r"^\s*([Tt][Rr][Uu][Ee]|[Yy][Ee][Ss]|[Oo][Nn]|[Ff][Aa][Ll][Ss][Ee]|[Nn][Oo]|[Oo][Ff][Ff]|[01])?\s*$|\$\{";

/// Permissions in octal, or what names a variable.
pub(super) const PERMISSIONS: &str = r"^\s*(0[oO]?[0-7]+|[0-9]*)\s*$|\$\{";

/// Nothing, or blanks.
pub(super) const BLANK: &str = r"^\s*$";

/// What names a variable.
pub(super) const VARIABLE: &str = r"\$\{";

/// `native: false` in each form.
const NOT_NATIVE: [&str; 8] = ["false", "False", "FALSE", "no", "No", "off", "Off", "0"];

/// Each built-in module, behind the section whose entries name it.
pub fn built_in_modules() -> impl Iterator<Item = (&'static str, &'static str)> {
    let links = link::MODULES.iter().map(|row| ("links", row.name));
    links.chain(storage::MODULES.iter().map(|row| ("storages", row.name)))
}

/// What a built-in module of `links` or `storages` asks of its options.
pub(super) fn forms_of_module(section: &str, module: &str) -> Option<OptionForms> {
    if section == "links" {
        let row = link::MODULES.iter().find(|row| row.name == module)?;
        Some(OptionForms::of(|options| drop((row.open)(options))))
    } else {
        let row = storage::MODULES.iter().find(|row| row.name == module)?;
        Some(OptionForms::of(|options| drop((row.open)(options))))
    }
}

/// What is asked of a follower.
pub(super) fn forms_of_follower() -> OptionForms {
    OptionForms::of(|options| drop(Follower::read("", options)))
}

/// The schema of config.yml.
pub fn json_schema() -> Value {
    let mut definitions = Map::new();
    let mut properties = Map::new();
    for (section, mut forms) in forms_of_entries() {
        // That of a built-in module is an option.
        let heading = match section {
            "links" => "## Links",
            "storages" => "## Storages",
            "chains" => "## Chains",
            _ => "## Tracers and imports",
        };
        let more = "### Python modules in the file";
        forms.takes_more = false;
        let mut entry = object(&forms, &[heading, more]);
        if entry["properties"].get(budget::KEY).is_some() {
            let mut limit = object(&Budget::forms(), &["## Limits"]);
            limit["type"] = json!(["object", "null"]);
            let description = entry["properties"][budget::KEY]["description"].take();
            limit["description"] = description;
            entry["properties"][budget::KEY] = limit;
        }
        let (mut names, mut of_modules) = (Vec::new(), Vec::new());
        for (_, module) in built_in_modules().filter(|(of, _)| *of == section) {
            if let Some(forms) = forms_of_module(section, module) {
                let place = format!("{section}/{module}");
                of_modules.push(built_in(module, &place, &forms));
                definitions.insert(place, of_options(&forms, module));
                names.push(module);
            }
        }
        if !names.is_empty() {
            entry["properties"]["module"]["anyOf"] = json!([{"enum": names}, {}]);
            entry["allOf"] = of_modules.into();
        }
        if section == "tracers" {
            // An older form is just the name of the module.
            entry["type"] = json!(["object", "string"]);
            properties.insert("imports".to_owned(), section_of("imports", entry.clone()));
        }
        properties.insert(section.to_owned(), section_of(section, entry));
    }
    let follower = object(&forms_of_follower(), &["## Followers"]);
    let mut followers = section_of("followers", follower);
    followers["type"] = json!(["object", "array", "null"]);
    followers["maxItems"] = 0.into();
    properties.insert("followers".to_owned(), followers);
    for section in SECTIONS {
        let known = properties.entry(section).or_insert_with(|| json!({}));
        if let Some(meaning) = meaning(&["### Sections"], section) {
            known["description"] = meaning.into();
        }
    }
    properties["chains"]["type"] = "object".into();
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "config.yml of conserver",
        "description": "Links, storages, chains and followers: conserver.yml(5)",
        "type": "object",
        "required": ["chains"],
        "properties": properties,
        "patternProperties": {format!("^{}", read::OWN): {}},
        "additionalProperties": false,
        "definitions": definitions,
    })
}

/// A mapping of names to entries.
fn section_of(section: &str, entry: Value) -> Value {
    let mut shown = json!({"type": ["object", "null"], "additionalProperties": entry});
    if section == "chains" {
        shown["type"] = "object".into();
    }
    shown
}

/// What an entry must hold if its module is this one, built in.
fn built_in(module: &str, place: &str, forms: &OptionForms) -> Value {
    let mut not_native: Vec<Value> = NOT_NATIVE.map(Value::from).into();
    not_native.extend([json!(false), json!(0)]);
    let mut then = json!({
        "properties": {"options": {"$ref": format!("#/definitions/{}", place.replace('/', "~1"))}, "timeout": false},
    });
    if !forms.required.is_empty() {
        then["required"] = json!(["options"]);
    }
    json!({
        "if": {
            "required": ["module"],
            "properties": {"module": {"const": module}, "native": {"not": {"enum": not_native}}},
        },
        "then": then,
    })
}

/// The options of a module.
fn of_options(forms: &OptionForms, module: &str) -> Value {
    let heading = format!("### {module}");
    let mut schema = object(forms, &[&heading]);
    if forms.required.is_empty() {
        schema["type"] = json!(["object", "null"]);
    }
    schema
}

/// A mapping with these keys, which the tables under these headings describe.
fn object(forms: &OptionForms, headings: &[&str]) -> Value {
    let mut properties = Map::new();
    for (name, form) in &forms.known {
        let mut schema = value(&form.kind);
        let text = match &form.kind {
            OptionKind::WithoutEffect(why) => Some(format!("Has no effect: {why}")),
            OptionKind::Refused => Some("Not supported".to_owned()),
            OptionKind::PassedOver => Some("Does nothing".to_owned()),
            _ => meaning(headings, name),
        };
        let of_file = || {
            let option = name.strip_suffix("_file")?;
            let is_secret = forms.kind(option) == Some(&OptionKind::Secret);
            is_secret.then(|| format!("The file that holds `{option}`"))
        };
        if let Some(text) = text.or_else(of_file) {
            schema["description"] = text.into();
        }
        if let Some(default) = &form.default {
            schema["default"] = whole(default);
        }
        properties.insert(name.clone(), schema);
    }
    let mut schema = json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": forms.takes_more,
    });
    if !forms.required.is_empty() {
        schema["required"] = json!(forms.required);
    }
    schema
}

/// A number without `.0`.
fn whole(number: &Value) -> Value {
    match number.as_f64() {
        // The cast saturates, and so far out there is no default.
        Some(float) if number.is_f64() && float.fract() == 0.0 => json!(float as i64),
        _ => number.clone(),
    }
}

/// What an option of this kind may hold.
fn value(kind: &OptionKind) -> Value {
    let text = json!(["string", "number", "boolean", "null"]);
    let texts = json!({"type": ["string", "number", "boolean"]});
    match kind {
        OptionKind::Text | OptionKind::Secret => json!({"type": text}),
        OptionKind::Whole { least, most } => {
            json!({"type": ["integer", "string", "null"], "pattern": NUMBER, "minimum": least, "maximum": most})
        }
        OptionKind::Number => json!({"type": ["number", "string", "null"], "pattern": NUMBER}),
        OptionKind::Seconds => {
            json!({"type": ["number", "string", "null"], "pattern": NUMBER, "minimum": 0})
        }
        OptionKind::Switch => {
            json!({"type": ["boolean", "integer", "string", "null"], "pattern": SWITCH, "minimum": 0, "maximum": 1})
        }
        OptionKind::Permissions => {
            json!({"type": ["integer", "string", "null"], "pattern": PERMISSIONS, "minimum": 0})
        }
        OptionKind::Word(words) => {
            json!({"anyOf": [{"enum": words}, {"type": "null"}, {"type": "string", "pattern": VARIABLE}]})
        }
        OptionKind::Texts => {
            json!({"type": ["array", "string", "number", "boolean", "null"], "items": texts})
        }
        OptionKind::List => json!({"type": ["array", "null"], "items": texts}),
        OptionKind::Tags => json!({
            "type": ["array", "object", "string", "number", "boolean", "null"],
            "items": texts,
            "additionalProperties": texts,
        }),
        OptionKind::TextMapping => {
            json!({"type": ["object", "null"], "additionalProperties": texts})
        }
        OptionKind::SecretMapping => {
            json!({"type": ["object", "null"], "additionalProperties": {"type": text}})
        }
        OptionKind::Mapping => json!({"type": ["object", "null"]}),
        OptionKind::Refused => json!({"type": ["string", "null"], "pattern": BLANK}),
        OptionKind::PassedOver => json!({}),
        OptionKind::WithoutEffect(_) => {
            json!({"type": ["array", "string", "null"], "maxItems": 0, "pattern": BLANK})
        }
    }
}

/// What the table under the first of these headings that has a row for the name says of it.
fn meaning(headings: &[&str], name: &str) -> Option<String> {
    headings.iter().find_map(|heading| {
        let row = rows(heading).find(|cells| cells.iter().take(2).any(|cell| names(cell, name)))?;
        row.last()
            .map(|cell| text_of(cell))
            .filter(|text| !text.is_empty())
    })
}

/// The rows of the tables under a heading, up to the next heading.
fn rows(heading: &str) -> impl Iterator<Item = Vec<&'static str>> + use<'_> {
    let section = MANUAL
        .lines()
        .skip_while(move |line| *line != heading)
        .skip(1);
    let section = section.take_while(|line| !line.starts_with("## ") && !line.starts_with("### "));
    let rows = section.filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.map(|row| row.split(" | ").map(str::trim).collect())
}

/// Whether the cell names this, as the only thing or one of several.
fn names(cell: &str, name: &str) -> bool {
    let quoted = cell.split(", ");
    quoted
        .into_iter()
        .any(|it| it.strip_prefix('`').and_then(|it| it.strip_suffix('`')) == Some(name))
}

/// Markdown without links.
fn text_of(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once('[') {
        text.push_str(before);
        let link = after.split_once("](").and_then(|(label, target)| {
            let (_, behind) = target.split_once(')')?;
            (!label.contains(['[', ']'])).then_some((label, behind))
        });
        rest = match link {
            Some((label, behind)) => {
                text.push_str(label);
                behind
            }
            None => {
                text.push('[');
                after
            }
        };
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_come_from_the_manual_without_its_links() {
        let meaning = meaning(&["### storage.postgres"], "password");
        assert_eq!(meaning.as_deref(), Some("See Secrets"));
        for (markdown, text) in [
            ("a [b](c) d [e](f#g)", "a b d e"),
            ("`[s3_path/]x` [b](c)", "`[s3_path/]x` b"),
            ("[a", "[a"),
        ] {
            assert_eq!(text_of(markdown), text);
        }
    }

    #[test]
    fn each_form_of_an_option_is_that_of_its_accessor() {
        let schema = json_schema();
        let options = &schema["definitions"]["storages/storage.postgres"];
        assert_eq!(options["required"], json!(["database", "user"]));
        assert_eq!(options["properties"]["connect_timeout"]["default"], 10);
        assert_eq!(options["properties"]["port"]["type"][0], "array");
        assert_eq!(
            options["properties"]["sslmode"]["anyOf"][0]["enum"][0],
            "disable"
        );
        assert!(options["properties"]["password_file"]["description"].is_string());
        assert!(options["properties"]["dbname"].is_null());
        let options = &schema["definitions"]["links/links.python"];
        assert_eq!(options["additionalProperties"], true);
        assert_eq!(options["properties"]["max_output"]["minimum"], 1);
    }
}
