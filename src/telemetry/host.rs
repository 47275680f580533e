//! Events of the process and its machine.

use super::register;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::{net::SocketAddr, path::Path, sync::LazyLock};

static PANICS: LazyLock<Counter> = LazyLock::new(|| register("panics", "Panics in any thread of the node", Counter::default()));
static UPGRADES_REFUSED: LazyLock<Counter> =
    LazyLock::new(|| register("upgrades_refused", "Upgrades in place that were not begun", Counter::default()));
static OPEN_FILES: LazyLock<Gauge> =
    LazyLock::new(|| register("open_files_limit", "Limit of open files in force", Gauge::default()));

/// Registers the metrics that nothing has touched yet: alert rules refer to them.
pub(super) fn touch() {
    let _ = (&*PANICS, &*UPGRADES_REFUSED, &*OPEN_FILES);
}

/// The values of a preset lie below the configuration.
pub struct PresetInForce<'a> {
    /// Its name.
    pub preset: &'a str,
    /// Connections of the live feed to one resource, as they are in force.
    pub per_resource: usize,
    /// After which such a connection ends.
    pub timeout: std::time::Duration,
}

impl PresetInForce<'_> {
    /// Writes it.
    pub fn emit(self) {
        let (preset, per_resource, timeout) =
            (self.preset, self.per_resource, humantime::format_duration(self.timeout).to_string());
        tracing::info!(preset, per_resource, timeout, "preset in force");
    }
}

/// A thread panicked. Without the message: it may hold what was being worked on.
pub struct Panicked<'a> {
    /// Name of the thread.
    pub thread: &'a str,
    /// Source file.
    pub file: &'a str,
    /// Line in it.
    pub line: u32,
}

impl Panicked<'_> {
    /// Writes and counts it.
    pub fn emit(self) {
        PANICS.inc();
        if tracing::dispatcher::has_been_set() {
            tracing::error!(thread = self.thread, file = self.file, line = self.line, "panic");
        } else {
            // Commands that set up no log must not fail in silence.
            eprintln!("hie: panic in thread {} at {}:{}", self.thread, self.file, self.line);
        }
    }
}

/// The limit of open files.
pub struct OpenFiles {
    /// In force.
    pub limit: u64,
    /// As the process was started.
    pub before: u64,
}

impl OpenFiles {
    /// Writes it, as a warning when it is too small for what the node is allowed to hold by default.
    pub fn emit(self) {
        OPEN_FILES.set(i64::try_from(self.limit).unwrap_or(i64::MAX));
        if self.limit < 8192 {
            tracing::warn!(limit = self.limit, "few open files allowed; raise LimitNOFILE (systemd) or ulimit -n");
        } else {
            tracing::debug!(limit = self.limit, before = self.before, "open files");
        }
    }
}

/// A listener is open.
pub struct ListenerOpen<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where.
    pub address: SocketAddr,
    /// Sockets on that address.
    pub sockets: usize,
    /// Handed over by systemd or by the process before an upgrade.
    pub inherited: bool,
}

impl ListenerOpen<'_> {
    /// Writes it.
    pub fn emit(self) {
        let inherited = self.inherited;
        tracing::info!(name = self.name, address = %self.address, sockets = self.sockets, inherited, "listening");
    }
}

/// A socket that was handed over fits no listener of the configuration and is closed.
pub struct ListenerUnused<'a> {
    /// The name it came with; may be empty.
    pub name: &'a str,
    /// Its address, where it has one.
    pub address: Option<SocketAddr>,
}

impl ListenerUnused<'_> {
    /// Writes it.
    pub fn emit(self) {
        let address = self.address.map(|a| a.to_string()).unwrap_or_default();
        tracing::warn!(name = self.name, address, "a socket handed over fits no listener of the configuration; closed");
    }
}

/// systemd handed over a socket on another address than the configuration names.
pub struct ListenerElsewhere<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where the configuration wants it.
    pub configured: SocketAddr,
}

impl ListenerElsewhere<'_> {
    /// Writes it.
    pub fn emit(self) {
        let (address, configured) = (self.address, self.configured);
        tracing::warn!(name = self.name, %address, %configured, "the socket unit's address is used, not the configured one");
    }
}

/// The kernel allows a shorter accept queue than the node asks for.
pub struct BacklogCapped {
    /// `net.core.somaxconn`.
    pub allowed: u32,
    /// Asked for.
    pub wanted: u32,
}

impl BacklogCapped {
    /// Writes it.
    pub fn emit(self) {
        let (allowed, wanted) = (self.allowed, self.wanted);
        tracing::info!(allowed, wanted, "accept queues are capped by net.core.somaxconn");
    }
}

/// An upgrade in place was not begun; the node goes on.
pub struct UpgradeRefused<'a> {
    /// The new binary.
    pub binary: &'a Path,
    /// Why.
    pub reason: &'a str,
}

impl UpgradeRefused<'_> {
    /// Writes and counts it.
    pub fn emit(self) {
        UPGRADES_REFUSED.inc();
        tracing::error!(binary = %self.binary.display(), reason = self.reason, "upgrade refused, the node goes on");
    }
}

/// The process becomes its successor.
pub struct Upgrading<'a> {
    /// The new binary.
    pub binary: &'a Path,
    /// Listening sockets handed over.
    pub sockets: usize,
}

impl Upgrading<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::info!(binary = %self.binary.display(), sockets = self.sockets, "upgrading in place");
    }
}

/// Something in the configuration that works but is probably not meant.
pub struct ConfigWarning<'a> {
    /// Place and text.
    pub text: &'a str,
}

impl ConfigWarning<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::warn!("configuration: {}", self.text);
    }
}
