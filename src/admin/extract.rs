//! Reading requests, with errors in our own form that name keys and places but never repeat values.

use super::error::ApiError;
use crate::message::MessageId;
use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::BytesRejection},
    response::IntoResponse,
};
use http::{StatusCode, request::Parts};
use serde::de::DeserializeOwned;
use std::error::Error;

/// The longest query string read.
const LONGEST_QUERY: usize = 8 * 1024;

/// Query parameters; an unknown one is an error.
pub(super) struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        if parts.uri.query().is_some_and(|q| q.len() > LONGEST_QUERY) {
            return Err(ApiError::new(
                StatusCode::URI_TOO_LONG,
                "the query is too long",
                "POST /transactions/search takes long ones",
            ));
        }
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                let mut cause: &dyn Error = &rejection;
                while let Some(source) = cause.source() {
                    cause = source;
                }
                Err(ApiError::bad(
                    keys_only(&cause.to_string(), "a query parameter has a value of the wrong form"),
                    "see /openapi.json",
                ))
            }
        }
    }
}

/// A JSON body, whatever content type it is sent with (OpenHIM's clients vary).
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(unreadable)?;
        // An action without options may come without a body.
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // serde would fill an object's fields from a list, in order.
        if text.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
            return Err(ApiError::bad("the body is a list; an object is expected", "see /openapi.json"));
        }
        serde_json::from_slice(text).map(Self).map_err(|e| wrong_json(&e))
    }
}

fn unreadable(rejection: BytesRejection) -> ApiError {
    match rejection.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large", "at most 16 MiB"),
        _ => ApiError::bad("the body could not be read", "send it again"),
    }
}

/// A JSON error as the caller may see it.
pub(super) fn wrong_json(error: &serde_json::Error) -> ApiError {
    let what = match error.classify() {
        serde_json::error::Category::Data => keys_only(&error.to_string(), "a value has the wrong form"),
        _ => "the body is not JSON".to_owned(),
    };
    ApiError::bad(format!("line {}, column {}: {what}", error.line(), error.column()), "see /openapi.json")
}

/// The message when it speaks of keys; else the given one, because it may repeat a value.
fn keys_only(message: &str, otherwise: &str) -> String {
    // A path may stand before it, and from JSON a place behind it.
    let at = ["unknown field `", "missing field `", "duplicate field `"].iter().find_map(|k| message.find(k));
    at.and_then(|at| message[at..].split(" at line ").next()).unwrap_or(otherwise).to_owned()
}

/// A transaction's id out of a path.
pub(super) struct Id(pub MessageId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        #[derive(serde::Deserialize)]
        struct Has {
            id: String,
        }
        let path = Path::<Has>::from_request_parts(parts, state).await.map_err(|_| ApiError::not_found("transaction"))?;
        path.id
            .parse()
            .map(Self)
            .map_err(|_| ApiError::bad("not a transaction's id", "an id is a UUID, as in X-HIE-Transaction-ID"))
    }
}
