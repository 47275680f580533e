//! The bench of the cluster tests shows that it works: brokers and Consul form, machines are cut off and killed alone,
//! clients of one broker go on meanwhile, names answer, a node on a machine of its own is found by name; and nothing of
//! it stays behind, even when the test is killed.

mod cluster_support;
mod harness;

use cluster_support::net::{need, run};
use cluster_support::{Cluster, Machine, Net, Plan, Release, Settings};
use harness::channels::all_to;
use harness::{Behaviour, Doubles, Load, Rng, Via, check, wait_until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One cluster at a time: two cores.
static ONE: Mutex<()> = Mutex::new(());

/// Publishes and consumes through one broker all the while.
struct Pulse(Child);

impl Pulse {
    fn start(cluster: &Cluster, broker: &Machine) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster_support/pulse.py");
        need("/usr/lib/python3/dist-packages/pika", &["python3-pika"]);
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).arg(broker.ip.to_string()).arg("bench.pulse").env("AMQP_USER", cluster_support::broker::USER);
        command.env("AMQP_PASSWORD", &cluster.brokers.settings.password).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().expect("python3 starts"))
    }

    fn stop(mut self) -> Value {
        drop(self.0.stdin.take());
        let mut line = String::new();
        let out = self.0.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn open(to: SocketAddr) -> bool {
    TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()
}

/// A connection from inside a machine.
fn open_from(machine: &Machine, to: SocketAddr) -> bool {
    let script = format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port());
    machine.command("timeout").args(["1", "bash", "-c", &script]).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

#[test]
fn everything_can_be_cut_killed_and_started_alone() {
    let _one = ONE.lock();
    let mut cluster = Cluster::start(Plan { nodes: 1, ..Plan::default() });
    let r: Vec<Machine> = cluster.brokers.all.iter().map(|b| b.machine.clone()).collect();
    let amqp = |m: &Machine| -> SocketAddr { (m.ip, 5672).into() };
    let pulse = Pulse::start(&cluster, &r[0]);

    // Names, asked at an agent, at the resolver, and as a program on the machine asks.
    let n1 = cluster.machines[0].clone();
    let mut addresses: Vec<_> = r.iter().map(|m| m.ip.to_string()).collect();
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    addresses.sort();
    let resolver = cluster.resolver.as_ref().expect("a resolver");
    for agent in [&cluster.agents[0], resolver] {
        let told = || sorted(agent.dig("rabbitmq.service.consul", "A"));
        // The server that is asked may be a moment behind the leader.
        assert!(wait_until(Duration::from_secs(5), || told() == addresses), "{:?}", told());
    }
    assert_eq!(cluster.agents[0].dig("rabbitmq.service.consul", "SRV").len(), 3);
    let inside = run(n1.command("getent").args(["ahostsv4", "rabbitmq.service.consul"]), "");
    assert!(addresses.iter().all(|a| inside.contains(a.as_str())), "{inside}");

    // One machine cut off from another, the rest as before.
    n1.cut_from(&[&r[0], &r[1]]);
    assert!(!open_from(&n1, amqp(&r[0])) && !open_from(&n1, amqp(&r[1])) && open_from(&n1, amqp(&r[2])));
    n1.heal_from();
    assert!(open_from(&n1, amqp(&r[0])));
    // A machine without its cable.
    r[2].cut();
    assert!(!open(amqp(&r[2])) && open(amqp(&r[0])));
    std::thread::sleep(Duration::from_secs(20));
    assert_eq!(cluster.brokers.all[0].members(), 2, "the others have noticed");
    r[2].heal();
    let begin = Instant::now();
    assert!(wait_until(Duration::from_secs(60), || cluster.brokers.all[0].members() == 3), "it comes back");
    println!("broker cut off for 20 s: a member again {:.1?} after healing", begin.elapsed());
    cluster.brokers.all[1].kill9();
    assert!(!open(amqp(&r[1])));
    let took = cluster.brokers.all[1].start();
    assert!(wait_until(Duration::from_secs(60), || cluster.brokers.all[0].members() == 3), "it comes back");
    println!("broker killed: ready {took:.1?} after its start");

    let told = pulse.stop();
    println!("through one broker meanwhile: {told}");
    assert!(told["confirmed"].as_u64() > Some(100) && told["arrived"].as_u64() >= told["confirmed"].as_u64(), "{told}");
    assert_eq!((&told["lost"], &told["out_of_order"]), (&json!(0), &json!(0)), "{told}");
    let queues = cluster.brokers.all[0].queues().expect("queues");
    assert_eq!((queues.len(), &queues[0]["name"], &queues[0]["type"]), (1, &json!("bench.pulse"), &json!("quorum")));
    let memory: Vec<_> = cluster.brokers.all.iter().map(|b| b.rss_kib() / 1024).collect();
    println!("brokers' memory: {memory:?} MiB");
    assert!(memory.iter().all(|m| (50..2000).contains(m)), "{memory:?}");

    found_by_name(&mut cluster);
}

/// A node on its machine, found by name by senders while it is killed and while Consul is away.
fn found_by_name(cluster: &mut Cluster) {
    let service = json!({ "Name": "hie", "Tags": ["mllp"], "Port": 2575, "Address": cluster.machines[0].ip });
    cluster.agents[0].put("/v1/agent/service/register", &service.to_string());
    let mut rng = Rng::from_env("bench");
    let receiver = cluster.receiver(false, Behaviour { close: 0.01, ..Behaviour::default() }, rng.split());
    let mut node = cluster.node(1).channel(all_to(&receiver)).start();
    let name = "mllp.hie.service.consul";
    let resolver = cluster.resolver.as_ref().expect("a resolver");
    assert!(wait_until(Duration::from_secs(10), || resolver.dig(name, "A").len() == 1), "{}", resolver.log_tail(10));
    let via = Via::MllpNamed(cluster.lookup(name, 2575));
    let load = Load { connections: 4, rate: Some(200.0), seed: rng.next(), ..Load::new(via) }.start();

    let leader = cluster.servers.kill_leader();
    let begin = Instant::now();
    cluster.servers.wait_formed(Duration::from_secs(30));
    println!("Consul: another leader {:.1?} after the kill", begin.elapsed());
    cluster.servers.all[leader].spawn();
    cluster.servers.kill_all();
    node.kill9();
    assert_eq!(cluster.agents[0].dig(name, "A"), Vec::<String>::new(), "a plain agent gives nothing without servers");
    let resolver = cluster.resolver.as_ref().expect("a resolver");
    assert_eq!(resolver.dig(name, "A").len(), 1, "the caching one still answers");
    node.start();
    let before = load.acknowledged();
    assert!(wait_until(Duration::from_secs(20), || load.acknowledged() > before + 100), "senders find it without servers");
    cluster.servers.spawn_all();
    let begin = Instant::now();
    cluster.servers.wait_formed(Duration::from_secs(60));
    println!("Consul: formed again {:.1?} after the start of all", begin.elapsed());

    let sent = load.stop(Duration::from_secs(30));
    assert!(receiver.wait_for(&sent, Duration::from_secs(30)), "{}", node.log_tail(20));
    check(&sent, &receiver.arrivals(), Doubles::Counted).unwrap_or_else(|fault| panic!("{fault}"));
    assert!(sent.reconnects > 0, "the kill was seen");
    // Its machine without a cable: the management API is as far away as for anyone.
    assert_eq!(node.get("/health/live").status, 200);
    cluster.machines[0].cut();
    assert!(!open(node.mllp));
    cluster.machines[0].heal();
    assert!(wait_until(Duration::from_secs(5), || open(node.mllp)));
}

#[test]
fn rabbitmq_4_forms_and_takes_what_hie_declares() {
    let _one = ONE.lock();
    let settings = Settings { release: Release::V4, ..Settings::default() };
    let cluster = Cluster::start(Plan { settings, servers: 0, nodes: 0, ..Plan::default() });
    let pulse = Pulse::start(&cluster, &cluster.brokers.all[0].machine);
    std::thread::sleep(Duration::from_secs(5));
    let told = pulse.stop();
    println!("through one broker: {told}");
    assert!(told["confirmed"].as_u64() > Some(20) && told["lost"] == 0 && told["out_of_order"] == 0, "{told}");
}

/// The part of the next test that is killed: a network with a process in it.
#[test]
fn held() {
    if std::env::var_os("HIE_BENCH_HELD").is_none() {
        return;
    }
    let net = Net::new(&["m1".to_owned()]);
    let machine = net.machine("m1");
    let mut sleeping = machine.command("sleep").arg("600").spawn().expect("sleep runs");
    assert!(wait_until(Duration::from_secs(5), || machine.pids().len() == 1));
    println!("held {} {}", machine.wrapper()[3], sleeping.id());
    let _ = sleeping.wait();
}

#[test]
fn nothing_stays_behind_when_the_test_is_killed() {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "held", "--nocapture"]).env("HIE_BENCH_HELD", "1").stdout(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let out = BufReader::new(child.stdout.take().expect("its output"));
    let line = out.lines().map_while(Result::ok).find(|l| l.starts_with("held ")).expect("it says where it is");
    let words: Vec<_> = line.split(' ').collect();
    let here = || run(Command::new("ip").args(["netns", "list"]), "").contains(words[1]);
    assert!(here());
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    assert!(wait_until(Duration::from_secs(20), || !here()), "{} stayed", words[1]);
    assert!(!Path::new("/proc").join(words[2]).join("exe").exists(), "process {} stayed", words[2]);
    let run_id = words[1].trim_start_matches("hie").trim_end_matches("-m1");
    let folder = std::env::temp_dir().join(format!("hie-cluster-{run_id}"));
    assert!(wait_until(Duration::from_secs(5), || !folder.exists()));
    assert!(!Path::new("/etc/netns").join(words[1]).exists());
}
