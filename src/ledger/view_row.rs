//! A transaction's row in a view: the columns, and the packing of routes and places of facts.

use super::fold::{Folded, Route};
use crate::channel::Storage;
use crate::engine::fact::{Accepted, BodyRef, RouteProgress, RouteState, Seq, Status};
use crate::message::{Envelope, MessageId, Protocol};

/// Bits of the column `flags`.
pub mod flag {
    pub const PROXY: i64 = 1;
    pub const STORAGE: i64 = 2 | 4;
    pub const STORAGE_SHIFT: i64 = 1;
    pub const ACCEPTED: i64 = 8;
    pub const RESENT: i64 = 16;
    pub const UNKNOWN: i64 = 32;
    pub const CONTROL_ID_REUSED: i64 = 64;
    pub const REFUSED: i64 = 128;
    pub const PROTOCOL: i64 = 256 | 512;
    pub const PROTOCOL_SHIFT: i64 = 8;
    /// Storage mode `none`: kept for recovery and the resend window, never shown.
    pub const HIDDEN: i64 = 1024;
    /// A queue of the broker holds it.
    pub const BROKER: i64 = 2048;
    /// It repeats another transaction.
    pub const REPEATED: i64 = 4096;
    /// Accepted on another node.
    pub const APPLIED: i64 = 8192;
    /// Some route's delivery waits, or waited, in the ledger instead of in a queue of the broker; which one, its place among the routes says.
    pub const HELD: i64 = 16_384;
}

/// What the accept fact (or the refusal) says; empty for a row that another fact made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub at: i64,
    pub channel: String,
    pub client: String,
    pub listener: String,
    pub kind: String,
    pub protocol: Option<Protocol>,
    pub control_id: Option<String>,
    pub control_id_reused: bool,
    pub parent: Option<MessageId>,
    pub body_len: u64,
    pub resend_key: u64,
    pub body_hash: u128,
    /// Lowest number of a body in pieces: the segment it lies in is needed as long as the message is unfinished.
    pub lowest_piece: Option<Seq>,
}

impl Head {
    /// Of an accepted message, with what its storage mode lets be searched.
    pub fn of_accepted(accepted: &Accepted) -> Self {
        let mut head = Self::of_envelope(&accepted.envelope);
        head.channel.clone_from(&accepted.channel);
        head.resend_key = accepted.resend_key;
        head.body_hash = accepted.body_hash;
        if let BodyRef::Chunks { seqs, transient: false } = &accepted.body {
            head.lowest_piece = seqs.iter().min().copied();
        }
        match accepted.storage {
            Storage::All | Storage::NoBodies => {}
            Storage::Metadata => head.control_id = None,
            Storage::None => {
                let Self { at, resend_key, body_hash, lowest_piece, .. } = head;
                head = Self { at, resend_key, body_hash, lowest_piece, channel: accepted.channel.clone(), ..Self::default() };
            }
        }
        head
    }

    /// Of a refused one.
    pub fn of_envelope(envelope: &Envelope) -> Self {
        Self {
            at: envelope.received_ms,
            channel: String::new(),
            client: envelope.client.to_string(),
            listener: envelope.listener.to_string(),
            kind: envelope.kind.clone(),
            protocol: Some(envelope.protocol),
            control_id: envelope.control_id.clone(),
            control_id_reused: envelope.control_id_reused,
            parent: envelope.parent,
            body_len: envelope.body_len,
            resend_key: 0,
            body_hash: 0,
            lowest_piece: None,
        }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewRow {
    pub seq: Seq,
    pub id: MessageId,
    pub head: Head,
    pub fold: Folded,
    /// Accepted on another node, whose work it is.
    pub applied: bool,
}

impl ViewRow {
    pub fn new(seq: Seq, id: MessageId) -> Self {
        Self { seq, id, head: Head::default(), fold: Folded::default(), applied: false }
    }

    pub fn flags(&self) -> i64 {
        let fold = &self.fold;
        let bit = |on: bool, bit: i64| if on { bit } else { 0 };
        let protocol = self.head.protocol.map_or(0, |p| match p {
            Protocol::Mllp => 1,
            Protocol::Http => 2,
            Protocol::File => 3,
        });
        bit(fold.proxy, flag::PROXY)
            | (storage_number(fold.storage) << flag::STORAGE_SHIFT)
            | bit(fold.accepted, flag::ACCEPTED)
            | bit(fold.resent, flag::RESENT)
            | bit(fold.unknown, flag::UNKNOWN)
            | bit(self.head.control_id_reused, flag::CONTROL_ID_REUSED)
            | bit(fold.refused, flag::REFUSED)
            | (protocol << flag::PROTOCOL_SHIFT)
            | bit(fold.storage == Storage::None, flag::HIDDEN)
            | bit(fold.broker, flag::BROKER)
            | bit(fold.repeated, flag::REPEATED)
            | bit(self.applied, flag::APPLIED)
            | bit(fold.is_held(), flag::HELD)
    }

    /// Puts the bits of the column `flags` back.
    pub fn set_flags(&mut self, flags: i64) {
        let has = |bit: i64| flags & bit != 0;
        self.fold.proxy = has(flag::PROXY);
        self.fold.storage = match (flags & flag::STORAGE) >> flag::STORAGE_SHIFT {
            0 => Storage::All,
            1 => Storage::NoBodies,
            2 => Storage::Metadata,
            _ => Storage::None,
        };
        self.fold.accepted = has(flag::ACCEPTED);
        self.fold.resent = has(flag::RESENT);
        self.fold.unknown = has(flag::UNKNOWN);
        self.fold.refused = has(flag::REFUSED);
        self.fold.broker = has(flag::BROKER);
        self.fold.repeated = has(flag::REPEATED);
        self.applied = has(flag::APPLIED);
        self.head.control_id_reused = has(flag::CONTROL_ID_REUSED);
        self.head.protocol = match (flags & flag::PROTOCOL) >> flag::PROTOCOL_SHIFT {
            1 => Some(Protocol::Mllp),
            2 => Some(Protocol::Http),
            3 => Some(Protocol::File),
            _ => None,
        };
    }
}

fn storage_number(storage: Storage) -> i64 {
    match storage {
        Storage::All => 0,
        Storage::NoBodies => 1,
        Storage::Metadata => 2,
        Storage::None => 3,
    }
}

/// The stored number of a status.
pub fn status_number(status: Status) -> i64 {
    Status::ALL.iter().position(|s| *s == status).map_or(0, |n| n as i64)
}

fn state_number(state: RouteState) -> u64 {
    match state {
        RouteState::Waiting => 0,
        RouteState::Delivered => 1,
        RouteState::Parked => 2,
        RouteState::Failed => 3,
    }
}

/// Of a route's state: the delivery was held. Above the state's two bits and the count of failures inside the node.
const HELD: u64 = 1 << 34;

fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn get(data: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = data.split_first()?;
        *data = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// Signed differences as small unsigned numbers.
fn zigzag(from: Seq, to: Seq) -> u64 {
    let d = to.wrapping_sub(from) as i64;
    ((d << 1) ^ (d >> 63)) as u64
}

fn unzigzag(from: Seq, n: u64) -> Seq {
    from.wrapping_add(((n >> 1) as i64 ^ -((n & 1) as i64)) as u64)
}

/// Packs routes; `name` gives the number of a route's name.
pub fn pack_routes(seq: Seq, routes: &[Route], mut name: impl FnMut(&str) -> rusqlite::Result<i64>) -> rusqlite::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(routes.len() * 6);
    for route in routes {
        put(&mut out, name(&route.name)? as u64);
        put(&mut out, u64::from(route.progress.attempts));
        // The failures inside the node above the state's two bits: nearly always none.
        let held = if route.progress.held { HELD } else { 0 };
        put(&mut out, state_number(route.progress.state) | (u64::from(route.progress.inside) << 2) | held);
        put(&mut out, if route.by == 0 { 0 } else { zigzag(seq, route.by).wrapping_add(1) });
    }
    Ok(out)
}

/// The reverse of [`pack_routes`]; what cannot be read ends the list.
pub fn unpack_routes(
    seq: Seq,
    mut data: &[u8],
    mut name: impl FnMut(i64) -> rusqlite::Result<String>,
) -> rusqlite::Result<Vec<Route>> {
    let mut routes = Vec::new();
    while !data.is_empty() {
        let (Some(n), Some(attempts), Some(state), Some(by)) = (get(&mut data), get(&mut data), get(&mut data), get(&mut data))
        else {
            break;
        };
        let held = state & HELD != 0;
        let inside = u32::try_from((state & (HELD - 1)) >> 2).unwrap_or(u32::MAX);
        let state = match state & 3 {
            1 => RouteState::Delivered,
            2 => RouteState::Parked,
            3 => RouteState::Failed,
            _ => RouteState::Waiting,
        };
        let progress = RouteProgress { attempts: u32::try_from(attempts).unwrap_or(u32::MAX), state, inside, held };
        let by = if by == 0 { 0 } else { unzigzag(seq, by - 1) };
        routes.push(Route { name: name(n as i64)?, progress, by });
    }
    Ok(routes)
}

/// Packs the places of a transaction's facts.
pub fn pack_facts(seq: Seq, facts: &[Seq]) -> Vec<u8> {
    let mut out = Vec::with_capacity(facts.len() * 2);
    let mut from = seq;
    for place in facts {
        put(&mut out, zigzag(from, *place));
        from = *place;
    }
    out
}

/// The reverse of [`pack_facts`].
pub fn unpack_facts(seq: Seq, mut data: &[u8]) -> Vec<Seq> {
    let mut facts = Vec::new();
    let mut from = seq;
    while let Some(n) = get(&mut data) {
        from = unzigzag(from, n);
        facts.push(from);
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_routes_survive_packing() {
        let facts = vec![3, 100, 101, 5_000_000_000];
        assert_eq!(unpack_facts(100, &pack_facts(100, &facts)), facts);
        let routes = vec![
            Route {
                name: "a".into(),
                progress: RouteProgress { attempts: 300, state: RouteState::Parked, inside: 10, held: false },
                by: 90,
            },
            Route {
                name: "b".into(),
                progress: RouteProgress { attempts: 3, state: RouteState::Waiting, inside: u32::MAX, held: true },
                by: 91,
            },
            Route { name: "b".into(), progress: RouteProgress::default(), by: 0 },
            Route {
                name: "a".into(),
                progress: RouteProgress { attempts: 1, state: RouteState::Failed, inside: 0, held: true },
                by: 1 << 40,
            },
        ];
        let packed = pack_routes(100, &routes, |n| Ok(if n == "a" { 1 } else { 2 })).unwrap();
        let back = unpack_routes(100, &packed, |n| Ok(if n == 1 { "a".into() } else { "b".into() })).unwrap();
        assert_eq!(back, routes);
        assert!(unpack_routes(100, &[0x80, 0x80], |_| Ok(String::new())).unwrap().is_empty());
    }

    #[test]
    fn flags_survive() {
        let mut row = ViewRow::new(1, MessageId::now());
        row.fold.storage = Storage::Metadata;
        row.fold.proxy = true;
        row.head.protocol = Some(Protocol::File);
        row.head.control_id_reused = true;
        row.fold.broker = true;
        row.fold.repeated = true;
        row.applied = true;
        let mut back = ViewRow::new(1, row.id);
        back.set_flags(row.flags());
        assert_eq!(back, row);
    }
}
