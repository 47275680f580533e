//! The engine as operators see it.

use super::{
    Engine,
    fact::Accepted,
    ports::{BodyStream, Control, ControlError, NotReady, RouteStatus, Unfinished},
};
use crate::{channel::Channel, message::MessageId};
use futures_util::future::BoxFuture;

impl Engine {
    async fn unfinished(&self, id: MessageId) -> Result<Unfinished, ControlError> {
        match self.parts.log.unfinished_by_id(id).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(ControlError::NotFound(format!("an unfinished transaction {id}"))),
            Err(error) => Err(ControlError::Failed(error.to_string())),
        }
    }

    /// What an operator was told is done stays done, whatever happens to the node.
    async fn on_disk(&self, count: u32) -> Result<u32, ControlError> {
        match self.parts.log.durable().await {
            Ok(()) => Ok(count),
            Err(error) => {
                Err(ControlError::Failed(format!("done, but it may not outlive a restart: {error}; look again after a restart")))
            }
        }
    }
}

fn some_parked(count: u32) -> Result<u32, ControlError> {
    match count {
        0 => Err(ControlError::Conflict("no delivery of this transaction is parked; `rerun` runs a finished one again".into())),
        n => Ok(n),
    }
}

impl Control for Engine {
    fn routes(&self) -> Vec<RouteStatus> {
        self.parts.transport.routes()
    }

    fn pause(&self, channel: &str, route: &str) -> Result<(), ControlError> {
        self.parts.transport.pause(channel, route, true)
    }

    fn resume(&self, channel: &str, route: &str) -> Result<(), ControlError> {
        self.parts.transport.pause(channel, route, false)
    }

    fn requeue(&self, id: MessageId, route: Option<&str>) -> BoxFuture<'_, Result<u32, ControlError>> {
        let route = route.map(str::to_owned);
        Box::pin(async move {
            let message = self.unfinished(id).await?;
            let count = some_parked(self.parts.transport.requeue(&message, route.as_deref()).await?)?;
            self.on_disk(count).await
        })
    }

    fn discard(&self, id: MessageId, route: Option<&str>) -> BoxFuture<'_, Result<u32, ControlError>> {
        let route = route.map(str::to_owned);
        Box::pin(async move {
            let message = self.unfinished(id).await?;
            let count = self.parts.transport.discard(&message, route.as_deref()).await?;
            self.on_disk(count).await
        })
    }

    fn rerun(&self, accepted: Accepted, body: BodyStream) -> BoxFuture<'_, Result<MessageId, ControlError>> {
        Box::pin(self.rerun_message(accepted, body))
    }

    fn channels(&self) -> Vec<Channel> {
        self.in_force.load().set.iter().map(|c| c.channel.clone()).collect()
    }

    fn set_channels(&self, channels: Vec<Channel>) -> Result<(), ControlError> {
        Ok(self.configure(channels)?)
    }

    fn pending(&self) -> u64 {
        self.parts.transport.pending()
    }

    fn not_ready(&self) -> NotReady {
        let mut reasons = (self.parts.troubles)();
        if self.parts.gate.is_draining() {
            reasons.push("draining: the node is shutting down or being upgraded".into());
        }
        if !self.parts.gate.is_open() {
            reasons.push("queues are full (limits.max_pending): see `hie route list` for the route that stands still".into());
        }
        reasons
    }
}
