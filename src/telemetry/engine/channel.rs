//! Metrics per channel and route. Their number is bounded by the configuration: a label is a configured name, and
//! what is no longer configured is dropped by [`retain`].

use crate::{
    engine::fact::Outcome,
    telemetry::{Latency, register},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfChannel {
    channel: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    channel: String,
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfAttempt {
    channel: String,
    route: String,
    outcome: &'static str,
}

struct Families {
    accepted: Family<OfChannel, Counter>,
    resent: Family<OfChannel, Counter>,
    not_allowed: Family<OfChannel, Counter>,
    bytes: Family<OfChannel, Counter>,
    accept: Family<OfChannel, Latency>,
    delivered: Family<OfChannel, Latency>,
    attempts: Family<OfAttempt, Counter>,
    delivery: Family<OfRoute, Latency>,
    pending: Family<OfRoute, Gauge>,
    parked: Family<OfRoute, Gauge>,
    paused: Family<OfRoute, Gauge>,
    oldest: Family<OfRoute, Gauge>,
}

static FAMILIES: LazyLock<Families> = LazyLock::new(|| Families {
    accepted: register("messages_accepted", "Messages accepted durably.", Family::default()),
    resent: register("messages_resent", "Messages recognised as sent before and acknowledged again.", Family::default()),
    not_allowed: register(
        "messages_not_allowed",
        "Messages refused because their client may not use the channel.",
        Family::default(),
    ),
    bytes: register("messages_accepted_bytes", "Bytes of accepted messages.", Family::default()),
    accept: register("accept_seconds", "From a message's last byte to its acknowledgment.", Family::default()),
    delivered: register(
        "delivered_seconds",
        "Queue mode: from a message's arrival to its delivery, each route.",
        Family::default(),
    ),
    attempts: register("delivery_attempts", "Delivery attempts by how they ended.", Family::default()),
    delivery: register("delivery_seconds", "One delivery attempt, from sending to the end of the answer.", Family::default()),
    pending: register("route_pending", "Messages waiting on a route, those in delivery included.", Family::default()),
    parked: register("route_parked", "Messages set aside on a route.", Family::default()),
    paused: register("route_paused", "1 while an operator holds the route.", Family::default()),
    oldest: register(
        "route_oldest_seconds",
        "Age of the oldest message that waits on a route; 0: none waits.",
        Family::default(),
    ),
});

static KNOWN: Mutex<BTreeMap<String, Arc<ChannelMetrics>>> = Mutex::new(BTreeMap::new());

const OUTCOMES: [&str; 4] = ["delivered", "retry", "parked", "failed"];

/// One channel's metrics; held by the compiled channel.
#[derive(Debug)]
pub struct ChannelMetrics {
    name: String,
    /// Messages accepted durably.
    pub accepted: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Resends recognised.
    pub resent: Counter,
    /// Refused: client not on the channel's list.
    pub not_allowed: Counter,
    /// From a message's last byte to its acknowledgment.
    pub accept: Latency,
    /// Queue mode: from arrival to delivery, each route.
    pub delivered: Latency,
    routes: Mutex<BTreeMap<String, Arc<RouteMetrics>>>,
}

/// One route's metrics; held by the compiled route.
#[derive(Debug)]
pub struct RouteMetrics {
    channel: String,
    route: String,
    attempts: [Counter; 4],
    /// Attempts' durations.
    pub delivery: Latency,
    /// The channel's: from arrival to delivery.
    pub delivered: Latency,
    /// Messages waiting.
    pub pending: Gauge,
    /// Messages set aside.
    pub parked: Gauge,
    /// 1 while held by an operator.
    pub paused: Gauge,
    /// Age of the oldest message waiting, in seconds.
    pub oldest: Gauge,
}

impl ChannelMetrics {
    /// The metrics of a configured channel; the same ones for the same name, also after a reload.
    pub fn of(channel: &str) -> Arc<Self> {
        let mut known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(metrics) = known.get(channel) {
            return metrics.clone();
        }
        let of = OfChannel { channel: channel.into() };
        let f = &*FAMILIES;
        let metrics = Arc::new(Self {
            name: channel.into(),
            accepted: f.accepted.get_or_create_owned(&of),
            bytes: f.bytes.get_or_create_owned(&of),
            resent: f.resent.get_or_create_owned(&of),
            not_allowed: f.not_allowed.get_or_create_owned(&of),
            accept: f.accept.get_or_create_owned(&of),
            delivered: f.delivered.get_or_create_owned(&of),
            routes: Mutex::default(),
        });
        known.insert(channel.into(), metrics.clone());
        metrics
    }

    /// The metrics of one of its routes.
    pub fn route(&self, route: &str) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(metrics) = routes.get(route) {
            return metrics.clone();
        }
        let of = OfRoute { channel: self.name.clone(), route: route.into() };
        let f = &*FAMILIES;
        let metrics = Arc::new(RouteMetrics {
            attempts: OUTCOMES.map(|outcome| {
                f.attempts.get_or_create_owned(&OfAttempt { channel: self.name.clone(), route: route.into(), outcome })
            }),
            delivery: f.delivery.get_or_create_owned(&of),
            delivered: self.delivered.clone(),
            pending: f.pending.get_or_create_owned(&of),
            parked: f.parked.get_or_create_owned(&of),
            paused: f.paused.get_or_create_owned(&of),
            oldest: f.oldest.get_or_create_owned(&of),
            channel: of.channel,
            route: of.route,
        });
        routes.insert(route.into(), metrics.clone());
        metrics
    }

    /// The channel's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl RouteMetrics {
    /// The counter of attempts that ended so.
    pub fn attempts(&self, outcome: Outcome) -> &Counter {
        &self.attempts[match outcome {
            Outcome::Delivered => 0,
            Outcome::Retry => 1,
            Outcome::Parked => 2,
            Outcome::Failed => 3,
        }]
    }

    /// Full channel name.
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// Route name.
    pub fn route(&self) -> &str {
        &self.route
    }
}

/// The metrics of all channels, by name.
pub fn all() -> Vec<Arc<ChannelMetrics>> {
    KNOWN.lock().unwrap_or_else(|e| e.into_inner()).values().cloned().collect()
}

/// What was counted of a route's attempts since it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Full channel name.
    pub channel: String,
    /// Route name.
    pub route: String,
    /// Attempts.
    pub attempts: u64,
    /// Those that delivered nothing: to be retried, parked or failed.
    pub failed: u64,
}

/// Attempts of every route in force.
pub fn tried() -> Vec<Tried> {
    let known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    let mut all = Vec::new();
    for metrics in known.values() {
        let routes = metrics.routes.lock().unwrap_or_else(|e| e.into_inner());
        all.extend(routes.values().map(|route| {
            let failed = route.attempts[1..].iter().map(Counter::get).sum();
            let attempts = route.attempts[0].get() + failed;
            Tried { channel: route.channel.clone(), route: route.route.clone(), attempts, failed }
        }));
    }
    all
}

/// Messages that came to every channel in force, resends included, by its name.
pub fn arrived() -> BTreeMap<String, u64> {
    let known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    known.iter().map(|(name, m)| (name.clone(), m.accepted.get() + m.resent.get())).collect()
}

/// Drops the metrics of channels and routes that are configured no more. Called when channels were swapped, with every
/// channel still in force and the names of its routes.
pub fn retain<'a>(channels: impl IntoIterator<Item = (&'a str, Vec<&'a str>)>) {
    let keep: BTreeMap<&str, Vec<&str>> = channels.into_iter().collect();
    let mut known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    known.retain(|name, metrics| {
        let routes = keep.get(name.as_str());
        let mut have = metrics.routes.lock().unwrap_or_else(|e| e.into_inner());
        have.retain(|route, _| {
            let stays = routes.is_some_and(|r| r.contains(&route.as_str()));
            if !stays {
                forget_route(name, route);
            }
            stays
        });
        if routes.is_none() {
            forget_channel(name);
        }
        routes.is_some()
    });
}

fn forget_channel(name: &str) {
    let of = OfChannel { channel: name.into() };
    let f = &*FAMILIES;
    for family in [&f.accepted, &f.bytes, &f.resent, &f.not_allowed] {
        family.remove(&of);
    }
    f.accept.remove(&of);
    f.delivered.remove(&of);
}

fn forget_route(channel: &str, route: &str) {
    let of = OfRoute { channel: channel.into(), route: route.into() };
    let f = &*FAMILIES;
    for outcome in OUTCOMES {
        f.attempts.remove(&OfAttempt { channel: channel.into(), route: route.into(), outcome });
    }
    f.delivery.remove(&of);
    for family in [&f.pending, &f.parked, &f.paused, &f.oldest] {
        family.remove(&of);
    }
}

pub(super) fn touch() {
    LazyLock::force(&FAMILIES);
}
