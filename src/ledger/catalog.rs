//! The segments: which files there are, and which of them holds a sequence number.

use crate::engine::fact::Seq;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

/// One segment: a log and its view, from sequence number `first` up to the next segment's.
pub struct Segment {
    pub first: Seq,
    pub log: PathBuf,
    pub view: PathBuf,
    pub filter: PathBuf,
    /// Highest number that may lie in it.
    end: AtomicU64,
    /// Its log never changes again.
    sealed: AtomicBool,
    /// It is about to be removed: nothing new may refer to pieces of bodies in it.
    leaving: AtomicBool,
    /// Its files are gone; connections to it must not be kept.
    gone: AtomicBool,
    /// Held for reading during each statement on a log that is written: the writer takes it for the instant in which
    /// the write-ahead log starts again from its beginning, which a reader in the middle of it would prevent.
    pub gate: RwLock<()>,
}

impl Segment {
    pub fn new(dir: &Path, first: Seq) -> Self {
        Self {
            first,
            log: dir.join(format!("log-{first:020}.db")),
            view: dir.join(format!("view-{first:020}.db")),
            filter: dir.join(format!("filter-{first:020}.bin")),
            end: AtomicU64::new(Seq::MAX),
            sealed: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            gate: RwLock::new(()),
        }
    }

    /// Highest number that may lie in it.
    pub fn end(&self) -> Seq {
        self.end.load(Ordering::Acquire)
    }

    /// Nothing above `end` lies in it.
    pub fn set_end(&self, end: Seq) {
        self.end.store(end, Ordering::Release);
    }

    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    pub fn set_leaving(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Release);
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Enters the gate; see [`Segment::gate`].
    pub fn enter(&self) -> Option<RwLockReadGuard<'_, ()>> {
        (!self.is_sealed()).then(|| self.gate.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// All files that may belong to it.
    pub fn files(&self) -> Vec<PathBuf> {
        [&self.log, &self.view].into_iter().flat_map(|p| with_companions(p)).chain([self.filter.clone()]).collect()
    }
}

/// A database file and what SQLite may keep beside it.
pub fn with_companions(path: &Path) -> Vec<PathBuf> {
    ["", "-wal", "-shm", "-journal"]
        .into_iter()
        .map(|suffix| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        })
        .collect()
}

/// Sequence numbers in the names `<prefix>-<seq>.db` of a folder, rising.
pub fn scan(dir: &Path, prefix: &str) -> io::Result<Vec<Seq>> {
    let mut found: Vec<Seq> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix(prefix)?.strip_prefix('-')?.strip_suffix(".db"));
        found.extend(number.and_then(|n| n.parse::<Seq>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes a file's creation, renaming or removal durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

/// Removes files that may or may not be there.
pub fn remove_files(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// All segments in use.
#[derive(Default)]
pub struct Catalog {
    map: RwLock<BTreeMap<Seq, Arc<Segment>>>,
}

impl Catalog {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Seq, Arc<Segment>>> {
        self.map.read().unwrap_or_else(|e| e.into_inner())
    }

    /// Adds a segment, which ends the one before it.
    pub fn insert(&self, segment: Arc<Segment>) {
        let mut map = self.map.write().unwrap_or_else(|e| e.into_inner());
        if let Some((_, before)) = map.range(..segment.first).next_back() {
            before.set_end(before.end().min(segment.first - 1));
        }
        map.insert(segment.first, segment);
    }

    pub fn remove(&self, first: Seq) {
        self.map.write().unwrap_or_else(|e| e.into_inner()).remove(&first);
    }

    /// The segment in which a sequence number lies, if that segment is still there.
    pub fn holding(&self, seq: Seq) -> Option<Arc<Segment>> {
        self.read().range(..=seq).next_back().map(|(_, s)| s.clone()).filter(|s| seq <= s.end())
    }

    /// The segment with this first number.
    pub fn at(&self, first: Seq) -> Option<Arc<Segment>> {
        self.read().get(&first).cloned()
    }

    /// The oldest segment in which numbers above `seq` may lie, and whether it is complete (a younger one exists).
    pub fn beyond(&self, seq: Seq) -> Option<(Arc<Segment>, bool)> {
        let map = self.read();
        let last = map.keys().next_back().copied();
        map.values().find(|s| s.end() > seq).map(|s| (s.clone(), Some(s.first) != last))
    }

    pub fn newest(&self) -> Option<Arc<Segment>> {
        self.read().values().next_back().cloned()
    }

    pub fn oldest(&self) -> Option<Arc<Segment>> {
        self.read().values().next().cloned()
    }

    /// Oldest first.
    pub fn all(&self) -> Vec<Arc<Segment>> {
        self.read().values().cloned().collect()
    }
}
