//! What of a configuration is built before anything is opened: acceptors of listeners, ways out of routes, receivers of
//! alerts. [`check`] builds them as the node does and drops them again, so that what it passes is not refused at a start, a
//! reload or an upgrade.

use super::{alerts, outbound::Outbound};
use crate::{
    admin::Token,
    channel::client::Client,
    config::{Channels, Config, Loaded, Problem, ServerTls, TransportKind},
    discovery,
    engine::{directory::Directory, ports::Connectors},
    gateway::inbound,
    transport::rabbitmq::LinkSettings,
};
use std::collections::HashMap;
use tokio_rustls::TlsAcceptor;

/// A mistake in `hie.toml` that only shows when the thing is built.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Dotted: `http.tls.cert`.
    pub key: String,
    /// Names the key or the file, and says what to do.
    pub text: String,
}

/// All of them as one error.
pub(super) fn told(wrong: Vec<Wrong>) -> anyhow::Error {
    anyhow::anyhow!(wrong.into_iter().map(|w| w.text).collect::<Vec<_>>().join("\n"))
}

/// The acceptor of each listener with TLS, by its section: `http`, `mllp.0`. Every mistake at once.
pub(super) fn acceptors(config: &Config) -> Result<HashMap<String, TlsAcceptor>, Vec<Wrong>> {
    let https = config.http.tls_listen.and(config.http.tls.as_ref()).map(|tls| ("http".to_owned(), tls, inbound::http::ALPN));
    let mllps = config.mllp.iter().enumerate();
    let mllps = mllps.filter_map(|(i, mllp)| Some((format!("mllp.{i}"), mllp.tls.as_ref()?, &[][..])));
    let mut acceptors = HashMap::new();
    let mut wrong = Vec::new();
    let all: Vec<(String, &ServerTls, &[&[u8]])> = https.into_iter().chain(mllps).collect();
    for (section, tls, alpn) in all {
        match inbound::tls::acceptor(tls, alpn) {
            Ok(acceptor) => drop(acceptors.insert(section, acceptor)),
            Err(error) => {
                let key = format!("{section}.tls.{}", error.key(tls));
                wrong.push(Wrong { text: format!("{key}: {error}"), key });
            }
        }
    }
    if wrong.is_empty() { Ok(acceptors) } else { Err(wrong) }
}

/// How the node reaches its brokers; `None` with the embedded transport.
pub(super) fn brokers(config: &Config) -> Result<Option<LinkSettings>, Vec<Wrong>> {
    if config.transport.kind == TransportKind::Embedded {
        return Ok(None);
    }
    LinkSettings::new(&config.transport, &config.node.name).map(Some).map_err(|text| {
        let key = ["ca", "key"].into_iter().find(|key| text.contains(&format!("`{key}`"))).unwrap_or("cert");
        vec![Wrong { key: format!("transport.{key}"), text }]
    })
}

/// Builds everything that a start would build of this configuration, without opening a port or sending anything. The error
/// tells every mistake, each with its place: what the node would refuse, and what an upgrade would die of.
pub fn check(loaded: &Loaded, channels: &Channels, clients: &[Client]) -> Result<(), Vec<String>> {
    let config = &loaded.config;
    let wrong = acceptors(config).err().into_iter().chain(alerts::receivers(config).err());
    let wrong = wrong.chain(brokers(config).err()).flatten();
    let place = |w: Wrong| Problem { place: loaded.origins.place_of(&w.key), message: w.text }.to_string();
    let mut told: Vec<String> = wrong.map(place).collect();
    if config.discovery.on()
        && let Err(error) = discovery::Client::new(&config.discovery)
    {
        // Names its key itself.
        told.push(error.to_string());
    }
    if let Err(error) = Token::check(&config.admin_token_file()) {
        told.push(format!("admin.token_file: {error}"));
    }
    if let Err(error) = Directory::new(clients.to_vec()) {
        told.push(format!("{}: {error}", config.node.clients.display()));
    }
    // Connectors are made inside the runtime whose connections they would open.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            told.push(format!("no runtime: {error}"));
            return Err(told);
        }
    };
    let _entered = runtime.enter();
    let ways = Outbound::new(&config.node.channels);
    for channel in &channels.list {
        for route in &channel.routes {
            if let Err(error) = ways.prepare(&channel.name, route).and_then(|open| open()) {
                told.push(channels.wrong(&channel.name, &route.name, &error));
            }
        }
    }
    if told.is_empty() { Ok(()) } else { Err(told) }
}
