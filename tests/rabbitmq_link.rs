//! The lower half of the RabbitMQ transport on real brokers, of Debian 12 (3.10) and Debian 13 (4.x).

mod harness;

use bytes::Bytes;
use harness::parts::{self, Rabbitmq};
use hie::{
    config::BrokerUrl,
    transport::rabbitmq::{
        ConsumeEnd, Consumer, Link, LinkSettings, LinkState, PasswordSource, PublishError, Publisher, PublisherLimits, QueueKind,
        QueueSpec, Session, StreamStart, TopologyError, topology,
    },
};
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, time::timeout};

const SECOND: Duration = Duration::from_secs(1);
const CONF: &str = "default_user = hie\ndefault_pass = sesame\nloopback_users = none\n";

fn settings(port: u16) -> LinkSettings {
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

fn link(broker: &Rabbitmq) -> Link {
    Link::start(settings(broker.port()), &Handle::current())
}

fn limits() -> PublisherLimits {
    PublisherLimits { confirm_timeout: Duration::from_secs(3), ..PublisherLimits::default() }
}

fn quorum(name: &str) -> QueueSpec {
    QueueSpec { name: name.into(), kind: QueueKind::Quorum { max_length: 1_000_000 } }
}

async fn declared(session: &Session, spec: &QueueSpec) -> Arc<str> {
    topology::declare(session, std::slice::from_ref(spec)).await.remove(0).expect("declared");
    spec.name.clone()
}

fn number(n: u64) -> Bytes {
    n.to_string().into_bytes().into()
}

fn read(payload: &Bytes) -> u64 {
    std::str::from_utf8(payload).expect("a number").parse().expect("a number")
}

async fn within<T>(seconds: u64, what: &str, future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(seconds), future).await.unwrap_or_else(|_| panic!("not within {seconds} s: {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    let root = parts::fetch("rabbitmq-3.10");
    let broker = Rabbitmq::start(&root, CONF);
    let link = link(&broker);
    let session = within(10, "a session", link.session()).await;
    println!("{:?}", link.state());
    let queue = declared(&session, &quorum("q")).await;
    let publisher = Publisher::start(&link, "test", limits(), &Handle::current());
    let answers: Vec<_> = (0..1000).map(|n| publisher.publish(&queue, number(n), false)).collect();
    for answer in answers {
        within(10, "a confirm", answer).await.expect("confirmed");
    }
    let mut consumer = Consumer::open(&session, &queue, 100).await.expect("a consumer");
    for n in 0..1000 {
        let delivery = within(10, "a delivery", consumer.next()).await.expect("a delivery");
        assert_eq!(read(&delivery.payload), n);
        consumer.acks().ack(delivery.tag, false).await.expect("acknowledged");
    }
    link.close().await;
    println!("{:?}", link.state());
}
