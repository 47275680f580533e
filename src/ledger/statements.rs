//! The log's prepared statements, and one group written through them.

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
}

impl<'c> Statements<'c> {
    pub fn prepare(conn: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            conn,
            begin: conn.prepare("BEGIN IMMEDIATE")?,
            commit: conn.prepare("COMMIT")?,
            fact: conn.prepare("INSERT INTO facts(seq, id, home, at, kind, data) VALUES(?1, ?2, ?3, ?4, ?5, ?6)")?,
            body: conn.prepare("INSERT INTO bodies(seq, codec, len, sum, data) VALUES(?1, ?2, ?3, ?4, ?5)")?,
        })
    }

    /// Writes and commits a group: durable when this returns. Gives the bytes written, about.
    pub fn write(&mut self, group: &[Record]) -> rusqlite::Result<u64> {
        if group.iter().all(|r| r.fact.is_none() && (r.transient || r.body.is_none())) {
            return Ok(0);
        }
        self.begin.execute([])?;
        let mut bytes = 0;
        for record in group {
            if let Some(fact) = &record.fact {
                self.fact.execute(params![to_sql(record.seq), fact.id, to_sql(fact.home), fact.at, fact.kind, &*fact.data])?;
                bytes += fact.data.len() as u64 + ROW_OVERHEAD;
            }
            if let Some(body) = record.body.as_ref().filter(|_| !record.transient) {
                self.body.execute(params![to_sql(record.seq), body.codec as i64, body.len as i64, body.sum, &*body.data])?;
                bytes += body.data.len() as u64 + ROW_OVERHEAD;
            }
        }
        self.commit.execute([])?;
        Ok(bytes)
    }

    /// After an error.
    pub fn roll_back(&mut self) {
        if !self.conn.is_autocommit() {
            // SQLite may have rolled back by itself; nothing more can be done about an error here.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
    }
}
