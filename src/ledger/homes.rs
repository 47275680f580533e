//! Where carried transactions live now. A transaction that was not finished when its segment's time came is written
//! again under a new number; those who know it by the old one are led to the new one.

use crate::engine::fact::Seq;
use std::collections::HashMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Default)]
struct Maps {
    /// Any former number to the present one.
    now: HashMap<Seq, Seq>,
    /// The present number to all former ones.
    former: HashMap<Seq, Vec<Seq>>,
}

/// Former numbers to present ones. Bounded by the number of carried transactions that are still stored.
#[derive(Default)]
pub struct Homes {
    maps: RwLock<Maps>,
    any: AtomicBool,
}

impl Homes {
    /// The present number of a transaction.
    pub fn now(&self, seq: Seq) -> Seq {
        if !self.any.load(Ordering::Acquire) {
            return seq;
        }
        self.maps.read().unwrap_or_else(|e| e.into_inner()).now.get(&seq).copied().unwrap_or(seq)
    }

    /// Was nothing carried, as far as is known?
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// It moved.
    pub fn moved(&self, from: Seq, to: Seq) {
        if from == to {
            return;
        }
        let mut maps = self.maps.write().unwrap_or_else(|e| e.into_inner());
        let mut former = maps.former.remove(&from).unwrap_or_default();
        former.push(from);
        for old in &former {
            maps.now.insert(*old, to);
        }
        let kept = maps.former.entry(to).or_default();
        former.retain(|old| !kept.contains(old));
        kept.append(&mut former);
        self.any.store(true, Ordering::Release);
    }

    /// Forgets transactions whose present number lies below `first`: their segment is gone.
    pub fn forget_below(&self, first: Seq) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut maps = self.maps.write().unwrap_or_else(|e| e.into_inner());
        let gone: Vec<Seq> = maps.former.keys().copied().filter(|to| *to < first).collect();
        for to in gone {
            for old in maps.former.remove(&to).unwrap_or_default() {
                maps.now.remove(&old);
            }
        }
    }
}

/// Tells searches when rows moved between views meanwhile: even while none do.
#[derive(Default)]
pub struct Moves(AtomicU64);

impl Moves {
    /// Rows begin to move; they have when the guard is dropped.
    pub fn begin(&self) -> Moving<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        Moving(self)
    }

    /// For [`Moves::since`].
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Do rows move, or have they since?
    pub fn since(&self, then: u64) -> bool {
        then % 2 == 1 || self.now() != then
    }
}

/// See [`Moves::begin`].
pub struct Moving<'a>(&'a Moves);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::Homes;

    #[test]
    fn leads_through_several_moves() {
        let homes = Homes::default();
        assert_eq!(homes.now(5), 5);
        homes.moved(5, 50);
        homes.moved(50, 500);
        homes.moved(50, 500);
        assert_eq!((homes.now(5), homes.now(50), homes.now(500), homes.now(6)), (500, 500, 500, 6));
        homes.forget_below(501);
        assert_eq!((homes.now(5), homes.now(50)), (5, 50));
    }
}
