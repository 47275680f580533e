//! Listening sockets: bound here, or handed over by systemd or by the process before an upgrade; all held by one
//! owner for the life of the process.
//!
//! Closing a socket of a SO_REUSEPORT group drops the connections that wait in its accept queue. So the instances
//! only ever get clones: one that panics and starts again finds its queue as it was.

mod bind;
mod close;
mod inherited;

#[cfg(test)]
mod tests;

use crate::telemetry::host::{ListenerElsewhere, ListenerOpen, ListenerUnused};
pub use bind::ListenError;
pub use close::HANDSHAKE;
pub use inherited::{Inherited, Source, inherited};
pub(super) use inherited::{KEPT, VARIABLE};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, RawFd},
};

/// Connections that may wait for an instance to accept them; the kernel caps it at net.core.somaxconn.
const BACKLOG: u32 = 4096;

/// A listener that the configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `http`, `https`, `admin`, `health` or `mllp:NAME`.
    pub name: String,
    /// Where; port 0 takes any free port.
    pub address: SocketAddr,
    /// How many instances accept on it.
    pub instances: usize,
}

/// All listening sockets of the process.
#[derive(Debug, Default)]
pub struct Listeners {
    groups: Vec<Group>,
}

/// The sockets of one address.
#[derive(Debug)]
struct Group {
    name: String,
    address: SocketAddr,
    instances: usize,
    sockets: Vec<Socket>,
    inherited: bool,
}

#[derive(Debug)]
struct Socket {
    listener: TcpListener,
    /// See [`Inherited::kept`].
    kept: bool,
}

impl Socket {
    fn own(listener: TcpListener) -> Self {
        Self { listener, kept: false }
    }
}

impl Listeners {
    /// Opens everything wanted: sockets of `given` where they fit, by name or, where names say nothing, by address;
    /// fresh ones else. Sockets that fit nothing are closed.
    ///
    /// Errors: an address that cannot be had, naming the port and what to do; nothing stays open then.
    pub fn open(wanted: &[Wanted], mut given: Vec<Inherited>) -> Result<Self, ListenError> {
        if !wanted.is_empty() {
            bind::tell_cap(BACKLOG);
        }
        let taken: Vec<_> = wanted.iter().map(|want| take(&mut given, want, wanted)).collect();
        // Closed before anything is bound: what is not wanted any more may stand in the way of what is.
        for unused in given {
            ListenerUnused { name: &unused.name, address: unused.address() }.emit();
        }
        let opened = wanted.iter().zip(taken).map(|(want, sockets)| Group::open(want, sockets));
        let groups = opened.collect::<Result<Vec<_>, _>>()?;
        for group in &groups {
            let (name, address) = (group.name.as_str(), group.address);
            ListenerOpen { name, address, sockets: group.sockets.len(), inherited: group.inherited }.emit();
        }
        Ok(Self { groups })
    }

    /// The sockets on which `instance` (from 0) accepts for the listener `name`, as non-blocking clones; empty when
    /// there is no such listener. Usually one. Several when fewer instances run than sockets were handed over: each
    /// socket has its own queue, and all have to be emptied. Instances beyond the number of sockets share them.
    pub fn of(&self, name: &str, instance: usize) -> io::Result<Vec<TcpListener>> {
        let Some(group) = self.groups.iter().find(|g| g.name == name) else { return Ok(vec![]) };
        let count = group.sockets.len();
        let mine = |i: usize| if count >= group.instances { i % group.instances == instance } else { i == instance % count };
        let mine = group.sockets.iter().enumerate().filter(|(i, _)| mine(*i));
        mine.map(|(_, socket)| socket.listener.try_clone()).collect()
    }

    /// The first socket's clone: for listeners that one thread serves.
    pub fn one(&self, name: &str) -> io::Result<Option<TcpListener>> {
        Ok(self.of(name, 0)?.into_iter().next())
    }

    /// Where the listener `name` listens: the port that was given by the system where the configuration says 0.
    pub fn address(&self, name: &str) -> Option<SocketAddr> {
        self.groups.iter().find(|g| g.name == name).map(|g| g.address)
    }

    /// All listeners with their addresses.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.groups.iter().map(|g| (g.name.as_str(), g.address))
    }

    /// Every socket with its listener's name, its descriptor, and whether systemd has it too.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (&str, RawFd, &TcpListener, bool)> {
        self.groups.iter().flat_map(|g| g.sockets.iter().map(|s| (g.name.as_str(), s.listener.as_raw_fd(), &s.listener, s.kept)))
    }
}

impl Group {
    fn open(want: &Wanted, given: Vec<Inherited>) -> Result<Self, ListenError> {
        let instances = want.instances.max(1);
        let (name, inherited) = (want.name.clone(), !given.is_empty());
        let failed = |source: io::Error| ListenError::new(&want.name, want.address, source);
        let mut sockets: Vec<Socket> = given.into_iter().map(|g| Socket { listener: g.socket, kept: g.kept }).collect();
        let address = match sockets.first() {
            Some(first) => {
                let address = first.listener.local_addr().map_err(failed)?;
                // More instances than before the upgrade: their own queues where the kernel allows, else shared ones.
                while sockets.len() < instances && bind::shares_port(&sockets[0].listener) {
                    match bind::listen(address, BACKLOG) {
                        Ok(socket) => sockets.push(Socket::own(socket)),
                        Err(_) => break,
                    }
                }
                address
            }
            None => {
                bind::probe(want.address).map_err(failed)?;
                let first = bind::listen(want.address, BACKLOG).map_err(failed)?;
                let address = first.local_addr().map_err(failed)?;
                sockets.push(Socket::own(first));
                while sockets.len() < instances {
                    sockets.push(Socket::own(bind::listen(address, BACKLOG).map_err(failed)?));
                }
                address
            }
        };
        for socket in &sockets {
            socket.listener.set_nonblocking(true).map_err(failed)?;
        }
        Ok(Self { name, address, instances, sockets, inherited })
    }
}

/// Takes the sockets out of `given` that belong to `want`.
fn take(given: &mut Vec<Inherited>, want: &Wanted, all: &[Wanted]) -> Vec<Inherited> {
    let (mine, rest) = given.drain(..).partition(|socket| fits(socket, want, all));
    *given = rest;
    mine
}

fn fits(socket: &Inherited, want: &Wanted, all: &[Wanted]) -> bool {
    let Some(address) = socket.address() else { return false };
    let same = address == want.address;
    match socket.source {
        // Our own predecessor's: the configuration may have changed since, names and addresses alike.
        Source::Upgrade => same || (want.address.port() == 0 && address.ip() == want.address.ip() && socket.name == want.name),
        Source::Systemd => {
            let known = |want: &Wanted| inherited::same_name(&socket.name, &want.name);
            if known(want) {
                if !same && want.address.port() != 0 {
                    ListenerElsewhere { name: &want.name, address, configured: want.address }.emit();
                }
                return true;
            }
            // Units without FileDescriptorName= give the unit's name, which says nothing.
            let on_port = |w: &&Wanted| w.address.port() == address.port();
            let only_port = on_port(&want) && all.iter().filter(on_port).count() == 1;
            !all.iter().any(known) && (same || (only_port && address.ip().is_unspecified()))
        }
    }
}
