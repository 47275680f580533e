//! The times of one MLLP connection.

use std::{future::Future, pin::Pin, task::Context, time::Duration};
use tokio::time::{Instant, Sleep, sleep_until};

/// A sender that ends its frame without the CR is not waited for longer than this.
pub(super) const CR_WITHIN: Duration = Duration::from_millis(100);

/// Who sends the next frame so soon after an acknowledgment waits for nothing else.
const QUICK: Duration = Duration::from_millis(100);

/// The connection's times, with one timer that is set again only when it has to be earlier.
pub(super) struct Clock {
    /// The last read.
    pub read: Instant,
    /// The last sign of a sender at work: a frame, or its acknowledgment. Bytes outside frames are none.
    pub active: Instant,
    /// A frame began then, the time not counted in which the node did not read.
    pub frame: Option<Instant>,
    /// Since when the node does not read.
    paused: Option<Instant>,
    /// The last acknowledgment.
    replied: Option<Instant>,
    /// The last frame came soon after the acknowledgment before it.
    followed: bool,
    timer: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
    /// The timer has gone off: look at everything again.
    pub fired: bool,
}

impl Clock {
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            read: now,
            active: now,
            frame: None,
            paused: None,
            replied: None,
            followed: false,
            timer: None,
            armed: None,
            fired: false,
        }
    }

    pub fn active(&mut self) {
        self.active = Instant::now();
    }

    /// A frame has come.
    pub fn frame_came(&mut self) {
        self.followed = self.replied.is_some_and(|at| at.elapsed() < QUICK);
        self.active();
    }

    /// It is acknowledged.
    pub fn replied(&mut self) {
        self.active();
        self.replied = Some(self.active);
    }

    /// The sender sent its last message as soon as it could, and, with nothing in hand, may be doing so again.
    pub fn is_quick(&self, idle: bool) -> bool {
        self.followed && !(idle && self.active.elapsed() >= QUICK)
    }

    /// A frame has begun and not ended, or not. One that begins over again has begun when it began first.
    pub fn in_frame(&mut self, begun: bool) {
        match begun {
            true if self.frame.is_none() => self.frame = Some(Instant::now()),
            true => {}
            false => self.frame = None,
        }
    }

    /// While the node does not read, the sender is not to blame for what does not come.
    pub fn reading(&mut self, reading: bool) {
        match (reading, self.paused) {
            (false, None) => self.paused = Some(Instant::now()),
            (true, Some(since)) => {
                let now = Instant::now();
                (self.read, self.active, self.paused) = (now, now, None);
                self.frame = self.frame.map(|begun| begun + (now - since));
            }
            _ => {}
        }
    }

    pub fn cr_is_late(&self, awaited: bool) -> bool {
        awaited && self.read.elapsed() >= CR_WITHIN
    }

    /// True when the time has come.
    pub fn poll_at(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if self.armed.is_none_or(|armed| at < armed) {
            timer.as_mut().reset(at);
            self.armed = Some(at);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.armed = None;
        self.fired = true;
        true
    }
}
