//! Who is there, and who should work on which queue: the highest rendezvous hash of queue and name (a member that comes or goes
//! moves only what is its own). Pure: time is an argument.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A member that has not been heard for so long does not count.
const SILENT: Duration = Duration::from_secs(5);

/// One that has been silent for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// One member.
#[derive(Clone, Copy, Debug)]
struct Member {
    heard: Instant,
    /// Messages it still has to hand to the broker.
    spooled: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Members {
    own: String,
    others: HashMap<String, Member>,
}

impl Members {
    /// With this node alone.
    pub fn new(own: &str) -> Self {
        Self { own: own.to_owned(), others: HashMap::new() }
    }

    /// This node's name.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// A member lives.
    pub fn heard(&mut self, name: &str, spooled: u64, now: Instant) {
        if name != self.own {
            self.others.retain(|_, m| now.saturating_duration_since(m.heard) < FORGOTTEN);
            self.others.insert(name.to_owned(), Member { heard: now, spooled });
        }
    }

    /// A member said that it goes.
    pub fn left(&mut self, name: &str) {
        self.others.remove(name);
    }

    /// Whether this node should work on the queue.
    pub fn is_ours(&self, queue: &str, now: Instant) -> bool {
        let own = weight(queue, &self.own);
        self.alive(now).all(|(name, _)| (weight(queue, name), name) < (own, self.own.as_str()))
    }

    /// Whose turn a queue is.
    pub fn turn<'a>(&'a self, queue: &str, now: Instant) -> &'a str {
        let names = self.alive(now).map(|(name, _)| name).chain([self.own.as_str()]);
        names.max_by_key(|name| (weight(queue, name), *name)).unwrap_or(&self.own)
    }

    /// All others that were heard within the last hour: name, what each still has to hand to the broker, for how long it has been
    /// silent, whether it counts.
    pub fn others(&self, now: Instant) -> impl Iterator<Item = (&str, u64, Duration, bool)> {
        self.others.iter().map(move |(name, m)| {
            let silent = now.saturating_duration_since(m.heard);
            (name.as_str(), m.spooled, silent, silent < SILENT)
        })
    }

    /// The others that live, and what each still has to hand to the broker.
    pub fn alive(&self, now: Instant) -> impl Iterator<Item = (&str, u64)> {
        let lives = move |m: &Member| now.saturating_duration_since(m.heard) < SILENT;
        self.others.iter().filter(move |(_, m)| lives(m)).map(|(name, m)| (name.as_str(), m.spooled))
    }
}

fn weight(queue: &str, name: &str) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), xxh3_64_with_seed(queue.as_bytes(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_is_one_members_and_only_the_lost_ones_move() {
        let now = Instant::now();
        let names = ["a", "b", "c"];
        let queues: Vec<String> = (0..300).map(|i| format!("hie.d.lab.results/in/{i}")).collect();
        let of = |own: &str, alive: &[&str]| {
            let mut members = Members::new(own);
            alive.iter().for_each(|name| members.heard(name, 0, now));
            queues.iter().map(|q| members.is_ours(q, now)).collect::<Vec<_>>()
        };
        let all: Vec<Vec<bool>> = names.iter().map(|own| of(own, &names)).collect();
        for i in 0..queues.len() {
            assert_eq!(all.iter().filter(|ours| ours[i]).count(), 1, "{}", queues[i]);
            let mut members = Members::new("a");
            names.iter().for_each(|name| members.heard(name, 0, now));
            let turn = names.iter().position(|name| *name == members.turn(&queues[i], now)).expect("a member");
            assert!(all[turn][i], "{}", queues[i]);
        }
        for ours in &all {
            assert!((60..140).contains(&ours.iter().filter(|o| **o).count()));
        }
        let without_c: Vec<Vec<bool>> = ["a", "b"].iter().map(|own| of(own, &["a", "b"])).collect();
        for i in 0..queues.len() {
            for n in 0..2 {
                assert!(!all[n][i] || without_c[n][i], "what was ours stays ours");
            }
        }
    }

    #[test]
    fn a_silent_member_does_not_count() {
        let now = Instant::now();
        let mut members = Members::new("a");
        members.heard("b", 3, now);
        assert_eq!(members.alive(now).count(), 1);
        assert_eq!(members.alive(now + SILENT).count(), 0);
        members.left("b");
        assert_eq!(members.alive(now).count(), 0);
    }
}
