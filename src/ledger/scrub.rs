//! Looking for damage inside closed logs. A closed log never changes, so one whose length and time of change are as they were when it
//! was closed is not read again; any other is checked page by page.

use super::carry;
use super::catalog::Segment;
use super::core::Core;
use super::damage;
use super::sql::{Damage, FileError, Form, open_reader};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time at start for checking; what is left then is checked while the node runs.
const AT_START: Duration = Duration::from_secs(3);

/// Length and time of change (Unix nanoseconds) of a file.
pub fn stamp(path: &Path) -> Option<(u64, i64)> {
    let file = path.metadata().ok()?;
    let changed = file.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((file.len(), i64::try_from(changed.as_nanos()).ok()?))
}

/// Notes what a log looks like now that it is closed, or found sound.
pub fn sound(core: &Core, segment: &Segment) -> std::io::Result<()> {
    match stamp(&segment.log) {
        Some(stamp) => core.note(|marks| {
            marks.closed.insert(segment.first, stamp);
            marks.open.remove(&segment.first);
        }),
        None => Ok(()),
    }
}

/// Checks a whole log.
fn check(log: &Path) -> Result<(), FileError> {
    let conn = open_reader(log, Form::Log, 512)?;
    let verdict: String = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(Damage("its pages are inconsistent".into()).into()) }
}

/// Closed logs that have changed since they were closed. Those for which there is time are checked now, and set aside when
/// damaged; gives the others.
pub fn at_start(core: &Core) -> Vec<Arc<Segment>> {
    let known = core.marks().closed;
    let until = Instant::now() + AT_START;
    let mut later = Vec::new();
    for segment in core.catalog.all().into_iter().filter(|s| s.is_sealed()) {
        if known.get(&segment.first).is_some_and(|k| Some(*k) == stamp(&segment.log)) {
            continue;
        }
        if Instant::now() >= until {
            later.push(segment);
            continue;
        }
        match check(&segment.log) {
            // Not noted, it is only checked again.
            Ok(()) => drop(sound(core, &segment)),
            Err(e) => damage::quarantine(core, &segment, &e.to_string()),
        }
    }
    later
}

/// Checks while the node runs. What is unfinished in a damaged log is saved first, as far as it can be read.
pub fn while_running(core: &Core, segments: Vec<Arc<Segment>>) {
    for segment in segments {
        if core.closing.load(Ordering::Acquire) {
            return;
        }
        let checked = check(&segment.log);
        // Retention may have removed it meanwhile: noted then, it would be missed at the next start.
        let _alone = core.moving.lock().unwrap_or_else(|e| e.into_inner());
        match checked {
            _ if segment.is_gone() => {}
            // Not noted, it is only checked again.
            Ok(()) => drop(sound(core, &segment)),
            Err(e) => {
                let _ = carry::carry(core, &segment, true);
                damage::quarantine(core, &segment, &e.to_string());
            }
        }
    }
}
