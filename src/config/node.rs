//! `[node]`: who this node is, where it keeps things, how many accept.

use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// `[node]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Name in logs and the API. Default: the host name.
    pub name: String,
    /// Domain it works in. Default `default`.
    pub domain: String,
    /// Preset whose values lie below those of the file: a tier's name, `auto` for the one that fits this machine, or
    /// empty (default) for the built-in values.
    pub preset: String,
    /// Folder of the ledger, the admin token and the lock. Default `hie-data`. Relative paths in the file are
    /// relative to the file's folder; those in the environment and in flags to the working directory.
    pub store: PathBuf,
    /// Folder of channel files. Default `channels.d` beside the configuration file.
    pub channels: PathBuf,
    /// Folder of client files. Default `clients.d` beside the configuration file.
    pub clients: PathBuf,
    /// Accepting instances: a number or `auto` (one per core). Default 1.
    pub cluster: Cluster,
    /// Threads that deliver; 0 (default): one per core.
    pub delivery_threads: usize,
    /// How long a drain may take before connections are cut. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: String::new(),
            domain: "default".into(),
            preset: String::new(),
            store: "hie-data".into(),
            channels: "channels.d".into(),
            clients: "clients.d".into(),
            cluster: Cluster::N(1),
            delivery_threads: 0,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// `N` or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// One instance per core.
    Auto,
    /// This many, from 1.
    N(usize),
}

impl Cluster {
    /// How many instances accept on this machine: at least 1.
    pub fn instances(self) -> usize {
        match self {
            Self::Auto => std::thread::available_parallelism().map_or(1, usize::from),
            Self::N(n) => n.max(1),
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
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Cluster;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number from 1 or \"auto\"")
            }

            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Cluster, E> {
                match usize::try_from(n) {
                    Ok(n) if n > 0 => Ok(Cluster::N(n)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Unsigned(n), &self)),
                }
            }

            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Cluster, E> {
                match u64::try_from(n) {
                    Ok(n) => self.visit_u64(n),
                    Err(_) => Err(E::invalid_value(serde::de::Unexpected::Signed(n), &self)),
                }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Cluster, E> {
                match text.parse() {
                    Ok(n) if n > 0 => Ok(Cluster::N(n)),
                    _ if text == "auto" => Ok(Cluster::Auto),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
        }
        d.deserialize_any(Visitor)
    }
}
