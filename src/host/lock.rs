//! The store's folder: made, checked, and held by one process at a time.

use super::user;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::{AccessFlags, access},
};
use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const FILE: &str = "lock";

/// The store cannot be used; the text says why and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds it.
    #[error("the store {} is in use by {}; stop that node first, or give this one another [node] store", path.display(), holder(*pid))]
    InUse {
        /// The store.
        path: PathBuf,
        /// The holder, where its id could be read.
        pid: Option<u32>,
    },
    /// It cannot be written.
    #[error(
        "the store {} is not writable by user {user}: {source}; change its owner (chown -R {user} {}) or [node] store",
        path.display(), path.display()
    )]
    NotWritable {
        /// The store.
        path: PathBuf,
        /// Who tried.
        user: String,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be made.
    #[error("the store {} cannot be made by user {user}: {source}; make it, or change [node] store", path.display())]
    NotMade {
        /// The store.
        path: PathBuf,
        /// Who tried.
        user: String,
        /// What the system said.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

/// The store, held until this is dropped (or the process ends, however it ends).
#[derive(Debug)]
pub struct StoreLock {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StoreLock {
    /// Makes the folder (mode 0700) where it is not there, checks that it can be written, and takes its lock.
    pub fn take(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        if let Err(source) = DirBuilder::new().recursive(true).mode(0o700).create(&path) {
            return Err(StoreError::NotMade { path, user: user(), source });
        }
        let not_writable = |source: io::Error| StoreError::NotWritable { path: path.clone(), user: user(), source };
        access(&path, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|e| not_writable(e.into()))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path.join(FILE)).map_err(not_writable)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                // For people and for `hie drain`. On a full disk it may fail: the lock holds without it.
                let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
                Ok(Self { path, _lock: lock })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => Err(StoreError::InUse { path, pid: pid(&mut file) }),
            Err((_, errno)) => Err(not_writable(errno.into())),
        }
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Who holds a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// This process of this machine.
    Process(u32),
    /// Somebody whose process cannot be seen from here: another user's, or in a container with numbers of its own.
    Unseen,
}

/// Who holds the store now.
pub fn held_by(store: &Path) -> Holder {
    let path = store.join(FILE);
    let Ok(mut file) = File::open(&path) else { return Holder::Nobody };
    let pid = pid(&mut file);
    match (Flock::lock(file, FlockArg::LockSharedNonblock), pid) {
        (Ok(_), _) => Holder::Nobody,
        (Err(_), Some(pid)) if has_open(pid, &path) => Holder::Process(pid),
        (Err(_), _) => Holder::Unseen,
    }
}

/// Does a process have this file open? The number in the file may be that of another process here.
fn has_open(pid: u32, path: &Path) -> bool {
    let Ok(wanted) = std::fs::metadata(path) else { return false };
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let same = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino());
    open.flatten().any(|fd| std::fs::metadata(fd.path()).is_ok_and(same))
}

fn pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_held_by_one_and_freed_when_dropped() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("a/b");
        assert_eq!(held_by(&path), Holder::Nobody);
        let lock = StoreLock::take(&path).expect("free");
        assert_eq!(held_by(&path), Holder::Process(std::process::id()));
        // As it looks where the holder lives in a container: the number is somebody else's here.
        std::fs::write(path.join(FILE), "1\n").expect("written");
        assert_eq!(held_by(&path), Holder::Unseen);
        std::fs::write(path.join(FILE), std::process::id().to_string()).expect("written");
        let error = StoreLock::take(&path).expect_err("held").to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        drop(lock);
        assert_eq!(held_by(&path), Holder::Nobody);
        StoreLock::take(&path).expect("free again");
    }

    #[test]
    fn a_path_that_cannot_be_made_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("file"), b"").expect("a file");
        let error = StoreLock::take(&dir.path().join("file/store")).expect_err("below a file").to_string();
        assert!(error.contains("cannot be made by user"), "{error}");
    }
}
