//! `[transport]`: what carries accepted messages to the workers.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// What carries accepted messages to the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// The node's own log.
    #[default]
    Embedded,
    /// Quorum queues of a RabbitMQ cluster (3.10 or later).
    Rabbitmq,
}

/// `[transport]`. All but `kind` matters only with `kind = "rabbitmq"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transport {
    /// `embedded` (default) or `rabbitmq`.
    pub kind: TransportKind,
    /// The brokers: `amqp://HOST[:5672]` or `amqps://HOST[:5671]`, any of which will do; without user, password and path.
    pub urls: Vec<String>,
    /// Virtual host. Default `/`.
    pub vhost: String,
    /// User. Default `hie`.
    pub user: String,
    /// File with the password, or `credential:NAME` for one that systemd passes on (systemd.exec(5), LoadCredential). Read at
    /// each connection. Must be given.
    pub password_file: Option<PathBuf>,
    /// amqps: PEM of the authorities to trust; the public roots when absent.
    pub ca: Option<PathBuf>,
    /// amqps: PEM of our own certificate and its chain, for brokers that ask for one.
    pub cert: Option<PathBuf>,
    /// amqps: PEM of its key.
    pub key: Option<PathBuf>,
    /// amqps: name to expect in the broker's certificate, where it is not the URL's host.
    pub server_name: Option<String>,
    /// Partitions of each channel's inbox and of each route's queue. The same on every node of the domain. Default 4.
    pub partitions: u16,
    /// Bodies up to this size travel in the queues' messages, larger ones through the ledger stream. Default 256 KiB.
    pub inline: ByteSize,
    /// What an inbox holds in messages of the broker, each of which has up to 128 of a burst; more are refused, and the sender is told.
    /// Default 100 000.
    pub max_queue: u32,
    /// The ledger stream keeps its segments so long; longer than a node may be away. Default 7 days.
    #[serde(with = "humantime_serde")]
    pub stream_max_age: Duration,
    /// The ledger stream's size at which its oldest segments go. Default 50 GiB.
    pub stream_max_bytes: ByteSize,
    /// Messages of the broker that a queue's consumer has in hand. Default 256.
    pub prefetch: u16,
    /// A message that the broker has not confirmed within this time is published again. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub confirm_timeout: Duration,
    /// AMQP heartbeat, whole seconds; a broker that is silent for twice as long is given up. Default 6 s.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A consumer that had no confirm from the broker for so long begins no new delivery. Default 4 s.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// Messages held so long (a receiver that is away) go back to the broker and are taken again, in order; well below the broker's
    /// `consumer_timeout`. Default 10 min.
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            kind: TransportKind::default(),
            urls: vec![],
            vhost: "/".into(),
            user: "hie".into(),
            password_file: None,
            ca: None,
            cert: None,
            key: None,
            server_name: None,
            partitions: 4,
            inline: ByteSize::kib(256),
            max_queue: 100_000,
            stream_max_age: Duration::from_secs(7 * 24 * 3600),
            stream_max_bytes: ByteSize::gib(50),
            prefetch: 256,
            confirm_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(6),
            lease: Duration::from_secs(4),
            hold: Duration::from_secs(600),
        }
    }
}

/// A broker's address, as a URL of `transport.urls` gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Host name or address, without brackets.
    pub host: String,
    /// Port; 5672, with TLS 5671, unless given.
    pub port: u16,
    /// `amqps`.
    pub tls: bool,
}

impl BrokerUrl {
    /// Reads `amqp[s]://HOST[:PORT]`. The error says what is wrong, and repeats neither user nor password.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) =
            url.split_once("://").ok_or("is no URL of a broker; write \"amqp://HOST:5672\" or \"amqps://HOST:5671\"")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "amqp" => false,
            "amqps" => true,
            _ => return Err(format!("\"{scheme}\" is no scheme of a broker; write amqp:// or amqps://")),
        };
        let (authority, path) = rest.split_once(['/', '?', '#']).unwrap_or((rest, ""));
        if authority.contains('@') || path.contains('@') {
            return Err("holds a user or password; write them as transport.user and transport.password_file".into());
        }
        if !path.is_empty() || rest.contains(['?', '#']) {
            return Err("has more than host and port; the virtual host is transport.vhost".into());
        }
        let usual = if tls { 5671 } else { 5672 };
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an address stand in brackets.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().map_err(|_| "has a port that is no number from 1 to 65535")?)
            }
            _ => (authority, usual),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || port == 0 || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("has no host, or port 0; write \"amqp://HOST:5672\" or \"amqps://HOST:5671\"".into());
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

impl std::fmt::Display for BrokerUrl {
    /// `host:port`, an IPv6 address in brackets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}
