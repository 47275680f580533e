//! Names and declarations of the queues at the broker. Every name that this node uses there is made here.

use super::{
    Consumer, Session,
    reason::{self, Reason},
    session::ANSWER,
    wire,
};
use lapin::{
    Channel,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use std::{fmt::Write, sync::Arc, time::Duration};
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_128;

/// The longest name of a queue, in bytes (AMQP 0-9-1, short string).
const LONGEST_NAME: usize = 255;
/// Returns of a message after which the broker drops it: never, for us. 4.x would else drop after 20.
const DELIVERY_LIMIT: i64 = 1_000_000_000;

/// The domain's ledger stream: `hie.<domain>.ledger`.
pub fn ledger(domain: &str) -> Arc<str> {
    named(format!("{}.ledger", root(domain)))
}

/// A partition's inbox: `hie.<domain>.<channel>/in/<partition>`, from epoch 1 on with `@<epoch>`; `channel` is the full dotted name.
pub fn inbox(domain: &str, channel: &str, partition: u16, epoch: u64) -> Arc<str> {
    named(format!("{}.{}/in/{partition}{}", root(domain), escaped(channel, true), at(epoch)))
}

/// A partition of a route's queue: `hie.<domain>.<channel>/<route>/<partition>`, from epoch 1 on with `@<epoch>`.
pub fn route(domain: &str, channel: &str, route: &str, partition: u16, epoch: u64) -> Arc<str> {
    // A route called "in" must not share the inbox.
    let route = if route == "in" { "%69n".to_owned() } else { escaped(route, true) };
    named(format!("{}.{}/{route}/{partition}{}", root(domain), escaped(channel, true), at(epoch)))
}

/// The end of a name that says which epoch the queue is of.
fn at(epoch: u64) -> String {
    if epoch == 0 { String::new() } else { format!("@{epoch}") }
}

fn root(domain: &str) -> String {
    // A dot in the domain would make "a" + "b.c" and "a.b" + "c" the same.
    format!("hie.{}", escaped(domain, false))
}

/// Everything but letters, digits, `-`, `_` (and dots) as `%XX`.
fn escaped(name: &str, dots: bool) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (dots && byte == b'.') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A name that is too long keeps its beginning and gets a hash of the whole: names stay different.
fn named(mut name: String) -> Arc<str> {
    if name.len() > LONGEST_NAME {
        let hash = format!("~{:032x}", xxh3_128(name.as_bytes()));
        // Escaped, so ASCII only.
        name.truncate(LONGEST_NAME - hash.len());
        name.push_str(&hash);
    }
    name.into()
}

/// A queue as this node needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Its kind and bounds.
    pub kind: QueueKind,
}

/// Kind and bounds of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// Quorum queue with a single active consumer; full, it refuses.
    Quorum {
        /// Messages that it holds.
        max_length: u32,
    },
    /// Stream.
    Stream {
        /// Its segments go when older, …
        max_age: Duration,
        /// … or when it is larger, in bytes.
        max_bytes: u64,
    },
}

impl QueueKind {
    fn word(&self) -> &'static str {
        match self {
            Self::Quorum { .. } => "quorum queue",
            Self::Stream { .. } => "stream",
        }
    }

    fn arguments(&self) -> FieldTable {
        let mut table = FieldTable::default();
        let mut set = |key: &'static str, value: AMQPValue| {
            table.insert(ShortString::from(key), value);
        };
        match self {
            Self::Quorum { max_length } => {
                set("x-queue-type", text("quorum"));
                set("x-single-active-consumer", AMQPValue::Boolean(true));
                set("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT));
                set("x-overflow", text("reject-publish"));
                set("x-max-length", AMQPValue::LongLongInt(i64::from(*max_length)));
            }
            Self::Stream { max_age, max_bytes } => {
                set("x-queue-type", text("stream"));
                set("x-max-age", text(&format!("{}s", max_age.as_secs().max(1))));
                let bytes = i64::try_from(*max_bytes).unwrap_or(i64::MAX);
                set("x-max-length-bytes", AMQPValue::LongLongInt(bytes));
                // Whole segments go: they must be small against the whole.
                let segment = (bytes / 20).clamp(1_000_000, 100_000_000);
                set("x-stream-max-segment-size-bytes", AMQPValue::LongLongInt(segment));
            }
        }
        table
    }
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// A queue that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Messages that wait for a consumer (those in a consumer's hands are not counted); of a stream, about as many as it holds.
    pub messages: u32,
    /// Consumers, those that stand by included.
    pub consumers: u32,
}

/// Why a queue cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// It is there, but otherwise.
    #[error(
        "the queue {queue} is there, but not as it has to be ({said}); all nodes of the domain need the same [transport] section; \
             else let it run empty and delete it (rabbitmqctl delete_queue), it is made again at once"
    )]
    Otherwise {
        /// Its name.
        queue: Arc<str>,
        /// The broker's words.
        said: String,
    },
    /// The user may not.
    #[error(
        "the broker's user may not declare or use the queue {queue}; rabbitmqctl set_permissions for names that begin with \"hie.\" ({said})"
    )]
    Forbidden {
        /// Its name.
        queue: Arc<str>,
        /// The broker's words.
        said: String,
    },
    /// It is not there.
    #[error("there is no queue {queue} at the broker")]
    Missing {
        /// Its name.
        queue: Arc<str>,
    },
    /// The broker did not do it; it may later.
    #[error("the queue {queue} cannot be declared now: {said}")]
    Failed {
        /// Its name.
        queue: Arc<str>,
        /// The broker's words.
        said: String,
    },
}

impl TopologyError {
    /// One word for it: `otherwise`, `forbidden`, `missing` or `failed`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Otherwise { .. } => "otherwise",
            Self::Forbidden { .. } => "forbidden",
            Self::Missing { .. } => "missing",
            Self::Failed { .. } => "failed",
        }
    }

    fn of(spec: &QueueSpec, error: &lapin::Error) -> Self {
        let (queue, said) = (spec.name.clone(), reason::said(error));
        match reason::code(error) {
            Some(403) => Self::Forbidden { queue, said },
            Some(404) => Self::Missing { queue },
            // 405: another connection's exclusive queue.
            Some(405 | 406) => Self::Otherwise { queue, said },
            _ => Self::Failed { queue, said },
        }
    }
}

/// Declares queues, those that are there being left as they are. One answer for each, in their order; a queue that cannot be
/// declared harms neither the others nor the connection.
pub async fn declare(session: &Session, specs: &[QueueSpec]) -> Vec<Result<Depth, TopologyError>> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    ask(session, specs, options).await
}

/// How much the queues hold now, in their order, without declaring any.
pub async fn depths(session: &Session, queues: &[Arc<str>]) -> Vec<Result<Depth, TopologyError>> {
    let specs: Vec<_> =
        queues.iter().map(|name| QueueSpec { name: name.clone(), kind: QueueKind::Quorum { max_length: 0 } }).collect();
    let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    ask(session, &specs, options).await
}

/// Removes a quorum queue that nobody consumes any more and that holds nothing but seals. True: done; false: it was not there. The error is
/// for the operator. (The broker has no delete "if empty" for quorum queues.)
pub async fn remove_empty(session: &Session, queue: &Arc<str>) -> Result<bool, String> {
    let waiting = match depths(session, std::slice::from_ref(queue)).await.pop() {
        Some(Ok(depth)) => depth.messages,
        Some(Err(TopologyError::Missing { .. })) => return Ok(false),
        Some(Err(error)) => return Err(error.to_string()),
        None => return Err("the broker does not answer".into()),
    };
    if waiting > 0 {
        // No basic.get from a queue with a single active consumer (RabbitMQ).
        let mut consumer = Consumer::open(session, queue, 1).await.map_err(|e| e.to_string())?;
        let sound = async {
            for _ in 0..waiting {
                let message = consumer.next().await.map_err(|e| e.to_string())?;
                if !wire::is_empty(&message.payload) {
                    return Err("it holds a message that came late: look at it, and delete the queue by hand".to_owned());
                }
                consumer.acks().ack(message.tag, false).await.map_err(|e| e.to_string())?;
            }
            Ok(())
        };
        let sound = timeout(ANSWER, sound).await.unwrap_or_else(|_| Err("what it holds cannot be looked at".into()));
        // What is not acknowledged goes back.
        consumer.close().await;
        sound?;
    }
    let channel = session.channel().await.map_err(|reason| reason.text().to_owned())?;
    let deleted = timeout(ANSWER, channel.queue_delete(queue.as_ref().into(), QueueDeleteOptions::default())).await;
    if channel.status().connected() {
        let _ = timeout(ANSWER, channel.close(200, "OK".into())).await;
    }
    match deleted {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) => Err(reason::said(&error)),
        Err(_) => Err("the broker does not answer".into()),
    }
}

async fn ask(session: &Session, specs: &[QueueSpec], options: QueueDeclareOptions) -> Vec<Result<Depth, TopologyError>> {
    let mut answers = Vec::with_capacity(specs.len());
    // A refusal closes the channel.
    let mut channel: Option<Channel> = None;
    for spec in specs {
        let failed = |reason: Reason| TopologyError::Failed { queue: spec.name.clone(), said: reason.text().to_owned() };
        let open = match channel.take() {
            Some(channel) => Ok(channel),
            None => session.channel().await,
        };
        let open = match open {
            Ok(open) => open,
            Err(reason) => {
                answers.push(Err(failed(reason)));
                continue;
            }
        };
        let arguments = if options.passive { FieldTable::default() } else { spec.kind.arguments() };
        let asked = timeout(ANSWER * 2, open.queue_declare(spec.name.as_ref().into(), options, arguments)).await;
        answers.push(match asked {
            Ok(Ok(queue)) => {
                channel = Some(open);
                Ok(Depth { messages: queue.message_count(), consumers: queue.consumer_count() })
            }
            Ok(Err(error)) => Err(TopologyError::of(spec, &error)),
            // The channel is dropped with its question.
            Err(_) => Err(failed(Reason::new(format!("the broker {} does not answer ({})", session.broker(), spec.kind.word())))),
        });
    }
    if let Some(channel) = channel {
        let _ = timeout(ANSWER, channel.close(200, "OK".into())).await;
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_different() {
        assert_eq!(&*ledger("north"), "hie.north.ledger");
        assert_eq!(&*inbox("north", "lab.results", 3, 0), "hie.north.lab.results/in/3");
        assert_eq!(&*route("north", "lab.results", "ehr", 0, 0), "hie.north.lab.results/ehr/0");
        assert_eq!(&*inbox("north", "lab.results", 3, 2), "hie.north.lab.results/in/3@2");
        assert_eq!(&*route("north", "lab.results", "ehr", 0, 1), "hie.north.lab.results/ehr/0@1");
        assert_ne!(route("d", "a.b", "in", 0, 0), inbox("d", "a.b", 0, 0));
        assert_ne!(inbox("a", "b.c", 0, 0), inbox("a.b", "c", 0, 0));
        assert_eq!(&*route("d", "a.b", "x/y z", 0, 0), "hie.d.a.b/x%2Fy%20z/0");
        let long = |end: &str| inbox("d", &format!("a.{}{end}", "x".repeat(300)), 0, 0);
        assert!(long("1").len() <= LONGEST_NAME);
        assert_ne!(long("1"), long("2"));
    }
}
