//! MLLP, one message in flight per connection, ADT of 1 KB, durable before AA, against a bare tokio sink that parses and
//! stores nothing; the same load, alternating in the same run.
//!
//! - *accepting*: delivery paused; limit: at least a third of the bare sink's rate, at 16 and at 256 connections
//! - *sustained*: delivery to a bare sink and the views running, the backlog not growing; at least an eighth. The node
//!   pushes back at a small backlog, so that what it accepts is what it also delivers and folds.
//!
//! The *bare sink, rusqlite* does one thing more: before it answers, a thread commits what waits, bodies only, in groups to SQLite
//! (WAL, synchronous FULL). It says how much of the distance to the bare sink is the disk's and SQLite's.
//!
//! `cargo bench --bench mllp`; `HIE_BENCH_SECONDS`, `HIE_BENCH_ROUNDS`, `HIE_BENCH_CONNECTIONS=16,256`.

mod common;
#[path = "../tests/harness/mod.rs"]
mod harness;

use common::mllp::Sender;
use common::{Figures, Peer, Series, load, phase, ratio, rounds, table};
use harness::node::{Node, free_port, metric};
use harness::{Builder, channels};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn main() {
    common::play_role();
    let bare = Peer::start("--bare-mllp", free_port());
    let kept = Peer::start("--bare-durable", free_port());
    let receiver = Peer::start("--bare-mllp", free_port());
    let mut rows = Vec::new();
    for connections in connections() {
        let [mut limit, mut durable, mut accepting, mut sustained] = std::array::from_fn(|_| Series::default());
        let mut notes = Vec::new();
        for _ in 0..rounds() {
            limit.add(send(bare.1, connections, phase()));
            durable.add(send(kept.1, connections, phase()));
            let node = start(receiver.1, true);
            send(node.mllp, connections, Duration::from_millis(500));
            accepting.add(send(node.mllp, connections, phase()));
            drop(node);
            let (figures, note) = sustain(&start(receiver.1, false), connections);
            sustained.add(figures);
            notes.push(note);
        }
        for (what, series, least) in [
            ("bare sink", &limit, 0.0),
            ("bare sink, rusqlite", &durable, 0.0),
            ("accepting, paused", &accepting, 1.0 / 3.0),
            ("sustained", &sustained, 1.0 / 8.0),
        ] {
            rows.push(vec![
                connections.to_string(),
                what.to_owned(),
                format!("{:.0}", series.rate()),
                format!("{:.2}", series.ms(0.5)),
                format!("{:.2}", series.ms(0.99)),
                series.failed().to_string(),
                match what {
                    "bare sink" => "the limit".to_owned(),
                    "bare sink, rusqlite" => format!("{:.3}", series.rate() / limit.rate()),
                    _ => ratio(series.rate(), limit.rate(), least),
                },
            ]);
        }
        notes.iter().for_each(|n| println!("{connections} connections, sustained: {n}"));
    }
    table(&["connections", "what", "messages/s", "p50 ms", "p99 ms", "failed", "of the bare sink's rate"], &rows);
}

fn connections() -> Vec<usize> {
    let text = std::env::var("HIE_BENCH_CONNECTIONS").unwrap_or_else(|_| "16,256".to_owned());
    text.split(',').map(|n| n.trim().parse().expect("HIE_BENCH_CONNECTIONS: numbers with commas between")).collect()
}

fn start(receiver: SocketAddr, paused: bool) -> Node {
    let target = format!("mllp = [\"{receiver}\"]");
    let more = if paused { "paused = true" } else { "in_flight = 64" };
    // Paused: room for all that comes; else the node pushes back at a small backlog.
    let pending = if paused { 50_000_000 } else { 5_000 };
    Builder::new()
        .node("cluster = \"auto\"")
        .section(&format!("[limits]\nmax_pending = {pending}\n"))
        .channel(channels::queue("bench.adt", "true") + &channels::route("sink", &target, more))
        .start()
}

fn send(to: SocketAddr, connections: usize, span: Duration) -> Figures {
    load(connections, span, move |number| Sender::connect(to, number))
}

/// Accepts under load, and takes off what the backlog and the views' lag grew by meanwhile.
fn sustain(node: &Node, connections: usize) -> (Figures, String) {
    let backlog = || {
        let text = node.metrics();
        let of = |name: &str| metric(&text, name).unwrap_or_else(|| panic!("no {name} in /metrics"));
        [of("hie_messages_pending"), of("hie_ledger_view_lag"), of("hie_messages_accepted_total")]
    };
    send(node.mllp, connections, Duration::from_secs(2));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Looked at while the load runs: at its end all is quickly worked off.
        let watcher = scope.spawn(|| {
            let mut seen = vec![backlog()];
            while !done.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(200));
                seen.push(backlog());
            }
            seen
        });
        let mut figures = send(node.mllp, connections, phase());
        done.store(true, Ordering::SeqCst);
        let seen = watcher.join().expect("the watcher");
        // The last look may come after the load's end: the one before it counts.
        let (first, last) = (seen[0], seen[seen.len().saturating_sub(2)]);
        let grown = (last[0] - first[0]).max(0.0) + (last[1] - first[1]).max(0.0);
        figures.count = figures.count.saturating_sub(grown as u64);
        let most = |n: usize| seen.iter().map(|s| s[n]).fold(0.0, f64::max);
        let note = format!(
            "{:.0} accepted, pending {} → {} (at most {}), views behind {} → {} (at most {})",
            last[2] - first[2],
            first[0],
            last[0],
            most(0),
            first[1],
            last[1],
            most(1)
        );
        (figures, note)
    })
}
