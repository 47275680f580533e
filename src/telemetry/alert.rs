//! Events of alerts, and the figures that the alert rules of a Prometheus look at.

use super::register;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::{
    collections::BTreeMap,
    sync::{LazyLock, Mutex, atomic::AtomicU64},
    time::Duration,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRule {
    rule: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReceiver {
    receiver: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResource {
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct OfFeed {
    kind: &'static str,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct OfCertificate {
    listener: String,
    what: &'static str,
}

type Percent = Gauge<f64, AtomicU64>;

struct Metrics {
    active: Family<OfRule, Gauge>,
    notifications: Family<OfReceiver, Counter>,
    utilisation: Family<OfResource, Percent>,
    silent: Family<OfFeed, Gauge>,
    silent_after: Family<OfFeed, Gauge>,
    certificate: Family<OfCertificate, Gauge>,
    ready: Gauge,
    problems: Gauge,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    active: register("alerts_active", "Alerts that are not over, by rule.", Family::default()),
    notifications: register(
        "alert_notifications",
        "Notifications of alerts by kind of receiver: sent, failed (tried again), held (more than alerts.max_per_hour).",
        Family::default(),
    ),
    utilisation: register(
        "utilisation_percent",
        "Share in use of the feed's connections, the memory, the processor time, the store's disk and ledger.max_size.",
        Family::default(),
    ),
    silent: register("silent_seconds", "Time since the last message of a feed that has silent_after.", Family::default()),
    silent_after: register("silent_after_seconds", "From when on that is too long.", Family::default()),
    certificate: register(
        "certificate_end_seconds",
        "End of a listener's certificate or authority, Unix time.",
        Family::default(),
    ),
    ready: register("ready", "1 while the node can accept.", Gauge::default()),
    problems: register("problems", "Problems that the node reports in its status.", Gauge::default()),
});

/// Registers the metrics that nothing has touched yet: alert rules refer to them.
pub(super) fn touch() {
    LazyLock::force(&METRICS);
}

/// How many alerts of each rule are not over.
pub fn active(counts: &BTreeMap<&'static str, i64>) {
    for (rule, count) in counts {
        METRICS.active.get_or_create(&OfRule { rule }).set(*count);
    }
}

/// A feed whose silence is told of.
pub struct Silence {
    /// A channel, else a client.
    pub channel: bool,
    /// Its name.
    pub name: String,
    /// Since its last message.
    pub quiet: Duration,
    /// Too long from here on.
    pub after: Duration,
}

/// What the rules look at. Metric only.
pub struct Figures {
    /// Resource and percent in use, where it is known.
    pub utilisation: Vec<(&'static str, Option<f64>)>,
    /// Watched feeds.
    pub silence: Vec<Silence>,
    /// Listener, `certificate` or `client_ca`, end in Unix seconds.
    pub certificates: Vec<(String, &'static str, i64)>,
    /// Can the node accept?
    pub ready: bool,
    /// Problems in its status.
    pub problems: usize,
}

/// Feeds that have a series: those that are watched no more lose it.
static FEEDS: Mutex<Vec<OfFeed>> = Mutex::new(Vec::new());

impl Figures {
    /// Sets the gauges.
    pub fn emit(self) {
        let m = &*METRICS;
        for (resource, percent) in self.utilisation {
            if let Some(percent) = percent {
                m.utilisation.get_or_create(&OfResource { resource }).set(percent);
            }
        }
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        let mut feeds = FEEDS.lock().unwrap_or_else(|e| e.into_inner());
        let mut there = Vec::with_capacity(self.silence.len());
        for Silence { channel, name, quiet, after } in self.silence {
            let of = OfFeed { kind: if channel { "channel" } else { "client" }, name };
            m.silent.get_or_create(&of).set(seconds(quiet));
            m.silent_after.get_or_create(&of).set(seconds(after));
            there.push(of);
        }
        for gone in feeds.iter().filter(|of| !there.contains(of)) {
            m.silent.remove(gone);
            m.silent_after.remove(gone);
        }
        *feeds = there;
        for (listener, what, end) in self.certificates {
            m.certificate.get_or_create(&OfCertificate { listener, what }).set(end);
        }
        m.ready.set(i64::from(self.ready));
        m.problems.set(i64::try_from(self.problems).unwrap_or(i64::MAX));
    }
}

fn count(receiver: &'static str, outcome: &'static str) {
    METRICS.notifications.get_or_create(&OfReceiver { receiver, outcome }).inc();
}

/// An alert began, or has another severity. Its metric is [`active`].
pub struct Began<'a> {
    /// Its rule.
    pub rule: &'static str,
    /// `warning` or `critical`.
    pub severity: &'static str,
    /// Names and numbers.
    pub summary: &'a str,
    /// What to do.
    pub advice: &'static str,
}

impl Began<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::warn!(rule = self.rule, severity = self.severity, advice = self.advice, "alert: {}", self.summary);
    }
}

/// An alert is over.
pub struct Ended<'a> {
    /// Its rule.
    pub rule: &'static str,
    /// Route, channel, client, listener or node.
    pub subject: &'a str,
    /// From its begin.
    pub lasted: Duration,
}

impl Ended<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::info!(rule = self.rule, subject = self.subject, lasted_s = self.lasted.as_secs(), "alert is over");
    }
}

/// A receiver took a notification.
pub struct Notified<'a> {
    /// `webhook` or `mail`.
    pub kind: &'static str,
    /// Host and port.
    pub receiver: &'a str,
    /// Alerts named.
    pub firing: usize,
    /// Alerts that are over.
    pub resolved: usize,
}

impl Notified<'_> {
    /// Writes and counts it.
    pub fn emit(self) {
        count(self.kind, "sent");
        let Self { kind, receiver, firing, resolved } = self;
        tracing::info!(kind, receiver, firing, resolved, "operators were told of alerts");
    }
}

/// A receiver did not take a notification; it is tried again.
pub struct NotNotified<'a> {
    /// `webhook` or `mail`.
    pub kind: &'static str,
    /// Host and port.
    pub receiver: &'a str,
    /// In a row.
    pub failures: u32,
    /// Why.
    pub error: &'a str,
}

impl NotNotified<'_> {
    /// Writes and counts it.
    pub fn emit(self) {
        count(self.kind, "failed");
        let Self { kind, receiver, failures, error } = self;
        tracing::warn!(kind, receiver, failures, error, "operators were not told of alerts; it is tried again");
    }
}

/// A mail server did not take a notification for one recipient. When it takes it for another, it is not sent again.
pub struct RecipientRefused<'a> {
    /// Host and port.
    pub receiver: &'a str,
    /// Why.
    pub error: &'a str,
}

impl RecipientRefused<'_> {
    /// Writes and counts it.
    pub fn emit(self) {
        count("mail", "recipient-refused");
        let Self { receiver, error } = self;
        tracing::warn!(receiver, error, "a recipient of alerts was not told; see `to` in [[alerts.mail]]");
    }
}

/// More notifications are due than a receiver gets in an hour.
pub struct Held<'a> {
    /// `webhook` or `mail`.
    pub kind: &'static str,
    /// Host and port.
    pub receiver: &'a str,
    /// `alerts.max_per_hour`.
    pub limit: u32,
}

impl Held<'_> {
    /// Writes and counts it.
    pub fn emit(self) {
        count(self.kind, "held");
        let Self { kind, receiver, limit } = self;
        tracing::warn!(kind, receiver, limit, "alerts.max_per_hour reached: what is due is told together later");
    }
}

/// `hie alert test`.
pub struct TestSent<'a> {
    /// `webhook` or `mail`.
    pub kind: &'static str,
    /// Host and port.
    pub receiver: &'a str,
    /// Did it arrive?
    pub arrived: bool,
}

impl TestSent<'_> {
    /// Writes and counts it.
    pub fn emit(self) {
        count(self.kind, if self.arrived { "test-sent" } else { "test-failed" });
        let Self { kind, receiver, arrived } = self;
        tracing::info!(kind, receiver, arrived, "test of alerts");
    }
}

/// Active alerts cannot be kept.
pub struct NotKept<'a> {
    /// What is wrong.
    pub error: &'a str,
}

impl NotKept<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::error!(error = self.error, "alerts are not kept over a restart, which may repeat them");
    }
}

/// What was kept of alerts cannot be read.
pub struct KeptUnreadable<'a> {
    /// The file's name in the store.
    pub file: &'static str,
    /// What is wrong.
    pub error: &'a std::io::Error,
}

impl KeptUnreadable<'_> {
    /// Writes it.
    pub fn emit(self) {
        tracing::error!(file = self.file, error = %self.error, "alerts from before the start are not known any more");
    }
}
