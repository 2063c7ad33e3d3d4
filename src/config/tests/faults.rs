//! Every fault of a file, with its place.

use std::fs;

use super::*;

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
warning: config.yml:1: links.tagger: unknown key `on_outage` has no effect (known: module, options, pip_name)";
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
