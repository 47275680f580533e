//! The corpus of real messages, found through `HIE_CORPUS`.

use std::fs;
use std::path::{Path, PathBuf};

/// The corpus's folder; `None` (and says so) when it is not set.
pub fn root() -> Option<PathBuf> {
    match std::env::var_os("HIE_CORPUS") {
        Some(path) => Some(path.into()),
        None => {
            println!("not run: HIE_CORPUS is not set");
            None
        }
    }
}

/// All files below `folder` with this extension, sorted, with their bytes.
pub fn files(folder: &Path, extension: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                found.push((path, bytes));
            }
        }
    }
    found.sort();
    found
}
