//! How readers come in: by a connection of their own that never reaches hyper, or, with HTTP/2 and on kept connections, by a
//! response of hyper's. Both show the same credential and get the same answers.

use super::{
    answer,
    resource::Resource,
    shared::{BodyPipe, Carried, Join, Refused, Way},
};
use crate::admin::{auth, error::ApiError, shared::App};
use axum::{
    body::Body,
    extract::{Path, RawQuery, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::{
    collections::HashSet,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::oneshot, time};

/// How a request for the feed begins.
const BEGINNING: &[u8] = b"GET /events/";
/// For the first bytes of a connection.
const FIRST: Duration = Duration::from_secs(30);
/// For the rest of the head.
const HEAD: Duration = Duration::from_secs(10);
/// Longest head.
const LONGEST: usize = 16 * 1024;
/// What is read beyond a head that is refused, and for how long.
const MORE: u64 = 64 * 1024;
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Header lines.
const LINES: usize = 64;
/// For how long names of channels are taken as known.
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// Gives the connection back when its first request is for something else; what was looked at is still there to be read.
pub(in crate::admin) async fn pass(stream: TcpStream, peer: SocketAddr, app: &App) -> Option<TcpStream> {
    match time::timeout(FIRST, begins(&stream)).await {
        Ok(true) => {}
        Ok(false) => return Some(stream),
        // Silent for too long.
        Err(_) => return None,
    }
    take(stream, peer, app).await;
    None
}

async fn begins(stream: &TcpStream) -> bool {
    loop {
        let mut first = [0; BEGINNING.len()];
        match stream.peek(&mut first).await {
            Ok(n) if n > 0 && first[..n] == BEGINNING[..n] => {
                if n == BEGINNING.len() {
                    return true;
                }
                // A first packet of a few bytes: nothing tells of the next one as long as these are not taken.
                time::sleep(Duration::from_millis(10)).await;
            }
            _ => return false,
        }
    }
}

async fn take(mut stream: TcpStream, peer: SocketAddr, app: &App) {
    let asked = match time::timeout(HEAD, head(&mut stream)).await {
        Ok(Some(head)) => asked(&head, peer, app),
        // It has gone, or is not worth an answer.
        Ok(None) | Err(_) => return,
    };
    let error = match asked {
        Ok((resource, last)) => match stream.into_std() {
            Ok(socket) => {
                // What the kernel keeps for a slow reader is bounded, like what we do.
                let buffer = usize::try_from(app.state.feed.config.buffer.as_u64()).unwrap_or(usize::MAX);
                let _ = socket2::SockRef::from(&socket).set_send_buffer_size(buffer);
                app.state.feed.join(Join { resource, last, way: Way::Socket(socket) });
                return;
            }
            Err(_) => return,
        },
        Err(error) => error,
    };
    let answer = error.into_wire();
    let _ = time::timeout(HEAD, tokio::io::AsyncWriteExt::write_all(&mut stream, &answer)).await;
    let _ = time::timeout(HEAD, tokio::io::AsyncWriteExt::shutdown(&mut stream)).await;
    // Closed over bytes that were not read, the connection would be reset, and the answer with it.
    let _ = time::timeout(LAST_WORDS, tokio::io::copy(&mut stream.take(MORE), &mut tokio::io::sink())).await;
}

/// Reads up to the empty line; what follows it is of no interest. `None`: it ended before.
async fn head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
        // Too long: told so.
        if memchr::memmem::find(&head, b"\r\n\r\n").is_some() || head.len() > LONGEST {
            return Some(head);
        }
    }
}

/// What a head asks for, after its credential was checked.
fn asked(head: &[u8], peer: SocketAddr, app: &App) -> Result<(Resource, Option<u64>), ApiError> {
    let bad = || ApiError::bad("the request cannot be read", "GET /events/{resource} HTTP/1.1, header lines, an empty line");
    if head.len() > LONGEST {
        return Err(too_long());
    }
    let mut lines = [httparse::EMPTY_HEADER; LINES];
    let mut request = httparse::Request::new(&mut lines);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(too_long()),
        _ => return Err(bad()),
    }
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for line in request.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| bad())?;
        headers.append(name, HeaderValue::from_bytes(line.value).map_err(|_| bad())?);
    }
    auth::check(app, peer, &headers)?;
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let name = path.strip_prefix("/events/").and_then(decoded).ok_or_else(bad)?;
    Ok((resource(app, &name)?, last_seen(&headers, query)?))
}

fn too_long() -> ApiError {
    let hint = "at most 16 KiB and 64 header lines";
    ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too long", hint)
}

/// Percent-decoding; `None` when the result is not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let pair = after.get(..2).and_then(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        match pair.filter(|_| byte == b'%') {
            Some(value) => {
                out.push(value);
                rest = &after[2..];
            }
            None => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

/// The resource of that name, when there is one.
fn resource(app: &App, name: &str) -> Result<Resource, ApiError> {
    let resource = Resource::parse(name)?;
    let missing = |what: &str, hint: &str| Err(ApiError::new(StatusCode::NOT_FOUND, format!("{what} not found"), hint));
    match &resource {
        Resource::Channel(name) if !channel_known(app, name) => missing("channel", "see /channels for the names"),
        Resource::Domain(name) if **name != *app.state.info.domain => {
            missing("domain", "a node has events of its own domain: see `domain` in /status")
        }
        // A listener may name a client that the directory does not know.
        _ => Ok(resource),
    }
}

fn channel_known(app: &App, name: &str) -> bool {
    // Asking for all channels for each of ten thousand readers would take seconds.
    let mut known = app.known.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((at, names)) = &*known
        && at.elapsed() < KNOWN_FOR
        && names.contains(name)
    {
        return true;
    }
    let names: HashSet<String> = app.state.control.channels().into_iter().map(|c| c.name).collect();
    let found = names.contains(name);
    *known = Some((Instant::now(), names));
    found
}

/// The number after which a reader goes on: the header, or `lastEventId` in the query for those who cannot set one.
fn last_seen(headers: &HeaderMap, query: Option<&str>) -> Result<Option<u64>, ApiError> {
    let header = headers.get("last-event-id").map(|v| String::from_utf8_lossy(v.as_bytes()).trim().to_owned());
    let query = query.and_then(|q| q.split('&').find_map(|pair| pair.strip_prefix("lastEventId="))).map(str::to_owned);
    match header.or(query).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            ApiError::bad("Last-Event-ID is no number", "give the `id` of the last event seen; 0: all that is stored")
        }),
    }
}

#[utoipa::path(get, path = "/events/{resource}", tag = "feed",
    params(("resource" = String, Path, description = "transactions, channel:NAMESPACE.NAME, client:NAME, domain:NAME or alerts"),
        ("Last-Event-ID" = Option<u64>, Header, description = "go on after this event; 0: with the first that is stored"),
        ("lastEventId" = Option<u64>, Query, description = "the same, for those who cannot set a header")),
    responses((status = 200, description = "server-sent events, see docs/formats.md", body = String, content_type = "text/event-stream"),
        (status = 404, body = crate::admin::error::ErrorBody), (status = 503, body = crate::admin::error::ErrorBody, description = "all places are taken; names the limit")))]
/// What happens to messages, as it happens.
pub(in crate::admin) async fn events(
    State(app): State<App>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let resource = resource(&app, &name)?;
    let last = last_seen(&headers, query.as_deref())?;
    let (pipe, bytes, held) = BodyPipe::new();
    let (answer, answered) = oneshot::channel();
    let feed = app.state.feed.clone();
    feed.join(Join { resource: resource.clone(), last, way: Way::Body(pipe, answer) });
    // A feed that has ended drops the question.
    let ticket = match answered.await.unwrap_or(Err(Refused::Draining)) {
        Ok(ticket) => ticket,
        Err(refused) => return Err(answer::refusal(&resource, refused)),
    };
    let carried = Carried { bytes, held, ticket, shared: feed.shared.clone() };
    let kind = [(header::CONTENT_TYPE, "text/event-stream"), (HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((kind, Body::from_stream(carried)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded() {
        for (text, expected) in [("channel%3Aa.b", Some("channel:a.b")), ("a%", Some("a%")), ("%zz", Some("%zz")), ("%ff", None)]
        {
            assert_eq!(decoded(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_header_goes_before_the_query() {
        let mut headers = HeaderMap::new();
        assert_eq!(last_seen(&headers, Some("a=1&lastEventId=7")).unwrap(), Some(7));
        headers.insert("last-event-id", HeaderValue::from_static(" 9 "));
        assert_eq!(last_seen(&headers, Some("lastEventId=7")).unwrap(), Some(9));
        headers.insert("last-event-id", HeaderValue::from_static("-1"));
        assert!(last_seen(&headers, None).is_err());
    }
}
