//! What an operator does about deliveries: run again, put back, give up; hold a route, let it go on.

use super::{
    error::ApiError,
    extract::{Body, Id},
    shared::App,
};
use crate::{
    engine::{fact::BodyRef, ports::RouteStatus},
    message::MessageId,
    telemetry::admin::Changed,
};
use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OnRoute {
    /// Of this route only.
    route: Option<String>,
}

/// What became of one transaction.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rerun {
    /// The new transaction.
    #[serde(rename = "_id")]
    id: String,
    /// The old one.
    #[serde(rename = "parentID")]
    parent: String,
}

/// How many deliveries.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Deliveries {
    deliveries: u32,
}

/// Runs one message again; the new transaction's id.
pub(super) async fn rerun_one(app: &App, id: MessageId) -> Result<MessageId, ApiError> {
    let detail = app.detail(id).await?;
    let (seq, accepted) = detail
        .accepted()
        .ok_or_else(|| ApiError::conflict("the message was never accepted", "the sender has to send it again"))?;
    if accepted.body == BodyRef::None && accepted.envelope.body_len > 0 {
        return Err(ApiError::conflict(
            "its body is not stored",
            "the channel's `storage` keeps none; the sender has to send it again",
        ));
    }
    let body = app.state.records.read(seq, &accepted.body);
    Ok(app.state.control.rerun(accepted.clone(), body).await?)
}

#[utoipa::path(post, path = "/transactions/{id}/rerun", tag = "transactions", params(("id" = String, Path)),
    responses((status = 201, body = Rerun), (status = 409, body = super::error::ErrorBody)))]
/// Runs the message again as a new transaction.
pub(super) async fn rerun(State(app): State<App>, Id(id): Id) -> Result<(StatusCode, Json<Rerun>), ApiError> {
    let new = rerun_one(&app, id).await?;
    changed("rerun", id);
    Ok((StatusCode::CREATED, Json(Rerun { id: new.to_string(), parent: id.to_string() })))
}

#[utoipa::path(post, path = "/transactions/{id}/requeue", tag = "transactions", params(("id" = String, Path)), request_body = OnRoute,
    responses((status = 200, body = Deliveries), (status = 404, body = super::error::ErrorBody), (status = 409, body = super::error::ErrorBody)))]
/// Puts the message's parked deliveries back into their queues.
pub(super) async fn requeue(State(app): State<App>, Id(id): Id, Body(on): Body<OnRoute>) -> Result<Json<Deliveries>, ApiError> {
    let deliveries = app.state.control.requeue(id, on.route.as_deref()).await?;
    changed("requeue", id);
    Ok(Json(Deliveries { deliveries }))
}

#[utoipa::path(post, path = "/transactions/{id}/discard", tag = "transactions", params(("id" = String, Path)), request_body = OnRoute,
    responses((status = 200, body = Deliveries), (status = 404, body = super::error::ErrorBody), (status = 409, body = super::error::ErrorBody)))]
/// Gives up the message's deliveries that are parked, or wait on a route that is paused or not configured any more. One in hand
/// is never given up.
pub(super) async fn discard(State(app): State<App>, Id(id): Id, Body(on): Body<OnRoute>) -> Result<Json<Deliveries>, ApiError> {
    let deliveries = app.state.control.discard(id, on.route.as_deref()).await?;
    if deliveries == 0 {
        return Err(nothing_to_discard());
    }
    changed("discard", id);
    Ok(Json(Deliveries { deliveries }))
}

pub(super) fn nothing_to_discard() -> ApiError {
    ApiError::conflict("no delivery of it waits or is parked", "see its routes in GET /transactions/ID")
}

fn changed(action: &'static str, id: MessageId) {
    Changed { what: "delivery", name: &id.to_string(), action }.emit();
}

#[utoipa::path(get, path = "/routes", tag = "routes", responses((status = 200, description = "channel, route, primary, configured, paused, paused_by (operator, configuration), pending, in_flight, parked, oldest_ms, last_error", body = [Object])))]
/// All routes and how they stand.
pub(super) async fn routes(State(app): State<App>) -> Result<Json<Vec<RouteStatus>>, ApiError> {
    app.blocking(|state| state.control.routes()).await.map(Json)
}

#[utoipa::path(post, path = "/routes/{channel}/{route}/pause", tag = "routes", params(("channel" = String, Path), ("route" = String, Path)),
    responses((status = 200, body = Object), (status = 404, body = super::error::ErrorBody)))]
/// Holds a route until it is resumed, also over restarts: deliveries in hand end, new ones wait, accepting goes on.
pub(super) async fn pause(
    State(app): State<App>,
    Path((channel, route)): Path<(String, String)>,
) -> Result<Json<RouteStatus>, ApiError> {
    change(app, channel, route, true).await
}

#[utoipa::path(post, path = "/routes/{channel}/{route}/resume", tag = "routes", params(("channel" = String, Path), ("route" = String, Path)),
    responses((status = 200, body = Object), (status = 404, body = super::error::ErrorBody)))]
/// Lets a route go on.
pub(super) async fn resume(
    State(app): State<App>,
    Path((channel, route)): Path<(String, String)>,
) -> Result<Json<RouteStatus>, ApiError> {
    change(app, channel, route, false).await
}

async fn change(app: App, channel: String, route: String, pause: bool) -> Result<Json<RouteStatus>, ApiError> {
    // It is written to disk.
    let (c, r) = (channel.clone(), route.clone());
    app.blocking(move |state| if pause { state.control.pause(&c, &r) } else { state.control.resume(&c, &r) }).await??;
    let action = if pause { "pause" } else { "resume" };
    Changed { what: "route", name: &format!("{channel}/{route}"), action }.emit();
    let found =
        app.blocking(move |state| state.control.routes().into_iter().find(|r| r.channel == channel && r.route == route)).await?;
    found.map(Json).ok_or_else(|| ApiError::not_found("the route"))
}
