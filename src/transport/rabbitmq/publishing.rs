//! The task of a [`super::Publisher`].

use super::{
    Link, LinkState, Reason, Session,
    confirms::{Number, Pending, Ready, Verdict},
    publisher::{Backlog, Call, Confirmed, PublishError, PublisherLimits, weight},
    reason,
    session::ANSWER,
};
use crate::telemetry::broker::{ChannelReopened, PublishEnd, Published};
use lapin::{BasicProperties, Channel, Confirmation, options};
use std::{
    collections::{HashSet, VecDeque},
    future::{pending, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};

/// Calls taken in one go.
const BATCH: usize = 512;
/// How long a channel that is given up may take to close before the connection goes with it.
const PARTING: Duration = Duration::from_secs(1);
/// Between fresh channels that the broker ends at once.
const PAUSE: Duration = Duration::from_millis(250);
/// A channel that is left for want of confirms again and again is left ever later, up to so many times the timeout.
const PATIENCE: u32 = 6;

/// A message that is not yet answered for.
struct Item {
    call: Call,
    /// It was handed to a broker at least once.
    handed: bool,
    /// It was handed over before the publish that is waited for.
    repeated: bool,
    /// It is with the broker now, since.
    sent: Option<(Instant, Pending)>,
}

/// Why a channel is left.
enum Left {
    /// Nothing more to do, or the link is closed.
    Finished,
    /// It ended by itself.
    Ended(Option<lapin::Error>),
    /// A confirm is overdue.
    Stuck,
    /// A message has waited as long as its sender waits.
    GiveUp,
}

pub(super) struct Task {
    link: Link,
    name: &'static str,
    limits: PublisherLimits,
    calls: mpsc::UnboundedReceiver<Call>,
    backlog: Arc<Backlog>,
    /// In the order of the calls; `None`: answered for. Numbers are places counted from `first`.
    items: VecDeque<Option<Item>>,
    first: Number,
    /// The first that is not with the broker.
    next: usize,
    bytes: usize,
    count: usize,
    ready: Arc<Ready>,
    /// Publishes whose frames lapin has not yet written.
    unwritten: Arc<AtomicUsize>,
    no_more: bool,
    /// Times in a row that a channel was left for want of confirms.
    stuck: u32,
    reason: Reason,
}

impl Task {
    pub(super) fn new(
        link: Link,
        name: &'static str,
        limits: PublisherLimits,
        calls: mpsc::UnboundedReceiver<Call>,
        backlog: Arc<Backlog>,
    ) -> Self {
        Self {
            link,
            name,
            limits,
            calls,
            backlog,
            items: VecDeque::new(),
            first: 1,
            next: 0,
            bytes: 0,
            count: 0,
            ready: Arc::default(),
            unwritten: Arc::default(),
            no_more: false,
            stuck: 0,
            reason: Reason::new("no confirm came"),
        }
    }

    pub(super) async fn run(mut self) {
        while let Some((session, channel)) = self.open().await {
            let left = self.work(&session, &channel).await;
            self.retire(&session, channel, &left).await;
            let (error, pause) = match left {
                Left::Finished => break,
                Left::Ended(error) => {
                    let error = error.filter(|_| session.stands());
                    let pause = error.is_some();
                    (error.map(|e| reason::said(&e)), pause)
                }
                Left::Stuck => {
                    self.stuck = (self.stuck + 1).min(PATIENCE);
                    (Some(format!("no confirm within {}", humantime::format_duration(self.limits.confirm_timeout))), false)
                }
                Left::GiveUp => (None, false),
            };
            if let Some(error) = &error {
                self.reason = Reason::new(format!("the broker {} does not confirm: {error}", session.broker()));
            }
            ChannelReopened { publisher: self.name, waiting: self.items.len(), error: error.as_deref() }.emit();
            self.give_up();
            if pause {
                sleep(PAUSE).await;
            }
        }
        self.calls.close();
        while let Ok(call) = self.calls.try_recv() {
            self.take(call);
        }
        for item in self.items.drain(..).flatten() {
            self.backlog.remove(weight(&item.call.payload));
            let _ = item.call.answer.send(Err(PublishError::Ended { maybe_stored: item.handed }));
        }
    }

    /// A fresh channel of the session that stands; takes calls in and gives messages up meanwhile. `None`: finished.
    async fn open(&mut self) -> Option<(Session, Channel)> {
        let link = self.link.clone();
        let closing = link.closing();
        tokio::pin!(closing);
        loop {
            let opened = fresh(&link);
            tokio::pin!(opened);
            let failed = loop {
                if self.no_more && self.items.is_empty() {
                    return None;
                }
                let due = self.give_up_at();
                tokio::select! {
                    biased;
                    () = &mut closing => return None,
                    opened = &mut opened => match opened {
                        Ok(opened) => return Some(opened),
                        Err(reason) => break reason,
                    },
                    call = self.calls.recv(), if !self.no_more => self.take_or_end(call),
                    () = at(due) => self.give_up(),
                }
            };
            self.reason = failed;
            sleep(PAUSE).await;
        }
    }

    /// Publishes and takes answers until the channel has to be left.
    async fn work(&mut self, session: &Session, channel: &Channel) -> Left {
        let (closing, lost) = (self.link.closing(), session.lost());
        tokio::pin!(closing, lost);
        let mut calls = Vec::new();
        let mut states = self.link.watch();
        // Silence counts from here on.
        let mut listening = Instant::now();
        loop {
            // A broker that takes nothing is handed nothing: what is with lapin could not be taken back without the connection.
            let blocked = matches!(*states.borrow_and_update(), LinkState::Blocked { .. });
            let answers = if blocked { Vec::new() } else { self.hand_over(channel) };
            let (progress, error) = self.settle(session, answers);
            if progress {
                self.stuck = 0;
            }
            if error.is_some() {
                return Left::Ended(error);
            }
            if self.no_more && self.items.is_empty() {
                return Left::Finished;
            }
            // Nor can it confirm: that is no reason to leave the channel.
            let overdue = self.oldest_sent().filter(|_| !blocked);
            let overdue = overdue.map(|sent| sent.max(listening) + self.limits.confirm_timeout * (self.stuck + 1));
            let give_up = self.give_up_at();
            let due = [overdue, give_up].into_iter().flatten().min();
            let ready = self.ready.clone();
            tokio::select! {
                biased;
                () = &mut closing => return Left::Finished,
                () = &mut lost => return Left::Ended(None),
                () = poll_fn(|cx| ready.poll(cx)) => {}
                count = self.calls.recv_many(&mut calls, BATCH), if !self.no_more => {
                    self.no_more = count == 0;
                    calls.drain(..).for_each(|call| self.take(call));
                }
                changed = states.changed() => {
                    listening = Instant::now();
                    if changed.is_err() {
                        return Left::Ended(None);
                    }
                }
                () = at(due) => {
                    let now = Instant::now();
                    if give_up.is_some_and(|due| due <= now) {
                        if self.count > 0 {
                            return Left::GiveUp;
                        }
                        self.give_up();
                        continue;
                    }
                    if overdue.is_some_and(|due| due <= now) {
                        return Left::Stuck;
                    }
                }
            }
        }
    }

    fn take_or_end(&mut self, call: Option<Call>) {
        match call {
            Some(call) => self.take(call),
            None => self.no_more = true,
        }
    }

    fn take(&mut self, call: Call) {
        self.items.push_back(Some(Item { call, handed: false, repeated: false, sent: None }));
    }

    /// Hands over what the bounds allow, in order. Gives the answers that are there at once.
    fn hand_over(&mut self, channel: &Channel) -> Vec<(Number, lapin::Result<Confirmation>)> {
        let mut answers = Vec::new();
        let mut told = Published { count: 0, again: 0 };
        while let Some(item) = self.items.get_mut(self.next) {
            let number = self.first + self.next as Number;
            self.next += 1;
            let Some(item) = item else { continue };
            let weight = weight(&item.call.payload);
            if self.count > 0 && (self.count >= self.limits.window || self.bytes + weight > self.limits.in_flight) {
                self.next -= 1;
                break;
            }
            self.bytes += weight;
            self.count += 1;
            self.backlog.remove(weight);
            let mut properties =
                BasicProperties::default().with_delivery_mode(2).with_message_id(number.to_string().as_str().into());
            if item.call.again || item.handed {
                properties = properties.with_type("again".into());
            }
            told.count += 1;
            told.again += u64::from(item.handed);
            item.repeated = std::mem::replace(&mut item.handed, true);
            self.unwritten.fetch_add(1, Ordering::AcqRel);
            let (channel, unwritten) = (channel.clone(), self.unwritten.clone());
            let (queue, payload) = (item.call.queue.clone(), item.call.payload.clone());
            let confirm = async move {
                let options = options::BasicPublishOptions { mandatory: true, immediate: false };
                let confirm = channel.basic_publish("".into(), queue.as_ref().into(), options, &payload, properties).await;
                unwritten.fetch_sub(1, Ordering::AcqRel);
                confirm?.await
            };
            let (pending, answer) = self.ready.begin(number, Box::pin(confirm));
            item.sent = Some((Instant::now(), pending));
            answers.extend(answer.map(|answer| (number, answer)));
        }
        if told.count > 0 {
            told.emit();
        }
        answers
    }

    /// Answers for what the broker has said. Whether it said anything good, and why the channel ended if it did.
    fn settle(&mut self, session: &Session, answers: Vec<(Number, lapin::Result<Confirmation>)>) -> (bool, Option<lapin::Error>) {
        let (items, first) = (&mut self.items, self.first);
        let place = |number: Number| usize::try_from(number.checked_sub(first)?).ok();
        let (verdicts, error) = self.ready.judge(answers, |number| {
            let item = items.get_mut(place(number)?)?.as_mut()?;
            item.sent.as_mut()?.1.poll()
        });
        let mut progress = false;
        for (number, verdict) in verdicts {
            let Some(slot) = place(number).and_then(|place| self.items.get_mut(place)) else { continue };
            // One that is not known to be stored stays for the next channel.
            let Some(item) = slot.take_if(|item| item.sent.is_some() && verdict != Verdict::Unknown) else { continue };
            self.bytes -= weight(&item.call.payload);
            self.count -= 1;
            let repeated = item.repeated;
            let Call { queue, answer, since, .. } = item.call;
            let (end, result) = match verdict {
                Verdict::Stored => (PublishEnd::Confirmed, Ok(Confirmed { repeated, session: session.number() })),
                Verdict::Returned => (PublishEnd::Unroutable, Err(PublishError::Unroutable { queue, maybe_stored: repeated })),
                _ => (PublishEnd::Rejected, Err(PublishError::Rejected { queue, maybe_stored: repeated })),
            };
            progress |= verdict == Verdict::Stored;
            end.emit(since.elapsed());
            let _ = answer.send(result);
        }
        self.trim();
        (progress, error)
    }

    /// Forgets what is answered for at the front.
    fn trim(&mut self) {
        while matches!(self.items.front(), Some(None)) {
            self.items.pop_front();
            self.first += 1;
            self.next = self.next.saturating_sub(1);
        }
    }

    /// Leaves a channel so that nothing that was handed to it is published from now on; what it confirmed until then is
    /// answered for, the rest waits for the next one.
    async fn retire(&mut self, session: &Session, channel: Channel, left: &Left) {
        self.settle(session, Vec::new());
        if matches!(left, Left::Finished) && !self.items.is_empty() {
            // The link closes: it ends the connection.
            if timeout(ANSWER, session.lost()).await.is_err() {
                session.abort();
            }
        } else if session.stands() && channel.status().connected() {
            // lapin would send the close before the publishes that it still holds.
            let written = self.unwritten.load(Ordering::Acquire) == 0;
            if !written || !matches!(timeout(PARTING, channel.close(200, "OK".into())).await, Ok(Ok(()))) {
                session.abort();
                let _ = timeout(PARTING, session.lost()).await;
            }
        } else if self.unwritten.load(Ordering::Acquire) > 0 {
            // A channel that ended by itself: lapin's publishes for it would end the connection.
            session.abort();
            let _ = timeout(PARTING, session.lost()).await;
        }
        self.settle(session, Vec::new());
        for item in self.items.iter_mut().take(self.next).flatten() {
            if item.sent.take().is_some() {
                self.backlog.add(weight(&item.call.payload));
            }
        }
        (self.next, self.bytes, self.count) = (0, 0, 0);
        self.ready = Arc::default();
        self.unwritten = Arc::default();
    }

    fn oldest_sent(&self) -> Option<Instant> {
        self.items.iter().flatten().find_map(|item| Some(item.sent.as_ref()?.0))
    }

    fn give_up_at(&self) -> Option<Instant> {
        let oldest = self.items.iter().flatten().next()?;
        Some(oldest.call.since + self.limits.give_up?)
    }

    /// Gives up what has waited too long, and what waits behind it for the same queue. No channel is open.
    fn give_up(&mut self) {
        let Some(patience) = self.limits.give_up else { return };
        let now = Instant::now();
        let mut queues: HashSet<Arc<str>> = HashSet::new();
        let link = self.link.state();
        let error = link.error().unwrap_or(&self.reason);
        for slot in &mut self.items {
            let due = |item: &mut Item| now >= item.call.since + patience || queues.contains(&item.call.queue);
            let Some(item) = slot.take_if(due) else { continue };
            self.backlog.remove(weight(&item.call.payload));
            PublishEnd::GivenUp.emit(item.call.since.elapsed());
            queues.insert(item.call.queue.clone());
            let _ = item.call.answer.send(Err(PublishError::Away { maybe_stored: item.handed, error: error.clone() }));
        }
        self.trim();
    }
}

/// A channel in confirm mode on the session that stands.
async fn fresh(link: &Link) -> Result<(Session, Channel), Reason> {
    let session = link.session().await;
    let channel = session.channel().await?;
    match timeout(ANSWER, channel.confirm_select(options::ConfirmSelectOptions::default())).await {
        Ok(Ok(())) => Ok((session, channel)),
        Ok(Err(error)) => {
            Err(Reason::new(format!("the broker {} gives no confirms: {}", session.broker(), reason::said(&error))))
        }
        Err(_) => {
            session.abort();
            Err(Reason::new(format!("the broker {} does not answer (asking for confirms)", session.broker())))
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}
