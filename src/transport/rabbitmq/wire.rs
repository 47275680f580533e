//! What travels through the broker: a version byte, then MessagePack with named fields, so that a node of the previous release
//! reads what this one wrote.

use super::epochs::Stage;
use crate::config::Layout;
use crate::engine::{
    fact::{Accepted, Seq},
    replica::{Origin, Shipped},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// First byte of everything; a reader refuses higher ones.
const VERSION: u8 = 1;

/// One message on its way to a consumer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parcel {
    /// Its accept fact. References to pieces in it are those of the node that accepted it.
    #[serde(rename = "a")]
    pub accepted: Accepted,
    /// Its body; `None` when it has none, or when it is too large to travel: then it comes through the ledger stream.
    #[serde(rename = "b", default)]
    pub body: Option<Bytes>,
    /// An operator wants this delivery again: the ledger has been told so.
    #[serde(rename = "q", default, skip_serializing_if = "std::ops::Not::not")]
    pub requeued: bool,
}

/// Messages of one partition that travel together, in order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Batch {
    #[serde(rename = "m")]
    pub messages: Vec<Parcel>,
    /// Nothing comes after it, see [`seal`].
    #[serde(rename = "s", default, skip_serializing_if = "std::ops::Not::not")]
    pub seal: bool,
}

impl Batch {
    /// With these.
    pub fn of(messages: Vec<Parcel>) -> Self {
        Self { messages, seal: false }
    }
}

/// Longer than a seal, shorter than any message.
const SEAL: usize = 16;

/// What is published last into a queue of an epoch that ends. Whoever has it in hand has had all that came before.
pub fn seal() -> Result<Bytes, WireError> {
    encode(&Batch { seal: true, ..Batch::default() })
}

/// Whether it is a seal.
pub fn is_seal(payload: &[u8]) -> bool {
    payload.len() <= SEAL && decode::<Batch>(payload).is_ok_and(|batch| batch.seal)
}

/// Whether there is no message in it.
pub fn is_empty(payload: &[u8]) -> bool {
    payload.len() <= SEAL && decode::<Batch>(payload).is_ok_and(|batch| batch.messages.is_empty())
}

/// One message of the ledger stream.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told<W> {
    /// The log it comes from.
    #[serde(rename = "o")]
    pub origin: Origin,
    /// The node's name.
    #[serde(rename = "n")]
    pub node: String,
    #[serde(rename = "w")]
    pub what: W,
}

/// What a node tells the others.
#[derive(Debug, Serialize, Deserialize)]
pub enum News {
    /// Records of its own log.
    #[serde(rename = "s")]
    Ship {
        /// Number of the last record of the batch before; 0 before the first.
        #[serde(rename = "p")]
        prev: Seq,
        /// All records up to here were confirmed when this was sent: they do not come again.
        #[serde(rename = "c", default)]
        confirmed: Seq,
        #[serde(rename = "r")]
        records: Vec<Shipped>,
    },
    /// It lives. `number` rises by one; who waits to see it has read all that came before.
    #[serde(rename = "b")]
    Beat {
        #[serde(rename = "i")]
        number: u64,
        /// Of this run of the node: the numbers of another run say nothing.
        #[serde(rename = "e", default)]
        run: u64,
        /// It is going, and takes no part in the work any more.
        #[serde(rename = "l", default)]
        leaving: bool,
        /// Messages accepted into its own log and not yet handed to the broker.
        #[serde(rename = "s", default)]
        spooled: u64,
        /// The latest layout that it knows; none: of a release before there were any.
        #[serde(rename = "y", default)]
        layout: Option<Layout>,
        /// How far it is with that.
        #[serde(rename = "g", default)]
        stage: Stage,
    },
    /// Everything in this queue, of an epoch that ends, has been worked off. Told again and again.
    #[serde(rename = "d")]
    Drained {
        #[serde(rename = "q")]
        queue: String,
    },
    /// An operator paused or resumed a route.
    #[serde(rename = "w")]
    Word {
        #[serde(rename = "c")]
        channel: String,
        #[serde(rename = "r")]
        route: String,
        #[serde(rename = "p")]
        paused: bool,
    },
}

/// Why something from the broker cannot be read. No content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A later release wrote it.
    #[error("written by a later release: upgrade this node")]
    Later,
    /// Not of our making.
    #[error("not readable")]
    Unreadable,
}

/// Encodes; what is encoded here always can be.
pub fn encode<T: Serialize>(what: &T) -> Result<Bytes, WireError> {
    let mut bytes = vec![VERSION];
    rmp_serde::encode::write_named(&mut bytes, what).map_err(|_| WireError::Unreadable)?;
    Ok(bytes.into())
}

/// Decodes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    match bytes.split_first() {
        Some((&version, rest)) if version <= VERSION => rmp_serde::from_slice(rest).map_err(|_| WireError::Unreadable),
        Some(_) => Err(WireError::Later),
        None => Err(WireError::Unreadable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_comes_back_and_what_is_strange_is_refused() {
        let what =
            News::Beat { number: 7, run: 9, leaving: false, spooled: 3, layout: Some(Layout::first(4)), stage: Stage::Quiet };
        let bytes = encode(&Told { origin: 1, node: "a".into(), what }).unwrap();
        let back: Told<News> = decode(&bytes).unwrap();
        assert!(matches!(back.what, News::Beat { number: 7, run: 9, stage: Stage::Quiet, .. }));
        let (seal, nothing) = (seal().unwrap(), encode(&Batch::default()).unwrap());
        assert!(is_seal(&seal) && is_empty(&seal) && is_empty(&nothing) && !is_seal(&nothing) && !is_empty(&bytes));
        let mut later = bytes.to_vec();
        later[0] = VERSION + 1;
        assert_eq!(decode::<Told<News>>(&later).unwrap_err(), WireError::Later);
        assert_eq!(decode::<Told<News>>(&bytes[..bytes.len() - 1]).unwrap_err(), WireError::Unreadable);
        assert_eq!(decode::<Told<News>>(&[]).unwrap_err(), WireError::Unreadable);
    }

    #[test]
    fn fields_of_a_later_release_are_skipped() {
        let told = rmp_serde::to_vec_named(&serde_json::json!({"o": 5, "n": "x", "z": [1], "w": {"b": {"i": 1, "later": true}}}));
        let bytes = [&[VERSION], told.unwrap().as_slice()].concat();
        assert!(matches!(
            decode::<Told<News>>(&bytes).unwrap().what,
            News::Beat { number: 1, layout: None, stage: Stage::Unaware, .. }
        ));
    }
}
