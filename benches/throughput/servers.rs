//! The servers, and bringing them back to where they were before a measurement.

use std::path::Path;

use postgres::Client;
use serde_json::{Value, json};

use super::case::Store;
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

    /// Puts documents into Redis; no list names them yet.
    pub fn load(&self, document: &Document, ids: &[String]) {
        let mut connection = self.redis.connection();
        for some in ids.chunks(200) {
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
}
