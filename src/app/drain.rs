//! The end of a node: what is in hand is finished, then everything is closed. The watchdog is fed all the while, and
//! whoever does not want to wait asks a second time.

use super::{Ended, Node};
use crate::{
    config::Config,
    discovery::Discovery,
    engine::ports::Control,
    host::{
        listeners::HANDSHAKE,
        signals::{Signal, Signals},
        systemd,
    },
    telemetry::{app as events, discovery as names},
};
use std::{
    cell::Cell,
    sync::mpsc,
    time::{Duration, Instant},
};

/// What closing may take beyond `node.drain_timeout`.
const CLOSING: Duration = Duration::from_secs(10);
/// What leaving the names may take before the node serves on without them.
const WITHDRAWING: Duration = Duration::from_secs(5);
/// What accepting the last connections may take before their listeners are closed all the same.
const LAST_ACCEPTS: Duration = Duration::from_secs(2);
/// Deliveries get this long even when the gateways took the whole of `node.drain_timeout`.
const LEAST: Duration = Duration::from_secs(1);
/// Cut short, the log still gets this long to write what it holds.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// Drains and closes the node. `signalled`: the drain was asked for by a signal, so that the next TERM or INT is the
/// second. Returns how it ended: TERM or INT during an upgrade's drain make it a stop.
pub(super) async fn run(node: Node, config: &Config, why: Ended, signalled: bool, signals: &mut Signals) -> Ended {
    let Node { engine, ledger, instances, listeners, delivery, admin, feed, discovery, drain, stop_admin, .. } = node;
    // Of no use to an upgrade, which refuses nobody and stays in the names.
    let names = discovery.as_ref().filter(|_| why == Ended::Stopped);
    let serving_on = names.map_or(Duration::ZERO, |_| config.discovery.dns_ttl + WITHDRAWING);
    let limit = config.node.drain_timeout;
    let began = Instant::now();
    let ended = Cell::new(why);
    let stopping = || systemd::stopping((serving_on + limit + CLOSING).saturating_sub(began.elapsed()));
    if why == Ended::Stopped {
        stopping();
    }
    // Balancers see it before the first connection is refused.
    engine.announce_drain();

    let (connections, doors) = (instances.connections(), instances.doors());
    let in_hand = async {
        if let Some(discovery) = names {
            withdraw(discovery, config.discovery.dns_ttl).await;
        }
        // After an upgrade the sockets go on, and whoever comes meanwhile waits in them.
        if why == Ended::Stopped {
            listeners.hold_off();
            tokio::time::sleep(HANDSHAKE).await;
        }
        drain.cancel();
        let began = Instant::now();
        let close = async {
            if why == Ended::Stopped {
                // Nobody is left in their queues then.
                let _ = tokio::time::timeout(LAST_ACCEPTS, doors.closed()).await;
                listeners.close();
            }
        };
        // Readers of the live feed are sent away over time, meanwhile: they come back elsewhere, and not all at once.
        let readers = blocking(move || feed.drain(limit / 2));
        let messages = async {
            // Gateways first: what they have in hand may still need deliveries (proxy mode).
            blocking(move || instances.join()).await;
            let leave = async {
                if let Some(discovery) = names {
                    discovery.leave().await;
                }
            };
            // What is not over in time is delivered again at the next start.
            let left = limit.saturating_sub(began.elapsed()).max(LEAST);
            let _ = tokio::join!(leave, tokio::time::timeout(left, engine.drain()));
        };
        tokio::join!(close, readers, messages);
    };
    let told_again = async {
        let mut signalled = signalled;
        loop {
            match signals.next().await {
                Signal::Terminate | Signal::Interrupt if signalled => return,
                Signal::Terminate | Signal::Interrupt => {
                    signalled = true;
                    if ended.replace(Ended::Stopped) == Ended::Upgrade {
                        stopping();
                        events::Draining { why: "told to stop during an upgrade" }.emit();
                    }
                }
                // There is nothing left to reload, and the upgrade, if it is one, is under way.
                Signal::Reload | Signal::Upgrade => {}
            }
        }
    };
    let in_time = || began.elapsed() < serving_on + limit + CLOSING;
    let finished = tokio::select! {
        () = in_hand => true,
        () = told_again => false,
        never = systemd::watchdog(|| in_time() && ledger.is_alive()) => match never {},
    };
    // Cut short, nobody has been told yet.
    drain.cancel();
    let pending = engine.pending();
    stop_admin.cancel();
    if !finished {
        events::DrainCut { pending, connections: connections.count() }.emit();
        delivery.shutdown_background();
        // Not waited for beyond that: the disk may be the reason why the drain takes so long.
        let (done, closed) = mpsc::channel();
        std::thread::spawn(move || {
            ledger.close();
            let _ = done.send(());
        });
        let _ = closed.recv_timeout(LAST_COMMIT);
        if let Some(discovery) = &discovery {
            // Not its last chance: the checks fail from here on.
            let _ = tokio::time::timeout(LAST_COMMIT, discovery.leave()).await;
            discovery.stop();
        }
        return Ended::Stopped;
    }
    let closing = blocking(move || {
        delivery.shutdown_timeout(Duration::from_secs(5));
        ledger.close();
        for thread in admin {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    });
    tokio::select! {
        () = closing => {}
        never = systemd::watchdog(in_time) => match never {},
    }
    if let Some(discovery) = &discovery {
        // An upgrade that became a stop.
        if names.is_none() && ended.get() == Ended::Stopped {
            discovery.leave().await;
        }
        discovery.stop();
    }
    events::Stopped { pending }.emit();
    ended.get()
}

/// Leaves the names, then serves those who still hold an old answer.
async fn withdraw(discovery: &Discovery, serving: Duration) {
    let done = discovery.withdraw().await;
    names::Withdrawn { done, serving }.emit();
    tokio::time::sleep(serving).await;
}

/// Runs what blocks beside the supervisor.
async fn blocking(work: impl FnOnce() + Send + 'static) {
    // It fails only when the work panicked, which the hook has told.
    let _ = tokio::task::spawn_blocking(work).await;
}
