//! Binding, and saying what is wrong when it fails.

use crate::telemetry::host::BacklogCapped;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener},
};

/// An address on which the node cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({name}): {source}{hint}", hint = hint(*address, source))]
pub struct ListenError {
    /// The listener.
    pub name: String,
    /// Where.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

impl ListenError {
    pub(super) fn new(name: &str, address: SocketAddr, source: io::Error) -> Self {
        Self { name: name.to_owned(), address, source }
    }
}

fn hint(address: SocketAddr, source: &io::Error) -> String {
    let port = address.port();
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; port {port} is in use: `ss -ltnp 'sport = :{port}'` shows by whom; stop that, or choose another port")
        }
        io::ErrorKind::PermissionDenied => {
            format!("; ports below 1024 need CAP_NET_BIND_SERVICE or systemd's socket activation (port {port})")
        }
        io::ErrorKind::AddrNotAvailable => format!("; no interface of this machine has the address {}", address.ip()),
        _ => String::new(),
    }
}

/// Fails when somebody listens there already. SO_REUSEPORT alone would let a second node of the same user share
/// the port and take half of the connections.
pub(super) fn probe(address: SocketAddr) -> io::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    bound(address, false).map(drop)
}

/// A listening socket that shares its port with the others of its group.
pub(super) fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = bound(address, true)?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

fn bound(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run that linger in TIME_WAIT are no obstacle.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// May another socket be bound beside this one?
pub(super) fn shares_port(socket: &TcpListener) -> bool {
    SockRef::from(socket).reuse_port().unwrap_or(false)
}

/// Says when the kernel caps the accept queues below `wanted`.
pub(super) fn tell_cap(wanted: u32) {
    let text = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    if let Ok(allowed) = text.trim().parse::<u32>()
        && allowed < wanted
    {
        BacklogCapped { allowed, wanted }.emit();
    }
}
