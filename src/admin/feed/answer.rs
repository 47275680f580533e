//! What a reader is answered.

use super::{resource::Resource, shared::Refused};
use crate::admin::error::ApiError;
use http::{HeaderValue, StatusCode, header};

/// The head of a stream on a connection of its own. Its body ends with the connection, so that all readers are sent the same bytes.
/// `X-Accel-Buffering` keeps an nginx in front from holding events back.
pub(super) const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n\
    x-content-type-options: nosniff\r\nx-frame-options: DENY\r\nreferrer-policy: no-referrer\r\nx-accel-buffering: no\r\n\
    connection: close\r\n\r\n";

/// Seconds after which a refused reader should try again.
const RETRY_AFTER: &str = "5";

/// Refused for want of a place: which limit, and the key that sets it.
pub(super) fn refusal(resource: &Resource, refused: Refused) -> ApiError {
    let (error, hint) = match refused {
        Refused::Resource(limit) => (
            format!("connection limit reached for {resource}: {limit} of {limit}"),
            "close a connection, or raise feed.max_connections_per_resource (HIE_FEED__MAX_CONNECTIONS_PER_RESOURCE)",
        ),
        Refused::Total(limit) => (
            format!("connection limit of the live feed reached: {limit} of {limit}"),
            "close a connection, or raise feed.max_connections (HIE_FEED__MAX_CONNECTIONS)",
        ),
        Refused::Carried(limit) => (
            format!("{limit} streams are open on HTTP/2 and on connections used before, which is the most"),
            "ask with HTTP/1.1 on a fresh connection: there the limits are feed.max_connections_per_resource and feed.max_connections",
        ),
        Refused::Draining => ("the node is shutting down or being upgraded".to_owned(), "come back in a moment"),
    };
    let wait = HeaderValue::from_static(RETRY_AFTER);
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error, hint).with(header::RETRY_AFTER, wait)
}
