//! What the nodes of a domain hand each other over the management API: who asks shows that he has the domain's secret, and what he
//! is given is sealed with it, so that bodies never cross a network in the open and nobody else can give any.
//!
//! [`seal`] is the proof and the sealing, for both sides; [`client`] is the asking side. What is handed over is the caller's matter.

mod client;
mod seal;

pub use client::{Peer, PeerError};
pub use seal::{Broken, Nonce, Opener, Sealer, Secret};

/// Where a peer tells which files of its ledger it offers; with `?roll=true` it closes the one that it writes first.
pub const LEDGER: &str = "/peer/ledger";
/// Scheme of `Authorization`: `HIE-Domain NONCE PROOF`, both hexadecimal.
pub const SCHEME: &str = "HIE-Domain";
/// Header of a request: the asking node's name, for the log.
pub const NODE: &str = "x-hie-node";
/// Header of an answer: the answering side's nonce, hexadecimal; the body is sealed.
pub const SEAL: &str = "x-hie-seal";
