//! The end of a node: what is in hand is finished, then everything is closed. The watchdog is fed all the while, and
//! whoever does not want to wait asks a second time.

use super::{Ended, Node};
use crate::{
    config::Config,
    engine::ports::Control,
    host::{
        signals::{Signal, Signals},
        systemd,
    },
    telemetry::app as events,
};
use std::{
    cell::Cell,
    sync::mpsc,
    time::{Duration, Instant},
};

/// What closing may take beyond `node.drain_timeout`.
const CLOSING: Duration = Duration::from_secs(10);
/// Deliveries get this long even when the gateways took the whole of `node.drain_timeout`.
const LEAST: Duration = Duration::from_secs(1);
/// Cut short, the log still gets this long to write what it holds.
const LAST_COMMIT: Duration = Duration::from_secs(1);

/// Drains and closes the node. `signalled`: the drain was asked for by a signal, so that the next TERM or INT is the
/// second. Returns how it ended: TERM or INT during an upgrade's drain make it a stop.
pub(super) async fn run(node: Node, config: &Config, why: Ended, signalled: bool, signals: &mut Signals) -> Ended {
    let Node { engine, ledger, instances, delivery, admin, feed, drain, stop_admin, .. } = node;
    let limit = config.node.drain_timeout;
    let began = Instant::now();
    let ended = Cell::new(why);
    let stopping = || systemd::stopping((limit + CLOSING).saturating_sub(began.elapsed()));
    if why == Ended::Stopped {
        stopping();
    }
    // Balancers see it before the first connection is refused.
    engine.announce_drain();
    drain.cancel();

    let connections = instances.connections();
    let in_hand = async {
        // Readers of the live feed are sent away over time, meanwhile: they come back elsewhere, and not all at once.
        let readers = blocking(move || feed.drain(limit / 2));
        let messages = async {
            // Gateways first: what they have in hand may still need deliveries (proxy mode).
            blocking(move || instances.join()).await;
            // What is not over in time is delivered again at the next start.
            let left = limit.saturating_sub(began.elapsed()).max(LEAST);
            let _ = tokio::time::timeout(left, engine.drain()).await;
        };
        tokio::join!(readers, messages);
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
    let in_time = || began.elapsed() < limit + CLOSING;
    let finished = tokio::select! {
        () = in_hand => true,
        () = told_again => false,
        never = systemd::watchdog(|| in_time() && ledger.is_alive()) => match never {},
    };
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
    events::Stopped { pending }.emit();
    ended.get()
}

/// Runs what blocks beside the supervisor.
async fn blocking(work: impl FnOnce() + Send + 'static) {
    // It fails only when the work panicked, which the hook has told.
    let _ = tokio::task::spawn_blocking(work).await;
}
