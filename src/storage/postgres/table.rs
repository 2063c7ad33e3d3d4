//! The table of `storage.postgres`: its name, and how it is made where it is missing.

use postgres::types::Type;
use postgres::{Client, Error};

use super::fault::is_without_column;

/// The table's name, and that of its index, as they stand in SQL.
#[derive(Clone, Default)]
pub(super) struct Table {
    /// The name as it stands in SQL.
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

    /// Makes the table where it is missing. One that exists is left as it is: its owner may
    /// have given us no right but to write to it, and an index takes a lock to be looked for.
    /// Returns whether its rows have the column `xmin`, which changes with each write.
    pub(super) fn make(&self, client: &mut Client) -> Result<bool, Error> {
        let Self { quoted, index } = self;
        let mut attempts = 0;
        loop {
            if let Some(has_xmin) = self.look(client)? {
                return Ok(has_xmin && knows_xmin(client)?);
            }
            attempts += 1;
            // Both statements in one transaction: no table without its index.
            match client.batch_execute(&definition(quoted, index)) {
                // Another worker makes it at the same time, which IF NOT EXISTS does not see.
                Err(e) if is_race(&e) && attempts < 5 => {}
                // The next look finds it; else it is dropped as often as it is made.
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
}

/// Whether statements can name the column `xmin`: YugabyteDB has it in its catalogue, and refuses it
/// in every table. Asked of a table of the catalogue, since ours may be locked.
fn knows_xmin(client: &mut Client) -> Result<bool, Error> {
    match client.query_typed("SELECT c.xmin::text FROM pg_class AS c WHERE false", &[]) {
        Err(error) if is_without_column(&error) => Ok(false),
        answer => answer.map(|_| true),
    }
}

impl Table {
    /// Tries whether the table could be made, and makes nothing: who asks may be another user than the
    /// service. Returns whether it is there.
    pub(super) fn try_to_make(&self, client: &mut Client) -> Result<bool, Error> {
        let Self { quoted, index } = self;
        let mut transaction = client.transaction()?;
        let found = transaction.query_one("SELECT to_regclass($1) IS NOT NULL", &[quoted])?;
        let is_there: bool = found.try_get(0)?;
        if !is_there {
            match transaction.batch_execute(&definition(quoted, index)) {
                // The service makes it at this moment.
                Err(e) if is_race(&e) => {}
                made => made?,
            }
        }
        transaction.rollback()?;
        Ok(is_there)
    }
}

/// What makes a table and its index.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
