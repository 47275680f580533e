//! What is taken in from other logs: how far each is, and which of their pieces of bodies wait for their fact. Kept in the log that is
//! being written, in the same commit as the records, and copied into each new one, so that the newest always says all.

use super::catalog::Segment;
use super::core::{Core, now_ms};
use super::origin::HOUSEKEEPING;
use super::sql::{FileError, from_sql, has_taken, to_sql};
use crate::engine::fact::Seq;
use crate::engine::replica::{Origin, Positions};
use crate::telemetry::ledger as event;
use rusqlite::{Connection, params};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Pieces that may wait for their fact: 4 GiB of large bodies on their way through all nodes together.
const PIECES: usize = 16 * 1024;
/// Pieces whose fact has not come within this time belong to a message that was never accepted.
const PIECE_AGE_MS: i64 = 6 * 3600 * 1000;

/// A piece of a body by the numbers of the log that it comes from.
pub type PieceKey = (Origin, Seq);

/// Where a piece lies here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub here: Seq,
    pub transient: bool,
    /// Unix milliseconds at which it came.
    pub at: i64,
}

/// What a commit changes.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// These logs are taken in up to these numbers.
    pub taken: Vec<(Origin, Seq)>,
    /// The stream is read up to here.
    pub offset: Option<u64>,
    pub pieces: Vec<(PieceKey, Piece)>,
    /// Pieces whose fact has come, or is waited for no longer.
    pub settled: Vec<PieceKey>,
}

impl Notes {
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.offset.is_none() && self.pieces.is_empty() && self.settled.is_empty()
    }

    /// Adds what came later.
    pub fn append(&mut self, later: Notes) {
        for (origin, seq) in later.taken {
            match self.taken.iter_mut().find(|(known, _)| *known == origin) {
                Some((_, known)) => *known = seq,
                None => self.taken.push((origin, seq)),
            }
        }
        self.offset = later.offset.or(self.offset);
        self.pieces.extend(later.pieces);
        self.settled.extend(later.settled);
    }

    /// Writes them into the open transaction of a log.
    pub fn write(&self, conn: &Connection) -> rusqlite::Result<()> {
        let mut taken = conn.prepare_cached("INSERT OR REPLACE INTO taken(origin, seq) VALUES(?1, ?2)")?;
        for (origin, seq) in &self.taken {
            taken.execute(params![*origin as i64, to_sql(*seq)])?;
        }
        if let Some(offset) = self.offset {
            taken.execute(params![HOUSEKEEPING as i64, offset as i64])?;
        }
        let mut put =
            conn.prepare_cached("INSERT OR REPLACE INTO pieces(origin, seq, here, transient, at) VALUES(?1, ?2, ?3, ?4, ?5)")?;
        for ((origin, seq), piece) in &self.pieces {
            put.execute(params![*origin as i64, to_sql(*seq), to_sql(piece.here), piece.transient, piece.at])?;
        }
        let mut settle = conn.prepare_cached("DELETE FROM pieces WHERE origin = ?1 AND seq = ?2")?;
        for (origin, seq) in &self.settled {
            settle.execute(params![*origin as i64, to_sql(*seq)])?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    positions: Positions,
    pieces: HashMap<PieceKey, Piece>,
}

impl State {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn notes(&self) -> Notes {
        Notes {
            taken: self.positions.taken.iter().map(|(origin, seq)| (*origin, *seq)).collect(),
            offset: self.positions.offset,
            pieces: self.pieces.iter().map(|(key, piece)| (*key, *piece)).collect(),
            settled: Vec::new(),
        }
    }
}

/// What is committed.
#[derive(Default)]
pub struct Applied(Mutex<State>);

impl Applied {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Was nothing ever taken in?
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub fn positions(&self) -> Positions {
        self.lock().positions.clone()
    }

    pub fn piece(&self, key: PieceKey) -> Option<Piece> {
        self.lock().pieces.get(&key).copied()
    }

    /// Pieces that lie in a range of numbers, not those in short-lived files.
    pub fn pieces_in(&self, segment: &Segment) -> Vec<(PieceKey, Piece)> {
        let here = |p: &Piece| !p.transient && p.here >= segment.first && p.here <= segment.end();
        self.lock().pieces.iter().filter(|(_, p)| here(p)).map(|(key, piece)| (*key, *piece)).collect()
    }

    /// They are in a commit.
    pub fn merge(&self, notes: Notes) {
        let mut state = self.lock();
        state.positions.taken.extend(notes.taken);
        state.positions.offset = notes.offset.or(state.positions.offset);
        state.pieces.extend(notes.pieces);
        for key in notes.settled {
            state.pieces.remove(&key);
        }
    }

    /// Pieces that are not waited for any longer: too old, or too many.
    pub fn given_up(&self) -> Vec<PieceKey> {
        let state = self.lock();
        let since = now_ms().saturating_sub(PIECE_AGE_MS);
        let mut left: Vec<(Seq, PieceKey)> = Vec::new();
        let mut gone: Vec<PieceKey> = Vec::new();
        for (key, piece) in &state.pieces {
            if piece.at < since { gone.push(*key) } else { left.push((piece.here, *key)) }
        }
        if left.len() > PIECES {
            left.sort_unstable();
            gone.extend(left.drain(..left.len() - PIECES).map(|(_, key)| key));
        }
        gone
    }

    /// Writes all of it into a log that is new.
    pub fn copy_into(&self, conn: &Connection) -> Result<(), FileError> {
        let state = self.lock().clone();
        if !state.is_empty() {
            let transaction = conn.unchecked_transaction()?;
            state.notes().write(&transaction)?;
            transaction.commit()?;
        }
        Ok(())
    }
}

/// The highest number of a piece that waits for its fact.
pub fn last_piece(conn: &Connection) -> Result<Seq, FileError> {
    if !has_taken(conn)? {
        return Ok(0);
    }
    let last: Option<i64> = conn.query_row("SELECT max(here) FROM pieces", [], |r| r.get(0))?;
    Ok(from_sql(last.unwrap_or(0)))
}

/// Does this log say nothing of other logs?
pub fn says_nothing(conn: &Connection) -> Result<bool, FileError> {
    Ok(read(conn)?.is_empty())
}

fn read(conn: &Connection) -> Result<State, FileError> {
    let mut state = State::default();
    if !has_taken(conn)? {
        return Ok(state);
    }
    let mut taken = conn.prepare("SELECT origin, seq FROM taken")?;
    let mut rows = taken.query([])?;
    while let Some(row) = rows.next()? {
        let (origin, seq) = (row.get::<_, i64>(0)? as Origin, row.get::<_, i64>(1)?);
        match origin {
            HOUSEKEEPING => state.positions.offset = Some(seq as u64),
            _ => drop(state.positions.taken.insert(origin, from_sql(seq))),
        }
    }
    let mut pieces = conn.prepare("SELECT origin, seq, here, transient, at FROM pieces")?;
    let mut rows = pieces.query([])?;
    while let Some(row) = rows.next()? {
        let key = (row.get::<_, i64>(0)? as Origin, from_sql(row.get(1)?));
        state.pieces.insert(key, Piece { here: from_sql(row.get(2)?), transient: row.get(3)?, at: row.get(4)? });
    }
    Ok(state)
}

/// At start: reads it from the newest log that says something. Where a log is lost, what was taken in from it on is to be read again:
/// then only older logs are asked, and what they say replaces what the log that is written says (`conn` is open for that).
pub fn restore(core: &Core, active: &Segment, conn: &Connection) -> Result<(), FileError> {
    let reread = core.marks().reread;
    let mut state = State::default();
    let mut from = None;
    let mut has_any = false;
    let older: Vec<Arc<Segment>> = core.catalog.all().into_iter().filter(|s| reread.is_none_or(|lost| s.first < lost)).collect();
    for segment in older.into_iter().rev() {
        state = match core.with_log(&segment, read) {
            // An older one says less: more is read again, which is harmless.
            Err(e @ FileError::Damaged(_)) => {
                super::damage::noticed(core, segment.first, &e);
                continue;
            }
            read => read?,
        };
        if !state.is_empty() {
            from = Some(segment.first);
            break;
        }
    }
    if reread.is_some() || from.is_some_and(|first| first != active.first) {
        has_any = !read(conn)?.is_empty() || !state.is_empty();
        let transaction = conn.unchecked_transaction()?;
        transaction.execute_batch("DELETE FROM taken; DELETE FROM pieces")?;
        state.notes().write(&transaction)?;
        transaction.commit()?;
    }
    if let Some(lost) = reread {
        if has_any {
            event::ReadAgain { lost, offset: state.positions.offset }.emit();
        }
        core.note(|marks| marks.reread = None).map_err(|e| super::sql::io_error(&e))?;
    }
    core.transients.stage(state.pieces.values().filter(|p| p.transient).map(|p| p.here));
    *core.applied.lock() = state;
    Ok(())
}
