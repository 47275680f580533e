//! What the inbound gateways tell: counters for every message and connection, log lines for what an operator may
//! have to act on. Labels are listener names and fixed words, never anything a sender wrote.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::{
    net::IpAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct On {
    listener: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnOutcome {
    listener: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnReason {
    listener: String,
    reason: &'static str,
}

static OPEN: LazyLock<Family<On, Gauge>> =
    LazyLock::new(|| super::register("inbound_connections_open", "Connections open now", Family::default()));
static OPENED: LazyLock<Family<On, Counter>> =
    LazyLock::new(|| super::register("inbound_connections", "Connections taken", Family::default()));
static CUT: LazyLock<Family<OnReason, Counter>> = LazyLock::new(|| {
    super::register("inbound_connections_cut", "Connections refused or ended by the node, by reason", Family::default())
});
static MESSAGES: LazyLock<Family<OnOutcome, Counter>> = LazyLock::new(|| {
    super::register(
        "inbound_messages",
        "Messages answered, by outcome (accepted, resend, response or why refused)",
        Family::default(),
    )
});
static BYTES: LazyLock<Family<On, Counter>> =
    LazyLock::new(|| super::register("inbound_bytes", "Bytes of message bodies received", Family::default()));
static GARBAGE: LazyLock<Family<On, Counter>> =
    LazyLock::new(|| super::register("inbound_garbage_bytes", "Bytes outside MLLP frames, skipped", Family::default()));

/// How one message was answered; the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    Resend,
    Response,
    Unreadable,
    NoChannel,
    NotAllowed,
    TooLarge,
    RateLimited,
    Busy,
    Store,
    Upstream,
    UpstreamTimeout,
    Aborted,
    TooSlow,
    Unsendable,
    Unauthenticated,
}

impl Outcome {
    const ALL: [Outcome; 16] = [
        Self::Accepted,
        Self::Resend,
        Self::Response,
        Self::Unreadable,
        Self::NoChannel,
        Self::NotAllowed,
        Self::TooLarge,
        Self::RateLimited,
        Self::Busy,
        Self::Store,
        Self::Upstream,
        Self::UpstreamTimeout,
        Self::Aborted,
        Self::TooSlow,
        Self::Unsendable,
        Self::Unauthenticated,
    ];

    /// The word in the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Resend => "resend",
            Self::Response => "response",
            Self::Unreadable => "unreadable",
            Self::NoChannel => "no-channel",
            Self::NotAllowed => "not-allowed",
            Self::TooLarge => "too-large",
            Self::RateLimited => "rate-limited",
            Self::Busy => "busy",
            Self::Store => "store",
            Self::Upstream => "upstream",
            Self::UpstreamTimeout => "upstream-timeout",
            Self::Aborted => "aborted",
            Self::TooSlow => "too-slow",
            Self::Unsendable => "unsendable",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

/// Why the node refused or ended a connection; the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Too many connections.
    Limit,
    /// Not on the listener's `allow_ips`.
    Address,
    /// The client was not let in.
    Denied,
    /// PROXY header absent, late or wrong.
    Proxy,
    /// TLS handshake failed or late.
    Tls,
    /// A begun frame did not end in time.
    FrameTimeout,
    /// A begun request head did not end in time.
    HeaderTimeout,
    /// Idle for too long.
    IdleTimeout,
    /// The peer does not take its answers.
    WriteStalled,
    /// Too much outside frames.
    Garbage,
    /// The peer ended the connection inside a frame.
    Truncated,
    /// A request that cannot be read.
    BadRequest,
    /// A body stood still, or came more slowly than allowed.
    SlowBody,
    /// Idle in a full table, in which its address holds the most places.
    GaveWay,
}

impl Cut {
    const ALL: [Cut; 14] = [
        Self::Limit,
        Self::Address,
        Self::Denied,
        Self::Proxy,
        Self::Tls,
        Self::FrameTimeout,
        Self::HeaderTimeout,
        Self::IdleTimeout,
        Self::WriteStalled,
        Self::Garbage,
        Self::Truncated,
        Self::BadRequest,
        Self::SlowBody,
        Self::GaveWay,
    ];

    /// The word in the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Address => "address",
            Self::Denied => "denied",
            Self::Proxy => "proxy-header",
            Self::Tls => "tls",
            Self::FrameTimeout => "frame-timeout",
            Self::HeaderTimeout => "header-timeout",
            Self::IdleTimeout => "idle-timeout",
            Self::WriteStalled => "write-stalled",
            Self::Garbage => "garbage",
            Self::Truncated => "truncated",
            Self::BadRequest => "bad-request",
            Self::SlowBody => "slow-body",
            Self::GaveWay => "gave-way",
        }
    }
}

/// The metrics of one listener, looked up once so that the hot path only adds.
pub struct Meters {
    listener: String,
    open: Gauge,
    opened: Counter,
    bytes: Counter,
    garbage: Counter,
    messages: [Counter; Outcome::ALL.len()],
    cuts: [Counter; Cut::ALL.len()],
    /// Milliseconds (from `STARTED`) of the last log line per reason: a flood of bad peers must not flood the log.
    logged: [AtomicU64; Cut::ALL.len()],
}

static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// At most one log line per listener, reason and this many milliseconds.
const LOG_EVERY_MS: u64 = 1000;

impl Meters {
    /// The metrics of the listener or watched folder called `listener`.
    pub fn new(listener: &str) -> Self {
        LazyLock::force(&STARTED);
        let on = On { listener: listener.to_owned() };
        Self {
            listener: listener.to_owned(),
            open: OPEN.get_or_create(&on).clone(),
            opened: OPENED.get_or_create(&on).clone(),
            bytes: BYTES.get_or_create(&on).clone(),
            garbage: GARBAGE.get_or_create(&on).clone(),
            messages: Outcome::ALL
                .map(|o| MESSAGES.get_or_create(&OnOutcome { listener: listener.to_owned(), outcome: o.as_str() }).clone()),
            cuts: Cut::ALL.map(|c| CUT.get_or_create(&OnReason { listener: listener.to_owned(), reason: c.as_str() }).clone()),
            logged: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// A connection was taken; pair with [`Meters::closed`].
    pub fn opened(&self) {
        self.open.inc();
        self.opened.inc();
    }

    /// A connection ended.
    pub fn closed(&self) {
        self.open.dec();
    }

    /// Body bytes received.
    pub fn received(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    /// Bytes outside MLLP frames.
    pub fn garbage(&self, bytes: u64) {
        self.garbage.inc_by(bytes);
    }

    /// One message was answered.
    pub fn answered(&self, outcome: Outcome) {
        self.messages[outcome as usize].inc();
    }

    fn may_log(&self, cut: Cut) -> bool {
        let now = (STARTED.elapsed().as_millis() as u64).saturating_add(1);
        let last = &self.logged[cut as usize];
        let before = last.load(Ordering::Relaxed);
        (before == 0 || now - before.min(now) >= LOG_EVERY_MS)
            && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// A connection was refused, or ended by the node. Logged at most once a second per listener and reason;
/// the metric counts all.
pub struct ConnectionCut<'a> {
    pub meters: &'a Meters,
    pub peer: IpAddr,
    pub reason: Cut,
    /// Fixed text, or a library's error that holds nothing of the sender's content.
    pub detail: &'a str,
}

impl ConnectionCut<'_> {
    /// Counts and, where not too often, logs.
    pub fn emit(&self) {
        self.meters.cuts[self.reason as usize].inc();
        let Meters { listener, .. } = self.meters;
        let reason = self.reason.as_str();
        if matches!(self.reason, Cut::IdleTimeout) {
            tracing::debug!(listener, peer = %self.peer, reason, "connection cut: {}", self.detail);
        } else if self.meters.may_log(self.reason) {
            tracing::warn!(listener, peer = %self.peer, reason, "connection cut: {}", self.detail);
        }
    }
}

/// The listener cannot accept (out of descriptors, for example); it tries again shortly.
pub struct AcceptFailed<'a> {
    pub listener: &'a str,
    pub error: &'a std::io::Error,
}

static ACCEPT_FAILED: LazyLock<Family<On, Counter>> = LazyLock::new(|| {
    super::register("inbound_accept_failures", "Failed accept calls (out of file descriptors or memory)", Family::default())
});

impl AcceptFailed<'_> {
    /// Counts and logs.
    pub fn emit(&self) {
        ACCEPT_FAILED.get_or_create(&On { listener: self.listener.to_owned() }).inc();
        tracing::error!(
            listener = self.listener,
            "cannot accept connections: {}; check the limit of open files (LimitNOFILE) and max_connections",
            self.error
        );
    }
}

/// What became of one file of a watched folder.
pub struct FileTaken<'a> {
    pub folder: &'a str,
    pub messages: u64,
    pub refused: u64,
}

static FILES: LazyLock<Family<OnOutcome, Counter>> =
    LazyLock::new(|| super::register("inbound_files", "Files of watched folders, by outcome", Family::default()));

impl FileTaken<'_> {
    /// Counts and logs. File names are not logged: senders put patients' names into them.
    pub fn emit(&self) {
        let outcome = if self.refused == 0 { "done" } else { "failed" };
        FILES.get_or_create(&OnOutcome { listener: self.folder.to_owned(), outcome }).inc();
        if self.refused == 0 {
            tracing::debug!(folder = self.folder, messages = self.messages, "file taken");
        } else {
            tracing::warn!(
                folder = self.folder,
                messages = self.messages,
                refused = self.refused,
                "file refused, wholly or in part: see its .reason file in the failed folder"
            );
        }
    }
}

/// A watched folder cannot be read or written.
pub struct FolderFailed<'a> {
    pub folder: &'a str,
    pub doing: &'static str,
    pub error: &'a std::io::Error,
}

impl FolderFailed<'_> {
    /// Counts and logs.
    pub fn emit(&self) {
        FILES.get_or_create(&OnOutcome { listener: self.folder.to_owned(), outcome: "error" }).inc();
        // The kind only: the error's text may hold the path, and with it a name a sender chose.
        tracing::error!(
            folder = self.folder,
            "watched folder: {}: {}; check that it exists and that hie may read, write and rename in it",
            self.doing,
            self.error.kind()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_and_cut_has_its_own_place() {
        for (i, o) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*o as usize, i);
        }
        for (i, c) in Cut::ALL.iter().enumerate() {
            assert_eq!(*c as usize, i);
        }
    }

    #[test]
    fn a_flood_is_logged_once_a_second() {
        let meters = Meters::new("flood-test");
        let logged = (0..1000).filter(|_| meters.may_log(Cut::Limit)).count();
        assert!((1..=2).contains(&logged), "{logged}");
        assert!(meters.may_log(Cut::Garbage), "another reason has its own clock");
    }
}
