//! Where events come from: the ledger's facts, and the alerts. The feed pulls; whoever has something new only wakes it.

use crate::engine::fact::{Fact, Seq};
use std::sync::Arc;

/// Wakes the feed's thread. Cheap: it may be called after every commit.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A batch of committed facts.
#[derive(Debug)]
pub struct Facts {
    /// With their numbers, rising.
    pub facts: Vec<(Seq, Fact)>,
    /// Complete from this number on; more than one above what was asked for when something in between is no longer stored.
    pub from: Seq,
    /// Everything up to here has been looked at.
    pub at: Seq,
}

/// The ledger as the feed reads it, on its own thread; all of it may block.
pub trait Journal: Send + Sync + 'static {
    /// The highest number committed: nothing above it is ever shown. Must not block.
    fn committed(&self) -> Seq;
    /// The committed facts after `seq`, at most `most`; the error says what to look at, without content.
    fn after(&self, seq: Seq, most: usize) -> Result<Facts, String>;
    /// Channel and client of the transaction with that number; `None` when it is no longer stored.
    fn parties(&self, home: Seq) -> Option<(String, String)>;
    /// Calls `wake` after each commit.
    fn on_commit(&self, wake: Wake);
}

/// An alert as an event.
#[derive(Clone, Debug)]
pub struct AlertEvent {
    /// Rises from one to the next, over restarts too.
    pub id: u64,
    /// Kind of event: one word in lower case, `raised` for example.
    pub event: String,
    /// JSON on one line, nothing private in it.
    pub json: String,
}

/// The alerts as the feed reads them. Whoever has a new one calls [`Feed::alerts_changed`](super::Feed::alerts_changed).
pub trait AlertSource: Send + Sync + 'static {
    /// Number of the latest alert; 0: there was none. Must not block.
    fn latest(&self) -> u64;
    /// The lowest number from which on all alerts are still kept; 0 or 1: all ever raised.
    fn complete_from(&self) -> u64;
    /// The alerts after `id`, rising, at most `most`.
    fn since(&self, id: u64, most: usize) -> Vec<AlertEvent>;
}
