//! Events of the ledger.

use super::register;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

fn counter(name: &str, help: &str) -> Counter {
    register(name, help, Counter::default())
}

fn gauge(name: &str, help: &str) -> Gauge<i64, std::sync::atomic::AtomicI64> {
    register(name, help, Gauge::default())
}

static COMMITS: LazyLock<Counter> = LazyLock::new(|| counter("ledger_commits", "Commits of the log, each with its fsync"));
static RECORDS: LazyLock<Counter> = LazyLock::new(|| counter("ledger_records", "Facts and pieces of bodies written to the log"));
static COMMIT_SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    let buckets = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0];
    register("ledger_commit_seconds", "Time of one commit of the log", Histogram::new(buckets))
});
static COMMIT_FAILURES: LazyLock<Counter> =
    LazyLock::new(|| counter("ledger_commit_failures", "Commits of the log that failed; nothing in them was acknowledged"));
static LOST_LATER: LazyLock<Counter> = LazyLock::new(|| {
    counter("ledger_facts_lost", "Facts nobody waited for that could not be written; their work is repeated after a restart")
});
static SPACE_STOPS: LazyLock<Counter> =
    LazyLock::new(|| counter("ledger_space_stops", "Times that accepting stopped for want of space"));
static STORE_FULL: LazyLock<Gauge> =
    LazyLock::new(|| gauge("store_full", "1 while nothing is accepted for want of space in the store"));
static SEGMENTS: LazyLock<Gauge> = LazyLock::new(|| gauge("ledger_segments", "Segments of the ledger"));
static BYTES: LazyLock<Gauge> = LazyLock::new(|| gauge("ledger_bytes", "Size of the ledger on disk"));
static QUEUE_BYTES: LazyLock<Gauge> = LazyLock::new(|| gauge("ledger_queue_bytes", "Bytes waiting for the log's writer"));
static LAG: LazyLock<Gauge> = LazyLock::new(|| gauge("ledger_view_lag", "Numbers by which the views are behind the log"));
static REMOVED: LazyLock<Counter> = LazyLock::new(|| counter("ledger_segments_removed", "Segments removed by retention"));
static CARRIED: LazyLock<Counter> =
    LazyLock::new(|| counter("ledger_carried", "Unfinished transactions carried into a younger segment"));
static DAMAGED: LazyLock<Counter> = LazyLock::new(|| counter("ledger_damage", "Damaged files and rows found"));
static REBUILT: LazyLock<Counter> = LazyLock::new(|| counter("ledger_views_rebuilt", "Views made again from the log"));
static FOLDED: LazyLock<Counter<u64, AtomicU64>> = LazyLock::new(|| counter("ledger_folded", "Facts folded into the views"));

static APPLIED: LazyLock<Counter<u64, AtomicU64>> =
    LazyLock::new(|| counter("ledger_applied", "Records of other nodes taken into the log"));

/// Registers the metrics that nothing has touched yet: alert rules refer to them.
pub(super) fn touch() {
    for counter in [&COMMITS, &RECORDS, &COMMIT_FAILURES, &LOST_LATER, &SPACE_STOPS, &REMOVED, &CARRIED, &DAMAGED, &REBUILT] {
        LazyLock::force(counter);
    }
    for gauge in [&STORE_FULL, &SEGMENTS, &BYTES, &QUEUE_BYTES, &LAG] {
        LazyLock::force(gauge);
    }
    LazyLock::force(&COMMIT_SECONDS);
    LazyLock::force(&FOLDED);
    LazyLock::force(&APPLIED);
}

/// One commit of the log. Metric only.
pub struct Committed {
    pub records: usize,
    pub took: Duration,
}

impl Committed {
    pub fn emit(self) {
        COMMITS.inc();
        RECORDS.inc_by(self.records as u64);
        COMMIT_SECONDS.observe(self.took.as_secs_f64());
    }
}

/// The log could not commit.
pub struct CommitFailed<'a> {
    pub records: usize,
    pub error: &'a str,
    /// Say it in the log too; the failures after the first are only counted.
    pub first: bool,
}

impl CommitFailed<'_> {
    pub fn emit(self) {
        COMMIT_FAILURES.inc();
        if self.first {
            tracing::error!(
                records = self.records,
                error = self.error,
                "the log cannot commit: senders are told; check the disk under the store"
            );
        }
    }
}

/// The log commits again.
pub struct CommitRecovered;

impl CommitRecovered {
    pub fn emit(self) {
        tracing::info!("the log commits again");
    }
}

/// Facts that nobody waited for were lost. Metric, and a line for the first of a series.
pub struct LaterLost {
    pub first: bool,
}

impl LaterLost {
    pub fn emit(self) {
        LOST_LATER.inc();
        if self.first {
            tracing::warn!("facts are lost because the store fails; what they record may be done again after a restart");
        }
    }
}

/// Accepting stops: not enough space.
pub struct SpaceLow<'a> {
    pub reason: &'a str,
}

impl SpaceLow<'_> {
    pub fn emit(self) {
        SPACE_STOPS.inc();
        STORE_FULL.set(1);
        tracing::error!(reason = self.reason, "accepting stops");
    }
}

/// Space is back.
pub struct SpaceBack;

impl SpaceBack {
    pub fn emit(self) {
        STORE_FULL.set(0);
        tracing::info!("enough space again: accepting goes on");
    }
}

/// A new segment began.
pub struct SegmentBegun {
    pub first: u64,
}

impl SegmentBegun {
    pub fn emit(self) {
        tracing::info!(first = self.first, "new ledger segment");
    }
}

/// Retention removed a segment.
pub struct SegmentRemoved {
    pub first: u64,
    pub carried: u64,
    pub bytes: u64,
}

impl SegmentRemoved {
    pub fn emit(self) {
        REMOVED.inc();
        CARRIED.inc_by(self.carried);
        tracing::info!(first = self.first, carried = self.carried, bytes = self.bytes, "ledger segment removed by retention");
    }
}

/// A damaged file or row was found.
pub struct DamageFound<'a> {
    pub file: &'a str,
    pub error: &'a str,
    pub action: &'a str,
}

impl DamageFound<'_> {
    pub fn emit(self) {
        DAMAGED.inc();
        tracing::error!(file = self.file, error = self.error, action = self.action, "damage in the ledger");
    }
}

/// Damage that may have been found before. Metric, and a line for the first time.
pub struct DamageAgain<'a> {
    pub damage: DamageFound<'a>,
    pub first: bool,
}

impl DamageAgain<'_> {
    pub fn emit(self) {
        if self.first {
            self.damage.emit();
        } else {
            DAMAGED.inc();
        }
    }
}

/// Records of other nodes were taken in. Metric only.
pub struct Applied {
    pub records: u64,
}

impl Applied {
    pub fn emit(self) {
        APPLIED.inc_by(self.records);
    }
}

/// A log is lost, with what it had taken in from other nodes.
pub struct ReadAgain {
    /// First number of the log.
    pub lost: u64,
    /// Where reading begins; `None`: at the stream's beginning.
    pub offset: Option<u64>,
}

impl ReadAgain {
    pub fn emit(self) {
        let (lost, offset) = (self.lost, self.offset.map_or_else(|| "first".to_owned(), |o| o.to_string()));
        tracing::warn!(lost, offset, "a log is lost: what other nodes wrote since is read again from the stream");
    }
}

/// Own records left the ledger before other nodes had them.
pub struct Unshipped {
    pub first: u64,
}

impl Unshipped {
    pub fn emit(self) {
        tracing::warn!(first = self.first, "records left the ledger before the broker had them: other nodes do not find them");
    }
}

/// A view was made again.
pub struct ViewRebuilt {
    pub first: u64,
    pub facts: u64,
    pub took: Duration,
}

impl ViewRebuilt {
    pub fn emit(self) {
        REBUILT.inc();
        let ms = u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(first = self.first, facts = self.facts, took_ms = ms, "view made again from the log");
    }
}

/// Housekeeping that failed and is tried again.
pub struct UpkeepFailed<'a> {
    pub what: &'a str,
    pub error: &'a str,
}

impl UpkeepFailed<'_> {
    pub fn emit(self) {
        tracing::warn!(what = self.what, error = self.error, "ledger upkeep failed; it is tried again");
    }
}

/// Facts were folded. Metric only.
pub struct Folded {
    pub facts: u64,
    pub lag: u64,
}

impl Folded {
    pub fn emit(self) {
        FOLDED.inc_by(self.facts);
        LAG.set(i64::try_from(self.lag).unwrap_or(i64::MAX));
    }
}

/// How large things are now. Metric only.
pub struct Size {
    pub segments: usize,
    pub bytes: u64,
    pub queue_bytes: usize,
}

impl Size {
    pub fn emit(self) {
        SEGMENTS.set(i64::try_from(self.segments).unwrap_or(i64::MAX));
        BYTES.set(i64::try_from(self.bytes).unwrap_or(i64::MAX));
        QUEUE_BYTES.set(i64::try_from(self.queue_bytes).unwrap_or(i64::MAX));
    }
}
