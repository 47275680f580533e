//! The embedded transport: the set "accepted and not finished" of the ledger's log, held as queues in memory.
//! No second write and no second fsync; rebuilt at start from what the log says is unfinished.

mod hot;
pub mod lanes;
mod progress;
mod route;
mod state;
mod words;

use crate::engine::{
    deliver::RouteWorker,
    fact::{Fact, RouteState, Seq, What},
    gate::Gate,
    ports::{Append, Clock, CommitSink, Committed, ControlError, Log, LogError, Pauses, RouteStatus, Transport, Unfinished},
    resend::ResendWindow,
};
use crate::telemetry::engine::Pending;
use crate::{channel::Mode, message::MessageId};
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use hot::{Hot, HotBudget};
use progress::{Progress, Tracked};
use route::RouteQueue;
use state::{Entry, Given};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};
use words::Words;

/// The queues of one channel, the primary route's first.
type Queues = HashMap<String, Vec<Arc<RouteQueue>>>;

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
    runtime: tokio::runtime::Handle,
    hot: Arc<HotBudget>,
    words: Words,
    queues: ArcSwap<Queues>,
    /// Makes and replaces queues; deliveries do not take it.
    configuring: Mutex<()>,
    /// Messages whose progress must be found by sequence number or id: proxied and parked ones.
    tracked: Mutex<Tracked>,
}

impl Embedded {
    /// A transport without any route yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            log: parts.log,
            clock: parts.clock,
            gate: parts.gate,
            resend: parts.resend,
            runtime: parts.runtime,
            hot: HotBudget::new(parts.hot_bodies),
            words: Words::new(parts.pauses),
            queues: ArcSwap::default(),
            configuring: Mutex::new(()),
            tracked: Mutex::default(),
        }
    }

    /// Puts an unfinished message back at start; to be called in log order, before [`Embedded::launch`].
    ///
    /// A proxied request that was with its upstream when the node ended is recorded as unknown, never sent again, unless
    /// its channel says that the upstream is idempotent.
    pub fn restore(self: &Arc<Self>, message: Unfinished) {
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
                    self.enqueue(&accepted.channel, name, &accepted.envelope.keys, entry);
                }
                RouteState::Parked => {
                    progress.add_parked();
                    let keys = &accepted.envelope.keys;
                    let entry = Entry::restored(progress.clone(), state, accepted.envelope.received_ms);
                    self.queue(&accepted.channel, name).restore_parked(id, keys, entry);
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
    pub fn launch(self: &Arc<Self>) {
        for queue in self.queues.load().values().flatten() {
            queue.pump();
        }
    }

    /// The queue of a route; made when it is not there (a route that is no longer configured keeps what it holds).
    fn queue(self: &Arc<Self>, channel: &str, route: &str) -> Arc<RouteQueue> {
        if let Some(queue) = find(&self.queues.load(), channel, route) {
            return queue;
        }
        let _configuring = self.configuring.lock().unwrap_or_else(|e| e.into_inner());
        let mut queues = Queues::clone(&self.queues.load());
        if let Some(queue) = find(&queues, channel, route) {
            return queue;
        }
        let word = self.words.about(channel, route);
        let queue = RouteQueue::new(channel, route, word, Arc::downgrade(self), self.runtime.clone());
        queues.entry(channel.to_owned()).or_default().push(queue.clone());
        self.queues.store(Arc::new(queues));
        queue
    }

    /// Puts a message into a route's queue, whichever one that is now.
    fn enqueue(self: &Arc<Self>, channel: &str, route: &str, keys: &[u64], mut entry: Entry) -> Arc<RouteQueue> {
        loop {
            let queue = self.queue(channel, route);
            match queue.push(keys, entry) {
                Ok(()) => return queue,
                Err(back) => entry = back,
            }
        }
    }

    /// The queues of these routes.
    fn targets(self: &Arc<Self>, channel: &str, routes: &[String]) -> Vec<Arc<RouteQueue>> {
        let queues = self.queues.load();
        let known = queues.get(channel).map(Vec::as_slice).unwrap_or_default();
        let one = |name: &String| known.iter().find(|q| *q.route == **name).cloned().unwrap_or_else(|| self.queue(channel, name));
        routes.iter().map(one).collect()
    }

    fn tracked(&self) -> MutexGuard<'_, Tracked> {
        self.tracked.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// One route is done with this message.
    fn done(&self, progress: &Progress) {
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

    /// One route has set this message aside.
    fn parked(&self, progress: &Arc<Progress>) {
        if progress.park() {
            self.gate.remove(1);
        }
        // Given up in between: nothing to find any more.
        if progress.left() > 0 {
            self.tracked().track(progress.clone());
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
        let queues = self.queues.load();
        let names = message.accepted.routes.iter().filter(|name| route.is_none_or(|wanted| wanted == *name));
        names.filter_map(|name| find(&queues, &message.accepted.channel, name)).collect()
    }

    fn note(&self, id: MessageId, home: Seq, what: What) {
        let fact = Fact { id, home, at: self.clock.now_ms(), what };
        self.log.append_later(Append { fact, body: None, deliver: false });
    }
}

fn find(queues: &Queues, channel: &str, route: &str) -> Option<Arc<RouteQueue>> {
    queues.get(channel)?.iter().find(|q| &*q.route == route).cloned()
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
            let targets = this.targets(&accepted.channel, &accepted.routes[first..]);
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
                    Err(entry) => this.enqueue(&queue.channel, &queue.route, keys, entry),
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
            self.done(&progress);
        }
    }

    fn configure(&self, channels: Vec<(String, Vec<Arc<RouteWorker>>)>) {
        let mut wanted: HashMap<(String, String), Arc<RouteWorker>> = HashMap::new();
        for (channel, workers) in channels {
            for worker in workers {
                self.queue(&channel, &worker.route.name);
                wanted.insert((channel.clone(), worker.route.name.clone()), worker);
            }
        }
        let open = |channel: &str, route: &str| {
            let worker = wanted.get(&(channel.to_owned(), route.to_owned()));
            worker.is_some_and(|w: &Arc<RouteWorker>| !w.route.paused)
        };
        self.words.forget_resumed(open);
        let _configuring = self.configuring.lock().unwrap_or_else(|e| e.into_inner());
        let mut queues = Queues::clone(&self.queues.load());
        for (channel, list) in &mut queues {
            list.retain(|queue| {
                let worker = wanted.remove(&(channel.clone(), queue.route.to_string()));
                let gone = worker.is_none();
                queue.set_worker(worker);
                !(gone && queue.remove())
            });
        }
        queues.retain(|_, list| !list.is_empty());
        let all: Vec<_> = queues.values().flatten().cloned().collect();
        self.queues.store(Arc::new(queues));
        for queue in all {
            queue.pump();
        }
    }

    fn routes(&self) -> Vec<RouteStatus> {
        Pending { messages: self.gate.pending() }.emit();
        let now = self.clock.now_ms();
        let mut all: Vec<RouteStatus> = self.queues.load().values().flatten().map(|queue| queue.status(now)).collect();
        // A route that has gone is of interest as long as it holds something.
        all.retain(|r| r.configured || r.pending + r.parked + u64::from(r.in_flight) > 0);
        all.sort_by(|a, b| (&a.channel, !a.primary, &a.route).cmp(&(&b.channel, !b.primary, &b.route)));
        all
    }

    fn pause(&self, channel: &str, route: &str, paused: bool) -> Result<(), ControlError> {
        let queue = find(&self.queues.load(), channel, route)
            .ok_or_else(|| ControlError::NotFound(format!("route {route} of channel {channel}")))?;
        // Resumed as configured, its configuration counts again.
        let word = (paused || queue.is_paused_by_configuration()).then_some(paused);
        self.words.say(channel, route, word, || queue.pause(paused, word)).map_err(|error| {
            let now = if paused { "paused" } else { "resumed" };
            ControlError::Failed(format!("the route is {now}, but that will not outlive a restart: {error}"))
        })
    }

    fn requeue(&self, message: &Unfinished, route: Option<&str>) -> u32 {
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

    fn discard(&self, message: &Unfinished, route: Option<&str>) -> Result<u32, ControlError> {
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
                (Given::InHand, _) => {
                    refused = Some(format!(
                        "its delivery on route {name} is in hand now and cannot be discarded: hold the route with \
                         `hie route pause {channel} {name}`, wait until the attempt has ended, and try again"
                    ));
                    continue;
                }
                (Given::AtWork, _) => {
                    refused = Some(format!(
                        "its delivery waits on route {name}, which is at work: hold the route first with \
                         `hie route pause {channel} {name}`, or wait until it is delivered or parked"
                    ));
                    continue;
                }
                // The queue says `Parked` only of what is tracked.
                (Given::Nothing | Given::Parked, _) => continue,
            };
            self.note(envelope.id, message.seq, What::Discarded { route: name.to_string() });
            self.done(&progress);
            queue.pump();
            count += 1;
        }
        match (count, refused) {
            (0, Some(why)) => Err(ControlError::Conflict(why)),
            (count, _) => Ok(count),
        }
    }

    fn pending(&self) -> u64 {
        self.gate.pending()
    }

    fn drain(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let queues: Vec<_> = self.queues.load().values().flatten().cloned().collect();
            for queue in &queues {
                queue.close();
            }
            for queue in &queues {
                queue.idle().await;
            }
        })
    }
}
