//! Telemetry: typed events. One struct is one log line and one metric; nothing else writes either.
//! No field may hold a body, a patient's name or an identifier.

pub mod admin;
pub mod alert;
pub mod app;
pub mod broker;
pub mod cgroup;
pub mod cluster;
pub mod discovery;
pub mod engine;
pub mod feed;
pub mod host;
pub mod inbound;
mod latency;
pub mod outbound;
pub mod peer;
mod process;
mod text;
pub mod usage;

pub use latency::Latency;
pub use process::{Memory, cpu_times, resident_bytes, resident_parts, uptime};
pub mod ledger;
pub mod rule;

use prometheus_client::registry::{Metric, Registry};
use std::sync::{LazyLock, Mutex};

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(|| Mutex::new(Registry::with_prefix("hie")));

/// Registers a metric of the node; called once per metric, by the `LazyLock` that holds it.
pub fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    REGISTRY.lock().unwrap_or_else(|e| e.into_inner()).register(name, help, metric.clone());
    metric
}

/// All metrics in the Prometheus text format, version 0.0.4.
pub fn encode() -> String {
    // Metrics that nothing has touched yet still belong into the answer: alert rules refer to them.
    engine::touch();
    admin::touch();
    alert::touch();
    app::touch();
    cluster::touch();
    discovery::touch();
    feed::touch();
    host::touch();
    ledger::touch();
    peer::touch();
    let mut open = String::with_capacity(16 * 1024);
    {
        let registry = REGISTRY.lock().unwrap_or_else(|e| e.into_inner());
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut open, &registry);
    }
    let mut out = text::classic(&open);
    process::encode(&mut out);
    out
}

#[cfg(test)]
mod tests;
