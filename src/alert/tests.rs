//! Ten minutes and more, with a clock that tests drive.

use super::{
    Alert, Alerts, Event, Notice, Rule, Severity, Subject,
    book::{Book, Turn},
    outbox::Outbox,
    ports::{CertificateSight, FeedSight, LedgerSight, RouteSight, Share, Snapshot},
    watch::Watch,
};
use crate::config::Alerts as Rules;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const DAY: i64 = 24 * 60 * MINUTE;
/// Not 0: times are of today.
const START: i64 = 1_700_000_000_000;

/// Everything but the thread.
struct Bench {
    now: i64,
    rules: Rules,
    watch: Watch,
    book: Book,
    outbox: Outbox,
    next: u64,
    /// What was sent, and when.
    sent: Vec<(i64, Notice)>,
    /// The receiver refuses.
    away: bool,
    tries: usize,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        Self {
            now: START,
            watch: Watch::new(rules.clone(), START),
            rules,
            book: Book::default(),
            outbox: Outbox::default(),
            next: 1,
            sent: Vec::new(),
            away: false,
            tries: 0,
        }
    }

    fn plain() -> Self {
        Self::new(Rules::default())
    }

    fn active(&self) -> Vec<(Rule, Severity)> {
        self.book.active().iter().map(|a| (a.rule, a.severity)).collect()
    }

    fn step(&mut self, by: i64, seen: &Snapshot) {
        self.now += by;
        let book = &self.book;
        let found = self.watch.look(self.now, seen, &|rule, subject: &Subject| book.severity(rule, subject));
        let resolve = self.rules.resolve_after.as_millis() as i64;
        let mut next = self.next;
        let turns = self.book.take(self.now, found, resolve, || {
            next += 1;
            next - 1
        });
        self.next = next;
        for (_, _, alert) in turns.iter().filter(|(.., alert)| alert.ended_ms.is_some()) {
            self.outbox.ended(alert);
        }
        let active = self.book.active();
        if let Some(notice) = self.outbox.due(self.now, &active, &self.rules, true) {
            self.tries += 1;
            match self.away {
                true => self.outbox.failed(self.now),
                false => {
                    self.outbox.sent(self.now, &notice);
                    self.sent.push((self.now, notice));
                }
            }
        }
    }

    /// As the thread does it: looks every ten seconds.
    fn run(&mut self, lasts: i64, mut seen: impl FnMut(i64) -> Snapshot) {
        let begin = self.now;
        while self.now < begin + lasts {
            let at = self.now - begin;
            self.step(10 * SECOND, &seen(at));
        }
    }
}

fn route(attempts: u64, failed: u64, pending: u64, oldest_ms: i64) -> Snapshot {
    let route = RouteSight {
        channel: "lab.results".into(),
        route: "ehr".into(),
        pending,
        oldest_ms,
        failing: failed > 0,
        attempts,
        failed,
        ..RouteSight::default()
    };
    Snapshot { routes: vec![route], ..Snapshot::default() }
}

#[test]
fn a_route_that_fails_for_ten_minutes_is_told_once_and_its_end_once() {
    let mut bench = Bench::plain();
    // Ten attempts a second fail: 6,000 of them, and the queue grows old, which is another rule.
    bench.run(10 * MINUTE, |at| route((at / 100) as u64, (at / 100) as u64, 50, at));
    assert_eq!(bench.sent.len(), 1, "{:?}", bench.sent);
    let (at, notice) = &bench.sent[0];
    assert!(*at - START <= MINUTE, "told after {} ms", at - START);
    assert_eq!((notice.firing[0].rule, notice.firing[0].severity), (Rule::RouteFailing, Severity::Critical));
    assert!(notice.subject().contains("lab.results/ehr"), "{}", notice.subject());
    // It lasts: the queue's age joins the matter and is no message of its own.
    bench.run(10 * MINUTE, |at| route((6000 + at / 100) as u64, (6000 + at / 100) as u64, 50, 10 * MINUTE + at));
    assert_eq!(bench.active(), [(Rule::RouteFailing, Severity::Critical), (Rule::QueueAge, Severity::Warning)]);
    assert_eq!(bench.sent.len(), 1);
    // Repaired: everything is delivered.
    bench.run(10 * MINUTE, |at| route((12_000 + at) as u64, 12_000, 0, 0));
    assert_eq!(bench.active(), []);
    assert_eq!(bench.sent.len(), 2);
    let (at, over) = &bench.sent[1];
    assert!(over.firing.is_empty() && over.resolved.len() == 2, "{over:?}");
    assert!(at - (START + 20 * MINUTE) < 6 * MINUTE, "over is told soon, not after the whole window");
}

#[test]
fn what_comes_again_is_told_again_although_something_of_its_route_stayed() {
    let mut bench = Bench::plain();
    let seen = |attempts: u64, failed: u64| {
        let mut seen = route(attempts, failed, 5, 0);
        seen.routes[0].parked = 3;
        seen
    };
    bench.run(5 * MINUTE, |at| seen((at / 100) as u64, (at / 100) as u64));
    assert_eq!(bench.active()[0], (Rule::RouteFailing, Severity::Critical));
    bench.run(40 * MINUTE, |at| seen(3000 + (at / 10) as u64, 3000));
    assert_eq!(bench.active(), [(Rule::Parked, Severity::Warning)]);
    let before = bench.sent.len();
    bench.run(15 * MINUTE, |at| seen(243_000 + (at / 100) as u64, 3000 + (at / 100) as u64));
    assert_eq!(bench.sent.len(), before + 1, "{:?}", bench.sent);
    assert_eq!(bench.sent[before].1.firing[0].severity, Severity::Critical);
}

#[test]
fn what_lasts_is_told_again_after_the_interval_only() {
    let mut bench = Bench::plain();
    bench.run(9 * 60 * MINUTE, |at| route((at / 1000) as u64, (at / 1000) as u64, 5, 0));
    let times: Vec<i64> = bench.sent.iter().map(|(at, _)| (at - START) / MINUTE).collect();
    assert_eq!(times.len(), 3, "{times:?}");
    assert!(times[1] - times[0] >= 240 && times[2] - times[1] >= 240, "{times:?}");
}

#[test]
fn flapping_gives_no_storm() {
    let mut bench = Bench::plain();
    // A minute bad, a minute good, for six hours.
    let mut counts = (0u64, 0u64);
    bench.run(6 * 60 * MINUTE, |at| {
        counts.0 += 100;
        counts.1 += if at / MINUTE % 2 == 0 { 100 } else { 0 };
        route(counts.0, counts.1, 1, 0)
    });
    assert!(bench.sent.len() <= 3, "{}", bench.sent.len());
    // Memory that trembles around its threshold is one alert.
    let mut bench = Bench::plain();
    bench.run(60 * MINUTE, |at| {
        let used = if at / (10 * SECOND) % 2 == 0 { 81 } else { 79 };
        Snapshot { memory: Some(Share { used, of: 100 }), ..Snapshot::default() }
    });
    assert_eq!((bench.sent.len(), bench.active()), (1, vec![(Rule::Memory, Severity::Warning)]));
}

#[test]
fn a_receiver_that_was_away_is_told_once_what_is_so() {
    let mut bench = Bench { away: true, ..Bench::plain() };
    bench.run(60 * MINUTE, |at| route((at / 100) as u64, (at / 100) as u64, 5, at));
    assert_eq!(bench.sent.len(), 0);
    assert!((10..=30).contains(&bench.tries), "tried {} times in an hour, further and further apart", bench.tries);
    bench.away = false;
    bench.run(10 * MINUTE, |at| route((36_000 + at / 100) as u64, (36_000 + at / 100) as u64, 5, 60 * MINUTE + at));
    assert_eq!(bench.sent.len(), 1);
    assert_eq!(bench.sent[0].1.firing.len(), 2);

    // What began and ended meanwhile is told too, in one.
    let mut bench = Bench { away: true, ..Bench::plain() };
    bench.run(20 * MINUTE, |at| route((at / 100) as u64, (at / 100) as u64, 5, 0));
    bench.run(30 * MINUTE, |at| route((12_000 + at / 100) as u64, 12_000, 0, 0));
    bench.away = false;
    bench.run(10 * MINUTE, |at| route((30_000 + at / 100) as u64, 12_000, 0, 0));
    assert_eq!(bench.sent.len(), 1);
    assert_eq!((bench.sent[0].1.firing.len(), bench.sent[0].1.resolved.len()), (0, 1));
}

#[test]
fn fifty_routes_are_one_notification_and_an_hour_has_its_limit() {
    let routes = |at: i64, n: usize| {
        let mut all = Snapshot::default();
        for i in 0..n {
            let mut one = route((at / 100) as u64, (at / 100) as u64, 1, 0).routes.remove(0);
            one.route = format!("r{i}");
            all.routes.push(one);
        }
        all
    };
    let mut bench = Bench::plain();
    bench.run(10 * MINUTE, |at| routes(at, 80));
    assert_eq!(bench.sent.len(), 1);
    let notice = &bench.sent[0].1;
    assert_eq!((notice.firing.len(), notice.more), (50, 30), "told of all, names the first");

    // Another route begins to fail every two minutes: what the hour has no room for is told together later.
    let mut bench = Bench::new(Rules { max_per_hour: 5, ..Rules::default() });
    bench.run(58 * MINUTE, |at| routes(at, (at / (2 * MINUTE)) as usize + 1));
    assert_eq!(bench.sent.len(), 5);
    assert!(bench.outbox.held());
    bench.run(10 * MINUTE, |at| routes(58 * MINUTE + at, 29));
    assert!(bench.sent[5].1.firing.len() > 20, "{}", bench.sent[5].1.firing.len());
}

#[test]
fn a_restart_neither_repeats_nor_forgets() {
    let failing = |at: i64| route((at / 100) as u64, (at / 100) as u64, 5, at);
    let mut before = Bench::plain();
    before.run(5 * MINUTE, failing);
    assert_eq!(before.sent.len(), 1);
    // Over a file and back.
    let text = serde_json::to_string(&(before.book.active(), &before.outbox)).expect("JSON");
    let (active, outbox): (Vec<Alert>, Outbox) = serde_json::from_str(&text).expect("JSON");
    let again = |active: Vec<Alert>, outbox: Outbox| {
        let watch = Watch::new(Rules::default(), before.now);
        Bench { now: before.now, watch, book: Book::new(active), outbox, next: before.next, ..Bench::plain() }
    };
    let mut after = again(active.clone(), outbox.clone());
    after.run(5 * MINUTE, |at| route((at / 100) as u64, (at / 100) as u64, 5, at));
    assert_eq!(after.sent.len(), 0, "{:?}", after.sent);
    // Killed between sending and keeping: the same notification once more, and it can be told.
    let id = |outbox: &Outbox, at: i64| {
        let wait = Rules { group_wait: Duration::ZERO, ..Rules::default() };
        let mut outbox: Outbox = serde_json::from_str(&serde_json::to_string(outbox).expect("JSON")).expect("JSON");
        outbox.due(at, &active, &wait, true).map(|notice| notice.id)
    };
    let first = id(&Outbox::default(), before.now);
    assert!(first.is_some() && first == id(&Outbox::default(), before.now + MINUTE));
    assert_eq!(id(&outbox, before.now), None);
    let repeated = id(&outbox, before.now + 5 * 60 * MINUTE);
    assert!(repeated.is_some() && repeated != first);
    let mut healed = again(active, outbox);
    healed.run(5 * MINUTE, |_| route(1, 0, 0, 0));
    assert_eq!((healed.sent.len(), healed.sent[0].1.resolved.len()), (1, 1));
}

#[test]
fn events_are_numbered_over_restarts_bounded_and_shown_once_they_are_kept() {
    let (alerts, _) = Alerts::new(Vec::new(), Vec::new(), 0);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    alerts.on_event(move |id| hears.lock().expect("not poisoned").push(id));
    let mut bench = Bench::plain();
    bench.step(SECOND, &Snapshot { memory: Some(Share { used: 95, of: 100 }), ..Snapshot::default() });
    let alert = bench.book.active().remove(0);
    for _ in 0..1200 {
        let new = [Event::new(alerts.next_id(), START, Turn::Began, alert.clone())];
        alerts.put(vec![alert.clone()], &new);
        assert!(alerts.since(new[0].id - 1, 10).is_empty() && alerts.latest() < new[0].id, "not shown before it is kept");
        alerts.publish(&new);
    }
    assert_eq!((alerts.oldest(), alerts.latest(), alerts.recent(2000).len()), (201, 1200, 1000));
    assert_eq!(*heard.lock().expect("not poisoned"), (1..=1200).collect::<Vec<u64>>());
    let after = alerts.since(1190, 5);
    assert_eq!(after.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), [1191, 1192, 1193, 1194, 1195]);
    assert_eq!((after[0].1, after[0].2["alert"]["rule"].as_str()), ("firing", Some("memory")));
    let (next, active, events) = alerts.kept();
    let (again, _) = Alerts::new(active, events, next);
    assert_eq!((again.next_id(), again.latest(), again.active().len()), (1201, 1200, 1));
}

#[test]
fn thresholds_are_those_of_the_guide() {
    let shown = |snapshot: &Snapshot| {
        let mut bench = Bench::plain();
        bench.step(SECOND, snapshot);
        bench.active().first().copied()
    };
    for (used, feed, memory) in [
        (69, None, None),
        (70, Some(Severity::Warning), None),
        (79, Some(Severity::Warning), None),
        (80, Some(Severity::Critical), Some(Severity::Warning)),
        (90, Some(Severity::Critical), Some(Severity::Critical)),
    ] {
        let share = Some(Share { used, of: 100 });
        assert_eq!(shown(&Snapshot { feed: share, ..Snapshot::default() }), feed.map(|s| (Rule::Feed, s)), "{used}");
        assert_eq!(shown(&Snapshot { memory: share, ..Snapshot::default() }), memory.map(|s| (Rule::Memory, s)), "{used}");
    }
    // The processor: sustained. Four minutes at 75 % of two cores are not, five are; a peak is not.
    let mut bench = Bench::plain();
    let busy = |at: i64, part: f64| Snapshot { cpu: Some((at as f64 / 1000.0 * 2.0 * part, 2.0)), ..Snapshot::default() };
    bench.run(4 * MINUTE, |at| busy(at, 0.75));
    assert_eq!(bench.active(), []);
    bench.run(2 * MINUTE, |at| busy(4 * MINUTE + at, 0.75));
    assert_eq!(bench.active(), [(Rule::Cpu, Severity::Warning)]);
    let off = Rules { memory_warning: 0, memory_critical: 0, ..Rules::default() };
    let mut bench = Bench::new(off);
    bench.step(SECOND, &Snapshot { memory: Some(Share { used: 99, of: 100 }), ..Snapshot::default() });
    assert_eq!(bench.active(), [], "0 is off");
}

#[test]
fn a_feed_that_falls_silent() {
    let feed = |messages| {
        let after = Duration::from_secs(3600);
        Snapshot { feeds: vec![FeedSight { channel: true, name: "adt.in".into(), after, messages }], ..Snapshot::default() }
    };
    let mut bench = Bench::plain();
    bench.run(59 * MINUTE, |_| feed(0));
    assert_eq!(bench.active(), []);
    bench.run(2 * MINUTE, |_| feed(0));
    assert_eq!(bench.active(), [(Rule::ChannelSilent, Severity::Warning)]);
    bench.run(3 * MINUTE, |_| feed(1));
    assert_eq!(bench.active(), [], "heard");
    bench.run(55 * MINUTE, |_| feed(1));
    assert_eq!(bench.active(), []);
    bench.run(8 * MINUTE, |_| feed(1));
    assert_eq!(bench.active().len(), 1);
    // After a restart it is silent still, before another hour has gone.
    let mut after = Bench { book: Book::new(bench.book.active()), ..Bench::plain() };
    after.run(10 * MINUTE, |_| feed(0));
    assert_eq!(after.active().len(), 1);
    after.run(3 * MINUTE, |_| feed(1));
    assert_eq!(after.active(), []);
}

#[test]
fn certificates_parked_messages_readiness_and_the_ledger() {
    let now = START / 1000;
    let certificate = |days: i64| {
        let not_after = now + days * DAY / 1000 + 60;
        let sight = CertificateSight { listener: "https".into(), what: "certificate", not_after };
        Snapshot { certificates: vec![sight], ..Snapshot::default() }
    };
    for (days, expected) in
        [(31, None), (29, Some(Severity::Warning)), (6, Some(Severity::Critical)), (-3, Some(Severity::Critical))]
    {
        let mut bench = Bench::plain();
        bench.step(SECOND, &certificate(days));
        assert_eq!(bench.active(), expected.map(|s| (Rule::Certificate, s)).into_iter().collect::<Vec<_>>(), "{days}");
    }
    let mut bench = Bench::plain();
    let mut parked = route(1, 0, 0, 0);
    parked.routes[0].parked = 1;
    bench.step(SECOND, &parked);
    assert_eq!(bench.active(), [(Rule::Parked, Severity::Warning)]);
    assert_eq!(bench.book.active()[0].summary, "lab.results/ehr: 1 message set aside");

    let mut bench = Bench::plain();
    let unready = Snapshot { not_ready: 1, ..Snapshot::default() };
    bench.run(50 * SECOND, |_| unready.clone());
    assert_eq!(bench.active(), []);
    bench.run(30 * SECOND, |_| unready.clone());
    assert_eq!(bench.active(), [(Rule::NotReady, Severity::Critical)]);

    let ledger =
        |back: i64| LedgerSight { size: Share { used: 95, of: 100 }, reaches_back_ms: Some(back), retention_ms: 30 * DAY };
    for (back, wrong) in [(3 * DAY, true), (30 * DAY, false)] {
        let mut bench = Bench::plain();
        bench.step(SECOND, &Snapshot { ledger: Some(ledger(back)), ..Snapshot::default() });
        assert_eq!(!bench.active().is_empty(), wrong, "{back}");
    }
}
