//! The log's prepared statements, and a group written through them.

use super::applied::Notes;
use super::codec::BodyRow;
use super::queue::{Elsewhere, Record};
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
    /// What the open transaction changes in what is known of other logs.
    notes: Notes,
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
            notes: Notes::default(),
        })
    }

    /// Writes one record into the open transaction, opening one when there is none. Gives the bytes written, about.
    pub fn insert(&mut self, record: &Record) -> rusqlite::Result<u64> {
        let body = record.body.as_ref().filter(|_| !record.transient);
        let elsewhere = record.elsewhere.as_deref();
        if record.fact.is_none() && body.is_none() && elsewhere.is_none_or(|e| e.notes.is_empty()) {
            return Ok(0);
        }
        if !self.open {
            self.begin.execute([])?;
            self.open = true;
        }
        if let Some(elsewhere) = elsewhere {
            return self.insert_from(record, body, elsewhere);
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

    /// As [`Statements::insert`], of what comes from another log, or is written again.
    fn insert_from(&mut self, record: &Record, body: Option<&BodyRow>, elsewhere: &Elsewhere) -> rusqlite::Result<u64> {
        let origin = elsewhere.origin as i64;
        let mut bytes = 0;
        if let Some(fact) = &record.fact {
            let mut insert = self
                .conn
                .prepare_cached("INSERT INTO facts(seq, id, home, at, kind, origin, data) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
            insert.execute(params![to_sql(record.seq), fact.id, to_sql(fact.home), fact.at, fact.kind, origin, &*fact.data])?;
            bytes += fact.data.len() as u64 + ROW_OVERHEAD;
        }
        if let Some(body) = body {
            let mut insert = self
                .conn
                .prepare_cached("INSERT INTO bodies(seq, codec, len, sum, origin, data) VALUES(?1, ?2, ?3, ?4, ?5, ?6)")?;
            let BodyRow { codec, len, sum, data } = body;
            insert.execute(params![to_sql(record.seq), *codec as i64, *len as i64, sum, origin, &**data])?;
            bytes += data.len() as u64 + ROW_OVERHEAD;
        }
        let mut notes = elsewhere.notes.clone();
        notes.pieces.iter_mut().for_each(|(_, piece)| piece.here = record.seq);
        self.notes.append(notes);
        Ok(bytes)
    }

    /// What the last commit changed in what is known of other logs.
    pub fn take_notes(&mut self) -> Option<Notes> {
        (!self.notes.is_empty()).then(|| std::mem::take(&mut self.notes))
    }

    /// Commits what was inserted: durable when this returns.
    pub fn commit(&mut self) -> rusqlite::Result<()> {
        if self.open {
            if !self.notes.is_empty() {
                self.notes.write(self.conn)?;
            }
            self.commit.execute([])?;
            self.open = false;
        }
        Ok(())
    }

    /// After an error.
    pub fn roll_back(&mut self) {
        self.open = false;
        self.notes = Notes::default();
        if !self.conn.is_autocommit() {
            // SQLite may have rolled back by itself; nothing more can be done about an error here.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
    }
}
