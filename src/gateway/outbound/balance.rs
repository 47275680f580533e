//! Which target of a route takes the next message: round robin, fewest in hand, hash by client or key, with
//! passive ejection. [`choose`] is the pure core; [`Targets`] holds the counts that all instances of a route share.
//!
//! A target that failed `eject_after` times in a row is left out for `eject_for`; after that one more failure ejects
//! it again, one success clears it. When all are ejected, the one whose ejection ends first is used: never a refusal.

use super::mllp::Pool;
use crate::{
    channel::{Balance, Route},
    message::Envelope,
    telemetry::outbound::{Exchange, TargetEjected, TargetMetrics, TargetReturned},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// What the choice knows of one target.
#[derive(Clone, Copy, Debug, Default)]
pub struct State {
    /// Deliveries in hand.
    pub in_hand: u32,
    /// Left out until then (on the caller's clock); 0: not ejected.
    pub ejected_until: u64,
}

/// How to choose.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// The `turn`-th of those that are not ejected, counted around.
    Turn(usize),
    /// Fewest in hand; of equals the first from `turn` on.
    Fewest(usize),
    /// Highest score of (target, hash): rendezvous hashing, so that a target's absence moves only its own keys.
    Hash(u64),
}

/// Chooses among `count` targets (at least one) at time `now`. `score(target, hash)` must be a good hash of both.
pub fn choose(
    count: usize,
    now: u64,
    choice: Choice,
    state: impl Fn(usize) -> State,
    score: impl Fn(usize, u64) -> u64,
) -> usize {
    let usable = |i: &usize| state(*i).ejected_until <= now;
    let chosen = match choice {
        Choice::Turn(turn) => match (0..count).filter(usable).count() {
            0 => None,
            n => (0..count).filter(usable).nth(turn % n),
        },
        Choice::Fewest(turn) => {
            (0..count).map(|i| (turn.wrapping_add(i)) % count).filter(usable).min_by_key(|i| state(*i).in_hand)
        }
        Choice::Hash(hash) => (0..count).filter(usable).max_by_key(|i| score(*i, hash)),
    };
    chosen.or_else(|| (0..count).min_by_key(|i| state(*i).ejected_until)).unwrap_or(0)
}

/// The targets of one route, shared by all its connector instances.
pub struct Targets {
    balance: Balance,
    eject_after: u32,
    eject_for: Duration,
    /// Name of the channel, for the log.
    channel: Box<str>,
    route: Box<str>,
    turn: AtomicUsize,
    started: Instant,
    targets: Box<[Target]>,
}

struct Target {
    name: Box<str>,
    in_hand: AtomicU32,
    failures: AtomicU32,
    ejected_until: AtomicU64,
    metrics: TargetMetrics,
    pool: Pool,
}

/// One target as it stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStatus {
    /// As configured: host and port, no credentials, no query.
    pub target: String,
    /// Deliveries in hand.
    pub in_hand: u32,
    /// Failures in a row.
    pub failures: u32,
    /// How much longer it is left out; zero: it is not.
    pub ejected_for: Duration,
}

impl Targets {
    /// The shared state for a route of `channel` (full name). Make one per route and pass it to every
    /// [`connector`](super::connector) of that route.
    pub fn new(channel: &str, route: &Route) -> Arc<Self> {
        let targets = super::target_names(route)
            .into_iter()
            .map(|name| Target {
                metrics: TargetMetrics::new(channel, &route.name, &name),
                name: name.into(),
                in_hand: AtomicU32::new(0),
                failures: AtomicU32::new(0),
                ejected_until: AtomicU64::new(0),
                pool: Pool::new(route.in_flight.max(1) as usize),
            })
            .collect();
        Arc::new(Self {
            balance: route.balance,
            eject_after: route.eject_after,
            eject_for: route.eject_for,
            channel: channel.into(),
            route: route.name.as_str().into(),
            turn: AtomicUsize::new(0),
            started: Instant::now(),
            targets,
        })
    }

    /// How many targets.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// A route without targets is refused when its connector is made.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// All targets as they stand now.
    pub fn status(&self) -> Vec<TargetStatus> {
        let now = self.now();
        let one = |t: &Target| TargetStatus {
            target: t.name.to_string(),
            in_hand: t.in_hand.load(Relaxed),
            failures: t.failures.load(Relaxed),
            ejected_for: Duration::from_micros(t.ejected_until.load(Relaxed).saturating_sub(now)),
        };
        self.targets.iter().map(one).collect()
    }

    /// The target for a message; counted in hand until the lease is dropped.
    pub fn pick(self: &Arc<Self>, envelope: &Envelope) -> Lease {
        let hash = match self.balance {
            Balance::HashClient => Some(xxh3_64(envelope.client.as_bytes())),
            Balance::HashKey => envelope.keys.first().copied(),
            Balance::RoundRobin | Balance::LeastConnections => None,
        };
        self.pick_at(self.now(), hash)
    }

    /// As [`Targets::pick`], at a given time (microseconds since creation) and with the hash already computed
    /// (`None` with a hashing balance: a message without keys, taken in turn).
    pub fn pick_at(self: &Arc<Self>, now: u64, hash: Option<u64>) -> Lease {
        let choice = match (self.targets.len(), self.balance, hash) {
            (0 | 1, ..) => Choice::Turn(0),
            (_, Balance::HashClient | Balance::HashKey, Some(hash)) => Choice::Hash(hash),
            (_, Balance::LeastConnections, _) => Choice::Fewest(self.turn.fetch_add(1, Relaxed)),
            _ => Choice::Turn(self.turn.fetch_add(1, Relaxed)),
        };
        let state = |i: usize| State {
            in_hand: self.targets[i].in_hand.load(Relaxed),
            ejected_until: self.targets[i].ejected_until.load(Relaxed),
        };
        let score = |i: usize, hash: u64| xxh3_64_with_seed(self.targets[i].name.as_bytes(), hash);
        let index = choose(self.targets.len(), now, choice, state, score);
        self.targets[index].in_hand.fetch_add(1, Relaxed);
        Lease { targets: self.clone(), index, began: Instant::now() }
    }

    fn now(&self) -> u64 {
        // Fine enough that two ejections hardly ever end at the same moment: the earlier one is to be tried first.
        self.started.elapsed().as_micros() as u64
    }
}

/// One delivery's hold on a target.
pub struct Lease {
    targets: Arc<Targets>,
    index: usize,
    began: Instant,
}

impl Lease {
    /// The target's place in the route's list.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The target's name, as [`TargetStatus::target`].
    pub fn name(&self) -> &str {
        &self.target().name
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.target().pool
    }

    pub(super) fn metrics(&self) -> &TargetMetrics {
        &self.target().metrics
    }

    fn target(&self) -> &Target {
        &self.targets.targets[self.index]
    }

    /// The exchange ended with an answer; `well`: one that does not say that the receiver is unwell.
    pub fn answered(&self, well: bool) {
        self.metrics().exchange(Exchange::Answered, self.began.elapsed());
        if !well {
            return self.count_failure(self.targets.now());
        }
        let target = self.target();
        // Read before write: the usual case must not bounce the cache line between cores.
        if target.failures.load(Relaxed) != 0 {
            target.failures.store(0, Relaxed);
            if target.ejected_until.swap(0, Relaxed) != 0 {
                TargetReturned { channel: &self.targets.channel, route: &self.targets.route, target: &target.name }.emit();
            }
        }
    }

    /// The exchange ended without an answer.
    pub fn failed(&self, how: Exchange) {
        self.metrics().exchange(how, self.began.elapsed());
        self.count_failure(self.targets.now());
    }

    /// Counts a failure at a given time (microseconds since creation of the targets).
    pub fn count_failure(&self, now: u64) {
        let (targets, target) = (&*self.targets, self.target());
        let failures = target.failures.fetch_add(1, Relaxed).saturating_add(1);
        // With a single target there is nothing to choose, and nothing to announce.
        if targets.eject_after == 0 || failures < targets.eject_after || targets.targets.len() < 2 {
            return;
        }
        let until = now.saturating_add(targets.eject_for.as_micros() as u64).max(1);
        if target.ejected_until.swap(until, Relaxed) <= now {
            let (channel, route, name) = (&targets.channel, &targets.route, &target.name);
            TargetEjected { channel, route, target: name, failures, for_secs: targets.eject_for.as_secs_f64() }.emit();
            target.metrics.ejected();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.target().in_hand.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Choice::*;

    fn score(i: usize, hash: u64) -> u64 {
        xxh3_64_with_seed(&[i as u8], hash)
    }

    #[test]
    fn choice_table() {
        // (in hand, ejected until) per target; now; choice; expected
        type Row = (&'static [(u32, u64)], u64, Choice, usize);
        let table: &[Row] = &[
            (&[(0, 0)], 5, Turn(7), 0),
            (&[(0, 0), (0, 0), (0, 0)], 5, Turn(0), 0),
            (&[(0, 0), (0, 0), (0, 0)], 5, Turn(4), 1),
            (&[(0, 9), (0, 0), (0, 0)], 5, Turn(0), 1),
            (&[(0, 9), (0, 0), (0, 0)], 5, Turn(1), 2),
            (&[(0, 9), (0, 0), (0, 0)], 9, Turn(0), 0),
            (&[(0, 9), (0, 8), (0, 10)], 5, Turn(0), 1),
            (&[(3, 0), (1, 0), (2, 0)], 5, Fewest(0), 1),
            (&[(1, 0), (1, 0), (1, 0)], 5, Fewest(2), 2),
            (&[(1, 0), (0, 9), (1, 0)], 5, Fewest(1), 2),
            (&[(0, 7), (5, 6)], 5, Fewest(0), 1),
            (&[(0, 0), (0, 0)], 5, Fewest(usize::MAX), 1),
            (&[(0, 7), (5, 0)], 5, Hash(1), 1),
        ];
        for (n, (states, now, choice, expected)) in table.iter().enumerate() {
            let state = |i: usize| State { in_hand: states[i].0, ejected_until: states[i].1 };
            assert_eq!(choose(states.len(), *now, *choice, state, score), *expected, "row {n}");
        }
    }

    #[test]
    fn a_lost_target_moves_only_its_own_keys() {
        let pick = |hash, ejected: Option<usize>| {
            choose(5, 1, Hash(hash), |i| State { in_hand: 0, ejected_until: if ejected == Some(i) { 9 } else { 0 } }, score)
        };
        let mut counts = [0u32; 5];
        for key in 0..10_000u64 {
            let before = pick(key, None);
            counts[before] += 1;
            let after = pick(key, Some(2));
            if before == 2 {
                assert_ne!(after, 2);
            } else {
                assert_eq!(after, before);
            }
        }
        assert!(counts.iter().all(|n| (1800..2200).contains(n)), "{counts:?}");
    }

    fn targets(balance: Balance, count: usize) -> Arc<Targets> {
        let list: Vec<String> = (0..count).map(|i| format!("h{i}:2575")).collect();
        let route = serde_json::json!({"name": "r", "mllp": list, "eject_after": 3, "eject_for": "10s"});
        let mut route: Route = serde_json::from_value(route).expect("a valid route");
        route.balance = balance;
        Targets::new("test.balance", &route)
    }

    #[test]
    fn round_robin_is_even_also_while_one_is_ejected() {
        let targets = targets(Balance::RoundRobin, 4);
        let mut counts = [0; 4];
        (0..400).for_each(|_| counts[targets.pick_at(0, None).index()] += 1);
        assert_eq!(counts, [100; 4]);
        let bad = loop {
            let lease = targets.pick_at(0, None);
            if lease.index() == 1 {
                break lease;
            }
        };
        (0..3).for_each(|_| bad.count_failure(0));
        let mut counts = [0; 4];
        (0..300).for_each(|_| counts[targets.pick_at(1, None).index()] += 1);
        assert_eq!(counts, [100, 0, 100, 100]);
    }

    #[test]
    fn fewest_in_hand_counts_what_is_held() {
        let targets = targets(Balance::LeastConnections, 3);
        let held: Vec<_> = (0..6).map(|_| targets.pick_at(0, None)).collect();
        let mut counts = [0; 3];
        held.iter().for_each(|l| counts[l.index()] += 1);
        assert_eq!(counts, [2; 3]);
        let (first, rest): (Vec<_>, Vec<_>) = held.into_iter().partition(|l| l.index() == 1);
        drop(first);
        assert_eq!(targets.pick_at(0, None).index(), 1);
        drop(rest);
        assert!(targets.status().iter().all(|s| s.in_hand == 0));
    }

    #[test]
    fn ejection_ends_and_one_failure_more_ejects_again() {
        let targets = targets(Balance::HashKey, 2);
        let home = targets.pick_at(0, Some(7)).index();
        let lease = targets.pick_at(0, Some(7));
        lease.count_failure(0);
        lease.count_failure(0);
        assert_eq!(targets.pick_at(0, Some(7)).index(), home, "two failures are not three");
        lease.count_failure(0);
        assert_ne!(targets.pick_at(9_999_999, Some(7)).index(), home);
        assert_eq!(targets.pick_at(10_000_000, Some(7)).index(), home, "its time is over");
        lease.count_failure(10_000_000);
        assert_ne!(targets.pick_at(10_000_001, Some(7)).index(), home, "one more is enough");
        lease.answered(true);
        assert_eq!(targets.pick_at(10_000_001, Some(7)).index(), home, "an answer clears it");
        lease.count_failure(10_000_001);
        assert_eq!(targets.pick_at(10_000_001, Some(7)).index(), home, "counted from one again");
    }

    #[test]
    fn without_keys_a_hashing_balance_takes_turns() {
        let targets = targets(Balance::HashKey, 2);
        assert_ne!(targets.pick_at(0, None).index(), targets.pick_at(0, None).index());
    }
}
