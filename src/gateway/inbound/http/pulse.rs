//! What a connection is doing, so that one timer per connection can keep all of its time limits.

use crate::{config, telemetry::inbound::Cut};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Milliseconds since the connection began, from 1; 0 stands for "not".
type Mark = AtomicU64;

/// Set by the wire, the service and response bodies; read by the connection's driver. Several tasks touch it under
/// HTTP/2; nothing but time limits depends on it, so relaxed order is enough.
pub(super) struct Pulse {
    started: Instant,
    /// Requests in hand: from their head to the end of their response.
    active: AtomicUsize,
    /// The first bytes of a head came (while no request was in hand).
    head: Mark,
    /// The last response ended.
    idle: Mark,
    /// The peer does not take what is written.
    stalled: Mark,
    /// The peer ended its side.
    ended: Mark,
}

/// What the time says about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again after this time.
    Look(Duration),
    /// A limit has passed.
    Cut(Cut),
}

impl Pulse {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            active: AtomicUsize::new(0),
            head: Mark::new(0),
            idle: Mark::new(0),
            stalled: Mark::new(0),
            ended: Mark::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// Bytes came.
    pub fn read(&self) {
        if self.active.load(Ordering::Relaxed) == 0 && self.head.load(Ordering::Relaxed) == 0 {
            self.head.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The peer ended its side.
    pub fn end(&self) {
        self.ended.store(1, Ordering::Relaxed);
    }

    /// Did the peer end its side?
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed) != 0
    }

    /// A write went through, or did not.
    pub fn wrote(&self, through: bool) {
        let stalled = self.stalled.load(Ordering::Relaxed);
        if through && stalled != 0 {
            self.stalled.store(0, Ordering::Relaxed);
        } else if !through && stalled == 0 {
            self.stalled.store(self.now(), Ordering::Relaxed);
        }
    }

    /// A request's head is complete; the request is in hand until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.head.store(0, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// No request in hand, and how long not: from the end of the last response, or from the start.
    pub fn idle_for(&self) -> Option<Duration> {
        (self.active.load(Ordering::Relaxed) == 0)
            .then(|| Duration::from_millis(self.now().saturating_sub(self.idle.load(Ordering::Relaxed))))
    }

    /// A head has begun and is not complete.
    pub fn in_head(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0 && self.head.load(Ordering::Relaxed) != 0
    }

    /// Applies the limits of `config`.
    pub fn judge(&self, config: &config::Http) -> Verdict {
        let now = self.now();
        // A state that begins right after this look has its limit noticed at most this much late.
        let step =
            (config.header_timeout.min(config.body_idle_timeout).min(config.idle_timeout) / 2).max(Duration::from_millis(10));
        let since = |mark: u64| Duration::from_millis(now.saturating_sub(mark));
        let (passed, limit, cut) = match (
            self.stalled.load(Ordering::Relaxed),
            self.active.load(Ordering::Relaxed),
            self.head.load(Ordering::Relaxed),
            self.idle.load(Ordering::Relaxed),
        ) {
            (stalled @ 1.., ..) => (since(stalled), config.body_idle_timeout, Cut::WriteStalled),
            (_, 1.., ..) => return Verdict::Look(step),
            (_, _, head @ 1.., _) => (since(head), config.header_timeout, Cut::HeaderTimeout),
            (_, _, _, 0) => (since(0), config.header_timeout, Cut::HeaderTimeout),
            (_, _, _, idle) => (since(idle), config.idle_timeout, Cut::IdleTimeout),
        };
        match limit.checked_sub(passed) {
            None | Some(Duration::ZERO) => Verdict::Cut(cut),
            Some(left) => Verdict::Look(left.min(step)),
        }
    }
}

/// One request in hand.
pub(super) struct Busy(Arc<Pulse>);

impl Drop for Busy {
    fn drop(&mut self) {
        // The mark first: who sees no request in hand must not see an old mark.
        self.0.idle.store(self.0.now(), Ordering::Relaxed);
        self.0.active.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> config::Http {
        config::Http {
            header_timeout: Duration::from_millis(60),
            body_idle_timeout: Duration::from_millis(60),
            idle_timeout: Duration::from_millis(200),
            ..config::Http::default()
        }
    }

    #[test]
    fn each_state_has_its_limit() {
        let (pulse, config) = (Arc::new(Pulse::new()), config());
        assert!(matches!(pulse.judge(&config), Verdict::Look(_)));
        pulse.read();
        std::thread::sleep(Duration::from_millis(70));
        assert_eq!(pulse.judge(&config), Verdict::Cut(Cut::HeaderTimeout));
        let busy = pulse.begin();
        assert!(matches!(pulse.judge(&config), Verdict::Look(_)), "no limit while the request is in hand");
        pulse.wrote(false);
        std::thread::sleep(Duration::from_millis(70));
        assert_eq!(pulse.judge(&config), Verdict::Cut(Cut::WriteStalled));
        pulse.wrote(true);
        drop(busy);
        assert!(matches!(pulse.judge(&config), Verdict::Look(_)), "idle begins at the end of the response");
        std::thread::sleep(Duration::from_millis(210));
        assert_eq!(pulse.judge(&config), Verdict::Cut(Cut::IdleTimeout));
    }
}
