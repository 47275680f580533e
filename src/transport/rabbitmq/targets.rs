//! The inboxes that a channel's messages go to, in the epoch in which messages are accepted now.

use super::{epochs::Target, topology};
use crate::engine::fact::Accepted;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Acquire},
};

/// The partition of a message, of so many. `several_keys`: messages of its channel may have several keys.
pub fn partition(accepted: &Accepted, several_keys: bool, of: u16) -> u16 {
    match (several_keys, accepted.envelope.keys.first()) {
        // Messages with several keys have to meet those of each of them.
        (true, _) => 0,
        (false, Some(key)) => (key % u64::from(of)) as u16,
        (false, None) => (accepted.envelope.id.spread() % u64::from(of)) as u16,
    }
}

/// See the module.
pub struct Targets {
    domain: Arc<str>,
    channel: Arc<str>,
    several_keys: Arc<AtomicBool>,
    /// Names of the inboxes of the epoch that was asked for last.
    names: (Target, Vec<Arc<str>>),
}

impl Targets {
    pub fn new(domain: Arc<str>, channel: Arc<str>, several_keys: Arc<AtomicBool>) -> Self {
        Self { domain, channel, several_keys, names: ((0, 0), Vec::new()) }
    }

    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// The inbox of a message.
    pub fn of(&mut self, target: Target, accepted: &Accepted) -> Arc<str> {
        if self.names.0 != target {
            let (epoch, partitions) = target;
            let name = |p| topology::inbox(&self.domain, &self.channel, p, epoch);
            self.names = (target, (0..partitions.max(1)).map(name).collect());
        }
        let names = &self.names.1;
        let of = u16::try_from(names.len()).unwrap_or(u16::MAX);
        names[usize::from(partition(accepted, self.several_keys.load(Acquire), of))].clone()
    }
}

/// Puts something to the others of its queue; queues in the order of their first.
pub fn group<T>(groups: &mut Vec<(Arc<str>, Vec<T>)>, queue: Arc<str>, one: T) {
    match groups.iter_mut().find(|(name, _)| *name == queue) {
        Some((_, all)) => all.push(one),
        None => groups.push((queue, vec![one])),
    }
}
