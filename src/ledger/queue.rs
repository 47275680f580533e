//! What waits for the log's writer: bounded by bytes, numbered on entry.
//!
//! A record gets its sequence number here, under the lock, so that the order of the queue is the order of the log and
//! a piece of a large body has its number before it is written.

use super::applied::Notes;
use super::codec::{BodyRow, FactRow};
use super::ticket::Promise;
use crate::engine::fact::{Accepted, Seq};
use crate::engine::replica::Origin;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Memory of a record besides its data.
const RECORD_OVERHEAD: usize = 256;
/// Pieces of large bodies fill this part of the limit only: a deeper queue makes them no faster, only larger in memory.
const PIECES_PART: usize = 8;
/// Records without a waiter may fill this many times the limit while the store fails; then they are lost, and counted.
const LATER_FACTOR: usize = 2;

/// An accept fact on its way to the [`CommitSink`](crate::engine::ports::CommitSink).
pub struct Delivering {
    pub accepted: Box<Accepted>,
    pub body: Option<Bytes>,
}

/// What is to be known of a record that this log did not write of itself.
#[derive(Default)]
pub struct Elsewhere {
    /// The log it comes from; [`HOUSEKEEPING`](super::origin::HOUSEKEEPING) for what this one writes again.
    pub origin: Origin,
    /// The round of applying it belongs to: where one record of it could not be written, no later one is. 0: none.
    pub round: u64,
    /// Goes into the same commit. A piece's own number is put into it when it is written.
    pub notes: Notes,
}

/// One thing to write: a fact, a body, or both under the same number.
#[derive(Default)]
pub struct Record {
    pub seq: Seq,
    pub fact: Option<FactRow>,
    pub body: Option<BodyRow>,
    /// The body goes into the short-lived segments.
    pub transient: bool,
    /// Pieces that the fact refers to.
    pub pieces: Box<[Seq]>,
    /// An accept fact whose body lies in short-lived segments: they stay until it is finished.
    pub holds_transient: bool,
    /// Length of its body as received.
    pub body_len: u64,
    /// For a carried fact: the number it had.
    pub carried_from: Option<Seq>,
    /// Nothing, for what this log writes of itself.
    pub elsewhere: Option<Box<Elsewhere>>,
    /// An accept fact that another node may have written as well: see [`super::once`].
    pub once: bool,
    pub deliver: Option<Delivering>,
    pub ticket: Option<Promise>,
    /// A piece's share of the memory for pieces; given back when the record is dropped.
    pub _share: Option<OwnedSemaphorePermit>,
}

impl Record {
    /// The round of applying it belongs to.
    pub fn round(&self) -> Option<u64> {
        self.elsewhere.as_ref().map(|e| e.round).filter(|round| *round != 0)
    }

    /// Memory it holds.
    pub fn bytes(&self) -> usize {
        let fact = self.fact.as_ref().map_or(0, |f| f.data.len());
        let stored = self.body.as_ref().map_or(0, |b| b.data.len());
        // A compressed body is beside the one that is handed on.
        let handed_on = match (&self.deliver, &self.body) {
            (Some(d), Some(b)) if b.data.len() < b.len => d.body.as_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        RECORD_OVERHEAD + fact + stored + handed_on
    }
}

/// A record on its way: boxed, because it is handed on several times.
pub type Queued = Box<Record>;

struct Inner {
    records: VecDeque<Queued>,
    next_seq: Seq,
    closed: bool,
    /// The writer sleeps.
    idle: bool,
}

/// The queue.
pub struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
    /// Records in it, for a look without the lock.
    count: AtomicUsize,
    limit: usize,
    /// Bytes queued and in the writer's hands.
    bytes: AtomicUsize,
    space: Notify,
    /// Memory for pieces of large bodies, in KiB.
    pieces: Arc<Semaphore>,
    pieces_kib: usize,
    /// Somebody waits for space.
    starved: AtomicBool,
    /// How many wait for space, from the moment they were turned away.
    waiters: AtomicUsize,
    /// They go in one after the other, in the order in which they came.
    turnstile: tokio::sync::Mutex<()>,
}

impl Queue {
    /// `next_seq` is the number of the first record; `limit` in bytes.
    pub fn new(next_seq: Seq, limit: usize) -> Self {
        let pieces_kib = (limit / PIECES_PART / 1024).max(1);
        let inner = Inner { records: VecDeque::new(), next_seq, closed: false, idle: false };
        Self {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            count: AtomicUsize::new(0),
            limit,
            bytes: AtomicUsize::new(0),
            space: Notify::new(),
            pieces: Arc::new(Semaphore::new(pieces_kib)),
            pieces_kib,
            starved: AtomicBool::new(false),
            waiters: AtomicUsize::new(0),
            turnstile: tokio::sync::Mutex::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in the critical sections panics between two writes, so the contents are sound.
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes a record if there is space and nobody waits for some; gives its number, or the record back.
    pub fn push(&self, record: Box<Record>) -> Result<Seq, Box<Record>> {
        if self.waiters.load(Ordering::SeqCst) > 0 {
            return Err(record);
        }
        self.push_up_to(record, self.limit)
    }

    /// As [`Queue::push`], before those who wait: for retention, which makes the room that they wait for.
    pub fn push_ahead(&self, record: Box<Record>) -> Result<Seq, Box<Record>> {
        self.push_up_to(record, self.limit)
    }

    /// Takes a place among those who wait: until [`Queue::leave_line`] nobody else gets in first.
    pub fn wait_in_line(&self) {
        self.waiters.fetch_add(1, Ordering::SeqCst);
    }

    /// Gives the place up.
    pub fn leave_line(&self) {
        self.waiters.fetch_sub(1, Ordering::SeqCst);
    }

    /// As [`Queue::push`], for records that nobody waits for and that should not be lost.
    pub fn push_later(&self, record: Box<Record>) -> Result<Seq, Box<Record>> {
        self.push_up_to(record, self.limit.saturating_mul(LATER_FACTOR))
    }

    /// Waits for a piece's share of memory; `None` when `patience` ran out.
    pub async fn share(&self, bytes: usize, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes.div_ceil(1024).clamp(1, self.pieces_kib)).unwrap_or(u32::MAX);
        tokio::time::timeout(patience, self.pieces.clone().acquire_many_owned(kib)).await.ok()?.ok()
    }

    fn push_up_to(&self, mut record: Box<Record>, limit: usize) -> Result<Seq, Box<Record>> {
        let n = record.bytes();
        let mut inner = self.lock();
        let held = self.bytes.load(Ordering::Relaxed);
        if inner.closed || (held > 0 && held + n > limit) {
            return Err(record);
        }
        self.bytes.fetch_add(n, Ordering::Relaxed);
        let seq = inner.next_seq;
        inner.next_seq += 1;
        record.seq = seq;
        inner.records.push_back(record);
        self.count.store(inner.records.len(), Ordering::Relaxed);
        let wake = std::mem::take(&mut inner.idle);
        drop(inner);
        if wake {
            self.wake.notify_one();
        }
        Ok(seq)
    }

    /// As [`Queue::push`], waiting for space; the record back when the queue was closed or `patience` ran out.
    pub async fn push_waiting(&self, mut record: Box<Record>, patience: Duration) -> Result<Seq, Box<Record>> {
        let deadline = tokio::time::Instant::now() + patience;
        // Fair: whoever asks first goes first.
        let Ok(_turn) = tokio::time::timeout_at(deadline, self.turnstile.lock()).await else { return Err(record) };
        loop {
            let mut freed = std::pin::pin!(self.space.notified());
            freed.as_mut().enable();
            self.starved.store(true, Ordering::SeqCst);
            match self.push_up_to(record, self.limit) {
                Ok(seq) => return Ok(seq),
                Err(back) => record = back,
            }
            if self.is_closed() || tokio::time::timeout_at(deadline, freed).await.is_err() {
                return Err(record);
            }
        }
    }

    /// Moves everything that waits to the empty `records`, in order, as soon as there is something; false when the queue
    /// is closed and empty.
    pub fn take(&self, records: &mut VecDeque<Queued>) -> bool {
        let mut inner = self.lock();
        loop {
            if !inner.records.is_empty() {
                std::mem::swap(records, &mut inner.records);
                self.count.store(0, Ordering::Relaxed);
                return true;
            }
            if inner.closed {
                return false;
            }
            inner.idle = true;
            inner = self.wake.wait(inner).unwrap_or_else(|e| e.into_inner());
            inner.idle = false;
        }
    }

    /// Does nothing wait? A hint: without the lock.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Moves what has arrived meanwhile to the end of `records`.
    pub fn take_more(&self, records: &mut VecDeque<Queued>) {
        let mut inner = self.lock();
        records.append(&mut inner.records);
        self.count.store(0, Ordering::Relaxed);
    }

    /// The writer has dealt with so many bytes.
    pub fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.starved.swap(false, Ordering::SeqCst) {
            self.space.notify_waiters();
        }
    }

    /// The number that the next record will get.
    pub fn next_seq(&self) -> Seq {
        self.lock().next_seq
    }

    /// Bytes queued and in the writer's hands.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes nothing more; the writer ends when it has written what is there.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
        self.space.notify_waiters();
    }

    /// Nobody will write any more: what still waits is told so.
    pub fn abandon(&self) {
        self.close();
        let left = std::mem::take(&mut self.lock().records);
        drop(left);
    }

    /// Is it closed?
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }
}
