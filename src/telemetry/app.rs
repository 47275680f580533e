//! Events of the node as a whole.

use super::register;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::{path::Path, sync::LazyLock};

/// What the ledger told at start.
pub struct Restored {
    /// Messages that were not finished.
    pub unfinished: u64,
    /// Messages in the resend window.
    pub resend_window: u64,
    /// Time it took.
    pub took_ms: u64,
}

impl Restored {
    /// Writes it.
    pub fn emit(self) {
        RESTORED.set(i64::try_from(self.unfinished).unwrap_or(i64::MAX));
        tracing::info!(
            unfinished = self.unfinished,
            resend_window = self.resend_window,
            took_ms = self.took_ms,
            "ledger read; deliveries go on where they stood"
        );
    }
}

/// What operators said about routes cannot be read: none of it is in force.
pub struct PausesUnreadable<'a> {
    /// The file's name in the store.
    pub file: &'static str,
    /// What is wrong.
    pub error: &'a std::io::Error,
}

impl PausesUnreadable<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::error!(file = self.file, error = %self.error, "paused routes are not known any more: pause them again");
    }
}

/// The node accepts.
pub struct Ready<'a> {
    /// Where it keeps its things.
    pub store: &'a Path,
    /// Channels in force.
    pub channels: usize,
    /// Accepting instances.
    pub instances: usize,
    /// From the start of the process.
    pub took_ms: u64,
}

impl Ready<'_> {
    /// Writes it.
    pub fn emit(self) {
        STARTS.inc();
        let (store, channels, instances, took_ms) = (self.store.display(), self.channels, self.instances, self.took_ms);
        tracing::info!(%store, channels, instances, took_ms, "ready");
    }
}

/// The node has begun to end.
pub struct Draining {
    /// What for.
    pub why: &'static str,
}

impl Draining {
    /// Writes it.
    pub fn emit(self) {
        DRAINING.set(1);
        tracing::info!(why = self.why, "draining: finishing what is in hand");
    }
}

/// A drain was not over in time.
pub struct DrainForced {
    /// The instance.
    pub number: usize,
    /// Connections cut.
    pub connections: usize,
}

impl DrainForced {
    /// Writes it.
    pub fn emit(self) {
        tracing::warn!(
            instance = self.number,
            connections = self.connections,
            "node.drain_timeout reached: connections cut; their senders will send again"
        );
    }
}

/// A drain was cut short by a second TERM or INT; the process ends at once.
pub struct DrainCut {
    /// Messages that wait for the next start.
    pub pending: u64,
    /// Connections cut, whose senders will send again.
    pub connections: usize,
}

impl DrainCut {
    /// Writes it.
    pub fn emit(self) {
        tracing::warn!(
            pending = self.pending,
            connections = self.connections,
            "told to stop again: ended before the drain was over; what is pending goes on at the next start"
        );
    }
}

/// Everything is on disk; the process ends.
pub struct Stopped {
    /// Messages that wait for the next start.
    pub pending: u64,
}

impl Stopped {
    /// Writes it.
    pub fn emit(self) {
        tracing::info!(pending = self.pending, "stopped; what is pending goes on at the next start");
    }
}

/// An accepting instance ended unexpectedly and is started again.
pub struct InstanceRestarts<'a> {
    /// Which.
    pub number: usize,
    /// Why.
    pub error: &'a str,
}

impl InstanceRestarts<'_> {
    /// Writes it.
    pub fn emit(self) {
        RESTARTS.inc();
        tracing::error!(
            instance = self.number,
            error = self.error,
            "an accepting instance failed and is started again: please report this with the log"
        );
    }
}

/// Channels and clients were read again.
pub struct Reloaded {
    /// Channels in force.
    pub channels: usize,
    /// Clients known.
    pub clients: usize,
}

impl Reloaded {
    /// Writes it.
    pub fn emit(self) {
        RELOADS.inc();
        tracing::info!(channels = self.channels, clients = self.clients, "channels and clients read again");
    }
}

/// Channels or clients hold a mistake; what was in force stays.
pub struct ReloadRefused<'a> {
    /// All mistakes.
    pub error: &'a str,
}

impl ReloadRefused<'_> {
    /// Writes it.
    pub fn emit(self) {
        RELOADS_REFUSED.inc();
        tracing::error!(error = self.error, "not reloaded, what was in force stays; mend it and see `hie check`");
    }
}

/// Starts of this process image; upgrades in place count.
static STARTS: LazyLock<Counter> =
    LazyLock::new(|| register("node_starts", "Times the node became ready in this process.", Counter::default()));
static RESTORED: LazyLock<Gauge> =
    LazyLock::new(|| register("node_restored", "Unfinished messages found at start.", Gauge::default()));
static DRAINING: LazyLock<Gauge> = LazyLock::new(|| register("node_draining", "1 while the node drains.", Gauge::default()));
static RESTARTS: LazyLock<Counter> =
    LazyLock::new(|| register("instance_restarts", "Accepting instances started again after a failure.", Counter::default()));
static RELOADS: LazyLock<Counter> =
    LazyLock::new(|| register("reloads", "Times channels and clients were read again.", Counter::default()));
static RELOADS_REFUSED: LazyLock<Counter> =
    LazyLock::new(|| register("reloads_refused", "Reloads refused because of a mistake.", Counter::default()));

/// Registers the metrics that nothing has touched yet: alert rules refer to them.
pub(super) fn touch() {
    let _ = (&*STARTS, &*RESTORED, &*DRAINING, &*RESTARTS, &*RELOADS, &*RELOADS_REFUSED);
}
