//! The change of the number of partitions, on this node: remembers the layout, begins and ends consumers, and at the end removes what is
//! left of the epoch before.

use super::{LayoutSight, PastSight, Rabbit};
use crate::config::{Layout, Past};
use crate::telemetry::cluster as events;
use crate::transport::rabbitmq::{epochs::Stage, topology};
use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often it is looked, beside whenever something was told.
const LOOK: Duration = Duration::from_secs(1);
/// A node whose turn it is not does what is to be done for all after this.
const OTHERS: Duration = Duration::from_secs(10);
/// What consumers may take to end.
const END: Duration = Duration::from_secs(20);

/// What is remembered from look to look.
#[derive(Default)]
struct Turn {
    ending: Vec<TaskTracker>,
    told: Option<(u64, Stage)>,
    /// Why the layout is not on disk.
    not_kept: Option<String>,
    /// Since when the next step could be made.
    ripe: Option<(Layout, Instant)>,
}

/// Until the node ends.
pub async fn watch(this: Weak<Rabbit>, closing: CancellationToken) {
    let mut turn = Turn::default();
    let Some(mut changed) = this.upgrade().map(|this| this.shared.admission().changed()) else { return };
    while !closing.is_cancelled() {
        let Some(rabbit) = this.upgrade() else { return };
        changed.borrow_and_update();
        rabbit.keep_layout(&mut turn).await;
        turn.ending.extend(rabbit.consume_epochs());
        rabbit.tell(&mut turn);
        rabbit.finish(&mut turn).await;
        drop(rabbit);
        let _ = tokio::time::timeout(LOOK, changed.changed()).await;
        // Beats come often; nothing here is in a hurry after the first of them.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Rabbit {
    /// A layout from Consul's KV. The error: why it is not followed, for the operator.
    pub fn take_layout(&self, layout: Layout) -> Result<(), String> {
        self.shared.admission().act(|epochs| epochs.learn(layout)).map(drop)
    }

    /// The layout that this node follows.
    pub fn layout(&self) -> Layout {
        self.shared.admission().see(|epochs| epochs.layout())
    }

    async fn keep_layout(&self, turn: &mut Turn) {
        let Some(layout) = self.shared.admission().see(|epochs| epochs.to_keep()) else { return };
        let keeper = self.keeper.clone();
        let kept = tokio::task::spawn_blocking(move || keeper.keep(&layout)).await;
        let error = match kept {
            Ok(Ok(())) => {
                turn.not_kept = None;
                return self.shared.admission().act(|epochs| epochs.kept(layout));
            }
            Ok(Err(error)) => error,
            Err(_) => "the layout cannot be written: internal error; see the log".into(),
        };
        if turn.not_kept.as_ref() != Some(&error) {
            events::LayoutProblem { error: &error }.emit();
            turn.not_kept = Some(error);
        }
    }

    fn tell(&self, turn: &mut Turn) {
        let (layout, stage) = self.shared.admission().see(|epochs| (epochs.layout(), epochs.stage()));
        let now = (layout.epoch, stage);
        if turn.told != Some(now) && stage > Stage::Out {
            turn.told = Some(now);
            events::LayoutStep { epoch: layout.epoch, partitions: layout.partitions, stage: stage.word() }.emit();
        }
    }

    /// The end of a change, as far as it has come.
    async fn finish(&self, turn: &mut Turn) {
        let admission = self.shared.admission();
        if !turn.ending.is_empty() {
            let all = async {
                for tasks in &turn.ending {
                    tasks.wait().await;
                }
            };
            if tokio::time::timeout(END, all).await.is_err() {
                return;
            }
            turn.ending.clear();
        }
        admission.act(|epochs| while epochs.closed() {});
        let layout = admission.see(|epochs| epochs.layout());
        let (Some(next), Some(past)) = (layout.next_step(), layout.previous) else {
            turn.ripe = None;
            return;
        };
        let ripe = match past.drained {
            false => {
                let old = self.queues_of(past);
                admission.see(|epochs| epochs.all_at(Stage::Open) && epochs.are_drained(&old))
            }
            true => admission.see(|epochs| epochs.all_at(Stage::Closed)),
        };
        if !ripe {
            turn.ripe = None;
            return;
        }
        let since = match turn.ripe {
            Some((of, since)) if of == layout => since,
            _ => turn.ripe.insert((layout, Instant::now())).1,
        };
        // Until then a connection that was thought dead may still bring something, which is worked off like all else.
        let settle = if past.drained { LOOK } else { self.heartbeat * 3 + self.lease * 2 };
        let turns = self.shared.shipping.members().is_ours(&topology::ledger(&self.domain), Instant::now());
        let wait = settle + if turns { Duration::ZERO } else { OTHERS };
        if since.elapsed() < wait || (past.drained && !self.remove(past).await) {
            return;
        }
        self.keeper.replace(layout, next);
        // Should it fail, it is tried again after a while.
        turn.ripe = Some((layout, Instant::now()));
    }

    /// The queues of an epoch, of the channels that are configured.
    fn queues_of(&self, past: Past) -> Vec<Arc<str>> {
        let channels = self.channels();
        let mut all = Vec::new();
        for (name, channel) in channels.iter() {
            for p in 0..past.partitions {
                all.push(topology::inbox(&self.domain, name, p, past.epoch));
                all.extend(channel.routes.keys().map(|route| topology::route(&self.domain, name, route, p, past.epoch)));
            }
        }
        all
    }

    /// Removes the queues of an epoch that is over; false when the broker did not do it now.
    async fn remove(&self, past: Past) -> bool {
        let Some(session) = self.link.try_session() else { return false };
        for queue in self.queues_of(past) {
            match topology::remove_empty(&session, &queue).await {
                Ok(true) => events::QueueRemoved { queue: &queue, error: None }.emit(),
                Ok(false) => {}
                Err(error) if session.stands() => events::QueueRemoved { queue: &queue, error: Some(&error) }.emit(),
                Err(_) => return false,
            }
            self.shared.queues.forget(&queue);
        }
        true
    }

    pub(super) fn layout_sight(&self) -> LayoutSight {
        let layout = self.layout();
        let old = layout.draining().map(|past| self.queues_of(past)).unwrap_or_default();
        self.shared.admission().see(|epochs| {
            let stage = epochs.stage();
            let wanted = match layout.previous {
                None => Stage::Out,
                Some(past) if past.drained => Stage::Closed,
                Some(_) => std::cmp::max(stage, Stage::Known),
            };
            LayoutSight {
                epoch: layout.epoch,
                partitions: layout.partitions,
                previous: layout.previous.map(|p| PastSight { epoch: p.epoch, partitions: p.partitions }),
                stage: stage.word(),
                waits_for: epochs.behind(wanted).into_iter().map(str::to_owned).collect(),
                not_drained: old.iter().filter(|queue| !epochs.are_drained([queue])).count(),
            }
        })
    }

    /// Why nothing is accepted into the broker now, where that is not the broker's fault.
    pub(super) fn turning(&self) -> Option<String> {
        match self.shared.admission().see(|epochs| epochs.stage()) {
            Stage::Out => Some("the ledger stream has not been read yet: what the other nodes do is not known".into()),
            // A moment.
            _ => None,
        }
    }

    pub(super) fn layout_problem(&self) -> Option<String> {
        self.shared.admission().see(|epochs| epochs.problem())
    }
}
