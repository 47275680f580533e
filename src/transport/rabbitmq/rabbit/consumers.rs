//! The consumers of all partitions, those of an epoch together: they come with it and go with it.

use super::{Channel, Rabbit};
use crate::transport::rabbitmq::{
    inbox::Inbox,
    place::{Gone, Place},
    routes::{Mine, RoutePartition},
    targets,
    work::{self, Job, MakeJob},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard, atomic::Ordering::Acquire},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The consumers of one epoch.
#[derive(Default)]
pub struct Epoch {
    partitions: u16,
    pub over: CancellationToken,
    pub tasks: TaskTracker,
}

impl Rabbit {
    fn epochs(&self) -> MutexGuard<'_, BTreeMap<u64, Epoch>> {
        self.consumers.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts consumers for all channels in the epochs that have none, and ends those of epochs that are over. Gives the tasks that end.
    pub(super) fn consume_epochs(&self) -> Vec<TaskTracker> {
        let in_use = self.shared.admission().see(|epochs| epochs.in_use());
        let channels = self.channels();
        let mut known = self.epochs();
        let mut ending = Vec::new();
        known.retain(|epoch, of| {
            let stays = in_use.iter().any(|(used, _)| used == epoch);
            if !stays {
                of.over.cancel();
                of.tasks.close();
                ending.push(of.tasks.clone());
            }
            stays
        });
        for (epoch, partitions) in in_use {
            if known.contains_key(&epoch) {
                continue;
            }
            let of = Epoch { partitions, ..Epoch::default() };
            for (name, Channel { inbox, routes, .. }) in channels.iter() {
                self.begin(epoch, &of, name, None, inbox);
                routes.iter().for_each(|(route, gone)| self.begin(epoch, &of, name, Some(route), gone));
            }
            known.insert(epoch, of);
        }
        ending
    }

    /// Starts the consumers of an inbox, or of a route, in all epochs.
    pub(super) fn consume(&self, channel: &str, route: Option<&str>, gone: &CancellationToken) {
        self.epochs().iter().for_each(|(epoch, of)| self.begin(*epoch, of, channel, route, gone));
    }

    /// Resolves when no consumer is left.
    pub(super) async fn consumers_ended(&self) {
        let all: Vec<TaskTracker> = self.epochs().values().map(|of| of.tasks.clone()).collect();
        for tasks in all {
            tasks.close();
            tasks.wait().await;
        }
    }

    fn begin(&self, epoch: u64, of: &Epoch, channel: &str, route: Option<&str>, configured: &CancellationToken) {
        for partition in 0..of.partitions {
            let (channel, route) = (Arc::from(channel), route.map(Arc::from));
            let place = Place { domain: self.domain.clone(), channel, route, epoch, partition };
            let gone = Gone { configured: configured.clone(), epoch: of.over.clone() };
            let consuming = work::consume(self.shared.clone(), place.clone(), gone, self.maker(place, of.partitions));
            of.tasks.spawn_on(consuming, &self.runtime);
        }
    }

    fn maker(&self, place: Place, partitions: u16) -> MakeJob {
        let shared = self.shared.clone();
        let Place { domain, channel, route, epoch, partition } = place;
        let Some(route) = route else {
            return Box::new(move |_| {
                let (shared, domain, channel) = (shared.clone(), domain.clone(), channel.clone());
                Box::new(Inbox { shared, domain, channel, partition, epoch }) as Box<dyn Job>
            });
        };
        let (queues, hot, this) = (self.queues.clone(), self.hot.clone(), self.this.clone());
        // Of what the ledger holds, whatever it was partitioned by before.
        let mine: Mine = Arc::new(move |accepted| {
            let Some(this) = this.upgrade() else { return false };
            let several_keys = this.channels().get(&accepted.channel).is_some_and(|c| c.several_keys.load(Acquire));
            targets::partition(accepted, several_keys, partitions) == partition
        });
        Box::new(move |over| {
            let names = (channel.clone(), route.clone());
            Box::new(RoutePartition::new(shared.clone(), queues.clone(), hot.clone(), names, mine.clone(), over)) as Box<dyn Job>
        })
    }
}
