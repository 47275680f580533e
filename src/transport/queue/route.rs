//! One route's queue and the tasks that work it off.

use super::{
    Owner,
    lanes::Place,
    progress::Progress,
    state::{Entry, Given, Hold, Job, State},
};
use crate::engine::{
    deliver::{RouteWorker, Verdict},
    fact::{BodyRef, RouteProgress},
    ports::{PausedBy, RouteStatus, Stored},
};
use crate::{
    channel::AfterPark,
    message::MessageId,
    telemetry::engine::{Parked, RoutePaused, RouteResumed},
};
use futures_util::FutureExt;
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

/// See the module.
pub struct RouteQueue {
    pub channel: Box<str>,
    pub route: Box<str>,
    /// Told what became of a message. Weak: queues belong to the transport.
    owner: Weak<dyn Owner>,
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
    idle: tokio::sync::Notify,
}

impl RouteQueue {
    /// `word`: what an operator said about it, see [`State::word`].
    pub fn new(
        channel: &str,
        route: &str,
        word: Option<bool>,
        owner: Weak<dyn Owner>,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        let state = State { word, paused: word.unwrap_or(false), ..State::default() };
        Arc::new(Self {
            channel: channel.into(),
            route: route.into(),
            owner,
            runtime,
            state: Mutex::new(state),
            idle: tokio::sync::Notify::new(),
        })
    }

    /// Puts a message behind all earlier ones of its keys; [`RouteQueue::pump`] follows. The entry comes back when this
    /// queue has been removed meanwhile: another one of the same name takes its place.
    pub fn push(&self, keys: &[u64], entry: Entry) -> Result<(), Entry> {
        let mut state = self.lock();
        if state.removed {
            return Err(entry);
        }
        state.push(keys, entry);
        Ok(())
    }

    /// A message that was set aside before the node started.
    pub fn restore_parked(&self, id: MessageId, keys: &[u64], mut entry: Entry) {
        let mut state = self.lock();
        let held = state.worker.as_ref().is_some_and(|w| w.after_park == AfterPark::Hold);
        entry.parked = true;
        let place = held.then(|| state.push(keys, entry));
        state.parked.insert(id, place);
    }

    /// Starts as many deliveries as may run now. Cheap when there is nothing to do; called from any thread.
    pub fn pump(self: &Arc<Self>) {
        loop {
            let job = {
                let mut state = self.lock();
                match state.next() {
                    Some(job) => job,
                    None => return,
                }
            };
            let this = self.clone();
            self.runtime.spawn(async move { this.work(job).await });
        }
    }

    /// Works off one message and then whatever is ready: one task lives as long as there is work for it.
    async fn work(self: Arc<Self>, mut job: Job) {
        loop {
            let delivered = AssertUnwindSafe(self.deliver(&mut job)).catch_unwind().await;
            // A bug in a connector must not stop the key for ever, nor lose the message.
            let verdict = delivered.unwrap_or_else(|_| job.not_attempted("internal error; see the log".into()));
            match self.settle(job, verdict) {
                Some(next) => job = next,
                None => return,
            }
        }
    }

    async fn deliver(&self, job: &mut Job) -> Verdict {
        let stored = match &job.hot {
            Some(hot) => hot.stored.clone(),
            None => match job.worker.log.accepted(job.progress.seq).await {
                // Its node had it no more, or it was damaged on the way: nothing is better than an empty message.
                Ok(accepted) if accepted.body == BodyRef::None && accepted.envelope.body_len > 0 => {
                    return job.not_attempted("its body is not in this node's ledger".into());
                }
                Ok(accepted) => {
                    let source = job.worker.log.clone();
                    Arc::new(Stored { seq: job.progress.seq, accepted, body: None, source })
                }
                Err(error) => return job.not_attempted(format!("cannot be read from the ledger: {error}")),
            },
        };
        job.worker.attempt(stored, job.attempt, job.inside).await
    }

    /// Acts on a verdict; gives the next job for the same task, if any.
    fn settle(self: &Arc<Self>, job: Job, verdict: Verdict) -> Option<Job> {
        let mut finished = None;
        let mut parked = None;
        let next = {
            let mut state = self.lock();
            state.in_flight -= 1;
            match verdict {
                Verdict::Delivered => {
                    state.reached();
                    state.last_error.clear();
                    finished = state.lanes.remove(job.place);
                }
                Verdict::Retry { error, .. } if state.lanes.get_mut(job.place).is_some_and(|entry| entry.withdrawn) => {
                    state.last_error = error;
                    state.lanes.remove(job.place);
                }
                Verdict::Retry { after, unreachable, inside, error } => {
                    state.last_error = error;
                    if let Some(entry) = state.lanes.get_mut(job.place) {
                        entry.attempts = job.attempt;
                        entry.inside = inside;
                        entry.in_hand = false;
                    }
                    if unreachable {
                        let wait = state.unreachable(&job.worker);
                        state.lanes.ready_first(job.place);
                        self.wake_after(wait);
                    } else {
                        state.reached();
                        self.retry_after(job.place, job.progress.clone(), after);
                    }
                }
                Verdict::Parked { error } => {
                    state.reached();
                    state.last_error = error;
                    let id = job.progress.id;
                    let withdrawn = state.lanes.get_mut(job.place).is_some_and(|entry| entry.withdrawn);
                    if job.worker.after_park == AfterPark::Hold && !withdrawn {
                        state.parked.insert(id, Some(job.place));
                        if let Some(entry) = state.lanes.get_mut(job.place) {
                            entry.hot = None;
                            entry.attempts = job.attempt;
                            entry.parked = true;
                            entry.in_hand = false;
                        }
                    } else {
                        state.lanes.remove(job.place);
                        if !withdrawn {
                            state.parked.insert(id, None);
                        }
                    }
                    parked = Some(job.progress.clone());
                    Parked { route: &job.worker.metrics, id, reason: &state.last_error }.emit();
                }
            }
            let next = state.next();
            if next.is_none() && state.in_flight == 0 {
                self.idle.notify_waiters();
            }
            next
        };
        if let Some(owner) = self.owner.upgrade() {
            if let Some(entry) = finished {
                owner.done(self, &entry.progress);
            }
            if let Some(progress) = parked {
                owner.parked(self, &progress);
            }
        }
        // Others may run beside this task: a lane was freed, or a probe got through.
        self.pump();
        next
    }

    fn retry_after(self: &Arc<Self>, place: Place, progress: Arc<Progress>, after: Duration) {
        let this = self.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(after).await;
            {
                let mut state = this.lock();
                // Given up meanwhile, its place may be another message's.
                if state.lanes.get_mut(place).is_some_and(|entry| Arc::ptr_eq(&entry.progress, &progress)) {
                    state.lanes.ready_last(place);
                }
            }
            this.pump();
        });
    }

    fn wake_after(self: &Arc<Self>, after: Duration) {
        let this = self.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(after).await;
            this.pump();
        });
    }

    /// The worker in force; `None` when the route is no longer configured.
    pub fn set_worker(&self, worker: Option<Arc<RouteWorker>>) {
        let mut state = self.lock();
        let configured = worker.as_ref().is_some_and(|w| w.route.paused);
        if worker.is_some() && !configured && state.word == Some(false) {
            state.word = None;
        }
        state.paused = state.word.unwrap_or(configured);
        state.worker = worker;
    }

    /// Removes the queue when nothing is in it; false when something is.
    pub fn remove(&self) -> bool {
        let mut state = self.lock();
        state.removed = state.lanes.is_empty() && state.parked.is_empty() && state.in_flight == 0;
        state.removed
    }

    /// Is it among the routes in force?
    pub fn is_configured(&self) -> bool {
        self.lock().worker.is_some()
    }

    /// Does a parked message hold its key?
    pub fn holds_key(&self) -> bool {
        self.lock().worker.as_ref().is_some_and(|w| w.after_park == AfterPark::Hold)
    }

    /// Does its channel file say so?
    pub fn is_paused_by_configuration(&self) -> bool {
        self.lock().worker.as_ref().is_some_and(|w| w.route.paused)
    }

    /// `word`: what outlives a reload and a restart.
    pub fn pause(self: &Arc<Self>, paused: bool, word: Option<bool>) {
        {
            let mut state = self.lock();
            state.paused = paused;
            state.word = word;
            if !paused {
                state.reached();
            }
            match &state.worker {
                Some(worker) if paused => RoutePaused { route: &worker.metrics }.emit(),
                Some(worker) => RouteResumed { route: &worker.metrics }.emit(),
                None => {}
            }
        }
        self.pump();
    }

    /// What is set aside is no longer this queue's.
    pub fn forget_parked(&self, id: MessageId) {
        self.lock().parked.remove(&id);
    }

    /// Puts a parked message back; false when it is not parked here.
    pub fn requeue(&self, id: MessageId, keys: &[u64], received_ms: i64, progress: Arc<Progress>) -> bool {
        let mut state = self.lock();
        match state.parked.remove(&id) {
            None => return false,
            Some(Some(place)) => {
                if let Some(entry) = state.lanes.get_mut(place) {
                    entry.parked = false;
                    entry.inside = 0;
                }
                state.lanes.ready_first(place);
            }
            Some(None) => {
                state.push(keys, Entry::restored(progress, RouteProgress::default(), received_ms));
            }
        }
        true
    }

    /// Gives a message up, see [`State::discard`].
    pub fn discard(&self, id: MessageId, keys: &[u64], tracked: bool) -> Given {
        self.lock().discard(id, keys, tracked)
    }

    /// Notes messages of a source as held, see [`State::hold`].
    pub fn hold(&self, source: u64, which: Hold) -> Vec<Arc<Progress>> {
        self.lock().hold(source, which)
    }

    /// How many messages are held here, those that are set aside not counted.
    pub fn held(&self) -> u64 {
        self.lock().lanes.iter().filter(|entry| entry.held && !entry.parked).count() as u64
    }

    /// Takes out what a source gave; what is in hand ends by itself, see [`RouteQueue::ended`].
    pub fn withdraw(&self, source: u64) -> Vec<MessageId> {
        self.lock().withdraw(source)
    }

    /// Resolves when nothing that a source gave is here any more.
    pub async fn ended(&self, source: u64) {
        while self.lock().holds(source) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Begins no attempt while suspended.
    pub fn suspend(self: &Arc<Self>, suspended: bool) {
        let before = std::mem::replace(&mut self.lock().suspended, suspended);
        if before && !suspended {
            self.pump();
        }
    }

    /// Takes nothing new from now on.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Resolves when nothing is in hand.
    pub async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.lock().in_flight == 0 {
                return;
            }
            idle.await;
        }
    }

    /// As it stands; also sets the gauges of its metrics.
    pub fn status(&self, now_ms: i64) -> RouteStatus {
        let state = self.lock();
        let parked = state.parked.len() as u64;
        let held = state.parked.values().filter(|p| p.is_some()).count() as u64;
        let oldest = state.lanes.iter().map(|e| e.received_ms).min();
        let last_error = match &state.worker {
            None => "not configured any more: bring the channel or route back, or `hie tx discard` what waits".into(),
            Some(_) => state.last_error.clone(),
        };
        if let Some(worker) = &state.worker {
            worker.metrics.pending.set(i64::try_from(state.lanes.len() as u64 - held).unwrap_or(i64::MAX));
            worker.metrics.parked.set(i64::try_from(parked).unwrap_or(i64::MAX));
            worker.metrics.paused.set(i64::from(state.paused));
            worker.metrics.oldest.set(oldest.map_or(0, |at| (now_ms - at).max(0) / 1000));
        }
        RouteStatus {
            channel: self.channel.to_string(),
            route: self.route.to_string(),
            primary: state.worker.as_ref().is_some_and(|w| w.route.primary),
            configured: state.worker.is_some(),
            paused: state.paused,
            paused_by: state.paused.then_some(match state.word {
                Some(_) => PausedBy::Operator,
                None => PausedBy::Configuration,
            }),
            pending: state.lanes.len() as u64 - held,
            in_flight: state.in_flight,
            parked,
            oldest_ms: oldest.map_or(0, |at| (now_ms - at).max(0)),
            last_error,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}
