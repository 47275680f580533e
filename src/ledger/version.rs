//! Logs of another release: found by reading their headers, before SQLite opens (and so perhaps changes) any of them.

use super::OpenError;
use super::catalog::scan;
use super::marks;
use super::sql::{Form, OLDEST_VERSION, SPARE, TABLES_VERSION};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Versions that this release reads.
const READ: std::ops::RangeInclusive<i64> = OLDEST_VERSION..=TABLES_VERSION;
/// A release has a number of this size; anything else in that place is damage.
const PLAUSIBLE: std::ops::RangeInclusive<i64> = 1..=9_999;

/// Fails when a log or a file of short-lived bodies has tables of another version. Views do not count: they are made
/// again. Nothing is changed; a folder that is not there holds none.
pub fn check(dir: &Path) -> Result<(), OpenError> {
    let failed = |e: std::io::Error| OpenError::Directory { dir: dir.to_owned(), source: e };
    if !dir.exists() {
        return Ok(());
    }
    let mut files: Vec<(PathBuf, Form)> = vec![(dir.join(SPARE), Form::Log)];
    for (prefix, form) in [("log", Form::Log), ("transient", Form::Transient)] {
        let firsts = scan(dir, prefix).map_err(failed)?;
        files.extend(firsts.iter().map(|first| (dir.join(format!("{prefix}-{first:020}.db")), form)));
    }
    for (file, form) in files {
        if let Some(found) = version(&file, form).filter(|v| !READ.contains(v) && PLAUSIBLE.contains(v)) {
            return Err(OpenError::Version { file, found, release: marks::release(dir) });
        }
    }
    Ok(())
}

/// Is this file of an older version than what is written now?
pub fn is_old(file: &Path, form: Form) -> bool {
    version(file, form).is_some_and(|v| v < TABLES_VERSION)
}

/// `user_version` of a file that is one of ours by its `application_id` (SQLite file format, 1.3: at 60 and 68, big
/// endian). `None`: it is not, or cannot be read, which is found when it is opened.
fn version(file: &Path, form: Form) -> Option<i64> {
    let mut header = [0u8; 72];
    std::fs::File::open(file).and_then(|mut f| f.read_exact(&mut header)).ok()?;
    let number = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map(|b| i64::from(u32::from_be_bytes(b)));
    let ours = header.starts_with(b"SQLite format 3\0") && number(68)? == form as i64;
    if ours { number(60) } else { None }
}
