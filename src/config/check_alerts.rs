//! What `[alerts]` may get wrong.

use super::{Config, MailTls, check::Check};
use std::{net::IpAddr, path::Path, time::Duration};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// More would be a mailing list's work.
const MOST_RECEIVERS: usize = 20;
/// Headers whose values are credentials.
const CREDENTIALS: [&str; 6] = ["authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-auth-token"];

impl Check<'_> {
    pub(super) fn alerts(&mut self, config: &Config) {
        let a = &config.alerts;
        let ms = Duration::from_millis(1);
        self.time("alerts.every", a.every, 100 * ms, DAY);
        for (key, value) in [
            ("feed_warning", a.feed_warning),
            ("feed_critical", a.feed_critical),
            ("memory_warning", a.memory_warning),
            ("memory_critical", a.memory_critical),
            ("cpu_warning", a.cpu_warning),
            ("cpu_critical", a.cpu_critical),
            ("disk_warning", a.disk_warning),
            ("disk_critical", a.disk_critical),
            ("ledger_warning", a.ledger_warning),
            ("failure_rate", a.failure_rate),
        ] {
            self.count(&format!("alerts.{key}"), value.into(), 0, 100);
        }
        for (key, value, least) in [
            ("cpu_for", a.cpu_for, SECOND),
            ("failure_window", a.failure_window, SECOND),
            ("queue_age", a.queue_age, Duration::ZERO),
            ("not_ready_for", a.not_ready_for, Duration::ZERO),
            ("certificate_warning", a.certificate_warning, Duration::ZERO),
            ("certificate_critical", a.certificate_critical, Duration::ZERO),
            ("resolve_after", a.resolve_after, Duration::ZERO),
            ("group_wait", a.group_wait, Duration::ZERO),
            ("repeat_interval", a.repeat_interval, SECOND),
        ] {
            self.time(&format!("alerts.{key}"), value, least, YEAR);
        }
        self.count("alerts.failure_min", a.failure_min as usize, 1, 1_000_000);
        self.count("alerts.max_per_hour", a.max_per_hour as usize, 1, 3600);
        self.count("alerts.webhook", a.webhook.len(), 0, MOST_RECEIVERS);
        self.count("alerts.mail", a.mail.len(), 0, MOST_RECEIVERS);
        self.webhooks(config);
        self.mails(config);
    }

    fn webhooks(&mut self, config: &Config) {
        for (i, hook) in config.alerts.webhook.iter().enumerate() {
            let key = |name: &str| format!("alerts.webhook.{i}.{name}");
            match (hook.url.is_empty(), &hook.url_file) {
                (true, None) => self.problem(&key("url"), "is missing; give an http or https URL, or url_file"),
                (false, Some(_)) => self.problem(&key("url_file"), "and url are both given; give one of them"),
                (false, None) => {
                    // The URL itself is not repeated: it may hold a secret.
                    match hook.url.parse::<http::Uri>() {
                        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) => {
                            if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
                                self.problem(&key("url"), "holds a credential; put it into a header read from a file");
                            }
                        }
                        _ => self.problem(&key("url"), "is no http or https URL"),
                    }
                }
                (true, Some(_)) => {}
            }
            for (name, value) in &hook.headers {
                let place = key(&format!("headers.{name}"));
                if http::HeaderName::try_from(name.as_str()).is_err() {
                    self.problem(&place, "is no header's name");
                }
                let referred = value.starts_with("file:") || value.starts_with("env:");
                if !referred && CREDENTIALS.contains(&name.to_ascii_lowercase().as_str()) {
                    self.problem(&place, "holds a credential; write \"file:PATH\" or \"env:NAME\" and keep it there");
                }
            }
            self.time(&key("timeout"), hook.timeout, Duration::from_millis(100), Duration::from_secs(60));
        }
    }

    fn mails(&mut self, config: &Config) {
        for (i, mail) in config.alerts.mail.iter().enumerate() {
            let key = |name: &str| format!("alerts.mail.{i}.{name}");
            let server = mail.server();
            if server.is_none() {
                self.problem(&key("smtp"), "is no mail server; write \"host:port\"");
            }
            if mail.to.is_empty() {
                self.problem(&key("to"), "is empty; name whom to write to");
            }
            let addresses = mail.to.iter().map(|to| ("to", to)).chain([("from", &mail.from)]);
            for (name, address) in addresses {
                if !address.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()) {
                    self.problem(&key(name), format!("\"{address}\" is no mail address"));
                }
            }
            if mail.username.is_some() != mail.password_file.is_some() {
                self.problem(&key("password_file"), "and username are given together or not at all");
            }
            let here =
                server.is_some_and(|(host, _)| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()));
            if mail.username.is_some() && mail.tls == MailTls::None && !here {
                self.problem(&key("tls"), "\"none\" would send the password in clear; use \"starttls\" or \"tls\"");
            }
            self.time(&key("timeout"), mail.timeout, Duration::from_millis(100), Duration::from_secs(120));
        }
    }

    pub(super) fn alert_files(&mut self, config: &Config) {
        for (i, hook) in config.alerts.webhook.iter().enumerate() {
            let headers = hook
                .headers
                .iter()
                .filter_map(|(name, value)| Some((format!("headers.{name}"), Path::new(value.strip_prefix("file:")?))));
            let files = [("url_file", hook.url_file.as_deref()), ("ca", hook.ca.as_deref())];
            let files = files.into_iter().filter_map(|(name, path)| Some((name.to_owned(), path?))).chain(headers);
            for (name, path) in files.collect::<Vec<_>>() {
                self.readable(&format!("alerts.webhook.{i}.{name}"), path);
            }
        }
        for (i, mail) in config.alerts.mail.iter().enumerate() {
            for (name, path) in [("ca", &mail.ca), ("password_file", &mail.password_file)] {
                if let Some(path) = path {
                    self.readable(&format!("alerts.mail.{i}.{name}"), path);
                }
            }
        }
    }
}
