//! `[discovery]`: the Consul agent that names this node to others.

use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::PathBuf, time::Duration};

/// `[discovery]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Discovery {
    /// URL of the Consul agent on this machine, `http://127.0.0.1:8500`; empty (default): no discovery.
    pub consul: String,
    /// File of the agent's ACL token, or `credential:NAME` for one that systemd hands over. Read again when it changes.
    pub token_file: Option<PathBuf>,
    /// Authorities for an https agent, PEM. Default: the public ones.
    pub ca: Option<PathBuf>,
    /// Certificate shown to an https agent, PEM. Default: none.
    pub cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
    /// Longest wait for an answer of the agent. Default 2 s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Address under which others reach this node. Default: the listener's own, or the agent's where a listener takes any.
    pub address: Option<IpAddr>,
    /// Share of the load in SRV records and balancers. Default 10.
    pub weight: usize,
    /// Time between the agent's looks at `/health/ready`. Default 1 s.
    #[serde(with = "humantime_serde")]
    pub check_interval: Duration,
    /// How long such a look may take. Default 800 ms.
    #[serde(with = "humantime_serde")]
    pub check_timeout: Duration,
    /// Looks in a row that must fail before the node leaves the names. Default 2.
    pub check_failures: usize,
    /// The node leaves the names when it has not given a sign of life for so long. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// The agent forgets a node that was not healthy for so long. Default 10 min.
    #[serde(with = "humantime_serde")]
    pub forget_after: Duration,
    /// How long a draining node goes on serving after it left the names. Default 5 s.
    #[serde(with = "humantime_serde")]
    pub dns_ttl: Duration,
    /// Follow the domain's channels in Consul's KV. Default true.
    pub channels: bool,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            consul: String::new(),
            token_file: None,
            ca: None,
            cert: None,
            key: None,
            timeout: Duration::from_secs(2),
            address: None,
            weight: 10,
            check_interval: Duration::from_secs(1),
            check_timeout: Duration::from_millis(800),
            check_failures: 2,
            ttl: Duration::from_secs(10),
            forget_after: Duration::from_secs(600),
            dns_ttl: Duration::from_secs(5),
            channels: true,
        }
    }
}

impl Discovery {
    /// Is there an agent?
    pub fn on(&self) -> bool {
        !self.consul.is_empty()
    }

    /// Are channels of the KV followed?
    pub fn follows_channels(&self) -> bool {
        self.on() && self.channels
    }
}
