//! How large the ledger is and how far its views are.

use super::core::Core;
use super::keeper::disk_bytes;
use super::view::{get_meta, meta};
use std::sync::atomic::Ordering;

/// Figures of a ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    pub segments: usize,
    /// On disk, without the quarantine.
    pub bytes: u64,
    /// In the views.
    pub transactions: u64,
    /// Transactions that something still has to happen to, parked ones included.
    pub open: u64,
    /// Bytes waiting for the writer.
    pub queue_bytes: usize,
    /// Numbers by which the views are behind the log.
    pub view_lag: u64,
    /// Unix milliseconds of arrival of the oldest transaction stored.
    pub oldest_ms: Option<i64>,
    /// Highest number committed.
    pub committed: u64,
    /// Facts that nobody waited for and that could not be written since the start.
    pub facts_lost: u64,
}

/// Collects the figures; what cannot be read now counts as nothing.
pub fn stats(core: &Core) -> Stats {
    let committed = core.committed();
    let mut stats = Stats {
        bytes: disk_bytes(&core.dir),
        queue_bytes: core.queue.bytes(),
        view_lag: committed.saturating_sub(core.folded.get()),
        committed,
        facts_lost: core.lost_later.load(Ordering::Relaxed),
        ..Stats::default()
    };
    for segment in core.catalog.all() {
        stats.segments += 1;
        let read = core.with_view(&segment, |conn| {
            let open: i64 = conn.query_row("SELECT count(*) FROM tx WHERE open = 1", [], |r| r.get(0))?;
            Ok((get_meta::<i64>(conn, meta::ROWS)?.unwrap_or(0), open, get_meta::<i64>(conn, meta::LOWEST_AT)?))
        });
        if let Ok((rows, open, lowest)) = read {
            stats.transactions += rows.max(0) as u64;
            stats.open += open.max(0) as u64;
            stats.oldest_ms = stats.oldest_ms.into_iter().chain(lowest).min();
        }
    }
    stats
}
