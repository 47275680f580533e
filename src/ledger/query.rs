//! What can be asked of the ledger, and the answers.

use super::sql::FileError;
use super::view_row::ViewRow;
use crate::engine::fact::{Accepted, BodyRef, Fact, RouteProgress, RouteState, Seq, Status};
use crate::message::{Envelope, MessageId, Protocol};
use std::time::Duration;

/// A search: all that is given must hold.
#[derive(Clone, Debug)]
pub struct Query {
    pub id: Option<MessageId>,
    /// Unix milliseconds of arrival, inclusive.
    pub from_ms: Option<i64>,
    /// Unix milliseconds of arrival, inclusive.
    pub to_ms: Option<i64>,
    /// Full name.
    pub channel: Option<String>,
    /// Any of these; empty: any.
    pub status: Vec<Status>,
    pub client: Option<String>,
    pub listener: Option<String>,
    /// Message type, as in the envelope.
    pub kind: Option<String>,
    pub control_id: Option<String>,
    pub patient: Option<String>,
    pub parent: Option<MessageId>,
    /// In the body, without regard to case. Needs `from_ms` and `to_ms`.
    pub text: Option<String>,
    /// Only transactions that something still has to happen to (parked ones included).
    pub open: bool,
    /// Only transactions with a parked route.
    pub parked: bool,
    /// Answers at most.
    pub limit: usize,
    /// Answers to pass over first.
    pub offset: usize,
    /// Only transactions with a lower number: [`Row::seq`] of the last answer continues a search without gaps.
    pub before: Option<Seq>,
    /// Longest time.
    pub deadline: Duration,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            id: None,
            from_ms: None,
            to_ms: None,
            channel: None,
            status: Vec::new(),
            client: None,
            listener: None,
            kind: None,
            control_id: None,
            patient: None,
            parent: None,
            text: None,
            open: false,
            parked: false,
            limit: 100,
            offset: 0,
            before: None,
            deadline: Duration::from_secs(10),
        }
    }
}

/// A search without an answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// Free text reads bodies: it needs a time range.
    #[error("a search for text needs a time range (from and to)")]
    TextNeedsTime,
    /// Took too long. `found` is what was found until then.
    #[error("the search took too long; narrow it by time or channel")]
    Deadline { found: Vec<Row> },
    /// A view was found damaged and is being made again.
    #[error("a part of the index is being made again; try again in a moment")]
    Rebuilding,
    /// A file cannot be read.
    #[error("the ledger cannot be read: {0}")]
    File(#[from] FileError),
}

/// One transaction in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its present number.
    pub seq: Seq,
    pub id: MessageId,
    /// Unix milliseconds of arrival.
    pub at: i64,
    /// Unix milliseconds of the latest fact.
    pub changed: i64,
    /// Full name; empty when refused before a channel was chosen.
    pub channel: String,
    pub status: Status,
    pub client: String,
    pub listener: String,
    pub protocol: Option<Protocol>,
    /// Message type.
    pub kind: String,
    pub control_id: Option<String>,
    /// Same control id as an earlier message, another body.
    pub control_id_reused: bool,
    /// The transaction this one reruns.
    pub parent: Option<MessageId>,
    /// As received.
    pub body_len: u64,
    /// The sender sent it again.
    pub resent: bool,
    /// Proxy mode.
    pub proxy: bool,
    /// Proxy mode: HTTP status that the sender was answered.
    pub response: Option<u16>,
    /// Route names, the primary first, and how far each has come.
    pub routes: Vec<(String, RouteProgress)>,
    /// Something still has to happen to it.
    pub open: bool,
}

impl From<ViewRow> for Row {
    fn from(row: ViewRow) -> Self {
        let ViewRow { seq, id, head, fold, .. } = row;
        Self {
            seq,
            id,
            at: head.at,
            changed: fold.changed,
            channel: head.channel,
            status: fold.status(),
            client: head.client,
            listener: head.listener,
            protocol: head.protocol,
            kind: head.kind,
            control_id: head.control_id,
            control_id_reused: head.control_id_reused,
            parent: head.parent,
            body_len: head.body_len,
            resent: fold.resent,
            proxy: fold.proxy,
            response: fold.responded,
            open: !fold.is_finished(),
            routes: fold.routes.into_iter().map(|r| (r.name, r.progress)).collect(),
        }
    }
}

impl Row {
    /// Has it a parked route?
    pub fn is_parked(&self) -> bool {
        self.routes.iter().any(|(_, p)| p.state == RouteState::Parked)
    }
}

/// One transaction with everything that is stored of it.
#[derive(Clone, Debug)]
pub struct Detail {
    pub row: Row,
    /// The accept fact, for accepted ones; its body is read under `row.seq`.
    pub accepted: Option<Accepted>,
    /// For refused ones.
    pub refused: Option<Refused>,
    /// All facts that are still stored, in log order, with their numbers; bodies in them are read under those.
    pub facts: Vec<(Seq, Fact)>,
}

/// What is stored of a refused message.
#[derive(Clone, Debug)]
pub struct Refused {
    pub envelope: Envelope,
    pub reason: String,
    pub body: BodyRef,
}
