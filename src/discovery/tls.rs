//! TLS with the agent.

use super::client::Error;
use crate::config::Discovery;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{error::Error as StdError, io, path::Path, sync::Arc};

/// The rustls configuration for `discovery.ca`, `cert` and `key`; reads the files.
pub(super) fn client_config(config: &Discovery) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match &config.ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            for certificate in certificates("ca", path)? {
                roots.add(certificate).map_err(|e| wrong("ca", path, &e))?;
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Config(format!("TLS: {e}")))?
        .with_root_certificates(roots);
    match (&config.cert, &config.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates("cert", cert)?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong("key", key, &e))?;
            builder.with_client_auth_cert(chain, key_der).map_err(|e| wrong("cert", cert, &e))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| wrong(key, path, &e))?.collect();
    match list.map_err(|e| wrong(key, path, &e))? {
        list if list.is_empty() => Err(wrong(key, path, &"no certificate in it")),
        list => Ok(list),
    }
}

fn wrong(key: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Config(format!("discovery.{key}: {}: {error}; it must be PEM, not encrypted, with lines -----BEGIN", path.display()))
}

/// What rustls says, when it is what made a request fail.
pub(super) fn failure(error: &reqwest::Error) -> Option<String> {
    let mut next: Option<&dyn StdError> = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string().chars().take(200).collect());
        }
        // An io::Error hides what it wraps from `source`.
        if let Some(wrapped) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            next = Some(wrapped);
            continue;
        }
        next = error.source();
    }
    None
}
