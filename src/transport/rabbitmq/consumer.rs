//! Consuming a queue or a stream, on a channel of its own, with acknowledgments by hand.

use super::{
    Reason, Session,
    reason::{code, said},
    session::ANSWER,
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use std::sync::Arc;
use tokio::time::timeout;

/// Where reading a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStart {
    /// With the oldest that is kept.
    First,
    /// With what comes from now on.
    Next,
    /// With this offset, or the oldest kept behind it: resume at the last one read + 1. Offsets rise, with holes.
    Offset(u64),
}

/// A message from the broker. Its payload is the caller's to keep; nothing of it is logged.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// For [`Acks::ack`]; rises by one from 1 on each consumer.
    pub tag: u64,
    /// It was delivered before and not acknowledged.
    pub redelivered: bool,
    /// Published with the mark "again": it may be in the queue a second time.
    pub again: bool,
    /// In a stream: its offset.
    pub offset: Option<u64>,
    /// The bytes.
    pub payload: Bytes,
}

/// Why no more comes. Messages in hand go back to the queue, in their order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsumeEnd {
    /// The connection is lost; the link makes another.
    #[error("the connection with the broker is lost")]
    Lost,
    /// Messages were held longer than the broker waits for an acknowledgment.
    #[error(
        "the broker ended the consumer of {queue}: messages were held longer than its consumer_timeout; raise it in rabbitmq.conf ({said})"
    )]
    Timeout {
        /// The queue.
        queue: Arc<str>,
        /// The broker's words.
        said: String,
    },
    /// The queue is gone, or its node is.
    #[error("the broker cancelled the consumer of {queue}: the queue was deleted or lost its node")]
    Cancelled {
        /// The queue.
        queue: Arc<str>,
    },
    /// There is no such queue.
    #[error("there is no queue {queue} at the broker")]
    Missing {
        /// The queue.
        queue: Arc<str>,
    },
    /// The broker ended the channel for another reason.
    #[error("the broker ended the consumer of {queue}: {said}")]
    Refused {
        /// The queue.
        queue: Arc<str>,
        /// The broker's words.
        said: String,
    },
    /// [`Consumer::close`] or [`Acks::close`] was called.
    #[error("the consumer is closed")]
    Closed,
}

/// What a queue or stream gives, one message after the other.
pub struct Consumer {
    stream: lapin::Consumer,
    acks: Acks,
}

/// Acknowledges a consumer's deliveries; cheap to clone.
#[derive(Clone)]
pub struct Acks {
    channel: Channel,
    session: Session,
    queue: Arc<str>,
}

impl Consumer {
    /// Consumes `queue` with at most `prefetch` messages (0: 1) in hand.
    pub async fn open(session: &Session, queue: &Arc<str>, prefetch: u16) -> Result<Self, ConsumeEnd> {
        Self::begin(session, queue, prefetch, FieldTable::default()).await
    }

    /// Reads the stream `queue` from `start` with at most about `prefetch` messages not acknowledged; acknowledging is what lets it
    /// go on, and removes nothing.
    pub async fn open_stream(session: &Session, queue: &Arc<str>, prefetch: u16, start: StreamStart) -> Result<Self, ConsumeEnd> {
        let mut arguments = FieldTable::default();
        let offset = match start {
            StreamStart::First => AMQPValue::LongString("first".into()),
            StreamStart::Next => AMQPValue::LongString("next".into()),
            StreamStart::Offset(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
        };
        arguments.insert("x-stream-offset".into(), offset);
        Self::begin(session, queue, prefetch, arguments).await
    }

    async fn begin(session: &Session, queue: &Arc<str>, prefetch: u16, arguments: FieldTable) -> Result<Self, ConsumeEnd> {
        let refused = |reason: Reason| match session.stands() {
            true => ConsumeEnd::Refused { queue: queue.clone(), said: reason.text().to_owned() },
            false => ConsumeEnd::Lost,
        };
        let channel = session.channel().await.map_err(refused)?;
        let acks = Acks { channel: channel.clone(), session: session.clone(), queue: queue.clone() };
        let asked = async {
            channel.basic_qos(prefetch.max(1), BasicQosOptions { global: false }).await?;
            // An empty tag: the broker makes one, and it is the same in its log.
            channel.basic_consume(queue.as_ref().into(), "".into(), BasicConsumeOptions::default(), arguments).await
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(stream)) => Ok(Self { stream, acks }),
            Ok(Err(error)) => Err(acks.end(Some(&error))),
            Err(_) => {
                session.abort();
                Err(ConsumeEnd::Lost)
            }
        }
    }

    /// The next message, or why there is none any more. Cancel-safe.
    pub async fn next(&mut self) -> Result<Delivery, ConsumeEnd> {
        match self.stream.next().await {
            Some(Ok(delivery)) => Ok(taken(delivery)),
            Some(Err(error)) => Err(self.acks.end(Some(&error))),
            None => Err(self.acks.end(None)),
        }
    }

    /// What acknowledges its deliveries.
    pub fn acks(&self) -> &Acks {
        &self.acks
    }

    /// Ends it (so does dropping it, without waiting): what is in hand and not acknowledged goes back to the queue, in its order, and the next consumer gets it first.
    /// Resolves when the broker has said so, or the connection is lost.
    pub async fn close(self) {
        self.acks.close().await;
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // lapin would cancel the consumer: the queue's next one would get what follows before what is in hand. The close is with
        // lapin after the first poll; nobody waits for its answer.
        if self.acks.channel.status().connected() {
            let _ = self.acks.channel.close(200, "OK".into()).now_or_never();
        }
    }
}

impl Acks {
    /// Acknowledges a delivery, with `multiple` also all before it. Resolves when it is written; an error means that the consumer
    /// has ended and the messages come again.
    pub async fn ack(&self, tag: u64, multiple: bool) -> Result<(), ConsumeEnd> {
        self.channel.basic_ack(tag, BasicAckOptions { multiple }).await.map_err(|error| self.end(Some(&error)))
    }

    /// See [`Consumer::close`].
    pub async fn close(&self) {
        if self.channel.status().connected() && timeout(ANSWER, self.channel.close(200, "OK".into())).await.is_err() {
            self.session.abort();
        }
    }

    /// The session it is on.
    pub fn session(&self) -> &Session {
        &self.session
    }

    fn end(&self, error: Option<&lapin::Error>) -> ConsumeEnd {
        let queue = self.queue.clone();
        let Some(error) = error else {
            return match (self.session.stands(), self.channel.status().connected()) {
                (false, _) => ConsumeEnd::Lost,
                // The channel lives: only the consumer was ended.
                (true, true) => ConsumeEnd::Cancelled { queue },
                (true, false) => ConsumeEnd::Closed,
            };
        };
        let words = said(error);
        match code(error) {
            Some(404) => ConsumeEnd::Missing { queue },
            // "delivery acknowledgement on channel 1 timed out" (RabbitMQ)
            Some(406) if words.contains("timed out") => ConsumeEnd::Timeout { queue, said: words },
            _ if !self.session.stands() => ConsumeEnd::Lost,
            Some(_) => ConsumeEnd::Refused { queue, said: words },
            None => ConsumeEnd::Closed,
        }
    }
}

fn taken(delivery: lapin::message::Delivery) -> Delivery {
    let properties = &delivery.properties;
    let again = properties.kind().as_ref().is_some_and(|kind| kind.as_str() == "again");
    let offset = properties.headers().as_ref().and_then(|headers| match headers.inner().get("x-stream-offset")? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    });
    Delivery { tag: delivery.delivery_tag, redelivered: delivery.redelivered, again, offset, payload: delivery.data.into() }
}
