//! PostgreSQL behind a pooler, which gives the connections to the server to one client after the other.

use std::collections::BTreeSet;
use std::thread;

use postgres::Client;
use serde_json::{Value, json};

use crate::harness::{
    Conserver, Daemon, Database, Ledger, PATIENCE, PgBouncer, Pooling, Postgres, Proxy, Redis,
    Sample, Shelf, chain, fresh, number_from_env, run, same, submit, wait_until,
};
use crate::postgres_faults::all_is_stored;

const BOTH: [Pooling; 2] = [Pooling::Transaction, Pooling::Session];

/// The storage of a table, through the pooler.
fn storage(database: &Database<'_>, bouncer: &PgBouncer, table: &str) -> Value {
    database.storage_with(json!({"port": bouncer.port(), "table_name": table}))
}

/// Every connection of the pool, each held by a transaction.
fn pooled(database: &Database<'_>, bouncer: &PgBouncer, size: usize) -> Vec<Client> {
    let held = || {
        let mut client = database.client_at(bouncer.port());
        client.batch_execute("BEGIN").expect("a transaction");
        client
    };
    (0..size).map(|_| held()).collect()
}

fn ask(client: &mut Client, question: &str) -> String {
    let row = client.query_typed_one(question, &[]).expect("an answer");
    row.get(0)
}

/// Fails unless each connection of the pool is as it was when it was new.
fn nothing_stays(database: &Database<'_>, bouncer: &PgBouncer, size: usize) {
    let mut clients = pooled(database, bouncer, size);
    let mut servers = BTreeSet::new();
    for client in &mut clients {
        servers.insert(ask(client, "SELECT pg_backend_pid()::text"));
        assert_eq!(ask(client, "SHOW statement_timeout"), "0");
        let changed = "SELECT count(*)::text FROM pg_settings WHERE source = 'session' \
                       AND name NOT IN ('application_name', 'client_encoding')";
        assert_eq!(ask(client, changed), "0");
        let prepared = "SELECT count(*)::text FROM pg_prepared_statements WHERE name <> ''";
        assert_eq!(ask(client, prepared), "0");
    }
    assert_eq!(servers.len(), size);
}

/// A daemon with one lane for each of two workers, from the list `default` to this storage.
fn daemon(redis: &Redis, storage: Value) -> Daemon {
    Conserver::with(redis)
        .config(&chain(&[], &[("pg", storage)]))
        .workers(2)
        .start()
}

fn ids(samples: &[Sample]) -> BTreeSet<String> {
    samples.iter().map(|sample| sample.id.clone()).collect()
}

fn stored(database: &Database<'_>, table: &str) -> BTreeSet<String> {
    let rows = database.rows_of(table).into_iter();
    rows.map(|(id, _)| id).collect()
}

#[test]
fn two_tables_behind_one_pool_get_each_their_own_vcons() {
    for pooling in BOTH {
        let database = Postgres::database();
        let size = if pooling == Pooling::Session { 12 } else { 2 };
        let bouncer = PgBouncer::before(database.port(), pooling, size, &[]);
        let places = ["calls", "chats"].map(|table| (table, Redis::plain(), fresh(150)));
        let daemons = places.each_ref().map(|(table, redis, samples)| {
            submit(redis, "default", samples);
            daemon(redis, storage(&database, &bouncer, table))
        });
        for ((table, redis, samples), daemon) in places.iter().zip(&daemons) {
            Ledger::of(redis, samples).settles();
            let are_right = stored(&database, table) == ids(samples);
            assert!(are_right, "{pooling:?}: other rows in {table}");
            let conserver = daemon.conserver();
            for sample in &samples[..3] {
                let got = run(conserver, &["get", &sample.id, "--from", "pg"], 0).stdout;
                let got: Value = serde_json::from_str(&got).expect("JSON");
                let kept = redis.document(&sample.id).expect("a document");
                assert!(same(&got, &kept), "{got} is not {kept}");
            }
            run(conserver, &["check"], 0);
            let deleted = ["delete", &samples[0].id, "--yes", "--from", "pg"];
            let deleted = run(conserver, &deleted, 0).stdout;
            assert_eq!(deleted, "storage pg: deleted\n");
            assert!(stored(&database, table) == ids(&samples[1..]), "{table}");
        }
        // What Redis no longer has comes from the table.
        let (table, redis, samples) = &places[1];
        let gone = &samples[7].id;
        redis.ask::<i64>(&["DEL", &format!("vcon:{gone}"), "done"]);
        redis.ask::<i64>(&["RPUSH", "default", gone]);
        wait_until("it is done once more", PATIENCE, || {
            redis.list("done") == [gone.clone()]
        });
        assert!(redis.document(gone).is_some());
        assert!(stored(&database, table) == ids(&samples[1..]), "{table}");
        daemons.into_iter().for_each(Daemon::stop);
        nothing_stays(&database, &bouncer, 2);
    }
}

#[test]
fn a_storage_behind_a_pooler_keeps_what_it_is_given() {
    let ignoring = "ignore_startup_parameters = options";
    for (pooling, settings) in [
        (Pooling::Transaction, &[][..]),
        (Pooling::Transaction, &[ignoring][..]),
        (Pooling::Session, &[][..]),
    ] {
        let database = Postgres::database();
        let bouncer = PgBouncer::before(database.port(), pooling, 2, settings);
        Shelf::open(&storage(&database, &bouncer, "calls")).keeps_what_it_is_given();
        nothing_stays(&database, &bouncer, 2);
    }
}

#[test]
fn only_a_session_of_our_own_has_a_prepared_insert() {
    let server = Postgres::own();
    let database = server.new_database();
    let bouncer = PgBouncer::before(server.port(), Pooling::Transaction, 1, &[]);
    // The statement that the process of the storage has run last.
    let last = "SELECT query FROM pg_stat_activity WHERE application_name = 'conserver'";
    for (port, is_prepared) in [(server.port(), true), (bouncer.port(), false)] {
        let mut shelf = Shelf::open(&database.storage_with(json!({"port": port})));
        assert_eq!(shelf.save(&fresh(1)[0]), Ok(()));
        let query = ask(&mut database.client(), last);
        assert!(query.starts_with("INSERT INTO \"vcons\""), "{query}");
        // It asks whose process it is in.
        assert_eq!(query.contains("conserver.session"), is_prepared, "{query}");
        drop(shelf);
        if is_prepared {
            let gone = || database.backends().is_empty();
            wait_until("its process is gone", PATIENCE, gone);
        }
    }
}

#[test]
fn a_statement_behind_a_pooler_that_takes_too_long_is_ended_at_the_server() {
    for settings in [&[][..], &["ignore_startup_parameters = options"][..]] {
        let database = Postgres::database();
        let bouncer = PgBouncer::before(database.port(), Pooling::Transaction, 5, settings);
        let options = json!({"port": bouncer.port(), "statement_timeout": 0.3});
        let (redis, samples) = (Redis::plain(), fresh(20));
        let daemon = daemon(&redis, database.storage_with(options));
        let first = fresh(3);
        submit(&redis, "default", &first);
        Ledger::of(&redis, &first).settles();
        redis.ask::<i64>(&["DEL", "done"]);

        let mut client = database.client();
        let mut lock = client.transaction().expect("a transaction");
        lock.batch_execute("TRUNCATE vcons; LOCK TABLE vcons IN ACCESS EXCLUSIVE MODE")
            .expect("a lock");
        submit(&redis, "default", &samples);
        daemon.wait_for_log("SQLSTATE 57014", PATIENCE);
        // Those that were given up do not go on waiting, but for the first of each lane.
        let waiting = "SELECT count(*) FROM pg_stat_activity \
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let waiting: i64 = lock.query_one(waiting, &[]).expect("a count").get(0);
        assert!(waiting <= 4, "{waiting} statements wait");
        lock.commit().expect("the end of the lock");
        all_is_stored(&redis, &database, &samples);
        daemon.stop();
        nothing_stays(&database, &bouncer, 5);
    }
}

/// Its row would stay locked.
#[test]
fn a_transaction_behind_a_pooler_whose_client_stops_in_between_is_ended() {
    let server = Postgres::own();
    let database = server.new_database();
    let bouncer = PgBouncer::before(server.port(), Pooling::Transaction, 3, &[]);
    let proxy = Proxy::before(bouncer.port());
    let options = json!({"port": proxy.port(), "statement_timeout": 2, "connect_timeout": 1});
    let mut slow = Shelf::open(&database.storage_with(options));
    slow.probe().unwrap_or_else(|error| panic!("{error}"));
    let mut client = database.client();
    let mut lock = client.transaction().expect("a transaction");
    lock.batch_execute("LOCK TABLE vcons IN ACCESS EXCLUSIVE MODE")
        .expect("a lock");
    let sample = fresh(1).remove(0);
    let failure = slow.save(&sample).expect_err("no answer");
    assert!(failure.message.contains("no answer within"), "{failure}");
    let mut other = database.client();
    let mut count = |what: &str| -> i64 {
        let question = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {what}"
        );
        other.query_one(&question, &[]).expect("a count").get(0)
    };
    let idle = "state LIKE 'idle in transaction%'";
    thread::scope(|scope| {
        // From now on each call is a transaction. Beside the statement that was given up, its own waits.
        let saving = scope.spawn(|| {
            let mut failure = slow.save(&sample).expect_err("no answer");
            while failure.message.contains("57014") {
                failure = slow.save(&sample).expect_err("no answer");
            }
        });
        wait_until("its transaction waits", PATIENCE, || {
            count("wait_event_type = 'Lock'") > 1
        });
        // What follows on its statement does not pass.
        proxy.hold_requests();
        lock.commit().expect("the end of the lock");
        wait_until("its transaction is open", PATIENCE, || count(idle) > 0);
        wait_until("its transaction is ended", PATIENCE, || count(idle) == 0);
        saving.join().expect("the call has failed");
    });
}

/// Four daemons, three tables, one pool of fewer connections than they have lanes, which is ended in the
/// middle of its work and started again.
#[test]
fn four_daemons_and_three_tables_behind_a_pooler_that_restarts_lose_and_mix_up_nothing() {
    const TABLES: [&str; 3] = ["calls", "chats", "mails"];
    const SIZE: usize = 4;
    let count = number_from_env("CONSERVER_TEST_POOLED", 300);
    let server = Postgres::own();
    let database = server.new_database();
    let bouncer = PgBouncer::before(server.port(), Pooling::Transaction, SIZE, &[]);
    let redis = Redis::plain();
    let samples: Vec<Vec<Sample>> = (0..TABLES.len())
        .map(|place| fresh((count + place) / TABLES.len()))
        .collect();
    for (table, samples) in TABLES.iter().zip(&samples) {
        submit(&redis, table, samples);
    }
    let config = |table: &str| {
        json!({
            "storages": {"pg": storage(&database, &bouncer, table)},
            "chains": {"main": {"links": [], "storages": ["pg"], "ingress_lists": [table],
                "egress_lists": [format!("{table}_done")]}},
        })
    };
    let daemons: Vec<Daemon> = (0..4)
        .map(|number| {
            Conserver::with(&redis)
                .config(&config(TABLES[number % TABLES.len()]))
                .env("CONSERVER_INSTANCE", format!("d{number}"))
                .env("CONSERVER_RETRY_MAX_MS", "200")
                .workers(2)
                .lanes(2)
                .start()
        })
        .collect();
    let done = |table: &str| redis.length(&format!("{table}_done"));
    let all_done = || TABLES.iter().map(|table| done(table)).sum::<usize>();
    for quarter in 1..4 {
        let patience = PATIENCE * u32::try_from(1 + count / 1_000).expect("a small number");
        wait_until("some are done", patience, || {
            all_done() >= count * quarter / 4
        });
        bouncer.restart();
    }
    wait_until("all are done", PATIENCE * 5, || all_done() >= count);
    for (table, samples) in TABLES.iter().zip(&samples) {
        assert_eq!(redis.length(&format!("DLQ:{table}")), 0);
        let mut found = redis.list(&format!("{table}_done"));
        found.sort_unstable();
        assert!(found.iter().eq(&ids(samples)), "{table}: not each once");
        assert!(stored(&database, table) == ids(samples), "{table}");
    }
    assert!(
        daemons
            .iter()
            .all(|daemon| daemon.count_in_log("42P05") == 0)
    );
    daemons.into_iter().for_each(Daemon::stop);
    nothing_stays(&database, &bouncer, SIZE);
}
