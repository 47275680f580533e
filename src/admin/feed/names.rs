//! Channel and client of transactions under way: facts after the first name their transaction by its number only.

use super::source::Journal;
use crate::engine::fact::Seq;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

/// Transactions remembered: some 2 MB.
const TRANSACTIONS: usize = 32_768;
/// Names shared.
const NAMES: usize = 4_096;

/// Who a transaction belongs to: channel, client.
type Parties = (Arc<str>, Arc<str>);

/// Bounded; what is forgotten is read from the ledger again.
#[derive(Default)]
pub(super) struct Names {
    known: HashMap<Seq, Parties>,
    order: VecDeque<Seq>,
    names: HashSet<Arc<str>>,
}

impl Names {
    /// A name, in memory once.
    pub fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(name) = self.names.get(text) {
            return name.clone();
        }
        if self.names.len() >= NAMES {
            self.names.clear();
        }
        let name: Arc<str> = text.into();
        self.names.insert(name.clone());
        name
    }

    /// A transaction begins.
    pub fn learn(&mut self, seq: Seq, channel: &str, client: &str) -> Parties {
        let parties = (self.name(channel), self.name(client));
        self.keep(seq, parties.clone());
        parties
    }

    /// Whose transaction it is; empty names when that is no longer stored.
    pub fn of(&mut self, home: Seq, journal: &dyn Journal) -> Parties {
        if let Some(known) = self.known.get(&home) {
            return known.clone();
        }
        let found = if home == 0 { None } else { journal.parties(home) };
        let (channel, client) = found.unwrap_or_default();
        let parties = (self.name(&channel), self.name(&client));
        self.keep(home, parties.clone());
        parties
    }

    fn keep(&mut self, seq: Seq, parties: Parties) {
        if self.known.insert(seq, parties).is_none() {
            self.order.push_back(seq);
        }
        while self.order.len() > TRANSACTIONS {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// Nobody listens: hold no memory.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
