//! Who holds the places of a listener's table, so that a full table still lets others in.
//!
//! When the table is full, the connection of the sender with the most places that has been idle longest gives way to a
//! newcomer from an address that holds fewer. A sender is an address (IPv6: all of its /64); one that has shown a certificate
//! is known and never gives way. A connection with a message in hand is never ended, so a site whose one integration
//! engine opens many connections loses at most idle ones, and only to somebody else. A sender with more than its share ([`share`])
//! also loses frames that it began long ago and has not ended, which nobody has acknowledged.

use crate::engine::shares::{Holder, share};
use futures_util::task::AtomicWaker;
use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// A frame that began so long ago and has not ended does not hold a place of somebody who has more than a share.
const BEGUN_LONG_AGO: Duration = Duration::from_secs(5);

/// What a connection does; the last two bits of [`Shared::state`], before them milliseconds since [`Seats::start`].
const IDLE: u64 = 0;
const BEGUN: u64 = 1;
const IN_HAND: u64 = 2;
const LEAVING: u64 = 3;

/// The seats of one listener, over all accepting instances.
pub(super) struct Seats {
    max: usize,
    start: Instant,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next: u64,
    /// Those that may be asked to leave.
    seats: HashMap<u64, (Holder, Arc<Shared>)>,
    by: HashMap<Holder, usize>,
}

struct Shared {
    state: AtomicU64,
    waker: AtomicWaker,
}

/// What a connection is doing when it has nothing to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing, since then.
    Nothing(Instant),
    /// Receives a frame that began then.
    Receiving(Instant),
    /// Has something in hand.
    Working,
}

impl Seats {
    /// For a table of `max` connections.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, start: Instant::now(), taken: Mutex::default() })
    }

    /// A seat for a connection that was accepted, idle from now.
    pub fn sit(self: &Arc<Self>, holder: Holder) -> Seat {
        let shared = Arc::new(Shared { state: AtomicU64::new(self.encode(IDLE, Instant::now())), waker: AtomicWaker::new() });
        let mut taken = self.lock();
        let number = taken.next;
        taken.next += 1;
        taken.add(number, holder, shared.clone());
        Seat { seats: self.clone(), number, shared }
    }

    /// Asks one connection to leave for a newcomer; false when nobody has to.
    pub fn make_room(&self, newcomer: &Holder) -> bool {
        let mut taken = self.lock();
        let own = taken.by.get(newcomer).copied().unwrap_or(0);
        let Some((most, held)) = taken.by.iter().max_by_key(|(_, held)| **held).map(|(most, held)| (most.clone(), *held)) else {
            return false;
        };
        // Afterwards the newcomer has no more than the one that made room: nobody takes places to and fro.
        if held < own + 2 {
            return false;
        }
        let now = Instant::now();
        // Idle ones sort before begun frames.
        let mut asked: Vec<(u64, u64, u64)> = taken
            .seats
            .iter()
            .filter(|(_, (holder, _))| *holder == most)
            .map(|(number, (_, shared))| (shared.state.load(Ordering::Acquire), *number))
            .filter(|(state, _)| match state & 3 {
                IDLE => true,
                BEGUN => held > share(self.max) && self.age(*state, now) >= BEGUN_LONG_AGO,
                _ => false,
            })
            .map(|(state, number)| (state & 3, state, number))
            .collect();
        asked.sort_unstable();
        for (_, state, number) in asked {
            let Some((_, shared)) = taken.seats.get(&number) else { continue };
            // It may have got a message since.
            if shared.state.compare_exchange(state, LEAVING, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                shared.waker.wake();
                taken.remove(number);
                return true;
            }
        }
        false
    }

    fn encode(&self, kind: u64, since: Instant) -> u64 {
        (since.saturating_duration_since(self.start).as_millis() as u64) << 2 | kind
    }

    fn age(&self, state: u64, now: Instant) -> Duration {
        now.saturating_duration_since(self.start + Duration::from_millis(state >> 2))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Taken {
    fn add(&mut self, number: u64, holder: Holder, shared: Arc<Shared>) {
        *self.by.entry(holder.clone()).or_default() += 1;
        self.seats.insert(number, (holder, shared));
    }

    fn remove(&mut self, number: u64) {
        let Some((holder, _)) = self.seats.remove(&number) else { return };
        if let Some(held) = self.by.get_mut(&holder) {
            *held -= 1;
            if *held == 0 {
                self.by.remove(&holder);
            }
        }
    }
}

/// One connection's seat; free when dropped.
pub(super) struct Seat {
    seats: Arc<Seats>,
    number: u64,
    shared: Arc<Shared>,
}

impl Seat {
    /// Whose it is, now that more is known than the socket's address: `None` for a sender that has shown a certificate, whose
    /// connections never give way.
    pub fn belongs_to(&self, holder: Option<Holder>) {
        let mut taken = self.seats.lock();
        // Nothing to change for one that has been asked to leave.
        if taken.seats.contains_key(&self.number) {
            taken.remove(self.number);
            if let Some(holder) = holder {
                taken.add(self.number, holder, self.shared.clone());
            }
        }
    }

    /// To be called before a message is taken in hand; false: it must not be, the connection has to leave.
    pub fn works(&self) -> bool {
        self.set(IN_HAND)
    }

    /// What the connection is doing, told when it begins to wait.
    pub fn waits(&self, doing: Doing) {
        self.set(match doing {
            Doing::Nothing(since) => self.seats.encode(IDLE, since),
            Doing::Receiving(since) => self.seats.encode(BEGUN, since),
            Doing::Working => IN_HAND,
        });
    }

    fn set(&self, state: u64) -> bool {
        let keep = |before: u64| (before & 3 != LEAVING).then_some(state);
        self.shared.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, keep).is_ok()
    }

    /// Has it to leave? The task is woken when that comes.
    pub fn must_leave(&self, cx: &Context<'_>) -> bool {
        self.shared.waker.register(cx.waker());
        self.shared.state.load(Ordering::Acquire) & 3 == LEAVING
    }

    /// Resolves when it has to leave.
    pub async fn asked_to_leave(&self) {
        poll_fn(|cx| if self.must_leave(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Holder {
        Holder::address([10, 0, 0, last].into())
    }

    fn left(seat: &Seat) -> bool {
        seat.must_leave(&Context::from_waker(std::task::Waker::noop()))
    }

    #[test]
    fn the_longest_idle_of_who_holds_most_gives_way() {
        let seats = Seats::new(4);
        let busy = seats.sit(address(1));
        assert!(busy.works());
        let mine: Vec<_> = (0..3).map(|_| seats.sit(address(1))).collect();
        let later = seats.start + Duration::from_secs(9);
        mine[0].waits(Doing::Nothing(later));
        mine[2].waits(Doing::Nothing(later));
        assert!(!seats.make_room(&address(1)), "not for more of its own");
        assert!(seats.make_room(&address(2)));
        assert!(left(&mine[1]) && !left(&mine[0]) && !left(&mine[2]) && !left(&busy));
        assert!(!mine[1].works(), "what has to leave takes nothing more in hand");
        let _two = seats.sit(address(2));
        assert!(seats.make_room(&address(3)), "three against none");
        let _three = seats.sit(address(3));
        assert!(!seats.make_room(&address(2)), "two against one: it would only go to and fro");
        assert!(busy.works());
    }

    #[test]
    fn what_is_in_hand_or_known_never_gives_way() {
        let seats = Seats::new(4);
        let all: Vec<_> = (0..4).map(|_| seats.sit(address(1))).collect();
        all.iter().for_each(|seat| assert!(seat.works()));
        assert!(!seats.make_room(&address(2)));
        all.iter().for_each(|seat| seat.waits(Doing::Nothing(seats.start)));
        all.iter().for_each(|seat| seat.belongs_to(None));
        assert!(!seats.make_room(&address(2)), "shown a certificate");
        drop(all);
        assert!(seats.lock().by.is_empty() && seats.lock().seats.is_empty());
    }

    #[test]
    fn begun_frames_give_way_when_old_and_of_more_than_a_share() {
        let long_ago = Instant::now();
        let seats = Arc::new(Seats { max: 4, start: long_ago - Duration::from_secs(60), taken: Mutex::default() });
        let all: Vec<_> = (0..4).map(|n| seats.sit(address(if n < 3 { 1 } else { 2 }))).collect();
        all.iter().for_each(|seat| seat.waits(Doing::Receiving(Instant::now())));
        assert!(!seats.make_room(&address(3)), "all have just begun");
        all[1].waits(Doing::Receiving(long_ago - BEGUN_LONG_AGO));
        assert!(seats.make_room(&address(3)));
        assert!(left(&all[1]));
        all[0].waits(Doing::Receiving(long_ago - BEGUN_LONG_AGO));
        assert!(!seats.make_room(&address(3)), "two of four are its share");
    }
}
