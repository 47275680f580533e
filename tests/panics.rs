//! Tries to break: **one instance panicking never takes the others down**, and the privacy of panics. The build
//! `break-panic` panics where a body asks for it, with that body as the panic's message: in a connection's task, in a
//! listener's task, and in an accepting instance itself. The other connections and instances go on, the instance comes
//! back on the same port, nothing acknowledged is lost, and no log line, metric or journal entry tells a word of the body.

mod harness;

use harness::channels::all_to;
use harness::http::once;
use harness::journal::{Inbox, under_systemd};
use harness::wire::Tag;
use harness::wire::{adt, frame, text};
use harness::{Builder, Doubles, Load, Node, Peer, Receiver, Via, check, wait_until};
use std::time::Duration;

const CANARY: &str = "ZZPANICZZ";

/// A message that makes the node panic and would be told by the panic's own message.
fn marked(marker: &str, id: &str) -> Vec<u8> {
    format!("MSH|^~\\&|A|B|C|D|20260101||ADT^A08|{id}|P|2.5\rPID|1||{CANARY}||{CANARY}^{CANARY}\rNTE|1||{marker}\r").into_bytes()
}

fn plain(number: usize, round: &str) -> Vec<u8> {
    adt(&Tag { key: format!("K{number}{round}"), seq: 1, id: format!("P{number}{round}") }, 300, "")
}

/// Whether the connection still takes and answers a message.
fn lives(peer: &mut Peer, number: usize, round: &str) -> bool {
    let sent = peer.raw(&frame(&plain(number, round)));
    sent.is_ok() && matches!(peer.answer(), Ok(Some(answer)) if text(&answer, "MSA", 1) == "AA")
}

fn restarts(node: &Node, wanted: f64) {
    let came = wait_until(Duration::from_secs(10), || node.metric("hie_instance_restarts_total") == Some(wanted));
    assert!(came, "{wanted} restarts of an instance\n{}", node.log_tail(20));
}

/// Panics everywhere under load; everything that the node said, and its metrics.
fn panics(builder: Builder) -> (Node, String) {
    let receiver = Receiver::willing();
    let node = builder
        .binary(harness::broken::build("break-panic"))
        .node("cluster = 2")
        .env("HIE_LOG", "trace")
        .env("RUST_BACKTRACE", "1")
        .channel(all_to(&receiver))
        .start();
    let load = Load { connections: 6, rate: Some(200.0), ..Load::new(Via::Mllp(node.mllp)) }.start();
    // Enough for both instances to hold some of them.
    let mut peers: Vec<Peer> = (0..24).map(|_| Peer::connect(node.mllp)).collect();

    // A connection's task: that connection ends without an acknowledgment, and no other.
    let mut victim = Peer::connect(node.mllp);
    victim.raw(&frame(&marked("BREAK-TASK", "T1"))).expect("sent");
    assert!(!matches!(victim.answer(), Ok(Some(_))), "nothing is acknowledged");
    let by_http = once(node.http, "POST", "/x", &[], &marked("BREAK-TASK", "T2"));
    assert!(by_http.map_or(true, |answer| answer.status >= 500), "nothing is acknowledged");
    assert!(peers.iter_mut().enumerate().all(|(n, peer)| lives(peer, n, "A")), "all others go on\n{}", node.log_tail(20));
    restarts(&node, 0.0);

    // A listener's task, and an instance's own loop: the other instance's connections go on, the instance comes back.
    for (round, marker) in [(1, "BREAK-LISTENER"), (2, "BREAK-INSTANCE")] {
        let answer = Peer::connect(node.mllp).exchange(&marked(marker, &format!("I{round}")));
        assert_eq!(text(&answer, "MSA", 1), "AA");
        restarts(&node, f64::from(round));
        let name = format!("B{round}");
        let before = peers.len();
        let mut number = 0;
        peers.retain_mut(|peer| {
            number += 1;
            lives(peer, number, &name)
        });
        assert!(!peers.is_empty() && peers.len() < before, "{} of {before} connections go on", peers.len());
        // The kernel spreads these over both instances' sockets.
        for n in 0..24 {
            let mut fresh = Peer::connect(node.mllp);
            assert!(lives(&mut fresh, n, &format!("F{round}")), "both take new messages\n{}", node.log_tail(20));
            peers.push(fresh);
        }
        assert!(once(node.http, "POST", "/x", &[], b"fresh").is_ok_and(|answer| answer.status < 300));
    }
    assert_eq!(node.metric("hie_panics_total"), Some(4.0), "{}", node.log_tail(40));

    let sent = load.stop(Duration::from_secs(20));
    assert!(sent.acknowledged.len() > 200, "the load ran: {}", sent.acknowledged.len());
    assert!(receiver.wait_for(&sent, Duration::from_secs(30)), "all acknowledged delivered\n{}", node.log_tail(20));
    let mut judged = sent.clone();
    // What the single connections sent is known to the judge by its keys.
    let arrivals = receiver.arrivals();
    judged.attempted.extend(arrivals.iter().filter(|a| a.tag.id.starts_with('P')).map(|a| a.tag.clone()));
    check(&judged, &arrivals, Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
    let marked = || receiver.others().iter().filter(|m| String::from_utf8_lossy(m).contains(CANARY)).count();
    assert!(wait_until(Duration::from_secs(10), || marked() == 2), "the two acknowledged ones, once each: {}", marked());
    let metrics = node.metrics();
    assert!(!metrics.contains(CANARY) && !metrics.contains("BREAK-"), "in a metric");
    let told = node.log();
    (node, told)
}

/// The place of each panic, and not a word of what was being worked on.
fn tells_places_only(told: &str) {
    for word in [CANARY, "BREAK-", "PID|"] {
        if let Some(line) = told.lines().find(|line| line.contains(word)) {
            panic!("{word} was told: {line}");
        }
    }
    assert_eq!(told.matches("broken.rs").count(), 4, "each panic is told with its place:\n{told}");
    assert_eq!(told.matches("an accepting instance failed and is started again").count(), 2, "{told}");
}

#[test]
fn a_panic_costs_one_instance_for_a_moment_and_tells_its_place_only() {
    tells_places_only(&panics(Builder::new().arg("--log").arg("text")).1);
}

#[test]
fn a_panic_in_a_json_log_tells_its_place_only() {
    let (_node, told) = panics(Builder::new().arg("--log").arg("json"));
    tells_places_only(&told);
    let panics: Vec<serde_json::Value> = told
        .lines()
        .filter_map(|l| serde_json::from_str(l).ok())
        .filter(|l: &serde_json::Value| l["message"] == "panic")
        .collect();
    assert_eq!(panics.len(), 4);
    assert!(panics.iter().all(|p| p["line"].as_u64().is_some_and(|n| n > 0) && p["thread"].is_string()), "{panics:?}");
}

#[test]
fn a_panic_in_the_journal_tells_its_place_only() {
    let journal = Inbox::new();
    let mut builder = Builder::new();
    builder.wrapper = under_systemd(Some(&journal));
    let (_node, told) = panics(builder);
    assert_eq!(told, "", "nothing beside the journal");
    // Each panic is one datagram with its place in a field of its own.
    tells_places_only(&journal.text());
}
