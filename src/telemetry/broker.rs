//! What the link with the message brokers tells.

use super::register;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

fn counter(name: &str, help: &str) -> Counter {
    register(name, help, Counter::default())
}

static UP: LazyLock<Gauge> =
    LazyLock::new(|| register("broker_up", "1 while a broker is connected and takes messages", Gauge::default()));
static SINCE: LazyLock<Gauge> =
    LazyLock::new(|| register("broker_since_seconds", "Time (Unix) since which brokers are up or away", Gauge::default()));
static CONNECTS: LazyLock<Counter> = LazyLock::new(|| counter("broker_connects", "Connections with brokers that were made"));
static FAILURES: LazyLock<Counter> =
    LazyLock::new(|| counter("broker_connect_failures", "Attempts to connect with a broker that failed"));
static LOSSES: LazyLock<Counter> = LazyLock::new(|| counter("broker_losses", "Connections with brokers that were lost"));
static BLOCKED: LazyLock<Counter> =
    LazyLock::new(|| counter("broker_blocked", "Times that a broker took no more messages for want of memory or disk"));
static PUBLISHED: LazyLock<Counter> =
    LazyLock::new(|| counter("broker_published", "Messages handed to brokers, repeats included"));
static CONFIRMED: LazyLock<Counter> = LazyLock::new(|| counter("broker_confirmed", "Messages that brokers confirmed as stored"));
static REPUBLISHED: LazyLock<Counter> =
    LazyLock::new(|| counter("broker_republished", "Messages handed to a broker again for want of a confirm"));
static REJECTED: LazyLock<Counter> =
    LazyLock::new(|| counter("broker_rejected", "Messages that a broker refused: the queue is full, or has no majority"));
static UNROUTABLE: LazyLock<Counter> = LazyLock::new(|| counter("broker_unroutable", "Messages that found no queue"));
static GIVEN_UP: LazyLock<Counter> =
    LazyLock::new(|| counter("broker_given_up", "Messages that were not confirmed in the time their senders wait"));
static REOPENED: LazyLock<Counter> =
    LazyLock::new(|| counter("broker_channels_reopened", "Publishing channels replaced for want of confirms or after an error"));
static CONFIRM_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let buckets = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
    register("broker_confirm_seconds", "From handing a message to the link to the broker's confirm", Histogram::new(buckets))
});

/// Registers the metrics that nothing has touched yet: alert rules refer to them.
pub fn touch() {
    for gauge in [&UP, &SINCE] {
        LazyLock::force(gauge);
    }
    for counter in [
        &CONNECTS,
        &FAILURES,
        &LOSSES,
        &BLOCKED,
        &PUBLISHED,
        &CONFIRMED,
        &REPUBLISHED,
        &REJECTED,
        &UNROUTABLE,
        &GIVEN_UP,
        &REOPENED,
    ] {
        LazyLock::force(counter);
    }
    LazyLock::force(&CONFIRM_SECONDS);
}

fn up(up: bool) {
    UP.set(up.into());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    SINCE.set(i64::try_from(now).unwrap_or(i64::MAX));
}

/// A broker is connected.
pub struct BrokerUp<'a> {
    /// `host:port`.
    pub broker: &'a str,
    pub release: &'a str,
    pub away_ms: u64,
}

impl BrokerUp<'_> {
    pub fn emit(self) {
        CONNECTS.inc();
        up(true);
        tracing::info!(broker = self.broker, release = self.release, away_ms = self.away_ms, "broker connected");
    }
}

/// No broker is connected any more, or none yet.
pub struct BrokerAway<'a> {
    pub error: &'a str,
    /// It was connected before.
    pub lost: bool,
}

impl BrokerAway<'_> {
    pub fn emit(self) {
        if self.lost {
            LOSSES.inc();
        }
        up(false);
        tracing::error!(error = self.error, "no broker");
    }
}

/// An attempt to connect failed. Metric, and a line where the cause is not the one of before.
pub struct ConnectFailed<'a> {
    pub error: &'a str,
    pub new: bool,
}

impl ConnectFailed<'_> {
    pub fn emit(self) {
        FAILURES.inc();
        if self.new {
            tracing::error!(error = self.error, "no broker");
        }
    }
}

/// The broker takes no messages.
pub struct BrokerBlocked<'a> {
    pub error: &'a str,
}

impl BrokerBlocked<'_> {
    pub fn emit(self) {
        BLOCKED.inc();
        up(false);
        tracing::error!(error = self.error, "the broker takes no messages");
    }
}

/// The broker takes messages again.
pub struct BrokerUnblocked<'a> {
    pub broker: &'a str,
}

impl BrokerUnblocked<'_> {
    pub fn emit(self) {
        up(true);
        tracing::info!(broker = self.broker, "the broker takes messages again");
    }
}

/// The node itself ended the connection.
pub struct BrokerClosed;

impl BrokerClosed {
    pub fn emit(self) {
        up(false);
        tracing::info!("connection with the broker closed");
    }
}

/// Publishes of a batch. Metric only.
pub struct Published {
    pub count: u64,
    /// Of them those that were published before.
    pub again: u64,
}

impl Published {
    pub fn emit(self) {
        PUBLISHED.inc_by(self.count);
        REPUBLISHED.inc_by(self.again);
    }
}

/// How a publish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishEnd {
    Confirmed,
    Rejected,
    Unroutable,
    GivenUp,
}

impl PublishEnd {
    /// Counts it; `took` from the call on. Metric only.
    pub fn emit(self, took: Duration) {
        match self {
            Self::Confirmed => {
                CONFIRMED.inc();
                CONFIRM_SECONDS.observe(took.as_secs_f64());
            }
            Self::Rejected => drop(REJECTED.inc()),
            Self::Unroutable => drop(UNROUTABLE.inc()),
            Self::GivenUp => drop(GIVEN_UP.inc()),
        }
    }
}

/// A publishing channel is replaced. Metric, and a line when the broker said why.
pub struct ChannelReopened<'a> {
    pub publisher: &'a str,
    pub waiting: usize,
    pub error: Option<&'a str>,
}

impl ChannelReopened<'_> {
    pub fn emit(self) {
        REOPENED.inc();
        if let Some(error) = self.error {
            tracing::warn!(publisher = self.publisher, waiting = self.waiting, error, "publishing again on a fresh channel");
        }
    }
}
