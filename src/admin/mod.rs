//! The management API: health, metrics, transactions, tasks, channels, clients, routes.
//!
//! It has a thread and a runtime of its own, health another pair: neither a burst of messages nor a long search keeps an operator or
//! a balancer waiting. Resource names and JSON shapes follow OpenHIM's API (<https://openhim.org/docs/api/>), so that
//! existing scripts keep working; what OpenHIM has no word for is under `hie`.

mod alerts;
mod auth;
mod caching;
mod channels;
mod clients;
mod cluster;
mod delivery;
mod error;
mod extract;
pub mod feed;
mod files;
mod filter;
pub mod health;
mod openapi;
mod peers;
mod places;
mod records;
mod routes;
mod serve;
mod shared;
mod stats;
mod status;
mod tasks;
mod token;
mod transactions;
mod view;

pub use cluster::Cluster;
pub use peers::Peers;
pub use records::{Detail, Hit, Query, Records, RecordsError};
pub use routes::mounted;
pub use token::{Token, TokenError};

use crate::{
    alert::Alerts,
    engine::{directory::Directory, ports::Control},
};
use std::{
    io,
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// What the management API works on.
pub struct AdminState {
    /// The engine.
    pub control: Arc<dyn Control>,
    /// The ledger.
    pub records: Arc<dyn Records>,
    /// The node among others.
    pub cluster: Arc<dyn Cluster>,
    /// Held while the channels in force are changed, here or elsewhere.
    pub changes: Arc<Mutex<()>>,
    /// The clients in force.
    pub directory: Arc<Directory>,
    /// Folder of channel files.
    pub channels: PathBuf,
    /// Folder of client files.
    pub clients: PathBuf,
    /// What callers must show.
    pub token: Token,
    /// What `/status` says about the node.
    pub info: Info,
    /// The node's alerts.
    pub alerts: Arc<Alerts>,
    /// Cancelled by `POST /drain`: the node finishes what is in hand and ends.
    pub drain: CancellationToken,
    /// The live feed.
    pub feed: Arc<feed::Feed>,
    /// What other nodes of the domain may copy; `None`: nothing.
    pub peers: Option<Peers>,
}

/// The node, as `/status` shows it.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its name.
    pub node: String,
    /// Its domain.
    pub domain: String,
    /// Version of the program.
    pub version: String,
}

/// Serves on a thread of its own until `stop`; then requests in hand get five seconds.
/// Fails when the thread or its runtime cannot be started.
pub fn spawn(listener: TcpListener, state: AdminState, stop: CancellationToken) -> io::Result<JoinHandle<()>> {
    let app = shared::Shared::new(state);
    serve::spawn("hie-admin", "admin", listener, routes::router(app.clone()), Some(app), stop)
}
