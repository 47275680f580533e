//! HTTP caching of the management API (RFC 9110, 9111): validators on every resource, conditional requests, and 412 for changes to
//! what somebody else changed meanwhile.
//!
//! Nothing stale is ever answered: what may be kept is `no-cache` (asked for again each time), an ETag is a hash of the very bytes,
//! and a time is compared for equality only, as times stand for a second and facts may become visible late.

use super::{error::ApiError, shared::App};
use axum::{
    Extension,
    body::{Body, to_bytes},
    extract::{Request, State},
    middleware::{Next, map_response},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use std::{
    collections::HashMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use time::{OffsetDateTime, PrimitiveDateTime, format_description::BorrowedFormatItem, macros::format_description};
use xxhash_rust::xxh3::Xxh3;

/// How a resource may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// By the caller alone, and asked for again each time.
    Private,
    /// Not at all, because it may hold what messages said; who remembers its ETag may still ask with it.
    Never,
}

/// What belongs to a resource's state and is not shown (credentials); it counts in the ETag.
#[derive(Clone)]
pub(super) struct Hidden(pub Vec<u8>);

/// When the resource is known to have changed last.
#[derive(Clone, Copy)]
pub(super) struct Changed(pub SystemTime);

/// Marks the answers of a handler.
pub(super) fn kept(handler: MethodRouter<App>, how: Kept) -> MethodRouter<App> {
    handler.route_layer(map_response(move |response: Response| async move { (Extension(how), response).into_response() }))
}

/// The newest change of a folder's TOML files.
pub(super) fn newest(folder: &Path) -> Option<Changed> {
    let files = crate::config::clients::toml_files(folder).ok()?;
    files.iter().filter_map(|path| path.metadata().ok()?.modified().ok()).max().map(Changed)
}

/// Answers seen since the start, by path and query, so that a change has a time although nobody wrote one down.
#[derive(Default)]
pub(super) struct Seen(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    /// Hash, Unix seconds of the change, and when it was last asked for.
    answers: HashMap<u64, (u128, u64, u64)>,
    forgot: bool,
    asked: u64,
}

/// Answers remembered; the one that was not asked for the longest is forgotten.
const REMEMBERED: usize = 512;

impl Seen {
    /// When an answer changed last, in Unix seconds, always a later one than that of any other answer under the same key.
    fn changed(&self, key: u64, hash: u128, known: Option<u64>, now: u64) -> u64 {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        memory.asked += 1;
        let (asked, forgot) = (memory.asked, memory.forgot);
        if let Some((before, at, last)) = memory.answers.get_mut(&key) {
            *last = asked;
            if *before != hash {
                (*before, *at) = (hash, (now + 1).max(*at + 1));
            }
            return *at;
        }
        if memory.answers.len() >= REMEMBERED {
            let oldest = memory.answers.iter().min_by_key(|(_, (.., last))| *last).map(|(key, _)| *key);
            oldest.map(|key| memory.answers.remove(&key));
            memory.forgot = true;
        }
        // Where something was forgotten this may have been shown before, with another content.
        let at = if forgot { now + 1 } else { known.filter(|at| *at < now).unwrap_or(now) };
        memory.answers.insert(key, (hash, at, asked));
        at
    }
}

/// A strong ETag: 128 bits of the body's hash.
fn tag(hash: u128) -> String {
    format!("\"{hash:032x}\"")
}

fn hash(body: &[u8], hidden: Option<&Hidden>) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(body);
    if let Some(Hidden(bytes)) = hidden {
        hash.update(&[0]);
        hash.update(bytes);
    }
    hash.digest128()
}

/// 412 unless `If-Match` is absent or names the present state (RFC 9110 13.1.1); `current` is what GET shows, `None`: there is none.
pub(super) fn if_match(headers: &HeaderMap, current: Option<(&impl Serialize, Option<Hidden>)>) -> Result<(), ApiError> {
    if !headers.contains_key(header::IF_MATCH) {
        return Ok(());
    }
    let now = match current {
        Some((shown, hidden)) => Some(tag(hash(&serde_json::to_vec(shown).map_err(|_| ApiError::internal())?, hidden.as_ref()))),
        None => None,
    };
    // A weak one never matches here.
    if now.as_ref().is_some_and(|now| listed(headers, header::IF_MATCH, |given| given == now)) {
        return Ok(());
    }
    let hint = "get it again, make your change to what it is now, and send it with the new ETag";
    Err(ApiError::new(StatusCode::PRECONDITION_FAILED, "it was changed or removed since you saw it", hint))
}

/// Does a list of entity tags hold one for which this is true, or `*`?
fn listed(headers: &HeaderMap, name: HeaderName, is: impl Fn(&str) -> bool) -> bool {
    let values = headers.get_all(name);
    // Our tags hold no comma; another one's cannot be equal to ours, however it is cut.
    values.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim).any(|one| one == "*" || is(one))
}

const IMF: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

fn http_date(seconds: u64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()?.format(IMF).ok()
}

fn seconds_of(date: &HeaderValue) -> Option<u64> {
    let time = PrimitiveDateTime::parse(date.to_str().ok()?.trim(), IMF).ok()?;
    u64::try_from(time.assume_utc().unix_timestamp()).ok()
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// Around every handler: validators for what is marked by [`kept`], and 304 where the caller has it already.
pub(super) async fn answer(State(app): State<App>, request: Request, next: Next) -> Response {
    let asked = matches!(*request.method(), Method::GET | Method::HEAD);
    let headers = request.headers().clone();
    let path = request.uri().path_and_query().map(|p| p.as_str().to_owned()).unwrap_or_default();
    let mut response = next.run(request).await;
    let Some(how) = response.extensions_mut().remove::<Kept>().filter(|_| asked && response.status() == StatusCode::OK) else {
        return response;
    };
    let hidden = response.extensions_mut().remove::<Hidden>();
    let known = response.extensions_mut().remove::<Changed>().map(|Changed(at)| unix(at));
    let (mut head, body) = response.into_parts();
    // A handler's JSON is in memory already.
    let Ok(body) = to_bytes(body, usize::MAX).await else { return ApiError::internal().into_response() };
    let hash = hash(&body, hidden.as_ref());
    let now = unix(SystemTime::now());
    let changed = app.seen.changed(xxhash_rust::xxh3::xxh3_64(path.as_bytes()), hash, known, now);
    let tag = tag(hash);
    let mut validators = HeaderMap::new();
    let control = if how == Kept::Private { "private, no-cache" } else { "no-store" };
    validators.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
    validators.insert(header::VARY, HeaderValue::from_static("Authorization"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        validators.insert(header::ETAG, tag);
    }
    // A time that has not come yet is none to tell (RFC 9110 8.8.2.1).
    if let Some(date) = http_date(changed).filter(|_| changed <= now).and_then(|date| HeaderValue::from_str(&date).ok()) {
        validators.insert(header::LAST_MODIFIED, date);
    }
    let same = match headers.contains_key(header::IF_NONE_MATCH) {
        // Weak comparison (13.1.2); a time beside it does not count (13.1.3).
        true => listed(&headers, header::IF_NONE_MATCH, |given| given.strip_prefix("W/").unwrap_or(given) == tag),
        false => {
            changed <= now && headers.get(header::IF_MODIFIED_SINCE).and_then(seconds_of).is_some_and(|since| since == changed)
        }
    };
    if same {
        return (StatusCode::NOT_MODIFIED, validators).into_response();
    }
    head.headers.extend(validators);
    Response::from_parts(head, Body::from(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_always_has_a_later_time() {
        let seen = Seen::default();
        assert_eq!(seen.changed(1, 10, Some(50), 100), 50, "known, and never shown before");
        assert_eq!(seen.changed(1, 10, Some(50), 105), 50);
        assert_eq!(seen.changed(1, 11, Some(50), 105), 106, "told from the next second on");
        assert_eq!(seen.changed(1, 12, Some(50), 105), 107, "twice in a second");
        assert_eq!(seen.changed(1, 12, None, 200), 107);
        for key in 2..2 + REMEMBERED as u64 {
            seen.changed(key, 1, None, 300);
        }
        assert_eq!(seen.changed(1, 12, Some(50), 300), 301, "forgotten: what was shown then is not known");
    }

    #[test]
    fn dates_there_and_back() {
        let text = http_date(784_111_777).expect("a date");
        assert_eq!(text, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(seconds_of(&HeaderValue::from_str(&text).expect("ASCII")), Some(784_111_777));
        assert_eq!(seconds_of(&HeaderValue::from_static("yesterday")), None);
    }

    #[test]
    fn lists_of_tags() {
        let mut headers = HeaderMap::new();
        headers.append(header::IF_NONE_MATCH, HeaderValue::from_static("\"x\", W/\"y\" ,\"z\""));
        assert!(listed(&headers, header::IF_NONE_MATCH, |given| given == "W/\"y\""));
        assert!(!listed(&headers, header::IF_NONE_MATCH, |given| given == "\"q\""));
        headers.append(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
        assert!(listed(&headers, header::IF_NONE_MATCH, |_| false));
    }
}
