//! Tries to break, on real parts: **acknowledged means durable**, **delivered at least once, in order per key**, **any node may
//! die at any instant** and **accounted for**, while nodes and brokers are killed and cut off and Consul is away. 10,000
//! messages; `HIE_CLUSTER_MESSAGES=100000` in `tests/run --full`.

mod cluster_support;
mod harness;

use cluster_support::chaos::{Storm, Trouble};
use cluster_support::judge::told_everywhere;
use cluster_support::{Cluster, Plan};
use harness::channels::{queue, route};
use harness::{Behaviour, Doubles, Load, Rng, Via, check, env_number, wait_until};
use std::time::Duration;

#[test]
fn nothing_acknowledged_is_lost_while_everything_fails_in_turn() {
    let mut rng = Rng::from_env("cluster chaos");
    let mut cluster = Cluster::start(Plan::default());
    let failing = Behaviour { close: 0.005, reject: 0.005, ..Behaviour::default() };
    let lis = cluster.receiver(false, failing, rng.split());
    let web = cluster.receiver(true, failing, rng.split());
    let channel = queue("test.all", "true")
        + "outage = \"spool\"\n"
        + &route("lis", &lis.target(), "primary = true")
        + &route("web", &web.target(), "");
    let mut nodes: Vec<_> = (1..=3)
        .map(|n| {
            let builder = cluster.node(n).node("domain = \"north\"").section(&cluster.rabbitmq("")).section(&cluster.consul(""));
            builder.channel(&channel).start()
        })
        .collect();
    let name = "mllp.hie.service.consul";
    let resolver = cluster.resolver.as_ref().expect("a resolver");
    assert!(wait_until(Duration::from_secs(20), || resolver.dig(name, "A").len() == 3), "{:?}", resolver.dig(name, "A"));
    let messages = env_number("HIE_CLUSTER_MESSAGES", 10_000);
    let load = Load {
        keys: 25,
        count: Some(messages / 8),
        // They go on until the last trouble is over.
        rate: Some(messages as f64 / 170.0),
        connect: Duration::from_secs(2),
        seed: rng.next(),
        ..Load::new(Via::MllpNamed(cluster.lookup(name, 2575)))
    };
    let senders = load.start();
    Storm::default().run(&mut cluster, &mut nodes, &mut rng, &Trouble::ALL);
    let sent = senders.join(Duration::from_secs(180));
    println!("unresolved {} · connects failed {} · reconnects {}", sent.unresolved, sent.connect_failures, sent.reconnects);
    let mut faults = vec![];
    for (name, receiver) in [("lis", &lis), ("web", &web)] {
        if !receiver.wait_for(&sent, Duration::from_secs(120)) {
            faults.push(format!("{name}: not everything acknowledged was delivered within 120 s"));
        }
        print!("{name}: ");
        faults.extend(check(&sent, &receiver.arrivals(), Doubles::Counted).err().map(|fault| format!("{name}: {fault}")));
    }
    let all: Vec<_> = nodes.iter().collect();
    faults.extend(told_everywhere(&all, &[&sent], 200, &mut rng, Duration::from_secs(120)).err());
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), nodes.iter().map(|n| n.log_tail(15)).collect::<String>());
    assert_eq!(sent.acknowledged.len() as u64, messages / 8 * 8, "all were acknowledged at last");
}
