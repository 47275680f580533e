//! The live feed: `/events/{resource}`, server-sent events (WHATWG HTML, section 9.2).
//!
//! An event is a fact of the ledger's log, its `id` the fact's number: whoever comes back with `Last-Event-ID` goes on behind it,
//! over restarts too. One thread ([`run`]) holds all readers on one poll. It reads what is committed from the log by itself, only
//! while somebody listens, renders each event once and writes the same bytes to everybody; the log's writer does no more than wake
//! it. When it cannot keep up it lags: what is behind lies on disk. A reader that cannot keep up is told so and closed.
//!
//! A connection whose first request is `GET /events/…` never reaches hyper ([`door`]), which would cost several times the memory;
//! HTTP/2 and kept connections are served through it, a few of them.

mod answer;
mod conn;
pub(super) mod door;
mod end;
mod fan;
mod group;
mod names;
mod render;
mod resource;
mod run;
mod shared;
mod slice;
mod source;

pub use resource::{KINDS, Resource};
pub use source::{AlertEvent, AlertSource, Facts, Journal, Wake};

use crate::{
    config,
    telemetry::feed::{FeedOpen, FeedRestarts},
};
use mio::{Poll, Waker};
use shared::{Command, Join, Refused, Shared};
use std::{
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

/// The feed as others hold it. Ends when dropped.
pub struct Feed {
    shared: Arc<Shared>,
    config: config::Feed,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Who listens now, and how many may.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FeedStats {
    /// Connections.
    pub total: usize,
    /// Connections by resource; those without any are not in it.
    pub by_resource: Vec<(Resource, usize)>,
    /// Connections to one resource at most.
    pub max_per_resource: usize,
    /// Connections altogether at most.
    pub max_total: usize,
    /// After which a connection is ended.
    pub timeout: Duration,
    /// Facts committed and not yet sent on.
    pub lag: u64,
}

impl Feed {
    /// Starts the thread `hie-feed`. `background` is called on it once: where there is not enough processor for all, messages go
    /// first. Fails when thread or poll are not to be had.
    pub fn start(journal: Arc<dyn Journal>, config: config::Feed, background: fn()) -> io::Result<Arc<Self>> {
        let poll = Poll::new()?;
        let shared = Arc::new(Shared::new(Waker::new(poll.registry(), run::WAKER)?));
        journal.on_commit(shared.on_commit());
        FeedOpen { per_resource: config.max_connections_per_resource, total: config.max_connections, timeout: config.timeout }
            .emit();
        let (held, settings) = (shared.clone(), config.clone());
        let run = move || {
            background();
            let _end = End(held.clone());
            let mut poll = Some(poll);
            while let Some(poll_now) = poll.take() {
                let (shared, journal, settings) = (held.clone(), journal.clone(), settings.clone());
                let ran =
                    std::panic::catch_unwind(AssertUnwindSafe(|| run::Loop::new(poll_now, shared, journal, settings).run()));
                if ran.is_ok() || held.draining.load(Ordering::Acquire) {
                    return;
                }
                // The hook has said where. Its readers were cut off, and come back.
                FeedRestarts.emit();
                std::thread::sleep(Duration::from_millis(100));
                poll = Poll::new().and_then(|p| Waker::new(p.registry(), run::WAKER).map(|w| (p, w))).ok().map(|(p, w)| {
                    held.renew(w);
                    p
                });
            }
        };
        let thread = std::thread::Builder::new().name("hie-feed".into()).stack_size(512 << 10).spawn(run)?;
        Ok(Arc::new(Self { shared, config, thread: Mutex::new(Some(thread)) }))
    }

    /// Where alerts come from; the first one given stays. Until then the resource has no events.
    pub fn set_alerts(&self, source: Arc<dyn AlertSource>) {
        let _ = self.shared.alerts.set(source);
        self.shared.wake();
    }

    /// There is a new alert.
    pub fn alerts_changed(&self) {
        self.shared.wake();
    }

    /// Who listens now.
    pub fn stats(&self) -> FeedStats {
        let counts = self.shared.counts();
        let mut by_resource: Vec<(Resource, usize)> = counts.by_resource.iter().map(|(r, n)| (r.clone(), *n)).collect();
        by_resource.sort_unstable();
        FeedStats {
            total: counts.total,
            by_resource,
            max_per_resource: self.config.max_connections_per_resource,
            max_total: self.config.max_connections,
            timeout: self.config.timeout,
            lag: self.shared.lag.load(Ordering::Relaxed),
        }
    }

    /// Takes nobody any more and ends the connections, spread over at most `within`, each with a last event. Blocks until done.
    pub fn drain(&self, within: Duration) {
        self.shared.draining.store(true, Ordering::Release);
        // A thread that has ended has drained.
        let _ = self.shared.tell(Command::Drain(within));
        let thread = self.thread.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(thread) = thread {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }

    /// Brings a reader. When the feed has ended it is refused.
    fn join(&self, join: Join) {
        if let Err(Command::Join(join)) = self.shared.tell(Command::Join(Box::new(join))) {
            run::refuse(*join, Refused::Draining);
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.drain(Duration::ZERO);
    }
}

/// However the thread ends, nobody waits for it in vain.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        for command in self.0.end() {
            if let Command::Join(join) = command {
                run::refuse(*join, Refused::Draining);
            }
        }
    }
}
