//! Facts: what the ledger holds. Each is one thing that happened to a message.
//!
//! Facts are idempotent by (message, step or route, attempt) and any fact can create a transaction's
//! row in the views, so that their order of arrival does not matter to a folder.

use crate::channel::{Mode, Storage};
use crate::message::{Envelope, MessageId, envelope::HeaderBytes};
use serde::{Deserialize, Serialize};

/// The log's sequence number: rises over all segments, never reused. Bodies and facts share it.
pub type Seq = u64;

/// One fact about one message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fact {
    /// The message.
    pub id: MessageId,
    /// Sequence number of the message's accept fact; 0 in the accept fact itself (the log assigns it) and
    /// where a refused message has none.
    pub home: Seq,
    /// Unix milliseconds.
    pub at: i64,
    /// What happened.
    pub what: What,
}

/// Where a stored body lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyRef {
    /// Not stored (none came, or the storage mode keeps none).
    #[default]
    None,
    /// Stored under the sequence number of the fact that holds this reference.
    Own,
    /// As `Own`, in a short-lived segment that is unlinked when all its messages are finished.
    OwnTransient,
    /// In pieces, in order, each under its own sequence number (`transient`: in short-lived segments).
    Chunks { seqs: Vec<Seq>, transient: bool },
}

/// The kinds of fact. Encoded with named fields (MessagePack); a reader skips kinds and fields it does not know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum What {
    /// Accepted durably: the first fact of nearly every transaction.
    #[serde(rename = "A")]
    Accepted(Box<Accepted>),
    /// Not accepted; the sender was told why. `reason` is fixed text plus numbers, never content.
    #[serde(rename = "X")]
    Refused { envelope: Box<Envelope>, reason: String, body: BodyRef },
    /// The sender sent it again and was acknowledged again; nothing was delivered.
    #[serde(rename = "R")]
    Resent { remote: String },
    /// One delivery attempt on one route and how it ended.
    #[serde(rename = "D")]
    Attempt(Box<Attempt>),
    /// An operator, or a rerun, put the route's delivery back into its queue.
    #[serde(rename = "Q")]
    Requeued { route: String },
    /// An operator gave up the delivery on this route.
    #[serde(rename = "G")]
    Discarded { route: String },
    /// Proxy mode: what the sender was answered.
    #[serde(rename = "S")]
    Responded { status: u16, headers: Vec<(String, HeaderBytes)>, body: BodyRef, len: u64 },
    /// Proxy mode: the node ended while the request was with the upstream; whether it took effect is not known.
    #[serde(rename = "U")]
    Unknown,
    /// A transaction not finished when its segment's time came, written again in a younger segment:
    /// the accept fact as it was, its old sequence number, and how far each route had come by the facts up to `as_of`.
    #[serde(rename = "C")]
    Carried {
        accepted: Box<Accepted>,
        from: Seq,
        /// The number under which it was first accepted: the order of arrival outlives carrying. 0: not known.
        #[serde(default)]
        first: Seq,
        routes: Vec<(String, RouteProgress)>,
        #[serde(default)]
        as_of: Seq,
    },
    /// A pipeline step's result; the place for the processing engine.
    #[serde(rename = "P")]
    Step { index: u16, name: String, outcome: String, body: BodyRef },
    /// A message that this node held for want of the broker is in a queue of the broker now: its keeper is [`Keeper::Broker`].
    #[serde(rename = "F")]
    Forwarded,
    /// Accepted here as new, and recognised later as a resend of what another node had accepted under the id `of`: nothing is delivered,
    /// and the transaction is finished.
    #[serde(rename = "E")]
    Repeated { of: MessageId },
    /// The delivery on this route, whose turn does not come soon, is out of the broker's queue: it waits in the ledgers of all nodes, and
    /// whoever works on its partition takes it from there.
    #[serde(rename = "H")]
    Held { route: String },
}

impl What {
    /// The tags that this release knows, as encoded. What a later release adds carries fields, so that it can be passed over.
    pub const TAGS: [&str; 13] = ["A", "X", "R", "D", "Q", "G", "S", "U", "C", "P", "F", "E", "H"];
}

/// Who holds an accepted message until it is finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keeper {
    /// The log of the node that accepted it, which restores it for work at its start.
    #[default]
    #[serde(rename = "l")]
    Log,
    /// A queue of the broker.
    #[serde(rename = "b")]
    Broker,
}

impl Keeper {
    fn is_log(&self) -> bool {
        *self == Self::Log
    }
}

/// The accept fact.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// The envelope.
    #[serde(rename = "e")]
    pub envelope: Envelope,
    /// Full channel name, `namespace.name`.
    #[serde(rename = "ch")]
    pub channel: String,
    /// Queue or proxy.
    #[serde(rename = "m")]
    pub mode: Mode,
    /// Storage mode of the channel at that time.
    #[serde(rename = "st", default)]
    pub storage: Storage,
    /// Names of the routes it must reach; the primary first. In proxy mode the primary is answered directly.
    #[serde(rename = "rt")]
    pub routes: Vec<String>,
    /// Proxy mode: the upstream is idempotent, so an interrupted request may be sent again.
    #[serde(rename = "idem", default)]
    pub idempotent: bool,
    /// Where the body lies.
    #[serde(rename = "b", default)]
    pub body: BodyRef,
    /// xxh3-128 of the body, for the resend window.
    #[serde(rename = "bh", default)]
    pub body_hash: u128,
    /// Hash of (client, MSH-3, MSH-4, MSH-10) or of (client, Idempotency-Key); 0 when the message has neither.
    #[serde(rename = "rh", default)]
    pub resend_key: u64,
    /// Who holds it, as of accepting; see [`What::Forwarded`].
    #[serde(rename = "k", default, skip_serializing_if = "Keeper::is_log")]
    pub keeper: Keeper,
}

/// One delivery attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// Route name.
    #[serde(rename = "r")]
    pub route: String,
    /// 1 for the first.
    #[serde(rename = "n")]
    pub number: u32,
    /// Target as configured (host, port, no credentials, no query).
    #[serde(rename = "t", default)]
    pub target: String,
    /// Milliseconds from sending to the end of the answer.
    #[serde(rename = "ms")]
    pub took_ms: u32,
    /// How it ended.
    #[serde(rename = "o")]
    pub outcome: Outcome,
    /// HTTP status; 0 when there was none.
    #[serde(rename = "s", default)]
    pub status: u16,
    /// `AA`, `CE`, … when the receiver acknowledged as HL7 does.
    #[serde(rename = "a", default)]
    pub ack: String,
    /// Why it failed, for the operator; fixed text plus addresses, never content.
    #[serde(rename = "e", default)]
    pub error: String,
    /// The receiver's answer.
    #[serde(rename = "b", default)]
    pub response: BodyRef,
    /// Length of the receiver's answer in bytes.
    #[serde(rename = "bn", default)]
    pub response_len: u64,
    /// Failures inside the node in a row, this one included; 0 for an attempt that came as far as the way out.
    #[serde(rename = "in", default, skip_serializing_if = "is_zero")]
    pub inside: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done on this route.
    #[serde(rename = "d")]
    Delivered,
    /// Will be tried again.
    #[serde(rename = "r")]
    Retry,
    /// Set aside for an operator.
    #[serde(rename = "p")]
    Parked,
    /// Proxy mode: failed and not tried again; the sender was told.
    #[serde(rename = "f")]
    Failed,
}

/// How far a route has come with one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteProgress {
    /// Attempts so far.
    pub attempts: u32,
    /// State now.
    pub state: RouteState,
    /// Failures inside the node in a row since the last real attempt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inside: u32,
    /// See [`What::Held`]; stays so to the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

/// State of one message on one route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteState {
    /// In the queue, or being tried.
    #[default]
    Waiting,
    /// Delivered.
    Delivered,
    /// Set aside for an operator.
    Parked,
    /// Failed for good (proxy mode) or discarded by an operator.
    Failed,
}

impl RouteState {
    /// Nothing more happens by itself and no operator is waited for.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Delivered | Self::Failed)
    }
}

/// A transaction's status, with OpenHIM's words where OpenHIM has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Accepted, not finished.
    Processing,
    /// All routes delivered (proxy: the response was below 400).
    Successful,
    /// Proxy: the upstream answered 4xx, all else went well.
    Completed,
    /// The primary route is done, a secondary one is parked or failed.
    #[serde(rename = "Completed with error(s)")]
    CompletedWithErrors,
    /// The primary route failed (proxy: 5xx or no answer) or was discarded.
    Failed,
    /// The primary route's delivery waits for an operator.
    Parked,
    /// Proxy: interrupted while with the upstream.
    Unknown,
    /// Not accepted.
    Refused,
}

impl Status {
    /// All of them, in the order of their stored number.
    pub const ALL: [Status; 8] = [
        Self::Processing,
        Self::Successful,
        Self::Completed,
        Self::CompletedWithErrors,
        Self::Failed,
        Self::Parked,
        Self::Unknown,
        Self::Refused,
    ];

    /// The word shown and searched by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processing => "Processing",
            Self::Successful => "Successful",
            Self::Completed => "Completed",
            Self::CompletedWithErrors => "Completed with error(s)",
            Self::Failed => "Failed",
            Self::Parked => "Parked",
            Self::Unknown => "Unknown",
            Self::Refused => "Refused",
        }
    }
}
