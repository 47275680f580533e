//! What a cluster does while a part of it is away for long, on real parts: the names hold exactly the healthy nodes; all brokers are
//! away (`spool`, `refuse`); one receiver is away for longer than the broker's consumer timeout; and then a node with an empty disk
//! joins and knows everything. One cluster for all of it; the figures are printed.
//!
//! Longer in `tests/run --full`: `HIE_BROKERS_AWAY` and `HIE_ROUTE_DEAD` in seconds, `HIE_JOIN_MESSAGES`.

mod cluster_support;
mod harness;

use cluster_support::judge::told_everywhere;
use cluster_support::{Cluster, Memory, Plan, Settings};
use harness::channels::{queue, route};
use harness::ledger::{search, transactions_each};
use harness::sender::{Fleet, Lookup};
use harness::wire::{Frames, frame, text};
use harness::{Behaviour, Doubles, Load, Node, Receiver, Rng, Sent, Via, check, env_number, wait_until};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// Size of the messages that wait for the dead route.
const WAITING: usize = 8000;

/// Where each channel's messages go.
struct Receivers {
    spool: Receiver,
    refuse: Receiver,
    /// The route that will be dead, and its sibling.
    dead: Receiver,
    sibling: Receiver,
    bulk: Receiver,
}

impl Receivers {
    fn new(cluster: &Cluster, rng: &mut Rng) -> Self {
        let mut one = || cluster.receiver(false, Behaviour::default(), rng.split());
        Self { spool: one(), refuse: one(), dead: one(), sibling: one(), bulk: one() }
    }

    fn channels(&self) -> String {
        let channel = |name: &str, when: &str, outage: &str| queue(name, when) + &format!("outage = \"{outage}\"\n");
        let path = |path: &str| format!("protocol == \"http\" && path == \"/{path}\"");
        let all = [
            channel("test.spool", "protocol == \"mllp\"", "spool") + &route("lis", &self.spool.target(), "primary = true"),
            channel("test.refuse", &path("refuse"), "refuse") + &route("lis", &self.refuse.target(), "primary = true"),
            channel("test.two", &path("two"), "spool")
                + &route("sibling", &self.sibling.target(), "primary = true")
                + &route("dead", &self.dead.target(), ""),
            // Several partitions.
            channel("test.bulk", &path("bulk"), "spool").replace("\"patient\"", "\"none\"")
                + &route("lis", &self.bulk.target(), "primary = true"),
        ];
        all.concat()
    }
}

fn node(cluster: &Cluster, number: usize, channels: &str) -> Node {
    let builder = cluster.node(number).node("domain = \"north\"").section(&cluster.rabbitmq("hold = \"6s\""));
    builder.section(&cluster.consul("dns_ttl = \"1s\"")).channel(channels).lay_out()
}

fn over_http(cluster: &Cluster, path: &str, name: &str, rng: &mut Rng) -> Load {
    let via = Via::HttpNamed(cluster.lookup("http.hie.service.consul", 5001), format!("/{path}"));
    // A refusal takes as long as the brokers are given to choose another leader.
    Load { connections: 4, name: name.into(), seed: rng.next(), timeout: Duration::from_secs(20), ..Load::new(via) }
}

fn logs(nodes: &[Node]) -> String {
    nodes.iter().map(|n| n.log_tail(20)).collect::<Vec<_>>().join("\n")
}

/// Everything acknowledged is there, in order.
fn judged(what: &str, sent: &Sent, receiver: &Receiver, doubles: Doubles, limit: Duration, faults: &mut Vec<String>) {
    let begin = Instant::now();
    if !receiver.wait_for(sent, limit) {
        faults.push(format!("{what}: not everything acknowledged was delivered within {limit:?}"));
    }
    print!("{what}: all delivered after {:.1?}: ", begin.elapsed());
    faults.extend(check(sent, &receiver.arrivals(), doubles).err().map(|fault| format!("{what}: {fault}")));
}

#[test]
fn what_is_away_for_long_loses_nothing_and_a_joiner_knows_all() {
    let mut rng = Rng::from_env("cluster outages");
    let settings = Settings { consumer_timeout: Duration::from_secs(20), ..Settings::default() };
    let mut cluster = Cluster::start(Plan { nodes: 4, settings, ..Plan::default() });
    let mut receivers = Receivers::new(&cluster, &mut rng);
    let channels = receivers.channels();
    let mut nodes: Vec<_> = (1..=3).map(|n| node(&cluster, n, &channels)).collect();
    for node in &mut nodes {
        node.start();
    }
    let begin = Instant::now();
    let mut faults = Vec::new();
    names(&cluster, &mut nodes);
    println!("--- names: {:.0?}", begin.elapsed());
    let mut sent = brokers_away(&mut cluster, &receivers, &nodes, &mut rng, &mut faults);
    println!("--- brokers away: {:.0?}", begin.elapsed());
    sent.extend(a_dead_route(&cluster, &mut receivers, &nodes, &mut rng, &mut faults));
    println!("--- a dead route: {:.0?}", begin.elapsed());
    nodes.push(node(&cluster, 4, &channels));
    joins(&mut nodes, &sent, &mut rng, &mut faults);
    println!("--- a joiner: {:.0?}", begin.elapsed());
    assert!(faults.is_empty(), "{}\n{}", faults.join("\n"), logs(&nodes));
}

/// What the agents of the nodes' machines say, each asked for itself: exactly these nodes, under all three names.
fn named(cluster: &Cluster, expected: &[usize]) -> bool {
    let ip = |n: usize| cluster.machines[n - 1].ip;
    let addresses: BTreeSet<_> = expected.iter().map(|n| ip(*n).to_string()).collect();
    let srv: BTreeSet<_> = expected
        .iter()
        .map(|n| {
            let hex: String = ip(*n).octets().iter().map(|b| format!("{b:02x}")).collect();
            format!("1 10 2575 {hex}.addr.dc1.consul.")
        })
        .collect();
    cluster.agents.iter().all(|agent| {
        let told = |name: &str, kind: &str| agent.dig(name, kind).into_iter().collect::<BTreeSet<_>>();
        told("hie.service.consul", "A") == addresses
            && told("north.hie.service.consul", "A") == addresses
            && told("mllp.hie.service.consul", "SRV") == srv
    })
}

fn names(cluster: &Cluster, nodes: &mut [Node]) {
    assert!(wait_until(20 * SECOND, || named(cluster, &[1, 2, 3])), "{:?}", cluster.agents[0].dig("hie.service.consul", "A"));
    let gone = |cluster: &Cluster| {
        let ip = cluster.machines[2].ip.to_string();
        // Asked where the dead one was not: a machine that stays.
        !cluster.agents[0].dig("hie.service.consul", "A").contains(&ip)
            && !cluster.agents[1].dig("mllp.hie.service.consul", "A").contains(&ip)
    };
    nodes[2].kill9();
    let killed = Instant::now();
    assert!(wait_until(3 * SECOND, || gone(cluster)), "gone from the names within 3 s");
    println!("gone from the names {:.2?} after kill -9", killed.elapsed());
    assert!(wait_until(SECOND, || named(cluster, &[1, 2])), "the others stay");
    nodes[2].start();
    assert!(wait_until(10 * SECOND, || named(cluster, &[1, 2, 3])), "it is named again");
    // Drained: looked at in turn, the name first, so that what is refused was asked for after what was named.
    nodes[2].signal(Signal::SIGTERM);
    let drained = Instant::now();
    let (mut last_named, mut number) = (drained, 0);
    let refused = loop {
        let asked = Instant::now();
        if !gone(cluster) {
            last_named = asked;
        }
        number += 1;
        let asked = Instant::now();
        if !serves(nodes[2].mllp, number) {
            break asked;
        }
        assert!(drained.elapsed() < 30 * SECOND, "it goes on for ever\n{}", nodes[2].log_tail(20));
    };
    let margin = refused.saturating_duration_since(last_named);
    println!("drained: {number} messages taken and then none, {margin:.2?} after it was last named");
    assert!(number > 1 && margin > Duration::from_millis(500), "it refuses while it is named");
    assert!(nodes[2].wait_end(30 * SECOND).is_some_and(|s| s.success()), "{}", nodes[2].log_tail(20));
    assert!(named(cluster, &[1, 2]));
    nodes[2].start();
    assert!(wait_until(10 * SECOND, || named(cluster, &[1, 2, 3])), "it is named again");
}

/// A message on a new connection is acknowledged.
fn serves(at: SocketAddr, number: u32) -> bool {
    let exchange = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&at, SECOND)?;
        stream.set_read_timeout(Some(15 * SECOND))?;
        let message = format!("MSH|^~\\&|PROBE|B|C|D|20260101||ADT^A08|PROBE{number}|P|2.5\rPID|1||PROBE\r");
        stream.write_all(&frame(message.as_bytes()))?;
        let answer = Frames::new(stream).read()?.unwrap_or_default();
        Ok(text(&answer, "MSA", 1) == "AA")
    };
    exchange().unwrap_or(false)
}

/// Acknowledged and refused so far.
fn so_far(fleet: &Fleet) -> (u64, u64) {
    (fleet.acknowledged(), fleet.refused())
}

/// All brokers at once lose power, for a while.
fn brokers_away(
    cluster: &mut Cluster,
    receivers: &Receivers,
    nodes: &[Node],
    rng: &mut Rng,
    faults: &mut Vec<String>,
) -> Vec<Sent> {
    let away = Duration::from_secs(env_number("HIE_BROKERS_AWAY", 20));
    let rate = 60.0;
    let lookup: Lookup = cluster.lookup("mllp.hie.service.consul", 2575);
    let spooling =
        Load { connections: 6, rate: Some(rate), name: "S".into(), seed: rng.next(), ..Load::new(Via::MllpNamed(lookup)) };
    let spooling = Load { timeout: 20 * SECOND, ..spooling }.start();
    let refusing = Load { rate: Some(40.0), ..over_http(cluster, "refuse", "R", rng) }.start();
    let running = wait_until(20 * SECOND, || receivers.spool.accepted() > 100 && receivers.refuse.accepted() > 50);
    assert!(running, "the load runs\n{}", logs(nodes));

    cluster.brokers.kill_all();
    std::thread::sleep(SECOND);
    let (spooled, refused) = (so_far(&spooling), so_far(&refusing));
    std::thread::sleep(away - SECOND);
    let (spooled_at_last, refused_at_last) = (so_far(&spooling), so_far(&refusing));
    println!(
        "all brokers away for {away:?}: with spool {} acknowledged and {} refused, with refuse {} and {}; in the spools {:?}",
        spooled_at_last.0 - spooled.0,
        spooled_at_last.1 - spooled.1,
        refused_at_last.0 - refused.0,
        refused_at_last.1 - refused.1,
        nodes.iter().map(|n| n.metric("hie_spooled").unwrap_or(-1.0)).collect::<Vec<_>>()
    );
    // The first of them wait for the brokers for five seconds and are made up for afterwards.
    if ((spooled_at_last.0 - spooled.0) as f64) < (away.as_secs_f64() - 8.0) * rate {
        faults.push("brokers away: senders were not acknowledged all the while".into());
    }
    if spooled_at_last.1 > spooled.1 {
        faults.push("brokers away: a channel that spools refused".into());
    }
    if refused_at_last.0 > refused.0 || refused_at_last.1 == refused.1 {
        faults.push("brokers away: the senders of the channel that refuses were not told, or were acknowledged".into());
    }
    let begin = Instant::now();
    cluster.brokers.spawn_all();
    cluster.brokers.wait_formed(120 * SECOND);
    println!("brokers: serving {:.1?} after their start", begin.elapsed());
    let before = refusing.acknowledged();
    if !wait_until(30 * SECOND, || refusing.acknowledged() > before + 20) {
        faults.push("brokers away: not accepted again within 30 s of their coming back".into());
    }
    println!("brokers: accepting with refuse {:.1?} after their start", begin.elapsed());
    let (spooling, refusing) = (spooling.stop(60 * SECOND), refusing.stop(60 * SECOND));
    judged("spool", &spooling, &receivers.spool, Doubles::Counted, 60 * SECOND, faults);
    judged("refuse", &refusing, &receivers.refuse, Doubles::Counted, 60 * SECOND, faults);
    println!("refused with {:?}", refusing.refused);
    let drained = wait_until(10 * SECOND, || nodes.iter().all(|n| n.metric("hie_spooled") == Some(0.0)));
    if !drained {
        faults.push("brokers away: something is left in a spool".into());
    }
    vec![spooling, refusing]
}

/// One receiver is away for longer than the brokers let a consumer hold a message, while other channels are busy.
fn a_dead_route(
    cluster: &Cluster,
    receivers: &mut Receivers,
    nodes: &[Node],
    rng: &mut Rng,
    faults: &mut Vec<String>,
) -> Vec<Sent> {
    let dead = Duration::from_secs(env_number("HIE_ROUTE_DEAD", 45));
    let bulk = env_number("HIE_JOIN_MESSAGES", 20_000);
    receivers.dead.down();
    let (before, begin) = (memory_at_rest(cluster), Instant::now());
    // Large enough that the backlog is more than what a broker's memory goes up and down by itself.
    let two = Load { rate: Some(30.0), size: WAITING, ..over_http(cluster, "two", "T", rng) }.start();
    let many = Load { connections: 64, count: Some(bulk / 64), ..over_http(cluster, "bulk", "B", rng) };
    // Meanwhile the domain's ledger grows.
    let many = many.start().join(Duration::from_secs(60 + bulk / 50));
    let took = begin.elapsed();
    println!(
        "bulk: {} acknowledged in {took:.1?}, {:.0} a second",
        many.acknowledged.len(),
        many.acknowledged.len() as f64 / took.as_secs_f64()
    );
    std::thread::sleep(dead.saturating_sub(begin.elapsed()));
    let two = two.stop(30 * SECOND);
    println!("dead for {:.0?} with {} messages waiting", begin.elapsed(), two.acknowledged.len());
    judged("sibling of the dead route", &two, &receivers.sibling, Doubles::Forbidden, 20 * SECOND, faults);
    // Ordered by nothing.
    if !receivers.bulk.wait_for(&many, 60 * SECOND) {
        faults.push("another channel: not everything acknowledged was delivered within 60 s".into());
    }
    println!("another channel: acknowledged {}, arrivals {}", many.acknowledged.len(), receivers.bulk.count());
    let backlog = (two.acknowledged.len() * WAITING) as u64;
    faults.extend(grown(cluster, &before, backlog));
    println!("timeouts of consumers: {}", timeouts(cluster));
    if receivers.dead.accepted() > 0 {
        faults.push("the dead one took something".into());
    }
    receivers.dead.up();
    let limit = 60 * SECOND + Duration::from_secs(two.acknowledged.len() as u64 / 50);
    judged("the dead route", &two, &receivers.dead, Doubles::Forbidden, limit, faults);
    // What is delivered twice comes a moment later.
    std::thread::sleep(3 * SECOND);
    faults.extend(check(&two, &receivers.dead.arrivals(), Doubles::Forbidden).err().map(|f| format!("the dead route: {f}")));
    if timeouts(cluster) > 0 {
        faults.push(format!("the brokers took {} channels away for a consumer's timeout", timeouts(cluster)));
    }
    if two.acknowledged.len() < 500 || many.acknowledged.len() as u64 != bulk / 64 * 64 {
        faults.push(format!("the load did not run\n{}", logs(nodes)));
    }
    vec![two, many]
}

/// What each broker has allocated and what the system has given it, in bytes.
fn memory(cluster: &Cluster) -> Vec<(Memory, u64)> {
    cluster.brokers.all.iter().map(|b| (b.memory(), b.rss_kib() << 10)).collect()
}

/// The same when what went before has come to rest: measured too high, it would make the backlog look smaller than it is.
fn memory_at_rest(cluster: &Cluster) -> Vec<(Memory, u64)> {
    let mut last = memory(cluster);
    for _ in 0..10 {
        std::thread::sleep(SECOND);
        let now = memory(cluster);
        let falls = last.iter().zip(&now).any(|(last, now)| last.0.total > now.0.total + (1 << 20));
        last = now;
        if !falls {
            break;
        }
    }
    last
}

/// Prints what a backlog costs the brokers; `Some` when one has allocated more for it than the backlog's own bytes.
fn grown(cluster: &Cluster, before: &[(Memory, u64)], backlog: u64) -> Option<String> {
    let (mut now, mut fault) = (vec![], None);
    // What was received last may still be on its way to the disk.
    wait_until(30 * SECOND, || {
        now = memory(cluster);
        let much = before.iter().zip(&now).position(|(before, now)| now.0.total > before.0.total + backlog);
        fault = much.map(|which| format!("r{} has allocated more for the backlog than the backlog's bytes", which + 1));
        fault.is_none()
    });
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "backlog: {:.1} MiB. Brokers, in MiB, before and with it (allocated, garbage collected; resident is not judged):",
        mib(backlog)
    );
    for (number, (before, now)) in (1..).zip(before.iter().zip(&now)) {
        let change = |of: fn(&Memory) -> u64| format!("{:.1} to {:.1}", mib(of(&before.0)), mib(of(&now.0)));
        println!(
            "  r{number}: allocated {}: queues {}, their tables {}, streams {}, bodies {}; resident {:.0} to {:.0}",
            change(|m| m.total),
            change(|m| m.queues),
            change(|m| m.queue_tables),
            change(|m| m.streams),
            change(|m| m.bodies),
            mib(before.1),
            mib(now.1)
        );
    }
    fault
}

/// How often a broker took a channel away because a consumer held a message too long.
fn timeouts(cluster: &Cluster) -> usize {
    let lines =
        |log: String| log.lines().filter(|l| l.contains("timed out waiting for") || l.contains("consumer_timeout")).count();
    cluster.brokers.all.iter().map(|b| lines(b.log())).sum()
}

/// The last of the nodes starts for the first time, with nothing.
fn joins(nodes: &mut [Node], sent: &[Sent], rng: &mut Rng, faults: &mut Vec<String>) {
    let rows = |node: &Node| {
        let mut rows = 0;
        transactions_each(node, |_| rows += 1);
        rows
    };
    let wanted: usize = rows(&nodes[0]);
    let Some(joiner) = nodes.last_mut() else { return };
    let begin = Instant::now();
    let ready = joiner.start();
    let limit = Duration::from_secs(60 + wanted as u64 / 200);
    // The latest ones come last.
    let latest = sent.iter().filter_map(|s| s.acknowledged.last()).map(|tag| tag.id.clone());
    let latest: Vec<_> = latest.map(|id| serde_json::json!({ "controlId": id })).collect();
    let has_latest = wait_until(limit, || latest.iter().all(|what| !search(joiner, what).is_empty()));
    println!(
        "a joiner: ready {ready:.1?} after its start, finds the latest of each load {:.1?} after it ({has_latest})",
        begin.elapsed()
    );
    let (mut found, mut looked) = (0, Instant::now());
    let complete = wait_until(limit, || {
        looked = Instant::now();
        found = rows(joiner);
        found >= wanted
    });
    println!(
        "a joiner: tells of all {found} of {wanted} transactions {:.1?} after its start, of which the last look through them took {:.1?}",
        begin.elapsed(),
        looked.elapsed()
    );
    if !complete {
        faults.push(format!("a joiner: knows {found} of {wanted} transactions after {limit:?}"));
    }
    let sent: Vec<_> = sent.iter().collect();
    faults.extend(told_everywhere(&[&*joiner], &sent, 200, rng, 60 * SECOND).err());
}
