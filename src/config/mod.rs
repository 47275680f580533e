//! Configuration: built in < preset < file < `HIE_*` environment < flags. One small file per section.
//!
//! Every key of `hie.toml` is also `HIE_SECTION__KEY` in the environment. [`load`] reads the layers,
//! [`parse`] one text alone; both tell every mistake at once, each with its place.

mod admin;
mod alerts;
pub mod channels;
mod check;
mod check_alerts;
mod check_discovery;
mod check_peers;
mod check_transport;
pub mod client_tls;
pub mod clients;
mod discovery;
mod error;
mod feed;
mod file;
mod http;
mod layer;
mod layout;
mod ledger;
mod limits;
mod load;
mod mllp;
mod nearest;
mod node;
mod origins;
mod peers;
mod preset;
pub mod secret;
mod text;
mod tls;
mod transport;
mod variables;

#[cfg(test)]
mod tests;

pub use self::channels::{Channels, SharedChannel};
pub use admin::{Admin, Health};
pub use alerts::{Alerts, Mail, MailTls, Webhook};
pub use check_peers::SHORTEST_SECRET;
pub use discovery::Discovery;
pub use error::{ConfigError, Problem};
pub use feed::Feed;
pub use file::WatchedFolder;
pub use http::Http;
pub use layout::{Layout, MOST_PARTITIONS, Past};
pub use ledger::Ledger;
pub use limits::Limits;
pub use load::{Flag, Loaded, load, parse};
pub use mllp::Mllp;
pub use node::{Cluster, Node};
pub use origins::{Origin, Origins, Row};
pub use peers::Peers;
pub use tls::ServerTls;
pub use transport::{BrokerUrl, Transport, TransportKind};

use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Everything `hie.toml` may hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub node: Node,
    pub http: Http,
    /// One listener with the defaults unless given.
    pub mllp: Vec<Mllp>,
    pub file: Vec<WatchedFolder>,
    pub admin: Admin,
    pub health: Health,
    pub feed: Feed,
    pub alerts: Alerts,
    pub discovery: Discovery,
    pub ledger: Ledger,
    pub limits: Limits,
    pub transport: Transport,
    pub peers: Peers,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: Node::default(),
            http: Http::default(),
            mllp: vec![Mllp::default()],
            file: vec![],
            admin: Admin::default(),
            health: Health::default(),
            feed: Feed::default(),
            alerts: Alerts::default(),
            discovery: Discovery::default(),
            ledger: Ledger::default(),
            limits: Limits::default(),
            transport: Transport::default(),
            peers: Peers::default(),
        }
    }
}

impl Config {
    /// The configuration of a node that was given none: embedded, on loopback, everything it keeps below `store`.
    pub fn sample(store: &Path) -> Self {
        let mut config = Self::default();
        config.node.store = store.to_owned();
        config.node.channels = store.join("channels.d");
        config.node.clients = store.join("clients.d");
        config
    }

    /// Every address that is listened on, with the listener's name: `http`, `https` (with TLS), `mllp:NAME`, `admin`, `health`.
    pub fn listeners(&self) -> Vec<(String, SocketAddr)> {
        let mut all: Vec<(String, SocketAddr)> = self.http.listen.map(|a| ("http".into(), a)).into_iter().collect();
        all.extend(self.http.tls.as_ref().and(self.http.tls_listen).map(|a| ("https".into(), a)));
        all.extend(self.mllp.iter().map(|m| (format!("mllp:{}", m.name), m.listen)));
        all.push(("admin".into(), self.admin.listen));
        all.push(("health".into(), self.health.listen));
        all
    }

    /// File of the admin token: as configured, or `<store>/admin-token`.
    pub fn admin_token_file(&self) -> PathBuf {
        self.admin.token_file.clone().unwrap_or_else(|| self.node.store.join("admin-token"))
    }
}
