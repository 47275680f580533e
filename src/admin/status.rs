//! The node itself: status, health on this listener, OpenHIM's heartbeat, metrics, drain.

use super::{
    error::ApiError,
    health::{self, Health},
    shared::App,
};
use crate::telemetry::{self, admin::Changed};
use axum::{Json, extract::State, response::IntoResponse};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// OpenHIM's heartbeat.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Heartbeat {
    /// Seconds since start.
    master: f64,
}

impl Heartbeat {
    pub fn now() -> Self {
        Self { master: telemetry::uptime().as_secs_f64() }
    }
}

/// The node, for `hie status`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    node: String,
    domain: String,
    version: String,
    /// Seconds since start.
    uptime: f64,
    /// Can it accept durably?
    ready: bool,
    /// What is missing, when not.
    missing: Vec<String>,
    /// Accepted and unfinished messages.
    pending: u64,
    /// Messages set aside, all routes.
    parked: u64,
    /// Routes held by an operator, `channel/route`.
    paused: Vec<String>,
    /// Routes that are not configured any more and still hold messages, `channel/route: n`.
    not_configured: Vec<String>,
    /// Readers of the live feed.
    feed_connections: usize,
    /// How many may be.
    feed_limit: usize,
    /// Resident memory in bytes.
    memory: Option<u64>,
    /// The ledger's figures.
    #[schema(value_type = Object)]
    ledger: serde_json::Value,
    /// What an operator should look at.
    problems: Vec<String>,
}

#[utoipa::path(get, path = "/heartbeat", tag = "node", security(()), responses((status = 200, body = Heartbeat)))]
/// Seconds since start, as OpenHIM tells it.
pub(super) async fn heartbeat() -> Json<Heartbeat> {
    Json(Heartbeat::now())
}

#[utoipa::path(get, path = "/health/live", tag = "node", security(()), responses((status = 200, body = Health)))]
/// Is the node's process alive?
pub(super) async fn live() -> Json<Health> {
    health::live()
}

#[utoipa::path(get, path = "/health/ready", tag = "node", security(()),
    responses((status = 200, body = Health), (status = 503, body = Health, description = "names what is missing")))]
/// Can the node accept durably?
pub(super) async fn ready(State(app): State<App>) -> (StatusCode, Json<Health>) {
    let control = app.state.control.clone();
    health::ready(Arc::new(move || control.not_ready())).await
}

#[utoipa::path(get, path = "/metrics", tag = "node", responses((status = 200, description = "Prometheus text format 0.0.4", body = String, content_type = "text/plain")))]
/// All metrics.
pub(super) async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    // Looking at the routes sets their gauges.
    app.blocking(|state| state.control.routes()).await?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"))], telemetry::encode()))
}

#[utoipa::path(get, path = "/status", tag = "node", responses((status = 200, body = Status)))]
/// The node: what it is, how it is, what it has in hand.
pub(super) async fn status(State(app): State<App>) -> Result<Json<Status>, ApiError> {
    let status = app.blocking(|state| {
        let feed = state.feed.stats();
        let (info, missing, routes) = (&state.info, state.control.not_ready(), state.control.routes());
        Status {
            node: info.node.clone(),
            domain: info.domain.clone(),
            version: info.version.clone(),
            uptime: telemetry::uptime().as_secs_f64(),
            ready: missing.is_empty(),
            missing,
            pending: state.control.pending(),
            parked: routes.iter().map(|r| r.parked).sum(),
            paused: routes.iter().filter(|r| r.paused).map(|r| format!("{}/{}", r.channel, r.route)).collect(),
            not_configured: routes
                .iter()
                .filter(|r| !r.configured)
                .map(|r| format!("{}/{}: {}", r.channel, r.route, r.pending + r.parked))
                .collect(),
            feed_connections: feed.total,
            feed_limit: feed.max_total,
            memory: telemetry::resident_bytes(),
            ledger: state.records.stats(),
            problems: [state.records.problems(), state.cluster.problems()].concat(),
        }
    });
    status.await.map(Json)
}

#[utoipa::path(post, path = "/drain", tag = "node", responses((status = 202, description = "{\"draining\": true}")))]
/// Finishes what is in hand and ends the node.
pub(super) async fn drain(State(app): State<App>) -> (StatusCode, Json<serde_json::Value>) {
    Changed { what: "node", name: &app.state.info.node, action: "drain" }.emit();
    app.state.drain.cancel();
    (StatusCode::ACCEPTED, Json(serde_json::json!({ "draining": true })))
}
