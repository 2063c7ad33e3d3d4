//! Faulty settings and configurations: `check` and `run` say what and where, and exit with 78.

use crate::harness::{Conserver, Files, Redis};

const GOOD: &str = "\
links:
  tagger: {module: links.tag, options: {tags: [a]}}
storages:
  files: {module: storage.file, options: {path: /nonexistent}}
chains:
  main:
    links: [tagger]
    storages: [files]
    ingress_lists: [default]
    egress_lists: [done]
";

/// Both commands refuse this, and say all of `words`.
fn refused(conserver: &Conserver, words: &[&str]) {
    for command in ["check", "run"] {
        let finished = conserver.run(&[command]);
        let output = finished.output();
        assert_eq!(finished.code, 78, "{command}: {output}");
        for word in words {
            assert!(
                output.contains(word),
                "{command} does not say {word:?}: {output}"
            );
        }
        assert!(!output.contains("panicked"), "{output}");
    }
}

fn refused_file(from: &str, to: &str, words: &[&str]) {
    let text = GOOD.replace(from, to);
    assert_ne!(text, GOOD);
    refused(&Conserver::without_redis().config_text(&text), words);
}

fn refused_variable(name: &str, value: &str) {
    let conserver = Conserver::without_redis()
        .config_text(GOOD)
        .env(name, value);
    refused(&conserver, &[name, value]);
}

#[test]
fn a_file_that_is_not_yaml() {
    refused_file(
        "ingress_lists: [default]",
        "ingress_lists: [default",
        &["config.yml:"],
    );
}

#[test]
fn an_unknown_module() {
    let words = [
        "config.yml:2",
        "links.tagger",
        "links.nonsense",
        "links.tag",
    ];
    refused_file("module: links.tag,", "module: links.nonsense,", &words);
}

#[test]
fn modules_of_an_existing_deployment_are_all_told_with_what_to_set() {
    let text = format!(
        "{GOOD}tracers: {{audit: {{module: tracers.audit}}}}\nimports: {{helper: ours.helper}}\n"
    )
    .replace("links.tag,", "links.scitt,")
    .replace("storage.file,", "storage.mongo,");
    let conserver = Conserver::without_redis().config_text(&text);
    let words = [
        "config.yml:2: links.tagger.module: `links.scitt`",
        "config.yml:4: storages.files.module: `storage.mongo`",
        "config.yml:11: tracers.audit.module: `tracers.audit`",
        "config.yml:12: imports.helper: `ours.helper`",
        "set CONSERVER_PYTHON_PATH to the folders",
    ];
    refused(&conserver, &words);
}

#[test]
fn a_variable_that_is_not_set_is_named_with_how_its_text_is_written() {
    let words = [
        "config.yml:4",
        "NOWHERE_SET",
        "write `$${` for the text `${`",
    ];
    refused_file("/nonexistent", "'/a/${NOWHERE_SET}'", &words);
}

#[test]
fn a_link_that_is_not_defined() {
    refused_file(
        "links: [tagger]",
        "links: [taggr]",
        &["config.yml:7", "chains.main.links", "taggr"],
    );
}

#[test]
fn two_chains_on_one_list() {
    let text = format!("{GOOD}  other:\n    links: [tagger]\n    ingress_lists: [default]\n");
    let conserver = Conserver::without_redis().config_text(&text);
    refused(&conserver, &["config.yml:13", "default", "main", "other"]);
}

#[test]
fn a_value_of_the_wrong_type() {
    refused_file(
        "ingress_lists: [default]",
        "ingress_lists: {a: b}",
        &["config.yml:9", "ingress_lists"],
    );
}

#[test]
fn several_faults_are_all_told() {
    let text = GOOD
        .replace("[tagger]", "[taggr]")
        .replace("[files]", "[flies]")
        .replace("links.tag,", "links.nonsense,");
    let conserver = Conserver::without_redis().config_text(&text);
    let words = [
        "taggr",
        "flies",
        "links.nonsense",
        "config.yml:2",
        "config.yml:7",
        "config.yml:8",
    ];
    refused(&conserver, &words);
}

#[test]
fn a_file_that_is_not_there() {
    let conserver = Conserver::without_redis().env("CONSERVER_CONFIG_FILE", "/nonexistent/c.yml");
    refused(&conserver, &["/nonexistent/c.yml"]);
}

#[test]
fn a_number_of_workers_that_is_no_number() {
    refused_variable("CONSERVER_WORKERS", "four");
}

#[test]
fn parallel_storage_that_is_neither_on_nor_off() {
    refused_variable("CONSERVER_PARALLEL_STORAGE", "maybe");
}

#[test]
fn an_unknown_start_method() {
    let conserver = Conserver::without_redis()
        .config_text(GOOD)
        .env("CONSERVER_START_METHOD", "thread");
    let words = [
        "CONSERVER_START_METHOD",
        "thread",
        "fork",
        "spawn",
        "forkserver",
    ];
    refused(&conserver, &words);
}

#[test]
fn an_unknown_log_level() {
    refused_variable("LOG_LEVEL", "LOUD");
}

#[test]
fn an_unknown_egress_version() {
    refused_variable("EGRESS_FORMAT_VERSION", "0.3.0");
}

#[test]
fn several_faulty_variables_are_all_told() {
    let conserver = Conserver::without_redis()
        .config_text(GOOD)
        .env("CONSERVER_WORKERS", "four")
        .env("TICK_INTERVAL", "soon")
        .env("VCON_REDIS_EXPIRY", "-1");
    let words = [
        "CONSERVER_WORKERS",
        "four",
        "TICK_INTERVAL",
        "soon",
        "VCON_REDIS_EXPIRY",
        "-1",
    ];
    refused(&conserver, &words);
}

#[test]
fn fewer_workers_than_one_are_one() {
    let (redis, files) = (Redis::plain(), Files::new());
    let config = crate::harness::chain(&[], &[("files", files.storage())]);
    let conserver = Conserver::with(&redis).config(&config);
    let daemon = conserver.env("CONSERVER_WORKERS", "0").start();
    assert_eq!(daemon.workers().len(), 1);
}

#[test]
fn an_unknown_command_is_a_fault_of_usage() {
    let finished = Conserver::without_redis().run(&["dance"]);
    assert_eq!(finished.code, 64, "{}", finished.output());
}
