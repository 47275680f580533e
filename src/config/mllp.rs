//! `[[mllp]]`: HL7 v2 over MLLP, one table per listener.

use super::ServerTls;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};

/// `[[mllp]]`. Without any such table there is one listener with these defaults; `mllp = []` gives none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mllp {
    /// Name in rules, ordering keys and metrics. Default `mllp`; several listeners need different ones.
    pub name: String,
    /// Address. Default 127.0.0.1:2575.
    pub listen: SocketAddr,
    /// Certificate and key: the listener then speaks TLS only. Default: none.
    pub tls: Option<ServerTls>,
    /// Expect the PROXY protocol (v1 or v2) from these balancers; empty (default): from nobody.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    /// Addresses let in; empty (default): all.
    pub allow_ips: Vec<ipnet::IpNet>,
    /// Refuse senders that are no known client. Default false.
    pub require_client: bool,
    /// Client name for senders without a certificate. Default: `anonymous`.
    pub client: Option<String>,
    /// Connections at the same time. Default 1024.
    pub max_connections: usize,
    /// Largest frame; larger ones are refused and skipped. Default 64 MiB.
    pub max_frame: ByteSize,
    /// A begun frame must end within this time. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub frame_timeout: Duration,
    /// Idle connections; 0 (default): never closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Charset where MSH-18 is empty (IANA or HL7 table 0211 name). Default `UTF-8`.
    pub charset: String,
}

impl Default for Mllp {
    fn default() -> Self {
        Self {
            name: "mllp".into(),
            listen: ([127, 0, 0, 1], 2575).into(),
            tls: None,
            proxy_protocol_from: vec![],
            allow_ips: vec![],
            require_client: false,
            client: None,
            max_connections: 1024,
            max_frame: ByteSize::mib(64),
            frame_timeout: Duration::from_secs(30),
            idle_timeout: Duration::ZERO,
            charset: "UTF-8".into(),
        }
    }
}
