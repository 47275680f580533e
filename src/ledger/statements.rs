//! The log's prepared statements, and a group written through them.

use super::queue::Record;
use super::sql::to_sql;
use rusqlite::{Connection, Statement, params};

/// What a row costs besides its data, about.
const ROW_OVERHEAD: u64 = 48;

/// Prepared once per connection.
pub struct Statements<'c> {
    conn: &'c Connection,
    begin: Statement<'c>,
    commit: Statement<'c>,
    fact: Statement<'c>,
    body: Statement<'c>,
    /// A transaction is open.
    open: bool,
}

impl<'c> Statements<'c> {
    pub fn prepare(conn: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            conn,
            begin: conn.prepare("BEGIN IMMEDIATE")?,
            commit: conn.prepare("COMMIT")?,
            fact: conn.prepare("INSERT INTO facts(seq, id, home, at, kind, data) VALUES(?1, ?2, ?3, ?4, ?5, ?6)")?,
            body: conn.prepare("INSERT INTO bodies(seq, codec, len, sum, data) VALUES(?1, ?2, ?3, ?4, ?5)")?,
            open: false,
        })
    }

    /// Writes one record into the open transaction, opening one when there is none. Gives the bytes written, about.
    pub fn insert(&mut self, record: &Record) -> rusqlite::Result<u64> {
        let body = record.body.as_ref().filter(|_| !record.transient);
        if record.fact.is_none() && body.is_none() {
            return Ok(0);
        }
        if !self.open {
            self.begin.execute([])?;
            self.open = true;
        }
        let mut bytes = 0;
        if let Some(fact) = &record.fact {
            self.fact.execute(params![to_sql(record.seq), fact.id, to_sql(fact.home), fact.at, fact.kind, &*fact.data])?;
            bytes += fact.data.len() as u64 + ROW_OVERHEAD;
        }
        if let Some(body) = body {
            self.body.execute(params![to_sql(record.seq), body.codec as i64, body.len as i64, body.sum, &*body.data])?;
            bytes += body.data.len() as u64 + ROW_OVERHEAD;
        }
        Ok(bytes)
    }

    /// Commits what was inserted: durable when this returns.
    pub fn commit(&mut self) -> rusqlite::Result<()> {
        if self.open {
            self.commit.execute([])?;
            self.open = false;
        }
        Ok(())
    }

    /// After an error.
    pub fn roll_back(&mut self) {
        self.open = false;
        if !self.conn.is_autocommit() {
            // SQLite may have rolled back by itself; nothing more can be done about an error here.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
    }
}
