//! Reading single facts and bodies back. Blocking.

use super::codec::{self, BodyRow, Codec};
use super::core::Core;
use super::origin::HOUSEKEEPING;
use super::sql::{Damage, FileError, Form, to_sql};
use crate::engine::fact::{Accepted, BodyRef, Fact, Seq, What};
use crate::engine::replica::Origin;
use crate::message::MessageId;
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Retention has removed it, or it was never there.
    #[error("no longer stored")]
    Gone,
    /// The file is damaged or cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Columns in the order that [`stored_fact`] expects.
const FACT_COLUMNS: &str = "id, home, at, data";

/// Reads a row; `Ok(None)` for kinds that this release does not know.
fn stored_fact(row: &Row<'_>) -> Result<Option<Fact>, FileError> {
    let id = row.get_ref(0)?.as_blob().ok().and_then(MessageId::from_slice);
    let id = id.ok_or_else(|| Damage("a stored fact has no message id".into()))?;
    let home = super::sql::from_sql(row.get(1)?);
    let data = row.get_ref(3)?.as_blob().map_err(|_| Damage("a stored fact has no data".into()))?;
    Ok(codec::what(data).map(|what| Fact { id, home, at: row.get(2).unwrap_or(0), what }))
}

/// The fact under `seq` on an open log.
pub fn fact_on(conn: &Connection, seq: Seq) -> Result<Option<Fact>, FileError> {
    let mut statement = conn.prepare_cached(&format!("SELECT {FACT_COLUMNS} FROM facts WHERE seq = ?1"))?;
    let mut rows = statement.query([to_sql(seq)])?;
    match rows.next()? {
        Some(row) => stored_fact(row),
        None => Ok(None),
    }
}

/// The fact under `seq`.
pub fn fact(core: &Core, seq: Seq) -> Result<Option<Fact>, FileError> {
    match core.catalog.holding(seq) {
        Some(segment) => core.with_log(&segment, |conn| fact_on(conn, seq)),
        None => Ok(None),
    }
}

/// The accept fact (as accepted, or as carried) under `seq`.
pub fn accepted(core: &Core, seq: Seq) -> Result<Option<Box<Accepted>>, FileError> {
    Ok(fact(core, seq)?.and_then(|f| match f.what {
        What::Accepted(accepted) | What::Carried { accepted, .. } => Some(accepted),
        _ => None,
    }))
}

/// The log from which the fact under `seq` was applied; `None`: it is this one's own, or not stored.
pub fn origin(core: &Core, seq: Seq) -> Result<Option<Origin>, FileError> {
    let Some(segment) = core.catalog.holding(seq) else { return Ok(None) };
    core.with_log(&segment, |conn| {
        let sql = format!("SELECT {} FROM facts WHERE seq = ?1", super::sql::origin_column(conn)?);
        let found: Option<Option<i64>> = conn.prepare_cached(&sql)?.query_row([to_sql(seq)], |r| r.get(0)).optional()?;
        Ok(found.flatten().map(|o| o as Origin).filter(|o| *o != HOUSEKEEPING))
    })
}

/// A stored body as it is; `None` when it has a form that this release does not know.
pub fn packed(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<BodyRow>> {
    let codec = match row.get::<_, i64>(first)? {
        0 => Codec::Plain,
        1 => Codec::Zstd,
        _ => return Ok(None),
    };
    let len = row.get::<_, i64>(first + 1)?;
    let data = Bytes::copy_from_slice(row.get_ref(first + 3)?.as_blob()?);
    Ok(usize::try_from(len).ok().map(|len| BodyRow { codec, len, sum: row.get(first + 2).unwrap_or(0), data }))
}

/// One row of bodies.
fn body_on(conn: &Connection, seq: Seq) -> Result<Option<Bytes>, FileError> {
    let mut statement = conn.prepare_cached("SELECT codec, len, sum, data FROM bodies WHERE seq = ?1")?;
    let found = statement
        .query_row([to_sql(seq)], |r| {
            let data = r.get_ref(3)?.as_blob().map_err(|_| rusqlite::Error::InvalidQuery)?;
            Ok(codec::unpack(r.get(0)?, r.get(1)?, r.get(2)?, data))
        })
        .optional()?;
    Ok(found.transpose()?)
}

/// As [`piece`], packed as it is; `None` when it has a form that this release does not know.
pub fn packed_piece(core: &Core, seq: Seq, transient: bool) -> Result<Option<BodyRow>, ReadError> {
    let read = |conn: &Connection| {
        let mut statement = conn.prepare_cached("SELECT codec, len, sum, data FROM bodies WHERE seq = ?1")?;
        Ok(statement.query_row([to_sql(seq)], |r| packed(r, 0)).optional()?)
    };
    let found = if transient {
        let path = core.transients.path_of(seq).ok_or(ReadError::Gone)?;
        core.pool.with(&path, Form::Transient, || core.transients.has(&path), read)?
    } else {
        let segment = core.catalog.holding(seq).ok_or(ReadError::Gone)?;
        core.with_log(&segment, read)?
    };
    found.ok_or(ReadError::Gone)
}

/// One stored piece: the body under `seq`, in the log or (`transient`) in the short-lived files.
pub fn piece(core: &Core, seq: Seq, transient: bool) -> Result<Bytes, ReadError> {
    let found = if transient {
        let path = core.transients.path_of(seq).ok_or(ReadError::Gone)?;
        core.pool.with(&path, Form::Transient, || core.transients.has(&path), |conn| body_on(conn, seq))?
    } else {
        let segment = core.catalog.holding(seq).ok_or(ReadError::Gone)?;
        core.with_log(&segment, |conn| body_on(conn, seq))?
    };
    found.ok_or(ReadError::Gone)
}

/// The numbers of a body's pieces in order, and whether they are short-lived. `seq` is that of the fact with the reference.
pub fn pieces(seq: Seq, body: &BodyRef) -> (Vec<Seq>, bool) {
    match body {
        BodyRef::None => (Vec::new(), false),
        BodyRef::Own => (vec![seq], false),
        BodyRef::OwnTransient => (vec![seq], true),
        BodyRef::Chunks { seqs, transient } => (seqs.clone(), *transient),
    }
}

/// Where the body of a transaction lies now: a carried one has its bytes under new numbers.
pub fn present(core: &Core, seq: Seq, body: &BodyRef) -> Result<(Seq, BodyRef), ReadError> {
    let now = core.homes.now(seq);
    if now == seq || *body == BodyRef::None {
        return Ok((seq, body.clone()));
    }
    match accepted(core, now)? {
        Some(accepted) => Ok((now, accepted.body)),
        None => Err(ReadError::Gone),
    }
}
