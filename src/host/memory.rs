//! Memory that the node needs only while it starts.

use rustix::mm::{Advice, madvise};
use std::fs;

/// Lets the system have back the pages of this program's code: most of it (arguments, configuration, compiling rules) runs
/// once. What is needed again is mapped again from the page cache, at the price of a minor fault per 64 KiB. Where nothing can be told
/// of the mappings, nothing happens.
pub fn release_code() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    let Ok(own) = fs::read_link("/proc/self/exe") else { return };
    for line in maps.lines().filter(|line| own.to_str().is_some_and(|own| line.ends_with(own))) {
        if let Some((start, length)) = code(line) {
            release(start, length);
        }
    }
}

/// Start and length of a mapping of code: readable, executable, private, never written.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    if fields.next()? != "r-xp" {
        return None;
    }
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[allow(unsafe_code)]
fn release(start: usize, length: usize) {
    // No safe function takes an address. SAFETY: the range is a whole private mapping of this program's own file that is not
    // writable and never was (code needs no relocation in a position-independent program), so that each page is what the
    // file holds; MADV_DONTNEED drops the page tables' entries, and the next access maps the same contents again.
    let _ = unsafe { madvise(std::ptr::with_exposed_provenance_mut(start), length, Advice::LinuxDontNeed) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_released() {
        assert_eq!(code("55d0c000-55d0e000 r-xp 00001000 fe:00 42 /usr/bin/hie"), Some((0x55d0_c000, 0x2000)));
        for other in ["55d0c000-55d0e000 r--p 0 fe:00 42 /usr/bin/hie", "55d0c000-55d0e000 rw-p 0 fe:00 42 /usr/bin/hie", "x", ""]
        {
            assert_eq!(code(other), None, "{other}");
        }
        release_code();
        assert!(format!("{:?}", code("1000-2000 r-xp")).contains("4096"), "the code is still there");
    }
}
