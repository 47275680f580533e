//! Searches over all segments, newest first.

use super::catalog::Segment;
use super::codec::body_of;
use super::core::Core;
use super::damage;
use super::lookup;
use super::query::{Detail, Query, Refused, Row, SearchError};
use super::read;
use super::recover;
use super::sql::{FileError, to_sql};
use super::text;
use super::view::{self, Key, NameCache, key_hash, meta};
use super::view_row::{ViewRow, flag, status_number};
use crate::engine::fact::{Seq, Status, What};
use crate::message::MessageId;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};
use std::time::{Duration, Instant};

/// Rows fetched at a time where what follows may be slow.
const PAGE: usize = 256;
/// Longest wait for a view that is being made again: a segment's takes a second or two.
const REBUILD_WAIT: Duration = Duration::from_secs(5);
/// Retention moves rows for moments at a time.
const MOVED_TRIES: u32 = 50;
const MOVED_LOOK: Duration = Duration::from_millis(4);
/// Time between looks at whether it is there.
const REBUILD_LOOK: Duration = Duration::from_millis(20);

/// What has been found, and what may still be.
struct Finding<'q> {
    query: &'q Query,
    until: Instant,
    /// What was in the views when it began.
    folded: Seq,
    skip: usize,
    rows: Vec<Row>,
}

impl Finding<'_> {
    fn is_full(&self) -> bool {
        self.rows.len() >= self.query.limit
    }

    /// Does a younger view show this row? Until it does, the old one counts.
    fn moved_away(&self, core: &Core, seq: Seq) -> bool {
        let now = core.homes.now(seq);
        now != seq && now <= self.folded
    }

    fn add(&mut self, row: Row) {
        if self.skip > 0 {
            self.skip -= 1;
        } else {
            self.rows.push(row);
        }
    }

    fn in_time(&mut self) -> Result<(), SearchError> {
        if Instant::now() < self.until { Ok(()) } else { Err(SearchError::Deadline { found: std::mem::take(&mut self.rows) }) }
    }
}

/// Transactions that match, newest first. Where a view is found damaged on the way, the search waits for the folder to make it
/// again, within the query's deadline and [`REBUILD_WAIT`].
pub fn search(core: &Core, query: &Query) -> Result<Vec<Row>, SearchError> {
    if query.text.is_some() && (query.from_ms.is_none() || query.to_ms.is_none()) {
        return Err(SearchError::TextNeedsTime);
    }
    let until = Instant::now() + query.deadline;
    let patience = until.min(Instant::now() + REBUILD_WAIT);
    for attempt in 1.. {
        let moves = core.moves.now();
        match once(core, query, until) {
            Err(SearchError::Rebuilding) if Instant::now() < patience => std::thread::sleep(REBUILD_LOOK),
            // One that moved from an old view to a young one while we went the other way was seen in neither, or in both.
            Ok(_) if core.moves.since(moves) && attempt < MOVED_TRIES && Instant::now() < until => std::thread::sleep(MOVED_LOOK),
            other => return other,
        }
    }
    Err(SearchError::Rebuilding)
}

fn once(core: &Core, query: &Query, until: Instant) -> Result<Vec<Row>, SearchError> {
    let mut finding = Finding { query, until, folded: core.folded.get(), skip: query.offset, rows: Vec::new() };
    let hashes = hashes(query);
    for segment in core.catalog.all().into_iter().rev() {
        if finding.is_full() {
            break;
        }
        if query.before.is_some_and(|before| segment.first >= before) {
            continue;
        }
        finding.in_time()?;
        let result = match hashes.first() {
            Some(hash) => keyed(core, &segment, *hash, &mut finding),
            None => scan(core, &segment, &mut finding),
        };
        match result {
            Ok(()) => {}
            // Removed or set aside meanwhile.
            Err(SearchError::File(_)) if segment.is_gone() => {}
            // The folder has not come to it.
            Err(SearchError::File(FileError::Absent)) if core.folded.get() < segment.first => {}
            Err(SearchError::File(FileError::Absent)) => {
                damage::view(core, segment.first, "missing");
                return Err(SearchError::Rebuilding);
            }
            Err(SearchError::File(FileError::Damaged(d))) => {
                core.pool.forget(&segment.view);
                damage::view(core, segment.first, &d.0);
                return Err(SearchError::Rebuilding);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(finding.rows)
}

/// The keys of a query, the most telling first; all conditions are checked on each row anyway.
fn hashes(query: &Query) -> Vec<i64> {
    let mut hashes = Vec::new();
    hashes.extend(query.id.map(|id| key_hash(Key::Id, id.as_bytes())));
    hashes.extend(query.control_id.as_ref().map(|v| key_hash(Key::ControlId, v.as_bytes())));
    hashes.extend(query.parent.map(|id| key_hash(Key::Parent, id.as_bytes())));
    hashes.extend(query.patient.as_ref().map(|v| key_hash(Key::Patient, v.as_bytes())));
    hashes
}

fn keyed(core: &Core, segment: &Segment, hash: i64, finding: &mut Finding<'_>) -> Result<(), SearchError> {
    let mut seqs: Vec<Seq> = lookup::numbers(core, segment, &[hash])?.into_iter().map(|(_, seq)| seq).collect();
    seqs.sort_unstable();
    seqs.dedup();
    for seq in seqs.into_iter().rev() {
        if finding.is_full() {
            break;
        }
        finding.in_time()?;
        if let Some(row) = recover::row(core, segment, seq)?
            && matches(core, finding, &row)?
        {
            finding.add(row.into());
        }
    }
    Ok(())
}

/// Every condition on a row, those that need the log last.
fn matches(core: &Core, finding: &Finding<'_>, row: &ViewRow) -> Result<bool, SearchError> {
    let query = finding.query;
    let same = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|w| w == has);
    let head = &row.head;
    let quick = row.flags() & flag::HIDDEN == 0
        && !finding.moved_away(core, row.seq)
        && query.before.is_none_or(|before| row.seq < before)
        && query.id.is_none_or(|id| id == row.id)
        && query.from_ms.is_none_or(|from| head.at >= from)
        && query.to_ms.is_none_or(|to| head.at <= to)
        && same(&query.channel, &head.channel)
        && same(&query.client, &head.client)
        && same(&query.listener, &head.listener)
        && same(&query.kind, &head.kind)
        && query.control_id.as_ref().is_none_or(|w| head.control_id.as_ref() == Some(w))
        && query.parent.is_none_or(|p| head.parent == Some(p))
        && (query.status.is_empty() || query.status.contains(&row.fold.status()))
        && (!query.open || !row.fold.is_finished())
        && (!query.parked || Row::from(row.clone()).is_parked());
    if !quick {
        return Ok(false);
    }
    if query.patient.is_none() && query.text.is_none() {
        return Ok(true);
    }
    let Some(fact) = read::fact(core, row.seq)? else { return Ok(false) };
    let envelope = match &fact.what {
        What::Accepted(accepted) | What::Carried { accepted, .. } => &accepted.envelope,
        What::Refused { envelope, .. } => envelope,
        _ => return Ok(false),
    };
    if query.patient.as_ref().is_some_and(|p| !envelope.patients.contains(p)) {
        return Ok(false);
    }
    match &query.text {
        Some(text) => text::in_body(core, row.seq, body_of(&fact.what), text).map_err(SearchError::File),
        None => Ok(true),
    }
}

/// Goes through a segment's rows, newest first.
fn scan(core: &Core, segment: &Segment, finding: &mut Finding<'_>) -> Result<(), SearchError> {
    let mut before = finding.query.before.unwrap_or(Seq::MAX >> 1);
    loop {
        finding.in_time()?;
        let page = core.with_view(segment, |conn| page(conn, finding.query, before))?;
        let Some(lowest) = page.last().map(|r| r.seq) else { return Ok(()) };
        let ended = page.len() < PAGE;
        for row in page {
            if finding.is_full() {
                return Ok(());
            }
            finding.in_time()?;
            if matches(core, finding, &row)? {
                finding.add(row.into());
            }
        }
        if ended {
            return Ok(());
        }
        before = lowest;
    }
}

/// Up to [`PAGE`] rows below `before` that satisfy what the view itself can tell.
fn page(conn: &Connection, query: &Query, before: Seq) -> Result<Vec<ViewRow>, FileError> {
    let mut conditions = vec!["seq < ?".to_owned(), format!("flags & {} = 0", flag::HIDDEN)];
    let mut values = vec![Value::from(to_sql(before))];
    let lowest: Option<i64> = view::get_meta(conn, meta::LOWEST_AT)?;
    let highest: Option<i64> = view::get_meta(conn, meta::HIGHEST_AT)?;
    if let Some(from) = query.from_ms {
        if highest.is_some_and(|h| h < from) {
            return Ok(Vec::new());
        }
        conditions.push("at >= ?".into());
        values.push(from.into());
    }
    if let Some(to) = query.to_ms {
        if lowest.is_some_and(|l| l > to) {
            return Ok(Vec::new());
        }
        conditions.push("at <= ?".into());
        values.push(to.into());
    }
    let named = [("channel", &query.channel), ("client", &query.client), ("listener", &query.listener), ("kind", &query.kind)];
    for (column, name) in named.into_iter().filter_map(|(c, n)| n.as_ref().map(|n| (c, n))) {
        let number: Option<i64> = if name.is_empty() {
            Some(0)
        } else {
            conn.query_row("SELECT n FROM names WHERE name = ?1", [name], |r| r.get(0)).optional()?
        };
        let Some(number) = number else { return Ok(Vec::new()) };
        conditions.push(format!("{column} = ?"));
        values.push(number.into());
    }
    if !query.status.is_empty() {
        let numbers: Vec<String> = query.status.iter().map(|s| status_number(*s).to_string()).collect();
        conditions.push(format!("status IN ({})", numbers.join(",")));
        // The conditions of the small indexes, where they apply.
        if query.status.iter().all(|s| status_number(*s) > 1) {
            conditions.push("status > 1".into());
        } else if query.status == [Status::Processing] {
            conditions.push("open = 1".into());
        }
    }
    if query.open || query.parked {
        conditions.push("open = 1".into());
    }
    let sql = format!("SELECT {} FROM tx WHERE {} ORDER BY seq DESC LIMIT {PAGE}", view::COLUMNS, conditions.join(" AND "));
    let mut statement = conn.prepare(&sql)?;
    let mut names = NameCache::default();
    let rows = statement.query_map(params_from_iter(values), |r| view::row_with(conn, r, &mut names))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One transaction with its facts.
pub fn detail(core: &Core, id: MessageId) -> Result<Option<Detail>, SearchError> {
    let query = Query { id: Some(id), limit: 1, ..Query::default() };
    let row = loop {
        let Some(found) = search(core, &query)?.pop() else { return Ok(None) };
        let row = match core.catalog.holding(found.seq) {
            Some(segment) => recover::row(core, &segment, found.seq)?,
            None => None,
        };
        // It may have moved on in between.
        match row {
            None if core.homes.now(found.seq) != found.seq => std::thread::sleep(MOVED_LOOK),
            None => return Ok(None),
            Some(row) => break row,
        }
    };
    let mut facts = Vec::new();
    for seq in &row.fold.facts {
        match read::fact(core, *seq) {
            Ok(Some(fact)) => facts.push((*seq, fact)),
            // Gone with its segment, or of a later release.
            Ok(None) => {}
            Err(e) => damage::noticed(core, *seq, &e),
        }
    }
    let mut accepted = None;
    let mut refused = None;
    for (seq, fact) in &facts {
        match &fact.what {
            What::Accepted(a) | What::Carried { accepted: a, .. } if *seq == row.seq => accepted = Some((**a).clone()),
            What::Refused { envelope, reason, body } => {
                refused = Some(Refused { envelope: (**envelope).clone(), reason: reason.clone(), body: body.clone() });
            }
            _ => {}
        }
    }
    Ok(Some(Detail { row: row.into(), accepted, refused, facts }))
}
