//! Order per key: which waiting message may be delivered next. Pure, no clock, no locks.
//!
//! Each ordering key has a lane, a queue in order of arrival. A message stands in the lanes of all its keys and is ready
//! when it is first in every one of them: so messages of one key follow one another, messages of different keys do
//! not wait for each other, and one with several keys (a merge of patients) is a barrier between their lanes.

use std::collections::{HashMap, VecDeque};

/// A place in [`Lanes`]; valid until the message is taken out.
pub type Place = u32;

/// One waiting message with what the caller keeps for it.
struct Slot<T> {
    keys: Keys,
    /// In how many of its lanes somebody stands before it.
    blocked_in: u32,
    /// Stands among the ready ones.
    ready: bool,
    value: T,
}

/// Ordering keys, without an allocation for the common one.
enum Keys {
    None,
    One(u64),
    Many(Box<[u64]>),
}

impl Keys {
    fn new(keys: &[u64]) -> Self {
        match keys {
            [] => Self::None,
            [key] => Self::One(*key),
            _ => {
                let mut keys = keys.to_vec();
                keys.sort_unstable();
                keys.dedup();
                if keys.len() == 1 { Self::One(keys[0]) } else { Self::Many(keys.into()) }
            }
        }
    }

    fn as_slice(&self) -> &[u64] {
        match self {
            Self::None => &[],
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }
}

/// Messages waiting on one route.
pub struct Lanes<T> {
    slots: Vec<Option<Slot<T>>>,
    free: Vec<Place>,
    lanes: HashMap<u64, VecDeque<Place>>,
    ready: VecDeque<Place>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), lanes: HashMap::new(), ready: VecDeque::new() }
    }
}

impl<T> Lanes<T> {
    /// Puts a message behind all earlier ones of its keys.
    pub fn push(&mut self, keys: &[u64], value: T) -> Place {
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as Place
            }
        };
        let keys = Keys::new(keys);
        let mut blocked_in = 0;
        for key in keys.as_slice() {
            let lane = self.lanes.entry(*key).or_default();
            blocked_in += u32::from(!lane.is_empty());
            lane.push_back(place);
        }
        self.slots[place as usize] = Some(Slot { keys, blocked_in, ready: false, value });
        self.ready_last(place);
        place
    }

    /// The next message that may be delivered. It stays in its lanes, and holds them, until [`Lanes::remove`].
    pub fn take_ready(&mut self) -> Option<Place> {
        let place = self.ready.pop_front()?;
        if let Some(slot) = self.slots[place as usize].as_mut() {
            slot.ready = false;
        }
        if cfg!(feature = "break-order") && self.slots.len() > 1 {
            // The deliberately broken build: lets the successor go at the same time.
            self.release_successors(place);
        }
        Some(place)
    }

    /// Makes a message that was taken ready again, before all others. One that is ready already stays where it is, and
    /// one behind others in a lane becomes ready when they are gone.
    pub fn ready_first(&mut self, place: Place) {
        if self.becomes_ready(place) {
            self.ready.push_front(place);
        }
    }

    /// As [`Lanes::ready_first`], after all others.
    pub fn ready_last(&mut self, place: Place) {
        if self.becomes_ready(place) {
            self.ready.push_back(place);
        }
    }

    fn becomes_ready(&mut self, place: Place) -> bool {
        let Some(slot) = self.slots.get_mut(place as usize).and_then(Option::as_mut) else { return false };
        let becomes = slot.blocked_in == 0 && !slot.ready;
        slot.ready |= becomes;
        becomes
    }

    /// Whether any message may be delivered now.
    #[cfg(test)]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// What the caller keeps for a message.
    pub fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        self.slots.get_mut(place as usize)?.as_mut().map(|slot| &mut slot.value)
    }

    /// The first message of these keys that `wanted` holds for. Looks from the oldest on: quick for the oldest, and where
    /// many are looked for in their order of arrival.
    pub fn find(&self, keys: &[u64], wanted: impl Fn(&T) -> bool) -> Option<Place> {
        let holds = |place: Place| self.slots.get(place as usize)?.as_ref().filter(|slot| wanted(&slot.value)).map(|_| place);
        match keys.first() {
            Some(key) => self.lanes.get(key)?.iter().find_map(|place| holds(*place)),
            None => (0..self.slots.len() as Place).find_map(holds),
        }
    }

    /// The places of all messages that `wanted` holds for.
    pub fn places(&self, wanted: impl Fn(&T) -> bool) -> Vec<Place> {
        let all = self.slots.iter().enumerate();
        all.filter(|(_, slot)| slot.as_ref().is_some_and(|s| wanted(&s.value))).map(|(at, _)| at as Place).collect()
    }

    /// The places of the messages of all lanes in which somebody is blocked, and of those without a key that are blocked themselves: with a
    /// message all that come before it are among them. Where lanes are tied together by a message with several keys, it is all messages.
    pub fn blocked(&self, is_blocked: impl Fn(&T) -> bool) -> Vec<Place> {
        let slot = |place: Place| self.slots.get(place as usize).and_then(Option::as_ref);
        let alone = |s: &Slot<T>| matches!(s.keys, Keys::None) && is_blocked(&s.value);
        let slots = self.slots.iter().enumerate();
        let mut found: Vec<Place> = slots.filter(|(_, s)| s.as_ref().is_some_and(alone)).map(|(at, _)| at as Place).collect();
        for lane in self.lanes.values() {
            if lane.iter().any(|place| slot(*place).is_some_and(|s| is_blocked(&s.value))) {
                found.extend(lane);
            }
        }
        if found.iter().any(|place| slot(*place).is_some_and(|s| matches!(s.keys, Keys::Many(_)))) {
            return self.places(|_| true);
        }
        found
    }

    /// Takes out all messages that `gone` holds for, in no particular order; who stood behind them moves up.
    pub fn remove_all(&mut self, gone: impl Fn(&T) -> bool) -> Vec<T> {
        let leaves: Vec<bool> = self.slots.iter().map(|slot| slot.as_ref().is_some_and(|s| gone(&s.value))).collect();
        let stays = |place: &Place| !leaves.get(*place as usize).copied().unwrap_or(false);
        self.ready.retain(stays);
        let mut first = Vec::new();
        self.lanes.retain(|_, lane| {
            let before = lane.front().copied();
            lane.retain(stays);
            lane.shrink_to(lane.len() * 2);
            first.extend(lane.front().copied().filter(|now| Some(*now) != before));
            !lane.is_empty()
        });
        let mut taken = Vec::new();
        for (at, slot) in self.slots.iter_mut().enumerate().filter(|(at, _)| leaves.get(*at) == Some(&true)) {
            taken.extend(slot.take().map(|slot| slot.value));
            self.free.push(at as Place);
        }
        first.into_iter().for_each(|place| self.unblock(place));
        self.give_back();
        taken
    }

    /// Takes a message out of its lanes, wherever it stands; its successors move up.
    pub fn remove(&mut self, place: Place) -> Option<T> {
        let slot = self.slots.get_mut(place as usize)?.take()?;
        if slot.ready {
            // Its place may be given to another message: nothing may point to it any more.
            self.ready.retain(|p| *p != place);
        }
        for key in slot.keys.as_slice() {
            self.leave(*key, place);
        }
        self.free.push(place);
        self.give_back();
        Some(slot.value)
    }

    /// Memory of a long backlog goes back when it is worked off.
    fn give_back(&mut self) {
        if self.free.len() == self.slots.len() && self.slots.capacity() > 1024 {
            *self = Self::default();
        }
    }

    /// Messages in the lanes, those being delivered included.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// No message at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every message, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten().map(|slot| &slot.value)
    }

    fn leave(&mut self, key: u64, place: Place) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let was_first = lane.front() == Some(&place);
        if was_first {
            lane.pop_front();
        } else {
            // Given up while it waited (or the deliberately broken build, which lets anyone leave).
            lane.retain(|p| *p != place);
        }
        let next = lane.front().copied();
        if next.is_none() {
            self.lanes.remove(&key);
        } else if lane.capacity() > 64 && lane.len() * 4 < lane.capacity() {
            lane.shrink_to(lane.len() * 2);
        }
        if was_first && let Some(next) = next {
            self.unblock(next);
        }
    }

    fn unblock(&mut self, place: Place) {
        if let Some(slot) = self.slots[place as usize].as_mut()
            && slot.blocked_in > 0
        {
            slot.blocked_in -= 1;
            self.ready_last(place);
        }
    }

    fn release_successors(&mut self, place: Place) {
        let Some(slot) = self.slots[place as usize].as_ref() else { return };
        let keys: Vec<u64> = slot.keys.as_slice().to_vec();
        for key in keys {
            let next = self.lanes.get(&key).and_then(|lane| lane.get(1).copied());
            if let Some(next) = next {
                self.unblock(next);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain_ready(lanes: &mut Lanes<u32>) -> Vec<(Place, u32)> {
        let mut taken = Vec::new();
        while let Some(place) = lanes.take_ready() {
            taken.push((place, *lanes.get_mut(place).expect("taken")));
        }
        taken
    }

    fn values(taken: &[(Place, u32)]) -> Vec<u32> {
        taken.iter().map(|t| t.1).collect()
    }

    #[test]
    fn one_of_each_key_at_a_time_in_order() {
        let mut lanes = Lanes::default();
        for (key, value) in [(1, 10), (1, 11), (2, 20), (1, 12), (2, 21)] {
            lanes.push(&[key], value);
        }
        let first = drain_ready(&mut lanes);
        assert_eq!(values(&first), [10, 20]);
        lanes.remove(first[1].0);
        let second = drain_ready(&mut lanes);
        assert_eq!(values(&second), [21]);
        lanes.remove(first[0].0);
        assert_eq!(values(&drain_ready(&mut lanes)), [11]);
        assert_eq!(lanes.len(), 3);
    }

    #[test]
    fn several_keys_are_a_barrier_both_ways() {
        let mut lanes = Lanes::default();
        lanes.push(&[1], 10);
        lanes.push(&[2], 20);
        lanes.push(&[1, 2, 2], 99);
        lanes.push(&[1], 11);
        lanes.push(&[2], 21);
        lanes.push(&[3], 30);
        let first = drain_ready(&mut lanes);
        assert_eq!(values(&first), [10, 20, 30]);
        lanes.remove(first[0].0);
        assert!(!lanes.has_ready(), "the merge waits for the other patient too");
        lanes.remove(first[1].0);
        let merge = drain_ready(&mut lanes);
        assert_eq!(values(&merge), [99]);
        lanes.remove(merge[0].0);
        assert_eq!(values(&drain_ready(&mut lanes)), [11, 21]);
    }

    #[test]
    fn a_place_is_ready_once_and_never_out_of_turn() {
        let mut lanes = Lanes::default();
        let first = lanes.push(&[1], 1);
        let second = lanes.push(&[1], 2);
        lanes.ready_first(first);
        lanes.ready_first(second);
        assert_eq!(values(&drain_ready(&mut lanes)), [1], "the first once, the second not before it");
        lanes.remove(first);
        assert_eq!(lanes.remove(second), Some(2), "given up while it was ready");
        let third = lanes.push(&[9], 3);
        assert_eq!(third, second, "the place is used again");
        assert_eq!(values(&drain_ready(&mut lanes)), [3], "once");
    }

    #[test]
    fn many_leave_at_once_as_if_one_by_one() {
        let messages: [(&[u64], u32); 9] =
            [(&[1], 10), (&[2], 20), (&[1, 2], 99), (&[1], 11), (&[], 1), (&[2], 21), (&[3], 30), (&[3], 31), (&[], 2)];
        for gone in 0..1 << messages.len() {
            let leaves = |v: &u32| messages.iter().position(|m| m.1 == *v).is_some_and(|at| gone & (1 << at) != 0);
            let (mut at_once, mut one_by_one) = (Lanes::default(), Lanes::default());
            for (keys, value) in messages {
                at_once.push(keys, value);
                one_by_one.push(keys, value);
            }
            let taken = at_once.remove_all(leaves);
            for place in one_by_one.places(leaves) {
                one_by_one.remove(place);
            }
            assert_eq!(taken.len() + at_once.len(), messages.len());
            // Both give the same from here on, one after the other.
            loop {
                let mut ready = [drain_ready(&mut at_once), drain_ready(&mut one_by_one)];
                ready.iter_mut().for_each(|r| r.sort_unstable_by_key(|(_, value)| *value));
                assert_eq!(values(&ready[0]), values(&ready[1]), "{gone:b}");
                if ready[0].is_empty() {
                    break;
                }
                for (lanes, ready) in [(&mut at_once, &ready[0]), (&mut one_by_one, &ready[1])] {
                    for (place, value) in ready {
                        assert_eq!(lanes.remove(*place), Some(*value));
                    }
                }
            }
            assert!(at_once.is_empty() && one_by_one.is_empty());
        }
    }

    #[test]
    fn who_is_blocked_and_all_of_its_keys() {
        let mut lanes = Lanes::default();
        for (key, value) in [(1, 10), (2, 20), (1, 11), (1, 12)] {
            lanes.push(&[key], value);
        }
        lanes.push(&[], 1);
        lanes.push(&[], 2);
        let blocked = |lanes: &mut Lanes<u32>, wanted: u32| {
            let places = lanes.blocked(|value| *value == wanted);
            let mut found: Vec<u32> = places.into_iter().filter_map(|p| lanes.get_mut(p).copied()).collect();
            found.sort_unstable();
            found
        };
        assert_eq!(blocked(&mut lanes, 11), [10, 11, 12], "with those before it");
        assert_eq!(blocked(&mut lanes, 20), [20]);
        assert_eq!(blocked(&mut lanes, 2), [2]);
        assert!(blocked(&mut lanes, 7).is_empty());
        lanes.push(&[1, 3], 99);
        assert_eq!(blocked(&mut lanes, 20), [20]);
        assert_eq!(blocked(&mut lanes, 10), [1, 2, 10, 11, 12, 20, 99], "lanes that are tied together");
    }

    #[test]
    fn without_keys_nobody_waits_and_retries_keep_the_lane() {
        let mut lanes = Lanes::default();
        lanes.push(&[], 1);
        lanes.push(&[], 2);
        lanes.push(&[5], 3);
        lanes.push(&[5], 4);
        let taken = drain_ready(&mut lanes);
        assert_eq!(values(&taken), [1, 2, 3]);
        lanes.ready_last(taken[2].0);
        assert_eq!(values(&drain_ready(&mut lanes)), [3]);
    }
}
