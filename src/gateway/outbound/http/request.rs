//! One request from one accepted message.

use super::{
    super::ConnectorError,
    headers::{SetHeaders, is_hop_by_hop},
};
use crate::{
    channel::{Mode, Route},
    engine::{
        fact::BodyRef,
        ports::{BodyStream, Stored},
    },
    message::{Envelope, HttpHead, Protocol, envelope::HeaderBytes},
};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use http_body::{Frame, SizeHint};
use reqwest::{Body, Request, Url};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    str::FromStr,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

const TRANSACTION: HeaderName = HeaderName::from_static("x-hie-transaction-id");
/// What OpenHIM's mediators look for.
const OPENHIM_TRANSACTION: HeaderName = HeaderName::from_static("x-openhim-transactionid");
const IDEMPOTENCY: HeaderName = HeaderName::from_static("idempotency-key");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What a route's requests look like.
pub(super) struct Shape {
    route: String,
    bases: Vec<Url>,
    method: Option<Method>,
    forward_path: bool,
    set: SetHeaders,
}

impl Shape {
    pub(super) fn new(route: &Route) -> Result<Self, ConnectorError> {
        let method = match &route.method {
            Some(text) => Some(Method::from_str(text).map_err(|_| ConnectorError::Method(text.clone()))?),
            None => None,
        };
        Ok(Self {
            route: route.name.clone(),
            bases: route.http.iter().map(|target| base(target)).collect::<Result<_, _>>()?,
            method,
            forward_path: route.forward_path,
            set: SetHeaders::new(&route.headers)?,
        })
    }

    /// Sets the route's own headers. The error (a file that cannot be read) is the route's fault, not the message's.
    pub(super) fn set_headers(&self, request: &mut Request) -> Result<(), String> {
        self.set.apply(request.headers_mut())
    }

    /// The request for a message to target `index`, but for [`Shape::set_headers`]; the error is a reason without content.
    pub(super) fn request(&self, message: &Stored, index: usize) -> Result<Request, String> {
        let envelope = message.envelope();
        let head = envelope.http.as_ref();
        let url = match head {
            Some(head) if self.forward_path => join(&self.bases[index], head)?,
            _ => self.bases[index].clone(),
        };
        let mut request = Request::new(self.method(message, head)?, url);
        let mut headers = HeaderMap::with_capacity(16);
        if let Some(head) = head {
            pass_on(head, envelope, &mut headers)?;
        }
        if !envelope.content_type.is_empty()
            && !headers.contains_key(header::CONTENT_TYPE)
            && let Ok(value) = HeaderValue::from_str(&envelope.content_type)
        {
            headers.insert(header::CONTENT_TYPE, value);
        }
        let mut buffer = uuid::Uuid::encode_buffer();
        let id = HeaderValue::from_str(envelope.id.0.hyphenated().encode_lower(&mut buffer))
            .map_err(|_| "the message id is not printable")?;
        let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
        if !safe && !headers.contains_key(IDEMPOTENCY) {
            headers.insert(IDEMPOTENCY, id.clone());
        }
        headers.insert(OPENHIM_TRANSACTION, id.clone());
        headers.insert(TRANSACTION, id);
        *request.headers_mut() = headers;
        *request.body_mut() = Some(body(message));
        Ok(request)
    }

    /// In proxy mode the primary route keeps the sender's method; otherwise the route's goes first.
    fn method(&self, message: &Stored, head: Option<&HttpHead>) -> Result<Method, String> {
        let sender = match head {
            Some(head) => Some(Method::from_str(&head.method).map_err(|_| "the sender's method cannot be sent on")?),
            None => None,
        };
        let answers_sender =
            message.accepted.mode == Mode::Proxy && message.accepted.routes.first().is_some_and(|r| *r == self.route);
        let (first, second) = if answers_sender { (sender, self.method.clone()) } else { (self.method.clone(), sender) };
        Ok(first.or(second).unwrap_or(Method::POST))
    }
}

fn base(target: &str) -> Result<Url, ConnectorError> {
    let error = |reason: &str| ConnectorError::Target { target: super::display_name(target), reason: reason.into() };
    let mut url = Url::parse(target).map_err(|e| error(&format!("not a URL ({e})")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(error("give http://host/path or https://host/path"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(error("credentials do not belong here: headers = { authorization = \"file:PATH\" }"));
    }
    url.set_fragment(None);
    Ok(url)
}

/// The target with the sender's path appended and its query kept. Refuses a path that would climb out of the target's.
fn join(base: &Url, head: &HttpHead) -> Result<Url, String> {
    let mut url = base.clone();
    let root = base.path().trim_end_matches('/');
    if head.path.starts_with('/') {
        url.set_path(&format!("{root}{}", head.path));
    }
    let inside = url.path().strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !inside {
        return Err("the request's path leads out of the target's".into());
    }
    match (base.query(), head.query.as_str()) {
        (_, "") => {}
        (None | Some(""), query) => url.set_query(Some(query)),
        (Some(own), query) => url.set_query(Some(&format!("{own}&{query}"))),
    }
    Ok(url)
}

/// The sender's end-to-end headers, byte for byte and in order, and where the request came from.
fn pass_on(head: &HttpHead, envelope: &Envelope, headers: &mut HeaderMap) -> Result<(), String> {
    for (name, value) in &head.headers {
        if is_hop_by_hop(name) {
            continue;
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "a header's name cannot be sent on")?;
        headers.append(name, value_of(value)?);
    }
    if envelope.protocol != Protocol::Http {
        return Ok(());
    }
    if let Ok(address) = envelope.remote.parse::<SocketAddr>() {
        extend(headers, FORWARDED_FOR, address.ip().to_string().as_bytes());
    }
    if let Some((_, host)) = head.headers.iter().find(|(name, _)| name == "host") {
        extend(headers, FORWARDED_HOST, &host.0);
    }
    // The listeners are named after their schemes; a balancer in front knows better and has said so.
    if !headers.contains_key(FORWARDED_PROTO) {
        let scheme = if envelope.listener.contains("https") { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
    Ok(())
}

/// Appends to a comma-separated list header.
fn extend(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    let mut list = Vec::new();
    for earlier in headers.get_all(&name) {
        list.extend_from_slice(earlier.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(value);
    if let Ok(list) = HeaderValue::from_maybe_shared(Bytes::from(list)) {
        headers.insert(name, list);
    }
}

fn value_of(value: &HeaderBytes) -> Result<HeaderValue, String> {
    HeaderValue::from_bytes(&value.0).map_err(|_| "a header's value cannot be sent on".into())
}

fn body(message: &Stored) -> Body {
    if let Some(bytes) = &message.body {
        return Body::from(bytes.clone());
    }
    let left = message.envelope().body_len;
    if left == 0 || message.accepted.body == BodyRef::None {
        return Body::from(Bytes::new());
    }
    Body::wrap(Streamed { pieces: Mutex::new(message.open()), left })
}

/// A stored body with its length known, so that it goes out with `Content-Length`.
struct Streamed {
    // reqwest wants Sync; the lock is never contended because polling has the only reference.
    pieces: Mutex<BodyStream>,
    left: u64,
}

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = self.pieces.get_mut().unwrap_or_else(PoisonError::into_inner).poll_next_unpin(cx);
        piece.map(|piece| match piece {
            Some(Ok(bytes)) if bytes.len() as u64 <= self.left => {
                self.left -= bytes.len() as u64;
                Some(Ok(Frame::data(bytes)))
            }
            Some(Ok(_)) => Some(Err(io::Error::other("the stored body is longer than was noted"))),
            Some(Err(_)) => Some(Err(io::Error::other("the stored body could not be read"))),
            None if self.left > 0 => Some(Err(io::Error::other("the stored body is shorter than was noted"))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
