//! When to commit: at once when one appender is alone, a moment later when more are known to be on their way.
//!
//! Appenders that were told together come back together, but not at the same instant. A commit that starts with the
//! first of them leaves the rest to wait for another; waiting a fraction of an fsync for them makes one group. The wait
//! is learnt: it grows while it is rewarded, and goes when those who were told do not come back in time. So is the time for
//! which a writer, with nothing to do, looks for an appender instead of sleeping at once.

use super::core::Core;
use super::queue::{Queue, Queued};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest wait for those who are on their way.
const LONGEST: Duration = Duration::from_micros(200);
/// Shortest wait worth anything.
const SHORTEST: Duration = Duration::from_micros(10);
/// After the wait has gone, one group in so many tries again.
const RETRY: u32 = 64;
/// Longest look for a lone appender before a writer sleeps.
const LONGEST_LOOK: Duration = Duration::from_micros(100);

/// What is known of the appenders.
#[derive(Default)]
pub struct Gather {
    /// How many wait, with this group, for what is not durable yet: about as many as there are.
    known: usize,
    /// Wait in force.
    wait: Duration,
    /// Groups since the wait went.
    idle: u32,
    /// End of the present wait.
    until: Option<Instant>,
    may_wait: bool,
}

impl Gather {
    /// A group was written: with it so many appenders wait.
    pub fn written(&mut self, known: usize) {
        self.known = known;
    }

    /// A group begins; `may_wait`: its writer has nothing else to do.
    pub fn begin(&mut self, may_wait: bool) {
        self.until = None;
        self.may_wait = may_wait;
    }

    /// Takes what arrives for a group that has `have` records already; false when the group should be written now.
    pub fn more(&mut self, core: &Core, records: &mut VecDeque<Queued>, have: usize) -> bool {
        let sync = Duration::from_micros(core.sync_micros.load(Ordering::Relaxed));
        let target = self.known;
        if target <= 1 {
            return false;
        }
        if have >= target {
            if self.until.is_some() {
                // All came in time.
                self.wait = (self.wait * 2).clamp(SHORTEST, LONGEST.min(sync).max(SHORTEST));
            }
            return false;
        }
        if core.queue.is_empty() && !(self.may_wait && self.waits(core, sync, target, have)) {
            return false;
        }
        core.queue.take_more(records);
        true
    }

    /// Waits for another record; false when the group should be written without.
    fn waits(&mut self, core: &Core, sync: Duration, target: usize, have: usize) -> bool {
        if self.wait < SHORTEST {
            self.idle += 1;
            if self.idle < RETRY {
                return false;
            }
            self.idle = 0;
            self.wait = LONGEST.min(sync) / 2;
        }
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.wait);
        while core.queue.is_empty() {
            if Instant::now() >= until {
                // Most of them came: worth it. Too few: wait less next time.
                if have < target / 4 * 3 {
                    self.wait /= 2;
                }
                return false;
            }
            std::thread::yield_now();
        }
        true
    }
}

/// A time to look for an appender that is worth it, learnt: waking a sleeping thread takes longer than many an appender
/// takes to come back.
pub struct Look {
    now: Duration,
    idle: u32,
}

impl Default for Look {
    fn default() -> Self {
        Self { now: LONGEST_LOOK, idle: 0 }
    }
}

impl Look {
    /// Looks for a short while.
    pub fn at(&mut self, queue: &Queue) {
        let time = self.time();
        if time.is_zero() {
            return;
        }
        let rewarded = queue.look(Instant::now() + time);
        self.now = if rewarded { (self.now * 2).clamp(SHORTEST * 2, LONGEST_LOOK) } else { self.now / 2 };
    }

    /// How long this time.
    fn time(&mut self) -> Duration {
        if self.now >= SHORTEST {
            return self.now;
        }
        self.idle += 1;
        if self.idle < RETRY {
            return Duration::ZERO;
        }
        self.idle = 0;
        LONGEST_LOOK
    }
}
