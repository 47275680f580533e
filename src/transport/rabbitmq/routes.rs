//! A route's partition: what comes from its queue goes into this node's queue of the route, in order per key, and is acknowledged to
//! the broker when it is done, or held in the ledger ([`super::holding`]), and that is on record.

use super::{
    Delivery,
    hands::{Handed, Hands, Standing, Work, route_number},
    wire::{self, Batch, Parcel},
    work::{Job, Pending, Shared},
};
use crate::engine::fact::{Accepted, BodyRef, RouteProgress, RouteState, Seq, What};
use crate::message::MessageId;
use crate::transport::queue::{
    hot::{Hot, HotBudget},
    progress::Progress,
    route::RouteQueue,
    set::QueueSet,
    state::{Entry, Hold},
};
use futures_util::future::BoxFuture;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio::sync::mpsc;

/// Numbers of subscriptions, for taking back what one of them gave.
static SOURCES: AtomicU64 = AtomicU64::new(1);

/// Whether a message belongs to a partition, as partitions are now.
pub type Mine = Arc<dyn Fn(&Accepted) -> bool + Send + Sync>;

/// Works off one partition of a route.
pub struct RoutePartition {
    pub(super) shared: Arc<Shared>,
    pub(super) queues: Arc<QueueSet>,
    hot: Arc<HotBudget>,
    pub(super) channel: Arc<str>,
    pub(super) route: Arc<str>,
    pub(super) mine: Mine,
    number: u64,
    pub(super) source: u64,
    over: mpsc::UnboundedSender<u64>,
    /// All that comes is held, and nothing is delivered.
    pub(super) holding: bool,
}

/// What becomes of one message.
enum Take {
    /// Into the queue.
    Deliver(Box<(Seq, Option<Arc<Hot>>, RouteProgress)>),
    /// It was set aside and holds its key.
    Parked(Box<(Seq, RouteProgress)>),
    /// Nothing is left to do.
    Done,
}

impl RoutePartition {
    /// For one subscription. `mine`: what belongs to the partition of what the ledger holds.
    pub fn new(
        shared: Arc<Shared>,
        queues: Arc<QueueSet>,
        hot: Arc<HotBudget>,
        (channel, route): (Arc<str>, Arc<str>),
        mine: Mine,
        over: mpsc::UnboundedSender<u64>,
    ) -> Self {
        let number = route_number(&channel, &route);
        let source = SOURCES.fetch_add(1, Relaxed);
        Self { shared, queues, hot, channel, route, mine, number, source, over, holding: false }
    }

    pub(super) fn hands(&self) -> &Hands {
        &self.shared.hands
    }

    pub(super) fn queue(&self) -> Arc<RouteQueue> {
        self.queues.queue(&self.channel, &self.route)
    }

    pub(super) fn work(&self, id: MessageId) -> Work {
        (self.number, id)
    }

    async fn take(&self, delivery: &Delivery, parcel: &Parcel) -> Result<Take, String> {
        let Parcel { accepted, body, requeued } = parcel;
        let envelope = &accepted.envelope;
        let work = self.work(envelope.id);
        if *requeued {
            self.hands().again(&work);
        }
        match self.hands().standing(&work) {
            // An operator's requeue finds it set aside in its lane.
            Standing::Here if *requeued => {
                self.requeue_here(parcel).await?;
                return Ok(Take::Done);
            }
            // Another copy of what is here.
            Standing::Here | Standing::Done => return Ok(Take::Done),
            Standing::Unknown => {}
        }
        let seq = self.shared.place(accepted, body.as_ref()).await?;
        let mut progress = RouteProgress::default();
        if *requeued || self.shared.is_doubtful(delivery, envelope.received_ms) {
            let known = self.shared.replica.known(envelope.id).await.map_err(|e| e.to_string())?;
            let at = accepted.routes.iter().position(|name| **name == *self.route);
            progress = known.zip(at).and_then(|(known, at)| known.routes.get(at).copied()).unwrap_or_default();
            match progress.state {
                RouteState::Delivered | RouteState::Failed => return Ok(Take::Done),
                RouteState::Parked if !*requeued && self.queue().holds_key() => {
                    return Ok(Take::Parked(Box::new((seq, progress))));
                }
                RouteState::Parked if !*requeued => return Ok(Take::Done),
                RouteState::Parked => self.note_requeued(envelope.id, seq),
                RouteState::Waiting => {}
            }
        }
        // What it was before: this delivery of the broker is one more, and not acknowledged.
        progress.held = false;
        let hot = match body {
            Some(body) if !self.holding => {
                let mut accepted = accepted.clone();
                // What is read again later is read by this log's own reference.
                accepted.body = BodyRef::Own;
                Hot::keep(&self.hot, seq, accepted, Some(body.clone()), &self.shared.log).ok()
            }
            _ => None,
        };
        Ok(Take::Deliver(Box::new((seq, hot, progress))))
    }

    /// Whoever asked for it says so too; but the one that works on it must have told before it is acknowledged.
    fn note_requeued(&self, id: MessageId, seq: Seq) {
        self.shared.note(id, seq, What::Requeued { route: self.route.to_string() });
    }

    async fn requeue_here(&self, parcel: &Parcel) -> Result<(), String> {
        let envelope = &parcel.accepted.envelope;
        let seq = self.shared.place(&parcel.accepted, parcel.body.as_ref()).await?;
        let progress = Progress::new(seq, envelope.id);
        progress.add_active();
        let queue = self.queue();
        if queue.requeue(envelope.id, &envelope.keys, envelope.received_ms, progress) {
            self.note_requeued(envelope.id, seq);
            queue.pump();
        }
        Ok(())
    }
}

impl Job for RoutePartition {
    fn take_over(&mut self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.load())
    }

    fn is_needed(&self) -> bool {
        !self.holding && self.shared.replica.held_on(&self.channel, &self.route) > 0
    }

    fn begin(&mut self, delivery: Delivery) -> BoxFuture<'_, Result<Option<Pending>, String>> {
        Box::pin(async move {
            let batch: Batch = wire::decode(&delivery.payload).map_err(|e| format!("a message of this queue is {e}"))?;
            // One more, so that it is not over while its messages are still being put into the queue.
            let handed = Handed::new(delivery.tag, batch.messages.len() + 1, self.over.clone());
            let mut held = Vec::new();
            for parcel in &batch.messages {
                let envelope = &parcel.accepted.envelope;
                let work = self.work(envelope.id);
                match self.take(&delivery, parcel).await? {
                    Take::Done => handed.done(),
                    Take::Deliver(taken) if self.holding => held.push(Progress::new(taken.0, envelope.id)),
                    Take::Parked(taken) if self.holding => held.push(Progress::new(taken.0, envelope.id)),
                    Take::Deliver(taken) => {
                        let (seq, hot, known) = *taken;
                        let progress = Progress::new(seq, envelope.id);
                        progress.add_active();
                        let mut entry = Entry::restored(progress, known, envelope.received_ms);
                        (entry.hot, entry.source, entry.delivery) = (hot, self.source, delivery.tag);
                        self.hands().take(work, self.source, Some(handed.clone()));
                        self.queues.enqueue(&self.channel, &self.route, &envelope.keys, entry).pump();
                    }
                    Take::Parked(taken) => {
                        let (seq, known) = *taken;
                        let progress = Progress::new(seq, envelope.id);
                        progress.add_parked();
                        let mut entry = Entry::restored(progress, known, envelope.received_ms);
                        (entry.held, entry.source, entry.delivery) = (false, self.source, delivery.tag);
                        self.hands().take(work, self.source, Some(handed.clone()));
                        self.queue().restore_parked(envelope.id, &envelope.keys, entry);
                    }
                }
            }
            let count = held.len();
            self.write_held(held).await?;
            (0..=count).for_each(|_| handed.done());
            Ok(None)
        })
    }

    fn hold(&mut self, which: Hold) -> Option<BoxFuture<'static, Result<(), String>>> {
        self.hold_some(which)
    }

    fn hold_all(&mut self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(self.hold_what_is_here())
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(queue) = self.queues.find(&self.channel, &self.route) {
                queue.withdraw(self.source);
                // What is in hand ends first: nobody here may begin the same again beside it.
                queue.ended(self.source).await;
            }
            self.hands().forget(self.source);
        })
    }
}
