//! Where in the ledger stream a node is, and whether it is still the stream whose offsets it knows.

use super::{Consumer, Session, StreamStart};
use crate::telemetry::cluster as events;
use std::{sync::Arc, time::Duration};

/// So many messages of the stream that change nothing here are passed over before that is noted.
const PASSED_OVER: u64 = 4096;
/// A stream that gives nothing for so long is looked at: there is a beat each second.
pub(super) const SILENT: Duration = Duration::from_secs(4);

/// What was read and changes nothing here. Where it ends is noted now and then, or a node that hears nobody but itself would read all of it
/// again at its next start, and so would who copies its ledger.
#[derive(Default)]
pub(super) struct Position {
    passed_over: u64,
    /// Own records among it.
    own: bool,
}

impl Position {
    /// One more message of the stream: records (of this node's own), or an own beat.
    pub fn is_to_be_noted(&mut self, ship: bool, own: bool, own_beat: bool) -> bool {
        if ship && !own {
            // Noted with its records.
            *self = Self::default();
            return false;
        }
        self.passed_over += 1;
        self.own |= ship;
        let due = self.passed_over >= PASSED_OVER || (self.own && own_beat);
        if due {
            *self = Self::default();
        }
        due
    }
}

/// The stream is not the one whose offsets this node knows.
pub(super) fn anew(asked: u64, begins: u64) -> String {
    events::StreamMadeAnew { asked, begins }.emit();
    format!("the ledger stream was made anew (it is at {begins}, and was at {asked}): it is read from its first message")
}

/// The offset of what comes into the stream next; `None`: nothing did in time.
pub(super) async fn newest(session: &Session, stream: &Arc<str>) -> Option<u64> {
    let mut probe = Consumer::open_stream(session, stream, 1, StreamStart::Next).await.ok()?;
    let delivery = tokio::time::timeout(SILENT, probe.next()).await;
    probe.close().await;
    delivery.ok()?.ok()?.offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_nothing_here_is_noted_now_and_then() {
        let mut position = Position::default();
        let (beat, own_beat, own_records, records) =
            ((false, false, false), (false, true, true), (true, true, false), (true, false, false));
        let mut noted = |(ship, own, own_beat)| position.is_to_be_noted(ship, own, own_beat);
        assert!(!noted(beat) && !noted(own_beat), "beats alone cost no commit each");
        assert!(!noted(own_records) && !noted(own_records) && noted(own_beat) && !noted(own_beat), "own records, once a second");
        assert!(!noted(own_records) && !noted(records) && !noted(own_beat), "noted with the records of others");
        let until = (1..).take_while(|_| !noted(beat)).count() as u64;
        assert_eq!(until, PASSED_OVER - 2);
    }
}
