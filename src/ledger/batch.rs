//! Batches of facts: read from a log, sorted by the segment they concern, folded into rows.

use super::catalog::Segment;
use super::codec::{self, kind};
use super::core::Core;
use super::origin::HOUSEKEEPING;
use super::sql::{self, FileError, from_sql, to_sql};
use super::view::{Extras, Key, View, key_hash};
use super::view_row::{Head, ViewRow};
use crate::channel::Storage;
use crate::engine::fact::{Seq, What};
use crate::engine::replica::Origin;
use crate::message::{Envelope, MessageId};
use rusqlite::Connection;
use std::collections::{BTreeMap, HashMap};

/// A fact as it lies in the log.
pub struct RawFact {
    pub seq: Seq,
    pub id: MessageId,
    pub home: Seq,
    pub at: i64,
    pub kind: u8,
    /// The log it was applied from; none for this one's own.
    pub origin: Option<Origin>,
    pub data: Box<[u8]>,
}

impl RawFact {
    /// The number of its transaction.
    pub fn home(&self) -> Seq {
        if self.home == 0 { self.seq } else { self.home }
    }

    /// For a carried fact: its transaction's former number.
    pub fn carried_from(&self) -> Option<Seq> {
        if self.kind != kind::CARRIED {
            return None;
        }
        match codec::what(&self.data) {
            Some(What::Carried { from, .. }) => Some(from),
            _ => None,
        }
    }
}

/// The facts after `after` up to `until`, at most so many. Only copies: the read transaction must be short.
pub fn read(conn: &Connection, after: Seq, until: Seq, most: usize, bytes: usize) -> Result<Vec<RawFact>, FileError> {
    read_from(conn, "", after, until, most, bytes)
}

/// As [`read`], only what this log wrote of itself.
pub fn read_own(conn: &Connection, after: Seq, until: Seq, bytes: usize) -> Result<Vec<RawFact>, FileError> {
    read_from(conn, &format!("AND {} IS NULL", sql::origin_column(conn)?), after, until, usize::MAX >> 1, bytes)
}

fn read_from(
    conn: &Connection,
    condition: &str,
    after: Seq,
    until: Seq,
    most: usize,
    bytes: usize,
) -> Result<Vec<RawFact>, FileError> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT seq, id, home, at, kind, data, {} FROM facts WHERE seq > ?1 AND seq <= ?2 {condition} ORDER BY seq LIMIT ?3",
        sql::origin_column(conn)?
    ))?;
    let mut rows = statement.query([to_sql(after), to_sql(until), most as i64])?;
    let mut facts = Vec::new();
    let mut size = 0;
    while let Some(row) = rows.next()? {
        let id: [u8; 16] = row.get(1)?;
        let data: Box<[u8]> = row.get_ref(5)?.as_blob().unwrap_or_default().into();
        size += data.len();
        facts.push(RawFact {
            seq: from_sql(row.get(0)?),
            id: MessageId(uuid::Uuid::from_bytes(id)),
            home: from_sql(row.get(2)?),
            at: row.get(3)?,
            kind: row.get(4)?,
            origin: row.get::<_, Option<i64>>(6)?.map(|o| o as Origin).filter(|o| *o != HOUSEKEEPING),
            data,
        });
        if size >= bytes {
            break;
        }
    }
    Ok(facts)
}

/// The carried facts of a log: former numbers and present ones.
pub fn carried(conn: &Connection) -> Result<Vec<(Seq, Seq)>, FileError> {
    let mut statement = conn.prepare("SELECT seq, data FROM facts WHERE kind = ?1 ORDER BY seq")?;
    let mut rows = statement.query([kind::CARRIED])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        if let Some(What::Carried { from, .. }) = codec::what(row.get_ref(1)?.as_blob().unwrap_or_default()) {
            found.push((from, from_sql(row.get(0)?)));
        }
    }
    Ok(found)
}

/// Positions of the facts by the segment in whose view their transaction's row is. Facts of transactions that retention has
/// removed concern nobody.
pub fn by_segment(core: &Core, own: &Segment, facts: &[RawFact]) -> BTreeMap<Seq, Vec<usize>> {
    let mut parts: BTreeMap<Seq, Vec<usize>> = BTreeMap::new();
    for (i, fact) in facts.iter().enumerate() {
        let home = core.homes.now(fact.home());
        let first =
            if home >= own.first && home <= fact.seq { Some(own.first) } else { core.catalog.holding(home).map(|s| s.first) };
        if let Some(first) = first {
            parts.entry(first).or_default().push(i);
        }
    }
    parts
}

/// Numbers by the segment that holds them.
pub fn group(core: &Core, seqs: Vec<Seq>) -> BTreeMap<Seq, Vec<Seq>> {
    let mut groups: BTreeMap<Seq, Vec<Seq>> = BTreeMap::new();
    for seq in seqs {
        if let Some(segment) = core.catalog.holding(seq) {
            groups.entry(segment.first).or_default().push(seq);
        }
    }
    groups
}

/// A carried transaction: its number, the former one, and what was known under that.
pub struct Former {
    pub now: Seq,
    pub from: Seq,
    pub row: Option<ViewRow>,
}

/// Folds the facts of one part into rows, rising by number, and what goes with them.
pub fn fold(
    core: &Core,
    view: &View,
    facts: &[RawFact],
    part: &[usize],
    former: Vec<Former>,
) -> Result<(Vec<ViewRow>, Extras), FileError> {
    let mut wanted: Vec<Seq> = part.iter().map(|i| core.homes.now(facts[*i].home())).filter(|home| *home <= view.top).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut rows: HashMap<Seq, ViewRow> = view.rows_of(&wanted)?;
    let mut extras = Extras::default();
    for fact in part.iter().map(|i| &facts[*i]) {
        // A kind of a later release: it keeps its place in the log and has no effect here.
        let Some(what) = codec::what(&fact.data) else { continue };
        let home = core.homes.now(fact.home());
        let row = rows.entry(home).or_insert_with(|| ViewRow::new(home, fact.id));
        match &what {
            What::Accepted(accepted) | What::Carried { accepted, .. } => {
                row.head = Head::of_accepted(accepted);
                row.applied = fact.origin.is_some();
                keys(&mut extras, home, fact.id, &accepted.envelope, accepted.storage);
            }
            What::Refused { envelope, .. } => {
                row.head = Head::of_envelope(envelope);
                keys(&mut extras, home, fact.id, envelope, Storage::All);
            }
            _ => {}
        }
        row.fold.apply(fact.seq, fact.at, &what);
    }
    for former in former {
        if let (Some(row), Some(old)) = (rows.get_mut(&former.now), &former.row) {
            row.fold.merge(&old.fold);
        }
        extras.moved.push((former.from, former.now));
    }
    core.held.note(rows.values(), &extras.moved);
    let mut rows: Vec<ViewRow> = rows.into_values().collect();
    // Told by the engine as well; here also for what finished while it was being carried.
    rows.iter().filter(|r| r.fold.storage != Storage::All && r.fold.is_finished()).for_each(|r| core.transients.finished(r.seq));
    rows.sort_unstable_by_key(|r| r.seq);
    Ok((rows, extras))
}

/// What a transaction can be found by, as far as its storage mode lets it.
fn keys(extras: &mut Extras, seq: Seq, id: MessageId, envelope: &Envelope, storage: Storage) {
    // By id others name it, in every mode; what is hidden no search shows.
    extras.keys.push((key_hash(Key::Id, id.as_bytes()), seq));
    if storage == Storage::None {
        return;
    }
    if let Some(parent) = &envelope.parent {
        extras.keys.push((key_hash(Key::Parent, parent.as_bytes()), seq));
    }
    if storage == Storage::Metadata {
        return;
    }
    if let Some(control_id) = &envelope.control_id {
        extras.keys.push((key_hash(Key::ControlId, control_id.as_bytes()), seq));
    }
    for patient in &envelope.patients {
        extras.keys.push((key_hash(Key::Patient, patient.as_bytes()), seq));
    }
}
