//! The stored form of facts and bodies. Runs in the thread of whoever appends, not on the writer's.
//!
//! A fact's row holds id, home, time and kind in columns; `data` is one version byte and the [`What`] as
//! MessagePack with named fields, so that the next release reads what this one wrote.

use super::sql::Damage;
use crate::engine::fact::{BodyRef, Fact, Seq, What};
use bytes::Bytes;
use std::cell::RefCell;
use xxhash_rust::xxh3::xxh3_64;

/// First byte of every stored fact.
const VERSION: u8 = 1;
/// zstd level: at 1 a 64 KiB HL7 body costs well under a millisecond.
const LEVEL: i32 = 1;
/// Scratch memory kept per thread between facts.
const SCRATCH_KEPT: usize = 64 * 1024;
/// No stored body row is larger than this when unpacked; a damaged length must not allocate more.
pub const MAX_ROW: usize = 1 << 30;

/// Numbers of the kinds of fact, as stored.
pub mod kind {
    pub const ACCEPTED: u8 = 1;
    pub const REFUSED: u8 = 2;
    pub const RESENT: u8 = 3;
    pub const ATTEMPT: u8 = 4;
    pub const REQUEUED: u8 = 5;
    pub const DISCARDED: u8 = 6;
    pub const RESPONDED: u8 = 7;
    pub const UNKNOWN: u8 = 8;
    pub const CARRIED: u8 = 9;
    pub const STEP: u8 = 10;
    pub const FORWARDED: u8 = 11;
    pub const REPEATED: u8 = 12;
    pub const HELD: u8 = 13;
}

/// The stored number of a fact's kind.
pub fn kind_of(what: &What) -> u8 {
    match what {
        What::Accepted(_) => kind::ACCEPTED,
        What::Refused { .. } => kind::REFUSED,
        What::Resent { .. } => kind::RESENT,
        What::Attempt(_) => kind::ATTEMPT,
        What::Requeued { .. } => kind::REQUEUED,
        What::Discarded { .. } => kind::DISCARDED,
        What::Responded { .. } => kind::RESPONDED,
        What::Unknown => kind::UNKNOWN,
        What::Carried { .. } => kind::CARRIED,
        What::Step { .. } => kind::STEP,
        What::Forwarded => kind::FORWARDED,
        What::Repeated { .. } => kind::REPEATED,
        What::Held { .. } => kind::HELD,
    }
}

/// The body a fact refers to.
pub fn body_of(what: &What) -> &BodyRef {
    match what {
        What::Accepted(accepted) => &accepted.body,
        What::Carried { accepted, .. } => &accepted.body,
        What::Attempt(attempt) => &attempt.response,
        What::Refused { body, .. } | What::Responded { body, .. } | What::Step { body, .. } => body,
        What::Resent { .. }
        | What::Requeued { .. }
        | What::Discarded { .. }
        | What::Unknown
        | What::Forwarded
        | What::Repeated { .. }
        | What::Held { .. } => &BodyRef::None,
    }
}

/// A fact ready to be written.
pub struct FactRow {
    pub id: [u8; 16],
    pub home: Seq,
    pub at: i64,
    pub kind: u8,
    pub data: Box<[u8]>,
}

/// How a body's bytes are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    Plain = 0,
    Zstd = 1,
}

/// A body, or a piece of one, ready to be written.
#[derive(Clone)]
pub struct BodyRow {
    pub codec: Codec,
    /// Bytes when unpacked.
    pub len: usize,
    /// Low 32 bits of xxh3-64 over the stored bytes: a flipped bit is an error, not another message.
    pub sum: u32,
    pub data: Bytes,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static PACKER: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// Encodes a fact.
pub fn fact_row(fact: &Fact) -> Result<FactRow, String> {
    let data = SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        scratch.push(VERSION);
        rmp_serde::encode::write_named(scratch, &fact.what).map_err(|e| format!("fact cannot be encoded: {e}"))?;
        let data: Box<[u8]> = scratch.as_slice().into();
        scratch.shrink_to(SCRATCH_KEPT);
        Ok::<_, String>(data)
    })?;
    Ok(FactRow { id: *fact.id.as_bytes(), home: fact.home, at: fact.at, kind: kind_of(&fact.what), data })
}

/// Decodes a fact's data; `None` for a kind, or a form, that this release does not know.
pub fn what(data: &[u8]) -> Option<What> {
    let (&version, rest) = data.split_first()?;
    if version > VERSION {
        return None;
    }
    rmp_serde::from_slice(rest).ok()
}

/// Prepares a body: compressed from `compress_from` bytes on, where that makes it smaller.
pub fn body_row(body: Bytes, compress_from: usize) -> BodyRow {
    let len = body.len();
    let packed = if len >= compress_from.max(64) { pack(&body) } else { None };
    let (codec, data) = match packed {
        Some(packed) => (Codec::Zstd, packed),
        None => (Codec::Plain, body),
    };
    BodyRow { codec, len, sum: sum(&data), data }
}

fn pack(body: &[u8]) -> Option<Bytes> {
    PACKER.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        let packed = slot.as_mut()?.compress(body).ok()?;
        // A sixteenth saved pays for unpacking; less does not.
        (packed.len() < body.len() - body.len() / 16).then(|| Bytes::from(packed))
    })
}

/// The checksum of stored bytes.
pub fn sum(data: &[u8]) -> u32 {
    // Truncation wanted: 32 bits are enough to tell damage.
    xxh3_64(data) as u32
}

/// Unpacks a stored body row after checking its sum.
pub fn unpack(codec: i64, len: i64, stored_sum: i64, data: &[u8]) -> Result<Bytes, Damage> {
    if i64::from(sum(data)) != stored_sum {
        return Err(Damage("a stored body does not match its checksum".into()));
    }
    let len = usize::try_from(len)
        .ok()
        .filter(|n| *n <= MAX_ROW)
        .ok_or_else(|| Damage("a stored body's length is impossible".into()))?;
    match codec {
        0 => Ok(Bytes::copy_from_slice(data)),
        1 => zstd::bulk::decompress(data, len).map(Bytes::from).map_err(|_| Damage("a stored body cannot be unpacked".into())),
        _ => Err(Damage("a stored body has a form that this release does not know".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fact::{Attempt, Outcome};
    use crate::message::MessageId;

    #[test]
    fn bodies_come_back_and_flipped_bits_are_noticed() {
        for body in [Bytes::new(), Bytes::from_static(b"MSH|"), Bytes::from(vec![b'x'; 100_000])] {
            let row = body_row(body.clone(), 4096);
            assert_eq!(row.codec == Codec::Zstd, body.len() >= 4096);
            let back = unpack(row.codec as i64, row.len as i64, i64::from(row.sum), &row.data).unwrap();
            assert_eq!(back, body);
            let mut bad = row.data.to_vec();
            bad.push(1);
            assert!(unpack(row.codec as i64, row.len as i64, i64::from(row.sum), &bad).is_err());
        }
    }

    #[test]
    fn what_does_not_shrink_stays_plain() {
        let noise: Vec<u8> = (0..8192u64).map(|i| xxh3_64(&i.to_le_bytes()) as u8).collect();
        assert_eq!(body_row(Bytes::from(noise), 4096).codec, Codec::Plain);
    }

    #[test]
    fn facts_come_back_and_unknown_ones_are_skipped() {
        let attempt = Attempt {
            route: "ehr".into(),
            number: 3,
            target: "ehr:2575".into(),
            took_ms: 12,
            outcome: Outcome::Parked,
            status: 0,
            ack: "AE".into(),
            error: String::new(),
            response: BodyRef::Own,
            response_len: 9,
            inside: 0,
        };
        let fact = Fact { id: MessageId::now(), home: 7, at: 9, what: What::Attempt(Box::new(attempt)) };
        let row = fact_row(&fact).unwrap();
        assert_eq!((row.home, row.at, row.kind), (7, 9, kind::ATTEMPT));
        let Some(What::Attempt(back)) = what(&row.data) else { panic!("not an attempt") };
        assert_eq!((back.number, back.outcome, back.response), (3, Outcome::Parked, BodyRef::Own));

        let future = rmp_serde::to_vec_named(&std::collections::BTreeMap::from([("Z", 1)])).unwrap();
        assert!(what(&[&[VERSION], future.as_slice()].concat()).is_none());
        assert!(what(&[&[VERSION + 1], &row.data[1..]].concat()).is_none());
        assert!(what(&[]).is_none());
    }
}
