//! What an operator may configure for a channel: rule, routes, policy. Pure: text in, values out, no I/O.
//!
//! A file of `channels.d/` holds any number of `[[channel]]` tables:
//!
//! ```toml
//! [[channel]]
//! name = "lab.results"                       # namespace "lab", name "results"
//! when = 'protocol == "mllp" && hl7("MSH-9.1") == "ORU"'
//! priority = 10                              # lower first; default 100
//! order = "patient"
//!
//! [[channel.route]]
//! name = "ehr"
//! primary = true
//! mllp = ["ehr-a:2575", "ehr-b:2575"]
//! balance = "least-connections"
//!
//! [[channel.route]]
//! name = "archive"
//! file = { directory = "/srv/archive" }
//! ```

pub mod client;

pub use client::Client;
pub mod check;
pub mod load;
pub mod order;
pub mod rule;
pub mod set;

pub use order::Order;
pub use rule::{EvalError, Rule, RuleError, Subject};
pub use set::{ChannelError, Compiled, Set};

use serde::{Deserialize, Serialize};
use std::{path::Path, time::Duration};

/// One channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    /// `namespace.name`; letters, digits, `-`, `_` and dots; at least one dot.
    pub name: String,
    /// The rule, a CEL expression; see [`rule`].
    pub when: String,
    /// Lower is asked first; equal priorities by name.
    #[serde(default = "defaults::priority")]
    pub priority: u32,
    /// Not asked at all when false.
    #[serde(default = "defaults::yes")]
    pub enabled: bool,
    /// `queue` or `proxy`; default queue for MLLP and files, proxy for HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Ordering key: `feed` (listener and client; default), `patient`, `none`, or a CEL expression that gives a
    /// string or a list of strings.
    #[serde(default = "defaults::order")]
    pub order: String,
    /// Whether a parked message holds its key.
    #[serde(default)]
    pub after_park: AfterPark,
    /// What is kept when finished.
    #[serde(default)]
    pub storage: Storage,
    /// Clients that may use it; empty: every client, also anonymous ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Largest body in bytes; the node's limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body: Option<bytesize::ByteSize>,
    /// An alert begins when no message has come for so long; absent: it may be silent for ever.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub silent_after: Option<Duration>,
    /// Proxy mode: the upstream is idempotent, an interrupted request may be sent again after a restart.
    #[serde(default)]
    pub idempotent: bool,
    /// Queue mode with `transport.kind = "rabbitmq"`: what is done while no broker can be reached.
    #[serde(default)]
    pub outage: Outage,
    /// Where to. At least one; exactly one primary (the first when none says so).
    #[serde(rename = "route", default)]
    pub routes: Vec<Route>,
}

/// How the sender is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Acknowledged when durable; worked later.
    Queue,
    /// The sender waits for the primary route's response.
    Proxy,
}

/// What is done with a message while no broker can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outage {
    /// Accepted into the node's own log; brought to the broker later, in order.
    #[default]
    Spool,
    /// The sender is told to come again.
    Refuse,
}

/// What is kept of a message after it is finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// Everything.
    #[default]
    All,
    /// Envelope, HTTP headers, attempts; no bodies.
    NoBodies,
    /// Id, time, channel, client, type, status; no headers, no keys to search by.
    Metadata,
    /// Nothing is searchable; the facts needed to deliver are kept until the segment goes.
    None,
}

/// What successors of a parked message do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AfterPark {
    /// They pass.
    #[default]
    Continue,
    /// They wait until the operator has dealt with it.
    Hold,
}

/// One destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Unique in its channel.
    pub name: String,
    /// The one that answers the sender in proxy mode and decides the status.
    #[serde(default)]
    pub primary: bool,
    /// HTTP targets: URLs. Exactly one of `http`, `mllp`, `file` is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<String>,
    /// MLLP targets: `host:port`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mllp: Vec<String>,
    /// A folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileTarget>,
    /// How to choose among several targets.
    #[serde(default)]
    pub balance: Balance,
    /// Failures in a row after which a target is left out for [`Route::eject_for`]; 0: never.
    #[serde(default = "defaults::eject_after")]
    pub eject_after: u32,
    /// How long an ejected target is left out.
    #[serde(default = "defaults::eject_for", with = "humantime_serde")]
    pub eject_for: Duration,
    /// For HTTP: method in queue mode (proxy mode keeps the sender's); default the sender's, `POST` for MLLP and files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// For HTTP: the request's path is appended to the target's, and its query kept.
    #[serde(default)]
    pub forward_path: bool,
    /// For HTTP: headers to set; a value `file:PATH` is read from that file (credentials are referred to, not written here).
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub headers: std::collections::BTreeMap<String, String>,
    /// TLS for MLLP, and for HTTP where it differs from the public defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// Deliveries at the same time (each of another key); also the connections per MLLP target.
    #[serde(default = "defaults::in_flight")]
    pub in_flight: u32,
    /// For the whole exchange with the receiver.
    #[serde(default = "defaults::timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// Retrying.
    #[serde(default)]
    pub retry: Retry,
    /// What an acknowledgment code or a failure leads to, where it differs from the defaults (see [`AckAction`]):
    /// keys `AA AE AR CA CE CR timeout 2xx 4xx 5xx` or a single HTTP status.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub on: std::collections::BTreeMap<String, AckAction>,
    /// Starts paused.
    #[serde(default)]
    pub paused: bool,
}

/// What an answer leads to. Defaults: AA/CA and 2xx deliver; AE/CE and 4xx park (408, 425 and 429 retry); AR/CR,
/// 5xx, silence and broken connections retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckAction {
    /// Done.
    Deliver,
    /// Again, with backoff.
    Retry,
    /// Set aside.
    Park,
}

/// How to choose among several targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// In turn.
    #[default]
    RoundRobin,
    /// The one with the fewest deliveries in hand.
    LeastConnections,
    /// By the client's name (stable while the set of targets is).
    HashClient,
    /// By the ordering key.
    HashKey,
}

/// Exponential backoff with full jitter between half and the whole of each step.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// First wait.
    #[serde(with = "humantime_serde")]
    pub first: Duration,
    /// Longest wait.
    #[serde(with = "humantime_serde")]
    pub max: Duration,
    /// Factor from one wait to the next.
    pub factor: f64,
    /// Age of the message at which it is parked instead of tried again; absent: never.
    #[serde(with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub give_up: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            max: Duration::from_secs(60),
            factor: 2.0,
            give_up: Some(Duration::from_secs(3 * 24 * 3600)),
        }
    }
}

/// A folder to write into: each message a file, written under a temporary name, fsynced, renamed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileTarget {
    /// The folder; it must exist. Relative paths of a route: see [`Route::within`].
    pub directory: std::path::PathBuf,
    /// File name; `{id}`, `{time}`, `{kind}` are replaced. Default `{id}.hl7` for HL7, else `{id}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Route {
    /// The same route, its relative paths (folder, TLS files, header values `file:PATH`) taken from `folder`: that of the channel
    /// files, whatever the node's working directory is.
    pub fn within(&self, folder: &Path) -> Self {
        let mut route = self.clone();
        if let Some(file) = &mut route.file {
            file.directory = folder.join(&file.directory);
        }
        if let Some(tls) = &mut route.tls {
            for path in [&mut tls.ca, &mut tls.cert, &mut tls.key].into_iter().flatten() {
                *path = folder.join(&path);
            }
        }
        for value in route.headers.values_mut() {
            if let Some(path) = value.strip_prefix("file:") {
                *value = format!("file:{}", folder.join(path).display());
            }
        }
        route
    }
}

/// TLS as a client.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientTls {
    /// PEM of the authorities to trust; the public roots when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<std::path::PathBuf>,
    /// PEM of our own certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<std::path::PathBuf>,
    /// PEM of its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<std::path::PathBuf>,
    /// Name to expect in the receiver's certificate, where it is not the target's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

mod defaults {
    use std::time::Duration;
    pub fn priority() -> u32 {
        100
    }
    pub fn yes() -> bool {
        true
    }
    pub fn order() -> String {
        "feed".into()
    }
    pub fn eject_after() -> u32 {
        5
    }
    pub fn eject_for() -> Duration {
        Duration::from_secs(10)
    }
    pub fn in_flight() -> u32 {
        8
    }
    pub fn timeout() -> Duration {
        Duration::from_secs(30)
    }
}
