//! The guide's formulas for connections of the live feed.

use super::planning;

/// Connections at the peak: patients a day x 0.03 + doctors x 2, rounded up.
/// 10,000 patients and 30 doctors give 360.
pub fn peak(patients_per_day: u64, doctors: u64) -> u64 {
    let peak = &planning().peak;
    let patients = patients_per_day as f64 * peak.connections_per_patient;
    // 700 x 0.03 is a trifle more than 21 in binary: rounding up must not make 22 of it.
    let patients = (patients * 1e6).round() / 1e6;
    (patients.ceil() as u64).saturating_add(doctors.saturating_mul(peak.connections_per_doctor))
}

/// Connections that fit: the limit per resource times the resources in use.
pub fn capacity(per_resource: u64, resources: u64) -> u64 {
    per_resource.saturating_mul(resources)
}

/// Connections of what fits, in percent: 85 of 100 x 15 are 5.7. 0 where nothing fits.
pub fn utilization(connections: u64, per_resource: u64, resources: u64) -> f64 {
    percent(connections as f64, capacity(per_resource, resources) as f64)
}

/// `part` of `whole` in percent, to a tenth; 0 of nothing.
pub(super) fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole * 1000.0).round() / 10.0 } else { 0.0 }
}
