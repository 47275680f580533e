//! What the ledger's threads share.

use super::applied::Applied;
use super::catalog::{Catalog, Segment};
use super::follow::Follower;
use super::homes::{Homes, Moves};
use super::marks::Marks;
use super::origin::HOUSEKEEPING;
use super::pool::Pool;
use super::problems::Problems;
use super::queue::Queue;
use super::recents::Recents;
use super::ship::Shipping;
use super::sql::{FileError, Form};
use super::transient::Transients;
use crate::config;
use crate::engine::fact::Seq;
use crate::engine::ports::LogError;
use crate::engine::replica::Origin;
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// Size of the write-ahead log at which it is copied. A file that is soon overwritten is quicker to sync than one that grows, and
/// stays in the system's cache.
const WAL_LIMIT: u64 = 4 << 20;
/// What the write-ahead logs may grow by between two counts, in limits of one.
const WALS: u64 = 8;
/// The files are counted when the writer has written this part of a segment since.
const COUNTED_PART: u64 = 8;

/// Something that a thread of the ledger waits for, besides the passing of time.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    wake: Condvar,
}

impl Bell {
    /// Wakes the thread, or keeps it from sleeping next time.
    pub fn ring(&self) {
        let mut rung = self.rung.lock().unwrap_or_else(|e| e.into_inner());
        if !*rung {
            *rung = true;
            self.wake.notify_one();
        }
    }

    /// Sleeps until rung or `at_most` later.
    pub fn wait(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        let mut rung = self.rung.lock().unwrap_or_else(|e| e.into_inner());
        while !*rung {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            rung = self.wake.wait_timeout(rung, left).unwrap_or_else(|e| e.into_inner()).0;
        }
        *rung = false;
    }
}

/// How far the views have come, and who waits for them.
#[derive(Default)]
pub struct Folded {
    seq: Mutex<Seq>,
    moved: Condvar,
    /// For measurements: the folder rests.
    pub paused: AtomicBool,
    /// Somebody waits for the views to come so far.
    wanted: AtomicU64,
    /// The folder's second thread is at work.
    pub helped: AtomicBool,
}

impl Folded {
    pub fn get(&self) -> Seq {
        *self.lock()
    }

    pub fn set(&self, seq: Seq) {
        *self.lock() = seq;
        self.moved.notify_all();
    }

    /// How far the views should come at once.
    pub fn wanted(&self) -> Seq {
        self.wanted.load(Ordering::Acquire)
    }

    /// Waits until everything up to `seq` is in the views; false at `deadline`.
    pub fn wait_for(&self, seq: Seq, deadline: Instant) -> bool {
        let mut now = self.lock();
        while *now < seq {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            now = self.moved.wait_timeout(now, left.min(Duration::from_millis(100))).unwrap_or_else(|e| e.into_inner()).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Seq> {
        self.seq.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Why nothing more is accepted just now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Space {
    Enough = 0,
    /// Less than `min_free` on the disk.
    DiskLow = 1,
    /// The ledger has its full size and all of it is needed.
    LedgerFull = 2,
}

/// Work that the writer hands to the housekeeper.
pub struct Sealing {
    pub segment: Option<Arc<Segment>>,
    /// The writer's connection: closing it means a checkpoint.
    pub conn: Connection,
    /// It has failed before, which was told.
    pub failed: bool,
}

/// State shared by the threads of one ledger.
pub struct Core {
    pub dir: PathBuf,
    pub config: config::Ledger,
    pub queue: Queue,
    pub catalog: Catalog,
    pub transients: Transients,
    pub pool: Pool,
    pub homes: Homes,
    /// Deliveries that wait in the ledger instead of in a queue of the broker.
    pub held: super::held::Held,
    pub moves: Moves,
    pub problems: Problems,
    /// Highest number committed.
    pub committed: AtomicU64,
    pub folded: Folded,
    pub folder_bell: Bell,
    /// For the folder's second thread.
    pub help_bell: Bell,
    pub keeper_bell: Bell,
    /// Follows what is committed.
    pub follower: Follower,
    /// This log's number among those of a cluster.
    pub origin: Origin,
    /// What is taken in from other logs.
    pub applied: Applied,
    /// Messages by id, for what other logs say of them.
    pub recents: Recents,
    /// How far own records are with the other nodes.
    pub shipping: Shipping,
    /// The segment being written is to be closed with the next record, if it has any.
    pub roll: AtomicBool,
    /// Held where it is decided that a piece of a body stays where it is, or that its segment goes.
    pub mapping: Mutex<()>,
    pub sealing: Mutex<Vec<Sealing>>,
    /// Bytes in the active segment's write-ahead log since it last began anew, about.
    pub wal_bytes: AtomicU64,
    /// The housekeeper has copied nearly all of the write-ahead log: the writer may finish and begin it anew.
    pub wal_copied: AtomicBool,
    /// Size of everything, as last counted.
    pub disk_bytes: AtomicU64,
    /// Bytes written since.
    uncounted: AtomicU64,
    space: AtomicU8,
    /// Nearly at its full size: new messages wait until retention has made room.
    tight: AtomicBool,
    pub roomier: Notify,
    pub closing: AtomicBool,
    /// Nothing more is taken in from other logs.
    pub ending: AtomicBool,
    /// Facts that nobody waited for and that could not be written.
    pub lost_later: AtomicU64,
    /// The folder is to make this segment's view again.
    pub rebuild: Mutex<Vec<Seq>>,
    marks: Mutex<Marks>,
    /// Held by whoever carries transactions out of a segment.
    pub moving: Mutex<()>,
    /// The folder is to make this segment's file of keys again.
    pub incomplete: Mutex<Vec<Seq>>,
}

impl Core {
    pub fn new(
        dir: &Path,
        config: config::Ledger,
        queue: Queue,
        transients: Transients,
        problems: Problems,
        marks: Marks,
    ) -> Self {
        Self {
            dir: dir.to_owned(),
            config,
            queue,
            catalog: Catalog::default(),
            transients,
            pool: Pool::default(),
            homes: Homes::default(),
            held: super::held::Held::default(),
            moves: Moves::default(),
            problems,
            committed: AtomicU64::new(0),
            folded: Folded::default(),
            folder_bell: Bell::default(),
            help_bell: Bell::default(),
            keeper_bell: Bell::default(),
            follower: Follower::default(),
            origin: HOUSEKEEPING,
            applied: Applied::default(),
            recents: Recents::default(),
            shipping: Shipping::new(marks.shipped, marks.adopted),
            roll: AtomicBool::new(false),
            mapping: Mutex::new(()),
            sealing: Mutex::new(Vec::new()),
            wal_bytes: AtomicU64::new(0),
            wal_copied: AtomicBool::new(false),
            disk_bytes: AtomicU64::new(0),
            uncounted: AtomicU64::new(0),
            space: AtomicU8::new(0),
            tight: AtomicBool::new(false),
            roomier: Notify::new(),
            closing: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            lost_later: AtomicU64::new(0),
            rebuild: Mutex::new(Vec::new()),
            marks: Mutex::new(marks),
            moving: Mutex::new(()),
            incomplete: Mutex::new(Vec::new()),
        }
    }

    /// The notes as they are.
    pub fn marks(&self) -> Marks {
        self.marks.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Changes the notes, durably.
    pub fn note(&self, change: impl FnOnce(&mut Marks)) -> std::io::Result<()> {
        let mut marks = self.marks.lock().unwrap_or_else(|e| e.into_inner());
        change(&mut marks);
        marks.shipped = self.shipping.upto();
        marks.save(&self.dir)
    }

    /// Size at which a segment is closed: never more than an eighth of the whole, so that retention has parts to drop.
    pub fn segment_size(&self) -> u64 {
        self.config.segment_size.as_u64().min(self.config.max_size.as_u64() / 8).max(256 << 10)
    }

    /// Size of the write-ahead log at which it is copied into the log's file.
    pub fn wal_limit(&self) -> u64 {
        (self.segment_size() / 8).min(WAL_LIMIT)
    }

    pub fn space(&self) -> Space {
        match self.space.load(Ordering::Relaxed) {
            0 => Space::Enough,
            1 => Space::DiskLow,
            _ => Space::LedgerFull,
        }
    }

    pub fn set_space(&self, space: Space) {
        self.space.store(space as u8, Ordering::Relaxed);
    }

    /// Why nothing can be accepted now.
    pub fn refusal(&self) -> Option<LogError> {
        (self.space() != Space::Enough).then_some(LogError::Full)
    }

    /// Size from which new messages wait for retention: what they still may add fits below the full size, and what the write-ahead
    /// logs of bodies and of short-lived bodies may grow by before they are copied.
    pub fn tight_size(&self) -> u64 {
        self.config.max_size.as_u64().saturating_sub(self.segment_size() / 2 * 3 + self.wal_limit() * WALS)
    }

    /// The writer has written so much: what is on disk grows by it, and by what the views will make of it.
    pub fn grew(&self, bytes: u64) {
        let now = self.disk_bytes.fetch_add(bytes + bytes / 4, Ordering::Relaxed) + bytes;
        self.uncounted.fetch_add(bytes, Ordering::Relaxed);
        let tightened = now > self.tight_size() && !self.tight.swap(true, Ordering::AcqRel);
        if tightened || self.is_count_due() {
            self.keeper_bell.ring();
        }
    }

    /// Has so much been written that the files should be counted?
    pub fn is_count_due(&self) -> bool {
        self.uncounted.load(Ordering::Relaxed) > self.segment_size() / COUNTED_PART
    }

    /// Sets the size as counted. `stuck`: nothing can go, so that waiting is of no use.
    pub fn counted(&self, bytes: u64, stuck: bool) {
        self.disk_bytes.store(bytes, Ordering::Relaxed);
        self.uncounted.store(0, Ordering::Relaxed);
        let tight = !stuck && bytes > self.tight_size();
        self.tight.store(tight, Ordering::Release);
        if !tight {
            self.roomier.notify_waiters();
        }
    }

    /// Must new messages wait for retention?
    pub fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Acquire)
    }

    /// Waits until there is room again, or `patience` runs out.
    pub async fn room(&self, patience: Duration) {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let mut roomier = std::pin::pin!(self.roomier.notified());
            roomier.as_mut().enable();
            if !self.is_tight() || tokio::time::timeout_at(deadline, roomier).await.is_err() {
                return;
            }
        }
    }

    /// The views should come so far now, whatever else there is to do.
    pub fn hurry_views(&self, seq: Seq) {
        self.folded.wanted.fetch_max(seq, Ordering::AcqRel);
        self.help_bell.ring();
    }

    /// Sees to it that the views do not fall behind for ever.
    pub fn watch_views(&self) {
        let committed = self.committed();
        if committed.saturating_sub(self.folded.get()) > super::folding::BEHIND {
            self.hurry_views(committed - super::folding::BEHIND / 2);
        }
    }

    pub fn committed(&self) -> Seq {
        self.committed.load(Ordering::Acquire)
    }

    /// Reads from a segment's log.
    pub fn with_log<T>(&self, segment: &Segment, work: impl FnOnce(&Connection) -> Result<T, FileError>) -> Result<T, FileError> {
        self.pool.with(
            &segment.log,
            Form::Log,
            || !segment.is_gone(),
            |conn| {
                let _inside = segment.enter();
                work(conn)
            },
        )
    }

    /// Reads from a segment's view.
    pub fn with_view<T>(
        &self,
        segment: &Segment,
        work: impl FnOnce(&Connection) -> Result<T, FileError>,
    ) -> Result<T, FileError> {
        if !segment.view.exists() {
            return Err(FileError::Absent);
        }
        self.pool.with(&segment.view, Form::View, || !segment.is_gone(), work)
    }
}

/// Unix milliseconds.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
