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
    opts: {}
    options: {tag: [a], tags: [a, [b]]}
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
chains:
  main:
    links:
      - tagger
      - tagr
    storages: [pq]
    ingress_lists: [default, '']
    timeout: soon
    enabled: perhaps
    order: 1
  second: {ingress_lists: [default, twice, twice]}
  third: {links: {a: b}}
tracers: {jaeger: {}}
chain: {}
";
    let expected = "\
config.yml:2: links.tagger.module: `links.tga` is not a module of this version (known: links.tag, links.delay); did you mean `links.tag`?; to run a Python link of yours, say module: links.python with options: {module: links.tga}
config.yml:5: links.router: unknown key `opts` (known: module, options, pip_name)
config.yml:6: links.router.options.tags: item 2 is a list, not a string
config.yml:6: links.router.options: unknown option `tag` (known: tags); did you mean `tags`?
config.yml:7: links.nameless.module: is required
config.yml:8: links.word: is a single value, not a mapping
config.yml:12: storages.pg.options.host: is required
config.yml:13: storages.pg.options.port: \"fuor\" is not a whole number from 1 to 65535
config.yml:14: storages.pg.options.tls: \"maybe\" is not true or false
config.yml:15: storages.pg.options.mode: \"644\" is not file permissions in octal, as in 0o644 or '0644'
config.yml:16: storages.pg.options.wait: \"-1\" is not a number of seconds, 0 or more
config.yml:17: storages.pg.options: unknown option `prot` (known: host, port, tls, mode, wait, password, password_file, headers); did you mean `port`?
config.yml:18: storages.pg.options.password: is a list, not a string
config.yml:19: storages.pg.options.headers.x-key: is a list, not a string
config.yml:20: storages.there.options.host: leads nowhere
config.yml:21: storages.bare.options.host: is required
config.yml:26: chains.main.links: link `tagr` is not defined (defined: tagger, router, nameless, word)
config.yml:27: chains.main.storages: storage `pq` is not defined (defined: pg, there, bare)
config.yml:28: chains.main.ingress_lists: \"\" is not the name of a list: it is empty or has control characters
config.yml:29: chains.main.timeout: \"soon\" is not a number of seconds, 0 or more
config.yml:30: chains.main.enabled: \"perhaps\" is not true or false
config.yml:31: chains.main: unknown key `order` (known: links, storages, ingress_lists, egress_lists, enabled, timeout)
config.yml:32: chains.second.ingress_lists: list `default` of chain `second` (line 32) is already an ingress list of chain `main` (line 28)
config.yml:32: chains.second.ingress_lists: list `twice` of chain `second` (line 32) is already an ingress list of chain `second` (line 32)
config.yml:33: chains.third.links: is a mapping, not a list of strings
config.yml:34: tracers: tracers are not run: what they do can be a link of the chain, as links.exec or links.python; remove the section
config.yml:35: chain: unknown section (known: links, storages, chains, tracers, followers, imports, ingress_auth); did you mean `chains`?";
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
config.yml:1: links.tagger: unknown key `on_outage` (known: module, options, pip_name)
config.yml:5: storages.pg.on_outage: \"Defer\" is not hold or defer
config.yml:7: storages.s3.on_outage: is a list, not a string";
    assert_same_lines(&faults(text), expected);
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
        assert!(
            found.starts_with(&start) && found.contains(instead),
            "{found}"
        );
        assert_eq!(found.lines().count(), 1, "{found}");
    }
    for (name, _) in storage::NOT_BUILT_IN {
        assert!(
            !storage::MODULES.iter().any(|module| module.name == *name),
            "{name}"
        );
    }
}

fn assert_same_lines(found: &str, expected: &str) {
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
fn sections_without_a_counterpart_are_refused_unless_they_are_empty() {
    for (section, content, advice) in [
        (
            "tracers",
            "{jlinc: {module: tracers.jlinc}}",
            "links.exec or links.python",
        ),
        (
            "imports",
            "{extra: {module: extra, pip_name: extra}}",
            "links.python",
        ),
        ("imports", "[extra]", "links.python"),
        ("imports", "extra", "links.python"),
    ] {
        let found = faults(&format!("chains: {{a: {{}}}}\n{section}: {content}\n"));
        assert!(
            found.starts_with(&format!("config.yml:2: {section}: ")),
            "{found}"
        );
        assert!(
            found.contains(advice) && found.ends_with("; remove the section"),
            "{found}"
        );
        assert_eq!(found.lines().count(), 1, "{found}");
        for empty in ["", "{}", "[]", "null"] {
            assert!(parse(&format!("chains: {{a: {{}}}}\n{section}: {empty}\n")).is_ok());
        }
    }
    assert!(parse("chains: {a: {}}\ningress_auth: {default: {key: x}}\n").is_ok());
}

#[test]
fn a_link_of_the_existing_deployment_is_shown_the_way_to_python() {
    let text = |module: &str| {
        format!("links: {{x: {{module: {module}, pip_name: p}}}}\nchains: {{a: {{links: [x]}}}}\n")
    };
    for module in ["links.analyze", "links.transcribe", "vcon_link_of_ours"] {
        let found = faults(&text(module));
        let hint = format!(
            "; to run a Python link of yours, say module: links.python with options: {{module: {module}}}"
        );
        assert!(found.contains("(known: links.tag, links.delay"), "{found}");
        assert!(found.ends_with(&hint), "{found}");
    }
    let long = faults(&text(&"x".repeat(10_000)));
    assert!(long.len() < 500, "{long}");
}

#[test]
fn a_route_back_to_a_list_of_the_same_chain_is_a_fault() {
    let text = |chains: &str| {
        format!(
            "links: {{router: {{module: links.tag_router, options: {{tag_routes: {{vip: b}}}}}}}}\n\
             chains: {{{chains}}}\n"
        )
    };
    let load = |chains: &str| Config::parse(&text(chains), Path::new("config.yml"));
    for good in [
        "a: {links: [router], ingress_lists: [x]}, c: {ingress_lists: [b]}",
        "a: {links: [router], ingress_lists: [b], enabled: 0}",
        "a: {links: [router], ingress_lists: [x], egress_lists: [b]}",
    ] {
        let config = load(good).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.links["router"].routes, ["b".parse().unwrap()]);
    }
    let errors = load("a: {links: [router], ingress_lists: [x, b]}").unwrap_err();
    let expected = "config.yml:2: chains.a.links: link `router` has a route to list `b`, which this \
                    chain takes from: a vCon would go round for ever; give it a list of another chain";
    assert_eq!(errors.to_string(), expected);
}
