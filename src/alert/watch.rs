//! All rules, those included that look at a stretch of time: failures within a window, the processor's load, silence.

use super::{
    Finding, Rule, Severity, Subject,
    ports::{RouteSight, Snapshot},
    rules::{self, Active, level},
    text,
};
use crate::config::Alerts;
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// Samples kept of a window; closer ones are left out.
const SAMPLES: i64 = 60;
/// Once begun, a failing route goes on failing down to this part of the rate.
const EASED: f64 = 0.8;

fn ms(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// What was counted when.
#[derive(Default)]
struct Tries(VecDeque<(i64, u64, u64)>);

impl Tries {
    /// Notes the counts now; those older than `window` go, but for the last of them, which is where the window begins.
    fn note(&mut self, now: i64, window: i64, before: i64, route: &RouteSight) {
        if self.0.back().is_some_and(|(_, attempts, failed)| route.attempts < *attempts || route.failed < *failed) {
            // The route was taken away and came back.
            self.0.clear();
        }
        if self.0.is_empty() {
            // A route's counts begin with it, so that before it was seen they were nothing.
            self.0.push_back((before, 0, 0));
        }
        let apart = window / SAMPLES;
        // The one before the last is near enough: the last only moves on.
        if self.0.len() > 2 && self.0.get(self.0.len() - 2).is_some_and(|(at, ..)| now - at < apart) {
            self.0.pop_back();
        }
        self.0.push_back((now, route.attempts, route.failed));
        while self.0.get(1).is_some_and(|(at, ..)| now - at >= window) {
            self.0.pop_front();
        }
    }

    /// Attempts and failures within the last `window`.
    fn within(&self, now: i64, window: i64) -> (u64, u64) {
        let begin = self.0.iter().rev().find(|(at, ..)| now - at >= window).or_else(|| self.0.front());
        match (begin, self.0.back()) {
            (Some((_, attempts, failed)), Some((_, attempts_now, failed_now))) => (attempts_now - attempts, failed_now - failed),
            _ => (0, 0),
        }
    }
}

/// A feed's messages, and since when there was none.
struct Quiet {
    messages: u64,
    since: i64,
    /// It was heard since the start.
    heard: bool,
}

/// The rules and what they remember.
pub(super) struct Watch {
    rules: Alerts,
    /// When it looked last.
    looked: i64,
    tries: HashMap<Subject, Tries>,
    cpu: VecDeque<(i64, f64)>,
    quiet: HashMap<Subject, Quiet>,
    unready: Option<i64>,
    /// Silence of each watched feed, in ms, as seen last.
    silence: Vec<(bool, String, i64, Duration)>,
}

impl Watch {
    /// `now`: the node's start, in ms.
    pub fn new(rules: Alerts, now: i64) -> Self {
        Self {
            rules,
            looked: now,
            tries: HashMap::new(),
            cpu: VecDeque::new(),
            quiet: HashMap::new(),
            unready: None,
            silence: Vec::new(),
        }
    }

    /// What is wrong at `now`; `active` tells what is so already.
    pub fn look(&mut self, now: i64, seen: &Snapshot, active: Active<'_>) -> Vec<Finding> {
        let mut found = rules::look(now, &self.rules, seen, active);
        self.failing(now, seen, active, &mut found);
        self.cpu(now, seen, active, &mut found);
        self.silent(now, seen, active, &mut found);
        self.unready(now, seen, &mut found);
        self.looked = now;
        found
    }

    /// Share of the processor in use over the last samples, in percent.
    pub fn cpu_percent(&self, cores: f64) -> Option<f64> {
        let ((from, before), (to, used)) = (self.cpu.front()?, self.cpu.back()?);
        let span = (to - from) as f64 / 1000.0;
        (span > 0.0 && cores > 0.0).then(|| ((used - before) / span / cores * 100.0).clamp(0.0, 100.0))
    }

    /// Silence of each watched feed (a channel's, else a client's), and from when on it is too long.
    pub fn silence(&self) -> impl Iterator<Item = (bool, &str, Duration, Duration)> {
        self.silence.iter().map(|(channel, name, quiet, after)| {
            (*channel, name.as_str(), Duration::from_millis(u64::try_from(*quiet).unwrap_or(0)), *after)
        })
    }

    fn failing(&mut self, now: i64, seen: &Snapshot, active: Active<'_>, found: &mut Vec<Finding>) {
        let (window, rate) = (ms(self.rules.failure_window), f64::from(self.rules.failure_rate));
        // Over sooner than the window: what counts then is whether it still fails.
        let lately = window.min(ms(self.rules.resolve_after).max(2 * ms(self.rules.every)));
        let there: Vec<Subject> = seen.routes.iter().map(|r| Subject::route(&r.channel, &r.route)).collect();
        self.tries.retain(|subject, _| there.contains(subject));
        for (route, subject) in seen.routes.iter().zip(there) {
            let tries = self.tries.entry(subject.clone()).or_default();
            tries.note(now, window, self.looked, route);
            if self.rules.failure_rate == 0 {
                continue;
            }
            let percent =
                |(attempts, failed): (u64, u64)| if attempts == 0 { 0.0 } else { failed as f64 * 100.0 / attempts as f64 };
            let all = tries.within(now, window);
            let holds = if active(Rule::RouteFailing, &subject).is_some() {
                let recent = tries.within(now, lately);
                match recent.0 {
                    // It waits for the next try.
                    0 => route.failing && route.pending > 0,
                    _ => percent(recent) >= rate * EASED,
                }
            } else {
                all.0 >= u64::from(self.rules.failure_min) && percent(all) >= rate
            };
            if holds {
                let (value, failed) = (percent(all), all.1);
                let summary = format!(
                    "{subject}: {failed} of {} failed within {}; {} waiting, {} set aside",
                    text::count(all.0, "attempt"),
                    text::span(window),
                    route.pending,
                    route.parked
                );
                let (rule, severity) = (Rule::RouteFailing, Severity::Critical);
                found.push(Finding { rule, subject, severity, value, threshold: rate, summary });
            }
        }
    }

    fn cpu(&mut self, now: i64, seen: &Snapshot, active: Active<'_>, found: &mut Vec<Finding>) {
        let Some((used, cores)) = seen.cpu else { return };
        let span = ms(self.rules.cpu_for);
        if self.cpu.back().is_none_or(|(at, _)| now - at >= span / SAMPLES) {
            self.cpu.push_back((now, used));
        }
        while self.cpu.get(1).is_some_and(|(at, _)| now - at >= span) {
            self.cpu.pop_front();
        }
        // Sustained means all of that time.
        if self.cpu.front().is_none_or(|(at, _)| now - at < span) {
            return;
        }
        let (rule, subject) = (Rule::Cpu, Subject::default());
        let Some(value) = self.cpu_percent(cores) else { return };
        let (warning, critical) = (self.rules.cpu_warning, self.rules.cpu_critical);
        let Some((severity, threshold)) = level(value, warning, critical, active(rule, &subject)) else { return };
        let summary = format!(
            "the node uses {value:.0} % of its processor time over {}; the threshold is {threshold:.0} %",
            text::span(span)
        );
        found.push(Finding { rule, subject, severity, value, threshold, summary });
    }

    fn silent(&mut self, now: i64, seen: &Snapshot, active: Active<'_>, found: &mut Vec<Finding>) {
        self.silence.clear();
        let mut there = Vec::with_capacity(seen.feeds.len());
        for feed in &seen.feeds {
            let (rule, subject) = match feed.channel {
                true => (Rule::ChannelSilent, Subject::channel(&feed.name)),
                false => (Rule::ClientSilent, Subject::client(&feed.name)),
            };
            // What came before the start is not known; the node was not there to hear it.
            let quiet = self.quiet.entry(subject.clone()).or_insert(Quiet { messages: 0, since: self.looked, heard: false });
            if feed.messages != quiet.messages {
                *quiet = Quiet { messages: feed.messages, since: now, heard: true };
            }
            let (silence, after) = (now - quiet.since, ms(feed.after));
            self.silence.push((feed.channel, feed.name.clone(), silence, feed.after));
            // One that was silent before a restart still is, until it is heard.
            if silence >= after || (!quiet.heard && active(rule, &subject).is_some()) {
                let summary = match quiet.heard {
                    true => format!(
                        "{subject}: no message for {}; expected at least every {}",
                        text::span(silence),
                        text::span(after)
                    ),
                    false => {
                        format!("{subject}: no message since the node's start; expected at least every {}", text::span(after))
                    }
                };
                let (value, threshold) = (silence as f64 / 1000.0, after as f64 / 1000.0);
                found.push(Finding { rule, subject: subject.clone(), severity: Severity::Warning, value, threshold, summary });
            }
            there.push(subject);
        }
        self.quiet.retain(|subject, _| there.contains(subject));
    }

    fn unready(&mut self, now: i64, seen: &Snapshot, found: &mut Vec<Finding>) {
        if seen.not_ready == 0 {
            self.unready = None;
            return;
        }
        let since = *self.unready.get_or_insert(now);
        let limit = ms(self.rules.not_ready_for);
        if limit > 0 && now - since >= limit {
            found.push(Finding {
                rule: Rule::NotReady,
                subject: Subject::default(),
                severity: Severity::Critical,
                value: (now - since) as f64 / 1000.0,
                threshold: limit as f64 / 1000.0,
                summary: format!(
                    "the node has not been able to accept for {} ({})",
                    text::span(now - since),
                    text::count(seen.not_ready as u64, "reason")
                ),
            });
        }
    }
}
