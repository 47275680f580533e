//! One notification: what is wrong and what is over, for one receiver.

use super::{Alert, Severity};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::Xxh3;

/// Alerts that one notification names; of the others it says how many there are.
const MOST: usize = 50;

/// A notification.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// The same for the same content: a receiver may drop a second one.
    pub id: String,
    /// Node and domain that it is about.
    pub node: String,
    pub domain: String,
    /// Sent by `hie alert test`.
    pub test: bool,
    /// What is wrong, the worst first.
    pub firing: Vec<Alert>,
    /// What is over.
    pub resolved: Vec<Alert>,
    /// How many more there are than those two lists name.
    pub more: usize,
    /// Groups told of, with what they are told.
    pub(super) told: BTreeMap<String, Option<(Severity, i64)>>,
    /// Numbers of all alerts that are over, also of those not named.
    pub(super) over: Vec<u64>,
}

/// A notification of these. `before`: when the receiver was told of the groups last; that tells a repetition after the interval from
/// one after a crash, which is the same notification once more.
pub(super) fn of(
    mut firing: Vec<Alert>,
    mut resolved: Vec<Alert>,
    told: BTreeMap<String, Option<(Severity, i64)>>,
    before: &[i64],
) -> Notice {
    let mut hash = Xxh3::new();
    for alert in firing.iter().chain(&resolved) {
        hash.update(&alert.id.to_le_bytes());
        hash.update(&[u8::from(alert.ended_ms.is_some()), alert.severity as u8]);
    }
    before.iter().for_each(|at| hash.update(&at.to_le_bytes()));
    firing.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.since_ms.cmp(&b.since_ms)));
    let over = resolved.iter().map(|alert| alert.id).collect();
    let all = firing.len() + resolved.len();
    firing.truncate(MOST);
    resolved.truncate(MOST - firing.len());
    let more = all - firing.len() - resolved.len();
    let id = format!("{:016x}", hash.digest());
    Notice { id, node: String::new(), domain: String::new(), test: false, firing, resolved, more, told, over }
}

impl Notice {
    /// What `hie alert test` sends: no alert, only the way.
    pub(super) fn test(now: i64) -> Self {
        Self { test: true, ..of(Vec::new(), Vec::new(), BTreeMap::new(), &[now]) }
    }

    /// One line: how bad, what, and how much more.
    pub fn subject(&self) -> String {
        if self.test {
            return format!("[hie {}] test: alerts arrive here", self.node);
        }
        let others = (self.firing.len() + self.resolved.len() + self.more).saturating_sub(1);
        let more = if others > 0 { format!(" (and {others} more)") } else { String::new() };
        match (self.firing.first(), self.resolved.first()) {
            (Some(alert), _) => {
                format!("[hie {}] {}: {}{more}", self.node, alert.severity.as_str().to_uppercase(), alert.summary)
            }
            (None, Some(alert)) => format!("[hie {}] over: {} {}{more}", self.node, alert.rule.alert_name(), alert.subject),
            (None, None) => format!("[hie {}]", self.node),
        }
    }
}
