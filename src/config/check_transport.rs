//! What `[transport]` may get wrong.

use super::{Config, TransportKind, check::Check, secret, transport::BrokerUrl};
use crate::preset::Tier;
use bytesize::ByteSize;
use std::{path::Path, time::Duration};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// RabbitMQ's own, where no rabbitmq.conf says otherwise.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// More would be no cluster.
const MOST_BROKERS: usize = 64;

impl Check<'_> {
    pub(super) fn transport(&mut self, config: &Config, tier: Option<&Tier>) {
        let t = &config.transport;
        let rabbitmq = t.kind == TransportKind::Rabbitmq;
        let mut tls = false;
        for (i, url) in t.urls.iter().enumerate() {
            match BrokerUrl::parse(url) {
                Ok(broker) => tls |= broker.tls,
                // The URL itself is not repeated: it may hold a secret.
                Err(text) => self.problem("transport.urls", format!("entry {} {text}", i + 1)),
            }
        }
        self.count("transport.urls", t.urls.len(), 0, MOST_BROKERS);
        if rabbitmq && t.urls.is_empty() {
            self.problem("transport.urls", "is empty; name the brokers: [\"amqp://HOST:5672\"]");
        }
        if rabbitmq && t.password_file.is_none() {
            self.problem(
                "transport.password_file",
                "is missing; name the file with the password of transport.user, or credential:NAME",
            );
        }
        if t.user.is_empty() {
            self.problem("transport.user", "is empty; name the broker's user");
        }
        if t.vhost.is_empty() || t.vhost.len() > 255 {
            self.problem("transport.vhost", "is no virtual host; the usual one is \"/\"");
        }
        if t.cert.is_some() != t.key.is_some() {
            self.problem("transport.key", "and cert are given together or not at all");
        }
        if let Some(name) = &t.server_name
            && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            self.problem(
                "transport.server_name",
                format!("\"{name}\" is not a host name; write the name that stands in the broker's certificate"),
            );
        }
        let given = [("ca", t.ca.is_some()), ("cert", t.cert.is_some()), ("server_name", t.server_name.is_some())];
        if let Some((key, _)) = given.into_iter().find(|(_, given)| *given && rabbitmq && !tls && !t.urls.is_empty()) {
            self.warn(&format!("transport.{key}"), "has no effect: no URL of transport.urls begins with amqps://");
        }
        if !rabbitmq && !t.urls.is_empty() {
            self.warn(
                "transport.urls",
                "has no effect: transport.kind is \"embedded\"; write kind = \"rabbitmq\" to use the brokers",
            );
        }
        self.count("transport.partitions", t.partitions.into(), 1, super::MOST_PARTITIONS.into());
        self.size("transport.inline", t.inline, ByteSize::b(0), ByteSize::mib(4));
        self.count("transport.max_queue", t.max_queue as usize, 1, 100_000_000);
        self.time("transport.stream_max_age", t.stream_max_age, SECOND, 3650 * DAY);
        self.size("transport.stream_max_bytes", t.stream_max_bytes, ByteSize::mib(1), ByteSize::pib(1));
        self.count("transport.prefetch", t.prefetch.into(), 1, 10_000);
        self.time("transport.confirm_timeout", t.confirm_timeout, Duration::from_millis(100), HOUR);
        self.time("transport.heartbeat", t.heartbeat, SECOND, MINUTE);
        if t.heartbeat.subsec_nanos() != 0 {
            self.problem("transport.heartbeat", "is not in whole seconds, as AMQP counts it");
        }
        self.time("transport.lease", t.lease, Duration::from_millis(100), HOUR);
        self.time("transport.hold", t.hold, Duration::from_millis(100), DAY);
        // A little may be asked of a receiver after the time is over, and the broker looks once a minute.
        let (ends, whose) = match tier {
            Some(tier) => (MINUTE * u32::try_from(tier.rabbitmq.consumer_timeout_minutes).unwrap_or(u32::MAX), "the preset's"),
            None => (CONSUMER_TIMEOUT, "RabbitMQ's usual"),
        };
        if rabbitmq && t.hold > ends / 3 {
            self.warn(
                "transport.hold",
                format!(
                    "{} is above a third of {whose} consumer_timeout, {}: the broker would end consumers whose receiver is away; lower it, or raise \
                     consumer_timeout in rabbitmq.conf to three times as much",
                    humantime::format_duration(t.hold),
                    humantime::format_duration(ends)
                ),
            );
        }
    }

    pub(super) fn transport_files(&mut self, config: &Config) {
        let t = &config.transport;
        if t.kind != TransportKind::Rabbitmq {
            return;
        }
        for (key, path) in [("ca", &t.ca), ("cert", &t.cert), ("key", &t.key)] {
            if let Some(path) = path {
                self.readable(&format!("transport.{key}"), path);
            }
        }
        if let Some(path) = &t.password_file {
            self.secret("transport.password_file", path);
        }
    }

    /// A secret that cannot be read. That there are no credentials is a warning: an operator's shell has none, the service does.
    pub(super) fn secret(&mut self, key: &str, path: &Path) {
        match secret::read(path) {
            Ok(_) => {}
            Err(text) if secret::is_elsewhere(path) => self.warn(key, &text),
            Err(text) => self.problem(key, text),
        }
    }
}
