//! A sender is kept to its client's rate by not reading on: its next message waits for its turn, and only one that would
//! have to wait too long is refused.

use super::slot::Source;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// How long a message waits for its turn, and how long a refused sender is not read from: senders wait for their
/// acknowledgment longer than this (10 s and more are usual).
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The wait of a connection's next message.
#[derive(Default)]
pub(super) struct Pace {
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Resolves when the next message may be handed over, having taken it off the rate; or with the time it would still have to wait,
    /// when that is too long.
    pub fn poll(&mut self, source: &Source<'_>, cx: &mut Context<'_>) -> Poll<Result<(), Duration>> {
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(cx));
                self.timer = None;
            }
            let turn = source.intake.rate(&source.client);
            let Err(wait) = turn else {
                self.since = None;
                return Poll::Ready(Ok(()));
            };
            // Others of the same client may take the turn that was waited for.
            if self.since.get_or_insert_with(Instant::now).elapsed() + wait > PATIENCE {
                self.since = None;
                return Poll::Ready(Err(wait));
            }
            self.timer = Some(Box::pin(sleep(wait)));
        }
    }
}
