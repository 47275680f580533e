//! Publishing with confirms: in order, repeated until the broker has said that it has the message.

use super::{Link, Reason, publishing::Task};
use bytes::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

/// Larger than anything this node publishes; brokers refuse more than 16 MiB (4.x) or 128 MiB (3.x) by ending the channel.
pub const LARGEST_PAYLOAD: usize = 12 * 1024 * 1024;

/// Bounds of a publisher.
#[derive(Clone, Debug)]
pub struct PublisherLimits {
    /// A message without a confirm for so long is published again on a fresh channel.
    pub confirm_timeout: Duration,
    /// A message without a confirm for so long, from the call on, is taken back and reported as [`PublishError::Away`]; `None`: never.
    pub give_up: Option<Duration>,
    /// Payload handed to the broker and not confirmed, in bytes; one message always goes.
    pub in_flight: usize,
    /// Messages handed to the broker and not confirmed.
    pub window: usize,
    /// Payload that waits to be handed over, in bytes, beyond which [`Publisher::room`] waits.
    pub waiting: usize,
}

impl Default for PublisherLimits {
    fn default() -> Self {
        Self {
            confirm_timeout: Duration::from_secs(10),
            give_up: None,
            in_flight: 16 * 1024 * 1024,
            window: 4096,
            waiting: 16 * 1024 * 1024,
        }
    }
}

/// The broker has the message: on a majority of a quorum queue's nodes, on their disks; in a stream without the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// It was published more than once: there may be several of it.
    pub repeated: bool,
    /// The session that confirmed.
    pub session: u64,
}

/// The message is not known to be stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker does not take it.
    #[error("the broker refuses messages for the queue {queue}: it is full (x-max-length), or has no majority of its nodes")]
    Rejected {
        /// The queue.
        queue: Arc<str>,
        /// An earlier publish of it may have been stored.
        maybe_stored: bool,
    },
    /// There is no such queue.
    #[error("there is no queue {queue} at the broker; it is declared again at the next connection")]
    Unroutable {
        /// The queue.
        queue: Arc<str>,
        /// An earlier publish of it may have been stored.
        maybe_stored: bool,
    },
    /// Not confirmed in the time given; it is not published any more.
    #[error("no confirm from the broker in time: {error}")]
    Away {
        /// It was handed to a broker and may have been stored; `false`: it certainly was not.
        maybe_stored: bool,
        /// What is wrong, and what the operator can do.
        error: Reason,
    },
    /// Larger than [`LARGEST_PAYLOAD`]; not published.
    #[error("{0} bytes are too many for one message of the broker")]
    TooLarge(usize),
    /// The publisher has ended.
    #[error("the publisher has ended")]
    Ended {
        /// It was handed to a broker and may have been stored.
        maybe_stored: bool,
    },
}

impl PublishError {
    /// Whether the message may be stored all the same; then whoever publishes it later marks it as "again".
    pub fn maybe_stored(&self) -> bool {
        match self {
            Self::Rejected { maybe_stored, .. }
            | Self::Unroutable { maybe_stored, .. }
            | Self::Away { maybe_stored, .. }
            | Self::Ended { maybe_stored } => *maybe_stored,
            Self::TooLarge(_) => false,
        }
    }
}

/// Publishes to queues by name, through the default exchange, on a channel of its own; cheap to clone.
///
/// It ends when the last clone is dropped (what was handed in is still published and confirmed) or the link is closed.
#[derive(Clone)]
pub struct Publisher {
    calls: mpsc::UnboundedSender<Call>,
    backlog: Arc<Backlog>,
}

/// What waits to be handed to the broker.
pub(super) struct Backlog {
    bytes: AtomicUsize,
    most: usize,
    fell: Notify,
}

impl Backlog {
    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.fell.notify_waiters();
    }
}

/// A message on its way.
pub(super) struct Call {
    pub(super) queue: Arc<str>,
    pub(super) payload: Bytes,
    pub(super) again: bool,
    pub(super) since: Instant,
    pub(super) answer: oneshot::Sender<Result<Confirmed, PublishError>>,
}

/// Weight of a message in the bounds: small ones are not free.
pub(super) fn weight(payload: &Bytes) -> usize {
    payload.len() + 256
}

impl Publisher {
    /// Starts one on `runtime`. `name` is for log lines.
    pub fn start(link: &Link, name: &'static str, limits: PublisherLimits, runtime: &Handle) -> Self {
        let (calls, from) = mpsc::unbounded_channel();
        let backlog = Arc::new(Backlog { bytes: AtomicUsize::new(0), most: limits.waiting, fell: Notify::new() });
        runtime.spawn(Task::new(link.clone(), name, limits, from, backlog.clone()).run());
        Self { calls, backlog }
    }

    /// Publishes `payload` to `queue`, mandatory and persistent; `again` marks it as one that may have been published before.
    ///
    /// The message is taken in with the call, not when the answer is waited for: calls made one after the other are
    /// published in that order. A repeat keeps it (it is marked "again"), so whoever reads the queue and drops messages that he has had
    /// sees them in order. A message given up takes those behind it for the same queue with it. Dropping the answer does not take the message back.
    pub fn publish(
        &self,
        queue: &Arc<str>,
        payload: Bytes,
        again: bool,
    ) -> impl Future<Output = Result<Confirmed, PublishError>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let size = payload.len();
        if size > LARGEST_PAYLOAD {
            let _ = answer.send(Err(PublishError::TooLarge(size)));
        } else {
            self.backlog.add(weight(&payload));
            let call = Call { queue: queue.clone(), payload, again, since: Instant::now(), answer };
            if let Err(mpsc::error::SendError(call)) = self.calls.send(call) {
                self.backlog.remove(weight(&call.payload));
                let _ = call.answer.send(Err(PublishError::Ended { maybe_stored: false }));
            }
        }
        async move { answered.await.unwrap_or(Err(PublishError::Ended { maybe_stored: true })) }
    }

    /// Waits until less than [`PublisherLimits::waiting`] waits to be handed over. [`Publisher::publish`] itself never waits, so that the order of
    /// calls is that of publication: callers that can wait do so here, before.
    pub async fn room(&self) {
        loop {
            let fell = self.backlog.fell.notified();
            tokio::pin!(fell);
            // Listens before it looks.
            fell.as_mut().enable();
            if self.backlog.bytes.load(Ordering::Acquire) < self.backlog.most {
                return;
            }
            fell.await;
        }
    }
}
