//! Alerts: what an operator has to know without looking. Rules over a snapshot of the node say what is wrong now; the book
//! says what began and what is over; an outbox for each receiver says what that one has to be told, and when.
//!
//! All of that is pure, with the time passed in. [`spawn`] runs it on a thread and a runtime of its own, never in the way of a
//! message. What it needs of the node it names itself in [`ports`]; `app` joins them.
//!
//! An alert holds names of channels, routes, clients and listeners, and numbers; nothing of a message, and no error's text.

mod book;
mod log;
mod notice;
mod outbox;
pub mod ports;
mod rules;
mod run;
mod text;
mod watch;

#[cfg(test)]
mod tests;

pub use log::{Alerts, Event, Tested};
pub use notice::Notice;
pub use run::{Parts, spawn};

use serde::{Deserialize, Serialize};
use std::fmt;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Too large a share of a route's attempts failed.
    RouteFailing,
    /// A message waits too long on a route.
    QueueAge,
    /// Messages are set aside on a route.
    Parked,
    /// Nothing came to a channel for too long.
    ChannelSilent,
    /// A client sent nothing for too long.
    ClientSilent,
    /// The live feed's connections are nearly used up.
    Feed,
    /// Memory is.
    Memory,
    /// The processor is, for some time.
    Cpu,
    /// The store's disk is.
    Disk,
    /// The ledger is full before its retention.
    Ledger,
    /// A listener's certificate or authority ends soon.
    Certificate,
    /// The node cannot accept.
    NotReady,
    /// `hie status` lists problems.
    Problems,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 13] = [
        Self::RouteFailing,
        Self::QueueAge,
        Self::Parked,
        Self::ChannelSilent,
        Self::ClientSilent,
        Self::Feed,
        Self::Memory,
        Self::Cpu,
        Self::Disk,
        Self::Ledger,
        Self::Certificate,
        Self::NotReady,
        Self::Problems,
    ];

    /// The word in the API and in the label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RouteFailing => "route_failing",
            Self::QueueAge => "queue_age",
            Self::Parked => "parked",
            Self::ChannelSilent => "channel_silent",
            Self::ClientSilent => "client_silent",
            Self::Feed => "feed",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Disk => "disk",
            Self::Ledger => "ledger",
            Self::Certificate => "certificate",
            Self::NotReady => "not_ready",
            Self::Problems => "problems",
        }
    }

    /// `alertname` in notifications: that of the same rule in `monitoring/rules.yml`.
    pub fn alert_name(self) -> &'static str {
        match self {
            Self::RouteFailing => "HieRouteFailing",
            Self::QueueAge => "HieQueueAge",
            Self::Parked => "HieParked",
            Self::ChannelSilent => "HieChannelSilent",
            Self::ClientSilent => "HieClientSilent",
            Self::Feed => "HieFeedUtilisation",
            Self::Memory => "HieMemoryUtilisation",
            Self::Cpu => "HieCpuUtilisation",
            Self::Disk => "HieDiskUtilisation",
            Self::Ledger => "HieLedgerFull",
            Self::Certificate => "HieCertificateExpiry",
            Self::NotReady => "HieNotReady",
            Self::Problems => "HieProblems",
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
}

impl Severity {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What an alert is about: configured names only. All absent: the node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// Full channel name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Route of the channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
}

impl Subject {
    /// A route of a channel.
    pub fn route(channel: &str, route: &str) -> Self {
        Self { channel: Some(channel.into()), route: Some(route.into()), ..Self::default() }
    }

    /// A channel.
    pub fn channel(channel: &str) -> Self {
        Self { channel: Some(channel.into()), ..Self::default() }
    }

    /// A client.
    pub fn client(client: &str) -> Self {
        Self { client: Some(client.into()), ..Self::default() }
    }

    /// A listener.
    pub fn listener(listener: &str) -> Self {
        Self { listener: Some(listener.into()), ..Self::default() }
    }

    /// Names and values, in a fixed order.
    pub fn labels(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [("channel", &self.channel), ("route", &self.route), ("client", &self.client), ("listener", &self.listener)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.channel, &self.route, &self.client, &self.listener) {
            (Some(channel), Some(route), ..) => write!(f, "{channel}/{route}"),
            (Some(channel), ..) => f.write_str(channel),
            (_, _, Some(client), _) => write!(f, "client {client}"),
            (.., Some(listener)) => write!(f, "listener {listener}"),
            _ => f.write_str("node"),
        }
    }
}

/// Something that a rule found wrong now.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub rule: Rule,
    pub subject: Subject,
    pub severity: Severity,
    /// What was measured; percent, seconds, days or a count, as the summary says.
    pub value: f64,
    /// From where on it is wrong.
    pub threshold: f64,
    /// One line for people.
    pub summary: String,
}

/// An alert: a finding that has begun and is not over, or is over since `ended_ms`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Number of the event with which it began.
    pub id: u64,
    pub rule: Rule,
    #[serde(flatten)]
    pub subject: Subject,
    pub severity: Severity,
    pub value: f64,
    pub threshold: f64,
    pub summary: String,
    /// Unix milliseconds.
    pub since_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<i64>,
}

impl Alert {
    /// What is told together: the alerts of one route are one matter, whatever rules they break.
    pub fn group(&self) -> String {
        match &self.subject.route {
            Some(_) => format!("route {}", self.subject),
            None => format!("{} {}", self.rule.as_str(), self.subject),
        }
    }

    /// What to do next.
    pub fn advice(&self) -> &'static str {
        text::advice(self.rule)
    }
}
