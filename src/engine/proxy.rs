//! Proxy mode: the sender waits for the primary route's response. The request is durable before it is forwarded; the
//! response is recorded without making the sender wait (DESIGN.md §3).

use super::{
    Parts,
    deliver::{Collected, WHOLE, target_of},
    fact::{Accepted, Attempt, BodyRef, Fact, Outcome, Seq, What},
    ports::{
        Answer, Append, BodyStream, Clock, Connector, Delivery, Log, OpenConnector, Refusal, Reply, ReplyKind, Response,
        SendError, Stored, Transport,
    },
    resend::ResendWindow,
    staging,
};
use crate::telemetry::engine::{Attempt as Attempted, RouteMetrics};
use crate::{
    channel::{Route, Storage},
    message::{MessageId, envelope::HeaderBytes},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    },
    task::Poll,
    time::Instant,
};
use tokio::sync::{mpsc, oneshot};

/// Pieces of a response between the upstream and the sender.
const IN_BETWEEN: usize = 4;

thread_local! {
    /// Connectors of this accepting instance: their connections belong to its runtime.
    static CONNECTORS: RefCell<HashMap<u64, Arc<dyn Connector>>> = RefCell::new(HashMap::new());
}

/// The way to a channel's primary route for proxied requests.
pub(super) struct Direct {
    /// Distinguishes this configuration of the route from others, in each thread's table.
    number: u64,
    open: OpenConnector,
    route: Route,
    transport: Arc<dyn Transport>,
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    metrics: Arc<RouteMetrics>,
    resend: Arc<ResendWindow>,
}

/// A request to forward: its accept fact, and its body when whole.
pub(super) struct Proxied {
    pub accepted: Accepted,
    pub body: Option<Bytes>,
}

impl Direct {
    pub fn new(open: OpenConnector, route: Route, parts: &Parts, metrics: Arc<RouteMetrics>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (transport, log, clock) = (parts.transport.clone(), parts.log.clone(), parts.clock.clone());
        Self { number: NUMBER.fetch_add(1, Relaxed), open, route, transport, log, clock, metrics, resend: parts.resend.clone() }
    }

    fn connector(&self) -> Result<Arc<dyn Connector>, String> {
        CONNECTORS.with_borrow_mut(|all| match all.get(&self.number) {
            Some(connector) => Ok(connector.clone()),
            None => {
                // A handful of reloads must not pile up connection pools.
                if all.len() > 256 {
                    all.clear();
                }
                let connector = (self.open)()?;
                all.insert(self.number, connector.clone());
                Ok(connector)
            }
        })
    }

    /// Makes a request durable, forwards it and gives the response to relay. Goes on by itself when the sender does not wait
    /// for the end: what the upstream has begun is recorded.
    pub async fn forward(self: Arc<Self>, record: Proxied) -> Answer {
        let id = record.accepted.envelope.id;
        let (answer, answered) = oneshot::channel();
        tokio::spawn(self.take(record, answer));
        let internal = "internal error; see the log";
        answered.await.unwrap_or(Answer::Refused { id: Some(id), refusal: Refusal::Upstream(internal.into()) })
    }

    /// Makes it durable and forwards it; in a task of its own, so that a sender who leaves does not leave it half-done.
    async fn take(self: Arc<Self>, record: Proxied, answer: oneshot::Sender<Answer>) {
        let Proxied { accepted, body } = record;
        let (id, key) = (accepted.envelope.id, accepted.resend_key);
        let fact = Fact { id, home: 0, at: accepted.envelope.received_ms, what: What::Accepted(Box::new(accepted.clone())) };
        match self.transport.accept(Append { fact, body: body.clone(), deliver: true }).await {
            Ok(seq) => {
                let exchange = Exchange { open: true, id, seq, key, direct: self.clone(), started: Instant::now() };
                let message = Stored { seq, accepted, body, source: self.log.clone() };
                exchange.run(Arc::new(message), answer).await;
            }
            Err(error) => {
                self.resend.failed(key, id);
                // The sender may have gone; nothing was accepted.
                let _ = answer.send(Answer::Refused { id: None, refusal: staging::refusal(error) });
            }
        }
    }
}

/// One request with the upstream. Dropped before its end, it records that the outcome is unknown.
struct Exchange {
    open: bool,
    id: MessageId,
    seq: Seq,
    /// See [`Accepted::resend_key`].
    key: u64,
    direct: Arc<Direct>,
    started: Instant,
}

impl Exchange {
    async fn run(mut self, message: Arc<Stored>, answer: oneshot::Sender<Answer>) {
        let keep = message.accepted.storage == Storage::All;
        let delivery = Delivery { message, attempt: 1, timeout: self.direct.route.timeout };
        let sent = match self.direct.connector() {
            Ok(connector) => match tokio::time::timeout(self.direct.route.timeout, connector.send(delivery)).await {
                Ok(sent) => sent,
                Err(_) => Err(SendError::Timeout { target: self.target(), after: self.direct.route.timeout }),
            },
            Err(reason) => Err(SendError::NotSent { target: self.target(), reason }),
        };
        match sent {
            Ok(reply) => self.relay(reply, keep, answer).await,
            Err(error) => self.failed(error, answer),
        }
    }

    fn target(&self) -> String {
        self.direct.route.http.iter().chain(&self.direct.route.mllp).next().cloned().unwrap_or_default()
    }

    fn failed(&mut self, error: SendError, answer: oneshot::Sender<Answer>) {
        let (status, refusal) = match &error {
            SendError::Timeout { .. } => (504, Refusal::UpstreamTimeout),
            SendError::NotSent { .. } => (502, Refusal::Upstream("not reached".into())),
            // The sender's to mend: trying again leads nowhere.
            SendError::Unsendable { reason, .. } => (400, Refusal::Unsendable(reason.clone())),
            SendError::Broken { .. } | SendError::Unreadable { .. } => (502, Refusal::Upstream("broke off".into())),
        };
        let target = target_of(&error);
        self.record_attempt(target, Outcome::Failed, 0, String::new(), error.to_string());
        self.finish(status, Vec::new(), Collected::default());
        // The sender may have gone; the record stands.
        let _ = answer.send(Answer::Refused { id: Some(self.id), refusal });
    }

    async fn relay(&mut self, reply: Reply, keep: bool, answer: oneshot::Sender<Answer>) {
        let Reply { target, kind, body, len } = reply;
        let (status, headers, ack) = match kind {
            ReplyKind::Http { status, headers } => (status, headers, String::new()),
            // OpenHIM's reading of a status, applied to HL7's: content wrong 4xx, receiver unwell 5xx.
            ReplyKind::Ack { code } => (ack_status(&code), Vec::new(), code),
            ReplyKind::Written => (200, Vec::new(), String::new()),
        };
        if len.is_some_and(|len| len <= WHOLE as u64) {
            match whole(body).await {
                Ok(bytes) => {
                    let response =
                        Response { status, headers: headers.clone(), len: Some(bytes.len() as u64), body: once(bytes.clone()) };
                    // The answer first: the sender does not wait for the record.
                    let _ = answer.send(Answer::Response { id: self.id, response, resend: false });
                    self.record_attempt(target, outcome(status), status, ack, String::new());
                    self.finish(status, headers, collected(bytes, keep));
                }
                Err(error) => self.failed(SendError::Broken { target, reason: error.to_string() }, answer),
            }
            return;
        }
        let (pieces, stream) = mpsc::channel::<io::Result<Bytes>>(IN_BETWEEN);
        let whole = Arc::new(AtomicBool::new(false));
        let response = Response { status, headers: headers.clone(), len, body: from_channel(stream, whole.clone()) };
        let _ = answer.send(Answer::Response { id: self.id, response, resend: false });
        let result = tee(body, pieces, &*self.direct.log, keep, &whole).await;
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.record_attempt(target, if error.is_empty() { outcome(status) } else { Outcome::Failed }, status, ack, error);
        let status = if result.is_ok() { status } else { 502 };
        self.finish(status, headers, result.unwrap_or_default());
    }

    fn record_attempt(&self, target: String, outcome: Outcome, status: u16, ack: String, error: String) {
        let took = self.started.elapsed();
        Attempted { route: &self.direct.metrics, outcome, took, age: None }.emit();
        self.record(
            What::Attempt(Box::new(Attempt {
                route: self.direct.route.name.clone(),
                number: 1,
                target,
                took_ms: took.as_millis().try_into().unwrap_or(u32::MAX),
                outcome,
                status,
                ack,
                error,
                response: BodyRef::None,
                response_len: 0,
                inside: 0,
            })),
            None,
        );
    }

    fn finish(&mut self, status: u16, headers: Vec<(String, HeaderBytes)>, response: Collected) {
        self.open = false;
        let Collected { body, whole, len } = response;
        // Before the window knows: a repetition that finds it there finds the response too.
        self.record(What::Responded { status, headers, body, len }, whole);
        if self.key != 0 {
            match status {
                // A repetition need not reach the upstream again.
                200..=299 => self.direct.resend.committed(std::iter::once((self.key, self.id, self.seq))),
                // The sender was told that it failed: when it sends again, it means it.
                _ => self.direct.resend.failed(self.key, self.id),
            }
        }
        self.direct.transport.answered(self.seq);
    }

    fn record(&self, what: What, body: Option<Bytes>) {
        let fact = Fact { id: self.id, home: self.seq, at: self.direct.clock.now_ms(), what };
        self.direct.log.append_later(Append { fact, body, deliver: false });
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.open {
            self.direct.resend.failed(self.key, self.id);
            self.record(What::Unknown, None);
            self.direct.transport.answered(self.seq);
        }
    }
}

fn ack_status(code: &str) -> u16 {
    match code {
        "AA" | "CA" => 200,
        "AE" | "CE" => 400,
        _ => 500,
    }
}

fn outcome(status: u16) -> Outcome {
    if status < 500 { Outcome::Delivered } else { Outcome::Failed }
}

fn once(bytes: Bytes) -> BodyStream {
    Box::pin(futures_util::stream::once(async move { Ok(bytes) }))
}

/// The pieces that come by a channel. One that closes before the response is `whole` is an error, never an early end.
fn from_channel(mut stream: mpsc::Receiver<io::Result<Bytes>>, whole: Arc<AtomicBool>) -> BodyStream {
    let mut told = false;
    Box::pin(futures_util::stream::poll_fn(move |cx| match stream.poll_recv(cx) {
        Poll::Ready(None) if !whole.load(Acquire) && !told => {
            told = true;
            Poll::Ready(Some(Err(io::Error::other("the response broke off"))))
        }
        other => other,
    }))
}

async fn whole(mut stream: BodyStream) -> io::Result<Bytes> {
    let Some(first) = stream.next().await else { return Ok(Bytes::new()) };
    let first = first?;
    let Some(second) = stream.next().await else { return Ok(first) };
    let mut all = BytesMut::from(first);
    all.extend_from_slice(&second?);
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all.freeze())
}

fn collected(bytes: Bytes, keep: bool) -> Collected {
    let len = bytes.len() as u64;
    if !keep || bytes.is_empty() {
        return Collected { len, ..Collected::default() };
    }
    Collected { body: BodyRef::Own, whole: Some(bytes), len }
}

/// Passes a large response on and into the log, piece by piece, at the pace of the slower of the two.
/// Trouble with the log ends the record, not the response.
async fn tee(
    mut body: BodyStream,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    log: &dyn Log,
    mut keep: bool,
    whole: &AtomicBool,
) -> io::Result<Collected> {
    let mut result = Collected::default();
    let mut seqs = Vec::new();
    let mut buffer = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                let _ = pieces.send(Err(io::Error::new(error.kind(), "the upstream broke off"))).await;
                return Err(error);
            }
        };
        result.len += piece.len() as u64;
        if keep {
            buffer.extend_from_slice(&piece);
            if buffer.len() >= 4 * WHOLE {
                match log.chunk(buffer.split().freeze(), false).await {
                    Ok(seq) => seqs.push(seq),
                    Err(_) => {
                        keep = false;
                        seqs.clear();
                    }
                }
            }
        }
        // A sender that has gone does not stop the record.
        let _ = pieces.send(Ok(piece)).await;
    }
    whole.store(true, Release);
    if !keep {
        return Ok(result);
    }
    if !seqs.is_empty() {
        if !buffer.is_empty() {
            match log.chunk(buffer.freeze(), false).await {
                Ok(seq) => seqs.push(seq),
                Err(_) => return Ok(result),
            }
        }
        result.body = BodyRef::Chunks { seqs, transient: false };
    } else if !buffer.is_empty() {
        result.body = BodyRef::Own;
        result.whole = Some(buffer.freeze());
    }
    Ok(result)
}
