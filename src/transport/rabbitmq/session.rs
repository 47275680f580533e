//! One connection with one broker.

use super::{
    reason::{self, Reason},
    socket::Ending,
};
use lapin::{Channel, Connection};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long the broker may take to open or close a channel.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// A connection that stands (or stood); cheap to clone. Everything on it ends with it; there is then another session with a
/// higher number.
#[derive(Clone)]
pub struct Session(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) number: u64,
    pub(super) broker: String,
    pub(super) release: String,
    pub(super) connection: Connection,
    pub(super) ending: Arc<Ending>,
    pub(super) lost: CancellationToken,
}

impl Session {
    /// Rises with each connection of the link; never 0.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// `host:port`.
    pub fn broker(&self) -> &str {
        &self.0.broker
    }

    /// Release of RabbitMQ, as it tells it: `3.10.8`.
    pub fn release(&self) -> &str {
        &self.0.release
    }

    /// Whether it stands, as far as is known.
    pub fn stands(&self) -> bool {
        !self.0.lost.is_cancelled() && self.0.connection.status().connected()
    }

    /// Resolves when the connection is lost.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        self.0.lost.clone().cancelled_owned()
    }

    /// Ends the connection at once, without a word to the broker: nothing that was not yet written ever is. The link
    /// connects again.
    pub fn abort(&self) {
        self.0.ending.end();
    }

    /// A fresh channel. A broker that does not answer is aborted.
    pub(super) async fn channel(&self) -> Result<Channel, Reason> {
        match timeout(ANSWER, self.0.connection.create_channel()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(match error.kind() {
                lapin::ErrorKind::ChannelsLimitReached => Reason::new(format!(
                    "the broker {} allows no more channels on a connection; raise channel_max there",
                    self.broker()
                )),
                _ => Reason::new(format!("the broker {} opens no channel: {}", self.broker(), reason::said(&error))),
            }),
            Err(_) => {
                self.abort();
                Err(Reason::new(format!("the broker {} does not answer (opening a channel)", self.broker())))
            }
        }
    }
}
