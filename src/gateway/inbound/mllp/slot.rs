//! One frame in hand: from the call to the engine to its reply.

use super::{
    LARGE,
    answer::{Verdict, acknowledge, relayable},
    batch::Batch,
    pace::Pace,
};
use crate::{
    engine::ports::{Answer, Arrival, BodyStream, Incoming, Intake, Refusal},
    gateway::inbound::outcome,
    message::{MessageId, Protocol},
    telemetry::inbound::{Meters, Outcome},
};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, future::BoxFuture};
use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

/// What every message of a connection has in common.
pub(super) struct Source<'a> {
    pub intake: &'a dyn Intake,
    pub meters: &'a Meters,
    pub listener: Arc<str>,
    pub client: Arc<str>,
    pub remote: String,
    /// Largest response relayed, in bytes.
    pub max_response: usize,
}

/// The reply to a message: an HL7 message to frame, or nothing.
pub(super) type Reply = Option<Vec<u8>>;

/// One message with the engine.
pub(super) struct Message<'a> {
    /// Of one that is handed over piece by piece only the beginning.
    bytes: Bytes,
    pieces: bool,
    state: State<'a>,
}

enum State<'a> {
    /// With the engine.
    Accepting(BoxFuture<'a, Answer>),
    /// The upstream's response is being read.
    Relaying { id: MessageId, status: u16, resend: bool, body: BodyStream, read: BytesMut },
}

/// A message's reply, and how long the sender is to be slowed down.
pub(super) struct Finished {
    pub reply: Reply,
    pub slow_down: Option<Duration>,
}

impl<'a> Message<'a> {
    /// Calls the engine; the future is polled with [`Message::poll`].
    pub fn start(source: &Source<'a>, bytes: Bytes) -> Self {
        source.meters.received(bytes.len() as u64);
        Self::hand_over(source, bytes.clone(), Incoming::Whole(bytes))
    }

    /// As [`Message::start`], for a large one that still arrives: `head` is its beginning, `rest` what follows.
    pub fn start_pieces(source: &Source<'a>, head: Bytes, rest: BodyStream) -> Self {
        source.meters.received(head.len() as u64);
        Self { pieces: true, ..Self::hand_over(source, beginning(&head), Incoming::Stream { head, rest }) }
    }

    /// Refused here: the engine only records it. `head`: what is at hand of the message.
    pub fn refuse(source: &Source<'a>, head: Bytes, refusal: Refusal) -> Self {
        Self::hand_over(source, head.clone(), Incoming::Refused { head, refusal })
    }

    fn hand_over(source: &Source<'a>, bytes: Bytes, body: Incoming) -> Self {
        let arrival = Arrival {
            client: source.client.clone(),
            protocol: Protocol::Mllp,
            listener: source.listener.clone(),
            remote: source.remote.clone(),
            http: None,
            paced: true,
            body,
        };
        Self { bytes, pieces: false, state: State::Accepting(source.intake.accept(arrival)) }
    }

    /// Its bytes; of one that is handed over piece by piece, that it is a large one.
    pub fn len(&self) -> usize {
        if self.pieces { LARGE + 1 } else { self.bytes.len() }
    }

    pub fn poll(&mut self, source: &Source<'a>, cx: &mut Context<'_>) -> Poll<Finished> {
        loop {
            match &mut self.state {
                State::Accepting(future) => match ready!(future.as_mut().poll(cx)) {
                    Answer::Accepted { id, resend } => {
                        source.meters.answered(if resend { Outcome::Resend } else { Outcome::Accepted });
                        return self.told(Some(id), &Verdict::Accepted);
                    }
                    Answer::Refused { id, refusal } => return self.refused(source, id, &refusal),
                    Answer::Response { id, response, resend } => {
                        let (status, body) = (response.status, response.body);
                        self.state = State::Relaying { id, status, resend, body, read: BytesMut::new() };
                    }
                },
                State::Relaying { id, status, resend, body, read } => {
                    let (id, status) = (*id, *status);
                    match ready!(body.poll_next_unpin(cx)) {
                        Some(Ok(data)) if read.len() + data.len() > source.max_response => {
                            let refusal = Refusal::Upstream("its response is larger than a frame may be".into());
                            return self.refused(source, Some(id), &refusal);
                        }
                        Some(Ok(data)) => read.extend_from_slice(&data),
                        Some(Err(_)) => {
                            let refusal = Refusal::Upstream("it broke off its response".into());
                            return self.refused(source, Some(id), &refusal);
                        }
                        None => {
                            source.meters.answered(if *resend { Outcome::Resend } else { Outcome::Response });
                            if relayable(read) {
                                let reply = Some(Vec::from(std::mem::take(read)));
                                return Poll::Ready(Finished { reply, slow_down: None });
                            }
                            return self.told(Some(id), &Verdict::Status(status));
                        }
                    }
                }
            }
        }
    }

    fn refused(&self, source: &Source<'a>, id: Option<MessageId>, refusal: &Refusal) -> Poll<Finished> {
        source.meters.answered(outcome(refusal));
        let slow_down = match refusal {
            Refusal::RateLimited { retry_after } => Some(*retry_after),
            _ => None,
        };
        let reply = acknowledge(&self.bytes, id, &Verdict::Refused(refusal));
        Poll::Ready(Finished { reply, slow_down })
    }

    fn told(&self, id: Option<MessageId>, verdict: &Verdict<'_>) -> Poll<Finished> {
        Poll::Ready(Finished { reply: acknowledge(&self.bytes, id, verdict), slow_down: None })
    }
}

/// Kept of a large message, to acknowledge it: enough for any MSH segment.
const BEGINNING: usize = 16 * 1024;

/// Apart from the rest, which is free as soon as it is stored.
fn beginning(head: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&head[..head.len().min(BEGINNING)])
}

/// One frame in hand.
pub(super) enum Slot<'a> {
    One(Message<'a>),
    Batch(Box<Batch<'a>>),
    Done(Reply),
}

impl<'a> Slot<'a> {
    /// Bytes of messages that it holds.
    pub fn len(&self) -> usize {
        match self {
            Self::One(message) => message.len(),
            Self::Batch(batch) => batch.len(),
            Self::Done(_) => 0,
        }
    }

    /// Is some of it not with the engine yet, so that what follows has to wait?
    pub fn holds_back(&self) -> bool {
        matches!(self, Self::Batch(batch) if batch.has_more())
    }

    /// Moves on; becomes `Done` when the reply is there. Returns how long the sender is to be slowed down.
    pub fn poll(&mut self, source: &Source<'a>, pace: &mut Pace, cx: &mut Context<'_>) -> Option<Duration> {
        let finished = match self {
            Self::One(message) => message.poll(source, cx),
            Self::Batch(batch) => batch.poll(source, pace, cx),
            Self::Done(_) => return None,
        };
        match finished {
            Poll::Ready(Finished { reply, slow_down }) => {
                *self = Self::Done(reply);
                slow_down
            }
            Poll::Pending => None,
        }
    }
}
