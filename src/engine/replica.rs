//! The ledger as a replica: what one node's log tells the others, and what it takes from them (DESIGN.md §3, "Every node
//! is a read replica").
//!
//! A node's log is shipped whole, in its order; whoever takes a batch knows by `prev` whether one before it is missing.

use super::{
    fact::{Accepted, Fact, RouteProgress, Seq, What},
    ports::LogError,
};
use crate::channel::Mode;
use crate::message::MessageId;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, EnumAccess, IgnoredAny, IntoDeserializer, VariantAccess, value::EnumAccessDeserializer},
};
use std::collections::HashMap;

/// A log's own random number, made with its store: a node that lost its disk is a new origin.
pub type Origin = u64;

/// One record on its way to the other nodes. Of a kind of fact that a later release added only the number is read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Incoming")]
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

/// A record as another release may have written it.
#[derive(Deserialize)]
struct Incoming {
    seq: Seq,
    fact: Option<AnyFact>,
    body: Option<PackedBody>,
    transient: bool,
}

#[derive(Deserialize)]
struct AnyFact {
    id: MessageId,
    home: Seq,
    at: i64,
    #[serde(deserialize_with = "known_kind")]
    what: Option<What>,
}

impl From<Incoming> for Shipped {
    fn from(Incoming { seq, fact, body, transient }: Incoming) -> Self {
        match fact {
            None => Self { seq, fact: None, body, transient },
            Some(AnyFact { id, home, at, what: Some(what) }) => {
                Self { seq, fact: Some(Fact { id, home, at, what }), body, transient }
            }
            // Its body is no piece of anything.
            Some(_) => Self { seq, fact: None, body: None, transient: false },
        }
    }
}

/// A fact's kind and fields; `None` for a kind that is not known, whose fields are passed over.
fn known_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<What>, D::Error> {
    struct Kind;
    impl<'de> de::Visitor<'de> for Kind {
        type Value = Option<What>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a kind of fact")
        }
        fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Self::Value, A::Error> {
            let (tag, fields) = data.variant::<String>()?;
            if !What::TAGS.contains(&tag.as_str()) {
                return fields.newtype_variant::<IgnoredAny>().map(|_| None);
            }
            What::deserialize(EnumAccessDeserializer::new(Tagged { tag, fields })).map(Some)
        }
    }
    deserializer.deserialize_enum("What", &What::TAGS, Kind)
}

/// A kind whose tag has been read already.
struct Tagged<V> {
    tag: String,
    fields: V,
}

impl<'de, V: VariantAccess<'de>> EnumAccess<'de> for Tagged<V> {
    type Error = V::Error;
    type Variant = V;
    fn variant_seed<S: de::DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, V), V::Error> {
        Ok((seed.deserialize(self.tag.into_deserializer())?, self.fields))
    }
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

/// A delivery that waits in the ledger instead of in a queue of the broker ([`What::Held`]) and is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldDelivery {
    /// The message's place in this log.
    pub seq: Seq,
    /// The message.
    pub id: MessageId,
    /// Its ordering keys.
    pub keys: Vec<u64>,
    /// Unix milliseconds of arrival.
    pub received_ms: i64,
    /// How far it has come on this route.
    pub progress: RouteProgress,
}

/// How many of them wait on a route, those that are parked not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldCount {
    /// Full channel name.
    pub channel: String,
    /// Route name.
    pub route: String,
    /// Deliveries.
    pub waiting: u64,
}

/// Which held deliveries are asked for, by accept fact and progress.
pub type WantedHeld = Box<dyn Fn(&Accepted, RouteProgress) -> bool + Send>;

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

    /// The held deliveries of a route, whoever held them, in the order in which their messages were accepted; everything appended and
    /// applied before this call taken into account.
    fn held(&self, channel: &str, route: &str, wanted: WantedHeld) -> BoxFuture<'static, Result<Vec<HeldDelivery>, LogError>>;

    /// How many held deliveries wait, by route; a moment behind the log. From memory.
    fn held_counts(&self) -> Vec<HeldCount>;

    /// The same for one route.
    fn held_on(&self, channel: &str, route: &str) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    enum LaterWhat {
        #[serde(rename = "Z")]
        Later { some: u32, thing: Vec<Vec<u8>> },
    }

    #[derive(Serialize)]
    struct LaterFact {
        id: MessageId,
        home: Seq,
        at: i64,
        what: LaterWhat,
    }

    #[derive(Serialize)]
    struct LaterShipped {
        seq: Seq,
        fact: Option<LaterFact>,
        body: Option<PackedBody>,
        transient: bool,
    }

    #[test]
    fn a_kind_of_a_later_release_is_passed_over_and_its_neighbours_are_read() {
        let body = || Some(PackedBody { codec: 0, len: 1, sum: 2, data: Bytes::from_static(b"x") });
        let fact = |what| Some(Fact { id: MessageId::now(), home: 3, at: 4, what });
        let known = [What::Forwarded, What::Held { route: "ehr".into() }, What::Resent { remote: "r".into() }, What::Unknown];
        let [a, b, c, d] = known.map(|what| Shipped { seq: 1, fact: fact(what), body: body(), transient: true });
        let what = LaterWhat::Later { some: 7, thing: vec![vec![1, 2], vec![]] };
        let later = LaterShipped {
            seq: 9,
            fact: Some(LaterFact { id: MessageId::now(), home: 3, at: 4, what }),
            body: body(),
            transient: true,
        };
        let piece = Shipped { seq: 2, fact: None, body: body(), transient: false };
        let bytes = rmp_serde::to_vec_named(&(a, later, b, c, piece, d)).expect("encoded");
        let read: Vec<Shipped> = rmp_serde::from_slice(&bytes).expect("readable");
        let whats: Vec<_> = read.iter().map(|r| r.fact.as_ref().map(|f| &f.what)).collect();
        assert!(matches!(
            whats[..],
            [Some(What::Forwarded), None, Some(What::Held { .. }), Some(What::Resent { .. }), None, Some(What::Unknown)]
        ));
        assert_eq!((read[1].seq, read[1].body.is_some()), (9, false), "its number is known, and its body is nobody's piece");
        assert!(read[4].body.is_some() && read[5].body.is_some());
    }

    #[test]
    fn every_kind_is_named_among_the_tags() {
        let strange = rmp_serde::to_vec_named(&std::collections::BTreeMap::from([("?", 1)])).expect("encoded");
        let error = rmp_serde::from_slice::<What>(&strange).expect_err("not a kind").to_string();
        let named: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        assert_eq!(named, What::TAGS);
    }
}
