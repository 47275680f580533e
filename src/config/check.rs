//! What a configuration that can be read may still get wrong.

use super::{Config, Origin, Origins, ServerTls, error::Problem, nearest::nearest};
use crate::{message::hl7::charset, preset::Tier};
use bytesize::ByteSize;
use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

/// Names that the node gives to its own listeners.
const OWN_NAMES: [&str; 4] = ["http", "https", "admin", "health"];

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    /// Cannot work.
    pub problems: Vec<Problem>,
    /// Works, but is probably not meant.
    pub warnings: Vec<Problem>,
}

/// Looks at the values alone; `tier`: the preset in force.
pub(super) fn values(config: &Config, origins: &Origins, tier: Option<&Tier>) -> Found {
    let mut check = Check { origins, found: Found::default() };
    check.names(config);
    check.addresses(config);
    check.ranges(config);
    check.tls(config);
    check.exposure(config);
    check.alerts(config);
    check.transport(config, tier);
    check.peers(config);
    check.discovery(config);
    check.found
}

impl Found {
    /// Looks also at the files that the values name.
    pub(super) fn and_files(self, config: &Config, origins: &Origins) -> Found {
        let mut check = Check { origins, found: self };
        for (section, tls) in servers(config) {
            for (key, path) in [("cert", Some(&tls.cert)), ("key", Some(&tls.key)), ("client_ca", tls.client_ca.as_ref())] {
                if let Some(path) = path.filter(|p| !p.as_os_str().is_empty()) {
                    check.readable(&format!("{section}.tls.{key}"), path);
                }
            }
        }
        for (i, watched) in config.file.iter().enumerate() {
            let directory = &watched.directory;
            if !directory.as_os_str().is_empty() && !directory.is_dir() {
                let text = format!("the folder {} does not exist; make it, or correct the path", directory.display());
                check.problem(&format!("file.{i}.directory"), text);
            }
        }
        check.alert_files(config);
        check.transport_files(config);
        check.peers_files(config);
        check.discovery_files(config);
        check.found
    }
}

pub(super) struct Check<'a> {
    origins: &'a Origins,
    found: Found,
}

impl Check<'_> {
    fn place(&self, key: &str) -> Origin {
        self.origins.place_of(key)
    }

    pub(super) fn problem(&mut self, key: &str, text: impl AsRef<str>) {
        let place = self.place(key);
        self.found.problems.push(Problem::new(place, format!("{key}: {}", text.as_ref())));
    }

    pub(super) fn warn(&mut self, key: &str, text: impl AsRef<str>) {
        let place = self.place(key);
        self.found.warnings.push(Problem::new(place, format!("{key}: {}", text.as_ref())));
    }

    pub(super) fn readable(&mut self, key: &str, path: &Path) {
        if let Err(e) = std::fs::File::open(path) {
            self.problem(key, format!("{} cannot be read: {e}", path.display()));
        }
    }

    fn names(&mut self, config: &Config) {
        let listeners = config.mllp.iter().enumerate().map(|(i, m)| (format!("mllp.{i}.name"), &m.name));
        let folders = config.file.iter().enumerate().map(|(i, f)| (format!("file.{i}.name"), &f.name));
        let mut seen: BTreeMap<&str, String> = BTreeMap::new();
        for (key, name) in listeners.chain(folders) {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
                self.problem(&key, "a name is 1 to 64 letters, digits, '-', '_' or '.'");
            } else if OWN_NAMES.contains(&name.as_str()) {
                self.problem(&key, format!("\"{name}\" is the name of one of the node's own listeners"));
            } else if let Some(first) = seen.get(name.as_str()) {
                self.problem(&key, format!("the name \"{name}\" is taken by {first}; names must differ"));
            } else {
                seen.insert(name, key);
            }
        }
    }

    fn addresses(&mut self, config: &Config) {
        let mut seen: Vec<(String, SocketAddr)> = Vec::new();
        for (key, address) in addresses(config) {
            let clash = seen.iter().find(|(_, other)| {
                let same_host = other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified();
                address.port() != 0 && address.port() == other.port() && same_host
            });
            match clash.map(|(first, other)| format!("{address} is in use by {first} ({other})")) {
                Some(text) => self.problem(&key, text),
                None => seen.push((key, address)),
            }
        }
    }

    pub(super) fn time(&mut self, key: &str, value: Duration, least: Duration, most: Duration) {
        if value < least || value > most {
            let (value, least, most) =
                (humantime::format_duration(value), humantime::format_duration(least), humantime::format_duration(most));
            self.problem(key, format!("{value} is not within {least} to {most}"));
        }
    }

    pub(super) fn size(&mut self, key: &str, value: ByteSize, least: ByteSize, most: ByteSize) {
        if value < least || value > most {
            self.problem(key, format!("{value} is not within {least} to {most}"));
        }
    }

    pub(super) fn count(&mut self, key: &str, value: usize, least: usize, most: usize) {
        if value < least || value > most {
            self.problem(key, format!("{value} is not within {least} to {most}"));
        }
    }

    fn ranges(&mut self, config: &Config) {
        let ms = Duration::from_millis(1);
        let node = &config.node;
        if let super::Cluster::N(n) = node.cluster {
            self.count("node.cluster", n, 1, 256);
        }
        self.count("node.delivery_threads", node.delivery_threads, 0, 256);
        self.time("node.drain_timeout", node.drain_timeout, Duration::ZERO, HOUR);
        for (key, path) in [("node.store", &node.store), ("node.channels", &node.channels), ("node.clients", &node.clients)] {
            if path.as_os_str().is_empty() {
                self.problem(key, "is empty; give a folder");
            }
        }

        let http = &config.http;
        self.count("http.max_connections", http.max_connections, 1, 10_000_000);
        self.time("http.header_timeout", http.header_timeout, ms, HOUR);
        self.time("http.body_idle_timeout", http.body_idle_timeout, ms, HOUR);
        self.size("http.min_body_rate", http.min_body_rate, ByteSize::b(0), ByteSize::gib(1));
        self.time("http.body_rate_window", http.body_rate_window, SECOND, HOUR);
        self.time("http.idle_timeout", http.idle_timeout, ms, DAY);
        // Below 8 KiB the HTTP/1 parser's own buffer would be the limit.
        self.size("http.max_header_bytes", http.max_header_bytes, ByteSize::kib(8), ByteSize::mib(16));

        let limits = &config.limits;
        self.size("limits.max_body", limits.max_body, ByteSize::kib(1), ByteSize::tib(1));
        self.count("limits.max_pending", limits.max_pending, 1, 100_000_000);
        self.size("limits.writer_queue", limits.writer_queue, ByteSize::kib(64), ByteSize::gib(16));
        self.size("limits.hot_bodies", limits.hot_bodies, ByteSize::b(0), ByteSize::tib(1));
        self.count("limits.streams", limits.streams, 1, 100_000);

        for (i, mllp) in config.mllp.iter().enumerate() {
            let key = |name: &str| format!("mllp.{i}.{name}");
            self.count(&key("max_connections"), mllp.max_connections, 1, 10_000_000);
            self.time(&key("frame_timeout"), mllp.frame_timeout, ms, HOUR);
            self.time(&key("idle_timeout"), mllp.idle_timeout, Duration::ZERO, 365 * DAY);
            self.size(&key("max_frame"), mllp.max_frame, ByteSize::kib(1), ByteSize::gib(4));
            if charset::encoding(&mllp.charset).is_none() {
                self.problem(&key("charset"), unknown_charset(&mllp.charset));
            }
            let given = !matches!(self.origins.get(&key("max_frame")), Origin::Default | Origin::Preset(_));
            if given && mllp.max_frame > limits.max_body {
                let text = format!("{} is more than limits.max_body allows ({})", mllp.max_frame, limits.max_body);
                self.warn(&key("max_frame"), text);
            }
        }
        for (i, watched) in config.file.iter().enumerate() {
            let key = |name: &str| format!("file.{i}.{name}");
            self.time(&key("poll"), watched.poll, 10 * ms, DAY);
            self.time(&key("settle"), watched.settle, Duration::ZERO, DAY);
            if watched.directory.as_os_str().is_empty() {
                self.problem(&key("directory"), "is missing; name the folder to watch");
            }
            if watched.pattern.is_empty() {
                self.problem(&key("pattern"), "is empty; \"*\" takes every file");
            }
            for (name, sub) in [("done", &watched.done), ("failed", &watched.failed)] {
                if sub.as_os_str().is_empty() || sub.as_path() == Path::new(".") {
                    self.problem(&key(name), "must be a folder of its own: files left in place would be taken again");
                }
            }
        }
        self.feed(config);
        self.ledger(config);
    }

    fn feed(&mut self, config: &Config) {
        let feed = &config.feed;
        self.count("feed.max_connections_per_resource", feed.max_connections_per_resource, 1, 1_000_000);
        self.count("feed.max_connections", feed.max_connections, 1, 1_000_000);
        self.time("feed.timeout", feed.timeout, SECOND, 365 * DAY);
        self.time("feed.keep_alive", feed.keep_alive, SECOND, HOUR);
        self.size("feed.buffer", feed.buffer, ByteSize::kib(4), ByteSize::mib(16));
        if feed.max_connections < feed.max_connections_per_resource {
            self.warn("feed.max_connections", "is less than feed.max_connections_per_resource, which it cuts short");
        }
    }

    fn ledger(&mut self, config: &Config) {
        let ledger = &config.ledger;
        self.time("ledger.retention", ledger.retention, SECOND, 36_500 * DAY);
        self.time("ledger.segment_age", ledger.segment_age, SECOND, 365 * DAY);
        self.time("ledger.resend_window", ledger.resend_window, Duration::ZERO, 365 * DAY);
        self.count("ledger.resend_entries", ledger.resend_entries, 0, 100_000_000);
        self.size("ledger.segment_size", ledger.segment_size, ByteSize::kib(64), ByteSize::gib(64));
        self.size("ledger.max_size", ledger.max_size, ByteSize::b(0), ByteSize::pib(1024));
        self.size("ledger.compress_from", ledger.compress_from, ByteSize::b(0), ByteSize::tib(1));
        self.size("ledger.min_free", ledger.min_free, ByteSize::b(0), ByteSize::pib(1));
        if ledger.max_size.as_u64() < ledger.segment_size.as_u64().saturating_mul(2) {
            let text = format!(
                "{} holds fewer than two segments of ledger.segment_size ({}); only whole segments go",
                ledger.max_size, ledger.segment_size
            );
            self.problem("ledger.max_size", text);
        }
        if ledger.segment_age > ledger.retention {
            self.warn("ledger.segment_age", "is longer than ledger.retention: transactions stay until their segment closes");
        }
    }

    fn tls(&mut self, config: &Config) {
        for (section, tls) in servers(config) {
            for (key, path) in [("cert", &tls.cert), ("key", &tls.key)] {
                if path.as_os_str().is_empty() {
                    self.problem(&format!("{section}.tls.{key}"), "is missing; name a PEM file");
                }
            }
            if tls.client_required && tls.client_ca.is_none() {
                self.problem(&format!("{section}.tls.client_required"), "needs client_ca to check the certificates against");
            }
        }
        let http = &config.http;
        if http.tls.is_none() && http.tls_listen.is_some() && self.origins.get("http.tls_listen") != Origin::Default {
            self.warn("http.tls_listen", "HTTPS is not served: there is no [http.tls]");
        }
        if http.tls.is_some() && http.tls_listen.is_none() {
            self.warn("http.tls", "HTTPS is not served: http.tls_listen is off");
        }
    }

    fn exposure(&mut self, config: &Config) {
        if !config.admin.listen.ip().is_loopback() {
            self.warn("admin.listen", "the management API has no TLS of its own and is reachable from other machines here");
        }
        let http = ("http.proxy_protocol_from".to_owned(), &config.http.proxy_protocol_from);
        let mllp = config.mllp.iter().enumerate();
        let mllp = mllp.map(|(i, m)| (format!("mllp.{i}.proxy_protocol_from"), &m.proxy_protocol_from));
        for (key, nets) in std::iter::once(http).chain(mllp) {
            if nets.iter().any(|net| net.prefix_len() == 0) {
                self.warn(&key, "lets every sender claim any address; name the balancers");
            }
        }
    }
}

fn unknown_charset(label: &str) -> String {
    let known = nearest(label.trim(), charset::NAMES.iter().copied()).filter(|_| !label.trim().is_empty());
    let known = known.map_or("UTF-8", |(name, _)| name);
    format!(
        "unknown charset \"{label}\"; the nearest known one is \"{known}\"; names are those of HL7 table 0211 (\"8859/1\") and of \
         IANA (\"UTF-8\", \"windows-1252\")"
    )
}

/// Every address that is listened on, with its key.
fn addresses(config: &Config) -> Vec<(String, SocketAddr)> {
    let mut all: Vec<(String, SocketAddr)> = config.http.listen.map(|a| ("http.listen".into(), a)).into_iter().collect();
    all.extend(config.http.tls.as_ref().and(config.http.tls_listen).map(|a| ("http.tls_listen".into(), a)));
    all.extend(config.mllp.iter().enumerate().map(|(i, m)| (format!("mllp.{i}.listen"), m.listen)));
    all.push(("admin.listen".into(), config.admin.listen));
    all.push(("health.listen".into(), config.health.listen));
    all
}

/// Every TLS server, with its section.
fn servers(config: &Config) -> Vec<(String, &ServerTls)> {
    let http = config.http.tls.iter().map(|tls| ("http".to_owned(), tls));
    let mllp = config.mllp.iter().enumerate().filter_map(|(i, m)| Some((format!("mllp.{i}"), m.tls.as_ref()?)));
    http.chain(mllp).collect()
}
