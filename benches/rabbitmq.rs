//! Queue mode through RabbitMQ, messages of 1 KB, one in flight per sender: a node's accepting over MLLP against a bare lapin publisher with
//! the same queues, confirms and number in flight, on the same broker in the same run, alternating.
//!
//! - *one by one*: the bare publisher; every sender publishes one message and waits for its confirm. Limit: the node reaches at least nine
//!   tenths of it with 16 senders; with 256, where it sends what waits together in one message, the aim is three times as much.
//! - *accepted*: everything runs but the delivery, which is paused
//! - *end to end*: delivered to a bare sink; counted as accepted less what the backlog grew by
//!
//! Then the same load over one, two and three nodes of a domain: the nodes' processor time per message does not rise with their number, apart from
//! what each of them spends on keeping the whole ledger (each applies what the others wrote), which is why it is printed.
//!
//! `cargo bench --bench rabbitmq`; `HIE_BENCH_SECONDS`, `HIE_BENCH_ROUNDS`. The broker is one, of Debian 12.

mod common;
#[path = "../tests/harness/mod.rs"]
mod harness;

use common::mllp::Sender;
use common::{Exchange, Figures, Peer, Series, load, phase, ratio, rounds, table};
use harness::node::{Node, free_port, metric};
use harness::parts::{self, Rabbitmq};
use harness::{Builder, channels, wait_until};
use hie::{
    config::BrokerUrl,
    transport::rabbitmq::{Link, LinkSettings, PasswordSource, QueueKind, QueueSpec, topology},
};
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};

const PARTITIONS: usize = 4;
const CONF: &str = "default_user = hie\ndefault_pass = sesame\nloopback_users = none\n";

fn main() {
    common::play_role();
    let dir = tempfile::tempdir().expect("a folder");
    let password = dir.path().join("password");
    std::fs::write(&password, "sesame\n").expect("a file");
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("permissions");
    let broker = Rabbitmq::start(&parts::fetch("rabbitmq-3.10"), CONF);
    let receiver = Peer::start("--bare-mllp", free_port());
    let mut rows = Vec::new();
    for connections in [16, 256] {
        let [mut bare, mut accepted, mut through] = std::array::from_fn(|_| Series::default());
        let mut notes = Vec::new();
        for round in 0..rounds() {
            bare.add(publish(&broker, connections, round));
            let node = start(&broker, &password, receiver.1, &format!("p{connections}r{round}"), true);
            send(node.mllp, connections, Duration::from_secs(1));
            accepted.add(send(node.mllp, connections, phase()));
            drop(node);
            let node = start(&broker, &password, receiver.1, &format!("d{connections}r{round}"), false);
            send(node.mllp, connections, Duration::from_secs(2));
            let before = waiting(&node);
            let mut figures = send(node.mllp, connections, phase());
            let after = waiting(&node);
            figures.count = figures.count.saturating_sub((after - before).max(0.0) as u64);
            notes.push(format!("{connections} senders: not delivered {before:.0} → {after:.0}"));
            through.add(figures);
        }
        for (what, series, least) in [
            ("bare publisher, one by one", &bare, 0.0),
            ("accepted", &accepted, if connections == 16 { 0.9 } else { 3.0 }),
            ("end to end", &through, 0.0),
        ] {
            rows.push(vec![
                connections.to_string(),
                what.to_owned(),
                format!("{:.0}", series.rate()),
                format!("{:.2}", series.ms(0.5)),
                format!("{:.2}", series.ms(0.99)),
                series.failed().to_string(),
                if least > 0.0 {
                    ratio(series.rate(), bare.rate(), least)
                } else {
                    format!("{:.3}", series.rate() / bare.rate())
                },
            ]);
        }
        notes.iter().for_each(|note| println!("{note}"));
    }
    table(&["senders", "what", "messages/s", "p50 ms", "p99 ms", "failed", "of the bare publisher's rate"], &rows);
    curve(&broker, &password, receiver.1);
}

/// The same number of senders, spread over one, two and three nodes.
fn curve(broker: &Rabbitmq, password: &std::path::Path, receiver: SocketAddr) {
    const SENDERS: usize = 96;
    let mut rows = Vec::new();
    for count in 1..=3usize {
        let (mut series, mut cpu, mut delivered) = (Series::default(), Vec::new(), Vec::new());
        for round in 0..rounds() {
            let domain = format!("c{count}r{round}");
            let nodes: Vec<Node> =
                (0..count).map(|n| start_named(broker, password, receiver, &domain, false, &format!("n{n}"))).collect();
            let to: Vec<SocketAddr> = nodes.iter().map(|node| node.mllp).collect();
            let spread = move |number: usize| Sender::connect(to[number % to.len()], number);
            load(SENDERS, Duration::from_secs(3), spread.clone());
            let done = |nodes: &[Node]| nodes.iter().map(|n| n.metric("hie_deliveries_total").unwrap_or(0.0)).sum::<f64>();
            let (used, before) = (ticks(&nodes), done(&nodes));
            let figures = load(SENDERS, phase(), spread);
            delivered.push((done(&nodes) - before) / figures.elapsed.as_secs_f64());
            cpu.push((ticks(&nodes) - used) * 1000.0 / figures.count.max(1) as f64);
            series.add(figures);
        }
        rows.push(vec![
            count.to_string(),
            format!("{:.0}", series.rate()),
            format!("{:.0}", common::median(delivered)),
            format!("{:.2}", series.ms(0.5)),
            format!("{:.2}", series.ms(0.99)),
            format!("{:.3}", common::median(cpu)),
        ]);
    }
    table(&["nodes", "accepted/s", "delivered/s", "p50 ms", "p99 ms", "nodes' processor ms per message"], &rows);
}

/// Processor time of all nodes so far, in seconds.
fn ticks(nodes: &[Node]) -> f64 {
    let of = |node: &Node| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid())).expect("the node runs");
        // After the name in brackets: user time is the 12th field, system time the 13th, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        fields[11..13].iter().map(|field| field.parse::<f64>().expect("a number")).sum::<f64>() / 100.0
    };
    nodes.iter().map(of).sum()
}

/// A node of a domain of its own, so that no run finds another's queues.
fn start(broker: &Rabbitmq, password: &std::path::Path, receiver: SocketAddr, domain: &str, paused: bool) -> Node {
    start_named(broker, password, receiver, domain, paused, "witness")
}

/// One of several nodes of a domain.
fn start_named(
    broker: &Rabbitmq,
    password: &std::path::Path,
    receiver: SocketAddr,
    domain: &str,
    paused: bool,
    name: &str,
) -> Node {
    let target = format!("mllp = [\"{receiver}\"]");
    let more = if paused { "paused = true" } else { "in_flight = 64" };
    let channel = "[[channel]]\nname = \"bench.adt\"\nwhen = 'true'\nmode = \"queue\"\norder = \"none\"\n".to_owned();
    let builder = Builder { name: name.into(), ..Builder::default() };
    let node = builder
        .node(&format!("cluster = \"auto\"\ndomain = \"{domain}\""))
        .section(&format!(
            "[transport]\nkind = \"rabbitmq\"\nurls = [\"amqp://127.0.0.1:{}\"]\npassword_file = {password:?}\npartitions = {PARTITIONS}\n\
             [limits]\nmax_pending = 50_000_000\n",
            broker.port()
        ))
        .channel(channel + &channels::route("sink", &target, more))
        .start();
    let up = wait_until(Duration::from_secs(20), || node.metric("hie_broker_up") == Some(1.0));
    assert!(up, "{}", node.log_tail(20));
    node
}

fn send(to: SocketAddr, connections: usize, span: Duration) -> Figures {
    load(connections, span, move |number| Sender::connect(to, number))
}

/// Accepted and not delivered.
fn waiting(node: &Node) -> f64 {
    let text = node.metrics();
    // A counter is told from its first event on.
    let of = |name: &str| metric(&text, name).unwrap_or(0.0);
    of("hie_messages_accepted_total") - of("hie_deliveries_total")
}

/// One sender of the bare publisher.
struct Bare {
    channel: Channel,
    queue: Arc<str>,
    payload: Vec<u8>,
}

impl Exchange for Bare {
    async fn once(&mut self) -> std::io::Result<bool> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let confirm = self.channel.basic_publish("".into(), (*self.queue).into(), options, &self.payload, properties).await;
        let confirm = confirm.map_err(std::io::Error::other)?.await.map_err(std::io::Error::other)?;
        Ok(matches!(confirm, Confirmation::Ack(None)))
    }
}

/// The bare publisher: senders share a connection, and a channel for each queue.
fn publish(broker: &Rabbitmq, connections: usize, round: u64) -> Figures {
    let port = broker.port();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let channels = runtime.block_on(async {
        let settings = LinkSettings {
            brokers: vec![BrokerUrl { host: "127.0.0.1".into(), port, tls: false }],
            vhost: "/".into(),
            user: "hie".into(),
            password: PasswordSource::Given("sesame".into()),
            tls: None,
            heartbeat: Duration::from_secs(6),
            connect_timeout: Duration::from_secs(5),
            name: "bench".into(),
        };
        let link = Link::start(settings, &tokio::runtime::Handle::current());
        let session = link.session().await;
        let queue = |p: usize| topology::inbox(&format!("bare{connections}r{round}"), "bench.adt", p as u16, 0);
        let specs: Vec<QueueSpec> =
            (0..PARTITIONS).map(|p| QueueSpec { name: queue(p), kind: QueueKind::Quorum { max_length: 100_000_000 } }).collect();
        for answer in topology::declare(&session, &specs).await {
            answer.expect("declared");
        }
        let uri = format!("amqp://hie:sesame@127.0.0.1:{port}/%2f");
        let connection = lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await.expect("connected");
        let mut channels = Vec::new();
        for spec in &specs {
            let channel = connection.create_channel().await.expect("a channel");
            channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
            channels.push((channel, spec.name.clone()));
        }
        channels
    });
    load(connections, phase(), move |number| {
        let (channel, queue) = channels[number % PARTITIONS].clone();
        async move { Ok(Bare { channel, queue, payload: vec![b'x'; 1000] }) }
    })
}
