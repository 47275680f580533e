//! A log's own number among the logs of a cluster, in a small file of its own beside the marks: written once, never changed.
//!
//! Numbers of records are told to other nodes under it. A store that was copied, or set back to an earlier state, would use the same
//! numbers for other records: it must be given a new number, by removing the file.

use super::catalog::sync_dir;
use crate::engine::replica::Origin;
use std::io::{self, Write};
use std::path::Path;

const NAME: &str = "origin";

/// Stands for this log where it writes again what it has: not shipped, and no log's number.
pub const HOUSEKEEPING: Origin = 0;

/// The number, and whether it was made just now.
pub fn load_or_make(dir: &Path) -> io::Result<(Origin, bool)> {
    let path = dir.join(NAME);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let known = Origin::from_str_radix(text.trim(), 16).ok().filter(|n| *n != HOUSEKEEPING);
            if let Some(known) = known {
                return Ok((known, false));
            }
        }
        // Not readable as text is as good as not there; not readable at all is for the operator.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {}
        Err(e) => return Err(e),
    }
    let made = rand::random::<Origin>().max(HOUSEKEEPING + 1);
    let new = dir.join(format!("{NAME}.new"));
    let mut file = std::fs::File::create(&new)?;
    file.write_all(format!("{made:016x}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)?;
    sync_dir(dir)?;
    Ok((made, true))
}

#[cfg(test)]
mod tests {
    use super::load_or_make;

    #[test]
    fn is_made_once_and_again_when_it_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let (first, made) = load_or_make(dir.path()).unwrap();
        assert!(made && first != 0);
        assert_eq!(load_or_make(dir.path()).unwrap(), (first, false));
        for garbage in [&b"0"[..], b"", b"\xff\xfe", b"not a number"] {
            std::fs::write(dir.path().join(super::NAME), garbage).unwrap();
            let (again, made) = load_or_make(dir.path()).unwrap();
            assert!(made && again != first);
        }
    }
}
