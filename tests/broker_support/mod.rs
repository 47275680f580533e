//! What the tests of the RabbitMQ transport share: settings for a broker of [`super::harness::parts`], queues, and a proxy that can
//! fall silent.
#![allow(dead_code)] // each test file uses its own part

use super::harness::parts::Rabbitmq;
use bytes::Bytes;
use hie::{
    config::BrokerUrl,
    transport::rabbitmq::{
        Confirmed, Consumer, Delivery, Link, LinkSettings, PasswordSource, PublishError, Publisher, PublisherLimits, QueueKind,
        QueueSpec, Session, topology,
    },
};
use lapin::types::{AMQPValue, FieldTable};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::watch,
    time::timeout,
};

pub const SECOND: Duration = Duration::from_secs(1);
pub const CONF: &str = "default_user = hie\ndefault_pass = sesame\nloopback_users = none\n";

pub fn settings(port: u16) -> LinkSettings {
    LinkSettings {
        brokers: vec![BrokerUrl { host: "127.0.0.1".into(), port, tls: false }],
        vhost: "/".into(),
        user: "hie".into(),
        password: PasswordSource::Given("sesame".into()),
        tls: None,
        heartbeat: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(5),
        name: "hie test".into(),
    }
}

pub fn link(broker: &Rabbitmq) -> Link {
    Link::start(settings(broker.port()), &Handle::current())
}

pub fn limits() -> PublisherLimits {
    PublisherLimits { confirm_timeout: Duration::from_secs(3), ..PublisherLimits::default() }
}

pub fn quorum(name: &str) -> QueueSpec {
    QueueSpec { name: name.into(), kind: QueueKind::Quorum { max_length: 1_000_000 } }
}

pub async fn declared(session: &Session, spec: &QueueSpec) -> Arc<str> {
    topology::declare(session, std::slice::from_ref(spec)).await.remove(0).expect("declared");
    spec.name.clone()
}

pub fn number(n: u64) -> Bytes {
    n.to_string().into_bytes().into()
}

pub fn read(payload: &Bytes) -> u64 {
    std::str::from_utf8(payload).expect("a number").parse().expect("a number")
}

pub async fn within<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(seconds), future).await.unwrap_or_else(|_| panic!("not within {seconds} s: {what}"))
}

/// Publishes and waits for all answers, in the order of the calls.
pub async fn publish(
    publisher: &Publisher,
    queue: &Arc<str>,
    numbers: impl IntoIterator<Item = u64>,
) -> Vec<Result<Confirmed, PublishError>> {
    let answers: Vec<_> = numbers.into_iter().map(|n| publisher.publish(queue, number(n), false)).collect();
    let mut all = Vec::new();
    for answer in answers {
        all.push(within(60, "an answer", answer).await);
    }
    all
}

/// Takes `count` messages, acknowledging none.
pub async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(within(20, "a delivery", consumer.next()).await.expect("a delivery"));
    }
    all
}

pub fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|d| read(&d.payload)).collect()
}

/// lapin as it is, for what this node never does.
pub async fn raw(broker: &Rabbitmq) -> lapin::Connection {
    let uri = format!("amqp://hie:sesame@127.0.0.1:{}/%2f", broker.port());
    lapin::Connection::connect(&uri, lapin::ConnectionProperties::default()).await.expect("connected")
}

pub async fn raw_queue(
    connection: &lapin::Connection,
    name: &str,
    arguments: &[(&'static str, AMQPValue)],
) -> lapin::Result<lapin::Queue> {
    let mut table = FieldTable::default();
    for (key, value) in arguments {
        table.insert((*key).into(), value.clone());
    }
    let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    connection.create_channel().await.expect("a channel").queue_declare(name.into(), options, table).await
}

pub fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Passes bytes between clients and a broker, until told to hold them.
pub struct Proxy {
    pub port: u16,
    hold: watch::Sender<bool>,
}

impl Proxy {
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (hold, held) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], to))).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, held.clone()));
                tokio::spawn(pass(from_server, to_client, held.clone()));
            }
        });
        Self { port, hold }
    }

    pub fn hold(&self, hold: bool) {
        self.hold.send_replace(hold);
    }
}

/// What is held is lost when its sender goes, as in a network that is cut.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut held: watch::Receiver<bool>,
) {
    let (mut buffer, mut holding) = (vec![0; 64 * 1024], Vec::new());
    loop {
        tokio::select! {
            read = from.read(&mut buffer) => match read {
                Ok(count @ 1..) => holding.extend_from_slice(&buffer[..count]),
                _ => return,
            },
            changed = held.changed() => if changed.is_err() { return },
        }
        if !*held.borrow_and_update() {
            if to.write_all(&holding).await.is_err() {
                return;
            }
            holding.clear();
        }
    }
}
