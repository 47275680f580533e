//! The numbers of planning, read from `presets/planning.json`: the guide's formula and thresholds, and what was measured.

use super::Range;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planning {
    pub peak: Peak,
    /// The peak that is planned for, as a multiple of the normal one.
    pub headroom: u64,
    /// Beyond this one server does not do.
    pub vertical_up_to_patients_per_day: u64,
    /// From here on several servers are worth a thought.
    pub horizontal_from_patients_per_day: u64,
    pub thresholds: Thresholds,
    pub gradual: Gradual,
    pub timeout_minutes: Timeouts,
    pub spending: Vec<Spending>,
    pub observe: Observe,
    pub messages: Messages,
    pub memory: Memory,
}

/// Peak connections = patients a day x `connections_per_patient` + doctors x `connections_per_doctor`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peak {
    pub connections_per_patient: f64,
    pub connections_per_doctor: u64,
}

/// Below each of them is healthy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// Connections of the live feed, of what is allowed.
    pub utilization_percent: f64,
    pub memory_percent: f64,
    /// Sustained.
    pub cpu_percent: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
}

/// Limits are raised in steps, with time to look between them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gradual {
    pub step_connections: u64,
    pub every_days: u64,
}

/// Timeouts of a feed's connection: a shorter one saves memory, a longer one disconnects fewer readers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    pub short: u64,
    pub balanced: u64,
    pub long: u64,
}

/// Start small, pay for what is needed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spending {
    pub from_month: u64,
    /// `None`: for good.
    pub to_month: Option<u64>,
    pub usd_per_month: u64,
    pub cores: u64,
    pub memory_mib: u64,
}

/// How long to watch before and after a change.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observe {
    pub before_days: u64,
    pub after_hours: Range,
}

/// A number and where it comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    pub value: f64,
    pub source: String,
}

/// Sizes and numbers of messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Messages {
    /// Messages for one patient of the day.
    pub per_patient: Figure,
    pub size_bytes: Figure,
    /// Stored bytes of a body, of its bytes, where bodies are compressed.
    pub stored_share: Figure,
    /// Bytes on disk besides the body.
    pub overhead_bytes: Figure,
}

/// What takes memory in a node, in bytes each unless named otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    pub base_mib: Figure,
    pub feed_connection_bytes: Figure,
    pub sender_connection_bytes: Figure,
    pub resend_entry_bytes: Figure,
    pub pending_bytes: Figure,
    pub stream_bytes: Figure,
}

/// The numbers.
pub fn planning() -> &'static Planning {
    static PLANNING: OnceLock<Planning> = OnceLock::new();
    // The text is part of the binary: a test reads it.
    PLANNING.get_or_init(|| {
        serde_json::from_str(include_str!("../../presets/planning.json")).expect("presets/planning.json as it was tested")
    })
}
