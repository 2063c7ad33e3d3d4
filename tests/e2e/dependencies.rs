//! What the program is made of: threads and processes, no runtime of its own.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};

fn cargo_tree(arguments: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--no-dedupe",
        ])
        .args(["--format", "{p}"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree {arguments:?}: {said}");
    let text = String::from_utf8_lossy(&output.stdout);
    let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
    text.lines().filter_map(name).collect()
}

#[test]
fn the_only_async_runtime_is_the_one_inside_postgres() {
    let names: BTreeSet<String> = cargo_tree(&[]).into_iter().collect();
    let runtimes = [
        "async-std",
        "smol",
        "async-executor",
        "actix-rt",
        "hyper",
        "reqwest",
        // Those of OpenTelemetry's other ways to send.
        "hyper-util",
        "tokio-stream",
        "tonic",
        "tower",
        "tracing-subscriber",
    ];
    for runtime in runtimes {
        assert!(!names.contains(runtime), "{runtime}");
    }
    let parents: BTreeSet<String> = cargo_tree(&["--invert", "tokio", "--depth", "1"])
        .into_iter()
        .collect();
    // The last two put TLS on the connections of `postgres`, within its runtime. Of ours are the traits
    // of the streams in between, and nothing else: see the test below.
    let allowed = [
        "conserver",
        "tokio",
        "tokio-util",
        "tokio-postgres",
        "postgres",
        "tokio-postgres-rustls",
        "tokio-rustls",
    ];
    assert_eq!(parents, BTreeSet::from(allowed.map(str::to_owned)));
    let users = cargo_tree(&["--invert", "tokio-rustls", "--depth", "1"]);
    let users: BTreeSet<String> = users.into_iter().collect();
    let expected = ["tokio-postgres-rustls", "tokio-rustls"].map(str::to_owned);
    assert_eq!(users, BTreeSet::from(expected));
}

#[test]
fn of_tokio_it_asks_for_the_traits_and_the_timer_of_streams_alone() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--no-deps", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo");
    let metadata: Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let ours = packages.iter().find(|it| it["name"] == "conserver");
    let asked: Vec<&Value> = ours.expect("this one")["dependencies"]
        .as_array()
        .expect("dependencies")
        .iter()
        .filter(|it| it["name"] == "tokio")
        .collect();
    assert!(
        !asked.is_empty(),
        "no tokio: the list above has no need of us"
    );
    for it in asked {
        assert_eq!(it["features"], json!(["io-util", "time"]), "{it}");
        assert_eq!(it["uses_default_features"], json!(false), "{it}");
    }
}

#[test]
fn the_crates_it_is_made_of_are_all_there() {
    let direct: BTreeSet<String> = cargo_tree(&["--depth", "1"]).into_iter().collect();
    for name in [
        "redis",
        "postgres",
        "rust-s3",
        "ureq",
        "crossbeam-channel",
        "signal-hook",
        "nix",
        "opentelemetry",
        "opentelemetry_sdk",
        "opentelemetry-otlp",
        "log",
        "simplelog",
        "serde",
        "serde_json",
    ] {
        assert!(direct.contains(name), "{name}");
    }
}
