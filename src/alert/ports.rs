//! What alerts need of the rest. Implemented by `app` ([`Observer`], [`Keep`]) and by `gateway::outbound::notify` ([`Receiver`]).

use super::{Alert, Event, Notice, outbox::Outbox};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// How much of something is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub used: u64,
    pub of: u64,
}

impl Share {
    /// In percent; 0 of nothing is none.
    pub fn percent(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.used as f64 * 100.0 / self.of as f64 }
    }
}

/// One route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteSight {
    pub channel: String,
    pub route: String,
    pub paused: bool,
    pub pending: u64,
    pub parked: u64,
    /// Age of the oldest message waiting; 0: none waits.
    pub oldest_ms: i64,
    /// The last attempt failed.
    pub failing: bool,
    /// Attempts since the route is configured, and how many of them failed.
    pub attempts: u64,
    pub failed: u64,
}

/// A feed whose silence is to be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedSight {
    /// A channel, else a client.
    pub channel: bool,
    pub name: String,
    pub after: Duration,
    /// Messages since the node's start.
    pub messages: u64,
}

/// A certificate in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSight {
    pub listener: String,
    /// `certificate` or `client_ca`.
    pub what: &'static str,
    /// Unix seconds.
    pub not_after: i64,
}

/// How full the ledger is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerSight {
    pub size: Share,
    /// Age of the oldest transaction kept; `None`: unknown, or there is none.
    pub reaches_back_ms: Option<i64>,
    /// As configured.
    pub retention_ms: i64,
}

/// The node as it stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    pub routes: Vec<RouteSight>,
    pub feeds: Vec<FeedSight>,
    /// Connections of the live feed.
    pub feed: Option<Share>,
    pub memory: Option<Share>,
    /// Processor time used by the node since its start, in seconds, and cores that it may use.
    pub cpu: Option<(f64, f64)>,
    pub disk: Option<Share>,
    pub ledger: Option<LedgerSight>,
    pub certificates: Vec<CertificateSight>,
    /// Reasons for not being ready, draining not counted.
    pub not_ready: usize,
    pub problems: usize,
}

/// Looks at the node.
pub trait Observer: Send + 'static {
    /// As it stands now. May block for some milliseconds.
    fn look(&mut self) -> Snapshot;
}

/// A notification that did not arrive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotSent(
    /// Why, for the operator: no credential, no path of a URL.
    pub String,
);

/// Somebody who is told.
pub trait Receiver: Send + Sync + 'static {
    /// `webhook` or `mail`.
    fn kind(&self) -> &'static str;
    /// Where, as it may be shown: scheme, host and port, addresses; no credential, no path, no query.
    fn name(&self) -> &str;
    /// Wants to hear also what is over.
    fn resolved(&self) -> bool;
    /// Sends one notification, once, within a time of its own.
    fn send<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Result<(), NotSent>>;
}

/// What outlives a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Number of the next event.
    pub next: u64,
    pub active: Vec<Alert>,
    pub events: Vec<Event>,
    /// What each receiver has been told, by its name.
    pub told: BTreeMap<String, Outbox>,
}

/// Keeps alerts over restarts.
pub trait Keep: Send + 'static {
    /// What was kept last; nothing when it cannot be read, which is told.
    fn load(&self) -> Kept;
    /// Keeps this instead, durably (fsynced). The error is for the operator.
    fn keep(&self, kept: &Kept) -> Result<(), String>;
}
