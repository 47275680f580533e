//! Bodies of channels that keep none: short files of their own, unlinked as soon as every message in them is finished.

use super::catalog::{remove_files, scan, with_companions};
use crate::engine::fact::Seq;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A file is closed at this size …
pub const FILE_BYTES: u64 = 32 << 20;
/// … or age.
pub const FILE_AGE: Duration = Duration::from_secs(300);
/// Pieces whose accept fact has not come are kept this long after the last of them.
const STAGED_FOR: Duration = Duration::from_secs(3600);
/// A file of which less than one part in so many is needed is not kept for that.
const NEEDED_PART: u64 = 4;

struct File {
    path: PathBuf,
    /// Highest number in it.
    last: Seq,
    /// Unfinished messages with bytes in it, and how many.
    holders: HashMap<Seq, u64>,
    /// Being written.
    current: bool,
    /// Pieces whose accept fact has not come.
    staged: HashSet<Seq>,
    last_piece: Option<Instant>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<Seq, File>,
    /// Messages with bytes in files other than the one their own number lies in.
    spread: HashMap<Seq, Vec<Seq>>,
}

impl Inner {
    fn file_of(&mut self, seq: Seq) -> Option<(Seq, &mut File)> {
        self.files.range_mut(..=seq).next_back().filter(|(_, f)| seq <= f.last).map(|(first, f)| (*first, f))
    }
}

/// The short-lived files.
pub struct Transients {
    dir: PathBuf,
    inner: Mutex<Inner>,
    any: AtomicBool,
}

impl Transients {
    /// The files left by the last run; none of them is written again.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let mut inner = Inner::default();
        let found = scan(dir, "transient")?;
        for (i, &first) in found.iter().enumerate() {
            let last = found.get(i + 1).map_or(Seq::MAX, |next| next - 1);
            let path = path(dir, first);
            inner.files.insert(
                first,
                File { path, last, holders: HashMap::new(), current: false, staged: HashSet::new(), last_piece: None },
            );
        }
        let any = AtomicBool::new(!inner.files.is_empty());
        Ok(Self { dir: dir.to_owned(), inner: Mutex::new(inner), any })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A new file begins; the one before it is complete. Returns where it is to be made.
    pub fn begin(&self, first: Seq) -> PathBuf {
        let mut inner = self.lock();
        for file in inner.files.values_mut() {
            file.current = false;
            file.last = file.last.min(first.saturating_sub(1));
        }
        let path = path(&self.dir, first);
        inner.files.insert(
            first,
            File {
                path: path.clone(),
                last: first,
                holders: HashMap::new(),
                current: true,
                staged: HashSet::new(),
                last_piece: None,
            },
        );
        self.any.store(true, Ordering::Release);
        path
    }

    /// No file is being written any more.
    pub fn end(&self) {
        self.lock().files.values_mut().for_each(|f| f.current = false);
    }

    /// Bytes up to this number were written to the current file; those under `pieces` belong to messages still to come.
    pub fn wrote(&self, last: Seq, pieces: Vec<Seq>) {
        if let Some(file) = self.lock().files.values_mut().next_back() {
            file.last = file.last.max(last);
            if !pieces.is_empty() {
                file.staged.extend(pieces);
                file.last_piece = Some(Instant::now());
            }
        }
    }

    /// Pieces of an earlier run, of messages still to come from other nodes.
    pub fn stage(&self, pieces: impl Iterator<Item = Seq>) {
        let mut inner = self.lock();
        for seq in pieces {
            if let Some((_, file)) = inner.file_of(seq) {
                file.staged.insert(seq);
                file.last_piece = Some(Instant::now());
            }
        }
    }

    /// The files in which numbers after `after` up to `until` may lie.
    pub fn between(&self, after: Seq, until: Seq) -> Vec<PathBuf> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let inner = self.lock();
        let files = inner.files.range(..=until).filter(|(_, f)| f.last > after || f.current);
        files.map(|(_, f)| f.path.clone()).collect()
    }

    /// Files that are not written any more: first number and place, oldest first.
    pub fn closed(&self) -> Vec<(Seq, PathBuf)> {
        self.lock().files.iter().filter(|(_, f)| !f.current).map(|(first, f)| (*first, f.path.clone())).collect()
    }

    /// Are all these bytes still there?
    pub fn has_all(&self, seqs: &[Seq]) -> bool {
        let mut inner = self.lock();
        seqs.iter().all(|seq| inner.file_of(*seq).is_some())
    }

    /// The message `home` is accepted and needs the bytes under `seqs`, so many.
    pub fn hold(&self, home: Seq, seqs: &[Seq], bytes: u64) {
        let part = bytes / (seqs.len() as u64).max(1);
        let mut inner = self.lock();
        let mut firsts: Vec<Seq> = Vec::new();
        for seq in seqs {
            if let Some((first, file)) = inner.file_of(*seq) {
                *file.holders.entry(home).or_default() += part;
                file.staged.remove(seq);
                if !firsts.contains(&first) {
                    firsts.push(first);
                }
            }
        }
        if seqs != [home] {
            inner.spread.insert(home, firsts);
        }
    }

    /// The message `home` is finished.
    pub fn finished(&self, home: Seq) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let mut inner = self.lock();
        match inner.spread.remove(&home) {
            Some(firsts) => {
                for first in firsts {
                    if let Some(file) = inner.files.get_mut(&first) {
                        file.holders.remove(&home);
                    }
                }
            }
            None => {
                if let Some((_, file)) = inner.file_of(home) {
                    file.holders.remove(&home);
                }
            }
        }
    }

    /// Are these bytes there, and is so much else in their files needed that copying them out would save little?
    pub fn may_stay(&self, seqs: &[Seq]) -> bool {
        let mut inner = self.lock();
        seqs.iter().all(|seq| {
            let Some((_, file)) = inner.file_of(*seq) else { return false };
            let needed: u64 = file.holders.values().sum();
            file.current || file.path.metadata().is_ok_and(|m| needed >= m.len() / NEEDED_PART)
        })
    }

    /// Bytes in the files that unfinished messages need.
    pub fn bytes_needed(&self) -> u64 {
        self.lock().files.values().flat_map(|f| f.holders.values()).sum()
    }

    /// The file that holds the bytes under `seq`.
    pub fn path_of(&self, seq: Seq) -> Option<PathBuf> {
        self.lock().file_of(seq).map(|(_, f)| f.path.clone())
    }

    /// Is this file still in use?
    pub fn has(&self, path: &Path) -> bool {
        self.lock().files.values().any(|f| f.path == path)
    }

    /// Files that nobody needs any more; they are no longer known afterwards, and are to be removed.
    pub fn take_unneeded(&self) -> Vec<PathBuf> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut inner = self.lock();
        let now = Instant::now();
        let unneeded: Vec<Seq> = inner
            .files
            .iter()
            .filter(|(_, f)| {
                let staged = !f.staged.is_empty() && f.last_piece.is_some_and(|at| now.duration_since(at) < STAGED_FOR);
                !f.current && f.holders.is_empty() && !staged
            })
            .map(|(first, _)| *first)
            .collect();
        unneeded.into_iter().filter_map(|first| inner.files.remove(&first)).map(|f| f.path).collect()
    }
}

fn path(dir: &Path, first: Seq) -> PathBuf {
    dir.join(format!("transient-{first:020}.db"))
}

/// Removes a short-lived file.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_files(&with_companions(path))
}
