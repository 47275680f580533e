//! What happens when a file turns out to be damaged: logs are set aside, views are made again, and it is said.

use super::catalog::{Segment, sync_dir};
use super::core::Core;
use super::problems::Problems;
use super::sql::FileError;
use crate::engine::fact::Seq;
use crate::telemetry::ledger as event;
use std::path::{Path, PathBuf};

/// Folder under the ledger's for files that cannot be used. Nothing is ever deleted from it.
pub const QUARANTINE: &str = "quarantine";

/// Short name of a file, for messages.
pub fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// Moves a segment's files aside. Its transactions are not found any more; all others are.
pub fn quarantine(core: &Core, segment: &Segment, error: &str) {
    core.catalog.remove(segment.first);
    segment.set_gone();
    core.pool.forget(&segment.log);
    core.pool.forget(&segment.view);
    // Not noted, the next start tells of it once more.
    let _ = core.note(|marks| {
        marks.forget(segment.first);
        marks.lost(segment.first);
    });
    core.shipping.gone(core, segment);
    let moved = set_aside(&core.dir, &segment.files());
    say(core, &segment.log, error, moved);
}

/// A log that the notes name is not in the folder, and nobody here removed it: what was in it is not found any more. Told at every
/// start until it is back, or retention has removed a younger one.
pub fn missing(problems: &Problems, log: &Path) {
    let file = name(log);
    let action = "its transactions are not found, and what waited in it is not delivered; all else is in use: stop the node, \
                  restore the file from a backup into the ledger's folder, start the node";
    event::DamageFound { file: &file, error: "the file is missing", action }.emit();
    problems.add(&file, format!("missing: the file is gone; {action}"));
}

/// Moves files into the quarantine folder.
pub fn set_aside(dir: &Path, files: &[PathBuf]) -> std::io::Result<()> {
    let quarantine = dir.join(QUARANTINE);
    std::fs::create_dir_all(&quarantine)?;
    for file in files.iter().filter(|f| f.exists()) {
        let mut target = quarantine.join(file.file_name().unwrap_or_default());
        // An earlier file of that name stays.
        for n in 1.. {
            if !target.exists() {
                break;
            }
            target = quarantine.join(format!("{}.{n}", name(file)));
        }
        std::fs::rename(file, target)?;
    }
    sync_dir(&quarantine)?;
    sync_dir(dir)
}

fn say(core: &Core, log: &Path, error: &str, moved: std::io::Result<()>) {
    let file = name(log);
    let mut action = match moved {
        Ok(()) => format!("moved to {QUARANTINE}/; restore it from a backup or try `sqlite3 {file} .recover`"),
        Err(e) => format!("could not be moved to {QUARANTINE}/ ({e}); it is not used"),
    };
    if !core.applied.is_empty() {
        action.push_str("; what other nodes wrote in it is read again after a restart");
    }
    event::DamageFound { file: &file, error, action: &action }.emit();
    core.problems.add(&file, format!("damaged: {error}; {action}"));
}

/// A segment's view cannot be used: the folder makes it again.
pub fn view(core: &Core, first: Seq, error: &str) {
    let mut asked = core.rebuild.lock().unwrap_or_else(|e| e.into_inner());
    if !asked.contains(&first) {
        asked.push(first);
        event::DamageFound { file: &format!("view-{first:020}.db"), error, action: "made again from the log" }.emit();
    }
    drop(asked);
    core.folder_bell.ring();
}

/// Reading something under `seq` in the log failed: damage is told, the rest of the file stays in use.
pub fn noticed(core: &Core, seq: Seq, error: &FileError) {
    let file = core.catalog.holding(seq).map_or_else(|| "log".to_owned(), |s| name(&s.log));
    in_part(core, &file, error, "what can be read stays in use; restore the file from a backup");
}

/// As [`noticed`], for short-lived bodies.
pub fn noticed_transient(core: &Core, seq: Seq, error: &FileError) {
    let file = core.transients.path_of(seq).map_or_else(|| "transient".to_owned(), |path| name(&path));
    in_part(core, &file, error, "messages that wait with bodies in it are parked: discard them and have them sent again");
}

/// A line for the first of them; each message that waits in a file finds the same damage again, which is counted only.
fn in_part(core: &Core, file: &str, error: &FileError, action: &str) {
    let FileError::Damaged(error) = error else { return };
    let first = core.problems.add(file, format!("damaged in part: {error}; {action}"));
    event::DamageAgain { damage: event::DamageFound { file, error: &error.0, action }, first }.emit();
}

/// A closed segment's file of keys is damaged: the view has the same keys, less quickly.
pub fn keys(core: &Core, segment: &Segment, error: &FileError) {
    if let FileError::Damaged(error) = error {
        event::DamageFound { file: &name(&segment.filter), error: &error.0, action: "removed; made again from the view" }.emit();
        // The folder makes it again; until then, and when this fails, searches use the view.
        let _ = std::fs::remove_file(&segment.filter);
        core.incomplete.lock().unwrap_or_else(|e| e.into_inner()).push(segment.first);
        core.folder_bell.ring();
    }
}
