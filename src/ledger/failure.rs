//! What the writer does when a commit fails: nothing in it happened, everybody is told, and what nobody waits for is
//! tried again.

use super::codec::kind;
use super::core::Core;
use super::queue::{Queued, Record};
use super::ticket;
use crate::engine::fact::Seq;
use crate::engine::ports::LogError;
use crate::telemetry::ledger as event;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Ranges of lost pieces remembered. When more fail, neighbours are joined: an accept fact may then be refused that need
/// not be, which is safe.
const RANGES: usize = 64;
const PAUSE: Duration = Duration::from_millis(20);

/// Tells the waiters of records of a round that they are not written.
pub fn refuse_part(records: Vec<Queued>) {
    let error = LogError::Failed("a part of the batch could not be stored; it must be applied again".into());
    ticket::tell(records.into_iter().map(|r| (r, Some(error.clone()))));
}

/// The state of failing.
#[derive(Default)]
pub struct Failure {
    failing: bool,
    losing: bool,
    /// Numbers in groups that failed: a fact that refers to a piece among them must fail too.
    lost: Vec<(Seq, Seq)>,
    /// A round of applying of which something could not be written: nothing later of it may be, or it would count as taken in.
    broken_round: u64,
}

impl Failure {
    /// Takes accept facts out of a part of a group (which begins at `first`) whose bodies are not all there, and tells their waiters. Other facts stay: that
    /// a message was delivered is worth more than the receiver's answer.
    pub fn refuse_broken(&mut self, core: &Core, first: Seq, mut group: Vec<Queued>) -> Vec<Queued> {
        group = self.refuse_rest_of_round(group);
        // Of what other nodes accepted the pieces were looked after when it was applied.
        let is_accept =
            |r: &Record| r.round().is_none() && r.fact.as_ref().is_some_and(|f| matches!(f.kind, kind::ACCEPTED | kind::CARRIED));
        if !group.iter().any(|r| is_accept(r) && !r.pieces.is_empty()) {
            return group;
        }
        let broken = |r: &mut Box<Record>| {
            // Pieces of this very group are written with it.
            let earlier: Vec<Seq> = r.pieces.iter().copied().filter(|p| *p < first).collect();
            let lost = earlier.iter().any(|p| self.lost.iter().any(|(a, b)| (a..=b).contains(&p)));
            let gone = if r.holds_transient {
                !core.transients.has_all(&earlier)
            } else {
                earlier.iter().any(|p| core.catalog.holding(*p).is_none_or(|s| s.is_leaving()))
            };
            is_accept(r) && (lost || gone)
        };
        let bad: Vec<Queued> = group.extract_if(.., broken).collect();
        let error = LogError::Failed("a piece of the body is not in the store; it must be sent again".into());
        ticket::tell(bad.into_iter().map(|r| (r, Some(error.clone()))));
        group
    }

    /// Nothing more of this round may be written: it is applied again.
    pub fn break_round(&mut self, round: u64) {
        self.broken_round = round;
    }

    /// Takes what belongs to a broken round out of a part of a group, and tells its waiters.
    fn refuse_rest_of_round(&mut self, mut group: Vec<Queued>) -> Vec<Queued> {
        let broken = self.broken_round;
        if broken == 0 {
            return group;
        }
        refuse_part(group.extract_if(.., |r| r.round() == Some(broken)).collect());
        // One round is under way at a time.
        if group.iter().any(|r| r.round().is_some()) {
            self.broken_round = 0;
        }
        group
    }

    /// The whole group failed.
    pub fn group_failed(&mut self, core: &Core, group: Vec<Queued>, error: &LogError) {
        event::CommitFailed { records: group.len(), error: &error.to_string(), first: !self.failing }.emit();
        self.failing = true;
        core.problems.add("log", format!("commits fail: {error}; senders are refused until it works again"));
        if group.iter().any(|r| r.fact.is_none())
            && let (Some(first), Some(last)) = (group.first(), group.last())
        {
            self.remember(first.seq, last.seq);
        }
        self.broken_round = group.iter().filter_map(|r| r.round()).max().unwrap_or(self.broken_round);
        let mut told = Vec::new();
        for record in group {
            if record.ticket.is_some() {
                told.push((record, Some(error.clone())));
            } else if record.round().is_some() {
                // Applied again as a whole.
            } else if record.fact.is_some() && core.queue.push_later(record).is_err() {
                core.lost_later.fetch_add(1, Ordering::Relaxed);
                event::LaterLost { first: !self.losing }.emit();
                self.losing = true;
            }
        }
        ticket::tell(told.into_iter());
    }

    /// A commit worked.
    pub fn over(&mut self, core: &Core) {
        if self.failing {
            self.failing = false;
            self.losing = false;
            core.problems.clear("log");
            event::CommitRecovered.emit();
        }
    }

    /// Rests, so that a failing disk is not asked in a tight loop.
    pub fn pause(&self) {
        std::thread::sleep(PAUSE);
    }

    fn remember(&mut self, first: Seq, last: Seq) {
        match self.lost.last_mut() {
            Some((_, end)) if *end + 1 == first => *end = last,
            _ => self.lost.push((first, last)),
        }
        if self.lost.len() > RANGES {
            let (_, end) = self.lost.remove(1);
            self.lost[0].1 = end;
        }
    }
}
