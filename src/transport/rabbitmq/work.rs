//! What the consumers of all partitions share, and how each lives: it subscribes like every other node, works when the broker makes
//! it the active one, and steps aside for the member whose turn it is.

use super::{
    Acks, ConsumeEnd, Consumer, Delivery, Link, Publisher,
    admission::Admission,
    declared::Declared,
    hands::Hands,
    place::{Gone, Place},
    seal::Sealing,
    shipping::Shipping,
    wire::{self, Batch},
};
use crate::channel::Storage;
use crate::engine::{
    fact::{Accepted, BodyRef, Fact, Keeper, Seq, What},
    ports::{Append, Clock, Log, LogError},
    replica::Replica,
    resend::ResendWindow,
};
use crate::message::MessageId;
use crate::telemetry::cluster as events;
use crate::transport::queue::state::Hold;
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// A message older than this may have been through a consumer that nobody remembers.
const OLD_MS: i64 = 60_000;
/// Somebody else's turn for so long: it is not a moment's confusion.
const NOT_OURS: Duration = Duration::from_secs(3);
/// What the others have told is read within this time, or somebody else should do the work.
const SYNC: Duration = Duration::from_secs(20);
/// After stepping aside: the others are in the line before this node is again.
const ASIDE: Duration = Duration::from_secs(2);
/// What has ended when a consumer stops is given so long to be acknowledged.
const LAST: Duration = Duration::from_secs(5);
/// How often a consumer looks around.
const LOOK: Duration = Duration::from_millis(500);
/// Unacknowledged for so long (or a quarter of [`Shared::hold`], when that is less), a message is held in the ledger.
const HOLD_AFTER: Duration = Duration::from_secs(30);
/// How often it is looked for blocked keys while half of what the consumer may have is in hand.
const BLOCKED_LOOK: Duration = Duration::from_millis(100);
/// Held messages wait, and nobody has begun: so often the active consumer is woken by the node whose turn it is …
const WAKE: Duration = Duration::from_secs(2);
/// … and by another.
const WAKE_OTHERS: Duration = Duration::from_secs(30);
/// How long the accept fact of a message that another node accepted may take through the stream.
const SHIPPED_WITHIN: Duration = Duration::from_secs(1);
/// The same for one whose body does not travel with it.
const LARGE_WITHIN: Duration = Duration::from_secs(60);

/// See the module.
pub struct Shared {
    pub link: Link,
    pub log: Arc<dyn Log>,
    pub replica: Arc<dyn Replica>,
    pub clock: Arc<dyn Clock>,
    pub shipping: Arc<Shipping>,
    pub queues: Arc<Declared>,
    pub hands: Hands,
    /// Resends that the accepting nodes could not know.
    pub resends: Arc<ResendWindow>,
    /// To the queues of routes.
    pub routes: Publisher,
    pub prefetch: u16,
    /// Unacknowledged deliveries are handed back before the broker takes them.
    pub hold: Duration,
    pub closing: CancellationToken,
    /// The partitions that gave this node something since it subscribed to them.
    pub active: Mutex<BTreeSet<Arc<str>>>,
}

/// Why a consumer stops.
pub enum Stop {
    /// The broker, or the way to it.
    Lost(String),
    /// Somebody else's turn, or held for long: closes its channel, and subscribes again.
    Aside,
    /// The node ends.
    Closing,
}

/// What may be acknowledged when the future resolves: a delivery's tag.
pub type Pending = BoxFuture<'static, Result<u64, String>>;

/// What a consumer does with the deliveries of its partition.
pub trait Job: Send {
    /// Begins work on one delivery; the order of calls is the order of the partition. `None`: the job says by its channel when the
    /// delivery is over.
    fn begin(&mut self, delivery: Delivery) -> BoxFuture<'_, Result<Option<Pending>, String>>;
    /// The consumer stops: resolves when nothing of what it began is being worked on any more.
    fn stop(&mut self) -> BoxFuture<'_, ()>;
    /// This node has become the active one, and knows what the one before it has told: takes on what is not in the queue. Before the first
    /// [`Job::begin`].
    fn take_over(&mut self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
    /// Something waits for [`Job::take_over`] on whichever node.
    fn is_needed(&self) -> bool {
        false
    }
    /// Begins to put some of what is in hand to where it need not be unacknowledged; its deliveries are then told as over. `None`: there
    /// is nothing of that kind.
    fn hold(&mut self, _: Hold) -> Option<BoxFuture<'static, Result<(), String>>> {
        None
    }
    /// Begins nothing from now on, waits for what is being tried, and puts all else there; so it does with what comes after.
    fn hold_all(&mut self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Makes the job of one subscription; it tells the tags of deliveries that are over.
pub type MakeJob = Box<dyn Fn(mpsc::UnboundedSender<u64>) -> Box<dyn Job> + Send + Sync>;

impl Shared {
    /// Whether another node may have worked on this delivery's messages.
    pub fn is_doubtful(&self, delivery: &Delivery, received_ms: i64) -> bool {
        delivery.redelivered || delivery.again || self.clock.now_ms() - received_ms > OLD_MS
    }

    /// The place of a message in this log, waiting a moment for it to come through the stream; one that does not come although its
    /// body is at hand is written here.
    pub async fn place(&self, accepted: &Accepted, body: Option<&Bytes>) -> Result<Seq, String> {
        let id = accepted.envelope.id;
        let at_hand = body.is_some() || accepted.envelope.body_len == 0;
        let until = Instant::now() + if at_hand { SHIPPED_WITHIN } else { LARGE_WITHIN };
        let mut applied = self.shipping.applied();
        loop {
            if let Some(seq) = self.replica.home(id).await {
                return Ok(seq);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let _ = tokio::time::timeout(left.min(LOOK), applied.changed()).await;
        }
        if !at_hand {
            return Err("the body of a large message has not come through the ledger stream; trying again".into());
        }
        let written = self.write(accepted.clone(), body.cloned()).await.map_err(|e| e.to_string())?;
        // It may have come in the same moment; there is one.
        Ok(self.replica.home(id).await.unwrap_or(written))
    }

    /// Writes an accept fact whose message the broker keeps.
    pub fn write(&self, mut accepted: Accepted, body: Option<Bytes>) -> BoxFuture<'static, Result<Seq, LogError>> {
        accepted.keeper = Keeper::Broker;
        // References to pieces would be those of the node that accepted it.
        accepted.body = match (&body, accepted.storage) {
            (None, _) => BodyRef::None,
            (Some(_), Storage::All) => BodyRef::Own,
            (Some(_), _) => BodyRef::OwnTransient,
        };
        let id = accepted.envelope.id;
        let fact = Fact { id, home: 0, at: accepted.envelope.received_ms, what: What::Accepted(Box::new(accepted)) };
        self.log.append(Append { fact, body, deliver: false })
    }

    /// How far a change of partitions is.
    pub fn admission(&self) -> &Admission {
        self.shipping.admission()
    }

    /// The partitions that this node works on.
    pub fn active(&self) -> MutexGuard<'_, BTreeSet<Arc<str>>> {
        self.active.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Notes a fact about a message, without waiting.
    pub fn note(&self, id: MessageId, home: Seq, what: What) {
        let fact = Fact { id, home, at: self.clock.now_ms(), what };
        self.log.append_later(Append { fact, body: None, deliver: false });
    }

    /// Resolves when everything noted before the call is on this disk and in the stream.
    pub async fn settled(&self) -> Result<(), String> {
        self.log.durable().await.map_err(|e| e.to_string())?;
        self.shipping.wait_confirmed(self.replica.committed()).await;
        Ok(())
    }
}

/// Lives for one partition's queue until the node ends, or nobody works on that queue any more.
pub async fn consume(shared: Arc<Shared>, place: Place, gone: Gone, make: MakeJob) {
    let (queue, is_route) = (place.queue(), place.route.is_some());
    let mut last_error = String::new();
    while !shared.closing.is_cancelled() && !gone.is_cancelled() {
        tokio::select! {
            () = shared.admission().wait_for(|epochs| place.begins(epochs)) => {}
            () = shared.closing.cancelled() => return,
            () = gone.cancelled() => return,
        }
        let session = tokio::select! {
            session = shared.link.session() => session,
            () = shared.closing.cancelled() => return,
            () = gone.cancelled() => return,
        };
        let declared = match is_route {
            true => shared.queues.ensure_route(&session, &queue).await,
            false => shared.queues.ensure(&session, &queue).await,
        };
        // Why not is told where it is declared.
        if declared.is_err() {
            tokio::time::sleep(ASIDE).await;
            continue;
        }
        let mut consumer = match Consumer::open(&session, &queue, shared.prefetch).await {
            Ok(consumer) => consumer,
            Err(error) => {
                match error {
                    ConsumeEnd::Lost => report(&mut last_error, &queue, &error.to_string()),
                    // Somebody deleted it: it is declared again.
                    ConsumeEnd::Missing { .. } => {
                        shared.queues.forget(&queue);
                        report(&mut last_error, &queue, &error.to_string());
                    }
                    _ => shared.queues.unusable(&queue, "consumer", &error.to_string()),
                }
                tokio::time::sleep(ASIDE).await;
                continue;
            }
        };
        last_error.clear();
        shared.queues.usable(&queue);
        let (over, mut ended) = mpsc::unbounded_channel();
        let mut job = make(over);
        let mut sealing = Sealing::default();
        let stop = run(&shared, (&place, &queue), &mut consumer, &mut *job, (&mut ended, &mut sealing), &gone).await;
        shared.active().remove(&queue);
        job.stop().await;
        if matches!(stop, Stop::Aside | Stop::Closing) {
            // What has ended meanwhile is acknowledged; the rest goes back in order with the channel. Whoever gets it has to know of every
            // attempt, also of those whose delivery is not over.
            let last = async {
                if shared.settled().await.is_ok() {
                    for tag in now(&mut ended) {
                        let _ = consumer.acks().ack(tag, false).await;
                    }
                }
            };
            let _ = tokio::time::timeout(LAST, last).await;
        }
        if gone.epoch.is_cancelled() {
            sealing.end(consumer.acks()).await;
        }
        consumer.close().await;
        match stop {
            Stop::Lost(error) => {
                report(&mut last_error, &queue, &error);
                tokio::time::sleep(LOOK).await;
            }
            Stop::Aside => tokio::time::sleep(ASIDE).await,
            Stop::Closing => return,
        }
    }
}

fn report(last: &mut String, queue: &str, error: &str) {
    if last != error {
        events::ConsumerEnded { queue, error }.emit();
        error.clone_into(last);
    }
}

/// What is in a channel now.
fn now(ended: &mut mpsc::UnboundedReceiver<u64>) -> Vec<u64> {
    std::iter::from_fn(|| ended.try_recv().ok()).collect()
}

/// Acknowledges deliveries when all that was noted of them is on this disk and in the stream.
async fn acknowledge(shared: &Shared, acker: &Acks, tags: &[u64]) -> Result<(), String> {
    shared.settled().await?;
    for tag in tags {
        // A consumer that has ended gets them again.
        acker.ack(*tag, false).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Sends nothing to a queue: its active consumer, which cannot know that it is before something comes, gets it.
async fn wake(shared: Arc<Shared>, queue: Arc<str>) {
    if let Ok(payload) = wire::encode(&Batch::default()) {
        // When it fails it is done again.
        let _ = shared.routes.publish(&queue, payload, false).await;
    }
}

async fn run(
    shared: &Arc<Shared>,
    (place, queue): (&Place, &Arc<str>),
    consumer: &mut Consumer,
    job: &mut dyn Job,
    (ended, sealing): (&mut mpsc::UnboundedReceiver<u64>, &mut Sealing),
    gone: &Gone,
) -> Stop {
    let mut pipeline: FuturesOrdered<Pending> = FuturesOrdered::new();
    // Not acknowledged, and since when.
    let mut in_hand: BTreeMap<u64, Instant> = BTreeMap::new();
    let (mut synced, mut ending) = (false, false);
    let mut not_ours: Option<Instant> = None;
    let mut look = tokio::time::interval(LOOK);
    let mut blocked = tokio::time::interval(BLOCKED_LOOK);
    blocked.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let hold_after = HOLD_AFTER.min(shared.hold / 4);
    let (mut waking, mut woken): (Option<JoinHandle<()>>, Instant) = (None, Instant::now());
    let acker = consumer.acks().clone();
    // Acknowledging waits for disk and stream; the partition goes on meanwhile.
    let (settle, mut settled) = mpsc::unbounded_channel::<Result<Vec<u64>, String>>();
    let hold = |holding: Option<BoxFuture<'static, Result<(), String>>>| {
        let (Some(holding), settle) = (holding, settle.clone()) else { return };
        tokio::spawn(async move {
            if let Err(error) = holding.await {
                // The consumer may have ended.
                let _ = settle.send(Err(error));
            }
        });
    };
    loop {
        tokio::select! {
            biased;
            () = shared.closing.cancelled() => return drained(pipeline, &acker, Stop::Closing).await,
            () = gone.cancelled() => return drained(pipeline, &acker, Stop::Closing).await,
            Some(done) = pipeline.next(), if !pipeline.is_empty() => match done {
                Ok(tag) => {
                    let _ = acker.ack(tag, false).await;
                    in_hand.remove(&tag);
                }
                Err(error) => return Stop::Lost(error),
            },
            Some(tags) = settled.recv() => match tags {
                Ok(tags) => in_hand.retain(|tag, _| !tags.contains(tag)),
                // What ended could not be recorded: it comes again.
                Err(error) => return Stop::Lost(error),
            },
            Some(first) = ended.recv() => {
                let tags: Vec<u64> = std::iter::once(first).chain(now(ended)).collect();
                let (shared, acker, settle) = (shared.clone(), acker.clone(), settle.clone());
                tokio::spawn(async move {
                    let done = acknowledge(&shared, &acker, &tags).await;
                    let _ = settle.send(done.map(|()| tags));
                });
            }
            _ = look.tick() => {
                let ours = shared.shipping.members().is_ours(queue, Instant::now());
                if shared.admission().see(|epochs| place.ends(epochs))
                    && let Some(stop) = hold_all(shared, job, &mut ending).await
                {
                    return stop;
                }
                sealing.look(shared, place, queue, ours, in_hand.first_key_value().map(|(tag, _)| *tag));
                let since = *not_ours.get_or_insert_with(Instant::now);
                if ours {
                    not_ours = None;
                } else if synced && since.elapsed() > NOT_OURS {
                    return drained(pipeline, &acker, Stop::Aside).await;
                }
                let often = if ours { WAKE } else { WAKE_OTHERS };
                if !synced && woken.elapsed() > often && waking.as_ref().is_none_or(JoinHandle::is_finished) && job.is_needed() {
                    woken = Instant::now();
                    waking = Some(tokio::spawn(wake(shared.clone(), queue.clone())));
                }
                let old = in_hand.iter().rev().find(|(_, since)| since.elapsed() > hold_after);
                if let Some((tag, _)) = old {
                    hold(job.hold(Hold::Upto(*tag)));
                }
                // The broker would take them back without asking whether an attempt is being made.
                if in_hand.first_key_value().is_some_and(|(_, since)| since.elapsed() > shared.hold) {
                    return drained(pipeline, &acker, Stop::Aside).await;
                }
            }
            _ = blocked.tick(), if in_hand.len() * 2 >= usize::from(shared.prefetch) => hold(job.hold(Hold::Blocked)),
            delivery = consumer.next(), if pipeline.len() < usize::from(shared.prefetch) => match delivery {
                Ok(delivery) if wire::is_seal(&delivery.payload) => {
                    sealing.take(delivery.tag);
                    if let Some(stop) = hold_all(shared, job, &mut ending).await {
                        return stop;
                    }
                }
                Ok(mut delivery) => {
                    if sealing.is_sealed() {
                        // Of a node that was thought dead: the others have gone on, and may have had it from elsewhere.
                        (synced, delivery.again) = (false, true);
                    }
                    if !synced {
                        // This node has become the active one: first it learns what the one before it has told.
                        let learn = async {
                            let done = tokio::time::timeout(SYNC, shared.shipping.sync()).await;
                            done.map_err(|_| "what the others have told cannot be read in time (`hie status` says why)".to_owned())?;
                            job.take_over().await
                        };
                        tokio::select! {
                            done = learn => if let Err(error) = done {
                                return Stop::Lost(error);
                            },
                            () = shared.closing.cancelled() => return Stop::Closing,
                            () = gone.cancelled() => return Stop::Closing,
                        }
                        synced = true;
                        shared.active().insert(queue.clone());
                        events::PartitionTaken { queue }.emit();
                    }
                    in_hand.insert(delivery.tag, Instant::now());
                    match job.begin(delivery).await {
                        Ok(Some(work)) => pipeline.push_back(work),
                        Ok(None) => {}
                        Err(error) => return Stop::Lost(error),
                    }
                }
                Err(ended) => return Stop::Lost(ended.to_string()),
            },
        }
    }
}

/// Its epoch ends: what waits is left to those who come after, `ending` from now on.
async fn hold_all(shared: &Shared, job: &mut dyn Job, ending: &mut bool) -> Option<Stop> {
    if std::mem::replace(ending, true) {
        return None;
    }
    tokio::select! {
        held = job.hold_all() => held.err().map(Stop::Lost),
        () = shared.closing.cancelled() => Some(Stop::Closing),
    }
}

/// Waits for what is begun, so that it need not be done again.
async fn drained(mut pipeline: FuturesOrdered<Pending>, acker: &Acks, stop: Stop) -> Stop {
    let all = async {
        while let Some(Ok(tag)) = pipeline.next().await {
            let _ = acker.ack(tag, false).await;
        }
    };
    let _ = tokio::time::timeout(LAST, all).await;
    stop
}
