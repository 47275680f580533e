//! Transactions: searched, shown, and their bodies downloaded.

mod body;

pub(super) use body::*;

use super::{
    caching::Changed,
    error::ApiError,
    extract::{Body, Id, Params},
    filter::{Representation, Search},
    shared::{App, from_records},
    view::{Transaction, build},
};
use axum::{
    Extension, Json,
    extract::State,
    response::{AppendHeaders, IntoResponse},
};
use http::HeaderName;
use std::time::{Duration, UNIX_EPOCH};

/// Of each body, in one transaction and in a list.
const SHOWN: usize = 256 * 1024;
const SHOWN_IN_LIST: usize = 16 * 1024;
/// Says why a search may miss something; absent when it does not.
const INCOMPLETE: HeaderName = HeaderName::from_static("x-hie-incomplete");

#[utoipa::path(get, path = "/transactions", tag = "transactions", params(Search), responses((status = 200, body = [Transaction]),
    (status = 400, description = "an unknown parameter, or one that may not stand in a URL", body = super::error::ErrorBody)))]
/// Searches, newest first. `X-HIE-Incomplete` says why transactions of other nodes may be missing just now.
pub(super) async fn list(State(app): State<App>, Params(search): Params<Search>) -> Result<impl IntoResponse, ApiError> {
    find(app, search.by_get()?).await
}

#[utoipa::path(post, path = "/transactions/search", tag = "transactions", request_body = Search, responses((status = 200, body = [Transaction])))]
/// Searches, newest first; also by patient and text, which must not stand in a URL.
pub(super) async fn search(State(app): State<App>, Body(search): Body<Search>) -> Result<impl IntoResponse, ApiError> {
    find(app, search).await
}

async fn find(app: App, search: Search) -> Result<impl IntoResponse, ApiError> {
    // Asked before: what comes meanwhile makes it no less true.
    let incomplete = app.state.cluster.incomplete();
    let (query, representation) = (search.query()?, search.representation()?);
    let hits = app.search(query).await?;
    // In one go on a thread that may block: a row each would be as many hand-overs.
    let details = app.blocking(move |state| {
        let mut details = Vec::with_capacity(hits.len());
        for hit in hits {
            // Gone by retention since it was found, if it is not there.
            let Some(detail) = state.records.transaction(hit.id)? else { continue };
            let children = match representation {
                Representation::Simple => None,
                _ => Some(state.records.children(hit.id)?),
            };
            details.push((hit.id, detail, children));
        }
        Ok(details)
    });
    let details = details.await?.map_err(from_records)?;
    let mut found = Vec::with_capacity(details.len());
    for (id, detail, children) in details {
        found.push(build(id, &detail, children, representation, &app.state.records, SHOWN_IN_LIST).await);
    }
    Ok((AppendHeaders(incomplete.map(|why| (INCOMPLETE, why))), Json(found)))
}

#[utoipa::path(get, path = "/transactions/{id}", tag = "transactions", params(("id" = String, Path)),
    responses((status = 200, body = Transaction), (status = 404, body = super::error::ErrorBody)))]
/// One transaction: request, response, every step, every attempt. Bodies to 256 KiB.
pub(super) async fn show(State(app): State<App>, Id(id): Id) -> Result<impl IntoResponse, ApiError> {
    let detail = app.detail(id).await?;
    let children = app.children(id).await?;
    let last = detail.facts.iter().filter_map(|(_, fact)| u64::try_from(fact.at).ok()).max();
    let changed = last.map(|ms| Extension(Changed(UNIX_EPOCH + Duration::from_millis(ms))));
    Ok((changed, Json(build(id, &detail, Some(children), Representation::Full, &app.state.records, SHOWN).await)))
}
