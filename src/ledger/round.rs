//! One round of applying: where each record belongs here, and what comes of it.

use super::applied::{Notes, Piece, PieceKey};
use super::apply::Call;
use super::codec::{self, BodyRow, Codec, body_of, kind};
use super::core::{Core, now_ms};
use super::lookup::{self, Wanted};
use super::queue::{Elsewhere, Record};
use super::read;
use super::ticket::{Promise, Ticket};
use crate::engine::fact::{BodyRef, Fact, Keeper, Seq, What};
use crate::engine::ports::LogError;
use crate::engine::replica::{Arrived, Origin, PackedBody, Shipped};
use crate::message::MessageId;
use crate::telemetry::ledger as event;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long it waits for retention to make room.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// Appenders who wait for space in the queue go first, so long.
const AFTER_OTHERS: Duration = Duration::from_millis(50);
const PUSH_LOOK: Duration = Duration::from_millis(1);

/// The state of a round.
pub struct Round<'a> {
    core: &'a Core,
    number: u64,
    /// Messages that are not in memory, by what the views say.
    found: HashMap<MessageId, Seq>,
    /// Messages of this round.
    new: HashMap<MessageId, Seq>,
    /// Pieces of this round.
    pieces: HashMap<PieceKey, Piece>,
    taken: HashMap<Origin, Seq>,
    /// Logs of which something was looked at in this round.
    touched: Vec<Origin>,
    /// For the last record.
    notes: Notes,
    written: u64,
    /// What other nodes accepted, in log order, and under which numbers there.
    arrived: Vec<((Origin, Seq), Arrived)>,
}

/// What makes a message known, and when it arrived.
fn creates(what: &What) -> Option<i64> {
    match what {
        What::Accepted(accepted) => Some(accepted.envelope.received_ms),
        What::Refused { envelope, .. } => Some(envelope.received_ms),
        _ => None,
    }
}

fn body_mut(what: &mut What) -> Option<&mut BodyRef> {
    match what {
        What::Accepted(accepted) | What::Carried { accepted, .. } => Some(&mut accepted.body),
        What::Attempt(attempt) => Some(&mut attempt.response),
        What::Refused { body, .. } | What::Responded { body, .. } | What::Step { body, .. } => Some(body),
        What::Resent { .. }
        | What::Requeued { .. }
        | What::Discarded { .. }
        | What::Unknown
        | What::Forwarded
        | What::Repeated { .. }
        | What::Held { .. } => None,
    }
}

/// A body on its way, checked: what was flipped on the way is left out here as it would be when read.
fn body_row(packed: PackedBody) -> Option<BodyRow> {
    let codec = match packed.codec {
        0 => Codec::Plain,
        1 => Codec::Zstd,
        _ => return None,
    };
    let len = usize::try_from(packed.len).ok().filter(|n| *n <= codec::MAX_ROW)?;
    (codec::sum(&packed.data) == packed.sum).then_some(BodyRow { codec, len, sum: packed.sum, data: packed.data })
}

impl<'a> Round<'a> {
    pub fn new(core: &'a Core, number: u64) -> Self {
        Self {
            core,
            number,
            found: HashMap::new(),
            new: HashMap::new(),
            pieces: HashMap::new(),
            taken: core.applied.positions().taken,
            touched: Vec::new(),
            notes: Notes::default(),
            written: 0,
            arrived: Vec::new(),
        }
    }

    /// Queues what the calls bring.
    pub fn take_in(&mut self, calls: &mut [Call]) -> Result<(), LogError> {
        for call in calls.iter_mut() {
            if call.origin == self.core.origin || call.origin == super::origin::HOUSEKEEPING {
                // Its own, come back.
                call.records.clear();
            }
            let taken = self.taken.get(&call.origin).copied().unwrap_or(0);
            call.records.retain(|r| r.seq > taken);
        }
        self.wait_for_room(calls)?;
        self.look_up(calls)?;
        for call in calls {
            for record in call.records.drain(..) {
                let taken = self.taken.entry(call.origin).or_default();
                // The same call twice in one round.
                if record.seq <= *taken {
                    continue;
                }
                *taken = record.seq;
                if !self.touched.contains(&call.origin) {
                    self.touched.push(call.origin);
                }
                self.record(call.origin, record)?;
            }
            self.notes.offset = Some(call.offset);
        }
        Ok(())
    }

    /// New messages need room; what finishes those that are here makes it.
    fn wait_for_room(&self, calls: &[Call]) -> Result<(), LogError> {
        let new = |r: &Shipped| r.fact.as_ref().is_none_or(|fact| creates(&fact.what).is_some());
        if !calls.iter().any(|call| call.records.iter().any(new)) {
            return Ok(());
        }
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(refusal) = self.core.refusal() {
                return Err(refusal);
            }
            if !self.core.is_tight() {
                return Ok(());
            }
            if Instant::now() >= until || self.core.ending.load(Ordering::Acquire) {
                return Err(LogError::Full);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look_up(&mut self, calls: &[Call]) -> Result<(), LogError> {
        let mut wanted: HashMap<MessageId, Option<i64>> = HashMap::new();
        for fact in calls.iter().flat_map(|c| &c.records).filter_map(|r| r.fact.as_ref()) {
            if lookup::recent(self.core, fact.id).is_none() {
                // What creates it comes first, and knows the time: so do its other facts then, if it is not known yet.
                wanted.entry(fact.id).or_insert_with(|| creates(&fact.what));
            }
        }
        let wanted: Vec<Wanted> = wanted.into_iter().collect();
        self.found = lookup::homes(self.core, &wanted)?;
        Ok(())
    }

    fn home(&self, id: MessageId) -> Option<Seq> {
        let known = self.new.get(&id).or_else(|| self.found.get(&id)).copied().map(|seq| self.core.homes.now(seq));
        known.or_else(|| lookup::recent(self.core, id))
    }

    fn record(&mut self, origin: Origin, shipped: Shipped) -> Result<(), LogError> {
        let Shipped { seq, fact, body, transient } = shipped;
        let body = body.and_then(body_row);
        let Some(fact) = fact else {
            if let Some(body) = body {
                let piece = Piece { here: 0, transient, at: now_ms() };
                self.piece((origin, seq), piece, body)?;
            }
            return Ok(());
        };
        let known = self.home(fact.id);
        let new = creates(&fact.what).is_some();
        let wanted = match &fact.what {
            What::Carried { .. } => false,
            _ => known.is_none() == new,
        };
        if !wanted {
            if let BodyRef::Chunks { seqs, .. } = body_of(&fact.what) {
                self.notes.settled.extend(seqs.iter().map(|s| (origin, *s)));
            }
            return Ok(());
        }
        self.fact((origin, seq), Fact { home: known.unwrap_or(0), ..fact }, body)
    }

    fn fact(&mut self, from: (Origin, Seq), mut fact: Fact, mut body: Option<BodyRow>) -> Result<(), LogError> {
        let (origin, _) = from;
        // From here until it is queued no segment goes that has a piece of it.
        let core = self.core;
        let _stays = core.mapping.lock().unwrap_or_else(|e| e.into_inner());
        let mut notes = Notes { taken: vec![from], ..Notes::default() };
        let mut reference = body_of(&fact.what).clone();
        match &mut reference {
            BodyRef::None => body = None,
            // Finished, and its bytes gone, before it was shipped; or flipped on the way.
            BodyRef::Own | BodyRef::OwnTransient if body.is_none() => reference = BodyRef::None,
            BodyRef::Own | BodyRef::OwnTransient => {}
            BodyRef::Chunks { seqs, .. } => {
                body = None;
                notes.settled = seqs.iter().map(|s| (origin, *s)).collect();
                match self.pieces_here(origin, seqs)? {
                    Some(here) => *seqs = here,
                    None => reference = BodyRef::None,
                }
            }
        }
        if let Some(place) = body_mut(&mut fact.what) {
            place.clone_from(&reference);
        }
        let row = codec::fact_row(&fact).map_err(LogError::Failed)?;
        let transient = matches!(reference, BodyRef::OwnTransient | BodyRef::Chunks { transient: true, .. });
        let mut record = Box::new(Record {
            body,
            transient,
            holds_transient: transient && row.kind == kind::ACCEPTED,
            fact: Some(row),
            elsewhere: self.elsewhere(origin, notes),
            ..Record::default()
        });
        if let BodyRef::Chunks { seqs, .. } = reference {
            record.pieces = seqs.into();
        }
        if let What::Accepted(accepted) = &fact.what {
            record.body_len = accepted.envelope.body_len;
        }
        let seq = self.push(record)?;
        if creates(&fact.what).is_some() {
            self.new.insert(fact.id, seq);
        }
        if let What::Accepted(accepted) = &fact.what {
            let arrived = Arrived {
                seq,
                id: fact.id,
                mode: accepted.mode,
                resend_key: accepted.resend_key,
                body_hash: accepted.body_hash,
                received_ms: accepted.envelope.received_ms,
                taken: accepted.keeper == Keeper::Broker && !accepted.routes.is_empty(),
            };
            self.arrived.push((from, arrived));
        }
        Ok(())
    }

    /// The numbers that pieces have here; `None` when one did not come, or is gone. Those in a segment that is about to go are written
    /// once more.
    fn pieces_here(&mut self, origin: Origin, seqs: &[Seq]) -> Result<Option<Vec<Seq>>, LogError> {
        let mut here = Vec::with_capacity(seqs.len());
        for seq in seqs {
            let key = (origin, *seq);
            let Some(mut piece) = self.pieces.get(&key).copied().or_else(|| self.core.applied.piece(key)) else {
                return Ok(None);
            };
            let stays = match piece.transient {
                true => self.core.transients.path_of(piece.here).is_some() || self.pieces.contains_key(&key),
                false => self.core.catalog.holding(piece.here).is_some_and(|s| !s.is_leaving()),
            };
            if !stays {
                let Ok(Some(body)) = read::packed_piece(self.core, piece.here, piece.transient) else { return Ok(None) };
                piece.here = self.piece(key, piece, body)?;
            }
            here.push(piece.here);
        }
        Ok(Some(here))
    }

    fn piece(&mut self, key: PieceKey, piece: Piece, body: BodyRow) -> Result<Seq, LogError> {
        let mut notes = Notes { pieces: vec![(key, piece)], ..Notes::default() };
        if piece.here == 0 {
            notes.taken.push(key);
        }
        let elsewhere = self.elsewhere(key.0, notes);
        let here =
            self.push(Box::new(Record { body: Some(body), transient: piece.transient, elsewhere, ..Record::default() }))?;
        self.pieces.insert(key, Piece { here, ..piece });
        Ok(here)
    }

    fn elsewhere(&self, origin: Origin, notes: Notes) -> Option<Box<Elsewhere>> {
        Some(Box::new(Elsewhere { origin, round: self.number, notes }))
    }

    /// Queues a record, waiting for space.
    fn push(&mut self, mut record: Box<Record>) -> Result<Seq, LogError> {
        let began = Instant::now();
        loop {
            let queue = &self.core.queue;
            let pushed = if began.elapsed() < AFTER_OTHERS { queue.push(record) } else { queue.push_ahead(record) };
            match pushed {
                Ok(seq) => {
                    self.written += 1;
                    return Ok(seq);
                }
                Err(_) if queue.is_closed() => return Err(LogError::Failed("the ledger is closed".into())),
                Err(back) => record = back,
            }
            std::thread::sleep(PUSH_LOOK);
        }
    }

    /// Queues how far it has come, and waits until all of it is durable. With `lazy`, an offset alone is left for a later round.
    pub fn finish(&mut self, lazy: bool) -> Result<(), LogError> {
        if self.touched.is_empty() && lazy {
            return Ok(());
        }
        self.notes.taken = self.touched.iter().filter_map(|o| Some((*o, *self.taken.get(o)?))).collect();
        self.notes.settled.extend(self.core.applied.given_up());
        let notes = std::mem::take(&mut self.notes);
        let ticket = Arc::new(Ticket::default());
        let elsewhere = self.elsewhere(super::origin::HOUSEKEEPING, notes);
        let ticket_record = Record { ticket: Some(Promise::new(&ticket)), elsewhere, ..Record::default() };
        self.push(Box::new(ticket_record))?;
        ticket.wait()?;
        event::Applied { records: self.written.saturating_sub(1) }.emit();
        Ok(())
    }

    /// What other nodes accepted and is durable here now; the round is over, well or not.
    pub fn arrived(&mut self, whole: bool) -> Vec<Arrived> {
        if !whole {
            // What went into the log before something else failed.
            super::carry::pass_through(self.core);
            let taken = self.core.applied.positions().taken;
            self.arrived.retain(|((origin, seq), _)| taken.get(origin).is_some_and(|t| t >= seq));
        }
        self.arrived.drain(..).map(|(_, arrived)| arrived).collect()
    }
}
