//! Inbound gateways: they take messages off the wire or out of a folder, hand them to the engine's
//! [`Intake`](crate::engine::ports::Intake) and write its answer. They decide nothing about a message.
//!
//! - [`mllp`]: HL7 v2 over MLLP and MLLPS
//! - [`http`]: HTTP/1.1 and 2, plain and TLS
//! - [`folder`]: watched folders
//! - [`tls`]: TLS as a server
//! - [`expiry`]: when its certificates end
//! - [`connections`]: the table of open connections, shared by all accepting instances
//!
//! Each accepting instance calls `serve` with a listener of its own inside its own runtime; what the instances
//! share (limits, TLS, configuration) is in the settings behind an `Arc`.

mod accept;
pub mod connections;
mod drain;
pub mod expiry;
pub mod folder;
pub mod http;
pub mod mllp;
mod peer;
pub mod tls;

use crate::{
    engine::ports::{Credentials, Denied, Intake, Refusal},
    telemetry::inbound::Outcome,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// The name the engine gives senders without an identity.
pub const ANONYMOUS: &str = "anonymous";

/// How long a closing connection still reads (and discards) what the peer sends, so that the answer written
/// last is not destroyed by a reset.
const LINGER: Duration = Duration::from_secs(1);

/// The metric's word for a refusal.
fn outcome(refusal: &Refusal) -> Outcome {
    match refusal {
        Refusal::Unreadable(_) => Outcome::Unreadable,
        Refusal::NoChannel => Outcome::NoChannel,
        Refusal::NotAllowed => Outcome::NotAllowed,
        Refusal::TooLarge { .. } => Outcome::TooLarge,
        Refusal::RateLimited { .. } => Outcome::RateLimited,
        Refusal::Busy(..) => Outcome::Busy,
        Refusal::Store => Outcome::Store,
        Refusal::Upstream(_) => Outcome::Upstream,
        Refusal::UpstreamTimeout => Outcome::UpstreamTimeout,
        Refusal::Aborted => Outcome::Aborted,
        Refusal::TooSlow => Outcome::TooSlow,
        Refusal::Unsendable(_) => Outcome::Unsendable,
    }
}

/// Asks the engine who this is and applies the listener's `client` (a name for senders who prove none) and
/// `require_client`.
async fn identify(
    intake: &dyn Intake,
    listener: &str,
    peer: Option<SocketAddr>,
    credentials: &Credentials,
    named: Option<&Arc<str>>,
    required: bool,
) -> Result<Arc<str>, Denied> {
    let client = intake.identify(listener, peer, credentials).settled().await?;
    if &*client != ANONYMOUS {
        return Ok(client);
    }
    match named {
        Some(name) => Ok(name.clone()),
        None if required => Err(Denied::Unauthenticated),
        None => Ok(client),
    }
}
