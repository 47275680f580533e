//! The guide's checklist, with this site's numbers and the commands that do it.

use super::{Site, Tier, planning};
use serde::Serialize;

/// One thing to do.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    pub text: String,
    /// The command that does or shows it, on a node installed as the operations guide says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// What to do before, during and after scaling.
#[derive(Clone, Debug, Serialize)]
pub struct Checklist {
    pub before: Vec<Item>,
    pub during: Vec<Item>,
    pub after: Vec<Item>,
}

const CONFIG: &str = "/etc/hie/hie.toml";

fn item(text: impl Into<String>, command: impl Into<String>) -> Item {
    let command = Some(command.into()).filter(|c: &String| !c.is_empty());
    Item { text: text.into(), command }
}

pub(super) fn checklist(site: &Site, tier: &Tier, peak: u64) -> Checklist {
    let numbers = planning();
    let limits = &numbers.thresholds;
    let url = site.url.as_deref().unwrap_or("http://127.0.0.1:8080");
    let (patients, doctors, growth) = (site.patients_per_day, site.doctors, site.growth_percent);
    let plan = format!("hie plan --patients-per-day {patients} --doctors {doctors} --growth {growth}");
    let live = format!("{plan} --from {url} --config {CONFIG}");
    let (name, hours) = (&tier.name, numbers.observe.after_hours);
    let (per, minutes, total) = (tier.connections_per_resource(), tier.timeout_minutes(), tier.connections());
    let before = vec![
        item(format!("Monitor current utilization for {} days", numbers.observe.before_days), live.clone()),
        item(
            "Identify peak usage times",
            format!("curl -s -H \"Authorization: Bearer $(cat TOKEN)\" {url}/metrics | grep hie_messages_accepted_total"),
        ),
        item(
            format!("Calculate target capacity needed: {peak} connections at the peak, {} planned for", peak * numbers.headroom),
            plan,
        ),
        item("Plan maintenance window: senders wait while the node drains (node.drain_timeout) and starts again", ""),
        item(
            "Backup database: stop the node and copy its store, or take a snapshot of the file system",
            "systemctl stop hie && cp -a /var/lib/hie /var/backups/hie && systemctl start hie",
        ),
        item("Document current configuration", format!("hie check --config {CONFIG} --json > hie-before.json")),
    ];
    let during = vec![
        item(
            format!("Update hie.toml: [node] preset = \"{name}\" ({per} connections per resource, {minutes} minutes)"),
            format!("hie check --config {CONFIG} --preset {name}"),
        ),
        item(
            format!(
                "Upgrade server resources: {} to {} cores, {} to {} MiB, {} GB of disk ({}, {} or {})",
                tier.hardware.cores.min,
                tier.hardware.cores.max,
                tier.hardware.memory_mib.min,
                tier.hardware.memory_mib.max,
                tier.hardware.disk_gb,
                tier.cloud.aws,
                tier.cloud.azure,
                tier.cloud.gcp
            ),
            "hie preset detect",
        ),
        item(
            format!("Increase system limits: {} open files, kernel settings", tier.system.nofile),
            format!(
                "for part in systemd sysctl limits; do hie preset render {name} --part $part --out /etc; done; sysctl --system; systemctl daemon-reload"
            ),
        ),
        item(
            "Optimize database settings: the ledger's come with the preset; a broker's and Consul's are files",
            format!("hie preset render {name} --part rabbitmq --out /etc"),
        ),
        item("Restart the node", "systemctl restart hie"),
        item(
            format!("Verify configuration in logs: \"preset in force\", {name}"),
            "journalctl -u hie -b | grep 'preset in force'",
        ),
    ];
    let after = vec![
        item(format!("Monitor for {}-{} hours", hours.min, hours.max), live.clone()),
        item(
            format!("Check SSE utilization: below {:.0} % of {total} connections", limits.utilization_percent),
            format!("curl -s -H \"Authorization: Bearer $(cat TOKEN)\" {url}/api/sse/stats"),
        ),
        item(
            format!("Check memory usage: below {:.0} % of {} MiB", limits.memory_percent, tier.system.cgroup.memory_mib),
            format!("hie status --config {CONFIG}"),
        ),
        item(format!("Check CPU usage: below {:.0} %", limits.cpu_percent), "systemd-cgtop -1 system.slice/hie.service"),
        item(format!("Verify response times: P95 below {:.0} ms, P99 below {:.0} ms", limits.p95_ms, limits.p99_ms), live),
        item(
            "Test peak load scenarios, on a node that is not in production",
            "hie send --mllp HOST:2575 --fresh-ids --count 100000 --connections 16 samples/hl7v2",
        ),
        item("Document new capacity", format!("hie check --config {CONFIG} --json > hie-after.json")),
    ];
    Checklist { before, during, after }
}
