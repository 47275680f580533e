//! The engine's events.

use super::{ChannelMetrics, RouteMetrics};
use crate::{
    engine::{fact::Outcome, ports::Refusal},
    message::MessageId,
    telemetry::register,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::{sync::LazyLock, time::Duration};

/// A message was accepted durably. Metric only.
pub struct Accepted<'a> {
    /// The channel that took it.
    pub channel: &'a ChannelMetrics,
    /// Bytes of its body.
    pub bytes: u64,
    /// From its last byte until it may be acknowledged.
    pub took: Duration,
}

impl Accepted<'_> {
    /// Counts it.
    pub fn emit(self) {
        self.channel.accepted.inc();
        self.channel.bytes.inc_by(self.bytes);
        self.channel.accept.observe(self.took);
    }
}

/// A resend was recognised and acknowledged again. Metric only.
pub struct Resent<'a> {
    /// The channel that took the first one.
    pub channel: &'a ChannelMetrics,
}

impl Resent<'_> {
    /// Counts it.
    pub fn emit(self) {
        self.channel.resent.inc();
    }
}

/// A message was not accepted. Metric only: refusals may come as fast as messages do.
pub struct Refused<'a> {
    /// Why.
    pub refusal: &'a Refusal,
    /// The channel whose rule held, where one did.
    pub channel: Option<&'a ChannelMetrics>,
}

impl Refused<'_> {
    /// Counts it.
    pub fn emit(self) {
        let i = class(self.refusal);
        METRICS.refused[i].inc();
        if let (Refusal::NotAllowed, Some(channel)) = (self.refusal, self.channel) {
            channel.not_allowed.inc();
        }
    }
}

/// The classes of refusal, as the metric's label names them.
const CLASSES: [&str; 12] = [
    "unreadable",
    "no-channel",
    "not-allowed",
    "too-large",
    "rate",
    "busy",
    "store",
    "upstream",
    "upstream-timeout",
    "aborted",
    "too-slow",
    "unsendable",
];

fn class(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::Unreadable(_) => 0,
        Refusal::NoChannel => 1,
        Refusal::NotAllowed => 2,
        Refusal::TooLarge { .. } => 3,
        Refusal::RateLimited { .. } => 4,
        Refusal::Busy(..) => 5,
        Refusal::Store => 6,
        Refusal::Upstream(_) => 7,
        Refusal::UpstreamTimeout => 8,
        Refusal::Aborted => 9,
        Refusal::TooSlow => 10,
        Refusal::Unsendable(_) => 11,
    }
}

/// A delivery attempt ended. Metric only.
pub struct Attempt<'a> {
    /// The route.
    pub route: &'a RouteMetrics,
    /// How.
    pub outcome: Outcome,
    /// From sending to the end of the answer.
    pub took: Duration,
    /// Queue mode: from the message's arrival to now.
    pub age: Option<Duration>,
}

impl Attempt<'_> {
    /// Counts it.
    pub fn emit(self) {
        self.route.attempts(self.outcome).inc();
        self.route.delivery.observe(self.took);
        if let Some(age) = self.age.filter(|_| self.outcome == Outcome::Delivered) {
            self.route.delivered.observe(age);
        }
    }
}

/// A message was set aside on a route and waits for an operator.
pub struct Parked<'a> {
    /// The route.
    pub route: &'a RouteMetrics,
    /// The transaction.
    pub id: MessageId,
    /// Why: fixed text plus addresses.
    pub reason: &'a str,
}

impl Parked<'_> {
    /// Writes it; the counter is that of attempts that ended parked.
    pub fn emit(self) {
        METRICS.parked.inc();
        tracing::warn!(
            channel = self.route.channel(),
            route = self.route.route(),
            id = %self.id,
            reason = self.reason,
            "parked; see `hie tx show`, then rerun or discard it"
        );
    }
}

/// An operator paused a route, or the configuration starts it paused.
pub struct RoutePaused<'a> {
    /// The route.
    pub route: &'a RouteMetrics,
}

impl RoutePaused<'_> {
    /// Writes it.
    pub fn emit(self) {
        self.route.paused.set(1);
        tracing::info!(channel = self.route.channel(), route = self.route.route(), "route paused");
    }
}

/// An operator let a route go on.
pub struct RouteResumed<'a> {
    /// The route.
    pub route: &'a RouteMetrics,
}

impl RouteResumed<'_> {
    /// Writes it.
    pub fn emit(self) {
        self.route.paused.set(0);
        tracing::info!(channel = self.route.channel(), route = self.route.route(), "route resumed");
    }
}

/// The node began or ended pushing back: senders are slowed or told to come again.
pub struct PushBack {
    /// Begins or ends.
    pub on: bool,
    /// Which limit.
    pub limit: &'static str,
    /// Messages pending now.
    pub pending: u64,
}

impl PushBack {
    /// Writes it; call it on a change only.
    pub fn emit(self) {
        METRICS.push_back.set(i64::from(self.on));
        if self.on {
            METRICS.push_backs.inc();
            tracing::warn!(limit = self.limit, pending = self.pending, "limit reached: pushing back");
        } else {
            tracing::warn!(limit = self.limit, pending = self.pending, "below the limit again: accepting");
        }
    }
}

/// Accepted and unfinished messages now. Metric only.
pub struct Pending {
    /// How many.
    pub messages: u64,
}

impl Pending {
    /// Sets the gauge.
    pub fn emit(self) {
        METRICS.pending.set(i64::try_from(self.messages).unwrap_or(i64::MAX));
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

struct Metrics {
    refused: [Counter; CLASSES.len()],
    parked: Counter,
    push_back: Gauge,
    push_backs: Counter,
    pending: Gauge,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let refused: Family<Reason, Counter> = register("messages_refused", "Messages not accepted, by reason.", Family::default());
    Metrics {
        refused: CLASSES.map(|reason| refused.get_or_create_owned(&Reason { reason })),
        parked: register("messages_parked", "Deliveries set aside for an operator.", Counter::default()),
        push_back: register("push_back", "1 while the node pushes back.", Gauge::default()),
        push_backs: register("push_backs", "How often the node began to push back.", Counter::default()),
        pending: register("messages_pending", "Accepted and unfinished messages.", Gauge::default()),
    }
});

pub(super) fn touch() {
    LazyLock::force(&METRICS);
}
