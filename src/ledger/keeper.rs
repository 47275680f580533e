//! The housekeeper: a thread for everything that must not hold up commits. It copies the write-ahead log, completes closed
//! files, watches free space, removes what is no longer needed, and applies retention.

use super::core::{Core, Sealing, Space};
use super::retention;
use super::scrub;
use super::sql::{self, FileError, Form};
use super::transient;
use super::writer::checkpoint;
use crate::engine::fact::Seq;
use crate::telemetry::ledger as event;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time between rounds.
const ROUND: Duration = Duration::from_millis(200);
/// Time between rounds while new messages wait for room.
const HURRY: Duration = Duration::from_millis(10);
/// Time between counting sizes.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Connections for reading are closed when nobody has read for so long.
const IDLE: Duration = Duration::from_secs(10);
/// Time between notes of how far own records are shipped.
const NOTE_SHIPPED: Duration = Duration::from_secs(10);
/// Copies of the write-ahead log in a row, each shorter than the one before.
const COPIES: u32 = 3;

/// Asks how many bytes are free on the disk under the store; `None` when that cannot be told.
pub type FreeSpace = Box<dyn Fn() -> Option<u64> + Send>;

/// The housekeeper's state.
pub struct Keeper {
    pub core: Arc<Core>,
    pub free_space: FreeSpace,
    copier: Option<(Seq, Connection)>,
    /// Not before this moment, after a failure.
    copy_after: Option<Instant>,
    counted: Option<Instant>,
    retention: retention::Retention,
    /// The newest log that is noted.
    noted: Option<Seq>,
    shipped_noted: Instant,
}

impl Keeper {
    pub fn new(core: Arc<Core>, free_space: FreeSpace) -> Self {
        Self {
            core,
            free_space,
            copier: None,
            copy_after: None,
            counted: None,
            retention: retention::Retention::default(),
            noted: None,
            shipped_noted: Instant::now(),
        }
    }

    /// Runs until the ledger is closed.
    pub fn run(mut self) {
        loop {
            self.core.keeper_bell.wait(if self.core.is_tight() { HURRY } else { ROUND });
            self.copy_wal();
            self.note_newest();
            self.note_shipped();
            self.core.watch_views();
            let sealed = self.seal();
            self.remove_transients();
            if self.core.closing.load(Ordering::Acquire) {
                break;
            }
            if sealed
                || self.core.is_tight()
                || self.core.is_count_due()
                || self.counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY)
            {
                let bytes = disk_bytes(&self.core.dir);
                self.core.disk_bytes.store(bytes, Ordering::Relaxed);
                if let Err(e) = self.retention.apply(&self.core) {
                    event::UpkeepFailed { what: "retention", error: &e.to_string() }.emit();
                }
                // First said that nothing is accepted, then let go who waits for room.
                self.watch_space();
                self.count();
                self.prepare();
            } else {
                self.watch_space();
            }
        }
        self.copier = None;
        self.seal();
    }

    /// Notes the log that was begun, so that it is missed when it is gone at the next start. Not noted now, it is in the next round.
    fn note_newest(&mut self) {
        let newest = self.core.catalog.newest().map(|s| s.first);
        if newest == self.noted {
            return;
        }
        if let Some(first) = newest
            && self.core.note(|marks| marks.open.extend([first])).is_ok()
        {
            self.noted = newest;
        }
    }

    /// Notes how far the other nodes have what this log wrote; closing does too.
    fn note_shipped(&mut self) {
        if self.shipped_noted.elapsed() >= NOTE_SHIPPED && self.core.shipping.upto() > self.core.marks().shipped {
            // Not noted, a little is shipped again after a restart.
            let _ = self.core.note(|_| {});
            self.shipped_noted = Instant::now();
        }
    }

    /// Copies the active write-ahead log into its file while commits go on.
    fn copy_wal(&mut self) {
        let core = &self.core;
        if core.wal_bytes.load(Ordering::Relaxed) < core.wal_limit() || core.wal_copied.load(Ordering::Acquire) {
            return;
        }
        if self.copy_after.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let Some(segment) = core.catalog.newest() else { return };
        if self.copier.as_ref().is_none_or(|(first, _)| *first != segment.first) {
            match sql::open_log(&segment.log, Form::Log, 64) {
                Ok(conn) => self.copier = Some((segment.first, conn)),
                Err(e) => return event::UpkeepFailed { what: "opening the log for copying", error: &e.to_string() }.emit(),
            }
        }
        let Some((_, conn)) = &self.copier else { return };
        for _ in 0..COPIES {
            match checkpoint(conn) {
                // Nearly done: the writer can finish within a moment.
                Ok((_, frames, copied)) if frames - copied <= frames / 8 => break,
                Ok(_) => {}
                Err(e) => {
                    event::UpkeepFailed { what: "copying the log", error: &sql::text(&e) }.emit();
                    self.copy_after = Some(Instant::now() + AFTER_FAILURE);
                    return;
                }
            }
        }
        core.wal_copied.store(true, Ordering::Release);
    }

    /// Completes the files that the writer has closed. True when there was a segment among them.
    fn seal(&mut self) -> bool {
        let all = std::mem::take(&mut *self.core.sealing.lock().unwrap_or_else(|e| e.into_inner()));
        let mut segments = false;
        for Sealing { segment, conn, failed } in all {
            if let Some((first, _)) = &self.copier
                && segment.as_ref().is_some_and(|s| s.first == *first)
            {
                self.copier = None;
            }
            // Waits for readers in the middle of a statement, and empties the write-ahead log.
            let emptied = conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |r| r.get::<_, i64>(0));
            match (emptied, segment) {
                (Ok(0), Some(segment)) => {
                    drop(conn);
                    segment.seal();
                    segments = true;
                    if let Err(e) = scrub::sound(&self.core, &segment) {
                        event::UpkeepFailed { what: "noting a closed segment", error: &e.to_string() }.emit();
                    }
                }
                (Ok(0), None) => {}
                (emptied, segment) => {
                    if let Err(e) = emptied
                        && !failed
                    {
                        event::UpkeepFailed { what: "closing a segment", error: &sql::text(&e) }.emit();
                    }
                    if !self.core.closing.load(Ordering::Acquire) {
                        self.core.sealing.lock().unwrap_or_else(|e| e.into_inner()).push(Sealing { segment, conn, failed: true });
                    }
                }
            }
        }
        segments
    }

    fn remove_transients(&self) {
        let unneeded = self.core.transients.take_unneeded();
        if unneeded.is_empty() {
            return;
        }
        // What finished their messages was queued before they were let go: it must be durable before the bodies are gone.
        super::carry::pass_through(&self.core);
        if self.core.problems.all().iter().any(|p| p.what == "log") {
            // The next start removes them.
            return;
        }
        // With a log damaged or missing, whose messages they hold is not known: they are kept beside it.
        let lost = |text: &str| text.starts_with("damaged: ") || text.starts_with("missing: ");
        let damaged = self.core.problems.all().iter().any(|p| lost(&p.text));
        for path in unneeded {
            self.core.pool.forget(&path);
            if damaged {
                if let Err(e) = super::damage::set_aside(&self.core.dir, std::slice::from_ref(&path)) {
                    event::UpkeepFailed { what: "setting aside short-lived bodies", error: &e.to_string() }.emit();
                }
                continue;
            }
            if let Err(e) = transient::remove(&path) {
                event::UpkeepFailed { what: "removing a file of short-lived bodies", error: &e.to_string() }.emit();
            }
        }
    }

    /// Work ahead, and memory that nobody needs just now.
    fn prepare(&mut self) {
        if let Err(e) = sql::create_spare(&self.core.dir, self.core.wal_limit()) {
            event::UpkeepFailed { what: "preparing a log", error: &e.to_string() }.emit();
        }
        self.core.pool.rest(IDLE);
    }

    fn count(&mut self) {
        let bytes = disk_bytes(&self.core.dir);
        self.core.counted(bytes, self.retention.is_stuck());
        self.counted = Some(Instant::now());
        event::Size { segments: self.core.catalog.all().len(), bytes, queue_bytes: self.core.queue.bytes() }.emit();
    }

    fn watch_space(&self) {
        let min = self.core.config.min_free.as_u64();
        let free = (self.free_space)();
        let before = self.core.space();
        // Back only with an eighth more than the minimum, so that it does not flicker.
        let enough = if before == Space::DiskLow { min + min / 8 } else { min };
        let now = if free.is_some_and(|free| free < enough) {
            Space::DiskLow
        } else if self.retention.is_stuck() {
            Space::LedgerFull
        } else {
            Space::Enough
        };
        if now == before {
            return;
        }
        self.core.set_space(now);
        self.core.problems.clear("space");
        let reason = match now {
            Space::Enough => return event::SpaceBack.emit(),
            Space::DiskLow => {
                "less than ledger.min_free is left on the disk under the store; free some space or lower ledger.retention".into()
            }
            Space::LedgerFull => retention::filled_by(&self.core),
        };
        event::SpaceLow { reason: &reason }.emit();
        self.core.problems.add("space", reason);
    }
}

/// Size of the ledger's files, those in quarantine not counted.
pub fn disk_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// A log that was left by an earlier run: copies what is in its write-ahead log.
pub fn finish(path: &Path) -> Result<(), FileError> {
    let conn = sql::open_log(path, Form::Log, 64)?;
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}
