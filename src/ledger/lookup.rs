//! Messages by id, many at a time: the latest from memory, all others from the views' keys, newest segment first.

use super::catalog::Segment;
use super::core::Core;
use super::damage;
use super::keys;
use super::sql::{FileError, from_sql, to_sql};
use super::view::{Key, get_meta, key_hash, meta};
use crate::engine::fact::Seq;
use crate::engine::ports::LogError;
use crate::message::MessageId;
use rusqlite::OptionalExtension;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long the views may take to come as far as memory does not reach.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message looked for, and when it arrived (Unix milliseconds), where that is known: segments of other times are passed over.
pub type Wanted = (MessageId, Option<i64>);

/// Numbers under keys in one segment, each with its key, in no order and perhaps twice.
pub fn numbers(core: &Core, segment: &Segment, hashes: &[i64]) -> Result<Vec<(i64, Seq)>, FileError> {
    if segment.is_sealed() && segment.filter.exists() {
        match keys::find(&segment.filter, segment.first, hashes) {
            Ok(found) => return Ok(found),
            Err(e) if segment.is_gone() => return Err(e),
            // The view still has the runs that the file was made of.
            Err(e) => damage::keys(core, segment, &e),
        }
    }
    core.with_view(segment, |conn| {
        let runs: i64 = conn.query_row("SELECT coalesce(max(run), 0) FROM keys", [], |r| r.get(0))?;
        let mut statement = conn.prepare_cached("SELECT seq FROM keys WHERE run = ?1 AND hash = ?2")?;
        let mut found = Vec::new();
        for run in 0..=runs {
            for hash in hashes {
                let mut rows = statement.query([run, *hash])?;
                while let Some(row) = rows.next()? {
                    found.push((*hash, from_sql(row.get(0)?)));
                }
            }
        }
        Ok(found)
    })
}

/// Where messages lie now, those in memory not looked for; what is not found is not stored. Waits for the views to come as far as memory
/// does not reach. Blocks.
pub fn homes(core: &Core, wanted: &[Wanted]) -> Result<HashMap<MessageId, Seq>, LogError> {
    let mut found = HashMap::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    let needed = core.recents.complete_above().min(core.committed());
    core.hurry_views(needed);
    if !core.folded.wait_for(needed, Instant::now() + PATIENCE) {
        return Err(LogError::Busy);
    }
    let mut left: HashMap<i64, Wanted> = HashMap::with_capacity(wanted.len());
    for one in wanted {
        left.insert(key_hash(Key::Id, one.0.as_bytes()), *one);
    }
    // Where nothing was ever carried to a later place, memory knows all that lies above: a node that takes in what is new to it need not
    // look for each message in the views.
    let carried = !core.homes.is_empty();
    for segment in core.catalog.all().into_iter().rev() {
        if left.is_empty() {
            break;
        }
        if !carried && segment.first > needed {
            continue;
        }
        match in_segment(core, &segment, &mut left, &mut found) {
            Ok(()) => {}
            Err(_) if segment.is_gone() => {}
            // The folder has not come to it.
            Err(FileError::Absent) if core.folded.get() < segment.first => {}
            Err(FileError::Damaged(d)) => {
                core.pool.forget(&segment.view);
                return Err(rebuilding(core, &segment, &d.0));
            }
            Err(FileError::Absent) => return Err(rebuilding(core, &segment, "missing")),
            Err(e) => return Err(LogError::Failed(e.to_string())),
        }
    }
    Ok(found)
}

fn rebuilding(core: &Core, segment: &Segment, error: &str) -> LogError {
    damage::view(core, segment.first, error);
    LogError::Failed("a part of the index is being made again; try again in a moment".into())
}

fn in_segment(
    core: &Core,
    segment: &Segment,
    left: &mut HashMap<i64, Wanted>,
    found: &mut HashMap<MessageId, Seq>,
) -> Result<(), FileError> {
    let (lowest, highest) =
        core.with_view(segment, |conn| Ok((get_meta::<i64>(conn, meta::LOWEST_AT)?, get_meta::<i64>(conn, meta::HIGHEST_AT)?)))?;
    let (Some(lowest), Some(highest)) = (lowest, highest) else { return Ok(()) };
    let possible = |at: &Option<i64>| at.is_none_or(|at| (lowest..=highest).contains(&at));
    let mut hashes: Vec<i64> = left.iter().filter(|(_, (_, at))| possible(at)).map(|(hash, _)| *hash).collect();
    if hashes.is_empty() {
        return Ok(());
    }
    // Neighbours lie on the same pages.
    hashes.sort_unstable();
    for (hash, seq) in numbers(core, segment, &hashes)? {
        let Some((id, _)) = left.get(&hash).copied() else { continue };
        let same = core.with_view(segment, |conn| {
            let mut row = conn.prepare_cached("SELECT id FROM tx WHERE seq = ?1")?;
            let stored: Option<[u8; 16]> = row.query_row([to_sql(seq)], |r| r.get(0)).optional()?;
            // Of one that has moved on, the row is gone and the key is not.
            Ok(stored.map_or(core.homes.now(seq) != seq, |stored| stored == *id.as_bytes()))
        })?;
        if same {
            left.remove(&hash);
            found.insert(id, core.homes.now(seq));
        }
    }
    Ok(())
}

/// Where a message lies, however old it is. Blocks.
pub fn home(core: &Core, id: MessageId) -> Result<Option<Seq>, LogError> {
    match recent(core, id) {
        Some(seq) => Ok(Some(seq)),
        None => Ok(homes(core, &[(id, None)])?.remove(&id)),
    }
}

/// Where a message lies, by memory alone.
pub fn recent(core: &Core, id: MessageId) -> Option<Seq> {
    let seq = core.homes.now(core.recents.get(id)?);
    // Retention may have removed it.
    core.catalog.holding(seq).map(|_| seq)
}
