//! TLS as a client: trusted authorities, our own certificate, and the name to expect.

/// What it is made of, named here for those who use nothing else of channels.
pub use crate::channel::ClientTls;
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
    /// A PEM file holds nothing usable. `key`: the one that names it.
    #[error("TLS {what} (`{key}`) in {}: {reason}; it must be PEM, not encrypted, with lines -----BEGIN", path.display())]
    Pem { what: &'static str, key: &'static str, path: PathBuf, reason: String },
    /// A PEM file that is not there or cannot be read.
    #[error("TLS {what} (`{key}`): {} cannot be read: {reason}; it must exist and be readable by the user that hie runs as", path.display())]
    Unreadable { what: &'static str, key: &'static str, path: PathBuf, reason: std::io::Error },
    /// A certificate without a key, or the other way round.
    #[error("TLS: `cert` and `key` are given together or not at all")]
    HalfPair,
    /// Certificate and key do not belong together, or are of a kind that is not supported.
    #[error("TLS: certificate {} and key {} cannot be used together: {reason}; make sure that the key belongs to the first certificate of the file",
        cert.display(), key.display())]
    Mismatch { cert: PathBuf, key: PathBuf, reason: rustls::Error },
    /// `server_name` is no host name or address.
    #[error("TLS: `server_name` {0:?} is not a host name; write the name or address that stands in the receiver's certificate")]
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
            for certificate in certificates("authorities", "ca", path)? {
                roots.add(certificate).map_err(|e| pem_error("authorities", "ca", path, e))?;
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
            let chain = certificates("certificate", "cert", cert)?;
            let der = PrivateKeyDer::from_pem_slice(&read("private key", "key", key)?);
            let der = der.map_err(|e| pem_error("private key", "key", key, e))?;
            let mismatch = |reason| TlsError::Mismatch { cert: cert.clone(), key: key.clone(), reason };
            builder.with_client_auth_cert(chain, der).map_err(mismatch)?
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

fn read(what: &'static str, key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|reason| TlsError::Unreadable { what, key, path: path.into(), reason })
}

fn certificates(what: &'static str, key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(what, key, path)?).collect();
    let list = list.map_err(|e| pem_error(what, key, path, e))?;
    if list.is_empty() {
        return Err(pem_error(what, key, path, "no certificate in it"));
    }
    Ok(list)
}

fn pem_error(what: &'static str, key: &'static str, path: &Path, reason: impl ToString) -> TlsError {
    TlsError::Pem { what, key, path: path.into(), reason: reason.to_string() }
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
