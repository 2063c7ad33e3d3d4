//! The environment as tables: what each variable accepts, and what it says otherwise.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;

use super::*;

fn read(variables: &[(&str, &str)]) -> Result<Settings, SettingsErrors> {
    Settings::from_lookup(&|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| OsString::from(value))
    })
}

fn with(name: &str, value: &str) -> Settings {
    read(&[(name, value)]).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn unset_variables_have_their_defaults() {
    let settings = read(&[]).unwrap();
    assert_eq!(settings.redis_url.to_string(), "redis://localhost");
    assert_eq!((settings.workers, settings.concurrency), (1, 1));
    assert!(settings.parallel_storage && settings.batch && settings.storage_fallback);
    assert_eq!(settings.start_method, StartMethod::DEFAULT);
    assert_eq!(settings.tick, Duration::from_secs(5));
    assert_eq!(settings.log_level, LevelFilter::Info);
    assert_eq!(settings.log_format, LogFormat::Text);
    assert_eq!(settings.list_order, ListOrder::Strict);
    assert_eq!(
        (settings.redis_expiry, settings.context_expiry),
        (3600, 86_400)
    );
    assert_eq!(settings.dlq_expiry, Some(604_800));
    assert_eq!(settings.sorted_set, "vcons");
    assert_eq!(settings.egress_version, Version::Current);
    assert_eq!(settings.redis_format, RedisFormat::Auto);
    assert_eq!(settings.json_bodies, JsonBodies::Native);
    assert_eq!(settings.critical, Critical::Pass);
    assert_eq!(settings.drain_timeout, Duration::from_secs(30));
    assert_eq!(settings.max_deaths, 3);
    assert_eq!(settings.retry_first, Duration::from_millis(100));
    assert_eq!(settings.retry_max, Duration::from_secs(1));
    assert!(!settings.instance.is_empty());
    assert_eq!(settings.http, HttpAddress::default());
    assert_eq!(settings.http_hosts, [""; 0]);
    assert_eq!(settings.http_token_file, None);
}

#[test]
fn names_of_the_monitor_are_separated_by_commas() {
    let hosts = |text| with("CONSERVER_HTTP_HOSTS", text).http_hosts;
    assert_eq!(hosts("Monitor.example, b"), ["monitor.example", "b"]);
    assert_eq!(hosts("*"), ["*"]);
    for text in ["a b", "a,,b", "http://a", "a:80", ","] {
        assert!(read(&[("CONSERVER_HTTP_HOSTS", text)]).is_err(), "{text}");
    }
}

#[test]
fn the_table_lists_what_is_read_with_its_defaults() {
    let asked = RefCell::new(BTreeSet::new());
    let unset = Settings::from_lookup(&|name| {
        asked.borrow_mut().insert(name.to_owned());
        None
    });
    let listed: BTreeSet<String> = TABLE.iter().map(|row| row.name.to_owned()).collect();
    let asked = asked.into_inner();
    if let Some(name) = asked.difference(&listed).next() {
        panic!("src/settings/table.rs: add a row for {name}, which `Settings::read` reads");
    }
    if let Some(name) = listed.difference(&asked).next() {
        panic!(
            "src/settings/mod.rs: read {name} in `Settings::read`, or remove its row in table.rs"
        );
    }
    assert_eq!(
        listed.len(),
        TABLE.len(),
        "src/settings/table.rs: a name stands there twice"
    );
    for row in TABLE.iter().filter(|row| !row.default.starts_with('(')) {
        assert_eq!(
            read(&[(row.name, row.default)]),
            unset,
            "src/settings/table.rs: give {} the default that `Settings::read` gives it",
            row.name
        );
    }
    for row in TABLE {
        assert_eq!(
            read(&[(row.name, "")]),
            unset,
            "src/settings/mod.rs: an empty {} counts as unset",
            row.name
        );
    }
}

#[test]
fn the_table_is_rendered_with_a_row_for_each_variable() {
    let table = markdown_table();
    assert_eq!(table.lines().count(), TABLE.len() + 2);
    assert!(table.contains("| `CONSERVER_WORKERS` | `1` | a whole number from 1 to 1024 |"));
    assert!(
        table.lines().all(|line| line.matches('|').count() == 5),
        "{table}"
    );
}

#[test]
fn values_are_understood() {
    for (value, workers) in [
        ("8", 8),
        ("0", 1),
        ("-3", 1),
        (" 4 ", 4),
        ("1024", 1024),
        ("+2", 2),
    ] {
        assert_eq!(with("CONSERVER_WORKERS", value).workers, workers, "{value}");
    }
    for (value, on) in [
        ("true", true),
        ("YES", true),
        ("1", true),
        ("False", false),
        ("0", false),
        ("no", false),
    ] {
        assert_eq!(
            with("CONSERVER_PARALLEL_STORAGE", value).parallel_storage,
            on,
            "{value}"
        );
        assert_eq!(
            with("VCON_STORAGE_FALLBACK_ENABLED", value).storage_fallback,
            on,
            "{value}"
        );
    }
    for (value, method) in [
        ("fork", StartMethod::Fork),
        ("Spawn", StartMethod::Spawn),
        ("FORKSERVER", StartMethod::Forkserver),
    ] {
        assert_eq!(with("CONSERVER_START_METHOD", value).start_method, method);
    }
    for (value, level) in [
        ("debug", LevelFilter::Debug),
        ("Info", LevelFilter::Info),
        ("WARNING", LevelFilter::Warn),
        ("warn", LevelFilter::Warn),
        ("ERROR", LevelFilter::Error),
        ("CRITICAL", LevelFilter::Error),
    ] {
        assert_eq!(with("LOG_LEVEL", value).log_level, level);
    }
    assert_eq!(
        with("CONSERVER_LOG_FORMAT", "JSON").log_format,
        LogFormat::Json
    );
    assert_eq!(
        with("CONSERVER_LOG_FORMAT", "Text").log_format,
        LogFormat::Text
    );
    let order = |value| with("CONSERVER_LIST_ORDER", value).list_order;
    assert_eq!(order("Strict"), ListOrder::Strict);
    assert_eq!(order("rotate"), ListOrder::Rotate);
    assert_eq!(
        with("EGRESS_FORMAT_VERSION", "0.0.1").egress_version,
        Version::V0_0_1
    );
    for (value, format) in [
        ("Auto", RedisFormat::Auto),
        ("plain", RedisFormat::Plain),
        ("JSON", RedisFormat::Json),
    ] {
        assert_eq!(with("VCON_REDIS_FORMAT", value).redis_format, format);
    }
    for (value, bodies) in [("Text", JsonBodies::Text), ("native", JsonBodies::Native)] {
        assert_eq!(with("VCON_JSON_BODIES", value).json_bodies, bodies);
    }
    for (value, critical) in [("Refuse", Critical::Refuse), ("pass", Critical::Pass)] {
        assert_eq!(with("VCON_CRITICAL", value).critical, critical);
    }
    assert_eq!(with("VCON_DLQ_EXPIRY", "0").dlq_expiry, None);
    assert_eq!(with("VCON_DLQ_EXPIRY", "7").dlq_expiry, Some(7));
    assert_eq!(with("CONSERVER_MAX_DEATHS", "0").max_deaths, 0);
    assert_eq!(with("CONSERVER_STUCK_AFTER", "0").stuck_after, None);
    assert_eq!(
        with("CONSERVER_STUCK_AFTER", "7").stuck_after,
        Some(Duration::from_secs(7))
    );
    assert_eq!(with("CONSERVER_INSTANCE", "west-1").instance, "west-1");
    assert_eq!(
        with("TICK_INTERVAL", "250").tick,
        Duration::from_millis(250)
    );
    assert_eq!(
        with("CONSERVER_DRAIN_TIMEOUT", "0").drain_timeout,
        Duration::ZERO
    );
}

/// What a number became, by the variable.
fn number(settings: &Settings, name: &str) -> u128 {
    let seconds = |time: Duration| u128::from(time.as_secs());
    let optional = |time: Option<Duration>| time.map_or(0, seconds);
    match name {
        "CONSERVER_VCON_CONCURRENCY" => settings.concurrency.into(),
        "CONSERVER_DRAIN_TIMEOUT" => seconds(settings.drain_timeout),
        "CONSERVER_MAX_DEATHS" => settings.max_deaths.into(),
        "CONSERVER_STUCK_AFTER" => optional(settings.stuck_after),
        "CONSERVER_WORKER_MAX_VCONS" => settings.worker_max_vcons.unwrap_or(0).into(),
        "CONSERVER_WORKER_MAX_RSS_MB" => {
            u128::from(settings.worker_max_rss.unwrap_or(0)) / 1_048_576
        }
        "CONSERVER_HEARTBEAT_TTL" => seconds(settings.heartbeat_ttl),
        "CONSERVER_RETRY_ATTEMPTS" => settings.retry_attempts.into(),
        "CONSERVER_MAX_ROUNDS" => settings.max_rounds.into(),
        "CONSERVER_RETRY_FIRST_MS" => settings.retry_first.as_millis(),
        "CONSERVER_RETRY_MAX_MS" => settings.retry_max.as_millis(),
        "TICK_INTERVAL" => settings.tick.as_millis(),
        "VCON_REDIS_EXPIRY" => settings.redis_expiry.into(),
        "VCON_CONTEXT_EXPIRY" => settings.context_expiry.into(),
        "VCON_DLQ_EXPIRY" => settings.dlq_expiry.unwrap_or(0).into(),
        name => panic!("src/settings/tests.rs: add the field of {name} to `number`"),
    }
}

#[test]
fn numbers_are_taken_up_to_their_bounds() {
    for (name, least, most) in [
        ("CONSERVER_VCON_CONCURRENCY", 1, 1024),
        ("CONSERVER_DRAIN_TIMEOUT", 0, 86_400),
        ("CONSERVER_MAX_DEATHS", 0, 1000),
        ("CONSERVER_STUCK_AFTER", 0, 86_400_000),
        ("CONSERVER_WORKER_MAX_VCONS", 0, 1_000_000_000),
        ("CONSERVER_WORKER_MAX_RSS_MB", 0, 1_048_576),
        ("CONSERVER_HEARTBEAT_TTL", 3, 86_400),
        ("CONSERVER_RETRY_ATTEMPTS", 1, 1000),
        ("CONSERVER_MAX_ROUNDS", 0, 1_000_000),
        // As long as the longest pause is left at its default.
        ("CONSERVER_RETRY_FIRST_MS", 1, 1000),
        ("CONSERVER_RETRY_MAX_MS", 100, 3_600_000),
        ("TICK_INTERVAL", 1, 3_600_000),
        ("VCON_REDIS_EXPIRY", 1, 315_360_000),
        ("VCON_CONTEXT_EXPIRY", 1, 315_360_000),
        ("VCON_DLQ_EXPIRY", 0, 315_360_000),
    ] {
        for value in [least, most, i64::midpoint(least, most)] {
            let read = number(&with(name, &value.to_string()), name);
            assert_eq!(read, u128::try_from(value).unwrap(), "{name}");
        }
        for value in [least - 1, most + 1] {
            assert!(
                read(&[(name, &value.to_string())]).is_err(),
                "{name} {value}"
            );
        }
    }
}

#[test]
fn megabytes_are_told_in_bytes_and_limits_of_nothing_are_none() {
    let rss = |value| with("CONSERVER_WORKER_MAX_RSS_MB", value).worker_max_rss;
    assert_eq!((rss("3"), rss("0")), (Some(3_145_728), None));
    let vcons = |value| with("CONSERVER_WORKER_MAX_VCONS", value).worker_max_vcons;
    assert_eq!((vcons("1"), vcons("0")), (Some(1), None));
}

#[test]
fn the_heartbeat_follows_the_tick_within_bounds() {
    for (tick, beat) in [
        ("1", 100),
        ("100", 100),
        ("250", 250),
        ("5000", 5000),
        ("3600000", 5000),
    ] {
        let settings = with("TICK_INTERVAL", tick);
        assert_eq!(settings.beat(), Duration::from_millis(beat), "{tick}");
    }
}

#[test]
fn an_instance_has_a_name_that_can_be_part_of_keys_and_files() {
    let (longest, longer) = ("a".repeat(200), "a".repeat(201));
    for name in ["a", "...", ".a", "a.b", "-", &longest] {
        let settings = with("CONSERVER_INSTANCE", name);
        assert_eq!(settings.instance, name);
        assert!(settings.instance_is_set);
    }
    for name in [".", "..", "a/b", "a:b", "a b", "ä", "a\u{7f}", &longer] {
        assert!(read(&[("CONSERVER_INSTANCE", name)]).is_err(), "{name:?}");
    }
    assert!(!read(&[]).unwrap().instance_is_set);
}

#[test]
fn names_have_their_values_and_blank_ones_their_defaults() {
    assert_eq!(with("VCON_SORTED_SET_NAME", "calls").sorted_set, "calls");
    assert_eq!(
        with("REDIS_URL", "redis://h/1").redis_url.to_string(),
        "redis://h/1"
    );
    let (fits, longer) = ("a".repeat(253), "a".repeat(254));
    assert_eq!(with("CONSERVER_HTTP_HOSTS", &fits).http_hosts, [fits]);
    assert!(read(&[("CONSERVER_HTTP_HOSTS", &longer)]).is_err());
    let unset = read(&[]);
    for row in TABLE
        .iter()
        .filter(|row| row.name != "CONSERVER_CONFIG_FILE")
    {
        if row.name != "CONSERVER_INSTANCE" {
            assert_eq!(read(&[(row.name, " \t")]), unset, "{}", row.name);
        }
    }
}

#[test]
fn start_methods_have_names_and_numbers() {
    for (method, name, number) in [
        (StartMethod::Fork, "fork", 1),
        (StartMethod::Spawn, "spawn", 2),
        (StartMethod::Forkserver, "forkserver", 3),
    ] {
        assert_eq!((method.number(), method.as_str()), (number, name));
        assert_eq!(method.to_string(), name);
        assert_eq!(StartMethod::from_number(number), Some(method));
    }
    for number in [0, 4] {
        assert_eq!(StartMethod::from_number(number), None);
    }
}

#[test]
fn a_fault_names_the_variable_the_value_and_what_is_accepted() {
    for (name, value, expected) in [
        (
            "CONSERVER_WORKERS",
            "four",
            r#"CONSERVER_WORKERS: "four" is not a whole number from 1 to 1024"#,
        ),
        (
            "CONSERVER_WORKERS",
            "1025",
            r#"CONSERVER_WORKERS: "1025" is not a whole number from 1 to 1024"#,
        ),
        (
            "CONSERVER_VCON_CONCURRENCY",
            "0",
            r#"CONSERVER_VCON_CONCURRENCY: "0" is not a whole number from 1 to 1024"#,
        ),
        (
            "CONSERVER_PARALLEL_STORAGE",
            "ture",
            r#"CONSERVER_PARALLEL_STORAGE: "ture" is not true, 1, yes, false, 0 or no"#,
        ),
        (
            "CONSERVER_START_METHOD",
            "thread",
            r#"CONSERVER_START_METHOD: "thread" is not fork, spawn or forkserver"#,
        ),
        (
            "LOG_LEVEL",
            "loud",
            r#"LOG_LEVEL: "loud" is not DEBUG, INFO, WARNING, ERROR or CRITICAL"#,
        ),
        (
            "CONSERVER_LIST_ORDER",
            "random",
            r#"CONSERVER_LIST_ORDER: "random" is not strict or rotate"#,
        ),
        (
            "CONSERVER_LOG_FORMAT",
            "xml",
            r#"CONSERVER_LOG_FORMAT: "xml" is not text or json"#,
        ),
        (
            "VCON_REDIS_FORMAT",
            "rejson",
            r#"VCON_REDIS_FORMAT: "rejson" is not auto, plain or json"#,
        ),
        (
            "VCON_JSON_BODIES",
            "json",
            r#"VCON_JSON_BODIES: "json" is not native or text"#,
        ),
        (
            "VCON_CRITICAL",
            "ignore",
            r#"VCON_CRITICAL: "ignore" is not pass or refuse"#,
        ),
        (
            "EGRESS_FORMAT_VERSION",
            "0.0.2",
            r#"EGRESS_FORMAT_VERSION: "0.0.2" is not 0.0.1"#,
        ),
        (
            "TICK_INTERVAL",
            "0",
            r#"TICK_INTERVAL: "0" is not a whole number of milliseconds from 1 to 3600000"#,
        ),
        (
            "VCON_DLQ_EXPIRY",
            "-1",
            r#"VCON_DLQ_EXPIRY: "-1" is not a whole number of seconds from 0 to 315360000"#,
        ),
        (
            "CONSERVER_RETRY_FIRST_MS",
            "9000",
            "CONSERVER_RETRY_FIRST_MS: 9s is more than the 1s of CONSERVER_RETRY_MAX_MS",
        ),
        (
            "CONSERVER_RETRY_MAX_MS",
            "1",
            "CONSERVER_RETRY_MAX_MS: 1ms is less than the 100ms of CONSERVER_RETRY_FIRST_MS",
        ),
        (
            "CONSERVER_INSTANCE",
            "a:b",
            r#"CONSERVER_INSTANCE: "a:b" is not a name of at most 200 ASCII characters without spaces, colons and slashes"#,
        ),
    ] {
        assert_eq!(read(&[(name, value)]).unwrap_err().to_string(), expected);
    }
}

#[test]
fn all_faults_are_reported_and_no_password() {
    let errors = read(&[
        ("REDIS_URL", "http://me:hunter2@host"),
        ("CONSERVER_WORKERS", "x"),
        ("VCON_SORTED_SET_NAME", "a\u{7}b"),
    ])
    .unwrap_err()
    .to_string();
    assert_eq!(errors.lines().count(), 3, "{errors}");
    assert!(
        errors.starts_with("REDIS_URL: ") && !errors.contains("hunter2"),
        "{errors}"
    );
    let settings = with("REDIS_URL", "redis://me:hunter2@host/1");
    assert!(!format!("{settings:?}").contains("hunter2"));
}

#[test]
fn a_value_that_is_not_text_is_a_fault_except_in_a_path() {
    let read = |variable: &str| {
        Settings::from_lookup(&|name| (name == variable).then(|| OsString::from_vec(vec![0xff])))
    };
    assert_eq!(
        read("LOG_LEVEL").unwrap_err().to_string(),
        "LOG_LEVEL: the value is not UTF-8 text"
    );
    assert!(read("CONSERVER_CONFIG_FILE").is_ok());
}

#[test]
fn the_configuration_is_looked_for_in_order() {
    let unset = |_: &str| None;
    let set = |name: &str| (name == "CONSERVER_CONFIG_FILE").then(|| OsString::from("x.yml"));
    let found = |lookup: &dyn Fn(&str) -> Option<OsString>, exists: bool| {
        config_file(&Reader::new(lookup), &|_| exists)
    };
    assert_eq!(found(&set, true), Path::new("x.yml"));
    assert_eq!(found(&unset, true), Path::new("/etc/conserver/config.yml"));
    assert_eq!(found(&unset, false), Path::new("./config.yml"));
}

/// A value of the kinds that settings have, on the edge of what is accepted or past it.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "(?s).{0,40}",
        "[+-]?[0-9]{1,60}",
        "[+-]?[0-9]{0,20}[.]?[0-9]{0,20}([eE][+-]?[0-9]{1,6})?[a-zA-Z]{0,2}",
        "(redis|rediss|unix|redis[+]unix|redis[+]sentinel)?(://)?[a-z0-9:@/?&=#%.,\\[\\]_-]{0,40}",
        "(fork|spawn|true|no|INFO|json|0[.]0[.]1)[A-Z \t]{0,2}",
    ]
}

proptest! {
    #[test]
    fn a_fault_of_any_setting_names_it(row in 0..TABLE.len(), value in value()) {
        let name = TABLE[row].name;
        if let Err(errors) = read(&[(name, &value)]) {
            let errors = errors.to_string();
            prop_assert!(errors.starts_with(&format!("{name}: ")), "{errors}");
            prop_assert!(errors.chars().count() < 1000 && !errors.contains('\0'), "{errors}");
        }
    }

    #[test]
    fn no_environment_panics(row in 0..TABLE.len(), value in "(?s).{0,40}") {
        let _ = read(&[(TABLE[row].name, &value)]);
    }
}
