//! Facts in the order of the log, for whoever follows it: only what is committed, a bounded batch at a time, read from the
//! segments, so that following costs the writer nothing.

use super::batch;
use super::codec::{self, kind};
use super::core::Core;
use super::sql::FileError;
use crate::engine::fact::{Fact, Seq};
use std::sync::{Arc, RwLock};

/// Bytes of facts in one batch, about.
const BYTES: usize = 1 << 20;
/// Segments looked at in one call: some hold nothing but pieces of bodies.
const SEGMENTS: usize = 64;

/// Called on the writer's thread after each commit; does no more than wake somebody.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Who is woken: few, and from the start on.
#[derive(Default)]
pub struct Follower(RwLock<Vec<Wake>>);

impl Follower {
    /// One more.
    pub fn add(&self, wake: Wake) {
        self.0.write().unwrap_or_else(|e| e.into_inner()).push(wake);
    }

    /// Something was committed.
    pub fn wake(&self) {
        self.0.read().unwrap_or_else(|e| e.into_inner()).iter().for_each(|wake| wake());
    }
}

/// A batch of facts.
#[derive(Debug)]
pub struct Followed {
    /// With their numbers, rising. Without `Carried` facts, which tell nothing new, and kinds of later releases.
    pub facts: Vec<(Seq, Fact)>,
    /// Numbers from here on are complete. One more than what was asked for, unless retention has removed what followed, or a
    /// file is damaged.
    pub from: Seq,
    /// Everything up to here has been looked at. Pieces of bodies have numbers too, and no facts.
    pub at: Seq,
}

/// The committed facts after `after`, at most so many. Blocks: reads from disk.
pub fn after(core: &Core, after: Seq, most: usize) -> Result<Followed, FileError> {
    let mut followed = Followed { facts: Vec::new(), from: after + 1, at: after };
    for _ in 0..SEGMENTS {
        // Asked in this order: what is committed, then where it lies.
        let committed = core.committed();
        if followed.at >= committed {
            break;
        }
        let Some((segment, closed)) = core.catalog.beyond(followed.at) else { break };
        let until = if closed { segment.end().min(committed) } else { committed };
        if segment.first > followed.at + 1 {
            followed.from = segment.first;
            followed.at = segment.first - 1;
        }
        let read = core.with_log(&segment, |conn| batch::read(conn, followed.at, until, most, BYTES));
        let raw = match read {
            Ok(raw) => raw,
            // Retention was quicker; the next one has another segment.
            Err(_) if segment.is_gone() => continue,
            Err(error @ FileError::Damaged(_)) if closed => {
                super::damage::noticed(core, segment.first, &error);
                (followed.at, followed.from) = (until, until + 1);
                continue;
            }
            Err(error) => return Err(error),
        };
        let bytes: usize = raw.iter().map(|f| f.data.len()).sum();
        let whole = raw.len() < most && bytes < BYTES;
        followed.at = if whole { until } else { raw.last().map_or(until, |f| f.seq) };
        for fact in raw.into_iter().filter(|f| f.kind != kind::CARRIED) {
            let Some(what) = codec::what(&fact.data) else { continue };
            let home = if fact.home == 0 { 0 } else { core.homes.now(fact.home) };
            followed.facts.push((fact.seq, Fact { id: fact.id, home, at: fact.at, what }));
        }
        if !followed.facts.is_empty() || !whole {
            break;
        }
    }
    Ok(followed)
}
