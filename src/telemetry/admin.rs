//! Events of identification and of the management API.

use super::register;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::{net::SocketAddr, sync::LazyLock};

/// A sender was not let in. Metric only: an attack must not fill the log.
pub struct IdentifyFailed<'a> {
    /// `credentials-required`, `unknown-client`, `wrong-password`, …: one of a fixed set.
    pub kind: &'static str,
    /// The configured client that was claimed, where there is one; never the name as given.
    pub client: Option<&'a str>,
}

impl IdentifyFailed<'_> {
    /// Counts it.
    pub fn emit(self) {
        let client = self.client.unwrap_or_default().to_owned();
        METRICS.identify.get_or_create(&Identify { kind: self.kind, client }).inc();
    }
}

/// Somebody knocked at the management API without the right credential.
pub struct AdminDenied {
    /// Address of the caller.
    pub peer: SocketAddr,
    /// `absent`, `wrong`, `throttled` or `cross-site`.
    pub kind: &'static str,
}

impl AdminDenied {
    /// Counts it, and writes it when a credential was given (the throttle bounds how often that happens).
    pub fn emit(self) {
        METRICS.denied.get_or_create(&Kind { kind: self.kind }).inc();
        if self.kind == "wrong" {
            tracing::warn!(peer = %self.peer, "management API: wrong credential");
        }
    }
}

/// The management API serves.
pub struct Listening {
    /// `admin` or `health`.
    pub what: &'static str,
    /// Where.
    pub address: SocketAddr,
}

impl Listening {
    /// Writes it.
    pub fn emit(self) {
        tracing::info!(address = %self.address, "{} listening", self.what);
    }
}

/// An operator changed something.
pub struct Changed<'a> {
    /// `channel`, `client`, `route`, `delivery` or `node`.
    pub what: &'static str,
    /// Configured name, or a transaction's id.
    pub name: &'a str,
    /// What was done, in one word.
    pub action: &'static str,
}

impl Changed<'_> {
    /// Writes and counts it.
    pub fn emit(self) {
        METRICS.changes.get_or_create(&Change { what: self.what, action: self.action }).inc();
        tracing::info!(what = self.what, name = self.name, action = self.action, "changed by an operator");
    }
}

/// A task (bulk rerun or requeue) ended.
pub struct TaskEnded {
    /// Messages run again or put back.
    pub done: u64,
    /// Messages for which that failed.
    pub failed: u64,
    /// Was it cancelled?
    pub cancelled: bool,
}

impl TaskEnded {
    /// Writes and counts it.
    pub fn emit(self) {
        METRICS.reruns.inc_by(self.done);
        METRICS.rerun_failures.inc_by(self.failed);
        tracing::info!(done = self.done, failed = self.failed, cancelled = self.cancelled, "task ended");
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Identify {
    kind: &'static str,
    client: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Change {
    what: &'static str,
    action: &'static str,
}

struct Metrics {
    identify: Family<Identify, Counter>,
    denied: Family<Kind, Counter>,
    changes: Family<Change, Counter>,
    reruns: Counter,
    rerun_failures: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    identify: register("identify_failures", "Senders not let in, by kind and by configured client.", Family::default()),
    denied: register("admin_denied", "Requests to the management API without the right credential.", Family::default()),
    changes: register("admin_changes", "Changes by operators.", Family::default()),
    reruns: register("task_done", "Messages that tasks ran again or put back.", Counter::default()),
    rerun_failures: register("task_failures", "Messages for which a task failed.", Counter::default()),
});

pub(super) fn touch() {
    LazyLock::force(&METRICS);
}
