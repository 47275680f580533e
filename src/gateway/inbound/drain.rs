//! The drain as the connections of one accepting instance see it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Asked by every connection for every message, so the question is one atomic load; the node's own token has a lock that all
/// instances share.
#[derive(Clone, Default)]
pub(super) struct Draining(Arc<Inner>);

#[derive(Default)]
struct Inner {
    begun: AtomicBool,
    token: CancellationToken,
}

impl Draining {
    /// The drain begins. Whoever is woken by [`Draining::wait`] sees [`Draining::begun`].
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::Release);
        self.0.token.cancel();
    }

    pub fn begun(&self) -> bool {
        self.0.begun.load(Ordering::Acquire)
    }

    /// Resolves when it begins.
    pub fn wait(&self) -> WaitForCancellationFutureOwned {
        self.0.token.clone().cancelled_owned()
    }
}
