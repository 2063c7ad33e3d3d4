//! Several hosts, one of which takes writes, and what is refused.

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Database, Finished, PgBouncer, Pooling, Postgres, Redis, Shelf, chain, free_port,
    fresh, run, submit,
};
use crate::postgres_faults::{all_is_stored, daemon};

/// The database on both servers, the second of which it is on.
fn on_both(database: &Database<'_>, servers: &[Postgres; 2], mut options: Value) -> Value {
    options["host"] = "127.0.0.1,127.0.0.1".into();
    options["port"] = format!("{},{}", servers[0].port(), servers[1].port()).into();
    database.storage_with(options)
}

fn check(storage: Value) -> Finished {
    let redis = Redis::plain();
    let conserver = Conserver::with(&redis).config(&chain(&[], &[("pg", storage)]));
    conserver.env("COLUMNS", "1000").run(&["check"])
}

#[test]
fn of_several_hosts_the_first_that_takes_writes_is_used() {
    let servers = [Postgres::own(), Postgres::own()];
    let database = servers[1].create_database("twins");
    servers[0]
        .create_database("twins")
        .execute("ALTER DATABASE twins SET default_transaction_read_only = on");
    // The first server lets us in, and takes no writes.
    let (redis, samples) = (Redis::plain(), fresh(10));
    submit(&redis, "default", &samples);
    let running = daemon(&redis, &on_both(&database, &servers, json!({})));
    all_is_stored(&redis, &database, &samples);
    run(running.conserver(), &["check"], 0);
    running.stop();
    let any = on_both(&database, &servers, json!({"target_session_attrs": "any"}));
    let refused = check(any);
    assert_eq!(refused.code, 69, "{}", refused.output());
    assert!(
        refused.output().contains("read-only"),
        "{}",
        refused.output()
    );
    // The first server is away.
    servers[0].stop();
    assert_eq!(check(on_both(&database, &servers, json!({}))).code, 0);
}

#[test]
fn of_several_hosts_a_pooler_is_used_while_the_last_is_down() {
    let database = Postgres::database();
    let bouncer = PgBouncer::before(database.port(), Pooling::Transaction, 2, &[]);
    let ports = format!("{},{}", bouncer.port(), free_port());
    let options = json!({"host": "127.0.0.1,127.0.0.1", "port": ports});
    Shelf::open(&database.storage_with(options)).keeps_what_it_is_given();
}

#[test]
fn a_url_or_a_service_is_refused_by_file_line_and_key_and_not_shown() {
    let redis = Redis::plain();
    for (key, value, why) in [
        (
            "host",
            "postgresql://u:Geheim@db/calls",
            "is a URL or a connection string",
        ),
        ("service", "Geheim", "is not supported; use host, port"),
        (
            "url",
            "postgresql://u:Geheim@db/calls",
            "is not supported; use host, port",
        ),
    ] {
        let text = format!(
            "storages:\n  pg:\n    module: storage.postgres\n    options:\n      user: u\n      database: calls\n      {key}: {value}\nchains:\n  main:\n    storages: [pg]\n    ingress_lists: [default]\n"
        );
        let refused = Conserver::with(&redis)
            .config_text(&text)
            .env("COLUMNS", "1000")
            .run(&["check"]);
        let output = refused.output();
        assert_eq!(refused.code, 78, "{output}");
        let place = format!("config.yml:7: storages.pg.options.{key}: {why}");
        assert!(output.contains(&place), "{output}");
        assert!(!output.contains("Geheim"), "{output}");
    }
}
