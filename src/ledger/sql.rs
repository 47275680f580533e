//! Opening SQLite files with the ledger's settings, and telling its errors apart.

use super::catalog::{remove_files, sync_dir, with_companions};
use crate::engine::fact::Seq;
use crate::engine::ports::LogError;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Marks our files (`PRAGMA application_id`): "hieL" for logs, "hieV" for views, "hieT" for transient bodies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Log = 0x6869_654c,
    View = 0x6869_6556,
    Transient = 0x6869_6554,
}

/// Version of the tables (`PRAGMA user_version`). 2: where a record comes from, and how far other logs are taken in.
pub const TABLES_VERSION: i64 = 2;
/// The oldest version that is read. A closed log keeps its own for ever; the newest one is brought up to date at start.
pub const OLDEST_VERSION: i64 = 1;

/// Page size of logs. Larger pages need fewer writes for a large group, smaller ones less for a single message.
pub const LOG_PAGE: u32 = 8192;
/// Name of the log that waits to be used.
pub const SPARE: &str = "spare.db";
const VIEW_PAGE: u32 = 4096;

// `origin` is absent (which costs a byte) in what this log wrote of itself. Before `data`, so that it is found without reading that.
const LOG_TABLES: &str = "
    CREATE TABLE facts(seq INTEGER PRIMARY KEY, id BLOB NOT NULL, home INTEGER NOT NULL, at INTEGER NOT NULL,
                       kind INTEGER NOT NULL, origin INTEGER, data BLOB NOT NULL);
    CREATE TABLE bodies(seq INTEGER PRIMARY KEY, codec INTEGER NOT NULL, len INTEGER NOT NULL, sum INTEGER NOT NULL,
                        origin INTEGER, data BLOB NOT NULL);";
const TRANSIENT_TABLES: &str = "
    CREATE TABLE bodies(seq INTEGER PRIMARY KEY, codec INTEGER NOT NULL, len INTEGER NOT NULL, sum INTEGER NOT NULL,
                        origin INTEGER, data BLOB NOT NULL);";
/// How far other logs are taken in (origin 0: the offset in the stream), and their pieces whose fact is still to come.
const TAKEN_TABLES: &str = "
    CREATE TABLE taken(origin INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
    CREATE TABLE pieces(origin INTEGER NOT NULL, seq INTEGER NOT NULL, here INTEGER NOT NULL, transient INTEGER NOT NULL,
                        at INTEGER NOT NULL, PRIMARY KEY(origin, seq)) WITHOUT ROWID;";

/// A stored file or row that cannot be what we wrote. The text has no content in it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Damage(pub String);

/// Why a file of the ledger could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not ours, cut short, or inconsistent.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// A view that the folder has not made yet.
    #[error("not made yet")]
    Absent,
    /// Anything else, out of space included.
    #[error("{0}")]
    Sql(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for FileError {
    fn from(e: rusqlite::Error) -> Self {
        if is_damage(&e) { Self::Damaged(Damage(text(&e))) } else { Self::Sql(e) }
    }
}

/// True for the errors by which SQLite says that a file is not a sound database.
pub fn is_damage(e: &rusqlite::Error) -> bool {
    match e {
        rusqlite::Error::SqliteFailure(f, text) => {
            matches!(f.code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
                // A short read of a page that the header promises.
                || f.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ
                || text.as_deref().is_some_and(|t| t.starts_with("no such table"))
        }
        // Values that we never write: another type, out of range, text that is not UTF-8, a length that cannot be.
        rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    }
}

/// The error for the operator: SQLite's own words for the code, never a value.
pub fn text(e: &rusqlite::Error) -> String {
    match e {
        rusqlite::Error::SqliteFailure(f, message) => {
            let reason = rusqlite::ffi::code_to_str(f.extended_code);
            match message {
                Some(m) if !m.contains(reason) => format!("{reason} ({m}, code {})", f.extended_code),
                _ => format!("{reason} (code {})", f.extended_code),
            }
        }
        rusqlite::Error::InvalidColumnType(..) => "a column holds another type than was written".into(),
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::Utf8Error(..) => {
            "a column holds a value that was not written so".into()
        }
        other => other.to_string(),
    }
}

/// A failed commit, as the engine is told.
pub fn log_error(e: &rusqlite::Error) -> LogError {
    match e {
        rusqlite::Error::SqliteFailure(f, _) if f.code == ErrorCode::DiskFull => LogError::Full,
        other => LogError::Failed(text(other)),
    }
}

/// Makes a file with its tables: under another name first, so that a file of the right name is always complete, whenever
/// the node ends and whoever looks.
fn create(path: &Path, form: Form, page_size: u32, tables: &str, wal: u64) -> Result<(), FileError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    remove_files(&with_companions(&new)).map_err(|e| io_error(&e))?;
    let conn = Connection::open(&new)?;
    conn.pragma_update(None, "page_size", page_size)?;
    conn.pragma_update(None, "journal_mode", "wal")?;
    // One transaction: it has its tables and its stamp, or nothing.
    conn.execute_batch(&format!(
        "BEGIN IMMEDIATE; PRAGMA application_id={}; {tables} PRAGMA user_version={TABLES_VERSION}; COMMIT;",
        form as i64
    ))?;
    // Copies the write-ahead log into the file and removes it.
    conn.close().map_err(|(_, e)| e)?;
    if wal > 0 {
        prefill(&with_companions(path)[1], wal).map_err(|e| io_error(&e))?;
    }
    std::fs::rename(&new, path).and_then(|()| sync_dir(path.parent().unwrap_or(Path::new(".")))).map_err(|e| io_error(&e))
}

/// Makes a write-ahead log of zeros, which SQLite takes for an empty one: syncing a write within a file is about twice as
/// quick as syncing one that makes it longer.
fn prefill(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), bytes), &mut file)?;
    file.sync_all()
}

/// Makes a log, or a file of transient bodies. A spare log, where there is one, is used: that is one sync instead of many.
pub fn create_log(path: &Path, form: Form, wal: u64) -> Result<(), FileError> {
    if form == Form::Transient {
        return create(path, form, LOG_PAGE, TRANSIENT_TABLES, 0);
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    let spare = dir.join(SPARE);
    if !spare.exists() {
        return create(path, form, LOG_PAGE, &log_tables(), wal);
    }
    // Its write-ahead log first: by itself it is nothing.
    let both = with_companions(&spare).into_iter().zip(with_companions(path)).take(2).rev();
    for (from, to) in both.filter(|(from, _)| from.exists()) {
        std::fs::rename(from, to).map_err(|e| io_error(&e))?;
    }
    sync_dir(dir).map_err(|e| io_error(&e))
}

fn log_tables() -> String {
    format!("{LOG_TABLES}{TAKEN_TABLES}")
}

/// Which version the tables of an open file have.
fn version(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("PRAGMA user_version")?.query_row([], |r| r.get(0))
}

/// The expression for where a record comes from: closed logs of version 1 do not say it, and have nothing from elsewhere.
pub fn origin_column(conn: &Connection) -> rusqlite::Result<&'static str> {
    Ok(if version(conn)? == OLDEST_VERSION { "NULL" } else { "origin" })
}

/// Does this log say how far others are taken in?
pub fn has_taken(conn: &Connection) -> rusqlite::Result<bool> {
    Ok(version(conn)? > OLDEST_VERSION)
}

/// Brings the tables of the log that will be written up to date.
pub fn upgrade(conn: &Connection) -> Result<(), FileError> {
    if version(conn)? == OLDEST_VERSION {
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE; ALTER TABLE facts ADD COLUMN origin INTEGER; ALTER TABLE bodies ADD COLUMN origin INTEGER;
             {TAKEN_TABLES} PRAGMA user_version={TABLES_VERSION}; COMMIT;"
        ))?;
    }
    Ok(())
}

/// Makes the log that the next segment will take, so that beginning a segment does not hold up commits.
pub fn create_spare(dir: &Path, wal: u64) -> Result<(), FileError> {
    let spare = dir.join(SPARE);
    if spare.exists() { Ok(()) } else { create(&spare, Form::Log, LOG_PAGE, &log_tables(), wal) }
}

/// Opens a log or a file of transient bodies for writing.
pub fn open_log(path: &Path, form: Form, cache_kib: i64) -> Result<Connection, FileError> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    check(&conn, form)?;
    let synchronous = if cfg!(feature = "break-fsync") { "off" } else { "full" };
    conn.pragma_update(None, "synchronous", synchronous)?;
    common(&conn, cache_kib)?;
    Ok(conn)
}

/// Lets a write-ahead log that a large group has made longer shrink to this size when it begins anew.
pub fn shorten(conn: &Connection, wal: u64) -> Result<(), FileError> {
    Ok(conn.pragma_update(None, "journal_size_limit", to_sql(wal))?)
}

/// Opens, or makes, a view. Views are never ahead of the log, so a commit need not be synced; with WAL and
/// `synchronous=NORMAL` a power cut makes them older, not wrong.
pub fn open_view(path: &Path, tables: &str, cache_kib: i64) -> Result<Connection, FileError> {
    if !path.exists() {
        create(path, Form::View, VIEW_PAGE, tables, 0)?;
    }
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    check(&conn, Form::View)?;
    conn.pragma_update(None, "synchronous", "normal")?;
    common(&conn, cache_kib)?;
    Ok(conn)
}

/// Opens an existing file for reading.
pub fn open_reader(path: &Path, form: Form, cache_kib: i64) -> Result<Connection, FileError> {
    // Read-write: a reader of a WAL file may have to rebuild the -shm file after a crash. No statement writes.
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(Duration::from_secs(5))?;
    check(&conn, form)?;
    common(&conn, cache_kib)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

fn common(conn: &Connection, cache_kib: i64) -> Result<(), FileError> {
    conn.pragma_update(None, "cache_size", -cache_kib)?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "mmap_size", 0)?;
    conn.pragma_update(None, "temp_store", "memory")?;
    Ok(())
}

fn check(conn: &Connection, form: Form) -> Result<(), FileError> {
    let id: i64 = conn.query_row("PRAGMA application_id", [], |r| r.get(0))?;
    let version = version(conn)?;
    if id != form as i64 {
        return Err(Damage("not a file of this ledger (its application id is another)".into()).into());
    }
    // Logs of another release were looked for before any file was opened; a view of one is made again.
    if !(OLDEST_VERSION..=TABLES_VERSION).contains(&version) {
        return Err(Damage(format!("its tables have version {version}; this release reads up to {TABLES_VERSION}")).into());
    }
    Ok(())
}

/// The highest sequence number in a table of bodies or facts; 0 when empty.
pub fn last_seq(conn: &Connection, table: &str) -> Result<Seq, FileError> {
    let last: Option<i64> = conn.query_row(&format!("SELECT max(seq) FROM {table}"), [], |r| r.get(0))?;
    Ok(from_sql(last.unwrap_or(0)))
}

/// Sequence numbers are stored as SQLite's signed integers; they never come near the limit.
pub fn to_sql(seq: Seq) -> i64 {
    seq as i64
}

/// See [`to_sql`].
pub fn from_sql(seq: i64) -> Seq {
    seq as Seq
}

/// A file error that is not SQLite's.
pub fn io_error(e: &std::io::Error) -> FileError {
    FileError::Sql(rusqlite::Error::ToSqlConversionFailure(e.to_string().into()))
}
