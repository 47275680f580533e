//! The queues of all routes: found by name, made when needed, kept as long as they hold something.

use super::{Owner, route::RouteQueue, state::Entry, words::Words};
use crate::engine::{
    deliver::RouteWorker,
    ports::{ChannelWork, ControlError, Pauses, RouteStatus},
};
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering::Acquire, Ordering::Release},
    },
};

/// The queues of one channel, the primary route's first.
type Queues = HashMap<String, Vec<Arc<RouteQueue>>>;

/// See the module.
pub struct QueueSet {
    owner: Weak<dyn Owner>,
    runtime: tokio::runtime::Handle,
    words: Words,
    suspended: AtomicBool,
    queues: ArcSwap<Queues>,
    /// Makes and replaces queues; deliveries do not take it.
    configuring: Mutex<()>,
}

impl QueueSet {
    /// No queue yet. `runtime`: where deliveries run.
    pub fn new(owner: Weak<dyn Owner>, pauses: Arc<dyn Pauses>, runtime: tokio::runtime::Handle) -> Self {
        let words = Words::new(pauses);
        Self { owner, runtime, words, suspended: AtomicBool::new(false), queues: ArcSwap::default(), configuring: Mutex::new(()) }
    }

    /// The queue of a route, when there is one.
    pub fn find(&self, channel: &str, route: &str) -> Option<Arc<RouteQueue>> {
        find(&self.queues.load(), channel, route)
    }

    /// The queue of a route; made when it is not there (a route that is no longer configured keeps what it holds).
    pub fn queue(&self, channel: &str, route: &str) -> Arc<RouteQueue> {
        if let Some(queue) = self.find(channel, route) {
            return queue;
        }
        let _configuring = self.configuring.lock().unwrap_or_else(|e| e.into_inner());
        let mut queues = Queues::clone(&self.queues.load());
        if let Some(queue) = find(&queues, channel, route) {
            return queue;
        }
        let word = self.words.about(channel, route);
        let queue = RouteQueue::new(channel, route, word, self.owner.clone(), self.runtime.clone());
        queue.suspend(self.suspended.load(Acquire));
        queues.entry(channel.to_owned()).or_default().push(queue.clone());
        self.queues.store(Arc::new(queues));
        queue
    }

    /// Begins no attempt on any route while suspended.
    pub fn suspend(&self, suspended: bool) {
        let _configuring = self.configuring.lock().unwrap_or_else(|e| e.into_inner());
        self.suspended.store(suspended, Release);
        self.all().iter().for_each(|queue| queue.suspend(suspended));
    }

    /// Puts a message into a route's queue, whichever one that is now; [`RouteQueue::pump`] follows.
    pub fn enqueue(&self, channel: &str, route: &str, keys: &[u64], mut entry: Entry) -> Arc<RouteQueue> {
        loop {
            let queue = self.queue(channel, route);
            match queue.push(keys, entry) {
                Ok(()) => return queue,
                Err(back) => entry = back,
            }
        }
    }

    /// The queues of these routes.
    pub fn targets(&self, channel: &str, routes: &[String]) -> Vec<Arc<RouteQueue>> {
        let queues = self.queues.load();
        let known = queues.get(channel).map(Vec::as_slice).unwrap_or_default();
        let one = |name: &String| known.iter().find(|q| *q.route == **name).cloned().unwrap_or_else(|| self.queue(channel, name));
        routes.iter().map(one).collect()
    }

    /// Every queue.
    pub fn all(&self) -> Vec<Arc<RouteQueue>> {
        self.queues.load().values().flatten().cloned().collect()
    }

    /// Starts the workers on what waits.
    pub fn pump(&self) {
        for queue in self.queues.load().values().flatten() {
            queue.pump();
        }
    }

    /// The channels and their workers now in force; queues of routes that are gone keep what they hold.
    pub fn configure(&self, channels: Vec<ChannelWork>) {
        let mut wanted: HashMap<(String, String), Arc<RouteWorker>> = HashMap::new();
        for ChannelWork { name: channel, workers, .. } in channels {
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
        {
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
            self.queues.store(Arc::new(queues));
        }
        self.pump();
    }

    /// All routes as they stand.
    pub fn status(&self, now_ms: i64) -> Vec<RouteStatus> {
        let mut all: Vec<RouteStatus> = self.queues.load().values().flatten().map(|queue| queue.status(now_ms)).collect();
        // A route that has gone is of interest as long as it holds something.
        all.retain(|r| r.configured || r.pending + r.parked + u64::from(r.in_flight) > 0);
        all.sort_by(|a, b| (&a.channel, !a.primary, &a.route).cmp(&(&b.channel, !b.primary, &b.route)));
        all
    }

    /// Pauses or resumes a route, and keeps that over restarts. [`ControlError::Failed`]: done, but not kept.
    pub fn pause(&self, channel: &str, route: &str, paused: bool) -> Result<(), ControlError> {
        let queue =
            self.find(channel, route).ok_or_else(|| ControlError::NotFound(format!("route {route} of channel {channel}")))?;
        // Resumed as configured, its configuration counts again.
        let word = (paused || queue.is_paused_by_configuration()).then_some(paused);
        self.words.say(channel, route, word, || queue.pause(paused, word)).map_err(|error| {
            let now = if paused { "paused" } else { "resumed" };
            ControlError::Failed(format!("the route is {now}, but that will not outlive a restart: {error}"))
        })
    }

    /// Resolves when nothing is in a worker's hand; from the call on, workers take nothing new.
    pub async fn drain(&self) {
        let queues = self.all();
        for queue in &queues {
            queue.close();
        }
        for queue in &queues {
            queue.idle().await;
        }
    }
}

fn find(queues: &Queues, channel: &str, route: &str) -> Option<Arc<RouteQueue>> {
    queues.get(channel)?.iter().find(|q| &*q.route == route).cloned()
}
