//! What one receiver has to be told, and when: the difference between what is wrong and what it has been told. So a receiver
//! that was away gets one notification of what is so now, and a flapping route gives no storm.

use super::{Alert, Notice, Severity, notice};
use crate::config::Alerts;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Alerts that are over and that the receiver was not told of; more push out the oldest.
const OWED: usize = 200;
const HOUR_MS: i64 = 3_600_000;
/// The wait after a first failure; each further one doubles it …
const FIRST_WAIT_MS: i64 = 1000;
/// … up to this.
const LONGEST_WAIT_MS: i64 = 300_000;

/// What a receiver was told of a group last.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    severity: Severity,
    at_ms: i64,
}

/// One receiver's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outbox {
    /// By [`Alert::group`].
    told: BTreeMap<String, Told>,
    owed: VecDeque<Alert>,
    /// Notifications of the last hour.
    sent: VecDeque<i64>,
    /// Since when there is something to tell.
    #[serde(skip)]
    collecting: Option<i64>,
    #[serde(skip)]
    failures: u32,
    #[serde(skip)]
    next_try: i64,
    /// The limit of an hour stands in the way.
    #[serde(skip)]
    held: bool,
}

impl Outbox {
    /// An alert is over.
    pub fn ended(&mut self, alert: &Alert) {
        if self.owed.len() >= OWED {
            self.owed.pop_front();
        }
        self.owed.push_back(alert.clone());
    }

    /// Is there something to tell, sooner or later?
    pub fn waits(&self) -> bool {
        self.collecting.is_some()
    }

    /// Does the limit of an hour stand in the way?
    pub fn held(&self) -> bool {
        self.held
    }

    /// How often in a row sending failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// What to send now, if anything. `resolved`: the receiver wants to hear also what is over.
    pub fn due(&mut self, now: i64, active: &[Alert], rules: &Alerts, resolved: bool) -> Option<Notice> {
        let mut groups: BTreeMap<String, (Severity, Vec<&Alert>)> = BTreeMap::new();
        for alert in active {
            let group = groups.entry(alert.group()).or_insert((alert.severity, Vec::new()));
            group.0 = group.0.max(alert.severity);
            group.1.push(alert);
        }
        let same = |a: &Alert, b: &Alert| a.rule == b.rule && a.subject == b.subject;
        // What came back is not over.
        self.owed.retain(|over| !active.iter().any(|alert| same(alert, over)));
        if !resolved {
            self.owed.clear();
        }
        // What is over and needs no word is a new matter when it comes again.
        let owed: BTreeSet<String> = self.owed.iter().map(Alert::group).collect();
        self.told.retain(|group, _| groups.contains_key(group) || owed.contains(group));
        // Part of it is over: when that comes again, it is to be told again.
        for (group, (severity, _)) in &groups {
            if let Some(told) = self.told.get_mut(group) {
                told.severity = told.severity.min(*severity);
            }
        }
        let repeat = i64::try_from(rules.repeat_interval.as_millis()).unwrap_or(i64::MAX);
        let mut due: BTreeSet<String> = groups
            .iter()
            .filter(|(group, (severity, _))| match self.told.get(*group) {
                None => true,
                Some(told) => *severity > told.severity || now - told.at_ms >= repeat,
            })
            .map(|(group, _)| group.clone())
            .collect();
        due.extend(owed.into_iter().filter(|group| !groups.contains_key(group)));
        if due.is_empty() {
            self.collecting = None;
            self.held = false;
            return None;
        }
        let since = *self.collecting.get_or_insert(now);
        let wait = i64::try_from(rules.group_wait.as_millis()).unwrap_or(i64::MAX);
        if now < since.saturating_add(wait) || now < self.next_try {
            return None;
        }
        while self.sent.front().is_some_and(|at| now - at >= HOUR_MS) {
            self.sent.pop_front();
        }
        self.held = self.sent.len() >= rules.max_per_hour as usize;
        if self.held {
            return None;
        }
        let mut firing: Vec<Alert> = Vec::new();
        let mut told = BTreeMap::new();
        for group in &due {
            if let Some((severity, alerts)) = groups.get(group) {
                told.insert(group.clone(), Some((*severity, now)));
                firing.extend(alerts.iter().map(|alert| (*alert).clone()));
            } else {
                told.insert(group.clone(), None);
            }
        }
        let over: Vec<Alert> = self.owed.iter().filter(|alert| due.contains(&alert.group())).cloned().collect();
        let before: Vec<i64> = due.iter().map(|group| self.told.get(group).map_or(0, |told| told.at_ms)).collect();
        Some(notice::of(firing, over, told, &before))
    }

    /// It arrived.
    pub fn sent(&mut self, now: i64, notice: &Notice) {
        for (group, told) in &notice.told {
            match told {
                Some((severity, _)) => {
                    self.told.insert(group.clone(), Told { severity: *severity, at_ms: now });
                }
                None => {
                    self.told.remove(group);
                }
            }
        }
        self.owed.retain(|alert| !notice.over.contains(&alert.id));
        self.sent.push_back(now);
        (self.failures, self.next_try, self.collecting) = (0, 0, None);
    }

    /// It did not arrive. Tried again after a wait that doubles from one second to five minutes.
    pub fn failed(&mut self, now: i64) {
        let wait = FIRST_WAIT_MS.saturating_mul(1 << self.failures.min(20)).min(LONGEST_WAIT_MS);
        self.failures = self.failures.saturating_add(1);
        self.next_try = now + wait;
    }
}
