//! What the packages bring, held against the program: unit, default configuration, settings, schema, completions,
//! manual; and the front page of the code.
//!
//! `tests/packages.sh` installs them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod front_page;
#[path = "../../packaging/generate/main.rs"]
#[allow(dead_code)]
mod generate;
mod manual;
mod schema;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use conserver::config::Config;
use conserver::exit::Exit;
use conserver::settings::{Settings, TABLE};

const UNIT: &str = include_str!("../../conserver.service");
const TEMPLATE: &str = include_str!("../../packaging/systemd/conserver@.service");
const DEFAULT_CONFIG: &str = include_str!("../../packaging/etc/config.yml");
const MANIFEST: &str = include_str!("../../Cargo.toml");

const COMPOSE: &str = include_str!("../../packaging/container/compose.yml");
const CONTAINER_CONFIG: &str = include_str!("../../packaging/container/config.yml");
const KUBERNETES: &str = include_str!("../../packaging/kubernetes/deployment.yaml");

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
    let files = generate::files().unwrap_or_else(|error| panic!("{error}"));
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
fn an_instance_has_places_of_its_own_and_is_like_the_service_in_all_else() {
    let lines = |text: &'static str| -> Vec<&str> {
        let is_line = |line: &&str| !line.is_empty() && !line.starts_with('#');
        text.lines().filter(is_line).collect()
    };
    let (main, instance) = (lines(UNIT), lines(TEMPLATE));
    let missing: Vec<&&str> = main.iter().filter(|it| !instance.contains(it)).collect();
    let own: Vec<&&str> = instance.iter().filter(|it| !main.contains(it)).collect();
    assert_eq!(
        missing,
        [
            &"Description=Worker daemon for vCon conversations",
            &"EnvironmentFile=-/etc/conserver/conserver.env",
            &"WorkingDirectory=/var/lib/conserver",
            &"ConfigurationDirectory=conserver",
            &"ConfigurationDirectoryMode=0750",
            &"StateDirectory=conserver",
            &"RuntimeDirectory=conserver",
        ]
    );
    assert_eq!(
        own,
        [
            &"Description=Worker daemon for vCon conversations (%i)",
            &"Environment=CONSERVER_INSTANCE=%H-%i",
            &"Environment=CONSERVER_CONFIG_FILE=/etc/conserver/%i/config.yml",
            &"Environment=CONSERVER_HTTP=unix:/run/conserver-%i/http.sock",
            &"EnvironmentFile=-/etc/conserver/%i/conserver.env",
            &"WorkingDirectory=/var/lib/conserver-%i",
            &"StateDirectory=conserver-%i",
            &"RuntimeDirectory=conserver-%i",
        ]
    );
    // What it sets is accepted.
    let set = own
        .iter()
        .filter_map(|line| line.strip_prefix("Environment="));
    let set: Vec<(&str, String)> = set
        .map(|it| it.split_once('=').expect("a value"))
        .map(|(name, value)| (name, value.replace("%H", "host").replace("%i", "second")))
        .collect();
    let settings = Settings::from_lookup(&|name| {
        let found = set.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.into())
    });
    assert_eq!(settings.unwrap().instance, "host-second");
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

/// What the completions of bash offer behind these words of a command line.
fn offered(folder: &Path, line: &str) -> Vec<String> {
    let script = folder.join("script");
    fs::write(&script, file("completions/bash/conserver")).unwrap();
    // As bash splits it: at blanks, and at colons too.
    let words: Vec<String> = line.split(' ').map(|word| format!("'{word}'")).collect();
    let (last, before) = words.split_last().unwrap();
    let last = last.trim_matches('\'');
    let current = last.rsplit(':').next().unwrap();
    let program = format!(
        "source {}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({}); COMP_CWORD={}; \
         _conserver {} '{current}' {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
        before.len(),
        before[0],
        before.last().unwrap(),
    );
    let built = Path::new(env!("CARGO_BIN_EXE_conserver")).parent().unwrap();
    let output = std::process::Command::new("bash")
        .args(["--norc", "-c", &program])
        .current_dir(folder)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", built.display()))
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .env("RUNTIME_DIRECTORY", folder)
        .output()
        .expect("bash");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.is_empty(), "{line}: {told}");
    let offered = String::from_utf8_lossy(&output.stdout).into_owned();
    let offered = offered
        .lines()
        .filter(|it| !it.is_empty() && !it.starts_with('-'));
    offered.map(str::to_owned).collect()
}

#[test]
fn completions_offer_the_names_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let config = "\
storages: {pg: {module: storage.file}, 'p$(touch ran)': {module: storage.file}, s3: {module: storage.file}}
chains: {main: {ingress_lists: [calls, other], storages: [pg, s3], egress_lists: [done]}}
";
    fs::write(folder.path().join("config.yml"), config).unwrap();
    for (line, expected) in [
        ("conserver submit --list ", &["calls", "other", "done"][..]),
        ("conserver submit --list d", &["done"]),
        ("conserver get --from p", &["pg"]),
        (
            "conserver dlq ls ",
            &["calls", "other", "storage:pg", "storage:s3"],
        ),
        ("conserver dlq retry storage:p", &["pg"]),
        ("conserver get ", &[]),
        ("conserver config s", &["show", "schema"]),
    ] {
        assert_eq!(offered(folder.path(), line), expected, "{line}");
    }
    let hostile = folder.path().join("conserver");
    fs::write(&hostile, "#!/bin/sh\ntouch ran; echo evil\n").unwrap();
    fs::set_permissions(&hostile, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(offered(folder.path(), "./conserver get --from p"), ["pg"]);
    assert!(!folder.path().join("ran").exists());
    for (name, call) in [
        ("completions/zsh/_conserver", ":_conserver_names uuids'"),
        (
            "completions/fish/conserver.fish",
            "-a \"(conserver complete queues,uuids -- ",
        ),
    ] {
        let script = file(name);
        assert!(script.contains(call), "{name}");
        assert!(!script.contains("COMPLETE_"), "{name}");
    }
}

#[test]
fn texts_name_the_version_of_the_program() {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let deb = include_str!("../../packaging/deb/changelog");
    assert!(
        deb.starts_with(&format!("conserver ({VERSION}-")),
        "packaging/deb/changelog: add an entry for {VERSION} at the top"
    );
    let image = format!("image: conserver:{VERSION}\n");
    assert_eq!(
        KUBERNETES.matches("image: conserver:").count(),
        KUBERNETES.matches(&image).count(),
        "packaging/kubernetes/deployment.yaml: name the image conserver:{VERSION}"
    );
    let readme = include_str!("../../README.md");
    for package in [
        format!("conserver_{VERSION}-1_"),
        format!("conserver-{VERSION}-1."),
    ] {
        assert!(readme.contains(&package), "README.md: install {package}…");
    }
}
