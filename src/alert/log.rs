//! What happened lately, numbered, for the management API and the live feed; and the handle that both hold.

use super::{Alert, book::Turn};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, OnceLock},
};
use tokio::sync::{mpsc, oneshot};

/// Events remembered.
const REMEMBERED: usize = 1000;

/// Something that happened to an alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one, also over restarts.
    pub id: u64,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// `firing`, `changed` (another severity) or `resolved`.
    pub kind: String,
    pub alert: Alert,
}

impl Event {
    pub(super) fn new(id: u64, at_ms: i64, turn: Turn, alert: Alert) -> Self {
        let kind = match turn {
            Turn::Began => "firing",
            Turn::Changed => "changed",
            Turn::Ended => "resolved",
        };
        Self { id, at_ms, kind: kind.into(), alert }
    }

    /// What a reader gets: kind and JSON.
    fn shown(&self) -> (u64, &'static str, Value) {
        let kind = match self.kind.as_str() {
            "firing" => "firing",
            "resolved" => "resolved",
            _ => "changed",
        };
        (self.id, kind, serde_json::to_value(self).unwrap_or_default())
    }
}

/// What became of a test notification.
#[derive(Clone, Debug, Serialize)]
pub struct Tested {
    /// `webhook` or `mail`.
    pub kind: &'static str,
    /// The receiver.
    pub receiver: String,
    /// Did it take the notification?
    pub arrived: bool,
    /// Why not; empty when it did.
    pub error: String,
}

/// A wish to have every receiver tested.
pub(super) type TestWish = oneshot::Sender<Vec<Tested>>;

#[derive(Default)]
struct State {
    active: Vec<Alert>,
    events: VecDeque<Event>,
    next: u64,
    /// The latest event that readers may see: it is on disk, so that no crash gives its number to another one.
    shown: u64,
}

/// The alerts as others see them.
pub struct Alerts {
    state: Mutex<State>,
    /// Called with the number of each new event.
    told: OnceLock<Box<dyn Fn(u64) + Send + Sync>>,
    wishes: mpsc::Sender<TestWish>,
}

impl Alerts {
    /// The handle, and where wishes for a test arrive.
    pub(super) fn new(active: Vec<Alert>, events: Vec<Event>, next: u64) -> (Self, mpsc::Receiver<TestWish>) {
        let (wishes, wished) = mpsc::channel(1);
        let next = events.last().map_or(1, |last| last.id + 1).max(next).max(1);
        let state = Mutex::new(State { active, events: events.into(), next, shown: next - 1 });
        (Self { state, told: OnceLock::new(), wishes }, wished)
    }

    /// One that nothing ever happens to: for a management API without a node.
    pub fn none() -> Self {
        Self::new(Vec::new(), Vec::new(), 1).0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What is wrong now, the worst first.
    pub fn active(&self) -> Vec<Alert> {
        self.lock().active.clone()
    }

    /// The latest events, newest first.
    pub fn recent(&self, most: usize) -> Vec<Event> {
        let state = self.lock();
        state.events.iter().rev().filter(|event| event.id <= state.shown).take(most).cloned().collect()
    }

    /// Number of the latest event; 0: there was none.
    pub fn latest(&self) -> u64 {
        self.lock().shown
    }

    /// Number of the oldest event that is remembered; 0: there is none.
    pub fn oldest(&self) -> u64 {
        self.lock().events.front().map_or(0, |event| event.id)
    }

    /// At most `most` events after the one with this number, oldest first: number, kind, JSON. As far back as they are remembered.
    pub fn since(&self, id: u64, most: usize) -> Vec<(u64, &'static str, Value)> {
        let state = self.lock();
        let after = state.events.iter().filter(|event| event.id > id && event.id <= state.shown);
        after.take(most).map(Event::shown).collect()
    }

    /// Calls with the number of each new event once [`Alerts::since`] gives it, on the thread of the alerts: it must be quick and not
    /// block. The first one given stays.
    pub fn on_event(&self, told: impl Fn(u64) + Send + Sync + 'static) {
        let _ = self.told.set(Box::new(told));
    }

    /// Sends a test notification to every receiver; what became of each. `None`: nobody runs who could, or another test is
    /// waiting.
    pub async fn test(&self) -> Option<Vec<Tested>> {
        let (done, told) = oneshot::channel();
        self.wishes.try_send(done).ok()?;
        told.await.ok()
    }

    pub(super) fn next_id(&self) -> u64 {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        id
    }

    pub(super) fn put(&self, active: Vec<Alert>, new: &[Event]) {
        let mut state = self.lock();
        state.active = active;
        state.events.extend(new.iter().cloned());
        while state.events.len() > REMEMBERED {
            state.events.pop_front();
        }
    }

    /// Shows new events to readers, once they are on disk.
    pub(super) fn publish(&self, new: &[Event]) {
        if let Some(last) = new.last() {
            self.lock().shown = last.id;
        }
        if let Some(told) = self.told.get() {
            new.iter().for_each(|event| told(event.id));
        }
    }

    pub(super) fn kept(&self) -> (u64, Vec<Alert>, Vec<Event>) {
        let state = self.lock();
        (state.next, state.active.clone(), state.events.iter().cloned().collect())
    }
}
