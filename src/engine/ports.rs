//! The traits through which the engine meets the rest, and the values that cross them.
//!
//! Implemented by: [`Log`] the ledger; [`Connector`] the outbound gateways; [`Intake`] the engine itself, for
//! the inbound gateways; [`Clock`] the host, or a test.

use super::fact::{Accepted, BodyRef, Fact, RouteProgress, Seq};
use crate::message::{Envelope, HttpHead, MessageId, Protocol, envelope::HeaderBytes};
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

/// A body as it flows: pieces in order, then the end.
pub type BodyStream = BoxStream<'static, io::Result<Bytes>>;

// === inbound ===

/// What a gateway hands over: one message, complete or still arriving.
pub struct Arrival {
    /// Who sends (found by [`Intake::identify`] before the body is read).
    pub client: Arc<str>,
    /// How it came.
    pub protocol: Protocol,
    /// Name of the listener or watched folder.
    pub listener: Arc<str>,
    /// `ip:port` of the sender (as the PROXY protocol says, where used) or the file's name.
    pub remote: String,
    /// Request line and headers, for HTTP.
    pub http: Option<HttpHead>,
    /// Its gateway has taken it off the client's rate ([`Intake::rate`]).
    pub paced: bool,
    /// The bytes.
    pub body: Incoming,
}

/// A message's bytes as they arrive.
pub enum Incoming {
    /// All there.
    Whole(Bytes),
    /// Larger than the gateway's buffer: `head` is what has been read already (at least 64 KiB unless the body
    /// is shorter), `rest` what follows; an error in it that holds a [`Refusal`] is that refusal, one of
    /// kind `TimedOut` is [`Refusal::TooSlow`], any other [`Refusal::Aborted`].
    Stream { head: Bytes, rest: BodyStream },
    /// Refused by the gateway itself, and only to be recorded: `head` is what is at hand of it.
    Refused { head: Bytes, refusal: Refusal },
}

/// What the sender proved itself with.
#[derive(Clone, Default)]
pub struct Credentials {
    /// Value of the `Authorization` header, as sent.
    pub authorization: Option<HeaderBytes>,
    /// The verified client certificate, DER.
    pub certificate: Option<Bytes>,
}

/// A sender that is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No credential, and the listener or channel asks for one.
    #[error("credentials required")]
    Unauthenticated,
    /// Wrong credential.
    #[error("credentials not accepted")]
    BadCredentials,
    /// Address not on the client's or listener's allow list.
    #[error("address not allowed")]
    Address,
    /// Too many credentials are being checked, or too many wrong ones came from this address: try again later
    /// (HTTP 503 with Retry-After, not 401: the credential may be right).
    #[error("too many credential checks now")]
    Busy,
}

/// Who a sender is: the client's name (`anonymous` for none), or why it is not let in.
pub enum Identity<'a> {
    /// Told at once, without an allocation: nearly always.
    Known(Result<Arc<str>, Denied>),
    /// A password is being checked elsewhere.
    Checking(BoxFuture<'a, Result<Arc<str>, Denied>>),
}

impl<'a> Identity<'a> {
    /// Waits for the check, where there is one.
    pub async fn settled(self) -> Result<Arc<str>, Denied> {
        match self {
            Self::Known(result) => result,
            Self::Checking(check) => check.await,
        }
    }

    /// What follows from who it is.
    pub fn and_then(self, then: impl FnOnce(Arc<str>) -> Result<Arc<str>, Denied> + Send + 'a) -> Self {
        match self {
            Self::Known(result) => Self::Known(result.and_then(then)),
            Self::Checking(check) => Self::Checking(Box::pin(async move { check.await.and_then(then) })),
        }
    }
}

/// The answer to one arrival.
pub enum Answer {
    /// Queue mode: durable. `resend`: recognised as a repetition of `id`, which is durable.
    Accepted { id: MessageId, resend: bool },
    /// Proxy mode: the primary route's response. `resend`: the stored one, once more, for a repetition of `id`.
    Response { id: MessageId, response: Response, resend: bool },
    /// Not accepted.
    Refused { id: Option<MessageId>, refusal: Refusal },
}

/// A response to relay.
pub struct Response {
    /// HTTP status; 200 for an MLLP upstream's AA, see `ack`.
    pub status: u16,
    /// End-to-end headers.
    pub headers: Vec<(String, HeaderBytes)>,
    /// The body.
    pub body: BodyStream,
    /// Length of the body when known.
    pub len: Option<u64>,
}

/// Why a message was not accepted; what the sender should do follows from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The content cannot be read as what it claims to be. Fixed text. HL7 AR (no MSH) or AE; HTTP 400.
    #[error("{0}")]
    Unreadable(String),
    /// No channel's rule holds. AR; 404.
    #[error("no channel takes this message")]
    NoChannel,
    /// The client may not use the channel. AR; 403 (401 when anonymous).
    #[error("client not allowed on this channel")]
    NotAllowed,
    /// Larger than the limit given. AR; 413.
    #[error("larger than the limit of {limit} bytes")]
    TooLarge { limit: u64 },
    /// Over the client's rate. AE, when an MLLP sender has been slowed down in vain; 429 with Retry-After.
    #[error("rate limit reached")]
    RateLimited { retry_after: Duration },
    /// Queues full or draining. AE; 503 with Retry-After.
    #[error("{0}")]
    Busy(&'static str, Duration),
    /// The store cannot make it durable. AE; 503 with Retry-After.
    #[error("cannot be stored durably now")]
    Store,
    /// Proxy mode: the upstream could not be reached or broke off. AE; 502.
    #[error("upstream failed: {0}")]
    Upstream(String),
    /// Proxy mode: the upstream did not answer in time. AE; 504.
    #[error("upstream did not answer in time")]
    UpstreamTimeout,
    /// Proxy mode: this message can never be sent to its receiver, whatever that one does (a path that leads out of the
    /// target's). Fixed text. AE; 400.
    #[error("cannot be sent to its receiver: {0}")]
    Unsendable(String),
    /// The sender broke off while sending.
    #[error("sender broke off")]
    Aborted,
    /// The body stood still or came more slowly than the listener allows. 408.
    #[error("the body was not sent in time")]
    TooSlow,
}

/// The engine as the inbound gateways see it.
pub trait Intake: Send + Sync + 'static {
    /// Who is it? `peer` is the address of the sender (`None` for files). Never blocks: what is known is told at once, a password
    /// not seen before is checked on another thread.
    fn identify(&self, listener: &str, peer: Option<SocketAddr>, credentials: &Credentials) -> Identity<'_>;

    /// Takes one message off the client's rate; `Err`: over it, and how long until there is room. For gateways that can slow a
    /// sender down: they ask before [`Intake::accept`], which else does it.
    fn rate(&self, client: &str) -> Result<(), Duration>;

    /// Takes one message through match, accept and, in proxy mode, the primary route.
    /// Resolves when the sender may be answered. Dropping the future never undoes a durable accept.
    fn accept(&self, arrival: Arrival) -> BoxFuture<'_, Answer>;

    /// False while the node pushes back (queues full): MLLP listeners stop reading until it is true again.
    fn open(&self) -> bool;

    /// Resolves when [`Intake::open`] is true.
    fn wait_open(&self) -> BoxFuture<'_, ()>;
}

// === outbound ===

/// One delivery to make.
#[derive(Clone)]
pub struct Delivery {
    /// The message as it was accepted.
    pub message: Arc<Stored>,
    /// 1 for the first attempt.
    pub attempt: u32,
    /// The latest moment for the whole exchange, from now.
    pub timeout: Duration,
}

/// An accepted message: what the dispatcher holds while it works on it.
pub struct Stored {
    /// Its place in the log.
    pub seq: Seq,
    /// The accept fact.
    pub accepted: Accepted,
    /// The body when small and still at hand.
    pub body: Option<Bytes>,
    /// Reads the body again when it is not at hand.
    pub source: Arc<dyn Log>,
}

impl Stored {
    /// The body from its first byte.
    pub fn open(&self) -> BodyStream {
        match &self.body {
            Some(bytes) => {
                let bytes = bytes.clone();
                Box::pin(futures_util::stream::once(async move { Ok(bytes) }))
            }
            None => self.source.read(self.seq, &self.accepted.body),
        }
    }

    /// The envelope.
    pub fn envelope(&self) -> &Envelope {
        &self.accepted.envelope
    }
}

/// What came back from a receiver. The engine judges it by the channel's rules.
pub struct Reply {
    /// Which target answered, as configured.
    pub target: String,
    /// What kind of answer.
    pub kind: ReplyKind,
    /// Its body: the HTTP response body or the raw ACK; empty for files.
    pub body: BodyStream,
    /// Its length, when known.
    pub len: Option<u64>,
}

/// The kinds of answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyKind {
    /// An HTTP response.
    Http { status: u16, headers: Vec<(String, HeaderBytes)> },
    /// An HL7 acknowledgment for this message: MSA-1 in upper case.
    Ack { code: String },
    /// Written to a file and fsynced.
    Written,
}

/// Why no answer came. `target` as configured, `reason` without content.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing was sent: the receiver could not have seen the message.
    #[error("{target}: {reason}")]
    NotSent { target: String, reason: String },
    /// This message can never be sent on this route, whatever the receiver does (a frame end inside the body, a path that
    /// does not fit the target): it is set aside, and the route goes on.
    #[error("{target}: {reason}")]
    Unsendable { target: String, reason: String },
    /// The message's bytes cannot be read back from the store: no fault of the receiver, which may have seen a part.
    #[error("{target}: {reason}")]
    Unreadable { target: String, reason: String },
    /// Sent at least in part, no usable answer (broken connection, garbage, an acknowledgment for another message).
    #[error("{target}: {reason}")]
    Broken { target: String, reason: String },
    /// Sent, no answer in time.
    #[error("{target}: no answer within {after:?}")]
    Timeout { target: String, after: Duration },
}

/// One route's way out, with its balancing over targets. One instance per runtime.
pub trait Connector: Send + Sync {
    /// Sends one message and waits for the answer's head. Never retries: the engine does.
    fn send(&self, delivery: Delivery) -> BoxFuture<'_, Result<Reply, SendError>>;
}

// === the log ===

/// A record to append: the fact, and its body where it has one of its own.
pub struct Append {
    /// The fact. `home` 0 means "this fact's own sequence number".
    pub fact: Fact,
    /// The body that `BodyRef::Own`/`OwnTransient` in the fact refers to.
    pub body: Option<Bytes>,
    /// For accept facts: goes to [`CommitSink`] in log order once durable.
    pub deliver: bool,
}

/// An accept fact that is durable.
pub struct Committed {
    /// Its place in the log.
    pub seq: Seq,
    /// The accept fact.
    pub accepted: Accepted,
    /// Its body when it was given whole.
    pub body: Option<Bytes>,
}

/// Receives accept facts in log order, on the log's writer thread, before anyone is told that they are durable.
/// Must be quick and must not block.
pub trait CommitSink: Send + Sync + 'static {
    /// The batch just committed, in log order.
    fn committed(&self, batch: Vec<Committed>);
}

/// The store could not make it durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// No space, or below the reserve.
    #[error("the disk under the store is full")]
    Full,
    /// Anything else; the text is for the operator.
    #[error("the store failed: {0}")]
    Failed(String),
    /// Too much is waiting to be written.
    #[error("too much is waiting to be written")]
    Busy,
}

/// How a proxied request ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// The sender was answered; `seq` is the place of the fact, for reading the body.
    Responded { seq: Seq, status: u16, headers: Vec<(String, HeaderBytes)>, body: BodyRef, len: u64 },
    /// The node ended while it was with the upstream.
    Unknown,
    /// It has not ended, was not proxied, or is no longer stored.
    Not,
}

/// The log as the engine needs it.
pub trait Log: Send + Sync + 'static {
    /// Appends; resolves when durable (fsynced). Dropping the future does not undo it.
    fn append(&self, record: Append) -> BoxFuture<'static, Result<Seq, LogError>>;

    /// Appends without waiting: durable with a later commit, in order with all other appends.
    /// Where the store fails, the record is lost and counted: only for facts whose loss repeats work, never loses it.
    fn append_later(&self, record: Append);

    /// Resolves when everything appended before this call is durable; an error when some of it could not be written.
    fn durable(&self) -> BoxFuture<'static, Result<(), LogError>>;

    /// Stages one piece of a large body; its sequence number, once it is taken by the writer (not yet durable: the
    /// accept fact that refers to it is written after it, so durable with it). Pushes back by being slow.
    fn chunk(&self, data: Bytes, transient: bool) -> BoxFuture<'static, Result<Seq, LogError>>;

    /// Reads a body: `seq` is that of the fact that holds the reference.
    fn read(&self, seq: Seq, body: &BodyRef) -> BodyStream;

    /// Reads an accept fact again.
    fn accepted(&self, seq: Seq) -> BoxFuture<'static, Result<Accepted, LogError>>;

    /// A message is finished on all routes: transient bodies may go, segments need not carry it on.
    fn finished(&self, seq: Seq);

    /// How the proxied transaction whose accept fact has this number ended, with everything appended before this call taken into account.
    fn ended(&self, seq: Seq) -> BoxFuture<'_, Result<Ended, LogError>>;

    /// One unfinished transaction by id, with everything appended before this call taken into account.
    fn unfinished_by_id(&self, id: MessageId) -> BoxFuture<'_, Result<Option<Unfinished>, LogError>>;
}

/// A transaction that was not finished when the node ended, as the log tells at start.
pub struct Unfinished {
    /// Its place in the log.
    pub seq: Seq,
    /// The accept fact.
    pub accepted: Accepted,
    /// How far each route had come, in the order of `accepted.routes`.
    pub routes: Vec<RouteProgress>,
}

/// A message of the resend window, as the log tells at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recent {
    /// See [`Accepted::resend_key`].
    pub key: u64,
    /// See [`Accepted::body_hash`].
    pub body_hash: u128,
    /// The message.
    pub id: MessageId,
    /// Its place in the log.
    pub seq: Seq,
    /// Unix milliseconds of arrival.
    pub at_ms: i64,
}

/// Time, so that tests can drive it.
pub trait Clock: Send + Sync + 'static {
    /// Unix milliseconds.
    fn now_ms(&self) -> i64;
}

// === transport ===

/// A channel as its transport works for it.
pub struct ChannelWork {
    /// Full channel name.
    pub name: String,
    /// What becomes of new messages while the transport's broker is away.
    pub outage: crate::channel::Outage,
    /// A message may have several ordering keys, so that all of them have to meet in one place.
    pub several_keys: bool,
    /// The workers of its routes.
    pub workers: Vec<Arc<super::deliver::RouteWorker>>,
}

/// Carries accepted messages to the workers of their routes, in order per key.
pub trait Transport: Send + Sync + 'static {
    /// Makes a message durable and queues it for its routes; resolves when durable. Dropping the future undoes nothing.
    fn accept(&self, record: Append) -> BoxFuture<'static, Result<Seq, LogError>>;
    /// Proxy mode: the primary route of this message is done with (its facts are recorded by the caller).
    fn answered(&self, seq: Seq);
    /// The channels and their workers now in force; queues of routes that are gone keep what they hold.
    fn configure(&self, channels: Vec<ChannelWork>);
    /// All routes as they stand.
    fn routes(&self) -> Vec<RouteStatus>;
    /// Pauses (true) or resumes a route, and keeps that over restarts. [`ControlError::Failed`]: done, but not kept.
    fn pause(&self, channel: &str, route: &str, paused: bool) -> Result<(), ControlError>;
    /// Puts parked deliveries of a message back into their queues; returns how many.
    fn requeue<'a>(&'a self, message: &'a Unfinished, route: Option<&'a str>) -> BoxFuture<'a, Result<u32, ControlError>>;
    /// Gives up deliveries of a message that are parked, or wait on a route that is paused or no longer configured; returns
    /// how many. [`ControlError::Conflict`] when there are only others: in hand, or waiting on a route at work.
    fn discard<'a>(&'a self, message: &'a Unfinished, route: Option<&'a str>) -> BoxFuture<'a, Result<u32, ControlError>>;
    /// Accepted and unfinished messages that are not set aside.
    fn pending(&self) -> u64;
    /// Resolves when nothing is in a worker's hand; from the call on, workers take nothing new.
    fn drain(&self) -> BoxFuture<'_, ()>;
}

/// What an operator said about a route.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OperatorsWord {
    /// Full channel name.
    pub channel: String,
    /// Route name.
    pub route: String,
    /// Paused, or (against its configuration) resumed.
    pub paused: bool,
}

/// Keeps what operators said about routes over restarts.
pub trait Pauses: Send + Sync + 'static {
    /// What was kept last; nothing when it cannot be read, which is told.
    fn load(&self) -> Vec<OperatorsWord>;
    /// Keeps these instead, durably (fsynced). The error tells the operator what is wrong.
    fn keep(&self, words: &[OperatorsWord]) -> Result<(), String>;
}

/// Who paused a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PausedBy {
    /// `hie route pause`, or the management API.
    Operator,
    /// `paused = true` in its channel file.
    Configuration,
}

/// Opens the ways out of a route. Each call gives a connector for the runtime it is called in.
pub trait Connectors: Send + Sync + 'static {
    /// Checks a route's targets and prepares what its connectors share (balancing state). The text tells the operator what is wrong.
    fn prepare(&self, channel: &str, route: &crate::channel::Route) -> Result<OpenConnector, String>;
}

/// Opens one connector in the current runtime.
pub type OpenConnector = Arc<dyn Fn() -> Result<Arc<dyn Connector>, String> + Send + Sync>;

// === control ===

/// One route as it stands now.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RouteStatus {
    /// Full channel name.
    pub channel: String,
    /// Route name.
    pub route: String,
    /// Is it the primary route?
    pub primary: bool,
    /// Is it among the routes in force? One that is not keeps what it holds, and delivers nothing.
    #[serde(default = "yes")]
    pub configured: bool,
    /// Held.
    pub paused: bool,
    /// By whom; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<PausedBy>,
    /// Messages waiting, those being delivered and retried included.
    pub pending: u64,
    /// Deliveries in hand now.
    pub in_flight: u32,
    /// Messages set aside.
    pub parked: u64,
    /// Age of the oldest waiting message in milliseconds; 0 when none waits.
    pub oldest_ms: i64,
    /// Last failure, for the operator; empty when the last attempt succeeded.
    pub last_error: String,
}

fn yes() -> bool {
    true
}

/// What stands in the way of being ready; empty when ready.
pub type NotReady = Vec<String>;

/// An operator's request that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No such thing; names it.
    #[error("{0} not found")]
    NotFound(String),
    /// It is there, but not in a state for this; says which.
    #[error("{0}")]
    Conflict(String),
    /// The store failed.
    #[error("{0}")]
    Failed(String),
}

/// The engine as operators see it (management API, command line).
pub trait Control: Send + Sync + 'static {
    /// All routes of all channels.
    fn routes(&self) -> Vec<RouteStatus>;
    /// Stops deliveries on a route after those in hand, until [`Control::resume`], also over restarts; queue mode keeps accepting.
    fn pause(&self, channel: &str, route: &str) -> Result<(), ControlError>;
    /// Lets deliveries go on.
    fn resume(&self, channel: &str, route: &str) -> Result<(), ControlError>;
    /// Puts the parked deliveries of one message (`route`: of that route only) back into their queues.
    /// Returns how many.
    fn requeue(&self, id: MessageId, route: Option<&str>) -> BoxFuture<'_, Result<u32, ControlError>>;
    /// Gives up the deliveries of one message that are parked, or wait on a route that is paused or no longer configured.
    /// Returns how many (0: none is left); a delivery in hand is never given up ([`ControlError::Conflict`]).
    fn discard(&self, id: MessageId, route: Option<&str>) -> BoxFuture<'_, Result<u32, ControlError>>;
    /// Runs a message again as a new transaction whose parent is the old one (queue mode, through the channel that took
    /// it). `accepted` and the body come from the ledger. Returns the new id.
    fn rerun(&self, accepted: Accepted, body: BodyStream) -> BoxFuture<'_, Result<MessageId, ControlError>>;
    /// The channels in force, in the order in which they are asked; disabled ones included.
    fn channels(&self) -> Vec<crate::channel::Channel>;
    /// Swaps in another set of channels; refused as a whole when anything in it is wrong.
    fn set_channels(&self, channels: Vec<crate::channel::Channel>) -> Result<(), ControlError>;
    /// Accepted and unfinished messages.
    fn pending(&self) -> u64;
    /// Why the node cannot accept durably now.
    fn not_ready(&self) -> NotReady;
}
