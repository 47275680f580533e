//! A request as the engine takes it: its head without what belongs to this hop only, and its body, whole or flowing.

use crate::{
    config,
    engine::ports::Incoming,
    gateway::inbound::connections::Connections,
    message::{HttpHead, envelope::HeaderBytes},
};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderName, StatusCode, Version, header, request::Parts, uri::Authority};
use http_body::Body as _;
use http_body_util::BodyExt;
use std::{io, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

/// Bodies up to this size are handed over whole.
const WHOLE: usize = 256 * 1024;
/// Of larger ones, at least this much is read before they are handed over, so that a rule can look at it.
const HEAD: usize = 64 * 1024;
/// Pieces up to this size are copied out of the connection's buffer: a reference would hold all of the buffer for as
/// long as the message waits.
const COPIED: usize = 16 * 1024;
/// What is read before a body is handed over may come more slowly than `min_body_rate`, being small, but not on average more
/// slowly than this (bytes per second, after one `body_idle_timeout`).
const SLOWEST: u64 = 128;

/// Header fields that belong to one hop (RFC 9110 §7.6.1), apart from those that `Connection` names.
pub(super) fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
    ) || name == "keep-alive"
        || name == "proxy-connection"
}

/// What hyper lets pass and an intermediary must not (RFC 9112 §3.2, §6.1): a message whose target or body the next hop might
/// read in another way than we do. The status to answer with, and a fixed text.
pub(super) fn misframed(parts: &Parts) -> Option<(StatusCode, &'static str)> {
    let bad = |why| Some((StatusCode::BAD_REQUEST, why));
    let fields = &parts.headers;
    if fields.contains_key(header::TRANSFER_ENCODING) {
        let mut codings = fields.get_all(header::TRANSFER_ENCODING).iter();
        let only = codings.next().filter(|_| codings.next().is_none());
        if !only.is_some_and(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")) {
            return Some((StatusCode::NOT_IMPLEMENTED, "Transfer-Encoding other than chunked; send the body as it is"));
        }
    }
    if parts.version > Version::HTTP_11 {
        return None;
    }
    let mut hosts = fields.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => bad("more than one Host header field"),
        (None, _) if parts.version == Version::HTTP_11 => bad("no Host header field"),
        (Some(host), _) if !host.is_empty() && Authority::try_from(host.as_bytes()).is_err() => bad("Host is no host name"),
        _ => None,
    }
}

/// The names that `Connection` makes hop-by-hop, without its own options.
pub(super) fn named_by_connection<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    values
        .flat_map(|value| value.split(|b| *b == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .filter(|name| !matches!(name.as_str(), "" | "close" | "keep-alive"))
        .collect()
}

/// The head without hop-by-hop fields, `Authorization` and `Expect` (this hop has answered it). HTTP/2's `:authority` becomes `host`,
/// its split `cookie` fields become one (RFC 9113 §8.2.3, §8.3.1).
pub(super) fn head(parts: &Parts) -> HttpHead {
    let fields = &parts.headers;
    let named = named_by_connection(fields.get_all(header::CONNECTION).iter().map(|v| v.as_bytes()));
    let mut headers = Vec::with_capacity(fields.len() + 1);
    if !fields.contains_key(header::HOST)
        && let Some(authority) = parts.uri.authority()
    {
        headers.push(("host".to_owned(), HeaderBytes(authority.as_str().into())));
    }
    let join_cookies = parts.version == http::Version::HTTP_2;
    for (name, value) in fields {
        if is_hop_by_hop(name)
            || *name == header::AUTHORIZATION
            || *name == header::EXPECT
            || named.iter().any(|n| n == name.as_str())
        {
            continue;
        }
        if join_cookies
            && *name == header::COOKIE
            && let Some((_, HeaderBytes(joined))) = headers.iter_mut().find(|(n, _)| n == "cookie")
        {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(value.as_bytes());
            continue;
        }
        headers.push((name.as_str().to_owned(), HeaderBytes(value.as_bytes().to_vec())));
    }
    HttpHead {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers,
    }
}

/// The value of `Authorization`, as sent.
pub(super) fn authorization(headers: &HeaderMap) -> Option<HeaderBytes> {
    headers.get(header::AUTHORIZATION).map(|value| HeaderBytes(value.as_bytes().to_vec()))
}

/// A body that did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// Silent for too long, or too slow.
    Late,
    /// The sender broke off, or its framing is wrong.
    Broken,
}

impl From<Lost> for io::Error {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Late => io::ErrorKind::TimedOut.into(),
            Lost::Broken => io::ErrorKind::ConnectionAborted.into(),
        }
    }
}

/// Reads a body up to [`WHOLE`], or hands over its head with the rest still flowing.
pub(super) async fn body(body: hyper::body::Incoming, config: &config::Http, table: Arc<Connections>) -> Result<Incoming, Lost> {
    if body.is_end_stream() {
        return Ok(Incoming::Whole(Bytes::new()));
    }
    let announced = body.size_hint().exact().and_then(|n| usize::try_from(n).ok());
    let until = if announced.is_some_and(|n| n > WHOLE) { HEAD } else { WHOLE };
    let pace = Pace::new(config);
    let mut flow = Flow { body, idle: config.body_idle_timeout, started: Instant::now(), received: 0, pace: None, table };
    let Some(first) = flow.next().await? else { return Ok(Incoming::Whole(Bytes::new())) };
    if flow.body.is_end_stream() {
        return Ok(Incoming::Whole(if first.len() <= COPIED { Bytes::copy_from_slice(&first) } else { first }));
    }
    // The sender's word for the length reserves no more than the limit.
    let mut head = BytesMut::with_capacity(announced.unwrap_or(2 * first.len()).min(until + HEAD));
    head.extend_from_slice(&first);
    drop(first);
    while head.len() < until {
        match flow.next().await? {
            Some(more) => head.extend_from_slice(&more),
            None => return Ok(Incoming::Whole(head.freeze())),
        }
    }
    if flow.body.is_end_stream() {
        return Ok(Incoming::Whole(head.freeze()));
    }
    flow.pace = Some(pace);
    let rest = stream::unfold(Some(flow), |flow| async {
        let mut flow = flow?;
        match flow.next().await {
            Ok(Some(data)) => Some((Ok(data), Some(flow))),
            Ok(None) => None,
            Err(lost) => Some((Err(lost.into()), None)),
        }
    });
    Ok(Incoming::Stream { head: head.freeze(), rest: Box::pin(rest) })
}

/// A body as it arrives, within its time limits.
struct Flow {
    body: hyper::body::Incoming,
    idle: Duration,
    started: Instant,
    received: u64,
    /// Kept once the body is handed over and holds one of the places for large messages.
    pace: Option<Pace>,
    table: Arc<Connections>,
}

impl Flow {
    async fn next(&mut self) -> Result<Option<Bytes>, Lost> {
        let mut silent = Duration::ZERO;
        loop {
            let left = match &self.pace {
                Some(pace) => pace.left(),
                None => {
                    let allowed = self.idle + Duration::from_secs(self.received / SLOWEST);
                    allowed.saturating_sub(self.started.elapsed())
                }
            };
            let waiting = Instant::now();
            let frame = timeout(left.min(self.idle.saturating_sub(silent)), self.body.frame()).await;
            let waited = waiting.elapsed();
            let came = match &frame {
                Ok(Some(Ok(frame))) => frame.data_ref().map_or(0, |data| data.len() as u64),
                _ => 0,
            };
            let kept = self.pace.as_mut().is_some_and(|pace| pace.went_on(waited, came));
            match frame {
                Err(_) if kept && silent + waited < self.idle => silent += waited,
                Err(_) => return Err(Lost::Late),
                Ok(_) if self.pace.is_some() && !kept && !self.body.is_end_stream() => return Err(Lost::Late),
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(Lost::Broken),
                Ok(Some(Ok(frame))) => {
                    // Trailers are for this hop.
                    if let Ok(data) = frame.into_data() {
                        self.received += data.len() as u64;
                        self.table.meters().received(data.len() as u64);
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Whether a body keeps to `min_body_rate`, one window after the other. Only time spent waiting for the sender counts:
/// while the node itself is slow to take what came, the sender is not to blame.
struct Pace {
    /// Bytes that one window must bring.
    wanted: u64,
    window: Duration,
    waited: Duration,
    came: u64,
}

impl Pace {
    fn new(config: &config::Http) -> Self {
        let window = config.body_rate_window;
        let wanted = u128::from(config.min_body_rate.as_u64()) * window.as_millis() / 1000;
        Self { wanted: u64::try_from(wanted).unwrap_or(u64::MAX), window, waited: Duration::ZERO, came: 0 }
    }

    /// Until the window's end.
    fn left(&self) -> Duration {
        self.window.saturating_sub(self.waited)
    }

    /// Notes what the latest wait has brought; false when a window has ended with too little.
    fn went_on(&mut self, waited: Duration, came: u64) -> bool {
        self.waited += waited;
        self.came = self.came.saturating_add(came);
        if self.waited < self.window {
            return true;
        }
        let enough = self.came >= self.wanted;
        (self.waited, self.came) = (Duration::ZERO, 0);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_of_waiting_must_bring_its_bytes() {
        let config = config::Http {
            min_body_rate: bytesize::ByteSize::b(100),
            body_rate_window: Duration::from_secs(2),
            ..config::Http::default()
        };
        let mut pace = Pace::new(&config);
        assert!(pace.went_on(Duration::ZERO, 1_000_000), "what comes at once is not measured");
        assert!(pace.went_on(Duration::from_secs(2), 0), "the first window had enough");
        assert!(pace.went_on(Duration::from_secs(1), 199));
        assert_eq!(pace.left(), Duration::from_secs(1));
        assert!(!pace.went_on(Duration::from_secs(1), 0), "an earlier window does not pay for a later one");
        let free = config::Http { min_body_rate: bytesize::ByteSize::b(0), ..config };
        assert!(Pace::new(&free).went_on(Duration::from_secs(60), 0), "0: no limit");
    }

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn fields_of_this_hop_and_credentials_stay_here() {
        let head = head(&parts(
            http::Request::builder()
                .method("PUT")
                .uri("/fhir/Patient%2F1?a=b&c")
                .header("Host", "hie")
                .header("Connection", "keep-alive, X-Mine")
                .header("X-Mine", "1")
                .header("Keep-Alive", "timeout=5")
                .header("TE", "trailers")
                .header("Proxy-Authorization", "secret")
                .header("Authorization", "secret")
                .header("Expect", "100-continue")
                .header("X-Two", "1")
                .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
                .header("X-Two", "2")
                .header("X-Latin", http::HeaderValue::from_bytes(b"M\xfcller").unwrap()),
        ));
        assert_eq!((head.method.as_str(), head.path.as_str(), head.query.as_str()), ("PUT", "/fhir/Patient%2F1", "a=b&c"));
        let names: Vec<&str> = head.headers.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["host", "x-two", "x-two", "traceparent", "x-latin"]);
        assert_eq!(head.headers[4].1.0, b"M\xfcller");
    }

    #[test]
    fn http2_heads_read_like_http1() {
        let head = head(&parts(
            http::Request::builder()
                .version(http::Version::HTTP_2)
                .uri("https://hie.example:5000/x")
                .header("cookie", "a=1")
                .header("cookie", "b=2"),
        ));
        assert_eq!(head.header("host"), Some("hie.example:5000"));
        assert_eq!(head.header("cookie"), Some("a=1; b=2"));
        assert_eq!(head.path, "/x");
    }
}
