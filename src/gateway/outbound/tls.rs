//! TLS as a client: trusted authorities, our own certificate, and the name to expect.

use crate::channel::ClientTls;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

/// Why a TLS configuration cannot be used. Names the file and what to look at.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read or holds nothing usable.
    #[error("TLS {what} in {}: {reason}", path.display())]
    Pem { what: &'static str, path: PathBuf, reason: String },
    /// A certificate without a key, or the other way round.
    #[error("TLS: `cert` and `key` are given together or not at all")]
    HalfPair,
    /// `server_name` is no host name or address.
    #[error("TLS: `server_name` {0:?} is not a host name")]
    ServerName(String),
    /// rustls does not take it; its reason.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// The authorities cannot be used to verify with.
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

static PUBLIC_ROOTS: LazyLock<Arc<RootCertStore>> =
    LazyLock::new(|| Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }));

/// The rustls configuration for `tls`; `alpn` in order of preference, empty for none.
///
/// Reads the PEM files once: a renewed certificate is taken when the channel is loaded again.
pub fn client_config(tls: &ClientTls, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = match &tls.ca {
        None => PUBLIC_ROOTS.clone(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("authorities", path)? {
                roots.add(certificate).map_err(|e| pem_error("authorities", path, e))?;
            }
            Arc::new(roots)
        }
    };
    let verifier: Arc<dyn ServerCertVerifier> = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let verifier = match &tls.server_name {
        None => verifier,
        Some(name) => {
            let name = ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name.clone()))?;
            Arc::new(NamedVerifier { inner: verifier, name })
        }
    };
    // "dangerous" because a verifier could be lax; this one is rustls' own, at most asked for another name.
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match (&tls.cert, &tls.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let chain = certificates("certificate", cert)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| pem_error("key", key, e))?;
            builder.with_client_auth_cert(chain, key)?
        }
        _ => return Err(TlsError::HalfPair),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

/// The name to ask for and to expect of a target's host (an address may stand in brackets).
pub fn server_name(tls: &ClientTls, host: &str) -> Result<ServerName<'static>, TlsError> {
    let name = tls.server_name.as_deref().unwrap_or(host).trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| pem_error(what, path, e))?.collect();
    let list = list.map_err(|e| pem_error(what, path, e))?;
    if list.is_empty() {
        return Err(pem_error(what, path, "no certificate in it"));
    }
    Ok(list)
}

fn pem_error(what: &'static str, path: &Path, reason: impl ToString) -> TlsError {
    TlsError::Pem { what, path: path.into(), reason: reason.to_string() }
}

/// Verifies against a fixed name instead of the one that was dialled.
#[derive(Debug)]
struct NamedVerifier {
    inner: Arc<dyn ServerCertVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for NamedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
