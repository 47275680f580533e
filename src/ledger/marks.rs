//! The ledger's own small notes, in one file that is replaced atomically: how far the views are durable, and the
//! highest number known, so that numbers rise even when the newest log is lost, and which logs there are, so that one that vanishes
//! is missed.

use super::catalog::sync_dir;
use crate::engine::fact::Seq;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

const NAME: &str = "marks.json";

/// The notes as they are written: with the release that did, for one that cannot read the logs.
#[derive(Serialize)]
struct Written<'a> {
    release: &'static str,
    #[serde(flatten)]
    marks: &'a Marks,
}

/// Which release wrote the notes of a ledger last; `None` when they do not say.
pub fn release(dir: &Path) -> Option<String> {
    let notes: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join(NAME)).ok()?).ok()?;
    Some(notes.get("release")?.as_str()?.to_owned())
}

/// The notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Marks {
    /// Every fact up to this number is in views that are on stable storage.
    pub folded: Seq,
    /// No number above this one was used when the notes were made.
    pub high: Seq,
    /// Closed logs: first number to length and time of change (Unix nanoseconds).
    pub closed: BTreeMap<Seq, (u64, i64)>,
    /// Logs that were begun and are not closed: first numbers.
    pub open: BTreeSet<Seq>,
    /// Everything that this log wrote itself, up to here, is with the other nodes.
    pub shipped: Seq,
    /// Everything up to here was taken over from another log, as a whole; own records are above.
    pub adopted: Seq,
    /// What was taken in from others from this log on is to be read again: one was damaged or lost.
    pub reread: Option<Seq>,
    /// Logs that are missing, for which that was done.
    pub missed: BTreeSet<Seq>,
}

impl Marks {
    /// Reads the notes; missing or unreadable ones are as new: the views are then made from the logs.
    pub fn load(dir: &Path) -> Self {
        std::fs::read(dir.join(NAME)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// A log goes, and it should: it is not missed. To be durable before the log is gone.
    pub fn forget(&mut self, first: Seq) {
        self.closed.remove(&first);
        self.open.remove(&first);
    }

    /// A log is lost, and with it what it had taken in from others.
    pub fn lost(&mut self, first: Seq) {
        self.reread = Some(self.reread.map_or(first, |known| known.min(first)));
    }

    /// Logs that should be there and are not among `there`: first number, and length where it is known. Rising.
    pub fn missing(&self, there: &[Seq]) -> BTreeMap<Seq, Option<u64>> {
        let closed = self.closed.iter().map(|(first, (length, _))| (*first, Some(*length)));
        let known = self.open.iter().map(|first| (*first, None)).chain(closed);
        known.filter(|(first, _)| there.binary_search(first).is_err()).collect()
    }

    /// Replaces the notes, durably.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(format!("{NAME}.new"));
        let mut file = std::fs::File::create(&new)?;
        let written = Written { release: env!("CARGO_PKG_VERSION"), marks: self };
        file.write_all(&serde_json::to_vec(&written)?)?;
        file.sync_all()?;
        std::fs::rename(&new, dir.join(NAME))?;
        sync_dir(dir)
    }
}
