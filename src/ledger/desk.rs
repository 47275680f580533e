//! The desk at which the log's writers take turns: whoever sits at it takes what waits and commits it to the active segment's
//! write-ahead log. Making it durable happens away from the desk, so that the next group is written meanwhile.

use super::catalog::Segment;
use super::core::{Core, Sealing, now_ms};
use super::failure::Failure;
use super::gather::Gather;
use super::queue::Queued;
use super::sql::{self, FileError, Form};
use super::statements::Statements;
use super::ticket;
use super::transient_writer::TransientWriter;
use super::writer::{VISITORS, WRITERS};
use crate::engine::fact::Seq;
use crate::engine::ports::LogError;
use crate::telemetry::ledger as event;
use rusqlite::Connection;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Largest group in bytes: bounds the memory of SQLite's uncommitted pages and the time of one commit.
const GROUP_BYTES: usize = 4 << 20;
/// SQLite's page cache for the segment being written, KiB. Appending needs few pages.
const CACHE_KIB: i64 = 512;
/// Pages that each commit writes again because they are not full yet, about: the last of each table, and now and then the first.
const PARTIAL_PAGES: u64 = 3;
/// Failures in a row after which a fresh segment is tried.
const REOPENS: u32 = 3;
/// The write-ahead log never grows beyond this many times the size at which it should be copied.
const WAL_OVERRUN: u64 = 4;

/// The active segment, open for writing.
pub struct Active {
    pub segment: Arc<Segment>,
    pub conn: Connection,
    /// Its write-ahead log, opened once for each writer: every one of them is told when writing it out has failed.
    pub wal: Arc<[File]>,
    /// Bytes in its log, about.
    pub bytes: u64,
    /// Unix milliseconds of its first record; 0 while empty.
    pub since: i64,
}

impl Active {
    /// Opens a segment for writing, making its file when there is none.
    pub fn open(core: &Core, first: Seq) -> Result<Self, FileError> {
        let segment = match core.catalog.holding(first) {
            Some(known) if known.first == first => known,
            _ => Arc::new(Segment::new(&core.dir, first)),
        };
        if !segment.log.exists() {
            sql::create_log(&segment.log, Form::Log, core.wal_limit())?;
        }
        let conn = sql::open_active(&segment.log, CACHE_KIB)?;
        let bytes = segment.log.metadata().map_or(0, |m| m.len());
        let since: Option<i64> =
            conn.query_row("SELECT min(at) FROM (SELECT at FROM facts ORDER BY seq LIMIT 1)", [], |r| r.get(0))?;
        let wal = (0..WRITERS + VISITORS).map(|_| sql::open_wal(&segment.log)).collect::<Result<_, _>>()?;
        Ok(Self { segment, conn, wal, bytes, since: since.unwrap_or(0) })
    }
}

/// A group in the write-ahead log, not durable yet.
pub struct Written {
    pub group: Vec<Queued>,
    /// How many wait for it.
    pub waiters: usize,
    /// Bytes of the queue that it holds.
    pub held: usize,
    /// The write-ahead log to make durable, for each writer.
    pub wal: Arc<[File]>,
    /// Its place in the order in which groups are told.
    pub turn: u64,
    pub began: Instant,
}

/// What only one writer at a time may use.
pub struct Desk {
    active: Active,
    transient: TransientWriter,
    failure: Failure,
    gather: Gather,
    waiting: VecDeque<Queued>,
    /// Failures in a row that a fresh connection was to cure.
    reopened: u32,
    /// Groups written.
    turns: u64,
}

impl Desk {
    pub fn new(active: Active) -> Self {
        Self {
            active,
            transient: TransientWriter::default(),
            failure: Failure::default(),
            gather: Gather::default(),
            waiting: VecDeque::new(),
            reopened: 0,
            turns: 0,
        }
    }

    /// Does something wait that a group had no room for?
    pub fn has_left(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Writes the next group; `None` when there is nothing, or writing failed and those concerned were told.
    pub fn next(&mut self, core: &Core, gather: bool) -> Option<Written> {
        self.tend_wal(core);
        core.queue.take_more(&mut self.waiting);
        let first = self.waiting.front()?.seq;
        if self.is_full(core) {
            self.roll(core, first);
        }
        self.gather.begin(gather);
        match self.group(core) {
            Ok(written) => {
                if self.active.since == 0 {
                    self.active.since = now_ms();
                }
                Some(written)
            }
            Err(e) => {
                self.failure.pause();
                if !matches!(e, LogError::Full) {
                    self.reopen(core);
                }
                None
            }
        }
    }

    /// After the last group: completes the files.
    pub fn close(mut self, core: &Core) {
        self.transient.close(core);
        hand_over(core, self.active.conn, None);
    }

    fn is_full(&self, core: &Core) -> bool {
        let Active { bytes, since, .. } = self.active;
        let age = i64::try_from(core.config.segment_age.as_millis()).unwrap_or(i64::MAX);
        bytes >= core.segment_size() || (since > 0 && now_ms().saturating_sub(since) >= age)
    }

    /// One group: written as a whole, or not at all.
    fn group(&mut self, core: &Core) -> Result<Written, LogError> {
        let mut group = Vec::new();
        let mut held = 0;
        let mut began = Instant::now();
        let Self { active, failure, gather, waiting, transient, .. } = self;
        let done = Statements::prepare(&active.conn).and_then(|mut statements| {
            let done = fill(core, &mut statements, failure, gather, waiting, &mut group, &mut held).and_then(|bytes| {
                if cfg!(feature = "break-ack") {
                    ticket::tell_early(&mut group);
                    // Wide enough for a random kill to fall between the two.
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                began = Instant::now();
                transient.write(core, &group)?;
                statements.commit()?;
                Ok(bytes)
            });
            if done.is_err() {
                statements.roll_back();
            }
            done
        });
        match done {
            Ok(bytes) => {
                self.active.bytes += bytes;
                core.wal_bytes.fetch_add(bytes + PARTIAL_PAGES * u64::from(sql::LOG_PAGE), Ordering::Relaxed);
                core.grew(bytes);
                self.failure.over(core);
                self.reopened = 0;
                let waiters = group.iter().filter(|r| r.ticket.is_some()).count();
                let before = core.in_flight.fetch_add(waiters, Ordering::AcqRel);
                self.gather.written(before + waiters);
                let turn = self.turns;
                self.turns += 1;
                Ok(Written { group, waiters, held, wal: self.active.wal.clone(), turn, began })
            }
            Err(e) => {
                self.transient.close(core);
                let error = sql::log_error(&e);
                if group.is_empty() {
                    // The statements could not even be prepared.
                    group.extend(self.waiting.drain(..));
                    held = group.iter().map(|r| r.bytes()).sum();
                }
                self.failure.group_failed(core, group, &error);
                core.queue.release(held);
                Err(error)
            }
        }
    }

    /// Keeps the write-ahead log short. Copying is the housekeeper's work; only the last frames, and beginning anew,
    /// must happen while nothing is being written.
    fn tend_wal(&mut self, core: &Core) {
        let wal = core.wal_bytes.load(Ordering::Relaxed);
        let limit = core.wal_limit();
        if wal < limit {
            return;
        }
        if core.wal_copied.load(Ordering::Acquire) || wal > limit * WAL_OVERRUN {
            let _alone = self.active.segment.gate.write().unwrap_or_else(|e| e.into_inner());
            // The next write finds everything copied and nobody reading, and begins the file anew.
            let (_, frames, copied) = checkpoint(&self.active.conn).unwrap_or((1, 1, 0));
            if frames == copied {
                core.wal_bytes.store(0, Ordering::Relaxed);
            }
            core.wal_copied.store(false, Ordering::Release);
        } else {
            core.keeper_bell.ring();
        }
    }

    fn roll(&mut self, core: &Core, first: Seq) {
        match Active::open(core, first) {
            Ok(fresh) => self.switch(core, fresh),
            Err(e) => {
                // The old segment goes on; try again when it has grown by another eighth.
                event::UpkeepFailed { what: "new segment", error: &e.to_string() }.emit();
                let fresh = Segment::new(&core.dir, first);
                let _ = super::catalog::remove_files(&fresh.files());
                self.active.bytes -= self.active.bytes / 8;
                self.active.since = now_ms();
            }
        }
    }

    /// After a failure that is not for want of space: the same file through a fresh connection, or, when that does not
    /// help, a fresh segment. What was acknowledged is in the old one.
    fn reopen(&mut self, core: &Core) {
        self.reopened += 1;
        if self.reopened <= REOPENS {
            match Active::open(core, self.active.segment.first) {
                Ok(again) => return self.active = again,
                Err(e) => self.fail_all(core, &LogError::Failed(e.to_string())),
            }
        }
        let first = self.waiting.front().map_or_else(|| core.queue.next_seq(), |r| r.seq);
        match Active::open(core, first) {
            Ok(fresh) => self.switch(core, fresh),
            Err(e) => self.fail_all(core, &LogError::Failed(e.to_string())),
        }
    }

    fn switch(&mut self, core: &Core, fresh: Active) {
        event::SegmentBegun { first: fresh.segment.first }.emit();
        core.catalog.insert(fresh.segment.clone());
        let old = std::mem::replace(&mut self.active, fresh);
        core.wal_bytes.store(0, Ordering::Relaxed);
        core.wal_copied.store(false, Ordering::Release);
        hand_over(core, old.conn, Some(old.segment));
    }

    fn fail_all(&mut self, core: &Core, error: &LogError) {
        core.queue.take_more(&mut self.waiting);
        let group: Vec<Queued> = self.waiting.drain(..).collect();
        let held: usize = group.iter().map(|r| r.bytes()).sum();
        self.failure.group_failed(core, group, error);
        core.queue.release(held);
        self.failure.pause();
    }
}

/// Inserts what waits, and what arrives while more is expected: the work of inserting and that of the appenders overlap.
fn fill(
    core: &Core,
    statements: &mut Statements<'_>,
    failure: &mut Failure,
    gather: &mut Gather,
    waiting: &mut VecDeque<Queued>,
    group: &mut Vec<Queued>,
    held: &mut usize,
) -> rusqlite::Result<u64> {
    let first = waiting.front().map_or(0, |r| r.seq);
    let mut bytes = 0;
    loop {
        let (part, size) = next_part(waiting, GROUP_BYTES.saturating_sub(*held));
        *held += size;
        let from = group.len();
        // In the group before it is written: should writing fail, they are told.
        group.extend(failure.refuse_broken(core, first, part));
        for record in &group[from..] {
            bytes += statements.insert(record)?;
        }
        let full = !waiting.is_empty() || *held >= GROUP_BYTES;
        if full || !gather.more(core, waiting, group.len()) {
            return Ok(bytes);
        }
    }
}

/// The longest prefix of what waits that takes up to `room` bytes; at least one record.
fn next_part(waiting: &mut VecDeque<Queued>, room: usize) -> (Vec<Queued>, usize) {
    let mut bytes = 0;
    let mut n = 0;
    for record in waiting.iter() {
        let more = record.bytes();
        if n > 0 && bytes + more > room {
            break;
        }
        bytes += more;
        n += 1;
    }
    (waiting.drain(..n).collect(), bytes)
}

fn hand_over(core: &Core, conn: Connection, segment: Option<Arc<Segment>>) {
    core.sealing.lock().unwrap_or_else(|e| e.into_inner()).push(Sealing { segment, conn, failed: false });
    core.keeper_bell.ring();
}

/// Copies what can be copied from the write-ahead log without waiting for anybody: (busy, frames, copied).
pub fn checkpoint(conn: &Connection) -> rusqlite::Result<(i64, i64, i64)> {
    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
}
