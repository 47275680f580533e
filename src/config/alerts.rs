//! `[alerts]`: what operators are told of, when, and by which way.

use crate::preset::planning;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// `[alerts]`. A threshold of 0 turns its rule off. Percentages are those of the vertical-scaling guide: look from 70 % of the
/// feed's connections and of the processor on, from 80 % of the memory on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// False: no rule is looked at. Default true.
    pub enabled: bool,
    /// How often the rules are looked at. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Share of the live feed's connections in use, in percent. Default 70 …
    pub feed_warning: u8,
    /// … and 80.
    pub feed_critical: u8,
    /// Share of the memory in use (of the cgroup's limit, else of the machine's), in percent. Default 80 …
    pub memory_warning: u8,
    /// … and 90.
    pub memory_critical: u8,
    /// Share of the processor time that the node may use, in percent. Default 70 …
    pub cpu_warning: u8,
    /// … and 80 …
    pub cpu_critical: u8,
    /// … on average over so long. Default 5 min.
    #[serde(with = "humantime_serde")]
    pub cpu_for: Duration,
    /// Share of the store's disk in use, in percent. Default 80 …
    pub disk_warning: u8,
    /// … and 90.
    pub disk_critical: u8,
    /// Share of `ledger.max_size` in use, in percent, while what is kept is younger than `ledger.retention`. Default 90.
    pub ledger_warning: u8,
    /// Share of a route's attempts that failed, in percent. Default 50 …
    pub failure_rate: u8,
    /// … of those within this time (default 10 min) …
    #[serde(with = "humantime_serde")]
    pub failure_window: Duration,
    /// … when there were at least so many. Default 5.
    pub failure_min: u32,
    /// Age of the oldest message that waits on a route. Default 10 min; 0: off.
    #[serde(with = "humantime_serde")]
    pub queue_age: Duration,
    /// Messages set aside on a route. Default 1.
    pub parked: u64,
    /// The node could not accept for so long. Default 1 min; 0: off.
    #[serde(with = "humantime_serde")]
    pub not_ready_for: Duration,
    /// Tell of what `hie status` lists as problems. Default true.
    pub problems: bool,
    /// A listener's certificate, or one of its authorities for client certificates, ends within this time. Default 30 days …
    #[serde(with = "humantime_serde")]
    pub certificate_warning: Duration,
    /// … and 7 days.
    #[serde(with = "humantime_serde")]
    pub certificate_critical: Duration,
    /// An alert is over when its cause has been gone for so long. Default 2 min.
    #[serde(with = "humantime_serde")]
    pub resolve_after: Duration,
    /// What begins within this time goes out together. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub group_wait: Duration,
    /// What is still so is told again after this time. Default 4 h.
    #[serde(with = "humantime_serde")]
    pub repeat_interval: Duration,
    /// Notifications to one receiver within an hour; what is more is told together later. Default 12.
    pub max_per_hour: u32,
    /// HTTP receivers.
    pub webhook: Vec<Webhook>,
    /// Mail receivers.
    pub mail: Vec<Mail>,
}

impl Default for Alerts {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        let guide = &planning().thresholds;
        // 0 to 100.
        let percent = |value: f64| value.clamp(0.0, 100.0) as u8;
        Self {
            enabled: true,
            every: Duration::from_secs(10),
            feed_warning: percent(guide.utilization_percent),
            feed_critical: 80,
            memory_warning: percent(guide.memory_percent),
            memory_critical: 90,
            cpu_warning: percent(guide.cpu_percent),
            cpu_critical: 80,
            cpu_for: minutes(5),
            disk_warning: 80,
            disk_critical: 90,
            ledger_warning: 90,
            failure_rate: 50,
            failure_window: minutes(10),
            failure_min: 5,
            queue_age: minutes(10),
            parked: 1,
            not_ready_for: minutes(1),
            problems: true,
            certificate_warning: minutes(30 * 24 * 60),
            certificate_critical: minutes(7 * 24 * 60),
            resolve_after: minutes(2),
            group_wait: Duration::from_secs(30),
            repeat_interval: minutes(4 * 60),
            max_per_hour: 12,
            webhook: vec![],
            mail: vec![],
        }
    }
}

/// `[[alerts.webhook]]`: an HTTP receiver of Alertmanager's notifications.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhook {
    /// Where to POST.
    pub url: String,
    /// A file that holds the URL instead, where the URL itself is a secret.
    pub url_file: Option<PathBuf>,
    /// Headers to set; a value `file:PATH` or `env:NAME` is read from there at each notification.
    pub headers: BTreeMap<String, String>,
    /// PEM of the authorities to trust; the public roots when absent.
    pub ca: Option<PathBuf>,
    /// For the whole exchange. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Tell also what is over. Default true.
    pub resolved: bool,
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            url: String::new(),
            url_file: None,
            headers: BTreeMap::new(),
            ca: None,
            timeout: Duration::from_secs(10),
            resolved: true,
        }
    }
}

/// How a connection to a mail server is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MailTls {
    /// STARTTLS, or no mail (RFC 3207).
    #[default]
    Starttls,
    /// TLS from the first byte (RFC 8314).
    Tls,
    /// Neither: for a relay on the machine itself or in a network of its own.
    None,
}

/// `[[alerts.mail]]`: a mail server and whom to write to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mail {
    /// Mail server, `host:port`; without a port 587 (STARTTLS), 465 (TLS) or 25.
    pub smtp: String,
    /// Sender's address.
    pub from: String,
    /// Recipients' addresses.
    pub to: Vec<String>,
    /// `starttls` (default), `tls` or `none`.
    pub tls: MailTls,
    /// PEM of the authorities to trust; the public roots when absent.
    pub ca: Option<PathBuf>,
    /// Who logs in; absent: nobody.
    pub username: Option<String>,
    /// A file with the password.
    pub password_file: Option<PathBuf>,
    /// For the whole exchange. Default 20 s.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Tell also what is over. Default true.
    pub resolved: bool,
}

impl Default for Mail {
    fn default() -> Self {
        Self {
            smtp: String::new(),
            from: String::new(),
            to: vec![],
            tls: MailTls::default(),
            ca: None,
            username: None,
            password_file: None,
            timeout: Duration::from_secs(20),
            resolved: true,
        }
    }
}

impl Mail {
    /// Host and port of the mail server; `None`: `smtp` is neither `host` nor `host:port`.
    pub fn server(&self) -> Option<(&str, u16)> {
        let usual = match self.tls {
            MailTls::Starttls => 587,
            MailTls::Tls => 465,
            MailTls::None => 25,
        };
        let (host, port) = match self.smtp.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()?),
            _ => (self.smtp.as_str(), usual),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let good = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '@');
        good.then_some((host, port)).filter(|(_, port)| *port != 0)
    }
}
