//! The schema of config.yml, held against what the program takes and refuses, and against the manual.

use std::collections::BTreeSet;
use std::path::Path;

use conserver::config::{Config, ShownConfig, built_in_modules, json_schema};
use serde_json::{Map, Value, json};

/// Text as a schema takes it for another type.
fn matches(pattern: &str, text: &str) -> bool {
    let is_variable = text.contains("${");
    let text = text.trim();
    let of = |letters: &str| text.chars().all(|c| letters.contains(c));
    if pattern.contains("[Tt][Rr]") {
        let words = ["true", "yes", "on", "1", "false", "no", "off", "0", ""];
        return is_variable || words.contains(&&*text.to_lowercase());
    }
    match pattern {
        r"^[-+0-9a-fA-FxXoO_:.\s]*$|\$\{" => {
            is_variable || of("-+0123456789abcdefABCDEFxXoO_:. \t\n")
        }
        r"^\s*(0[oO]?[0-7]+|[0-9]*)\s*$|\$\{" => is_variable || of("0123456789oO"),
        r"^\s*$" => text.is_empty(),
        r"\$\{" => is_variable,
        "^x-" => text.starts_with("x-"),
        other => panic!("teach this test the pattern {other}"),
    }
}

/// What is wrong with a value, each fault with its place. Knows the part of JSON Schema that the schema uses.
fn faults(root: &Value, schema: &Value, value: &Value, place: &str) -> Vec<String> {
    const KNOWN: [&str; 20] = [
        "$schema",
        "title",
        "description",
        "default",
        "definitions",
        "type",
        "enum",
        "const",
        "pattern",
        "minimum",
        "maximum",
        "items",
        "maxItems",
        "properties",
        "patternProperties",
        "additionalProperties",
        "required",
        "anyOf",
        "allOf",
        "not",
    ];
    let mut found = Vec::new();
    let schema = match schema {
        Value::Bool(true) => return found,
        Value::Bool(false) => return vec![format!("{place}: must not be there")],
        schema => schema.as_object().expect("a schema"),
    };
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        let pointer = target.strip_prefix('#').expect("a place in this file");
        let target = root
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{pointer} is there"));
        return faults(root, target, value, place);
    }
    for key in schema.keys() {
        let known = KNOWN.contains(&key.as_str()) || ["if", "then"].contains(&key.as_str());
        assert!(known, "teach this test the keyword {key}");
    }
    let is = |schema: &Value| faults(root, schema, value, place).is_empty();
    let mut check = |is_good: bool, what: &str| {
        if !is_good {
            found.push(format!("{place}: {what} {value}"));
        }
    };
    if let Some(types) = schema.get("type") {
        let is_type = |name: &Value| match name.as_str().expect("a type") {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("{other} is no type"),
        };
        let is_one = types
            .as_array()
            .map_or_else(|| is_type(types), |all| all.iter().any(is_type));
        check(is_one, "another type:");
    }
    if let Some(words) = schema.get("enum") {
        check(
            words.as_array().expect("a list").contains(value),
            "none of these:",
        );
    }
    if let Some(one) = schema.get("const") {
        check(one == value, "not this one:");
    }
    if let (Some(pattern), Some(text)) = (schema.get("pattern"), value.as_str()) {
        check(
            matches(pattern.as_str().expect("text"), text),
            "another form:",
        );
    }
    for (key, is_good) in [
        ("minimum", f64::ge as fn(&f64, &f64) -> bool),
        ("maximum", f64::le),
    ] {
        if let (Some(limit), Some(number)) = (schema.get(key), value.as_f64()) {
            check(is_good(&number, &limit.as_f64().expect("a number")), key);
        }
    }
    if let Some(all) = schema.get("anyOf") {
        check(
            all.as_array().expect("a list").iter().any(is),
            "none of several:",
        );
    }
    if let Some(not) = schema.get("not") {
        check(!is(not), "excluded:");
    }
    for part in schema
        .get("allOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        found.extend(faults(root, part, value, place));
    }
    if let Some(condition) = schema.get("if")
        && is(condition)
    {
        found.extend(faults(root, &schema["then"], value, place));
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        let inner = values.iter().map(|item| faults(root, items, item, place));
        found.extend(inner.flatten());
    }
    if let (Some(most), Some(values)) = (schema.get("maxItems"), value.as_array()) {
        assert_eq!(most, 0);
        found.extend(values.iter().map(|_| format!("{place}: too many items")));
    }
    let Some(members) = value.as_object() else {
        return found;
    };
    let required = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    for name in required.filter_map(Value::as_str) {
        if !members.contains_key(name) {
            found.push(format!("{place}: {name} is missing"));
        }
    }
    let none = Map::new();
    let of = |key: &str| schema.get(key).and_then(Value::as_object).unwrap_or(&none);
    for (name, member) in members {
        let place = format!("{place}.{name}");
        let mut inner: Vec<&Value> = of("properties").get(name).into_iter().collect();
        let patterns = of("patternProperties").iter();
        inner.extend(
            patterns
                .filter(|(pattern, _)| matches(pattern, name))
                .map(|(_, it)| it),
        );
        if inner.is_empty() {
            inner.extend(schema.get("additionalProperties"));
        }
        for schema in inner {
            found.extend(faults(root, schema, member, &place));
        }
    }
    found
}

/// What the schema says of a file.
pub fn faults_of(schema: &Value, text: &str) -> Vec<String> {
    let shown = ShownConfig::parse(text, Path::new("config.yml"));
    let shown = shown.unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    let value: Value = serde_json::from_str(&shown.json()).expect("JSON");
    faults(schema, schema, &value, "")
}

/// The options of each built-in module, by its section and name.
fn options_of(schema: &Value) -> Vec<(&'static str, &'static str, &Value)> {
    let modules = built_in_modules();
    let options = modules.map(|(section, name)| {
        let options = &schema["definitions"][format!("{section}/{name}")];
        assert!(options.is_object(), "the schema has no {name}");
        (section, name, options)
    });
    options.collect()
}

#[test]
fn the_schema_takes_the_files_that_are_shipped() {
    let schema = json_schema();
    for text in [super::DEFAULT_CONFIG, super::CONTAINER_CONFIG] {
        assert_eq!(faults_of(&schema, text), [""; 0], "{text}");
    }
    let first = super::DEFAULT_CONFIG.lines().next();
    let packed = "\"usr/share/conserver/\", \"644\"],";
    assert!(super::MANIFEST.contains(&format!("config.schema.json\", {packed}")));
    assert_eq!(
        first,
        Some("# yaml-language-server: $schema=/usr/share/conserver/config.schema.json")
    );
}

#[test]
fn the_schema_takes_each_form_of_a_value_that_the_program_takes() {
    let schema = json_schema();
    let text = "\
x-own: {anything: [1]}
ingress_auth: {default: [a]}
imports: {old: office.more, new: {module: office.patches, pip_name: office}}
tracers: {audit: {module: tracers.audit, options: {dlq_vcon_on_error: true}, timeout: '5'}}
links:
  own: {module: links.own, options: {whatever: [1, {a: b}]}, timeout: 120, pip_name: own}
  tagger: {module: links.tag, native: false, options: {any: 1}, timeout: 5}
  pairs: {module: links.tag, options: {tags: {desk: north, priority: 2}}}
  one: {module: links.tag, options: {tags: a}}
  empty: {module: links.tag, options: {tags: []}}
  wait: {module: links.delay, options: {seconds: '1_0.5'}}
  diet: {module: links.diet, options: {s3_bucket: '', aws_region: eu, remove_analysis: 'Yes', timeout: ''}}
  bare: {module: links.sampler, ingress-lists: [], egress-lists: null}
  python: {module: links.python, options: {module: a.b, anything: else, path: /app}}
storages:
  pg:
    module: storage.postgres
    on_outage: defer
    options: {host: [a, b], port: '1,2', database: 5, user: '${USER}', password_file: x, connect_timeout: 0x10}
  files: {module: storage.file, options: {file_permissions: '0644', max_file_size: '${MOST}', compression: 1}}
  mongo: {module: storage.mongo, options: {url: x}}
followers: []
chains:
  main: {ingress_lists: [a, 5], links: [own], storages: [], egress_lists: null, enabled: 'off', timeout: '30'}
  none: {}
";
    assert_eq!(faults_of(&schema, text), [""; 0]);
    for nothing in ["followers: {}", "links:", "tracers: {}", "imports:"] {
        assert_eq!(
            faults_of(&schema, &format!("{nothing}\nchains: {{}}")),
            [""; 0]
        );
    }
}

#[test]
fn the_schema_refuses_what_the_program_warns_of_or_refuses() {
    let schema = json_schema();
    for text in [
        "links: {}",
        "chains: {}\nchain: {a: {}}",
        "chains: [a]",
        "chains: {a: {ingres_lists: [a]}}",
        "chains: {a: {links: a}}",
        "chains: {a: {enabled: perhaps}}",
        "chains: {a: {timeout: soon}}",
        "chains: {a: {tracers: [b]}}",
        "chains: {}\nlinks: {a: {options: {}}}",
        "chains: {}\nlinks: {a: {module: links.tag}}",
        "chains: {}\nlinks: {a: {module: links.tag, options: {tag: [a]}}}",
        "chains: {}\nlinks: {a: {module: links.delay, timeout: 5}}",
        "chains: {}\nlinks: {a: {module: links.delay, on_outage: hold}}",
        "chains: {}\nlinks: {a: {module: links.delay, ingress_lists: [b]}}",
        "chains: {}\nlinks: {a: {module: links.diet, options: {s3_bucket: b}}}",
        "chains: {}\nstorages: {a: {module: storage.file, on_outage: later}}",
        "chains: {}\nstorages: {a: {module: storage.postgres, options: {dbname: a, database: b, user: c}}}",
        "chains: {}\nfollowers: {a: {url: 'http://h', egress_list: b}}",
        "chains: {}\nfollowers: {a: {url: 'http://h', egress_list: b, follower_ingress_list: c, limit: 5}}",
    ] {
        let told = match Config::parse(text, Path::new("config.yml")) {
            Ok(config) => config.warnings.lines().count(),
            Err(errors) => errors.to_string().lines().count(),
        };
        assert!(told > 0, "the program takes {text}");
        assert!(
            !faults_of(&schema, text).is_empty(),
            "the schema takes {text}"
        );
    }
}

/// Something that no option of this form takes.
fn wrong(form: &Value) -> Option<Value> {
    let types = form["type"].as_array();
    let has = |name: &str| types.is_some_and(|types| types.iter().any(|it| it == name));
    if form["anyOf"].is_array() {
        return Some(json!("no_such"));
    }
    if let Some(most) = form["maximum"]
        .as_i64()
        .filter(|most| *most > 1 && *most < i64::MAX)
    {
        return Some(json!(most + 1));
    }
    Some(match () {
        // What does nothing may hold anything.
        () if types.is_none() => return None,
        () if form["pattern"] == r"^\s*$" => json!("something"),
        () if form["pattern"].is_string() => json!("many"),
        () if has("array") && has("object") => json!([["a"]]),
        () if has("array") => json!({"a": "b"}),
        () if has("object") => json!("a word"),
        () => json!(["a"]),
    })
}

#[test]
fn for_each_option_the_schema_and_the_program_refuse_the_same() {
    let schema = json_schema();
    let mut count = 0;
    for (section, module, options) in options_of(&schema) {
        let all = options["properties"].as_object().expect("options");
        for (option, form) in all {
            let Some(wrong) = wrong(form) else {
                continue;
            };
            count += 1;
            let config = json!({
                "chains": {},
                section: {"it": {"module": module, "options": {option: wrong}}},
            });
            let text = config.to_string();
            let found = faults_of(&schema, &text);
            let place = format!("{section}.it.options.{option}");
            assert!(
                found
                    .iter()
                    .any(|fault| fault.starts_with(&format!(".{place}"))),
                "{module}: the schema takes {option}: {wrong}: {found:?}"
            );
            let errors = Config::parse(&text, Path::new("config.yml")).err();
            let errors = errors.map(|errors| errors.to_string()).unwrap_or_default();
            assert!(
                errors.contains(&format!(": {place}")),
                "{module}: the program takes {option}: {wrong}: {errors}"
            );
        }
    }
    assert!(count > 60, "{count}");
}

/// The rows of a module's table: the option, its default and what it means.
fn rows_of(module: &str) -> Vec<(String, String)> {
    let page = super::manual::page("conserver.yml.5.md");
    let section = super::manual::section(&page, &format!("### {module}")).expect(module);
    let (_, table) = section
        .split_once("| option | type | default | meaning |\n")
        .expect(module);
    let lines = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    let rows = lines.map(|line| {
        let cells: Vec<&str> = line.split(" | ").collect();
        let name = cells[0].trim_start_matches("| ").trim_matches('`');
        (name.to_owned(), cells[2].to_owned())
    });
    rows.collect()
}

#[test]
fn the_schema_and_the_manual_have_the_same_options_defaults_and_duties() {
    let schema = json_schema();
    let mut told = Vec::new();
    for (_, module, options) in options_of(&schema) {
        let all = options["properties"].as_object().expect("options");
        let rows = rows_of(module);
        let listed: BTreeSet<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
        let known = all.iter().filter(|(name, form)| {
            let is_of_file = name
                .strip_suffix("_file")
                .is_some_and(|it| all.contains_key(it));
            !is_of_file && form["description"] != "Does nothing"
        });
        let known: BTreeSet<&str> = known.map(|(name, _)| name.as_str()).collect();
        if listed != known {
            told.push(format!(
                "{module}: the manual has {listed:?}, the schema {known:?}"
            ));
        }
        let required = options["required"].as_array().into_iter().flatten();
        let required: BTreeSet<&str> = required.filter_map(Value::as_str).collect();
        for (name, default) in &rows {
            let form = &all[name.as_str()];
            if form["description"].as_str().is_none_or(str::is_empty) {
                told.push(format!("{module}: the schema does not say what {name} is"));
            }
            if (default == "required") != required.contains(name.as_str()) {
                told.push(format!("{module}: is {name} required?"));
            }
            // Words tell of something else than a value.
            let Some(default) = default
                .strip_prefix('`')
                .and_then(|it| it.strip_suffix('`'))
            else {
                continue;
            };
            let known = match &form["default"] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            // Of some, the module itself knows it.
            if !default.contains('`') && form["default"] != Value::Null && known != default {
                told.push(format!(
                    "{module}: {name} is {default} in the manual, {known} in the code"
                ));
            }
        }
    }
    assert!(
        told.is_empty(),
        "packaging/manual/conserver.yml.5.md:\n{}",
        told.join("\n")
    );
    for section in [
        "links",
        "storages",
        "chains",
        "tracers",
        "followers",
        "imports",
        "ingress_auth",
    ] {
        assert!(
            schema["properties"][section]["description"].is_string(),
            "{section}"
        );
    }
}
