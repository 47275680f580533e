//! `[feed]`: the live feed, `/events/{resource}` on the management API.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[feed]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Feed {
    /// Connections to one resource at the same time (the guide's `SSE_MAX_CONNECTIONS_PER_RESOURCE`). Default 100.
    pub max_connections_per_resource: usize,
    /// Connections to all resources together. Default 1000.
    pub max_connections: usize,
    /// A connection is ended after so long; the reader comes back and goes on where it was. Default 30 min.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// A comment is sent on a connection that has been silent for so long. Default 15 s.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// What a slow reader may have waiting before it is dropped. Default 64 KiB.
    pub buffer: ByteSize,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            max_connections_per_resource: 100,
            max_connections: 1000,
            timeout: Duration::from_secs(30 * 60),
            keep_alive: Duration::from_secs(15),
            buffer: ByteSize::kib(64),
        }
    }
}
