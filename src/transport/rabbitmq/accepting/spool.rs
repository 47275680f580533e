//! What is spooled goes to the inboxes of whichever epoch is accepted into, in order.

use super::{BYTES, LOOK, MOST, READS, SHIPPED_WITHIN, Task};
use crate::{
    channel::Mode,
    engine::{
        fact::{Attempt, BodyRef, Fact, Outcome, Seq, What},
        ports::{Append, Log},
    },
    transport::rabbitmq::{
        PublishError, targets,
        wire::{self, Batch, Parcel},
    },
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use std::sync::atomic::Ordering::AcqRel;

impl Task {
    /// A batch of the spool to the inboxes; what cannot be handed on stays. False when they cannot be used.
    pub(super) async fn hand_on(&mut self) -> bool {
        // Nobody publishes while the number of partitions turns, or before this node has read the stream: nobody waits for that here.
        let Some(ticket) = self.shared.shipping.admission().publish() else { return false };
        let (mut groups, mut bytes, mut count) = (Vec::new(), 0, 0);
        let (mut needed, mut forwarded) = (0, Vec::new());
        for spooled in self.spool.iter().take(MOST) {
            let Ok(mut accepted) = self.shared.log.accepted(spooled.seq).await else { break };
            if spooled.whole {
                accepted.mode = Mode::Queue;
            }
            let travels = accepted.envelope.body_len <= self.shared.inline && accepted.body != BodyRef::None;
            let body = match travels {
                true => match whole(&*self.shared.log, spooled.seq, &accepted.body).await {
                    Some(body) => Some(body),
                    None => break,
                },
                false => None,
            };
            if accepted.body != BodyRef::None && !travels {
                needed = spooled.seq;
            }
            bytes += body.as_ref().map_or(0, Bytes::len);
            let queue = self.targets.of(ticket.target, &accepted);
            if self.queues.ensure_now(&self.shared.link, &queue).await.is_err() {
                return false;
            }
            // A proxied one may still be with its upstream: how that ended is this node's to say, also after a restart.
            forwarded.push((accepted.mode != Mode::Proxy).then_some((spooled.id, spooled.seq)));
            targets::group(&mut groups, queue, Parcel { accepted, body, requeued: false });
            count += 1;
            if bytes >= BYTES {
                break;
            }
        }
        if count == 0 {
            // The store cannot be read, which it tells itself.
            self.failed_reads += 1;
            if self.failed_reads > READS {
                self.set_aside().await;
            }
            tokio::time::sleep(LOOK).await;
            return true;
        }
        self.failed_reads = 0;
        // A body that does not travel is read from the stream: it has to be there first.
        if tokio::time::timeout(SHIPPED_WITHIN, self.shared.shipping.wait_confirmed(needed)).await.is_err() {
            return true;
        }
        let mut sent = Vec::new();
        for (queue, messages) in groups {
            let Ok(payload) = wire::encode(&Batch::of(messages)) else { return true };
            sent.push(self.publisher.publish(&queue, payload, true));
        }
        // All of them, or all come again: who has seen one knows it.
        for sent in sent {
            match sent.await {
                Ok(_) => {}
                // Somebody deleted it: it is declared again.
                Err(PublishError::Unroutable { queue, .. }) => {
                    self.queues.forget(&queue);
                    return false;
                }
                Err(_) => {
                    tokio::time::sleep(LOOK).await;
                    return true;
                }
            }
        }
        self.spool.drain(..count);
        for (id, home) in forwarded.into_iter().flatten() {
            let fact = Fact { id, home, at: self.shared.clock.now_ms(), what: What::Forwarded };
            self.shared.log.append_later(Append { fact, body: None, deliver: false });
        }
        let left = self.shared.spooled.fetch_sub(count as u64, AcqRel) - count as u64;
        self.shared.shipping.set_spooled(left);
        true
    }

    /// The first of the spool cannot be read back: it is parked for an operator, and those behind it go on.
    async fn set_aside(&mut self) {
        self.failed_reads = 0;
        let Some(spooled) = self.spool.pop_front() else { return };
        let left = self.shared.spooled.fetch_sub(1, AcqRel) - 1;
        self.shared.shipping.set_spooled(left);
        let Ok(accepted) = self.shared.log.accepted(spooled.seq).await else { return };
        for route in accepted.routes {
            let attempt = Attempt {
                route,
                number: 1,
                target: String::new(),
                took_ms: 0,
                outcome: Outcome::Parked,
                status: 0,
                ack: String::new(),
                error: "its body cannot be read from the ledger, so it could not be handed to the broker".into(),
                response: BodyRef::None,
                response_len: 0,
                inside: 1,
            };
            let what = What::Attempt(Box::new(attempt));
            let fact = Fact { id: spooled.id, home: spooled.seq, at: self.shared.clock.now_ms(), what };
            self.shared.log.append_later(Append { fact, body: None, deliver: false });
        }
    }
}

/// A body that is small enough to be held whole; `None` when it cannot be read.
pub async fn whole(log: &dyn Log, seq: Seq, body: &BodyRef) -> Option<Bytes> {
    let mut stream = log.read(seq, body);
    let mut whole = BytesMut::new();
    while let Some(piece) = stream.next().await {
        whole.extend_from_slice(&piece.ok()?);
    }
    Some(whole.freeze())
}
