//! The ledger stream: what this node's log has written goes out, what the others' have written comes in (DESIGN.md §3).
//!
//! A batch names the last record of the one before, so that whoever reads knows when one is missing: it has not been confirmed
//! either, so it comes again. The stream replicates but does not fsync; every record is on its own node's disk before it is shipped.

mod reading;

use super::{
    Link, Publisher, PublisherLimits,
    admission::Admission,
    declared::Declared,
    members::Members,
    wire::{self, News, Told},
};
use crate::engine::{fact::Seq, replica::Replica};
use crate::telemetry::cluster as events;
use futures_util::{
    StreamExt,
    future::{self, BoxFuture},
    stream::FuturesOrdered,
};
use serde::Serialize;
use std::{
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
/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);
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

/// Batches on their way: the last record of each, and up to where the log has been looked at.
type Sending<'a> = FuturesOrdered<BoxFuture<'a, Result<(Option<Seq>, Seq), String>>>;

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
}
