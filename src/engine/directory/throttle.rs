//! Bounds on failing: per address, and on how many expensive checks run at the same time.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Addresses remembered at the same time.
const ADDRESSES: usize = 4096;

/// A bucket of failures per address (IPv6: per /64), which empties with time. Bounded; at the limit the oldest goes.
pub struct Throttle {
    burst: u32,
    each: Duration,
    /// When the bucket will be empty again.
    until: Mutex<HashMap<IpAddr, Instant>>,
}

impl Throttle {
    /// `burst` failures at once, and one more per `each`.
    pub fn new(burst: u32, each: Duration) -> Self {
        Self { burst, each, until: Mutex::default() }
    }

    /// May this address try (and fail) once more?
    pub fn open(&self, ip: IpAddr) -> bool {
        let now = Instant::now();
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(&network(ip)).is_none_or(|t| t.saturating_duration_since(now) <= self.each * self.burst.saturating_sub(1))
    }

    /// Counts a failure.
    pub fn failed(&self, ip: IpAddr) {
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= ADDRESSES {
            until.retain(|_, t| *t > now);
        }
        if until.len() >= ADDRESSES
            && let Some(soonest) = until.iter().min_by_key(|(_, t)| **t).map(|(ip, _)| *ip)
        {
            until.remove(&soonest);
        }
        let entry = until.entry(network(ip)).or_insert(now);
        *entry = (*entry).max(now) + self.each;
        // Failing on while shut must not shut for ever.
        *entry = (*entry).min(now + self.each * self.burst);
    }

    /// How long until one more failure is allowed.
    pub fn retry_after(&self) -> Duration {
        self.each
    }
}

/// The network that counts as one sender: the address itself, of IPv6 its /64.
pub(in crate::engine) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

/// Password checks at the same time: half the cores, at least one; a few wait, the rest is told to come again.
pub(super) struct Gate {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

const WAITING: usize = 64;
const PATIENCE: Duration = Duration::from_secs(2);

impl Gate {
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { permits: Arc::new(Semaphore::new((cores / 2).max(1))), waiting: AtomicUsize::new(0) }
    }

    pub async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Some(permit);
        }
        let _waiting = Waiting::enter(&self.waiting)?;
        tokio::time::timeout(PATIENCE, self.permits.clone().acquire_owned()).await.ok()?.ok()
    }
}

/// One place in the queue, given back also when the waiter is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Option<Self> {
        let before = count.fetch_add(1, Relaxed);
        let place = Self(count);
        (before < WAITING).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuts_after_the_burst_for_that_network_only_and_opens_again() {
        let throttle = Throttle::new(3, Duration::from_millis(30));
        let (ip, sibling, other): (IpAddr, IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap(), "10.0.0.1".parse().unwrap());
        for _ in 0..3 {
            assert!(throttle.open(ip));
            throttle.failed(ip);
        }
        assert!(!throttle.open(sibling));
        assert!(throttle.open(other));
        std::thread::sleep(Duration::from_millis(60));
        assert!(throttle.open(ip));
    }

    #[test]
    fn bounded() {
        let throttle = Throttle::new(3, Duration::from_secs(60));
        for i in 0..2 * ADDRESSES as u32 {
            throttle.failed(std::net::Ipv4Addr::from_bits(i).into());
        }
        assert_eq!(throttle.until.lock().unwrap().len(), ADDRESSES);
    }
}
