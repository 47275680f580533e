//! A few threads for blocking reads, started when first needed: independent of any async runtime, so that a slow disk
//! holds up neither deliveries nor health.

use futures_util::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Threads at most.
const THREADS: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Inner {
    jobs: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    idle: usize,
    closed: bool,
}

/// The threads. Jobs are bounded by those who wait for them: each reader has one at a time.
#[derive(Default)]
pub struct Readers {
    inner: Mutex<Inner>,
    wake: Condvar,
}

impl Readers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs `work` on one of the threads; `None` when closed.
    pub fn run<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce() -> T + Send + 'static) -> BoxFuture<'static, Option<T>> {
        let (tell, told) = oneshot::channel();
        self.submit(Box::new(move || {
            if !tell.is_closed() {
                let _ = tell.send(work());
            }
        }));
        Box::pin(async move { told.await.ok() })
    }

    fn submit(self: &Arc<Self>, job: Job) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        inner.jobs.push_back(job);
        if inner.idle == 0 && inner.threads.len() < THREADS {
            let readers = self.clone();
            let started =
                std::thread::Builder::new().name("ledger-read".into()).stack_size(512 << 10).spawn(move || readers.work());
            // Without threads the system is beyond help; jobs then wait for the next attempt.
            inner.threads.extend(started.ok());
        }
        drop(inner);
        self.wake.notify_one();
    }

    fn work(&self) {
        let mut inner = self.lock();
        loop {
            if let Some(job) = inner.jobs.pop_front() {
                drop(inner);
                job();
                inner = self.lock();
            } else if inner.closed {
                return;
            } else {
                inner.idle += 1;
                inner = self.wake.wait(inner).unwrap_or_else(|e| e.into_inner());
                inner.idle -= 1;
            }
        }
    }

    /// Ends the threads after the jobs in hand; waiting ones are dropped.
    pub fn close(&self) {
        let threads = {
            let mut inner = self.lock();
            inner.closed = true;
            inner.jobs.clear();
            std::mem::take(&mut inner.threads)
        };
        self.wake.notify_all();
        for thread in threads {
            // A panic in a job was told to its waiter by the dropped sender.
            let _ = thread.join();
        }
    }
}
