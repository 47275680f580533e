//! Health, for balancers and discovery: a listener, a thread and a runtime that share nothing with the management API, and no
//! credential. Live: this thread runs. Ready: the node can accept durably.

use super::{serve, status::Heartbeat};
use crate::{engine::ports::NotReady, telemetry};
use axum::{Json, Router, extract::State, routing::get};
use http::StatusCode;
use serde::Serialize;
use std::{io, net::TcpListener, sync::Arc, thread::JoinHandle, time::Duration};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

/// Tells what stands in the way of being ready; empty when ready.
pub type Readiness = Arc<dyn Fn() -> NotReady + Send + Sync>;

/// How long the node may take to say whether it is ready.
const PATIENCE: Duration = Duration::from_secs(2);

/// The answer about health.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok` or `not ready`.
    pub status: &'static str,
    /// What is missing; empty when ready.
    pub missing: Vec<String>,
}

/// Serves `/health/live`, `/health/ready` and `/heartbeat` on a thread of its own until `stop`.
/// Fails when the thread or its runtime cannot be started.
pub fn spawn(listener: TcpListener, readiness: Readiness, stop: CancellationToken) -> io::Result<JoinHandle<()>> {
    let router = Router::new()
        .route("/health/live", get(async || live()))
        .route("/health/ready", get(async |State(readiness): State<Readiness>| ready(readiness).await))
        .route("/heartbeat", get(async || Json(Heartbeat::now())))
        .with_state(readiness);
    serve::spawn("hie-health", "health", listener, router, None, stop)
}

/// Alive, whatever else is wrong.
pub(super) fn live() -> Json<Health> {
    Json(Health { status: "ok", missing: Vec::new() })
}

/// 200 when ready, else 503 with what is missing.
pub(super) async fn ready(readiness: Readiness) -> (StatusCode, Json<Health>) {
    // On another thread: whoever holds a lock that the answer needs must not hold up the next question.
    let asked = tokio::task::spawn_blocking(move || readiness());
    let missing = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(missing)) => missing,
        _ => vec![format!("the node does not answer (up for {} s)", telemetry::uptime().as_secs())],
    };
    match missing.is_empty() {
        true => (StatusCode::OK, Json(Health { status: "ok", missing })),
        false => (StatusCode::SERVICE_UNAVAILABLE, Json(Health { status: "not ready", missing })),
    }
}
