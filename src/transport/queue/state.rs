//! What a route's queue holds: what waits, what is in hand, what is set aside. No tasks, no timers; under the queue's lock.

use super::{
    hot::Hot,
    lanes::{Lanes, Place},
    progress::Progress,
};
use crate::engine::{
    backoff,
    deliver::{RouteWorker, Verdict},
    fact::RouteProgress,
};
use crate::message::MessageId;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// One message on this route.
pub struct Entry {
    pub progress: Arc<Progress>,
    pub hot: Option<Arc<Hot>>,
    pub received_ms: i64,
    pub attempts: u32,
    /// The latest of them, as far as they failed inside the node.
    pub inside: u32,
    /// Set aside while it keeps its place (after_park = "hold").
    pub parked: bool,
    /// An attempt is being made.
    pub in_hand: bool,
    /// Who gave it, for [`State::withdraw`]; 0: the log.
    pub source: u64,
    /// Which of the source's deliveries it came with; rises.
    pub delivery: u64,
    /// The ledger has it, its source need not have it any longer.
    pub held: bool,
    /// Its number in the order of arrival; given by [`State::push`].
    arrival: u64,
    /// Withdrawn while an attempt was being made: not tried again here.
    pub withdrawn: bool,
}

impl Entry {
    /// A message just accepted.
    pub fn new(progress: Arc<Progress>, hot: Option<Arc<Hot>>, received_ms: i64) -> Self {
        Self { hot, ..Self::restored(progress, RouteProgress::default(), received_ms) }
    }

    /// A message that the log told of at start.
    pub fn restored(progress: Arc<Progress>, known: RouteProgress, received_ms: i64) -> Self {
        let RouteProgress { attempts, inside, held, .. } = known;
        let (parked, in_hand, withdrawn) = (false, false, false);
        let (source, delivery, arrival) = (0, 0, 0);
        Self { progress, hot: None, received_ms, attempts, inside, parked, in_hand, source, delivery, held, arrival, withdrawn }
    }
}

/// Which messages of a source to take over into the ledger, see [`State::hold`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Those of keys that are blocked: an attempt has failed, or it is set aside.
    Blocked,
    /// Those that came with the source's deliveries up to this one.
    Upto(u64),
}

/// What discarding one delivery came to.
pub enum Given {
    /// Given up; it was set aside.
    Parked,
    /// Given up; it was waiting.
    Waiting(Arc<Progress>),
    /// Not given up: an attempt is being made, or has just ended.
    InHand,
    /// Not given up: it waits, and the route is at work.
    AtWork,
    /// Nothing of it is here.
    Nothing,
}

impl Given {
    /// Why it was not given up, and what the operator can do; `None` when it was, or when nothing of it is here.
    pub fn refusal(&self, channel: &str, route: &str) -> Option<String> {
        match self {
            Self::InHand => Some(format!(
                "its delivery on route {route} is in hand now and cannot be discarded: hold the route with \
                 `hie route pause {channel} {route}`, wait until the attempt has ended, and try again"
            )),
            Self::AtWork => Some(format!(
                "its delivery waits on route {route}, which is at work: hold the route first with \
                 `hie route pause {channel} {route}`, or wait until it is delivered or parked"
            )),
            Self::Parked | Self::Waiting(_) | Self::Nothing => None,
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct State {
    pub lanes: Lanes<Entry>,
    /// Messages so far, for [`Entry::arrival`].
    pub arrivals: u64,
    /// Set aside: held in its lane (`Some`), or out of the way.
    pub parked: HashMap<MessageId, Option<Place>>,
    pub worker: Option<Arc<RouteWorker>>,
    pub in_flight: u32,
    pub paused: bool,
    /// What an operator said: paused, or resumed against the configuration. It outlives a reload and a restart.
    pub word: Option<bool>,
    pub closed: bool,
    /// Whoever gives the messages cannot be reached: another node may be at work on them.
    pub suspended: bool,
    /// No longer among the transport's queues.
    pub removed: bool,
    /// Nothing reaches the receiver: one probe at a time, after this moment.
    pub probe_at: Option<Instant>,
    pub unreachable_in_row: u32,
    pub last_error: String,
}

/// One message in hand.
pub struct Job {
    pub place: Place,
    pub progress: Arc<Progress>,
    pub hot: Option<Arc<Hot>>,
    pub attempt: u32,
    /// Attempts before it that failed inside the node, in a row.
    pub inside: u32,
    pub worker: Arc<RouteWorker>,
}

impl Job {
    pub fn not_attempted(&self, error: String) -> Verdict {
        self.worker.not_attempted(self.progress.id, self.progress.seq, self.attempt, self.inside, error)
    }
}

impl State {
    /// Puts a message behind all earlier ones of its keys.
    pub fn push(&mut self, keys: &[u64], mut entry: Entry) -> Place {
        self.arrivals += 1;
        entry.arrival = self.arrivals;
        self.lanes.push(keys, entry)
    }

    /// Notes messages of a source as held, and lets go of their bodies; gives them in the order of arrival. Of a key it is always all up
    /// to the latest of them: whoever takes over has the held ones before those that the source gives again.
    pub fn hold(&mut self, source: u64, which: Hold) -> Vec<Arc<Progress>> {
        let places = match which {
            Hold::Blocked => self.lanes.blocked(|entry| entry.attempts > 0 || entry.parked || entry.held),
            Hold::Upto(delivery) => {
                self.lanes.places(|entry| entry.source == source && entry.delivery <= delivery && !entry.held)
            }
        };
        let mut held = Vec::new();
        for place in places {
            if let Some(entry) = self.lanes.get_mut(place)
                && entry.source == source
                && !entry.held
            {
                entry.held = true;
                entry.hot = None;
                held.push((entry.arrival, entry.progress.clone()));
            }
        }
        held.sort_unstable_by_key(|(arrival, _)| *arrival);
        held.into_iter().map(|(_, progress)| progress).collect()
    }

    /// The next message to deliver, if one may be delivered now.
    pub fn next(&mut self) -> Option<Job> {
        if self.paused || self.closed || self.suspended {
            return None;
        }
        let worker = self.worker.clone()?;
        let limit = match self.probe_at {
            Some(at) if Instant::now() < at => return None,
            Some(_) => 1,
            None => worker.route.in_flight.max(1),
        };
        if self.in_flight >= limit {
            return None;
        }
        let place = loop {
            let place = self.lanes.take_ready()?;
            // What is set aside keeps its lane but is not worked on.
            if self.lanes.get_mut(place).is_some_and(|entry| !entry.parked) {
                break place;
            }
        };
        let entry = self.lanes.get_mut(place)?;
        let job = Job {
            place,
            progress: entry.progress.clone(),
            hot: entry.hot.clone(),
            attempt: entry.attempts.saturating_add(1),
            inside: entry.inside,
            worker,
        };
        entry.in_hand = true;
        self.in_flight += 1;
        Some(job)
    }

    /// Something got through.
    pub fn reached(&mut self) {
        self.probe_at = None;
        self.unreachable_in_row = 0;
    }

    /// Notes that nothing got through; gives the time until the next probe.
    pub fn unreachable(&mut self, worker: &RouteWorker) -> Duration {
        // Several deliveries in hand that fail together are one failure.
        if self.in_flight == 0 || self.probe_at.is_none() {
            self.unreachable_in_row = self.unreachable_in_row.saturating_add(1);
        }
        let wait = backoff::wait(&worker.route.retry, self.unreachable_in_row, rand::random());
        self.probe_at = Some(Instant::now() + wait);
        wait
    }

    /// Takes out what a source gave, as far as no attempt is being made; that is not tried again. Gives the ids.
    pub fn withdraw(&mut self, source: u64) -> Vec<MessageId> {
        let gone = self.lanes.remove_all(|entry| entry.source == source && !entry.in_hand);
        let gone: Vec<MessageId> = gone.into_iter().map(|entry| entry.progress.id).collect();
        for place in self.lanes.places(|entry| entry.source == source) {
            if let Some(entry) = self.lanes.get_mut(place) {
                entry.withdrawn = true;
            }
        }
        for id in &gone {
            self.parked.remove(id);
        }
        gone
    }

    /// Whether an attempt is being made for what a source gave.
    pub fn holds(&self, source: u64) -> bool {
        self.lanes.iter().any(|entry| entry.source == source)
    }

    /// Gives up what is set aside, and what waits on a route that is held or no longer configured. `tracked`: what is set
    /// aside has been noted as such everywhere.
    pub fn discard(&mut self, id: MessageId, keys: &[u64], tracked: bool) -> Given {
        if self.parked.contains_key(&id) {
            if !tracked {
                return Given::InHand;
            }
            if let Some(Some(place)) = self.parked.remove(&id) {
                self.lanes.remove(place);
            }
            return Given::Parked;
        }
        let Some(place) = self.lanes.find(keys, |entry| entry.progress.id == id) else { return Given::Nothing };
        match self.lanes.get_mut(place) {
            Some(entry) if entry.in_hand => Given::InHand,
            Some(_) if self.worker.is_some() && !self.paused => Given::AtWork,
            _ => self.lanes.remove(place).map_or(Given::Nothing, |entry| Given::Waiting(entry.progress)),
        }
    }
}
