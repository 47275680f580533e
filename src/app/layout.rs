//! The domain's layout: from Consul's KV to the transport, and kept in the store, so that a restart needs no Consul.

use super::keep;
use crate::{
    config::{Config, Layout},
    discovery::{Discovery, FollowLayout},
    telemetry::cluster as events,
    transport::rabbitmq::{LayoutKeeper, rabbit::Rabbit},
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, Weak},
};

const NAME: &str = "layout.json";

/// The file. Fields that a later release adds are passed over.
#[derive(Serialize, Deserialize)]
struct Content {
    /// Of the domain whose layout this is.
    domain: String,
    layout: Layout,
}

/// The layout that is kept in the store, or the one that the configuration begins with. The error is for the operator.
pub(super) fn kept(config: &Config) -> Result<Layout, String> {
    let path = config.node.store.join(NAME);
    let first = Layout::first(config.transport.partitions);
    let text = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(first),
        text => text.map_err(|e| format!("{}: cannot be read: {e}", path.display()))?,
    };
    let content: Content = serde_json::from_slice(&text)
        .map_err(|e| format!("{}: {e}; move it away: the other nodes tell the domain's layout", path.display()))?;
    // A node that was given to another domain begins with that one's.
    Ok(if content.domain == config.node.domain { content.layout } else { first })
}

/// See the module.
pub(super) struct LayoutPlace {
    store: PathBuf,
    domain: String,
    transport: OnceLock<Weak<Rabbit>>,
    discovery: OnceLock<Weak<Discovery>>,
    /// Why what stands in the KV is not followed.
    problem: Mutex<Option<String>>,
}

impl LayoutPlace {
    pub fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            store: config.node.store.clone(),
            domain: config.node.domain.clone(),
            transport: OnceLock::new(),
            discovery: OnceLock::new(),
            problem: Mutex::default(),
        })
    }

    /// Who follows it; known only after it was made with this.
    pub fn joined(&self, transport: &Arc<Rabbit>) {
        let _ = self.transport.set(Arc::downgrade(transport));
    }

    /// Who reads and writes the KV.
    pub fn found(&self, discovery: &Arc<Discovery>) {
        let _ = self.discovery.set(Arc::downgrade(discovery));
    }

    /// Why what stands in the KV is not followed.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn transport(&self) -> Option<Arc<Rabbit>> {
        self.transport.get().and_then(Weak::upgrade)
    }
}

impl LayoutKeeper for LayoutPlace {
    fn keep(&self, layout: &Layout) -> Result<(), String> {
        let content = Content { domain: self.domain.clone(), layout: *layout };
        let text = serde_json::to_vec_pretty(&content).map_err(|e| format!("{NAME} cannot be written: {e}"))?;
        keep::replace(&self.store, NAME, &text)
    }

    fn replace(&self, from: Layout, to: Layout) {
        if let Some(discovery) = self.discovery.get().and_then(Weak::upgrade) {
            discovery.replace_layout(from, to);
        }
    }
}

impl FollowLayout for LayoutPlace {
    fn take(&self, layout: Result<Layout, String>) {
        let Some(transport) = self.transport() else { return };
        if let (Ok(told), Some(discovery)) = (&layout, self.discovery.get().and_then(Weak::upgrade))
            && transport.layout().is_newer(told)
        {
            // Consul has lost something: what the nodes follow counts.
            discovery.replace_layout(*told, transport.layout());
        }
        let error = layout.and_then(|layout| transport.take_layout(layout)).err();
        let mut problem = self.problem.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(error) = error.as_ref().filter(|error| problem.as_ref() != Some(error)) {
            events::LayoutProblem { error }.emit();
        }
        *problem = error;
    }

    fn absent(&self) -> Option<Layout> {
        self.transport().map(|transport| transport.layout())
    }
}
