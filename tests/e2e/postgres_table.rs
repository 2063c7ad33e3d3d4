//! What can be wrong with the login, the rights and the table, which is waited out, and with a vCon
//! that the table does not take, which becomes a dead letter.

use serde_json::json;

use crate::harness::{
    Ledger, PATIENCE, POSTGRES_PASSWORD, Postgres, Redis, Shelf, fresh, submit, wait_until,
};
use crate::postgres_faults::{all_is_stored, daemon, fails, waits_until_it_is_mended};

#[test]
fn a_password_that_was_changed_is_waited_out() {
    let database = Postgres::database();
    let user = database.new_user();
    database.execute(&format!("ALTER ROLE {user} PASSWORD 'AnderesWort'"));
    let storage = database.storage_with(json!({"user": user}));
    waits_until_it_is_mended(&database, &storage, "SQLSTATE 28P01", || {
        database.execute(&format!("ALTER ROLE {user} PASSWORD '{POSTGRES_PASSWORD}'"));
    });
}

#[test]
fn a_missing_database_is_waited_out() {
    let server = Postgres::database();
    let missing = format!("{}_later", server.name());
    let storage = server.storage_with(json!({"database": missing}));
    let (redis, samples) = (Redis::plain(), fresh(10));
    submit(&redis, "default", &samples);
    let daemon = daemon(&redis, &storage);
    fails(&redis, &daemon, "SQLSTATE 3D000");
    server.execute(&format!("CREATE DATABASE {missing}"));
    Ledger::of(&redis, &samples).settles();
    daemon.stop();
}

#[test]
fn a_missing_right_is_waited_out() {
    let database = Postgres::database();
    let user = database.new_user();
    let storage = database.storage_with(json!({"user": user}));
    database.execute(
        "CREATE TABLE vcons (id uuid PRIMARY KEY, vcon text NOT NULL, uuid uuid NOT NULL, \
         created_at timestamp NOT NULL, updated_at timestamp, subject text, vcon_json jsonb)",
    );
    waits_until_it_is_mended(&database, &storage, "grant the user SELECT, INSERT", || {
        database.execute(&format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON vcons TO {user}"
        ));
    });
}

#[test]
fn a_table_with_other_columns_is_waited_out() {
    for (columns, state, mend) in [
        ("subject text", "42703", "ADD vcon_json jsonb"),
        (
            "subject text, vcon_json jsonb, tenant text NOT NULL",
            "23502",
            "ALTER tenant DROP NOT NULL",
        ),
        (
            "subject text, vcon_json uuid",
            "42804",
            "ALTER vcon_json TYPE jsonb USING NULL",
        ),
    ] {
        let database = Postgres::database();
        database.execute(&format!(
            "CREATE TABLE vcons (id uuid PRIMARY KEY, vcon text NOT NULL, uuid uuid NOT NULL, \
             created_at timestamp NOT NULL, updated_at timestamp, {columns})"
        ));
        let why = format!("SQLSTATE {state}); the table must have: id uuid primary key");
        waits_until_it_is_mended(&database, &database.storage(), &why, || {
            database.execute(&format!("ALTER TABLE vcons {mend}"));
        });
    }
}

#[test]
fn columns_of_kindred_types_will_do() {
    let database = Postgres::database();
    database.execute(
        "CREATE TABLE vcons (id uuid PRIMARY KEY, vcon varchar(20) NOT NULL, uuid varchar(36) \
         NOT NULL, created_at timestamptz NOT NULL, updated_at date, subject varchar, \
         vcon_json json)",
    );
    let (redis, samples) = (Redis::plain(), fresh(10));
    submit(&redis, "default", &samples);
    let daemon = daemon(&redis, &database.storage());
    Ledger::of(&redis, &samples).settles();
    let count = database
        .client()
        .query_one("SELECT count(*) FROM vcons", &[]);
    assert_eq!(count.expect("a count").get::<_, i64>(0), 10);
    daemon.stop();
}

#[test]
fn a_server_that_turns_read_only_is_waited_out() {
    let database = Postgres::database();
    let (redis, samples) = (Redis::plain(), fresh(20));
    let name = database.name();
    // Where the table is there: making it would be refused as well.
    let storage = database.storage();
    let read_only = |value: &str| {
        let set = format!("ALTER DATABASE {name} SET default_transaction_read_only = {value}");
        let mut client = database.client();
        for statement in ["SET default_transaction_read_only = off", &set] {
            client.batch_execute(statement).expect("a setting");
        }
    };
    let daemon = daemon(&redis, &storage);
    let first = fresh(4);
    submit(&redis, "default", &first);
    Ledger::of(&redis, &first).settles();
    redis.ask::<i64>(&["DEL", "done"]);
    database.execute("TRUNCATE vcons");
    read_only("on");
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name = 'conserver'",
    );
    submit(&redis, "default", &samples);
    fails(&redis, &daemon, "SQLSTATE 25006");
    let probed = daemon.conserver().run(&["check"]);
    assert_eq!(probed.code, 69, "{}", probed.output());
    assert!(probed.output().contains("read-only"), "{}", probed.output());
    read_only("off");
    all_is_stored(&redis, &database, &samples);
    daemon.stop();
}

#[test]
fn a_vcon_that_the_table_does_not_take_is_a_dead_letter_and_the_others_are_stored() {
    let database = Postgres::database();
    let (redis, samples) = (Redis::plain(), fresh(20));
    let refused = &samples[7].id;
    database.execute(&format!(
        "CREATE TABLE vcons (id uuid PRIMARY KEY CHECK (id <> '{refused}'), vcon text NOT NULL, \
         uuid uuid NOT NULL, created_at timestamp NOT NULL, updated_at timestamp, subject text, \
         vcon_json jsonb)"
    ));
    submit(&redis, "default", &samples);
    let daemon = daemon(&redis, &database.storage());
    wait_until(
        "one is a dead letter, the others are done",
        PATIENCE,
        || redis.length("DLQ:default") == 1 && redis.length("done") == 19,
    );
    assert_eq!(&redis.list("DLQ:default"), std::slice::from_ref(refused));
    let reason: String = redis.ask(&["HGET", "conserver:dlq:default", refused]);
    assert!(reason.contains("SQLSTATE 23514"), "{reason}");
    assert_eq!(database.rows().len(), 19);
    daemon.stop();
}

/// The table as the storage makes it, but for its name and what follows.
fn table(name: &str, rest: &str) -> String {
    format!(
        "CREATE TABLE {name} (id uuid PRIMARY KEY, vcon text NOT NULL, uuid uuid NOT NULL, \
         created_at timestamp NOT NULL, updated_at timestamp, subject text, vcon_json jsonb) {rest};"
    )
}

#[test]
fn a_view_and_a_table_in_partitions_will_do() {
    let view = table("calls", "") + "CREATE VIEW vcons AS SELECT * FROM calls";
    let parts = table("vcons", "PARTITION BY HASH (id)")
        + "CREATE TABLE even PARTITION OF vcons FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
           CREATE TABLE odd PARTITION OF vcons FOR VALUES WITH (MODULUS 2, REMAINDER 1)";
    for made in [view, parts] {
        let database = Postgres::database();
        database.execute(&made);
        Shelf::open(&database.storage()).keeps_what_it_is_given();
    }
}

#[test]
fn a_server_without_the_column_xmin_will_do() {
    let database = Postgres::database();
    // As such a server answers: the column is neither in the catalogue nor in a statement.
    database.execute(&format!(
        "{} SET allow_system_table_mods = on; \
         DELETE FROM pg_attribute WHERE attrelid = 'vcons'::regclass AND attname = 'xmin'",
        table("vcons", "")
    ));
    let asked = database.client().batch_execute("SELECT xmin FROM vcons");
    assert!(asked.is_err_and(|error| error.code().is_some_and(|state| state.code() == "42703")));
    Shelf::open(&database.storage()).keeps_what_it_is_given();
}

/// The prepared insert writes nothing there, and what follows must not write over a newer row when it
/// comes late.
#[test]
fn a_new_row_in_a_process_that_is_another_sessions_is_inserted_and_nothing_else() {
    let database = Postgres::database();
    database.execute(&format!(
        "{} CREATE FUNCTION exchange() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM set_config('conserver.session', 'other', false); RETURN NULL; END $$; \
         CREATE TRIGGER exchange AFTER INSERT ON vcons FOR EACH ROW EXECUTE FUNCTION exchange()",
        table("vcons", "")
    ));
    let mut shelf = Shelf::open(&database.storage());
    for sample in fresh(3) {
        assert_eq!(shelf.save(&sample), Ok(()));
        shelf.has(&sample);
    }
    let sample = fresh(1).remove(0);
    assert_eq!(shelf.save(&sample), Ok(()));
    let last = "SELECT query FROM pg_stat_activity \
                WHERE application_name = 'conserver' AND datname = current_database()";
    let last: String = database
        .client()
        .query_one(last, &[])
        .expect("a session")
        .get(0);
    assert!(last.ends_with("ON CONFLICT (id) DO NOTHING"), "{last}");
    assert!(!last.contains("conserver.session"), "{last}");
    shelf.has(&sample);
}

#[test]
fn what_a_trigger_keeps_out_is_stored_as_the_server_says() {
    for (event, kept) in [("INSERT", None), ("UPDATE", Some("first"))] {
        let database = Postgres::database();
        database.execute(&table("vcons", ""));
        database.execute(&format!(
            "CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
             CREATE TRIGGER keep_out BEFORE {event} ON vcons FOR EACH ROW EXECUTE FUNCTION keep_out()"
        ));
        let mut shelf = Shelf::open(&database.storage());
        let mut sample = fresh(1).remove(0);
        for subject in ["first", "second"] {
            sample.document["subject"] = subject.into();
            assert_eq!(shelf.save(&sample), Ok(()), "{event}");
        }
        let rows = database.rows();
        let found = rows.first().map(|(_, document)| &document["subject"]);
        assert_eq!(found.and_then(|subject| subject.as_str()), kept, "{event}");
    }
}

#[test]
fn a_row_that_a_policy_hides_is_no_success() {
    let database = Postgres::database();
    let user = database.new_user();
    database.execute(&format!(
        "{} GRANT ALL ON vcons TO {user}; ALTER TABLE vcons ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY shown ON vcons USING (subject <> 'hidden')",
        table("vcons", "")
    ));
    let mut sample = fresh(1).remove(0);
    sample.document["subject"] = "hidden".into();
    let mut owner = Shelf::open(&database.storage());
    assert_eq!(owner.save(&sample), Ok(()));
    sample.document["subject"] = "shown".into();
    let mut shelf = Shelf::open(&database.storage_with(json!({"user": user})));
    let failure = shelf.save(&sample).expect_err("a row that it cannot see");
    assert!(
        failure.is_transient() && failure.message.contains("42501"),
        "{failure}"
    );
    assert_eq!(database.rows()[0].1["subject"], "hidden");
}
