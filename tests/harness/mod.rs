//! The harness for durability and order: it drives a node from outside, as its neighbours and operators do, and uses
//! nothing of the crate, so that it is an independent witness.
//!
//! - [`node`]: a node in a folder of its own: start, stop, kill -9, upgrade, memory, management API, metrics
//! - [`sender`]: connections that remember what was acknowledged and send again what was not
//! - [`receiver`]: receivers that remember what came in which order, and fail as they are told
//! - [`channels`], [`ledger`]: channel files, and what the management API tells of transactions
//! - [`canary`]: strings that nothing may tell, and the search for them
//! - [`chaos`]: kill -9 at random moments
//! - [`checker`]: acknowledged ⊆ delivered, order per key, doubles; prints the counts, fails with the offenders
//! - [`wire`], [`http`], [`peer`]: MLLP framing, HL7 fields and HTTP/1.1, just enough and on their own
//! - [`scenario`]: the durability and order runs, for the real build and the broken ones
//! - [`broken`]: the deliberately broken builds; [`journal`]: stand-ins for journald and systemd
//! - [`parts`]: Consul, RabbitMQ and others as Debian has them; [`cgroup`]: a control group with a unit's limits
//! - [`trace`]: what strace saw, read; [`traced`]: the run that it watched, and its judge
//! - [`sse`]: a reader of the live feed
//! - [`rng`]: seeded chance; `HIE_SEED` repeats a run
#![allow(dead_code, unused_imports)] // each test uses a part of it

pub mod broken;
pub mod canary;
pub mod cgroup;
pub mod channels;
pub mod chaos;
pub mod checker;
pub mod corpus;
pub mod http;
pub mod journal;
pub mod ledger;
pub mod node;
pub mod parts;
pub mod peer;
pub mod receiver;
pub mod rng;
pub mod scenario;
pub mod sender;
pub mod sse;
pub mod trace;
pub mod traced;
pub mod wire;

pub use checker::{Doubles, check};
pub use node::{Builder, Node};
pub use peer::Peer;
pub use receiver::{Behaviour, Receiver};
pub use rng::Rng;
pub use sender::{Load, Sent, Via};
pub use sse::Reader;

use std::time::{Duration, Instant};

/// A number from the environment (`--full` runs set larger ones), or the default.
pub fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Waits until `done`, looking every 20 ms; false when `limit` has passed.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
