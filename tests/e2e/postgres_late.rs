//! A write that reaches its row long after its call was given up does not undo what was written since.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use conserver::failure::Failure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{
    Database, Direction, PATIENCE, PgBouncer, Pooling, Postgres, Proxy, Sample, Shelf, fresh,
    wait_until,
};

/// A process that is stopped, until this is dropped.
struct Frozen(i32);

impl Frozen {
    fn new(pid: i32) -> Self {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("a process");
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGCONT);
    }
}

fn version(sample: &Sample, name: &str) -> Sample {
    let mut sample = sample.clone();
    sample.document["subject"] = name.into();
    sample
}

fn subject(database: &Database<'_>, sample: &Sample) -> Value {
    let rows = database.rows().into_iter();
    let mut of_vcon = rows.filter(|(id, _)| *id == sample.id);
    let (_, mut document) = of_vcon.next().expect("a row");
    document["subject"].take()
}

/// A storage whose calls are given up soon.
fn hasty(database: &Database<'_>, mut options: Value) -> Shelf {
    options["statement_timeout"] = 0.2.into();
    Shelf::open(&database.storage_with(options))
}

/// The first version is under way when the call is given up; then it is saved by another, and the
/// second after it. `hold` returns what lets the first go on its way.
fn comes_late<T>(
    database: &Database<'_>,
    mut slow: Shelf,
    sample: &Sample,
    hold: impl FnOnce() -> T,
) {
    let (first, second) = (version(sample, "first"), version(sample, "second"));
    let held = hold();
    let failure = slow.save(&first).expect_err("no answer");
    assert!(failure.message.contains("no answer within"), "{failure}");
    let mut quick = Shelf::open(&database.storage());
    for version in [&first, &second] {
        quick
            .save(version)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(subject(database, sample), version.document["subject"]);
    }
    drop((slow, quick));
    drop(held);
    wait_until("the late write has had its chance", PATIENCE, || {
        database.backends().is_empty()
    });
    assert_eq!(subject(database, sample), "second");
}

/// A new vCon, and one that has a row.
fn new_and_known(slow: &mut Shelf) -> [Sample; 2] {
    let samples = fresh(2).try_into().unwrap_or_else(|_| panic!("two"));
    let [_, known]: &[Sample; 2] = &samples;
    slow.save(known).unwrap_or_else(|error| panic!("{error}"));
    samples
}

#[test]
fn a_backend_process_that_was_frozen_undoes_nothing() {
    let server = Postgres::own();
    let host = server.socket_folder().display().to_string();
    for options in [json!({}), json!({"host": host})] {
        for is_known in [false, true] {
            let database = server.new_database();
            let mut slow = hasty(&database, options.clone());
            let samples = new_and_known(&mut slow);
            let sample = &samples[usize::from(is_known)];
            comes_late(&database, slow, sample, || {
                let [pid] = database.backends()[..] else {
                    panic!("not one session: {:?}", database.backends());
                };
                Frozen::new(pid)
            });
        }
    }
}

#[test]
fn a_pooler_that_was_frozen_undoes_nothing() {
    struct Thawed<'a>(&'a PgBouncer);
    impl Drop for Thawed<'_> {
        fn drop(&mut self) {
            self.0.thaw();
        }
    }
    let server = Postgres::own();
    for is_known in [false, true] {
        let database = server.new_database();
        let bouncer = PgBouncer::before(server.port(), Pooling::Transaction, 1, &[]);
        let options = json!({"port": bouncer.port(), "connect_timeout": 1});
        let mut slow = hasty(&database, options);
        let samples = new_and_known(&mut slow);
        let sample = &samples[usize::from(is_known)];
        let (first, second) = (version(sample, "first"), version(sample, "second"));
        bouncer.freeze();
        let thawed = Thawed(&bouncer);
        let failure = slow.save(&first).expect_err("no answer");
        assert!(failure.message.contains("no answer within"), "{failure}");
        let mut quick = Shelf::open(&database.storage());
        for version in [&first, &second] {
            quick
                .save(version)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        let closings = bouncer.closings();
        drop((thawed, slow));
        wait_until(
            "the pooler has taken in all that was said",
            PATIENCE,
            || bouncer.closings() > closings,
        );
        // It has one connection: this comes after the late write, or in another connection.
        let through = database.storage_with(json!({"port": bouncer.port()}));
        let probed = Shelf::open(&through).probe();
        probed.unwrap_or_else(|error| panic!("{error}"));
        drop(quick);
        wait_until("the late write has had its chance", PATIENCE, || {
            database.backends().len() <= 1
        });
        assert_eq!(subject(&database, sample), "second");
    }
}

#[test]
fn a_write_that_was_held_on_its_way_undoes_nothing() {
    let server = Postgres::own();
    for is_known in [false, true] {
        let database = server.new_database();
        let proxy = Proxy::before(server.port());
        let mut slow = hasty(&database, json!({"port": proxy.port()}));
        let samples = new_and_known(&mut slow);
        let sample = &samples[usize::from(is_known)];
        if is_known {
            // It has found a row, and looks for one first the next time.
            slow.save(sample).unwrap_or_else(|error| panic!("{error}"));
            proxy.delay(Duration::from_millis(400));
        }
        let before = proxy.carried(Direction::ToServer);
        thread::scope(|scope| {
            comes_late(&database, slow, sample, || {
                scope.spawn(|| {
                    if is_known {
                        // The question for the row has passed; the write after it does not.
                        wait_until("the row is read", PATIENCE, || {
                            proxy.carried(Direction::ToServer) > before
                        });
                    }
                    proxy.hold_requests();
                });
                if !is_known {
                    proxy.hold_requests();
                }
                Passing(&proxy)
            });
        });
        let carried = proxy.carried(Direction::ToServer) - before;
        let length = sample.text().len() as u64;
        assert!(carried > length, "{carried} bytes, of {length}");
    }
}

/// A proxy that lets pass what it holds when this is dropped.
struct Passing<'a>(&'a Proxy);

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.0.pass();
    }
}

/// Notes which rows came to the table, and whether with others.
const SEEN: &str = "CREATE TABLE vcons (id uuid PRIMARY KEY, vcon text NOT NULL, uuid uuid NOT NULL, \
     created_at timestamp NOT NULL, updated_at timestamp, subject text, vcon_json jsonb); \
     CREATE TABLE seen (id text, together boolean); \
     CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS \
     'BEGIN INSERT INTO seen VALUES (NEW.id::text, current_query() LIKE ''%unnest%''); RETURN NEW; END'; \
     CREATE TRIGGER note BEFORE INSERT ON vcons FOR EACH ROW EXECUTE FUNCTION note()";

/// How many of the rows came together with others.
fn came_together(database: &Database<'_>, samples: &[Sample]) -> usize {
    let select = "SELECT DISTINCT id FROM seen WHERE together";
    let rows = database.client().query(select, &[]).expect("the table");
    let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let is_there = |sample: &&Sample| ids.contains(&sample.id);
    samples.iter().filter(is_there).count()
}

/// The processes of the server that wait for a lock.
fn stuck(database: &Database<'_>) -> Vec<i32> {
    let select = "SELECT pid FROM pg_stat_activity \
                  WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let rows = database.client().query(select, &[]).expect("the sessions");
    rows.iter().map(|row| row.get(0)).collect()
}

/// Each lane saves one.
fn save_at_once(lanes: &mut [Shelf], samples: &[Sample]) -> Result<(), Failure> {
    let barrier = Barrier::new(lanes.len());
    thread::scope(|scope| {
        let saves: Vec<_> = (lanes.iter_mut().zip(samples))
            .map(|(lane, sample)| {
                scope.spawn(|| {
                    barrier.wait();
                    lane.save(sample)
                })
            })
            .collect();
        let mut saves = saves.into_iter();
        saves.try_for_each(|it| it.join().expect("a lane"))
    })
}

/// Saves one each by two lanes at once while a third is stuck with a row that somebody else has not committed
/// yet, so that they go together unless the machine is busy. Before that, hands over the other sessions.
fn save_together(
    database: &Database<'_>,
    lanes: &mut [Shelf],
    samples: &[Sample],
    before: impl FnOnce(&[i32]),
) -> Result<(), Failure> {
    let (first_lane, lanes) = lanes.split_first_mut().expect("three lanes");
    let held = fresh(1);
    let mut client = database.client();
    let mut open = client.transaction().expect("a transaction");
    let insert = "INSERT INTO vcons (id, vcon, uuid, created_at) \
                  VALUES ($1::text::uuid, '', $1::text::uuid, now())";
    open.execute(insert, &[&held[0].id]).expect("a row");
    thread::scope(|scope| {
        let first = scope.spawn(|| first_lane.save(&held[0]));
        wait_until("a lane is stuck", PATIENCE, || stuck(database).len() == 1);
        let (mut sessions, of_first) = (database.backends(), stuck(database));
        sessions.retain(|pid| !of_first.contains(pid));
        before(&sessions);
        let saved = save_at_once(lanes, samples);
        open.rollback().expect("a rollback");
        saved.and(first.join().expect("a lane"))
    })
}

#[test]
fn rows_of_several_lanes_that_were_frozen_undo_nothing() {
    let server = Postgres::own();
    let was_late = (0..5).any(|_| batch_comes_late(&server.new_database()));
    assert!(was_late, "no batch was late");
}

/// Two lanes write their rows together in a session whose process is frozen. Returns false if they did not.
fn batch_comes_late(database: &Database<'_>) -> bool {
    database.execute(SEEN);
    let storage = database.storage_with(json!({"statement_timeout": 5}));
    let mut lanes = Shelf::of_lanes(&storage, 3);
    // A session prepares the statement for its first rows.
    let samples = fresh(2);
    save_together(database, &mut lanes, &samples, |_| ()).unwrap_or_else(|error| panic!("{error}"));
    if came_together(database, &samples) < 2 || database.backends().len() != 2 {
        return false;
    }

    let samples: Vec<Sample> = fresh(2).iter().map(|it| version(it, "first")).collect();
    let mut frozen = None;
    let saved = save_together(database, &mut lanes, &samples, |sessions| {
        let [pid] = sessions else {
            panic!("not one idle session: {sessions:?}");
        };
        frozen = Some((*pid, Frozen::new(*pid)));
    });
    let (pid, frozen) = frozen.expect("a process");
    if saved.is_err() {
        // One went alone.
        return false;
    }
    let second = version(&samples[0], "second");
    let saved = lanes[1].save(&second);
    saved.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(came_together(database, &samples), 0);
    drop(frozen);
    wait_until("the late rows have had their chance", PATIENCE, || {
        !database.backends().contains(&pid)
    });
    assert_eq!(came_together(database, &samples), 2);
    assert_eq!(subject(database, &samples[0]), "second");
    assert_eq!(subject(database, &samples[1]), "first");
    true
}
