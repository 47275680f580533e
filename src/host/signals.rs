//! Signals as a stream.

use nix::sys::signal::{SigSet, Signal as Nix};
use std::io;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What somebody asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// TERM: drain and end; a second one ends at once.
    Terminate,
    /// INT (Ctrl-C): drain and end; a second one ends at once.
    Interrupt,
    /// HUP: read channels and clients again.
    Reload,
    /// USR2: drain and go on as the binary that is on disk now.
    Upgrade,
}

/// The signals that the node reacts to.
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
    reload: Stream,
    upgrade: Stream,
}

impl Signals {
    /// Takes over the four signals; from here on they end the process no more. Needs a tokio runtime with I/O.
    pub fn new() -> io::Result<Self> {
        let signals = Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
        };
        // Blocked by the process that became this one in an upgrade; see `hold`.
        let _ = held().thread_unblock();
        Ok(signals)
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            Some(()) = self.terminate.recv() => Signal::Terminate,
            Some(()) = self.interrupt.recv() => Signal::Interrupt,
            Some(()) = self.reload.recv() => Signal::Reload,
            Some(()) = self.upgrade.recv() => Signal::Upgrade,
            else => std::future::pending().await,
        }
    }
}

/// Blocks reload and upgrade on this thread, before it becomes another program: until that has its own handlers
/// these signals would end it.
pub(super) fn hold() {
    let _ = held().thread_block();
}

/// Undoes [`hold`].
pub(super) fn release() {
    let _ = held().thread_unblock();
}

fn held() -> SigSet {
    SigSet::from_iter([Nix::SIGHUP, Nix::SIGUSR2])
}

/// Asks another process to drain and end.
pub fn terminate(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Nix::SIGTERM)?)
}
