//! The plan for people.

use super::{Failure, Node, Plan, output};
use crate::preset::{
    Range,
    plan::{Health, Item},
};
use bytesize::ByteSize;

pub(super) fn node(node: &Node) -> Result<(), Failure> {
    output::print(format!("The node at {}", node.url))?;
    let mut table = output::table(["SIGN", "HEALTH", "SEEN", "HEALTHY BELOW", "WHAT TO DO"]);
    for sign in &node.signs {
        let health = match sign.health {
            Health::Healthy => "healthy",
            Health::Warning => "WARNING",
            Health::Unknown => "unknown",
        };
        table.add_row([sign.sign, health, &sign.seen, &sign.healthy_below, &sign.action]);
    }
    output::print_table(&table)?;
    output::print("")
}

pub(super) fn plan(plan: &Plan) -> Result<(), Failure> {
    let grown =
        if plan.growth_percent == 0.0 { String::new() } else { format!(" ({:+} % growth included)", plan.growth_percent) };
    let size = |bytes: f64| ByteSize(bytes.max(0.0) as u64).to_string();
    let (memory, disk) = (&plan.memory, &plan.disk);
    for (label, value) in [
        ("patients a day", format!("{}{grown}", plan.patients_per_day)),
        ("doctors", plan.doctors.to_string()),
        ("peak connections", format!("{} (patients x 0.03 + doctors x 2)", plan.peak_connections)),
        ("planned for", format!("{} (twice the peak)", plan.planned_connections)),
        ("preset", plan.preset.clone()),
        (
            "machine",
            format!(
                "{} cores, {} MiB, {} GB disk, {} Mbit/s, {} USD a month",
                range(plan.hardware.cores),
                range(plan.hardware.memory_mib),
                plan.hardware.disk_gb,
                plan.hardware.network_mbps,
                range(plan.cost_usd_per_month)
            ),
        ),
        (
            "live feed",
            format!(
                "{} connections per resource, {} in total, timeout {} min",
                plan.max_connections_per_resource, plan.capacity, plan.connection_timeout_minutes
            ),
        ),
        (
            "utilization",
            format!(
                "{} % at the peak, {} places left, twice the peak {}",
                plan.utilization_percent,
                plan.capacity_remaining,
                if plan.holds_planned { "fits" } else { "does NOT fit" }
            ),
        ),
        (
            "memory",
            format!(
                "{:.0} MiB planned, {:.0} MiB at every limit, of {} MiB",
                memory.planned_mib, memory.at_limits_mib, memory.allowed_mib
            ),
        ),
        (
            "disk",
            format!(
                "{} messages a day, {} each: {} a day, {} for {:.0} days; {} hold {:.0} days",
                plan.messages_per_day,
                size(disk.bytes_per_message),
                size(disk.bytes_per_day),
                size(disk.bytes),
                disk.retention_days,
                ByteSize(disk.max_bytes),
                disk.retention_possible_days
            ),
        ),
    ] {
        output::print(format!("{label:<18}{value}"))?;
    }
    if let Some(several) = &plan.horizontal {
        let word = if several.needed { "NEEDED" } else { "to consider" };
        output::print(format!("several servers   {word}: {}, one to spare ({})", several.servers, several.why))?;
    }
    list("\nWhy this preset", plan.reasons.iter().cloned())?;
    if plan.steps.len() > 1 {
        let step = |s: &crate::preset::plan::Step| {
            format!("week {}: feed.max_connections_per_resource = {}", s.week, s.connections_per_resource)
        };
        list("\nStep by step, looking at each", plan.steps.iter().map(step))?;
    }
    output::print("\nRoadmap")?;
    let mut table = output::table(["", "PHASE", "PATIENTS/DAY", "CORES", "MEMORY MIB", "PER RESOURCE", "USD/MONTH", "WHEN"]);
    for row in &plan.roadmap {
        table.add_row([
            if row.here { "*".into() } else { String::new() },
            format!("{} {} ({})", row.phase, row.title, row.preset),
            range(row.patients_per_day),
            range(row.cores),
            row.memory_mib.to_string(),
            range(row.connections_per_resource),
            range(row.cost_usd_per_month),
            row.when.clone(),
        ]);
    }
    output::print_table(&table)?;
    let spending = |s: &crate::preset::planning::Spending| {
        let months = s.to_month.map_or_else(|| format!("{}+", s.from_month), |to| format!("{}-{to}", s.from_month));
        format!("month {months}: {} USD a month ({} cores, {} MiB)", s.usd_per_month, s.cores, s.memory_mib)
    };
    list("\nStart small, pay for what is needed", plan.spending.iter().map(spending))?;
    for (title, items) in [
        ("Before scaling", &plan.checklist.before),
        ("During scaling", &plan.checklist.during),
        ("After scaling", &plan.checklist.after),
    ] {
        output::print(format!("\n{title}"))?;
        items.iter().try_for_each(todo)?;
    }
    list("\nNumbers that nobody gave", plan.sources.iter().cloned())
}

fn todo(item: &Item) -> Result<(), Failure> {
    output::print(format!("  [ ] {}", item.text))?;
    item.command.as_ref().map_or(Ok(()), |command| output::print(format!("        {command}")))
}

fn list(title: &str, lines: impl Iterator<Item = String>) -> Result<(), Failure> {
    output::print(title)?;
    lines.into_iter().try_for_each(|line| output::print(format!("  {line}")))
}

fn range(range: Range) -> String {
    if range.min == range.max { range.min.to_string() } else { format!("{}-{}", range.min, range.max) }
}
