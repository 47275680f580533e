//! Who may use the management API: whoever shows its token, as `Authorization: Bearer`, or as the password of basic
//! authentication, which OpenHIM's scripts use.

use super::{error::ApiError, serve::Peer, shared::App};
use crate::telemetry::admin::AdminDenied;
use axum::{
    Extension,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::net::SocketAddr;

/// Lets a request with the right credential through.
pub(super) async fn require(
    State(app): State<App>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    check(&app, peer, request.headers())?;
    Ok(next.run(request).await)
}

/// Is the right credential among the headers of a request?
pub(super) fn check(app: &App, peer: SocketAddr, headers: &HeaderMap) -> Result<(), ApiError> {
    let denied = |kind| AdminDenied { peer, kind }.emit();
    // A browser that remembers the password must not be made to use it by another site's page.
    if headers.get("sec-fetch-site").is_some_and(|v| v == "cross-site" || v == "same-site") {
        denied("cross-site");
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "requests from other sites' pages are not served",
            "use a client that is no browser",
        ));
    }
    match shown(headers) {
        Some(secret) if app.state.token.matches(&secret) => Ok(()),
        // A right token passes even where others fail: it is too long to be guessed, so that shutting it out would only help an attacker.
        Some(_) if !app.throttle.open(peer.ip()) => {
            denied("throttled");
            let wait = HeaderValue::from(app.throttle.retry_after().as_secs());
            Err(ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too many wrong credentials from this address",
                "wait, then try the right one",
            )
            .with(header::RETRY_AFTER, wait))
        }
        Some(_) => {
            app.throttle.failed(peer.ip());
            denied("wrong");
            Err(challenge("the credential is wrong"))
        }
        None => {
            denied("absent");
            Err(challenge("a credential is needed"))
        }
    }
}

fn challenge(error: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, error, "Authorization: Bearer with the content of the node's admin-token file")
        .with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"hie\""))
        .with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"hie\""))
}

/// The secret that is shown, of either scheme; `Some` of nothing when it is neither.
fn shown(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let text = std::str::from_utf8(value).unwrap_or_default().trim();
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.as_bytes().to_vec());
    }
    let pair = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(rest).ok()).flatten().unwrap_or_default();
    Some(pair.iter().position(|b| *b == b':').map(|colon| pair[colon + 1..].to_vec()).unwrap_or_default())
}
