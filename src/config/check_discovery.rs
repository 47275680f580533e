//! What `[discovery]` may get wrong.

use super::{Config, check::Check};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Words that tell protocols apart in the same names: `mllp.hie.service.consul`.
const PROTOCOLS: [&str; 5] = ["http", "https", "mllp", "mllps", "admin"];

impl Check<'_> {
    pub(super) fn discovery(&mut self, config: &Config) {
        let d = &config.discovery;
        self.time("discovery.timeout", d.timeout, 100 * MS, HOUR / 60);
        self.count("discovery.weight", d.weight, 1, 65_535);
        // Consul looks once a second at most, and forgets after a minute at the earliest.
        self.time("discovery.check_interval", d.check_interval, SECOND, HOUR);
        self.time("discovery.check_timeout", d.check_timeout, 10 * MS, HOUR);
        self.count("discovery.check_failures", d.check_failures, 1, 100);
        self.time("discovery.ttl", d.ttl, SECOND, HOUR);
        self.time("discovery.forget_after", d.forget_after, HOUR / 60, 10_000 * HOUR);
        self.time("discovery.dns_ttl", d.dns_ttl, Duration::ZERO, HOUR);
        if d.cert.is_some() != d.key.is_some() {
            self.problem(if d.cert.is_some() { "discovery.cert" } else { "discovery.key" }, "cert and key are given together");
        }
        if d.address.is_some_and(|a| a.is_unspecified() || a.is_multicast()) {
            self.problem("discovery.address", "is no address that others can reach; give one of this machine, or leave it out");
        }
        if !d.on() {
            return;
        }
        self.consul(config);
        if d.address.is_none() && config.listeners().iter().all(|(name, at)| name == "health" || at.ip().is_loopback()) {
            self.warn(
                "discovery.consul",
                "every listener is on loopback: the names lead each machine to itself; right for a trial on one",
            );
        }
        let domain = &config.node.domain;
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if domain.is_empty() || domain.len() > 63 || !domain.chars().all(good) || domain.starts_with('-') || domain.ends_with('-')
        {
            let text = "is part of a DNS name (DOMAIN.hie.service.consul): 1 to 63 small letters, digits and '-'";
            self.problem("node.domain", text);
        } else if PROTOCOLS.contains(&domain.as_str()) {
            self.problem(
                "node.domain",
                format!("\"{domain}\" names a protocol in {domain}.hie.service.consul; take another word"),
            );
        }
    }

    fn consul(&mut self, config: &Config) {
        let d = &config.discovery;
        const WANTED: &str = "write http://127.0.0.1:8500, or https:// with host and port";
        let Ok(uri) = d.consul.parse::<http::Uri>() else {
            return self.problem("discovery.consul", format!("is no URL; {WANTED}"));
        };
        let (scheme, host) = (uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default());
        if !matches!(scheme, "http" | "https") || host.is_empty() {
            return self.problem("discovery.consul", format!("is not the URL of an agent; {WANTED}"));
        }
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            self.problem("discovery.consul", "holds a user name or password; give a token with token_file");
        } else if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            self.problem("discovery.consul", format!("has a path; {WANTED}"));
        }
        let loopback =
            host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|a: std::net::IpAddr| a.is_loopback());
        if !loopback && config.health.listen.ip().is_loopback() {
            self.warn("health.listen", "is on loopback, where the Consul agent of another machine cannot look");
        }
        if scheme == "https" && d.ca.is_none() {
            self.warn("discovery.consul", "an agent's certificate is seldom from a public authority; name its own with ca");
        }
        if scheme == "http" && (d.ca.is_some() || d.cert.is_some()) {
            self.warn("discovery.consul", "ca and cert are for https");
        }
        if scheme == "http" && !loopback && d.token_file.is_some() {
            self.warn(
                "discovery.consul",
                "the token travels unencrypted to another machine; use https, or the agent of this machine",
            );
        }
    }

    pub(super) fn discovery_files(&mut self, config: &Config) {
        let d = &config.discovery;
        if !d.on() {
            return;
        }
        if let Some(path) = &d.token_file {
            self.secret("discovery.token_file", path);
        }
        for (key, path) in [("ca", &d.ca), ("cert", &d.cert), ("key", &d.key)] {
            if let Some(path) = path {
                self.readable(&format!("discovery.{key}"), path);
            }
        }
    }
}
