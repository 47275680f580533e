//! The ledger joined with those who use it: opened, read at start, shown by the management API.

use super::{carrier::Carrier, join};
use crate::{
    admin::{self, AdminState, Cluster, Info, Token, feed::Feed},
    alert::Alerts,
    config::Config,
    engine::{Engine, directory::Directory, ports::Control, resend::ResendWindow},
    host::{self, listeners::Listeners},
    ledger::{self, Ledger},
    telemetry::app as events,
};
use anyhow::Context;
use std::{
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Opens the ledger under the store.
pub(super) fn open(config: &Config) -> anyhow::Result<Arc<Ledger>> {
    let dir = config.node.store.join("ledger");
    let watched = config.node.store.clone();
    let ledger = Ledger::open(ledger::Options {
        dir,
        config: config.ledger.clone(),
        writer_queue: config.limits.writer_queue.as_u64(),
        free_space: Box::new(move || host::space::free(&watched).ok().map(|space| space.free)),
        boot_id: Box::new(host::boot_id),
        background: host::background,
    })?;
    Ok(Arc::new(ledger))
}

/// Gives the transport what was not finished and the resend window what came last.
pub(super) fn restore(ledger: &Ledger, carrier: &Carrier, resend: &ResendWindow) -> anyhow::Result<()> {
    let started = Instant::now();
    let (mut unfinished, mut resend_window) = (0, 0);
    ledger
        .unfinished(&mut |message| {
            unfinished += 1;
            carrier.restore(message);
        })
        .context("what was unfinished cannot be read from the ledger")?;
    ledger
        .recent(&mut |message| {
            resend_window += 1;
            resend.restore(message);
            carrier.remember(message);
        })
        .context("the resend window cannot be read from the ledger")?;
    events::Restored { unfinished, resend_window, took_ms: started.elapsed().as_millis() as u64 }.emit();
    Ok(())
}

/// What the management API shows.
pub(super) struct Shown<'a> {
    pub engine: &'a Arc<Engine>,
    pub directory: &'a Arc<Directory>,
    pub ledger: &'a Arc<Ledger>,
    pub feed: &'a Arc<Feed>,
    pub alerts: &'a Arc<Alerts>,
    pub cluster: Arc<dyn Cluster>,
    pub changes: Arc<Mutex<()>>,
}

/// Starts health and the management API, each on its own thread.
pub(super) fn serve_admin(
    config: &Config,
    listeners: &Listeners,
    shown: &Shown<'_>,
    drain: &CancellationToken,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let Shown { engine, directory, ledger, feed, alerts, cluster, changes } = shown;
    let mut threads = Vec::new();
    // Before anything says that the node is ready: who waits for that may ask the management API next.
    let file = config.admin.token_file.clone().unwrap_or_else(|| config.node.store.join("admin-token"));
    let token = Token::load_or_create(&file).context("the management API's token")?.0;
    if let Some(listener) = listeners.one("health")? {
        let engine: Arc<Engine> = Arc::clone(engine);
        threads.push(admin::health::spawn(listener, Arc::new(move || engine.not_ready()), stop.clone())?);
    }
    if let Some(listener) = listeners.one("admin")? {
        let state = AdminState {
            control: Arc::<Engine>::clone(engine),
            records: Arc::<Ledger>::clone(ledger),
            cluster: cluster.clone(),
            changes: changes.clone(),
            directory: Arc::clone(directory),
            channels: config.node.channels.clone(),
            clients: config.node.clients.clone(),
            token,
            info: Info {
                node: config.node.name.clone(),
                domain: config.node.domain.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
            },
            alerts: Arc::clone(alerts),
            drain: drain.clone(),
            feed: Arc::clone(feed),
            peers: join::peers(config, ledger)?,
        };
        threads.push(admin::spawn(listener, state, stop.clone())?);
    }
    Ok(threads)
}
