//! What this log offers to a joiner of the cluster: its closed files, which never change, byte for byte.
//!
//! A closed log whose write-ahead log is empty is complete in its file, so a plain copy of that is a sound database. Retention need not
//! wait for a copy: what is open stays readable, and who finds a file gone asks anew what there is.

use super::carry::pass_through;
use super::catalog::Segment;
use super::core::Core;
use super::damage;
use super::open::wal_size;
use super::sql::{FileError, TABLES_VERSION, last_seq};
use super::{Ledger, lock};
use crate::engine::fact::Seq;
use crate::engine::replica::Origin;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Version of this hand-over; another one is refused.
pub const FORM: u32 = 1;
/// How long closing what is written may take; what is not closed then is not offered.
const CLOSING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);
/// Between two closings for the sake of joiners.
const ROLLS: Duration = Duration::from_secs(2);

/// What a log offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// See [`FORM`].
    pub form: u32,
    /// Release of hie that offers.
    pub release: String,
    /// Version of the files' tables.
    pub tables: i64,
    /// Number of the log among those of the cluster.
    pub origin: Origin,
    /// Logs, oldest first, up to the first that is not closed.
    pub logs: Vec<Offered>,
    /// Short-lived bodies of messages in them that are not finished.
    pub transients: Vec<Offered>,
}

/// A file that is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offered {
    /// The first number in it.
    pub first: Seq,
    /// No number above this one is in it; of a log.
    #[serde(default)]
    pub end: Seq,
    /// Its length.
    pub bytes: u64,
}

impl Offered {
    /// Name of the file of a log.
    pub fn log(&self) -> String {
        format!("log-{:020}.db", self.first)
    }

    /// Name of the file of short-lived bodies.
    pub fn transient(&self) -> String {
        format!("transient-{:020}.db", self.first)
    }
}

impl Offer {
    /// Length of all files.
    pub fn bytes(&self) -> u64 {
        self.logs.iter().chain(&self.transients).map(|f| f.bytes).sum()
    }

    /// The highest number in it.
    pub fn end(&self) -> Seq {
        self.logs.last().map_or(0, |log| log.end)
    }
}

impl Ledger {
    /// What a joiner may copy. `roll`: the segment being written is closed first, so that all that is committed now is among it. Blocks,
    /// some seconds at most.
    pub fn offer(&self, roll: bool) -> Result<Offer, FileError> {
        let core = &self.core;
        let until = if roll { Some(Instant::now() + CLOSING) } else { None };
        if roll {
            close_what_is_written(core, &mut lock(&self.rolled))?;
        }
        let newest = core.catalog.newest().map_or(0, |s| s.first);
        let closed = |s: &Segment| s.first == newest || (s.is_sealed() && wal_size(&s.log) == 0);
        while until.is_some_and(|until| Instant::now() < until) && !core.catalog.all().iter().all(|s| closed(s)) {
            core.keeper_bell.ring();
            std::thread::sleep(LOOK);
        }
        let length = |path: &std::path::Path| path.metadata().ok().map(|m| m.len());
        let mut offer = Offer {
            form: FORM,
            release: env!("CARGO_PKG_VERSION").into(),
            tables: TABLES_VERSION,
            origin: core.origin,
            logs: Vec::new(),
            transients: Vec::new(),
        };
        for segment in core.catalog.all() {
            if segment.first == newest || !closed(&segment) {
                break;
            }
            let Some(bytes) = length(&segment.log) else { continue };
            offer.logs.push(Offered { first: segment.first, end: segment.end(), bytes });
        }
        let end = offer.end();
        for (first, path) in core.transients.closed().into_iter().filter(|(first, path)| *first <= end && wal_size(path) == 0) {
            offer.transients.extend(length(&path).map(|bytes| Offered { first, end: 0, bytes }));
        }
        Ok(offer)
    }

    /// A file that was offered, by name; an error of the kind `NotFound` when it is there no more.
    pub fn offered(&self, name: &str) -> io::Result<File> {
        let core = &self.core;
        let newest = core.catalog.newest().map_or(0, |s| s.first);
        let logs = core.catalog.all().into_iter().filter(|s| s.first != newest && s.is_sealed()).map(|s| s.log.clone());
        let transients = core.transients.closed().into_iter().map(|(_, path)| path);
        let path = logs.chain(transients).find(|path| damage::name(path) == name && wal_size(path) == 0);
        // Closing it lets go of SQLite's locks on this file in this process. On a closed log they protect nothing: nobody writes it.
        File::open(path.ok_or(io::ErrorKind::NotFound)?)
    }
}

/// Lets the writer begin a new segment, unless the present one is empty or as good as new.
fn close_what_is_written(core: &Core, rolled: &mut Option<Instant>) -> Result<(), FileError> {
    let Some(active) = core.catalog.newest() else { return Ok(()) };
    let holds = core.with_log(&active, |conn| Ok(last_seq(conn, "facts")?.max(last_seq(conn, "bodies")?)))?;
    if holds == 0 || rolled.is_some_and(|at| at.elapsed() < ROLLS) {
        return Ok(());
    }
    core.roll.store(true, Ordering::Release);
    pass_through(core);
    core.roll.store(false, Ordering::Release);
    *rolled = Some(Instant::now());
    Ok(())
}
