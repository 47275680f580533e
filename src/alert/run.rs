//! The thread `hie-alert`: looks, decides, sends. One sending per receiver at a time; none waits for another.

use super::{
    Alert, Event, Notice, Rule, Severity, Subject,
    book::{Book, Turn},
    log::{Alerts, TestWish, Tested},
    outbox::Outbox,
    ports::{Keep, Kept, NotSent, Observer, Receiver, Snapshot},
    watch::Watch,
};
use crate::{
    config,
    telemetry::alert::{self as events, Figures, Silence},
};
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// While something waits to be sent, it is looked at so often.
const SOON: Duration = Duration::from_millis(500);
/// A sending in hand gets this long when the node ends; a receiver that was not told is told after the start.
const LAST_CALL: Duration = Duration::from_secs(2);
/// A clock that is behind by so much was corrected.
const CORRECTED_MS: i64 = 60_000;
/// A test of all receivers, below what the management API gives a request.
const TEST: Duration = Duration::from_secs(25);

/// What alerts need.
pub struct Parts {
    pub rules: config::Alerts,
    /// Name and domain of the node, for notifications.
    pub node: String,
    pub domain: String,
    pub observer: Box<dyn Observer>,
    pub receivers: Vec<Arc<dyn Receiver>>,
    pub keep: Box<dyn Keep>,
    /// Cancelled when the node ends.
    pub stop: CancellationToken,
}

/// Starts the thread. Fails when it or its runtime cannot be started.
pub fn spawn(parts: Parts) -> io::Result<(Arc<Alerts>, JoinHandle<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut kept = parts.keep.load();
    let (active, events) = (std::mem::take(&mut kept.active), std::mem::take(&mut kept.events));
    let (alerts, wished) = Alerts::new(active.clone(), events, kept.next);
    let alerts = Arc::new(alerts);
    let runner = Runner::new(parts, alerts.clone(), active, kept);
    let thread = std::thread::Builder::new().name("hie-alert".into()).spawn(move || {
        runtime.block_on(runner.run(wished));
        // A receiver's name may still be being looked up.
        runtime.shutdown_timeout(Duration::from_millis(200));
    })?;
    Ok((alerts, thread))
}

/// Wall time that never goes back while the node runs, and follows a correction: a machine without a clock of its own starts in the past.
struct Clock {
    began: Instant,
    began_ms: i64,
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Clock {
    fn new() -> Self {
        Self { began: Instant::now(), began_ms: wall_ms() }
    }

    fn now(&mut self) -> i64 {
        let now = self.began_ms.saturating_add(i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX));
        let behind = wall_ms().saturating_sub(now);
        if behind < CORRECTED_MS {
            return now;
        }
        self.began_ms = self.began_ms.saturating_add(behind);
        now.saturating_add(behind)
    }
}

struct Way {
    receiver: Arc<dyn Receiver>,
    outbox: Outbox,
    busy: bool,
}

type Sending = BoxFuture<'static, (usize, Notice, Result<(), NotSent>)>;

struct Runner {
    parts: Parts,
    alerts: Arc<Alerts>,
    clock: Clock,
    book: Book,
    watch: Watch,
    ways: Vec<Way>,
    sending: FuturesUnordered<Sending>,
    /// One at most.
    testing: FuturesUnordered<BoxFuture<'static, ()>>,
    /// Something is to be kept.
    changed: bool,
    /// Events that are not on disk: a reader that saw one would miss another that gets its number after a crash.
    unshown: Vec<Event>,
    keep_failed: bool,
}

impl Runner {
    fn new(parts: Parts, alerts: Arc<Alerts>, active: Vec<Alert>, mut kept: Kept) -> Self {
        let mut clock = Clock::new();
        let receivers = parts.receivers.iter();
        let ways = receivers.map(|receiver| {
            let outbox = kept.told.remove(receiver.name()).unwrap_or_default();
            Way { receiver: receiver.clone(), outbox, busy: false }
        });
        Self {
            watch: Watch::new(parts.rules.clone(), clock.now()),
            book: Book::new(active),
            ways: ways.collect(),
            sending: FuturesUnordered::new(),
            testing: FuturesUnordered::new(),
            changed: false,
            unshown: Vec::new(),
            keep_failed: false,
            clock,
            alerts,
            parts,
        }
    }

    async fn run(mut self, mut wished: mpsc::Receiver<TestWish>) {
        let stop = self.parts.stop.clone();
        let mut look = tokio::time::Instant::now();
        loop {
            if tokio::time::Instant::now() >= look {
                self.look();
                look = tokio::time::Instant::now() + self.parts.rules.every;
            }
            self.send();
            self.keep();
            let waits = self.ways.iter().any(|way| way.outbox.waits() && !way.busy);
            let soon = tokio::time::Instant::now() + SOON;
            let wake = if waits { look.min(soon) } else { look };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(wake) => {}
                Some(done) = self.sending.next(), if !self.sending.is_empty() => self.sent(done),
                Some(wish) = wished.recv(), if self.testing.is_empty() => {
                    let test = self.test(wish);
                    self.testing.push(test);
                }
                Some(()) = self.testing.next(), if !self.testing.is_empty() => {}
            }
        }
        let rest = async {
            while let Some(done) = self.sending.next().await {
                self.sent(done);
            }
        };
        // What is cut off here was not told and is told after the start.
        let _ = tokio::time::timeout(LAST_CALL, rest).await;
        self.keep();
    }

    fn look(&mut self) {
        let now = self.clock.now();
        let seen = self.parts.observer.look();
        let book = &self.book;
        let found = self.watch.look(now, &seen, &|rule, subject: &Subject| -> Option<Severity> { book.severity(rule, subject) });
        self.figures(&seen);
        let found = if self.parts.rules.enabled { found } else { Vec::new() };
        let resolve_after = i64::try_from(self.parts.rules.resolve_after.as_millis()).unwrap_or(i64::MAX);
        let turns = self.book.take(now, found, resolve_after, || self.alerts.next_id());
        let active = self.book.active();
        let new: Vec<Event> = turns.into_iter().map(|(id, turn, alert)| self.turned(id, now, turn, alert)).collect();
        let mut counts: BTreeMap<&'static str, i64> = Rule::ALL.iter().map(|rule| (rule.as_str(), 0)).collect();
        for alert in &active {
            *counts.entry(alert.rule.as_str()).or_default() += 1;
        }
        events::active(&counts);
        self.alerts.put(active, &new);
        if !new.is_empty() {
            self.changed = true;
            self.unshown.extend(new);
            self.keep();
        }
    }

    fn turned(&mut self, id: u64, now: i64, turn: Turn, alert: Alert) -> Event {
        let (rule, severity, summary) = (alert.rule.as_str(), alert.severity.as_str(), alert.summary.as_str());
        match turn {
            Turn::Began | Turn::Changed => events::Began { rule, severity, summary, advice: alert.advice() }.emit(),
            Turn::Ended => {
                for way in &mut self.ways {
                    way.outbox.ended(&alert);
                }
                let lasted = Duration::from_millis(u64::try_from(now - alert.since_ms).unwrap_or(0));
                events::Ended { rule, subject: &alert.subject.to_string(), lasted }.emit();
            }
        }
        Event::new(id, now, turn, alert)
    }

    fn figures(&self, seen: &Snapshot) {
        let silence =
            self.watch.silence().map(|(channel, name, quiet, after)| Silence { channel, name: name.into(), quiet, after });
        let percent = |share: Option<super::ports::Share>| share.map(super::ports::Share::percent);
        Figures {
            utilisation: vec![
                ("feed", percent(seen.feed)),
                ("memory", percent(seen.memory)),
                ("cpu", seen.cpu.and_then(|(_, cores)| self.watch.cpu_percent(cores))),
                ("disk", percent(seen.disk)),
                ("ledger", percent(seen.ledger.map(|ledger| ledger.size))),
            ],
            silence: silence.collect(),
            certificates: seen.certificates.iter().map(|c| (c.listener.clone(), c.what, c.not_after)).collect(),
            ready: seen.not_ready == 0,
            problems: seen.problems,
        }
        .emit();
    }

    /// Begins to send what is due.
    fn send(&mut self) {
        let now = self.clock.now();
        let active = self.alerts.active();
        for (index, way) in self.ways.iter_mut().enumerate().filter(|(_, way)| !way.busy) {
            let was_held = way.outbox.held();
            let due = way.outbox.due(now, &active, &self.parts.rules, way.receiver.resolved());
            if way.outbox.held() && !was_held {
                events::Held { receiver: way.receiver.name(), kind: way.receiver.kind(), limit: self.parts.rules.max_per_hour }
                    .emit();
            }
            let Some(mut notice) = due else { continue };
            (notice.node, notice.domain) = (self.parts.node.clone(), self.parts.domain.clone());
            way.busy = true;
            let receiver = way.receiver.clone();
            self.sending.push(Box::pin(async move {
                let result = receiver.send(&notice).await;
                (index, notice, result)
            }));
        }
    }

    fn sent(&mut self, (index, notice, result): (usize, Notice, Result<(), NotSent>)) {
        let now = self.clock.now();
        let Some(way) = self.ways.get_mut(index) else { return };
        way.busy = false;
        let (kind, receiver) = (way.receiver.kind(), way.receiver.name());
        match result {
            Ok(()) => {
                way.outbox.sent(now, &notice);
                self.changed = true;
                events::Notified { kind, receiver, firing: notice.firing.len(), resolved: notice.resolved.len() }.emit();
            }
            Err(error) => {
                way.outbox.failed(now);
                events::NotNotified { kind, receiver, failures: way.outbox.failures(), error: &error.0 }.emit();
            }
        }
    }

    fn keep(&mut self) {
        if !self.changed {
            return;
        }
        let (next, active, events) = self.alerts.kept();
        let told = self.ways.iter().map(|way| (way.receiver.name().to_owned(), way.outbox.clone())).collect();
        match self.parts.keep.keep(&Kept { next, active, events, told }) {
            Ok(()) => {
                (self.changed, self.keep_failed) = (false, false);
                self.alerts.publish(&std::mem::take(&mut self.unshown));
            }
            // Tried again at the next look; told once.
            Err(error) if !self.keep_failed => {
                self.keep_failed = true;
                events::NotKept { error: &error }.emit();
            }
            Err(_) => {}
        }
    }

    /// Sends a test to every receiver and tells who asked what became of it.
    fn test(&mut self, wish: TestWish) -> BoxFuture<'static, ()> {
        let (node, domain) = (self.parts.node.clone(), self.parts.domain.clone());
        let notice = Notice { node, domain, ..Notice::test(self.clock.now()) };
        let receivers: Vec<_> = self.ways.iter().map(|way| way.receiver.clone()).collect();
        Box::pin(async move {
            let all = receivers.iter().map(|receiver| async {
                let (kind, name) = (receiver.kind(), receiver.name().to_owned());
                let error = match tokio::time::timeout(TEST, receiver.send(&notice)).await {
                    Ok(Ok(())) => String::new(),
                    Ok(Err(error)) => error.0,
                    Err(_) => format!("no answer within {TEST:?}"),
                };
                let arrived = error.is_empty();
                events::TestSent { kind, receiver: &name, arrived }.emit();
                Tested { kind, receiver: name, arrived, error }
            });
            // Whoever asked may have gone.
            let _ = wish.send(futures_util::future::join_all(all).await);
        })
    }
}
