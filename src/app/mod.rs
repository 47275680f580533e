//! The composition root: configuration to a running node, until it is drained. The only module that knows every part.

mod alerts;
mod carrier;
mod discovery;
mod drain;
mod feed;
mod instances;
mod join;
mod keep;
mod layout;
mod outbound;
mod pauses;
mod prepare;
mod records;
mod reload;
mod shared;
mod store;

pub use prepare::check;
pub use shared::kept as kept_channels;

use crate::message::hl7::charset;
use crate::{
    admin::feed::Feed,
    config::{Config, Loaded},
    engine::{
        Engine, ListenerPolicy, Parts,
        directory::Directory,
        gate::Gate,
        ports::{Control, Log},
    },
    gateway::inbound::{http::HttpServer, mllp::MllpServer},
    host::{
        self,
        clock::SystemClock,
        listeners::Listeners,
        signals::{Signal, Signals},
        systemd,
        upgrade::Upgrade,
    },
    telemetry::app as events,
};
use anyhow::Context;
use carrier::Carrier;
use instances::{Instances, Open, Port, Shared};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Why the node ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Told to stop.
    Stopped,
    /// To become the binary on disk: the caller executes it with the listening sockets, which are still open.
    Upgrade,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Why the node could not start. The text is for the operator: what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Channels, clients or a section of the configuration are wrong.
    #[error("{0:#}")]
    Config(anyhow::Error),
    /// The store, a thread or another thing of the machine is not to be had.
    #[error("{0:#}")]
    Unavailable(#[from] anyhow::Error),
}

/// Runs the node until it is told to end. The store is locked and the listeners are open; both stay with the caller.
///
/// Errors are for the operator: what could not be opened, and what to do.
pub fn run(loaded: &Loaded, listeners: Arc<Listeners>, upgrade: &Upgrade) -> Result<Ended, StartError> {
    let started = Instant::now();
    crate::telemetry::uptime();
    let config = &loaded.config;
    let supervisor = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let ended = supervisor.block_on(async {
        // After an upgrade in place systemd's watchdog runs already, and reading a large ledger takes its time.
        let node = tokio::select! {
            node = build(config.clone(), listeners) => node?,
            never = systemd::watchdog(|| true) => match never {},
        };
        let mut signals = Signals::new().context("signals cannot be taken over")?;
        let took_ms = started.elapsed().as_millis() as u64;
        let channels = node.engine.channels().len();
        events::Ready { store: &config.node.store, channels, instances: config.node.cluster.instances(), took_ms }.emit();
        systemd::ready("accepting");
        let (ended, signalled) = tokio::select! {
            told = node.until_told(&mut signals, config, upgrade) => told,
            never = systemd::watchdog(|| node.lives()) => match never {},
            never = sampled() => match never {},
        };
        Ok(drain::run(node, config, ended, signalled, &mut signals).await)
    });
    // After a drain that was cut short its work may still block; the process ends without it.
    supervisor.shutdown_background();
    ended
}

/// Looks once a second at what the node uses.
async fn sampled() -> std::convert::Infallible {
    loop {
        crate::telemetry::usage::sample();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// [`Node::build`], which blocks, on a thread of its own.
async fn build(config: Config, listeners: Arc<Listeners>) -> Result<Node, StartError> {
    match tokio::task::spawn_blocking(move || Node::build(&config, &listeners)).await {
        Ok(built) => built,
        // The hook has said where; the command line ends with the code for a bug.
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StartError::Unavailable(anyhow::anyhow!("the start was stopped"))),
        },
    }
}

struct Node {
    engine: Arc<Engine>,
    directory: Arc<Directory>,
    ledger: Arc<crate::ledger::Ledger>,
    instances: Instances,
    listeners: Arc<Listeners>,
    delivery: tokio::runtime::Runtime,
    admin: Vec<std::thread::JoinHandle<()>>,
    feed: Arc<Feed>,
    sources: Arc<shared::Sources>,
    discovery: Option<Arc<crate::discovery::Discovery>>,
    /// The management API was asked to drain.
    asked: CancellationToken,
    /// The gateways drain.
    drain: CancellationToken,
    stop_admin: CancellationToken,
    beats: std::sync::Mutex<(Instant, Vec<u64>)>,
}

impl Node {
    fn build(config: &Config, listeners: &Arc<Listeners>) -> Result<Self, StartError> {
        let store = &config.node.store;
        let sources = Arc::new(shared::Sources::open(config).map_err(StartError::Config)?);
        let channels = sources.channels().map_err(StartError::Config)?;
        let clients = reload::clients(&config.node.clients).map_err(StartError::Config)?;
        let receivers = alerts::receivers(config).map_err(|e| StartError::Config(prepare::told(e)))?;
        let ports = ports(config, listeners).map_err(StartError::Config)?;
        let joined = join::ledger(config)?;
        let ledger = store::open(config)?;
        let log: Arc<dyn Log> = ledger.clone();
        let delivery = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(if config.node.delivery_threads == 0 { cores() } else { config.node.delivery_threads })
            .max_blocking_threads(4)
            .thread_name("hie-deliver")
            .enable_all()
            .build()
            .context("no runtime for deliveries")?;
        let clock = Arc::new(SystemClock);
        let gate = Arc::new(Gate::new(config.limits.max_pending as u64));
        let resend = Arc::new(carrier::resend_window(config));
        let carrier = Carrier::new(carrier::Needs {
            config,
            ledger: &ledger,
            clock: clock.clone(),
            gate: gate.clone(),
            pauses: Arc::new(pauses::PausesFile::new(store.clone())),
            resend: resend.clone(),
            runtime: delivery.handle().clone(),
        })
        .map_err(|e| StartError::Config(anyhow::anyhow!(e)))?;
        let directory = Arc::new(Directory::new(clients).context("clients").map_err(StartError::Config)?);
        let (troubles, broker) = (ledger.clone(), carrier.clone());
        let engine = Engine::new(
            Parts {
                log,
                transport: carrier.transport(),
                clock,
                connectors: Arc::new(outbound::Outbound::new(&config.node.channels)),
                gate,
                resend: resend.clone(),
                directory: directory.clone(),
                listeners: policies(config),
                limits: config.limits.clone(),
                troubles: Box::new(move || {
                    troubles.not_ready().map(str::to_owned).into_iter().chain(broker.not_ready()).collect()
                }),
                runtime: delivery.handle().clone(),
            },
            channels.list.clone(),
        )
        .map_err(|e| StartError::Config(reload::refused(&channels, e)))?;
        sources.joined(&engine);
        store::restore(&ledger, &carrier, &resend)?;
        ledger.start(carrier.sink()).context("the ledger cannot be started")?;
        carrier.launch();

        let (asked, drain, stop_admin) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let feed =
            Feed::start(ledger.clone(), config.feed.clone(), host::background).context("the live feed cannot be started")?;
        let discovery = discovery::start(config, listeners, &sources, &carrier)?;
        let cluster = Arc::new(discovery::View::new(config, &discovery, &sources, &carrier, joined));
        let (alerts, told) = alerts::spawn(config, receivers, &engine, &directory, &ledger, &feed, &cluster, &stop_admin)?;
        let mut admin = {
            let changes = sources.changes();
            let shown = store::Shown {
                engine: &engine,
                directory: &directory,
                ledger: &ledger,
                feed: &feed,
                alerts: &alerts,
                cluster,
                changes,
            };
            store::serve_admin(config, listeners, &shown, &asked, &stop_admin)?
        };
        admin.push(told);
        let shared = Shared {
            intake: engine.clone(),
            open: ports,
            folders: config.file.clone(),
            drain: drain.clone(),
            drain_timeout: config.node.drain_timeout,
        };
        let instances =
            Instances::spawn(config.node.cluster.instances(), &shared).context("accepting instances cannot be started")?;
        let beats = std::sync::Mutex::new((Instant::now(), Vec::new()));
        // Accepting begins here; whatever came earlier waited in the accept queues.
        tracing::debug!(store = %store.display(), "built");
        Ok(Self {
            engine,
            directory,
            ledger,
            instances,
            listeners: listeners.clone(),
            delivery,
            admin,
            feed,
            sources,
            discovery,
            asked,
            drain,
            stop_admin,
            beats,
        })
    }

    /// Works until it is told to end: how, and whether by a signal.
    async fn until_told(&self, signals: &mut Signals, config: &Config, upgrade: &Upgrade) -> (Ended, bool) {
        let mut preflight: Option<tokio::task::JoinHandle<bool>> = None;
        loop {
            let checked = async {
                match &mut preflight {
                    Some(task) => task.await.unwrap_or(false),
                    None => std::future::pending().await,
                }
            };
            let signal = tokio::select! {
                signal = signals.next() => signal,
                // The management API asked for it.
                () = self.asked.cancelled() => {
                    events::Draining { why: "told to stop" }.emit();
                    return (Ended::Stopped, false);
                }
                passed = checked => {
                    preflight = None;
                    // A refusal is in the log; the node goes on as it is.
                    if !passed {
                        continue;
                    }
                    systemd::reloading();
                    events::Draining { why: "upgrade in place" }.emit();
                    return (Ended::Upgrade, false);
                }
            };
            match signal {
                Signal::Terminate | Signal::Interrupt => {
                    events::Draining { why: "told to stop" }.emit();
                    return (Ended::Stopped, true);
                }
                Signal::Reload => {
                    systemd::reloading();
                    reload::all(config, &self.sources, &self.engine, &self.directory);
                    systemd::ready("accepting");
                }
                Signal::Upgrade if preflight.is_none() => {
                    let upgrade = upgrade.clone();
                    // The new binary may take its time; signals and the watchdog do not wait for it.
                    preflight = Some(tokio::task::spawn_blocking(move || upgrade.preflight().is_ok()));
                }
                Signal::Upgrade => {}
            }
        }
    }

    /// Whether every accepting instance has moved within the last seconds and the log's writer is alive.
    fn lives(&self) -> bool {
        let now = self.instances.beats();
        let mut last = self.beats.lock().unwrap_or_else(|e| e.into_inner());
        let moved = last.1.len() != now.len() || last.1.iter().zip(&now).all(|(before, now)| now > before);
        if moved {
            *last = (Instant::now(), now);
        }
        last.0.elapsed() < Duration::from_secs(10) && self.ledger.is_alive()
    }
}

fn policies(config: &Config) -> HashMap<String, ListenerPolicy> {
    let mut all = HashMap::new();
    for name in ["http", "https"] {
        all.insert(name.to_owned(), ListenerPolicy { require_client: config.http.require_client, ..ListenerPolicy::default() });
    }
    for mllp in &config.mllp {
        let client = mllp.client.as_deref().map(Into::into);
        all.insert(
            mllp.name.clone(),
            ListenerPolicy { require_client: mllp.require_client, client, charset: charset::encoding(&mllp.charset) },
        );
    }
    for folder in &config.file {
        let client = folder.client.as_deref().map(Into::into);
        all.insert(folder.name.clone(), ListenerPolicy { client, ..ListenerPolicy::default() });
    }
    all
}

/// Prepares what all instances share of each port; the result gives an instance its descriptors.
fn ports(config: &Config, listeners: &Arc<Listeners>) -> anyhow::Result<Open> {
    let mut ports: Vec<(String, Port)> = Vec::new();
    let mut acceptors = prepare::acceptors(config).map_err(prepare::told)?;
    let max_body = config.limits.max_body.as_u64();
    if config.http.listen.is_some() {
        ports.push(("http".into(), Port::Http(HttpServer::new(config.http.clone(), None, max_body))));
    }
    if let Some(acceptor) = acceptors.remove("http") {
        ports.push(("https".into(), Port::Http(HttpServer::new(config.http.clone(), Some(acceptor), max_body))));
    }
    for (i, mllp) in config.mllp.iter().enumerate() {
        let acceptor = acceptors.remove(&format!("mllp.{i}"));
        ports.push((format!("mllp:{}", mllp.name), Port::Mllp(MllpServer::new(mllp.clone(), acceptor))));
    }
    let listeners = listeners.clone();
    Ok(Arc::new(move |instance| {
        let mut open = Vec::new();
        for (name, port) in &ports {
            for listener in listeners.of(name, instance)? {
                open.push((port.clone(), listener));
            }
        }
        Ok(open)
    }))
}
