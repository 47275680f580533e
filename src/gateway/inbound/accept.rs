//! The accept loop that both socket gateways share.

use crate::telemetry::inbound::AcceptFailed;
use std::{future::Future, io, net::SocketAddr, time::Duration};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What is taken at most of what waits when the drain begins.
const WAITING: usize = 4096;

/// Accepts until `drain` is cancelled, calling `taken` for each connection, and then what waits at that moment: its makers have been told
/// that they are connected, and may have sent a message. Returning drops this listener only: whoever owns the
/// socket's other descriptor keeps what comes to its accept queue afterwards.
pub(super) async fn accept_until(
    listener: TcpListener,
    name: &str,
    drain: &CancellationToken,
    mut taken: impl FnMut(TcpStream, SocketAddr),
) {
    let mut drained = std::pin::pin!(drain.cancelled());
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut drained => return rest(listener, taken),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => taken(stream, canonical(peer)),
            Err(error) if is_peers_fault(&error) => {}
            Err(error) => {
                AcceptFailed { listener: name, error: &error }.emit();
                if sleep_or(Duration::from_millis(100), drained.as_mut()).await {
                    return rest(listener, taken);
                }
            }
        }
    }
}

/// Takes what waits. Asks the kernel itself: what the runtime knows may be a moment old.
fn rest(listener: TcpListener, mut taken: impl FnMut(TcpStream, SocketAddr)) {
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..WAITING {
        match listener.accept() {
            Ok((stream, peer)) => {
                if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                    taken(stream, canonical(peer));
                }
            }
            Err(error) if is_peers_fault(&error) => {}
            // Nothing waits any more, or the socket has no more to give.
            Err(_) => return,
        }
    }
}

/// Sleeps; true when `other` came first.
async fn sleep_or(time: Duration, other: impl Future<Output = ()>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => false,
        () = other => true,
    }
}

/// The connection was gone before it was accepted: nothing to tell.
fn is_peers_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// IPv4 addresses as such also where the listener is an IPv6 one, so that allow lists fit.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
