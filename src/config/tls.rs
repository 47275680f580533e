//! `[http.tls]`, `[mllp.tls]`: TLS as a server.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// TLS as a server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerTls {
    /// PEM of the certificate and its chain.
    pub cert: PathBuf,
    /// PEM of its private key.
    pub key: PathBuf,
    /// PEM of the authorities for client certificates; absent (default): none asked for.
    pub client_ca: Option<PathBuf>,
    /// Refuse connections without a certificate. Default false.
    pub client_required: bool,
}
