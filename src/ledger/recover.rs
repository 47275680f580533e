//! What the engine needs at start: the unfinished transactions, and the latest messages for the resend window. Both come
//! from the views, which are up to date by then, so that the time depends on what is pending, not on what is stored.

use super::catalog::Segment;
use super::codec::kind;
use super::core::{Core, now_ms};
use super::read;
use super::sql::{FileError, from_sql, to_sql};
use super::view;
use super::view_row::{ViewRow, flag};
use crate::engine::fact::{BodyRef, Seq, What};
use crate::engine::ports::{Recent, Unfinished};
use crate::message::MessageId;
use crate::telemetry::ledger as event;
use rusqlite::OptionalExtension;

/// The row of a transaction in the segment's view.
pub fn row(core: &Core, segment: &Segment, seq: Seq) -> Result<Option<ViewRow>, FileError> {
    core.with_view(segment, |conn| {
        let mut statement = conn.prepare_cached(&format!("SELECT {} FROM tx WHERE seq = ?1", view::COLUMNS))?;
        Ok(statement.query_row([to_sql(seq)], |r| view::row(conn, r)).optional()?)
    })
}

/// Makes a segment's view again.
pub type Rebuild<'a> = &'a mut dyn FnMut(Seq) -> Result<(), FileError>;

/// Reads from a segment's view; a damaged one is made again first, so that it keeps no node from starting.
fn mending<T>(rebuild: Rebuild<'_>, segment: &Segment, read: impl Fn() -> Result<T, FileError>) -> Result<T, FileError> {
    match read() {
        Err(FileError::Damaged(error)) => {
            let file = super::damage::name(&segment.view);
            event::DamageFound { file: &file, error: &error.0, action: "made again from the log" }.emit();
            rebuild(segment.first)?;
            read()
        }
        other => other,
    }
}

/// Numbers of a segment's unfinished transactions, each after the number under which it was first accepted.
fn by_arrival(core: &Core, segment: &Segment) -> Result<Vec<(Seq, Seq)>, FileError> {
    // What another node accepted, or a queue of the broker holds, is no work of this log's; its short-lived bodies are held all the same.
    let mut open = core.with_view(segment, |conn| {
        let mut open = conn.prepare("SELECT seq FROM tx WHERE open = 1 AND (flags & ?1 = 0 OR flags & ?2 <> 0)")?;
        let seqs = open.query_map([flag::APPLIED | flag::BROKER, flag::STORAGE], |r| r.get(0).map(from_sql))?;
        Ok(seqs.collect::<Result<Vec<Seq>, _>>()?)
    })?;
    open.retain(|seq| core.homes.now(*seq) == *seq);
    core.with_log(segment, |conn| {
        let mut carried = conn.prepare("SELECT 1 FROM facts WHERE seq = ?1 AND kind = ?2")?;
        let mut found = Vec::with_capacity(open.len());
        for seq in open {
            let mut first = seq;
            if carried.exists(rusqlite::params![to_sql(seq), kind::CARRIED])?
                && let Some(What::Carried { first: known, from, .. }) = read::fact_on(conn, seq)?.map(|fact| fact.what)
            {
                first = if known == 0 { from } else { known };
            }
            found.push((first, seq));
        }
        Ok(found)
    })
}

/// Every unfinished transaction that this log is to see through, in the order in which they first arrived: carrying gives the oldest the youngest numbers.
/// Those whose accept fact cannot be read are told as problems.
pub fn unfinished(core: &Core, rebuild: Rebuild<'_>, each: &mut dyn FnMut(Unfinished)) -> Result<(), FileError> {
    let mut order = Vec::new();
    for segment in core.catalog.all() {
        order.extend(mending(rebuild, &segment, || by_arrival(core, &segment))?);
    }
    order.sort_unstable();
    for seq in order.into_iter().map(|(_, seq)| seq) {
        let Some(segment) = core.catalog.holding(seq) else { continue };
        let Some(row) = mending(rebuild, &segment, || row(core, &segment, seq))? else { continue };
        let accepted = match read::accepted(core, seq) {
            Ok(Some(accepted)) => *accepted,
            Ok(None) => {
                core.problems
                    .add("recovery", format!("transaction {} is unfinished and its accept fact is not readable", row.id));
                continue;
            }
            Err(e) => {
                super::damage::noticed(core, seq, &e);
                continue;
            }
        };
        let len = accepted.envelope.body_len;
        match &accepted.body {
            BodyRef::OwnTransient => core.transients.hold(seq, &[seq], len),
            BodyRef::Chunks { seqs, transient: true } => core.transients.hold(seq, seqs, len),
            _ => {}
        }
        let mut routes = row.fold.progress();
        routes.truncate(accepted.routes.len());
        if !row.applied && !row.fold.broker {
            each(Unfinished { seq, accepted, routes });
        }
    }
    Ok(())
}

/// Rows whose sender was told that all is well: in proxy mode the upstream has answered so. (A flag of 1 is proxy mode.)
/// What failed or is unknown is new when it comes again, as it was before the start.
const ACKNOWLEDGED: &str = "resend IS NOT NULL AND (flags & 1 = 0 OR response BETWEEN 200 AND 299)";
const _: () = assert!(super::view_row::flag::PROXY == 1);

/// The latest messages that have a resend key and were acknowledged, oldest of them first.
pub fn recent(core: &Core, rebuild: Rebuild<'_>, each: &mut dyn FnMut(Recent)) -> Result<(), FileError> {
    let window = i64::try_from(core.config.resend_window.as_millis()).unwrap_or(i64::MAX);
    let since = now_ms().saturating_sub(window);
    let mut wanted = core.config.resend_entries;
    // Newest first, to find where the window begins. Carried messages, and those of other nodes that come late, are older than their
    // neighbours: they are passed over, and only a segment that holds nothing so young is not gone through.
    let mut parts: Vec<(std::sync::Arc<Segment>, Seq)> = Vec::new();
    for segment in core.catalog.all().into_iter().rev() {
        if wanted == 0 {
            break;
        }
        let (from, found) = mending(rebuild, &segment, || {
            core.with_view(&segment, |conn| {
                if view::get_meta::<i64>(conn, view::meta::HIGHEST_AT)?.is_none_or(|highest| highest < since) {
                    return Ok((Seq::MAX, 0));
                }
                let mut statement =
                    conn.prepare(&format!("SELECT seq FROM tx WHERE at >= ?1 AND {ACKNOWLEDGED} ORDER BY seq DESC LIMIT ?2"))?;
                let mut rows = statement.query([since, i64::try_from(wanted).unwrap_or(i64::MAX)])?;
                let (mut from, mut found) = (Seq::MAX, 0);
                while let Some(row) = rows.next()? {
                    from = from_sql(row.get(0)?);
                    found += 1;
                }
                Ok((from, found))
            })
        })?;
        parts.push((segment, from));
        wanted -= found;
    }
    for (segment, from) in parts.into_iter().rev().filter(|(_, from)| *from != Seq::MAX) {
        // Collected first: a view that turns out to be damaged on the way is read from its beginning again.
        let found = mending(rebuild, &segment, || {
            core.with_view(&segment, |conn| {
                let mut statement = conn.prepare(&format!(
                    "SELECT resend, hash, id, at, seq FROM tx WHERE seq >= ?1 AND at >= ?2 AND {ACKNOWLEDGED} ORDER BY seq"
                ))?;
                let mut rows = statement.query([to_sql(from), since])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    let hash: Option<[u8; 16]> = row.get(1)?;
                    let id: [u8; 16] = row.get(2)?;
                    found.push(Recent {
                        key: row.get::<_, i64>(0)? as u64,
                        body_hash: hash.map_or(0, u128::from_be_bytes),
                        id: MessageId(uuid::Uuid::from_bytes(id)),
                        seq: from_sql(row.get(4)?),
                        at_ms: row.get(3)?,
                    });
                }
                Ok(found)
            })
        })?;
        found.into_iter().for_each(&mut *each);
    }
    Ok(())
}
