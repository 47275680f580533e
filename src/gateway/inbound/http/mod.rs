//! HTTP and HTTPS in: HTTP/1.1 with keep-alive and pipelining, HTTP/2 (by ALPN on TLS, with prior knowledge on plain
//! connections), bodies streamed, any method.
//!
//! What is answered here and never reaches the engine: connections over the limit (503) or from an address not on
//! `allow_ips` (403), heads that are malformed, late or too large (400, 408, 431; by hyper where it can tell),
//! `CONNECT` (405), `OPTIONS *` (204), senders not let in (401, 403) and bodies announced larger than the node's limit (413).
//! Request smuggling: differing `Content-Length`s, a `Transfer-Encoding` other than `chunked` (501), no or several `Host`s, folded
//! header lines and spaces before the colon are refused; with both `Transfer-Encoding` and `Content-Length` the former
//! counts, the latter is dropped, and the connection is closed after the answer (RFC 9112 §6.1).

mod body;
mod connection;
mod pulse;
mod request;
mod respond;
mod service;
mod wire;

use super::{
    accept::accept_until,
    connections::{Connections, Permit},
    drain::Draining,
    peer,
};
use crate::{
    config,
    engine::ports::Intake,
    telemetry::inbound::{ConnectionCut, Cut},
};
use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One HTTP or HTTPS listener, shared by all accepting instances.
pub struct HttpServer {
    config: config::Http,
    /// `http` or `https`: the name in rules, envelopes and metrics.
    listener: Arc<str>,
    tls: Option<TlsAcceptor>,
    connections: Arc<Connections>,
    max_body: u64,
}

impl HttpServer {
    /// `tls`: given for HTTPS (protocols [`ALPN`]). `max_body`: bodies announced larger than this (bytes) are refused
    /// before they are read. `config.max_connections` counts for this listener, over all instances.
    pub fn new(config: config::Http, tls: Option<TlsAcceptor>, max_body: u64) -> Arc<Self> {
        let listener: Arc<str> = if tls.is_some() { "https".into() } else { "http".into() };
        Arc::new(Self { connections: Connections::new(&listener, config.max_connections), config, listener, tls, max_body })
    }

    /// The table of its open connections.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    fn cut(&self, peer: SocketAddr, reason: Cut, detail: &str) {
        ConnectionCut { meters: self.connections.meters(), peer: peer.ip(), reason, detail }.emit();
    }
}

/// The protocols offered on TLS, for [`super::tls::acceptor`].
pub const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Streams at the same time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// Bytes one HTTP/2 stream, and one connection, may have under way: bounds memory per connection.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// Written but not sent, per HTTP/2 stream.
const SEND_BUFFER: usize = 128 * 1024;

/// What a connection needs of its accepting instance.
struct Instance {
    server: Arc<HttpServer>,
    intake: Arc<dyn Intake>,
    draining: Draining,
    http1: http1::Builder,
    http2: http2::Builder<Tracked>,
}

/// Runs HTTP/2 streams as tracked tasks, so that a drain waits for them.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tracked {
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

/// Serves until `drain` is cancelled, then returns; connections go on as tasks in `tasks` until they are finished:
/// the response in hand is sent with `Connection: close` (HTTP/2: GOAWAY), an idle connection may bring one more request
/// within a second.
///
/// `listener` is dropped at the return; keep another descriptor of the socket open where its accept queue must not be lost.
pub async fn serve(
    listener: TcpListener,
    server: Arc<HttpServer>,
    intake: Arc<dyn Intake>,
    drain: CancellationToken,
    tasks: TaskTracker,
) {
    let instance = Arc::new(Instance {
        http1: http1_builder(&server.config),
        http2: http2_builder(&server.config, &tasks),
        server: server.clone(),
        intake,
        draining: Draining::default(),
    });
    accept_until(listener, &server.listener, &drain, |stream, peer| match server.connections.take() {
        Some(permit) => {
            tasks.spawn(connect(instance.clone(), stream, peer, permit));
        }
        None => {
            server.cut(peer, Cut::Limit, "too many connections: raise http.max_connections or add a node");
            refuse(&server, &tasks, stream, OVER_LIMIT);
        }
    })
    .await;
    instance.draining.begin();
}

fn http1_builder(config: &config::Http) -> http1::Builder {
    let mut builder = http1::Builder::new();
    let max_head = usize::try_from(config.max_header_bytes.as_u64()).unwrap_or(usize::MAX);
    builder
        // Times are kept by `connection`: one timer for a connection instead of one for every request.
        .header_read_timeout(None)
        // A sender may close its side after the request and still wait for the response.
        .half_close(true)
        // Not `pipeline_flush`: it holds responses back, that to a malformed request included, while there are unread bytes.
        .pipeline_flush(false)
        .max_header_size(max_head)
        // hyper's smallest is 8 KiB.
        .max_buf_size(max_head.clamp(8 * 1024, 1024 * 1024).max(64 * 1024));
    builder
}

fn http2_builder(config: &config::Http, tasks: &TaskTracker) -> http2::Builder<Tracked> {
    let mut builder = http2::Builder::new(Tracked(tasks.clone()));
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(config.max_header_bytes.as_u64()).unwrap_or(u32::MAX));
    builder
}

/// From the accepted socket to the end of the connection.
async fn connect(instance: Arc<Instance>, mut stream: TcpStream, socket_peer: SocketAddr, permit: Permit) {
    let _permit = permit;
    let server = &instance.server;
    // An error here means that the peer is gone, which the first read tells.
    let _ = stream.set_nodelay(true);
    let config = &server.config;
    let peer = match peer::admit(&mut stream, socket_peer, &config.proxy_protocol_from, &config.allow_ips).await {
        Ok(peer) => peer,
        Err((reason, detail)) => {
            server.cut(socket_peer, reason, detail);
            if reason == Cut::Address && server.tls.is_none() {
                say_and_close(stream, ADDRESS).await;
            }
            return;
        }
    };
    match &server.tls {
        None => match sniff(&stream, config.header_timeout, &instance.draining).await {
            Sniffed::Http1 => connection::http1(&instance, stream, peer, None).await,
            Sniffed::Http2 => connection::http2(&instance, stream, peer, None).await,
            Sniffed::Late => server.cut(peer, Cut::HeaderTimeout, "no request came"),
            Sniffed::Gone => {}
        },
        Some(acceptor) => match timeout(config.header_timeout, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let certificate = super::tls::client_certificate(session);
                if session.alpn_protocol() == Some(b"h2") {
                    connection::http2(&instance, stream, peer, certificate).await;
                } else {
                    connection::http1(&instance, stream, peer, certificate).await;
                }
            }
            Ok(Err(error)) => server.cut(peer, Cut::Tls, &format!("TLS handshake failed: {error}")),
            Err(_) => server.cut(peer, Cut::Tls, "TLS handshake did not end in time"),
        },
    }
}

enum Sniffed {
    Http1,
    Http2,
    Late,
    Gone,
}

/// HTTP/2 with prior knowledge begins with a fixed preface (RFC 9113 §3.4); looks without taking.
async fn sniff(stream: &TcpStream, within: Duration, draining: &Draining) -> Sniffed {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let deadline = Instant::now() + within;
    let mut first = [0; PREFACE.len()];
    let looked = timeout(within, async {
        loop {
            match stream.peek(&mut first).await {
                Ok(0) | Err(_) => return Sniffed::Gone,
                Ok(n) if first[..n] != PREFACE[..n] => return Sniffed::Http1,
                Ok(n) if n == PREFACE.len() => return Sniffed::Http2,
                // hyper's own timeouts take over.
                Ok(_) if Instant::now() >= deadline => return Sniffed::Http1,
                Ok(_) => sleep(Duration::from_millis(2)).await,
            }
        }
    });
    tokio::select! {
        biased;
        looked = looked => looked.unwrap_or(Sniffed::Late),
        // Nothing was asked yet: the same grace as for an idle connection.
        () = async { draining.wait().await; sleep(super::LINGER).await } => Sniffed::Gone,
    }
}

const OVER_LIMIT: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: application/json\r\nContent-Length: 32\r\nConnection: close\r\n\r\n{\"error\":\"too many connections\"}";
const ADDRESS: &str = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 31\r\nConnection: close\r\n\r\n{\"error\":\"address not allowed\"}";

/// Tells a connection over the limit so, where that costs little: not on TLS, and not to too many at a time.
fn refuse(server: &HttpServer, tasks: &TaskTracker, stream: TcpStream, answer: &'static str) {
    if server.tls.is_some() {
        return;
    }
    if let Some(permit) = server.connections.refuse() {
        tasks.spawn(async move {
            let _permit = permit;
            say_and_close(stream, answer).await;
        });
    }
}

/// Writes `answer` and closes so that it arrives: reading what the peer still sends until it ends its side.
async fn say_and_close(mut stream: TcpStream, answer: &'static str) {
    // Whatever fails here, the connection is closed all the same.
    let _ = timeout(super::LINGER, async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        discard(&mut stream).await
    })
    .await;
}

/// Reads until the peer's end.
async fn discard(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// The connection's part of every request.
struct Context {
    instance: Arc<Instance>,
    peer: SocketAddr,
    remote: String,
    certificate: Option<Bytes>,
    pulse: Arc<pulse::Pulse>,
}
