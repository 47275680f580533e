//! The ledger as the management API needs it.

use crate::{
    engine::{
        fact::{Accepted, BodyRef, Fact, Seq, Status, What},
        ports::BodyStream,
    },
    message::{Envelope, MessageId},
};

/// What to search for. Everything given must hold; an empty query finds everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// Arrived at or after, Unix milliseconds.
    pub from: Option<i64>,
    /// Arrived before, Unix milliseconds.
    pub to: Option<i64>,
    /// One of these; empty: any.
    pub status: Vec<Status>,
    /// Full channel name.
    pub channel: Option<String>,
    /// Client name.
    pub client: Option<String>,
    /// Message type, as `ADT^A01` or `Patient`.
    pub kind: Option<String>,
    /// MSH-10 or resource id.
    pub control_id: Option<String>,
    /// Patient identifier.
    pub patient: Option<String>,
    /// Words in the body; needs `from`.
    pub text: Option<String>,
    /// Reruns of this one.
    pub parent: Option<MessageId>,
    /// This one.
    pub id: Option<MessageId>,
    /// With a parked delivery.
    pub parked: bool,
    /// Older than this number: [`Hit::seq`] of the last answer goes on without gaps.
    pub before: Option<Seq>,
    /// Skip so many.
    pub offset: usize,
    /// At most so many.
    pub limit: usize,
}

/// A search or look-up that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordsError {
    /// The search cannot be done as asked; the text says why, without repeating what was searched for.
    #[error("{0}")]
    Query(String),
    /// Not now: it took too long, or an index is being made again.
    #[error("{0}")]
    Later(String),
    /// The ledger cannot be read.
    #[error("the ledger cannot be read")]
    Failed,
}

/// A transaction found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Its number in the log.
    pub seq: Seq,
    /// Its id.
    pub id: MessageId,
}

/// One transaction with all its facts.
pub struct Detail {
    /// Its status now.
    pub status: Status,
    /// Every fact with its sequence number, in the order in which they were written.
    pub facts: Vec<(Seq, Fact)>,
}

impl Detail {
    /// The accept fact (the youngest copy, where it was carried on), and the sequence number that its body goes by.
    pub fn accepted(&self) -> Option<(Seq, &Accepted)> {
        self.facts.iter().rev().find_map(|(seq, fact)| match &fact.what {
            What::Accepted(accepted) | What::Carried { accepted, .. } => Some((*seq, &**accepted)),
            _ => None,
        })
    }

    /// The envelope, also of a refused message.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.accepted().map(|(_, a)| &a.envelope).or_else(|| {
            self.facts.iter().find_map(|(_, fact)| match &fact.what {
                What::Refused { envelope, .. } => Some(&**envelope),
                _ => None,
            })
        })
    }

    /// Where the body that arrived lies, and its length.
    pub fn request_body(&self) -> Option<(Seq, &BodyRef, u64)> {
        if let Some((seq, accepted)) = self.accepted() {
            return Some((seq, &accepted.body, accepted.envelope.body_len));
        }
        self.facts.iter().find_map(|(seq, fact)| match &fact.what {
            What::Refused { envelope, body, .. } => Some((*seq, body, envelope.body_len)),
            _ => None,
        })
    }
}

/// The ledger. Searches and look-ups may block for a while; they are called on threads that may.
pub trait Records: Send + Sync + 'static {
    /// Waits a moment, so that what was just written is found. Called once per request.
    fn settle(&self);
    /// The transactions that match, newest first.
    fn search(&self, query: &Query) -> Result<Vec<Hit>, RecordsError>;
    /// One transaction; `None`: there is none of that id.
    fn transaction(&self, id: MessageId) -> Result<Option<Detail>, RecordsError>;
    /// Transactions that rerun this one.
    fn children(&self, id: MessageId) -> Result<Vec<MessageId>, RecordsError>;
    /// Reads a body: `seq` is that of the fact that holds the reference.
    fn read(&self, seq: Seq, body: &BodyRef) -> BodyStream;
    /// Figures for `/status`: sizes, counts.
    fn stats(&self) -> serde_json::Value;
    /// What an operator should look at (a segment set aside, views being rebuilt); empty when all is well.
    fn problems(&self) -> Vec<String>;
}
