//! The accepting side of a channel's messages of some keys: one task, so that what is accepted, spooled and handed on later keeps its
//! order, also when the number of partitions changes meanwhile. Into which inbox a message goes is decided when it goes.
//!
//! While the broker answers, what waits goes to the inbox in micro-batches, and a sender is acknowledged by the broker's confirm.
//! While it does not, the channel's `outage` decides: `spool` accepts into this node's own log, to be handed on in order later;
//! `refuse` tells the sender. What comes while something is spooled goes behind it.

mod spool;

pub use spool::whole;

use super::{
    Confirmed, Link, PublishError, Publisher, PublisherLimits,
    admission::Ticket,
    declared::Declared,
    shipping::Shipping,
    targets::{self, Targets},
    wire::{self, Batch, Parcel},
};
use crate::channel::Outage;
use crate::engine::{
    fact::{BodyRef, Fact, Seq, What},
    ports::{Append, Clock, Log, LogError},
    replica::Replica,
};
use crate::message::MessageId;
use crate::telemetry::cluster as events;
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
    },
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// Messages in one micro-batch …
const MOST: usize = 128;
/// … and bytes of their bodies, about.
const BYTES: usize = 512 << 10;
/// Batches without a confirm: while they are on their way, the next ones grow.
const ON_THE_WAY: usize = 4;
/// Messages that may wait for the task.
const WAITING: usize = 4096;
/// A confirm is waited for so long before a message is spooled …
const SPOOL_AFTER: Duration = Duration::from_secs(5);
/// … or refused: the other brokers choose a new leader within that.
const REFUSE_AFTER: Duration = Duration::from_secs(10);
/// What comes while the spool is handed on waits so long before it is spooled as well.
const PATIENCE: Duration = Duration::from_secs(2);
/// A body that does not travel is waited for so long in the stream before the partition looks around again.
const SHIPPED_WITHIN: Duration = Duration::from_secs(1);
/// Times that a message of the spool may fail to be read back before it is set aside.
const READS: u32 = 50;
/// How often it is looked whether the broker is back.
const LOOK: Duration = Duration::from_millis(200);

/// One message to accept.
struct Item {
    parcel: Parcel,
    since: Instant,
    /// Its place in this node's log, when it is there already (a proxied one).
    stored: Option<Seq>,
    answer: oneshot::Sender<Result<Seq, LogError>>,
}

/// A message in this node's log that the broker does not have yet.
pub struct Spooled {
    pub seq: Seq,
    pub id: MessageId,
    /// A proxied one whose upstream may have it again: all its routes are served by the queues.
    pub whole: bool,
}

/// What the tasks of all partitions share.
pub struct Shared {
    pub link: Link,
    pub log: Arc<dyn Log>,
    pub replica: Arc<dyn Replica>,
    pub clock: Arc<dyn Clock>,
    pub shipping: Arc<Shipping>,
    /// Bodies up to this size travel through the broker.
    pub inline: u64,
    /// Of publishers.
    pub limits: PublisherLimits,
    /// Messages in all partitions' spools.
    pub spooled: AtomicU64,
}

/// See the module.
pub struct Accepting {
    items: mpsc::Sender<Item>,
    spools: Arc<AtomicBool>,
    restored: mpsc::UnboundedSender<Spooled>,
}

impl Accepting {
    /// Starts the task.
    pub fn start(
        targets: Targets,
        outage: Outage,
        shared: Arc<Shared>,
        queues: Arc<Declared>,
        runtime: &tokio::runtime::Handle,
    ) -> Self {
        let (items, incoming) = mpsc::channel(WAITING);
        let (restored, old) = mpsc::unbounded_channel();
        let limits = |give_up| PublisherLimits { give_up: Some(give_up), window: 16, ..shared.limits.clone() };
        let spools = Arc::new(AtomicBool::new(outage == Outage::Spool));
        let task = Task {
            targets,
            spools: spools.clone(),
            publisher: Publisher::start(
                &shared.link,
                "inbox",
                limits(if outage == Outage::Spool { SPOOL_AFTER } else { REFUSE_AFTER }),
                runtime,
            ),
            shared,
            queues,
            incoming,
            restored: old,
            waiting: VecDeque::new(),
            on_the_way: FuturesOrdered::new(),
            failed_reads: 0,
            spool: VecDeque::new(),
        };
        runtime.spawn(task.run());
        Self { items, spools, restored }
    }

    /// Takes one message; the order of calls is the order in the inbox. Resolves when it is durable. `stored`: its place in this
    /// node's log, when it has been written there already.
    pub fn accept(&self, parcel: Parcel, stored: Option<Seq>) -> BoxFuture<'static, Result<Seq, LogError>> {
        let (answer, answered) = oneshot::channel();
        match self.items.try_send(Item { parcel, since: Instant::now(), stored, answer }) {
            Ok(()) => Box::pin(async move { answered.await.unwrap_or_else(|_| Err(ended())) }),
            Err(mpsc::error::TrySendError::Full(_)) => Box::pin(std::future::ready(Err(LogError::Busy))),
            Err(mpsc::error::TrySendError::Closed(_)) => Box::pin(std::future::ready(Err(ended()))),
        }
    }

    /// What becomes of new messages from now on while no broker answers.
    pub fn set_outage(&self, outage: Outage) {
        self.spools.store(outage == Outage::Spool, Release);
    }

    /// A message that an earlier run accepted into its own log; to be called in log order.
    pub fn restore(&self, spooled: Spooled) {
        // The task lives as long as this does.
        let _ = self.restored.send(spooled);
    }
}

fn ended() -> LogError {
    LogError::Failed("the node is ending".into())
}

type Confirm = BoxFuture<'static, (Vec<Item>, Result<(), PublishError>)>;

struct Task {
    targets: Targets,
    spools: Arc<AtomicBool>,
    shared: Arc<Shared>,
    queues: Arc<Declared>,
    publisher: Publisher,
    incoming: mpsc::Receiver<Item>,
    restored: mpsc::UnboundedReceiver<Spooled>,
    waiting: VecDeque<Item>,
    on_the_way: FuturesOrdered<Confirm>,
    /// Times in a row that the first of the spool could not be read.
    failed_reads: u32,
    spool: VecDeque<Spooled>,
}

impl Task {
    async fn run(mut self) {
        loop {
            while let Ok(spooled) = self.restored.try_recv() {
                self.push_spooled(spooled);
            }
            let alive = if self.spool.is_empty() { self.direct().await } else { self.spooling().await };
            if !alive {
                return;
            }
        }
    }

    /// Hands on to the broker until something has to be spooled; false when the node ends.
    async fn direct(&mut self) -> bool {
        loop {
            if !self.waiting.is_empty() && self.on_the_way.is_empty() && !self.reachable().await {
                self.take_back(Vec::new()).await;
                return true;
            }
            while self.on_the_way.len() < ON_THE_WAY && !self.waiting.is_empty() {
                if self.waiting.front().is_some_and(|item| self.is_large(item)) {
                    // Through the log: its pieces lie there already.
                    if !self.on_the_way.is_empty() {
                        break;
                    }
                    let Some(item) = self.waiting.pop_front() else { break };
                    self.store(item).await;
                    return true;
                }
                if !self.send_batches() {
                    break;
                }
            }
            if self.on_the_way.is_empty() && !self.waiting.is_empty() {
                continue;
            }
            tokio::select! {
                biased;
                Some((items, result)) = self.on_the_way.next(), if !self.on_the_way.is_empty() => match result {
                    Ok(()) => items.into_iter().for_each(|item| drop(item.answer.send(Ok(0)))),
                    Err(PublishError::Away { .. }) => {
                        self.take_back(items).await;
                        return true;
                    }
                    Err(PublishError::Rejected { .. }) => refuse(items, &LogError::Busy),
                    Err(PublishError::Unroutable { queue, .. }) => {
                        self.queues.forget(&queue);
                        self.take_back(items).await;
                        return true;
                    }
                    Err(error) => refuse(items, &LogError::Failed(error.to_string())),
                },
                item = self.incoming.recv(), if self.waiting.len() < WAITING => match item {
                    Some(item) => {
                        self.waiting.push_back(item);
                        while self.waiting.len() < WAITING && let Ok(item) = self.incoming.try_recv() {
                            self.waiting.push_back(item);
                        }
                    }
                    None if self.waiting.is_empty() && self.on_the_way.is_empty() => return false,
                    // What is on its way is waited for.
                    None => {
                        let Some((items, result)) = self.on_the_way.next().await else { return false };
                        let result = result.map(|()| 0).map_err(|e| LogError::Failed(e.to_string()));
                        items.into_iter().for_each(|item| drop(item.answer.send(result.clone())));
                    }
                },
                Some(spooled) = self.restored.recv() => {
                    self.push_spooled(spooled);
                    return true;
                }
            }
        }
    }

    /// Whether the first can be published now. A connection that is lost, or not made yet because the node has just started, is given a
    /// moment: a sender that is refused has to come again, and one whose message is spooled may have its next ones accepted, and
    /// delivered, by another node before. So is the moment in which the number of partitions changes.
    async fn reachable(&mut self) -> bool {
        let begun = Instant::now();
        let mut changed = self.shared.shipping.admission().changed();
        loop {
            changed.borrow_and_update();
            let state = self.shared.link.state();
            let target = self.shared.shipping.admission().target();
            if let (true, Some(target), Some(first)) = (state.up(), target, self.waiting.front()) {
                let queue = self.targets.of(target, &first.parcel.accepted);
                if self.queues.ensure_now(&self.shared.link, &queue).await.is_ok() {
                    return true;
                }
            }
            let turning = state.up() && target.is_none();
            // One that has been away for a while already is not waited for.
            let patience = if self.spools() { SPOOL_AFTER } else { REFUSE_AFTER };
            let away = if turning { Duration::ZERO } else { state.away_for() };
            if begun.elapsed().max(away) >= patience {
                return false;
            }
            let _ = tokio::time::timeout(LOOK, changed.changed()).await;
        }
    }

    fn spools(&self) -> bool {
        self.spools.load(Acquire)
    }

    fn is_large(&self, item: &Item) -> bool {
        matches!(item.parcel.accepted.body, BodyRef::Chunks { .. }) || item.parcel.accepted.envelope.body_len > self.shared.inline
    }

    /// What waits, as far as it fits, in one micro-batch for each inbox; false when nothing can be sent now.
    fn send_batches(&mut self) -> bool {
        let Some(ticket) = self.shared.shipping.admission().publish() else { return false };
        let (mut groups, mut count, mut bytes) = (Vec::new(), 0, 0);
        while count < MOST && bytes < BYTES {
            let Some(item) = self.waiting.front().filter(|item| !self.is_large(item)) else { break };
            let queue = self.targets.of(ticket.target, &item.parcel.accepted);
            let begun = groups.iter().any(|(name, _): &(Arc<str>, Vec<Item>)| *name == queue);
            if !begun && !self.queues.is_ready(&self.shared.link, &queue) {
                break;
            }
            let Some(item) = self.waiting.pop_front() else { break };
            bytes += item.parcel.body.as_ref().map_or(0, Bytes::len);
            count += 1;
            targets::group(&mut groups, queue, item);
        }
        for (queue, items) in groups {
            let batch = Batch::of(items.iter().map(|item| item.parcel.clone()).collect());
            match wire::encode(&batch) {
                Ok(payload) => {
                    let confirm = self.publisher.publish(&queue, payload, false);
                    self.on_the_way.push_back(answered(items, confirm, ticket.clone()));
                }
                Err(error) => refuse(items, &LogError::Failed(error.to_string())),
            }
        }
        count > 0
    }

    /// The broker does not answer: what was on its way, and all that waits behind it, is spooled or refused.
    async fn take_back(&mut self, items: Vec<Item>) {
        let mut all = items;
        while let Some((items, result)) = self.on_the_way.next().await {
            match result {
                Ok(()) => items.into_iter().for_each(|item| drop(item.answer.send(Ok(0)))),
                Err(_) => all.extend(items),
            }
        }
        all.extend(self.waiting.drain(..));
        if !self.spools() {
            return refuse(all, &away());
        }
        events::Spooling { channel: self.targets.channel() }.emit();
        for item in all {
            self.store(item).await;
        }
    }

    /// Into this node's own log.
    async fn store(&mut self, item: Item) {
        let Item { parcel, stored, answer, .. } = item;
        let Parcel { accepted, body, .. } = parcel;
        let id = accepted.envelope.id;
        let fact = Fact { id, home: 0, at: accepted.envelope.received_ms, what: What::Accepted(Box::new(accepted)) };
        let stored = match stored {
            Some(seq) => Ok(seq),
            None => self.shared.log.append(Append { fact, body, deliver: false }).await,
        };
        // A publication that was taken back may have been stored all the same, and its accept fact have come from the inbox's consumer:
        // then that one is the message, and there is nothing to hand on.
        if let Ok(seq) = &stored
            && self.shared.replica.home(id).await.is_none_or(|home| home == *seq)
        {
            self.push_spooled(Spooled { seq: *seq, id, whole: false });
        }
        // The sender may have gone.
        let _ = answer.send(stored);
    }

    fn push_spooled(&mut self, spooled: Spooled) {
        self.spool.push_back(spooled);
        let now = self.shared.spooled.fetch_add(1, AcqRel) + 1;
        self.shared.shipping.set_spooled(now);
    }

    /// Hands on what is spooled, in order, while what comes goes behind it; false when the node ends.
    async fn spooling(&mut self) -> bool {
        loop {
            // A queue that cannot be used is as good as no broker: nobody waits for it.
            let mut up = self.shared.link.state().up();
            if up && !self.spool.is_empty() {
                up = self.hand_on().await;
            }
            if self.spools() {
                // While the broker answers, what comes waits a moment: else a spool that is filled as quickly as it is emptied never ends.
                let long = |item: &Item| !up || item.since.elapsed() > PATIENCE;
                while let Some(item) = self.waiting.pop_front_if(|item| long(item)) {
                    self.store(item).await;
                }
                if self.spool.is_empty() {
                    events::Spooled { channel: self.targets.channel() }.emit();
                    return true;
                }
            } else if !up || self.waiting.front().is_some_and(|item| item.since.elapsed() > REFUSE_AFTER) {
                // What waits its turn behind the spool is told that there is nobody to hand it to.
                refuse(self.waiting.drain(..).collect(), &away());
            } else if self.spool.is_empty() {
                return true;
            }
            tokio::select! {
                biased;
                item = self.incoming.recv(), if self.waiting.len() < WAITING => match item {
                    Some(item) => self.waiting.push_back(item),
                    // The log keeps what the broker does not have.
                    None => return false,
                },
                Some(spooled) = self.restored.recv() => self.push_spooled(spooled),
                () = tokio::time::sleep(LOOK), if !up => {}
                () = std::future::ready(()), if up => {}
            }
        }
    }
}

impl Shared {
    /// Messages in all partitions' spools.
    pub fn spooled(&self) -> u64 {
        self.spooled.load(Acquire)
    }
}

/// What becomes of a publication; its ticket is given back then.
fn answered(
    items: Vec<Item>,
    confirm: impl Future<Output = Result<Confirmed, PublishError>> + Send + 'static,
    ticket: Arc<Ticket>,
) -> Confirm {
    Box::pin(async move {
        let result = confirm.await.map(|_| ());
        drop(ticket);
        (items, result)
    })
}

fn refuse(items: Vec<Item>, why: &LogError) {
    for item in items {
        let _ = item.answer.send(Err(why.clone()));
    }
}

fn away() -> LogError {
    LogError::Failed("no broker answers".into())
}
