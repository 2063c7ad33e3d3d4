//! What holds for every text that claims to be a configuration.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::{Config, ConfigErrors};

/// A configuration as deployments have it.
const EXAMPLE: &str = "\
ingress_auth: &shared {table_name: vcons, port: '5432'}
links:
  tagger: {module: links.tag, pip_name: something, options: {tags: [a, b]}}
  hook:
    module: links.webhook
    options:
      webhook-urls: ['https://example.org/a?b=c']
      headers: {authorization: Bearer x}
storages:
  pg:
    module: storage.postgres
    options:
      <<: *shared
      user: u   # é
      password: '0123'
      host: localhost
      database: d
  files: {module: storage.file, options: {path: /data, file_permissions: 0o644, max_file_size: 1000}}
chains:
  main:
    links: [tagger, hook]
    storages: [pg, files]
    ingress_lists: [default]
    egress_lists: [done]
    enabled: 1
    timeout: 30.5
";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(text, Path::new("config.yml"))
}

/// Parses, and checks that whatever is wrong is said with its place.
fn judged(text: &str) -> Result<(), TestCaseError> {
    let Err(errors) = parse(text) else {
        return Ok(());
    };
    // YAML ends a line at a carriage return, too, and a fault may be after the last one.
    let lines = text.matches(['\n', '\r']).count() + 2;
    prop_assert!(!errors.faults().is_empty());
    for fault in errors.faults() {
        prop_assert!(!fault.message.is_empty());
        match fault.line {
            Some(line) => prop_assert!((1..=lines).contains(&line), "{fault:?} of {lines}"),
            None => prop_assert!(
                fault.message.contains("a configuration needs")
                    || fault.message.contains("CONSERVER_PYTHON_PATH"),
                "{fault:?}"
            ),
        }
    }
    prop_assert!(errors.to_string().starts_with("config.yml:"));
    Ok(())
}

fn word() -> impl Strategy<Value = String> {
    let known = vec![
        "links",
        "storages",
        "chains",
        "tracers",
        "module",
        "options",
        "pip_name",
        "enabled",
        "timeout",
        "ingress_lists",
        "egress_lists",
        "storage.file",
        "storage.postgres",
        "links.tag",
        "links.webhook",
        "port",
        "host",
        "path",
        "tags",
        "main",
        "<<",
        "~",
        "0644",
    ];
    prop_oneof![
        4 => prop::sample::select(known).prop_map(str::to_owned),
        1 => "[a-z]{1,3}",
        1 => "-?[0-9]{1,400}",
        1 => "-?[0-9]{0,3}[.][0-9]{0,40}([eE][+-]?[0-9]{1,9})?",
        1 => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ]
}

/// A value in flow style: words, lists, mappings with keys twice, anchors, aliases and tags.
fn flow() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        6 => word(),
        1 => "[ab]".prop_map(|name| format!("*{name}")),
        1 => prop::sample::select(vec!["!!int 1", "!x y", "!!binary x"]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        let anchor = prop_oneof![4 => Just(""), 1 => Just("&a "), 1 => Just("&b ")];
        let entry = (word(), inner.clone()).prop_map(|(key, value)| format!("{key}: {value}"));
        let list =
            prop::collection::vec(inner, 0..6).prop_map(|all| format!("[{}]", all.join(", ")));
        let mapping =
            prop::collection::vec(entry, 0..6).prop_map(|all| format!("{{{}}}", all.join(", ")));
        (anchor, prop_oneof![list, mapping]).prop_map(|(anchor, value)| format!("{anchor}{value}"))
    })
}

/// A file of which the first two levels are as they should be.
fn file() -> impl Strategy<Value = String> {
    let module = (word(), flow()).prop_map(|(name, options)| {
        format!("  {name}: {{module: storage.file, options: {options}}}\n")
    });
    let chain = ("[ab]", flow(), flow()).prop_map(|(name, links, lists)| {
        format!("  {name}:\n    links: {links}\n    ingress_lists: {lists}\n")
    });
    let modules = prop::collection::vec(module, 0..3);
    let chains = prop::collection::vec(chain, 0..3);
    (modules, chains, flow()).prop_map(|(modules, chains, rest)| {
        format!(
            "storages:\n{}chains:\n{}followers: {rest}\n",
            modules.concat(),
            chains.concat()
        )
    })
}

#[test]
fn the_example_is_valid() {
    parse(EXAMPLE).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn faults_of_arbitrary_text_have_a_place(text in "(?s).{0,200}") {
        judged(&text)?;
    }

    #[test]
    fn faults_of_arbitrary_yaml_have_a_place(text in prop_oneof![file(), flow()]) {
        judged(&text)?;
    }

    #[test]
    fn faults_of_a_damaged_example_have_a_place(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..5usize, any::<char>()), 1..8)
    ) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (first, second, kind, letter) in edits {
            let (at, other) = (first.index(text.len()), second.index(text.len()));
            match kind {
                0 => text[at] = letter,
                1 => text.insert(at, letter),
                2 => text.swap(at, other),
                3 => drop(text.drain(at.min(other)..at.max(other).min(at.min(other) + 40))),
                _ => {
                    let copied: Vec<char> = text[at..].iter().take(40).copied().collect();
                    text.splice(other..other, copied);
                }
            }
            if text.is_empty() {
                break;
            }
        }
        judged(&text.into_iter().collect::<String>())?;
    }

    #[test]
    fn no_bytes_in_the_file_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        if let Err(errors) = Config::load(file.path()) {
            prop_assert!(errors.to_string().starts_with(&file.path().display().to_string()));
        }
    }
}

/// The faults of a text that tries to take more than its share.
fn refused(text: &str) -> String {
    parse(text)
        .err()
        .map_or_else(|| panic!("it is accepted"), |errors| errors.to_string())
}

#[test]
fn a_long_text_with_many_aliases_is_refused_before_it_fills_the_memory() {
    let long = "x".repeat(1 << 20);
    let text = format!("chains:\na: &a {long}\nb: [{}]\n", "*a, ".repeat(50_000));
    assert!(refused(&text).contains("config.yml:3: with its aliases replaced"));
    let merged = format!(
        "chains:\na: &a {{k: {long}}}\nb:\n  <<: [{}]\n",
        "*a, ".repeat(50_000)
    );
    assert!(refused(&merged).contains("config.yml:4: with its aliases replaced"));
}

#[test]
fn depth_is_bounded_whatever_ends_a_line() {
    for end in ["\n", "\r", "\r\n"] {
        let text = format!("chains:{end}  {}x", "- ".repeat(100_000));
        assert_eq!(refused(&text), "config.yml:2: is nested too deeply");
    }
}

#[test]
fn laughs_by_number_are_refused() {
    let mut text = "chains:\na0: &a0 {k: v}\n".to_owned();
    for n in 1..12 {
        let all = format!("*a{}, ", n - 1).repeat(10);
        text += &format!("a{n}: &a{n} {{<<: [{all}], l: [{all}]}}\n");
    }
    assert!(refused(&text).starts_with("config.yml:"));
}

#[test]
fn many_faults_do_not_each_list_everything() {
    let links: String = (0..5_000)
        .map(|n| format!("  n{n}: {{module: links.tag}}\n"))
        .collect();
    let missing: BTreeSet<String> = (0..5_000).map(|n| format!("m{n}")).collect();
    let names: Vec<String> = missing.into_iter().collect();
    let text = format!(
        "links:\n{links}chains:\n  main: {{links: [{}]}}\n",
        names.join(", ")
    );
    let errors = refused(&text);
    assert!(errors.contains("(defined: n0, n1, ") && errors.contains(" and 4980 more)"));
    assert!(errors.len() < 2 << 20, "{} bytes", errors.len());
}

#[test]
fn an_endless_key_is_a_fault_that_does_not_show_it() {
    let errors = refused(&format!("chains:\n? {}\n: 1\n", "k".repeat(100_000)));
    assert_eq!(errors, "config.yml:2: a key is longer than 1024 bytes");
}

#[test]
fn a_file_without_end_is_not_read_to_its_end() {
    let endless = Config::load(Path::new("/dev/zero"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        endless,
        "/dev/zero: could not be read: it is not a regular file"
    );
}
