//! `[peers]`: how the nodes of a domain hand each other what their ledgers hold.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// `[peers]`. Matters only with `transport.kind = "rabbitmq"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peers {
    /// File with the domain's secret, the same on each of its nodes, or `credential:NAME` for one that systemd passes on; at least
    /// 32 characters. Without it nothing is copied from this node or by it.
    pub secret_file: Option<PathBuf>,
    /// Management APIs of other nodes, `http://HOST:8080`; empty (default): those that the Consul agent names.
    pub urls: Vec<String>,
    /// https: PEM of the authorities to trust; the public roots when absent.
    pub ca: Option<PathBuf>,
    /// Bytes a second that this node hands to a joiner at most. Default 128 MiB.
    pub rate: ByteSize,
    /// How long a node with an empty ledger waits for a peer that does not answer, or is busy, before it starts with the ledger stream
    /// alone. Default 15 s.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
}

impl Default for Peers {
    fn default() -> Self {
        Self { secret_file: None, urls: vec![], ca: None, rate: ByteSize::mib(128), patience: Duration::from_secs(15) }
    }
}
