//! Shows that the tests for the promises can fail: three deliberately broken builds, each turned red by the named test's
//! own judge.
//!
//! | build | what is taken away | turned red by |
//! |---|---|---|
//! | `--features break-fsync` | the fsync of each commit | `fsync_trace.rs` |
//! | `--features break-ack` | acknowledging only after the commit | `durability.rs` (lost) |
//! | `--features break-order` | one message of a key at a time | `order.rs` and, on two nodes over three brokers, the judges of `cluster_chaos.rs` (out of order) |
//!
//! A fourth, `--features break-panic`, panics on demand: `panics.rs` sees that the node goes on and tells nothing of what
//! it was working on. `tests/run` builds them beforehand; see `harness/broken.rs`.

mod cluster_support;
mod harness;

use cluster_support::judge::told_everywhere;
use cluster_support::{Cluster, Plan};
use harness::broken::build as broken;
use harness::sender::Lookup;
use harness::{Behaviour, Doubles, Load, Rng, Via, channels, check, scenario, traced};
use std::net::SocketAddr;
use std::sync::Arc;
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

/// A cluster of nodes of the broken build, nothing else going wrong, before the judges of `cluster_chaos.rs`.
#[test]
fn breaking_the_order_turns_the_cluster_judges_red() {
    let mut rng = Rng::from_env("break-order cluster");
    let cluster = Cluster::start(Plan { servers: 0, nodes: 2, ..Plan::default() });
    // Slow enough for a key's messages to wait for one another.
    let failing = Behaviour { close: 0.02, reject: 0.05, delay: Duration::from_millis(20), ..Behaviour::default() };
    let receiver = cluster.receiver(false, failing, rng.split());
    let node = |n: usize| {
        let builder = cluster.node(n).binary(broken("break-order")).section(&cluster.rabbitmq(""));
        builder.channel(channels::all_to(&receiver)).start()
    };
    let nodes = [node(1), node(2)];
    let addresses: Vec<SocketAddr> = nodes.iter().map(|n| n.mllp).collect();
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let lookup = Lookup(Arc::new(move || {
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        vec![addresses[turn % addresses.len()]]
    }));
    let load = Load { keys: 1, count: Some(60), seed: rng.next(), ..Load::new(Via::MllpNamed(lookup)) };
    let sent = load.run(Duration::from_secs(30));
    receiver.wait_for(&sent, Duration::from_secs(20));
    let told = check(&sent, &receiver.arrivals(), Doubles::Counted).map(drop);
    let everywhere = told_everywhere(&nodes.each_ref(), &[&sent], 20, &mut rng, Duration::from_secs(20));
    println!("what the nodes tell: {everywhere:?}");
    must_be_red("break-order in a cluster", told, &[" out of order: "]);
}
