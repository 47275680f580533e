//! The log's only writer: a thread that takes everything waiting, commits it with one fsync, hands the accept facts
//! on in log order, and then tells the waiters.

use super::catalog::Segment;
use super::codec::kind;
use super::core::{Core, Sealing, now_ms};
use super::failure::Failure;
use super::gather::Gather;
use super::once::Once;
use super::queue::Queued;
use super::sql::{self, FileError, Form};
use super::statements::Statements;
use super::ticket;
use super::transient_writer::TransientWriter;
use crate::engine::fact::Seq;
use crate::engine::ports::{CommitSink, Committed, LogError};
use crate::message::MessageId;
use crate::telemetry::ledger as event;
use rusqlite::Connection;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, TryLockError};
use std::time::Instant;

/// Largest group in bytes: bounds the memory of SQLite's uncommitted pages and the time of one commit.
const GROUP_BYTES: usize = 4 << 20;
/// SQLite's page cache for the segment being written, KiB. Appending needs few pages.
const CACHE_KIB: i64 = 512;
/// Pages that each commit writes again because they are not full yet, about: the last of each table, and now and then the first.
pub const PARTIAL_PAGES: u64 = 3;
/// Failures in a row after which a fresh segment is tried.
const REOPENS: u32 = 3;
/// The write-ahead log never grows beyond this many times the size at which it should be copied.
const WAL_OVERRUN: u64 = 4;

/// The active segment, open for writing.
pub struct Active {
    pub segment: Arc<Segment>,
    pub conn: Connection,
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
        let fresh = !segment.log.exists();
        if fresh {
            sql::create_log(&segment.log, Form::Log, core.wal_limit())?;
        }
        let conn = sql::open_log(&segment.log, Form::Log, CACHE_KIB)?;
        sql::upgrade(&conn)?;
        if fresh {
            core.applied.copy_into(&conn)?;
        }
        // What is overwritten again and again is quicker to sync: it is shortened only when it has grown far.
        sql::shorten(&conn, core.wal_limit() * 2)?;
        let bytes = segment.log.metadata().map_or(0, |m| m.len());
        let since: Option<i64> =
            conn.query_row("SELECT min(at) FROM (SELECT at FROM facts ORDER BY seq LIMIT 1)", [], |r| r.get(0))?;
        Ok(Self { segment, conn, bytes, since: since.unwrap_or(0) })
    }
}

/// Why writing to one connection ended.
enum Next {
    Roll,
    Reopen,
    Close,
}

/// The writer.
pub struct Writer {
    pub core: Arc<Core>,
    pub sink: Arc<dyn CommitSink>,
    transient: TransientWriter,
    failure: Failure,
    once: Once,
    gather: Gather,
    waiting: VecDeque<Queued>,
    /// Failures in a row that a fresh connection was to cure.
    reopened: u32,
}

impl Writer {
    pub fn new(core: Arc<Core>, sink: Arc<dyn CommitSink>) -> Self {
        let transient = TransientWriter::default();
        Self {
            core,
            sink,
            transient,
            failure: Failure::default(),
            once: Once::default(),
            gather: Gather::default(),
            waiting: VecDeque::new(),
            reopened: 0,
        }
    }

    /// Runs until the queue is closed and empty.
    pub fn run(mut self, mut active: Active) {
        let _end = End(self.core.clone());
        loop {
            let next = {
                let Active { segment, conn, bytes, since } = &mut active;
                match Statements::prepare(conn) {
                    Ok(mut statements) => self.write(segment, conn, &mut statements, bytes, since),
                    Err(e) => {
                        self.fail_all(&sql::log_error(&e));
                        Next::Reopen
                    }
                }
            };
            match next {
                Next::Close => break,
                Next::Roll => self.roll(&mut active),
                Next::Reopen => self.reopen(&mut active),
            }
            if self.core.queue.is_closed() && self.waiting.is_empty() && self.core.queue.is_empty() {
                break;
            }
        }
        self.transient.close(&self.core);
        self.hand_over(active.conn, None);
    }

    /// Writes groups until the segment has its size or age, or the connection is not to be used any more.
    fn write(
        &mut self,
        segment: &Arc<Segment>,
        conn: &Connection,
        statements: &mut Statements<'_>,
        bytes: &mut u64,
        since: &mut i64,
    ) -> Next {
        loop {
            if self.waiting.is_empty() {
                self.gather.look(&self.core.queue);
                if !self.core.queue.take(&mut self.waiting) {
                    return Next::Close;
                }
            } else {
                self.core.queue.take_more(&mut self.waiting);
            }
            if self.is_full(*bytes, *since) {
                return Next::Roll;
            }
            match self.group(statements, bytes) {
                Ok(()) => {
                    if *since == 0 {
                        *since = now_ms();
                    }
                    self.tend_wal(segment, conn);
                }
                Err(e) => {
                    self.gather.failed();
                    self.failure.pause();
                    if !matches!(e, LogError::Full) {
                        return Next::Reopen;
                    }
                }
            }
        }
    }

    fn is_full(&self, bytes: u64, since: i64) -> bool {
        let age = i64::try_from(self.core.config.segment_age.as_millis()).unwrap_or(i64::MAX);
        let asked = since > 0 && self.core.roll.load(Ordering::Acquire);
        asked || bytes >= self.core.segment_size() || (since > 0 && now_ms().saturating_sub(since) >= age)
    }

    /// The longest prefix of what waits that takes up to `room` bytes; at least one record.
    fn next_part(&mut self, room: usize) -> (Vec<Queued>, usize) {
        let mut bytes = 0;
        let mut n = 0;
        for record in &self.waiting {
            let more = record.bytes();
            if n > 0 && bytes + more > room {
                break;
            }
            bytes += more;
            n += 1;
        }
        (self.waiting.drain(..n).collect(), bytes)
    }

    /// One group: durable as a whole, or not at all.
    fn group(&mut self, statements: &mut Statements<'_>, log_bytes: &mut u64) -> Result<(), LogError> {
        let mut group = Vec::new();
        let mut held = 0;
        let mut began = Instant::now();
        let filled = self.fill(statements, &mut group, &mut held);
        if cfg!(feature = "break-ack") {
            ticket::tell_early(&mut group);
            // Wide enough for a random kill to fall between the two.
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let done = filled.and_then(|bytes| {
            began = Instant::now();
            self.transient.write(&self.core, &group)?;
            statements.commit()?;
            Ok(bytes)
        });
        match done {
            Ok(bytes) => {
                self.gather.committed(began.elapsed());
                *log_bytes += bytes;
                self.core.wal_bytes.fetch_add(bytes + PARTIAL_PAGES * u64::from(sql::LOG_PAGE), Ordering::Relaxed);
                self.core.grew(bytes);
                self.failure.over(&self.core);
                self.reopened = 0;
                event::Committed { records: group.len(), took: began.elapsed() }.emit();
                if let Some(notes) = statements.take_notes() {
                    self.core.applied.merge(notes);
                }
                self.publish(group);
                self.core.queue.release(held);
                Ok(())
            }
            Err(e) => {
                statements.roll_back();
                self.transient.close(&self.core);
                let error = sql::log_error(&e);
                self.failure.group_failed(&self.core, group, &error);
                self.core.queue.release(held);
                Err(error)
            }
        }
    }

    /// Inserts what waits, and what arrives while more is expected: the work of inserting and that of the appenders overlap.
    fn fill(&mut self, statements: &mut Statements<'_>, group: &mut Vec<Queued>, held: &mut usize) -> rusqlite::Result<u64> {
        let first = self.waiting.front().map_or(0, |r| r.seq);
        let mut bytes = 0;
        // A group goes into one segment and its write-ahead log, however small these are.
        let most = GROUP_BYTES.min(usize::try_from(self.core.segment_size() / 4).unwrap_or(GROUP_BYTES));
        self.gather.begin();
        self.once.begin();
        loop {
            let (part, size) = self.next_part(most.saturating_sub(*held));
            *held += size;
            let from = group.len();
            // In the group before it is written: should writing fail, they are told.
            let part = self.failure.refuse_broken(&self.core, first, part);
            group.extend(self.once.look_through(&self.core, &mut self.failure, part));
            for record in &group[from..] {
                bytes += statements.insert(record)?;
            }
            let full = !self.waiting.is_empty() || *held >= most;
            if full || !self.gather.more(&self.core.queue, &mut self.waiting, group.len()) {
                return Ok(bytes);
            }
        }
    }

    /// After the commit: who must know, in this order: the engine, the waiters, the folder, who follows.
    fn publish(&mut self, mut group: Vec<Queued>) {
        let Some(last) = group.last().map(|r| r.seq) else { return };
        let mut batch = Vec::new();
        for record in &mut group {
            if record.holds_transient {
                let own = [record.seq];
                self.core.transients.hold(
                    record.seq,
                    if record.pieces.is_empty() { &own } else { &record.pieces },
                    record.body_len,
                );
            }
            if let Some(from) = record.carried_from {
                self.core.homes.moved(from, record.seq);
                self.core.transients.finished(from);
            }
            if let Some(d) = record.deliver.take() {
                batch.push(Committed { seq: record.seq, accepted: *d.accepted, body: d.body });
            }
        }
        // First: nobody writes of a message that he cannot have heard of.
        if self.core.recents.is_on() {
            self.remember(&group);
        }
        self.core.committed.store(last, Ordering::Release);
        if !batch.is_empty() {
            self.sink.committed(batch);
        }
        let told = ticket::tell(group.into_iter().map(|r| (r, None)));
        self.gather.told(told);
        self.core.folder_bell.ring();
        self.core.follower.wake();
    }

    /// New messages, whoever accepted them: for what is written of them, and so that none is written a second time (see [`super::once`]).
    fn remember(&self, group: &[Queued]) {
        let facts = group.iter().filter_map(|r| Some((r.seq, r.fact.as_ref()?)));
        let new = facts.filter(|(_, fact)| matches!(fact.kind, kind::ACCEPTED | kind::REFUSED));
        self.core.recents.add(new.map(|(seq, fact)| (MessageId(uuid::Uuid::from_bytes(fact.id)), seq)));
    }

    /// Keeps the write-ahead log short. Copying is the housekeeper's work; only the last frames, and beginning anew,
    /// must happen while nothing is being written.
    fn tend_wal(&mut self, segment: &Segment, conn: &Connection) {
        let wal = self.core.wal_bytes.load(Ordering::Relaxed);
        let limit = self.core.wal_limit();
        if wal < limit {
            return;
        }
        if self.core.wal_copied.load(Ordering::Acquire) || wal > limit * WAL_OVERRUN {
            // A reader may have been put aside by the system while it holds the gate: not waited for until it must be.
            let _alone = match segment.gate.try_write() {
                Ok(alone) => alone,
                Err(TryLockError::WouldBlock) if wal <= limit * WAL_OVERRUN => return,
                Err(_) => segment.gate.write().unwrap_or_else(|e| e.into_inner()),
            };
            // The next write finds everything copied and nobody reading, and begins the file anew.
            let (_, frames, copied) = checkpoint(conn).unwrap_or((1, 1, 0));
            if frames == copied {
                self.core.wal_bytes.store(0, Ordering::Relaxed);
            }
            self.core.wal_copied.store(false, Ordering::Release);
        } else {
            self.core.keeper_bell.ring();
        }
    }

    fn roll(&mut self, active: &mut Active) {
        let Some(first) = self.waiting.front().map(|r| r.seq) else { return };
        match Active::open(&self.core, first) {
            Ok(fresh) => {
                if self.core.roll.swap(false, Ordering::AcqRel) {
                    // With it the short-lived bodies that belong to it.
                    self.transient.close(&self.core);
                }
                self.switch(active, fresh);
            }
            Err(e) => {
                self.core.roll.store(false, Ordering::Release);
                // The old segment goes on; try again when it has grown by another eighth.
                event::UpkeepFailed { what: "new segment", error: &e.to_string() }.emit();
                let fresh = Segment::new(&self.core.dir, first);
                let _ = super::catalog::remove_files(&fresh.files());
                active.bytes -= active.bytes / 8;
                active.since = now_ms();
            }
        }
    }

    /// After a failure that is not for want of space: the same file through a fresh connection, or, when that does not
    /// help, a fresh segment. What was acknowledged is in the old one.
    fn reopen(&mut self, active: &mut Active) {
        self.reopened += 1;
        if self.reopened <= REOPENS {
            match Active::open(&self.core, active.segment.first) {
                Ok(again) => return *active = again,
                Err(e) => self.fail_all(&LogError::Failed(e.to_string())),
            }
        }
        let first = self.waiting.front().map_or_else(|| self.core.queue.next_seq(), |r| r.seq);
        match Active::open(&self.core, first) {
            Ok(fresh) => self.switch(active, fresh),
            Err(e) => self.fail_all(&LogError::Failed(e.to_string())),
        }
    }

    fn switch(&mut self, active: &mut Active, fresh: Active) {
        event::SegmentBegun { first: fresh.segment.first }.emit();
        self.core.catalog.insert(fresh.segment.clone());
        let old = std::mem::replace(active, fresh);
        self.core.wal_bytes.store(0, Ordering::Relaxed);
        self.core.wal_copied.store(false, Ordering::Release);
        self.hand_over(old.conn, Some(old.segment));
    }

    fn fail_all(&mut self, error: &LogError) {
        self.core.queue.take_more(&mut self.waiting);
        let group: Vec<Queued> = self.waiting.drain(..).collect();
        let held: usize = group.iter().map(|r| r.bytes()).sum();
        self.failure.group_failed(&self.core, group, error);
        self.core.queue.release(held);
        self.failure.pause();
    }

    fn hand_over(&self, conn: Connection, segment: Option<Arc<Segment>>) {
        self.core.sealing.lock().unwrap_or_else(|e| e.into_inner()).push(Sealing { segment, conn, failed: false });
        self.core.keeper_bell.ring();
    }
}

/// However the writer ends, nobody waits for it in vain.
struct End(Arc<Core>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.queue.abandon();
    }
}

/// Copies what can be copied from the write-ahead log without waiting for anybody: (busy, frames, copied).
pub fn checkpoint(conn: &Connection) -> rusqlite::Result<(i64, i64, i64)> {
    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
}
