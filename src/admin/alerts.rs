//! Alerts: what is wrong now, what happened lately, and a test of every receiver.

use super::{error::ApiError, filter::timestamp, shared::App};
use crate::alert::{Alert, Event, Tested};
use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

/// Events shown.
const RECENT: usize = 100;

/// One alert.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AlertView {
    /// Number of the event with which it began.
    id: u64,
    rule: &'static str,
    /// `warning` or `critical`.
    severity: &'static str,
    /// Route (`channel/route`), channel, client, listener, or `node`.
    subject: String,
    /// What was measured.
    value: f64,
    /// From where on it is wrong.
    threshold: f64,
    summary: String,
    /// What to do next.
    advice: &'static str,
    since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<String>,
}

/// What happened to an alert.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventView {
    id: u64,
    timestamp: String,
    /// `firing`, `changed` or `resolved`.
    event: String,
    alert: AlertView,
}

/// What is wrong now and what happened lately.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AlertsView {
    /// The worst first.
    active: Vec<AlertView>,
    /// The last hundred events, newest first.
    recent: Vec<EventView>,
}

/// What became of a test notification.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TestView {
    /// `webhook` or `mail`.
    kind: &'static str,
    receiver: String,
    arrived: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

impl From<Alert> for AlertView {
    fn from(alert: Alert) -> Self {
        Self {
            id: alert.id,
            rule: alert.rule.as_str(),
            severity: alert.severity.as_str(),
            subject: alert.subject.to_string(),
            value: alert.value,
            threshold: alert.threshold,
            advice: alert.advice(),
            since: timestamp(alert.since_ms),
            ended: alert.ended_ms.map(timestamp),
            summary: alert.summary,
        }
    }
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self { id: event.id, timestamp: timestamp(event.at_ms), event: event.kind, alert: event.alert.into() }
    }
}

#[utoipa::path(get, path = "/alerts", tag = "alerts", responses((status = 200, body = AlertsView)))]
/// What is wrong now, and what happened lately.
pub(super) async fn list(State(app): State<App>) -> Json<AlertsView> {
    let alerts = &app.state.alerts;
    let recent = alerts.recent(RECENT).into_iter().map(Into::into).collect();
    Json(AlertsView { active: alerts.active().into_iter().map(Into::into).collect(), recent })
}

#[utoipa::path(post, path = "/alerts/test", tag = "alerts",
    responses((status = 200, body = [TestView]), (status = 503, description = "another test is under way", body = super::error::ErrorBody)))]
/// Sends a test notification to every receiver and tells of each whether it arrived.
pub(super) async fn test(State(app): State<App>) -> Result<Json<Vec<TestView>>, ApiError> {
    let told = app.state.alerts.test().await;
    let told = told.ok_or_else(|| ApiError::unavailable("another test is under way", "ask again when it is over"))?;
    let view = |Tested { kind, receiver, arrived, error }| TestView { kind, receiver, arrived, error };
    Ok(Json(told.into_iter().map(view).collect()))
}
