//! The way ahead: phases, several servers, and steps from one limit to the next.

use super::{Range, Tier, planning, tiers};
use serde::Serialize;

/// A phase of the roadmap.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseRow {
    pub phase: u64,
    pub title: String,
    pub preset: String,
    pub patients_per_day: Range,
    pub cores: Range,
    /// Memory of its server.
    pub memory_mib: u64,
    /// Connections per resource (and server).
    pub connections_per_resource: Range,
    pub cost_usd_per_month: Range,
    pub when: String,
    /// The site of the plan is here.
    pub here: bool,
}

/// Several servers.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Horizontal {
    /// One server does not do.
    pub needed: bool,
    /// Servers, with one to spare.
    pub servers: u64,
    pub why: String,
}

/// A limit to set, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub week: u64,
    pub connections_per_resource: u64,
}

/// All phases, the site's own marked.
pub(super) fn roadmap(own: &Tier) -> Vec<PhaseRow> {
    let row = |tier: &Tier| {
        let own_limit = Range { min: tier.connections_per_resource(), max: tier.connections_per_resource() };
        PhaseRow {
            phase: tier.roadmap.phase,
            title: tier.roadmap.title.clone(),
            preset: tier.name.clone(),
            patients_per_day: tier.patients_per_day,
            cores: tier.hardware.cores,
            memory_mib: tier.vm.memory_mib,
            connections_per_resource: tier.roadmap.connections_per_resource.unwrap_or(own_limit),
            cost_usd_per_month: tier.cost_usd_per_month,
            when: tier.roadmap.when.clone(),
            here: tier.name == own.name,
        }
    };
    tiers().iter().map(row).collect()
}

/// When one server is not enough, or will not be for long.
pub(super) fn horizontal(patients: u64, planned: u64) -> Option<Horizontal> {
    let numbers = planning();
    let (consider, most) = (numbers.horizontal_from_patients_per_day, numbers.vertical_up_to_patients_per_day);
    let room = tiers().last().map_or(u64::MAX, Tier::connections);
    let needed = patients > most || planned > room;
    if !needed && patients < consider {
        return None;
    }
    let servers = patients.div_ceil(most).max(planned.div_ceil(room)).max(1) + 1;
    let why = if patients > most {
        format!("{patients} patients a day are more than the {most} of one server")
    } else if planned > room {
        format!("{planned} connections are more than the {room} of one server")
    } else {
        format!("from {consider} patients a day on, several servers behind a balancer bear the loss of one")
    };
    Some(Horizontal { needed, servers, why })
}

/// From `current` to `target` in the guide's steps, one a week; only the target when nothing is in force yet or it is not
/// higher.
pub(super) fn steps(current: Option<u64>, target: u64) -> Vec<Step> {
    let gradual = &planning().gradual;
    let weeks = |n: u64| n * gradual.every_days / 7 + 1;
    let mut limits = Vec::new();
    if let Some(current) = current.filter(|now| *now < target) {
        let mut limit = current;
        while limit < target {
            limits.push(limit);
            limit += gradual.step_connections.max(1);
        }
    }
    limits.push(target);
    (0..).zip(limits).map(|(n, limit)| Step { week: weeks(n), connections_per_resource: limit }).collect()
}
