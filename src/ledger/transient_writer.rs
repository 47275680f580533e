//! Writes short-lived bodies: before the log's commit of the same group, so that no durable fact lacks its body.

use super::codec::BodyRow;
use super::core::{Core, Sealing};
use super::queue::Queued;
use super::sql::{self, FileError, Form, to_sql};
use super::transient::{FILE_AGE, FILE_BYTES};
use super::writer::{PARTIAL_PAGES, checkpoint};
use rusqlite::{Connection, params};
use std::time::Instant;

struct Open {
    conn: Connection,
    bytes: u64,
    /// Bytes in its write-ahead log since it last began anew, about.
    wal: u64,
    since: Instant,
}

/// The file being written, if any.
#[derive(Default)]
pub struct TransientWriter(Option<Open>);

impl TransientWriter {
    /// Writes and commits the group's short-lived bodies; nothing when it has none.
    pub fn write(&mut self, core: &Core, group: &[Queued]) -> rusqlite::Result<()> {
        let mut bodies = group.iter().filter(|r| r.transient).filter_map(|r| r.body.as_ref().map(|b| (r, b))).peekable();
        let Some((first, _)) = bodies.peek() else { return Ok(()) };
        if self.0.as_ref().is_some_and(|o| o.bytes >= FILE_BYTES.min(core.segment_size()) || o.since.elapsed() >= FILE_AGE) {
            self.close(core);
        }
        let open = match &mut self.0 {
            Some(open) => open,
            none => {
                let path = core.transients.begin(first.seq);
                let made = sql::create_log(&path, Form::Transient, 0).and_then(|()| sql::open_log(&path, Form::Transient, 256));
                let conn = made.and_then(|conn| sql::shorten(&conn, core.wal_limit()).map(|()| conn));
                let conn = conn.map_err(|e| match e {
                    FileError::Sql(e) => e,
                    other => rusqlite::Error::ToSqlConversionFailure(Box::new(other)),
                })?;
                none.insert(Open { conn, bytes: 0, wal: 0, since: Instant::now() })
            }
        };
        // Dropped without commit, it rolls back.
        let transaction = open.conn.unchecked_transaction()?;
        let before = open.bytes;
        let mut last = 0;
        let mut pieces = Vec::new();
        {
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO bodies(seq, codec, len, sum, origin, data) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for (record, body) in bodies {
                let BodyRow { codec, len, sum, data } = body;
                let origin = record.elsewhere.as_ref().map(|e| e.origin as i64);
                insert.execute(params![to_sql(record.seq), *codec as i64, *len as i64, sum, origin, &**data])?;
                open.bytes += body.data.len() as u64;
                last = record.seq;
                if record.fact.is_none() {
                    pieces.push(record.seq);
                }
            }
        }
        transaction.commit()?;
        core.grew(open.bytes - before);
        // Pages that are not full are written with each commit again: not copied now and then, it would take many times what the
        // bodies do. A group with bodies in it waits for this; nothing else does.
        open.wal += open.bytes - before + PARTIAL_PAGES * u64::from(sql::LOG_PAGE);
        if open.wal >= core.wal_limit() {
            let (_, frames, copied) = checkpoint(&open.conn).unwrap_or((1, 1, 0));
            // With a reader in it, it does not begin anew: tried again soon.
            open.wal = if frames == copied { 0 } else { core.wal_limit() / 2 };
        }
        core.transients.wrote(last, pieces);
        Ok(())
    }

    /// Completes the current file; the housekeeper removes it when nobody needs it.
    pub fn close(&mut self, core: &Core) {
        if let Some(open) = self.0.take() {
            core.transients.end();
            core.sealing.lock().unwrap_or_else(|e| e.into_inner()).push(Sealing {
                segment: None,
                conn: open.conn,
                failed: false,
            });
            core.keeper_bell.ring();
        }
    }
}
