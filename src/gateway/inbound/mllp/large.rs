//! Places for large frames: few, and at most half of them for one sender, so that senders of large frames at one
//! address, however slow, never keep all others out. How long one may take is `frame_timeout`'s to bound.

use super::LARGE_AT_ONCE;
use crate::engine::shares::{Holder, share};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// All places of a listener.
pub(super) struct Large {
    all: Arc<Semaphore>,
    /// The shares of those who hold or wait for a place.
    shares: Mutex<HashMap<Holder, Weak<Semaphore>>>,
}

/// Shares remembered before those that nobody uses any more are forgotten.
const REMEMBERED: usize = 64;

impl Default for Large {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(LARGE_AT_ONCE)), shares: Mutex::default() }
    }
}

impl Large {
    fn share_of(&self, holder: Holder) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(known) = shares.get(&holder).and_then(Weak::upgrade) {
            return known;
        }
        if shares.len() >= REMEMBERED {
            // In use are at most as many as there are connections.
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let fresh = Arc::new(Semaphore::new(share(LARGE_AT_ONCE)));
        shares.insert(holder, Arc::downgrade(&fresh));
        fresh
    }
}

/// One connection's way to a place.
pub(super) struct Place {
    holder: Holder,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    None,
    /// Waiting for one of the sender's own share.
    Own(PollSemaphore),
    /// Waiting for one of all.
    All(OwnedSemaphorePermit, PollSemaphore),
    Held {
        _own: OwnedSemaphorePermit,
        _all: OwnedSemaphorePermit,
    },
}

impl Place {
    pub fn new(client: &Arc<str>, proved: bool, ip: IpAddr) -> Self {
        let holder = if proved { Holder::Client(client.clone()) } else { Holder::address(ip) };
        Self { holder, state: State::None }
    }

    pub fn is_held(&self) -> bool {
        matches!(self.state, State::Held { .. })
    }

    pub fn release(&mut self) {
        self.state = State::None;
    }

    /// Resolves when the place is held. The sender's own share comes first: whoever waits for that waits behind nobody else.
    pub fn poll(&mut self, large: &Large, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.state = match std::mem::take(&mut self.state) {
                State::None => State::Own(PollSemaphore::new(large.share_of(self.holder.clone()))),
                State::Own(mut queue) => match queue.poll_acquire(cx) {
                    // `None` only for a closed semaphore, which these never are.
                    Poll::Ready(Some(own)) => State::All(own, PollSemaphore::new(large.all.clone())),
                    Poll::Ready(None) | Poll::Pending => {
                        self.state = State::Own(queue);
                        return Poll::Pending;
                    }
                },
                State::All(own, mut queue) => match queue.poll_acquire(cx) {
                    Poll::Ready(Some(all)) => State::Held { _own: own, _all: all },
                    Poll::Ready(None) | Poll::Pending => {
                        self.state = State::All(own, queue);
                        return Poll::Pending;
                    }
                },
                held @ State::Held { .. } => {
                    self.state = held;
                    return Poll::Ready(());
                }
            };
        }
    }
}
