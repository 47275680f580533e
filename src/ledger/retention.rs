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
use std::time::{Duration, Instant};

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
    /// Since when it has its full size and nothing in it can go.
    stuck: Option<Instant>,
}

/// Nothing could go for so long: it is no matter of a moment. New messages wait meanwhile.
const STUCK_AFTER: Duration = Duration::from_millis(500);

impl Retention {
    /// The ledger has its full size and nothing in it can go.
    pub fn is_stuck(&self) -> bool {
        self.stuck.is_some_and(|since| since.elapsed() >= STUCK_AFTER)
    }

    /// One round.
    pub fn apply(&mut self, core: &Core) -> Result<(), RetentionError> {
        let _alone = core.moving.lock().unwrap_or_else(|e| e.into_inner());
        // Room for what is written while the oldest segment goes.
        let high = core.tight_size().saturating_sub(core.segment_size() / 2);
        let age = i64::try_from(core.config.retention.as_millis()).unwrap_or(i64::MAX);
        let oldest_kept = now_ms().saturating_sub(age);
        let mut bytes = core.disk_bytes.load(Ordering::Relaxed);
        let all = core.catalog.all();
        for segment in &all {
            let too_large = bytes > high;
            if core.closing.load(Ordering::Acquire) {
                break;
            }
            if !segment.is_sealed() {
                if all.last().is_some_and(|newest| newest.first > segment.first) {
                    // Not stuck: it goes as soon as it is completed.
                    self.eased(core, bytes);
                    return Ok(());
                }
                break;
            }
            if core.folded.get() < segment.end() {
                if too_large {
                    // Not stuck: it goes as soon as the views have come so far.
                    core.hurry_views(segment.end());
                    self.eased(core, bytes);
                    return Ok(());
                }
                break;
            }
            let too_old = last_at(core, segment)? < oldest_kept;
            if !too_large && !too_old {
                break;
            }
            let size: u64 = segment.files().iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
            // Carrying nearly all of a segment frees next to nothing.
            if too_large && !too_old && carry::bytes_open(core, segment)? > size / 4 * 3 {
                continue;
            }
            let carried = carry::carry(core, segment, !too_old)?;
            remove(core, segment)?;
            event::SegmentRemoved { first: segment.first, carried, bytes: size }.emit();
            bytes = disk_bytes(&core.dir);
            core.disk_bytes.store(bytes, Ordering::Relaxed);
        }
        self.stuck.get_or_insert_with(Instant::now);
        self.eased(core, bytes);
        Ok(())
    }

    /// Not stuck while new messages need not wait; once stuck, with some room more, so that it does not flicker.
    fn eased(&mut self, core: &Core, bytes: u64) {
        let more = if self.is_stuck() { core.segment_size() / 4 } else { 0 };
        if bytes + more <= core.tight_size() {
            self.stuck = None;
        }
    }
}

/// What a ledger of its full size is full of, and what to do, for the operator.
pub fn filled_by(core: &Core) -> String {
    let waiting: u64 = core.catalog.all().iter().filter_map(|s| carry::bytes_open(core, s).ok()).sum();
    let short = core.transients.bytes_needed();
    let (all, limit) = (disk_bytes(&core.dir), core.config.max_size.as_u64());
    let kib = |bytes: u64| bytes >> 10;
    if (waiting + short).saturating_mul(2) >= all {
        return format!(
            "unfinished messages fill ledger.max_size ({} of {} KiB); deliver or discard them, or raise ledger.max_size",
            kib(waiting + short),
            kib(limit)
        );
    }
    format!(
        "ledger.max_size is reached and nothing in the ledger can go: {} of {} KiB, of which unfinished messages {} KiB, the rest logs, \
         views and short-lived bodies in files that are kept until all in them is finished; raise ledger.max_size, or lower ledger.segment_size",
        kib(all),
        kib(limit),
        kib(waiting + short)
    )
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
    core.shipping.gone(core, segment);
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
