//! How many of a message's routes are not finished, and how many of those are only waiting for an operator.

use crate::{engine::fact::Seq, message::MessageId};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
    },
};

/// Shared by a message's entries on all its routes.
pub struct Progress {
    /// Its place in the log.
    pub seq: Seq,
    /// Its id.
    pub id: MessageId,
    /// Routes not finished (high half) and, of those, being worked on (low half): one word, so that both are seen together.
    counts: AtomicU64,
    tracked: AtomicBool,
}

/// What a step led to.
pub struct End {
    /// Nothing is being worked on any more.
    pub idle: bool,
    /// No route is left.
    pub finished: bool,
}

const LEFT: u64 = 1 << 32;
const ACTIVE: u64 = 1;

fn left(counts: u64) -> u64 {
    counts >> 32
}

fn active(counts: u64) -> u64 {
    counts & 0xffff_ffff
}

impl Progress {
    pub fn new(seq: Seq, id: MessageId) -> Arc<Self> {
        Arc::new(Self { seq, id, counts: AtomicU64::new(0), tracked: AtomicBool::new(false) })
    }

    /// One more route to work on.
    pub fn add_active(&self) {
        self.counts.fetch_add(LEFT + ACTIVE, AcqRel);
    }

    /// One more route that is set aside.
    pub fn add_parked(&self) {
        self.counts.fetch_add(LEFT, AcqRel);
    }

    /// Routes not finished.
    pub fn left(&self) -> u64 {
        left(self.counts.load(Acquire))
    }

    /// Routes being worked on.
    pub fn active(&self) -> u64 {
        active(self.counts.load(Acquire))
    }

    /// One route that was being worked on is finished.
    pub fn done(&self) -> End {
        let after = self.counts.fetch_sub(LEFT + ACTIVE, AcqRel) - (LEFT + ACTIVE);
        End { idle: active(after) == 0, finished: left(after) == 0 }
    }

    /// One route is set aside; true when nothing is being worked on any more.
    pub fn park(&self) -> bool {
        active(self.counts.fetch_sub(ACTIVE, AcqRel) - ACTIVE) == 0
    }

    /// One route that was set aside is wanted again; true when nothing was being worked on.
    pub fn unpark(&self) -> bool {
        active(self.counts.fetch_add(ACTIVE, AcqRel)) == 0
    }

    /// Whether [`Tracked`] may hold it.
    pub fn is_tracked(&self) -> bool {
        self.tracked.load(Acquire)
    }
}

/// Messages found by sequence number or id.
#[derive(Default)]
pub struct Tracked {
    by_seq: HashMap<Seq, Arc<Progress>>,
    by_id: HashMap<MessageId, Arc<Progress>>,
}

impl Tracked {
    pub fn track(&mut self, progress: Arc<Progress>) {
        progress.tracked.store(true, Release);
        self.by_id.insert(progress.id, progress.clone());
        self.by_seq.insert(progress.seq, progress);
    }

    pub fn forget(&mut self, progress: &Progress) {
        self.by_seq.remove(&progress.seq);
        self.by_id.remove(&progress.id);
    }

    pub fn by_seq(&self, seq: Seq) -> Option<Arc<Progress>> {
        self.by_seq.get(&seq).cloned()
    }

    pub fn by_id(&self, id: MessageId) -> Option<Arc<Progress>> {
        self.by_id.get(&id).cloned()
    }
}
