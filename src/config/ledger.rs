//! `[ledger]`: how long and how much is kept.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[ledger]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    /// Finished transactions older than this go (whole segments at a time). Default 30 days.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// The ledger's size on disk at which the oldest segments go. Default 20 GiB.
    pub max_size: ByteSize,
    /// A segment is closed at this size (default 512 MiB) …
    pub segment_size: ByteSize,
    /// … or age (default 24 h).
    #[serde(with = "humantime_serde")]
    pub segment_age: Duration,
    /// A resend is recognised this long (default 24 h) …
    #[serde(with = "humantime_serde")]
    pub resend_window: Duration,
    /// … and among this many latest messages (default 100 000).
    pub resend_entries: usize,
    /// Bodies from this size on are compressed. Default 4 KiB.
    pub compress_from: ByteSize,
    /// Accepting stops when less than this is free on the disk. Default 64 MiB.
    pub min_free: ByteSize,
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
