//! Deliveries over RabbitMQ whose turn does not come soon wait in the ledger: a blocked key keeps neither the others of its partition nor
//! the broker waiting, and whoever takes over goes on with it where the one before was.

mod harness;

use harness::channels::{all_to, queue, route};
use harness::ledger::{control_id, settled, text, transactions};
use harness::parts::{self, Rabbitmq};
use harness::sender::Lookup;
use harness::{Builder, Doubles, Load, Node, Receiver, Sent, Via, check, wait_until};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const CONF: &str = "default_user = hie\ndefault_pass = sesame\nloopback_users = none\n";

/// A broker, and the file with its password.
struct Broker {
    rabbit: Rabbitmq,
    dir: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let password = dir.path().join("password");
        std::fs::write(&password, "sesame\n").expect("a file");
        std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("permissions");
        Self { rabbit: Rabbitmq::start(&parts::fetch("rabbitmq-3.10"), CONF), dir }
    }

    /// A node; `more` adds lines to `[transport]`.
    fn node(&self, name: &str, channels: &[String], more: &str) -> Node {
        let transport = format!(
            "[transport]\nkind = \"rabbitmq\"\nurls = [\"amqp://127.0.0.1:{}\"]\npassword_file = {:?}\npartitions = 2\n{more}\n",
            self.rabbit.port(),
            self.dir.path().join("password")
        );
        let mut builder = Builder::new().node("domain = \"north\"").section(&transport).patience(Duration::from_secs(60));
        builder.name = name.into();
        builder.channels = channels.to_vec();
        builder.start()
    }

    /// Messages in the channels' queues, those in a consumer's hands included.
    fn depth(&self) -> u64 {
        let sum = "lists:sum([proplists:get_value(messages, I, 0) || \
                   I <- rabbit_amqqueue:info_all(<<\"/\">>, [name, messages]), \
                   element(4, proplists:get_value(name, I)) =/= <<\"hie.north.ledger\">>]).";
        self.rabbit.eval(sum).parse().expect("a number")
    }

    /// Waits until no more than a few are left there.
    fn is_nearly_empty(&self, at_most: u64) {
        let mut left = 0;
        let empty = wait_until(Duration::from_secs(40), || {
            left = self.depth();
            left <= at_most
        });
        assert!(empty, "{left} messages are left in the broker's queues");
    }
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

/// A load whose messages' keys begin with its name: one for each connection.
fn load(name: &str, via: Via, connections: usize, count: u64) -> Load {
    Load { name: name.into(), connections, keys: 1, count: Some(count), ..Load::new(via) }
}

fn metric(node: &Node, name: &str) -> u64 {
    node.metric(name).unwrap_or(0.0) as u64
}

/// What waits for the route, as a node tells.
fn pending(node: &Node) -> u64 {
    node.get("/routes").json()[0]["pending"].as_u64().unwrap_or(0)
}

fn accepted_of(receiver: &Receiver, key: &str) -> usize {
    receiver.arrivals().iter().filter(|a| a.accepted && a.tag.key.starts_with(key)).count()
}

fn logs(nodes: &[Node]) -> String {
    nodes.iter().map(|n| n.log_tail(25)).collect::<Vec<_>>().join("\n---\n")
}

/// The node that works on the route's queue of the messages, when all agree whose turn it is: it stays so.
fn owner(nodes: &[Node]) -> usize {
    // Whose turn it is, and whether the node asked works on it.
    let sight = |node: &Node| {
        let cluster = node.get("/cluster").json();
        let queues = cluster["transport"]["queues"].as_array().cloned().unwrap_or_default();
        let queue = queues.into_iter().find(|q| q["kind"] == "route" && q["partition"] == 0)?;
        Some((text(&queue["turn"]).to_owned(), queue["active"] == true))
    };
    let mut found = None;
    let one = wait_until(Duration::from_secs(60), || {
        let all: Vec<_> = nodes.iter().filter_map(sight).collect();
        let turn = all.first().map(|(turn, _)| turn.clone()).unwrap_or_default();
        let agreed = all.len() == nodes.len() && all.iter().all(|(name, _)| *name == turn);
        let active: Vec<usize> = (0..all.len()).filter(|at| all[*at].1).collect();
        found = active.first().copied().filter(|at| agreed && active.len() == 1 && nodes[*at].setup.name == turn);
        found.is_some()
    });
    assert!(one, "nobody works on the partition\n{}", logs(nodes));
    found.expect("one")
}

fn all(parts: Vec<Sent>) -> Sent {
    parts.into_iter().fold(Sent::default(), |mut all, sent| {
        all.merge(sent);
        all
    })
}

/// Nothing waits anywhere, and every node knows every message as delivered.
fn finished(nodes: &[Node], messages: usize) {
    for node in nodes {
        assert!(settled(node, Duration::from_secs(60)), "{} pending\n{}", metric(node, "hie_messages_pending"), logs(nodes));
        assert_eq!(metric(node, "hie_held"), 0);
        let rows = transactions(node);
        assert_eq!(rows.iter().filter(|row| text(&row["status"]) == "Successful").count(), messages, "{}", logs(nodes));
    }
}

#[test]
fn a_blocked_key_keeps_neither_others_nor_the_broker_waiting() {
    let broker = Broker::start();
    let receiver = Receiver::willing();
    receiver.refuse(&["B"]);
    // Not set aside but tried again and again.
    let channels = [queue("test.all", "true") + &route("primary", &receiver.target(), "primary = true\non = { AE = \"retry\" }")];
    let nodes = ["a", "b"].map(|name| broker.node(name, &channels, "prefetch = 8"));
    let both = || named(&[&nodes[0], &nodes[1]]);
    let blocked = load("B", both(), 2, 150).start();
    let others = load("L", both(), 4, 100).run(Duration::from_secs(60));
    assert!(receiver.wait_for(&others, Duration::from_secs(60)), "others are delivered meanwhile\n{}", logs(&nodes));
    let blocked = blocked.join(Duration::from_secs(60));
    assert_eq!(blocked.acknowledged.len(), 300, "far more than the consumer may have in hand\n{}", logs(&nodes));
    let more = load("M", both(), 4, 50).run(Duration::from_secs(60));
    assert!(receiver.wait_for(&more, Duration::from_secs(60)), "and after\n{}", logs(&nodes));
    assert_eq!(accepted_of(&receiver, "B"), 0);
    // All but what does not press.
    broker.is_nearly_empty(4);
    for node in &nodes {
        let counted = || (metric(node, "hie_held"), metric(node, "hie_messages_pending"), pending(node));
        let known = wait_until(Duration::from_secs(20), || {
            let (held, all, of_route) = counted();
            (295..=300).contains(&held) && (295..=305).contains(&all) && (295..=305).contains(&of_route)
        });
        assert!(known, "{:?}\n{}", counted(), logs(&nodes));
    }
    receiver.refuse(&[]);
    assert!(receiver.wait_for(&blocked, Duration::from_secs(60)), "all delivered\n{}", logs(&nodes));
    let sent = all(vec![blocked, others, more]);
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}\n{}", logs(&nodes)));
    finished(&nodes, 900);
}

#[test]
fn whoever_takes_over_goes_on_with_what_is_held() {
    let broker = Broker::start();
    let receiver = Receiver::willing();
    receiver.refuse(&["B"]);
    let channels = [queue("test.all", "true") + &route("primary", &receiver.target(), "primary = true\non = { AE = \"retry\" }")];
    let mut nodes = ["a", "b"].map(|name| broker.node(name, &channels, "prefetch = 8"));
    let blocked = load("B", named(&[&nodes[0], &nodes[1]]), 2, 100).run(Duration::from_secs(60));
    assert_eq!(blocked.acknowledged.len(), 200, "{}", logs(&nodes));
    for node in &nodes {
        let known = wait_until(Duration::from_secs(30), || metric(node, "hie_held") >= 195);
        assert!(known, "{} held\n{}", metric(node, "hie_held"), logs(&nodes));
    }
    // Nothing comes any more that would tell the other node that it is its turn.
    let victim = owner(&nodes);
    nodes[victim].kill9();
    receiver.refuse(&["B1"]);
    let taken_over = wait_until(Duration::from_secs(60), || accepted_of(&receiver, "B0") == 100);
    assert!(taken_over, "{} delivered\n{}", accepted_of(&receiver, "B0"), logs(&nodes));
    nodes[victim].start();

    // At load, and the turn goes back and forth.
    receiver.refuse(&["B1", "E"]);
    let via = || named(&[&nodes[0], &nodes[1]]);
    let running = |name: &str, rate| Load { name: name.into(), connections: 2, keys: 1, rate: Some(rate), ..Load::new(via()) };
    let (refused, others) = (running("E", 40.0).start(), running("L", 40.0).start());
    std::thread::sleep(Duration::from_secs(4));
    let victim = owner(&nodes);
    nodes[victim].kill9();
    std::thread::sleep(Duration::from_secs(3));
    nodes[victim].start();
    std::thread::sleep(Duration::from_secs(4));
    let (refused, others) = (refused.stop(Duration::from_secs(60)), others.stop(Duration::from_secs(60)));
    assert!(receiver.wait_for(&others, Duration::from_secs(60)), "others are delivered meanwhile\n{}", logs(&nodes));
    assert_eq!((accepted_of(&receiver, "E"), accepted_of(&receiver, "B1")), (0, 0));
    broker.is_nearly_empty(4);
    receiver.refuse(&[]);
    for sent in [&blocked, &refused] {
        assert!(receiver.wait_for(sent, Duration::from_secs(90)), "all delivered\n{}", logs(&nodes));
    }
    let sent = all(vec![blocked, refused, others]);
    let report = check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}\n{}", logs(&nodes)));
    assert!(report.doubled.len() <= 20, "no more than was being delivered at a kill: {report}");
}

#[test]
fn the_only_node_goes_on_with_what_is_held_after_a_restart() {
    let broker = Broker::start();
    let mut receiver = Receiver::willing();
    receiver.down();
    let channels = [all_to(&receiver).replace("\"patient\"", "\"feed\"")];
    // By age: nothing presses.
    let mut node = broker.node("a", &channels, "hold = \"8s\"");
    let sent = load("L", Via::Mllp(node.mllp), 4, 50).run(Duration::from_secs(60));
    assert_eq!(sent.acknowledged.len(), 200, "{}", node.log_tail(20));
    let held = |node: &Node, told: &str| {
        let all = wait_until(Duration::from_secs(30), || metric(node, "hie_held") == 200 && pending(node) == 200);
        assert!(all, "{told}: {} held, {} pending\n{}", metric(node, "hie_held"), pending(node), node.log_tail(20));
    };
    held(&node, "after a while");
    broker.is_nearly_empty(0);
    assert!(node.stop(Duration::from_secs(60)).is_some_and(|status| status.success()), "{}", node.log_tail(20));
    node.start();
    held(&node, "after a restart");
    node.kill9();
    node.start();
    receiver.up();
    assert!(receiver.wait_for(&sent, Duration::from_secs(60)), "all delivered\n{}", node.log_tail(40));
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}\n{}", node.log_tail(40)));
    finished(&[node], 200);
}

#[test]
fn operators_reach_what_is_held() {
    let broker = Broker::start();
    let receiver = Receiver::willing();
    receiver.refuse(&["P", "Q"]);
    let channel = queue("test.all", "true") + "after_park = \"hold\"\n" + &route("primary", &receiver.target(), "primary = true");
    let mut nodes = ["a", "b"].map(|name| broker.node(name, std::slice::from_ref(&channel), "prefetch = 4"));
    let both = || named(&[&nodes[0], &nodes[1]]);
    let parts = ["P", "Q"].map(|name| load(name, both(), 1, 40).run(Duration::from_secs(60)));
    let parked = |node: &Node| node.get("/routes").json()[0]["parked"].as_u64().unwrap_or(0);
    // One of each key is set aside and holds all others of its key back.
    let at = owner(&nodes);
    let waits = wait_until(Duration::from_secs(30), || parked(&nodes[at]) == 2 && metric(&nodes[at], "hie_held") >= 70);
    assert!(waits, "{} parked, {} held\n{}", parked(&nodes[at]), metric(&nodes[at], "hie_held"), logs(&nodes));
    nodes[at].kill9();
    let other = 1 - at;
    let waits = wait_until(Duration::from_secs(60), || parked(&nodes[other]) == 2);
    assert!(waits, "{} parked where it was taken over\n{}", parked(&nodes[other]), logs(&nodes));
    receiver.refuse(&[]);
    nodes[at].start();
    let at = owner(&nodes);
    assert!(wait_until(Duration::from_secs(30), || parked(&nodes[at]) == 2), "{}", logs(&nodes));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(receiver.accepted(), 0, "all keys are held back");

    let rows = transactions(&nodes[at]);
    let id = |control: &str| {
        let row = rows.iter().find(|row| control_id(row) == control).unwrap_or_else(|| panic!("no {control}"));
        text(&row["_id"]).to_owned()
    };
    let ask = |node: usize, id: &str, what: &str| {
        let answer = nodes[node].post(&format!("/transactions/{id}/{what}"), "{}");
        (answer.status, answer.text())
    };
    // Wanted again, from any node.
    let (status, said) = ask(1 - at, &id("P0-1"), "requeue");
    assert_eq!(status, 200, "{said}\n{}", logs(&nodes));
    assert!(receiver.wait_for(&parts[0], Duration::from_secs(60)), "all of the key\n{}", logs(&nodes));
    // Given up where it is: what waits on a route that is held, and what is set aside.
    let (status, said) = ask(at, &id("Q0-20"), "discard");
    assert!(status == 409 && said.contains("hie route pause test.all primary"), "{status} {said}");
    assert_eq!(nodes[at].post("/routes/test.all/primary/pause", "").status, 200);
    assert_eq!(ask(at, &id("Q0-20"), "discard").0, 200);
    assert_eq!(nodes[at].post("/routes/test.all/primary/resume", "").status, 200);
    for control in ["Q0-1", "Q0-30"] {
        let (status, said) = ask(1 - at, &id(control), "discard");
        assert!(status == 409 && said.contains(&format!("({})", nodes[at].setup.name)), "names who can: {status} {said}");
    }
    assert_eq!(ask(at, &id("Q0-1"), "discard").0, 200);
    let rest = wait_until(Duration::from_secs(60), || accepted_of(&receiver, "Q") == 38);
    assert!(rest, "{} of the key\n{}", accepted_of(&receiver, "Q"), logs(&nodes));
    for node in &nodes {
        assert!(settled(node, Duration::from_secs(60)), "{}", logs(&nodes));
    }
    let given_up = ["Q0-1", "Q0-20"];
    let mut sent = all(parts.to_vec());
    sent.acknowledged.retain(|tag| !given_up.contains(&tag.id.as_str()));
    check(&sent, &receiver.arrivals(), Doubles::Forbidden).unwrap_or_else(|fault| panic!("{fault}\n{}", logs(&nodes)));
    let twice = receiver.arrivals().iter().filter(|a| a.accepted && given_up.contains(&a.tag.id.as_str())).count();
    assert_eq!(twice, 0, "what was given up is not delivered");
}
