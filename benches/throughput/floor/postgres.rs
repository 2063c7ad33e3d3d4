//! The prepared upsert: one row, or all rows in one statement, with a commit of its own.

use chrono::{DateTime, Local, NaiveDateTime};
use postgres::{Client, Statement};
use uuid::Uuid;

use super::super::servers::Servers;
use super::{Keeper, Taken};

const INTO: &str =
    "INSERT INTO \"vcons\" (id, vcon, uuid, created_at, updated_at, subject, vcon_json) ";
const ROW: &str = "VALUES ($1::uuid, $2::text, $1::uuid, $3::timestamp, $4::timestamp, $5::text, $6::text::jsonb) ";
const ROWS: &str = "SELECT id, vcon, id, created_at, updated_at, subject, vcon_json::jsonb FROM \
    unnest($1::uuid[], $2::text[], $3::timestamp[], $4::timestamp[], $5::text[], $6::text[]) \
    AS given (id, vcon, created_at, updated_at, subject, vcon_json) ";
const OR_UPDATE: &str = "ON CONFLICT (id) DO UPDATE SET vcon = excluded.vcon, uuid = excluded.uuid, created_at = excluded.created_at, \
    updated_at = excluded.updated_at, subject = excluded.subject, vcon_json = excluded.vcon_json";

const VERSION: &str = "0.4.0";
const SUBJECT: &str = "A call about an order";

pub struct Postgres {
    session: Client,
    row: Statement,
    rows: Statement,
    created_at: NaiveDateTime,
}

impl Postgres {
    pub fn open(servers: &Servers) -> Self {
        let mut session = servers.session();
        let [row, rows] = [ROW, ROWS].map(|given| {
            let upsert = format!("{INTO}{given}{OR_UPDATE}");
            session.prepare(&upsert).expect("the table")
        });
        let created_at = DateTime::from_timestamp(1_710_605_360, 0).expect("a time");
        Self {
            session,
            row,
            rows,
            created_at: created_at.naive_utc(),
        }
    }
}

impl Keeper for Postgres {
    fn keep(&mut self, vcons: &[Taken]) {
        let now = Local::now().naive_local();
        let number = vcons.len();
        let written = if let [vcon] = vcons {
            self.session.execute(
                &self.row,
                &[
                    &uuid(vcon),
                    &VERSION,
                    &self.created_at,
                    &now,
                    &SUBJECT,
                    &vcon.text,
                ],
            )
        } else {
            let ids: Vec<Uuid> = vcons.iter().map(uuid).collect();
            let texts: Vec<&str> = vcons.iter().map(|vcon| vcon.text.as_str()).collect();
            self.session.execute(
                &self.rows,
                &[
                    &ids,
                    &vec![VERSION; number],
                    &vec![self.created_at; number],
                    &vec![now; number],
                    &vec![SUBJECT; number],
                    &texts,
                ],
            )
        };
        assert_eq!(written.expect("a row"), number as u64);
    }
}

fn uuid(vcon: &Taken) -> Uuid {
    vcon.id.parse().expect("an id")
}
