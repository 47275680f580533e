//! Events of the transport over RabbitMQ, above its connection.

use super::register;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::sync::LazyLock;

fn counter(name: &str, help: &str) -> Counter {
    register(name, help, Counter::default())
}

static SHIPPED: LazyLock<Counter> =
    LazyLock::new(|| counter("ledger_shipped", "Records of this log confirmed by the ledger stream"));
static GAPS: LazyLock<Counter> = LazyLock::new(|| {
    counter("ledger_stream_gaps", "Batches of the ledger stream that came before one they follow; they come again")
});
static HOLES: LazyLock<Counter> =
    LazyLock::new(|| counter("ledger_stream_holes", "Times that records had left the ledger stream before this node read them"));
static STREAM_FAILURES: LazyLock<Counter> =
    LazyLock::new(|| counter("ledger_stream_failures", "Times that shipping to, or reading from, the ledger stream failed"));
static TAKEN: LazyLock<Counter> =
    LazyLock::new(|| counter("partitions_taken", "Times that this node became active on a partition"));
static HELD: LazyLock<Counter> = LazyLock::new(|| {
    counter("deliveries_held", "Deliveries taken out of the broker's queues by this node to wait in the ledger")
});
static IN_LEDGER: LazyLock<Gauge> = LazyLock::new(|| {
    let help = "Deliveries of the domain that wait in the ledger instead of in the broker's queues, as this node knows";
    register("held", help, Gauge::default())
});
static ENDED: LazyLock<Counter> = LazyLock::new(|| counter("consumer_failures", "Times that a partition's consumer ended"));
static SPOOLED: LazyLock<Gauge> =
    LazyLock::new(|| register("spooled", "Messages accepted here that the broker does not have yet", Gauge::default()));
static EPOCH: LazyLock<Gauge> =
    LazyLock::new(|| register("partitions_epoch", "Epoch of the domain's partitions that this node follows", Gauge::default()));
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}
static UNUSABLE: LazyLock<Family<Kind, Gauge>> = LazyLock::new(|| {
    let help = "Queues of the broker that cannot be used now; kind: otherwise (declared otherwise), forbidden, missing, failed, consumer";
    register("queues_unusable", help, Family::default())
});

/// Registers the metrics that nothing has touched yet.
pub(super) fn touch() {
    for counter in [&SHIPPED, &GAPS, &HOLES, &STREAM_FAILURES, &TAKEN, &ENDED, &HELD] {
        LazyLock::force(counter);
    }
    LazyLock::force(&SPOOLED);
    LazyLock::force(&EPOCH);
    LazyLock::force(&IN_LEDGER);
    LazyLock::force(&UNUSABLE);
}

/// Own records are in the stream. Metric only.
pub struct Shipped {
    pub records: usize,
}

impl Shipped {
    pub fn emit(self) {
        SHIPPED.inc_by(self.records as u64);
    }
}

/// A batch came before one that it follows. Metric only.
pub struct StreamGap;

impl StreamGap {
    pub fn emit(self) {
        GAPS.inc();
    }
}

/// The stream is another than the one that was read before.
pub struct StreamMadeAnew {
    pub asked: u64,
    pub begins: u64,
}

impl StreamMadeAnew {
    pub fn emit(self) {
        tracing::warn!(
            asked = self.asked,
            begins = self.begins,
            "the ledger stream was deleted and made anew: it is read from its first message; what was in the old one and never reached this \
             node is missing here"
        );
    }
}

/// A node that has read nothing yet finds that the stream's beginning is gone.
pub struct StreamTruncated {
    pub messages: u64,
}

impl StreamTruncated {
    pub fn emit(self) {
        HOLES.inc();
        tracing::error!(
            messages = self.messages,
            "the beginning of the ledger stream has been removed by its retention: this node does not find older transactions; give it the \
             ledger of a peer (`[peers]`), with an empty store"
        );
    }
}

/// Records that were confirmed are not in the stream any more.
pub struct StreamHole {
    pub records_from: u64,
    pub to: u64,
}

impl StreamHole {
    pub fn emit(self) {
        HOLES.inc();
        tracing::error!(
            records_from = self.records_from,
            to = self.to,
            "records of another node are gone from the ledger stream before this node read them: it does not find some of that node's \
             transactions; keep `transport.stream_max_age` and `stream_max_bytes` above the longest absence of a node"
        );
    }
}

/// Own records do not get into the stream. Metric, and a line where the cause is not the one of before.
pub struct ShippingFailed<'a> {
    pub error: &'a str,
    pub new: bool,
}

impl ShippingFailed<'_> {
    pub fn emit(self) {
        STREAM_FAILURES.inc();
        if self.new {
            tracing::warn!(error = self.error, "what this node's ledger holds does not reach the others; trying again");
        }
    }
}

/// The ledger stream is not read. Metric, and a line where the cause is not the one of before.
pub struct ReadingEnded<'a> {
    pub error: &'a str,
    pub new: bool,
}

impl ReadingEnded<'_> {
    pub fn emit(self) {
        STREAM_FAILURES.inc();
        if self.new {
            tracing::warn!(error = self.error, "what other nodes' ledgers hold does not come in; trying again");
        }
    }
}

/// Something in the ledger stream is not of our making.
pub struct StreamUnreadable;

impl StreamUnreadable {
    pub fn emit(self) {
        STREAM_FAILURES.inc();
        tracing::warn!("a message in the ledger stream cannot be read and is passed over: something else publishes there");
    }
}

/// Another node of the domain has this node's name.
pub struct SameName<'a> {
    pub node: &'a str,
}

impl SameName<'_> {
    pub fn emit(self) {
        tracing::error!(
            node = self.node,
            "another node of this domain has the same name: work is not spread between them; give each its own `node.name`"
        );
    }
}

/// Deliveries are taken out of the broker's queue, to wait in the ledger. Metric only.
pub struct Held {
    pub messages: usize,
}

impl Held {
    pub fn emit(self) {
        HELD.inc_by(self.messages as u64);
    }
}

/// How many wait there. Metric only.
pub struct InLedger {
    pub messages: u64,
}

impl InLedger {
    pub fn emit(self) {
        IN_LEDGER.set(i64::try_from(self.messages).unwrap_or(i64::MAX));
    }
}

/// A partition of a route was taken over, with what the ledger holds for it.
pub struct HeldLoaded<'a> {
    pub channel: &'a str,
    pub route: &'a str,
    pub messages: usize,
}

impl HeldLoaded<'_> {
    pub fn emit(self) {
        if self.messages > 0 {
            tracing::info!(
                channel = self.channel,
                route = self.route,
                messages = self.messages,
                "takes on deliveries that wait in the ledger"
            );
        }
    }
}

/// This node works on a partition now.
pub struct PartitionTaken<'a> {
    pub queue: &'a str,
}

impl PartitionTaken<'_> {
    pub fn emit(self) {
        TAKEN.inc();
        tracing::debug!(queue = self.queue, "active on this partition");
    }
}

/// A queue of an epoch that ends has run empty.
pub struct QueueDrained<'a> {
    pub queue: &'a str,
}

impl QueueDrained<'_> {
    pub fn emit(self) {
        tracing::debug!(queue = self.queue, "nothing of the epoch before is left in this queue");
    }
}

/// The number of partitions is being changed: a step of it.
pub struct LayoutStep<'a> {
    pub epoch: u64,
    pub partitions: u16,
    /// See `Stage::word`.
    pub stage: &'a str,
}

impl LayoutStep<'_> {
    pub fn emit(self) {
        EPOCH.set(i64::try_from(self.epoch).unwrap_or(i64::MAX));
        tracing::info!(epoch = self.epoch, partitions = self.partitions, stage = self.stage, "the domain's partitions");
    }
}

/// The layout cannot be kept, or not be followed.
pub struct LayoutProblem<'a> {
    pub error: &'a str,
}

impl LayoutProblem<'_> {
    pub fn emit(self) {
        tracing::error!(error = self.error, "the domain's partitions are not followed");
    }
}

/// A queue of the epoch before has been removed, or not.
pub struct QueueRemoved<'a> {
    pub queue: &'a str,
    /// Why not.
    pub error: Option<&'a str>,
}

impl QueueRemoved<'_> {
    pub fn emit(self) {
        match self.error {
            None => tracing::info!(queue = self.queue, "removed, empty: its epoch is over"),
            Some(error) => tracing::warn!(queue = self.queue, error, "a queue of an epoch that is over cannot be removed"),
        }
    }
}

/// A queue cannot be used, for a cause that is not the one of before.
pub struct QueueUnusable<'a> {
    pub queue: &'a str,
    /// See [`QueuesUnusable`].
    pub kind: &'static str,
    pub error: &'a str,
}

impl QueueUnusable<'_> {
    pub fn emit(self) {
        let Self { queue, kind, error } = self;
        match kind {
            // It goes with the connection, and comes back with it.
            "failed" => tracing::warn!(queue, error, "a queue cannot be used now; trying again"),
            _ => tracing::error!(queue, kind, error, "a queue cannot be used; trying again"),
        }
    }
}

/// A queue can be used again.
pub struct QueueUsable<'a> {
    pub queue: &'a str,
}

impl QueueUsable<'_> {
    pub fn emit(self) {
        tracing::info!(queue = self.queue, "the queue can be used");
    }
}

/// How many cannot. Metric only.
pub struct QueuesUnusable {
    /// `otherwise`, `forbidden`, `missing`, `failed` or `consumer`.
    pub kind: &'static str,
    pub queues: usize,
}

impl QueuesUnusable {
    pub fn emit(self) {
        UNUSABLE.get_or_create(&Kind { kind: self.kind }).set(i64::try_from(self.queues).unwrap_or(i64::MAX));
    }
}

/// A partition's consumer has ended and begins again.
pub struct ConsumerEnded<'a> {
    pub queue: &'a str,
    pub error: &'a str,
}

impl ConsumerEnded<'_> {
    pub fn emit(self) {
        ENDED.inc();
        tracing::warn!(queue = self.queue, error = self.error, "not consuming this queue; trying again");
    }
}

/// No broker takes messages: they are accepted into this node's own log.
pub struct Spooling<'a> {
    pub channel: &'a str,
}

impl Spooling<'_> {
    pub fn emit(self) {
        tracing::warn!(
            channel = self.channel,
            "no broker takes messages: accepting into this node's own log; keep this node and its disk"
        );
    }
}

/// Everything that was accepted into this node's own log is with the broker.
pub struct Spooled<'a> {
    pub channel: &'a str,
}

impl Spooled<'_> {
    pub fn emit(self) {
        tracing::info!(channel = self.channel, "what was accepted here while no broker answered has been handed on");
    }
}

/// The node ends with messages that only it has.
pub struct SpoolKept {
    pub messages: u64,
}

impl SpoolKept {
    pub fn emit(self) {
        tracing::warn!(
            messages = self.messages,
            "accepted messages wait on this node's disk for the broker: keep the disk, and start the node again on it"
        );
    }
}

/// How many messages wait here for the broker. Metric only.
pub struct InSpool {
    pub messages: u64,
}

impl InSpool {
    pub fn emit(self) {
        SPOOLED.set(i64::try_from(self.messages).unwrap_or(i64::MAX));
    }
}
