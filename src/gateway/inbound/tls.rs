//! TLS as a server: rustls with ring, TLS 1.2 and 1.3, client certificates where asked for.

use crate::config::ServerTls;
use bytes::Bytes;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::TlsAcceptor;

/// Why TLS cannot be served; each names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not there, or not readable.
    #[error("cannot read {path}: {reason}; the file must exist and be readable by the user that hie runs as", path = path.display())]
    Unreadable { path: PathBuf, reason: std::io::Error },
    /// There, but not what it should be.
    #[error("{path} holds no usable {what}: {reason}; {hint}", path = path.display())]
    Malformed { path: PathBuf, what: &'static str, reason: String, hint: &'static str },
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    #[error("certificate {cert} and key {key} cannot be used together: {reason}; make sure that the key belongs to the first certificate of the file",
        cert = cert.display(), key = key.display())]
    Mismatch { cert: PathBuf, key: PathBuf, reason: rustls::Error },
    /// `client_required` without `client_ca`.
    #[error(
        "tls.client_required is set, but no tls.client_ca says which certificates to trust; set client_ca to a PEM file of the issuing authorities"
    )]
    NoClientCa,
}

impl TlsError {
    /// The key of `config` that has to be corrected, or whose file has to be.
    pub fn key(&self, config: &ServerTls) -> &'static str {
        match self {
            Self::Unreadable { path, .. } | Self::Malformed { path, .. } if *path == config.cert => "cert",
            Self::Unreadable { path, .. } | Self::Malformed { path, .. } if Some(path) == config.client_ca.as_ref() => {
                "client_ca"
            }
            Self::Unreadable { .. } | Self::Malformed { .. } | Self::Mismatch { .. } => "key",
            Self::NoClientCa => "client_required",
        }
    }
}

/// An acceptor for the certificate, key and client authorities that `config` names. `alpn`: protocols offered, in
/// order of preference; empty for MLLP.
///
/// # Errors
/// See [`TlsError`].
pub fn acceptor(config: &ServerTls, alpn: &[&[u8]]) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mismatch = |reason| TlsError::Mismatch { cert: config.cert.clone(), key: config.key.clone(), reason };
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(mismatch)?;
    let builder = match &config.client_ca {
        None if config.client_required => return Err(TlsError::NoClientCa),
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| malformed(path, "certificate authority", e.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if config.client_required { verifier } else { verifier.allow_unauthenticated() };
            builder
                .with_client_cert_verifier(verifier.build().map_err(|e| malformed(path, "certificate authority", e.to_string()))?)
        }
    };
    let mut server = builder.with_single_cert(certificates(&config.cert)?, key(&config.key)?).map_err(mismatch)?;
    server.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(server)))
}

/// The verified client certificate of a finished handshake, DER; `None` when the client sent none.
pub(super) fn client_certificate(session: &rustls::ServerConnection) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(session.peer_certificates()?.first()?))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|reason| TlsError::Unreadable { path: path.to_owned(), reason })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| malformed(path, "certificate", e.to_string()))?;
    if certificates.is_empty() {
        return Err(malformed(path, "certificate", "no certificate found".into()));
    }
    Ok(certificates)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|e| TlsError::Malformed {
        path: path.to_owned(),
        what: "private key",
        reason: e.to_string(),
        hint: "it must be PEM, not encrypted, beginning with -----BEGIN PRIVATE KEY----- (or RSA or EC PRIVATE KEY)",
    })
}

fn malformed(path: &Path, what: &'static str, reason: String) -> TlsError {
    TlsError::Malformed {
        path: path.to_owned(),
        what,
        reason,
        hint: "it must be PEM, with lines -----BEGIN CERTIFICATE-----; convert DER with openssl x509 -inform der",
    }
}
