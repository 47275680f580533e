//! What operators do with deliveries that are parked or wait.

use super::Rabbit;
use crate::engine::{
    fact::{BodyRef, RouteProgress, RouteState, What},
    ports::{ControlError, Unfinished},
};
use crate::transport::queue::state::Given;
use crate::transport::rabbitmq::{
    accepting,
    hands::route_number,
    wire::{self, Batch, Parcel},
};
use std::time::{Duration, Instant};

/// An operator's requeue is confirmed within this time, or the operator is told.
const REQUEUED_WITHIN: Duration = Duration::from_secs(10);

impl Rabbit {
    /// Publishes the parked deliveries of a message once more, those of one route or of all; tells how many.
    pub(super) async fn put_back(&self, message: &Unfinished, route: Option<&str>) -> Result<u32, ControlError> {
        let mut count = 0;
        for (name, progress) in message.accepted.routes.iter().zip(&message.routes) {
            if progress.state != RouteState::Parked || route.is_some_and(|wanted| wanted != name) {
                continue;
            }
            let again = tokio::time::timeout(REQUEUED_WITHIN, self.publish_again(message, name));
            match again.await {
                Ok(done) => done.map_err(ControlError::Failed)?,
                Err(_) => {
                    let why =
                        format!("no broker took it for route {name} in time; it is delivered when one does: look again then");
                    return Err(ControlError::Failed(why));
                }
            }
            let id = message.accepted.envelope.id;
            self.shared.note(id, message.seq, What::Requeued { route: name.clone() });
            count += 1;
        }
        Ok(count)
    }

    /// Publishes a parked message for one of its routes once more, from the ledger.
    async fn publish_again(&self, message: &Unfinished, route: &str) -> Result<(), String> {
        let accepted = message.accepted.clone();
        let queue = self.route_now(&accepted, route);
        if let Some(session) = self.shared.link.try_session() {
            self.shared.queues.ensure_route(&session, &queue).await.map_err(|e| e.to_string())?;
        }
        let mut body = None;
        if accepted.envelope.body_len <= self.accepting.inline && accepted.body != BodyRef::None {
            let whole = accepting::whole(&*self.shared.log, message.seq, &accepted.body).await;
            body = Some(whole.ok_or("its body cannot be read from the ledger")?);
        }
        let messages = vec![Parcel { accepted, body, requeued: true }];
        let payload = wire::encode(&Batch::of(messages)).map_err(|e| e.to_string())?;
        self.shared.routes.publish(&queue, payload, false).await.map(|_| ()).map_err(|e| e.to_string())
    }

    /// Gives up what is parked, and what waits here on a route that is held; tells how many.
    pub(super) fn give_up(&self, message: &Unfinished, route: Option<&str>) -> Result<u32, ControlError> {
        let envelope = &message.accepted.envelope;
        let channel = &message.accepted.channel;
        let (mut count, mut refused) = (0, None);
        for (name, progress) in message.accepted.routes.iter().zip(&message.routes) {
            if progress.state.is_finished() || route.is_some_and(|wanted| wanted != name) {
                continue;
            }
            let work = (route_number(channel, name), envelope.id);
            let queue = self.queues.find(channel, name);
            match queue.as_ref().map(|queue| queue.discard(envelope.id, &envelope.keys, true)) {
                Some(Given::Parked | Given::Waiting(_)) => self.shared.hands.done(work),
                Some(kept @ (Given::InHand | Given::AtWork)) => {
                    refused = kept.refusal(channel, name);
                    continue;
                }
                Some(Given::Nothing) | None => {
                    if let Some(why) = self.not_to_give_up(message, name, *progress) {
                        refused = Some(why);
                        continue;
                    }
                }
            }
            self.shared.note(envelope.id, message.seq, What::Discarded { route: name.clone() });
            count += 1;
            // Its key may have waited for it.
            if let Some(queue) = queue {
                queue.pump();
            }
        }
        match (count, refused) {
            (0, Some(why)) => Err(ControlError::Conflict(why)),
            (count, _) => Ok(count),
        }
    }

    /// Why a delivery that is not in this node's queue cannot be given up here, and what the operator can do.
    fn not_to_give_up(&self, message: &Unfinished, route: &str, progress: RouteProgress) -> Option<String> {
        let channel = &message.accepted.channel;
        let Some(queue) = self.queues.find(channel, route).filter(|queue| queue.is_configured()) else {
            // In the ledger only, and nobody works on it.
            return (progress.state != RouteState::Parked && !progress.held).then(|| {
                format!(
                    "its delivery waits in the broker, for route {route}, which is not configured: bring the route back, paused, and \
                     discard it then"
                )
            });
        };
        let partition = self.route_now(&message.accepted, route);
        // What is parked and lets its successors pass is in no queue.
        if progress.state == RouteState::Parked && (!queue.holds_key() || self.shared.active().contains(&partition)) {
            return None;
        }
        let members = self.shared.shipping.members();
        let turn = members.turn(&partition, Instant::now());
        Some(format!(
            "its delivery on route {route} is not in this node's queue: ask the node that works on its partition ({turn}), or wait until \
             it is delivered or parked"
        ))
    }
}
