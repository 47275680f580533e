//! Messages still at hand: what was just accepted is delivered from memory while the budget lasts; a backlog beyond it is
//! read from the log again.

use crate::engine::{
    fact::{Accepted, Seq},
    ports::{Log, Stored},
};
use bytes::Bytes;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// What an envelope takes besides the body, roughly.
const ENVELOPE: u64 = 768;

/// The memory that messages at hand may take, in bytes.
pub struct HotBudget {
    left: AtomicU64,
}

impl HotBudget {
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(bytes) })
    }

    fn take(&self, bytes: u64) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

/// A message at hand; gives its memory back to the budget when the last route lets go.
pub struct Hot {
    pub stored: Arc<Stored>,
    bytes: u64,
    budget: Arc<HotBudget>,
}

impl Hot {
    /// Keeps the message when the budget allows, else gives the accept fact back.
    pub fn keep(
        budget: &Arc<HotBudget>,
        seq: Seq,
        accepted: Accepted,
        body: Option<Bytes>,
        log: &Arc<dyn Log>,
    ) -> Result<Arc<Self>, Box<Accepted>> {
        let bytes = ENVELOPE + body.as_ref().map_or(0, |b| b.len() as u64);
        if !budget.take(bytes) {
            return Err(Box::new(accepted));
        }
        let stored = Arc::new(Stored { seq, accepted, body, source: log.clone() });
        Ok(Arc::new(Self { stored, bytes, budget: budget.clone() }))
    }
}

impl Drop for Hot {
    fn drop(&mut self) {
        self.budget.left.fetch_add(self.bytes, Relaxed);
    }
}
