//! What is in this node's queues, and what of it the broker has handed out and has not had back: a delivery of the broker holds several
//! messages, and is acknowledged when each of them is done, or is held in the ledger.

use crate::message::MessageId;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::AcqRel},
    },
};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Messages that are remembered as done, so that another copy of one is known without asking the ledger.
const REMEMBERED: usize = 65_536;

/// A route and a message.
pub type Work = (u64, MessageId);

/// The number by which a route is known here.
pub fn route_number(channel: &str, route: &str) -> u64 {
    xxh3_64_with_seed(route.as_bytes(), xxh3_64_with_seed(channel.as_bytes(), 0))
}

/// One delivery of the broker.
pub struct Handed {
    tag: u64,
    left: AtomicUsize,
    /// Told the tag when nothing of it is left.
    over: mpsc::UnboundedSender<u64>,
}

impl Handed {
    /// With so many messages.
    pub fn new(tag: u64, messages: usize, over: mpsc::UnboundedSender<u64>) -> Arc<Self> {
        Arc::new(Self { tag, left: AtomicUsize::new(messages), over })
    }

    /// One of its messages is done.
    pub fn done(&self) {
        if self.left.fetch_sub(1, AcqRel) == 1 {
            // Its consumer may have gone; then the broker hands it to another.
            let _ = self.over.send(self.tag);
        }
    }
}

#[derive(Default)]
struct State {
    /// With the number of the subscription that gave it, and the broker's delivery unless the ledger holds it.
    here: HashMap<Work, (u64, Option<Arc<Handed>>)>,
    /// Those without a delivery.
    held: usize,
    done: HashSet<Work>,
    order: VecDeque<Work>,
}

/// See the module.
#[derive(Default)]
pub struct Hands(Mutex<State>);

/// How a message stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not seen lately.
    Unknown,
    /// In this node's queues.
    Here,
    /// Done here a while ago.
    Done,
}

impl Hands {
    /// How a message stands here.
    pub fn standing(&self, work: &Work) -> Standing {
        let state = self.lock();
        match () {
            () if state.here.contains_key(work) => Standing::Here,
            () if state.done.contains(work) => Standing::Done,
            () => Standing::Unknown,
        }
    }

    /// It goes into a queue; `source` is the number of the subscription that gave it, `handed` the broker's delivery, `None` when the ledger
    /// holds it.
    pub fn take(&self, work: Work, source: u64, handed: Option<Arc<Handed>>) {
        let mut state = self.lock();
        state.held += usize::from(handed.is_none());
        if let Some((_, None)) = state.here.insert(work, (source, handed)) {
            state.held -= 1;
        }
    }

    /// The ledger holds it: it stays here, and its delivery may be acknowledged when the rest of it is done or held. Without effect when it is
    /// done, or its subscription has ended.
    pub fn held(&self, work: &Work) {
        let handed = {
            let mut state = self.lock();
            let handed = state.here.get_mut(work).and_then(|(_, handed)| handed.take());
            state.held += usize::from(handed.is_some());
            handed
        };
        if let Some(handed) = handed {
            handed.done();
        }
    }

    /// It is done: its delivery may be acknowledged when the rest of it is.
    pub fn done(&self, work: Work) {
        let handed = {
            let mut state = self.lock();
            if state.done.insert(work) {
                state.order.push_back(work);
            }
            while state.order.len() > REMEMBERED
                && let Some(old) = state.order.pop_front()
            {
                state.done.remove(&old);
            }
            let handed = state.here.remove(&work);
            state.held -= usize::from(matches!(handed, Some((_, None))));
            handed
        };
        if let Some((_, Some(handed))) = handed {
            handed.done();
        }
    }

    /// An operator wants it again: it is not done any more.
    pub fn again(&self, work: &Work) {
        self.lock().done.remove(work);
    }

    /// A subscription has ended: what it gave and what is not done is no longer this node's. Whatever stayed here would be taken for a
    /// copy when the broker hands it out again, and be acknowledged without having been delivered.
    pub fn forget(&self, source: u64) {
        let mut state = self.lock();
        state.here.retain(|_, (from, _)| *from != source);
        state.held = state.here.values().filter(|(_, handed)| handed.is_none()).count();
    }

    /// The same of one subscription.
    pub fn handed_out_by(&self, source: u64) -> usize {
        self.lock().here.values().filter(|(from, handed)| *from == source && handed.is_some()).count()
    }

    /// Messages in this node's queues that the broker has not had back.
    pub fn handed_out(&self) -> usize {
        let state = self.lock();
        state.here.len() - state.held
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_over_when_all_its_messages_are() {
        let (over, mut told) = mpsc::unbounded_channel();
        let hands = Hands::default();
        let handed = Handed::new(7, 2, over);
        let (a, b) = ((1, MessageId::now()), (1, MessageId::now()));
        hands.take(a, 1, Some(handed.clone()));
        hands.take(b, 1, Some(handed));
        assert_eq!(hands.standing(&a), Standing::Here);
        hands.done(a);
        assert!(told.try_recv().is_err());
        assert_eq!((hands.standing(&a), hands.handed_out()), (Standing::Done, 1));
        hands.done(a);
        hands.done(b);
        assert_eq!(told.try_recv(), Ok(7));
        hands.again(&a);
        assert_eq!(hands.standing(&a), Standing::Unknown);
    }

    #[test]
    fn what_an_ended_subscription_gave_is_known_only_as_far_as_it_is_done() {
        let (over, _told) = mpsc::unbounded_channel();
        let hands = Hands::default();
        let work = || (1, MessageId::now());
        let (waiting, ended, others) = (work(), work(), work());
        hands.take(waiting, 1, Some(Handed::new(1, 1, over.clone())));
        hands.take(ended, 1, Some(Handed::new(2, 1, over.clone())));
        hands.take(others, 2, Some(Handed::new(1, 1, over)));
        hands.done(ended);
        hands.forget(1);
        let standings = [waiting, ended, others].map(|work| hands.standing(&work));
        assert_eq!(standings, [Standing::Unknown, Standing::Done, Standing::Here]);
    }

    #[test]
    fn what_the_ledger_holds_stays_here_without_its_delivery() {
        let (over, mut told) = mpsc::unbounded_channel();
        let hands = Hands::default();
        let work = || (1, MessageId::now());
        let (a, b, loaded) = (work(), work(), work());
        let handed = Handed::new(7, 2, over);
        hands.take(a, 1, Some(handed.clone()));
        hands.take(b, 1, Some(handed));
        hands.take(loaded, 1, None);
        assert_eq!(hands.handed_out(), 2);
        hands.held(&a);
        hands.held(&a);
        hands.held(&loaded);
        assert!(told.try_recv().is_err(), "each counts once");
        assert_eq!((hands.standing(&a), hands.handed_out()), (Standing::Here, 1));
        hands.held(&b);
        assert_eq!((told.try_recv(), hands.handed_out()), (Ok(7), 0));
        hands.done(a);
        hands.done(loaded);
        assert!(told.try_recv().is_err());
        assert_eq!((hands.standing(&a), hands.standing(&b), hands.handed_out()), (Standing::Done, Standing::Here, 0));
        hands.forget(1);
        hands.held(&b);
        assert_eq!((hands.standing(&b), hands.handed_out()), (Standing::Unknown, 0));
    }

    #[test]
    fn what_is_done_is_remembered_for_a_while_only() {
        let hands = Hands::default();
        let first = (1, MessageId::now());
        hands.done(first);
        for _ in 0..REMEMBERED {
            hands.done((2, MessageId::now()));
        }
        assert_eq!(hands.standing(&first), Standing::Unknown);
    }
}
