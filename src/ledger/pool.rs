//! Connections for reading, kept open between uses: with small caches, closed soon when nobody reads, and none to a file that is gone.

use super::sql::{self, FileError, Form};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Connections kept, for a short while: opening one costs a millisecond (a closed segment's -wal and -shm are made and removed), and a
/// search for a patient goes through all segments' views and logs.
const KEPT: usize = 64;
/// SQLite's page cache of each, KiB.
const CACHE_KIB: i64 = 128;

struct Kept {
    path: PathBuf,
    conn: Connection,
    used: Instant,
}

/// The connections.
#[derive(Default)]
pub struct Pool {
    /// Least recently used first.
    kept: Mutex<Vec<Kept>>,
}

impl Pool {
    /// Runs `work` on a connection to `path`. `keep` is asked afterwards whether the connection may be kept.
    pub fn with<T>(
        &self,
        path: &Path,
        form: Form,
        keep: impl Fn() -> bool,
        work: impl FnOnce(&Connection) -> Result<T, FileError>,
    ) -> Result<T, FileError> {
        let found = {
            let mut kept = self.lock();
            kept.iter().rposition(|k| k.path == path).map(|at| kept.remove(at).conn)
        };
        let conn = match found {
            Some(conn) => conn,
            None => sql::open_reader(path, form, CACHE_KIB)?,
        };
        let result = work(&conn);
        // A connection that met damage is not trusted again.
        if !matches!(result, Err(FileError::Damaged(_))) {
            let mut kept = self.lock();
            // Asked under the lock: `forget` for a file that goes now comes after, and finds it.
            if keep() {
                if kept.len() >= KEPT {
                    kept.remove(0);
                }
                kept.push(Kept { path: path.to_owned(), conn, used: Instant::now() });
            }
        }
        result
    }

    /// Closes connections to a file, so that its removal frees its space. Those in use close when done.
    pub fn forget(&self, path: &Path) {
        self.lock().retain(|k| k.path != path);
    }

    /// Closes connections that have not been used for so long.
    pub fn rest(&self, idle: Duration) {
        self.lock().retain(|k| k.used.elapsed() < idle);
    }

    /// Closes all.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(|e| e.into_inner())
    }
}
