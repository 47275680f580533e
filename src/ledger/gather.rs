//! When to commit: at once when one appender is alone, a moment later when more are known to be on their way.
//!
//! Appenders that were told together come back together, but not at the same instant. A commit that starts with the
//! first of them leaves the rest to wait for a whole fsync; waiting a fraction of an fsync for them makes one group. The wait
//! is learnt: it grows while it is rewarded, and goes when those who were told do not come back in time. So is the time for
//! which the writer, with nothing to do, looks for an appender instead of sleeping at once.

use super::queue::{Queue, Queued};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Longest wait for those who are on their way.
const LONGEST: Duration = Duration::from_micros(200);
/// Shortest wait worth anything.
const SHORTEST: Duration = Duration::from_micros(10);
/// After the wait has gone, one group in so many tries again.
const RETRY: u32 = 64;
/// Longest look for a lone appender before the writer sleeps.
const LONGEST_LOOK: Duration = Duration::from_micros(100);

/// What is known of the appenders.
#[derive(Default)]
pub struct Gather {
    /// How many were told after the last commit.
    told: usize,
    /// Smoothed time of a commit.
    commit: Duration,
    /// Wait in force.
    wait: Duration,
    /// Groups since the wait went.
    idle: u32,
    /// End of the present wait.
    until: Option<Instant>,
    look: Patience,
}

/// A time to look for that is worth it, learnt.
struct Patience {
    now: Duration,
    idle: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { now: LONGEST_LOOK, idle: 0 }
    }
}

impl Patience {
    /// How long to look this time.
    fn get(&mut self) -> Duration {
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

    /// It was, or was not, rewarded.
    fn learn(&mut self, rewarded: bool) {
        self.now = if rewarded { (self.now * 2).clamp(SHORTEST * 2, LONGEST_LOOK) } else { self.now / 2 };
    }
}

impl Gather {
    /// So many waiters were told.
    pub fn told(&mut self, n: usize) {
        self.told = n;
    }

    /// A commit took so long.
    pub fn committed(&mut self, took: Duration) {
        self.commit = (self.commit * 7 + took) / 8;
    }

    /// A commit failed: what is known is of no use.
    pub fn failed(&mut self) {
        self.told = 0;
    }

    /// Looks for an appender for a short while before the writer sleeps: waking a sleeping thread takes longer than many
    /// an appender takes to come back.
    pub fn look(&mut self, queue: &Queue) {
        if self.told == 0 || !queue.is_empty() {
            return;
        }
        let time = self.look.get();
        if time.is_zero() {
            return;
        }
        let until = Instant::now() + time;
        while queue.is_empty() && Instant::now() < until {
            std::hint::spin_loop();
        }
        self.look.learn(!queue.is_empty());
    }

    /// A group begins.
    pub fn begin(&mut self) {
        self.until = None;
    }

    /// Takes what arrives for a group that has `have` records already; false when the group should be committed now.
    pub fn more(&mut self, queue: &Queue, records: &mut VecDeque<Queued>, have: usize) -> bool {
        if self.told <= 1 {
            return false;
        }
        if have >= self.told {
            if self.until.is_some() {
                // All came in time.
                self.wait = (self.wait * 2).clamp(SHORTEST, LONGEST.min(self.commit).max(SHORTEST));
            }
            return false;
        }
        if self.wait < SHORTEST {
            self.idle += 1;
            if self.idle < RETRY {
                return false;
            }
            self.idle = 0;
            self.wait = LONGEST.min(self.commit) / 2;
        }
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.wait);
        while queue.is_empty() {
            if Instant::now() >= until {
                // Most of them came: worth it. Too few: wait less next time.
                if have < self.told / 4 * 3 {
                    self.wait /= 2;
                }
                return false;
            }
            std::thread::yield_now();
        }
        queue.take_more(records);
        true
    }
}
