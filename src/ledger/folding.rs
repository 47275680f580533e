//! The folder's two threads. One folds all the time and lets everybody else go first: while messages come faster than the
//! machine can do everything, they are accepted and delivered, and the views follow a moment later. The other one helps, with a
//! full share of the processor, when somebody waits for the views or when they are too far behind.

use super::core::Core;
use super::folder::{Folder, SYNC_EVERY};
use crate::engine::fact::Seq;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The views may be so many facts behind before they get their full share: a few seconds of work.
pub const BEHIND: u64 = 200_000;
/// Views are closed when nothing has happened for so long.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// Pause between small batches: a few larger ones cost less than many small ones.
const BREATHER: Duration = Duration::from_millis(200);
/// Batches between looks at whether the other thread wants to go on.
const BATCHES: usize = 4;

/// What the two threads share.
pub struct Folding {
    core: Arc<Core>,
    folder: Mutex<Folder>,
}

impl Folding {
    pub fn new(core: Arc<Core>, folder: Folder) -> Arc<Self> {
        Arc::new(Self { core, folder: Mutex::new(folder) })
    }

    fn lock(&self) -> MutexGuard<'_, Folder> {
        // After a panic the log still says all; what was half done in a view is not committed.
        self.folder.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs until the ledger closes, then makes the views durable.
    pub fn in_background(&self) {
        let core = &self.core;
        loop {
            let began = Instant::now();
            let (came_on, at, resting) = {
                let mut folder = self.lock();
                (folder.round(BATCHES), folder.at, folder.is_resting())
            };
            // All commits come before this flag: whoever sets it has joined the writer.
            let paused = core.folded.paused.load(Ordering::Acquire);
            if core.closing.load(Ordering::Acquire) && (came_on.is_err() || paused || core.committed() <= at) {
                break;
            }
            match came_on {
                Err(_) => std::thread::sleep(AFTER_FAILURE),
                Ok(0) => {
                    let began = Instant::now();
                    core.folder_bell.wait(if resting { SYNC_EVERY } else { IDLE });
                    if began.elapsed() >= IDLE {
                        self.lock().rest();
                    }
                }
                Ok(_) if core.folded.helped.load(Ordering::Acquire) || began.elapsed() < BREATHER => {
                    std::thread::sleep(BREATHER);
                }
                Ok(_) => {}
            }
        }
        self.lock().sync();
    }

    /// Runs until the ledger closes; rung by [`Core::help_bell`].
    pub fn when_needed(&self) {
        let core = &self.core;
        while !core.closing.load(Ordering::Acquire) {
            core.help_bell.wait(SYNC_EVERY);
            let wanted = core.folded.wanted();
            if core.folded.get() < wanted {
                core.folded.helped.store(true, Ordering::Release);
                self.help(wanted);
                core.folded.helped.store(false, Ordering::Release);
            }
        }
    }

    fn help(&self, wanted: Seq) {
        while self.core.folded.get() < wanted && !self.core.closing.load(Ordering::Acquire) {
            // A failure was told, and the other thread tries again.
            if !matches!(self.lock().round(1), Ok(1..)) {
                return;
            }
        }
    }
}
