//! What is accepted with a warning: what has no effect, and what is hardly meant.

use std::path::Path;

use super::faults::assert_same_lines;
use super::*;

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
config.yml:7: links.tagger: unknown key `opts` has no effect (known: module, options, pip_name)
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
