//! `[limits]`: the bounds of what the node holds at a time.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// `[limits]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest message. Default 1 GiB.
    pub max_body: ByteSize,
    /// Accepted and unfinished messages, all channels; at the limit the node pushes back. Default 500 000.
    pub max_pending: usize,
    /// Memory for bodies of messages that wait for delivery (more are read from the ledger again). Default 8 MiB.
    pub hot_bodies: ByteSize,
    /// Bytes waiting for the log's writer. Default 16 MiB.
    pub writer_queue: ByteSize,
    /// Bodies being received in pieces at the same time. Default 64.
    pub streams: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: ByteSize::gib(1),
            max_pending: 500_000,
            hot_bodies: ByteSize::mib(8),
            writer_queue: ByteSize::mib(8),
            streams: 64,
        }
    }
}
