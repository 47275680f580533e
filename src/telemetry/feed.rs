//! Events of the live feed. Labels are kinds of resource: names of clients have no bound.

use super::register;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::{
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The feed serves.
pub struct FeedOpen {
    /// Connections to one resource at most.
    pub per_resource: usize,
    /// Connections altogether at most.
    pub total: usize,
    /// After which a connection is ended.
    pub timeout: Duration,
}

impl FeedOpen {
    /// Writes it.
    pub fn emit(self) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        METRICS.limit.get_or_create(&Scope { scope: "resource" }).set(count(self.per_resource));
        METRICS.limit.get_or_create(&Scope { scope: "total" }).set(count(self.total));
        let (per_resource, total, timeout) = (self.per_resource, self.total, self.timeout);
        tracing::info!(per_resource, total, ?timeout, "live feed: connections per resource and in total, and their timeout");
    }
}

/// A reader came (+1) or went (-1).
pub struct Listeners {
    /// Kind of resource.
    pub kind: &'static str,
    /// The change.
    pub change: i64,
    /// Resources with at least one reader now.
    pub resources: usize,
}

impl Listeners {
    /// Counts it.
    pub fn emit(self) {
        METRICS.connections.get_or_create(&Kind { kind: self.kind }).inc_by(self.change);
        METRICS.resources.set(i64::try_from(self.resources).unwrap_or(i64::MAX));
    }
}

/// A reader was refused: all places are taken.
pub struct FeedFull<'a> {
    /// `resource`, `total`, `carried` or `draining`.
    pub scope: &'static str,
    /// The resource asked for.
    pub resource: &'a str,
    /// Places.
    pub limit: usize,
}

/// Lines of one kind are at least this far apart: a reader that tries again and again must not fill the log.
const APART: Duration = Duration::from_secs(10);

static LAST_FULL: Mutex<Option<Instant>> = Mutex::new(None);

impl FeedFull<'_> {
    /// Counts it, and writes it now and then.
    pub fn emit(self) {
        METRICS.refused.get_or_create(&Scope { scope: self.scope }).inc();
        let mut last = LAST_FULL.lock().unwrap_or_else(|e| e.into_inner());
        if self.scope == "draining" || last.is_some_and(|at| at.elapsed() < APART) {
            return;
        }
        *last = Some(Instant::now());
        let (resource, limit) = (self.resource, self.limit);
        match self.scope {
            "resource" => tracing::warn!(
                resource,
                limit,
                "connection limit reached for a resource of the live feed: raise feed.max_connections_per_resource"
            ),
            "carried" => tracing::warn!(
                resource,
                limit,
                "connection limit of the live feed reached on HTTP/2 and kept connections: have readers use fresh ones"
            ),
            _ => tracing::warn!(resource, limit, "connection limit of the live feed reached: raise feed.max_connections"),
        }
    }
}

/// A connection was ended by the node.
pub struct FeedEnded {
    /// `timeout`, `dropped`, or `closing`.
    pub why: &'static str,
}

impl FeedEnded {
    /// Counts it.
    pub fn emit(self) {
        METRICS.ended.get_or_create(&Why { why: self.why }).inc();
    }
}

/// Events were rendered and sent.
pub struct FeedSent {
    /// Different ones.
    pub events: u64,
    /// Connections that were sent some of them.
    pub connections: u64,
    /// Facts committed and not yet looked at.
    pub lag: u64,
}

impl FeedSent {
    /// Counts it.
    pub fn emit(self) {
        METRICS.events.inc_by(self.events);
        METRICS.sends.inc_by(self.connections);
        METRICS.lag.set(i64::try_from(self.lag).unwrap_or(i64::MAX));
    }
}

/// The feed's thread failed and begins anew, without readers: they come back.
pub struct FeedRestarts;

impl FeedRestarts {
    /// Writes and counts it.
    pub fn emit(self) {
        METRICS.restarts.inc();
        tracing::error!("the live feed failed and is started again: please report this with the log");
    }
}

/// The log cannot be read for the feed; tried again.
pub struct FeedUnreadable<'a> {
    /// What is wrong.
    pub error: &'a str,
}

impl FeedUnreadable<'_> {
    /// Counts it, and writes the first of many.
    pub fn emit(self) {
        METRICS.unreadable.inc();
        static SEEN: AtomicU64 = AtomicU64::new(0);
        if SEEN.fetch_add(1, Relaxed).is_multiple_of(60) {
            tracing::warn!(error = self.error, "the live feed cannot read the log; it is tried again each second");
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Scope {
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    why: &'static str,
}

struct Metrics {
    connections: Family<Kind, Gauge>,
    resources: Gauge,
    limit: Family<Scope, Gauge>,
    refused: Family<Scope, Counter>,
    ended: Family<Why, Counter>,
    events: Counter,
    sends: Counter,
    lag: Gauge,
    unreadable: Counter,
    restarts: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let metrics = Metrics {
        connections: register("feed_connections", "Readers of the live feed, by kind of resource.", Family::default()),
        resources: register("feed_resources", "Resources of the live feed with at least one reader.", Gauge::default()),
        limit: register("feed_connections_limit", "Readers allowed, per resource and in total.", Family::default()),
        refused: register("feed_refused", "Readers refused, by the limit that was reached.", Family::default()),
        ended: register("feed_ended", "Connections ended by the node: timeout, dropped (too slow), closing.", Family::default()),
        events: register("feed_events", "Events rendered.", Counter::default()),
        sends: register("feed_sends", "Times that events were sent to a reader.", Counter::default()),
        lag: register("feed_lag", "Facts committed that the live feed has not looked at yet.", Gauge::default()),
        unreadable: register("feed_unreadable", "Times the live feed could not read the log.", Counter::default()),
        restarts: register("feed_restarts", "Times the live feed began anew after a failure.", Counter::default()),
    };
    for kind in ["transactions", "channel", "client", "domain", "alerts"] {
        drop(metrics.connections.get_or_create(&Kind { kind }));
    }
    for scope in ["resource", "total", "carried", "draining"] {
        drop(metrics.refused.get_or_create(&Scope { scope }));
    }
    for why in ["timeout", "dropped", "closing"] {
        drop(metrics.ended.get_or_create(&Why { why }));
    }
    metrics
});

pub(super) fn touch() {
    LazyLock::force(&METRICS);
}
