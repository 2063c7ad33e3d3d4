//! The table, how it is made if it is missing, the statements that read and write a row, and the order in which
//! a save uses them.
//!
//! # Nothing is left in a session
//!
//! Behind a pooler (PgBouncer with `pool_mode=transaction`), each transaction may run on another
//! connection to the server, which other programs use before and after. A statement that is prepared
//! under a name is then missing, or is another daemon's, with another table in it; a `SET` stays for
//! others. So each statement is parsed, bound and run in one round trip without a name, as a
//! transaction of its own, and nothing is `SET`.
//!
//! The insert of a new row, which is what a lane does most often, is prepared all the same if the
//! backend process has got the startup parameters of this session, among them a UUID that no other session
//! has. No pooler that we know of hands them on; one that did could still exchange the process later. So the
//! UUID is also a parameter of the insert, which compares it with that of the process each time: whichever
//! statement of this name a process may have, for which table, it writes nothing in a process that is not
//! ours. So is the insert of several rows at once, which has no other form. What follows is without a name.
//!
//! # A late write does not overtake
//!
//! A statement can reach its row long after its call was given up: its backend process was frozen, or
//! the pooler, or its bytes were under way. A request to cancel does not help: a backend that has not
//! yet read the statement ignores it, and it reaches nothing that is still under way. The vCon may have
//! been saved since, in a newer version. So a write takes effect only while the row is as its writer has
//! seen it *before* the write was sent:
//!
//! ```text
//! insert, unless there is a row ──1──► done
//!   │ 0                        ◄──────────────────────────────┐ 0: another writer was faster
//!   └► read the row's state ──► time left? ──► update, if the row still has that state ──1──► done
//! ```
//!
//! If nobody has changed the row, and yet nothing was written, something else keeps the write out: a
//! trigger, a policy, a view that does not show the row. Then an upsert lets the server decide. It also
//! supposes the state, if a row was seen. Without one, the insert is first sent once more without a name,
//! since the prepared one writes nothing in a process that is not ours.
//!
//! The state is `xmin`, which changes with each write; where there is no such column, a hash of the row.
//! Whatever else was written meanwhile has changed it, and the late write finds no row to update. This
//! needs no clock (those of hosts differ), no further column, no lock that outlives a transaction, and no
//! session. A row that is deleted in between is the exception: a late insert cannot tell it from one that
//! never was.

use std::cell::OnceCell;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use chrono::NaiveDateTime;
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use postgres::{Client, Error, Statement};
use uuid::Uuid;

use super::errors::{is_of_this_row, is_without_column};
use super::session::SESSION;
use super::wire::CallLimits;
use crate::deadline::Limit;

/// The names of the table and of its index, quoted for SQL.
#[derive(Clone, Default)]
pub(super) struct Table {
    /// The table's name, quoted for SQL.
    pub(super) quoted: String,
    index: String,
}

impl Table {
    /// `table` or `schema.table`; upper and lower case are kept.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        let parts: Vec<&str> = name.split('.').collect();
        let longest = 63;
        if parts.len() > 2
            || parts
                .iter()
                .any(|p| p.is_empty() || p.len() > longest || p.contains('\0'))
        {
            return Err(format!(
                "must be `table` or `schema.table`, each of 1 to {longest} bytes"
            ));
        }
        let suffix = "_vcon_json";
        let mut index = parts.last().map(|p| (*p).to_owned()).unwrap_or_default();
        // The server would cut the suffix off, and the index would have the table's name.
        while index.len() + suffix.len() > longest {
            index.pop();
        }
        index.push_str(suffix);
        let quoted: Vec<String> = parts.iter().map(|p| quote(p)).collect();
        Ok(Self {
            quoted: quoted.join("."),
            index: quote(&index),
        })
    }

    /// Creates the table if it is missing. An existing table stays as it is: its owner may have granted
    /// no right but to write to it, and looking for the index takes a lock. Returns whether its rows
    /// have the column `xmin`, which changes with each write.
    pub(super) fn make(&self, client: &mut Client) -> Result<bool, Error> {
        let Self { quoted, index } = self;
        let mut attempts = 0;
        loop {
            if let Some(has_xmin) = self.look(client)? {
                return Ok(has_xmin && knows_xmin(client)?);
            }
            attempts += 1;
            // Both statements run in one transaction: there is never a table without its index.
            match client.batch_execute(&definition(quoted, index)) {
                // Another worker creates it at the same time, which IF NOT EXISTS does not see.
                Err(e) if is_race(&e) && attempts < 5 => {}
                // The next look finds it, unless somebody drops it as often as it is created.
                Ok(()) if attempts < 5 => {}
                made => return made.map(|()| false),
            }
        }
    }

    /// Whether the table, if there is one, has the column `xmin` and rows of its own: a view does not, nor
    /// do tables of some servers that speak PostgreSQL's protocol. The catalogue tells it without a lock on
    /// the table.
    fn look(&self, client: &mut Client) -> Result<Option<bool>, Error> {
        let question = "SELECT relkind::text IN ('r', 'p') AND EXISTS (SELECT 1 FROM pg_attribute \
                        WHERE attrelid = pg_class.oid AND attname = 'xmin' AND attnum < 0) \
                        FROM pg_class WHERE oid = to_regclass($1)";
        let found = client.query_typed_opt(question, &[(&self.quoted, Type::TEXT)])?;
        found.map(|row| row.try_get(0)).transpose()
    }

    /// Returns whether the table exists; if not, tries whether it could be created, and rolls back: the
    /// caller may be another user than the service.
    pub(super) fn try_to_make(&self, client: &mut Client) -> Result<bool, Error> {
        let Self { quoted, index } = self;
        let mut transaction = client.transaction()?;
        let found = transaction.query_one("SELECT to_regclass($1) IS NOT NULL", &[quoted])?;
        let is_there: bool = found.try_get(0)?;
        if !is_there {
            match transaction.batch_execute(&definition(quoted, index)) {
                // The service creates it at this moment.
                Err(e) if is_race(&e) => {}
                made => made?,
            }
        }
        transaction.rollback()?;
        Ok(is_there)
    }
}

/// Whether statements can name the column `xmin`: YugabyteDB lists it in its catalogue and refuses it in
/// every table. Asks a table of the catalogue, since ours may be locked.
fn knows_xmin(client: &mut Client) -> Result<bool, Error> {
    match client.query_typed("SELECT c.xmin::text FROM pg_class AS c WHERE false", &[]) {
        Err(error) if is_without_column(&error) => Ok(false),
        answer => answer.map(|_| true),
    }
}

/// The SQL that creates a table and its index.
fn definition(quoted: &str, index: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {quoted} (id uuid PRIMARY KEY, vcon text NOT NULL, \
         uuid uuid NOT NULL, created_at timestamp NOT NULL, updated_at timestamp, \
         subject text, vcon_json jsonb); \
         CREATE INDEX IF NOT EXISTS {index} ON {quoted} USING gin (vcon_json)"
    )
}

fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// Two sessions made the same table: unique_violation in the catalogue, duplicate_table,
/// duplicate_object.
fn is_race(error: &Error) -> bool {
    error
        .code()
        .is_some_and(|c| matches!(c.code(), "23505" | "42P07" | "42710"))
}

/// The columns that are written, but for `id`.
const ASSIGNMENTS: &str = "vcon = $2, uuid = $1, created_at = $3, updated_at = $4, subject = $5, \
                           vcon_json = $6";

const VALUES: &str = "VALUES ($1, $2, $1, $3, $4, $5, $6)";

/// How long an insert of several rows waits for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_millis(50);

/// The statements for one table.
pub(super) struct Statements {
    insert: String,
    state: String,
    update: String,
    upsert: String,
    upsert_seen: String,
    get: String,
    delete: String,
    try_save: String,
    prepared: Option<Prepared>,
    /// The insert of several rows, prepared when the first are there; `None` if the server does not take it.
    together: OnceCell<Option<Statement>>,
    /// The limits of the session that the statements are prepared for.
    pub(super) limits: CallLimits,
}

/// The insert, prepared for this session.
struct Prepared {
    insert: Statement,
    session: String,
}

/// What a save writes.
pub(super) struct NewRow {
    pub(super) id: Uuid,
    pub(super) version: &'static str,
    pub(super) created_at: NaiveDateTime,
    pub(super) subject: Option<String>,
    pub(super) json: Jsonb,
}

/// A document as a parameter of the type `jsonb`. As text with a cast, the server would plan with it.
#[derive(Debug)]
pub(super) struct Jsonb(pub(super) Arc<String>);

/// The result of the statements of one call.
pub(super) enum StatementResult {
    /// Written; whether there was a row before.
    Saved { had_row: bool },
    /// The ids of the rows that were inserted.
    Inserted(Vec<Uuid>),
    /// The document, if there is a row.
    Found(Option<String>),
    /// Done, with nothing to return.
    Finished,
    /// The time ran out between two statements; the second was not sent.
    TooLate,
}

/// The version of a row, which changes with every write; `None` if there is no row.
type RowState = Option<String>;

impl Statements {
    /// For a table with this name in SQL. `has_xmin` is false for a view, and on servers
    /// without that column.
    pub(super) fn of(table: &str, has_xmin: bool) -> Self {
        let state = if has_xmin {
            "t.xmin::text"
        } else {
            "md5(t::text)"
        };
        let insert = |rows: &str, on_conflict: &str| {
            format!(
                "INSERT INTO {table} AS t (id, vcon, uuid, created_at, updated_at, subject, vcon_json) \
                 {rows} ON CONFLICT (id) DO {on_conflict}"
            )
        };
        let replace = "UPDATE SET vcon = excluded.vcon, uuid = excluded.uuid, \
                       created_at = excluded.created_at, updated_at = excluded.updated_at, \
                       subject = excluded.subject, vcon_json = excluded.vcon_json";
        let nothing = "SELECT NULL::uuid, NULL::text, NULL::uuid, NULL::timestamp, \
                       NULL::timestamp, NULL::text, NULL::jsonb WHERE false";
        Self {
            insert: insert(VALUES, "NOTHING"),
            state: format!("SELECT {state} FROM {table} AS t WHERE t.id = $1"),
            update: format!(
                "UPDATE {table} AS t SET {ASSIGNMENTS} WHERE t.id = $1 AND {state} = $7"
            ),
            upsert: insert(VALUES, replace),
            upsert_seen: insert(VALUES, &format!("{replace} WHERE {state} = $7")),
            get: format!("SELECT t.vcon_json::text FROM {table} AS t WHERE t.id = $1"),
            delete: format!("DELETE FROM {table} AS t WHERE t.id = $1 AND {state} = $2"),
            try_save: insert(nothing, &format!("{replace} WHERE {state} <> ''")),
            prepared: None,
            together: OnceCell::new(),
            limits: CallLimits::default(),
        }
    }

    /// Prepares the insert, which a lane does most often, for a backend process that belongs to this
    /// session. If that fails, inserts work without.
    pub(super) fn prepare(&mut self, client: &mut Client, session: Uuid) {
        const TYPES: [Type; 7] = [
            Type::UUID,
            Type::TEXT,
            Type::TIMESTAMP,
            Type::TIMESTAMP,
            Type::TEXT,
            Type::JSONB,
            Type::TEXT,
        ];
        let session = session.to_string();
        match client.prepare_typed(&self.insert_in_session(), &TYPES) {
            Ok(insert) => self.prepared = Some(Prepared { insert, session }),
            Err(error) => log::debug!("the insert could not be prepared: {error}"),
        }
    }

    /// The insert, for a process that belongs to the session `$7`.
    fn insert_in_session(&self) -> String {
        let rows = format!(
            "SELECT $1, $2, $1, $3, $4, $5, $6 WHERE current_setting('{SESSION}', true) = $7"
        );
        self.insert.replace(VALUES, &rows)
    }

    /// Writes the row. With `row_first`, looks for a row before the first write, which spares sending
    /// the document twice if there is one.
    pub(super) fn save(
        &self,
        client: &mut Client,
        new: &NewRow,
        row_first: bool,
        limit: Limit,
    ) -> Result<StatementResult, Error> {
        // The state that the last write expected, and how many writes in a row have failed while it
        // stayed the same.
        let mut tried: Option<RowState> = None;
        let mut in_vain = 0;
        if !row_first {
            if self.write(client, new, &None)? {
                return Ok(StatementResult::Saved { had_row: false });
            }
            tried = Some(None);
        }
        loop {
            let state = self.state_of(client, new.id)?;
            // After the read: a process that was frozen here must not write over what others have
            // written since. Frozen later, its write does not fit the row any more.
            if limit.is_over() {
                return Ok(StatementResult::TooLate);
            }
            in_vain = if tried.as_ref() == Some(&state) {
                in_vain + 1
            } else {
                0
            };
            let is_done = match (in_vain, &state) {
                (0, _) => self.write(client, new, &state)?,
                (1, None) => client.execute_typed(&self.insert, &new.values(&now()))? > 0,
                (1, Some(seen)) => self.write_over(client, &self.upsert_seen, new, seen)?,
                (_, None) => {
                    client.execute_typed(&self.upsert, &new.values(&now()))?;
                    true
                }
                // A trigger keeps the row as it is, even from the upsert.
                (_, Some(_)) => true,
            };
            if is_done {
                return Ok(StatementResult::Saved {
                    had_row: state.is_some(),
                });
            }
            tried = Some(state);
        }
    }

    /// The insert of several rows, for a process that belongs to the session `$7`. Its wait for a row that
    /// somebody else is about to insert ends soon, so that the others do not wait with it.
    fn insert_together_in_session(&self) -> String {
        let lock_timeout = LOCK_TIMEOUT.as_millis();
        let rows = format!(
            "SELECT r.id, r.vcon, r.id, r.created_at, $4, r.subject, r.vcon_json \
             FROM unnest($1, $2, $3, $5, $6) AS r (id, vcon, created_at, subject, vcon_json) \
             WHERE current_setting('{SESSION}', true) = $7 \
             AND (SELECT set_config('lock_timeout', '{lock_timeout}', true)) <> ''"
        );
        let insert = self.insert.replace(VALUES, &rows);
        format!("{insert} RETURNING t.id")
    }

    /// Inserts the rows, except those whose id has a row, as one transaction. Returns
    /// [`StatementResult::Finished`] and does nothing where that cannot be prepared.
    pub(super) fn insert_together(
        &self,
        client: &mut Client,
        rows: &[Arc<NewRow>],
    ) -> Result<StatementResult, Error> {
        let Some(Prepared { session, .. }) = &self.prepared else {
            return Ok(StatementResult::Finished);
        };
        let Some(insert) = self.together(client)? else {
            return Ok(StatementResult::Finished);
        };
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let versions: Vec<&str> = rows.iter().map(|row| row.version).collect();
        let created_at: Vec<NaiveDateTime> = rows.iter().map(|row| row.created_at).collect();
        let subjects: Vec<Option<&str>> = rows.iter().map(|row| row.subject.as_deref()).collect();
        let documents: Vec<&Jsonb> = rows.iter().map(|row| &row.json).collect();
        let values: [&(dyn ToSql + Sync); 7] = [
            &ids,
            &versions,
            &created_at,
            &now(),
            &subjects,
            &documents,
            session,
        ];
        let inserted = client.query(insert, &values)?;
        let inserted: Result<Vec<Uuid>, Error> =
            inserted.iter().map(|row| row.try_get(0)).collect();
        inserted.map(StatementResult::Inserted)
    }

    /// The insert of several rows, prepared at the first use.
    fn together(&self, client: &mut Client) -> Result<Option<&Statement>, Error> {
        const TYPES: [Type; 7] = [
            Type::UUID_ARRAY,
            Type::TEXT_ARRAY,
            Type::TIMESTAMP_ARRAY,
            Type::TIMESTAMP,
            Type::TEXT_ARRAY,
            Type::JSONB_ARRAY,
            Type::TEXT,
        ];
        if let Some(prepared) = self.together.get() {
            return Ok(prepared.as_ref());
        }
        let prepared = match client.prepare_typed(&self.insert_together_in_session(), &TYPES) {
            Ok(insert) => Some(insert),
            Err(error) if error.as_db_error().is_some() => {
                log::debug!("the insert of several rows could not be prepared: {error}");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(self.together.get_or_init(|| prepared).as_ref())
    }

    /// The document.
    pub(super) fn get(&self, client: &mut Client, id: Uuid) -> Result<StatementResult, Error> {
        let get = || client.query_typed_opt(&self.get, &[(&id, Type::UUID)]);
        let row = self.limits.for_a_document(get)?;
        // A row may have none.
        let document = row.map(|row| row.try_get::<_, Option<String>>(0));
        Ok(StatementResult::Found(document.transpose()?.flatten()))
    }

    /// Removes the row. A late removal, too, does not reach a row that was written since.
    pub(super) fn delete(
        &self,
        client: &mut Client,
        id: Uuid,
        limit: Limit,
    ) -> Result<StatementResult, Error> {
        let mut tried = None;
        loop {
            let state = self.state_of(client, id)?;
            if limit.is_over() {
                return Ok(StatementResult::TooLate);
            }
            let Some(state) = state.filter(|state| tried.as_ref() != Some(state)) else {
                return Ok(StatementResult::Finished);
            };
            let values: [(&(dyn ToSql + Sync), Type); 2] =
                [(&id, Type::UUID), (&state, Type::TEXT)];
            if client.execute_typed(&self.delete, &values)? > 0 {
                return Ok(StatementResult::Finished);
            }
            tried = Some(state);
        }
    }

    /// Writes no row at all, which needs the table with its columns and the rights; then one that is taken
    /// back, which needs room on the server's disk as well. A trigger of the table sees that one, and what it
    /// does in the database is taken back, too.
    pub(super) fn try_save(&self, client: &mut Client) -> Result<StatementResult, Error> {
        client.execute_typed(&self.try_save, &[])?;
        // A pooler that gives out its connections for single statements has no transactions.
        if client.batch_execute("BEGIN").is_err_and(|e| !e.is_closed()) {
            return Ok(StatementResult::Finished);
        }
        let row = NewRow::for_probe();
        let written = client.execute_typed(&self.insert, &row.values(&now()));
        let ended = client.batch_execute("ROLLBACK");
        match written {
            // Constraints, triggers and policies may let in other rows only.
            Err(error) if !is_of_this_row(&error) => Err(error),
            _ => ended.map(|()| StatementResult::Finished),
        }
    }

    /// Tries once to write over a row in this state. Returns whether it was written.
    fn write(&self, client: &mut Client, new: &NewRow, state: &RowState) -> Result<bool, Error> {
        let now = now();
        let written = match (state, &self.prepared) {
            (Some(seen), _) => return self.write_over(client, &self.update, new, seen),
            (None, Some(Prepared { insert, session })) => {
                let [id, version, created, now, subject, json] =
                    new.values(&now).map(|(value, _)| value);
                let values = [id, version, created, now, subject, json, session];
                client.execute(insert, &values)?
            }
            (None, None) => client.execute_typed(&self.insert, &new.values(&now))?,
        };
        Ok(written > 0)
    }

    /// Writes over a row in this state, by this statement. Returns whether it was written.
    fn write_over(
        &self,
        client: &mut Client,
        statement: &str,
        new: &NewRow,
        seen: &String,
    ) -> Result<bool, Error> {
        let now = now();
        let mut values = new.values(&now).to_vec();
        values.push((seen, Type::TEXT));
        Ok(client.execute_typed(statement, &values)? > 0)
    }

    fn state_of(&self, client: &mut Client, id: Uuid) -> Result<RowState, Error> {
        let row = client.query_typed_opt(&self.state, &[(&id, Type::UUID)])?;
        row.map(|row| row.try_get(0)).transpose()
    }
}

impl NewRow {
    /// A row that needs some new pages: its document does not compress.
    fn for_probe() -> Self {
        const BYTES: usize = 32 << 10;
        let noise: String = std::iter::repeat_with(fastrand::alphanumeric)
            .take(BYTES)
            .collect();
        Self {
            id: Uuid::new_v4(),
            version: "0",
            created_at: now(),
            subject: None,
            json: Jsonb(Arc::new(format!("{{\"probe\":\"{noise}\"}}"))),
        }
    }

    /// The parameters of a write at this time.
    fn values<'a>(&'a self, now: &'a NaiveDateTime) -> [(&'a (dyn ToSql + Sync), Type); 6] {
        [
            (&self.id, Type::UUID),
            (&self.version, Type::TEXT),
            (&self.created_at, Type::TIMESTAMP),
            (now, Type::TIMESTAMP),
            (&self.subject, Type::TEXT),
            (&self.json, Type::JSONB),
        ]
    }
}

impl ToSql for Jsonb {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        // The version of the format, and the text.
        out.extend_from_slice(&[1]);
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::JSONB
    }

    to_sql_checked!();
}

/// The time of a write, on this machine's clock.
fn now() -> NaiveDateTime {
    chrono::Local::now().naive_local()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_write_fits_only_the_row_that_its_writer_has_seen() {
        let of_table = Statements::of("\"a\".\"b\"", true);
        assert!(of_table.insert.ends_with(" ON CONFLICT (id) DO NOTHING"));
        assert!(
            of_table
                .update
                .ends_with(" WHERE t.id = $1 AND t.xmin::text = $7")
        );
        assert_eq!(
            of_table.delete,
            "DELETE FROM \"a\".\"b\" AS t WHERE t.id = $1 AND t.xmin::text = $2"
        );
        assert!(
            of_table
                .upsert_seen
                .ends_with(", vcon_json = excluded.vcon_json WHERE t.xmin::text = $7")
        );
        let prepared = of_table.insert_in_session();
        assert!(prepared.contains(") SELECT $1, $2, $1, $3, $4, $5, $6 WHERE current_setting("));
        assert!(prepared.ends_with(" = $7 ON CONFLICT (id) DO NOTHING"));
        // A view has no such column.
        let of_view = Statements::of("\"b\"", false);
        for statement in [&of_view.state, &of_view.update, &of_view.delete] {
            assert!(!statement.contains("xmin") && statement.contains("md5(t::text)"));
        }
    }

    #[test]
    fn a_document_is_sent_in_the_format_of_jsonb() {
        let mut out = BytesMut::new();
        let document = Jsonb(Arc::new("{\"a\":1}".to_owned()));
        let is_null = document.to_sql_checked(&Type::JSONB, &mut out);
        assert!(matches!(is_null, Ok(IsNull::No)));
        assert_eq!(&out[..], b"\x01{\"a\":1}");
        assert!(document.to_sql_checked(&Type::TEXT, &mut out).is_err());
    }

    #[test]
    fn names_of_tables_are_quoted() {
        let cases = [
            ("vcons", "\"vcons\"", "\"vcons_vcon_json\""),
            ("crm.Calls", "\"crm\".\"Calls\"", "\"Calls_vcon_json\""),
            (
                "a\"; DROP TABLE b; --",
                "\"a\"\"; DROP TABLE b; --\"",
                "\"a\"\"; DROP TABLE b; --_vcon_json\"",
            ),
        ];
        for (name, quoted, index) in cases {
            let table = Table::parse(name).unwrap();
            assert_eq!((&*table.quoted, &*table.index), (quoted, index));
        }
        let long = "x".repeat(63);
        let index = Table::parse(&long).unwrap().index;
        assert_eq!(index, format!("\"{}_vcon_json\"", "x".repeat(53)));
        for bad in ["", ".", "a.", ".b", "a.b.c", "a\0", &"x".repeat(64)] {
            assert!(Table::parse(bad).is_err(), "{bad:?}");
        }
    }
}
