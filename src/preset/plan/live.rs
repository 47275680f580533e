//! What a running node tells of itself, read from the answers of its management API.

use serde::Serialize;
use serde_json::Value;

/// Figures of a running node; `None` where it does not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Live {
    /// Connections to the live feed.
    pub connections: Option<u64>,
    /// Resources with a connection.
    pub resources: Option<u64>,
    pub max_connections_per_resource: Option<u64>,
    /// To all resources together.
    pub max_connections: Option<u64>,
    pub connection_timeout_minutes: Option<f64>,
    pub memory_bytes: Option<u64>,
    /// What the machine, or its control group, allows.
    pub memory_limit_bytes: Option<u64>,
    pub cpu_average_percent: Option<f64>,
    pub cpu_peak_percent: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// Times that a limit turned somebody away since the start.
    pub limit_warnings: Option<u64>,
    /// Messages a day at the rate since the start.
    pub messages_per_day: Option<f64>,
    /// Bytes on disk for one message.
    pub stored_bytes_per_message: Option<f64>,
}

/// Messages from which on their mean says something.
const ENOUGH: f64 = 100.0;
/// Seconds; a day is not told from less than an hour.
const LONG_ENOUGH: f64 = 3600.0;

impl Live {
    /// From `/status`, the text of `/metrics`, and `/api/admin/system-stats` where the node has it.
    pub fn read(status: &Value, metrics: &str, stats: Option<&Value>) -> Self {
        let stats = stats.unwrap_or(&Value::Null);
        let at = |pointers: &[&str]| pointers.iter().find_map(|p| number(stats.pointer(p)?));
        let whole = |pointers: &[&str]| at(pointers).map(|n| n.max(0.0) as u64);
        let sum = |name: &str| metric(metrics, name, |_| true);
        let uptime = sum("hie_uptime_seconds").or_else(|| number(status.get("uptime")?)).filter(|s| *s > 0.0);
        let accepted = sum("hie_messages_accepted_total");
        let (bytes, stored) = (status.pointer("/ledger/bytes"), status.pointer("/ledger/transactions"));
        let stored = stored.and_then(number).filter(|n| *n >= ENOUGH);
        let turned_away = [
            metric(metrics, "hie_inbound_connections_cut_total", |labels| labels.contains("reason=\"limit\"")),
            metric(metrics, "hie_feed_refused_total", |labels| !labels.contains("scope=\"draining\"")),
            sum("hie_push_back"),
        ];
        let seconds = |q: f64| quantile(metrics, "hie_accept_seconds", q).map(|s| s * 1000.0);
        Self {
            connections: whole(&["/sse/totalConnections"]),
            resources: whole(&["/sse/resourceCount"]),
            max_connections_per_resource: whole(&["/sse/maxConnectionsPerResource"]),
            connection_timeout_minutes: at(&["/sse/connectionTimeout"]).map(|ms| ms / 60_000.0),
            max_connections: whole(&["/hie/feed/maxConnections"]),
            // Together with its limit, so that both are of the process, or both of the machine.
            memory_bytes: whole(&["/hie/memory/used"]).or_else(|| Some(number(status.get("memory")?)? as u64)),
            memory_limit_bytes: whole(&["/hie/memory/total"]),
            cpu_average_percent: at(&["/hie/cpu/averagePercent"]),
            cpu_peak_percent: at(&["/hie/cpu/peakPercent"]),
            p50_ms: slowest(stats, "p50").or_else(|| seconds(0.50)),
            p95_ms: slowest(stats, "p95").or_else(|| seconds(0.95)),
            p99_ms: slowest(stats, "p99").or_else(|| seconds(0.99)),
            limit_warnings: turned_away.iter().flatten().copied().reduce(|a, b| a + b).map(|n| n as u64),
            messages_per_day: accepted
                .zip(uptime)
                .filter(|(n, s)| *n >= ENOUGH && *s >= LONG_ENOUGH)
                .map(|(n, s)| n / s * 86_400.0),
            stored_bytes_per_message: bytes.and_then(number).zip(stored).map(|(bytes, n)| bytes / n),
        }
    }
}

/// A quantile of the channel that answers slowest, in milliseconds.
fn slowest(stats: &Value, quantile: &str) -> Option<f64> {
    let channels = stats.pointer("/hie/channels")?.as_array()?;
    channels.iter().filter_map(|c| number(c.get("answered")?.get(quantile)?)).reduce(f64::max)
}

/// A number, also one that was written as text (the guide's `utilizationPercent` is).
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).filter(|n| n.is_finite())
}

/// The samples of a metric in the Prometheus text format: labels (with braces, may be empty) and value.
fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let own = labels.is_empty() || labels.starts_with('{');
        own.then(|| value.parse().ok().map(|value| (labels, value)))?
    })
}

/// Sum over the samples whose labels are wanted; `None` without any.
fn metric(text: &str, name: &str, wanted: impl Fn(&str) -> bool) -> Option<f64> {
    samples(text, name).filter(|(labels, _)| wanted(labels)).map(|(_, value)| value).reduce(|a, b| a + b)
}

/// The upper end of the bucket that holds the quantile, over all series of a histogram; `None` without observations.
fn quantile(text: &str, name: &str, q: f64) -> Option<f64> {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for (labels, count) in samples(text, &format!("{name}_bucket")) {
        let bound = labels.split("le=\"").nth(1)?.split('"').next()?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
        match buckets.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, sum)) => *sum += count,
            None => buckets.push((bound, count)),
        }
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (_, all) = buckets.last().copied().filter(|(_, all)| *all > 0.0)?;
    let at = buckets.iter().position(|(_, below)| *below >= all * q)?;
    let finite = |n: usize| buckets.get(n).map(|(bound, _)| *bound).filter(|bound| bound.is_finite());
    finite(at).or_else(|| finite(at.checked_sub(1)?))
}
