//! Telemetry: typed events. One struct is one log line and one metric; nothing else writes either.
//! No field may hold a body, a patient's name or an identifier.

use prometheus_client::registry::{Metric, Registry};
use std::sync::{LazyLock, Mutex};

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(|| Mutex::new(Registry::with_prefix("hie")));

/// Registers a metric of the node; called once per metric, by the `LazyLock` that holds it.
pub fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    REGISTRY.lock().unwrap_or_else(|e| e.into_inner()).register(name, help, metric.clone());
    metric
}

/// All metrics in the Prometheus text format.
pub fn encode() -> String {
    let mut text = String::new();
    let registry = REGISTRY.lock().unwrap_or_else(|e| e.into_inner());
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}
