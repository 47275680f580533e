//! Takes in what other logs say: a thread that puts each record to its place in this log and queues it for the writer, several calls in
//! one round. A round is stored as a whole or, as far as anybody is told, not at all.

use super::core::Core;
use super::round::Round;
use crate::engine::ports::LogError;
use crate::engine::replica::{Arrived, Observer, Origin, Shipped};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A round takes no more calls when it has so many records …
const ROUND_RECORDS: usize = 8192;
/// … or bytes.
const ROUND_BYTES: usize = 4 << 20;
/// What changes nothing but the offset in the stream is written with the next record, or after this time.
const LAZY: Duration = Duration::from_millis(500);

/// A call of [`Replica::apply`](crate::engine::replica::Replica::apply).
pub struct Call {
    pub origin: Origin,
    pub records: Vec<Shipped>,
    pub offset: u64,
    done: oneshot::Sender<Result<(), LogError>>,
}

impl Call {
    fn bytes(&self) -> usize {
        self.records.iter().map(|r| r.body.as_ref().map_or(0, |b| b.data.len())).sum()
    }
}

enum Job {
    Apply(Call),
    /// Tells when everything before it has been dealt with.
    Through(oneshot::Sender<()>),
}

/// Who is told of what other nodes accepted.
#[derive(Default)]
pub struct Observers(RwLock<Vec<Arc<dyn Observer>>>);

impl Observers {
    pub fn add(&self, observer: Arc<dyn Observer>) {
        self.0.write().unwrap_or_else(|e| e.into_inner()).push(observer);
    }

    fn tell(&self, batch: &[Arrived]) {
        if !batch.is_empty() {
            self.0.read().unwrap_or_else(|e| e.into_inner()).iter().for_each(|o| o.applied(batch));
        }
    }
}

#[derive(Default)]
struct Running {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    closed: bool,
}

/// The thread, started when first needed.
#[derive(Default)]
pub struct Applier {
    running: Mutex<Running>,
    observers: Arc<Observers>,
}

impl Applier {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn observers(&self) -> &Observers {
        &self.observers
    }

    /// Queues a call. The answer is missing when the ledger is closed.
    pub fn apply(
        &self,
        core: &Arc<Core>,
        origin: Origin,
        records: Vec<Shipped>,
        offset: u64,
    ) -> oneshot::Receiver<Result<(), LogError>> {
        let (done, told) = oneshot::channel();
        let mut running = self.lock();
        if running.jobs.is_none() && !running.closed {
            core.recents.begin(|| core.committed());
            let (sender, jobs) = channel();
            let (core, observers) = (core.clone(), self.observers.clone());
            let work = move || Work { core, observers, failed: None, lazy: Instant::now(), rounds: 0 }.run(&jobs);
            match std::thread::Builder::new().name("ledger-apply".into()).stack_size(1 << 20).spawn(work) {
                Ok(thread) => (running.jobs, running.thread) = (Some(sender), Some(thread)),
                Err(e) => {
                    let error = format!("a thread cannot be started: {e}; raise the limit of processes");
                    let _ = done.send(Err(LogError::Failed(error)));
                    return told;
                }
            }
        }
        if let Some(jobs) = &running.jobs {
            // A thread that has ended drops the call, which tells.
            let _ = jobs.send(Job::Apply(Call { origin, records, offset, done }));
        }
        told
    }

    /// Told when every call made so far has been dealt with; `None` when there was none.
    pub fn through(&self) -> Option<oneshot::Receiver<()>> {
        let (tell, told) = oneshot::channel();
        self.lock().jobs.as_ref()?.send(Job::Through(tell)).ok()?;
        Some(told)
    }

    /// Ends the thread after the round in hand. The writer must still run.
    pub fn close(&self) {
        let thread = {
            let mut running = self.lock();
            running.closed = true;
            running.jobs = None;
            running.thread.take()
        };
        super::join(thread);
    }
}

struct Work {
    core: Arc<Core>,
    observers: Arc<Observers>,
    /// The offset of the first call that was not stored: later ones would leave a hole.
    failed: Option<u64>,
    /// When an offset was written last.
    lazy: Instant,
    rounds: u64,
}

impl Work {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            if self.core.ending.load(Ordering::Acquire) {
                // Dropped, which tells.
                continue;
            }
            let (mut calls, mut through) = (Vec::new(), Vec::new());
            let (mut records, mut bytes) = (0, 0);
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    Job::Apply(call) => {
                        records += call.records.len();
                        bytes += call.bytes();
                        calls.push(call);
                    }
                    Job::Through(tell) => through.push(tell),
                }
                next = if records < ROUND_RECORDS && bytes < ROUND_BYTES { jobs.try_recv().ok() } else { None };
            }
            self.round(calls);
            for tell in through {
                // Whoever asked may have gone.
                let _ = tell.send(());
            }
        }
    }

    fn round(&mut self, calls: Vec<Call>) {
        let mut taken = Vec::with_capacity(calls.len());
        for call in calls {
            if self.failed.is_some_and(|failed| call.offset > failed) {
                let error = "a batch before this one was not stored: apply that one again first";
                let _ = call.done.send(Err(LogError::Failed(error.into())));
                continue;
            }
            self.failed = None;
            taken.push(call);
        }
        if taken.is_empty() {
            return;
        }
        self.rounds += 1;
        let last = |c: &Call| c.records.last().map(|r| (c.origin, r.seq, c.offset));
        let lasts: Vec<_> = taken.iter().filter(|c| c.origin != self.core.origin).filter_map(last).collect();
        let mut round = Round::new(&self.core, self.rounds);
        let lazy = self.lazy.elapsed() < LAZY;
        let done = round.take_in(&mut taken).and_then(|()| round.finish(lazy));
        match &done {
            Ok(()) if !lazy => self.lazy = Instant::now(),
            Ok(()) => {}
            Err(_) => {
                // What the round has stored before it failed is known as taken, and nobody makes that call again. The writer may have refused
                // the rest of it and not have written this yet.
                super::carry::pass_through(&self.core);
                let known = self.core.applied.positions().taken;
                let missing = lasts.iter().filter(|(origin, last, _)| known.get(origin).is_none_or(|upto| upto < last));
                self.failed = missing.map(|(.., offset)| *offset).min();
            }
        }
        self.observers.tell(&round.arrived(done.is_ok()));
        drop(round);
        for call in taken {
            let _ = call.done.send(done.clone());
        }
    }
}
