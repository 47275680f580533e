//! What waits on a route that is no longer configured, or is paused, can be given up: by transaction, by filter and over the
//! command line; what is in hand, or waits on a route at work, cannot. Such leftovers are shown for what they are.

mod harness;

use harness::channels::{queue, route};
use harness::wire::{Tag, adt, text};
use harness::{Behaviour, Builder, Node, Peer, Receiver, Rng, ledger, node::free_port, wait_until};
use nix::sys::signal::Signal;
use std::time::Duration;

fn send(node: &Node, count: u64) {
    let mut peer = Peer::connect(node.mllp);
    for n in 0..count {
        let ack = peer.exchange(&adt(&Tag { key: format!("k{}", n % 2), seq: n, id: format!("ID{n}") }, 400, "pad"));
        assert_eq!(text(&ack, "MSA", 1), "AA");
    }
}

fn routes(node: &Node) -> Vec<serde_json::Value> {
    node.get("/routes").json().as_array().cloned().unwrap_or_default()
}

fn hie(node: &Node, args: &[&str]) -> (Option<i32>, String) {
    let config = node.config_file();
    let mut all = args.to_vec();
    all.extend(["--config", config.to_str().expect("a UTF-8 path")]);
    let output = node.command(&all).output().expect("hie runs");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

fn ids(node: &Node) -> Vec<String> {
    let mut all: Vec<String> = ledger::transactions(node).iter().filter_map(|t| t["_id"].as_str().map(str::to_owned)).collect();
    all.reverse();
    all
}

#[test]
fn what_waits_on_a_route_that_is_gone_is_shown_and_discarded() {
    let mut receiver = Receiver::willing();
    let away = format!("mllp = [\"{}\"]", free_port());
    let new = queue("test.all", "true") + &route("new", &receiver.target(), "primary = true");
    let mut node = Builder::new().channel(queue("test.all", "true") + &route("old", &away, "primary = true")).start();
    send(&node, 6);
    node.setup.channels = vec![new];
    node.write_config();
    node.signal(Signal::SIGHUP);
    assert!(wait_until(Duration::from_secs(10), || routes(&node).len() == 2), "{:?}", routes(&node));
    // Once more from the log, as after any restart.
    node.stop(Duration::from_secs(20));
    node.start();
    assert_eq!(node.metric("hie_messages_pending"), Some(6.0));
    let (_, list) = hie(&node, &["route", "list"]);
    assert!(list.lines().any(|l| l.contains(" old ") && l.contains("not configured")), "{list}");
    let (_, status) = hie(&node, &["status"]);
    assert!(status.contains("not configured  test.all/old: 6"), "{status}");

    let ids = ids(&node);
    let (code, said) = hie(&node, &["tx", "discard", &ids[3]]);
    assert_eq!((code, said.trim()), (Some(0), "1 deliveries discarded"));
    let (code, said) = hie(&node, &["tx", "discard", &ids[3], "--json"]);
    assert_eq!(code, Some(1), "nothing is left of it: {said}");
    let (code, said) = hie(&node, &["tx", "discard"]);
    assert_eq!(code, Some(64), "never all by accident: {said}");
    let (code, said) = hie(&node, &["tx", "discard", "--channel", "test.all", "--route", "old", "--wait", "--rate", "1000"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("(5 deliveries), 0 failed"), "{said}");
    assert_eq!(node.metric("hie_messages_pending"), Some(0.0), "the gate counts them no more");
    assert_eq!(routes(&node).len(), 1, "an empty leftover is no longer listed");
    let tx = ledger::transaction(&node, &ids[0]);
    assert_eq!(tx["status"], "Failed");
    assert!(tx["hie"]["events"].to_string().contains("discarded"), "each is a fact: {tx}");

    // It stays so, and what comes now goes its way.
    node.stop(Duration::from_secs(20));
    node.start();
    assert_eq!(node.metric("hie_messages_pending"), Some(0.0));
    send(&node, 8);
    let arrived = wait_until(Duration::from_secs(10), || receiver.arrivals().iter().any(|a| a.tag.id == "ID7"));
    assert!(arrived);
    receiver.down();
}

#[test]
fn what_is_in_hand_or_waits_on_a_route_at_work_is_not_discarded() {
    let slow = Behaviour { delay: Duration::from_millis(1500), ..Behaviour::default() };
    let receiver = Receiver::mllp(slow, Rng::new(1));
    let channel = queue("test.all", "true").replace("\"patient\"", "\"feed\"") + &route("ehr", &receiver.target(), "");
    let node = Builder::new().channel(channel).start();
    send(&node, 3);
    let ids = ids(&node);
    assert_eq!(ids.len(), 3);
    let discard = |id: &str| {
        let answer = node.post(&format!("/transactions/{id}/discard"), "{}");
        (answer.status, answer.text())
    };
    assert!(wait_until(Duration::from_secs(5), || routes(&node)[0]["in_flight"] == 1));
    let (status, text) = discard(&ids[0]);
    assert!(status == 409 && text.contains("in hand"), "{status} {text}");
    let (status, text) = discard(&ids[2]);
    assert!(status == 409 && text.contains("hie route pause test.all ehr"), "says what to do: {status} {text}");
    node.post("/routes/test.all/ehr/pause", "");
    let (status, text) = discard(&ids[2]);
    assert_eq!(status, 200, "{text}");
    node.post("/routes/test.all/ehr/resume", "");
    assert!(wait_until(Duration::from_secs(10), || node.metric("hie_messages_pending") == Some(0.0)));
    let arrived: Vec<_> = receiver.arrivals().iter().map(|a| a.tag.id.clone()).collect();
    assert_eq!(arrived, ["ID0", "ID1"], "the others in their order, the discarded one never");
}

#[test]
fn what_was_said_to_be_discarded_stays_so_after_a_kill() {
    let receiver = Receiver::willing();
    let channel = queue("test.all", "true") + &route("ehr", &receiver.target(), "paused = true");
    let mut node = Builder::new().channel(channel).start();
    send(&node, 8);
    let ids = ids(&node);
    assert_eq!(ids.len(), 8);
    for id in &ids[..6] {
        let answer = node.post(&format!("/transactions/{id}/discard"), "{}");
        assert_eq!(answer.status, 200, "{}", answer.text());
        node.kill9();
        node.start();
    }
    node.post("/routes/test.all/ehr/resume", "");
    assert!(wait_until(Duration::from_secs(20), || node.metric("hie_messages_pending") == Some(0.0)));
    // Of two keys, in any order.
    let arrived: std::collections::BTreeSet<_> = receiver.arrivals().iter().map(|a| a.tag.id.clone()).collect();
    assert_eq!(arrived.iter().collect::<Vec<_>>(), ["ID6", "ID7"]);
}
