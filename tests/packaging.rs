//! What the packages bring, held against the program: unit, default configuration, settings, manual.
//!
//! `tests/packages.sh` installs them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../packaging/generate/main.rs"]
#[allow(dead_code)]
mod generate;

use std::collections::BTreeSet;
use std::path::Path;

use conserver::config::Config;
use conserver::exit::Exit;
use conserver::settings::{Settings, TABLE};
use conserver::{link, storage};
use generate::readme;

const UNIT: &str = include_str!("../conserver.service");
const DEFAULT_CONFIG: &str = include_str!("../packaging/etc/config.yml");
const MANIFEST: &str = include_str!("../Cargo.toml");

const COMPOSE: &str = include_str!("../packaging/container/compose.yml");
const CONTAINER_CONFIG: &str = include_str!("../packaging/container/config.yml");
const KUBERNETES: &str = include_str!("../packaging/kubernetes/deployment.yaml");

/// The value of a line of the unit.
fn unit(key: &str) -> &'static str {
    let mut lines = UNIT.lines();
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("the unit has no {key}="))
}

fn unit_seconds(key: &str) -> u64 {
    unit(key).parse().expect("seconds")
}

fn file(name: &str) -> String {
    let files = generate::files().expect("README has what is looked for there");
    let found = files.into_iter().find(|(known, _)| known == name);
    String::from_utf8(found.expect(name).1).expect("text")
}

#[test]
fn the_default_configuration_is_valid_and_keeps_vcons_where_the_service_may_write() {
    let config = Config::parse(DEFAULT_CONFIG, Path::new("config.yml"));
    let config = config.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.ingress_lists().len(), 1);
    let state = format!("/var/lib/{}/", unit("StateDirectory"));
    let paths = DEFAULT_CONFIG.lines().map(str::trim);
    let paths: Vec<&str> = paths
        .filter_map(|line| line.strip_prefix("path: "))
        .collect();
    assert!(
        matches!(paths[..], [path] if path.starts_with(&state)),
        "{paths:?}"
    );
}

#[test]
fn the_file_of_settings_lists_each_with_its_default() {
    let text = file("conserver.env");
    assert!(
        text.lines()
            .all(|line| line.is_empty() || line.starts_with('#'))
    );
    assert!(text.lines().all(|line| line.chars().count() <= 120));
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once('='))
        .filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, TABLE.iter().map(|row| row.name).collect::<Vec<_>>());
    let read = |uncommented: bool| {
        Settings::from_lookup(&|name| {
            let line = lines.iter().find(|line| line.0 == name && uncommented);
            line.map(|(_, value)| value.into())
        })
    };
    assert_eq!(read(true), read(false));
}

#[test]
fn the_unit_gives_the_daemon_the_time_and_the_places_it_needs() {
    let defaults = Settings::from_lookup(&|_| None).unwrap();
    assert!(unit_seconds("TimeoutStopSec") > defaults.drain_timeout.as_secs());
    // It tells of itself in half that time at the latest, and in each beat.
    assert!(unit_seconds("WatchdogSec") > 2 * defaults.beat().as_secs());
    let codes: Vec<i32> = unit("RestartPreventExitStatus")
        .split(' ')
        .map(|code| code.parse().unwrap())
        .collect();
    assert_eq!(codes, [Exit::Usage.code(), Exit::Config.code()]);
    assert_eq!(
        format!("/run/{}", unit("RuntimeDirectory")),
        "/run/conserver"
    );
    assert_eq!(unit("ExecReload"), "/bin/kill -HUP $MAINPID");
}

#[test]
fn the_unit_leaves_memory_to_others_and_loses_no_more_than_one_worker_for_it() {
    let share = unit("MemoryMax").strip_suffix('%').expect("a share");
    let share: u64 = share.parse().expect("a number");
    assert!((50..90).contains(&share), "{share}%");
    assert_eq!(unit("OOMPolicy"), "continue");
    // It would slow workers down, so that they are taken for stuck.
    assert!(!UNIT.lines().any(|line| line.starts_with("MemoryHigh=")));
}

/// The number after `key` in a file.
fn number(text: &str, key: &str) -> u64 {
    let (_, rest) = text.split_once(key).unwrap_or_else(|| panic!("no {key}"));
    let end = rest.find(|c: char| !c.is_ascii_digit()).expect("an end");
    rest[..end].parse().expect("a number")
}

#[test]
fn containers_are_given_the_time_to_drain() {
    let drain = Settings::from_lookup(&|_| None)
        .unwrap()
        .drain_timeout
        .as_secs();
    assert!(number(COMPOSE, "stop_grace_period: ") > drain);
    let before = number(KUBERNETES, "sleep: {seconds: ");
    let drain = number(KUBERNETES, "CONSERVER_DRAIN_TIMEOUT, value: \"");
    assert!(number(KUBERNETES, "terminationGracePeriodSeconds: ") > before + drain);
}

#[test]
fn the_configurations_of_containers_are_valid() {
    let text = CONTAINER_CONFIG.replace("${POSTGRES_PASSWORD}", "secret");
    let config = Config::parse(&text, Path::new("config.yml"));
    config.unwrap_or_else(|errors| panic!("{errors}"));
    let (_, map) = KUBERNETES.split_once("config.yml: |\n").unwrap();
    let lines = map.lines().take_while(|line| *line != "---");
    let map: Vec<&str> = lines.filter_map(|line| line.strip_prefix("    ")).collect();
    // Without the comment at its head.
    let here: Vec<&str> = CONTAINER_CONFIG.lines().skip(1).collect();
    assert_eq!(map, here);
    for (at, _) in KUBERNETES.match_indices("CONSERVER_") {
        let rest = &KUBERNETES[at..];
        let end = rest.find(|c: char| !c.is_ascii_uppercase() && c != '_');
        let name = &rest[..end.expect("an end")];
        assert!(TABLE.iter().any(|row| row.name == name), "{name}");
    }
}

#[test]
fn each_file_that_is_made_is_packed_and_each_that_is_packed_is_there() {
    const MADE: &str = "target/packages/generated/";
    let packed: Vec<&str> = MANIFEST
        .lines()
        .map(str::trim)
        .filter_map(|line| {
            let line = line
                .strip_prefix("[\"")
                .or(line.strip_prefix("{ source = \""));
            line?.split('"').next()
        })
        .filter(|source| !source.starts_with("target/release/"))
        .collect();
    assert!(packed.len() > 30, "{packed:?}");
    for source in packed.iter().filter(|source| !source.starts_with(MADE)) {
        let place = source.split_once('*').map_or(*source, |(folder, _)| folder);
        assert!(Path::new(place).exists(), "{source}");
    }
    for (name, _) in generate::files().unwrap() {
        // All pages of a section together.
        let page = Path::new(&name)
            .extension()
            .filter(|_| name.starts_with("man/"));
        let source = page.map_or(name.clone(), |section| {
            format!("man/*.{}", section.display())
        });
        for ending in ["", ".gz"] {
            let packed = packed.contains(&format!("{MADE}{source}{ending}").as_str());
            assert!(
                packed || (page.is_none() && !ending.is_empty()),
                "{name}{ending}"
            );
        }
    }
}

#[test]
fn each_command_has_a_page_and_a_completion() {
    let commands = conserver::cli::command();
    let script = file("completions/bash/conserver");
    for command in commands.get_subcommands() {
        let name = command.get_name();
        let page = format!("man/conserver-{name}.1");
        let files = generate::files().unwrap();
        let shown = !command.is_hide_set();
        assert_eq!(
            files.iter().any(|(known, _)| *known == page),
            shown,
            "{name}"
        );
        assert_eq!(
            script.contains(&format!("conserver,{name})")),
            shown,
            "{name}"
        );
    }
}

#[test]
fn the_manual_names_each_setting_and_each_exit_code() {
    let page = file("man/conserver.1");
    for setting in TABLE {
        assert!(page.contains(setting.name), "{}", setting.name);
    }
    let rows = readme::table("| exit code | meaning |").unwrap();
    let codes: BTreeSet<i32> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
    let told = [
        Exit::Ok,
        Exit::Usage,
        Exit::Data,
        Exit::Unavailable,
        Exit::Internal,
        Exit::Config,
    ];
    assert_eq!(codes, told.map(Exit::code).into());
    assert!(page.contains("SIGTERM"));
}

/// What a module knows only to say what to do instead.
const REFUSED: &[&str] = &["links.diet: s3_bucket"];

/// The options that a module knows, as the warning of an unknown one lists them.
fn known_options(kind: &str, module: &str) -> BTreeSet<String> {
    let text =
        format!("{kind}: {{it: {{module: {module}, options: {{no_such: 1}}}}}}\nchains: {{}}");
    let told = match Config::parse(&text, Path::new("config.yml")) {
        Ok(config) => config.warnings.lines().collect::<Vec<_>>().join("\n"),
        // An option is missing that it needs.
        Err(errors) => errors.to_string(),
    };
    let mut lines = told.lines();
    let Some(line) = lines.find(|line| line.contains("unknown option `no_such`")) else {
        // It hands on what it does not know.
        assert_eq!(module, "links.python", "{told}");
        return BTreeSet::new();
    };
    let (_, known) = line.split_once("(known: ").expect("the known ones");
    let known = known.split(')').next().unwrap_or_default().split(", ");
    known.map(str::to_owned).collect()
}

#[test]
fn readme_and_so_the_manual_list_each_module_with_its_options() {
    let rows = readme::table("| module | options |").unwrap();
    let listed: BTreeSet<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let links = link::MODULES.iter().map(|row| row.name);
    let storages = storage::MODULES.iter().map(|row| row.name);
    assert_eq!(listed, links.chain(storages).collect());
    let page = file("man/conserver.yml.5").replace('\\', "");
    let mut missing = Vec::new();
    for row in &rows {
        let module = row[0].trim_matches('`');
        let kind = if module.starts_with("links.") {
            "links"
        } else {
            "storages"
        };
        // Said of all secrets together.
        let options = known_options(kind, module).into_iter();
        for option in options.filter(|option| !option.ends_with("_file")) {
            if !row[1].contains(&format!("`{option}`")) || !page.contains(&option) {
                missing.push(format!("{module}: {option}"));
            }
        }
    }
    assert_eq!(missing, REFUSED);
}
