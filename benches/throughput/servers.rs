//! The servers, bringing them back to where they were before a measurement, and checking what they were left with.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use postgres::Client;
use serde_json::{Value, json};

use super::case::{Case, Store};
use super::document::Document;
use super::harness::{Database, Files, Postgres, Redis, S3};

/// The table of `storage.postgres`, as the daemon makes it.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS vcons (id uuid PRIMARY KEY, vcon text NOT NULL, uuid uuid NOT NULL, \
    created_at timestamp NOT NULL, updated_at timestamp, subject text, vcon_json jsonb); \
    CREATE INDEX IF NOT EXISTS vcons_vcon_json ON vcons USING gin (vcon_json)";

/// Everything that a daemon needs.
pub struct Servers {
    pub redis: Redis,
    pub s3: S3,
    files: Files,
    database: Database<'static>,
    postgres: &'static Postgres,
}

impl Servers {
    /// Starts them.
    pub fn start() -> Self {
        // Lives as long as the process; its guard sees to its end.
        let postgres: &Postgres = Box::leak(Box::new(Postgres::with(&["fsync=on"])));
        let database = postgres.new_database();
        database.execute(TABLE);
        Self {
            redis: Redis::plain(),
            s3: S3::start(),
            files: Files::new(),
            database,
            postgres,
        }
    }

    /// The storage as it stands in `config.yml`.
    pub fn storage(&self, store: Store) -> Value {
        match store {
            Store::File => {
                let options = json!({"path": self.folder(), "max_file_size": 0});
                json!({"module": "storage.file", "options": options})
            }
            Store::Postgres => self.database.storage(),
            Store::S3 => self.s3.storage(),
        }
    }

    /// Where files are kept.
    pub fn folder(&self) -> &Path {
        self.files.folder()
    }

    /// The folder of the day on which all vCons were made.
    pub fn day_folder(&self) -> PathBuf {
        self.folder().join("2024/03/16")
    }

    /// The name under which S3 keeps a vCon.
    pub fn object_key(id: &str) -> String {
        format!("archive/2024/03/16/{id}.vcon")
    }

    /// A session with PostgreSQL.
    pub fn session(&self) -> Client {
        self.database.client()
    }

    /// The process that answers for a storage; none for files.
    pub fn pid(&self, store: Store) -> Option<i32> {
        match store {
            Store::File => None,
            Store::Postgres => Some(self.postgres.pid()),
            Store::S3 => Some(self.s3.pid()),
        }
    }

    /// Empties Redis and PostgreSQL. Files and objects stay until the end: their names do not come
    /// again, and ext4 is slow to make new ones where many were removed a moment ago, as it does
    /// not take up their inodes at once.
    pub fn empty(&self) {
        self.redis.ask::<()>(&["FLUSHALL", "SYNC"]);
        self.database.execute("TRUNCATE vcons");
    }

    /// Removes all files, where they are few and large.
    pub fn remove_files(&self) {
        for path in self.files.with_hidden() {
            fs::remove_file(path).expect("a file");
        }
    }

    /// Puts documents into Redis; no list names them yet.
    pub fn load(&self, document: &Document, ids: &[String]) {
        let mut connection = self.redis.connection();
        // A pipeline is one piece of memory.
        let together = (50_000_000 / document.size()).clamp(1, 200);
        for some in ids.chunks(together) {
            let mut steps = redis::pipe();
            for id in some {
                steps.set(format!("vcon:{id}"), document.plain(id)).ignore();
            }
            steps.query::<()>(&mut connection).expect("Redis");
        }
    }

    /// Puts ids on a list.
    pub fn push(&self, list: &str, ids: &[String]) {
        let mut connection = self.redis.connection();
        for some in ids.chunks(100_000) {
            let mut push = redis::cmd("RPUSH");
            push.arg(list).arg(some);
            push.query::<()>(&mut connection).expect("Redis");
        }
    }

    /// Fails unless exactly so many vCons were announced, each once, and every storage of the case has every one of
    /// them, as the chain leaves it.
    pub fn check(&self, case: &Case, document: &Document, done: usize) {
        let ids = self.redis.list("done");
        assert_eq!(ids.len(), done, "announced");
        let different: HashSet<&String> = ids.iter().collect();
        assert_eq!(different.len(), done, "announced twice");
        let mut session = self.session();
        let kept = |store: Store, id: &str| match store {
            Store::File => self.day_folder().join(format!("{id}.json")),
            _ => self.s3.object(&Self::object_key(id)),
        };
        for store in case.stores {
            if *store == Store::Postgres {
                let row = session.query_one("SELECT count(*) FROM vcons", &[]);
                let rows: i64 = row.expect("a count").get(0);
                assert_eq!(rows, done as i64, "rows");
                continue;
            }
            for id in &ids {
                let path = kept(*store, id);
                assert!(path.exists(), "{store:?} has no {}", path.display());
            }
        }
        // Some of them byte by byte, and all if they are few.
        for id in ids.iter().step_by(done / 8 + 1) {
            let wanted = document.left(id, case.tag);
            let mut found = vec![self.redis.ask(&["GET", &format!("vcon:{id}")])];
            for store in case.stores {
                found.push(match store {
                    Store::Postgres => {
                        let query = "SELECT vcon_json::text FROM vcons WHERE id = $1::text::uuid";
                        session.query_one(query, &[id]).expect("a row").get(0)
                    }
                    _ => fs::read_to_string(kept(*store, id)).expect("a file"),
                });
            }
            for text in found {
                if text != wanted && json_of(&text) != json_of(&wanted) {
                    let mut pairs = text.bytes().zip(wanted.bytes());
                    let same = pairs.position(|(one, other)| one != other);
                    panic!("{id} is not as the chain leaves it, from byte {same:?} on");
                }
            }
        }
    }
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}
