//! Back-pressure: how much is accepted and unfinished, and whether more may come.

use crate::telemetry::engine::PushBack;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release};
use tokio::sync::Notify;

/// Counts pending messages against a limit. Opens again at nine tenths of it, so that it does not flutter.
pub struct Gate {
    limit: u64,
    pending: AtomicU64,
    shut: AtomicBool,
    draining: AtomicBool,
    opened: Notify,
}

impl Gate {
    /// A gate for at most `limit` pending messages.
    pub fn new(limit: u64) -> Self {
        Self {
            limit: limit.max(1),
            pending: AtomicU64::new(0),
            shut: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            opened: Notify::new(),
        }
    }

    /// Whether more may come.
    pub fn is_open(&self) -> bool {
        !self.shut.load(Acquire)
    }

    /// Resolves when more may come.
    pub async fn wait_open(&self) {
        loop {
            let opened = self.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            if self.is_open() {
                return;
            }
            opened.await;
        }
    }

    /// The node ends: nothing new is accepted.
    pub fn drain(&self) {
        self.draining.store(true, Release);
    }

    /// Whether the node ends.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Acquire)
    }

    /// Messages accepted and unfinished, those set aside not counted.
    pub fn pending(&self) -> u64 {
        self.pending.load(Acquire)
    }

    /// `n` more are pending.
    pub fn add(&self, n: u64) {
        let now = self.pending.fetch_add(n, AcqRel) + n;
        if now >= self.limit && !self.shut.swap(true, AcqRel) {
            PushBack { on: true, limit: "limits.max_pending", pending: now }.emit();
        }
    }

    /// `n` less are pending.
    pub fn remove(&self, n: u64) {
        let now = self.pending.fetch_sub(n, AcqRel) - n;
        if now <= self.limit / 10 * 9 && self.shut.load(Acquire) && self.shut.swap(false, AcqRel) {
            PushBack { on: false, limit: "limits.max_pending", pending: now }.emit();
            self.opened.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shuts_at_the_limit_and_opens_below_nine_tenths() {
        let gate = Gate::new(10);
        gate.add(9);
        assert!(gate.is_open());
        gate.add(1);
        assert!(!gate.is_open());
        gate.remove(0);
        assert!(!gate.is_open());
        gate.remove(1);
        assert!(gate.is_open());
        gate.wait_open().await;
    }
}
