//! A consumer's place: its queue, the epoch that is of, and what has to be over before it begins or ends.

use super::{
    epochs::{Epochs, Stage},
    topology,
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// One partition of an inbox, or of a route's queue, in one epoch.
#[derive(Clone)]
pub struct Place {
    pub domain: Arc<str>,
    pub channel: Arc<str>,
    /// `None`: the inbox.
    pub route: Option<Arc<str>>,
    pub epoch: u64,
    pub partition: u16,
}

impl Place {
    /// The queue's name.
    pub fn queue(&self) -> Arc<str> {
        match &self.route {
            Some(route) => topology::route(&self.domain, &self.channel, route, self.partition, self.epoch),
            None => topology::inbox(&self.domain, &self.channel, self.partition, self.epoch),
        }
    }

    /// Whether its consumer may begin: of what came before, everything has been worked off, or it is what came before.
    pub fn begins(&self, epochs: &Epochs) -> bool {
        if !epochs.takes_part() {
            return false;
        }
        match epochs.layout().draining() {
            Some(past) if self.epoch == past.epoch => true,
            Some(past) => {
                let before = (0..past.partitions).map(|partition| Self { epoch: past.epoch, partition, ..self.clone() }.queue());
                self.epoch == epochs.layout().epoch && epochs.are_drained(before)
            }
            None => self.epoch == epochs.layout().epoch,
        }
    }

    /// Whether nothing is published into it any more: then it is sealed.
    pub fn ends(&self, epochs: &Epochs) -> bool {
        let Some(past) = epochs.layout().draining().filter(|past| past.epoch == self.epoch) else { return false };
        let inboxes = (0..past.partitions).map(|p| topology::inbox(&self.domain, &self.channel, p, past.epoch));
        epochs.stage() >= Stage::Open && (self.route.is_none() || epochs.are_drained(inboxes))
    }
}

/// When a consumer is to go.
#[derive(Clone)]
pub struct Gone {
    /// Its channel or route is not configured any more.
    pub configured: CancellationToken,
    /// Nobody works on queues of its epoch any more.
    pub epoch: CancellationToken,
}

impl Gone {
    pub fn is_cancelled(&self) -> bool {
        self.configured.is_cancelled() || self.epoch.is_cancelled()
    }

    pub async fn cancelled(&self) {
        tokio::select! {
            () = self.configured.cancelled() => {}
            () = self.epoch.cancelled() => {}
        }
    }
}
