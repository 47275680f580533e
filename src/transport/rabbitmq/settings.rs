//! What the link needs to know, made of `[transport]`.

use super::reason::Reason;
use crate::{
    channel::ClientTls,
    config::{self, BrokerUrl, client_tls, secret},
};
use rustls::ClientConfig;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// How to reach the brokers.
#[derive(Clone)]
pub struct LinkSettings {
    /// Any of them will do. At least one.
    pub brokers: Vec<BrokerUrl>,
    /// Virtual host.
    pub vhost: String,
    /// User.
    pub user: String,
    /// Where the password is; read at each connection, so that a corrected file is taken at once.
    pub password: PasswordSource,
    /// For brokers with TLS.
    pub tls: Option<Tls>,
    /// Heartbeat, whole seconds.
    pub heartbeat: Duration,
    /// From the first byte to a connection that can be used.
    pub connect_timeout: Duration,
    /// Name of the connection in the broker's management: the node's.
    pub name: String,
}

/// Where a password comes from.
#[derive(Clone)]
pub enum PasswordSource {
    /// A file or `credential:NAME`.
    File(PathBuf),
    /// As it is; for tests.
    Given(String),
}

/// TLS towards brokers.
#[derive(Clone)]
pub struct Tls {
    /// Whom to trust, and who we are.
    pub config: Arc<ClientConfig>,
    /// Name to expect where it is not the host.
    pub names: ClientTls,
}

impl LinkSettings {
    /// Of `[transport]`; `node` is the node's name. The error says what to correct. The password is not read yet.
    pub fn new(transport: &config::Transport, node: &str) -> Result<Self, String> {
        let brokers: Vec<BrokerUrl> = transport
            .urls
            .iter()
            .map(|url| BrokerUrl::parse(url))
            .collect::<Result<_, _>>()
            .map_err(|e| format!("transport.urls: a URL {e}"))?;
        if brokers.is_empty() {
            return Err("transport.urls is empty; name the brokers".into());
        }
        let tls = match brokers.iter().any(|b| b.tls) {
            false => None,
            true => {
                let names = ClientTls {
                    ca: transport.ca.clone(),
                    cert: transport.cert.clone(),
                    key: transport.key.clone(),
                    server_name: transport.server_name.clone(),
                };
                let config = client_tls::client_config(&names, &[]).map_err(|e| format!("[transport] {e}"))?;
                Some(Tls { config: Arc::new(config), names })
            }
        };
        let password = transport.password_file.clone().ok_or("transport.password_file is missing")?;
        Ok(Self {
            brokers,
            vhost: transport.vhost.clone(),
            user: transport.user.clone(),
            password: PasswordSource::File(password),
            tls,
            heartbeat: transport.heartbeat,
            connect_timeout: Duration::from_secs(5),
            name: format!("hie {node}"),
        })
    }
}

impl PasswordSource {
    /// The password as it is now.
    pub(super) fn read(&self) -> Result<String, Reason> {
        match self {
            Self::Given(password) => Ok(password.clone()),
            Self::File(path) => secret::read(path).map_err(|text| Reason::new(format!("transport.password_file: {text}"))),
        }
    }
}
