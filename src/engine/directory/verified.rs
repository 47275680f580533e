//! What has been checked already: keyed hashes of (stored hash, password), never the password. An entry says only "this password
//! fits this hash" (or not), so that it stays true when clients are swapped.

use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Entries of each kind; right and wrong ones apart, so that a flood of wrong ones pushes no right one out.
const CAPACITY: usize = 4096;
/// A right one is forgotten when unused this long.
const RIGHT_FOR: Duration = Duration::from_secs(15 * 60);
/// A wrong one, this long after the check.
const WRONG_FOR: Duration = Duration::from_secs(60);

pub(super) type Key = [u8; 32];

pub(super) struct Verified {
    secret: [u8; 64],
    right: Mutex<HashMap<Key, Instant>>,
    wrong: Mutex<HashMap<Key, Instant>>,
}

impl Verified {
    pub fn new() -> Self {
        let mut secret = [0; 64];
        // Without random bytes the keys are plain hashes, in memory only: weaker, but nothing that works depends on it.
        let _ = getrandom::fill(&mut secret);
        Self { secret, right: Mutex::default(), wrong: Mutex::default() }
    }

    /// SHA-256 over one block of secret, then the parts, each with its length.
    pub fn key(&self, hash: &str, salt: &[u8], password: &[u8]) -> Key {
        let mut digest = Sha256::new_with_prefix(self.secret);
        for part in [hash.as_bytes(), salt, password] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    /// What is known about it; a right one is kept on by being asked for.
    pub fn get(&self, key: &Key) -> Option<bool> {
        let now = Instant::now();
        if let Some(until) = self.right.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key)
            && *until > now
        {
            *until = now + RIGHT_FOR;
            return Some(true);
        }
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).get(key).filter(|until| **until > now).map(|_| false)
    }

    pub fn put(&self, key: Key, right: bool) {
        let (map, keep) = if right { (&self.right, RIGHT_FOR) } else { (&self.wrong, WRONG_FOR) };
        let now = Instant::now();
        let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= CAPACITY {
            map.retain(|_, until| *until > now);
        }
        if map.len() >= CAPACITY
            && let Some(any) = map.keys().next().copied()
        {
            map.remove(&any);
        }
        map.insert(key, now + keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_wrong_ones_push_out_no_right_one() {
        let verified = Verified::new();
        let right = verified.key("h", b"", b"right");
        verified.put(right, true);
        for i in 0..3 * CAPACITY as u64 {
            verified.put(verified.key("h", b"", &i.to_le_bytes()), false);
        }
        assert_eq!(verified.get(&right), Some(true));
        assert_eq!(verified.wrong.lock().unwrap().len(), CAPACITY);
    }

    #[test]
    fn keys_differ_in_every_part_and_between_processes() {
        let verified = Verified::new();
        let key = verified.key("a", b"b", b"c");
        for other in [verified.key("ab", b"", b"c"), verified.key("a", b"", b"bc"), Verified::new().key("a", b"b", b"c")] {
            assert_ne!(key, other);
        }
    }
}
