//! When a connection ends as the node drains: so that the sender does not begin a message while the end is on its way to it.

use crate::gateway::inbound::LINGER;
use std::time::Duration;
use tokio::time::Instant;

/// A quick sender's pause is waited for so long: it may have to make up for a moment in which it could not send.
const PAUSE_WITHIN: Duration = Duration::from_secs(2);

/// How far the end of a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// The node does not drain.
    No,
    /// The sender is quick: it sends the next message as soon as it has its acknowledgment. From here the acknowledgment and the end of the
    /// stream leave together, but a balancer hands them on one after the other, and a quick sender's next message meets the end.
    /// So its messages are taken until it makes a pause, or this moment comes.
    PauseUntil(Instant),
    /// Nothing was in hand: a sender at work will have sent its next frame before it can know of the drain. One more
    /// frame is taken until then, and the sender told with its acknowledgment.
    FrameUntil(Instant),
    /// Nothing more is taken.
    Last,
}

impl Leave {
    /// The drain begins. `idle`: nothing is in hand.
    pub fn begin(idle: bool, quick: bool) -> Self {
        let now = Instant::now();
        match (quick, idle) {
            (true, _) => Self::PauseUntil(now + PAUSE_WITHIN),
            (false, true) => Self::FrameUntil(now + LINGER),
            (false, false) => Self::Last,
        }
    }

    /// A frame was taken, which came quickly after the acknowledgment before, or not.
    pub fn taken(&mut self, quick: bool) {
        match self {
            Self::PauseUntil(_) if quick => {}
            Self::PauseUntil(_) | Self::FrameUntil(_) => *self = Self::Last,
            Self::No | Self::Last => {}
        }
    }

    /// When to call [`Self::passed`].
    pub fn until(self) -> Option<Instant> {
        match self {
            Self::PauseUntil(until) | Self::FrameUntil(until) => Some(until),
            Self::No | Self::Last => None,
        }
    }

    /// The moment has come.
    pub fn passed(&mut self, idle: bool) {
        *self = match self {
            // Just now it may be sending.
            Self::PauseUntil(_) if idle => Self::FrameUntil(Instant::now() + LINGER),
            _ => Self::Last,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_sender_is_left_when_it_pauses() {
        let mut leave = Leave::begin(false, true);
        leave.taken(true);
        assert!(leave.until().is_some());
        leave.taken(false);
        assert!(leave == Leave::Last && leave.until().is_none());
    }

    #[test]
    fn a_quick_sender_that_does_not_pause_is_left_with_its_next_acknowledgment() {
        for idle in [true, false] {
            let mut leave = Leave::begin(idle, true);
            let first = leave.until();
            leave.passed(idle);
            if idle {
                assert!(leave.until() < first && matches!(leave, Leave::FrameUntil(_)), "one more frame");
                leave.taken(true);
            }
            assert!(leave == Leave::Last);
        }
    }

    #[test]
    fn others_are_left_with_the_next_acknowledgment_or_when_they_send_nothing() {
        assert!(Leave::begin(false, false) == Leave::Last);
        let mut leave = Leave::begin(true, false);
        assert!(matches!(leave, Leave::FrameUntil(_)));
        leave.passed(true);
        assert!(leave == Leave::Last);
    }
}
