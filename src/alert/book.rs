//! What is wrong and since when: findings become alerts that begin, change and end. A cause that comes back before it has been
//! gone for a while is the same alert.

use super::{Alert, Finding, Rule, Severity, Subject};
use std::collections::BTreeMap;

/// More at a time are not looked at: an operator would not either.
const MOST: usize = 2000;

/// What happened to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Began,
    /// Another severity.
    Changed,
    Ended,
}

struct Held {
    alert: Alert,
    /// Since when its cause is gone.
    gone_ms: Option<i64>,
}

/// The alerts that are not over.
#[derive(Default)]
pub(super) struct Book {
    held: BTreeMap<(Rule, Subject), Held>,
}

impl Book {
    /// With the alerts that were active before a restart.
    pub fn new(active: Vec<Alert>) -> Self {
        let held = active.into_iter().take(MOST);
        Self { held: held.map(|alert| ((alert.rule, alert.subject.clone()), Held { alert, gone_ms: None })).collect() }
    }

    /// How bad an alert of this rule is now.
    pub fn severity(&self, rule: Rule, subject: &Subject) -> Option<Severity> {
        self.held.get(&(rule, subject.clone())).map(|held| held.alert.severity)
    }

    /// All that are not over, the worst first, then the oldest.
    pub fn active(&self) -> Vec<Alert> {
        let mut all: Vec<Alert> = self.held.values().map(|held| held.alert.clone()).collect();
        all.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.since_ms.cmp(&b.since_ms)).then(a.id.cmp(&b.id)));
        all
    }

    /// Takes what is wrong now. `id` gives numbers for what happened; an alert ends when it was not found for `resolve_after` ms.
    pub fn take(
        &mut self,
        now: i64,
        findings: Vec<Finding>,
        resolve_after: i64,
        mut id: impl FnMut() -> u64,
    ) -> Vec<(u64, Turn, Alert)> {
        let mut turns = Vec::new();
        for held in self.held.values_mut() {
            held.gone_ms.get_or_insert(now);
        }
        for finding in findings {
            let Finding { rule, subject, severity, value, threshold, summary } = finding;
            let key = (rule, subject.clone());
            if let Some(held) = self.held.get_mut(&key) {
                held.gone_ms = None;
                let changed = held.alert.severity != severity;
                held.alert = Alert { severity, value, threshold, summary, ..held.alert.clone() };
                if changed {
                    turns.push((id(), Turn::Changed, held.alert.clone()));
                }
            } else if self.held.len() < MOST {
                let id = id();
                let alert = Alert { id, rule, subject, severity, value, threshold, summary, since_ms: now, ended_ms: None };
                turns.push((id, Turn::Began, alert.clone()));
                self.held.insert(key, Held { alert, gone_ms: None });
            }
        }
        self.held.retain(|_, held| {
            let over = held.gone_ms.is_some_and(|gone| now - gone >= resolve_after);
            if over {
                turns.push((id(), Turn::Ended, Alert { ended_ms: Some(now), ..held.alert.clone() }));
            }
            !over
        });
        turns
    }
}
