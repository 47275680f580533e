//! The ledger as the engine's log.

use super::Ledger;
use super::codec::{self, body_of, kind};
use super::core::Core;
use super::queue::{Delivering, Record};
use super::sql::FileError;
use super::ticket::{Promise, Ticket, Waiting};
use crate::engine::fact::{Accepted, BodyRef, Keeper, Seq, What};
use crate::engine::ports::{Append, BodyStream, Ended, Log, LogError, Unfinished};
use crate::message::MessageId;
use crate::telemetry::ledger as event;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long an appender waits for space in the queue before it is told that the store is too slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// Encodes and compresses, in the caller's thread.
pub fn record(core: &Core, append: Append) -> Result<Box<Record>, LogError> {
    let Append { mut fact, body, deliver } = append;
    fact.home = match (&fact.what, fact.home) {
        // A sender's repetition of a message that another node, or the broker, keeps.
        (What::Resent { .. }, 0) => super::lookup::recent(core, fact.id).unwrap_or(0),
        (_, home) => core.homes.now(home),
    };
    let row = codec::fact_row(&fact).map_err(LogError::Failed)?;
    let mut record = Box::<Record>::default();
    let body_ref = body_of(&fact.what);
    let transient = matches!(body_ref, BodyRef::OwnTransient | BodyRef::Chunks { transient: true, .. });
    if let BodyRef::Chunks { seqs, .. } = body_ref {
        record.pieces = seqs.as_slice().into();
    }
    let own = matches!(body_ref, BodyRef::Own | BodyRef::OwnTransient);
    if own && body.is_none() {
        return Err(LogError::Failed("the fact refers to a body of its own and came without it".into()));
    }
    let compress_from = usize::try_from(core.config.compress_from.as_u64()).unwrap_or(usize::MAX);
    record.body = body.as_ref().filter(|_| own).map(|b| codec::body_row(b.clone(), compress_from));
    record.transient = transient;
    record.holds_transient = transient && matches!(row.kind, kind::ACCEPTED | kind::CARRIED);
    record.fact = Some(row);
    if let What::Accepted(accepted) | What::Carried { accepted, .. } = &fact.what {
        record.body_len = accepted.envelope.body_len;
        record.once = !deliver && matches!(&fact.what, What::Accepted(_));
    }
    record.carried_from = match &fact.what {
        What::Carried { from, .. } => Some(*from),
        _ => None,
    };
    if deliver && let What::Accepted(accepted) = fact.what {
        record.deliver = Some(Delivering { accepted, body });
    }
    Ok(record)
}

/// New messages are refused while space is short; what finishes those that are here is not.
fn is_new(what: &What) -> bool {
    matches!(what, What::Accepted(_) | What::Refused { .. })
}

/// Neither space now nor within the time that an appender waits.
fn full(core: &Core) -> Option<LogError> {
    core.refusal().or_else(|| core.is_tight().then_some(LogError::Full))
}

/// A place among those who wait for space in the queue.
struct InLine(Arc<Core>);

impl Drop for InLine {
    fn drop(&mut self) {
        self.0.queue.leave_line();
    }
}

fn queue_error(core: &Core) -> LogError {
    if core.queue.is_closed() { LogError::Failed("the ledger is closed".into()) } else { LogError::Busy }
}

/// A record that waits for its commit.
fn append(core: &Arc<Core>, append: Append) -> BoxFuture<'static, Result<Seq, LogError>> {
    let new = is_new(&append.fact.what);
    let refusal = if new { core.refusal() } else { None };
    let mut record = match refusal.map_or_else(|| record(core, append), Err) {
        Ok(record) => record,
        Err(e) => return Box::pin(std::future::ready(Err(e))),
    };
    let ticket = Arc::new(Ticket::default());
    record.ticket = Some(Promise::new(&ticket));
    // Taken now, not when first polled: the order of calls is the order of the log.
    let pushed = if new && core.is_tight() { Err(record) } else { core.queue.push(record) };
    match pushed {
        Ok(_) => Box::pin(Waiting(ticket)),
        Err(record) => {
            let core = core.clone();
            // From here on nobody who comes later gets in first, also before this future is polled.
            core.queue.wait_in_line();
            let line = InLine(core.clone());
            Box::pin(async move {
                let _line = line;
                if new {
                    core.room(PATIENCE).await;
                    if let Some(e) = full(&core) {
                        return Err(e);
                    }
                }
                match core.queue.push_waiting(record, PATIENCE).await {
                    Ok(_) => Waiting(ticket).await,
                    Err(_) => Err(queue_error(&core)),
                }
            })
        }
    }
}

/// How a transaction ended, by its facts.
fn ended(core: &Core, seq: Seq) -> Result<Ended, FileError> {
    let seq = core.homes.now(seq);
    let Some(segment) = core.catalog.holding(seq) else { return Ok(Ended::Not) };
    let Some(row) = super::recover::row(core, &segment, seq)? else { return Ok(Ended::Not) };
    let mut end = Ended::Not;
    for seq in row.fold.facts {
        end = match super::read::fact(core, seq)?.map(|fact| fact.what) {
            Some(What::Responded { status, headers, body, len }) => Ended::Responded { seq, status, headers, body, len },
            // A response that is there counts, whichever came first.
            Some(What::Unknown) if matches!(end, Ended::Not) => Ended::Unknown,
            _ => end,
        };
    }
    Ok(end)
}

impl Log for Ledger {
    fn append(&self, record: Append) -> BoxFuture<'static, Result<Seq, LogError>> {
        append(&self.core, record)
    }

    fn append_later(&self, append: Append) {
        let pushed = record(&self.core, append).map_err(|_| ()).and_then(|r| self.core.queue.push_later(r).map_err(|_| ()));
        if pushed.is_err() {
            let first = self.core.lost_later.fetch_add(1, Ordering::Relaxed) == 0;
            event::LaterLost { first }.emit();
        }
    }

    fn durable(&self) -> BoxFuture<'static, Result<(), LogError>> {
        let core = self.core.clone();
        let lost = core.lost_later.load(Ordering::Relaxed);
        let ticket = Arc::new(Ticket::default());
        // An empty record comes after all that is queued, and is told when they are written.
        let last = Box::new(Record { ticket: Some(Promise::new(&ticket)), ..Record::default() });
        let pushed = core.queue.push_later(last).map(|_| ()).map_err(|_| queue_error(&core));
        Box::pin(async move {
            pushed?;
            Waiting(ticket).await?;
            match core.lost_later.load(Ordering::Relaxed) == lost {
                true => Ok(()),
                false => Err(LogError::Failed("the store failed meanwhile".into())),
            }
        })
    }

    fn chunk(&self, data: Bytes, transient: bool) -> BoxFuture<'static, Result<Seq, LogError>> {
        if let Some(e) = self.core.refusal() {
            return Box::pin(std::future::ready(Err(e)));
        }
        let compress_from = usize::try_from(self.core.config.compress_from.as_u64()).unwrap_or(usize::MAX);
        let core = self.core.clone();
        Box::pin(async move {
            let share = core.queue.share(data.len(), PATIENCE).await;
            if share.is_none() {
                return Err(queue_error(&core));
            }
            let record = Box::new(Record {
                body: Some(codec::body_row(data, compress_from)),
                transient,
                _share: share,
                ..Record::default()
            });
            let pushed = if core.is_tight() { Err(record) } else { core.queue.push(record) };
            match pushed {
                Ok(seq) => Ok(seq),
                Err(record) => {
                    core.room(PATIENCE).await;
                    if let Some(e) = full(&core) {
                        return Err(e);
                    }
                    core.queue.push_waiting(record, PATIENCE).await.map_err(|_| queue_error(&core))
                }
            }
        })
    }

    fn read(&self, seq: Seq, body: &BodyRef) -> BodyStream {
        super::bodies::stream(self.core.clone(), self.readers.clone(), seq, body.clone())
    }

    fn accepted(&self, seq: Seq) -> BoxFuture<'static, Result<Accepted, LogError>> {
        let core = self.core.clone();
        let job = self.readers.run(move || super::read::accepted(&core, core.homes.now(seq)));
        Box::pin(async move {
            match job.await {
                Some(Ok(Some(accepted))) => Ok(*accepted),
                Some(Ok(None)) => Err(LogError::Failed(format!("no accept fact is stored under {seq}"))),
                Some(Err(e)) => Err(LogError::Failed(e.to_string())),
                None => Err(LogError::Failed("the ledger is closed".into())),
            }
        })
    }

    fn unfinished_by_id(&self, id: MessageId) -> BoxFuture<'_, Result<Option<Unfinished>, LogError>> {
        let core = self.core.clone();
        let committed = core.committed();
        let job = self.readers.run(move || {
            // What happened to it last may not be in the views yet.
            core.hurry_views(committed);
            core.folded.wait_for(committed, std::time::Instant::now() + PATIENCE);
            super::search::detail(&core, id)
        });
        Box::pin(async move {
            let detail = match job.await {
                Some(Ok(detail)) => detail.filter(|d| d.row.open),
                Some(Err(e)) => return Err(LogError::Failed(e.to_string())),
                None => return Err(LogError::Failed("the ledger is closed".into())),
            };
            Ok(detail.and_then(|d| {
                let mut accepted = d.accepted?;
                if d.facts.iter().any(|(_, fact)| matches!(fact.what, What::Forwarded)) {
                    accepted.keeper = Keeper::Broker;
                }
                let progress = |name: &String| d.row.routes.iter().find(|(n, _)| n == name).map(|(_, p)| *p).unwrap_or_default();
                let routes = accepted.routes.iter().map(progress).collect();
                Some(Unfinished { seq: d.row.seq, accepted, routes })
            }))
        })
    }

    fn ended(&self, seq: Seq) -> BoxFuture<'_, Result<Ended, LogError>> {
        let core = self.core.clone();
        let job = self.readers.run(move || {
            let first = ended(&core, seq)?;
            if !matches!(first, Ended::Not) {
                return Ok(first);
            }
            // How it ended may not be in the views yet, nor in the log.
            super::carry::pass_through(&core);
            let committed = core.committed();
            core.hurry_views(committed);
            core.folded.wait_for(committed, std::time::Instant::now() + PATIENCE);
            ended(&core, seq)
        });
        Box::pin(async move {
            match job.await {
                Some(ended) => ended.map_err(|e: FileError| LogError::Failed(e.to_string())),
                None => Err(LogError::Failed("the ledger is closed".into())),
            }
        })
    }

    fn finished(&self, seq: Seq) {
        self.core.transients.finished(self.core.homes.now(seq));
    }
}
