//! What the feed's thread shares with those who bring it readers, ask for its figures, or end it.

use super::{
    resource::Resource,
    source::{AlertSource, Wake},
};
use crate::telemetry::feed::Listeners;
use bytes::Bytes;
use mio::Waker;
use std::{
    collections::HashMap,
    net::TcpStream,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// A reader who wants to listen, its credential checked.
pub(super) struct Join {
    pub resource: Resource,
    /// The number after which it wants to go on.
    pub last: Option<u64>,
    pub way: Way,
}

/// How it is reached.
pub(super) enum Way {
    /// A connection that asked for this first; the feed writes the answer's head itself.
    Socket(TcpStream),
    /// A response of hyper's, told whether there is a place.
    Body(BodyPipe, oneshot::Sender<Result<Ticket, Refused>>),
}

/// Why a reader is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// `feed.max_connections_per_resource` listen to the resource.
    Resource(usize),
    /// `feed.max_connections` listen altogether.
    Total(usize),
    /// So many of hyper's responses are streams already.
    Carried(usize),
    /// The node ends.
    Draining,
}

/// What the thread is told.
pub(super) enum Command {
    Join(Box<Join>),
    /// The response of a reader was dropped.
    Gone(Ticket),
    /// All that was given to hyper for it has been taken.
    Taken(Ticket),
    Drain(Duration),
}

/// A connection of the feed's thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub slot: u32,
    pub serial: u32,
}

/// Who listens now.
#[derive(Default)]
pub(super) struct Counts {
    pub total: usize,
    pub carried: usize,
    pub by_resource: HashMap<Resource, usize>,
}

/// See the module.
pub(super) struct Shared {
    waker: Mutex<Waker>,
    /// The thread sleeps and wants to know of a commit.
    armed: AtomicBool,
    commands: Mutex<Vec<Command>>,
    counts: Mutex<Counts>,
    pub alerts: OnceLock<Arc<dyn AlertSource>>,
    /// Facts committed and not yet sent on.
    pub lag: AtomicU64,
    /// Told to drain.
    pub draining: AtomicBool,
    ended: AtomicBool,
}

impl Shared {
    pub fn new(waker: Waker) -> Self {
        Self {
            waker: Mutex::new(waker),
            armed: AtomicBool::new(false),
            commands: Mutex::default(),
            counts: Mutex::default(),
            alerts: OnceLock::new(),
            lag: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    /// Tells the thread something; the command back when it has ended.
    pub fn tell(&self, command: Command) -> Result<(), Command> {
        {
            let mut commands = lock(&self.commands);
            if self.ended.load(Ordering::Acquire) {
                return Err(command);
            }
            commands.push(command);
        }
        self.wake();
        Ok(())
    }

    pub fn wake(&self) {
        // It fails only when the thread's poll is gone, and nobody sleeps there then.
        let _ = lock(&self.waker).wake();
    }

    /// The thread begins anew, without any reader, on another poll.
    pub fn renew(&self, waker: Waker) {
        *lock(&self.waker) = waker;
        let counts = std::mem::take(&mut *self.counts());
        for (resource, n) in counts.by_resource {
            Listeners { kind: resource.kind(), change: -i64::try_from(n).unwrap_or(i64::MAX), resources: 0 }.emit();
        }
    }

    /// What the thread was told meanwhile.
    pub fn told(&self) -> Vec<Command> {
        std::mem::take(&mut *lock(&self.commands))
    }

    /// Nothing more is taken. What was told and not done.
    pub fn end(&self) -> Vec<Command> {
        let mut commands = lock(&self.commands);
        self.ended.store(true, Ordering::Release);
        std::mem::take(&mut *commands)
    }

    pub fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }

    /// From now on the next commit wakes the thread. To be followed by a look at what is committed.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// What is called after each commit, on the writer's thread: a wake-up only when the thread sleeps.
    pub fn on_commit(self: &Arc<Self>) -> Wake {
        let this = self.clone();
        Arc::new(move || {
            fence(Ordering::SeqCst);
            if this.armed.load(Ordering::Relaxed) && this.armed.swap(false, Ordering::SeqCst) {
                this.wake();
            }
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// The feed's end of a response that hyper sends.
pub(super) struct BodyPipe {
    pipe: mpsc::UnboundedSender<Bytes>,
    held: Arc<AtomicUsize>,
}

impl BodyPipe {
    /// Both ends. What is between them is bounded by whoever sends.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Bytes>, Arc<AtomicUsize>) {
        let (pipe, taken) = mpsc::unbounded_channel();
        let held = Arc::new(AtomicUsize::new(0));
        (Self { pipe, held: held.clone() }, taken, held)
    }

    /// Bytes that hyper has not taken yet.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    pub fn send(&self, bytes: Bytes) -> bool {
        self.held.fetch_add(bytes.len(), Ordering::AcqRel);
        self.pipe.send(bytes).is_ok()
    }
}

/// The response's end: a stream of bytes that tells the feed when it is dropped.
pub(super) struct Carried {
    pub bytes: mpsc::UnboundedReceiver<Bytes>,
    pub held: Arc<AtomicUsize>,
    pub ticket: Ticket,
    pub shared: Arc<Shared>,
}

impl futures_util::Stream for Carried {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.bytes.poll_recv(context);
        if let Poll::Ready(Some(bytes)) = &next
            && self.held.fetch_sub(bytes.len(), Ordering::AcqRel) == bytes.len()
        {
            let _ = self.shared.tell(Command::Taken(self.ticket));
        }
        next.map(|bytes| bytes.map(Ok))
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        // A thread that has ended holds no place.
        let _ = self.shared.tell(Command::Gone(self.ticket));
    }
}
