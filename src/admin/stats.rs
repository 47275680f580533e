//! Statistics under the field names of the vertical-scaling guide: `/api/sse/stats` and `/api/admin/system-stats`.
//! What the guide has no name for is under `hie`.

use super::{error::ApiError, feed::FeedStats, shared::App};
use crate::{
    preset::{planning, planning::Thresholds},
    telemetry::{
        self,
        usage::{self, ChannelLatency, Quantiles, Usage},
    },
};
use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;
use utoipa::ToSchema;

/// The live feed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sse {
    /// Readers now.
    total_connections: usize,
    /// Resources with at least one.
    resource_count: usize,
    /// `feed.max_connections_per_resource`.
    max_connections_per_resource: usize,
    /// `feed.timeout`, milliseconds.
    connection_timeout: u64,
}

impl Sse {
    fn of(feed: &FeedStats) -> Self {
        Self {
            total_connections: feed.total,
            resource_count: feed.by_resource.len(),
            max_connections_per_resource: feed.max_per_resource,
            connection_timeout: u64::try_from(feed.timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Places: those of the resources that are listened to.
    fn capacity(&self) -> usize {
        self.max_connections_per_resource.saturating_mul(self.resource_count)
    }

    /// Percent of them that are taken.
    fn utilization(&self) -> f64 {
        match self.capacity() {
            0 => 0.0,
            capacity => self.total_connections as f64 / capacity as f64 * 100.0,
        }
    }
}

/// From where on a value is a warning (the guide's "warning signs"), and what to do then.
struct Threshold {
    name: &'static str,
    limit: fn(&Thresholds) -> f64,
    unit: &'static str,
    action: &'static str,
}

const SSE: Threshold = Threshold {
    name: "sse",
    limit: |t| t.utilization_percent,
    unit: "percent of the places of the resources listened to",
    action: "raise feed.max_connections_per_resource",
};
const BUSIEST: Threshold = Threshold {
    name: "sse-busiest-resource",
    limit: |t| t.utilization_percent,
    unit: "percent of the places of the fullest resource",
    action: "raise feed.max_connections_per_resource, or have its readers use narrower resources",
};
const TOTAL: Threshold = Threshold {
    name: "sse-total",
    limit: |t| t.utilization_percent,
    unit: "percent of feed.max_connections",
    action: "raise feed.max_connections; each reader needs a file descriptor",
};
const MEMORY: Threshold = Threshold {
    name: "memory",
    limit: |t| t.memory_percent,
    unit: "percent of what there is",
    action: "give the machine or the control group more memory, or lower limits.hot_bodies and feed.max_connections",
};
const CPU: Threshold = Threshold {
    name: "cpu",
    limit: |t| t.cpu_percent,
    unit: "percent of the processors, mean of five minutes",
    action: "give the machine more cores, or take a larger preset",
};
const P95: Threshold = Threshold {
    name: "p95",
    limit: |t| t.p95_ms,
    unit: "milliseconds until the sender is answered, slowest channel",
    action: "see which channel under hie.channels: in proxy mode look at its upstream, in queue mode at the disk",
};
const P99: Threshold = Threshold { name: "p99", limit: |t| t.p99_ms, ..P95 };

impl Threshold {
    fn judge(&self, value: f64) -> Value {
        let limit = (self.limit)(&planning().thresholds);
        let warning = value >= limit;
        json!({
            "name": self.name,
            "status": if warning { "warning" } else { "healthy" },
            "value": rounded(value),
            "threshold": limit,
            "unit": self.unit,
            "action": if warning { self.action } else { "" },
        })
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn ms(duration: Option<Duration>) -> Option<f64> {
    duration.map(|d| rounded(d.as_secs_f64() * 1000.0))
}

fn quantiles(q: &Quantiles) -> Value {
    json!({ "count": q.count, "p50": ms(q.p50), "p95": ms(q.p95), "p99": ms(q.p99) })
}

fn health(sse: &Sse, feed: &FeedStats, usage: &Usage, channels: &[ChannelLatency]) -> Value {
    let percent = |n: usize, of: usize| if of == 0 { 0.0 } else { n as f64 / of as f64 * 100.0 };
    let fullest = feed.by_resource.iter().map(|(_, n)| *n).max().unwrap_or(0);
    let slowest = |pick: fn(&Quantiles) -> Option<Duration>| {
        let all = channels.iter().filter_map(|c| ms(pick(&c.answered)));
        all.fold(0.0, f64::max)
    };
    let checks = [
        SSE.judge(sse.utilization()),
        BUSIEST.judge(percent(fullest, feed.max_per_resource)),
        TOTAL.judge(percent(feed.total, feed.max_total)),
        MEMORY.judge(usage.memory_percent()),
        CPU.judge(usage.cpu_average),
        P95.judge(slowest(|q| q.p95)),
        P99.judge(slowest(|q| q.p99)),
    ];
    let warning = checks.iter().any(|c| c["status"] == "warning");
    json!({ "status": if warning { "warning" } else { "healthy" }, "checks": checks })
}

/// Minutes as the guide's variable has them.
fn minutes(duration: Duration) -> String {
    rounded(duration.as_secs_f64() / 60.0).to_string()
}

/// The whole answer.
fn document(feed: &FeedStats, usage: &Usage, channels: &[ChannelLatency]) -> Value {
    let sse = Sse::of(feed);
    let memory = telemetry::resident_parts();
    let (user, system) = telemetry::cpu_times().unwrap_or_default();
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let readers: Vec<Value> =
        feed.by_resource.iter().map(|(r, n)| json!({ "resource": r.to_string(), "connections": n })).collect();
    let latencies: Vec<Value> = channels
        .iter()
        .map(|c| json!({ "channel": c.channel, "answered": quantiles(&c.answered), "delivered": quantiles(&c.delivered) }))
        .collect();
    json!({
        "sse": {
            "totalConnections": sse.total_connections,
            "resourceCount": sse.resource_count,
            "maxConnectionsPerResource": sse.max_connections_per_resource,
            "connectionTimeout": sse.connection_timeout,
            "utilizationPercent": format!("{:.2}", sse.utilization()),
            "capacityRemaining": sse.capacity().saturating_sub(sse.total_connections),
        },
        // This release caches no look-ups.
        "cache": { "enabled": false, "size": 0, "hits": 0, "misses": 0 },
        "system": {
            "uptime": telemetry::uptime().as_secs_f64(),
            "memory": {
                "rss": memory.resident,
                "heapTotal": memory.anonymous,
                "heapUsed": memory.anonymous,
                "external": memory.files,
                "arrayBuffers": 0,
            },
            "cpu": { "user": micros(user), "system": micros(system) },
            "nodeVersion": format!("v{}", env!("CARGO_PKG_VERSION")),
            "platform": std::env::consts::OS,
        },
        "config": {
            "maxConnectionsPerResource": feed.max_per_resource.to_string(),
            "connectionTimeout": minutes(feed.timeout),
            "redisEnabled": false,
        },
        "hie": {
            "health": health(&sse, feed, usage, channels),
            "feed": { "maxConnections": feed.max_total, "lag": feed.lag, "resources": readers },
            "memory": {
                "process": usage.process,
                "cgroup": usage.group.map(|g| json!({ "used": g.used, "limit": g.limit })),
                "used": usage.used,
                "total": usage.total,
                "percent": rounded(usage.memory_percent()),
            },
            "cpu": {
                "averagePercent": rounded(usage.cpu_average),
                "peakPercent": rounded(usage.cpu_peak),
                "cores": usage.cores,
                "windowSeconds": usage.window.as_secs(),
            },
            "channels": latencies,
            // The embedded transport has none.
            "broker": { "transport": "embedded", "connections": 0 },
        },
    })
}

#[utoipa::path(get, path = "/api/sse/stats", tag = "feed", responses((status = 200, body = Sse)))]
/// Readers of the live feed, and their limit.
pub(super) async fn sse(State(app): State<App>) -> Json<Sse> {
    Json(Sse::of(&app.state.feed.stats()))
}

#[utoipa::path(get, path = "/api/admin/system-stats", tag = "node", responses((status = 200, body = Object, description = "the guide's fields; more under `hie`, see docs/operations.md")))]
/// How much of the machine the node uses, and whether that is well.
pub(super) async fn system(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    // Reads files of the kernel's.
    app.blocking(|state| document(&state.feed.stats(), &usage::now(), &usage::latencies())).await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::feed::Resource;

    fn feed(readers: usize, resources: usize) -> FeedStats {
        let share = |i: usize| readers / resources + usize::from(i < readers % resources);
        FeedStats {
            total: readers,
            by_resource: (0..resources).map(|i| (Resource::Client(format!("doctor-{i}").into()), share(i))).collect(),
            max_per_resource: 100,
            max_total: 1000,
            timeout: Duration::from_secs(1800),
            lag: 0,
        }
    }

    fn check<'a>(document: &'a Value, name: &str) -> &'a Value {
        let checks = document["hie"]["health"]["checks"].as_array().unwrap();
        checks.iter().find(|c| c["name"] == name).unwrap()
    }

    #[test]
    fn the_guide_s_worked_example() {
        let sse = serde_json::to_value(Sse::of(&feed(85, 15))).unwrap();
        let expected = json!({
            "totalConnections": 85, "resourceCount": 15, "maxConnectionsPerResource": 100, "connectionTimeout": 1_800_000,
        });
        assert_eq!(sse, expected);
        let told = document(&feed(85, 15), &Usage::default(), &[]);
        assert_eq!(told["sse"]["utilizationPercent"], "5.67");
        assert_eq!(told["sse"]["capacityRemaining"], 1415);
        assert_eq!(
            told["config"],
            json!({ "maxConnectionsPerResource": "100", "connectionTimeout": "30", "redisEnabled": false })
        );
        assert_eq!(check(&told, "sse")["status"], "healthy");
        // 1,050 of 1,500 is the guide's warning.
        let told = document(&feed(1050, 15), &Usage::default(), &[]);
        assert_eq!(told["sse"]["utilizationPercent"], "70.00");
        assert_eq!(check(&told, "sse")["status"], "warning");
        assert!(check(&told, "sse")["action"].as_str().unwrap().contains("feed.max_connections_per_resource"));
        let none = document(&FeedStats::default(), &Usage::default(), &[]);
        assert_eq!((&none["sse"]["utilizationPercent"], &none["sse"]["capacityRemaining"]), (&"0.00".into(), &0.into()));
    }

    #[test]
    fn each_threshold_warns_for_itself() {
        let quick = Quantiles { count: 9, p50: Some(Duration::from_millis(45)), ..Quantiles::default() };
        let latency = |p95: u64, p99: u64| {
            let (p95, p99) = (Some(Duration::from_millis(p95)), Some(Duration::from_millis(p99)));
            vec![ChannelLatency { channel: "a.b".into(), answered: Quantiles { p95, p99, ..quick }, delivered: quick }]
        };
        // The guide's healthy figures: 450 MB of 2 GB, 15 % and 45 % of the processor, 45, 120 and 250 ms.
        let usage = Usage { cpu_average: 15.0, cpu_peak: 45.0, used: 450 << 20, total: 2 << 30, ..Usage::default() };
        let well = document(&feed(85, 15), &usage, &latency(120, 250));
        assert_eq!(well["hie"]["health"]["status"], "healthy", "{well}");
        assert_eq!(check(&well, "memory")["value"].as_f64().unwrap().round(), 22.0);
        // Its warning signs: 6.5 of 8 GB, 75 % sustained, 800 and 2,000 ms.
        let gib = |g: f64| (g * f64::from(1 << 30)) as u64;
        let full = Usage { used: gib(6.5), total: gib(8.0), ..usage };
        let busy = Usage { cpu_average: 75.0, cpu_peak: 95.0, ..usage };
        for (name, told) in [
            ("memory", document(&feed(85, 15), &full, &latency(120, 250))),
            ("cpu", document(&feed(85, 15), &busy, &latency(120, 250))),
            ("p95", document(&feed(85, 15), &usage, &latency(800, 999))),
            ("p99", document(&feed(85, 15), &usage, &latency(120, 2000))),
            ("sse-busiest-resource", document(&feed(71, 1), &usage, &[])),
            ("sse-total", document(&feed(700, 70), &usage, &[])),
        ] {
            assert_eq!(told["hie"]["health"]["status"], "warning", "{name}");
            assert_eq!(check(&told, name)["status"], "warning", "{told}");
            assert!(!check(&told, name)["action"].as_str().unwrap().is_empty());
        }
    }
}
