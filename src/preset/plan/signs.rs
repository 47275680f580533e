//! The guide's warning signs: what a running node's figures say, and what to do about it.

use super::{Live, Tier, load, planning};
use crate::preset::tiers;
use serde::Serialize;

/// How one figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Healthy,
    /// At or above its threshold.
    Warning,
    /// The node does not tell.
    Unknown,
}

/// One figure against its threshold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sign {
    pub sign: &'static str,
    pub health: Health,
    /// The figure for people, with what it is of.
    pub seen: String,
    /// Below this is healthy.
    pub healthy_below: String,
    /// What to do; empty while healthy.
    pub action: String,
}

/// Every sign, in the guide's order. `tier` is the preset in force, where it is known.
pub fn signs(live: &Live, tier: Option<&Tier>) -> Vec<Sign> {
    let limits = &planning().thresholds;
    let per_resource = live.max_connections_per_resource;
    let larger = raise(per_resource, tier);
    let mut signs = Vec::new();

    let used = live.connections.zip(per_resource).zip(live.resources);
    let used = used.map(|((n, per), resources)| {
        let all = load::capacity(per, resources);
        (load::utilization(n, per, resources), format!("{n} of {all} connections"))
    });
    signs.push(sign("SSE utilization", used, limits.utilization_percent, " %", &larger));

    // Only newer nodes tell of the limit of all resources together.
    if let Some((n, all)) = live.connections.zip(live.max_connections) {
        let used = (load::percent(n as f64, all as f64), format!("{n} of {all} connections"));
        let action = "increase feed.max_connections, or take the next larger preset";
        signs.push(sign("SSE connections in total", Some(used), limits.utilization_percent, " %", action));
    }

    let memory = live.memory_bytes.zip(live.memory_limit_bytes).map(|(used, all)| {
        let mib = |bytes: u64| bytes / (1024 * 1024);
        (load::percent(used as f64, all as f64), format!("{} of {} MiB", mib(used), mib(all)))
    });
    let shorter = planning().timeout_minutes.short;
    let action = format!(
        "upgrade server RAM{}; until then shorten feed.timeout to {shorter}m",
        next(tier).map_or(String::new(), |t| format!(" to {} MiB ({})", t.vm.memory_mib, t.name))
    );
    signs.push(sign("memory usage", memory, limits.memory_percent, " %", &action));

    let cpu = live.cpu_average_percent.map(|average| {
        let peak = live.cpu_peak_percent.map_or(String::new(), |peak| format!(", peak {peak:.0} %"));
        (average, format!("average{peak}"))
    });
    let action =
        format!("upgrade server CPU cores{}", next(tier).map_or(String::new(), |t| format!(" to {} ({})", t.vm.vcpu, t.name)));
    signs.push(sign("CPU usage, sustained", cpu, limits.cpu_percent, " %", &action));

    let warned = live.limit_warnings.map(|n| (n as f64, "turned away at a limit since the start".to_owned()));
    signs.push(sign("connection limit warnings", warned, 1.0, "", &larger));

    let slow = "upgrade the server, or find what is slow: disk (hie_ledger_commit_seconds), receivers (hie route list)";
    signs.push(sign("P95", live.p95_ms.map(|ms| (ms, "last byte to acknowledgment".into())), limits.p95_ms, " ms", slow));
    signs.push(sign("P99", live.p99_ms.map(|ms| (ms, "last byte to acknowledgment".into())), limits.p99_ms, " ms", slow));
    signs
}

fn sign(sign: &'static str, figure: Option<(f64, String)>, below: f64, unit: &str, action: &str) -> Sign {
    let (health, seen) = match &figure {
        None => (Health::Unknown, "the node does not tell".to_owned()),
        Some((value, what)) => {
            let health = if *value >= below { Health::Warning } else { Health::Healthy };
            let rounded = (value * 10.0).round() / 10.0;
            (health, format!("{rounded}{unit} ({what})"))
        }
    };
    let action = if health == Health::Warning { action.to_owned() } else { String::new() };
    Sign { sign, health, seen, healthy_below: format!("{below}{unit}"), action }
}

/// The next larger tier.
fn next(tier: Option<&Tier>) -> Option<&'static Tier> {
    let at = tiers().iter().position(|t| Some(t.name.as_str()) == tier.map(|t| t.name.as_str()))?;
    tiers().get(at + 1)
}

/// What to do about too few connections per resource.
fn raise(now: Option<u64>, tier: Option<&Tier>) -> String {
    let now = now.or_else(|| tier.map(Tier::connections_per_resource));
    let larger = now.and_then(|now| tiers().iter().find(|t| t.connections_per_resource() > now));
    match (now, larger) {
        (Some(now), Some(t)) => {
            let step = now + planning().gradual.step_connections;
            let target = t.connections_per_resource();
            format!(
                "increase feed.max_connections_per_resource from {now} to {}, later to {target} ({})",
                step.min(target),
                t.name
            )
        }
        (Some(_), None) => "no larger preset: spread the readers over several servers".into(),
        (None, _) => "increase feed.max_connections_per_resource".into(),
    }
}
