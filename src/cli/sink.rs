//! `hie sink`: a receiver for trials. Takes messages over MLLP and HTTP, counts them, answers as told: well, badly,
//! slowly, with the wrong control id, or not at all.
//!
//! [`serve`] is the receiver by itself, for tests and measurements; [`main`] is the subcommand.

mod args;
mod http;
mod mllp;
mod print;

pub use args::{SinkArgs, main};

use crate::{
    config::ServerTls,
    message::{Protocol, hl7::ack::AckCode},
};
use ::http::request::Parts;
use arc_swap::ArcSwap;
use bytes::Bytes;
use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a sink listens on and does.
#[derive(Clone, Default)]
pub struct Options {
    /// MLLP address; port 0 takes a free one.
    pub mllp: Option<SocketAddr>,
    /// HTTP address (HTTP/1.1 and 2); port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// TLS on both.
    pub tls: Option<ServerTls>,
    /// How it answers; can be changed while it runs.
    pub behaviour: Behaviour,
    /// Writes each body into this folder.
    pub save: Option<PathBuf>,
    /// Stops by itself after so many messages.
    pub max: Option<u64>,
    /// Called for each message once it is whole, before it is answered, in order on each connection.
    pub hook: Option<Hook>,
}

/// See [`Options::hook`]. Must be quick: it runs between a message and its answer.
pub type Hook = Arc<dyn Fn(&Received<'_>) + Send + Sync>;

/// How a sink answers.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// MSA-1.
    pub answer: AckCode,
    /// HTTP status.
    pub status: u16,
    /// HTTP response body.
    pub reply: Bytes,
    /// Part of the messages (0 to 1) answered as a receiver that is unwell: AR, or 503.
    pub fail_rate: f64,
    /// Part of the messages (0 to 1) after which the connection is closed without an answer.
    pub drop_rate: f64,
    /// Time before each answer.
    pub delay: Duration,
    /// No answers at all.
    pub silent: bool,
    /// Acknowledges a control id that nobody sent.
    pub wrong_id: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            answer: AckCode::AA,
            status: 200,
            reply: Bytes::new(),
            fail_rate: 0.0,
            drop_rate: 0.0,
            delay: Duration::ZERO,
            silent: false,
            wrong_id: false,
        }
    }
}

/// One message as the hook sees it.
pub struct Received<'a> {
    /// 1 for the first, in order of arrival over all connections.
    pub number: u64,
    /// Which connection: 1 for the first.
    pub connection: u64,
    /// How it came.
    pub protocol: Protocol,
    /// MSH-10; empty where there is none.
    pub control_id: &'a [u8],
    /// The bytes. Complete, except for MLLP frames over 1 MiB where neither a hook nor a folder asks for them.
    pub body: &'a Bytes,
    /// Length of the whole message in bytes.
    pub len: u64,
    /// Request line and headers, for HTTP.
    pub http: Option<&'a Parts>,
}

/// Counts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Whole messages received.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Answered with AA, CA or a status below 400.
    pub accepted: u64,
    /// Answered otherwise.
    pub refused: u64,
    /// Not answered: as told, or because the message asks for no answer (MSH-15, MSH-16).
    pub unanswered: u64,
    /// Connections taken.
    pub connections: u64,
    /// Connections that sent something that is no message.
    pub garbage: u64,
}

#[derive(Default)]
struct Counters {
    messages: AtomicU64,
    bytes: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    unanswered: AtomicU64,
    connections: AtomicU64,
    garbage: AtomicU64,
}

/// What all connections of a sink share.
struct Shared {
    options: Options,
    behaviour: ArcSwap<Behaviour>,
    counters: Counters,
    stop: CancellationToken,
    tls: Option<TlsAcceptor>,
}

/// What to do about one message.
enum Verdict {
    Answer { code: AckCode, status: u16 },
    Silence,
    Close,
}

impl Shared {
    /// Counts a message, tells the hook, saves it.
    async fn received(
        &self,
        connection: u64,
        protocol: Protocol,
        control_id: &[u8],
        body: &Bytes,
        len: u64,
        http: Option<&Parts>,
    ) {
        let number = self.counters.messages.fetch_add(1, Relaxed) + 1;
        self.counters.bytes.fetch_add(len, Relaxed);
        if let Some(hook) = &self.options.hook {
            hook(&Received { number, connection, protocol, control_id, body, len, http });
        }
        if let Some(folder) = &self.options.save {
            let name = folder.join(format!("{number:08}"));
            if let Err(e) = tokio::fs::write(&name, body).await {
                eprintln!("hie sink: {} cannot be written: {}", name.display(), e.kind());
            }
        }
        if self.options.max.is_some_and(|max| number >= max) {
            self.stop.cancel();
        }
    }

    /// Waits as told and decides; counts the decision.
    async fn verdict(&self, behaviour: &Behaviour) -> Verdict {
        if !behaviour.delay.is_zero() {
            tokio::time::sleep(behaviour.delay).await;
        }
        let chance = |rate: f64| rate > 0.0 && rand::random::<f64>() < rate;
        if behaviour.silent {
            self.counters.unanswered.fetch_add(1, Relaxed);
            return Verdict::Silence;
        }
        if chance(behaviour.drop_rate) {
            self.counters.unanswered.fetch_add(1, Relaxed);
            return Verdict::Close;
        }
        let failing = chance(behaviour.fail_rate);
        let code = if failing { AckCode::AR } else { behaviour.answer };
        let status = if failing { 503 } else { behaviour.status };
        Verdict::Answer { code, status }
    }

    fn count_answer(&self, well: bool) {
        let counter = if well { &self.counters.accepted } else { &self.counters.refused };
        counter.fetch_add(1, Relaxed);
    }
}

/// A running sink. Dropping it does not stop it.
pub struct Handle {
    /// Where MLLP is listened for.
    pub mllp: Option<SocketAddr>,
    /// Where HTTP is listened for.
    pub http: Option<SocketAddr>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Handle {
    /// Counts so far.
    pub fn counts(&self) -> Counts {
        let c = &self.shared.counters;
        Counts {
            messages: c.messages.load(Relaxed),
            bytes: c.bytes.load(Relaxed),
            accepted: c.accepted.load(Relaxed),
            refused: c.refused.load(Relaxed),
            unanswered: c.unanswered.load(Relaxed),
            connections: c.connections.load(Relaxed),
            garbage: c.garbage.load(Relaxed),
        }
    }

    /// Answers differently from now on.
    pub fn set(&self, behaviour: Behaviour) {
        self.shared.behaviour.store(Arc::new(behaviour));
    }

    /// Resolves when it stops, by [`Handle::stop`] or after [`Options::max`] messages.
    pub async fn stopped(&self) {
        self.shared.stop.cancelled().await;
        self.tasks.wait().await;
    }

    /// Closes listeners and connections (after the answers under way).
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.tasks.wait().await;
    }
}

/// Starts a sink on the current runtime. Fails when an address cannot be bound or the TLS files cannot be used.
pub async fn serve(options: Options) -> io::Result<Handle> {
    let tls = match &options.tls {
        Some(tls) => Some(TlsAcceptor::from(Arc::new(args::server_tls(tls).map_err(io::Error::other)?))),
        None => None,
    };
    let mllp = bind(options.mllp).await?;
    let http = bind(options.http).await?;
    let address = |l: &Option<TcpListener>| l.as_ref().map(TcpListener::local_addr).transpose();
    let (mllp_at, http_at) = (address(&mllp)?, address(&http)?);
    let shared = Arc::new(Shared {
        behaviour: ArcSwap::from_pointee(options.behaviour.clone()),
        options,
        counters: Counters::default(),
        stop: CancellationToken::new(),
        tls,
    });
    let tasks = TaskTracker::new();
    if let Some(listener) = mllp {
        tasks.spawn(accept(listener, shared.clone(), tasks.clone(), |shared, socket, number| {
            Box::pin(mllp::connection(shared, socket, number))
        }));
    }
    if let Some(listener) = http {
        tasks.spawn(accept(listener, shared.clone(), tasks.clone(), |shared, socket, number| {
            Box::pin(http::connection(shared, socket, number))
        }));
    }
    tasks.close();
    Ok(Handle { mllp: mllp_at, http: http_at, shared, tasks })
}

async fn bind(address: Option<SocketAddr>) -> io::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    listener.map(Some).map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))
}

type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    serve: fn(Arc<Shared>, TcpStream, u64) -> Connection,
) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else {
            // Out of descriptors: those in use have to end first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // Answers are small and waited for. Where it cannot be set, answers are only slower.
        let _ = socket.set_nodelay(true);
        let number = shared.counters.connections.fetch_add(1, Relaxed) + 1;
        let (shared, stop) = (shared.clone(), shared.stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = serve(shared, socket, number) => {}
                // The last answer is on its way when the limit stops the sink.
                () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_millis(100)).await } => {}
            }
        });
    }
}
