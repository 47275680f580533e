//! What this log wrote of itself, in its order, for the other nodes: committed records only, read from the segments and the short-lived
//! files on a reader's thread, so that it costs the writer nothing.

use super::batch::{self, RawFact};
use super::catalog::Segment;
use super::codec::{self, BodyRow, body_of, kind};
use super::core::Core;
use super::damage;
use super::read;
use super::readers::Readers;
use super::sql::{FileError, Form, from_sql, origin_column, to_sql};
use crate::engine::fact::{BodyRef, Fact, Seq};
use crate::engine::ports::LogError;
use crate::engine::replica::{OwnRecords, PackedBody, Shipped};
use crate::telemetry::ledger as event;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

/// Numbers looked at in one step: bounds the time for which a reader is in the log.
const WINDOW: u64 = 16 * 1024;
/// So many numbers without anything of its own are told as such.
const FAR: u64 = 256 * 1024;
/// What a record costs besides its data, about.
const RECORD: usize = 64;

/// How far own records are with the other nodes.
pub struct Shipping {
    upto: AtomicU64,
    /// Nothing up to here is this log's own.
    adopted: Seq,
    /// Somebody ships them.
    on: AtomicBool,
    /// Lowest number that left the ledger unshipped; 0: none did.
    lost_from: AtomicU64,
    committed: Arc<Notify>,
}

impl Shipping {
    pub fn new(upto: Seq, adopted: Seq) -> Self {
        Self {
            upto: AtomicU64::new(upto),
            adopted,
            on: AtomicBool::new(false),
            lost_from: AtomicU64::new(0),
            committed: Arc::default(),
        }
    }

    pub fn upto(&self) -> Seq {
        self.upto.load(Ordering::Acquire)
    }

    /// Everything up to here is confirmed.
    pub fn confirmed(&self, upto: Seq) {
        self.upto.fetch_max(upto, Ordering::AcqRel);
    }

    /// Somebody ships: is to be woken by commits, and to be told of what goes unshipped.
    fn begin(&self, core: &Core) {
        if !self.on.swap(true, Ordering::AcqRel) {
            let committed = self.committed.clone();
            core.follower.add(Arc::new(move || committed.notify_waiters()));
        }
    }

    /// A segment's files go.
    pub fn gone(&self, core: &Core, segment: &Segment) {
        let (first, last) = (segment.first.max(self.upto().max(self.adopted) + 1), segment.end().min(core.committed()));
        if !self.on.load(Ordering::Acquire) || last < first {
            return;
        }
        let first = match self.lost_from.compare_exchange(0, first, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                event::Unshipped { first }.emit();
                first
            }
            Err(known) => known,
        };
        core.problems.clear("shipping");
        core.problems.add(
            "shipping",
            format!(
                "records {first} to {last} left the ledger before the broker had them: other nodes do not find the transactions in them; \
                 see why the broker takes nothing, or raise ledger.max_size or ledger.retention"
            ),
        );
    }

    /// Ends who waits.
    pub fn close(&self) {
        self.committed.notify_waiters();
    }
}

/// The next own records; see [`Replica::own`](crate::engine::replica::Replica::own).
pub async fn own(core: Arc<Core>, readers: Arc<Readers>, after: Seq, bytes: usize) -> Result<OwnRecords, LogError> {
    core.shipping.begin(&core);
    let wake = core.shipping.committed.clone();
    let mut at = after.max(core.shipping.adopted);
    loop {
        // Listened before looking, so that no commit is missed.
        let mut committed = std::pin::pin!(wake.notified());
        committed.as_mut().enable();
        let closed = || LogError::Failed("the ledger is closed".into());
        if core.queue.is_closed() {
            return Err(closed());
        }
        if core.committed() <= at {
            committed.await;
            continue;
        }
        let (looking, from) = (core.clone(), at);
        let read = readers.run(move || step(&looking, from, bytes)).await.ok_or_else(closed)?;
        let found = read.map_err(|e| LogError::Failed(format!("the log cannot be read: {e}")))?;
        at = found.upto;
        // Nothing of its own, but the end: whoever waits for it to be shipped need not wait for the next record.
        if !found.records.is_empty() || at.saturating_sub(after) >= FAR || at >= core.committed() {
            return Ok(found);
        }
    }
}

/// What follows `after` within one segment and [`WINDOW`] numbers. Blocks.
fn step(core: &Core, after: Seq, bytes: usize) -> Result<OwnRecords, FileError> {
    // Asked in this order: what is committed, then where it lies.
    let committed = core.committed();
    let Some((segment, closed)) = core.catalog.beyond(after) else {
        return Ok(OwnRecords { upto: committed, ..Default::default() });
    };
    let end = if closed { segment.end().min(committed) } else { committed };
    let until = end.min(after.max(segment.first - 1).saturating_add(WINDOW)).max(after);
    let mut found = Found { until, ..Found::default() };
    match core.with_log(&segment, |conn| found.log(conn, after, bytes)) {
        // Retention was quicker: looked at again, with another segment.
        Err(_) if segment.is_gone() => return Ok(OwnRecords { upto: after, ..Default::default() }),
        Err(error @ FileError::Damaged(_)) if closed => damage::noticed(core, segment.first, &error),
        read => read?,
    }
    for path in core.transients.between(after, found.until) {
        let read =
            core.pool.with(&path, Form::Transient, || core.transients.has(&path), |conn| found.bodies(conn, after, bytes, true));
        match read {
            // All in it was finished, and shipped facts do without.
            Err(_) if !core.transients.has(&path) => {}
            Err(error @ FileError::Damaged(_)) => damage::noticed_transient(core, after + 1, &error),
            read => read?,
        }
    }
    Ok(found.records(bytes))
}

/// What was read; complete up to `until`.
#[derive(Default)]
struct Found {
    until: Seq,
    facts: BTreeMap<Seq, RawFact>,
    bodies: BTreeMap<Seq, (PackedBody, bool)>,
}

impl Found {
    fn log(&mut self, conn: &Connection, after: Seq, bytes: usize) -> Result<(), FileError> {
        let facts = batch::read_own(conn, after, self.until, bytes)?;
        if facts.iter().map(|f| f.data.len()).sum::<usize>() >= bytes {
            self.until = facts.last().map_or(self.until, |f| f.seq);
        }
        self.facts = facts.into_iter().map(|f| (f.seq, f)).collect();
        self.bodies(conn, after, bytes, false)
    }

    fn bodies(&mut self, conn: &Connection, after: Seq, bytes: usize, transient: bool) -> Result<(), FileError> {
        let mut statement = conn.prepare_cached(&format!(
            "SELECT seq, codec, len, sum, data FROM bodies WHERE seq > ?1 AND seq <= ?2 AND {} IS NULL ORDER BY seq",
            origin_column(conn)?
        ))?;
        let mut rows = statement.query([to_sql(after), to_sql(self.until)])?;
        let mut size = 0;
        while let Some(row) = rows.next()? {
            let seq = from_sql(row.get(0)?);
            let Some(BodyRow { codec, len, sum, data }) = read::packed(row, 1)? else { continue };
            size += data.len();
            let body = PackedBody { codec: codec as u8, len: len as u64, sum, data };
            self.bodies.insert(seq, (body, transient));
            if size >= bytes {
                self.until = seq;
                break;
            }
        }
        Ok(())
    }

    /// In order, up to about so many bytes.
    fn records(mut self, bytes: usize) -> OwnRecords {
        let mut seqs: Vec<Seq> = self.facts.keys().chain(self.bodies.keys()).copied().filter(|s| *s <= self.until).collect();
        seqs.sort_unstable();
        seqs.dedup();
        let mut records = Vec::with_capacity(seqs.len());
        let mut size = 0;
        for seq in seqs {
            if size >= bytes {
                // From here on it is read once more.
                return OwnRecords { upto: seq - 1, records };
            }
            let raw = self.facts.remove(&seq);
            let body = self.bodies.remove(&seq);
            size += RECORD + raw.as_ref().map_or(0, |f| f.data.len()) + body.as_ref().map_or(0, |(b, _)| b.data.len());
            let fact = match raw {
                None => None,
                // Housekeeping of the version before, which does not say so.
                Some(raw) if raw.kind == kind::CARRIED => continue,
                Some(raw) => match codec::what(&raw.data) {
                    Some(what) => Some(Fact { id: raw.id, home: raw.home, at: raw.at, what }),
                    // Of a later release.
                    None => continue,
                },
            };
            let own_transient = fact.as_ref().is_some_and(|f| *body_of(&f.what) == BodyRef::OwnTransient);
            let transient = own_transient || body.as_ref().is_some_and(|(_, transient)| *transient);
            records.push(Shipped { seq, fact, body: body.map(|(body, _)| body), transient });
        }
        OwnRecords { upto: self.until, records }
    }
}
