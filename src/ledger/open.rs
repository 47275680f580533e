//! Opening a ledger: which files there are, which of them are sound, where the numbers go on, and how far the views are.

use super::applied;
use super::catalog::{Segment, remove_files, scan, sync_dir, with_companions};
use super::core::Core;
use super::damage::{self, QUARANTINE};
use super::folder::Folder;
use super::held;
use super::keeper;
use super::marks::Marks;
use super::origin;
use super::problems::Problems;
use super::queue::Queue;
use super::scrub;
use super::sql::{self, FileError, Form};
use super::transient::Transients;
use super::version;
use super::view::{get_meta, meta};
use super::writer::{Active, checkpoint};
use super::{OpenError, Options};
use crate::engine::fact::Seq;
use crate::telemetry::ledger as event;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// No record takes less of a log file than this: a damaged log's highest number is at most its first plus its size by this.
const LEAST_RECORD: u64 = 16;

/// A ledger with its files open and its views up to date, not yet running.
pub struct Opened {
    pub core: Arc<Core>,
    pub active: Active,
    pub folder: Folder,
    /// Logs still to be checked.
    pub unchecked: Vec<Arc<Segment>>,
}

/// Opens the files.
pub fn open(options: &Options) -> Result<Opened, OpenError> {
    let dir = options.dir.as_path();
    let failed = |e: std::io::Error| OpenError::Directory { dir: dir.to_owned(), source: e };
    make_dir(dir).map_err(failed)?;
    let mut marks = Marks::load(dir);
    let problems = Problems::default();
    let (origin, made) = origin::load_or_make(dir).map_err(failed)?;
    let mut segments = Vec::new();
    let mut high = marks.high.max(highest_in_quarantine(dir).map_err(failed)?);
    let firsts = scan(dir, "log").map_err(failed)?;
    if made {
        // All that there is of it is new to the others.
        marks.shipped = 0;
        marks.save(dir).map_err(failed)?;
    }
    for (i, &first) in firsts.iter().enumerate() {
        let segment = Segment::new(dir, first);
        match last_number(&segment.log) {
            Ok(last) => {
                high = high.max(last).max(first.saturating_sub(1));
                segment.set_end(firsts.get(i + 1).map_or(Seq::MAX, |next| last.min(next - 1)));
                segments.push(Arc::new(segment));
            }
            Err(FileError::Damaged(d)) => {
                high = high.max(highest_possible(&segment.log, first));
                marks.forget(first);
                marks.lost(first);
                marks.save(dir).map_err(failed)?;
                let moved = damage::set_aside(dir, &segment.files());
                say(&problems, &segment.log, &d.0, moved)?;
            }
            Err(e) => return Err(OpenError::File { file: segment.log, source: e }),
        }
    }
    let missing = marks.missing(&firsts);
    if missing.keys().any(|first| !marks.missed.contains(first)) || marks.missed.iter().any(|f| !missing.contains_key(f)) {
        missing.keys().filter(|first| !marks.missed.contains(first)).copied().min().into_iter().for_each(|f| marks.lost(f));
        marks.missed = missing.keys().copied().collect();
        marks.save(dir).map_err(failed)?;
    }
    for (first, length) in missing {
        // Its numbers are not used again: other files may still refer to them.
        let length = length.unwrap_or_else(|| options.config.segment_size.as_u64().saturating_mul(2));
        high = high.max(first.saturating_add(length / LEAST_RECORD));
        damage::missing(&problems, &Segment::new(dir, first).log);
    }
    let short_lived = highest_transient(dir).map_err(failed)?;
    if short_lived > high.max(marks.high) {
        // They may be gone at the next start.
        marks.high = short_lived;
        marks.save(dir).map_err(failed)?;
    }
    let next = high.max(short_lived).max(marks.shipped) + 1;
    let transients = Transients::open(dir).map_err(failed)?;
    let limit = usize::try_from(options.writer_queue).unwrap_or(usize::MAX);
    let mut core = Core::new(dir, options.config.clone(), Queue::new(next, limit), transients, problems, marks.clone());
    core.origin = origin;
    // The newest log goes on if it is sound; otherwise a fresh one begins above every number known.
    let newest_is_sound = segments.last().is_some_and(|s| Some(&s.first) == firsts.last());
    for segment in &segments {
        core.catalog.insert(segment.clone());
    }
    let first = match segments.last() {
        Some(newest) if newest_is_sound => {
            newest.set_end(Seq::MAX);
            newest.first
        }
        _ => next,
    };
    let active = Active::open(&core, first).map_err(|e| OpenError::File { file: Segment::new(dir, first).log, source: e })?;
    if core.catalog.at(first).is_none() {
        core.catalog.insert(active.segment.clone());
    }
    make_durable(&active).map_err(|e| OpenError::File { file: active.segment.log.clone(), source: e })?;
    core.committed.store(next - 1, Ordering::Release);
    core.wal_bytes.store(wal_size(&active.segment.log), Ordering::Release);
    let core = Arc::new(core);
    seal_old(&core, first)?;
    remove_strays(&core).map_err(failed)?;
    let unchecked = scrub::at_start(&core);
    let folder = views(&core, options, &marks)?;
    held::restore(&core).map_err(|e| OpenError::File { file: core.dir.clone(), source: e })?;
    applied::restore(&core, &active.segment, &active.conn)
        .map_err(|e| OpenError::File { file: active.segment.log.clone(), source: e })?;
    Ok(Opened { core, active, folder, unchecked })
}

/// What a run before this one wrote may be in the system's cache only: it was killed before its sync, or its sync failed. It counts
/// as stored from now on, so it is copied into the log's file, which SQLite syncs, or, where there is no space for that, synced as
/// it is.
fn make_durable(active: &Active) -> Result<(), FileError> {
    let wal = &with_companions(&active.segment.log)[1];
    if wal_size(&active.segment.log) == 0 {
        return Ok(());
    }
    match checkpoint(&active.conn) {
        Ok((0, frames, copied)) if frames == copied => Ok(()),
        _ => std::fs::File::open(wal).and_then(|wal| wal.sync_all()).map_err(|e| sql::io_error(&e)),
    }
}

fn make_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    // Bodies are in here: nobody else may look.
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    sync_dir(dir)?;
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    Ok(())
}

/// The highest number in a log, after looking at what can be looked at quickly: stamp, length, both ends of both tables.
fn last_number(log: &Path) -> Result<Seq, FileError> {
    let conn = sql::open_reader(log, Form::Log, 64)?;
    let pages: i64 = conn.query_row("PRAGMA page_count", [], |r| r.get(0))?;
    let page: i64 = conn.query_row("PRAGMA page_size", [], |r| r.get(0))?;
    let length = log.metadata().map_or(0, |m| m.len());
    if wal_size(log) == 0 && length < (pages * page) as u64 {
        return Err(sql::Damage(format!("{length} bytes long, its header says {}", pages * page)).into());
    }
    for table in ["facts", "bodies"] {
        conn.query_row(&format!("SELECT min(seq) FROM {table}"), [], |_| Ok(()))?;
    }
    Ok(sql::last_seq(&conn, "facts")?.max(sql::last_seq(&conn, "bodies")?).max(applied::last_piece(&conn)?))
}

/// The highest number in the short-lived files: pieces of bodies whose fact has not come are in no log, and their numbers may be known to
/// other nodes.
fn highest_transient(dir: &Path) -> std::io::Result<Seq> {
    let last = |first: Seq| {
        let conn = sql::open_reader(&dir.join(format!("transient-{first:020}.db")), Form::Transient, 64)?;
        sql::last_seq(&conn, "bodies")
    };
    // One that is damaged is told when it is read.
    Ok(scan(dir, "transient")?.into_iter().map(|first| last(first).unwrap_or(first)).max().unwrap_or(0))
}

/// Size of a file's write-ahead log.
pub fn wal_size(log: &Path) -> u64 {
    with_companions(log)[1].metadata().map_or(0, |m| m.len())
}

fn highest_possible(log: &Path, first: Seq) -> Seq {
    let size = with_companions(log).iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum::<u64>();
    first + size / LEAST_RECORD
}

fn highest_in_quarantine(dir: &Path) -> std::io::Result<Seq> {
    let quarantine = dir.join(QUARANTINE);
    if !quarantine.exists() {
        return Ok(0);
    }
    let firsts = scan(&quarantine, "log")?;
    Ok(firsts.iter().map(|first| highest_possible(&Segment::new(&quarantine, *first).log, *first)).max().unwrap_or(0))
}

fn say(problems: &Problems, log: &Path, error: &str, moved: std::io::Result<()>) -> Result<(), OpenError> {
    let file = damage::name(log);
    moved.map_err(|e| OpenError::Directory { dir: log.to_owned(), source: e })?;
    let action = format!("moved to {QUARANTINE}/; restore it from a backup or try `sqlite3 {file} .recover`");
    event::DamageFound { file: &file, error, action: &action }.emit();
    problems.add(&file, format!("damaged: {error}; {action}"));
    Ok(())
}

/// Logs that were closed, or whose closing was interrupted.
fn seal_old(core: &Core, active: Seq) -> Result<(), OpenError> {
    for segment in core.catalog.all().into_iter().filter(|s| s.first != active) {
        if wal_size(&segment.log) > 0 {
            keeper::finish(&segment.log).map_err(|e| OpenError::File { file: segment.log.clone(), source: e })?;
        }
        segment.seal();
    }
    Ok(())
}

/// Views and key files whose log is gone, and files that were being made.
fn remove_strays(core: &Core) -> std::io::Result<()> {
    for entry in std::fs::read_dir(&core.dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let first =
            name.strip_prefix("view-").or_else(|| name.strip_prefix("filter-")).and_then(|n| n.get(..20)?.parse::<Seq>().ok());
        let orphan = first.is_some_and(|first| core.catalog.at(first).is_none());
        if orphan || name.contains(".new") {
            remove_files(std::slice::from_ref(&path))?;
        }
        if name == sql::SPARE && version::is_old(&path, Form::Log) {
            remove_files(&with_companions(&path))?;
        }
    }
    Ok(())
}

/// Brings the views up to date: damaged and missing ones are made again, then the tail of the log is folded.
fn views(core: &Arc<Core>, options: &Options, marks: &Marks) -> Result<Folder, OpenError> {
    let boot = (options.boot_id)();
    let committed = core.committed();
    let mut rebuild = Vec::new();
    let mut reached = 0;
    let mut same_boot = true;
    for segment in core.catalog.all() {
        // The directory is open to everybody who may write there; a view is only as good as it looks.
        let state = if segment.view.exists() {
            core.with_view(&segment, |conn| {
                for (old, new) in moved(conn)? {
                    core.homes.moved(old, new);
                }
                conn.query_row("SELECT count(*), max(seq) FROM tx WHERE open = 1", [], |_| Ok(()))?;
                Ok((get_meta::<i64>(conn, meta::FOLDED)?, get_meta::<String>(conn, meta::BOOT)?))
            })
        } else {
            Err(FileError::Damaged(sql::Damage("missing".into())))
        };
        match state {
            Ok((folded, view_boot)) => {
                reached = reached.max(folded.map_or(0, sql::from_sql));
                // A view that was never written to has no boot id and no claim.
                same_boot &= folded.is_none() || (boot.is_some() && view_boot == boot) || segment.filter.exists();
            }
            Err(FileError::Damaged(d)) => {
                core.pool.forget(&segment.view);
                if segment.first <= committed && segment.view.exists() {
                    event::DamageFound { file: &damage::name(&segment.view), error: &d.0, action: "made again from the log" }
                        .emit();
                }
                rebuild.push(segment.first);
            }
            Err(e) => return Err(OpenError::File { file: segment.view.clone(), source: e }),
        }
    }
    // After a power cut only what was made durable counts: an older segment's view may have lost what a younger one tells.
    let at = if same_boot { reached } else { reached.min(marks.folded) };
    let newest = core.catalog.newest().map_or(0, |s| s.first);
    let unfinished = core.catalog.all().into_iter().filter(|s| s.first != newest && s.end() <= at && !s.filter.exists());
    core.incomplete.lock().unwrap_or_else(|e| e.into_inner()).extend(unfinished.map(|s| s.first));
    let mut folder = Folder::new(core.clone(), at.min(committed), boot);
    let failed = |e: FileError| OpenError::File { file: core.dir.clone(), source: e };
    for first in rebuild {
        folder.rebuild(first).map_err(failed)?;
    }
    // Damage may show only when a view is written to; each view is made again at most once.
    for _ in 0..=core.catalog.all().len() {
        match folder.catch_up(usize::MAX) {
            Err(FileError::Damaged(_)) if folder.mend().map_err(failed)? => {}
            other => return other.map(|()| folder).map_err(failed),
        }
    }
    folder.catch_up(usize::MAX).map_err(failed)?;
    Ok(folder)
}

fn moved(conn: &rusqlite::Connection) -> Result<Vec<(Seq, Seq)>, FileError> {
    let mut statement = conn.prepare("SELECT old, new FROM moved ORDER BY new")?;
    let rows = statement.query_map([], |r| Ok((sql::from_sql(r.get(0)?), sql::from_sql(r.get(1)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Can files be written here at all? Told before anything else is tried.
pub fn probe(dir: &Path) -> std::io::Result<()> {
    make_dir(dir)?;
    let path = dir.join("probe.new");
    OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
    std::fs::remove_file(path)
}
