//! Shows that the tests for the promises can fail: three deliberately broken builds, each turned red by the named test's
//! own judge.
//!
//! | build | what is taken away | turned red by |
//! |---|---|---|
//! | `--features break-fsync` | the fsync of each commit | `fsync_trace.rs` |
//! | `--features break-ack` | acknowledging only after the commit | `durability.rs` (lost) |
//! | `--features break-order` | one message of a key at a time | `order.rs` (out of order) |
//!
//! A fourth, `--features break-panic`, panics on demand: `panics.rs` sees that the node goes on and tells nothing of what
//! it was working on. `tests/run` builds them beforehand; see `harness/broken.rs`.

mod harness;

use harness::broken::build as broken;
use harness::{Rng, scenario, traced};
use std::time::Duration;

fn must_be_red(what: &str, told: Result<(), String>, because: &[&str]) {
    match told {
        Ok(()) => panic!("{what}: the test stayed green on a broken build"),
        Err(fault) => {
            println!("{what}: red as it must be: {fault}");
            assert!(because.iter().any(|b| fault.contains(b)), "{what}: red for another reason: {fault}");
        }
    }
}

#[test]
fn without_fsync_the_trace_turns_red() {
    must_be_red("break-fsync", traced::run(broken("break-fsync")), &["no fsync of it completed"]);
}

#[test]
fn acknowledging_before_the_commit_turns_the_kill_test_red() {
    let mut rng = Rng::from_env("break-ack");
    let told = scenario::kills(broken("break-ack"), &mut rng, 15, Duration::from_secs(10));
    must_be_red("break-ack", told, &[" lost: ", "no transaction"]);
}

#[test]
fn breaking_the_order_turns_the_order_test_red() {
    let mut rng = Rng::from_env("break-order");
    must_be_red("break-order", scenario::order(broken("break-order"), &mut rng, 500), &[" out of order: "]);
}
