//! Nodes that work together over one RabbitMQ broker: every message is delivered once and in order whichever node took it, every
//! node knows every transaction, and neither a killed node nor a broker that is away loses anything that was acknowledged.
//! Clusters of brokers, cut networks and discovery: `cluster_*.rs`.

mod harness;

use harness::channels::{queue, route};
use harness::http::once;
use harness::ledger::{body, control_id, settled, text, transaction, transactions};
use harness::parts::{self, Rabbitmq};
use harness::sender::Lookup;
use harness::wire::{Tag, adt, text as field};
use harness::{Builder, Doubles, Load, Node, Peer, Receiver, Rng, Sent, Via, check, wait_until};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const CONF: &str = "default_user = hie\ndefault_pass = sesame\nloopback_users = none\n";

/// A broker, and the file with its password.
struct Broker {
    rabbit: Rabbitmq,
    dir: tempfile::TempDir,
}

fn broker() -> Broker {
    let dir = tempfile::tempdir().expect("a folder");
    let password = dir.path().join("password");
    std::fs::write(&password, "sesame\n").expect("a file");
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("permissions");
    Broker { rabbit: Rabbitmq::start(&parts::fetch("rabbitmq-3.10"), CONF), dir }
}

/// A node of the domain `north`; `more` adds lines to `[transport]`.
fn node(broker: &Broker, name: &str, channels: &[String], more: &str) -> Node {
    let transport = format!(
        "[transport]\nkind = \"rabbitmq\"\nurls = [\"amqp://127.0.0.1:{}\"]\npassword_file = {:?}\npartitions = 2\n{more}\n",
        broker.rabbit.port(),
        broker.dir.path().join("password")
    );
    let mut builder = Builder::new().node("domain = \"north\"").section(&transport).patience(Duration::from_secs(60));
    builder.name = name.into();
    builder.channels = channels.to_vec();
    builder.start()
}

/// Everything, ordered by patient, to one receiver.
fn all_to(receiver: &Receiver) -> String {
    queue("test.all", "true") + &route("primary", &receiver.target(), "primary = true")
}

fn named(nodes: &[&Node]) -> Via {
    let addresses: Vec<SocketAddr> = nodes.iter().map(|n| n.mllp).collect();
    let turn = std::sync::atomic::AtomicUsize::new(0);
    Via::MllpNamed(Lookup(Arc::new(move || {
        let mut all = addresses.clone();
        let first = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % all.len();
        all.rotate_left(first);
        all
    })))
}

/// Every node tells the same of every acknowledged message: found, finished, with its body.
fn known_everywhere(nodes: &[&Node], sent: &Sent) {
    for node in nodes {
        let mut by_control: HashMap<String, Vec<serde_json::Value>> = HashMap::new();
        let complete = wait_until(Duration::from_secs(60), || {
            by_control.clear();
            for row in transactions(node) {
                by_control.entry(control_id(&row)).or_default().push(row);
            }
            sent.acknowledged.iter().all(|tag| {
                by_control.get(&tag.id).is_some_and(|rows| rows.iter().all(|row| text(&row["status"]) == "Successful"))
            })
        });
        let missing: Vec<String> = sent
            .acknowledged
            .iter()
            .filter_map(|tag| match by_control.get(&tag.id) {
                None => Some(format!("{}: not found", tag.id)),
                Some(rows) => {
                    rows.iter().find(|r| text(&r["status"]) != "Successful").map(|r| format!("{}: {}", tag.id, r["status"]))
                }
            })
            .take(5)
            .collect();
        assert!(complete, "{} of {} known: {missing:?}\n{}", by_control.len(), sent.acknowledged.len(), node.log_tail(20));
        for tag in sent.acknowledged.iter().step_by(sent.acknowledged.len().div_ceil(10)) {
            let row = &by_control[&tag.id][0];
            let bytes = body(node, text(&row["_id"]), "request");
            assert_eq!(bytes.status, 200);
            assert!(String::from_utf8_lossy(&bytes.body).contains(&tag.id), "{} has its own body", tag.id);
        }
    }
}

#[test]
fn two_nodes_share_the_work_and_both_know_everything() {
    let broker = broker();
    let receiver = Receiver::willing();
    let channels = [all_to(&receiver)];
    let (a, b) = (node(&broker, "a", &channels, ""), node(&broker, "b", &channels, ""));
    let load = Load { connections: 8, count: Some(100), ..Load::new(named(&[&a, &b])) };
    let sent = load.run(Duration::from_secs(60));
    assert_eq!(sent.acknowledged.len(), 800);
    assert!(receiver.wait_for(&sent, Duration::from_secs(60)), "all delivered\n{}\n{}", a.log_tail(20), b.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}"));
    known_everywhere(&[&a, &b], &sent);
    let accepted = |node: &Node| node.metric("hie_partitions_taken_total").unwrap_or(0.0);
    assert!(accepted(&a) + accepted(&b) >= 2.0, "partitions are worked on");
}

#[test]
fn a_killed_node_loses_nothing() {
    let broker = broker();
    let receiver = Receiver::willing();
    let channels = [all_to(&receiver)];
    let mut rng = Rng::from_env("rabbitmq_nodes");
    let mut nodes = [node(&broker, "a", &channels, ""), node(&broker, "b", &channels, "")];
    let load = Load { connections: 8, rate: Some(150.0), ..Load::new(named(&[&nodes[0], &nodes[1]])) }.start();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(rng.range(1500, 3000)));
        let victim = rng.range(0, 2) as usize;
        nodes[victim].kill9();
        std::thread::sleep(Duration::from_millis(rng.range(200, 1500)));
        nodes[victim].start();
    }
    let sent = load.stop(Duration::from_secs(60));
    assert!(sent.acknowledged.len() > 300, "{}", sent.acknowledged.len());
    let logs = || format!("{}\n---\n{}", nodes[0].log_tail(30), nodes[1].log_tail(30));
    if !receiver.wait_for(&sent, Duration::from_secs(90)) {
        let fault = check(&sent, &receiver.arrivals(), Doubles::Counted).err();
        let seen = |node: &Node| {
            let open = harness::ledger::search(node, &serde_json::json!({"status": "Processing"}));
            format!("{} {}", open.len(), node.get("/cluster").json()["transport"])
        };
        let seen: Vec<_> = nodes.iter().map(seen).collect();
        panic!("all acknowledged delivered: {fault:?}\n{}\n{}", seen.join("\n"), logs());
    }
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
    known_everywhere(&[&nodes[0], &nodes[1]], &sent);
}

#[test]
fn while_the_broker_is_away_messages_are_spooled_or_refused() {
    let mut broker = broker();
    let (spooled, refused) = (Receiver::willing(), Receiver::willing());
    let channels = [
        queue("test.refuse", "hl7(\"MSH-3\") == \"R\"")
            + "outage = \"refuse\"\npriority = 1\n"
            + &route("primary", &refused.target(), "primary = true"),
        queue("test.spool", "true") + "outage = \"spool\"\n" + &route("primary", &spooled.target(), "primary = true"),
    ];
    let node = node(&broker, "a", &channels, "");
    let load = Load { connections: 4, rate: Some(100.0), ..Load::new(Via::Mllp(node.mllp)) }.start();
    assert!(wait_until(Duration::from_secs(20), || spooled.count() > 50), "{}", node.log_tail(20));
    broker.rabbit.stop();
    std::thread::sleep(Duration::from_secs(2));
    let before = load.acknowledged();
    std::thread::sleep(Duration::from_secs(8));
    let meanwhile = load.acknowledged() - before;
    assert!(meanwhile > 400, "acknowledged while the broker was away: {meanwhile}\n{}", node.log_tail(20));
    assert_eq!(node.get("/health/ready").status, 200, "it accepts durably");
    let message = |id: &str| format!("MSH|^~\\&|R|B|C|D|20260101||ADT^A08|{id}|P|2.5\rPID|1||7\r").into_bytes();
    let asked = Instant::now();
    let answer = Peer::connect(node.mllp).exchange(&message("R1"));
    assert_eq!(field(&answer, "MSA", 1), "AE", "told to come again, after {:?}", asked.elapsed());
    assert!(node.metric("hie_spooled").unwrap_or(0.0) > 0.0);
    broker.rabbit.restart();
    let sent = load.stop(Duration::from_secs(60));
    assert!(spooled.wait_for(&sent, Duration::from_secs(90)), "all drained\n{}", node.log_tail(40));
    check(&sent, &spooled.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
    let answer = Peer::connect(node.mllp).exchange(&message("R1"));
    assert_eq!(field(&answer, "MSA", 1), "AA", "taken again\n{}", node.log_tail(20));
    assert!(wait_until(Duration::from_secs(20), || node.metric("hie_spooled") == Some(0.0)));
    assert!(settled(&node, Duration::from_secs(30)), "nothing is pending\n{}", node.log_tail(20));
    known_everywhere(&[&node], &sent);
}

#[test]
fn large_bodies_proxied_requests_and_operators_work_over_the_broker() {
    let broker = broker();
    let (upstream, second) = (Receiver::http(harness::Behaviour::default(), Rng::new(1)), Receiver::willing());
    let channels = [
        "[[channel]]\nname = \"test.proxy\"\nwhen = 'protocol == \"http\" && path == \"/proxy\"'\nmode = \"proxy\"\npriority = 1\n".to_owned()
            + &route("primary", &upstream.target(), "primary = true")
            + &route("copy", &second.target(), ""),
        queue("test.queue", "true") + &route("primary", &upstream.target(), "primary = true"),
    ];
    let (a, b) = (node(&broker, "a", &channels, ""), node(&broker, "b", &channels, ""));

    // Larger than what travels in a queue: by the stream, in pieces.
    let large = vec![b'x'; 3 << 20];
    let answer = once(a.http, "POST", "/large", &[], &large).expect("an answer");
    assert_eq!(answer.status, 202, "{}", a.log_tail(20));
    let id = answer.header("x-hie-transaction-id").expect("an id").to_owned();
    for node in [&a, &b] {
        let done = wait_until(Duration::from_secs(30), || text(&transaction(node, &id)["status"]) == "Successful");
        assert!(done, "{}\n{}", transaction(node, &id), node.log_tail(20));
        assert_eq!(body(node, &id, "request").body, large, "byte for byte");
    }

    // Proxied: answered directly, the copy goes through the broker.
    let message = adt(&Tag { key: "P".into(), seq: 1, id: "P1".into() }, 300, "");
    let answer = once(b.http, "POST", "/proxy", &[], &message).expect("an answer");
    assert_eq!(answer.status, 200, "{}", b.log_tail(20));
    let id = answer.header("x-hie-transaction-id").expect("an id").to_owned();
    for node in [&a, &b] {
        let done = wait_until(Duration::from_secs(30), || text(&transaction(node, &id)["status"]) == "Successful");
        assert!(done, "{}\n{}", transaction(node, &id), node.log_tail(20));
    }
    assert_eq!(second.count(), 1);

    // An operator's word counts on every node.
    assert_eq!(a.post("/routes/test.queue/primary/pause", "").status, 200, "{}", a.log_tail(10));
    let paused = |node: &Node| {
        let routes = node.get("/routes").json();
        routes.as_array().is_some_and(|all| all.iter().any(|r| r["channel"] == "test.queue" && r["paused"] == true))
    };
    assert!(wait_until(Duration::from_secs(10), || paused(&a) && paused(&b)), "{}", b.get("/routes").text());
}

#[test]
fn a_broker_that_is_killed_and_restarted_loses_nothing() {
    let mut broker = broker();
    let receiver = Receiver::willing();
    let channels = [all_to(&receiver)];
    let (a, b) = (node(&broker, "a", &channels, ""), node(&broker, "b", &channels, ""));
    let load = Load { connections: 8, rate: Some(150.0), ..Load::new(named(&[&a, &b])) }.start();
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(3));
        broker.rabbit.kill();
        std::thread::sleep(Duration::from_secs(2));
        broker.rabbit.restart();
    }
    std::thread::sleep(Duration::from_secs(3));
    let sent = load.stop(Duration::from_secs(60));
    let logs = || format!("{}\n---\n{}", a.log_tail(30), b.log_tail(30));
    assert!(receiver.wait_for(&sent, Duration::from_secs(90)), "all acknowledged delivered\n{}", logs());
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
    known_everywhere(&[&a, &b], &sent);
}
