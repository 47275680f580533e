//! What systemd is told, and asks. Without systemd every call does nothing.

use sd_notify::NotifyState;
use std::{convert::Infallible, time::Duration};

/// The node can accept durably.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for `systemctl status`; numbers and fixed words only.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Channels are being read again, or the process is about to become its successor; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The start goes on, and may take so much longer.
pub fn starting(status: &str, extend: Duration) {
    let micros = u32::try_from(extend.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Draining has begun. `extend` is how long it may still take: systemd waits that long beyond its own timeout.
pub fn stopping(extend: Duration) {
    let micros = u32::try_from(extend.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Feeds the watchdog twice per interval, as long as `healthy` says so. Never returns, also when none is set.
pub async fn watchdog(healthy: impl Fn() -> bool) -> Infallible {
    let Some(interval) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval((interval / 2).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        if healthy() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// Failing to tell is nothing that the node could mend, and nothing that should stop it.
fn tell(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
