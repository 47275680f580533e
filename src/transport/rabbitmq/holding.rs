//! Held deliveries: what is not delivered soon does not stay with the broker. It would fill what a consumer may have in hand, so that
//! other keys wait, and run into the broker's time limit. Accept fact and body are in every node's ledger already; with a fact more the
//! delivery waits there, in its lane as before, and is acknowledged. Who takes the partition over puts what the ledger holds
//! into the lanes first, then what the queue gives.

use super::{hands::Standing, routes::RoutePartition};
use crate::engine::{
    fact::{Accepted, Fact, RouteProgress, RouteState, What},
    ports::Append,
};
use crate::telemetry::cluster as events;
use crate::transport::queue::{
    progress::Progress,
    state::{Entry, Hold},
};
use futures_util::future::{BoxFuture, join_all};
use std::{sync::Arc, time::Duration};

/// How long what is being written as held may take.
const WRITTEN: Duration = Duration::from_secs(10);

impl RoutePartition {
    /// Puts what the ledger holds for this partition into the queue, in the order in which it was accepted. What the ledger says counts:
    /// it has been asked with all that was told before.
    pub(super) async fn load(&self) -> Result<(), String> {
        if self.holding {
            return Ok(());
        }
        let queue = self.queue();
        let (mine, holds_key) = (self.mine.clone(), queue.holds_key());
        // What is set aside and lets its successors pass waits for an operator, not for a partition.
        let wanted = move |accepted: &Accepted, progress: RouteProgress| {
            (holds_key || progress.state == RouteState::Waiting) && mine(accepted)
        };
        let held = self.shared.replica.held(&self.channel, &self.route, Box::new(wanted)).await.map_err(|e| e.to_string())?;
        events::HeldLoaded { channel: &self.channel, route: &self.route, messages: held.len() }.emit();
        for one in held {
            let work = self.work(one.id);
            // Another partition of this node has it from a queue.
            if self.hands().standing(&work) == Standing::Here {
                continue;
            }
            self.hands().again(&work);
            let progress = Progress::new(one.seq, one.id);
            let parked = one.progress.state == RouteState::Parked;
            if parked {
                progress.add_parked();
            } else {
                progress.add_active();
            }
            let mut entry = Entry::restored(progress, one.progress, one.received_ms);
            entry.source = self.source;
            self.hands().take(work, self.source, None);
            if parked {
                self.queue().restore_parked(one.id, &one.keys, entry);
            } else {
                self.queues.enqueue(&self.channel, &self.route, &one.keys, entry);
            }
        }
        self.queue().pump();
        Ok(())
    }

    /// Writes that these are held, in this order; resolves when it is on this disk.
    pub(super) fn write_held(&self, held: Vec<Arc<Progress>>) -> BoxFuture<'static, Result<(), String>> {
        let shared = self.shared.clone();
        events::Held { messages: held.len() }.emit();
        // Each is answered for, unlike what is noted without waiting: lost, it would be in no queue and in no ledger.
        let each = held.iter().map(|progress| {
            let what = What::Held { route: self.route.to_string() };
            let fact = Fact { id: progress.id, home: progress.seq, at: shared.clock.now_ms(), what };
            shared.log.append(Append { fact, body: None, deliver: false })
        });
        let written = join_all(each.collect::<Vec<_>>());
        Box::pin(async move {
            for one in written.await {
                one.map_err(|e| e.to_string())?;
            }
            Ok(())
        })
    }

    /// Takes over into the ledger some of what the broker has handed out; `None`: nothing of that kind is here. When the future resolves,
    /// the broker's deliveries that are over thereby have been told of.
    pub(super) fn hold_some(&self, which: Hold) -> Option<BoxFuture<'static, Result<(), String>>> {
        let held = self.queues.find(&self.channel, &self.route)?.hold(self.source, which);
        if held.is_empty() {
            return None;
        }
        let works: Vec<_> = held.iter().map(|progress| self.work(progress.id)).collect();
        let (shared, written) = (self.shared.clone(), self.write_held(held));
        Some(Box::pin(async move {
            written.await?;
            works.iter().for_each(|work| shared.hands.held(work));
            Ok(())
        }))
    }

    /// From now on this partition delivers nothing: what is in hand ends, the rest is held, in order, and so is all that comes from its
    /// queue. When it resolves nothing is here any more, and the broker's deliveries have been told as over.
    pub(super) async fn hold_what_is_here(&mut self) -> Result<(), String> {
        self.holding = true;
        // Also what is in hand: it may have to be tried again. Its end, when it comes to one, is written after it.
        let held = self.hold_some(Hold::Upto(u64::MAX));
        if let Some(queue) = self.queues.find(&self.channel, &self.route) {
            queue.withdraw(self.source);
            queue.ended(self.source).await;
        }
        if let Some(held) = held {
            held.await?;
        }
        // Some may have been on their way into the ledger before.
        let none = async {
            while self.hands().handed_out_by(self.source) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(WRITTEN, none).await.map_err(|_| "what is held could not be written in time")?;
        self.hands().forget(self.source);
        Ok(())
    }
}
