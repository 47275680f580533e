//! HTTP and HTTPS out. The request is streamed with its length known, the response's head is handed back as soon as it
//! is there, its body as a stream. No redirect is followed, nothing is decompressed, no proxy is taken from the environment.

mod headers;
mod request;

use super::{ConnectorError, balance::Targets, broken, count_failure, not_sent, tls};
use crate::{
    channel::{ClientTls, Route},
    engine::ports::{BodyStream, Connector, Delivery, Reply, ReplyKind, SendError},
};
use futures_util::{StreamExt, future::BoxFuture};
use http::Method;
use request::Shape;
use reqwest::{Client, Response, Url, redirect};
use std::{error::Error, io, sync::Arc, time::Duration};

/// Longest wait for a connection; an address that answers at all does so much sooner.
const CONNECT: Duration = Duration::from_secs(10);
/// Below the 60 to 75 s after which common servers close, so that a connection is rarely found closed.
const POOL_IDLE: Duration = Duration::from_secs(50);

/// A route to HTTP servers.
pub(super) struct HttpConnector {
    client: Client,
    targets: Arc<Targets>,
    shape: Shape,
}

impl HttpConnector {
    pub(super) fn new(route: &Route, targets: Arc<Targets>) -> Result<Self, ConnectorError> {
        let tls = tls::client_config(route.tls.as_ref().unwrap_or(&ClientTls::default()), &[b"h2", b"http/1.1"])?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(route.timeout.min(CONNECT))
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(route.in_flight.max(1) as usize)
            .tcp_keepalive(Duration::from_secs(60))
            .build()
            .map_err(|e| ConnectorError::Client(root_cause(&e)))?;
        Ok(Self { client, targets, shape: Shape::new(route)? })
    }

    async fn exchange(&self, delivery: &Delivery, index: usize, target: &str) -> Result<(Method, Response), SendError> {
        let mut request = self.shape.request(&delivery.message, index).map_err(|reason| super::unsendable(target, reason))?;
        self.shape.set_headers(&mut request).map_err(|reason| not_sent(target, reason))?;
        let (method, after) = (request.method().clone(), delivery.timeout);
        match tokio::time::timeout(after, self.client.execute(request)).await {
            Ok(Ok(response)) => Ok((method, response)),
            Ok(Err(e)) if e.is_connect() || e.is_builder() => Err(not_sent(target, format!("no connection: {}", root_cause(&e)))),
            Ok(Err(e)) => Err(broken(target, root_cause(&e))),
            Err(_) => Err(SendError::Timeout { target: target.into(), after }),
        }
    }
}

impl Connector for HttpConnector {
    fn send(&self, delivery: Delivery) -> BoxFuture<'_, Result<Reply, SendError>> {
        Box::pin(async move {
            let lease = self.targets.pick(delivery.message.envelope());
            let exchange = self.exchange(&delivery, lease.index(), lease.name()).await;
            let (method, response) = exchange.inspect_err(|error| count_failure(&lease, error))?;
            let status = response.status().as_u16();
            lease.answered(status < 500);
            let headers = headers::end_to_end(response.headers(), method == Method::HEAD || status == 304);
            let len = response.content_length();
            Ok(Reply {
                target: lease.name().into(),
                kind: ReplyKind::Http { status, headers },
                body: body(response, delivery.timeout),
                len,
            })
        })
    }
}

/// The response's body; an error when nothing comes for `idle`.
fn body(response: Response, idle: Duration) -> BodyStream {
    let pieces = response.bytes_stream();
    Box::pin(futures_util::stream::unfold(Some(pieces), move |pieces| async move {
        let mut pieces = pieces?;
        match tokio::time::timeout(idle, pieces.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(pieces))),
            Ok(Some(Err(e))) => Some((Err(io::Error::other(root_cause(&e))), None)),
            Err(_) => Some((Err(io::Error::new(io::ErrorKind::TimedOut, "the response's body stopped coming")), None)),
        }
    }))
}

/// A target as it may be shown: no credentials, no query.
pub(super) fn display_name(target: &str) -> String {
    match Url::parse(target) {
        Ok(url) => {
            let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
            format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
        }
        // Refused when the connector is made; until then nothing of it is shown.
        Err(_) => "invalid URL".into(),
    }
}

/// The innermost cause: it names the fact (refused, unknown issuer, …) and never the URL or content.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = if std::ptr::addr_eq(cause, error) { "request failed".to_owned() } else { cause.to_string() };
    text.chars().take(200).collect()
}
