//! The ledger as a replica of what all nodes of a cluster write.

use super::core::Core;
use super::{Ledger, carry, held, lookup, read, recover, ship};
use crate::engine::fact::{Keeper, Seq};
use crate::engine::ports::LogError;
use crate::engine::replica::{
    HeldCount, HeldDelivery, KnownMessage, Observer, Origin, OwnRecords, Positions, Replica, Shipped, WantedHeld,
};
use crate::message::MessageId;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the views may take to show what was written so far.
const PATIENCE: Duration = Duration::from_secs(10);
/// Looks at a message that retention carries on at the same time.
const LOOKS: u32 = 50;

fn closed() -> LogError {
    LogError::Failed("the ledger is closed".into())
}

impl Ledger {
    /// One more who is told of what other nodes accepted; see [`Observer`].
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.applier.observers().add(observer);
    }
}

impl Replica for Ledger {
    fn origin(&self) -> Origin {
        self.core.origin
    }

    fn committed(&self) -> Seq {
        self.core.committed()
    }

    fn own(&self, after: Seq, bytes: usize) -> BoxFuture<'static, Result<OwnRecords, LogError>> {
        Box::pin(ship::own(self.core.clone(), self.readers.clone(), after, bytes.max(1)))
    }

    fn shipped(&self, upto: Seq) {
        self.core.shipping.confirmed(upto.min(self.core.committed()));
    }

    fn shipped_upto(&self) -> Seq {
        self.core.shipping.upto()
    }

    fn apply(&self, origin: Origin, records: Vec<Shipped>, offset: u64) -> BoxFuture<'static, Result<(), LogError>> {
        let done = self.applier.apply(&self.core, origin, records, offset);
        Box::pin(async move { done.await.unwrap_or_else(|_| Err(closed())) })
    }

    fn positions(&self) -> Positions {
        self.core.applied.positions()
    }

    fn home(&self, id: MessageId) -> BoxFuture<'static, Option<Seq>> {
        self.core.recents.begin(|| self.core.committed());
        if let Some(seq) = lookup::recent(&self.core, id) {
            return Box::pin(std::future::ready(Some(seq)));
        }
        let core = self.core.clone();
        // One that cannot be looked for now is not there yet: who waits for it asks again.
        let job = self.readers.run(move || lookup::home(&core, id).ok().flatten());
        Box::pin(async move { job.await.flatten() })
    }

    fn known(&self, id: MessageId) -> BoxFuture<'static, Result<Option<KnownMessage>, LogError>> {
        self.core.recents.begin(|| self.core.committed());
        let applied = self.applier.through();
        let (core, readers) = (self.core.clone(), self.readers.clone());
        Box::pin(async move {
            if let Some(applied) = applied {
                // Ends without a word when the ledger closes, which the next step tells.
                let _ = applied.await;
            }
            readers.run(move || known(&core, id)).await.unwrap_or_else(|| Err(closed()))
        })
    }

    fn held(&self, channel: &str, route: &str, wanted: WantedHeld) -> BoxFuture<'static, Result<Vec<HeldDelivery>, LogError>> {
        let applied = self.applier.through();
        let (core, readers) = (self.core.clone(), self.readers.clone());
        let (channel, route) = (channel.to_owned(), route.to_owned());
        Box::pin(async move {
            if let Some(applied) = applied {
                // Ends without a word when the ledger closes, which the next step tells.
                let _ = applied.await;
            }
            readers.run(move || held::list(&core, &channel, &route, &wanted)).await.unwrap_or_else(|| Err(closed()))
        })
    }

    fn held_counts(&self) -> Vec<HeldCount> {
        self.core.held.counts()
    }

    fn held_on(&self, channel: &str, route: &str) -> u64 {
        self.core.held.on(channel, route)
    }
}

/// A message with everything that was written so far. Blocks.
fn known(core: &Core, id: MessageId) -> Result<Option<KnownMessage>, LogError> {
    carry::pass_through(core);
    // Most that are asked for are new: no need to wait for the views then.
    if lookup::home(core, id)?.is_none() {
        return Ok(None);
    }
    let committed = core.committed();
    core.hurry_views(committed);
    if !core.folded.wait_for(committed, Instant::now() + PATIENCE) {
        return Err(LogError::Busy);
    }
    let failed = |e: super::sql::FileError| LogError::Failed(e.to_string());
    for _ in 0..LOOKS {
        let Some(seq) = lookup::home(core, id)? else { return Ok(None) };
        let Some(segment) = core.catalog.holding(seq) else { return Ok(None) };
        let row = recover::row(core, &segment, seq).map_err(failed)?;
        let accepted = read::accepted(core, seq).map_err(failed)?;
        let (Some(row), Some(mut accepted)) = (row, accepted) else {
            if core.homes.now(seq) == seq && !segment.is_gone() {
                // Refused, or its accept fact is not readable.
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(4));
            continue;
        };
        if row.fold.broker {
            accepted.keeper = Keeper::Broker;
        }
        let progress = |name: &String| row.fold.routes.iter().find(|r| r.name == *name).map(|r| r.progress).unwrap_or_default();
        let routes = accepted.routes.iter().map(progress).collect();
        return Ok(Some(KnownMessage { seq, accepted: *accepted, routes }));
    }
    Err(LogError::Busy)
}
