//! When a listener's certificates end.

use crate::config::ServerTls;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::path::Path;

/// End (Unix seconds) of the certificate that `tls` serves with, and of its first authority for client certificates to end:
/// `certificate`, `client_ca`. What cannot be read is left out: opening the listener has told it.
pub fn ends(tls: &ServerTls) -> Vec<(&'static str, i64)> {
    let own = first_end(&tls.cert, 1).map(|end| ("certificate", end));
    let authority = tls.client_ca.as_deref().and_then(|path| first_end(path, usize::MAX)).map(|end| ("client_ca", end));
    own.into_iter().chain(authority).collect()
}

fn first_end(path: &Path, most: usize) -> Option<i64> {
    let certificates = CertificateDer::pem_file_iter(path).ok()?.flatten().take(most);
    let end = |der: CertificateDer<'_>| Some(x509_parser::parse_x509_certificate(&der).ok()?.1.validity().not_after.timestamp());
    certificates.filter_map(end).min()
}
