//! Outbound gateways: HTTP, MLLP, files, and the balancing over targets. They carry bytes and report what came
//! back; whether that means delivered, again or parked is the engine's to judge.
//! [`notify`] carries alerts to those who want to hear of them.

pub mod balance;
mod file;
mod http;
pub(crate) mod mllp;
pub mod notify;
pub mod tls;

use crate::{
    channel::Route,
    engine::ports::{Connector, SendError},
    telemetry::outbound::Exchange,
};
use balance::{Lease, Targets};
use std::sync::Arc;

/// A route that cannot be carried out as configured; says what to correct.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// None or several of `http`, `mllp`, `file`.
    #[error("route {0:?}: give exactly one of `http`, `mllp` and `file`")]
    Kind(String),
    /// A target that is no address.
    #[error("target {target:?}: {reason}")]
    Target { target: String, reason: String },
    /// A pattern that is no file name.
    #[error("file name {0:?}: at most 100 bytes, no `/`, not only dots")]
    FileName(String),
    /// A method that HTTP does not know the form of.
    #[error("method {0:?} is not an HTTP method")]
    Method(String),
    /// A header that cannot be set.
    #[error("header {0:?}: {1}")]
    Header(String, &'static str),
    /// Certificates, keys, names.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The HTTP client cannot be made.
    #[error("HTTP client: {0}")]
    Client(String),
}

/// The way out of `route` of `channel` (full name). To be called inside the runtime that will use it: its connections
/// belong to that runtime. `health` is [`Targets::new`] of the same route, one for all its connectors.
pub fn connector(channel: &str, route: &Route, health: Arc<Targets>) -> Result<Arc<dyn Connector>, ConnectorError> {
    let kind_error = || ConnectorError::Kind(format!("{channel}/{}", route.name));
    match (route.http.is_empty(), route.mllp.is_empty(), &route.file) {
        (false, true, None) => Ok(Arc::new(http::HttpConnector::new(route, health)?)),
        (true, false, None) => Ok(Arc::new(mllp::MllpConnector::new(route, health)?)),
        (true, true, Some(target)) => Ok(Arc::new(file::FileConnector::new(&route.name, target, health)?)),
        _ => Err(kind_error()),
    }
}

/// The names of a route's targets, in order: `host:port`, a URL without credentials and query, or a folder.
fn target_names(route: &Route) -> Vec<String> {
    let urls = route.http.iter().map(|url| http::display_name(url));
    let folder = route.file.iter().map(|f| f.directory.display().to_string());
    urls.chain(route.mllp.iter().cloned()).chain(folder).collect()
}

fn not_sent(target: &str, reason: impl Into<String>) -> SendError {
    SendError::NotSent { target: target.into(), reason: reason.into() }
}

fn unsendable(target: &str, reason: impl Into<String>) -> SendError {
    SendError::Unsendable { target: target.into(), reason: reason.into() }
}

/// How each reason begins that is the store's fault and not the receiver's.
const STORED_BODY: &str = "the stored body";

fn broken(target: &str, reason: impl Into<String>) -> SendError {
    let (target, reason) = (target.into(), reason.into());
    // Through the HTTP client only the text of the cause comes back.
    if reason.starts_with(STORED_BODY) { SendError::Unreadable { target, reason } } else { SendError::Broken { target, reason } }
}

/// Counts a failed exchange against its target.
fn count_failure(lease: &Lease, error: &SendError) {
    lease.failed(match error {
        // The message's fault or the store's, not the target's.
        SendError::Unsendable { .. } | SendError::Unreadable { .. } => return,
        SendError::NotSent { .. } => Exchange::NotSent,
        SendError::Broken { .. } => Exchange::Broken,
        SendError::Timeout { .. } => Exchange::Timeout,
    });
}
