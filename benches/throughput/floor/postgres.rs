//! The prepared upsert.

use chrono::{DateTime, Local, NaiveDateTime};
use postgres::{Client, Statement};
use uuid::Uuid;

use super::super::servers::Servers;
use super::Keeper;

const UPSERT: &str = "INSERT INTO \"vcons\" (id, vcon, uuid, created_at, updated_at, subject, vcon_json) \
    VALUES ($1::uuid, $2::text, $1::uuid, $3::timestamp, $4::timestamp, $5::text, $6::text::jsonb) \
    ON CONFLICT (id) DO UPDATE SET vcon = excluded.vcon, uuid = excluded.uuid, created_at = excluded.created_at, \
    updated_at = excluded.updated_at, subject = excluded.subject, vcon_json = excluded.vcon_json";

pub struct Postgres {
    session: Client,
    upsert: Statement,
    created_at: NaiveDateTime,
}

impl Postgres {
    pub fn open(servers: &Servers) -> Self {
        let mut session = servers.session();
        let upsert = session.prepare(UPSERT).expect("the table");
        let created_at = DateTime::from_timestamp(1_710_605_360, 0).expect("a time");
        Self {
            session,
            upsert,
            created_at: created_at.naive_utc(),
        }
    }
}

impl Keeper for Postgres {
    fn keep(&mut self, id: &str, text: &str) {
        let id: Uuid = id.parse().expect("an id");
        let (now, subject) = (Local::now().naive_local(), "A call about an order");
        self.session
            .execute(
                &self.upsert,
                &[&id, &"0.4.0", &self.created_at, &now, &subject, &text],
            )
            .expect("a row");
    }
}
