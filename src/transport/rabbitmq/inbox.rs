//! The inbox: what nodes have accepted goes, in order, into the ledger and to the routes. Here a resend is recognised that the
//! accepting node could not know of: a sender's messages of one feed meet in one partition.

use super::{
    Delivery, topology,
    wire::{self, Batch, Parcel},
    work::{Job, Pending, Shared},
};
use crate::channel::Mode;
use crate::engine::{
    fact::{BodyRef, Seq, What},
    ports::LogError,
    resend::Seen,
};
use crate::message::MessageId;
use futures_util::{FutureExt, future::BoxFuture};
use std::sync::Arc;

/// Works off one inbox partition.
pub struct Inbox {
    pub shared: Arc<Shared>,
    pub domain: Arc<str>,
    pub channel: Arc<str>,
    pub partition: u16,
    /// Of the inbox, and so of the routes' queues that it feeds.
    pub epoch: u64,
}

/// Something that has to be done before the delivery may be acknowledged.
type Step = BoxFuture<'static, Result<Option<Seq>, String>>;

impl Job for Inbox {
    fn begin(&mut self, delivery: Delivery) -> BoxFuture<'_, Result<Option<Pending>, String>> {
        Box::pin(async move {
            let batch: Batch = wire::decode(&delivery.payload).map_err(|e| format!("a message of this queue is {e}"))?;
            let mut steps: Vec<Step> = Vec::new();
            // By route, in order.
            let mut out: Vec<(String, Vec<Parcel>)> = Vec::new();
            let mut doubtful = false;
            for parcel in batch.messages {
                let doubt = self.shared.is_doubtful(&delivery, parcel.accepted.envelope.received_ms);
                doubtful |= doubt;
                let Some((parcel, known)) = self.take(parcel, &mut steps).await? else { continue };
                // A publication that was repeated may come after its repetition, and unmarked.
                doubtful |= known;
                let first = usize::from(parcel.accepted.mode == Mode::Proxy);
                for route in parcel.accepted.routes.iter().skip(first) {
                    match out.iter_mut().find(|(name, _)| name == route) {
                        Some((_, parcels)) => parcels.push(parcel.clone()),
                        None => out.push((route.clone(), vec![parcel.clone()])),
                    }
                }
            }
            for (route, messages) in out {
                let queue = topology::route(&self.domain, &self.channel, &route, self.partition, self.epoch);
                if let Some(session) = self.shared.link.try_session() {
                    self.shared.queues.ensure_route(&session, &queue).await.map_err(|e| e.to_string())?;
                }
                let payload = wire::encode(&Batch::of(messages)).map_err(|e| e.to_string())?;
                let sent = self.shared.routes.publish(&queue, payload, doubtful);
                steps.push(sent.map(|r| r.map(|_| None).map_err(|e| e.to_string())).boxed());
            }
            let (shared, tag) = (self.shared.clone(), delivery.tag);
            Ok(Some(
                async move {
                    let mut last = 0;
                    for step in steps {
                        last = last.max(step.await?.unwrap_or(0));
                    }
                    shared.shipping.wait_confirmed(last).await;
                    Ok(tag)
                }
                .boxed(),
            ))
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl Inbox {
    /// Takes one message into the ledger, and tells whether it was there; `None` when it is not to be delivered.
    async fn take(&self, parcel: Parcel, steps: &mut Vec<Step>) -> Result<Option<(Parcel, bool)>, String> {
        let shared = &self.shared;
        let accepted = &parcel.accepted;
        let id = accepted.envelope.id;
        let (key, hash, at) = (accepted.resend_key, accepted.body_hash, accepted.envelope.received_ms);
        if accepted.mode == Mode::Queue
            && let Some(of) = self.repeats(key, hash, id, at)
        {
            self.note_repetition(parcel, of, steps).await?;
            return Ok(None);
        }
        let travels = parcel.body.is_some() || accepted.envelope.body_len == 0 || accepted.body == BodyRef::None;
        if shared.replica.home(id).await.is_some() || !travels || accepted.mode == Mode::Proxy {
            // Its own node wrote it, or this delivery has been here before.
            shared.place(accepted, parcel.body.as_ref()).await?;
            shared.resends.committed([(key, id, 0)].into_iter());
            return Ok(Some((parcel, true)));
        }
        let written = shared.write(parcel.accepted.clone(), parcel.body.clone());
        let shared = shared.clone();
        steps.push(
            async move {
                let seq = written.await.map_err(|e: LogError| e.to_string())?;
                if key != 0 {
                    shared.resends.committed([(key, id, seq)].into_iter());
                }
                Ok(Some(seq))
            }
            .boxed(),
        );
        Ok(Some((parcel, false)))
    }

    /// The message that this one repeats.
    fn repeats(&self, key: u64, hash: u128, id: MessageId, at: i64) -> Option<MessageId> {
        match self.shared.resends.check(key, hash, id, at) {
            Seen::Durable(first, _) | Seen::UnderWay(first) if first != id => Some(first),
            _ => None,
        }
    }

    /// The sender was acknowledged for it as for a new one; it is delivered once.
    async fn note_repetition(&self, parcel: Parcel, of: MessageId, steps: &mut Vec<Step>) -> Result<(), String> {
        let shared = &self.shared;
        let Parcel { mut accepted, .. } = parcel;
        let id = accepted.envelope.id;
        if let Some(home) = shared.replica.home(of).await {
            shared.note(of, home, What::Resent { remote: accepted.envelope.remote.clone() });
        }
        accepted.routes.clear();
        accepted.body = BodyRef::None;
        // A spooled or large one is there already. Noting it twice is harmless.
        let seq = match shared.replica.home(id).await {
            Some(seq) => seq,
            None => shared.write(accepted, None).await.map_err(|e| e.to_string())?,
        };
        shared.note(id, seq, What::Repeated { of });
        steps.push(
            {
                let shared = shared.clone();
                async move {
                    shared.settled().await?;
                    Ok(None)
                }
            }
            .boxed(),
        );
        Ok(())
    }
}
