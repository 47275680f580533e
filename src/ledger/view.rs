//! One segment's view, as the folder writes it.

use super::sql::{self, FileError, from_sql, to_sql};
use super::view_row::{Head, ViewRow, pack_facts, pack_routes, status_number, unpack_facts, unpack_routes};
use crate::engine::fact::Seq;
use crate::message::MessageId;
use rusqlite::{Connection, OptionalExtension, Row, Statement, params};
use std::collections::HashMap;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The tables. `tx_open` is the set of transactions that something still has to happen to, `tx_odd` those that a
/// person looks for by status; both small, so that the many successful ones cost no index entry. `keys` are hashes of ids,
/// control ids, patients and parents, in sorted runs: each batch is appended, not spread over the whole table, so
/// that its cost does not grow with the table. A finder asks each run; a closed segment has them merged in one file.
pub const TABLES: &str = "
    CREATE TABLE meta(k INTEGER PRIMARY KEY, v);
    CREATE TABLE names(n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
    CREATE TABLE tx(seq INTEGER PRIMARY KEY, id BLOB NOT NULL, at INTEGER, changed INTEGER, status INTEGER, flags INTEGER,
        channel INTEGER, client INTEGER, listener INTEGER, kind INTEGER, control_id TEXT, parent BLOB, body_len INTEGER,
        response INTEGER, routes BLOB, facts BLOB, resend INTEGER, hash BLOB, open INTEGER, piece INTEGER);
    CREATE INDEX tx_open ON tx(open) WHERE open = 1;
    CREATE INDEX tx_odd ON tx(status) WHERE status > 1;
    CREATE TABLE keys(run INTEGER NOT NULL, hash INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(run, hash, seq)) WITHOUT ROWID;
    CREATE TABLE moved(old INTEGER PRIMARY KEY, new INTEGER NOT NULL);";

/// Columns in the order that [`row`] expects.
pub const COLUMNS: &str = "seq, id, at, changed, status, flags, channel, client, listener, kind, control_id, parent, \
    body_len, response, routes, facts, resend, hash, piece";

/// Page cache of a view being written, KiB.
const CACHE_KIB: i64 = 512;
/// Names kept in memory per view. Message kinds come from senders: there may be any number.
const NAMES_KEPT: usize = 2048;

/// Keys of the table `meta`.
pub mod meta {
    /// Facts of the segment's own log are in the view up to this number.
    pub const FOLDED: i64 = 1;
    /// Boot id of the system under which it was last written.
    pub const BOOT: i64 = 2;
    /// Rows in it.
    pub const ROWS: i64 = 3;
    /// Unix milliseconds of arrival, lowest and highest.
    pub const LOWEST_AT: i64 = 4;
    pub const HIGHEST_AT: i64 = 5;
}

/// What a key in the table `keys` is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    ControlId = 1,
    Patient = 2,
    Parent = 3,
    Id = 4,
}

/// A run of keys takes no more when it has so many.
const RUN_KEYS: i64 = 16 * 1024;

/// The stored hash of a key. Different keys may share one: a finder compares the values.
pub fn key_hash(key: Key, value: &[u8]) -> i64 {
    xxh3_64_with_seed(value, key as u64) as i64
}

/// A view being written.
pub struct View {
    pub first: Seq,
    pub conn: Connection,
    /// Highest row in it.
    pub top: Seq,
    pub rows: i64,
    run: i64,
    run_keys: i64,
    lowest_at: Option<i64>,
    highest_at: Option<i64>,
    names: HashMap<String, i64>,
    /// Written since it was last synced.
    pub dirty: bool,
}

/// What a batch adds besides rows.
#[derive(Default)]
pub struct Extras {
    pub keys: Vec<(i64, Seq)>,
    pub moved: Vec<(Seq, Seq)>,
}

impl View {
    pub fn open(path: &Path, first: Seq) -> Result<Self, FileError> {
        let conn = sql::open_view(path, TABLES, CACHE_KIB)?;
        let top = sql::last_seq(&conn, "tx")?;
        let rows = get_meta(&conn, meta::ROWS)?.unwrap_or(0);
        let run: i64 = conn.query_row("SELECT coalesce(max(run), 0) FROM keys", [], |r| r.get(0))?;
        let run_keys = conn.query_row("SELECT count(*) FROM keys WHERE run = ?1", [run], |r| r.get(0))?;
        let (lowest_at, highest_at) = (get_meta(&conn, meta::LOWEST_AT)?, get_meta(&conn, meta::HIGHEST_AT)?);
        Ok(Self { first, conn, top, rows, run, run_keys, lowest_at, highest_at, names: HashMap::new(), dirty: false })
    }

    /// The row of a transaction.
    pub fn row(&self, seq: Seq) -> Result<Option<ViewRow>, FileError> {
        let mut statement = self.conn.prepare_cached(&format!("SELECT {COLUMNS} FROM tx WHERE seq = ?1"))?;
        Ok(statement.query_row([to_sql(seq)], |r| row(&self.conn, r)).optional()?)
    }

    /// The rows of several transactions.
    pub fn rows_of(&self, seqs: &[Seq]) -> Result<HashMap<Seq, ViewRow>, FileError> {
        let mut found = HashMap::with_capacity(seqs.len());
        let mut names = NameCache::default();
        let mut statement = self.conn.prepare_cached(&format!("SELECT {COLUMNS} FROM tx WHERE seq = ?1"))?;
        for seq in seqs.iter().filter(|s| **s <= self.top) {
            if let Some(row) = statement.query_row([to_sql(*seq)], |r| row_with(&self.conn, r, &mut names)).optional()? {
                found.insert(*seq, row);
            }
        }
        Ok(found)
    }

    /// Writes rows (rising) and what belongs to them in one transaction, and the place in the segment's own log up to which
    /// the view now goes (`None`: only facts of later segments came).
    pub fn write(
        &mut self,
        rows: &[ViewRow],
        mut extras: Extras,
        folded: Option<Seq>,
        boot: Option<&str>,
    ) -> Result<(), FileError> {
        self.dirty = true;
        extras.keys.sort_unstable();
        let names = &mut self.names;
        if names.len() > NAMES_KEPT {
            names.clear();
        }
        let transaction = self.conn.unchecked_transaction()?;
        let mut added = 0;
        {
            let mut name = Names::prepare(&transaction, names)?;
            let mut put = transaction.prepare_cached(
                "INSERT INTO tx(seq, id, at, changed, status, flags, channel, client, listener, kind, control_id, parent, body_len,
                    response, routes, facts, resend, hash, open, piece)
                    VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20)",
            )?;
            let mut change = transaction.prepare_cached(
                "UPDATE tx SET id=?2, at=?3, changed=?4, status=?5, flags=?6, channel=?7, client=?8, listener=?9, kind=?10, control_id=?11,
                    parent=?12, body_len=?13, response=?14, routes=?15, facts=?16, resend=?17, hash=?18, open=?19, piece=?20 WHERE seq=?1",
            )?;
            for row in rows {
                // Above the top it is new; below, it nearly always is there.
                if row.seq <= self.top && put_row(&mut change, row, &mut name)? > 0 {
                    continue;
                }
                added += put_row(&mut put, row, &mut name)? as i64;
                self.top = self.top.max(row.seq);
            }
            let mut key = transaction.prepare_cached("INSERT OR IGNORE INTO keys(run, hash, seq) VALUES(?1, ?2, ?3)")?;
            if self.run_keys >= RUN_KEYS {
                self.run += 1;
                self.run_keys = 0;
            }
            for (hash, seq) in &extras.keys {
                self.run_keys += key.execute(params![self.run, hash, to_sql(*seq)])? as i64;
            }
            let mut moved = transaction.prepare_cached("INSERT OR REPLACE INTO moved(old, new) VALUES(?1, ?2)")?;
            for (old, new) in &extras.moved {
                moved.execute(params![to_sql(*old), to_sql(*new)])?;
            }
            let mut set = transaction.prepare_cached("INSERT OR REPLACE INTO meta(k, v) VALUES(?1, ?2)")?;
            if let Some(folded) = folded {
                set.execute(params![meta::FOLDED, to_sql(folded)])?;
                set.execute(params![meta::BOOT, boot])?;
            }
            if added > 0 {
                set.execute(params![meta::ROWS, self.rows + added])?;
            }
            let arrivals = || rows.iter().filter(|r| r.fold.accepted || r.fold.refused).map(|r| r.head.at);
            let (lowest, highest) = (arrivals().chain(self.lowest_at).min(), arrivals().chain(self.highest_at).max());
            if (lowest, highest) != (self.lowest_at, self.highest_at) {
                set.execute(params![meta::LOWEST_AT, lowest])?;
                set.execute(params![meta::HIGHEST_AT, highest])?;
                (self.lowest_at, self.highest_at) = (lowest, highest);
            }
        }
        transaction.commit()?;
        self.rows += added;
        Ok(())
    }

    /// Takes out the rows of transactions that have moved to a younger segment.
    pub fn remove(&mut self, rows: &[Seq]) -> Result<(), FileError> {
        self.dirty = true;
        let transaction = self.conn.unchecked_transaction()?;
        {
            let mut tx = transaction.prepare_cached("DELETE FROM tx WHERE seq = ?1")?;
            for seq in rows {
                self.rows -= tx.execute([to_sql(*seq)])? as i64;
            }
            transaction.execute("INSERT OR REPLACE INTO meta(k, v) VALUES(?1, ?2)", params![meta::ROWS, self.rows])?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Makes everything written so far durable and empties the write-ahead log.
    pub fn sync(&mut self) -> Result<(), FileError> {
        if self.dirty {
            self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            // The last commits may have been copied earlier without a sync of their own; the file has them all now.
            self.dirty = false;
        }
        Ok(())
    }
}

fn put_row(statement: &mut Statement<'_>, row: &ViewRow, name: &mut Names<'_, '_>) -> Result<usize, FileError> {
    let ViewRow { seq, id, head, fold, .. } = row;
    let routes = pack_routes(*seq, &fold.routes, |n| name.number(n))?;
    let facts = pack_facts(*seq, &fold.facts);
    let hash = (head.resend_key != 0).then(|| head.body_hash.to_be_bytes());
    Ok(statement.execute(params![
        to_sql(*seq),
        id.as_bytes(),
        head.at,
        fold.changed,
        status_number(fold.status()),
        row.flags(),
        name.number(&head.channel)?,
        name.number(&head.client)?,
        name.number(&head.listener)?,
        name.number(&head.kind)?,
        head.control_id,
        head.parent.as_ref().map(|p| p.as_bytes()),
        head.body_len as i64,
        fold.responded,
        routes,
        facts,
        (head.resend_key != 0).then_some(head.resend_key as i64),
        hash,
        (!fold.is_finished()).then_some(1),
        head.lowest_piece.map(to_sql),
    ])?)
}

/// Names to numbers, made as needed.
struct Names<'c, 'm> {
    known: &'m mut HashMap<String, i64>,
    find: Statement<'c>,
    add: Statement<'c>,
}

impl<'c, 'm> Names<'c, 'm> {
    fn prepare(conn: &'c Connection, known: &'m mut HashMap<String, i64>) -> rusqlite::Result<Self> {
        let find = conn.prepare("SELECT n FROM names WHERE name = ?1")?;
        let add = conn.prepare("INSERT INTO names(name) VALUES(?1) RETURNING n")?;
        Ok(Self { known, find, add })
    }

    fn number(&mut self, name: &str) -> rusqlite::Result<i64> {
        if name.is_empty() {
            return Ok(0);
        }
        if let Some(n) = self.known.get(name) {
            return Ok(*n);
        }
        let n = match self.find.query_row([name], |r| r.get(0)).optional()? {
            Some(n) => n,
            None => self.add.query_row([name], |r| r.get(0))?,
        };
        self.known.insert(name.to_owned(), n);
        Ok(n)
    }
}

/// Numbers to names, for one use of a view.
#[derive(Default)]
pub struct NameCache(HashMap<i64, String>);

impl NameCache {
    fn get(&mut self, conn: &Connection, n: i64) -> rusqlite::Result<String> {
        if n == 0 {
            return Ok(String::new());
        }
        if let Some(name) = self.0.get(&n) {
            return Ok(name.clone());
        }
        let name: String =
            conn.query_row("SELECT name FROM names WHERE n = ?1", [n], |r| r.get(0)).optional()?.unwrap_or_default();
        if self.0.len() < NAMES_KEPT {
            self.0.insert(n, name.clone());
        }
        Ok(name)
    }
}

/// Reads a row of [`COLUMNS`].
pub fn row(conn: &Connection, r: &Row<'_>) -> rusqlite::Result<ViewRow> {
    row_with(conn, r, &mut NameCache::default())
}

/// As [`row`], with names kept between rows.
pub fn row_with(conn: &Connection, r: &Row<'_>, names: &mut NameCache) -> rusqlite::Result<ViewRow> {
    let seq = from_sql(r.get(0)?);
    let id: [u8; 16] = r.get(1)?;
    let mut row = ViewRow::new(seq, MessageId(uuid::Uuid::from_bytes(id)));
    row.head = Head {
        at: r.get(2)?,
        channel: names.get(conn, r.get(6)?)?,
        client: names.get(conn, r.get(7)?)?,
        listener: names.get(conn, r.get(8)?)?,
        kind: names.get(conn, r.get(9)?)?,
        control_id: r.get(10)?,
        parent: r.get::<_, Option<[u8; 16]>>(11)?.map(|p| MessageId(uuid::Uuid::from_bytes(p))),
        body_len: r.get::<_, i64>(12)? as u64,
        resend_key: r.get::<_, Option<i64>>(16)?.unwrap_or(0) as u64,
        body_hash: r.get::<_, Option<[u8; 16]>>(17)?.map_or(0, u128::from_be_bytes),
        lowest_piece: r.get::<_, Option<i64>>(18)?.map(from_sql),
        ..Head::default()
    };
    row.fold.changed = r.get(3)?;
    row.set_flags(r.get(5)?);
    row.fold.responded = r.get(13)?;
    row.fold.routes = unpack_routes(seq, r.get_ref(14)?.as_blob().unwrap_or_default(), |n| names.get(conn, n))?;
    row.fold.facts = unpack_facts(seq, r.get_ref(15)?.as_blob().unwrap_or_default());
    Ok(row)
}

/// A value of the table `meta`.
pub fn get_meta<T: rusqlite::types::FromSql>(conn: &Connection, k: i64) -> Result<Option<T>, FileError> {
    let found: Option<Option<T>> = conn.query_row("SELECT v FROM meta WHERE k = ?1", [k], |r| r.get(0)).optional()?;
    Ok(found.flatten())
}
