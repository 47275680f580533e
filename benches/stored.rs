//! What a full ledger costs. `HIE_STORED` transactions are sent in first (default 200,000; 10,000,000 for the figure that
//! counts), then, full against empty, alternating in the same run:
//!
//! - accept rate, delivery paused: at least 90 % of the empty node's
//! - look-ups by id, MSH-10 and patient, hits and misses: under 50 ms
//! - start to ready: at most 1 s
//!
//! `HIE_STORED=10000000 cargo bench --bench stored`; `HIE_STORED_DIR` keeps the store for another run.

mod common;
#[path = "../tests/harness/mod.rs"]
mod harness;

use common::mllp::Sender;
use common::{Figures, Peer, Series, load, median, number, phase, ratio, rounds, table};
use harness::node::{Node, free_port, metric};
use harness::{Builder, Rng, channels, http, ledger};
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 128;

fn main() {
    common::play_role();
    let wanted = number("HIE_STORED", 200_000);
    let receiver = Peer::start("--bare-mllp", free_port());
    let mut full = node(receiver.1, std::env::var_os("HIE_STORED_DIR").map(Into::into));
    fill(&full, wanted);
    let known = samples(&full);
    full.stop(Duration::from_secs(60));

    // From here on deliveries wait, so that only accepting is measured.
    let pause = |node: &mut Node| {
        node.setup.channels[0] += "paused = true\n";
        node.write_config();
        node.start()
    };
    let mut ready = vec![pause(&mut full).as_secs_f64()];
    for _ in 0..4 {
        full.stop(Duration::from_secs(60));
        ready.push(full.start().as_secs_f64());
    }
    let looks = look_ups(&full, &known);
    let (mut of_full, mut of_empty) = (Series::default(), Series::default());
    for _ in 0..rounds() {
        let mut empty = node(receiver.1, None);
        empty.stop(Duration::from_secs(30));
        pause(&mut empty);
        for node in [&empty, &full] {
            send(node.mllp, Duration::from_millis(500));
        }
        of_empty.add(send(empty.mllp, phase()));
        of_full.add(send(full.mllp, phase()));
    }
    let mut rows = vec![vec![
        format!("accept rate, {CONNECTIONS} connections"),
        format!("{:.0}/s, empty {:.0}/s", of_full.rate(), of_empty.rate()),
        ratio(of_full.rate(), of_empty.rate(), 0.9),
    ]];
    for (what, all) in looks {
        let worst = all.iter().copied().fold(0.0, f64::max);
        rows.push(vec![
            format!("{what}, {} look-ups", all.len()),
            format!("median {:.2} ms, worst {worst:.2} ms", median(all)),
            ratio(50.0, worst, 1.0),
        ]);
    }
    let start = median(ready);
    rows.push(vec!["start to ready".into(), format!("{:.0} ms", start * 1000.0), ratio(1.0, start, 1.0)]);
    println!("{wanted} transactions stored, resident memory {} MiB", full.rss_kib() / 1024);
    table(&["what", "measured", "of the limit (limit over measured for times)"], &rows);
}

fn node(receiver: SocketAddr, store: Option<std::path::PathBuf>) -> Node {
    let mut builder = Builder::new().node("cluster = \"auto\"").patience(Duration::from_secs(60));
    if let Some(store) = store {
        builder = builder.store(store);
    }
    let target = format!("mllp = [\"{receiver}\"]");
    builder
        .section("[ledger]\nmax_size = \"200 GiB\"\n[limits]\nmax_pending = 50000000\n")
        .channel(channels::queue("bench.adt", "true") + &channels::route("sink", &target, "in_flight = 64"))
        .start()
}

fn send(to: SocketAddr, span: Duration) -> Figures {
    load(CONNECTIONS, span, move |number| Sender::connect(to, number))
}

/// Sends until so many are stored, with rests in which deliveries and views catch up.
fn fill(node: &Node, wanted: u64) {
    let begin = Instant::now();
    let mut stored = 0;
    while stored < wanted {
        stored += send(node.mllp, Duration::from_secs(5)).count;
        while metric(&node.metrics(), "hie_messages_pending").unwrap_or(0.0) > 200_000.0 {
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("filling: {stored} of {wanted} after {:.0} s", begin.elapsed().as_secs_f64());
    }
    assert!(ledger::settled(node, Duration::from_secs(1800)), "deliveries and views did not catch up");
    println!("filled and settled after {:.0} s", begin.elapsed().as_secs_f64());
}

/// Ids, control ids and patients of transactions all over the store.
fn samples(node: &Node) -> Vec<(String, String, String)> {
    let newest = node.get("/transactions?filterLimit=100&filterRepresentation=simpledetails").json();
    let mut known: Vec<_> = newest.as_array().into_iter().flatten().map(sample).collect();
    // The oldest: the first messages of each connection.
    for number in 0..CONNECTIONS {
        let id = Sender::id(number, 1 + number as u64);
        let answer = node.get(&format!("/transactions?controlId={id}&filterRepresentation=simpledetails")).json();
        known.extend(answer.as_array().into_iter().flatten().map(sample));
    }
    assert!(known.len() > 50, "samples of the store");
    Rng::new(5).shuffle(&mut known);
    known
}

fn sample(row: &serde_json::Value) -> (String, String, String) {
    let text = |v: &serde_json::Value| ledger::text(v).to_owned();
    (text(&row["_id"]), ledger::control_id(row), text(&row["hie"]["patients"][0]))
}

/// Milliseconds of each look-up, by kind.
fn look_ups(node: &Node, known: &[(String, String, String)]) -> Vec<(&'static str, Vec<f64>)> {
    let authorization = format!("Bearer {}", node.token());
    let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
    let mut client = http::Client::connect(node.admin, Duration::from_secs(60)).expect("the management API");
    let mut timed = |method: &str, path: &str, body: &str, hit: bool| {
        let begin = Instant::now();
        let answer = client.request(method, path, &headers, body.as_bytes()).expect("an answer");
        let ms = begin.elapsed().as_secs_f64() * 1000.0;
        let found = answer.status == 200 && answer.body != b"[]";
        assert_eq!(found, hit, "{method} {path}: {} {}", answer.status, answer.text());
        ms
    };
    let mut all = [const { Vec::new() }; 6];
    for (number, (id, control_id, patient)) in known.iter().enumerate() {
        let missing = format!("MISSING{number}");
        let unknown_id = format!("{}-8fff-{number:012x}", &id[..18]);
        let by_patient = |p: &str| json!({"patient": p, "filterLimit": 20}).to_string();
        all[0].push(timed("GET", &format!("/transactions/{id}"), "", true));
        all[1].push(timed("GET", &format!("/transactions/{unknown_id}"), "", false));
        all[2].push(timed("GET", &format!("/transactions?controlId={control_id}"), "", true));
        all[3].push(timed("GET", &format!("/transactions?controlId={missing}"), "", false));
        all[4].push(timed("POST", "/transactions/search", &by_patient(patient), true));
        all[5].push(timed("POST", "/transactions/search", &by_patient(&missing), false));
    }
    let names = ["by id", "by id, missing", "by MSH-10", "by MSH-10, missing", "by patient", "by patient, missing"];
    names.into_iter().zip(all).collect()
}
