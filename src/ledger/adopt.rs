//! Makes the closed files of another log the beginning of a ledger that has none: `<ledger>.joining/` beside the ledger's folder takes
//! them, one after the other, and becomes the ledger's folder when it holds all. Whatever ends the node before that, what lies there
//! is either used by the next attempt or thrown away, and the ledger is as empty as before.
//!
//! The numbers stay as they are, so that every place that names one is right. What the other log wrote of itself gets that log's origin:
//! nothing up to there is this log's own. How far other logs are taken in, and the offset in the ledger stream, stand in the newest
//! file; the other log itself is taken in up to its end.

use super::applied::last_piece;
use super::catalog::{remove_files, scan, sync_dir, with_companions};
use super::codec;
use super::damage::name;
use super::marks::Marks;
use super::offer::{FORM, Offer, Offered};
use super::origin::{self, HOUSEKEEPING};
use super::scrub::stamp;
use super::sql::{
    self, Damage, FileError, Form, OLDEST_VERSION, TABLES_VERSION, from_sql, has_taken, last_seq, origin_column, to_sql,
};
use super::{applied, version};
use crate::engine::fact::Seq;
use crate::engine::replica::Origin;
use rusqlite::{Connection, params};
use std::io;
use std::path::{Path, PathBuf};

/// Whose files lie in the folder; gone when it holds all.
const WHOSE: &str = "joining";
/// SQLite's page cache for a file being made, KiB.
const CACHE_KIB: i64 = 4096;
/// A log without a record is shorter.
const EMPTY: u64 = 256 << 10;
/// No log has numbers like that; arithmetic with them stays sound.
const HIGHEST: Seq = 1 << 60;

/// Why another log cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Another release, whose files this one does not read.
    #[error(
        "it runs hie {release}, whose ledger has tables of version {tables} (hand-over {form}); this is hie {}, which takes over versions {} to {} \
         (hand-over {FORM}): give both nodes the same release",
        env!("CARGO_PKG_VERSION"), OLDEST_VERSION, TABLES_VERSION
    )]
    Release { release: String, tables: i64, form: u32 },
    /// What is told of the files cannot be.
    #[error("what it tells of its files cannot be: {0}")]
    Impossible(&'static str),
    /// A file is not what it should be.
    #[error("{file} from it cannot be used: {error}")]
    File { file: String, error: FileError },
    /// This side's disk.
    #[error("{path} cannot be written: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// What was found in what was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    pub facts: u64,
    /// Bodies whose checksum does not match: they are damaged where they come from, and told when they are read.
    pub damaged_bodies: u64,
}

/// Another log on its way to become this ledger's beginning.
pub struct Adoption {
    ledger: PathBuf,
    dir: PathBuf,
    offer: Offer,
}

fn staging(ledger: &Path) -> PathBuf {
    ledger.with_extension("joining")
}

/// Was nothing ever written into this ledger? True also when there is none yet. First of all, a take-over that was complete when the
/// node ended is brought to its end; one that was not is left for [`Adoption::begin`].
pub fn is_untouched(ledger: &Path) -> io::Result<bool> {
    let staged = staging(ledger);
    let complete = staged.is_dir() && !staged.join(WHOSE).exists() && scan(&staged, "log").is_ok_and(|logs| !logs.is_empty());
    if !is_empty(ledger)? {
        remove_dir(&staged)?;
        return Ok(false);
    }
    if complete {
        swap(ledger, &staged)?;
    }
    Ok(!complete)
}

/// Throws away what was copied for a ledger that begins without it.
pub fn give_up(ledger: &Path) -> io::Result<()> {
    remove_dir(&staging(ledger))
}

/// The log whose files an earlier attempt has left.
pub fn begun_with(ledger: &Path) -> Option<Origin> {
    let text = std::fs::read_to_string(staging(ledger).join(WHOSE)).ok()?;
    Origin::from_str_radix(text.trim(), 16).ok()
}

fn is_empty(ledger: &Path) -> io::Result<bool> {
    if !ledger.is_dir() {
        return Ok(true);
    }
    // What cannot be read is told by opening the ledger, and is not nothing.
    if ledger.join(damage_folder()).exists() || !scan(ledger, "transient")?.is_empty() || version::check(ledger).is_err() {
        return Ok(false);
    }
    let logs = scan(ledger, "log")?;
    // The usual case, without opening any.
    let length = |first: &Seq| ledger.join(format!("log-{first:020}.db")).metadata().map_or(0, |m| m.len());
    if logs.len() > 1 || logs.iter().any(|first| length(first) > EMPTY) {
        return Ok(false);
    }
    let marks = Marks::load(ledger);
    if !marks.missing(&logs).is_empty() || marks.shipped > 0 {
        return Ok(false);
    }
    let holds_nothing = |first: &Seq| -> Result<bool, FileError> {
        let conn = sql::open_reader(&ledger.join(format!("log-{first:020}.db")), Form::Log, 64)?;
        Ok(last_seq(&conn, "facts")? == 0 && last_seq(&conn, "bodies")? == 0 && applied::says_nothing(&conn)?)
    };
    Ok(logs.iter().all(|first| holds_nothing(first).unwrap_or(false)))
}

fn damage_folder() -> &'static str {
    super::damage::QUARANTINE
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Puts the folder into the place of the ledger's, which holds nothing.
fn swap(ledger: &Path, staged: &Path) -> io::Result<()> {
    let aside = ledger.with_extension("untouched");
    remove_dir(&aside)?;
    if ledger.exists() {
        std::fs::rename(ledger, &aside)?;
    }
    std::fs::rename(staged, ledger)?;
    if let Some(parent) = ledger.parent().filter(|p| !p.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    remove_dir(&aside)
}

impl Adoption {
    /// For the ledger in this folder, of which [`is_untouched`] has been found. What an earlier attempt took from the same log is used.
    pub fn begin(ledger: &Path, offer: Offer) -> Result<Self, AdoptError> {
        if offer.form != FORM || !(OLDEST_VERSION..=TABLES_VERSION).contains(&offer.tables) {
            return Err(AdoptError::Release { release: offer.release, tables: offer.tables, form: offer.form });
        }
        if offer.origin == HOUSEKEEPING {
            return Err(AdoptError::Impossible("it has no number"));
        }
        let mut next = 1;
        for log in &offer.logs {
            if log.first < next || log.end < log.first.saturating_sub(1) || log.end > HIGHEST {
                return Err(AdoptError::Impossible("its logs are not in order"));
            }
            next = log.end + 1;
        }
        let dir = staging(ledger);
        let failed = |source| AdoptError::Io { path: dir.clone(), source };
        if begun_with(ledger) != Some(offer.origin) {
            remove_dir(&dir).map_err(failed)?;
        }
        std::fs::create_dir_all(&dir).map_err(failed)?;
        // Bodies are in here: nobody else may look.
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).map_err(failed)?;
        std::fs::write(dir.join(WHOSE), format!("{:016x}\n", offer.origin)).map_err(failed)?;
        let wanted: Vec<String> = files(&offer).map(|(_, name)| name).chain([WHOSE.to_owned()]).collect();
        for entry in std::fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // What retention has removed there since, and what was being made.
            if !wanted.contains(&name(&path)) {
                remove_files(std::slice::from_ref(&path)).map_err(failed)?;
            }
        }
        Ok(Self { ledger: ledger.to_owned(), dir, offer })
    }

    /// Names and lengths of the files that are still to come, in the order in which they are best asked for.
    pub fn missing(&self) -> Vec<(String, u64)> {
        let all = files(&self.offer).map(|(file, name)| (name, file.bytes));
        all.filter(|(name, _)| !self.dir.join(name).exists()).collect()
    }

    /// Where a file is to be put while it comes.
    pub fn part(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.part"))
    }

    /// A file is there as a whole: looks through it, and makes it one of this ledger. Blocks.
    pub fn take(&self, file: &str) -> Result<Adopted, AdoptError> {
        let part = self.part(file);
        let log = self.offer.logs.iter().find(|log| log.log() == file).cloned();
        let new = self.dir.join(format!("{file}.new"));
        let made = self.convert(&part, &new, log.as_ref());
        let adopted = made.map_err(|error| AdoptError::File { file: file.to_owned(), error })?;
        let placed = std::fs::rename(&new, self.dir.join(file)).and_then(|()| sync_dir(&self.dir));
        placed.and_then(|()| remove_files(&with_companions(&part))).map_err(|source| AdoptError::Io { path: new, source })?;
        Ok(adopted)
    }

    /// Makes a file of another's.
    fn convert(&self, part: &Path, new: &Path, log: Option<&Offered>) -> Result<Adopted, FileError> {
        let form = if log.is_some() { Form::Log } else { Form::Transient };
        let range = log.map_or(1..=HIGHEST, |log| log.first..=log.end);
        // Is it one of ours, and of a version that is read?
        let source = sql::open_reader(part, form, CACHE_KIB)?;
        sql::create_log(new, form, 0)?;
        let conn = sql::open_log(new, form, CACHE_KIB)?;
        // Nobody has it yet: it is synced as a whole in the end.
        conn.query_row("PRAGMA journal_mode=off", [], |_| Ok(()))?;
        conn.pragma_update(None, "synchronous", "off")?;
        let transaction = conn.unchecked_transaction()?;
        let facts = if log.is_some() { self.facts(&source, &transaction, &range)? } else { 0 };
        let damaged_bodies = self.bodies(&source, &transaction, &range)?;
        if log.is_some() && has_taken(&source)? {
            pour(&source, &transaction, "taken", "origin, seq")?;
            pour(&source, &transaction, "pieces", "origin, seq, here, transient, at")?;
        }
        transaction.commit()?;
        conn.query_row("PRAGMA journal_mode=wal", [], |_| Ok(()))?;
        conn.close().map_err(|(_, e)| e)?;
        std::fs::File::open(new).and_then(|file| file.sync_all()).map_err(|e| sql::io_error(&e))?;
        Ok(Adopted { facts, damaged_bodies })
    }

    fn facts(&self, source: &Connection, to: &Connection, range: &std::ops::RangeInclusive<Seq>) -> Result<u64, FileError> {
        let column = origin_column(source)?;
        let mut read = source.prepare(&format!("SELECT seq, id, home, at, kind, {column}, data FROM facts ORDER BY seq"))?;
        let mut insert =
            to.prepare("INSERT INTO facts(seq, id, home, at, kind, origin, data) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
        let mut rows = read.query([])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let seq: i64 = row.get(0)?;
            within(seq, range)?;
            let (home, at, kind): (i64, i64, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
            let (id, data) = (
                row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?,
                row.get_ref(6)?.as_blob().map_err(rusqlite::Error::from)?,
            );
            insert.execute(params![seq, id, home, at, kind, self.origin(row.get(5)?), data])?;
            count += 1;
        }
        Ok(count)
    }

    fn bodies(&self, source: &Connection, to: &Connection, range: &std::ops::RangeInclusive<Seq>) -> Result<u64, FileError> {
        let column = origin_column(source)?;
        let mut read = source.prepare(&format!("SELECT seq, codec, len, sum, {column}, data FROM bodies ORDER BY seq"))?;
        let mut insert = to.prepare("INSERT INTO bodies(seq, codec, len, sum, origin, data) VALUES(?1, ?2, ?3, ?4, ?5, ?6)")?;
        let mut rows = read.query([])?;
        let mut damaged = 0;
        while let Some(row) = rows.next()? {
            let seq: i64 = row.get(0)?;
            within(seq, range)?;
            let (codec, len, sum): (i64, i64, u32) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let data = row.get_ref(5)?.as_blob().map_err(rusqlite::Error::from)?;
            damaged += u64::from(codec::sum(data) != sum);
            insert.execute(params![seq, codec, len, sum, self.origin(row.get(4)?), data])?;
        }
        Ok(damaged)
    }

    /// What the other log wrote of itself, and what it wrote again of that, is its own.
    fn origin(&self, there: Option<i64>) -> i64 {
        there.filter(|origin| *origin != HOUSEKEEPING as i64).unwrap_or(self.offer.origin as i64)
    }

    /// All files are there: they become the ledger. Blocks.
    pub fn finish(&self) -> Result<(), AdoptError> {
        let failed = |source| AdoptError::Io { path: self.dir.clone(), source };
        let (end, Some(newest)) = (self.offer.end(), self.offer.logs.last()) else {
            return Err(AdoptError::Impossible("it has no log"));
        };
        let path = self.dir.join(newest.log());
        self.taken_in(&path, end).map_err(|error| AdoptError::File { file: newest.log(), error })?;
        let older = self.offer.logs.iter().filter(|log| log.first != newest.first);
        let marks = Marks {
            high: end,
            closed: older.filter_map(|log| Some((log.first, stamp(&self.dir.join(log.log()))?))).collect(),
            open: [newest.first].into(),
            adopted: end,
            ..Marks::default()
        };
        origin::load_or_make(&self.dir).map_err(failed)?;
        marks.save(&self.dir).map_err(failed)?;
        // From here on it is complete; see `is_untouched`.
        remove_files(&[self.dir.join(WHOSE)]).and_then(|()| sync_dir(&self.dir)).map_err(failed)?;
        swap(&self.ledger, &self.dir).map_err(failed)
    }

    /// The other log is taken in up to its end.
    fn taken_in(&self, newest: &Path, end: Seq) -> Result<(), FileError> {
        let conn = sql::open_log(newest, Form::Log, CACHE_KIB)?;
        if last_piece(&conn)? > end {
            return Err(Damage("it names pieces of bodies beyond its end".into()).into());
        }
        conn.execute("INSERT OR REPLACE INTO taken(origin, seq) VALUES(?1, ?2)", params![self.offer.origin as i64, to_sql(end)])?;
        Ok(conn.close().map_err(|(_, e)| e)?)
    }
}

fn files(offer: &Offer) -> impl Iterator<Item = (&Offered, String)> {
    // The short-lived ones first: they may be gone soon.
    let transients = offer.transients.iter().map(|file| (file, file.transient()));
    transients.chain(offer.logs.iter().map(|file| (file, file.log())))
}

fn within(seq: i64, range: &std::ops::RangeInclusive<Seq>) -> Result<(), FileError> {
    if range.contains(&from_sql(seq)) { Ok(()) } else { Err(Damage("it holds numbers of another log".into()).into()) }
}

/// Copies a table of whole numbers.
fn pour(from: &Connection, to: &Connection, table: &str, columns: &str) -> Result<(), FileError> {
    let count = columns.split(',').count();
    let places: Vec<String> = (1..=count).map(|n| format!("?{n}")).collect();
    let mut insert = to.prepare(&format!("INSERT INTO {table}({columns}) VALUES({})", places.join(", ")))?;
    let mut read = from.prepare(&format!("SELECT {columns} FROM {table}"))?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        let values = (0..count).map(|n| row.get::<_, i64>(n)).collect::<Result<Vec<i64>, _>>()?;
        insert.execute(rusqlite::params_from_iter(values))?;
    }
    Ok(())
}
