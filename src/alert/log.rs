//! What happened lately, numbered, for the management API and the live feed; and the handle that both hold.

use super::{Alert, book::Turn};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{mpsc, oneshot};

/// Events remembered.
const REMEMBERED: usize = 1000;
/// Called when there are new events; must not block.
pub type Wake = Box<dyn Fn() + Send + Sync>;

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
}

/// The alerts as others see them.
pub struct Alerts {
    state: Mutex<State>,
    wake: OnceLock<Wake>,
    /// The highest number that is on disk: no reader sees a number that a crash would give again.
    shown: AtomicU64,
    wishes: mpsc::Sender<TestWish>,
}

impl Alerts {
    /// The handle, and where wishes for a test arrive.
    pub(super) fn new(active: Vec<Alert>, events: Vec<Event>, next: u64) -> (Self, mpsc::Receiver<TestWish>) {
        let (wishes, wished) = mpsc::channel(1);
        let next = events.last().map_or(1, |last| last.id + 1).max(next).max(1);
        let shown = AtomicU64::new(events.last().map_or(0, |last| last.id));
        let state = Mutex::new(State { active, events: events.into(), next });
        (Self { state, wake: OnceLock::new(), shown, wishes }, wished)
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
        self.lock().events.iter().rev().take(most).cloned().collect()
    }

    /// The events after the one with this number, oldest first: number, kind, JSON. As far back as they are remembered.
    pub fn since(&self, id: u64) -> Vec<(u64, &'static str, Value)> {
        let shown = self.latest();
        self.lock().events.iter().filter(|event| event.id > id && event.id <= shown).map(Event::shown).collect()
    }

    /// Number of the latest event; 0: there was none.
    pub fn latest(&self) -> u64 {
        self.shown.load(Ordering::Acquire)
    }

    /// The lowest number from which on all events are remembered; 1: all there ever were.
    pub fn complete_from(&self) -> u64 {
        let state = self.lock();
        state.events.front().map_or(state.next, |first| first.id)
    }

    /// Calls `wake` when there are new events; the first one given stays.
    pub fn on_event(&self, wake: Wake) {
        let _ = self.wake.set(wake);
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

    /// After what it tells of is on disk, so that no reader has seen a number that a crash gives again.
    pub(super) fn publish(&self, new: &[Event]) {
        let Some(last) = new.last() else { return };
        self.shown.store(last.id, Ordering::Release);
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    pub(super) fn kept(&self) -> (u64, Vec<Alert>, Vec<Event>) {
        let state = self.lock();
        (state.next, state.active.clone(), state.events.iter().cloned().collect())
    }
}
