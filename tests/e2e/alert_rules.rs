//! The alert rules: judged by Prometheus' own tool, and held against what is served.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::harness::{
    Blocked, Conserver, Format, Hook, Monitor, PATIENCE, Redis, Scrape, chain, deferring, fresh,
    of_prometheus, submit, wait_until,
};

const RULES: &str = include_str!("../../packaging/prometheus/alerts.yml");
const CASES: &str = include_str!("../../packaging/prometheus/alerts.test.yml");

/// What Prometheus adds by itself.
const ADDED: [&str; 2] = ["job", "instance"];

#[test]
fn every_alert_is_raised_by_what_it_is_for_and_by_nothing_else() {
    let Some(promtool) = of_prometheus("promtool") else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus");
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml"],
        ["check", "config", "prometheus.yml"],
    ] {
        let output = Command::new(&promtool)
            .args(arguments)
            .current_dir(&folder)
            .output()
            .expect("promtool");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "promtool {arguments:?}: {said}");
    }
}

/// One alert, as text.
struct Rule {
    name: &'static str,
    expression: &'static str,
    annotations: &'static str,
}

fn rules() -> Vec<Rule> {
    let rule = |text: &'static str| {
        let (name, rest) = text.split_once('\n').expect("a name");
        let (_, rest) = rest.split_once("expr:").expect("an expression");
        let (expression, rest) = rest.split_once("labels:").expect("labels");
        let (_, annotations) = rest.split_once("annotations:").expect("annotations");
        Rule {
            name,
            expression: expression.split("for:").next().expect("an expression"),
            annotations,
        }
    };
    RULES.split("- alert: ").skip(1).map(rule).collect()
}

#[test]
fn every_alert_has_a_case_that_raises_it_and_one_that_does_not() {
    let rules = rules();
    assert_eq!(rules.len(), RULES.matches("alert:").count());
    assert!(rules.len() >= 10);
    for Rule { name, .. } in rules {
        for case in [
            format!("alertname: {name}, exp_alerts: []}}"),
            format!("'{{alertname=\"{name}\"}}', value: 1}}"),
        ] {
            assert_eq!(CASES.matches(&case).count(), 1, "{case}");
        }
    }
}

/// What stands in `text` between each `open` and the next `close`.
fn between<'a>(text: &'a str, open: &'a str, close: char) -> impl Iterator<Item = &'a str> {
    let parts = text.split(open).skip(1);
    parts.map(move |part| part.split(close).next().expect("a part").trim())
}

/// The metrics of an expression, each with what is asked of its labels.
fn metrics(expression: &'static str) -> Vec<(&'static str, &'static str)> {
    let starts = expression.match_indices("conserver_").map(|(at, _)| at);
    starts
        .map(|at| {
            let text = &expression[at..];
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
            let (name, rest) = text.split_at(end);
            let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            (name, matchers.map_or("", |(matchers, _)| matchers))
        })
        .collect()
}

#[test]
fn the_rules_ask_for_labels_and_values_that_are_served() {
    let (redis, blocked, hook) = (Redis::plain(), Blocked::new(), Hook::new());
    let monitor = Monitor::at_a_port();
    let storages = [blocked.storage(), ("later", deferring(hook.storage()))];
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &storages))
        .env("CONSERVER_HTTP", monitor.setting())
        .env("CONSERVER_RETRY_ATTEMPTS", "1")
        .start();
    submit(&redis, "default", &fresh(1));
    let mut scrape = Scrape::of(&monitor, Format::Classic);
    wait_until("there is something of everything", PATIENCE, || {
        scrape = Scrape::of(&monitor, Format::Classic);
        let has = |name: &str| scrape.samples.keys().any(|(it, _)| it == name);
        has("conserver_hold_seconds") && has("conserver_storage_backlog")
    });
    for Rule {
        name,
        expression,
        annotations,
    } in rules()
    {
        let grouped: BTreeSet<&str> = between(expression, "by (", ')')
            .flat_map(|labels| labels.split(", "))
            .filter(|label| !ADDED.contains(label))
            .collect();
        let metrics = metrics(expression);
        assert!(!metrics.is_empty() || name == "ConserverDown");
        let mut labels = BTreeSet::new();
        for (metric, matchers) in metrics {
            // A native histogram has no samples of its own in text.
            let count = format!("{metric}_count");
            let samples = scrape.samples.keys();
            let samples = samples.filter(|(it, _)| it == metric || *it == count);
            let served: Vec<_> = samples.map(|(_, labels)| labels).collect();
            let first = served.first();
            let first = first.unwrap_or_else(|| panic!("{name}: nothing serves {metric}"));
            for label in &grouped {
                let is_of_buckets = *label == "le" && !metric.ends_with("_bucket");
                assert!(
                    first.contains_key(*label) || is_of_buckets,
                    "{name}: {metric} has no {label}"
                );
            }
            for matcher in matchers.split(',').filter(|it| !it.is_empty()) {
                let (label, values) = matcher.split_once('=').expect("a matcher");
                let values = values.trim_start_matches('~').trim_matches('"');
                for value in values.split('|') {
                    let is_it = |labels: &&BTreeMap<String, String>| {
                        labels.get(label.trim()) == Some(&value.into())
                    };
                    assert!(
                        served.iter().any(is_it),
                        "{name}: {metric} has no {label} {value}"
                    );
                }
            }
            labels.extend(first.keys().map(String::as_str));
        }
        let known = |label: &str| {
            let is_left = grouped.is_empty() || grouped.contains(label);
            ADDED.contains(&label) || is_left && labels.contains(label)
        };
        for label in between(annotations, "$labels.", '}') {
            assert!(known(label), "{name}: there is no {label} to tell");
        }
    }
    drop(daemon);
}
