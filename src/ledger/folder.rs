//! The folder: reads the log and keeps the views, on the threads of [`super::folding`].
//!
//! It reads in batches with short read transactions and folds in memory first, so that a message accepted and delivered within
//! one batch is one row write. Order of writing: rows in older segments' views first, then those of the log's own
//! segment together with the place reached. After a crash the last batch may be folded again; folding twice is harmless.

use super::batch::{self, Former, RawFact};
use super::catalog::{Segment, remove_files, sync_dir, with_companions};
use super::core::Core;
use super::sql::{FileError, io_error};
use super::view::View;
use crate::engine::fact::Seq;
use crate::telemetry::ledger as event;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Facts per batch …
const BATCH_FACTS: usize = 4096;
/// … and bytes.
const BATCH_BYTES: usize = 2 << 20;
/// Views kept open for writing.
const VIEWS_OPEN: usize = 4;
/// Views are made durable after so many facts …
const SYNC_FACTS: u64 = 100_000;
/// … or so much time.
pub const SYNC_EVERY: Duration = Duration::from_secs(60);

/// Folding failed, which was told.
pub struct Failed;

/// The folder's state.
pub struct Folder {
    pub core: Arc<Core>,
    /// Facts up to here are folded.
    pub at: Seq,
    boot: Option<String>,
    /// The segment whose log was read last.
    reading: Option<Arc<Segment>>,
    /// Least recently used first.
    views: VecDeque<View>,
    unsynced: u64,
    synced_at: Instant,
}

impl Folder {
    pub fn new(core: Arc<Core>, at: Seq, boot: Option<String>) -> Self {
        core.folded.set(at);
        Self { core, at, boot, reading: None, views: VecDeque::new(), unsynced: 0, synced_at: Instant::now() }
    }

    /// One round: what is asked for, then up to so many batches. Gives by how many numbers the views came on (pieces of bodies have
    /// numbers too, and segments may hold nothing else); a failure is told.
    pub fn round(&mut self, batches: usize) -> Result<u64, Failed> {
        self.rebuild_asked();
        let before = self.at;
        let catalog = &self.core.catalog;
        self.views.retain(|v| catalog.at(v.first).is_some());
        let came_on = self.complete_asked().and_then(|()| self.catch_up(batches)).map(|()| self.at - before).map_err(|e| {
            event::UpkeepFailed { what: "views", error: &e.to_string() }.emit();
            // What was half done is done again from the log.
            self.views.clear();
            Failed
        });
        if self.sync_is_due() {
            self.sync();
        }
        came_on
    }

    /// Nothing happens: be durable, and hold no memory.
    pub fn rest(&mut self) {
        if !self.views.is_empty() {
            self.sync();
            self.views.clear();
        }
    }

    pub fn is_resting(&self) -> bool {
        self.views.is_empty()
    }

    /// Folds what there is, at most so many batches.
    pub fn catch_up(&mut self, batches: usize) -> Result<(), FileError> {
        for _ in 0..batches {
            if self.core.folded.paused.load(Ordering::Acquire) {
                break;
            }
            // Asked in this order: what is committed, whether the segment is complete, what is in it.
            let committed = self.core.committed();
            let Some((segment, closed)) = self.core.catalog.beyond(self.at) else { break };
            // Its last group may not be durable yet.
            let complete = closed && segment.end() <= committed;
            if let Some(before) = self.reading.replace(segment.clone()).filter(|s| s.first < segment.first && !s.is_gone()) {
                self.complete(&before)?;
            }
            let facts = match self.core.with_log(&segment, |conn| batch::read(conn, self.at, committed, BATCH_FACTS, BATCH_BYTES))
            {
                Ok(facts) => facts,
                Err(FileError::Damaged(d)) if complete => {
                    super::damage::quarantine(&self.core, &segment, &d.0);
                    continue;
                }
                Err(e) => return Err(e),
            };
            let count = facts.len() as u64;
            if let Some(last) = facts.last().map(|f| f.seq) {
                self.fold(&segment, facts, last)?;
                self.at = last;
                self.unsynced += count;
                event::Folded { facts: count, lag: committed.saturating_sub(last) }.emit();
            }
            if self.sync_is_due() {
                self.sync();
            }
            if count == 0 {
                // Pieces of bodies have numbers too, and no facts.
                self.at = self.at.max(if complete { segment.end() } else { committed });
            }
            if !segment.view.exists() {
                // A segment may hold no fact at all; its view says so.
                self.view(segment.first)?;
            }
            if count == 0 && !complete {
                self.core.folded.set(self.at);
                event::Folded { facts: 0, lag: committed.saturating_sub(self.at) }.emit();
                break;
            }
            self.core.folded.set(self.at);
        }
        Ok(())
    }

    /// One batch of facts of one log.
    fn fold(&mut self, segment: &Segment, facts: Vec<RawFact>, last: Seq) -> Result<(), FileError> {
        let mut moved_away = Vec::new();
        // While rows move from one view to another, a search that goes through both may see neither.
        let core = self.core.clone();
        let _moving = facts.iter().any(|f| f.carried_from().is_some()).then(|| core.moves.begin());
        let mut parts = batch::by_segment(&self.core, segment, &facts);
        // The log's own segment last: with it goes the place reached.
        let own = parts.remove(&segment.first).unwrap_or_default();
        for (first, part) in parts {
            self.fold_part(first, &facts, &part, None, &mut moved_away)?;
        }
        self.fold_part(segment.first, &facts, &own, Some(last), &mut moved_away)?;
        for (first, rows) in batch::group(&self.core, moved_away) {
            let removed = self.view(first)?.remove(&rows);
            self.noting(first, removed)?;
        }
        Ok(())
    }

    fn fold_part(
        &mut self,
        first: Seq,
        facts: &[RawFact],
        part: &[usize],
        folded: Option<Seq>,
        moved_away: &mut Vec<Seq>,
    ) -> Result<(), FileError> {
        let former = self.former(facts, part, moved_away)?;
        let (core, boot) = (self.core.clone(), self.boot.clone());
        let view = self.view(first)?;
        let written = batch::fold(&core, view, facts, part, former)
            .and_then(|(rows, extras)| view.write(&rows, extras, folded, boot.as_deref()));
        self.noting(first, written)
    }

    /// What is known of carried transactions under their former number.
    fn former(&mut self, facts: &[RawFact], part: &[usize], moved_away: &mut Vec<Seq>) -> Result<Vec<Former>, FileError> {
        let mut former = Vec::new();
        for fact in part.iter().map(|i| &facts[*i]) {
            let Some(from) = fact.carried_from() else { continue };
            let row = match self.core.catalog.holding(from) {
                Some(segment) if segment.view.exists() => {
                    let row = self.view(segment.first)?.row(from);
                    self.noting(segment.first, row)?
                }
                _ => None,
            };
            self.core.homes.moved(from, fact.seq);
            moved_away.push(from);
            former.push(Former { now: fact.seq, from, row });
        }
        Ok(former)
    }

    /// A view, open for writing.
    fn view(&mut self, first: Seq) -> Result<&mut View, FileError> {
        if let Some(at) = self.views.iter().position(|v| v.first == first) {
            if let Some(view) = self.views.remove(at) {
                self.views.push_back(view);
            }
        } else {
            if self.views.len() >= VIEWS_OPEN
                && let Some(mut oldest) = self.views.pop_front()
            {
                oldest.sync()?;
            }
            let segment = Segment::new(&self.core.dir, first);
            let view = match View::open(&segment.view, first) {
                Err(FileError::Damaged(d)) => {
                    super::damage::view(&self.core, first, &d.0);
                    return Err(FileError::Damaged(d));
                }
                other => other?,
            };
            self.views.push_back(view);
        }
        // Just pushed.
        self.views.back_mut().ok_or_else(|| super::sql::Damage("no view is open".into()).into())
    }

    /// All facts of a closed segment are in its view: make it durable and merge its keys into one file.
    fn complete(&mut self, segment: &Arc<Segment>) -> Result<(), FileError> {
        if segment.filter.exists() {
            return Ok(());
        }
        let view = self.view(segment.first)?;
        let built = view.sync().and_then(|()| super::keys::build(&view.conn, &segment.filter, segment.first));
        self.noting(segment.first, built)
    }

    fn sync_is_due(&self) -> bool {
        let limit = self.core.wal_limit();
        self.unsynced >= SYNC_FACTS
            || (self.unsynced > 0 && self.synced_at.elapsed() >= SYNC_EVERY)
            || self.views.iter().any(|v| v.dirty && super::open::wal_size(&Segment::new(&self.core.dir, v.first).view) > limit)
    }

    /// Makes all views durable, then notes how far they go.
    pub fn sync(&mut self) {
        let result = self.views.iter_mut().try_for_each(View::sync).map_err(|e| e.to_string()).and_then(|()| {
            let (folded, high) = (self.at, self.core.queue.next_seq());
            let noted = self.core.note(|marks| (marks.folded, marks.high) = (folded, high));
            noted.map_err(|e| e.to_string())
        });
        if let Err(e) = result {
            event::UpkeepFailed { what: "making views durable", error: &e }.emit();
        }
        self.unsynced = 0;
        self.synced_at = Instant::now();
    }

    fn rebuild_asked(&mut self) {
        if let Err(e) = self.mend() {
            event::UpkeepFailed { what: "making a view again", error: &e.to_string() }.emit();
            self.core.folder_bell.wait(Duration::from_secs(1));
        }
    }

    /// Makes the views again that were found damaged; were there any?
    pub fn mend(&mut self) -> Result<bool, FileError> {
        let mut any = false;
        loop {
            // It stays on the list until it is done, so that nobody asks again.
            let asked = self.core.rebuild.lock().unwrap_or_else(|e| e.into_inner()).first().copied();
            let Some(first) = asked else { return Ok(any) };
            self.rebuild(first)?;
            self.core.rebuild.lock().unwrap_or_else(|e| e.into_inner()).retain(|f| *f != first);
            any = true;
        }
    }

    /// Passes a result on; a view that turned out to be damaged is noted, to be made again.
    fn noting<T>(&mut self, first: Seq, result: Result<T, FileError>) -> Result<T, FileError> {
        if let Err(FileError::Damaged(d)) = &result {
            super::damage::view(&self.core, first, &d.0);
            self.views.retain(|v| v.first != first);
        }
        result
    }

    /// Files of keys that were found damaged.
    fn complete_asked(&mut self) -> Result<(), FileError> {
        let asked = std::mem::take(&mut *self.core.incomplete.lock().unwrap_or_else(|e| e.into_inner()));
        asked
            .into_iter()
            .filter_map(|first| self.core.catalog.at(first))
            .collect::<Vec<_>>()
            .iter()
            .try_for_each(|s| self.complete(s))
    }

    /// Makes a segment's view again from the logs: its own, and what later ones say of its transactions. Searches see it when
    /// it is done.
    pub fn rebuild(&mut self, first: Seq) -> Result<(), FileError> {
        let began = Instant::now();
        let Some(segment) = self.core.catalog.at(first) else { return Ok(()) };
        self.views.retain(|v| v.first != first);
        self.core.pool.forget(&segment.view);
        let new = segment.view.with_extension("new");
        let mut files = with_companions(&segment.view);
        files.extend(with_companions(&new));
        files.push(segment.filter.clone());
        remove_files(&files).map_err(|e| io_error(&e))?;
        // Facts may name a transaction by the number that it had before it was carried here.
        for (from, now) in self.core.with_log(&segment, batch::carried)? {
            self.core.homes.moved(from, now);
        }
        let mut view = View::open(&new, first)?;
        let mut count = 0;
        for source in self.core.catalog.all().iter().filter(|s| s.first >= first) {
            count += self.refold(source, &segment, &mut view)?;
        }
        view.sync()?;
        view.conn.close().map_err(|(_, e)| e)?;
        std::fs::rename(&new, &segment.view).and_then(|()| sync_dir(&self.core.dir)).map_err(|e| io_error(&e))?;
        if self.core.catalog.newest().is_some_and(|newest| newest.first != first) && segment.end() <= self.at {
            self.complete(&segment)?;
        }
        event::ViewRebuilt { first, facts: count, took: began.elapsed() }.emit();
        Ok(())
    }

    /// Folds what one log says, as far as it is folded already, of the transactions of `target`.
    fn refold(&mut self, source: &Segment, target: &Segment, view: &mut View) -> Result<u64, FileError> {
        let own = source.first == target.first;
        let mut at = source.first - 1;
        let mut count = 0;
        loop {
            let facts = self.core.with_log(source, |conn| batch::read(conn, at, self.at, BATCH_FACTS, BATCH_BYTES))?;
            let Some(last) = facts.last().map(|f| f.seq) else { return Ok(count) };
            let homes = &self.core.homes;
            let here = |f: &RawFact| (target.first..=target.end()).contains(&homes.now(f.home()));
            let part: Vec<usize> = (0..facts.len()).filter(|i| here(&facts[*i])).collect();
            if own || !part.is_empty() {
                let former = self.former(&facts, &part, &mut Vec::new())?;
                let (rows, extras) = batch::fold(&self.core, view, &facts, &part, former)?;
                view.write(&rows, extras, own.then_some(last), self.boot.as_deref())?;
            }
            count += part.len() as u64;
            at = last;
        }
    }
}
