//! Idle connections to one target, shared by all connector instances of a route, so that `in_flight` bounds the
//! connections of the node and not those of each thread: many receivers take only one.

use super::conn::Conn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit};

/// At most `limit` connections, idle and in use together.
pub(in super::super) struct Pool {
    limit: usize,
    permits: Semaphore,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    open: usize,
    idle: Vec<Conn>,
}

impl Pool {
    pub(in super::super) fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self { limit, permits: Semaphore::new(limit), inner: Mutex::default() }
    }

    /// A place, with an idle connection where there is one: of the same instance if possible, because another's
    /// wakes this one over threads; another's rather than none. `None` when the pool is shut, which it never is.
    pub(super) async fn take(&self, instance: u64) -> Option<Place<'_>> {
        let permit = self.permits.acquire().await.ok()?;
        let mut inner = self.lock();
        let own = inner.idle.iter().rposition(|conn| conn.instance == instance);
        let conn = match own {
            Some(at) => Some(inner.idle.swap_remove(at)),
            None if inner.open < self.limit => None,
            None => inner.idle.pop(),
        };
        if conn.is_none() {
            inner.open += 1;
        }
        drop(inner);
        Some(Place { pool: self, conn, kept: false, _permit: permit })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one connection. Dropped with a connection, that connection is closed: whatever is under way on it
/// must not be taken for the answer to another message.
pub(super) struct Place<'a> {
    pool: &'a Pool,
    pub(super) conn: Option<Conn>,
    kept: bool,
    _permit: SemaphorePermit<'a>,
}

impl Place<'_> {
    /// The exchange is complete: the connection may serve the next message.
    pub(super) fn keep(mut self) {
        if let Some(conn) = self.conn.take() {
            self.pool.lock().idle.push(conn);
            self.kept = true;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.pool.lock().open -= 1;
        }
    }
}
