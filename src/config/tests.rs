//! Whole configurations: what is accepted, and what is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::{Config, ConfigErrors, OnOutage, Options, Surroundings};
use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::link::{self, Link, LinkError, Next};
use crate::options::substitution::Environment;
use crate::settings::PythonSettings;
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
    let surroundings = Surroundings {
        environment: Arc::new(Environment::of([("WORD", "hunter2")])),
        python: PythonSettings::default(),
    };
    Config::parse_with(
        text,
        Path::new("config.yml"),
        LINKS,
        STORAGES,
        &surroundings,
    )
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

// Every fault of a file, with its place.

#[test]
fn every_fault_is_reported_in_one_pass_with_its_line() {
    let text = "\
links:
  tagger: {module: links.tga, options: {tags: [a]}}
  router:
    module: links.tag
    options:
      tags: [a, [b]]
  nameless: {options: {}}
  word: tag
storages:
  pg:
    module: storage.kept
    options:
      port: fuor
      tls: maybe
      mode: 644
      wait: -1
      prot: 1
      password: [hunter2]
      headers: {x-key: [hunter3]}
  there: {module: storage.kept, options: {host: nowhere}}
  bare: {module: storage.kept}
  typo: {module: storage.kpet}
chains:
  main:
    links:
      - tagger
      - tagr
    storages: [pq]
    ingress_lists: [default, '']
    timeout: soon
    enabled: perhaps
  second: {ingress_lists: [default, twice, twice]}
  third: {links: {a: b}}
tracers: {jaeger: {module: tracers.jaeger}}
";
    let expected = "\
config.yml: not built in: tracers.jaeger, links.tga, storage.kpet; to run the Python modules of an existing deployment, set CONSERVER_PYTHON_PATH to the folders that hold them, separated by colons, as in CONSERVER_PYTHON_PATH=/app/conserver:/app/common
config.yml:2: links.tagger.module: `links.tga` is not built in (built in: links.tag, links.delay); did you mean `links.tag`?
config.yml:6: links.router.options.tags: item 2 is a list, not a string
config.yml:7: links.nameless.module: is required
config.yml:8: links.word: is a single value, not a mapping
config.yml:12: storages.pg.options.host: is required
config.yml:13: storages.pg.options.port: \"fuor\" is not a whole number from 1 to 65535
config.yml:14: storages.pg.options.tls: \"maybe\" is not true or false
config.yml:15: storages.pg.options.mode: \"644\" is not file permissions in octal, as in 0o644 or '0644', or their decimal number
config.yml:16: storages.pg.options.wait: \"-1\" is not a number of seconds, 0 or more
config.yml:18: storages.pg.options.password: is a list, not a string
config.yml:19: storages.pg.options.headers.x-key: is a list, not a string
config.yml:20: storages.there.options.host: leads nowhere
config.yml:21: storages.bare.options.host: is required
config.yml:22: storages.typo.module: `storage.kpet` is not built in (built in: storage.kept); did you mean `storage.kept`?
config.yml:27: chains.main.links: link `tagr` is not defined (defined: tagger, router, nameless, word)
config.yml:28: chains.main.storages: storage `pq` is not defined (defined: pg, there, bare, typo)
config.yml:29: chains.main.ingress_lists: \"\" is not the name of a list: it is empty or has control characters
config.yml:30: chains.main.timeout: \"soon\" is not a number of seconds, 0 or more
config.yml:31: chains.main.enabled: \"perhaps\" is not true or false
config.yml:32: chains.second.ingress_lists: list `default` of chain `second` (line 32) is already an ingress list of chain `main` (line 29)
config.yml:33: chains.third.links: is a mapping, not a list of strings
config.yml:34: tracers.jaeger.module: `tracers.jaeger` is not built in
warning: config.yml:17: storages.pg.options: unknown option `prot` has no effect (known: host, port, tls, mode, wait, password, password_file, headers); did you mean `port`?
warning: config.yml:32: chains.second.ingress_lists: list `twice` stands here twice";
    assert_same_lines(&faults(text), expected);
}

#[test]
fn on_outage_is_hold_or_defer_and_for_storages_only() {
    let text = "\
links: {tagger: {module: links.tag, options: {tags: [a]}, on_outage: hold}}
storages:
  pg:
    module: storage.kept
    on_outage: Defer
    options: {host: h}
  s3: {module: storage.kept, on_outage: [hold], options: {host: h}}
chains: {main: {links: [tagger], storages: [pg, s3], ingress_lists: [in]}}
";
    let expected = "\
config.yml:5: storages.pg.on_outage: \"Defer\" is not hold or defer
config.yml:7: storages.s3.on_outage: is a list, not a string
warning: config.yml:1: links.tagger: unknown key `on_outage` has no effect (known: module, options, pip_name, native, limit)";
    assert_same_lines(&faults(text), expected);
    let text = text.replace("Defer", "defer").replace("[hold]", "hold");
    let warning = warnings(&text);
    assert!(
        warning.starts_with("config.yml:1: links.tagger: unknown key `on_outage`"),
        "{warning}"
    );
}

#[test]
fn an_ingress_list_and_a_storage_do_not_share_a_dead_letter_queue() {
    let text = "\
storages: {pg: {module: storage.kept, options: {host: h}}}
chains:
  main: {storages: [pg], ingress_lists: [in, 'storage:pg']}
  other: {storages: [pg], ingress_lists: ['storage:s3', 'storage:']}
";
    let expected = "config.yml:3: chains.main.ingress_lists: list `storage:pg` and storage `pg` would share \
the dead letter queue `DLQ:storage:pg`; give one of them another name";
    assert_same_lines(&faults(text), expected);
}

#[test]
fn a_storage_that_is_known_but_not_built_in_says_what_to_do_instead() {
    for (module, instead) in [
        ("storage.mongo", "use `storage.postgres`"),
        ("storage.sftp", "use `storage.file`"),
        ("storage.milvus", "egress list"),
    ] {
        let text =
            format!("storages: {{s: {{module: {module}}}}}\nchains: {{main: {{storages: [s]}}}}");
        let found = faults(&text);
        let start = format!("config.yml:1: storages.s.module: `{module}` is not built in: ");
        let [how, why] = found.lines().collect::<Vec<_>>()[..] else {
            panic!("{found}");
        };
        assert!(why.starts_with(&start) && why.contains(instead), "{found}");
        assert!(how.contains("set CONSERVER_PYTHON_PATH"), "{found}");
    }
    for (name, _) in storage::NOT_BUILT_IN {
        assert!(
            !storage::MODULES.iter().any(|module| module.name == *name),
            "{name}"
        );
    }
}

pub(super) fn assert_same_lines(found: &str, expected: &str) {
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "{found}");
}

#[test]
fn a_file_that_is_no_configuration_says_what_one_needs() {
    for (text, expected) in [
        ("", "config.yml: is empty; a configuration needs `chains:`"),
        ("# nothing\n", "config.yml: is empty"),
        (
            "- a\n",
            "config.yml:1: is a list, not a mapping; a configuration needs",
        ),
        ("links: {}\n", "config.yml: has no `chains:`"),
        ("\nchains:\n", "config.yml:2: chains: names no chain"),
        (
            "chains: [a]\n",
            "config.yml:1: chains: is a list, not a mapping",
        ),
        ("chains: {}\na: [\n", "config.yml:3:1: not valid YAML: "),
    ] {
        let found = faults(text);
        assert!(found.starts_with(expected), "{text:?}: {found}");
    }
}

#[test]
fn a_file_is_named_when_it_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yml");
    let failure = || Config::load(&path).unwrap_err().to_string();
    let missing = failure();
    assert!(
        missing.contains("config.yml: there is no such file"),
        "{missing}"
    );
    assert!(missing.contains("CONSERVER_CONFIG_FILE"), "{missing}");
    fs::write(&path, b"chains: {}\n# \xff\n").unwrap();
    assert!(
        failure().contains("config.yml:2: is not UTF-8"),
        "{}",
        failure()
    );
    fs::write(&path, "chains: {}\n").unwrap();
    assert_eq!(Config::load(&path).unwrap().chains, []);
    let unreadable = Config::load(directory.path()).unwrap_err().to_string();
    assert!(unreadable.contains("could not be read"), "{unreadable}");
}

#[test]
fn sections_may_be_empty() {
    for section in ["tracers", "followers", "imports"] {
        for empty in ["", "{}", "[]", "null"] {
            assert!(parse(&format!("chains: {{a: {{}}}}\n{section}: {empty}\n")).is_ok());
        }
    }
    assert!(parse("chains: {a: {}}\ningress_auth: {default: {key: x}}\n").is_ok());
}

#[test]
fn every_python_module_is_told_with_its_line_and_all_of_them_once_with_what_to_set() {
    let text = "\
links:
  x: {module: links.analyze, pip_name: p}
  y: {module: ours.mask}
  z: {module: links.analyze}
storages: {cold: {module: ours.cold}}
tracers:
  audit: {module: tracers.jlinc, pip_name: p, options: {a: b}}
imports:
  helper: {module: ours.helper, pip_name: p}
  older: visit_rating
  empty: {pip_name: p}
  none:
chains: {a: {links: [x, y, z], storages: [cold]}}
";
    let expected = "\
config.yml: not built in: ours.helper, visit_rating, tracers.jlinc, links.analyze, ours.mask, ours.cold; to run the Python modules of an existing deployment, set CONSERVER_PYTHON_PATH to the folders that hold them, separated by colons, as in CONSERVER_PYTHON_PATH=/app/conserver:/app/common
config.yml:2: links.x.module: `links.analyze` is not built in (built in: links.tag, links.delay)
config.yml:3: links.y.module: `ours.mask` is not built in (built in: links.tag, links.delay)
config.yml:4: links.z.module: `links.analyze` is not built in (built in: links.tag, links.delay)
config.yml:5: storages.cold.module: `ours.cold` is not built in (built in: storage.kept)
config.yml:7: tracers.audit.module: `tracers.jlinc` is not built in
config.yml:9: imports.helper.module: `ours.helper` is not built in
config.yml:10: imports.older: `visit_rating` is not built in
config.yml:11: imports.empty.module: is required
config.yml:12: imports.none.module: is required";
    assert_same_lines(&faults(text), expected);
    let name = "x".repeat(10_000);
    let long = format!("links: {{x: {{module: {name}}}}}\nchains: {{a: {{links: [x]}}}}\n");
    assert!(faults(&long).len() < 600, "{}", faults(&long));
    for (section, content) in [("imports", "[extra]"), ("imports", "extra")] {
        let found = faults(&format!("chains: {{a: {{}}}}\n{section}: {content}\n"));
        assert!(found.starts_with("config.yml:2: imports: is a"), "{found}");
    }
}

// What is accepted with a warning: what has no effect, and what is hardly meant.

/// The warnings of a configuration with the modules that are built in.
fn built_in(text: &str) -> String {
    let config = Config::parse(text, Path::new("config.yml"));
    let config = config.unwrap_or_else(|errors| panic!("{text}: {errors}"));
    let lines: Vec<String> = config.warnings.lines().collect();
    lines.join("\n")
}

#[test]
fn what_the_existing_worker_passes_over_is_one_warning_with_its_line() {
    let text = "\
links:
  tagger:
    module: links.tag
    ingress-lists: [somewhere]
    egress-lists: []
    egress_lists: [there]
    opts: {a: b}
    note:
    options: {tags: [a], tag: [a], empty: '', none: }
storages:
  pg:
    module: storage.kept
    options: {host: h, prot: 1, name: kept}
chains:
  main:
    description: all of them
    tracers: [audit]
    order: []
    links: [tagger]
    ingress_lists: [default]
chain: {a: b}
x-values: {a: b}
other:
";
    let expected = "\
config.yml:4: links.tagger.ingress-lists: has no effect: lists belong to chains
config.yml:6: links.tagger.egress_lists: has no effect: lists belong to chains
config.yml:7: links.tagger: unknown key `opts` has no effect (known: module, options, pip_name, native, limit)
config.yml:9: links.tagger.options: unknown option `tag` has no effect (known: tags); did you mean `tags`?
config.yml:13: storages.pg.options: unknown option `prot` has no effect (known: host, port, tls, mode, wait, password, password_file, headers); did you mean `port`?
config.yml:13: storages.pg.options: unknown option `name` has no effect (known: host, port, tls, mode, wait, password, password_file, headers)
config.yml:16: chains.main: unknown key `description` has no effect (known: links, storages, ingress_lists, egress_lists, enabled, timeout)
config.yml:17: chains.main.tracers: has no effect: a tracer runs for all chains
config.yml:21: chain: unknown section has no effect (known: links, storages, chains, tracers, followers, imports, ingress_auth, and names that begin with x-); did you mean `chains`?";
    assert_same_lines(&warnings(text), expected);
}

#[test]
fn a_chain_that_feeds_itself_is_a_warning_with_the_line_of_the_list_or_link() {
    let text = "\
links:
  router: {module: links.tag_router, options: {tag_routes: {vip: b, other: c}}}
chains:
  wheel:
    links:
      - router
    ingress_lists: [a, b]
    egress_lists:
      - done
      - a
  off: {ingress_lists: [x], egress_lists: [x], enabled: 0}
";
    let expected = "\
config.yml:6: chains.wheel.links: link `router` has a route to list `b`, which chain `wheel` takes from: a vCon with that tag comes back for ever
config.yml:10: chains.wheel.egress_lists: chain `wheel` takes from list `a` as well: each vCon comes back for ever, unless a link ends the chain";
    assert_same_lines(&built_in(text), expected);
    let config = Config::parse(text, Path::new("config.yml")).unwrap();
    let routes = &config.links["router"].routes;
    assert_eq!(routes[..], ["b".parse().unwrap(), "c".parse().unwrap()]);
}

#[test]
fn a_circle_over_several_chains_is_told_once_with_all_its_steps() {
    let text = "\
links:
  router: {module: links.tag_router, options: {tag_routes: {vip: c_in}}}
chains:
  a: {ingress_lists: [a_in], egress_lists: [b_in, done]}
  b: {ingress_lists: [b_in], links: [router], egress_lists: [done]}
  c: {ingress_lists: [c_in], egress_lists: [a_in, d_in]}
  d: {ingress_lists: [d_in], egress_lists: [done]}
  off: {ingress_lists: [off_in], egress_lists: [a_in], enabled: 0}
";
    let expected = "\
config.yml:6: chains.c.egress_lists: vCons go round for ever, unless a link ends a chain: chain `a` to list `b_in`, chain `b` by link `router` to list `c_in`, chain `c` to list `a_in`";
    assert_same_lines(&built_in(text), expected);
    let text = text.replace("a_in, d_in", "d_in");
    assert_eq!(built_in(&text), "");
}

#[test]
fn every_chain_in_a_circle_of_many_is_found_and_the_warnings_are_bounded() {
    let chains: String = (0..3000)
        .map(|n| {
            let next = (n + 1) % 3000;
            format!("  c{n}: {{ingress_lists: [l{n}], egress_lists: [l{next}, l0, l1, l2]}}\n")
        })
        .collect();
    let found = built_in(&format!("chains:\n{chains}"));
    assert!(found.lines().count() <= 13, "{found}");
    assert!(found.contains("go round for ever") && found.len() < 1 << 20);
    let line: String = (0..3000)
        .map(|n| {
            format!(
                "  c{n}: {{ingress_lists: [l{n}], egress_lists: [l{}]}}\n",
                n + 1
            )
        })
        .collect();
    assert_eq!(built_in(&format!("chains:\n{line}")), "");
}

#[test]
fn a_list_from_which_only_chains_out_of_service_take_is_a_warning_if_it_is_fed() {
    let text = "\
chains:
  a: {ingress_lists: [a_in], egress_lists: [b_in, elsewhere]}
  b: {ingress_lists: [b_in], enabled: 0}
  c: {ingress_lists: [c_in], enabled: 0}
";
    let expected = "\
config.yml:2: chains.a.egress_lists: only chain `b` takes from list `b_in`, and it is out of service: vCons wait there";
    assert_same_lines(&built_in(text), expected);
    let served = format!("{text}  d: {{ingress_lists: [b_in]}}\n");
    assert_eq!(built_in(&served), "");
}

#[test]
fn a_list_that_a_follower_fills_and_no_chain_takes_from_is_a_warning() {
    let text = |list: &str| {
        format!(
            "\
followers:
  branch:
    url: http://h/api
    egress_list: done
    follower_ingress_list: {list}
chains:
  a: {{ingress_lists: [a_in]}}
  b: {{ingress_lists: [b_in], enabled: 0}}
"
        )
    };
    assert_eq!(built_in(&text("a_in")), "");
    for list in ["b_in", "nowhere"] {
        let expected = format!(
            "config.yml:5: followers.branch.follower_ingress_list: no chain in service takes from list `{list}`: what the follower pulls waits there"
        );
        assert_same_lines(&built_in(&text(list)), &expected);
    }
}

#[test]
fn a_limit_that_is_longer_than_the_chains_is_a_warning() {
    let text = |timeout: &str| {
        format!(
            "links:
  wait: {{module: links.delay, options: {{seconds: 4}}}}
  post: {{module: links.webhook, options: {{webhook-urls: ['http://h/'], timeout: 20}}}}
  usual: {{module: links.webhook, options: {{webhook-urls: ['http://h/']}}}}
storages:
  hook: {{module: storage.webhook, options: {{webhook-urls: ['http://h/'], timeout: '40'}}}}
chains:
  main:
    links: [wait, post, wait, usual]
    storages: [hook]
    ingress_lists: [default]
    {timeout}
"
        )
    };
    for no_limit in ["enabled: 1", "timeout: 0", "timeout: 40"] {
        assert_eq!(built_in(&text(no_limit)), "", "{no_limit}");
    }
    let hook = "config.yml:12: chains.main.timeout: the 25s of the chain are shorter than the `timeout` of storage `hook`, 40s: calls that take longer are cut short";
    assert_same_lines(&built_in(&text("timeout: 25")), hook);
    let expected = "\
config.yml:12: chains.main.timeout: the 8s of the chain are no longer than the 8s that its links wait (wait, wait): no vCon comes through in time
config.yml:12: chains.main.timeout: the 8s of the chain are shorter than the `timeout` of link `post`, 20s: calls that take longer are cut short
config.yml:12: chains.main.timeout: the 8s of the chain are shorter than the `timeout` of storage `hook`, 40s: calls that take longer are cut short";
    assert_same_lines(&built_in(&text("timeout: '8'")), expected);
}

#[test]
fn a_file_that_is_all_warnings_is_read_at_once_and_told_in_part() {
    let lists: Vec<String> = (0..40_000).map(|n| format!("l{n}")).collect();
    let lists = lists.join(", ");
    let text = format!("chains: {{a: {{ingress_lists: [{lists}], egress_lists: [{lists}]}}}}\n");
    assert_eq!(built_in(&text).lines().count(), 10);
    let keys: String = (0..20_000).map(|n| format!("  k{n}: {n}\n")).collect();
    let found = built_in(&format!("chains:\n a:\n{keys}"));
    assert_eq!(found.lines().count(), 101);
    assert!(found.ends_with("\nconfig.yml: 19900 more warnings"));
}

#[test]
fn a_list_that_a_chain_names_twice_is_taken_from_once() {
    let text = "chains:\n  a:\n    ingress_lists:\n      - in\n      - other\n      - in\n";
    let expected = "config.yml:6: chains.a.ingress_lists: list `in` stands here twice";
    assert_same_lines(&built_in(text), expected);
    let config = Config::parse(text, Path::new("config.yml")).unwrap();
    let lists: Vec<_> = config.ingress_lists();
    assert_eq!(lists, ["in".parse().unwrap(), "other".parse().unwrap()]);
}

#[test]
fn empty_lists_and_mappings_say_nothing() {
    let text = "\
links:
  mark: {module: links.tag, options: {tags: []}}
  none: {module: links.tag, options: {tags: {}}}
  post: {module: links.webhook, options: {webhook-urls: [], headers: []}}
  split: {module: links.tag_router, options: {tag_routes: {}}}
  slim: {module: links.diet, options: {remove_attachment_types: '', post_media_to_url: '', s3_bucket: '', s3_path: '', aws_access_key_id: '', aws_secret_access_key: '', aws_region: us-east-1, presigned_url_expiration: 3600}}
  bare: {module: links.expire_vcon, options: []}
storages:
  hook: {module: storage.webhook, options: {webhook-urls: []}}
  bucket: {module: storage.s3, options: {aws_bucket: b, aws_access_key_id: k, aws_secret_access_key: s, aws_session_token: '', aws_region: '', endpoint_url: '', s3_path: ''}}
tracers: []
imports: {}
followers: []
chains:
  nothing: {links: [mark, none, post, split, slim, bare], storages: [hook, bucket], ingress_lists: [in], egress_lists: {}}
  none: {links: , storages: '', ingress_lists: []}
  bare: []
";
    assert_eq!(built_in(text), "");
    for section in ["links", "storages", "ingress_auth"] {
        for empty in ["[]", "''", "{}", ""] {
            let text = format!("{section}: {empty}\nchains: {{a: {{ingress_lists: [in]}}}}\n");
            assert_eq!(built_in(&text), "", "{text}");
        }
    }
}

#[test]
fn what_has_to_be_there_may_be_empty_but_not_missing() {
    for (module, key) in [("links.tag", "tags"), ("links.webhook", "webhook-urls")] {
        for options in ["{}", &format!("{{{key}: }}")] {
            let text = format!(
                "links: {{x: {{module: {module}, options: {options}}}}}\nchains: {{a: {{links: [x]}}}}\n"
            );
            let errors = Config::parse(&text, Path::new("config.yml")).unwrap_err();
            let expected = format!("config.yml:1: links.x.options.{key}: is required");
            assert_eq!(errors.to_string(), expected, "{text}");
        }
    }
    // The misspelt one is told as well: it is the cause.
    let text = "links: {x: {module: links.tag, options: {tag: [a]}}}\nchains: {a: {links: [x]}}\n";
    let errors = Config::parse(text, Path::new("config.yml")).unwrap_err();
    let expected = "\
config.yml:1: links.x.options.tags: is required
warning: config.yml:1: links.x.options: unknown option `tag` has no effect (known: tags); did you mean `tags`?";
    assert_same_lines(&errors.to_string(), expected);
}

#[test]
fn tags_have_every_form_of_the_existing_worker() {
    let text = |tags: &str| {
        format!(
            "links: {{x: {{module: links.tag, options: {{tags: {tags}}}}}}}\nchains: {{a: {{links: [x]}}}}\n"
        )
    };
    for good in ["[a, 2024, b:c, true]", "{a: b, c: 2, d: true}", "a", "[]"] {
        assert_eq!(built_in(&text(good)), "", "{good}");
    }
    for (bad, item) in [
        ("[a, {name: b, value: c}]", "item 2 is a mapping"),
        ("[[a]]", "item 1 is a list"),
        ("[a, ]", ""),
        ("[~]", "item 1 is empty"),
    ] {
        let found = Config::parse(&text(bad), Path::new("config.yml"));
        if item.is_empty() {
            assert!(found.is_ok(), "{bad}");
            continue;
        }
        let expected = format!(
            "config.yml:1: links.x.options.tags: {item}, not a string; write it as name:value"
        );
        assert_eq!(found.unwrap_err().to_string(), expected);
    }
}

#[test]
fn an_option_that_followers_do_not_know_is_told_with_the_likely_one() {
    let told = warnings(
        "chains: {a: {ingress_lists: [in]}}\nfollowers:\n  far: {url: 'http://h', egress_list: done, \
         follower_ingress_list: in, auth_tokn: hunter3}\n",
    );
    assert!(
        told.starts_with("config.yml:3: followers.far: unknown option `auth_tokn`"),
        "{told}"
    );
    assert!(told.ends_with("did you mean `auth_token`?"), "{told}");
    assert!(!told.contains("hunter3"), "{told}");
}

/// Reads a configuration of a deployment with a Python path.
fn with_python(text: &str) -> Result<Config, ConfigErrors> {
    let surroundings = Surroundings {
        environment: Arc::new(Environment::of([("WORD", "hunter2-hunter2")])),
        python: PythonSettings {
            path: vec!["/app/conserver".into()],
            ..PythonSettings::default()
        },
    };
    Config::parse_with(
        text,
        Path::new("config.yml"),
        LINKS,
        STORAGES,
        &surroundings,
    )
}

#[test]
fn with_a_python_path_what_is_not_built_in_is_a_python_module() {
    let text = "\
imports:
  one: ours.helper
  two: {module: visit_rating, pip_name: visit-rating}
tracers:
  trace: {module: tracers.jlinc, options: {dlq_vcon_on_error: yes, key: '${WORD}'}}
  other: {module: tracers.other, options: {dlq_vcon_on_error: no}}
links:
  analyze:
    module: links.analyze
    timeout: 90
    options: {prompt: a, key: '${WORD}', temperature: 0.5, 'on': no}
  tag: {module: links.tag, native: false}
  built: {module: links.tag, options: {tags: [a]}}
  bare: {module: links.bare}
  spare: {module: links.spare, options: {}}
storages:
  mongo: {module: storage.mongo, on_outage: defer}
chains:
  main: {links: [analyze, tag, built, bare], storages: [mongo], ingress_lists: [in], enabled: 1, extra: [1]}
";
    let config = with_python(text).unwrap();
    let found: Vec<_> = config
        .python_modules()
        .into_iter()
        .map(|(it, is_needed)| (it.kind.as_str(), &*it.module, it.line, is_needed))
        .collect();
    assert_eq!(
        found,
        [
            ("import", "ours.helper", 2, true),
            ("import", "visit_rating", 3, true),
            ("tracer", "tracers.jlinc", 5, true),
            ("tracer", "tracers.other", 6, true),
            ("link", "links.analyze", 9, true),
            ("link", "links.tag", 12, true),
            ("link", "links.bare", 14, true),
            ("link", "links.spare", 15, false),
            ("storage", "storage.mongo", 17, true),
        ]
    );
    let analyze = config.links["analyze"].python().unwrap();
    assert_eq!(analyze.timeout, Some(Duration::from_secs(90)));
    assert_eq!(
        analyze.options.as_deref(),
        Some(r#"{"prompt":"a","key":"hunter2-hunter2","temperature":0.5,"on":false}"#)
    );
    assert_eq!(config.links["bare"].options_as_json(), None);
    assert_eq!(
        config.links["spare"].options_as_json().as_deref(),
        Some("{}")
    );
    assert_eq!(
        config.links["built"].options_as_json().as_deref(),
        Some(r#"{"tags":["a"]}"#)
    );
    assert!(config.links["built"].python().is_none());
    assert_eq!(config.storages["mongo"].on_outage, OnOutage::Defer);
    let fail: Vec<bool> = config.tracers.iter().map(|it| it.fails_vcon).collect();
    assert_eq!(fail, [true, false]);
    assert!(!config.python.secrets.is_empty());
    assert_eq!(
        config.chains[0].details,
        r#"{"name":"main","links":["analyze","tag","built","bare"],"storages":["mongo"],"ingress_lists":["in"],"enabled":1,"extra":[1]}"#
    );
}

#[test]
fn native_needs_a_python_path_and_a_limit_of_time_is_more_than_nothing() {
    let chains = "chains: {main: {links: [a], ingress_lists: [in]}}\n";
    let text = format!("links:\n  a:\n    module: links.tag\n    native: false\n{chains}");
    assert_same_lines(
        &faults(&text),
        "config.yml:4: links.a.native: takes the Python module of that name, and CONSERVER_PYTHON_PATH is not set",
    );
    let text = format!("links:\n  a: {{module: links.x, native: false}}\n{chains}");
    assert!(faults(&text).contains("config.yml:2: links.a.module: `links.x` is not built in"));
    let text = format!("links:\n  a: {{module: links.x, timeout: 0}}\n{chains}");
    let errors = with_python(&text).unwrap_err().to_string();
    assert_eq!(errors, "config.yml:2: links.a.timeout: must be more than 0");
}
