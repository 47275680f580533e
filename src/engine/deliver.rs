//! Delivery: one attempt on one route, judged and recorded (MERE).

use super::{
    backoff,
    fact::{Attempt, BodyRef, Fact, Outcome, Seq, What},
    judge::{self, Judgement},
    ports::{Append, BodyStream, Clock, Connector, Delivery, Log, SendError, Stored},
};
use crate::channel::{AckAction, AfterPark, Route, Storage};
use crate::message::MessageId;
use crate::telemetry::engine as events;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use std::{sync::Arc, time::Duration};

/// Answers up to this size are stored in one piece with the attempt.
pub(super) const WHOLE: usize = 64 * 1024;

/// Attempts in a row that fail inside the node before a message is set aside. Those that a receiver's outage took do not count.
const NOT_ATTEMPTED_AT_MOST: u32 = 10;

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Done on this route.
    Delivered,
    /// Again after this long. `unreachable`: nothing reaches the receiver now, the whole route should wait. `inside`: failures inside the
    /// node in a row, 0 after an attempt that came as far as the way out.
    Retry { after: Duration, unreachable: bool, inside: u32, error: String },
    /// Set aside for an operator.
    Parked { error: String },
}

/// One route's worker: its policy and its way out.
pub struct RouteWorker {
    /// Full channel name.
    pub channel: Arc<str>,
    /// The route as configured.
    pub route: Route,
    /// Whether a parked message holds its key.
    pub after_park: AfterPark,
    /// The way out; belongs to the delivery runtime.
    pub connector: Arc<dyn Connector>,
    /// Where attempts are recorded.
    pub log: Arc<dyn Log>,
    /// For ages and times.
    pub clock: Arc<dyn Clock>,
    /// Counters of this route.
    pub metrics: Arc<events::RouteMetrics>,
}

impl RouteWorker {
    /// Makes the `number`-th attempt (from 1) for a message, of which the `inside` latest failed inside the node, records how it
    /// went and says what follows.
    pub async fn attempt(&self, message: Arc<Stored>, number: u32, inside: u32) -> Verdict {
        let started = std::time::Instant::now();
        let delivery = Delivery { message: message.clone(), attempt: number, timeout: self.route.timeout };
        let result = tokio::time::timeout(self.route.timeout, self.connector.send(delivery)).await.unwrap_or_else(|_| {
            let target = self.route.mllp.iter().chain(&self.route.http).next().cloned().unwrap_or_default();
            Err(SendError::Timeout { target, after: self.route.timeout })
        });
        let keep = message.accepted.storage == Storage::All;
        let (target, judgement, response) = match result {
            Ok(reply) => {
                let judgement = judge::judge(&self.route, Ok(&reply.kind));
                let collected = tokio::time::timeout(self.route.timeout, collect(reply.body, &*self.log, keep)).await;
                match collected {
                    Ok(Ok(collected)) => (reply.target, judgement, collected),
                    // The head decided; a body that breaks off does not undo what the receiver has done.
                    Ok(Err(_)) | Err(_) => (reply.target, judgement, Collected::default()),
                }
            }
            // The store's fault: nothing that the route's rules for receivers speak of.
            Err(error @ SendError::Unreadable { .. }) => {
                return self.not_attempted(message.envelope().id, message.seq, number, inside, error.to_string());
            }
            Err(error) => (target_of(&error), judge::judge(&self.route, Err(&error)), Collected::default()),
        };
        let envelope = message.envelope();
        let mut outcome = match judgement.action {
            AckAction::Deliver => Outcome::Delivered,
            AckAction::Retry => Outcome::Retry,
            AckAction::Park => Outcome::Parked,
        };
        let mut error = judgement.error.clone();
        if outcome == Outcome::Retry && backoff::given_up(&self.route.retry, self.clock.now_ms() - envelope.received_ms) {
            outcome = Outcome::Parked;
            error = format!("given up at the route's retry.give_up age; last: {error}");
        }
        let took = started.elapsed();
        let age = u64::try_from(self.clock.now_ms() - envelope.received_ms).unwrap_or(0);
        events::Attempt { route: &self.metrics, outcome, took, age: Some(Duration::from_millis(age)) }.emit();
        self.record(&message, number, target, took, outcome, &judgement, &error, response);
        match outcome {
            Outcome::Delivered => Verdict::Delivered,
            Outcome::Retry => Verdict::Retry {
                after: backoff::wait(&self.route.retry, number, rand::random()),
                unreachable: judgement.unreachable,
                inside: 0,
                error,
            },
            Outcome::Parked | Outcome::Failed => Verdict::Parked { error },
        }
    }

    /// An attempt that did not come as far as the way out: the message cannot be read back, or a bug stopped it. Tried again
    /// for a while, then set aside, so that one message never stops its key for ever. How long an outage lasted before, and how old
    /// the message is by that, says nothing of the store: `inside`, the failures of this kind in a row, is counted by itself.
    pub fn not_attempted(&self, id: MessageId, home: Seq, number: u32, inside: u32, error: String) -> Verdict {
        let inside = inside.saturating_add(1);
        let outcome = if inside >= NOT_ATTEMPTED_AT_MOST { Outcome::Parked } else { Outcome::Retry };
        events::Attempt { route: &self.metrics, outcome, took: Duration::ZERO, age: None }.emit();
        let attempt = Attempt {
            route: self.route.name.clone(),
            number,
            target: String::new(),
            took_ms: 0,
            outcome,
            status: 0,
            ack: String::new(),
            error: error.clone(),
            response: BodyRef::None,
            response_len: 0,
            inside,
        };
        let fact = Fact { id, home, at: self.clock.now_ms(), what: What::Attempt(Box::new(attempt)) };
        self.log.append_later(Append { fact, body: None, deliver: false });
        match outcome {
            Outcome::Parked => Verdict::Parked { error },
            _ => Verdict::Retry { after: backoff::wait(&self.route.retry, inside, 1.0), unreachable: false, inside, error },
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one call; a struct would only repeat Attempt")]
    fn record(
        &self,
        message: &Stored,
        number: u32,
        target: String,
        took: Duration,
        outcome: Outcome,
        judgement: &Judgement,
        error: &str,
        response: Collected,
    ) {
        let attempt = Attempt {
            route: self.route.name.clone(),
            number,
            target,
            took_ms: took.as_millis().try_into().unwrap_or(u32::MAX),
            outcome,
            status: judgement.status,
            ack: judgement.ack.clone(),
            error: error.to_owned(),
            response: response.body,
            response_len: response.len,
            inside: 0,
        };
        let fact = Fact {
            id: message.envelope().id,
            home: message.seq,
            at: self.clock.now_ms(),
            what: What::Attempt(Box::new(attempt)),
        };
        // Not waited for: were it lost, the delivery would be made again, which at-least-once allows.
        self.log.append_later(Append { fact, body: response.whole, deliver: false });
    }
}

/// The target that an attempt without an answer was for.
pub(super) fn target_of(error: &SendError) -> String {
    match error {
        SendError::NotSent { target, .. }
        | SendError::Unsendable { target, .. }
        | SendError::Unreadable { target, .. }
        | SendError::Broken { target, .. }
        | SendError::Timeout { target, .. } => target.clone(),
    }
}

/// An answer's body, on its way into the log.
#[derive(Default)]
pub(super) struct Collected {
    /// The reference for the fact.
    pub body: BodyRef,
    /// The bytes that go with the fact, when in one piece.
    pub whole: Option<Bytes>,
    /// Length in bytes.
    pub len: u64,
}

/// Reads an answer to its end: small ones whole, larger ones piece by piece into the log.
async fn collect(mut stream: BodyStream, log: &dyn Log, keep: bool) -> std::io::Result<Collected> {
    let mut collected = Collected::default();
    let mut buffer = BytesMut::new();
    let mut seqs = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        collected.len += piece.len() as u64;
        if !keep {
            continue;
        }
        buffer.extend_from_slice(&piece);
        if buffer.len() >= WHOLE {
            match log.chunk(buffer.split().freeze(), false).await {
                Ok(seq) => seqs.push(seq),
                Err(e) => return Err(std::io::Error::other(e)),
            }
        }
    }
    if !seqs.is_empty() {
        if !buffer.is_empty() {
            seqs.push(log.chunk(buffer.freeze(), false).await.map_err(std::io::Error::other)?);
        }
        collected.body = BodyRef::Chunks { seqs, transient: false };
    } else if !buffer.is_empty() {
        collected.body = BodyRef::Own;
        collected.whole = Some(buffer.freeze());
    }
    Ok(collected)
}
