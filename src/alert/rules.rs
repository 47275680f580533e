//! Rules that need only the present snapshot. Each has hysteresis: what has begun goes on until it is clearly better.

use super::{
    Finding, Rule, Severity, Subject,
    ports::{Share, Snapshot},
    text,
};
use crate::config::Alerts;

/// A begun alert goes on down to this part of its threshold.
const EASED: f64 = 0.9;
const DAY_S: i64 = 86_400;

/// How bad an alert is now, where there is one.
pub(super) type Active<'a> = &'a dyn Fn(Rule, &Subject) -> Option<Severity>;

/// The severity of a value that is bad when high, with the threshold that it passed; a threshold of 0 is off.
pub(super) fn level(value: f64, warning: u8, critical: u8, now: Option<Severity>) -> Option<(Severity, f64)> {
    let passed = |limit: u8, severity: Severity| {
        let limit = f64::from(limit);
        let eased = now.is_some_and(|now| now >= severity);
        (limit > 0.0 && (value >= limit || (eased && value >= limit * EASED))).then_some((severity, limit))
    };
    passed(critical, Severity::Critical).or_else(|| passed(warning, Severity::Warning))
}

/// All of them.
pub(super) fn look(now_ms: i64, rules: &Alerts, seen: &Snapshot, active: Active<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    shares(rules, seen, active, &mut found);
    ledger(rules, seen, active, &mut found);
    routes(rules, seen, active, &mut found);
    certificates(now_ms, rules, seen, &mut found);
    if rules.problems && seen.problems > 0 {
        found.push(Finding {
            rule: Rule::Problems,
            subject: Subject::default(),
            severity: Severity::Warning,
            value: seen.problems as f64,
            threshold: 1.0,
            summary: format!("the node reports {}", text::count(seen.problems as u64, "problem")),
        });
    }
    found
}

fn shares(rules: &Alerts, seen: &Snapshot, active: Active<'_>, found: &mut Vec<Finding>) {
    for (rule, share, warning, critical, what) in [
        (Rule::Feed, seen.feed, rules.feed_warning, rules.feed_critical, "the live feed's connections"),
        (Rule::Memory, seen.memory, rules.memory_warning, rules.memory_critical, "the memory"),
        (Rule::Disk, seen.disk, rules.disk_warning, rules.disk_critical, "the store's disk"),
    ] {
        let Some(value) = share.map(Share::percent) else { continue };
        let subject = Subject::default();
        let Some((severity, threshold)) = level(value, warning, critical, active(rule, &subject)) else { continue };
        let summary = format!("{value:.0} % of {what} in use; the threshold is {threshold:.0} %");
        found.push(Finding { rule, subject, severity, value, threshold, summary });
    }
}

fn ledger(rules: &Alerts, seen: &Snapshot, active: Active<'_>, found: &mut Vec<Finding>) {
    let Some(ledger) = seen.ledger else { return };
    let (rule, subject, value) = (Rule::Ledger, Subject::default(), ledger.size.percent());
    // Full and as old as wanted is as it should be.
    let Some(back) = ledger.reaches_back_ms.filter(|back| *back < ledger.retention_ms) else { return };
    let Some((severity, threshold)) = level(value, rules.ledger_warning, 0, active(rule, &subject)) else { return };
    let (back, wanted) = (text::span(back), text::span(ledger.retention_ms));
    let summary = format!("the ledger is {value:.0} % full and reaches back {back} only; its retention is {wanted}");
    found.push(Finding { rule, subject, severity, value, threshold, summary });
}

fn routes(rules: &Alerts, seen: &Snapshot, active: Active<'_>, found: &mut Vec<Finding>) {
    let limit = i64::try_from(rules.queue_age.as_millis()).unwrap_or(i64::MAX);
    for route in &seen.routes {
        let subject = Subject::route(&route.channel, &route.route);
        let begun = active(Rule::QueueAge, &subject).is_some();
        let least = if begun { (limit as f64 * EASED) as i64 } else { limit };
        if limit > 0 && route.pending > 0 && route.oldest_ms >= least {
            let waiting = text::count(route.pending, "message");
            let held = if route.paused { "; the route is paused" } else { "" };
            let summary = format!("{subject}: {waiting} waiting, the oldest for {}{held}", text::span(route.oldest_ms));
            found.push(Finding {
                rule: Rule::QueueAge,
                subject: subject.clone(),
                severity: Severity::Warning,
                value: route.oldest_ms as f64 / 1000.0,
                threshold: limit as f64 / 1000.0,
                summary,
            });
        }
        if rules.parked > 0 && route.parked >= rules.parked {
            let summary = format!("{subject}: {} set aside", text::count(route.parked, "message"));
            found.push(Finding {
                rule: Rule::Parked,
                subject,
                severity: Severity::Warning,
                value: route.parked as f64,
                threshold: rules.parked as f64,
                summary,
            });
        }
    }
}

fn certificates(now_ms: i64, rules: &Alerts, seen: &Snapshot, found: &mut Vec<Finding>) {
    let seconds = |span: std::time::Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    let (warning, critical) = (seconds(rules.certificate_warning), seconds(rules.certificate_critical));
    let mut worst: Vec<Finding> = Vec::new();
    for certificate in &seen.certificates {
        let left = certificate.not_after - now_ms / 1000;
        let (severity, threshold) = match left {
            _ if critical > 0 && left <= critical => (Severity::Critical, critical),
            _ if warning > 0 && left <= warning => (Severity::Warning, warning),
            _ => continue,
        };
        let what = if certificate.what == "client_ca" { "an authority for client certificates" } else { "the certificate" };
        let subject = Subject::listener(&certificate.listener);
        let summary = match left {
            ..=0 => format!("{subject}: {what} has ended"),
            _ => format!("{subject}: {what} ends in {}", text::count((left / DAY_S) as u64, "day")),
        };
        let (value, threshold) = ((left / DAY_S) as f64, (threshold / DAY_S) as f64);
        let finding = Finding { rule: Rule::Certificate, subject, severity, value, threshold, summary };
        // One alert for a listener: the one that ends first.
        match worst.iter_mut().find(|f| f.subject == finding.subject) {
            Some(other) if other.value <= finding.value => {}
            Some(other) => *other = finding,
            None => worst.push(finding),
        }
    }
    found.append(&mut worst);
}
