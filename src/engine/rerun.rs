//! Rerun: a finished message once more, as a new transaction that names the old one as its parent.

use super::{
    Engine,
    fact::{Accepted, BodyRef, Fact, Keeper, What},
    ports::{Append, BodyStream, ControlError},
    staging,
};
use crate::{
    channel::{Mode, Storage},
    message::{MessageId, envelope::FORMAT_VERSION},
};
use bytes::Bytes;

impl Engine {
    /// See [`super::ports::Control::rerun`].
    pub(super) async fn rerun_message(&self, accepted: Accepted, body: BodyStream) -> Result<MessageId, ControlError> {
        if accepted.body == BodyRef::None && accepted.envelope.body_len > 0 {
            let why = "its body is not stored (the channel's storage mode keeps none), so it cannot be run again";
            return Err(ControlError::Conflict(why.into()));
        }
        if !self.parts.gate.is_open() {
            return Err(ControlError::Conflict(
                "too many messages wait for delivery; try again when the queues are shorter".into(),
            ));
        }
        let in_force = self.in_force.load_full();
        let channel = in_force
            .set
            .get(&accepted.channel)
            .ok_or_else(|| ControlError::NotFound(format!("channel {}, which took the message,", accepted.channel)))?;
        let transient = channel.channel.storage != Storage::All;
        let staged = staging::pieces(Bytes::new(), body, &*self.parts.log, transient, u64::MAX)
            .await
            .map_err(|e| ControlError::Failed(e.to_string()))?;
        if staged.len != accepted.envelope.body_len {
            return Err(ControlError::Conflict("its body is no longer complete in the ledger".into()));
        }
        let mut envelope = accepted.envelope;
        let parent = envelope.id;
        envelope.id = MessageId::now();
        envelope.parent = Some(parent);
        envelope.version = FORMAT_VERSION;
        envelope.received_ms = self.parts.clock.now_ms();
        let id = envelope.id;
        let again = Accepted {
            channel: accepted.channel,
            // Nobody waits for a rerun's response.
            mode: Mode::Queue,
            storage: channel.channel.storage,
            routes: super::route_names(channel),
            idempotent: channel.channel.idempotent,
            body: staged.body,
            body_hash: staged.hash,
            resend_key: 0,
            keeper: Keeper::Log,
            envelope,
        };
        let fact = Fact { id, home: 0, at: again.envelope.received_ms, what: What::Accepted(Box::new(again)) };
        let append = Append { fact, body: staged.whole, deliver: true };
        self.parts.transport.accept(append).await.map_err(|e| ControlError::Failed(e.to_string()))?;
        Ok(id)
    }
}
