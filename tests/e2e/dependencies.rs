//! What the program is made of: threads and processes, no runtime of its own.

use std::collections::BTreeSet;
use std::process::Command;

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
    ];
    for runtime in runtimes {
        assert!(!names.contains(runtime), "{runtime}");
    }
    let parents: BTreeSet<String> = cargo_tree(&["--invert", "tokio", "--depth", "1"])
        .into_iter()
        .collect();
    // The last two put TLS on the connections of `postgres`, within its runtime.
    let allowed = [
        "tokio",
        "tokio-util",
        "tokio-postgres",
        "postgres",
        "tokio-postgres-rustls",
        "tokio-rustls",
    ];
    let others: Vec<&String> = parents
        .iter()
        .filter(|name| !allowed.contains(&name.as_str()))
        .collect();
    assert!(others.is_empty(), "{others:?} use tokio");
    let users = cargo_tree(&["--invert", "tokio-rustls", "--depth", "1"]);
    let users: BTreeSet<String> = users.into_iter().collect();
    let expected = ["tokio-postgres-rustls", "tokio-rustls"].map(str::to_owned);
    assert_eq!(users, BTreeSet::from(expected));
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
        "log",
        "simplelog",
        "serde",
        "serde_json",
    ] {
        assert!(direct.contains(name), "{name}");
    }
}
