//! Deliveries that wait in the ledger instead of in a queue of the broker: by route the numbers of their messages, in memory, from own
//! facts and applied ones alike. What the views say of routes makes it again at a start.

use super::catalog::Segment;
use super::core::Core;
use super::sql::FileError;
use super::view;
use super::view_row::{ViewRow, flag};
use super::{carry, damage, read, recover};
use crate::engine::fact::{Accepted, RouteState, Seq, What};
use crate::engine::ports::LogError;
use crate::engine::replica::{HeldCount, HeldDelivery, WantedHeld};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long the views may take to show what was written so far.
const PATIENCE: Duration = Duration::from_secs(10);
/// Looks at a message that retention carries on at the same time.
const LOOKS: u32 = 50;

/// Of one route, by what they wait for.
#[derive(Default)]
struct Deliveries {
    /// Their turn.
    waiting: BTreeSet<Seq>,
    /// An operator.
    parked: BTreeSet<Seq>,
}

/// By channel and route.
type Routes = HashMap<String, HashMap<String, Deliveries>>;

/// See the module.
#[derive(Default)]
pub struct Held(Mutex<Routes>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes in rows as they are now, and which numbers (former, present) have changed.
    pub fn note<'a>(&self, rows: impl Iterator<Item = &'a ViewRow>, moved: &[(Seq, Seq)]) {
        for row in rows.filter(|row| row.fold.accepted && row.fold.is_held()) {
            let mut routes = self.lock();
            let channel = routes.entry(row.head.channel.clone()).or_default();
            for route in row.fold.routes.iter().filter(|r| r.progress.held) {
                let known = channel.entry(route.name.clone()).or_default();
                let former = moved.iter().filter(|(_, now)| *now == row.seq).map(|(from, _)| *from);
                for seq in former.chain([row.seq]) {
                    known.waiting.remove(&seq);
                    known.parked.remove(&seq);
                }
                match route.progress.state {
                    RouteState::Waiting => drop(known.waiting.insert(row.seq)),
                    RouteState::Parked => drop(known.parked.insert(row.seq)),
                    RouteState::Delivered | RouteState::Failed => {}
                }
            }
            // Routes come and go.
            channel.retain(|_, known| !known.waiting.is_empty() || !known.parked.is_empty());
            if channel.is_empty() {
                routes.remove(&row.head.channel);
            }
        }
    }

    /// How many wait, by route.
    pub fn counts(&self) -> Vec<HeldCount> {
        let routes = self.lock();
        let each = routes.iter().flat_map(|(channel, all)| all.iter().map(move |(route, known)| (channel, route, known)));
        each.map(|(channel, route, known)| HeldCount {
            channel: channel.clone(),
            route: route.clone(),
            waiting: known.waiting.len() as u64,
        })
        .collect()
    }

    /// How many wait on a route.
    pub fn on(&self, channel: &str, route: &str) -> u64 {
        self.lock().get(channel).and_then(|all| all.get(route)).map_or(0, |known| known.waiting.len() as u64)
    }

    fn numbers(&self, channel: &str, route: &str) -> Vec<Seq> {
        let routes = self.lock();
        let known = routes.get(channel).and_then(|all| all.get(route));
        known.map(|known| known.waiting.union(&known.parked).copied().collect()).unwrap_or_default()
    }

    /// What no log holds any more.
    fn forget(&self, channel: &str, route: &str, seq: Seq) {
        if let Some(known) = self.lock().get_mut(channel).and_then(|all| all.get_mut(route)) {
            known.waiting.remove(&seq);
            known.parked.remove(&seq);
        }
    }
}

/// At start, when the views are up to date: finds all that is held.
pub fn restore(core: &Core) -> Result<(), FileError> {
    core.held.lock().clear();
    for segment in core.catalog.all().into_iter().filter(|s| s.view.exists()) {
        let rows = match core.with_view(&segment, |conn| {
            let columns = view::COLUMNS;
            let mut open = conn.prepare(&format!("SELECT {columns} FROM tx WHERE open = 1 AND flags & ?1 <> 0"))?;
            let rows = open.query_map([flag::HELD], |r| view::row(conn, r))?;
            Ok(rows.collect::<Result<Vec<ViewRow>, _>>()?)
        }) {
            Ok(rows) => rows,
            // It is made again, which notes what it finds.
            Err(FileError::Damaged(error)) => {
                damage::view(core, segment.first, &error.0);
                continue;
            }
            Err(error) => return Err(error),
        };
        core.held.note(rows.iter().filter(|row| core.homes.now(row.seq) == row.seq), &[]);
    }
    Ok(())
}

/// The held deliveries of a route that are wanted, in the order in which they were accepted, with everything that was written so far. Blocks.
pub fn list(core: &Core, channel: &str, route: &str, wanted: &WantedHeld) -> Result<Vec<HeldDelivery>, LogError> {
    carry::pass_through(core);
    let committed = core.committed();
    core.hurry_views(committed);
    if !core.folded.wait_for(committed, Instant::now() + PATIENCE) {
        return Err(LogError::Busy);
    }
    let mut found = Vec::new();
    for seq in core.held.numbers(channel, route) {
        match one(core, seq, route).map_err(|e| LogError::Failed(e.to_string()))? {
            Looked::Held(first, accepted, delivery) if wanted(&accepted, delivery.progress) => found.push((first, delivery)),
            Looked::Held(..) => {}
            Looked::Over => core.held.forget(channel, route, seq),
            Looked::Unreadable => {}
            Looked::Moving => return Err(LogError::Busy),
        }
    }
    found.sort_unstable_by_key(|(first, _)| *first);
    Ok(found.into_iter().map(|(_, delivery)| delivery).collect())
}

/// What came of looking for one.
enum Looked {
    /// Its first number, its accept fact, and what is asked for.
    Held(Seq, Box<Accepted>, HeldDelivery),
    /// It is finished, or no longer stored.
    Over,
    /// Its accept fact is damaged, which was told.
    Unreadable,
    /// Retention carries it on just now.
    Moving,
}

fn one(core: &Core, seq: Seq, route: &str) -> Result<Looked, FileError> {
    for _ in 0..LOOKS {
        let now = core.homes.now(seq);
        let Some(segment) = core.catalog.holding(now) else { return Ok(Looked::Over) };
        match look(core, &segment, now, route) {
            Ok(Some(looked)) => return Ok(looked),
            Ok(None) if core.homes.now(now) == now && !segment.is_gone() => {
                core.problems.add("held", format!("a delivery that waits under number {now} cannot be read from the ledger"));
                return Ok(Looked::Unreadable);
            }
            Err(_) if segment.is_gone() => {}
            Err(error @ FileError::Damaged(_)) => {
                damage::noticed(core, now, &error);
                return Ok(Looked::Unreadable);
            }
            Err(error) => return Err(error),
            Ok(None) => {}
        }
        std::thread::sleep(Duration::from_millis(4));
    }
    Ok(Looked::Moving)
}

/// `None`: row or fact is not under this number (any more).
fn look(core: &Core, segment: &Segment, seq: Seq, route: &str) -> Result<Option<Looked>, FileError> {
    let Some(row) = recover::row(core, segment, seq)? else { return Ok(None) };
    let known = row.fold.routes.iter().find(|r| r.name == route).map(|r| r.progress);
    let Some(progress) = known.filter(|p| p.held && !p.state.is_finished()) else { return Ok(Some(Looked::Over)) };
    let (first, accepted) = match read::fact(core, seq)?.map(|fact| fact.what) {
        Some(What::Accepted(accepted)) => (seq, accepted),
        Some(What::Carried { accepted, first, from, .. }) => (if first == 0 { from } else { first }, accepted),
        _ => return Ok(None),
    };
    let envelope = &accepted.envelope;
    let delivery = HeldDelivery { seq, id: row.id, keys: envelope.keys.to_vec(), received_ms: envelope.received_ms, progress };
    Ok(Some(Looked::Held(first, accepted, delivery)))
}
