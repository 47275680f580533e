//! Configuration: preset < file < `HIE_*` environment < flags. One small file per section.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Everything `hie.toml` may hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub node: Node,
    pub http: Http,
    pub mllp: Vec<Mllp>,
    pub file: Vec<WatchedFolder>,
    pub admin: Admin,
    pub health: Health,
    pub ledger: Ledger,
    pub limits: Limits,
}

/// `[node]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Name in logs and the API; default the host name.
    pub name: String,
    /// Domain it works in.
    pub domain: String,
    /// Folder of the ledger, the admin token and sockets.
    pub store: PathBuf,
    /// Folder of channel files; relative to the configuration file.
    pub channels: PathBuf,
    /// Folder of client files; relative to the configuration file.
    pub clients: PathBuf,
    /// Accepting instances: a number or `auto` (one per core).
    pub cluster: Cluster,
    /// Threads that deliver; 0: one per core.
    pub delivery_threads: usize,
    /// How long a drain may take before connections are cut.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

/// `N` or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    Auto,
    N(usize),
}

/// `[http]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Plain HTTP; absent: not served.
    pub listen: Option<SocketAddr>,
    /// HTTPS; served when `tls` is given. Default 127.0.0.1:5000.
    pub tls_listen: Option<SocketAddr>,
    pub tls: Option<ServerTls>,
    /// Expect the PROXY protocol (v1 or v2) from these balancers; empty: from nobody.
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    /// Addresses let in; empty: all.
    pub allow_ips: Vec<ipnet::IpNet>,
    /// Refuse requests without a known client.
    pub require_client: bool,
    pub max_connections: usize,
    /// For the whole head of a request.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// Longest silence while a body arrives.
    #[serde(with = "humantime_serde")]
    pub body_idle_timeout: Duration,
    /// Idle keep-alive connections.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    pub max_header_bytes: ByteSize,
}

/// `[[mllp]]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mllp {
    /// Name in rules, keys, metrics.
    pub name: String,
    pub listen: SocketAddr,
    pub tls: Option<ServerTls>,
    pub proxy_protocol_from: Vec<ipnet::IpNet>,
    pub allow_ips: Vec<ipnet::IpNet>,
    pub require_client: bool,
    /// Client name for senders without a certificate; default `anonymous`.
    pub client: Option<String>,
    pub max_connections: usize,
    /// Largest frame; larger ones are refused and skipped.
    pub max_frame: ByteSize,
    /// A begun frame must end within this time.
    #[serde(with = "humantime_serde")]
    pub frame_timeout: Duration,
    /// Idle connections; 0: never closed.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Charset where MSH-18 is empty (IANA or HL7 table 0211 name).
    pub charset: String,
}

/// `[[file]]`: a watched folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchedFolder {
    pub name: String,
    pub directory: PathBuf,
    /// File name pattern with `*` and `?`.
    pub pattern: String,
    /// Time between looks.
    #[serde(with = "humantime_serde")]
    pub poll: Duration,
    /// Size and time of change must have stood still this long.
    #[serde(with = "humantime_serde")]
    pub settle: Duration,
    /// Subfolder for files taken.
    pub done: PathBuf,
    /// Subfolder for files refused.
    pub failed: PathBuf,
    /// Client name for its messages.
    pub client: Option<String>,
}

/// TLS as a server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Authorities for client certificates; absent: none asked for.
    pub client_ca: Option<PathBuf>,
    /// Refuse connections without a certificate.
    pub client_required: bool,
}

/// `[admin]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    pub listen: SocketAddr,
    /// Default `<store>/admin-token`, generated at first start, mode 0600.
    pub token_file: Option<PathBuf>,
}

/// `[health]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    pub listen: SocketAddr,
}

/// `[ledger]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    /// Finished transactions older than this go (whole segments at a time).
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// The ledger's size on disk at which the oldest segments go.
    pub max_size: ByteSize,
    /// A segment is closed at this size …
    pub segment_size: ByteSize,
    /// … or age.
    #[serde(with = "humantime_serde")]
    pub segment_age: Duration,
    /// A resend is recognised this long …
    #[serde(with = "humantime_serde")]
    pub resend_window: Duration,
    /// … and among this many latest messages.
    pub resend_entries: usize,
    /// Bodies from this size on are compressed.
    pub compress_from: ByteSize,
    /// Accepting stops when less than this is free on the disk.
    pub min_free: ByteSize,
}

/// `[limits]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest message.
    pub max_body: ByteSize,
    /// Accepted and unfinished messages, all channels; at the limit the node pushes back.
    pub max_pending: usize,
    /// Memory for bodies of messages that wait for delivery (more are read from the ledger again).
    pub hot_bodies: ByteSize,
    /// Bytes waiting for the log's writer.
    pub writer_queue: ByteSize,
    /// Bodies being received in pieces at the same time.
    pub streams: usize,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: String::new(),
            domain: "default".into(),
            store: "hie-data".into(),
            channels: "channels.d".into(),
            clients: "clients.d".into(),
            cluster: Cluster::N(1),
            delivery_threads: 0,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: Some(([127, 0, 0, 1], 5001).into()),
            tls_listen: Some(([127, 0, 0, 1], 5000).into()),
            tls: None,
            proxy_protocol_from: vec![],
            allow_ips: vec![],
            require_client: false,
            max_connections: 4096,
            header_timeout: Duration::from_secs(10),
            body_idle_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            max_header_bytes: ByteSize::kib(64),
        }
    }
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

impl Default for WatchedFolder {
    fn default() -> Self {
        Self {
            name: "folder".into(),
            directory: PathBuf::new(),
            pattern: "*".into(),
            poll: Duration::from_secs(1),
            settle: Duration::from_secs(2),
            done: "done".into(),
            failed: "failed".into(),
            client: None,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 8080).into(), token_file: None }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 8081).into() }
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(30 * 24 * 3600),
            max_size: ByteSize::gib(20),
            segment_size: ByteSize::mib(512),
            segment_age: Duration::from_secs(24 * 3600),
            resend_window: Duration::from_secs(24 * 3600),
            resend_entries: 100_000,
            compress_from: ByteSize::kib(4),
            min_free: ByteSize::mib(64),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: ByteSize::gib(1),
            max_pending: 500_000,
            hot_bodies: ByteSize::mib(8),
            writer_queue: ByteSize::mib(16),
            streams: 64,
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self::N(1)
    }
}

impl Serialize for Cluster {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => s.serialize_str("auto"),
            Self::N(n) => s.serialize_u64(*n as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Cluster {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            N(usize),
            Text(String),
        }
        match Raw::deserialize(d)? {
            Raw::N(n) if n > 0 => Ok(Self::N(n)),
            Raw::Text(t) if t == "auto" => Ok(Self::Auto),
            Raw::Text(t) => match t.parse() {
                Ok(n) if n > 0 => Ok(Self::N(n)),
                _ => Err(serde::de::Error::custom("cluster is a number from 1 or \"auto\"")),
            },
            Raw::N(_) => Err(serde::de::Error::custom("cluster is a number from 1 or \"auto\"")),
        }
    }
}
