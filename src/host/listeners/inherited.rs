//! Sockets that were open before this program began: systemd's (sd_listen_fds(3)), or those of the process that
//! became this one in an upgrade.

use crate::telemetry::host::ListenerUnused;
use socket2::{SockRef, Type};
use std::{
    env,
    net::{SocketAddr, TcpListener},
    os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// `PID;FD=NAME;FD=NAME…`: what the process before an upgrade hands over, with [`KEPT`] behind the names of sockets that systemd has
/// too. systemd's own variables ask for
/// descriptors from 3 upwards without gaps; moving ours there would close what the process still needs if the
/// upgrade fails at its last step.
pub(crate) const VARIABLE: &str = "HIE_LISTEN_FDS";

/// What stands behind the name of a socket that systemd has too.
pub(crate) const KEPT: &str = "=systemd";

/// Who handed a socket over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// systemd, or another program that follows its protocol.
    Systemd,
    /// This process before an upgrade.
    Upgrade,
}

/// A listening socket that was handed over.
#[derive(Debug)]
pub struct Inherited {
    /// Its name; with systemd `FileDescriptorName=`, or the unit's name, or empty.
    pub name: String,
    /// By whom.
    pub source: Source,
    /// systemd has it too, and what waits on it when this process has ended is served by the next one.
    pub kept: bool,
    /// The socket.
    pub socket: TcpListener,
}

impl Inherited {
    /// Where it listens; `None` when it is no listening TCP socket.
    pub fn address(&self) -> Option<SocketAddr> {
        if listens(&SockRef::from(&self.socket)) { self.socket.local_addr().ok() } else { None }
    }
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes over what this process was started with. A second call finds nothing: the sockets have one owner.
pub fn inherited() -> Vec<Inherited> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return vec![];
    }
    let mut found = vec![];
    if let Ok(text) = env::var(VARIABLE) {
        for (fd, name, kept) in upgraded(&text, std::process::id()) {
            found.extend(adopt(fd, name, Source::Upgrade, kept));
        }
    }
    // After an upgrade systemd's variables are gone (see `upgrade`): each socket is found once.
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    if let Ok(fds) = sd_notify::listen_fds() {
        for (i, fd) in fds.enumerate() {
            let name = names.get(i).copied().unwrap_or_default().to_owned();
            found.extend(adopt(fd, name, Source::Systemd, true));
        }
    }
    found
}

/// The descriptors in [`VARIABLE`]; none when they were meant for another process.
fn upgraded(text: &str, pid: u32) -> Vec<(RawFd, String, bool)> {
    let mut parts = text.split(';');
    if parts.next().and_then(|p| p.parse().ok()) != Some(pid) {
        return vec![];
    }
    let pair = |part: &str| {
        let (fd, name) = part.split_once('=')?;
        let own = name.strip_suffix(KEPT);
        Some((fd.parse().ok().filter(|fd| *fd > 2)?, own.unwrap_or(name).to_owned(), own.is_some()))
    };
    parts.filter_map(pair).collect()
}

/// Makes an inherited descriptor ours: closed on exec, owned once. What is no listening TCP socket is left alone: where
/// the starter's count is wrong, the number may by now be something of this process's own.
#[allow(unsafe_code)]
fn adopt(fd: RawFd, name: String, source: Source, kept: bool) -> Option<Inherited> {
    // The kernel hands descriptors over as bare numbers, so somebody has to say that they are ours: no safe
    // function does. A number that is not open is caught here, before it can be owned.
    std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).ok()?;
    // SAFETY: the descriptor is open, and nothing closes it between here and the end of this function: either it was
    // handed over, and is nobody's yet, or it belongs to this thread's past, which owns it for the life of the process.
    let looked_at = unsafe { BorrowedFd::borrow_raw(fd) };
    if !listens(&SockRef::from(&looked_at)) {
        ListenerUnused { name: &name, address: None }.emit();
        return None;
    }
    // SAFETY: the descriptor is a listening socket that was open before this program opened any, was named to this
    // process by the one that started it, and is taken once (TAKEN, and each number stands in one of the two lists), so
    // nothing else in this process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let socket = TcpListener::from(fd);
    let _ = SockRef::from(&socket).set_cloexec(true);
    Some(Inherited { name, source, kept, socket })
}

fn listens(socket: &SockRef<'_>) -> bool {
    socket.r#type().is_ok_and(|t| t == Type::STREAM) && socket.is_listener().unwrap_or(false)
}

/// Is a socket that systemd calls `given` the listener `wanted`? Unit files cannot have the colon of `mllp:NAME`
/// in a name (systemd.socket(5)); a dot or dash stands for it.
pub(super) fn same_name(given: &str, wanted: &str) -> bool {
    given == wanted
        || wanted
            .split_once(':')
            .is_some_and(|(kind, name)| given.strip_prefix(kind).and_then(|rest| rest.strip_prefix(['.', '-'])) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_read_only_by_the_process_they_are_meant_for() {
        let text = "17;7=http;9=mllp:a=systemd;x=y;2=stderr;11";
        assert_eq!(upgraded(text, 17), [(7, "http".to_owned(), false), (9, "mllp:a".to_owned(), true)]);
        assert!(upgraded(text, 18).is_empty());
        assert!(upgraded("", 17).is_empty());
    }

    #[test]
    fn unit_files_write_a_dot_or_dash_for_the_colon() {
        for given in ["mllp:a-b", "mllp.a-b", "mllp-a-b"] {
            assert!(same_name(given, "mllp:a-b"), "{given}");
        }
        assert!(same_name("http", "http") && !same_name("https", "http") && !same_name("mllpxa", "mllp:a"));
    }
}
