//! The transport over RabbitMQ: joins accepting, inboxes, routes and shipping into the engine's [`Transport`].

mod consumers;
mod operators;
mod sight;
mod turnover;

pub use sight::{LayoutSight, LinkSight, MemberSight, PastSight, QueueSight, Sight};

use super::{
    Depth, Link, Publisher, PublisherLimits, TopologyError,
    accepting::{self, Accepting, Spooled},
    admission::{Admission, LayoutKeeper},
    declared::{Declared, Making},
    hands::{Hands, route_number},
    shipping::Shipping,
    targets::{self, Targets},
    topology,
    wire::Parcel,
    work::Shared,
};
use crate::channel::{Mode, Outage};
use crate::config::Layout;
use crate::engine::{
    fact::{Accepted, RouteState, Seq, What},
    gate::Gate,
    ports::{Append, ChannelWork, Clock, ControlError, Log, LogError, Pauses, Recent, RouteStatus, Transport, Unfinished},
    replica::Replica,
    resend::ResendWindow,
};
use crate::telemetry::{cluster as events, engine::Pending};
use crate::transport::queue::{Owner, hot::HotBudget, progress::Progress, route::RouteQueue, set::QueueSet};
use futures_util::future::BoxFuture;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often the lease is looked at …
const LEASE_LOOK: Duration = Duration::from_millis(250);
/// … and the broker asked what waits.
const DEPTH_LOOK: Duration = Duration::from_secs(2);
/// What the end may take: what is noted reaches the stream, members hear of it.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What the transport is made of.
pub struct Parts {
    pub log: Arc<dyn Log>,
    pub replica: Arc<dyn Replica>,
    pub clock: Arc<dyn Clock>,
    /// Pushes back when too much waits in the broker.
    pub gate: Arc<Gate>,
    pub pauses: Arc<dyn Pauses>,
    /// The window of the accepting side, told what became durable.
    pub resend: Arc<ResendWindow>,
    /// The window of the consuming side.
    pub resends: Arc<ResendWindow>,
    /// Where everything runs.
    pub runtime: tokio::runtime::Handle,
    pub link: Link,
    /// Bytes of bodies to keep at hand.
    pub hot_bodies: u64,
    /// How queues are made; names the domain.
    pub making: Making,
    /// This node's name: unique in its domain.
    pub node: String,
    /// Partitions of each queue, as this node knows them at start.
    pub layout: Layout,
    /// Remembers them.
    pub keeper: Arc<dyn LayoutKeeper>,
    /// AMQP heartbeat.
    pub heartbeat: Duration,
    /// Bodies up to this size travel through the broker.
    pub inline: u64,
    /// Unacknowledged deliveries per partition.
    pub prefetch: u16,
    /// A publication without a confirm for so long is repeated.
    pub confirm_timeout: Duration,
    /// Without a confirm of the broker for so long, no delivery is begun.
    pub lease: Duration,
    /// Unacknowledged deliveries are handed back after this.
    pub hold: Duration,
}

/// A channel's consumers, and what its accepting side needs to know.
struct Channel {
    outage: Outage,
    several_keys: Arc<AtomicBool>,
    accepting: Vec<Accepting>,
    /// Of the inbox, and of each route.
    inbox: CancellationToken,
    routes: HashMap<String, CancellationToken>,
}

/// See the module.
pub struct Rabbit {
    this: Weak<Self>,
    shared: Arc<Shared>,
    accepting: Arc<accepting::Shared>,
    link: Link,
    gate: Arc<Gate>,
    resend: Arc<ResendWindow>,
    hot: Arc<HotBudget>,
    queues: Arc<QueueSet>,
    domain: Arc<str>,
    /// Tasks that accept for a channel: as many as there were partitions at start.
    lanes: u16,
    lease: Duration,
    heartbeat: Duration,
    keeper: Arc<dyn LayoutKeeper>,
    runtime: tokio::runtime::Handle,
    /// Consumers, by epoch.
    consumers: Mutex<BTreeMap<u64, consumers::Epoch>>,
    channels: Mutex<HashMap<String, Channel>>,
    /// The accepting sides of channels that are no longer configured: they hold what they have spooled.
    retired: Mutex<HashMap<String, Vec<Accepting>>>,
    /// What waits in the broker, by queue, as last seen.
    depths: Mutex<HashMap<Arc<str>, Depth>>,
    /// That many of them are counted in the gate.
    counted: AtomicU64,
    launched: AtomicBool,
}

impl Rabbit {
    /// Without any channel yet; nothing runs before [`Rabbit::launch`].
    pub fn new(parts: Parts) -> Arc<Self> {
        let queues = Arc::new(Declared::new(parts.making.clone()));
        let link = parts.link.clone();
        let limits = PublisherLimits { confirm_timeout: parts.confirm_timeout, ..PublisherLimits::default() };
        let admission = Admission::new(parts.layout, parts.lease);
        let shipping = Shipping::new(
            parts.replica.clone(),
            link.clone(),
            queues.clone(),
            admission,
            &parts.node,
            limits.clone(),
            &parts.runtime,
        );
        let shared = Arc::new(Shared {
            link: link.clone(),
            log: parts.log.clone(),
            replica: parts.replica.clone(),
            clock: parts.clock.clone(),
            shipping: shipping.clone(),
            queues: queues.clone(),
            hands: Hands::default(),
            resends: parts.resends,
            routes: Publisher::start(&link, "routes", limits.clone(), &parts.runtime),
            prefetch: parts.prefetch,
            hold: parts.hold,
            closing: CancellationToken::new(),
            active: Mutex::default(),
        });
        let accepting = Arc::new(accepting::Shared {
            link,
            log: parts.log,
            replica: parts.replica,
            clock: parts.clock,
            shipping,
            inline: parts.inline,
            limits,
            spooled: AtomicU64::new(0),
        });
        Arc::new_cyclic(|this: &Weak<Self>| {
            let owner: Weak<dyn Owner> = this.clone();
            Self {
                this: this.clone(),
                shared,
                accepting,
                link: parts.link,
                gate: parts.gate,
                resend: parts.resend,
                hot: HotBudget::new(parts.hot_bodies),
                queues: Arc::new(QueueSet::new(owner, parts.pauses, parts.runtime.clone())),
                domain: parts.making.domain.into(),
                lanes: parts.layout.partitions.max(1),
                lease: parts.lease,
                heartbeat: parts.heartbeat,
                keeper: parts.keeper,
                runtime: parts.runtime,
                consumers: Mutex::default(),
                channels: Mutex::default(),
                retired: Mutex::default(),
                depths: Mutex::default(),
                counted: AtomicU64::new(0),
                launched: AtomicBool::new(false),
            }
        })
    }

    /// Puts back what this node accepted into its own log and did not hand to the broker; to be called in log order, before
    /// [`Rabbit::launch`]. A proxied request that was with its upstream when the node ended is recorded as unknown.
    pub fn restore(&self, message: Unfinished) {
        let Unfinished { seq, accepted, routes } = message;
        let id = accepted.envelope.id;
        let proxied = accepted.mode == Mode::Proxy;
        // What the ledger holds has its partition's consumer, wherever that is.
        let waits = |at: usize| {
            let route = routes.get(at).copied().unwrap_or_default();
            route.state == RouteState::Waiting && !route.held
        };
        let whole = proxied && waits(0) && accepted.idempotent;
        if proxied && waits(0) && !whole {
            self.shared.note(id, seq, What::Unknown);
        }
        if whole || (usize::from(proxied)..accepted.routes.len()).any(waits) {
            let spooled = Spooled { seq, id, whole };
            if let Err(spooled) = self.accept_side(&accepted, spooled, Accepting::restore) {
                // Its channel is not configured now: what was accepted goes to its inbox all the same, where it waits.
                let mut retired = self.retired.lock().unwrap_or_else(|e| e.into_inner());
                let sides = retired
                    .entry(accepted.channel.clone())
                    .or_insert_with(|| self.accepting_sides(&accepted.channel, Outage::Spool, &Arc::default()));
                if let Some(side) = sides.get(usize::from(targets::partition(&accepted, false, self.lanes))) {
                    side.restore(spooled);
                }
            }
        }
    }

    /// A message whose repetition may come, as the log tells at start.
    pub fn remember(&self, message: Recent) {
        self.shared.resends.restore(message);
    }

    /// Starts everything: shipping, reading, consumers, the watch over the lease.
    pub fn launch(&self) {
        let queues = self.queues.clone();
        let on_word = move |channel: &str, route: &str, paused: bool| {
            // A route that is not here has nothing to pause; a word that cannot be kept is told by its own node.
            let _ = queues.pause(channel, route, paused);
        };
        self.shared.shipping.start(&self.runtime, Box::new(on_word));
        let this = self.this.clone();
        self.runtime.spawn(watch_lease(this.clone()));
        self.runtime.spawn(watch_depths(this.clone(), self.shared.closing.clone()));
        self.launched.store(true, Release);
        self.runtime.spawn(turnover::watch(this, self.shared.closing.clone()));
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<String, Channel>> {
        self.channels.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The queue of a route to which a message belongs now: of the newest epoch, with its channel as it is configured.
    fn route_now(&self, accepted: &Accepted, route: &str) -> Arc<str> {
        let several_keys = self.channels().get(&accepted.channel).is_some_and(|c| c.several_keys.load(Acquire));
        let layout = self.shared.admission().see(|epochs| epochs.layout());
        let partition = targets::partition(accepted, several_keys, layout.partitions);
        topology::route(&self.domain, &accepted.channel, route, partition, layout.epoch)
    }

    /// Gives something to the accepting side of a message's partition; gives it back when its channel is not configured.
    fn accept_side<G, T>(&self, accepted: &Accepted, given: G, then: impl FnOnce(&Accepting, G) -> T) -> Result<T, G> {
        let channels = self.channels();
        let Some(channel) = channels.get(&accepted.channel) else { return Err(given) };
        let lane = targets::partition(accepted, channel.several_keys.load(Acquire), self.lanes);
        match channel.accepting.get(usize::from(lane)) {
            Some(side) => Ok(then(side, given)),
            None => Err(given),
        }
    }

    fn accepting_sides(&self, channel: &str, outage: Outage, several_keys: &Arc<AtomicBool>) -> Vec<Accepting> {
        let start = |_| {
            let targets = Targets::new(self.domain.clone(), channel.into(), several_keys.clone());
            Accepting::start(targets, outage, self.accepting.clone(), self.shared.queues.clone(), &self.runtime)
        };
        (0..self.lanes).map(start).collect()
    }

    /// Messages that wait in the broker for a route.
    fn depth(&self, channel: &str, route: &str) -> u64 {
        let depths = self.depths.lock().unwrap_or_else(|e| e.into_inner());
        let of = |(epoch, p)| topology::route(&self.domain, channel, route, p, epoch);
        self.partitions().map(of).map(|queue| depths.get(&queue).map_or(0, |d| u64::from(d.messages))).sum()
    }

    /// Every partition of every epoch whose queues are worked on: epoch and number.
    fn partitions(&self) -> impl Iterator<Item = (u64, u16)> + Clone + use<> {
        let epochs = self.shared.admission().see(|epochs| epochs.in_use());
        epochs.into_iter().flat_map(|(epoch, partitions)| (0..partitions).map(move |p| (epoch, p)))
    }

    /// The queues of all partitions of all channels.
    fn queue_names(&self) -> Vec<Arc<str>> {
        self.each_queue().into_iter().map(|(queue, ..)| queue).collect()
    }

    /// Takes what the broker says into account.
    fn note_depths(&self, asked: &[Arc<str>], answers: Vec<Result<Depth, TopologyError>>) {
        let waiting = {
            let asked_for: HashSet<&Arc<str>> = asked.iter().collect();
            // Those of channels that are gone hold up nobody.
            self.shared.queues.retain(|queue| asked_for.contains(queue));
            let mut depths = self.depths.lock().unwrap_or_else(|e| e.into_inner());
            depths.retain(|queue, _| asked_for.contains(queue));
            for (queue, answer) in asked.iter().zip(answers) {
                if let Ok(depth) = answer {
                    depths.insert(queue.clone(), depth);
                }
            }
            depths.values().map(|d| u64::from(d.messages)).sum::<u64>()
        };
        let held: u64 = self.shared.replica.held_counts().iter().map(|route| route.waiting).sum();
        events::InLedger { messages: held }.emit();
        let now = waiting + held + self.shared.hands.handed_out() as u64 + self.accepting.spooled();
        let before = self.counted.swap(now, AcqRel);
        if now > before {
            self.gate.add(now - before);
        } else {
            self.gate.remove(before - now);
        }
    }
}

/// Without a confirm within the lease no delivery is begun: the broker may have given the partitions to others.
async fn watch_lease(this: Weak<Rabbit>) {
    loop {
        tokio::time::sleep(LEASE_LOOK).await;
        let Some(this) = this.upgrade() else { return };
        this.queues.suspend(!this.shared.shipping.heard_within(this.lease));
    }
}

async fn watch_depths(this: Weak<Rabbit>, closing: CancellationToken) {
    while !closing.is_cancelled() {
        let _ = tokio::time::timeout(DEPTH_LOOK, closing.cancelled()).await;
        let Some(this) = this.upgrade() else { return };
        let Some(session) = this.link.try_session() else { continue };
        let names = this.queue_names();
        let asked = tokio::time::timeout(DEPTH_LOOK, topology::depths(&session, &names));
        // A broker that does not tell says so elsewhere; a queue that cannot be asked keeps its number.
        if let Ok(answers) = asked.await {
            this.note_depths(&names, answers);
        }
    }
}

impl Owner for Rabbit {
    fn done(&self, queue: &RouteQueue, progress: &Arc<Progress>) {
        self.shared.hands.done((route_number(&queue.channel, &queue.route), progress.id));
    }

    fn parked(&self, queue: &RouteQueue, progress: &Arc<Progress>) {
        // What holds its key stays in hand; all else the ledger knows, and an operator can ask for it on any node.
        if !queue.holds_key() {
            queue.forget_parked(progress.id);
            self.shared.hands.done((route_number(&queue.channel, &queue.route), progress.id));
        }
    }
}

impl Transport for Arc<Rabbit> {
    fn accept(&self, record: Append) -> BoxFuture<'static, Result<Seq, LogError>> {
        let What::Accepted(accepted) = &record.fact.what else { return self.shared.log.append(record) };
        let (id, key, mode) = (record.fact.id, accepted.resend_key, accepted.mode);
        if mode == Mode::Queue {
            let parcel = Parcel { accepted: (**accepted).clone(), body: record.body.clone(), requeued: false };
            let Ok(answer) = self.accept_side(accepted, parcel, |side, parcel| side.accept(parcel, None)) else {
                return Box::pin(std::future::ready(Err(LogError::Failed("the channel is gone".into()))));
            };
            let resend = self.resend.clone();
            return Box::pin(async move {
                let seq = answer.await?;
                if key != 0 {
                    resend.committed(std::iter::once((key, id, seq)));
                }
                Ok(seq)
            });
        }
        // Durable here before it is forwarded; its secondary routes are served through the broker.
        let secondaries = accepted.routes.len() > 1;
        let (parcel, this) =
            (Parcel { accepted: (**accepted).clone(), body: record.body.clone(), requeued: false }, self.clone());
        let stored = self.shared.log.append(Append { deliver: false, ..record });
        Box::pin(async move {
            let seq = stored.await?;
            if secondaries {
                let accepted = parcel.accepted.clone();
                if let Ok(answer) = this.accept_side(&accepted, parcel, |side, parcel| side.accept(parcel, Some(seq)))
                    && let Err(error) = answer.await
                {
                    // The sender is told that it was not taken, and nothing has been forwarded.
                    for route in accepted.routes {
                        this.shared.note(accepted.envelope.id, seq, What::Discarded { route });
                    }
                    return Err(error);
                }
            }
            Ok(seq)
        })
    }

    fn answered(&self, _: Seq) {
        // The views say when a proxied message is finished; nothing of it is held here.
    }

    fn configure(&self, channels: Vec<ChannelWork>) {
        let launched = self.launched.load(Acquire);
        {
            let mut known = self.channels();
            for work in &channels {
                let name = &work.name;
                let fresh = !known.contains_key(name);
                let channel = known.entry(name.clone()).or_insert_with(|| Channel {
                    outage: work.outage,
                    several_keys: Arc::new(AtomicBool::new(work.several_keys)),
                    accepting: Vec::new(),
                    inbox: CancellationToken::new(),
                    routes: HashMap::new(),
                });
                if fresh {
                    // One that was removed and comes back goes on with what it has spooled.
                    let retired = self.retired.lock().unwrap_or_else(|e| e.into_inner()).remove(name);
                    let several = channel.several_keys.clone();
                    channel.accepting = retired.unwrap_or_else(|| self.accepting_sides(name, work.outage, &several));
                }
                channel.accepting.iter().for_each(|side| side.set_outage(work.outage));
                channel.outage = work.outage;
                channel.several_keys.store(work.several_keys, Release);
                for worker in &work.workers {
                    let route = &worker.route.name;
                    if !channel.routes.contains_key(route) {
                        let gone = CancellationToken::new();
                        channel.routes.insert(route.clone(), gone.clone());
                        if launched {
                            self.consume(name, Some(route), &gone);
                        }
                    }
                }
                channel.routes.retain(|route, gone| {
                    let stays = work.workers.iter().any(|w| w.route.name == *route);
                    if !stays {
                        gone.cancel();
                    }
                    stays
                });
                if fresh && launched {
                    self.consume(name, None, &channel.inbox);
                }
            }
            known.retain(|name, channel| {
                let stays = channels.iter().any(|work| work.name == *name);
                if !stays {
                    channel.inbox.cancel();
                    channel.routes.values().for_each(CancellationToken::cancel);
                    // What it has spooled is still handed on.
                    let sides = std::mem::take(&mut channel.accepting);
                    self.retired.lock().unwrap_or_else(|e| e.into_inner()).insert(name.clone(), sides);
                }
                stays
            });
        }
        self.queues.configure(channels);
    }

    fn routes(&self) -> Vec<RouteStatus> {
        Pending { messages: self.gate.pending() }.emit();
        let mut all = self.queues.status(self.shared.clock.now_ms());
        for route in &mut all {
            route.pending += self.depth(&route.channel, &route.route);
        }
        self.count_held(&mut all);
        all
    }

    fn pause(&self, channel: &str, route: &str, paused: bool) -> Result<(), ControlError> {
        self.queues.pause(channel, route, paused)?;
        let (shipping, channel, route) = (self.shared.shipping.clone(), channel.to_owned(), route.to_owned());
        // The others hear of it as soon as the broker takes it.
        self.runtime.spawn(async move {
            while !shipping.word(&channel, &route, paused).await {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        Ok(())
    }

    fn requeue<'a>(&'a self, message: &'a Unfinished, route: Option<&'a str>) -> BoxFuture<'a, Result<u32, ControlError>> {
        Box::pin(self.put_back(message, route))
    }

    fn discard<'a>(&'a self, message: &'a Unfinished, route: Option<&'a str>) -> BoxFuture<'a, Result<u32, ControlError>> {
        Box::pin(std::future::ready(self.give_up(message, route)))
    }

    fn pending(&self) -> u64 {
        self.gate.pending()
    }

    fn drain(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.closing.cancel();
            // The others need not wait until they miss it.
            let _ = tokio::time::timeout(LAST_WORDS, self.shared.shipping.leave()).await;
            self.queues.drain().await;
            // Each acknowledges what has ended, and hands the rest back.
            let _ = tokio::time::timeout(LAST_WORDS * 2, self.consumers_ended()).await;
            // Whoever takes this machine away should not find messages on its disk only.
            let emptied = async {
                while self.accepting.spooled() > 0 {
                    tokio::time::sleep(LEASE_LOOK).await;
                }
            };
            if tokio::time::timeout(LAST_WORDS, emptied).await.is_err() {
                events::SpoolKept { messages: self.accepting.spooled() }.emit();
            }
            self.channels().clear();
            self.retired.lock().unwrap_or_else(|e| e.into_inner()).clear();
            let last_words = async {
                // What was noted last belongs to everybody.
                let _ = self.shared.settled().await;
            };
            let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
            self.link.close().await;
        })
    }
}
