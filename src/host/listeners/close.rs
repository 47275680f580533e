//! The end of listeners, without a connection lost that is just being made.
//!
//! A connection is there for its maker as soon as the kernel has answered; closing the listening socket resets those that wait to be
//! accepted. A balancer that has given a sender's message to such a connection cannot take it back, while a refused connection
//! goes to the next node. So: [`Listeners::hold_off`], accept all that still comes, [`Listeners::close`].

use super::Listeners;
use socket2::{SockFilter, SockRef};
use std::{net::Shutdown, time::Duration};

/// How long what was begun before [`Listeners::hold_off`] may take until it waits to be accepted: some round trips.
pub const HANDSHAKE: Duration = Duration::from_millis(150);

/// Drops the first packet of a connection (SYN without ACK), lets all others through. A listening socket's filter sees
/// packets from the TCP header on, whose byte 13 holds the flags (RFC 9293 §3.1); instructions as in linux/filter.h.
const NOBODY_NEW: [SockFilter; 5] = [
    // A = flags
    SockFilter::new(0x30, 0, 0, 13),
    // A &= SYN | ACK
    SockFilter::new(0x54, 0, 0, 0x12),
    // if A == SYN: next, else the one after it
    SockFilter::new(0x15, 0, 1, 0x02),
    // drop
    SockFilter::new(0x06, 0, 0, 0),
    // pass, whole
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

impl Listeners {
    /// Lets nobody new in on what carries messages: who asks gets no answer and asks again a second later. Connections that have begun
    /// get through. Sockets that systemd has too are left as they are: what waits there is served after the next start.
    ///
    /// Where the kernel takes no filter, the moment between the last accept and the end of listening stays.
    pub fn hold_off(&self) {
        for socket in self.ours() {
            let _ = socket.attach_filter(&NOBODY_NEW);
        }
    }

    /// Ends listening on what carries messages, whoever has clones of the sockets: connections are refused from now on. Health and
    /// administration go on; so do sockets that systemd has too.
    pub fn close(&self) {
        for socket in self.ours() {
            // It fails when it does not listen any more.
            let _ = socket.shutdown(Shutdown::Read);
        }
    }

    fn ours(&self) -> impl Iterator<Item = SockRef<'_>> {
        let gateways = self.groups.iter().filter(|g| !matches!(g.name.as_str(), "admin" | "health"));
        gateways.flat_map(|g| &g.sockets).filter(|s| !s.kept).map(|s| SockRef::from(&s.listener))
    }
}
