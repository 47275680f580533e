//! When to commit: at once when one appender is alone, a moment later when more are known to be on their way.
//!
//! Appenders that were told together come back together, but not at the same instant. A commit that starts with the
//! first of them leaves the rest to wait for a whole fsync; waiting a fraction of an fsync for them makes one group.

use super::queue::{Queue, Record};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Never waits longer than this, however slow the disk.
const LONGEST: Duration = Duration::from_micros(400);

/// What is known of the appenders.
#[derive(Default)]
pub struct Gather {
    /// How many were told after the last commit.
    told: usize,
    /// Smoothed time of a commit.
    commit: Duration,
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

    /// Waits a moment for those who were told last and are not back yet.
    pub fn more(&mut self, queue: &Queue, records: &mut VecDeque<Record>) {
        if self.told <= 1 || records.len() >= self.told {
            return;
        }
        let until = Instant::now() + (self.commit / 2).min(LONGEST);
        queue.take_when(self.told - records.len(), until, records);
    }
}
