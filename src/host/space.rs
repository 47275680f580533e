//! Room on a disk.

use std::{io, path::Path};

/// Room on the file system that holds a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that this process may still write (without the reserve for root).
    pub free: u64,
    /// Bytes altogether.
    pub total: u64,
}

/// Room on the file system that holds `path`, which must exist.
pub fn free(path: &Path) -> io::Result<Space> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    // The types of these fields differ between targets.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    let (unit, free, total) = (stat.fragment_size() as u64, stat.blocks_available() as u64, stat.blocks() as u64);
    Ok(Space { free: free.saturating_mul(unit), total: total.saturating_mul(unit) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_root_has_a_size_and_a_missing_path_has_none() {
        let space = super::free("/".as_ref()).expect("the root");
        assert!(space.total > 0 && space.free <= space.total);
        assert!(super::free("/does/not/exist".as_ref()).is_err());
    }
}
