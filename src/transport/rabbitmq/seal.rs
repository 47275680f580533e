//! The seal of a queue whose epoch ends: published last, it comes out last. Who has it in hand, and nothing that came before it, tells the
//! others that the queue has run empty, and keeps it: so whoever takes the queue over finds it again and tells so, too.

use super::{Acks, place::Place, wire, work::Shared};
use crate::telemetry::cluster as events;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release},
    },
    time::{Duration, Instant},
};

/// Between two times of telling.
const TOLD: Duration = Duration::from_secs(1);
/// A seal that has not come out by then is published again: what it went into may have been another's to work on.
const AGAIN: Duration = Duration::from_secs(10);

/// One consumer's part in it.
#[derive(Default)]
pub struct Sealing {
    /// Seals in hand, by their tags; the first counts.
    seals: Vec<u64>,
    published: Option<Instant>,
    told: Option<Instant>,
    telling: Arc<AtomicBool>,
}

impl Sealing {
    /// A seal came out.
    pub fn take(&mut self, tag: u64) {
        self.seals.push(tag);
    }

    /// It has come out: what comes now was published by a node that was thought dead.
    pub fn is_sealed(&self) -> bool {
        !self.seals.is_empty()
    }

    /// Does what is due. `oldest`: the tag of the oldest delivery that is in hand.
    pub fn look(&mut self, shared: &Arc<Shared>, place: &Place, queue: &Arc<str>, ours: bool, oldest: Option<u64>) {
        let over = |at: Option<Instant>, time| at.is_none_or(|at: Instant| at.elapsed() >= time);
        let Some(seal) = self.seals.first() else {
            let ends = ours && over(self.published, AGAIN) && shared.admission().see(|epochs| place.ends(epochs));
            if ends && let Ok(payload) = wire::seal() {
                self.published = Some(Instant::now());
                let sent = shared.routes.publish(queue, payload, false);
                // One that does not get there is published again.
                tokio::spawn(async move { drop(sent.await) });
            }
            return;
        };
        if oldest.is_some_and(|tag| tag < *seal) || !over(self.told, TOLD) || self.telling.swap(true, AcqRel) {
            return;
        }
        if self.told.is_none() {
            events::QueueDrained { queue }.emit();
        }
        self.told = Some(Instant::now());
        let (shared, queue, telling) = (shared.clone(), queue.clone(), self.telling.clone());
        tokio::spawn(async move {
            // Whoever begins then has to find in the stream all that was noted here.
            if shared.settled().await.is_ok() {
                shared.shipping.drained(&queue).await;
            }
            telling.store(false, Release);
        });
    }

    /// The epoch is over: nothing stays in the queue.
    pub async fn end(&self, acks: &Acks) {
        for tag in &self.seals {
            let _ = acks.ack(*tag, false).await;
        }
    }
}
