//! Carrying unfinished transactions out of a segment that is to be removed: each is written again, body included, in the
//! present segment.

use super::applied::Notes;
use super::catalog::Segment;
use super::codec;
use super::core::Core;
use super::log::record;
use super::origin::HOUSEKEEPING;
use super::queue::{Elsewhere, Record};
use super::read::{self, ReadError};
use super::retention::RetentionError;
use super::sql::{FileError, from_sql};
use super::ticket::{Promise, Ticket};
use super::view;
use super::view_row::{ViewRow, flag, status_number};
use crate::engine::fact::{Accepted, BodyRef, Fact, Keeper, Seq, Status, What};
use crate::engine::ports::{Append, LogError};
use crate::engine::replica::Origin;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Transactions on their way at the same time.
const WINDOW: usize = 128;
/// How long the views may take to see what was carried.
const PATIENCE: Duration = Duration::from_secs(30);

/// Unfinished transactions of younger segments with pieces of their bodies in this one.
fn leaning(core: &Core, segment: &Segment) -> Result<Vec<(Arc<Segment>, Seq)>, FileError> {
    let mut found = Vec::new();
    for younger in core.catalog.all().into_iter().filter(|s| s.first > segment.first) {
        if !younger.view.exists() {
            // Nothing of it is folded, and everything committed is: it is empty.
            continue;
        }
        let seqs = core.with_view(&younger, |conn| {
            let mut statement = conn.prepare("SELECT seq FROM tx WHERE open = 1 AND piece <= ?1")?;
            let seqs = statement.query_map([super::sql::to_sql(segment.end())], |r| r.get(0).map(from_sql))?;
            Ok(seqs.collect::<Result<Vec<Seq>, _>>()?)
        })?;
        found.extend(seqs.into_iter().filter(|seq| core.homes.now(*seq) == *seq).map(|seq| (younger.clone(), seq)));
    }
    Ok(found)
}

/// Bytes that a segment's unfinished transactions take in the logs, about: short-lived bodies lie elsewhere.
pub fn bytes_open(core: &Core, segment: &Segment) -> Result<u64, FileError> {
    core.with_view(segment, |conn| {
        let sum = "SELECT coalesce(sum(512 + iif(flags & ?1 = 0, body_len, 0)), 0) FROM tx WHERE open = 1";
        let sum: i64 = conn.query_row(sum, [flag::STORAGE], |r| r.get(0))?;
        Ok(sum as u64)
    })
}

/// Numbers of the transactions in a segment that something still has to happen to.
pub fn open(core: &Core, segment: &Segment, unknown: bool) -> Result<Vec<Seq>, FileError> {
    let mut found = core.with_view(segment, |conn| {
        let mut open = conn.prepare("SELECT seq FROM tx WHERE open = 1")?;
        let mut seqs = open.query_map([], |r| r.get(0).map(from_sql))?.collect::<Result<Vec<Seq>, _>>()?;
        if unknown {
            let mut odd = conn.prepare("SELECT seq FROM tx WHERE status > 1 AND status = ?1")?;
            for seq in odd.query_map([status_number(Status::Unknown)], |r| r.get(0).map(from_sql))? {
                seqs.push(seq?);
            }
        }
        Ok(seqs)
    })?;
    found.sort_unstable();
    found.dedup();
    found.retain(|seq| core.homes.now(*seq) == *seq);
    Ok(found)
}

/// Carries everything unfinished (and, with `unknown`, what an operator may still want to run again). Gives how many;
/// when this returns, the views show them under their new numbers, and nothing unfinished needs the segment any more.
pub fn carry(core: &Core, segment: &Arc<Segment>, unknown: bool) -> Result<u64, RetentionError> {
    {
        // Who refers to a piece of a body in it has queued that, or sees that it goes.
        let _decided = core.mapping.lock().unwrap_or_else(|e| e.into_inner());
        segment.set_leaving(true);
    }
    let carried = carry_all(core, segment, unknown);
    if carried.is_err() {
        segment.set_leaving(false);
    }
    carried
}

fn carry_all(core: &Core, segment: &Arc<Segment>, unknown: bool) -> Result<u64, RetentionError> {
    // Every group that began before the segment was leaving is through.
    pass_through(core);
    see(core, core.committed())?;
    let mut all: Vec<(Arc<Segment>, Seq)> = open(core, segment, unknown)?.into_iter().map(|seq| (segment.clone(), seq)).collect();
    all.extend(leaning(core, segment)?);
    let mut waiting: Vec<Arc<Ticket>> = Vec::new();
    let mut last = 0;
    let mut count = 0;
    for (home, seq) in &all {
        if waiting.len() >= WINDOW {
            for ticket in waiting.drain(..) {
                last = ticket.wait()?;
            }
        }
        // What the view says includes every fact up to here.
        let as_of = core.folded.get();
        let row = core.with_view(home, |conn| {
            let mut statement = conn.prepare(&format!("SELECT {} FROM tx WHERE seq = ?1", view::COLUMNS))?;
            Ok(statement.query_row([*seq as i64], |r| view::row(conn, r))?)
        })?;
        if let Some(ticket) = carry_one(core, &row, as_of)? {
            waiting.push(ticket);
            count += 1;
        }
    }
    waiting.extend(carry_pieces(core, segment)?);
    for ticket in waiting {
        last = ticket.wait()?;
    }
    see(core, last)?;
    Ok(count)
}

/// Waits until everything queued so far has been dealt with: sends an empty record after it.
pub fn pass_through(core: &Core) {
    let through = Arc::new(Ticket::default());
    if push(core, Box::new(Record { ticket: Some(Promise::new(&through)), ..Record::default() })).is_ok() {
        // Its own failure means the same: the writer has come to it.
        let _ = through.wait();
    }
}

/// Waits until the views go up to `seq`.
fn see(core: &Core, seq: Seq) -> Result<(), RetentionError> {
    core.hurry_views(seq);
    if core.folded.wait_for(seq, Instant::now() + PATIENCE) { Ok(()) } else { Err(RetentionError::Behind) }
}

/// One transaction; `None` when its bytes cannot be read, which is told.
fn carry_one(core: &Core, row: &ViewRow, as_of: Seq) -> Result<Option<Arc<Ticket>>, RetentionError> {
    let lost = |why: &str| {
        core.problems.add("carry", format!("transaction {} could not be carried out of its segment: {why}", row.id));
        Ok(None)
    };
    let (mut accepted, first) = match read::fact(core, row.seq).map(|fact| fact.map(|f| f.what)) {
        Ok(Some(What::Accepted(accepted))) => (accepted, row.seq),
        Ok(Some(What::Carried { accepted, first, from, .. })) => (accepted, if first == 0 { from } else { first }),
        Ok(_) => return lost("its accept fact is not readable"),
        Err(FileError::Damaged(e)) => return lost(&e.0),
        Err(e) => return Err(e.into()),
    };
    let body = match take_along(core, row.seq, &mut accepted)? {
        Ok(body) => body,
        // The node whose work it is has it; here it is only shown.
        Err(_) if row.applied => {
            accepted.body = BodyRef::None;
            None
        }
        Err(why) => return lost(&why),
    };
    if row.fold.broker {
        accepted.keeper = Keeper::Broker;
    }
    let routes = row.fold.routes.iter().map(|r| (r.name.clone(), r.progress)).collect();
    let what = What::Carried { accepted, from: row.seq, first, routes, as_of };
    let fact = Fact { id: row.id, home: 0, at: super::core::now_ms(), what };
    let mut record = record(core, Append { fact, body, deliver: false })?;
    record.elsewhere = elsewhere(read::origin(core, row.seq)?.unwrap_or(HOUSEKEEPING));
    let ticket = Arc::new(Ticket::default());
    record.ticket = Some(Promise::new(&ticket));
    let home = push(core, record)?;
    // What the carried fact itself does not say, so that the younger segment alone tells it all.
    if let Some(status) = row.fold.responded {
        push_fact(core, row, home, What::Responded { status, headers: Vec::new(), body: BodyRef::None, len: 0 })?;
    }
    if row.fold.unknown {
        push_fact(core, row, home, What::Unknown)?;
    }
    Ok(Some(ticket))
}

/// The body of a transaction for its new place, where it has to move; the inner error says why it cannot be read.
fn take_along(core: &Core, seq: Seq, accepted: &mut Accepted) -> Result<Result<Option<Bytes>, String>, RetentionError> {
    let read = |seq, transient| match read::piece(core, seq, transient) {
        Err(ReadError::File(e @ FileError::Sql(_))) => Err(RetentionError::from(e)),
        other => Ok(other.map_err(|e| e.to_string())),
    };
    match accepted.body.clone() {
        BodyRef::None => {}
        // A short-lived body is copied only out of a file that is kept for little else.
        BodyRef::OwnTransient if core.transients.may_stay(&[seq]) => {
            accepted.body = BodyRef::Chunks { seqs: vec![seq], transient: true };
        }
        BodyRef::Chunks { seqs, transient: true } if core.transients.may_stay(&seqs) => {}
        BodyRef::Own | BodyRef::OwnTransient => return Ok(read(seq, accepted.body == BodyRef::OwnTransient)?.map(Some)),
        BodyRef::Chunks { seqs, transient: true } if seqs.len() == 1 => {
            accepted.body = BodyRef::OwnTransient;
            return Ok(read(seqs[0], true)?.map(Some));
        }
        BodyRef::Chunks { seqs, transient } => {
            let mut fresh = Vec::with_capacity(seqs.len());
            for piece in seqs {
                match read(piece, transient)? {
                    Ok(bytes) => fresh.push(push_piece(core, bytes, transient)?),
                    Err(why) => return Ok(Err(why)),
                }
            }
            accepted.body = BodyRef::Chunks { seqs: fresh, transient };
        }
    }
    Ok(Ok(None))
}

fn push_fact(core: &Core, row: &ViewRow, home: Seq, what: What) -> Result<Seq, LogError> {
    let fact = Fact { id: row.id, home, at: row.fold.changed, what };
    let mut record = record(core, Append { fact, body: None, deliver: false })?;
    record.elsewhere = elsewhere(HOUSEKEEPING);
    push(core, record)
}

fn push_piece(core: &Core, bytes: Bytes, transient: bool) -> Result<Seq, LogError> {
    let compress_from = usize::try_from(core.config.compress_from.as_u64()).unwrap_or(usize::MAX);
    let body = Some(codec::body_row(bytes, compress_from));
    push(core, Box::new(Record { body, transient, elsewhere: elsewhere(HOUSEKEEPING), ..Record::default() }))
}

/// What is written again is not shipped again; what came from another log still does.
fn elsewhere(origin: Origin) -> Option<Box<Elsewhere>> {
    Some(Box::new(Elsewhere { origin, ..Elsewhere::default() }))
}

/// Pieces from other nodes whose fact is still to come.
fn carry_pieces(core: &Core, segment: &Segment) -> Result<Vec<Arc<Ticket>>, RetentionError> {
    let mut waiting = Vec::new();
    for (key, piece) in core.applied.pieces_in(segment) {
        let body = match read::packed_piece(core, piece.here, false) {
            Ok(body) => body,
            Err(ReadError::File(e @ FileError::Sql(_))) => return Err(e.into()),
            // Its message comes without a body then.
            Err(_) => None,
        };
        let Some(body) = body else { continue };
        let notes = Notes { pieces: vec![(key, piece)], ..Notes::default() };
        let elsewhere = Some(Box::new(Elsewhere { origin: key.0, notes, ..Elsewhere::default() }));
        let ticket = Arc::new(Ticket::default());
        let promise = Some(Promise::new(&ticket));
        push(core, Box::new(Record { body: Some(body), elsewhere, ticket: promise, ..Record::default() }))?;
        waiting.push(ticket);
    }
    Ok(waiting)
}

/// Queues a record, waiting for space: appenders get theirs in between.
fn push(core: &Core, mut record: Box<Record>) -> Result<Seq, LogError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match core.queue.push_ahead(record) {
            Ok(seq) => return Ok(seq),
            Err(_) if core.queue.is_closed() => return Err(LogError::Failed("the ledger is closing".into())),
            Err(_) if Instant::now() >= deadline => return Err(LogError::Busy),
            Err(back) => record = back,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
