//! TLS as a client, as the configuration gives it.

pub use crate::config::client_tls::{TlsError, client_config, server_name};
