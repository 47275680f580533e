//! What `[peers]` may get wrong.

use super::{Config, TransportKind, check::Check, secret};
use bytesize::ByteSize;
use std::time::Duration;

/// The shortest secret: below it, it might be guessed from what crosses the network.
pub const SHORTEST_SECRET: usize = 32;
/// More would be no domain.
const MOST_PEERS: usize = 64;

impl Check<'_> {
    pub(super) fn peers(&mut self, config: &Config) {
        let p = &config.peers;
        self.count("peers.urls", p.urls.len(), 0, MOST_PEERS);
        for (i, url) in p.urls.iter().enumerate() {
            // The URL itself is not repeated: it may hold a secret.
            let place = format!("entry {}", i + 1);
            let uri: Result<http::Uri, _> = url.parse();
            match uri {
                Ok(uri) if uri.host().is_none() || !matches!(uri.scheme_str(), Some("http" | "https")) => {
                    self.problem("peers.urls", format!("{place} is no URL of a management API; write \"http://HOST:8080\""));
                }
                Ok(uri) if uri.authority().is_some_and(|a| a.as_str().contains('@')) => {
                    self.problem("peers.urls", format!("{place} holds a user or password; nodes show the domain's secret"));
                }
                Ok(uri) if uri.path().trim_matches('/').len() + uri.query().map_or(0, str::len) > 0 => {
                    self.problem("peers.urls", format!("{place} has more than host and port; write \"http://HOST:8080\""));
                }
                Ok(_) => {}
                Err(_) => self.problem("peers.urls", format!("{place} is no URL; write \"http://HOST:8080\"")),
            }
        }
        if !p.urls.is_empty() && p.secret_file.is_none() {
            self.problem(
                "peers.secret_file",
                "is missing; name the file with the domain's secret, the same on each of its nodes",
            );
        }
        if p.secret_file.is_some() && config.transport.kind == TransportKind::Embedded {
            self.warn("peers.secret_file", "has no effect: transport.kind is \"embedded\", and such a node has no peers");
        }
        self.size("peers.rate", p.rate, ByteSize::kib(64), ByteSize::gib(1024));
        self.time("peers.patience", p.patience, Duration::ZERO, Duration::from_secs(3600));
    }

    pub(super) fn peers_files(&mut self, config: &Config) {
        let p = &config.peers;
        if let Some(path) = &p.ca {
            self.readable("peers.ca", path);
        }
        if let Some(path) = &p.secret_file {
            match secret::read(path) {
                Ok(text) if text.trim().len() < SHORTEST_SECRET => {
                    self.problem(
                        "peers.secret_file",
                        format!(
                            "{} holds less than {SHORTEST_SECRET} characters; make one with: head -c 32 /dev/urandom | base64",
                            path.display()
                        ),
                    );
                }
                _ => self.secret("peers.secret_file", path),
            }
        }
    }
}
