//! The ledger stream: what this node's log has written goes out, what the others' have written comes in (DESIGN.md §3).
//!
//! A batch names the last record of the one before, so that whoever reads knows when one is missing: it has not been confirmed
//! either, so it comes again. The stream replicates but does not fsync; every record is on its own node's disk before it is shipped.

use super::{
    Consumer, Delivery, Link, Publisher, PublisherLimits, StreamStart,
    admission::Admission,
    declared::Declared,
    members::Members,
    position::{self, Position, SILENT},
    wire::{self, News, Told, WireError},
};
use crate::engine::{
    fact::Seq,
    ports::LogError,
    replica::{Origin, Replica, Shipped},
};
use crate::telemetry::cluster as events;
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::FuturesOrdered,
};
use serde::Serialize;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Bytes of records in one message of the stream, about.
const BATCH: usize = 256 << 10;
/// Batches on their way to the stream.
const OUT: usize = 16;
/// Batches being applied: what was shipped live comes in small ones, many of which make one commit …
const IN: usize = 128;
/// … and bytes of them, about; more fill no larger commit.
const IN_BYTES: usize = 8 << 20;
/// Unacknowledged messages of the stream.
const PREFETCH: u16 = 128;
/// So many are acknowledged together while more are ready.
const ACKED: usize = PREFETCH as usize / 4;
/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// How long a stream that has just been made may take to have a leader.
const LEADER: Duration = Duration::from_secs(2);
/// An own beat that has not come back for so long: what others wrote meanwhile may be missing.
const BEHIND: Duration = Duration::from_secs(10);
/// Pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// What an operator said about a route, somewhere.
pub type OnWord = Box<dyn Fn(&str, &str, bool) + Send + Sync>;

/// See the module.
pub struct Shipping {
    replica: Arc<dyn Replica>,
    link: Link,
    queues: Arc<Declared>,
    stream: Arc<str>,
    node: String,
    out: Publisher,
    /// Own records up to here are confirmed by the stream.
    confirmed: watch::Sender<Seq>,
    /// When the broker confirmed anything of ours last.
    heard: Mutex<Option<Instant>>,
    members: Mutex<Members>,
    /// How far this node and the others are with a change of partitions.
    admission: Arc<Admission>,
    /// The latest own beat that has been read back, and all before it applied.
    read_back: watch::Sender<u64>,
    next_beat: AtomicU64,
    /// Of this run of the node.
    run: u64,
    /// Rises with every batch applied.
    applied: watch::Sender<u64>,
    spooled: AtomicU64,
    leaving: AtomicBool,
    /// Told that another node has this one's name.
    same_name: AtomicBool,
    on_word: Mutex<Option<OnWord>>,
    /// Records of others that are being taken in.
    under_way: AtomicU64,
    /// When an own beat was read back last.
    echo: Mutex<Option<Instant>>,
    /// What had left the stream before it was read here.
    lost: Mutex<Option<String>>,
    /// Why it is not read, or does not get there, now.
    reading: Mutex<Option<String>>,
    sending: Mutex<Option<String>>,
}

/// How far the ledger stream is, out and in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Numbers of the own log, from the last that the stream confirmed to the last committed.
    pub unconfirmed: u64,
    /// Records of others that have been read and are not applied yet.
    pub unapplied: u64,
    /// Since the broker confirmed anything, in milliseconds; null: not yet.
    pub confirmed_ms: Option<u64>,
    /// Since a beat of this node's own (one a second) came back through the stream: as long is what it knows of others behind.
    pub read_ms: Option<u64>,
    /// What others wrote before this node was there, or while it was away, is still being read: searches may miss transactions.
    pub catching_up: bool,
    /// What had left the stream before this node read it, if anything had: searches miss transactions.
    pub incomplete: Option<String>,
    /// Why nothing gets there.
    pub sending_error: Option<String>,
    /// Why nothing is read.
    pub reading_error: Option<String>,
}

/// Notes a trouble; whether it is not the one of before.
fn is_new(slot: &Mutex<Option<String>>, error: &str) -> bool {
    let mut slot = slot.lock().unwrap_or_else(|e| e.into_inner());
    let new = slot.as_deref() != Some(error);
    if new {
        *slot = Some(error.to_owned());
    }
    new
}

fn over(slot: &Mutex<Option<String>>) {
    slot.lock().unwrap_or_else(|e| e.into_inner()).take();
}

/// One step of reading, which ends in the order in which the steps were begun.
enum Step {
    Applied(u64),
    Beat(u64),
    Nothing,
}

/// Batches on their way: the last record of each, and up to where the log has been looked at.
type Sending<'a> = FuturesOrdered<BoxFuture<'a, Result<(Option<Seq>, Seq), String>>>;
type Reading = FuturesOrdered<BoxFuture<'static, (Read, Result<Step, LogError>)>>;

/// A message of the stream that is being dealt with.
#[derive(Clone, Copy)]
struct Read {
    tag: u64,
    bytes: usize,
}

impl Shipping {
    /// For a node of this name. Nothing runs before [`Shipping::start`].
    pub fn new(
        replica: Arc<dyn Replica>,
        link: Link,
        queues: Arc<Declared>,
        admission: Arc<Admission>,
        node: &str,
        limits: PublisherLimits,
        runtime: &tokio::runtime::Handle,
    ) -> Arc<Self> {
        let confirmed = watch::Sender::new(replica.shipped_upto());
        Arc::new(Self {
            out: Publisher::start(&link, "ledger", limits, runtime),
            replica,
            link,
            stream: queues.stream(),
            queues,
            node: node.to_owned(),
            confirmed,
            heard: Mutex::new(None),
            members: Mutex::new(Members::new(node)),
            admission,
            read_back: watch::Sender::new(0),
            next_beat: AtomicU64::new(1),
            run: rand::random(),
            applied: watch::Sender::new(0),
            spooled: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            same_name: AtomicBool::new(false),
            on_word: Mutex::new(None),
            under_way: AtomicU64::new(0),
            echo: Mutex::new(None),
            lost: Mutex::new(None),
            reading: Mutex::new(None),
            sending: Mutex::new(None),
        })
    }

    /// Ships, reads and beats on this runtime for as long as it lives.
    pub fn start(self: &Arc<Self>, runtime: &tokio::runtime::Handle, on_word: OnWord) {
        *self.on_word.lock().unwrap_or_else(|e| e.into_inner()) = Some(on_word);
        runtime.spawn(self.clone().ship());
        runtime.spawn(self.clone().read());
        runtime.spawn(self.clone().beat());
    }

    /// Resolves when everything of its own up to `seq` is confirmed by the stream.
    pub async fn wait_confirmed(&self, seq: Seq) {
        // The sender lives as long as this does.
        let _ = self.confirmed.subscribe().wait_for(|upto| *upto >= seq).await;
    }

    /// Whether the broker has confirmed something of ours within this time.
    pub fn heard_within(&self, time: Duration) -> bool {
        self.heard.lock().unwrap_or_else(|e| e.into_inner()).is_some_and(|at| at.elapsed() < time)
    }

    /// How far it is.
    pub fn lag(&self) -> Lag {
        let ago = |at: &Mutex<Option<Instant>>| {
            let at = *at.lock().unwrap_or_else(|e| e.into_inner());
            at.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
        };
        let text = |slot: &Mutex<Option<String>>| slot.lock().unwrap_or_else(|e| e.into_inner()).clone();
        Lag {
            unconfirmed: self.replica.committed().saturating_sub(*self.confirmed.borrow()),
            unapplied: self.under_way.load(Acquire),
            confirmed_ms: ago(&self.heard),
            read_ms: ago(&self.echo),
            catching_up: self.is_catching_up(),
            incomplete: text(&self.lost),
            sending_error: text(&self.sending),
            reading_error: text(&self.reading),
        }
    }

    /// Is there more in the stream than this node has read, as far as is known?
    pub fn is_catching_up(&self) -> bool {
        let behind = self.echo.lock().unwrap_or_else(|e| e.into_inner()).is_none_or(|at| at.elapsed() > BEHIND);
        behind || self.reading.lock().unwrap_or_else(|e| e.into_inner()).is_some()
    }

    /// Changes whenever something of another node has been applied.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Resolves when everything that was in the stream at the call has been read and applied.
    pub async fn sync(&self) {
        let mut read_back = self.read_back.subscribe();
        let number = self.next_number();
        while !self.tell_beat(number, false).await {
            tokio::time::sleep(AFTER_FAILURE).await;
        }
        let _ = read_back.wait_for(|seen| *seen >= number).await;
    }

    /// Who is there.
    pub fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How many messages wait in this node's own log for the broker: told to the others.
    pub fn set_spooled(&self, count: u64) {
        self.spooled.store(count, Release);
        events::InSpool { messages: count }.emit();
    }

    /// Tells the others what an operator said; false when the broker did not take it.
    pub async fn word(&self, channel: &str, route: &str, paused: bool) -> bool {
        self.tell(&News::Word { channel: channel.to_owned(), route: route.to_owned(), paused }).await
    }

    /// Tells the others that this node takes no part in the work any more.
    pub async fn leave(&self) {
        self.leaving.store(true, Release);
        self.tell_beat(self.next_number(), true).await;
    }

    /// Tells the others that this queue has run empty; false when the broker did not take it.
    pub async fn drained(&self, queue: &str) -> bool {
        self.tell(&News::Drained { queue: queue.to_owned() }).await
    }

    /// How far this node and the others are with a change of partitions.
    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    fn next_number(&self) -> u64 {
        self.next_beat.fetch_add(1, AcqRel)
    }

    async fn tell_beat(&self, number: u64, leaving: bool) -> bool {
        let now = Instant::now();
        // A node that cannot read what the others tell should not be given their work.
        let deaf = self.reading.lock().unwrap_or_else(|e| e.into_inner()).is_some();
        let leaving = leaving || deaf;
        let (layout, stage) = self.admission.act(|epochs| epochs.sends(number, now));
        let spooled = self.spooled.load(Acquire);
        let done = self.tell(&News::Beat { number, run: self.run, leaving, spooled, layout: Some(layout), stage }).await;
        if done {
            self.admission.act(|epochs| epochs.confirmed(now, stage));
        }
        done
    }

    async fn tell(&self, what: &News) -> bool {
        let told = Told { origin: self.replica.origin(), node: self.node.as_str().into(), what };
        let Ok(payload) = wire::encode(&told) else { return false };
        let done = self.out.publish(&self.stream, payload, false).await.is_ok();
        if done {
            self.note_heard();
        }
        done
    }

    fn note_heard(&self) {
        *self.heard.lock().unwrap_or_else(|e| e.into_inner()) = Some(Instant::now());
    }

    async fn beat(self: Arc<Self>) {
        while !self.leaving.load(Acquire) {
            self.tell_beat(self.next_number(), false).await;
            // A step of a change is told at once.
            let _ = tokio::time::timeout(BEAT, self.admission.hurries()).await;
        }
    }

    // --- out ---

    async fn ship(self: Arc<Self>) {
        loop {
            if let Err(error) = self.ship_from(self.replica.shipped_upto()).await {
                events::ShippingFailed { error: &error, new: is_new(&self.sending, &error) }.emit();
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }

    /// Ships what follows `start`, until something fails; then all that is not confirmed is shipped again.
    async fn ship_from(&self, start: Seq) -> Result<(), String> {
        let (mut after, mut prev, mut confirmed) = (start, start, start);
        let mut window: Sending<'_> = FuturesOrdered::new();
        let mut more = self.replica.own(after, BATCH);
        loop {
            tokio::select! {
                biased;
                Some(done) = window.next(), if !window.is_empty() => {
                    let (last, upto) = done?;
                    if let Some(last) = last {
                        confirmed = last;
                        over(&self.sending);
                        self.replica.shipped(last);
                        self.note_heard();
                    }
                    self.confirmed.send_if_modified(|c| { let rises = upto > *c; *c = upto.max(*c); rises });
                }
                own = &mut more, if window.len() < OUT => {
                    let own = own.map_err(|e| e.to_string())?;
                    after = own.upto;
                    let Some(last) = own.records.last().map(|r| r.seq) else {
                        window.push_back(Box::pin(future::ready(Ok((None, after)))));
                        more = self.replica.own(after, BATCH);
                        continue;
                    };
                    let records = own.records.len();
                    let what = News::Ship { prev, confirmed, records: own.records };
                    let told = Told { origin: self.replica.origin(), node: self.node.as_str().into(), what };
                    let payload = wire::encode(&told).map_err(|e| e.to_string())?;
                    let sent = self.out.publish(&self.stream, payload, false);
                    window.push_back(Box::pin(async move {
                        sent.await.map_err(|e| e.to_string())?;
                        events::Shipped { records }.emit();
                        Ok((Some(last), after))
                    }));
                    prev = last;
                    more = self.replica.own(after, BATCH);
                }
            }
        }
    }

    // --- in ---

    async fn read(self: Arc<Self>) {
        let mut made_anew = false;
        loop {
            let session = self.link.session().await;
            if let Err(error) = self.queues.ensure(&session, &self.stream).await {
                let error = error.to_string();
                events::ReadingEnded { error: &error, new: is_new(&self.reading, &error) }.emit();
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
            self.has_a_leader().await;
            let positions = self.replica.positions();
            let offset = positions.offset.filter(|_| !made_anew);
            let start = offset.map_or(StreamStart::First, StreamStart::Offset);
            let ended = match Consumer::open_stream(&session, &self.stream, PREFETCH, start).await {
                Ok(consumer) => self.read_from(consumer, positions.taken, offset, &mut made_anew).await,
                Err(error) => error.to_string(),
            };
            // It may have been deleted: then it is made again, on this session too.
            self.queues.forget(&self.stream);
            events::ReadingEnded { error: &ended, new: is_new(&self.reading, &ended) }.emit();
            tokio::time::sleep(AFTER_FAILURE).await;
        }
    }

    /// Waits a little until a beat was confirmed: a stream that has just been made has no leader at first, and RabbitMQ 3.10 ends the whole
    /// connection of a consumer that comes too early.
    async fn has_a_leader(&self) {
        if self.heard.lock().unwrap_or_else(|e| e.into_inner()).is_none() {
            // Not confirmed in time, or not at all: reading tells what is wrong.
            let _ = tokio::time::timeout(LEADER, self.tell_beat(self.next_number(), false)).await;
        }
    }

    /// Reads until something fails; tells what. `offset`: where it was asked to begin; none: with the first. `made_anew`: the stream is not
    /// the one whose offsets this node knows, so it is to be read from its first; until something of it is taken in.
    async fn read_from(
        &self,
        mut consumer: Consumer,
        mut taken: HashMap<Origin, Seq>,
        offset: Option<u64>,
        made_anew: &mut bool,
    ) -> String {
        let mut steps = Reading::new();
        self.under_way.store(0, Release);
        // The stream's beginning has been removed by its retention: batches refer to others that nobody has any more.
        let mut truncated = false;
        let mut first = true;
        let mut position = Position::default();
        let mut under_way = 0;
        let silent = tokio::time::sleep(SILENT);
        tokio::pin!(silent);
        loop {
            tokio::select! {
                biased;
                Some(done) = steps.next(), if !steps.is_empty() => {
                    let (mut done, mut together) = (done, 0);
                    loop {
                        let (read, step) = done;
                        under_way -= read.bytes;
                        match step {
                            Ok(step) => self.done(step, made_anew),
                            // The disk is full, or the store fails: what could not be applied is read again.
                            Err(error) => return format!("what other nodes wrote cannot be stored: {error}"),
                        }
                        together += 1;
                        match steps.next().now_or_never().flatten() {
                            Some(next) if together < ACKED => done = next,
                            next => {
                                if let Err(ended) = consumer.acks().ack(read.tag, true).await {
                                    return ended.to_string();
                                }
                                let Some(next) = next else { break };
                                (done, together) = (next, 0);
                            }
                        }
                    }
                },
                () = &mut silent, if first && offset.is_some() => {
                    // There is a beat each second. A broker that is asked for what is yet to come says nothing, or gives what comes next.
                    if let (Some(asked), Some(newest)) = (offset, position::newest(consumer.acks().session(), &self.stream).await)
                        && newest < asked
                    {
                        *made_anew = true;
                        return position::anew(asked, newest);
                    }
                    silent.as_mut().reset(tokio::time::Instant::now() + SILENT);
                }
                delivery = consumer.next(), if steps.len() < IN && under_way < IN_BYTES => match delivery {
                    Ok(delivery) => {
                        if std::mem::take(&mut first) {
                            over(&self.reading);
                            let begins = delivery.offset.unwrap_or(0);
                            if let Some(asked) = offset.filter(|asked| begins < *asked) {
                                *made_anew = true;
                                return position::anew(asked, begins);
                            }
                            truncated = offset.is_none() && begins > 0;
                            if truncated && !*made_anew && taken.is_empty() {
                                let text = format!("{begins} messages had left the ledger stream before this node joined the domain");
                                events::StreamTruncated { messages: begins }.emit();
                                *self.lost.lock().unwrap_or_else(|e| e.into_inner()) = Some(text);
                            }
                        }
                        match self.begin(&delivery, &mut taken, truncated, &mut position) {
                            Ok(step) => {
                                let read = Read { tag: delivery.tag, bytes: delivery.payload.len() };
                                under_way += read.bytes;
                                steps.push_back(step.map(move |r| (read, r)).boxed());
                            }
                            Err(error) => return error,
                        }
                    }
                    Err(ended) => return ended.to_string(),
                },
            }
        }
    }

    /// One step is through, and all before it.
    fn done(&self, step: Step, made_anew: &mut bool) {
        match step {
            Step::Applied(records) => {
                *made_anew = false;
                self.under_way.fetch_sub(records, AcqRel);
                self.applied.send_modify(|n| *n += 1);
            }
            Step::Beat(number) => {
                *self.echo.lock().unwrap_or_else(|e| e.into_inner()) = Some(Instant::now());
                self.read_back.send_if_modified(|seen| {
                    let rises = number > *seen;
                    *seen = number.max(*seen);
                    rises
                });
            }
            Step::Nothing => {}
        }
    }

    /// Begins what one message of the stream asks for.
    fn begin(
        &self,
        delivery: &Delivery,
        taken: &mut HashMap<Origin, Seq>,
        truncated: bool,
        position: &mut Position,
    ) -> Result<BoxFuture<'static, Result<Step, LogError>>, String> {
        let nothing = || future::ready(Ok(Step::Nothing)).boxed();
        let told: Told<News> = match wire::decode(&delivery.payload) {
            Ok(told) => told,
            // Going on would leave holes; the upgraded node reads on from here.
            Err(WireError::Later) => return Err(format!("a message of the ledger stream was {}", WireError::Later)),
            Err(WireError::Unreadable) => {
                events::StreamUnreadable.emit();
                return Ok(nothing());
            }
        };
        let own = told.origin == self.replica.origin();
        let (ship, own_beat) = (matches!(told.what, News::Ship { .. }), own && matches!(told.what, News::Beat { .. }));
        if position.is_to_be_noted(ship, own, own_beat)
            && let Some(offset) = delivery.offset
        {
            // Stored with the next record, or in a moment; a failure is told with the next record.
            drop(self.replica.apply(self.replica.origin(), Vec::new(), offset));
        }
        match told.what {
            News::Beat { number, run, .. } if own && run == self.run => {
                self.admission.act(|epochs| epochs.echo(number, Instant::now()));
                Ok(future::ready(Ok(Step::Beat(number))).boxed())
            }
            News::Beat { layout, .. } if own => {
                // Of an earlier run: what it had learned holds.
                if let Some(layout) = layout {
                    let _ = self.admission.act(|epochs| epochs.learn(layout));
                }
                Ok(nothing())
            }
            News::Beat { leaving: true, layout, stage, .. } => {
                self.members().left(&told.node);
                self.admission.act(|epochs| epochs.heard(&told.node, layout, stage));
                Ok(nothing())
            }
            // Those of long ago are read at a start as well; then nothing of ours has been read back yet.
            News::Beat { spooled, layout, stage, .. } => {
                self.admission.act(|epochs| epochs.heard(&told.node, layout, stage));
                if *self.read_back.borrow() > 0 {
                    if told.node == self.node && !self.same_name.swap(true, AcqRel) {
                        events::SameName { node: &self.node }.emit();
                    }
                    self.members().heard(&told.node, spooled, Instant::now());
                }
                Ok(nothing())
            }
            News::Drained { queue } => {
                self.admission.act(|epochs| epochs.told_drained(&queue));
                Ok(nothing())
            }
            News::Word { channel, route, paused } => {
                if !own && let Some(word) = &*self.on_word.lock().unwrap_or_else(|e| e.into_inner()) {
                    word(&channel, &route, paused);
                }
                Ok(nothing())
            }
            News::Ship { .. } if own => Ok(nothing()),
            News::Ship { prev, confirmed, records } => {
                let known = taken.get(&told.origin).copied();
                let Some(records) = missing(known, truncated, prev, confirmed, records) else { return Ok(nothing()) };
                if let Some(last) = records.last() {
                    taken.insert(told.origin, last.seq);
                }
                let count = records.len() as u64;
                self.under_way.fetch_add(count, AcqRel);
                let applied = self.replica.apply(told.origin, records, delivery.offset.unwrap_or(0));
                Ok(applied.map(move |r| r.map(|()| Step::Applied(count))).boxed())
            }
        }
    }
}

/// The records of a batch that are to be taken in; `None`: it has been taken before, or one before it is missing and both come again.
fn missing(known: Option<Seq>, truncated: bool, prev: Seq, confirmed: Seq, mut records: Vec<Shipped>) -> Option<Vec<Shipped>> {
    let high = match known {
        Some(high) => high,
        None if truncated => prev,
        None => 0,
    };
    if prev > high && prev <= confirmed {
        // Confirmed, and not in the stream where this node reads on: its retention, or a power cut at the brokers, took it.
        events::StreamHole { records_from: high + 1, to: prev }.emit();
    } else if prev > high {
        events::StreamGap.emit();
        return None;
    }
    records.retain(|r| r.seq > high);
    (!records.is_empty()).then_some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(seqs: &[Seq]) -> Vec<Shipped> {
        seqs.iter().map(|seq| Shipped { seq: *seq, fact: None, body: None, transient: false }).collect()
    }

    fn taken(known: Option<Seq>, truncated: bool, prev: Seq, seqs: &[Seq]) -> Option<Vec<Seq>> {
        missing(known, truncated, prev, 0, batch(seqs)).map(|r| r.iter().map(|r| r.seq).collect())
    }

    #[test]
    fn each_record_is_taken_once_and_none_is_skipped() {
        assert_eq!(taken(None, false, 0, &[3, 5]), Some(vec![3, 5]));
        assert_eq!(taken(Some(5), false, 5, &[6, 9]), Some(vec![6, 9]));
        assert_eq!(taken(Some(9), false, 5, &[6, 9]), None, "again");
        assert_eq!(taken(Some(9), false, 5, &[6, 9, 10]), Some(vec![10]), "more than before");
        assert_eq!(taken(Some(9), false, 12, &[13]), None, "one is missing between");
        assert_eq!(taken(None, false, 12, &[13]), None, "the first is missing");
        assert_eq!(taken(None, true, 12, &[13]), Some(vec![13]), "nobody has it any more");
        let hole = missing(Some(5), false, 9, 9, batch(&[10]));
        assert_eq!(hole.map(|r| r.len()), Some(1), "it was confirmed, so it does not come again");
    }
}
