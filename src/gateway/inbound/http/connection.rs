//! One connection: hyper does the protocol, this keeps its time limits, its drain and its end.

use super::{
    Context, Instance, discard,
    pulse::{Pulse, Verdict},
    service::handle,
    wire::Wire,
};
use crate::{gateway::inbound::LINGER, telemetry::inbound::Cut};
use bytes::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{sleep, timeout},
};

const HEAD_LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nContent-Length: 41\r\nConnection: close\r\n\r\n{\"error\":\"request head not sent in time\"}";

/// How often a draining connection looks whether it has fallen idle.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

fn context(instance: &Arc<Instance>, peer: SocketAddr, certificate: Option<Bytes>, pulse: &Arc<Pulse>) -> Arc<Context> {
    Arc::new(Context { instance: instance.clone(), peer, remote: peer.to_string(), certificate, pulse: pulse.clone() })
}

/// Serves HTTP/1 until the connection's end.
pub(super) async fn http1<S: AsyncRead + AsyncWrite + Unpin + Send>(
    instance: &Arc<Instance>,
    stream: S,
    peer: SocketAddr,
    certificate: Option<Bytes>,
) {
    let pulse = Arc::new(Pulse::new());
    let mut wire = Wire { io: stream, pulse: pulse.clone() };
    let context = context(instance, peer, certificate, &pulse);
    let end = {
        let service = service_fn(|request| handle(request, context.clone()));
        let connection = pin!(instance.http1.serve_connection(TokioIo::new(&mut wire), service));
        drive(connection, instance, &pulse, Drain::AfterGrace).await
    };
    match end {
        End::Done(Ok(())) => {}
        End::Done(Err(error)) => {
            if error.is_parse() {
                // hyper has answered 400, 414 or 431. Its error text is fixed.
                instance.server.cut(peer, Cut::BadRequest, &error.to_string());
            }
        }
        End::Cut(cut) => {
            instance.server.cut(peer, cut, why(cut));
            // Where nothing of an answer is under way, an answer of our own can go out.
            if cut == Cut::HeaderTimeout && pulse.in_head() {
                let _ = timeout(LINGER, wire.io.write_all(HEAD_LATE)).await;
            }
            if cut == Cut::WriteStalled {
                return;
            }
        }
    }
    // Closing a socket that holds unread bytes resets the connection, and the reset destroys an answer that the
    // peer has not read yet.
    if !pulse.has_ended() {
        let _ = timeout(LINGER, async {
            wire.io.shutdown().await?;
            discard(&mut wire.io).await
        })
        .await;
    }
}

/// Serves HTTP/2 until the connection's end.
pub(super) async fn http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    instance: &Arc<Instance>,
    stream: S,
    peer: SocketAddr,
    certificate: Option<Bytes>,
) {
    let pulse = Arc::new(Pulse::new());
    let context = context(instance, peer, certificate, &pulse);
    let service = service_fn(move |request| handle(request, context.clone()));
    let wire = Wire { io: stream, pulse: pulse.clone() };
    let mut connection = pin!(instance.http2.serve_connection(TokioIo::new(wire), service));
    if let End::Cut(cut) = drive(connection.as_mut(), instance, &pulse, Drain::AtOnce).await {
        instance.server.cut(peer, cut, why(cut));
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LINGER, connection).await;
    }
}

fn why(cut: Cut) -> &'static str {
    match cut {
        Cut::HeaderTimeout => "the request's head did not come within http.header_timeout",
        Cut::IdleTimeout => "idle for longer than http.idle_timeout",
        _ => "the peer did not take its response within http.body_idle_timeout",
    }
}

enum End {
    Done(hyper::Result<()>),
    Cut(Cut),
}

/// When a draining connection is told to end.
#[derive(Clone, Copy)]
enum Drain {
    /// HTTP/1: there is no way to tell an idle peer, so its next request is still answered (and with it goes
    /// `Connection: close`); only when none comes the connection ends.
    AfterGrace,
    /// HTTP/2: GOAWAY tells the peer; what was sent before it is still answered.
    AtOnce,
}

/// What both protocol versions' connections can do.
trait Connection: Future<Output = hyper::Result<()>> {
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, B, S> Connection for hyper::server::conn::http1::Connection<I, S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, B, S, E> Connection for hyper::server::conn::http2::Connection<I, S, E>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

async fn drive(mut connection: Pin<&mut impl Connection>, instance: &Instance, pulse: &Pulse, how: Drain) -> End {
    let config = &instance.server.config;
    let mut timer = pin!(sleep(match pulse.judge(config) {
        Verdict::Look(after) => after,
        Verdict::Cut(_) => Duration::ZERO,
    }));
    let mut drained = pin!(instance.draining.wait());
    // Serving, until the node drains.
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => return End::Done(result),
            () = timer.as_mut() => match pulse.judge(config) {
                Verdict::Cut(cut) => return End::Cut(cut),
                Verdict::Look(after) => timer.as_mut().reset(tokio::time::Instant::now() + after),
            },
            () = drained.as_mut() => break,
        }
    }
    let mut told = match how {
        Drain::AfterGrace => false,
        Drain::AtOnce => {
            connection.as_mut().graceful_shutdown();
            true
        }
    };
    let draining = tokio::time::Instant::now();
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => return End::Done(result),
            () = sleep(DRAIN_LOOK) => {}
        }
        if let Verdict::Cut(cut) = pulse.judge(config) {
            return End::Cut(cut);
        }
        let idle = pulse.idle_for().is_some_and(|idle| idle >= LINGER) && !pulse.in_head();
        if !told && idle && draining.elapsed() >= LINGER {
            connection.as_mut().graceful_shutdown();
            told = true;
        }
    }
}
