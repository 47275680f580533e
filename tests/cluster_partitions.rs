//! The number of a domain's partitions is changed while messages come, on real parts: three nodes, three brokers, three Consul servers, eight
//! senders with a feed each. Nothing is lost, order is kept, nothing is delivered twice, and the queues of before are gone; also when a
//! node is killed, Consul is away and a receiver is dead in the middle of it. The command tells what it does not do.

mod cluster_support;
mod harness;

use cluster_support::judge::told_everywhere;
use cluster_support::{Cluster, Plan};
use harness::channels::{queue, route};
use harness::{Behaviour, Doubles, Load, Node, Receiver, Rng, Sent, Via, check, wait_until};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// One for each sender: a feed is a key of its own.
const FEEDS: u16 = 8;
const FIRST_PORT: u16 = 2600;

/// `hie domain partitions …` on the node's machine: exit code, and what it said.
fn partitions(node: &Node, args: &[&str]) -> (i32, String) {
    let config = node.config_file();
    let all = [&["domain", "partitions", "--config", config.to_str().expect("UTF-8")], args].concat();
    let output = node.command(&all).output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

/// What every node says of the layout: epoch, partitions, stage.
fn layouts(nodes: &[Node]) -> Vec<String> {
    let one = |node: &Node| {
        let layout = node.get("/cluster").json()["transport"]["layout"].clone();
        format!("{} {} {}", layout["epoch"], layout["partitions"], layout["stage"].as_str().unwrap_or("?"))
    };
    nodes.iter().map(one).collect()
}

fn logs(nodes: &[Node]) -> String {
    nodes.iter().map(|n| n.log_tail(25)).collect::<Vec<_>>().join("\n")
}

/// Until the KV says that nothing of before is left.
fn settled(nodes: &[Node], epoch: u64, wanted: u16, limit: Duration) {
    let begin = Instant::now();
    let mut said = String::new();
    let over = wait_until(limit, || {
        std::thread::sleep(Duration::from_millis(300));
        said = partitions(&nodes[0], &["--json"]).1;
        let now: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
        now["state"] == "settled" && now["layout"]["epoch"] == epoch && now["layout"]["partitions"] == wanted
    });
    let details = || nodes.iter().map(|n| n.get("/cluster").json()["transport"]["layout"].to_string() + "\n").collect::<String>();
    assert!(over, "not over within {limit:?}: {said}\n{}\n{}", details(), logs(nodes));
    println!("{wanted} partitions: over after {:.1?}", begin.elapsed());
    let expected = format!("{epoch} {wanted} closed");
    assert!(wait_until(10 * SECOND, || layouts(nodes).iter().all(|l| *l == expected)), "{:?}", layouts(nodes));
}

/// The broker's queues are those of this epoch, and no others.
fn only_queues_of(cluster: &Cluster, epoch: u64, wanted: usize) {
    let names = || -> Vec<String> {
        let queues = cluster.brokers.all[0].queues().unwrap_or_default();
        queues.iter().filter(|q| q["type"] == "quorum").map(|q| q["name"].as_str().unwrap_or("").to_owned()).collect()
    };
    let end = format!("@{epoch}");
    let right = wait_until(15 * SECOND, || {
        let names = names();
        names.len() == wanted && names.iter().all(|name| name.ends_with(&end))
    });
    assert!(right, "{:?}", names());
}

fn load(cluster: &Cluster, name: &str, rng: &mut Rng) -> Vec<harness::sender::Fleet> {
    let one = |feed| {
        let via = Via::MllpNamed(cluster.lookup("mllp.hie.service.consul", FIRST_PORT + feed));
        let load = Load { connections: 1, rate: Some(25.0), timeout: 20 * SECOND, connect: 2 * SECOND, ..Load::new(via) };
        Load { name: format!("{name}{feed}"), seed: rng.next(), ..load }.start()
    };
    (0..FEEDS).map(one).collect()
}

fn acknowledged(fleets: &[harness::sender::Fleet]) -> u64 {
    fleets.iter().map(harness::sender::Fleet::acknowledged).sum()
}

fn stop(fleets: Vec<harness::sender::Fleet>) -> Sent {
    let mut all = Sent::default();
    fleets.into_iter().for_each(|fleet| all.merge(fleet.stop(60 * SECOND)));
    all
}

fn judged(what: &str, sent: &Sent, receivers: &[(&str, &Receiver)], doubles: Doubles, nodes: &[Node]) {
    for (name, receiver) in receivers {
        let all = receiver.wait_for(sent, 60 * SECOND);
        print!("{what}, {name}: ");
        let fault = check(sent, &receiver.arrivals(), doubles).err();
        assert!(all && fault.is_none(), "{what}, {name}: all delivered: {all}; {fault:?}\n{}", logs(nodes));
    }
}

fn refused(node: &Node, args: &[&str], code: i32, words: &[&str]) {
    let (ended, said) = partitions(node, args);
    assert_eq!(ended, code, "{args:?}: {said}");
    assert!(words.iter().all(|w| said.contains(w)), "{args:?}: {said}");
}

#[test]
fn the_number_of_partitions_changes_under_load() {
    let mut rng = Rng::from_env("cluster partitions");
    let mut cluster = Cluster::start(Plan::default());
    let lis = cluster.receiver(false, Behaviour::default(), rng.split());
    let mut web = cluster.receiver(true, Behaviour::default(), rng.split());
    // On a busy machine a receiver may take its time: what is delivered twice is so for another reason.
    let patient = |route: String| route.replace("timeout = \"2s\"", "timeout = \"30s\"");
    let channel = (queue("test.all", "true") + "outage = \"spool\"\n").replace("\"patient\"", "\"feed\"")
        + &patient(route("lis", &lis.target(), "primary = true"))
        + &patient(route("web", &web.target(), ""));
    let mut nodes: Vec<Node> = (1..=3)
        .map(|n| {
            let mut builder = cluster.node(n).node("domain = \"north\"");
            for feed in 0..FEEDS {
                let at = (cluster.machines[n - 1].ip, FIRST_PORT + feed);
                builder = builder.section(&format!("[[mllp]]\nname = \"feed{feed}\"\nlisten = \"{}:{}\"\n", at.0, at.1));
            }
            // The sooner a dead connection is one, the sooner a change is over.
            let builder = builder.section(&cluster.rabbitmq("heartbeat = \"2s\"")).section(&cluster.consul(""));
            builder.channel(&channel).start()
        })
        .collect();
    let name = "mllp.hie.service.consul";
    let resolver = cluster.resolver.as_ref().expect("a resolver");
    assert!(wait_until(20 * SECOND, || resolver.dig(name, "A").len() == 3), "{:?}", resolver.dig(name, "A"));

    // What it does not do.
    refused(&nodes[0], &["0"], 64, &["1..=1024"]);
    refused(&nodes[0], &["10000"], 64, &["1..=1024"]);
    refused(&nodes[0], &["seven"], 64, &["seven"]);
    refused(&nodes[0], &["7", "--consul", "http://127.0.0.1:1"], 69, &["cannot be reached"]);
    refused(&nodes[0], &["7", "--domain", "south"], 1, &["hie/south/layout"]);
    assert!(wait_until(20 * SECOND, || partitions(&nodes[0], &[]).0 == 0), "a node has put the layout there\n{}", logs(&nodes));
    refused(&nodes[0], &["4"], 1, &["4 partitions already"]);

    // Under load, and nothing else.
    let fleets = load(&cluster, "A", &mut rng);
    assert!(wait_until(30 * SECOND, || acknowledged(&fleets) > 300), "the load runs\n{}", logs(&nodes));
    let (code, said) = partitions(&nodes[0], &["7"]);
    assert_eq!(code, 0, "{said}");
    refused(&nodes[1], &["3"], 1, &["under way", "from 4 to 7"]);
    settled(&nodes, 1, 7, 150 * SECOND);
    only_queues_of(&cluster, 1, 3 * 7);
    let sent = stop(fleets);
    println!("longest wait for an acknowledgment: {:.1?}", sent.percentile(1.0));
    judged("4 to 7", &sent, &[("lis", &lis), ("web", &web)], Doubles::Forbidden, &nodes);

    // A node is killed in the middle, Consul is away, and so is one receiver all the while.
    web.down();
    let fleets = load(&cluster, "B", &mut rng);
    assert!(wait_until(30 * SECOND, || acknowledged(&fleets) > 300), "the load runs\n{}", logs(&nodes));
    let (code, said) = partitions(&nodes[2], &["3"]);
    assert_eq!(code, 0, "{said}");
    std::thread::sleep(Duration::from_millis(rng.range(0, 1500)));
    cluster.servers.kill_all();
    let killed = rng.range(0, 3) as usize;
    println!("Consul away and {} killed in {:?}", nodes[killed].setup.name, layouts(&nodes));
    nodes[killed].kill9();
    std::thread::sleep(Duration::from_millis(rng.range(0, 3000)));
    nodes[killed].start();
    let open = |l: &String| l.starts_with("2 3 ") && !l.ends_with("known") && !l.ends_with("quiet");
    assert!(
        wait_until(40 * SECOND, || layouts(&nodes).iter().all(open)),
        "without Consul: {:?}\n{}",
        layouts(&nodes),
        logs(&nodes)
    );
    cluster.servers.spawn_all();
    cluster.servers.wait_formed(60 * SECOND);
    settled(&nodes, 2, 3, 150 * SECOND);
    only_queues_of(&cluster, 2, 3 * 3);
    web.up();
    let mut sent = sent;
    sent.merge(stop(fleets));
    judged("7 to 3", &sent, &[("lis", &lis), ("web", &web)], Doubles::Counted, &nodes);
    let all: Vec<&Node> = nodes.iter().collect();
    let told = told_everywhere(&all, &[&sent], 50, &mut rng, 60 * SECOND);
    assert!(told.is_ok(), "{}\n{}", told.unwrap_err(), logs(&nodes));
}
