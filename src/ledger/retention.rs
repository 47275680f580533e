//! Retention: whole segments go, oldest first, when they are old enough or the ledger has its size; what is unfinished in
//! them is carried into the present segment first.

use super::carry;
use super::catalog::{Segment, remove_files, sync_dir};
use super::core::{Core, now_ms};
use super::keeper::disk_bytes;
use super::marks::Marks;
use super::sql::{FileError, io_error};
use crate::engine::ports::LogError;
use crate::telemetry::ledger as event;
use rusqlite::OptionalExtension;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Why retention could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Log(#[from] LogError),
    /// The views have not caught up; tried again.
    #[error("the views are behind")]
    Behind,
}

/// What is known from one round to the next.
#[derive(Default)]
pub struct Retention {
    stuck: bool,
}

impl Retention {
    /// The ledger has its full size and nothing in it can go.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// One round.
    pub fn apply(&mut self, core: &Core) -> Result<(), RetentionError> {
        let _alone = core.moving.lock().unwrap_or_else(|e| e.into_inner());
        // Room for what is written while the oldest segment goes.
        let high = core.tight_size().saturating_sub(core.segment_size() / 2);
        let age = i64::try_from(core.config.retention.as_millis()).unwrap_or(i64::MAX);
        let oldest_kept = now_ms().saturating_sub(age);
        let mut bytes = core.disk_bytes.load(Ordering::Relaxed);
        for segment in core.catalog.all() {
            let too_large = bytes > high;
            if !segment.is_sealed() || core.closing.load(Ordering::Acquire) {
                break;
            }
            if core.folded.get() < segment.end() {
                if too_large {
                    // Not stuck: it goes as soon as the views have come so far.
                    core.hurry_views(segment.end());
                    return Ok(());
                }
                break;
            }
            let too_old = last_at(core, &segment)? < oldest_kept;
            if !too_large && !too_old {
                break;
            }
            let size: u64 = segment.files().iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
            // Carrying nearly all of a segment frees next to nothing.
            if too_large && !too_old && carry::bytes_open(core, &segment)? > size / 4 * 3 {
                continue;
            }
            let carried = carry::carry(core, &segment, !too_old)?;
            remove(core, &segment)?;
            event::SegmentRemoved { first: segment.first, carried, bytes: size }.emit();
            bytes = disk_bytes(&core.dir);
            core.disk_bytes.store(bytes, Ordering::Relaxed);
        }
        self.stuck = bytes > core.tight_size();
        Ok(())
    }
}

/// Time of a segment's latest fact; of its file, when it holds only pieces of bodies.
fn last_at(core: &Core, segment: &Segment) -> Result<i64, FileError> {
    let fact: Option<i64> = core.with_log(segment, |conn| {
        Ok(conn.query_row("SELECT at FROM facts ORDER BY seq DESC LIMIT 1", [], |r| r.get(0)).optional()?)
    })?;
    Ok(fact.unwrap_or_else(|| {
        let changed = segment.log.metadata().and_then(|m| m.modified()).ok();
        let since = changed.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        since.map_or_else(now_ms, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
    }))
}

/// Removes a segment whose unfinished transactions are all carried.
fn remove(core: &Core, segment: &Arc<Segment>) -> Result<(), FileError> {
    // Before it is gone: a log that is gone and noted counts as lost. One that is noted no more and still there is checked at the
    // next start. Those that were missed and are older would be gone by now.
    let forget = |marks: &mut Marks| {
        marks.closed.retain(|first, _| *first > segment.first || (*first < segment.first && core.catalog.at(*first).is_some()));
        marks.open.retain(|first| *first > segment.first);
    };
    let noted = core.note(forget);
    core.catalog.remove(segment.first);
    segment.set_gone();
    core.pool.forget(&segment.log);
    core.pool.forget(&segment.view);
    // The log first: a view without a log is removed at the next start, a log without a view would be read again.
    remove_files(&segment.files()).and_then(|()| sync_dir(&core.dir)).map_err(|e| io_error(&e))?;
    if noted.is_err() {
        // For want of space, probably, which there is now.
        core.note(forget).map_err(|e| io_error(&e))?;
    }
    if let Some(oldest) = core.catalog.oldest() {
        core.homes.forget_below(oldest.first);
    }
    core.folder_bell.ring();
    Ok(())
}
