//! A rolling restart of all nodes as an operator does it: each is told to stop (SIGTERM, as systemd sends it), started again, and the next
//! one has its turn as soon as this one says that it is ready. Meanwhile senders work without a pause through a real haproxy and a real
//! nginx, whose configuration was rendered once and is not touched, and by names alone; by MLLP, by HTTP, and by HTTP to a channel whose
//! sender waits for the receiver. Nobody is refused a connection, no request fails, nothing is lost, doubled or overtaken.

mod cluster_support;
mod harness;

use cluster_support::balancer::{Balancer, render};
use cluster_support::node::{addresses, services};
use cluster_support::{Cluster, Plan};
use harness::channels::{queue, route};
use harness::sender::{Fleet, Lookup};
use harness::{Behaviour, Doubles, Load, Node, Receiver, Rng, Sent, Via, check, wait_until};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// `TimeoutStopSec=` of the unit in docs/operations.md.
const STOP: Duration = Duration::from_secs(90);
/// Of each of the four senders of each of the nine groups, between an acknowledgment and its next message. One without any pause may, behind
/// nginx, write into the end that follows an acknowledgment: docs/operations.md.
const PAUSE: Duration = Duration::from_millis(200);

/// Where each channel's messages go.
struct Receivers {
    mllp: Receiver,
    queue: Receiver,
    proxy: Receiver,
}

impl Receivers {
    fn new(cluster: &Cluster, rng: &mut Rng) -> Self {
        let mut one = |http| cluster.receiver(http, Behaviour::default(), rng.split());
        Self { mllp: one(false), queue: one(true), proxy: one(true) }
    }

    fn channels(&self) -> String {
        let channel = |name: &str, when: &str, to: &Receiver| queue(name, when) + &route("lis", &to.target(), "primary = true");
        let proxy = channel("test.proxy", "protocol == \"http\" && path == \"/proxy\"", &self.proxy);
        channel("test.mllp", "protocol == \"mllp\"", &self.mllp)
            + &channel("test.queue", "protocol == \"http\" && path == \"/queue\"", &self.queue)
            + &proxy.replace("mode = \"queue\"", "mode = \"proxy\"").replace("order = \"patient\"\n", "")
    }
}

/// One way to the nodes.
struct Way {
    name: &'static str,
    mllp: Lookup,
    http: Lookup,
}

impl Way {
    fn through(name: &'static str, balancer: &Balancer) -> Self {
        let to = |port| {
            let at = SocketAddr::from((balancer.machine.ip, port));
            Lookup(std::sync::Arc::new(move || vec![at]))
        };
        Self { name, mllp: to(2575), http: to(5001) }
    }
}

/// The senders of one kind over one way.
struct Group {
    name: String,
    kind: &'static str,
    fleet: Fleet,
}

fn start(way: &Way, kind: &'static str, rng: &mut Rng) -> Group {
    let via = match kind {
        "mllp" => Via::MllpNamed(way.mllp.clone()),
        path => Via::HttpNamed(way.http.clone(), format!("/{path}")),
    };
    let name = format!("{}-{kind}-", way.name);
    let load = Load { connections: 4, pause: PAUSE, looks: true, name: name.clone(), seed: rng.next(), ..Load::new(via) };
    Group { name, kind, fleet: Load { timeout: 20 * SECOND, ..load }.start() }
}

/// What was refused or failed, and what the receiver says of the rest.
fn judged(name: &str, sent: &Sent, receiver: &Receiver) -> Vec<String> {
    let mut faults = Vec::new();
    println!(
        "{name}: {} acknowledged on {} connections, p99 {:.0?}, longest {:.1?}; connections refused {}, requests failed: \
         {} without an answer, {:?} with one",
        sent.acknowledged.len(),
        sent.reconnects + 4,
        sent.percentile(0.99),
        sent.percentile(1.0),
        sent.connect_failures,
        sent.unanswered,
        sent.refused
    );
    if sent.connect_failures + sent.unanswered + sent.unresolved > 0 || !sent.refused.is_empty() || !sent.violations.is_empty() {
        faults.push(format!(
            "{name}: {} connections refused, {} unanswered, {} without an address, refused {:?}, {:?}:\n  {}",
            sent.connect_failures,
            sent.unanswered,
            sent.unresolved,
            sent.refused,
            sent.violations,
            sent.troubles.join("\n  ")
        ));
    }
    if sent.acknowledged.len() < 50 || sent.attempted.len() != sent.acknowledged.len() {
        faults.push(format!("{name}: the load did not run: {} of {}", sent.acknowledged.len(), sent.attempted.len()));
    }
    let begin = Instant::now();
    if !receiver.wait_for(sent, 100 * SECOND) {
        faults.push(format!("{name}: not everything acknowledged was delivered"));
    }
    println!("  waited {:.1?} for the last delivery", begin.elapsed());
    faults
}

#[test]
fn a_rolling_restart_refuses_nobody_and_fails_nothing() {
    let mut rng = Rng::from_env("cluster rolling");
    // The names' answers may be kept for two seconds; a node that leaves serves for longer (discovery.dns_ttl).
    let names = json!({ "dns_config": { "use_cache": true, "cache_max_age": "10m", "service_ttl": { "*": "2s" } } });
    let cluster = Cluster::start(Plan { others: vec!["b1".into(), "b2".into()], consul: names, ..Plan::default() });
    let receivers = Receivers::new(&cluster, &mut rng);
    let [b1, b2] = ["b1", "b2"].map(|name| cluster.net.machine(name));
    let trusted = format!("proxy_protocol_from = [\"{}/32\", \"{}/32\"]", b1.ip, b2.ip);
    let mut nodes: Vec<Node> = (1..=3)
        .map(|n| {
            let builder = cluster.node(n).node("domain = \"north\"").http(&trusted).mllp(&trusted);
            let builder = builder.section(&cluster.rabbitmq("")).section(&cluster.consul(""));
            builder.channel(receivers.channels()).start()
        })
        .collect();
    let dns = cluster.resolver.as_ref().expect("a resolver").dns();
    let named = |name: &str, count: usize| {
        let all = || (services(dns, name).0)().into_iter().collect::<BTreeSet<_>>();
        assert!(wait_until(20 * SECOND, || all().len() == count), "{name}: {:?}", all());
    };
    for name in ["mllp.hie.service.consul", "http.hie.service.consul"] {
        named(name, 3);
    }
    let text = |kind, on| render(&nodes[0], kind, on, &["--proxy-protocol"]);
    let haproxy = Balancer::haproxy(&b1, &text("haproxy", &b1));
    let nginx = Balancer::nginx(&b2, &text("nginx", &b2));
    let by_name = Way {
        name: "dns",
        mllp: services(dns, "mllp.hie.service.consul"),
        http: addresses(dns, "http.hie.service.consul", 5001),
    };
    let ways = [Way::through("haproxy", &haproxy), Way::through("nginx", &nginx), by_name];
    let all = ways.iter().flat_map(|way| ["mllp", "queue", "proxy"].map(|kind| (way, kind)));
    let groups: Vec<_> = all.map(|(way, kind)| start(way, kind, &mut rng)).collect();
    let running = wait_until(20 * SECOND, || groups.iter().all(|g| g.fleet.acknowledged() > 10));
    assert!(running, "the load runs");

    let begin = Instant::now();
    for node in &mut nodes {
        let name = node.setup.name.clone();
        let told = Instant::now();
        let status = node.stop(STOP).unwrap_or_else(|| panic!("{name} does not end within {STOP:?}\n{}", node.log_tail(40)));
        let ended = told.elapsed();
        assert!(status.success(), "{name}: {status}\n{}", node.log_tail(40));
        let ready = node.start();
        println!(
            "+{:.1?}: {name} ended {ended:.1?} after it was told to, and was ready {ready:.1?} after its start",
            begin.elapsed()
        );
    }
    println!("all nodes restarted within {:.1?}", begin.elapsed());
    std::thread::sleep(3 * SECOND);

    let mut faults = Vec::new();
    let mut all: Vec<(&str, Sent)> = Vec::new();
    let ended: Vec<_> = groups.into_iter().map(|g| (g.name, g.kind, g.fleet.stop(30 * SECOND))).collect();
    for (name, kind, sent) in ended {
        let told = judged(&name, &sent, receiver(&receivers, kind));
        if !told.is_empty() {
            nodes.iter().for_each(|n| println!("{}: {}", n.setup.name, n.get("/cluster").text()));
        }
        faults.extend(told);
        match all.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, of_kind)) => of_kind.merge(sent),
            None => all.push((kind, sent)),
        }
    }
    // What is delivered twice comes a moment later.
    std::thread::sleep(2 * SECOND);
    for (kind, sent) in &all {
        print!("{kind}: ");
        let judged = check(sent, &receiver(&receivers, kind).arrivals(), Doubles::Forbidden);
        faults.extend(judged.err().map(|fault| format!("{kind}: {fault}")));
    }
    for node in &nodes {
        let taken = node.metric("hie_messages_accepted_total").unwrap_or(0.0);
        println!("{} has accepted {taken} since its restart", node.setup.name);
    }
    let logs = || nodes.iter().map(|n| n.log_tail(60)).chain([haproxy.log_tail(60), nginx.log_tail(60)]).collect::<Vec<_>>();
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), logs().join("\n"));
}

fn receiver<'r>(receivers: &'r Receivers, kind: &str) -> &'r Receiver {
    match kind {
        "mllp" => &receivers.mllp,
        "queue" => &receivers.queue,
        _ => &receivers.proxy,
    }
}
