//! Which path is served by what. One table: the router is built from it, and a test holds `/openapi.json` against it.

use super::{
    alerts, auth,
    caching::{self, Kept, kept},
    channels, clients, cluster, delivery,
    error::ApiError,
    feed::door,
    openapi, peers,
    shared::App,
    stats, status, tasks, transactions,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post, put},
};
use http::{HeaderValue, StatusCode, header};
use std::time::Duration;

/// The largest request body.
const LARGEST: usize = 16 * 1024 * 1024;
/// From a request's head to its answer's head.
const PATIENCE: Duration = Duration::from_secs(30);

type Entry = (&'static str, &'static str, MethodRouter<App>);

/// Served without the token.
fn open() -> Vec<Entry> {
    vec![
        ("get", "/heartbeat", get(status::heartbeat)),
        ("get", "/health/live", get(status::live)),
        ("get", "/health/ready", get(status::ready)),
        // Who asks shows the domain's secret, not the token.
        ("get", "/peer/ledger", get(peers::list)),
        ("get", "/peer/ledger/{file}", get(peers::file)),
    ]
}

/// Served with the token only.
fn closed() -> Vec<Entry> {
    vec![
        ("get", "/metrics", get(status::metrics)),
        ("get", "/status", get(status::status)),
        ("get", "/cluster", get(cluster::show)),
        ("post", "/drain", post(status::drain)),
        ("get", "/openapi.json", kept(get(openapi::document), Kept::Private)),
        ("get", "/transactions", kept(get(transactions::list), Kept::Never)),
        ("post", "/transactions/search", post(transactions::search)),
        ("get", "/transactions/{id}", kept(get(transactions::show), Kept::Never)),
        ("get", "/transactions/{id}/body/{part}", get(transactions::body)),
        ("post", "/transactions/{id}/rerun", post(delivery::rerun)),
        ("post", "/transactions/{id}/requeue", post(delivery::requeue)),
        ("post", "/transactions/{id}/discard", post(delivery::discard)),
        ("post", "/tasks", post(tasks::create)),
        ("get", "/tasks", kept(get(tasks::list), Kept::Private)),
        ("get", "/tasks/{id}", kept(get(tasks::show), Kept::Private)),
        ("delete", "/tasks/{id}", delete(tasks::cancel)),
        ("get", "/channels", kept(get(channels::list), Kept::Private)),
        ("post", "/channels", post(channels::create)),
        ("get", "/channels/{name}", kept(get(channels::get), Kept::Private)),
        ("put", "/channels/{name}", put(channels::update)),
        ("delete", "/channels/{name}", delete(channels::remove)),
        ("get", "/clients", kept(get(clients::list), Kept::Private)),
        ("post", "/clients", post(clients::create)),
        ("get", "/clients/{name}", kept(get(clients::get), Kept::Private)),
        ("put", "/clients/{name}", put(clients::update)),
        ("delete", "/clients/{name}", delete(clients::remove)),
        ("get", "/alerts", kept(get(alerts::list), Kept::Private)),
        ("post", "/alerts/test", post(alerts::test)),
        ("get", "/routes", kept(get(delivery::routes), Kept::Private)),
        ("post", "/routes/{channel}/{route}/pause", post(delivery::pause)),
        ("post", "/routes/{channel}/{route}/resume", post(delivery::resume)),
        ("get", "/events/{resource}", get(door::events)),
        ("get", "/api/sse/stats", get(stats::sse)),
        ("get", "/api/admin/system-stats", get(stats::system)),
    ]
}

/// Every method (in lower case) and path that is served.
pub fn mounted() -> Vec<(&'static str, &'static str)> {
    open().into_iter().chain(closed()).map(|(method, path, _)| (method, path)).collect()
}

pub(super) fn router(app: App) -> Router {
    let mount =
        |entries: Vec<Entry>| entries.into_iter().fold(Router::new(), |router, (_, path, handler)| router.route(path, handler));
    let closed = mount(closed()).fallback(nothing_here);
    let closed = closed.layer(middleware::from_fn_with_state(app.clone(), caching::answer));
    let closed = closed.layer(middleware::from_fn_with_state(app.clone(), auth::require));
    mount(open())
        .merge(closed)
        .method_not_allowed_fallback(not_this_method)
        .layer(DefaultBodyLimit::max(LARGEST))
        .layer(middleware::from_fn(guard))
        .with_state(app)
}

/// Around everything: an answer in time, kept only where it says so, never guessed at.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = match tokio::time::timeout(PATIENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let hint = "narrow the search, or send the body faster";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("no answer within {} s", PATIENCE.as_secs()), hint)
                .into_response()
        }
    };
    let headers = response.headers_mut();
    // What may be kept says so itself.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

async fn nothing_here() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no such resource", "see /openapi.json")
}

async fn not_this_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "the resource has no such method", "see /openapi.json")
}
