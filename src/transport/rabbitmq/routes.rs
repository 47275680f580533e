//! A route's partition: what comes from its queue goes into this node's queue of the route, in order per key, and is acknowledged to
//! the broker when it is done and that is on record.

use super::{
    Delivery,
    hands::{Handed, Hands, Standing, route_number},
    wire::{self, Batch, Parcel},
    work::{Job, Pending, Shared},
};
use crate::engine::fact::{BodyRef, RouteProgress, RouteState, Seq};
use crate::transport::queue::{
    hot::{Hot, HotBudget},
    progress::Progress,
    set::QueueSet,
    state::Entry,
};
use futures_util::future::BoxFuture;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio::sync::mpsc;

/// Numbers of subscriptions, for taking back what one of them gave.
static SOURCES: AtomicU64 = AtomicU64::new(1);

/// Works off one partition of a route.
pub struct RoutePartition {
    shared: Arc<Shared>,
    queues: Arc<QueueSet>,
    hot: Arc<HotBudget>,
    channel: Arc<str>,
    route: Arc<str>,
    number: u64,
    source: u64,
    over: mpsc::UnboundedSender<u64>,
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
    /// For one subscription.
    pub fn new(
        shared: Arc<Shared>,
        queues: Arc<QueueSet>,
        hot: Arc<HotBudget>,
        (channel, route): (Arc<str>, Arc<str>),
        over: mpsc::UnboundedSender<u64>,
    ) -> Self {
        let number = route_number(&channel, &route);
        let source = SOURCES.fetch_add(1, Relaxed);
        Self { shared, queues, hot, channel, route, number, source, over }
    }

    fn hands(&self) -> &Hands {
        &self.shared.hands
    }

    async fn take(&self, delivery: &Delivery, parcel: &Parcel) -> Result<Take, String> {
        let Parcel { accepted, body, requeued } = parcel;
        let envelope = &accepted.envelope;
        let work = (self.number, envelope.id);
        if *requeued {
            self.hands().again(&work);
        }
        match self.hands().standing(&work) {
            // An operator's requeue finds it held in its lane.
            Standing::Held if *requeued => {
                self.requeue_here(parcel).await?;
                return Ok(Take::Done);
            }
            // Another copy of what is here.
            Standing::Held | Standing::Done => return Ok(Take::Done),
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
                RouteState::Parked if !*requeued && self.queues.queue(&self.channel, &self.route).holds_key() => {
                    return Ok(Take::Parked(Box::new((seq, progress))));
                }
                RouteState::Parked if !*requeued => return Ok(Take::Done),
                RouteState::Parked | RouteState::Waiting => {}
            }
        }
        let hot = match body {
            Some(body) => {
                let mut accepted = accepted.clone();
                // What is read again later is read by this log's own reference.
                accepted.body = BodyRef::Own;
                Hot::keep(&self.hot, seq, accepted, Some(body.clone()), &self.shared.log).ok()
            }
            None => None,
        };
        Ok(Take::Deliver(Box::new((seq, hot, progress))))
    }

    async fn requeue_here(&self, parcel: &Parcel) -> Result<(), String> {
        let envelope = &parcel.accepted.envelope;
        let seq = self.shared.place(&parcel.accepted, parcel.body.as_ref()).await?;
        let progress = Progress::new(seq, envelope.id);
        progress.add_active();
        let queue = self.queues.queue(&self.channel, &self.route);
        queue.requeue(envelope.id, &envelope.keys, envelope.received_ms, progress);
        queue.pump();
        Ok(())
    }
}

impl Job for RoutePartition {
    fn begin(&mut self, delivery: Delivery) -> BoxFuture<'_, Result<Option<Pending>, String>> {
        Box::pin(async move {
            let batch: Batch = wire::decode(&delivery.payload).map_err(|e| format!("a message of this queue is {e}"))?;
            // One more, so that it is not over while its messages are still being put into the queue.
            let handed = Handed::new(delivery.tag, batch.messages.len() + 1, self.over.clone());
            for parcel in &batch.messages {
                let envelope = &parcel.accepted.envelope;
                let work = (self.number, envelope.id);
                match self.take(&delivery, parcel).await? {
                    Take::Deliver(taken) => {
                        let (seq, hot, known) = *taken;
                        let progress = Progress::new(seq, envelope.id);
                        progress.add_active();
                        let mut entry = Entry::restored(progress, known, envelope.received_ms);
                        (entry.hot, entry.source) = (hot, self.source);
                        self.hands().hold(work, self.source, handed.clone());
                        self.queues.enqueue(&self.channel, &self.route, &envelope.keys, entry).pump();
                    }
                    Take::Parked(taken) => {
                        let (seq, known) = *taken;
                        let progress = Progress::new(seq, envelope.id);
                        progress.add_parked();
                        let mut entry = Entry::restored(progress, known, envelope.received_ms);
                        entry.source = self.source;
                        self.hands().hold(work, self.source, handed.clone());
                        self.queues.queue(&self.channel, &self.route).restore_parked(envelope.id, &envelope.keys, entry);
                    }
                    Take::Done => handed.done(),
                }
            }
            handed.done();
            Ok(None)
        })
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
