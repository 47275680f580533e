//! The log's writers: threads that take turns at the [desk](super::desk). One commits everything waiting to the write-ahead log, leaves
//! the desk, makes it durable with one fdatasync, hands the accept facts on in log order, and tells the waiters. While it waits
//! for the disk, another sits at the desk with the next group: neither the disk nor the processor waits for the other.
//!
//! SQLite's `synchronous=FULL` would do the same within COMMIT, with everybody waiting. `synchronous=NORMAL` and an fdatasync of the
//! write-ahead log by ourselves after COMMIT is what FULL does (sqlite.org/pragma.html#pragma_synchronous), in the same order;
//! that a commit is seen by readers of the file before it is durable is why they ask [`Core::committed`].
//!
//! When an fdatasync fails, what the file holds is not known: the system may have dropped what it could not write, and the next call
//! succeeds all the same. The node then ends at once, with nobody told anything, and reads at the next start what there is.

use super::core::Core;
use super::desk::{Active, Desk, Written};
use super::gather::Look;
use super::ticket;
use crate::engine::ports::{CommitSink, Committed};
use crate::telemetry::ledger as event;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// One at the desk, one waiting for the disk: more would make groups smaller, not commits quicker.
pub const WRITERS: usize = 2;
/// Descriptors of the write-ahead log for writers on others' threads.
pub const VISITORS: usize = 14;

/// Exit code when the disk under the store fails: a dependency is away.
const UNAVAILABLE: i32 = 69;

/// What the writers share.
pub struct Writers {
    pub core: Arc<Core>,
    sink: Arc<dyn CommitSink>,
    desk: Mutex<Option<Desk>>,
    turns: Turns,
    running: AtomicUsize,
    visitors: AtomicUsize,
}

impl Writers {
    pub fn new(core: Arc<Core>, active: Active, sink: Arc<dyn CommitSink>) -> Arc<Self> {
        let desk = Mutex::new(Some(Desk::new(active)));
        Arc::new(Self {
            core,
            sink,
            desk,
            turns: Turns::default(),
            running: AtomicUsize::new(WRITERS),
            visitors: AtomicUsize::new(0),
        })
    }

    /// Runs writer `number`, from 0, until the queue is closed and empty.
    pub fn run(&self, number: usize) {
        let _end = End(self);
        let mut look = Look::default();
        let queue = &self.core.queue;
        loop {
            if queue.is_empty() && self.core.in_flight.load(Ordering::Acquire) == 0 {
                look.at(queue);
            }
            if !queue.attend() {
                return;
            }
            if !self.write(number, true) {
                return;
            }
        }
    }

    /// The number of one more writer, on a thread of another's; `None` when there are too many.
    pub fn visitor(&self) -> Option<usize> {
        let visitor = self.visitors.fetch_add(1, Ordering::Relaxed);
        (visitor < VISITORS).then_some(WRITERS + visitor)
    }

    /// Writes a group, for whoever attends the queue; `gather`: waits for those who are on their way. False when the writers
    /// have come to an end.
    pub fn write(&self, number: usize, gather: bool) -> bool {
        let _whole = Whole(self);
        let written = {
            // Poisoned: another one panicked at it, and what it was doing is half done.
            let Ok(mut desk) = self.desk.lock() else { return false };
            let Some(desk) = desk.as_mut() else { return false };
            let written = desk.next(&self.core, gather);
            self.core.queue.leave(desk.has_left());
            written
        };
        written.is_none_or(|written| self.finish(written, number))
    }

    /// Makes a group durable and tells those concerned, after the groups before it. False when the writers have come to an end.
    fn finish(&self, written: Written, number: usize) -> bool {
        let Written { mut group, waiters, held, wal, turn, began } = written;
        let written = Instant::now();
        if !cfg!(feature = "break-fsync")
            && let Err(e) = wal[number].sync_data()
        {
            event::SyncFailed { error: &e.to_string() }.emit();
            // Not by returning an error: whoever is told now that it failed may be wrong.
            std::process::exit(UNAVAILABLE);
        }
        if !self.turns.wait(turn) {
            return false;
        }
        self.core.synced(written.elapsed());
        event::Committed { records: group.len(), took: began.elapsed() }.emit();
        self.publish(&mut group);
        self.core.in_flight.fetch_sub(waiters, Ordering::AcqRel);
        self.turns.next();
        ticket::tell(group.into_iter().map(|r| (r, None)));
        self.core.queue.release(held);
        self.core.folder_bell.ring();
        true
    }

    /// Who must know in log order, and before the waiters: the engine.
    fn publish(&self, group: &mut [super::queue::Queued]) {
        let Some(last) = group.last().map(|r| r.seq) else { return };
        let core = &self.core;
        let mut batch = Vec::new();
        for record in group {
            if record.holds_transient {
                let own = [record.seq];
                core.transients.hold(record.seq, if record.pieces.is_empty() { &own } else { &record.pieces });
            }
            if let Some(from) = record.carried_from {
                core.homes.moved(from, record.seq);
                core.transients.finished(from);
            }
            if let Some(d) = record.deliver.take() {
                batch.push(Committed { seq: record.seq, accepted: *d.accepted, body: d.body });
            }
        }
        core.committed.store(last, Ordering::Release);
        if !batch.is_empty() {
            self.sink.committed(batch);
        }
    }
}

/// The order in which groups are told: that of the log.
#[derive(Default)]
struct Turns {
    now: Mutex<u64>,
    moved: Condvar,
    ended: AtomicBool,
}

impl Turns {
    /// Waits until all groups before `turn` are told; false when that will not happen.
    fn wait(&self, turn: u64) -> bool {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        while *now != turn && !self.ended.load(Ordering::Acquire) {
            now = self.moved.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        !self.ended.load(Ordering::Acquire)
    }

    fn next(&self) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.moved.notify_all();
    }

    fn end(&self) {
        let _now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended.store(true, Ordering::Release);
        self.moved.notify_all();
    }
}

/// A panic while a group is written: what it held will not be told, nor may what comes after it be.
struct Whole<'a>(&'a Writers);

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.turns.end();
            self.0.core.queue.abandon();
        }
    }
}

/// However a writer ends, nobody waits for it in vain; the last one completes the files.
struct End<'a>(&'a Writers);

impl Drop for End<'_> {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) > 1 {
            // The other one writes what is left.
            return;
        }
        self.0.core.queue.abandon();
        if let Ok(mut desk) = self.0.desk.lock()
            && let Some(desk) = desk.take()
        {
            desk.close(&self.0.core);
        }
    }
}
