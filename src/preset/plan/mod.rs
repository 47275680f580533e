//! The capacity planner: from what a site does in a day to the tier it needs, with the guide's formula.

mod checklist;
pub mod live;
mod load;
mod roadmap;
pub mod signs;
mod store;

pub use checklist::{Checklist, Item};
pub use live::Live;
pub use load::{capacity, peak, utilization};
pub use roadmap::{Horizontal, PhaseRow, Step};
pub use signs::{Health, Sign};
pub use store::{Disk, MemoryPart, MemoryUse};

use super::{Hardware, Range, Tier, planning, planning::Spending, tiers};
use serde::Serialize;

/// What is known of a site.
#[derive(Clone, Debug, Default)]
pub struct Site {
    pub patients_per_day: u64,
    /// Doctors at work at the same time.
    pub doctors: u64,
    /// Growth that is planned for, of patients and doctors alike.
    pub growth_percent: f64,
    /// Mean size of a message in bytes; `None`: the corpus's.
    pub message_bytes: Option<u64>,
    /// Messages for one patient of the day; `None`: assumed.
    pub messages_per_patient: Option<f64>,
    /// Bytes on disk that a node was seen to need for one message, body included.
    pub stored_bytes: Option<f64>,
    /// Days that finished transactions are kept; `None`: as the preset says.
    pub retention_days: Option<f64>,
    /// Connections per resource in force now; steps to the new limit begin there.
    pub connections_per_resource: Option<u64>,
    /// Address of the management API for the commands of the checklist.
    pub url: Option<String>,
}

/// What a site needs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Patients a day, growth included.
    pub patients_per_day: u64,
    /// Doctors, growth included.
    pub doctors: u64,
    pub growth_percent: f64,
    /// Connections of the live feed at the normal peak: the guide's formula.
    pub peak_connections: u64,
    /// What is planned for: twice the normal peak.
    pub planned_connections: u64,
    /// Name of the recommended preset.
    pub preset: String,
    /// Why this one.
    pub reasons: Vec<String>,
    pub hardware: Hardware,
    pub cost_usd_per_month: Range,
    pub max_connections_per_resource: u64,
    pub connection_timeout_minutes: u64,
    /// Connections that the preset allows altogether.
    pub capacity: u64,
    /// The normal peak, of the capacity.
    pub utilization_percent: f64,
    /// Places left at the normal peak.
    pub capacity_remaining: u64,
    /// Does the capacity hold what is planned for?
    pub holds_planned: bool,
    pub messages_per_day: u64,
    pub message_bytes: u64,
    pub memory: MemoryUse,
    pub disk: Disk,
    /// Several servers: `None` while nothing speaks for it.
    pub horizontal: Option<Horizontal>,
    pub roadmap: Vec<PhaseRow>,
    /// From the limit in force to the new one, a step at a time.
    pub steps: Vec<Step>,
    /// Start small, pay for what is needed.
    pub spending: &'static [Spending],
    pub checklist: Checklist,
    /// Where the assumed and measured numbers come from.
    pub sources: Vec<String>,
}

/// Plans for a site.
pub fn plan(site: &Site) -> Plan {
    let numbers = planning();
    let grown = |n: u64| (n as f64 * (1.0 + site.growth_percent / 100.0)).ceil().max(0.0) as u64;
    let (patients, doctors) = (grown(site.patients_per_day), grown(site.doctors));
    let peak_connections = peak(patients, doctors);
    let planned = peak_connections.saturating_mul(numbers.headroom);
    let (tier, mut reasons) = choose(patients, peak_connections, planned);

    let messages_per_patient = site.messages_per_patient.unwrap_or(numbers.messages.per_patient.value);
    let messages_per_day = (patients as f64 * messages_per_patient).ceil() as u64;
    let message_bytes = site.message_bytes.unwrap_or(numbers.messages.size_bytes.value as u64);
    let memory = store::memory(tier, planned, messages_per_day);
    let disk = store::disk(tier, site, messages_per_day, message_bytes);
    reasons.extend(memory.warning.clone());
    reasons.extend(disk.warning.clone());
    let total = tier.connections();
    Plan {
        patients_per_day: patients,
        doctors,
        growth_percent: site.growth_percent,
        peak_connections,
        planned_connections: planned,
        preset: tier.name.clone(),
        hardware: tier.hardware.clone(),
        cost_usd_per_month: tier.cost_usd_per_month,
        max_connections_per_resource: tier.connections_per_resource(),
        connection_timeout_minutes: tier.timeout_minutes(),
        capacity: total,
        utilization_percent: load::percent(peak_connections as f64, total as f64),
        capacity_remaining: total.saturating_sub(peak_connections),
        holds_planned: planned <= total,
        messages_per_day,
        message_bytes,
        memory,
        disk,
        horizontal: roadmap::horizontal(patients, planned),
        roadmap: roadmap::roadmap(tier),
        steps: roadmap::steps(site.connections_per_resource, tier.connections_per_resource()),
        spending: &numbers.spending,
        checklist: checklist::checklist(site, tier, peak_connections),
        sources: store::sources(site),
        reasons,
    }
}

/// The smallest tier that does for the patients, for the peak by the guide's table, and for what is planned.
fn choose(patients: u64, peak: u64, planned: u64) -> (&'static Tier, Vec<String>) {
    let all = tiers();
    let largest = all.len() - 1;
    let first = |does: &dyn Fn(&Tier) -> bool| all.iter().position(does).unwrap_or(largest);
    let by_patients = first(&|t| patients <= t.patients_per_day.max);
    let by_peak = first(&|t| peak <= t.capacity.peak_connections.max);
    let by_plan = first(&|t| planned <= t.connections());
    let chosen = by_patients.max(by_peak).max(by_plan);
    let tier = &all[chosen];
    let name = |at: usize| all[at].name.as_str();
    let mut reasons = vec![
        format!("{patients} patients a day: {} (up to {})", name(by_patients), all[by_patients].patients_per_day.max),
        format!("a peak of {peak} connections: {} (up to {})", name(by_peak), all[by_peak].capacity.peak_connections.max),
        format!("twice the peak, {planned} connections: {} (up to {})", name(by_plan), all[by_plan].connections()),
    ];
    if planned > tier.connections() {
        reasons.push(format!("no preset allows {planned} connections on one server: spread them over several"));
    }
    (tier, reasons)
}
