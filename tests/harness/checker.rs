//! The judge: what was acknowledged must have been delivered, in order per key; doubles are counted or forbidden.

use super::receiver::Arrival;
use super::sender::Sent;
use super::wire::Tag;
use std::collections::{HashMap, HashSet};
use std::fmt;

/// What a second delivery of an accepted message means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubles {
    /// A fault: nobody failed between receiver and ledger.
    Forbidden,
    /// Counted only: at-least-once after a crash.
    Counted,
}

/// The counts, and the offenders.
#[derive(Debug, Default)]
pub struct Report {
    pub attempted: usize,
    pub acknowledged: usize,
    pub sent_again: u64,
    pub arrivals: usize,
    pub accepted_by_receiver: usize,
    pub doubled: Vec<Tag>,
    /// Acknowledged to the sender, never accepted by the receiver.
    pub lost: Vec<Tag>,
    /// A key's message whose first arrival, or first acceptance by the receiver (a retry must hold its key), came after
    /// that of a later one: (the later one's number, this one).
    pub out_of_order: Vec<(u64, Tag)>,
    /// Arrived although nobody sent it.
    pub foreign: Vec<Tag>,
    /// What the senders saw that no node may do (an acknowledgment for another message, …).
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "attempted {} · acknowledged {} · sent again {} · arrivals {} · accepted by the receiver {} · doubled {} · \
             lost {} · out of order {} · foreign {} · violations {}",
            self.attempted,
            self.acknowledged,
            self.sent_again,
            self.arrivals,
            self.accepted_by_receiver,
            self.doubled.len(),
            self.lost.len(),
            self.out_of_order.len(),
            self.foreign.len(),
            self.violations.len()
        )
    }
}

/// Judges. Prints the counts; `Err` names up to ten offenders of each kind.
pub fn check(sent: &Sent, arrivals: &[Arrival], doubles: Doubles) -> Result<Report, String> {
    let report = count(sent, arrivals);
    println!("{report}");
    let mut faults = Vec::new();
    let some = |tags: &mut dyn Iterator<Item = String>| tags.take(10).collect::<Vec<_>>().join(", ");
    let name = |t: &Tag| format!("{}#{} ({})", t.key, t.seq, t.id);
    if !report.lost.is_empty() {
        faults.push(format!("{} lost: {}", report.lost.len(), some(&mut report.lost.iter().map(name))));
    }
    if !report.out_of_order.is_empty() {
        let list = some(&mut report.out_of_order.iter().map(|(before, t)| format!("{} after #{before}", name(t))));
        faults.push(format!("{} out of order: {list}", report.out_of_order.len()));
    }
    if !report.foreign.is_empty() {
        faults.push(format!("{} foreign: {}", report.foreign.len(), some(&mut report.foreign.iter().map(name))));
    }
    if doubles == Doubles::Forbidden && !report.doubled.is_empty() {
        faults.push(format!("{} doubled: {}", report.doubled.len(), some(&mut report.doubled.iter().map(name))));
    }
    if !report.violations.is_empty() {
        faults.push(format!("{} violations: {}", report.violations.len(), some(&mut report.violations.iter().cloned())));
    }
    if faults.is_empty() { Ok(report) } else { Err(faults.join("\n")) }
}

fn count(sent: &Sent, arrivals: &[Arrival]) -> Report {
    let attempted: HashSet<&Tag> = sent.attempted.iter().collect();
    let mut seen: HashSet<&Tag> = HashSet::new();
    let mut accepted: HashSet<&Tag> = HashSet::new();
    let mut latest_seen: HashMap<&str, u64> = HashMap::new();
    let mut latest_accepted: HashMap<&str, u64> = HashMap::new();
    let mut report = Report {
        attempted: attempted.len(),
        acknowledged: sent.acknowledged.len(),
        sent_again: sent.sent_again,
        arrivals: arrivals.len(),
        violations: sent.violations.clone(),
        ..Report::default()
    };
    for arrival in arrivals {
        let tag = &arrival.tag;
        if !attempted.contains(tag) {
            report.foreign.push(tag.clone());
        }
        let mut late = None;
        if seen.insert(tag) {
            late = overtaken(&mut latest_seen, tag);
        }
        if arrival.accepted {
            if accepted.insert(tag) {
                late = late.or(overtaken(&mut latest_accepted, tag));
            } else {
                report.doubled.push(tag.clone());
            }
        }
        if let Some(before) = late {
            report.out_of_order.push((before, tag.clone()));
        }
    }
    report.accepted_by_receiver = accepted.len();
    report.lost = sent.acknowledged.iter().filter(|t| !accepted.contains(t)).cloned().collect();
    report
}

/// The number of the key's later message that came before `tag`; notes `tag`.
fn overtaken<'a>(latest: &mut HashMap<&'a str, u64>, tag: &'a Tag) -> Option<u64> {
    let latest = latest.entry(&tag.key).or_insert(0);
    let before = (*latest > tag.seq).then_some(*latest);
    *latest = (*latest).max(tag.seq);
    before
}
