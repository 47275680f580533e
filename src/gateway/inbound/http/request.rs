//! A request as the engine takes it: its head without what belongs to this hop only, and its body, whole or flowing.

use crate::{
    engine::ports::Incoming,
    gateway::inbound::connections::Connections,
    message::{HttpHead, envelope::HeaderBytes},
};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderName, header, request::Parts};
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
/// A body that comes more slowly than this on average (bytes per second, after one `body_idle_timeout`) is not waited for.
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
pub(super) async fn body(body: hyper::body::Incoming, idle: Duration, table: Arc<Connections>) -> Result<Incoming, Lost> {
    if body.is_end_stream() {
        return Ok(Incoming::Whole(Bytes::new()));
    }
    let announced = body.size_hint().exact().and_then(|n| usize::try_from(n).ok());
    let until = if announced.is_some_and(|n| n > WHOLE) { HEAD } else { WHOLE };
    let mut flow = Flow { body, idle, started: Instant::now(), received: 0, table };
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
    table: Arc<Connections>,
}

impl Flow {
    async fn next(&mut self) -> Result<Option<Bytes>, Lost> {
        loop {
            let allowed = self.idle + Duration::from_secs(self.received / SLOWEST);
            let left = allowed.saturating_sub(self.started.elapsed()).min(self.idle);
            match timeout(left, self.body.frame()).await {
                Err(_) => return Err(Lost::Late),
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

#[cfg(test)]
mod tests {
    use super::*;

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
