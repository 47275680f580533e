//! What the outbound gateways tell. Exchanges are counted only (too many for a log); a target that is left out, and its
//! return, is a log line.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};
use std::{sync::LazyLock, time::Duration};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabels {
    channel: String,
    route: String,
    target: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExchangeLabels {
    channel: String,
    route: String,
    target: String,
    result: &'static str,
}

/// How an exchange with a receiver ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// With an answer, whatever it says.
    Answered,
    /// Nothing was sent.
    NotSent,
    /// Sent, then broken.
    Broken,
    /// Sent, no answer in time.
    Timeout,
}

static EXCHANGES: LazyLock<Family<ExchangeLabels, Counter>> =
    LazyLock::new(|| super::register("outbound_exchanges", "Exchanges with receivers by how they ended", Family::default()));
type Seconds = Family<TargetLabels, Histogram, fn() -> Histogram>;

static SECONDS: LazyLock<Seconds> = LazyLock::new(|| {
    let family = Family::new_with_constructor(histogram as fn() -> Histogram);
    super::register("outbound_exchange_seconds", "From sending to the head of the answer", family)
});

fn histogram() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

static CONNECTIONS: LazyLock<Family<TargetLabels, Counter>> =
    LazyLock::new(|| super::register("outbound_connections_opened", "MLLP connections opened to receivers", Family::default()));
static EJECTIONS: LazyLock<Family<TargetLabels, Counter>> = LazyLock::new(|| {
    super::register("outbound_target_ejections", "Times a target was left out after failures in a row", Family::default())
});

/// One target's metrics, found once: an exchange only touches atomics.
pub struct TargetMetrics {
    /// In the order of [`Exchange`]'s variants.
    results: [Counter; 4],
    seconds: Histogram,
    connections: Counter,
    ejections: Counter,
}

impl TargetMetrics {
    /// `channel` is the full name; `target` has neither credentials nor a query.
    pub fn new(channel: &str, route: &str, target: &str) -> Self {
        let labels = TargetLabels { channel: channel.into(), route: route.into(), target: target.into() };
        let result = |result| {
            let TargetLabels { channel, route, target } = labels.clone();
            EXCHANGES.get_or_create(&ExchangeLabels { channel, route, target, result }).clone()
        };
        Self {
            results: ["answered", "not_sent", "broken", "timeout"].map(result),
            seconds: SECONDS.get_or_create(&labels).clone(),
            connections: CONNECTIONS.get_or_create(&labels).clone(),
            ejections: EJECTIONS.get_or_create(&labels).clone(),
        }
    }

    /// An exchange ended.
    pub fn exchange(&self, how: Exchange, took: Duration) {
        self.results[how as usize].inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// A connection was opened.
    pub fn connection_opened(&self) {
        self.connections.inc();
    }

    /// The target was left out.
    pub fn ejected(&self) {
        self.ejections.inc();
    }
}

/// A target is left out for a while (its metric: [`TargetMetrics::ejected`]).
pub struct TargetEjected<'a> {
    pub channel: &'a str,
    pub route: &'a str,
    pub target: &'a str,
    pub failures: u32,
    pub for_secs: f64,
}

impl TargetEjected<'_> {
    /// Writes the log line.
    pub fn emit(&self) {
        let Self { channel, route, target, failures, for_secs } = self;
        tracing::warn!(channel, route, target, failures, for_secs, "target left out after failures in a row");
    }
}

/// A target that had been left out answered again.
pub struct TargetReturned<'a> {
    pub channel: &'a str,
    pub route: &'a str,
    pub target: &'a str,
}

impl TargetReturned<'_> {
    /// Writes the log line.
    pub fn emit(&self) {
        let Self { channel, route, target } = self;
        tracing::info!(channel, route, target, "target answers again");
    }
}
