//! A small HTTP server on a thread and a runtime of its own.

use super::{
    feed::door,
    places::{Place, Places},
    shared::App,
};
use crate::telemetry::admin::Listening;
use axum::{Extension, Router};
use hyper::service::{Service, service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    thread::JoinHandle,
    time::Duration,
};
use tokio::{net::TcpStream, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Address of the caller, for handlers.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub SocketAddr);

/// Connections at the same time; when all have something in hand, more wait.
const CONNECTIONS: usize = 128;
/// For a request's head, and between requests.
const HEAD: Duration = Duration::from_secs(30);
/// A caller that takes nothing for so long is gone.
const STALLED: Duration = Duration::from_secs(60);
/// For requests in hand when told to stop.
const LAST_CALL: Duration = Duration::from_secs(5);
/// Threads for work that blocks.
const BLOCKING: usize = 8;

/// Starts the thread; it ends after `stop`. `feed`: readers of its live feed are taken before they reach the router.
pub(super) fn spawn(
    thread: &str,
    what: &'static str,
    listener: TcpListener,
    router: Router,
    feed: Option<App>,
    stop: CancellationToken,
) -> io::Result<JoinHandle<()>> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING)
        .thread_keep_alive(Duration::from_secs(5))
        .build()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    std::thread::Builder::new().name(thread.into()).spawn(move || {
        Listening { what, address }.emit();
        runtime.block_on(accept(listener, router, feed, stop));
        // A look-up that still blocks must not keep the node from ending.
        runtime.shutdown_timeout(Duration::from_millis(200));
    })
}

async fn accept(listener: tokio::net::TcpListener, router: Router, feed: Option<App>, stop: CancellationToken) {
    let places = Places::new(CONNECTIONS, feed.is_none());
    let tracker = TaskTracker::new();
    loop {
        // A newcomer first: one that is there may have to give way to it.
        let next = async {
            let accepted = listener.accept().await;
            (accepted, places.take().await)
        };
        let (accepted, place) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                tracker.spawn(serve(stream, peer, router.clone(), feed.clone(), stop.clone(), place));
            }
            // Out of descriptors, most likely: they come back when connections end.
            Err(_) => time::sleep(Duration::from_millis(50)).await,
        }
    }
    tracker.close();
    let _ = time::timeout(LAST_CALL, tracker.wait()).await;
}

async fn serve(
    mut stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    feed: Option<App>,
    stop: CancellationToken,
    place: Place,
) {
    // Neither is needed for the answer to be right.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(STALLED));
    if let Some(app) = feed {
        // A reader of the live feed goes on without the place that it came in by.
        stream = tokio::select! {
            passed = door::pass(stream, peer, &app) => match passed {
                Some(stream) => stream,
                None => return,
            },
            () = place.over(HEAD) => return,
            () = stop.cancelled() => return,
        };
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .max_concurrent_streams(32)
        .max_header_list_size(64 * 1024);
    let answering = TowerToHyperService::new(router.layer(Extension(Peer(peer))));
    let service = service_fn(|request| {
        let in_hand = place.asked();
        let answer = answering.call(request);
        async move {
            let answer = answer.await;
            drop(in_hand);
            answer
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // How a connection ended concerns the caller only, who knows it too.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = place.over(HEAD) => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
