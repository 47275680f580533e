//! The resend window: a sender that never saw its acknowledgment sends again, and must be acknowledged again
//! without a second delivery (DESIGN.md §2, promise 2).

use super::{fact::Seq, ports::Recent};
use crate::message::MessageId;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard},
};

/// How long an accept that never reported its end counts as under way.
const PENDING_FOR_MS: i64 = 120_000;

/// What the window knows about an arriving message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: it is now noted as under way.
    New,
    /// The same control id came with another body: a new message, to be flagged. Noted as under way.
    Reused,
    /// The same message, already durable, and its place in the log.
    Durable(MessageId, Seq),
    /// The same message, still being made durable.
    UnderWay(MessageId),
}

struct Entry {
    body_hash: u128,
    id: MessageId,
    at_ms: i64,
    /// Its place in the log once it is durable.
    seq: Option<Seq>,
}

/// Remembers the latest messages by resend key; bounded by number and age.
pub struct ResendWindow {
    window_ms: i64,
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<u64, Entry, std::hash::BuildHasherDefault<Prehashed>>,
    order: VecDeque<(u64, i64)>,
}

/// The keys are hashes already.
#[derive(Default)]
struct Prehashed(u64);

impl std::hash::Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64(bytes);
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

impl ResendWindow {
    /// A window over `window_ms` milliseconds and at most `capacity` messages.
    pub fn new(window_ms: i64, capacity: usize) -> Self {
        Self { window_ms, capacity, state: Mutex::default() }
    }

    /// Looks a message up and, when it is new, notes it as under way. `key` 0 (no control id) is never recognised.
    pub fn check(&self, key: u64, body_hash: u128, id: MessageId, now_ms: i64) -> Seen {
        if key == 0 || self.capacity == 0 {
            return Seen::New;
        }
        let mut state = self.lock();
        let mut seen = Seen::New;
        if let Some(known) = state.entries.get(&key) {
            let fresh = now_ms - known.at_ms < self.window_ms;
            let lost = known.seq.is_none() && now_ms - known.at_ms > PENDING_FOR_MS;
            if fresh && !lost {
                if known.body_hash == body_hash {
                    return known.seq.map_or(Seen::UnderWay(known.id), |seq| Seen::Durable(known.id, seq));
                }
                seen = Seen::Reused;
            }
        }
        self.insert(&mut state, key, Entry { body_hash, id, at_ms: now_ms, seq: None });
        seen
    }

    /// How the message noted under `key` stands: durable, under way, or `New` when it is no longer known (its accept failed).
    pub fn state(&self, key: u64, id: MessageId) -> Seen {
        match self.lock().entries.get(&key) {
            Some(e) if e.id == id => e.seq.map_or(Seen::UnderWay(id), |seq| Seen::Durable(id, seq)),
            _ => Seen::New,
        }
    }

    /// The messages are durable: `(key, id, place in the log)` each.
    pub fn committed(&self, batch: impl Iterator<Item = (u64, MessageId, Seq)>) {
        let mut state = self.lock();
        for (key, id, seq) in batch {
            if let Some(entry) = state.entries.get_mut(&key)
                && entry.id == id
            {
                entry.seq = Some(seq);
            }
        }
    }

    /// The message could not be made durable: its resend is a new message.
    pub fn failed(&self, key: u64, id: MessageId) {
        let mut state = self.lock();
        if state.entries.get(&key).is_some_and(|e| e.id == id) {
            state.entries.remove(&key);
        }
    }

    /// Fills the window with what the log tells, at start, and of other nodes. Of a message and its repetitions the first stays.
    pub fn restore(&self, message: Recent) {
        let Recent { key, body_hash, id, seq, at_ms } = message;
        if key == 0 || self.capacity == 0 {
            return;
        }
        let mut state = self.lock();
        if let Some(known) = state.entries.get_mut(&key)
            && known.body_hash == body_hash
            && known.at_ms.abs_diff(at_ms) < self.window_ms.unsigned_abs()
        {
            if known.id == id {
                known.seq = Some(seq);
            }
            return;
        }
        self.insert(&mut state, key, Entry { body_hash, id, at_ms, seq: Some(seq) });
    }

    fn insert(&self, state: &mut State, key: u64, entry: Entry) {
        state.order.push_back((key, entry.at_ms));
        state.entries.insert(key, entry);
        while state.order.len() > self.capacity {
            let Some((old, at)) = state.order.pop_front() else { break };
            // A younger entry under the same key stays; its own turn comes.
            if state.entries.get(&old).is_some_and(|e| e.at_ms == at) {
                state.entries.remove(&old);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_a_resend_and_flags_a_reused_control_id() {
        let window = ResendWindow::new(1000, 100);
        let (a, b, c) = (MessageId::now(), MessageId::now(), MessageId::now());
        assert_eq!(window.check(7, 1, a, 0), Seen::New);
        assert_eq!(window.check(7, 1, b, 1), Seen::UnderWay(a));
        window.committed([(7, a, 1)].into_iter());
        assert_eq!(window.check(7, 1, b, 2), Seen::Durable(a, 1));
        assert_eq!(window.check(7, 2, c, 3), Seen::Reused);
        window.committed([(7, a, 1)].into_iter());
        assert_eq!(window.check(7, 2, b, 4), Seen::UnderWay(c));
    }

    #[test]
    fn forgets_what_failed_what_is_old_and_what_is_too_much() {
        let window = ResendWindow::new(1000, 2);
        let (a, b) = (MessageId::now(), MessageId::now());
        window.check(1, 1, a, 0);
        window.failed(1, a);
        assert_eq!(window.check(1, 1, b, 0), Seen::New);
        window.committed([(1, b, 2)].into_iter());
        assert_eq!(window.check(1, 1, a, 1000), Seen::New, "older than the window");
        for key in 2..10 {
            window.check(key, 1, a, 5);
        }
        assert_eq!(window.lock().entries.len(), 2);
        assert_eq!(window.check(0, 1, a, 0), Seen::New);
        assert_eq!(window.check(0, 1, a, 0), Seen::New, "no control id is never a resend");
    }

    #[test]
    fn an_accept_that_never_ended_does_not_block_its_resend_for_ever() {
        let window = ResendWindow::new(1_000_000, 10);
        let (a, b) = (MessageId::now(), MessageId::now());
        window.check(1, 1, a, 0);
        assert_eq!(window.check(1, 1, b, PENDING_FOR_MS), Seen::UnderWay(a));
        assert_eq!(window.check(1, 1, b, PENDING_FOR_MS + 1), Seen::New);
    }
}
