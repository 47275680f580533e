//! Which files have settled.

use super::Trouble;
use crate::config::WatchedFolder;
use std::{
    collections::{BinaryHeap, HashMap},
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Instant, SystemTime},
};

/// Files looked at per round, the oldest; bounds memory in a folder with very many.
const MOST: usize = 10_000;

/// What has been seen of the files that are there.
#[derive(Default)]
pub(super) struct Scan {
    seen: HashMap<OsString, Seen>,
}

struct Seen {
    len: u64,
    changed: SystemTime,
    /// Since when it has been like this.
    since: Instant,
}

/// In order of taking.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    changed: SystemTime,
    name: OsString,
    len: u64,
}

impl Scan {
    /// Looks at the folder; the files that have stood still for long enough, in order.
    pub async fn settled(&mut self, config: &WatchedFolder) -> Result<Vec<OsString>, Trouble> {
        let (directory, pattern) = (config.directory.clone(), config.pattern.clone());
        let found = tokio::task::spawn_blocking(move || look(&directory, &pattern))
            .await
            .unwrap_or_else(|e| Err(io::Error::other(e)))
            .map_err(|e| ("reading the folder", e))?;
        Ok(self.compare(found, config.settle, Instant::now()))
    }

    fn compare(&mut self, found: Vec<Found>, settle: std::time::Duration, now: Instant) -> Vec<OsString> {
        let mut before = std::mem::take(&mut self.seen);
        let mut settled = Vec::new();
        for Found { changed, name, len } in found {
            let since = match before.remove(&name) {
                Some(seen) if seen.len == len && seen.changed == changed => seen.since,
                _ => now,
            };
            // At least two looks: one alone says nothing about standing still.
            if now > since && now - since >= settle {
                settled.push(name.clone());
            }
            self.seen.insert(name, Seen { len, changed, since });
        }
        settled
    }

    /// It is taken; another of the same name starts anew.
    pub fn forget(&mut self, name: &OsStr) {
        self.seen.remove(name);
    }
}

fn look(directory: &Path, pattern: &str) -> io::Result<Vec<Found>> {
    let mut oldest = BinaryHeap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_bytes().starts_with(b".") || !matches(pattern.as_bytes(), name.as_bytes()) {
            continue;
        }
        // Of the entry itself: a symbolic link could lead anywhere. Gone since: another look will tell.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_file() {
            oldest.push(Found { changed: meta.modified()?, name, len: meta.len() });
            if oldest.len() > MOST {
                oldest.pop();
            }
        }
    }
    Ok(oldest.into_sorted_vec())
}

/// Does `name` fit `pattern`, with `*` for any bytes and `?` for one?
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when it does not fit: after the last star, one byte further in the name.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(b) if *b == b'?' || *b == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((after, at)) => {
                    p = after;
                    n = at + 1;
                    star = Some((after, at + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*", "a.hl7", true),
            ("*.hl7", "a.hl7", true),
            ("*.hl7", "a.hl7.tmp", false),
            ("*.hl7*", "a.hl7.tmp", true),
            ("??.hl7", "a.hl7", false),
            ("a*b*c", "a--b--b-c", true),
            ("a*b*c", "a--b--b-", false),
            ("", "a", false),
            ("a", "a", true),
            ("*?", "", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn a_file_that_grows_or_changes_is_waited_for() {
        let (mut scan, start, settle) = (Scan::default(), Instant::now(), Duration::from_secs(2));
        let changed = SystemTime::UNIX_EPOCH;
        let file = |name: &str, len| Found { changed, name: name.into(), len };
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(scan.compare(vec![file("a", 1), file("b", 1)], settle, at(0)).is_empty());
        assert!(scan.compare(vec![file("a", 1), file("b", 2)], settle, at(1)).is_empty());
        assert_eq!(scan.compare(vec![file("a", 1), file("b", 2)], settle, at(2)), ["a"]);
        scan.forget(OsStr::new("a"));
        let touched = Found { changed: changed + Duration::from_secs(1), ..file("b", 2) };
        assert!(scan.compare(vec![file("a", 1), touched], settle, at(3)).is_empty());
    }
}
