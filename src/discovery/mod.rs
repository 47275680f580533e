//! Discovery: the Consul agent of this machine names the node to others, tells of the domain's members, and brings the channels that
//! the domain's nodes share.
//!
//! A thread and a runtime of its own, which share nothing with the messages: while the agent is away, or refuses, the node
//! goes on as it is, and says so once.

mod agent;
pub mod balancer;
pub mod catalog;
mod client;
pub mod kv;
pub mod layout;
mod service;

pub use catalog::Member;
pub use client::{Client, Error};
pub use kv::{Follow, Seen};
pub use layout::FollowLayout;
pub use service::{Instance, Node, Plan, Port, SERVICE};

use crate::config;
use serde::Serialize;
use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

/// What discovery needs to know of the node.
pub struct Parts {
    pub config: config::Discovery,
    pub node: Node,
    pub ports: Vec<Port>,
    /// Where the health listener listens.
    pub health: SocketAddr,
    /// Takes the channels of the KV; `None`: they are not followed.
    pub follow: Option<Arc<dyn Follow>>,
    /// Takes the domain's layout; `None`: the node has none.
    pub layout: Option<Arc<dyn FollowLayout>>,
}

/// How one side of discovery is: the registration, or the channels.
#[derive(Clone, Debug, Serialize)]
pub struct Link {
    /// `starting`, `well`, or what is wrong: `unreachable`, `tls`, `token`, `answer`, `conflict`, `unhealthy`.
    pub state: &'static str,
    /// Milliseconds since 1970.
    pub since: u64,
    /// What is wrong and what to do; empty when all is well.
    pub error: String,
}

impl Link {
    fn new(state: &'static str, error: String) -> Self {
        Self { state, since: now_ms(), error }
    }

    /// Since when, as a time that has passed.
    pub fn lasted(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.since))
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64)
}

/// How the node stands in its life, as far as the names are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Serving,
    /// In maintenance: it goes on serving, and is found no more.
    Withdrawn,
    /// Nothing is registered any more.
    Left,
}

struct Inner {
    client: Client,
    config: config::Discovery,
    node: Node,
    plan: Plan,
    /// What the agent is to look at.
    health: SocketAddr,
    phase: AtomicU8,
    /// One conversation about the registration at a time.
    turn: tokio::sync::Mutex<()>,
    registration: Mutex<Link>,
    channels: Mutex<Link>,
    /// The KV was read once, or cannot be.
    answered: AtomicBool,
    stop: CancellationToken,
}

/// The node's discovery, at work.
pub struct Discovery {
    inner: Arc<Inner>,
    /// Taken when it stops.
    runtime: Mutex<Option<Runtime>>,
}

/// How long the agent may take to bring the node out of the names.
const WITHDRAW: Duration = Duration::from_secs(4);

impl Discovery {
    /// Starts to register, and to follow the channels. Fails when a file of the configuration cannot be used, or the thread cannot
    /// be started; an agent that is away is no failure.
    pub fn start(parts: Parts) -> io::Result<Self> {
        let client = Client::new(&parts.config).map_err(io::Error::other)?;
        let plan = Plan::new(&parts.node, &parts.ports, parts.health, &parts.config);
        let inner = Arc::new(Inner {
            health: looked_at(parts.health, &parts.config),
            client,
            node: parts.node,
            plan,
            config: parts.config,
            phase: AtomicU8::new(Phase::Serving as u8),
            turn: tokio::sync::Mutex::default(),
            registration: Mutex::new(Link::new("starting", String::new())),
            channels: Mutex::new(Link::new("starting", String::new())),
            answered: AtomicBool::new(parts.follow.is_none()),
            stop: CancellationToken::new(),
        });
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(2)
            .thread_name("hie-discovery")
            .enable_all()
            .build()?;
        let registered = inner.clone();
        runtime.spawn(again(move || agent::keep_registered(registered.clone())));
        if let Some(follow) = parts.layout {
            let inner = inner.clone();
            runtime.spawn(again(move || layout::keep_following(inner.clone(), follow.clone())));
        }
        if let Some(follow) = parts.follow {
            let inner = inner.clone();
            runtime.spawn(again(move || kv::keep_following(inner.clone(), follow.clone())));
        }
        Ok(Self { inner, runtime: Mutex::new(Some(runtime)) })
    }

    /// Blocks until the channels of the KV were taken for the first time, or it is clear that they cannot be; `discovery.timeout` at
    /// most. A node that accepted before might give a message to another channel than the one meant for it.
    pub fn settle(&self) {
        let until = Instant::now() + self.inner.config.timeout;
        while !self.inner.answered.load(SeqCst) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Puts all of the node's instances into maintenance and waits until the names hold none of them, at most some seconds.
    /// True when that is so; false when the agent did not answer.
    pub async fn withdraw(&self) -> bool {
        let inner = self.inner.clone();
        inner.set_phase(Phase::Withdrawn);
        let work = async move { tokio::time::timeout(WITHDRAW, agent::withdraw(&inner)).await.is_ok_and(|done| done.is_ok()) };
        self.run(work).await.unwrap_or(false)
    }

    /// Takes the node out of the catalog.
    pub async fn leave(&self) {
        let inner = self.inner.clone();
        inner.set_phase(Phase::Left);
        self.run(async move {
            let _ = tokio::time::timeout(WITHDRAW, agent::leave(&inner)).await;
        })
        .await;
    }

    /// The members of all domains, as the agent knows them.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        let inner = self.inner.clone();
        let stopped = || Error::Config("discovery has stopped".into());
        self.run(async move { catalog::members(&inner.client).await }).await.unwrap_or_else(|| Err(stopped()))
    }

    /// Puts a layout into the KV if `from` stands there; in the background, and silently: the KV is followed.
    pub fn replace_layout(&self, from: config::Layout, to: config::Layout) {
        let inner = self.inner.clone();
        let work = async move {
            if let Ok(Some(now)) = layout::read(&inner.client, &inner.node.domain).await
                && now.layout == Ok(from)
                && let Err(error) = layout::put(&inner.client, &inner.node.domain, &to, now.index).await
            {
                crate::telemetry::discovery::failed("layout", error.kind());
            }
        };
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(|e| e.into_inner()).as_ref() {
            runtime.spawn(work);
        }
    }

    /// How the registration stands.
    pub fn registration(&self) -> Link {
        self.inner.registration.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// How following the channels stands: whether they arrive, not whether they are any good.
    pub fn channels(&self) -> Link {
        self.inner.channels.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// What is registered.
    pub fn plan(&self) -> &Plan {
        &self.inner.plan
    }

    /// Ends the work; what is registered stays so (an upgrade in place goes on with it).
    pub fn stop(&self) {
        self.inner.stop.cancel();
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(|e| e.into_inner()).take() {
            runtime.shutdown_background();
        }
    }

    /// Runs on discovery's own runtime, whichever asks. `None` when it has stopped.
    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let task = self.runtime.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map(|runtime| runtime.spawn(work))?;
        task.await.ok()
    }
}

/// Runs it, and again when it panicked, which the hook has told: without it the node would slowly vanish from the names.
async fn again<F: Future<Output = ()> + Send + 'static>(work: impl Fn() -> F) {
    while tokio::spawn(work()).await.is_err_and(|e| e.is_panic()) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn phase(&self) -> Phase {
        match self.phase.load(SeqCst) {
            0 => Phase::Serving,
            1 => Phase::Withdrawn,
            _ => Phase::Left,
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, SeqCst);
    }
}

/// Where the agent finds the health listener: on loopback where that takes any address and the agent is on this machine.
fn looked_at(health: SocketAddr, config: &config::Discovery) -> SocketAddr {
    if !health.ip().is_unspecified() {
        return health;
    }
    let uri: http::Uri = config.consul.parse().unwrap_or_default();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(8500);
    // Connecting a UDP socket sends nothing; it asks the kernel for the way there.
    let towards = || -> io::Result<IpAddr> {
        let socket = UdpSocket::bind(if host.contains(':') { "[::]:0" } else { "0.0.0.0:0" })?;
        socket.connect((host.as_str(), port))?;
        Ok(socket.local_addr()?.ip())
    };
    let ip = config.address.or_else(|| towards().ok()).unwrap_or(IpAddr::from([127, 0, 0, 1]));
    SocketAddr::new(ip, health.port())
}

/// Waits longer from failure to failure, by chance, so that a domain's nodes do not come back to an agent all at once.
struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const MOST: Duration = Duration::from_secs(5);

    fn new() -> Self {
        Self { next: Self::FIRST }
    }

    /// How long to wait now: half to all of a time that doubles.
    fn wait(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(Self::MOST);
        now.mul_f64(rand::random_range(0.5..1.0))
    }
}
