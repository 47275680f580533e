//! The ledger: an append-only log of facts and bodies, and the views folded from it. The only user of rusqlite.
//!
//! - **Log**: [`writer`] commits what waits in [`queue`] in groups, one fsync each, into the active [`catalog::Segment`].
//! - **Views**: [`folder`] reads the log and keeps, per segment, what searches need, by the rules of [`fold`].
//! - **Replica**: [`ship`] tells other nodes what this log wrote; [`apply`] takes in, in rounds, what theirs did; [`offer`] lists the
//!   closed files, which [`adopt`] makes the beginning of an empty ledger elsewhere.
//! - **Upkeep**: [`keeper`] copies write-ahead logs, completes closed segments, applies [`retention`].
//!
//! Files in `<store>/ledger/`: `log-<first>.db`, `view-<first>.db`, `filter-<first>.bin` (keys of a closed segment),
//! `transient-<first>.db` (bodies of channels that keep none), `marks.json`,
//! `origin`, `quarantine/`.

mod adopt;
mod applied;
mod apply;
mod batch;
mod bodies;
mod carry;
mod catalog;
mod codec;
mod core;
mod damage;
mod failure;
pub mod fold;
mod folder;
mod folding;
mod follow;
mod gather;
mod held;
mod homes;
mod keeper;
mod keys;
mod log;
mod lookup;
mod marks;
mod offer;
mod once;
mod open;
mod origin;
mod pool;
mod problems;
mod query;
mod queue;
mod read;
mod readers;
mod recents;
mod recover;
mod replica;
mod retention;
mod round;
mod scrub;
mod search;
mod ship;
mod sql;
mod statements;
mod stats;
mod text;
mod ticket;
mod transient;
mod transient_writer;
mod version;
mod view;
mod view_row;
mod writer;

pub use adopt::{AdoptError, Adopted, Adoption, begun_with, give_up, is_untouched};
pub use follow::{Followed, Wake};
pub use keeper::FreeSpace;
pub use offer::{FORM as OFFER_FORM, Offer, Offered};
pub use problems::Problem;
pub use query::{Detail, Query, Row, SearchError};
pub use sql::{Damage, FileError};
pub use stats::Stats;
pub use version::check as readable;

use crate::config;
use crate::engine::fact::{BodyRef, Seq};
use crate::engine::ports::{BodyStream, CommitSink, Log, Recent, Unfinished};
use crate::message::MessageId;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a ledger needs to know.
pub struct Options {
    /// Folder of its files; made when missing, mode 0700.
    pub dir: PathBuf,
    /// `[ledger]`.
    pub config: config::Ledger,
    /// Bytes that may wait for the writer (`limits.writer_queue`).
    pub writer_queue: u64,
    /// Asks for the free bytes on the disk under `dir`.
    pub free_space: FreeSpace,
    /// Id of this boot of the system: what an earlier boot wrote without fsync may be lost. `None`: not known.
    pub boot_id: Box<dyn Fn() -> Option<String> + Send>,
    /// Called once by each thread whose work can wait while messages come, so that others go first.
    pub background: fn(),
}

impl Options {
    /// A ledger in `dir` that knows nothing of its host: no free space, no boot, no priorities.
    pub fn new(dir: PathBuf, config: config::Ledger) -> Self {
        Self { dir, config, writer_queue: 16 << 20, free_space: Box::new(|| None), boot_id: Box::new(|| None), background: || {} }
    }
}

/// A ledger that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made, read or written.
    #[error("the ledger's folder {dir} cannot be used: {source}; check that it exists and belongs to the user that runs hie")]
    Directory { dir: PathBuf, source: std::io::Error },
    /// A file in it cannot be used, and not because it is damaged (those are set aside).
    #[error("{file} cannot be opened: {source}; check its owner and the space on its disk")]
    File { file: PathBuf, source: FileError },
    /// A file was written by another release, whose tables differ. No file was changed.
    #[error(
        "{file} was written by {}, with tables of version {found}; this is hie {}, which reads versions {} to {}; nothing was \
         changed: start the release that wrote it, or name another store (node.store)",
        release.as_deref().map_or("another release of hie".into(), |r| format!("hie {r}")), env!("CARGO_PKG_VERSION"),
        sql::OLDEST_VERSION, sql::TABLES_VERSION
    )]
    Version { file: PathBuf, found: i64, release: Option<String> },
    /// Threads cannot be started.
    #[error("the ledger's threads cannot be started: {0}; raise the limit of processes")]
    Threads(std::io::Error),
    /// Started already.
    #[error("the ledger runs already")]
    Running,
}

#[derive(Default)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    folders: Vec<JoinHandle<()>>,
    keeper: Option<JoinHandle<()>>,
    check: Option<JoinHandle<()>>,
}

/// What waits between opening and starting.
struct Idle {
    active: writer::Active,
    folder: folder::Folder,
    free_space: FreeSpace,
    background: fn(),
    unchecked: Vec<Arc<catalog::Segment>>,
}

/// The ledger.
pub struct Ledger {
    core: Arc<core::Core>,
    readers: Arc<readers::Readers>,
    idle: Mutex<Option<Idle>>,
    threads: Mutex<Threads>,
    applier: apply::Applier,
    recovered: AtomicBool,
    /// When a segment was closed last for the sake of a joiner.
    rolled: Mutex<Option<std::time::Instant>>,
}

impl Ledger {
    /// Opens the files and brings the views up to date. Damaged logs are set aside and told by [`Ledger::problems`];
    /// damaged or missing views are made again. Nothing is written to the log before [`Ledger::start`].
    pub fn open(options: Options) -> Result<Self, OpenError> {
        version::check(&options.dir)?;
        open::probe(&options.dir).map_err(|source| OpenError::Directory { dir: options.dir.clone(), source })?;
        let open::Opened { core, active, folder, unchecked } = open::open(&options)?;
        let idle = Idle { active, folder, free_space: options.free_space, background: options.background, unchecked };
        Ok(Self {
            core,
            readers: Arc::new(readers::Readers::default()),
            idle: Mutex::new(Some(idle)),
            threads: Mutex::new(Threads::default()),
            applier: apply::Applier::default(),
            recovered: AtomicBool::new(false),
            rolled: Mutex::default(),
        })
    }

    /// Tells every transaction that was not finished when the last run ended, parked ones included, rising by
    /// sequence number. Proxy-mode transactions without a response are among them; what other nodes accepted, or a queue of the broker
    /// holds, is not. Before [`Ledger::start`].
    pub fn unfinished(&self, each: &mut dyn FnMut(Unfinished)) -> Result<(), FileError> {
        recover::unfinished(&self.core, &mut |first| self.rebuild(first), each)?;
        self.recovered.store(true, Ordering::Release);
        Ok(())
    }

    /// Tells the latest messages with a resend key (`ledger.resend_entries` within `ledger.resend_window`), oldest
    /// first: resend key, body hash, id, Unix milliseconds of arrival.
    pub fn recent(&self, each: &mut dyn FnMut(Recent)) -> Result<(), FileError> {
        recover::recent(&self.core, &mut |first| self.rebuild(first), each)
    }

    /// Makes a view again, before [`Ledger::start`]; after it the folder's thread does.
    fn rebuild(&self, first: Seq) -> Result<(), FileError> {
        match &mut *lock(&self.idle) {
            Some(idle) => idle.folder.rebuild(first),
            None => Ok(()),
        }
    }

    /// Starts writing. `sink` gets the accept facts of each commit, on the writer's thread.
    pub fn start(&self, sink: Arc<dyn CommitSink>) -> Result<(), OpenError> {
        if !self.recovered.load(Ordering::Acquire) {
            // Short-lived bodies of unfinished messages must be known before any are removed.
            self.unfinished(&mut |_| {}).map_err(|source| OpenError::File { file: self.core.dir.clone(), source })?;
        }
        let Some(idle) = lock(&self.idle).take() else { return Err(OpenError::Running) };
        let mut threads = lock(&self.threads);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).stack_size(1 << 20).spawn(run).map_err(OpenError::Threads)
        };
        let writer = writer::Writer::new(self.core.clone(), sink);
        let active = idle.active;
        threads.writer = Some(spawn("ledger-write", Box::new(move || writer.run(active)))?);
        let keeper = keeper::Keeper::new(self.core.clone(), idle.free_space);
        threads.keeper = Some(spawn("ledger-keep", Box::new(move || keeper.run()))?);
        if !idle.unchecked.is_empty() {
            let core = self.core.clone();
            threads.check = Some(spawn("ledger-check", Box::new(move || scrub::while_running(&core, idle.unchecked)))?);
        }
        let folding = folding::Folding::new(self.core.clone(), idle.folder);
        let (helper, background) = (folding.clone(), idle.background);
        let fold = move || {
            background();
            folding.in_background();
        };
        threads.folders.push(spawn("ledger-fold", Box::new(fold))?);
        threads.folders.push(spawn("ledger-catch-up", Box::new(move || helper.when_needed()))?);
        Ok(())
    }

    /// Writes what waits, brings the views up to date, makes them durable, and ends the threads. Blocks. Appends after
    /// this fail.
    pub fn close(&self) {
        let mut threads = lock(&self.threads);
        // It waits for the writer.
        self.core.ending.store(true, Ordering::Release);
        self.applier.close();
        self.core.queue.close();
        self.core.shipping.close();
        // In this order: the folder sees all that the writer wrote, the keeper closes what the writer left.
        join(threads.writer.take());
        self.core.closing.store(true, Ordering::Release);
        self.core.folder_bell.ring();
        self.core.help_bell.ring();
        threads.folders.drain(..).for_each(|folder| join(Some(folder)));
        self.core.keeper_bell.ring();
        join(threads.keeper.take());
        join(threads.check.take());
        self.readers.close();
        lock(&self.idle).take();
        self.core.pool.clear();
    }

    /// Transactions that match, newest first. Blocks: reads from disk.
    pub fn search(&self, query: &Query) -> Result<Vec<Row>, SearchError> {
        search::search(&self.core, query)
    }

    /// One transaction with all its facts that are still stored. Blocks: reads from disk.
    pub fn transaction(&self, id: MessageId) -> Result<Option<Detail>, SearchError> {
        search::detail(&self.core, id)
    }

    /// A body: `seq` is that of the fact that holds the reference.
    pub fn body(&self, seq: Seq, body: &BodyRef) -> BodyStream {
        self.read(seq, body)
    }

    /// The committed facts after a number, in the order of the log, at most so many. Blocks: reads from disk.
    pub fn facts_after(&self, after: Seq, most: usize) -> Result<Followed, FileError> {
        follow::after(&self.core, after, most)
    }

    /// The accept fact under a transaction's number; `None` when it is no longer stored. Blocks: reads from disk.
    pub fn accepted_at(&self, home: Seq) -> Result<Option<Box<crate::engine::fact::Accepted>>, FileError> {
        read::accepted(&self.core, self.core.homes.now(home))
    }

    /// The highest number committed.
    pub fn committed(&self) -> Seq {
        self.core.committed()
    }

    /// One more who is called after each commit, on the writer's thread: it may do no more than wake a thread.
    pub fn on_commit(&self, wake: Wake) {
        self.core.follower.add(wake);
    }

    /// What is wrong with the store, oldest first; empty when nothing is.
    pub fn problems(&self) -> Vec<Problem> {
        self.core.problems.all()
    }

    /// Why nothing can be accepted now; `None` when all is well.
    pub fn not_ready(&self) -> Option<&'static str> {
        // Held by `close` until all is done.
        let ended = self.threads.try_lock().is_ok_and(|threads| threads.writer.as_ref().is_some_and(JoinHandle::is_finished));
        if ended {
            return Some("the log's writer has ended: see the node's log, then restart the node");
        }
        // A balancer sends nothing to a node that is not ready, so nothing would show that commits work again:
        // after a while without a failure it counts as ready and is tried.
        const FAILED_LATELY_MS: i64 = 5_000;
        match self.core.space() {
            core::Space::Enough if self.core.problems.lately("log", FAILED_LATELY_MS) => {
                Some("the store cannot be written: see `problems` in /status")
            }
            core::Space::Enough => None,
            core::Space::DiskLow => Some("the disk under the store is nearly full"),
            core::Space::LedgerFull => Some("the ledger is full: see `problems` in /status"),
        }
    }

    /// Its size on disk in bytes, as last measured; asks nothing of the disk.
    pub fn bytes(&self) -> u64 {
        self.core.disk_bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// How large it is and how far the views are. Blocks: reads from disk.
    pub fn stats(&self) -> Stats {
        stats::stats(&self.core)
    }

    /// Lets the views rest, so that the log can be measured by itself, or go on.
    pub fn pause_views(&self, pause: bool) {
        self.core.folded.paused.store(pause, Ordering::Release);
        self.core.folder_bell.ring();
    }

    /// Whether the writer's thread runs.
    pub fn is_alive(&self) -> bool {
        lock(&self.threads).writer.as_ref().is_some_and(|writer| !writer.is_finished())
    }

    /// Waits until the views show everything appended so far; false when that takes longer than `at_most`. Blocks.
    pub fn caught_up(&self, at_most: Duration) -> bool {
        let deadline = std::time::Instant::now() + at_most;
        if lock(&self.idle).is_some() {
            // Not started: opening has brought them up to date.
            return true;
        }
        carry::pass_through(&self.core);
        let committed = self.core.committed();
        self.core.hurry_views(committed);
        self.core.folded.wait_for(committed, deadline)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread {
        // Its panic was printed where it happened; closing goes on.
        let _ = thread.join();
    }
}
