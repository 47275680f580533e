//! The engine: accept, dispatch and deliver (MERE); pipelines and contexts have their place here (MIPRE).
//! It decides; connectors and stores are behind the traits of [`ports`].

mod accept;
pub mod backoff;
#[cfg(feature = "break-panic")]
pub mod broken;
pub mod content;
mod control;
pub mod deliver;
pub mod directory;
pub mod fact;
pub mod gate;
pub mod judge;
pub mod ports;
mod proxy;
mod repeat;
pub mod replica;
mod rerun;
pub mod resend;
pub mod shares;
mod staging;

use crate::channel::{Channel, ChannelError, Compiled, Set};
use crate::telemetry::engine::{ChannelMetrics, retain};
use arc_swap::ArcSwap;
use deliver::RouteWorker;
use directory::Directory;
use gate::Gate;
use ports::{ChannelWork, Clock, Connectors, ControlError, Log, NotReady, Transport};
use resend::ResendWindow;
use std::{collections::HashMap, sync::Arc};

/// What the engine is joined from; see [`ports`] for who implements what.
pub struct Parts {
    pub log: Arc<dyn Log>,
    pub transport: Arc<dyn Transport>,
    pub clock: Arc<dyn Clock>,
    pub connectors: Arc<dyn Connectors>,
    pub gate: Arc<Gate>,
    pub resend: Arc<ResendWindow>,
    pub directory: Arc<Directory>,
    /// By listener name.
    pub listeners: HashMap<String, ListenerPolicy>,
    pub limits: crate::config::Limits,
    /// What else stands in the way of being ready (the store's troubles).
    pub troubles: Box<dyn Fn() -> NotReady + Send + Sync>,
    /// Where workers' connectors are made.
    pub runtime: tokio::runtime::Handle,
}

/// Who may come in by a listener.
#[derive(Clone, Debug, Default)]
pub struct ListenerPolicy {
    /// Senders without a known identity are refused.
    pub require_client: bool,
    /// The name of senders that show no credential.
    pub client: Option<Arc<str>>,
    /// The charset of HL7 messages that declare none.
    pub charset: Option<&'static encoding_rs::Encoding>,
}

/// The engine of one node.
pub struct Engine {
    parts: Parts,
    in_force: ArcSwap<InForce>,
    /// Large messages being received.
    streams: shares::Shares,
}

/// The channels in force and their ways out for proxied requests.
struct InForce {
    set: Set,
    direct: HashMap<String, Arc<proxy::Direct>>,
    metrics: HashMap<String, Arc<ChannelMetrics>>,
}

/// A set of channels that cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// Wrong in itself.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Channels(Vec<ChannelError>),
    /// A route that cannot be opened: channel, route, what is wrong.
    #[error("channel {0}, route {1}: {2}")]
    Route(String, String, String),
}

impl Engine {
    /// An engine with these channels in force; its transport is configured, nothing is launched.
    pub fn new(parts: Parts, channels: Vec<Channel>) -> Result<Arc<Self>, SetError> {
        let (in_force, workers) = Self::compile(&parts, channels)?;
        parts.transport.configure(workers);
        let streams = shares::Shares::new(parts.limits.streams);
        Ok(Arc::new(Self { parts, in_force: ArcSwap::from_pointee(in_force), streams }))
    }

    fn compile(parts: &Parts, channels: Vec<Channel>) -> Result<(InForce, Vec<ChannelWork>), SetError> {
        let set = Set::compile(channels).map_err(SetError::Channels)?;
        let mut workers = Vec::new();
        let mut direct = HashMap::new();
        let mut metrics = HashMap::new();
        let _entered = parts.runtime.enter();
        for compiled in set.iter() {
            let channel = &compiled.channel;
            let channel_metrics = ChannelMetrics::of(&channel.name);
            let mut of_channel = Vec::new();
            for route in &channel.routes {
                let wrong = |text| SetError::Route(channel.name.clone(), route.name.clone(), text);
                let open = parts.connectors.prepare(&channel.name, route).map_err(wrong)?;
                let connector = open().map_err(wrong)?;
                if route.primary {
                    let way = proxy::Direct::new(open, route.clone(), parts, channel_metrics.route(&route.name));
                    direct.insert(channel.name.clone(), Arc::new(way));
                }
                of_channel.push(Arc::new(RouteWorker {
                    channel: channel.name.as_str().into(),
                    route: route.clone(),
                    after_park: channel.after_park,
                    connector,
                    log: parts.log.clone(),
                    clock: parts.clock.clone(),
                    metrics: channel_metrics.route(&route.name),
                }));
            }
            metrics.insert(channel.name.clone(), channel_metrics);
            workers.push(ChannelWork {
                name: channel.name.clone(),
                outage: channel.outage,
                several_keys: compiled.order.may_give_several(),
                workers: of_channel,
            });
        }
        Ok((InForce { set, direct, metrics }, workers))
    }

    /// Swaps in another set of channels, whole or not at all.
    pub fn configure(&self, channels: Vec<Channel>) -> Result<(), SetError> {
        let (in_force, workers) = Self::compile(&self.parts, channels)?;
        let in_force = Arc::new(in_force);
        // First nothing new comes to what is gone, then its workers go.
        self.in_force.store(in_force.clone());
        self.parts.transport.configure(workers);
        let channels = in_force.set.iter().map(|c| &c.channel);
        retain(channels.map(|c| (c.name.as_str(), c.routes.iter().map(|r| r.name.as_str()).collect())));
        Ok(())
    }

    /// The node is about to end: it is not ready any more, what is in hand goes on.
    pub fn announce_drain(&self) {
        self.parts.gate.drain();
    }

    /// Begins no further delivery; resolves when those in hand have ended.
    pub async fn drain(&self) {
        self.announce_drain();
        self.parts.transport.drain().await;
    }
}

/// Names of a channel's routes, the primary's first: the order in which facts hold them.
fn route_names(channel: &Compiled) -> Vec<String> {
    let routes = &channel.channel.routes;
    let primary = routes.iter().filter(|r| r.primary);
    primary.chain(routes.iter().filter(|r| !r.primary)).map(|r| r.name.clone()).collect()
}

impl From<SetError> for ControlError {
    fn from(error: SetError) -> Self {
        ControlError::Conflict(error.to_string())
    }
}
