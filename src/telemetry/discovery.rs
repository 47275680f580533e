//! Events of discovery. A state is told when it changes, not while it lasts; failures in between are counted.

use super::register;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::{sync::LazyLock, time::Duration};

/// The agent has the node as it should be.
pub struct Registered<'a> {
    /// Ports registered.
    pub instances: usize,
    pub service: &'static str,
    /// Listeners that are not, and why.
    pub left_out: &'a str,
}

impl Registered<'_> {
    /// Writes it.
    pub fn emit(self) {
        let left_out = Some(self.left_out).filter(|l| !l.is_empty());
        tracing::info!(instances = self.instances, service = self.service, left_out, "registered with Consul");
    }
}

/// The agent is away, refuses, finds the node unhealthy, or has somebody else under this name.
pub struct NotRegistered<'a> {
    /// What is wrong and what to do.
    pub error: &'a str,
}

impl NotRegistered<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::warn!(error = self.error, "not in Consul's names; the node goes on and tries again");
    }
}

/// The agent had forgotten the node, which is registered again.
pub struct Lost {
    /// Ports registered again.
    pub instances: usize,
}

impl Lost {
    /// Writes it.
    pub fn emit(self) {
        tracing::warn!(instances = self.instances, "Consul's agent had lost the node: registered again");
    }
}

/// A draining node has left the names, or could not.
pub struct Withdrawn {
    /// The names hold it no more.
    pub done: bool,
    /// How long it goes on serving.
    pub serving: Duration,
}

impl Withdrawn {
    /// Writes it.
    pub fn emit(self) {
        let serving_ms = self.serving.as_millis() as u64;
        match self.done {
            true => tracing::info!(serving_ms, "out of Consul's names; serving those who still come"),
            false => {
                tracing::warn!(serving_ms, "Consul's agent does not take the node out of the names; serving on for the same time")
            }
        }
    }
}

/// Nothing of the node is registered any more.
pub struct Left {
    /// Ports that were.
    pub instances: usize,
}

impl Left {
    /// Writes it.
    pub fn emit(self) {
        tracing::info!(instances = self.instances, "deregistered from Consul");
    }
}

/// What is registered stays until the agent finds out by itself.
pub struct NotLeft<'a> {
    /// What is wrong.
    pub error: &'a str,
}

impl NotLeft<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::warn!(error = self.error, "not deregistered from Consul; its checks fail from now on");
    }
}

/// The KV's channels arrive.
pub struct Following<'a> {
    /// Of their keys.
    pub prefix: &'a str,
}

impl Following<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::info!(prefix = self.prefix, "following channels in Consul");
    }
}

/// They do not; those in force stay.
pub struct NotFollowing<'a> {
    /// What is wrong and what to do.
    pub error: &'a str,
}

impl NotFollowing<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::warn!(error = self.error, "channels in Consul cannot be read; those in force stay");
    }
}

/// The KV's channels are in force.
pub struct ChannelsTaken {
    /// How many of the channels in force are the KV's.
    pub shared: usize,
    /// Channels in force.
    pub channels: usize,
}

impl ChannelsTaken {
    /// Writes it.
    pub fn emit(self) {
        tracing::info!(shared = self.shared, channels = self.channels, "channels from Consul are in force");
    }
}

/// The KV's channels hold a mistake.
pub struct ChannelsRefused<'a> {
    /// All mistakes, with their keys.
    pub error: &'a str,
}

impl ChannelsRefused<'_> {
    /// Writes and counts it.
    pub fn emit(self) {
        METRICS.refusals.inc();
        tracing::error!(error = self.error, "channels in Consul refused, the last good ones stay; mend the key");
    }
}

/// The KV's channels are in force, and will not be after a restart without Consul.
pub struct ChannelsNotKept<'a> {
    /// What is wrong.
    pub error: &'a str,
}

impl ChannelsNotKept<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::error!(error = self.error, "channels from Consul are not kept in the store: look at its disk");
    }
}

/// Is the node registered and findable?
pub fn registered(yes: bool) {
    METRICS.registered.set(i64::from(yes));
}

/// So many ports were registered, or registered again.
pub fn put(instances: u64) {
    METRICS.registrations.inc_by(instances);
}

/// Something asked of the agent failed: `work` is `registration` or `channels`, `kind` one of a fixed set.
pub fn failed(work: &'static str, kind: &'static str) {
    METRICS.failures.get_or_create(&Failure { work, kind }).inc();
}

/// Channels of the KV in force, and whether what stands there now is refused.
pub fn channels(shared: usize, refused: bool) {
    METRICS.channels.set(i64::try_from(shared).unwrap_or(i64::MAX));
    METRICS.refused.set(i64::from(refused));
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    work: &'static str,
    kind: &'static str,
}

struct Metrics {
    registered: Gauge,
    registrations: Counter,
    failures: Family<Failure, Counter>,
    channels: Gauge,
    refused: Gauge,
    refusals: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    registered: register(
        "discovery_registered",
        "1 while Consul's agent has the node as it should be, and healthy.",
        Gauge::default(),
    ),
    registrations: register(
        "discovery_registrations",
        "Ports registered with Consul, again or for the first time.",
        Counter::default(),
    ),
    failures: register("discovery_failures", "Requests to Consul's agent that failed, by work and kind.", Family::default()),
    channels: register("discovery_channels", "Channels in force that come from Consul.", Gauge::default()),
    refused: register(
        "discovery_channels_refused",
        "1 while the channels in Consul hold a mistake and older ones are in force.",
        Gauge::default(),
    ),
    refusals: register("discovery_channel_refusals", "Changes of the channels in Consul that were refused.", Counter::default()),
});

pub(super) fn touch() {
    LazyLock::force(&METRICS);
}
