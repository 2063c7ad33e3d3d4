//! A configuration as it is shown: the file's own text as a tree, with its anchors replaced and its secrets hidden.
//!
//! Values from variables and files stay as they are written (`${PG_PASSWORD}`, `password_file: pg`): that tells where
//! they come from, shows none of them, and can be read back. Text that stands in the file itself is hidden if its
//! option is a secret one of a built-in module, if its name tells so, and where it is the password of a URL.

use std::path::Path;

use super::read::OWN;
use super::schema::{forms_of_follower, forms_of_module};
use super::{ConfigErrors, source};
use crate::options::forms::{OptionForms, OptionKind};
use crate::options::scalars;
use crate::options::substitution::is_reference;
use crate::options::yaml::{self, Entry, Mapping, Node, NodeKind};
use crate::secret::names_a_secret;
use crate::visible::is_visible;

/// What stands for hidden text.
const HIDDEN: &str = "***";

/// What may stand before a token in a header.
const SCHEMES: [&str; 4] = ["Basic", "Bearer", "Token", "ApiKey"];

/// A configuration to be shown.
pub struct ShownConfig {
    sections: Mapping,
}

/// A place in a configuration that may get a comment.
#[derive(Debug, Clone, Copy)]
pub enum ShownPlace<'a> {
    /// An entry of a section, on this line of the file.
    Entry(usize),
    /// A text, under this key.
    Text(&'a str, &'a str),
}

impl ShownConfig {
    /// The text of the file at `path`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn text_of_file(path: &Path) -> Result<String, ConfigErrors> {
        source::read(path).map_err(|fault| ConfigErrors::new(path, vec![fault]))
    }

    /// The text of the configuration in force, which a daemon keeps in its runtime folder.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn text_in_force(path: &Path) -> Result<String, ConfigErrors> {
        source::read_kept(path).map_err(|fault| ConfigErrors::new(path, vec![fault]))
    }

    /// Takes it from `text`, the content of the file at `path`.
    ///
    /// # Errors
    /// It is not YAML.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigErrors> {
        let document = yaml::parse(text).map_err(|faults| ConfigErrors::new(path, faults))?;
        let mut sections = match document.map(|node| node.kind) {
            Some(NodeKind::Mapping(sections)) => sections,
            _ => Mapping::new(),
        };
        // Their anchors are replaced where they are repeated, and nothing tells which of their values are secret.
        sections.retain(|section, _| !section.starts_with(OWN));
        for (section, entry) in &mut sections {
            hide_section(section, &mut entry.value);
        }
        Ok(Self { sections })
    }

    /// As JSON, typed as Python modules get it.
    pub fn json(&self) -> String {
        scalars::object(&self.sections)
    }

    /// As YAML, without a line break at its end. `comment` returns what is to be said of a place.
    pub fn yaml(&self, comment: &dyn Fn(ShownPlace<'_>) -> Option<String>) -> String {
        let mut writer = YamlWriter {
            text: String::new(),
            comment,
        };
        for (section, entry) in &self.sections {
            writer.entry(section, entry, 0);
        }
        writer.text.truncate(writer.text.trim_end().len());
        writer.text
    }
}

fn hide_section(section: &str, node: &mut Node) {
    let has_names = [
        "links",
        "storages",
        "chains",
        "followers",
        "tracers",
        "imports",
    ];
    let NodeKind::Mapping(entries) = &mut node.kind else {
        hide_all(node);
        return;
    };
    if !has_names.contains(&section) {
        // The keys of the API server, by the names of lists; or one that has no effect.
        entries
            .values_mut()
            .for_each(|entry| hide_all(&mut entry.value));
        return;
    }
    let follower = (section == "followers").then(forms_of_follower);
    for entry in entries.values_mut() {
        // Its own name is no name of a secret.
        let NodeKind::Mapping(keys) = &mut entry.value.kind else {
            hide_in_text(&mut entry.value);
            continue;
        };
        match section {
            "chains" => {}
            "links" | "storages" => {
                let module = match keys.get("module").map(|it| &it.value.kind) {
                    Some(NodeKind::Scalar(module)) => forms_of_module(section, module),
                    _ => None,
                };
                let mut options = keys
                    .get_mut("options")
                    .map(|it| std::mem::replace(&mut it.value, nothing()));
                hide_options(keys, None);
                if let Some(Node {
                    kind: NodeKind::Mapping(options),
                    ..
                }) = &mut options
                {
                    hide_options(options, module.as_ref());
                }
                if let (Some(entry), Some(options)) = (keys.get_mut("options"), options) {
                    entry.value = options;
                }
            }
            _ => hide_options(keys, follower.as_ref()),
        }
    }
}

fn nothing() -> Node {
    Node {
        line: 1,
        kind: NodeKind::Null,
        plain: true,
    }
}

/// Hides what is secret in these options; `forms` is what is known of them.
fn hide_options(options: &mut Mapping, forms: Option<&OptionForms>) {
    for (key, Entry { value, .. }) in options {
        match forms.and_then(|forms| forms.kind(key)) {
            Some(OptionKind::Secret | OptionKind::SecretMapping) => hide_all(value),
            Some(
                OptionKind::Whole { .. }
                | OptionKind::Number
                | OptionKind::Seconds
                | OptionKind::Switch
                | OptionKind::Permissions
                | OptionKind::Word(_),
            ) => {}
            // Their keys are names of tags.
            Some(OptionKind::Tags | OptionKind::TextMapping) => hide_in_text(value),
            _ if key.ends_with("_file") => hide_in_text(value),
            _ if names_a_secret(key) => hide_all(value),
            _ => hide_in(value),
        }
    }
}

/// Hides what is secret by its name, at any depth, and the passwords of URLs.
fn hide_in(node: &mut Node) {
    match &mut node.kind {
        NodeKind::Mapping(entries) => hide_options(entries, None),
        NodeKind::Sequence(items) => items.iter_mut().for_each(hide_in),
        NodeKind::Scalar(_) | NodeKind::Null => hide_in_text(node),
    }
}

/// Hides each text.
fn hide_all(node: &mut Node) {
    each_text(node, &|text| hidden(text));
}

/// Hides the passwords of URLs in each text.
fn hide_in_text(node: &mut Node) {
    each_text(node, &|text| match text.contains("://") {
        true => hidden_url(text, false),
        false => text.to_owned(),
    });
}

fn each_text(node: &mut Node, change: &dyn Fn(&str) -> String) {
    match &mut node.kind {
        NodeKind::Null => {}
        NodeKind::Scalar(text) => *text = change(text),
        NodeKind::Sequence(items) => items.iter_mut().for_each(|item| each_text(item, change)),
        NodeKind::Mapping(entries) => {
            for entry in entries.values_mut() {
                each_text(&mut entry.value, change);
            }
        }
    }
}

/// A secret text: what stands in it itself is hidden, the names of variables and files are not.
fn hidden(text: &str) -> String {
    if text.contains("://") {
        hidden_url(text, true)
    } else {
        without_literals(text)
    }
}

/// A text with the names of variables and files alone.
fn without_literals(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    loop {
        let (literal, reference) = match reference_in(rest) {
            Some((start, end)) => (&rest[..start], Some((&rest[start..end], &rest[end..]))),
            None => (rest, None),
        };
        let is_scheme = reference.is_some() && SCHEMES.contains(&literal.trim());
        let is_told = literal.trim().is_empty() || is_scheme;
        shown.push_str(if is_told { literal } else { HIDDEN });
        match reference {
            Some((named, behind)) => {
                shown.push_str(named);
                rest = behind;
            }
            None => return shown,
        }
    }
}

/// A text without the names of variables and files.
fn literals(text: &str) -> String {
    let mut found = String::new();
    let mut rest = text;
    while let Some((start, end)) = reference_in(rest) {
        found.push_str(&rest[..start]);
        rest = &rest[end..];
    }
    found + rest
}

/// Where the first `${…}` that names a variable or a file begins and ends. `$${` is the text `${`.
fn reference_in(text: &str) -> Option<(usize, usize)> {
    let mut from = 0;
    while let Some(found) = text.get(from..)?.find("${") {
        let start = from + found;
        let inside = &text[start + 2..];
        if !text[..start].ends_with('$')
            && let Some((name, _)) = inside.split_once('}')
            && is_reference(name)
        {
            return Some((start, start + name.len() + 3));
        }
        from = start + 2;
    }
    None
}

/// A text with a URL in it: without its password and the values of its query. A text that is secret must be one URL
/// to be shown, and is shown without the path on a web server, as a webhook's is secret.
///
/// Passwords may hold anything that ends a URL, unescaped. So the last `@` counts, wherever it stands, and where it
/// may belong to a secret query or path as well, nothing behind the scheme is shown.
fn hidden_url(text: &str, is_secret: bool) -> String {
    let Some((before, after)) = text.split_once("://") else {
        return without_literals(text);
    };
    let is_in_scheme = |c: char| c.is_ascii_alphanumeric() || "+.-".contains(c);
    let scheme = before.rsplit(|c| !is_in_scheme(c)).next().unwrap_or("");
    let is_web = ["http", "https"]
        .iter()
        .any(|it| scheme.eq_ignore_ascii_case(it));
    if is_secret && (scheme.is_empty() || scheme != before) {
        return without_literals(text);
    }
    let mut shown = format!("{before}://");
    let (login, place) = match after.rsplit_once('@') {
        Some((login, place)) => (Some(login), place),
        None => (None, after),
    };
    let (place, query) = match place.split_once(['?', '#']) {
        Some((place, query)) => (place, Some(query)),
        None => (place, None),
    };
    let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    if let Some(login) = login {
        // Not one URL, but several settings, of which another may be the one with the `@`.
        let splits = |c: char| c.is_whitespace() || ";,&\"'".contains(c);
        if is_secret && literals(login).contains(splits) {
            return without_literals(text);
        }
        let ends = if is_secret && is_web { "?#/" } else { "?#" };
        if literals(login).contains(|c| ends.contains(c)) {
            return shown + &without_literals(after);
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._~%+-".contains(c);
        match login.split_once(':').unwrap_or((login, "")) {
            ("", "") => {}
            // A user without a password may be a token.
            (token, "") => shown.push_str(&without_literals(token)),
            (user, password) if literals(user).chars().all(is_plain) => {
                shown.push_str(&format!("{user}:{}", without_literals(password)));
            }
            _ => shown.push_str(&without_literals(login)),
        }
        shown.push('@');
    }
    let hides_path = is_secret && is_web && path.len() > 1;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._~%+-:/,[]".contains(c);
    let told = if hides_path { host } else { place };
    if is_secret && !literals(told).chars().all(is_plain) {
        return without_literals(text);
    }
    shown.push_str(told);
    if hides_path {
        shown.push('/');
        shown.push_str(&without_literals(&path[1..]));
    }
    if let Some(query) = query {
        shown.push('?');
        shown.push_str(&without_literals(query));
    }
    shown
}

/// Writes a tree as YAML, each value on a line of its own.
struct YamlWriter<'a> {
    text: String,
    comment: &'a dyn Fn(ShownPlace<'_>) -> Option<String>,
}

impl YamlWriter<'_> {
    fn entry(&mut self, key: &str, entry: &Entry, depth: usize) {
        self.indent(depth);
        self.text.push_str(&yaml_text(key));
        self.text.push(':');
        let place = (depth == 1).then_some(ShownPlace::Entry(entry.line));
        self.value(key, &entry.value, depth, place);
    }

    /// The value after a key or the dash of an item.
    fn value(&mut self, key: &str, node: &Node, depth: usize, place: Option<ShownPlace<'_>>) {
        match &node.kind {
            NodeKind::Sequence(items) if !items.is_empty() => {
                self.end_line(place);
                for item in items {
                    self.indent(depth + 1);
                    self.text.push('-');
                    self.value(key, item, depth + 1, None);
                }
            }
            NodeKind::Mapping(entries) if !entries.is_empty() => {
                self.end_line(place);
                for (key, entry) in entries {
                    self.entry(key, entry, depth + 1);
                }
            }
            kind => {
                self.text.push(' ');
                let place = match kind {
                    NodeKind::Scalar(text) => {
                        self.text.push_str(&scalar(text, node.plain));
                        place.or(Some(ShownPlace::Text(key, text)))
                    }
                    other => {
                        self.text.push_str(match other {
                            NodeKind::Sequence(_) => "[]",
                            NodeKind::Mapping(_) => "{}",
                            _ => "null",
                        });
                        place
                    }
                };
                self.end_line(place);
            }
        }
    }

    fn indent(&mut self, depth: usize) {
        self.text.extend(std::iter::repeat_n("  ", depth));
    }

    fn end_line(&mut self, place: Option<ShownPlace<'_>>) {
        if let Some(comment) = place.and_then(|place| (self.comment)(place)) {
            self.text.push_str("  # ");
            self.text.push_str(&comment);
        }
        self.text.push('\n');
    }
}

/// A single value. One that had no quotes gets none if it can do without: they may change what it means.
fn scalar(text: &str, plain: bool) -> String {
    if plain && needs_no_quotes(text) {
        return text.to_owned();
    }
    yaml_text(text)
}

/// A text as a YAML value on one line, in quotes if it could be anything else without.
pub fn yaml_text(text: &str) -> String {
    let is_text = |node: &Node| scalars::value(node).starts_with('"');
    let without_quotes = Node {
        line: 1,
        kind: NodeKind::Scalar(text.to_owned()),
        plain: true,
    };
    // Of what begins with a digit or sign, other readers may make more than we do: dates, times.
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || "/$_".contains(c));
    if begins && needs_no_quotes(text) && is_text(&without_quotes) {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if is_visible(c) => quoted.push(c),
            c if c as u32 <= 0xffff => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    quoted.push('"');
    quoted
}

/// Whether the text can stand in a block of YAML as it is.
fn needs_no_quotes(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphanumeric() || "/.$_+-".contains(c));
    let allowed = |c: char| c.is_ascii_alphanumeric() || " /.$_+-:{}(),@=%;~^*?!&".contains(c);
    let is_dash = |c: char| c == '-';
    let is_marked = text.starts_with("- ") || text.trim_matches(is_dash).is_empty();
    first
        && text.chars().all(allowed)
        && !is_marked
        && !text.starts_with("---")
        && !text.starts_with("...")
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> ShownConfig {
        ShownConfig::parse(text, Path::new("config.yml")).unwrap()
    }

    fn yaml(text: &str) -> String {
        shown(text).yaml(&|_| None)
    }

    #[test]
    fn what_is_shown_has_no_secret_and_all_else() {
        let text = "\
x-mail: &mail {webhook-urls: ['https://hooks.example.org/T0/hunter2?x=hunter2'], timeout: 10}
ingress_auth: {default: hunter2}
links:
  tell: {module: links.webhook, options: {<<: *mail, headers: {Authorization: Bearer hunter2, X-Key: 'Bearer ${KEY}'}}}
  auth: {module: links.exec, options: {command: [run, 'redis://u:hunter2@h/0'], env: {PLAIN: hunter2}, timeout: '60'}}
  own: {module: links.own, options: {api_key: hunter2, model: gpt, deep: [{password: hunter2}], budget: 0644}}
storages:
  pg:
    module: storage.postgres
    options: {user: u, database: '0123', password: hunter2, connect_timeout: 5, host: ['a', b], sslmode: prefer}
  pg2: {module: storage.postgres, options: {user: u, database: d, password_file: pg-password, password: 'a${B}'}}
  cache: {module: storage.redis_storage, options: {redis_url: 'rediss://me:hunter2@cache:6379/2', expires: 60}}
  s3: {module: storage.s3, options: {aws_bucket: b, endpoint_url: 'https://k:hunter2@h/p', aws_access_key_id: hunter2}}
followers:
  far: {url: 'https://far/api', auth_token: hunter2, egress_list: a, follower_ingress_list: b}
tracers: {audit: {module: t, options: {token: hunter2}}}
chains:
  auth-token: {ingress_lists: [a], timeout: 5, enabled: yes, storages: [pg]}
";
        let yaml = yaml(text);
        assert!(!yaml.contains("hunter2"), "{yaml}");
        for line in [
            "      - https://hooks.example.org/***?***",
            "        Authorization: \"***\"",
            "        X-Key: Bearer ${KEY}",
            "        - redis://u:***@h/0",
            "        PLAIN: \"***\"",
            "      timeout: \"60\"",
            "      api_key: \"***\"",
            "      budget: 0644",
            "      database: \"0123\"",
            "      connect_timeout: 5",
            "      password_file: pg-password",
            "      password: \"***${B}\"",
            "      redis_url: rediss://me:***@cache:6379/2",
            "      endpoint_url: https://k:***@h/p",
            "    auth_token: \"***\"",
            "  auth-token:",
            "    enabled: yes",
        ] {
            let is_there = yaml.lines().any(|it| it.trim() == line.trim());
            assert!(is_there, "{line}\n{yaml}");
        }
        let json: serde_json::Value = serde_json::from_str(&shown(text).json()).unwrap();
        assert_eq!(json["links"]["own"]["options"]["budget"], 0o644);
        assert_eq!(json["chains"]["auth-token"]["enabled"], true);
        assert!(!json.to_string().contains("hunter2"));
    }

    #[test]
    fn what_names_a_variable_stays_and_what_only_looks_so_does_not() {
        for (text, expected) in [
            ("${A}", "${A}"),
            ("Bearer ${file:a b}", "Bearer ${file:a b}"),
            ("Bearer x", "***"),
            ("$${A}", "***"),
            ("$${A}${B}", "***${B}"),
            ("${A", "***"),
            ("", ""),
            ("https://h/${A}", "https://h/${A}"),
            ("https://${A}:${B}@${C}/", "https://${A}:${B}@${C}/"),
            ("redis://:a/b@c@h:1/2", "redis://:***@h:1/2"),
            ("redis://token@h", "redis://***@h"),
            ("redis://u:a#b@h/1", "redis://***"),
            ("redis://u:a=b@h/1", "redis://u:***@h/1"),
            ("redis://h password=@b", "***"),
            ("redis://u:${A}@h", "redis://u:${A}@h"),
            ("https://h/p?t=a@b", "https://***"),
            ("https://h/a@b", "https://***"),
            ("A=x;B=https://h/", "***"),
            ("redis://h/0 a", "***"),
            ("https://h;k=v/p", "***"),
            ("${a b}", "***"),
        ] {
            assert_eq!(hidden(text), expected, "{text}");
        }
        let several = "run redis://h/0 redis://u:a@h 'x'";
        assert_eq!(hidden_url(several, false), "run redis://***@h 'x'");
    }

    #[test]
    fn comments_stand_where_they_belong() {
        let text = "links:\n  a:\n    module: links.x\n    options: {b: ['${C}', d]}\nchains: {}";
        let yaml = shown(text).yaml(&|place| match place {
            ShownPlace::Entry(line) => Some(format!("line {line}")),
            ShownPlace::Text(key, text) => text.contains("${").then(|| format!("{key}!")),
        });
        let expected = "\
links:
  a:  # line 2
    module: links.x
    options:
      b:
        - ${C}  # b!
        - d
chains: {}";
        assert_eq!(yaml, expected);
    }

    fn tree() -> impl Strategy<Value = serde_json::Value> {
        let text = prop_oneof![
            any::<String>(),
            "[-+0-9a-z:.#&*!|>%@`'\"{}\\[\\], \n~?]{0,8}",
            Just("null".to_owned()),
            Just("yes".to_owned()),
        ];
        let leaf = text.prop_map(serde_json::Value::from);
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::btree_map("[^<]{0,8}", inner, 0..4)
                    .prop_map(|members| members.into_iter().collect::<serde_json::Value>()),
            ]
        })
    }

    /// Places in a configuration where a text is secret, or a part of a URL in it is.
    const PLACES: [(&str, bool); 9] = [
        (
            "x-pw: &pw TEXT\nstorages: {a: {module: storage.postgres, options: {password: *pw}}}",
            true,
        ),
        (
            "x-values: {pg: &pw TEXT}\nstorages: {a: {module: storage.own, options: {password: *pw}}}",
            true,
        ),
        (
            "x-urls: [&url TEXT]\nlinks: {a: {module: links.own, options: {url: *url}}}",
            false,
        ),
        ("unknown: {a: [TEXT]}", true),
        ("ingress_auth: TEXT", true),
        (
            "storages: {a: {module: storage.own, options: {connection_string: TEXT}}}",
            true,
        ),
        (
            "links: {a: {module: links.webhook, options: {webhook-urls: [TEXT]}}}",
            true,
        ),
        (
            "links: {a: {module: links.exec, options: {command: [run, TEXT]}}}",
            false,
        ),
        ("followers: {a: {url: TEXT, auth_token: TEXT}}", false),
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_secret_that_was_put_in_comes_out(
            before in "[ -#%-~]{0,6}",
            behind in "[ -#%-~]{0,6}",
            scheme in "(redis|https|HTTP|unix|s3[+]x)",
            user in "[a-z%]{0,3}",
            host in "[a-z0-9.:]{1,8}",
            end in "[a-z0-9/?&=#%.]{0,12}",
        ) {
            let secret = format!("{before}hunter2{behind}");
            let in_urls = [
                format!("{scheme}://{user}:{secret}@{host}{end}"),
                format!("{scheme}://{host}/?{secret}"),
                format!("{scheme}://{host}#t={secret}&x"),
                format!("run {scheme}://{user}:{secret}@{host}"),
            ];
            let in_texts = [
                secret.clone(),
                format!("a={secret}://{host}"),
                format!("AccountKey={secret};Url={scheme}://{host}{end}"),
                format!("{scheme}://{host} password={secret}"),
                format!("{scheme}://{host};AccountKey={secret}"),
                format!("https://{host}/{end}/{secret}"),
            ];
            for (place, is_secret) in PLACES {
                let texts = in_texts.iter().filter(|_| is_secret).chain(&in_urls);
                for text in texts {
                    let text = place.replace("TEXT", &serde_json::json!(text).to_string());
                    let config = shown(&text);
                    let shown = config.yaml(&|_| None) + &config.json();
                    prop_assert!(!shown.contains("hunter2"), "{text}\n{shown}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read_back(value in tree()) {
            // JSON is YAML.
            let text = serde_json::json!({"chains": {"a": value}}).to_string();
            if let Ok(config) = ShownConfig::parse(&text, Path::new("config.yml")) {
                let yaml = config.yaml(&|_| None);
                prop_assert!(yaml.chars().all(|c| c == '\n' || is_visible(c)), "{yaml:?}");
                prop_assert_eq!(shown(&yaml).json(), config.json(), "{}", yaml);
            }
        }

        #[test]
        fn values_without_quotes_mean_the_same_when_they_are_shown(text in "[-+0-9a-zA-Z_.:~]{1,10}") {
            let config = format!("chains: {{}}\nlinks: {{a: {{options: {{b: {text}}}}}}}");
            if let Ok(config) = ShownConfig::parse(&config, Path::new("config.yml")) {
                let yaml = config.yaml(&|_| None);
                prop_assert_eq!(shown(&yaml).json(), config.json(), "{}", yaml);
            }
        }
    }
}
