//! Tries to break: **acknowledged means durable**, **delivered at least once, in order per key**, the sender's resend is
//! recognised, and **any node may die at any instant**: kill -9 at random moments, under load, with receivers that fail
//! at random too. 30 kills; `HIE_KILLS=200` in `tests/run --full`.
//!
//! kill -9 forgives a missing fsync (the page cache survives): `fsync_trace.rs` looks for that. The build that
//! acknowledges before the commit and the one that breaks the order turn this test's checker red (`broken_builds.rs`).

mod harness;

use harness::{Rng, env_number};
use std::time::Duration;

#[test]
fn nothing_acknowledged_is_lost_and_order_holds_over_kills() {
    let mut rng = Rng::from_env("durability");
    let told = harness::scenario::kills(harness::node::binary(), &mut rng, env_number("HIE_KILLS", 30), Duration::from_secs(90));
    told.unwrap_or_else(|fault| panic!("{fault}"));
}
