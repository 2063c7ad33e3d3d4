//! TLS to PostgreSQL: what each `sslmode` takes, and what it refuses.

use serde_json::{Value, json};

use crate::harness::{
    Conserver, Database, Finished, Ledger, Postgres, Redis, chain, fresh, submit,
};

/// Whether each session of the daemon was one with TLS, as the server saw it.
const WATCH: &str = "CREATE TABLE seen (tls boolean); \
    CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS \
    'BEGIN INSERT INTO seen SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid(); \
     RETURN NULL; END'; \
    CREATE TABLE vcons (id uuid PRIMARY KEY, vcon text NOT NULL, uuid uuid NOT NULL, \
    created_at timestamp NOT NULL, updated_at timestamp, subject text, vcon_json jsonb); \
    CREATE TRIGGER watch AFTER INSERT ON vcons FOR EACH ROW EXECUTE FUNCTION watch()";

/// Stores some vCons over such a connection, and says whether it was one with TLS.
fn stores(database: &Database<'_>, options: Value) -> bool {
    database.execute("DROP TABLE IF EXISTS vcons, seen; DROP FUNCTION IF EXISTS watch");
    database.execute(WATCH);
    let (redis, samples) = (Redis::plain(), fresh(5));
    submit(&redis, "default", &samples);
    let storage = database.storage_with(options);
    let daemon = Conserver::with(&redis)
        .config(&chain(&[], &[("pg", storage)]))
        .start();
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
    let seen = database
        .client()
        .query("SELECT DISTINCT tls FROM seen", &[])
        .expect("rows");
    assert_eq!(seen.len(), 1);
    seen[0].get(0)
}

fn check(database: &Database<'_>, options: Value) -> Finished {
    let redis = Redis::plain();
    let storage = database.storage_with(options);
    Conserver::with(&redis)
        .config(&chain(&[], &[("pg", storage)]))
        .env("COLUMNS", "1000")
        .run(&["check"])
}

fn is_refused(database: &Database<'_>, options: Value, why: &str) {
    let finished = check(database, options.clone());
    let output = finished.output();
    assert_eq!(finished.code, 69, "{options}: {output}");
    assert!(output.contains(why), "{options}: {output}");
}

#[test]
fn every_mode_connects_where_the_server_is_as_it_should_be() {
    let server = Postgres::with_tls();
    let database = server.new_database();
    let authority = server.authority();
    assert!(!stores(&database, json!({"sslmode": "disable"})));
    // The default.
    assert!(stores(&database, json!({})));
    for mode in ["prefer", "require"] {
        assert!(stores(&database, json!({"sslmode": mode})), "{mode}");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let options = json!({"sslmode": mode, "sslrootcert": authority});
        assert!(stores(&database, options), "{mode}");
    }
}

#[test]
fn an_authority_that_nobody_trusts_is_refused() {
    let (server, other) = (Postgres::with_tls(), Postgres::with_tls());
    let database = server.new_database();
    for mode in ["require", "verify-ca", "verify-full"] {
        let options = json!({"sslmode": mode, "sslrootcert": other.authority()});
        is_refused(&database, options, "certificate");
    }
    for mode in ["verify-ca", "verify-full"] {
        is_refused(&database, json!({"sslmode": mode}), "certificate");
    }
}

#[test]
fn only_verify_full_minds_the_name_of_the_host() {
    let server = Postgres::with_tls();
    let database = server.new_database();
    // The certificate is for 127.0.0.1 and localhost; this is the same machine.
    let options = |mode: &str| json!({"sslmode": mode, "sslrootcert": server.authority(), "host": "127.0.0.2"});
    server.let_in("hostssl all all 127.0.0.0/8 scram-sha-256");
    is_refused(&database, options("verify-full"), "not valid for name");
    assert_eq!(check(&database, options("verify-ca")).code, 0);
}

#[test]
fn a_server_without_tls_will_do_unless_tls_is_asked_for() {
    let server = Postgres::own();
    let database = server.new_database();
    assert!(!stores(&database, json!({"sslmode": "prefer"})));
    for mode in ["require", "verify-ca", "verify-full"] {
        is_refused(&database, json!({"sslmode": mode}), "does not support TLS");
    }
}

#[test]
fn prefer_goes_without_tls_where_the_server_insists_on_that() {
    let server = Postgres::with_tls();
    let database = server.new_database();
    server.let_in("hostnossl all all 127.0.0.1/32 scram-sha-256");
    assert_eq!(check(&database, json!({"sslmode": "prefer"})).code, 0);
    is_refused(&database, json!({"sslmode": "require"}), "SQLSTATE 28000");
    server.let_in("hostssl all all 127.0.0.1/32 scram-sha-256");
    assert_eq!(check(&database, json!({"sslmode": "prefer"})).code, 0);
    is_refused(&database, json!({"sslmode": "disable"}), "SQLSTATE 28000");
}

#[test]
fn a_file_of_authorities_that_cannot_be_read_is_a_fault_of_the_configuration() {
    let database = Postgres::database();
    let finished = check(&database, json!({"sslrootcert": "/nowhere/ca.pem"}));
    let output = finished.output();
    assert_eq!(finished.code, 78, "{output}");
    assert!(
        output.contains("storages.pg.options.sslrootcert"),
        "{output}"
    );
    assert!(output.contains("/nowhere/ca.pem"), "{output}");
}
