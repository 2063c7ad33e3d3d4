//! Whole configurations: what is accepted, and what is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faults;
mod warnings;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::environment::Environment;
use super::{Config, ConfigErrors, Options};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::link::{self, Link, LinkError, Next};
use crate::storage::{self, Storage};
use crate::vcon::{Outgoing, Vcon, VconId};

/// A link that asks for its options and does nothing.
struct Tag;

impl Link for Tag {
    fn run(&mut self, _: &mut Vcon, _: &mut link::Context<'_>) -> Result<Next, LinkError> {
        Ok(Next::Continue)
    }
}

fn open_tag(options: &mut Options) -> Box<dyn Link> {
    options.strings("tags");
    Box::new(Tag)
}

/// A storage that shows its options through `probe`.
struct Kept(String);

impl Storage for Kept {
    fn save(&mut self, _: &Outgoing, _: Deadline) -> Result<(), Failure> {
        Ok(())
    }
    fn get(&mut self, _: &VconId, _: Deadline) -> Result<Option<String>, Failure> {
        Ok(None)
    }
    fn delete(&mut self, _: &VconId) -> Result<(), Failure> {
        Ok(())
    }
    fn longest_call(&self) -> Duration {
        Duration::ZERO
    }
    fn probe(&mut self) -> Result<(), Failure> {
        Err(Failure::permanent(self.0.clone()))
    }
}

fn open_kept(options: &mut Options) -> Box<dyn Storage> {
    let host = options.required_string("host");
    let port = options.integer_or("port", 5432, 1..=65535);
    let tls = options.bool_or("tls", false);
    let mode = options.mode_or("mode", 0o600);
    let wait = options.seconds_or("wait", 1.5);
    let password = options.secret("password");
    let headers = options.headers("headers");
    if host == "nowhere" {
        options.fault("host", "leads nowhere");
    }
    let password = password.map(|secret| secret.reveal().to_owned());
    Box::new(Kept(format!(
        "{host}:{port} tls={tls} mode={mode:o} wait={wait:?} password={password:?} headers={headers:?}"
    )))
}

const LINKS: &[link::Module] = &[
    link::Module {
        name: "links.tag",
        open: open_tag,
    },
    link::Module {
        name: "links.delay",
        open: open_tag,
    },
];
const STORAGES: &[storage::Module] = &[storage::Module {
    name: "storage.kept",
    open: open_kept,
}];

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    let environment = Arc::new(Environment::of([("WORD", "hunter2")]));
    Config::parse_with(text, Path::new("config.yml"), LINKS, STORAGES, &environment)
}

fn faults(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(errors) => errors.to_string(),
    }
}

/// One line for each warning.
fn warnings(text: &str) -> String {
    let config = parse(text).unwrap_or_else(|errors| panic!("{errors}"));
    let lines: Vec<String> = config.warnings.lines().collect();
    lines.join("\n")
}

/// The options of one storage, as it has read them.
fn opened(options: &str) -> String {
    let text = format!(
        "storages:\n  pg:\n    module: storage.kept\n    options: {options}\nchains: {{}}\n"
    );
    let config = parse(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let shown = config.storages["pg"].open_storage().probe().unwrap_err();
    shown.message
}

const WHOLE: &str = "\
links:
  tagger:
    module: links.tag
    pip_name: something
    options:
      tags: [a, b]
  bare: {module: links.delay, options: }
storages:
  pg: {module: storage.kept, options: {host: 'localhost', port: '5433', password: hunter2}}
chains:
  main:
    links: [tagger, bare, tagger]
    storages:
      - pg
    ingress_lists: [default, other]
    egress_lists: [done]
    enabled: '1'
    timeout: 30
  spare: {ingress_lists: [default, third], enabled: 0, timeout: 0}
  empty:
tracers: {}
followers: []
imports:
ingress_auth: {default: {key: [x]}}
";

#[test]
fn a_whole_configuration_is_read_as_it_is_meant() {
    let config = parse(WHOLE).unwrap();
    let lists = config.ingress_lists();
    let names: Vec<&str> = lists.iter().map(|list| list.as_str()).collect();
    assert_eq!(names, ["default", "other"]);
    let [main, spare, empty] = &config.chains[..] else {
        panic!("{:?}", config.chains)
    };
    assert_eq!(main.links, ["tagger", "bare", "tagger"]);
    assert_eq!(main.storages, ["pg"]);
    assert_eq!(main.egress_lists[0].as_str(), "done");
    assert_eq!(
        (main.enabled, main.timeout),
        (true, Some(Duration::from_secs(30)))
    );
    assert_eq!((spare.enabled, spare.timeout), (false, None));
    assert_eq!((empty.enabled, empty.links.len()), (true, 0));
    let found = |list: &str| {
        config
            .chain_for(&list.parse().unwrap())
            .map(|c| c.name.clone())
    };
    assert_eq!(found("other"), Some("main".into()));
    assert_eq!(found("third"), None);
    assert_eq!(config.links["tagger"].module, "links.tag");
    config.links["tagger"].open_link();
}

#[test]
fn a_configuration_prints_without_its_options() {
    let shown = format!("{:?}", parse(WHOLE).unwrap());
    assert!(
        shown.contains("storage.kept") && !shown.contains("hunter2"),
        "{shown}"
    );
}

#[test]
fn options_are_read_quoted_or_not() {
    let defaults = "tls=false mode=600 wait=1.5s password=None headers=[]";
    for (options, expected) in [
        ("{host: h}", format!("h:5432 {defaults}")),
        ("{host: h, port: , tls: ~}", format!("h:5432 {defaults}")),
        ("{host: 127, port: '0080'}", format!("127:80 {defaults}")),
        (
            "{host: h, tls: YES, mode: 0o644, wait: '2', password: 0123}",
            "h:5432 tls=true mode=644 wait=2s password=Some(\"0123\") headers=[]".into(),
        ),
        (
            "{host: h, tls: '1', mode: 0750, wait: 0.25, headers: {x-key: 007}}",
            "h:5432 tls=true mode=750 wait=250ms password=None headers=[(\"x-key\", ***)]".into(),
        ),
        (
            "{host: h, tls: off, mode: '0644'}",
            "h:5432 tls=false mode=644 wait=1.5s password=None headers=[]".into(),
        ),
    ] {
        assert_eq!(opened(options), expected, "{options}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn words_of_yaml_never_panic(words in prop::collection::vec(prop::sample::select(vec![
        "a", "<<", ": ", "- ", "? ", "\n", "\n  ", "\n    ", "[", "]", "{", "}", ",", "&a ", "*a", "!t ", "!!int ",
        "'", "\"", "|\n", ">\n", "#", "---\n", "...\n", "%YAML 1.2\n", "\t", "é", "0644", "chains:", "links:", "~",
    ]), 0..60)) {
        let _ = parse(&words.concat());
    }

    #[test]
    fn mutated_configurations_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4usize, any::<char>()), 1..6)
    ) {
        let mut text: Vec<char> = WHOLE.chars().collect();
        for (index, kind, letter) in edits {
            if text.is_empty() {
                break;
            }
            let at = index.index(text.len());
            match kind {
                0 => text[at] = letter,
                1 => text.insert(at, letter),
                2 => drop(text.remove(at)),
                _ => text.truncate(at.max(1)),
            }
        }
        let _ = parse(&text.into_iter().collect::<String>());
    }
}
