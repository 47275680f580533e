//! `hie send`: sends files or folders to a receiver over MLLP or HTTP, measures, sums up.
//!
//! [`run`] is the sender by itself, for tests and measurements; [`main`] is the subcommand.

mod args;
mod http;
mod material;
mod mllp;
mod progress;
mod summary;

pub use args::{SendArgs, main};
pub use summary::Summary;

use crate::channel::ClientTls;
use bytes::Bytes;
use material::Material;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use summary::Tally;
use tokio_util::sync::CancellationToken;

/// How often a sender that waits for its turn looks whether it should stop.
const LOOK: Duration = Duration::from_millis(200);
/// Between attempts to reach a target that was there before.
const AGAIN: Duration = Duration::from_millis(100);

/// Where to.
#[derive(Clone, Debug)]
pub enum Target {
    /// `host:port`.
    Mllp { address: String, tls: Option<ClientTls> },
    /// Each message is POSTed.
    Http { url: String, tls: Option<ClientTls>, headers: Vec<(String, String)> },
}

/// What to send, where and how.
#[derive(Clone)]
pub struct Options {
    /// Where to.
    pub target: Target,
    /// Files, folders (recursive, by name), `-` for standard input.
    pub paths: Vec<PathBuf>,
    /// Messages to send before those of `paths`.
    pub messages: Vec<Bytes>,
    /// Messages under way at the same time, each on its own connection. With one, order is that of the material.
    pub connections: usize,
    /// Messages a second over all connections; as fast as answers come when absent.
    pub rate: Option<f64>,
    /// Passes over the material.
    pub repeat: u64,
    /// Messages in all, whatever `repeat` says.
    pub count: Option<u64>,
    /// Gives each message an MSH-10 of its own.
    pub fresh_ids: bool,
    /// Sends the messages of a file or batch one by one instead of in one frame.
    pub split: bool,
    /// Turns LF and CRLF into CR, which HL7 asks for.
    pub cr: bool,
    /// For each answer.
    pub timeout: Duration,
    /// Shows a progress bar when standard error is a terminal.
    pub progress: bool,
    /// Called for each message when its answer is there, or when there will be none.
    pub hook: Option<Hook>,
    /// Cancelled: no further message is sent, and those under way are summed up.
    pub stop: CancellationToken,
}

/// See [`Options::hook`].
pub type Hook = Arc<dyn Fn(&Sent<'_>) + Send + Sync>;

/// One message and how it went.
#[derive(Debug)]
pub struct Sent<'a> {
    /// Which message, from 0.
    pub number: u64,
    /// Which connection, from 0.
    pub connection: usize,
    /// MSH-10 as sent; empty where there is none.
    pub control_id: &'a [u8],
    /// How it went.
    pub outcome: &'a Outcome,
}

/// How one message went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// AA, CA, 2xx, or written where the message asks for no answer.
    Accepted,
    /// Another code or status.
    Refused(Code),
    /// No usable answer; fixed text.
    Failed(&'static str),
}

/// An answer that refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// MSA-1.
    Ack(&'static str),
    /// HTTP status.
    Status(u16),
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ack(code) => f.write_str(code),
            Self::Status(status) => status.fmt(f),
        }
    }
}

impl Options {
    /// One pass on one connection, as fast as answers come.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            paths: vec![],
            messages: vec![],
            connections: 1,
            rate: None,
            repeat: 1,
            count: None,
            fresh_ids: false,
            split: false,
            cr: false,
            timeout: Duration::from_secs(30),
            progress: false,
            hook: None,
            stop: CancellationToken::new(),
        }
    }
}

/// Why nothing could be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendFailure {
    /// Wrong arguments, or files that cannot be read.
    #[error("{0}")]
    Usage(String),
    /// The target cannot be reached.
    #[error("{0}")]
    Unreachable(String),
}

/// What all connections share.
struct Shared {
    options: Options,
    material: Material,
    total: u64,
    next: AtomicU64,
    done: AtomicU64,
    /// Ends the run early.
    stop: AtomicBool,
    /// Some connection has been made: a later failure is a failed message, not an unreachable target.
    reached: AtomicBool,
    started: Instant,
}

impl Shared {
    /// The number of the next message to send, when its time has come; `None` at the end.
    async fn next(&self) -> Option<u64> {
        if self.stop.load(Relaxed) {
            return None;
        }
        let number = self.next.fetch_add(1, Relaxed);
        if number >= self.total {
            return None;
        }
        if let Some(rate) = self.options.rate {
            let due = self.started + Duration::from_secs_f64(number as f64 / rate);
            // Shorter waits than the timer's step would only make the rate lower than asked for.
            while due.saturating_duration_since(Instant::now()) > Duration::from_millis(1) {
                tokio::time::sleep_until(due.min(Instant::now() + LOOK).into()).await;
                if self.stop.load(Relaxed) {
                    return None;
                }
            }
        }
        Some(number)
    }

    fn finished(&self, tally: &mut Tally, sent: Sent<'_>, took: Duration) {
        tally.add(sent.outcome, took);
        self.done.fetch_add(1, Relaxed);
        if let Some(hook) = &self.options.hook {
            hook(&sent);
        }
    }
}

/// Sends everything and sums up. Ends early, with what was done, when stopped or when the target went away.
pub async fn run(options: Options) -> Result<Summary, SendFailure> {
    let material = Material::gather(&options).map_err(SendFailure::Usage)?;
    if options.rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        return Err(SendFailure::Usage("the rate must be above 0".into()));
    }
    let total = options.count.unwrap_or(material.len() as u64 * options.repeat);
    let connections = options.connections.max(1).min(usize::try_from(total).unwrap_or(usize::MAX));
    let shared = Arc::new(Shared {
        material,
        total,
        next: AtomicU64::new(0),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        reached: AtomicBool::new(false),
        started: Instant::now(),
        options,
    });
    let mut workers = tokio::task::JoinSet::new();
    match &shared.options.target {
        Target::Mllp { address, tls } => {
            let dial = mllp::Dial::new(address, tls.as_ref()).map_err(SendFailure::Usage)?;
            for connection in 0..connections {
                workers.spawn(mllp::worker(shared.clone(), dial.clone(), connection));
            }
        }
        Target::Http { url, tls, headers } => {
            let client = http::Client::new(url, tls.as_ref(), headers, &shared.options).map_err(SendFailure::Usage)?;
            for connection in 0..connections {
                workers.spawn(http::worker(shared.clone(), client.clone(), connection));
            }
        }
    }
    let shown = progress::show(shared.clone());
    let (mut tally, mut unreachable) = (Tally::default(), None);
    loop {
        let joined = tokio::select! {
            joined = workers.join_next() => joined,
            () = shared.options.stop.cancelled(), if !shared.stop.load(Relaxed) => {
                shared.stop.store(true, Relaxed);
                continue;
            }
        };
        match joined {
            None => break,
            Some(Ok(Ok(part))) => tally.merge(&part),
            Some(Ok(Err(reason))) => unreachable = Some(reason),
            Some(Err(_)) => return Err(SendFailure::Usage("a sender task was stopped".into())),
        }
    }
    drop(shown);
    match unreachable {
        Some(reason) if !shared.reached.load(Relaxed) => Err(SendFailure::Unreachable(reason)),
        _ => Ok(tally.summary(shared.started.elapsed())),
    }
}
