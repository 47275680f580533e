//! Discovery joined with the node: which ports are told, whose channels are followed, and what operators see of it and of the transport.

use super::{carrier::Carrier, shared::Sources};
use crate::{
    admin::Cluster,
    config::Config,
    discovery::{Discovery, Node, Parts, Port},
    host::listeners::Listeners,
};
use anyhow::Context;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How long something is wrong before it is worth an alert.
const LASTING: Duration = Duration::from_secs(60);

/// Starts discovery, where the configuration names an agent.
pub(super) fn start(
    config: &Config,
    listeners: &Listeners,
    sources: &Arc<Sources>,
    carrier: &Carrier,
) -> anyhow::Result<Option<Arc<Discovery>>> {
    if !config.discovery.on() {
        return Ok(None);
    }
    let parts = Parts {
        config: config.discovery.clone(),
        node: Node {
            name: config.node.name.clone(),
            domain: config.node.domain.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            process: format!("{:016x}", rand::random::<u64>()),
        },
        ports: ports(config, listeners),
        health: listeners.address("health").unwrap_or(config.health.listen),
        follow: config.discovery.follows_channels().then(|| sources.clone() as _),
        layout: carrier.layout().map(|place| place as _),
    };
    let discovery = Arc::new(Discovery::start(parts).context("discovery cannot be started")?);
    if let Some(place) = carrier.layout() {
        place.found(&discovery);
    }
    discovery.settle();
    Ok(Some(discovery))
}

/// Every port but health, where it really listens.
fn ports(config: &Config, listeners: &Listeners) -> Vec<Port> {
    let mllp = |name: &str| config.mllp.iter().find(|m| m.name == name);
    let port = |(name, configured): (String, _)| {
        let address = listeners.address(&name).unwrap_or(configured);
        let (listener, protocol) = match name.split_once(':') {
            Some((_, listener)) => (listener, if mllp(listener)?.tls.is_some() { "mllps" } else { "mllp" }),
            None => (name.as_str(), ["http", "https", "admin"].into_iter().find(|p| *p == name)?),
        };
        Some(Port { listener: listener.to_owned(), protocol, address })
    };
    config.listeners().into_iter().filter_map(port).collect()
}

/// What the management API shows of it.
pub(super) struct View {
    discovery: Option<Arc<Discovery>>,
    sources: Arc<Sources>,
    carrier: Carrier,
    node: String,
    domain: String,
    joined: Value,
}

impl View {
    /// `joined`: what became of copying a peer's ledger at this start.
    pub fn new(
        config: &Config,
        discovery: &Option<Arc<Discovery>>,
        sources: &Arc<Sources>,
        carrier: &Carrier,
        joined: Value,
    ) -> Self {
        let (node, domain) = (config.node.name.clone(), config.node.domain.clone());
        Self { discovery: discovery.clone(), sources: sources.clone(), carrier: carrier.clone(), node, domain, joined }
    }
}

impl View {
    /// Problems that are worth an alert: an agent that restarts is none.
    pub fn lasting_problems(&self) -> usize {
        let carrier = self.carrier.lasting_problems(LASTING);
        let Some(discovery) = &self.discovery else { return carrier };
        let links = [discovery.registration(), discovery.channels()];
        let lasting = links.iter().filter(|link| !link.error.is_empty() && link.lasted() >= LASTING).count();
        carrier + lasting + usize::from(self.sources.problem().is_some())
    }
}

impl Cluster for View {
    fn view(&self) -> BoxFuture<'static, Value> {
        let (discovery, sources) = (self.discovery.clone(), self.sources.clone());
        let (node, domain, carrier) = (self.node.clone(), self.domain.clone(), self.carrier.clone());
        let joined = self.joined.clone();
        Box::pin(async move {
            let Some(discovery) = discovery else {
                return json!({
                    "discovery": "off", "node": node, "domain": domain, "members": [], "joined": joined, "transport": carrier.view()
                });
            };
            let (members, error) = match discovery.members().await {
                Ok(members) => (members, None),
                Err(error) => (Vec::new(), Some(error.to_string())),
            };
            let mut channels = sources.view();
            merge(&mut channels, &discovery.channels());
            let plan = discovery.plan();
            let mut registration = json!({ "instances": plan.instances, "left_out": plan.left_out });
            merge(&mut registration, &discovery.registration());
            json!({
                "discovery": "consul",
                "node": node,
                "domain": domain,
                "registration": registration,
                "channels": channels,
                "members": members,
                "members_error": error,
                "joined": joined,
                "transport": carrier.view(),
            })
        })
    }

    fn problems(&self) -> Vec<String> {
        let mut carrier = self.carrier.problems();
        carrier.extend(self.joined["problem"].as_str().map(str::to_owned));
        let Some(discovery) = &self.discovery else { return carrier };
        let links = [discovery.registration(), discovery.channels()];
        let mut problems: Vec<String> = links.into_iter().map(|link| link.error).filter(|e| !e.is_empty()).collect();
        // One cause is often that of both.
        problems.dedup();
        problems.extend(self.sources.problem());
        problems.extend(carrier);
        problems
    }

    fn incomplete(&self) -> Option<&'static str> {
        self.carrier.incomplete()
    }

    fn shared_channels(&self) -> BTreeMap<String, String> {
        self.sources.shared()
    }
}

/// Adds the fields of a link.
fn merge(into: &mut Value, link: &crate::discovery::Link) {
    if let (Some(into), Ok(Value::Object(link))) = (into.as_object_mut(), serde_json::to_value(link)) {
        into.extend(link);
    }
}
