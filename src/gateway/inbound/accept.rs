//! The accept loop that both socket gateways share.

use crate::telemetry::inbound::AcceptFailed;
use std::{future::Future, io, net::SocketAddr, time::Duration};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Accepts until `drain` is cancelled, calling `taken` for each connection. Returning drops this listener only:
/// whoever owns the socket's other descriptor keeps what waits in its accept queue.
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
            () = &mut drained => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => taken(stream, canonical(peer)),
            Err(error) if is_peers_fault(&error) => {}
            Err(error) => {
                AcceptFailed { listener: name, error: &error }.emit();
                if sleep_or(Duration::from_millis(100), drained.as_mut()).await {
                    return;
                }
            }
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
