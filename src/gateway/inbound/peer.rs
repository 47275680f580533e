//! Who is at the other end: the PROXY protocol of balancers in front, and the listener's allow list.

use super::accept::canonical;
use crate::{
    message::proxy::{self, Parsed},
    telemetry::inbound::Cut,
};
use ipnet::IpNet;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

/// A balancer sends its header at once (PROXY protocol, section 2: a receiver may rely on it).
const HEADER_WITHIN: Duration = Duration::from_secs(5);

/// Wait between looks at a header of which only a part has arrived.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Why a connection is not let in, with fixed text for the log.
pub(super) type NotAdmitted = (Cut, &'static str);

/// Reads the PROXY header where the connection comes from one of `proxies` (where it is required; from others it is
/// not understood at all, so that nobody can lie about his address) and checks the sender against `allow`
/// (empty: all). Returns the sender's address.
pub(super) async fn admit(
    stream: &mut TcpStream,
    socket_peer: SocketAddr,
    proxies: &[IpNet],
    allow: &[IpNet],
) -> Result<SocketAddr, NotAdmitted> {
    let peer = if contains(proxies, socket_peer.ip()) { proxied(stream).await?.unwrap_or(socket_peer) } else { socket_peer };
    if allow.is_empty() || contains(allow, peer.ip()) {
        Ok(peer)
    } else {
        Err((Cut::Address, "the sender's address is not in allow_ips of this listener"))
    }
}

fn contains(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

/// Takes exactly the header off the stream; the sender's address, or `None` for the balancer's own connection
/// (LOCAL, UNKNOWN: health checks).
async fn proxied(stream: &mut TcpStream) -> Result<Option<SocketAddr>, NotAdmitted> {
    const GONE: NotAdmitted = (Cut::Proxy, "the connection ended before its PROXY header");
    let deadline = Instant::now() + HEADER_WITHIN;
    let mut buffer = vec![0; proxy::MAX_HEADER];
    loop {
        let seen = match timeout_at(deadline, stream.peek(&mut buffer)).await {
            Err(_) => return Err((Cut::Proxy, "no complete PROXY header in time; is the balancer set to send it?")),
            Ok(Err(_) | Ok(0)) => return Err(GONE),
            Ok(Ok(seen)) => seen,
        };
        match proxy::parse(&buffer[..seen]) {
            Parsed::Complete { len, source } => {
                let header = buffer.get_mut(..len).ok_or((Cut::Proxy, "the PROXY header is too long"))?;
                stream.read_exact(header).await.map_err(|_| GONE)?;
                return Ok(source.map(canonical));
            }
            Parsed::Invalid(_) => {
                return Err((Cut::Proxy, "no valid PROXY header from an address of proxy_protocol_from"));
            }
            Parsed::Partial if seen == buffer.len() => return Err((Cut::Proxy, "the PROXY header is too long")),
            // Peeking does not wait for more than it has seen, so look again; past the deadline, peeking would still
            // succeed, so check it here.
            Parsed::Partial if Instant::now() >= deadline => {
                return Err((Cut::Proxy, "no complete PROXY header in time"));
            }
            Parsed::Partial => sleep(LOOK_AGAIN).await,
        }
    }
}
