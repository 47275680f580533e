//! The table of open connections of one gateway: a count and its limit, shared by all accepting instances.

use crate::telemetry::inbound::Meters;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Counts connections up to a limit.
pub struct Connections {
    open: AtomicUsize,
    max: usize,
    refusing: AtomicUsize,
    meters: Meters,
}

/// Refusals being written at the same time; further ones are closed without a word.
const MAX_REFUSING: usize = 64;

impl Connections {
    /// A table for at most `max` connections on the listener called `listener`.
    pub fn new(listener: &str, max: usize) -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), max, refusing: AtomicUsize::new(0), meters: Meters::new(listener) })
    }

    /// Open connections now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn meters(&self) -> &Meters {
        &self.meters
    }

    /// A place in the table; `None` at the limit.
    pub(super) fn take(self: &Arc<Self>) -> Option<Permit> {
        take(&self.open, self.max).then(|| {
            self.meters.opened();
            Permit { table: self.clone() }
        })
    }

    /// A place at the limit, where a connection that holds one has been told to end: for that short while there is one more.
    pub(super) fn take_over(self: &Arc<Self>) -> Permit {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.meters.opened();
        Permit { table: self.clone() }
    }

    /// A place among those being told that they are refused; `None` when too many are.
    pub(super) fn refuse(self: &Arc<Self>) -> Option<RefusalPermit> {
        take(&self.refusing, MAX_REFUSING).then(|| RefusalPermit { table: self.clone() })
    }
}

fn take(count: &AtomicUsize, max: usize) -> bool {
    count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n < max).then_some(n + 1)).is_ok()
}

/// One open connection; its place is free again when this is dropped.
pub(super) struct Permit {
    table: Arc<Connections>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.table.open.fetch_sub(1, Ordering::AcqRel);
        self.table.meters.closed();
    }
}

/// One refusal being written.
pub(super) struct RefusalPermit {
    table: Arc<Connections>,
}

impl Drop for RefusalPermit {
    fn drop(&mut self) {
        self.table.refusing.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_holds_and_places_come_back() {
        let table = Connections::new("table-test", 2);
        let (a, b) = (table.take(), table.take());
        assert!(a.is_some() && b.is_some());
        assert!(table.take().is_none());
        drop(a);
        assert_eq!(table.open(), 1);
        assert!(table.take().is_some());
    }
}
