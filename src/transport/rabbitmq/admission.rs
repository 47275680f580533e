//! Who may publish into which inboxes, told to everybody here: [`Epochs`] with its lock, what is under way, and who waits for a change.

use super::epochs::{Epochs, Stage, Target};
use crate::config::Layout;
use std::{
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};

/// Keeps the layout where the domain and this node remember it.
pub trait LayoutKeeper: Send + Sync {
    /// On this node's disk. Blocks.
    fn keep(&self, layout: &Layout) -> Result<(), String>;
    /// In Consul's KV, if that holds `from` still; begun here, told by nobody: the KV is followed. Nothing where there is no Consul.
    fn replace(&self, from: Layout, to: Layout);
}

struct State {
    epochs: Epochs,
    /// Publications into inboxes that are not answered.
    under_way: usize,
}

/// See the module.
pub struct Admission {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// The others have to hear of something at once.
    hurry: Notify,
}

/// The right to publish into the inboxes of one epoch; given back when the publication is answered.
pub struct Ticket {
    pub target: Target,
    of: Weak<Admission>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(admission) = self.of.upgrade() {
            let last = {
                let mut state = admission.lock();
                state.under_way -= 1;
                state.under_way == 0 && state.epochs.stage() == Stage::Quiet
            };
            if last {
                admission.act(|_| {});
            }
        }
    }
}

impl Admission {
    /// With the layout known at start.
    pub fn new(layout: Layout, lease: Duration) -> Arc<Self> {
        let state = State { epochs: Epochs::new(layout, lease, Instant::now()), under_way: 0 };
        Arc::new(Self { state: Mutex::new(state), changed: watch::Sender::new(0), hurry: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Looks at how things stand.
    pub fn see<T>(&self, look: impl FnOnce(&Epochs) -> T) -> T {
        look(&self.lock().epochs)
    }

    /// Tells it something; then goes on as far as it can.
    pub fn act<T>(&self, what: impl FnOnce(&mut Epochs) -> T) -> T {
        let (told, tells) = {
            let mut state = self.lock();
            let before = (state.epochs.layout(), state.epochs.stage());
            let told = what(&mut state.epochs);
            loop {
                let quiet = state.under_way == 0;
                if !state.epochs.step(quiet) {
                    break;
                }
            }
            (told, before != (state.epochs.layout(), state.epochs.stage()))
        };
        if tells {
            self.hurry.notify_one();
        }
        self.changed.send_modify(|n| *n += 1);
        told
    }

    /// The right to publish into an inbox now.
    pub fn publish(self: &Arc<Self>) -> Option<Arc<Ticket>> {
        let mut state = self.lock();
        let target = state.epochs.may_publish(Instant::now())?;
        state.under_way += 1;
        Some(Arc::new(Ticket { target, of: Arc::downgrade(self) }))
    }

    /// Into which inboxes messages may be published now.
    pub fn target(&self) -> Option<Target> {
        self.lock().epochs.may_publish(Instant::now())
    }

    /// Changes whenever something was told.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Resolves when `holds` does.
    pub async fn wait_for(&self, mut holds: impl FnMut(&Epochs) -> bool) {
        let mut changed = self.changed();
        while !self.see(&mut holds) {
            // The sender lives as long as this does.
            let _ = changed.changed().await;
        }
    }

    /// Resolves when the others have to hear of something.
    pub async fn hurries(&self) {
        self.hurry.notified().await;
    }
}
