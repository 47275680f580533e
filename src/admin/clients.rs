//! Clients: the ones in force, kept as files in `clients.d`. Credentials go in and never come out: a password is hashed before
//! it is written, a token likewise.

use super::{
    AdminState,
    caching::{Hidden, if_match, newest},
    error::ApiError,
    extract::Body,
    files::Tables,
    shared::App,
};
use crate::{
    channel::client::{self, Client, Rate},
    config::clients::{resolve, token_sha256},
    engine::directory::hash_password,
    telemetry::admin::Changed,
};
use axum::{
    Extension, Json,
    extract::{Path, State},
    response::IntoResponse,
};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const HINT: &str = "see NewClient in /openapi.json";

/// A client without its credentials.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ClientView {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "clientID")]
    client_id: String,
    name: String,
    roles: Vec<String>,
    /// Common name or fingerprint of its certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    allow_ips: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    rate: Option<Rate>,
    /// An alert begins when it has sent nothing for so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    silent_after: Option<String>,
    enabled: bool,
    hie: Credentials,
}

/// Which credentials it has.
#[derive(Debug, Serialize, ToSchema)]
struct Credentials {
    password: bool,
    token: bool,
    certificate: bool,
}

/// A client to add or change. What is not given stays as it is; `null` takes it away.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NewClient {
    #[serde(rename = "_id")]
    id: Option<String>,
    #[serde(rename = "clientID")]
    client_id: Option<String>,
    /// Unique: letters, digits, `-`, `_`, `.`, `@`.
    name: Option<String>,
    roles: Option<Vec<String>>,
    /// In clear, at least 8 characters (it is hashed before it is kept), or an Argon2 hash.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    password: Option<Option<String>>,
    /// In clear, at least 16 characters; only its SHA-256 is kept.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    token: Option<Option<String>>,
    /// SHA-256 of a token, in hex.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    token_sha256: Option<Option<String>>,
    /// Common name or SHA-256 fingerprint.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    certificate: Option<Option<String>>,
    #[schema(value_type = Option<Vec<String>>)]
    allow_ips: Option<Vec<ipnet::IpNet>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<Object>)]
    rate: Option<Option<Rate>>,
    /// An alert begins when it has sent nothing for so long, as `1h`.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    silent_after: Option<Option<String>>,
    enabled: Option<bool>,
}

/// Tells `null` from absent.
fn given<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(d).map(Some)
}

#[utoipa::path(get, path = "/clients", tag = "clients", responses((status = 200, body = [ClientView])))]
/// All clients, without their credentials.
pub(super) async fn list(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    let shown = app.blocking(|state| {
        let clients = state.directory.clients();
        let hidden = Hidden(serde_json::to_vec(&clients).map_err(|_| ApiError::internal())?);
        let all = Json(clients.iter().map(show).collect::<Vec<_>>());
        Ok::<_, ApiError>((newest(&state.clients).map(Extension), Extension(hidden), all))
    });
    shown.await?
}

#[utoipa::path(get, path = "/clients/{name}", tag = "clients", params(("name" = String, Path)), responses((status = 200, body = ClientView), (status = 404, body = super::error::ErrorBody)))]
/// One client, without its credentials.
pub(super) async fn get(State(app): State<App>, Path(name): Path<String>) -> Result<impl IntoResponse, ApiError> {
    let shown = app.blocking(move |state| {
        let clients = state.directory.clients();
        let client = clients.iter().find(|c| c.name == name).ok_or_else(|| ApiError::not_found("client"))?;
        Ok::<_, ApiError>((newest(&state.clients).map(Extension), Extension(hidden(client)?), Json(show(client))))
    });
    shown.await?
}

/// What is not shown of a client: a changed password is a change too.
fn hidden(client: &Client) -> Result<Hidden, ApiError> {
    serde_json::to_vec(client).map(Hidden).map_err(|_| ApiError::internal())
}

/// `If-Match` against the client in force.
fn unchanged(state: &AdminState, headers: &HeaderMap, name: &str) -> Result<(), ApiError> {
    let clients = state.directory.clients();
    match clients.iter().find(|c| c.name == name) {
        Some(client) => if_match(headers, Some((&show(client), Some(hidden(client)?)))),
        None => if_match(headers, None::<(&ClientView, _)>),
    }
}

#[utoipa::path(post, path = "/clients", tag = "clients", request_body = NewClient, responses((status = 201, body = ClientView), (status = 400, body = super::error::ErrorBody), (status = 409, body = super::error::ErrorBody)))]
/// Adds a client.
pub(super) async fn create(
    State(app): State<App>,
    Body(new): Body<NewClient>,
) -> Result<(StatusCode, Json<ClientView>), ApiError> {
    let name = new.name.clone().or(new.client_id.clone()).or(new.id.clone());
    let name = name.ok_or_else(|| ApiError::bad("a client needs a name", HINT))?;
    let _one_at_a_time = app.edit.lock().await;
    let view = app.blocking(move |state| {
        if state.directory.clients().iter().any(|c| c.name == name) {
            return Err(ApiError::conflict("a client of this name is there", "PUT /clients/{name} changes it"));
        }
        let base = Client {
            name,
            roles: vec![],
            password: None,
            password_file: None,
            token_sha256: None,
            token_file: None,
            certificate: None,
            allow_ips: vec![],
            rate: None,
            silent_after: None,
            enabled: true,
        };
        put(state, new.onto(base)?, "create")
    });
    Ok((StatusCode::CREATED, Json(view.await??)))
}

#[utoipa::path(put, path = "/clients/{name}", tag = "clients", params(("name" = String, Path)), request_body = NewClient, responses((status = 200, body = ClientView), (status = 400, body = super::error::ErrorBody), (status = 404, body = super::error::ErrorBody)))]
/// Changes a client: what is not given stays.
pub(super) async fn update(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(new): Body<NewClient>,
) -> Result<Json<ClientView>, ApiError> {
    if [&new.name, &new.client_id].into_iter().flatten().any(|n| *n != name) {
        return Err(ApiError::bad("a client keeps its name", "create another one and delete this one"));
    }
    let _one_at_a_time = app.edit.lock().await;
    let view = app.blocking(move |state| {
        unchanged(state, &headers, &name)?;
        // From its file, not from the directory, which has resolved the files it refers to.
        let table = files(state).all()?.remove(&name).ok_or_else(|| ApiError::not_found("client"))?;
        let base: Client = table
            .try_into()
            .map_err(|_| ApiError::conflict("the client's file holds a mistake", "mend it by hand: hie check"))?;
        put(state, new.onto(base)?, "update")
    });
    Ok(Json(view.await??))
}

#[utoipa::path(delete, path = "/clients/{name}", tag = "clients", params(("name" = String, Path)), responses((status = 204), (status = 404, body = super::error::ErrorBody), (status = 412, description = "`If-Match` names another state", body = super::error::ErrorBody)))]
/// Removes a client.
pub(super) async fn remove(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    let _one_at_a_time = app.edit.lock().await;
    app.blocking(move |state| {
        unchanged(state, &headers, &name)?;
        let old = state.directory.clients();
        let clients: Vec<Client> = old.iter().filter(|c| c.name != name).cloned().collect();
        if clients.len() == old.len() {
            return Err(ApiError::not_found("client"));
        }
        swap(state, clients, || files(state).remove(&name))?;
        Changed { what: "client", name: &name, action: "delete" }.emit();
        Ok(StatusCode::NO_CONTENT)
    })
    .await?
}

fn files(state: &AdminState) -> Tables<'_> {
    Tables { folder: &state.clients, table: "client", mode: 0o600 }
}

fn put(state: &AdminState, client: Client, action: &'static str) -> Result<ClientView, ApiError> {
    client::check(&client).map_err(|e| ApiError::bad(e, HINT))?;
    let resolved =
        resolve(client.clone(), &state.clients).map_err(|e| ApiError::bad(e, "the file must be readable by the node"))?;
    let mut clients = state.directory.clients();
    match clients.iter_mut().find(|c| c.name == client.name) {
        Some(old) => *old = resolved.clone(),
        None => clients.push(resolved.clone()),
    }
    let table = toml::Table::try_from(&client).map_err(|_| ApiError::internal())?;
    swap(state, clients, || files(state).put(&client.name, &table))?;
    Changed { what: "client", name: &client.name, action }.emit();
    Ok(show(&resolved))
}

/// Puts clients in force and writes them; back to the old ones when they cannot be written.
fn swap<T>(state: &AdminState, clients: Vec<Client>, write: impl FnOnce() -> Result<T, ApiError>) -> Result<(), ApiError> {
    let old = state.directory.clients();
    state.directory.replace(clients).map_err(|e| ApiError::conflict(e.to_string(), HINT))?;
    write().map(drop).inspect_err(|_| {
        // They were in force a moment ago, so that nothing in them can be wrong.
        let _ = state.directory.replace(old);
    })
}

fn show(client: &Client) -> ClientView {
    ClientView {
        id: client.name.clone(),
        client_id: client.name.clone(),
        name: client.name.clone(),
        roles: client.roles.clone(),
        certificate: client.certificate.clone(),
        allow_ips: client.allow_ips.iter().map(ToString::to_string).collect(),
        rate: client.rate,
        silent_after: client.silent_after.map(|after| humantime::format_duration(after).to_string()),
        enabled: client.enabled,
        hie: Credentials {
            password: client.password.is_some(),
            token: client.token_sha256.is_some(),
            certificate: client.certificate.is_some(),
        },
    }
}

impl NewClient {
    /// The client with the changes made. Hashing a password takes some 20 ms.
    fn onto(self, mut client: Client) -> Result<Client, ApiError> {
        match self.password {
            None => {}
            Some(password) => {
                client.password_file = None;
                client.password = password.map(|p| hashed(&p)).transpose()?;
            }
        }
        if let Some(token) = self.token {
            if token.as_ref().is_some_and(|t| t.len() < 16) {
                return Err(ApiError::bad("a token has at least 16 characters", "make one: openssl rand -hex 32"));
            }
            client.token_file = None;
            client.token_sha256 = token.map(|t| token_sha256(t.as_bytes()));
        }
        if let Some(hash) = self.token_sha256 {
            client.token_file = None;
            client.token_sha256 = hash;
        }
        client.certificate = self.certificate.unwrap_or(client.certificate);
        client.rate = self.rate.unwrap_or(client.rate);
        if let Some(after) = self.silent_after {
            let read = |text: String| {
                humantime::parse_duration(&text).map_err(|_| ApiError::bad("silent_after is no duration", "write it as \"1h\""))
            };
            client.silent_after = after.map(read).transpose()?;
        }
        client.roles = self.roles.unwrap_or(client.roles);
        client.allow_ips = self.allow_ips.unwrap_or(client.allow_ips);
        client.enabled = self.enabled.unwrap_or(client.enabled);
        Ok(client)
    }
}

fn hashed(password: &str) -> Result<String, ApiError> {
    if client::check_password_hash(password).is_ok() {
        return Ok(password.to_owned());
    }
    if password.chars().count() < 8 || password.len() > 1024 {
        return Err(ApiError::bad("a password has at least 8 characters and at most 1024 bytes", "choose another one"));
    }
    hash_password(password.as_bytes()).map_err(|e| ApiError::unavailable(e, "try again"))
}
