//! The ledger as a replica: what one node's log tells the others, and what it takes from them (DESIGN.md §3, "Every node
//! is a read replica").
//!
//! A node's log is shipped whole, in its order; whoever takes a batch knows by `prev` whether one before it is missing.

use super::{
    fact::{Accepted, Fact, RouteProgress, Seq},
    ports::LogError,
};
use crate::channel::Mode;
use crate::message::MessageId;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// A log's own random number, made with its store: a node that lost its disk is a new origin.
pub type Origin = u64;

/// One record on its way to the other nodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shipped {
    /// Its number in the log of the node that wrote it.
    pub seq: Seq,
    /// The fact; `None` for a piece of a large body. Its `home` and the numbers of pieces in it are those of its own log.
    pub fact: Option<Fact>,
    /// The body of its own, or the piece, as stored.
    pub body: Option<PackedBody>,
    /// The body belongs into short-lived segments.
    pub transient: bool,
}

/// A stored body as it is: packed once, by the node that wrote it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PackedBody {
    /// 0 plain, 1 zstd.
    pub codec: u8,
    /// Bytes when unpacked.
    pub len: u64,
    /// Low 32 bits of xxh3-64 over `data`.
    pub sum: u32,
    /// The stored bytes.
    pub data: Bytes,
}

/// What a log wrote itself, in its order.
#[derive(Clone, Debug, Default)]
pub struct OwnRecords {
    /// With rising numbers.
    pub records: Vec<Shipped>,
    /// Everything up to here has been looked at.
    pub upto: Seq,
}

/// How far a log has taken in what others wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Offset in the ledger stream from which to read on; `None`: from its beginning.
    pub offset: Option<u64>,
    /// The highest number taken of each origin.
    pub taken: HashMap<Origin, Seq>,
}

/// An unfinished or finished message as this log knows it.
#[derive(Clone, Debug)]
pub struct KnownMessage {
    /// Its place in this log.
    pub seq: Seq,
    /// The accept fact, with this log's numbers.
    pub accepted: Accepted,
    /// How far each route has come, in the order of `accepted.routes`.
    pub routes: Vec<RouteProgress>,
}

/// An accept fact of another node that is in this log now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Its place in this log.
    pub seq: Seq,
    /// The message.
    pub id: MessageId,
    /// Queue or proxy.
    pub mode: Mode,
    /// See [`Accepted::resend_key`]; 0: it has none.
    pub resend_key: u64,
    /// See [`Accepted::body_hash`].
    pub body_hash: u128,
    /// Unix milliseconds at which the other node received it.
    pub received_ms: i64,
    /// It has been taken from its inbox to be delivered: no repetition of another, and none that waits in a node's own log.
    pub taken: bool,
}

/// Is told what other nodes accepted, as soon as it is durable here and before [`Replica::apply`] resolves: in log order, on the ledger's
/// own thread for that, which applies nothing meanwhile. Registered by the ledger's `observe`.
pub trait Observer: Send + Sync + 'static {
    /// Some that were committed together, without those that were known here already.
    fn applied(&self, batch: &[Arrived]);
}

/// The log as the cluster needs it. Implemented by the ledger.
pub trait Replica: Send + Sync + 'static {
    /// This log's own number.
    fn origin(&self) -> Origin;

    /// Highest number committed.
    fn committed(&self) -> Seq;

    /// What this log wrote itself after `after` (committed only), up to about `bytes`, waiting until more is committed: `upto` rises with
    /// every answer, which is without records when others wrote what was committed. Without what it took from others and `Carried` facts.
    fn own(&self, after: Seq, bytes: usize) -> BoxFuture<'static, Result<OwnRecords, LogError>>;

    /// Everything of its own up to here is confirmed by the stream; kept lazily, so that a restart ships a little again. `upto` is the number
    /// of the last record of a batch (not [`OwnRecords::upto`], which may lie above it): it is `prev` of the first batch after a restart.
    fn shipped(&self, upto: Seq);

    /// Where shipping goes on after a start.
    fn shipped_upto(&self) -> Seq;

    /// Takes in records of another log, in order, and notes with them, in the same commit, that the stream is read up to `offset` and that
    /// `origin` is taken up to the last record. Resolves when durable; calls made one after the other are applied in that order.
    /// A record whose message is not known (and does not make it known) has no effect, and neither has one that was taken already.
    ///
    /// On an error nothing later counts as taken: every call with a higher `offset` fails too, until the one that failed (or one before
    /// it) is made again. [`LogError::Full`]: there is no room now; try again. Calls without records resolve at once, and are noted
    /// with a later one. A caller has a few calls under way, not any number: they wait in memory.
    fn apply(&self, origin: Origin, records: Vec<Shipped>, offset: u64) -> BoxFuture<'static, Result<(), LogError>>;

    /// How far it has taken in, as of the latest commit.
    fn positions(&self) -> Positions;

    /// The place of a message's accept fact in this log; `None` when it is not (yet) there. Quick for recent ones.
    fn home(&self, id: MessageId) -> BoxFuture<'static, Option<Seq>>;

    /// A message as known here, everything appended and applied before this call taken into account.
    fn known(&self, id: MessageId) -> BoxFuture<'static, Result<Option<KnownMessage>, LogError>>;
}
