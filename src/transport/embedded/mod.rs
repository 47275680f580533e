//! The embedded transport: the set "accepted and not finished" of the ledger's log, held as queues in memory.
//! No second write and no second fsync; rebuilt at start from what the log says is unfinished.

use super::queue::{
    Owner,
    hot::{Hot, HotBudget},
    progress::{Progress, Tracked},
    route::RouteQueue,
    set::QueueSet,
    state::{Entry, Given},
};
use crate::engine::{
    fact::{Fact, RouteState, Seq, What},
    gate::Gate,
    ports::{
        Append, ChannelWork, Clock, CommitSink, Committed, ControlError, Log, LogError, Pauses, RouteStatus, Transport,
        Unfinished,
    },
    resend::ResendWindow,
};
use crate::telemetry::engine::Pending;
use crate::{channel::Mode, message::MessageId};
use futures_util::future::BoxFuture;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// What the transport is made of.
pub struct Parts {
    pub log: Arc<dyn Log>,
    pub clock: Arc<dyn Clock>,
    /// Pushes back when too much is pending.
    pub gate: Arc<Gate>,
    /// Keeps what operators said about routes.
    pub pauses: Arc<dyn Pauses>,
    /// Told what became durable.
    pub resend: Arc<ResendWindow>,
    /// Where deliveries run.
    pub runtime: tokio::runtime::Handle,
    /// Bytes of bodies to keep at hand.
    pub hot_bodies: u64,
}

/// See the module.
pub struct Embedded {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    gate: Arc<Gate>,
    resend: Arc<ResendWindow>,
    hot: Arc<HotBudget>,
    queues: QueueSet,
    /// Messages whose progress must be found by sequence number or id: proxied and parked ones.
    tracked: Mutex<Tracked>,
}

impl Embedded {
    /// A transport without any route yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            log: parts.log,
            clock: parts.clock,
            gate: parts.gate,
            resend: parts.resend,
            hot: HotBudget::new(parts.hot_bodies),
            queues: QueueSet::new(this.clone(), parts.pauses, parts.runtime),
            tracked: Mutex::default(),
        })
    }

    /// Puts an unfinished message back at start; to be called in log order, before [`Embedded::launch`].
    ///
    /// A proxied request that was with its upstream when the node ended is recorded as unknown, never sent again, unless
    /// its channel says that the upstream is idempotent.
    pub fn restore(&self, message: Unfinished) {
        let Unfinished { seq, accepted, routes } = message;
        let id = accepted.envelope.id;
        let progress = Progress::new(seq, id);
        let mut parked = Vec::new();
        for (index, name) in accepted.routes.iter().enumerate() {
            let state = routes.get(index).copied().unwrap_or_default();
            let proxied = index == 0 && accepted.mode == Mode::Proxy && !accepted.idempotent;
            match state.state {
                RouteState::Delivered | RouteState::Failed => {}
                RouteState::Waiting if proxied => {
                    let fact = Fact { id, home: seq, at: self.clock.now_ms(), what: What::Unknown };
                    self.log.append_later(Append { fact, body: None, deliver: false });
                }
                RouteState::Waiting => {
                    progress.add_active();
                    let entry = Entry::restored(progress.clone(), state, accepted.envelope.received_ms);
                    self.queues.enqueue(&accepted.channel, name, &accepted.envelope.keys, entry);
                }
                RouteState::Parked => {
                    progress.add_parked();
                    let keys = &accepted.envelope.keys;
                    let entry = Entry::restored(progress.clone(), state, accepted.envelope.received_ms);
                    self.queues.queue(&accepted.channel, name).restore_parked(id, keys, entry);
                    parked.push(name);
                }
            }
        }
        if progress.left() == 0 {
            self.log.finished(seq);
            return;
        }
        if progress.active() > 0 {
            self.gate.add(1);
        }
        if !parked.is_empty() {
            self.tracked().track(progress);
        }
    }

    /// Starts the workers on what was restored.
    pub fn launch(&self) {
        self.queues.pump();
    }

    fn tracked(&self) -> MutexGuard<'_, Tracked> {
        self.tracked.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// One route is done with this message.
    fn over(&self, progress: &Progress) {
        let end = progress.done();
        if end.idle {
            self.gate.remove(1);
        }
        if end.finished {
            self.log.finished(progress.seq);
            if progress.is_tracked() {
                self.tracked().forget(progress);
            }
        }
    }

    /// A parked delivery is wanted again.
    fn unparked(&self, progress: &Progress) {
        if progress.unpark() {
            self.gate.add(1);
        }
    }

    /// The queues of a message's routes, or of one of them.
    fn queues_of(&self, message: &Unfinished, route: Option<&str>) -> Vec<Arc<RouteQueue>> {
        let names = message.accepted.routes.iter().filter(|name| route.is_none_or(|wanted| wanted == *name));
        names.filter_map(|name| self.queues.find(&message.accepted.channel, name)).collect()
    }

    fn note(&self, id: MessageId, home: Seq, what: What) {
        let fact = Fact { id, home, at: self.clock.now_ms(), what };
        self.log.append_later(Append { fact, body: None, deliver: false });
    }
}

impl Owner for Embedded {
    fn done(&self, _: &RouteQueue, progress: &Arc<Progress>) {
        self.over(progress);
    }

    fn parked(&self, _: &RouteQueue, progress: &Arc<Progress>) {
        if progress.park() {
            self.gate.remove(1);
        }
        // Given up in between: nothing to find any more.
        if progress.left() > 0 {
            self.tracked().track(progress.clone());
        }
    }
}

/// The log's writer calls this with what is durable, in log order: so queues are in log order too, whoever sent it
/// and whether or not the sender is still there.
pub struct Sink(pub Arc<Embedded>);

impl CommitSink for Sink {
    fn committed(&self, batch: Vec<Committed>) {
        let this = &self.0;
        this.gate.add(batch.len() as u64);
        // A proxied one is not done when it is durable: its exchange says when a repetition need not be forwarded.
        this.resend.committed(
            batch
                .iter()
                .filter(|c| c.accepted.resend_key != 0 && c.accepted.mode == Mode::Queue)
                .map(|c| (c.accepted.resend_key, c.accepted.envelope.id, c.seq)),
        );
        let mut touched: Vec<Arc<RouteQueue>> = Vec::new();
        for committed in batch {
            let Committed { seq, accepted, body } = committed;
            let progress = Progress::new(seq, accepted.envelope.id);
            let first = usize::from(accepted.mode == Mode::Proxy);
            for _ in &accepted.routes {
                progress.add_active();
            }
            if first == 1 {
                this.tracked().track(progress.clone());
            }
            if accepted.routes.len() <= first {
                continue;
            }
            let targets = this.queues.targets(&accepted.channel, &accepted.routes[first..]);
            let received = accepted.envelope.received_ms;
            let kept = Hot::keep(&this.hot, seq, accepted, body, &this.log);
            let (hot, keys) = match &kept {
                Ok(hot) => (Some(hot), &hot.stored.accepted.envelope.keys),
                Err(accepted) => (None, &accepted.envelope.keys),
            };
            for queue in targets {
                let entry = Entry::new(progress.clone(), hot.cloned(), received);
                let queue = match queue.push(keys, entry) {
                    Ok(()) => queue,
                    Err(entry) => this.queues.enqueue(&queue.channel, &queue.route, keys, entry),
                };
                if !touched.iter().any(|t| Arc::ptr_eq(t, &queue)) {
                    touched.push(queue);
                }
            }
        }
        for queue in touched {
            queue.pump();
        }
    }
}

impl Transport for Arc<Embedded> {
    fn accept(&self, record: Append) -> BoxFuture<'static, Result<Seq, LogError>> {
        self.log.append(record)
    }

    fn answered(&self, seq: Seq) {
        let progress = self.tracked().by_seq(seq);
        if let Some(progress) = progress {
            self.over(&progress);
        }
    }

    fn configure(&self, channels: Vec<ChannelWork>) {
        self.queues.configure(channels);
    }

    fn routes(&self) -> Vec<RouteStatus> {
        Pending { messages: self.gate.pending() }.emit();
        self.queues.status(self.clock.now_ms())
    }

    fn pause(&self, channel: &str, route: &str, paused: bool) -> Result<(), ControlError> {
        self.queues.pause(channel, route, paused)
    }

    fn requeue<'a>(&'a self, message: &'a Unfinished, route: Option<&'a str>) -> BoxFuture<'a, Result<u32, ControlError>> {
        Box::pin(std::future::ready(Ok(self.put_back(message, route))))
    }

    fn discard<'a>(&'a self, message: &'a Unfinished, route: Option<&'a str>) -> BoxFuture<'a, Result<u32, ControlError>> {
        Box::pin(std::future::ready(self.give_up(message, route)))
    }

    fn pending(&self) -> u64 {
        self.gate.pending()
    }

    fn drain(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.queues.drain())
    }
}

impl Embedded {
    fn put_back(&self, message: &Unfinished, route: Option<&str>) -> u32 {
        let envelope = &message.accepted.envelope;
        let Some(progress) = self.tracked().by_id(envelope.id) else { return 0 };
        let mut count = 0;
        for queue in self.queues_of(message, route) {
            self.unparked(&progress);
            if queue.requeue(envelope.id, &envelope.keys, envelope.received_ms, progress.clone()) {
                self.note(envelope.id, message.seq, What::Requeued { route: queue.route.to_string() });
                queue.pump();
                count += 1;
            } else if progress.park() {
                self.gate.remove(1);
            }
        }
        count
    }

    fn give_up(&self, message: &Unfinished, route: Option<&str>) -> Result<u32, ControlError> {
        let envelope = &message.accepted.envelope;
        let parked = self.tracked().by_id(envelope.id);
        let mut count = 0;
        let mut refused = None;
        for queue in self.queues_of(message, route) {
            let (channel, name) = (&queue.channel, &queue.route);
            let progress = match (queue.discard(envelope.id, &envelope.keys, parked.is_some()), &parked) {
                (Given::Waiting(progress), _) => progress,
                (Given::Parked, Some(progress)) => {
                    self.unparked(progress);
                    progress.clone()
                }
                (kept @ (Given::InHand | Given::AtWork), _) => {
                    refused = kept.refusal(channel, name);
                    continue;
                }
                // The queue says `Parked` only of what is tracked.
                (Given::Nothing | Given::Parked, _) => continue,
            };
            self.note(envelope.id, message.seq, What::Discarded { route: name.to_string() });
            self.over(&progress);
            queue.pump();
            count += 1;
        }
        match (count, refused) {
            (0, Some(why)) => Err(ControlError::Conflict(why)),
            (count, _) => Ok(count),
        }
    }
}
