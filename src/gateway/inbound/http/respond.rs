//! The engine's answer as an HTTP response.

use super::{
    body::OutBody,
    request::{is_hop_by_hop, named_by_connection},
};
use crate::{
    engine::ports::{Denied, Refusal, Response as Upstream},
    message::MessageId,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use std::time::Duration;

const TRANSACTION: HeaderName = HeaderName::from_static("x-hie-transaction-id");
const OPENHIM_TRANSACTION: HeaderName = HeaderName::from_static("x-openhim-transactionid");
const RESEND: HeaderName = HeaderName::from_static("x-hie-resend");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BASIC: HeaderValue = HeaderValue::from_static("Basic realm=\"hie\"");

/// What to suggest when the store cannot take the message: space returns by an operator's hand or by retention.
const STORE_RETRY: Duration = Duration::from_secs(5);

fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<OutBody> {
    let mut response = Response::new(OutBody::whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

fn set_id(headers: &mut HeaderMap, id: MessageId) {
    let mut text = uuid::Uuid::encode_buffer();
    let text = Bytes::copy_from_slice(id.0.hyphenated().encode_lower(&mut text).as_bytes());
    // A UUID's text is always a valid value.
    if let Ok(value) = HeaderValue::from_maybe_shared(text) {
        headers.insert(TRANSACTION, value.clone());
        headers.insert(OPENHIM_TRANSACTION, value);
    }
}

/// Queue mode: 202, the message is durable.
pub(super) fn accepted(id: MessageId, resend: bool) -> Response<OutBody> {
    let resent = if resend { ",\"resend\":true" } else { "" };
    let mut response = json(StatusCode::ACCEPTED, format!("{{\"id\":\"{id}\",\"status\":\"Processing\"{resent}}}"));
    set_id(response.headers_mut(), id);
    if resend {
        response.headers_mut().insert(RESEND, TRUE);
    }
    response
}

/// Proxy mode: the upstream's response, without what belongs to its hop. `resend`: the stored one, to a repetition.
pub(super) fn relayed(id: MessageId, upstream: Upstream, resend: bool, method: &Method) -> Response<OutBody> {
    let status = match StatusCode::from_u16(upstream.status) {
        Ok(status) if !status.is_informational() => status,
        _ => return refused(Some(id), &Refusal::Upstream("its response has no usable status".into()), false),
    };
    let named = named_by_connection(upstream.headers.iter().filter(|(n, _)| n == "connection").map(|(_, v)| &v.0[..]));
    // Where there is no body, its length is told by the header alone.
    let bodiless = *method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    let mut response =
        Response::new(if bodiless { OutBody::whole(Bytes::new()) } else { OutBody::stream(upstream.body, upstream.len) });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(upstream.headers.len() + 3);
    for (name, value) in upstream.headers {
        let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_maybe_shared(Bytes::from(value.0)))
        else {
            continue;
        };
        let framing = name == header::CONTENT_LENGTH && !bodiless;
        if !framing && !is_hop_by_hop(&name) && !named.iter().any(|n| n == name.as_str()) {
            headers.append(name, value);
        }
    }
    set_id(headers, id);
    if resend {
        headers.insert(RESEND, TRUE);
    }
    response
}

/// Not accepted: status, `Retry-After` where trying again helps, and the reason as JSON.
pub(super) fn refused(id: Option<MessageId>, refusal: &Refusal, anonymous: bool) -> Response<OutBody> {
    let (status, retry) = match refusal {
        Refusal::Unreadable(_) | Refusal::Unsendable(_) => (StatusCode::BAD_REQUEST, None),
        Refusal::NoChannel => (StatusCode::NOT_FOUND, None),
        Refusal::NotAllowed if anonymous => (StatusCode::UNAUTHORIZED, None),
        Refusal::NotAllowed => (StatusCode::FORBIDDEN, None),
        Refusal::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, None),
        Refusal::RateLimited { retry_after } => (StatusCode::TOO_MANY_REQUESTS, Some(*retry_after)),
        Refusal::Busy(_, retry) => (StatusCode::SERVICE_UNAVAILABLE, Some(*retry)),
        Refusal::Store => (StatusCode::SERVICE_UNAVAILABLE, Some(STORE_RETRY)),
        Refusal::Upstream(_) => (StatusCode::BAD_GATEWAY, None),
        Refusal::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, None),
        Refusal::Aborted | Refusal::TooSlow => (StatusCode::REQUEST_TIMEOUT, None),
    };
    let mut response = error(status, &refusal.to_string(), id);
    if let Some(retry) = retry {
        // Whole seconds (RFC 9110 §10.2.3), rounded up: never invite too early.
        let seconds = retry.as_secs() + u64::from(retry.subsec_nanos() > 0);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}

/// A sender that is not let in.
pub(super) fn denied(denied: &Denied) -> Response<OutBody> {
    let status = match denied {
        Denied::Unauthenticated | Denied::BadCredentials => StatusCode::UNAUTHORIZED,
        Denied::Address => StatusCode::FORBIDDEN,
        Denied::Busy => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = error(status, &denied.to_string(), None);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
    }
    response
}

/// A request that the gateway itself refuses, or the engine's refusal.
pub(super) fn error(status: StatusCode, reason: &str, id: Option<MessageId>) -> Response<OutBody> {
    #[derive(serde::Serialize)]
    struct Body<'a> {
        error: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        transaction: Option<MessageId>,
    }
    // Text and an id always serialise.
    let body = serde_json::to_vec(&Body { error: reason, transaction: id }).unwrap_or_default();
    let mut response = json(status, body);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, BASIC);
    }
    if let Some(id) = id {
        set_id(response.headers_mut(), id);
    }
    response
}

/// No body, no reason.
pub(super) fn empty(status: StatusCode) -> Response<OutBody> {
    let mut response = Response::new(OutBody::whole(Bytes::new()));
    *response.status_mut() = status;
    response
}
