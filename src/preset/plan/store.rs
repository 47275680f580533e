//! What a node needs in memory and on disk.

use super::{Site, Tier, planning};
use serde::Serialize;

const MIB: f64 = 1024.0 * 1024.0;
const DAY: f64 = 24.0 * 3600.0;

/// One thing that takes memory.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryPart {
    pub what: &'static str,
    /// MiB with what is planned for.
    pub planned_mib: f64,
    /// MiB with every limit of the preset reached.
    pub at_limits_mib: f64,
}

/// Memory of the node's process.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryUse {
    pub parts: Vec<MemoryPart>,
    pub planned_mib: f64,
    pub at_limits_mib: f64,
    /// What its control group allows.
    pub allowed_mib: u64,
    #[serde(skip)]
    pub warning: Option<String>,
}

/// The store on disk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Stored bytes for one message: facts, views, body.
    pub bytes_per_message: f64,
    pub bytes_per_day: f64,
    /// As asked for, or as the preset says.
    pub retention_days: f64,
    /// For so many days.
    pub bytes: f64,
    /// `ledger.max_size` of the preset.
    pub max_bytes: u64,
    /// Days that fit into it.
    pub retention_possible_days: f64,
    #[serde(skip)]
    pub warning: Option<String>,
}

/// Memory of a node of this tier: with `connections` to the live feed and a day's messages waiting, and at its limits.
pub(super) fn memory(tier: &Tier, connections: u64, messages_per_day: u64) -> MemoryUse {
    let m = &planning().memory;
    let feed = m.feed_connection_bytes.value;
    let senders = (tier.number("http.max_connections") + tier.number("mllp.max_connections")) as f64;
    let most_feed = tier.connections() as f64;
    let (pending, resends) = (tier.number("limits.max_pending"), tier.number("ledger.resend_entries"));
    let part = |what, planned: f64, limit: f64| MemoryPart { what, planned_mib: planned / MIB, at_limits_mib: limit / MIB };
    let fixed = |what, bytes: f64| part(what, bytes, bytes);
    let parts = vec![
        fixed("the idle node", m.base_mib.value * MIB),
        part("live feed", connections as f64 * feed, most_feed * (feed + tier.bytes("feed.buffer") as f64)),
        fixed("senders' connections", senders * m.sender_connection_bytes.value),
        fixed("limits.hot_bodies", tier.bytes("limits.hot_bodies") as f64),
        fixed("limits.writer_queue", tier.bytes("limits.writer_queue") as f64),
        fixed("limits.streams", tier.number("limits.streams") as f64 * m.stream_bytes.value),
        part(
            "ledger.resend_entries",
            messages_per_day.min(resends) as f64 * m.resend_entry_bytes.value,
            resends as f64 * m.resend_entry_bytes.value,
        ),
        part(
            "a day's messages waiting",
            messages_per_day.min(pending) as f64 * m.pending_bytes.value,
            pending as f64 * m.pending_bytes.value,
        ),
    ];
    let planned_mib: f64 = parts.iter().map(|p| p.planned_mib).sum();
    let allowed_mib = tier.system.cgroup.memory_mib;
    let share = planning().thresholds.memory_percent / 100.0;
    let warning = (planned_mib > allowed_mib as f64 * share)
        .then(|| format!("memory: {planned_mib:.0} MiB are more than {:.0} % of the {allowed_mib} MiB allowed", share * 100.0));
    MemoryUse { planned_mib, at_limits_mib: parts.iter().map(|p| p.at_limits_mib).sum(), parts, allowed_mib, warning }
}

/// The store of a node of this tier.
pub(super) fn disk(tier: &Tier, site: &Site, messages_per_day: u64, message_bytes: u64) -> Disk {
    let m = &planning().messages;
    // A key that the tiers leave alone: as built in.
    const COMPRESSED_FROM: u64 = 4096;
    let share = if message_bytes >= COMPRESSED_FROM { m.stored_share.value } else { 1.0 };
    let predicted = m.overhead_bytes.value + message_bytes as f64 * share;
    let bytes_per_message = site.stored_bytes.unwrap_or(predicted);
    let bytes_per_day = bytes_per_message * messages_per_day as f64;
    let retention_days = site.retention_days.unwrap_or(tier.time("ledger.retention").as_secs_f64() / DAY);
    let max_bytes = tier.bytes("ledger.max_size");
    let possible = if bytes_per_day > 0.0 { max_bytes as f64 / bytes_per_day } else { f64::from(u16::MAX) };
    let warning = (possible < retention_days).then(|| {
        format!(
            "disk: ledger.max_size of the preset holds {possible:.1} days and not {retention_days:.0}: a larger disk and a larger \
             ledger.max_size, or a shorter ledger.retention"
        )
    });
    Disk {
        bytes_per_message,
        bytes_per_day,
        retention_days,
        bytes: bytes_per_day * retention_days,
        max_bytes,
        retention_possible_days: possible,
        warning,
    }
}

/// Where the numbers that nobody gave come from.
pub(super) fn sources(site: &Site) -> Vec<String> {
    let (messages, memory) = (&planning().messages, &planning().memory);
    let mut told = Vec::new();
    let mut tell =
        |what: &str, figure: &crate::preset::planning::Figure| told.push(format!("{what} {}: {}", figure.value, figure.source));
    if site.messages_per_patient.is_none() {
        tell("messages per patient", &messages.per_patient);
    }
    if site.stored_bytes.is_none() {
        if site.message_bytes.is_none() {
            tell("bytes of a message", &messages.size_bytes);
        }
        tell("stored share of a body", &messages.stored_share);
        tell("stored bytes besides the body", &messages.overhead_bytes);
    }
    tell("MiB of the idle node", &memory.base_mib);
    tell("bytes of a feed's connection", &memory.feed_connection_bytes);
    tell("bytes of a sender's connection", &memory.sender_connection_bytes);
    told
}
