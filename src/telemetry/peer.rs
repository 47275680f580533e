//! Events of handing a ledger from one node of a domain to another.

use super::register;
use prometheus_client::metrics::counter::Counter;
use std::{net::SocketAddr, sync::LazyLock, time::Duration};

static HANDED: LazyLock<Counter> = LazyLock::new(|| {
    register("peer_handed_bytes", "Bytes of this node's ledger handed to nodes that joined the domain", Counter::default())
});
static COPIED: LazyLock<Counter> = LazyLock::new(|| {
    register(
        "peer_copied_bytes",
        "Bytes of another node's ledger that this node copied when it joined the domain",
        Counter::default(),
    )
});
static FAILURES: LazyLock<Counter> = LazyLock::new(|| {
    register(
        "peer_failures",
        "Times that a node of the domain did not hand over its ledger when this one joined",
        Counter::default(),
    )
});

/// Registers the metrics that nothing has touched yet.
pub(super) fn touch() {
    for counter in [&HANDED, &COPIED, &FAILURES] {
        LazyLock::force(counter);
    }
}

/// Bytes were handed over. Metric only.
pub struct Handed {
    pub bytes: u64,
}

impl Handed {
    pub fn emit(self) {
        HANDED.inc_by(self.bytes);
    }
}

/// A node of the domain asks what there is to copy.
pub struct Asked<'a> {
    pub peer: SocketAddr,
    /// As it calls itself.
    pub node: &'a str,
    pub logs: usize,
    pub bytes: u64,
}

impl Asked<'_> {
    pub fn emit(self) {
        tracing::info!(peer = %self.peer, node = self.node, logs = self.logs, bytes = self.bytes, "a node of the domain copies this node's ledger");
    }
}

/// This node begins to copy.
pub struct Joining<'a> {
    pub peer: &'a str,
    pub release: &'a str,
    pub files: usize,
    pub bytes: u64,
    /// Files that an earlier attempt has left.
    pub kept: usize,
}

impl Joining<'_> {
    pub fn emit(self) {
        tracing::info!(
            peer = self.peer,
            release = self.release,
            files = self.files,
            bytes = self.bytes,
            kept = self.kept,
            "the ledger is empty: copying that of a peer before messages are accepted"
        );
    }
}

/// So much has come.
pub struct Copied {
    pub bytes: u64,
}

impl Copied {
    pub fn emit(self) {
        COPIED.inc_by(self.bytes);
    }
}

/// It goes on.
pub struct Progress<'a> {
    pub peer: &'a str,
    pub bytes: u64,
    pub of: u64,
}

impl Progress<'_> {
    pub fn emit(self) {
        tracing::info!(peer = self.peer, bytes = self.bytes, of = self.of, "copying the ledger of a peer");
    }
}

/// The peer's ledger is this node's now.
pub struct Joined<'a> {
    pub peer: &'a str,
    pub logs: usize,
    pub facts: u64,
    pub bytes: u64,
    pub damaged_bodies: u64,
    pub took: Duration,
}

impl Joined<'_> {
    pub fn emit(self) {
        let took_ms = self.took.as_millis() as u64;
        tracing::info!(
            peer = self.peer,
            logs = self.logs,
            facts = self.facts,
            bytes = self.bytes,
            took_ms,
            "the ledger of a peer is copied; what came later is read from the ledger stream"
        );
        if self.damaged_bodies > 0 {
            tracing::warn!(
                peer = self.peer,
                bodies = self.damaged_bodies,
                "bodies were damaged at the peer already and are damaged here: restore its ledger from a backup"
            );
        }
    }
}

/// A peer did not hand over its ledger.
pub struct PeerFailed<'a> {
    pub peer: &'a str,
    pub error: &'a str,
    /// It is asked again.
    pub again: bool,
}

impl PeerFailed<'_> {
    pub fn emit(self) {
        FAILURES.inc();
        let next = if self.again { "asked again in a moment" } else { "not asked again" };
        tracing::warn!(peer = self.peer, error = self.error, next, "a peer's ledger cannot be copied");
    }
}

/// The node begins with an empty ledger and the stream.
pub struct StreamAlone<'a> {
    pub why: &'a str,
    /// There were peers, so something is missing.
    pub failed: bool,
}

impl StreamAlone<'_> {
    pub fn emit(self) {
        match self.failed {
            true => tracing::error!(
                why = self.why,
                "no peer's ledger was copied: this node reads the ledger stream alone, and does not find what has left that; correct it, \
                 stop the node, remove the folder `ledger` in its store if it holds nothing of its own, and start it again"
            ),
            false => tracing::info!(why = self.why, "the ledger is empty, and none is copied: this node reads the ledger stream"),
        }
    }
}
