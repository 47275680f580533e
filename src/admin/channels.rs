//! Channels: the ones in force, kept as files in `channels.d`. A change is tried on the engine first, which refuses a wrong one as a
//! whole, then written; when it cannot be written it is taken back.

use super::{
    AdminState,
    caching::{if_match, newest},
    error::ApiError,
    extract::{Body, wrong_json},
    files::Tables,
    shared::App,
};
use crate::{
    channel::{Channel, load::explain},
    telemetry::admin::Changed,
};
use axum::{
    Extension, Json,
    extract::{Path, State},
    response::IntoResponse,
};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value};

const HINT: &str = "the keys are those of a [[channel]] in channels.d; `route` is the list of routes";

#[utoipa::path(get, path = "/channels", tag = "channels", responses((status = 200, description = "as in channels.d, with `_id`", body = [Object])))]
/// The channels in force, in the order in which they are asked.
pub(super) async fn list(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    let shown = app.blocking(|state| {
        let all = state.control.channels().iter().map(show).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, ApiError>((newest(&state.channels).map(Extension), Json(all)))
    });
    shown.await?
}

#[utoipa::path(get, path = "/channels/{name}", tag = "channels", params(("name" = String, Path)), responses((status = 200, body = Object), (status = 404, body = super::error::ErrorBody)))]
/// One channel.
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Result<impl IntoResponse, ApiError> {
    let shown = app.blocking(move |state| {
        let found = state.control.channels().into_iter().find(|c| c.name == name);
        let shown = show(&found.ok_or_else(|| ApiError::not_found("channel"))?)?;
        Ok::<_, ApiError>((newest(&state.channels).map(Extension), Json(shown)))
    });
    shown.await?
}

/// `If-Match` against the channel in force.
fn unchanged(state: &AdminState, headers: &HeaderMap, name: &str) -> Result<(), ApiError> {
    let now = state.control.channels().iter().find(|c| c.name == name).map(show).transpose()?;
    if_match(headers, now.as_ref().map(|shown| (shown, None)))
}

#[utoipa::path(post, path = "/channels", tag = "channels", request_body = Object, responses((status = 201, body = Object), (status = 400, body = super::error::ErrorBody), (status = 409, body = super::error::ErrorBody)))]
/// Adds a channel.
pub(super) async fn create(State(app): State<App>, Body(json): Body<Value>) -> Result<(StatusCode, Json<Value>), ApiError> {
    let channel = read(json, None)?;
    let _one_at_a_time = app.edit.lock().await;
    let shown = app.blocking(move |state| {
        let _held = held(state);
        let mut channels = state.control.channels();
        if channels.iter().any(|c| c.name == channel.name) {
            return Err(ApiError::conflict("a channel of this name is there", "PUT /channels/{name} changes it"));
        }
        channels.push(channel.clone());
        put(state, channels, &channel, "create")
    });
    Ok((StatusCode::CREATED, Json(shown.await??)))
}

#[utoipa::path(put, path = "/channels/{name}", tag = "channels", params(("name" = String, Path)), request_body = Object, responses((status = 200, body = Object), (status = 400, body = super::error::ErrorBody), (status = 404, body = super::error::ErrorBody), (status = 412, description = "`If-Match` names another state", body = super::error::ErrorBody)))]
/// Changes a channel: what is not given goes back to its default.
pub(super) async fn update(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(json): Body<Value>,
) -> Result<Json<Value>, ApiError> {
    let channel = read(json, Some(&name))?;
    let _one_at_a_time = app.edit.lock().await;
    let shown = app.blocking(move |state| {
        let _held = held(state);
        own(state, &channel.name)?;
        unchanged(state, &headers, &channel.name)?;
        let mut channels = state.control.channels();
        let old = channels.iter_mut().find(|c| c.name == channel.name).ok_or_else(|| ApiError::not_found("channel"))?;
        *old = channel.clone();
        put(state, channels, &channel, "update")
    });
    Ok(Json(shown.await??))
}

#[utoipa::path(delete, path = "/channels/{name}", tag = "channels", params(("name" = String, Path)), responses((status = 204), (status = 404, body = super::error::ErrorBody), (status = 409, body = super::error::ErrorBody), (status = 412, description = "`If-Match` names another state", body = super::error::ErrorBody)))]
/// Removes a channel.
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    let _one_at_a_time = app.edit.lock().await;
    app.blocking(move |state| {
        let _held = held(state);
        own(state, &name)?;
        unchanged(state, &headers, &name)?;
        let old = state.control.channels();
        let channels: Vec<Channel> = old.iter().filter(|c| c.name != name).cloned().collect();
        if channels.len() == old.len() {
            return Err(ApiError::not_found("channel"));
        }
        swap(state, channels.clone(), || {
            write_missing(state, &channels)?;
            files(state).remove(&name)
        })?;
        Changed { what: "channel", name: &name, action: "delete" }.emit();
        Ok(StatusCode::NO_CONTENT)
    })
    .await?
}

/// Nobody else changes the channels in force meanwhile.
fn held(state: &AdminState) -> std::sync::MutexGuard<'_, ()> {
    state.changes.lock().unwrap_or_else(|e| e.into_inner())
}

/// A channel that the domain shares is changed where it is.
fn own(state: &AdminState, name: &str) -> Result<(), ApiError> {
    match state.cluster.shared_channels().get(name) {
        Some(place) => {
            Err(ApiError::conflict(format!("the channel is shared by the domain's nodes: {place}"), "change it there"))
        }
        None => Ok(()),
    }
}

fn files(state: &AdminState) -> Tables<'_> {
    Tables { folder: &state.channels, table: "channel", mode: 0o644 }
}

fn put(state: &AdminState, channels: Vec<Channel>, channel: &Channel, action: &'static str) -> Result<Value, ApiError> {
    swap(state, channels.clone(), || {
        files(state).put(&channel.name, &table(channel)?)?;
        write_missing(state, &channels)
    })?;
    Changed { what: "channel", name: &channel.name, action }.emit();
    show(channel)
}

/// Puts channels in force and writes them; back to the old ones when they cannot be written.
fn swap<T>(state: &AdminState, channels: Vec<Channel>, write: impl FnOnce() -> Result<T, ApiError>) -> Result<(), ApiError> {
    let old = state.control.channels();
    state.control.set_channels(channels).map_err(|e| match e {
        crate::engine::ports::ControlError::Conflict(why) => ApiError::bad(why, HINT),
        other => other.into(),
    })?;
    write().map(drop).inspect_err(|_| {
        // They were in force a moment ago, so that nothing in them can be wrong.
        let _ = state.control.set_channels(old);
    })
}

/// Writes the channels that are in force and in no file: those of the built-in sample set would be gone at the next start, when
/// there are files.
fn write_missing(state: &AdminState, channels: &[Channel]) -> Result<(), ApiError> {
    let (files, there, shared) = (files(state), files(state).all()?, state.cluster.shared_channels());
    for channel in channels.iter().filter(|c| !there.contains_key(&c.name) && !shared.contains_key(&c.name)) {
        files.put(&channel.name, &table(channel)?)?;
    }
    Ok(())
}

fn table(channel: &Channel) -> Result<toml::Table, ApiError> {
    toml::Table::try_from(channel).map_err(|_| ApiError::bad("the channel cannot be written as TOML", HINT))
}

fn show(channel: &Channel) -> Result<Value, ApiError> {
    let mut value = serde_json::to_value(channel).map_err(|_| ApiError::internal())?;
    if let Some(map) = value.as_object_mut() {
        map.insert("_id".into(), channel.name.clone().into());
    }
    Ok(value)
}

/// A channel from JSON: `_id` is the name, `routes` another word for `route`.
fn read(json: Value, name: Option<&str>) -> Result<Channel, ApiError> {
    let Value::Object(mut map) = json else { return Err(ApiError::bad("a channel is a JSON object", HINT)) };
    if let Some(routes) = map.remove("routes") {
        map.insert("route".into(), routes);
    }
    let id = map.remove("_id");
    if !map.contains_key("name")
        && let Some(id) = id.or_else(|| name.map(Value::from))
    {
        map.insert("name".into(), id);
    }
    drop_nulls(&mut map);
    let channel: Channel = serde_json::from_value(Value::Object(map)).map_err(|e| match e.line() {
        // From a value there is no place to tell; what the message repeats is configuration.
        0 => ApiError::bad(explain(&e.to_string()), HINT),
        _ => wrong_json(&e),
    })?;
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !channel.name.chars().all(fine) || channel.name.starts_with('.') || channel.name.is_empty() || channel.name.len() > 128 {
        return Err(ApiError::bad("a channel's name is namespace.name: letters, digits, '-', '_' and dots, at most 128", HINT));
    }
    match name {
        Some(name) if name != channel.name => {
            Err(ApiError::bad("a channel keeps its name", "create another one and delete this one"))
        }
        _ => Ok(channel),
    }
}

fn drop_nulls(map: &mut Map<String, Value>) {
    map.retain(|_, v| !v.is_null());
}
