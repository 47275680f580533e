//! Bodies byte for byte, never interpreted by a browser.

use crate::{
    admin::{error::ApiError, extract::Params, records::Detail, shared::App},
    engine::fact::{BodyRef, Seq, What},
    message::MessageId,
};
use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use utoipa::IntoParams;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::admin) struct Which {
    /// Of which attempt on the route; the latest when absent.
    attempt: Option<u32>,
}

/// A body found.
struct Found<'a> {
    seq: Seq,
    body: &'a BodyRef,
    len: u64,
    content_type: String,
}

#[utoipa::path(get, path = "/transactions/{id}/body/{part}", tag = "transactions",
    params(("id" = String, Path), ("part" = String, Path, description = "`request`, `response`, or a route's name"), Which),
    responses((status = 200, description = "the bytes", content_type = "application/octet-stream"), (status = 404, body = crate::admin::error::ErrorBody)))]
/// One body, byte for byte, as a download.
pub(in crate::admin) async fn body(
    State(app): State<App>,
    Path((id, part)): Path<(String, String)>,
    Params(which): Params<Which>,
) -> Result<Response, ApiError> {
    let id: MessageId = id.parse().map_err(|_| ApiError::bad("not a transaction's id", "an id is a UUID"))?;
    let detail = app.detail(id).await?;
    let found = find(&detail, &part, which.attempt).ok_or_else(|| ApiError::not_found("such a body of this transaction"))?;
    let gone = || {
        let hint = "the channel's `storage` keeps none, or only until the message is finished";
        ApiError::new(http::StatusCode::NOT_FOUND, "the body is not stored", hint)
    };
    if *found.body == BodyRef::None && found.len > 0 {
        return Err(gone());
    }
    let mut stream = app.state.records.read(found.seq, found.body);
    // The first piece before the head is sent: a body that cannot be read is an error, not a broken download.
    let first = match stream.next().await {
        Some(Err(_)) if is_transient(found.body) => return Err(gone()),
        Some(Err(_)) => return Err(ApiError::unavailable("the body cannot be read now", "see `problems` in /status")),
        Some(Ok(piece)) => Some(Ok(piece)),
        None => None,
    };
    let body = axum::body::Body::from_stream(futures_util::stream::iter(first).chain(stream));
    Ok((headers(id, &part, &found), body).into_response())
}

/// Kept until the message is finished only.
fn is_transient(body: &BodyRef) -> bool {
    matches!(body, BodyRef::OwnTransient | BodyRef::Chunks { transient: true, .. })
}

fn find<'a>(detail: &'a Detail, part: &str, attempt: Option<u32>) -> Option<Found<'a>> {
    if part == "request" {
        let (seq, body, len) = detail.request_body()?;
        return Some(Found { seq, body, len, content_type: detail.envelope()?.content_type.clone() });
    }
    if part == "response" {
        let responded = detail.facts.iter().rev().find_map(|(seq, fact)| match &fact.what {
            What::Responded { headers, body, len, .. } => {
                let content_type = headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("content-type"));
                let content_type = content_type.map(|(_, v)| String::from_utf8_lossy(&v.0).into_owned()).unwrap_or_default();
                Some(Found { seq: *seq, body, len: *len, content_type })
            }
            _ => None,
        });
        if responded.is_some() && attempt.is_none() {
            return responded;
        }
        let primary = detail.accepted()?.1.routes.first()?;
        return of_route(detail, primary, attempt);
    }
    of_route(detail, part, attempt)
}

fn of_route<'a>(detail: &'a Detail, route: &str, attempt: Option<u32>) -> Option<Found<'a>> {
    detail.facts.iter().rev().find_map(|(seq, fact)| match &fact.what {
        What::Attempt(a) if a.route == route && attempt.is_none_or(|n| n == a.number) => {
            let content_type = if a.ack.is_empty() { String::new() } else { "x-application/hl7-v2+er7".to_owned() };
            Some(Found { seq: *seq, body: &a.response, len: a.response_len, content_type })
        }
        _ => None,
    })
}

fn headers(id: MessageId, part: &str, found: &Found<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let octets = HeaderValue::from_static("application/octet-stream");
    let content_type = match found.content_type.is_empty() {
        true => octets,
        // What the sender declared may be no header's value.
        false => HeaderValue::from_str(&found.content_type).unwrap_or(octets),
    };
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(found.len));
    let part: String =
        part.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' }).take(64).collect();
    let name = format!("attachment; filename=\"{id}-{part}{}\"", extension(&found.content_type));
    if let Ok(value) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    headers
}

fn extension(content_type: &str) -> &'static str {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        k if k.contains("hl7-v2") => ".hl7",
        k if k.ends_with("json") => ".json",
        k if k.ends_with("xml") => ".xml",
        "text/plain" => ".txt",
        "application/pdf" => ".pdf",
        "application/dicom" => ".dcm",
        _ => ".bin",
    }
}
