//! Where the latest messages lie, by id: what others wrote names its message by id, and is to be put to its place here. Older ones are
//! looked for in the views.

use crate::engine::fact::Seq;
use crate::message::MessageId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Messages of one generation; two are kept, some 5 MiB when full.
const GENERATION: usize = 64 * 1024;

#[derive(Default)]
struct Inner {
    young: HashMap<MessageId, Seq>,
    old: HashMap<MessageId, Seq>,
    /// What is not in here lies at or below this number.
    complete_above: Seq,
}

/// The latest messages. Empty, at no cost, until it is asked for.
#[derive(Default)]
pub struct Recents {
    inner: Mutex<Inner>,
    on: AtomicBool,
}

impl Recents {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// From now on every commit tells its new messages. `committed` is asked after that has been said.
    pub fn begin(&self, committed: impl Fn() -> Seq) {
        if !self.on.swap(true, Ordering::SeqCst) {
            let mut inner = self.lock();
            inner.complete_above = inner.complete_above.max(committed());
        }
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }

    /// These are committed.
    pub fn add(&self, messages: impl Iterator<Item = (MessageId, Seq)>) {
        let mut inner = self.lock();
        for (id, seq) in messages {
            if inner.young.len() >= GENERATION {
                let full = std::mem::take(&mut inner.young);
                let gone = std::mem::replace(&mut inner.old, full);
                let highest = gone.into_values().max().unwrap_or(0);
                inner.complete_above = inner.complete_above.max(highest);
            }
            inner.young.insert(id, seq);
        }
    }

    pub fn get(&self, id: MessageId) -> Option<Seq> {
        let inner = self.lock();
        inner.young.get(&id).or_else(|| inner.old.get(&id)).copied()
    }

    /// Committed messages above this number are all in here.
    pub fn complete_above(&self) -> Seq {
        self.lock().complete_above
    }
}

#[cfg(test)]
mod tests {
    use super::{GENERATION, Recents};
    use crate::message::MessageId;

    #[test]
    fn forgets_the_oldest_and_says_so() {
        let recents = Recents::default();
        recents.begin(|| 7);
        let id = |n: usize| MessageId(uuid::Uuid::from_u128(n as u128));
        let at = |n: usize| 8 + n as u64;
        recents.add((0..GENERATION * 2).map(|n| (id(n), at(n))));
        assert_eq!((recents.complete_above(), recents.get(id(0))), (7, Some(8)));
        recents.add(std::iter::once((id(GENERATION * 2), at(GENERATION * 2))));
        assert_eq!((recents.get(id(0)), recents.complete_above()), (None, at(GENERATION - 1)));
        for n in GENERATION..=GENERATION * 2 {
            assert_eq!(recents.get(id(n)), Some(at(n)));
        }
    }
}
